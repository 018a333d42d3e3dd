//! A call as most families write it, `{"name": "f", "arguments": {…}}`, read
//! while it is written: the name as soon as it is known, then the arguments as
//! they come.

/// Longest name or key that is read.
const STRING_SIZE_BYTES_MAX: usize = 256;

/// Why there is no head of a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum NoHead {
    /// Not all of it is there yet.
    More,
    /// It begins otherwise: perhaps a call, but none that can be passed on before
    /// it is whole.
    Other,
}

/// The name of the function, and where in `text` its arguments begin, which are
/// an object.
pub(super) fn head(text: &str) -> Result<(String, usize), NoHead> {
    let mut rest = Rest { text, at: 0 };
    rest.expect('{')?;
    if rest.string()? != "name" {
        return Err(NoHead::Other);
    }
    rest.expect(':')?;
    let name = rest.string()?;
    rest.expect(',')?;
    if !matches!(rest.string()?.as_str(), "arguments" | "parameters") {
        return Err(NoHead::Other);
    }
    rest.expect(':')?;
    rest.expect('{')?;
    Ok((name, rest.at - 1))
}

/// What is left of a text.
struct Rest<'a> {
    text: &'a str,
    at: usize,
}

impl Rest<'_> {
    /// Takes white space and this sign.
    fn expect(&mut self, sign: char) -> Result<(), NoHead> {
        let rest = &self.text[self.at..];
        let trimmed = rest.trim_start();
        match trimmed.chars().next() {
            None => Err(NoHead::More),
            Some(found) if found == sign => {
                self.at = self.text.len() - trimmed.len() + sign.len_utf8();
                Ok(())
            }
            Some(_) => Err(NoHead::Other),
        }
    }

    fn string(&mut self) -> Result<String, NoHead> {
        self.expect('"')?;
        let start = self.at - 1;
        let mut is_escaped = false;
        for (n, byte) in self.text.as_bytes()[self.at..].iter().enumerate() {
            if n > STRING_SIZE_BYTES_MAX {
                return Err(NoHead::Other);
            }
            match byte {
                _ if is_escaped => is_escaped = false,
                b'\\' => is_escaped = true,
                b'"' => {
                    self.at += n + 1;
                    let quoted = &self.text[start..self.at];
                    return serde_json::from_str(quoted).map_err(|_| NoHead::Other);
                }
                _ => {}
            }
        }
        Err(NoHead::More)
    }
}

/// Finds the end of an object that comes in pieces.
#[derive(Debug, Default)]
pub(super) struct Object {
    depth: usize,
    is_string: bool,
    is_escaped: bool,
}

impl Object {
    /// How many bytes of `text` belong to it, and whether it ends with them.
    pub(super) fn scan(&mut self, text: &str) -> (usize, bool) {
        for (at, byte) in text.bytes().enumerate() {
            match byte {
                _ if self.is_escaped => self.is_escaped = false,
                b'\\' if self.is_string => self.is_escaped = true,
                b'"' => self.is_string = !self.is_string,
                _ if self.is_string => {}
                b'{' | b'[' => self.depth += 1,
                b'}' | b']' => {
                    self.depth = self.depth.saturating_sub(1);
                    if self.depth == 0 {
                        return (at + 1, true);
                    }
                }
                // Never in JSON: the end of a call that was not finished.
                b'<' => return (at, true),
                _ => {}
            }
        }
        (text.len(), false)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_head_is_read_as_soon_as_it_is_whole() {
        let text = r#" { "name" : "a\"b", "parameters" : {"x": 1}}"#;
        let end = text.find("{\"x").unwrap();
        for n in 0..text.len() {
            let expected = if n > end {
                Ok(("a\"b".to_owned(), end))
            } else {
                Err(NoHead::More)
            };
            assert_eq!(head(&text[..n]), expected, "{}", &text[..n]);
        }
        for other in [
            "[",
            "{}",
            r#"{"names": "f""#,
            r#"{"name": 1"#,
            r#"{"name": "f"}"#,
            r#"{"name": "f", "id"#.repeat(2).as_str(),
            r#"{"name": "f", "arguments": "{}""#,
            &format!("{{\"name\": \"{}", "x".repeat(300)),
        ] {
            assert_eq!(head(other), Err(NoHead::Other), "{other}");
        }
    }

    proptest! {
        #[test]
        fn an_object_ends_where_its_json_does(
            text in r#"(\{"[a-z\\]{0,3}x": ("[{}\[\]a]{0,4}"|[0-9]|\[[0-9]\]|\{\})\})"#, tail in "[}{a ]{0,4}", cut in 0_usize..20,
        ) {
            prop_assume!(serde_json::from_str::<serde_json::Value>(&text).is_ok());
            let all = format!("{text}{tail}");
            let mut object = Object::default();
            let cut = cut.min(text.len() - 1);
            let (n, is_over) = object.scan(&all[..cut]);
            prop_assert_eq!((n, is_over), (cut, false));
            prop_assert_eq!(object.scan(&all[cut..]), (text.len() - cut, true));
        }
    }
}
