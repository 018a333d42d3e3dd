//! What counts as a word.

use std::ops::Range;

/// Bytes of a term; what a longer word has more is left out.
const TERM_SIZE_BYTES_MAX: usize = 64;

/// The words of a text, as byte ranges: runs of letters and digits (Unicode's
/// `Alphabetic` and `Numeric`). Scripts without spaces give long words.
pub(crate) fn words(text: &str) -> impl Iterator<Item = Range<usize>> {
    let mut at = 0;
    std::iter::from_fn(move || {
        let rest = &text[at..];
        let start = at + rest.find(char::is_alphanumeric)?;
        let len = text[start..].find(|c: char| !c.is_alphanumeric());
        at = len.map_or(text.len(), |len| start + len);
        Some(start..at)
    })
}

/// A word as it is looked up: in lower case and not too long.
pub(crate) fn term_into(word: &str, term: &mut String) {
    term.clear();
    let cut = &word[..word.floor_char_boundary(TERM_SIZE_BYTES_MAX)];
    if cut.is_ascii() {
        term.push_str(cut);
        term.make_ascii_lowercase();
    } else {
        term.extend(cut.chars().flat_map(char::to_lowercase));
    }
}

/// The terms of a text, in order, repeated ones included.
pub(crate) fn terms(text: &str) -> impl Iterator<Item = String> {
    words(text).map(|word| {
        let mut term = String::new();
        term_into(&text[word], &mut term);
        term
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_runs_of_letters_and_digits() {
        let of = |text: &str| terms(text).collect::<Vec<_>>();
        assert_eq!(of(""), Vec::<String>::new());
        assert_eq!(of(" .,\n"), Vec::<String>::new());
        assert_eq!(of("Who's at risk?"), ["who", "s", "at", "risk"]);
        assert_eq!(
            of("$1.5M Straße ÉTÉ 漢字"),
            ["1", "5m", "straße", "été", "漢字"]
        );
        let long = "ä".repeat(100);
        assert_eq!(of(&long), ["ä".repeat(32)]);
    }
}
