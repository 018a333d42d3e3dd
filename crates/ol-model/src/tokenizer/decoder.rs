//! Tokens to text: the bytes of every token, and a stream that never splits a
//! character.

use std::collections::HashMap;
use std::sync::{Arc, LazyLock};

use serde_json::Value;

/// The byte-level alphabet (GPT-2): bytes that are printable write themselves,
/// the others are the characters from U+0100 on, in order.
pub(super) static ALPHABET: LazyLock<HashMap<char, u8>> = LazyLock::new(|| {
    let printable = |b: u8| matches!(b, b'!'..=b'~' | 0xA1..=0xAC | 0xAE..=0xFF);
    let hidden = (0..=255_u8)
        .filter(|b| !printable(*b))
        .zip('\u{100}'..)
        .map(|(b, c)| (c, b));
    (0..=255_u8)
        .filter(|b| printable(*b))
        .map(|b| (char::from(b), b))
        .chain(hidden)
        .collect()
});

/// One step of a `decoder` in `tokenizer.json`, as it acts on a token alone.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Step {
    /// Characters of the byte-level alphabet become bytes.
    ByteLevel,
    /// A string becomes another one.
    Replace(String, String),
    /// `<0xE2>` becomes a byte.
    ByteFallback,
}

/// The bytes of every token.
#[derive(Debug, Clone)]
pub(super) struct Decoder {
    /// `[n_tokens + 1]`: where each token's bytes begin.
    starts: Vec<u32>,
    bytes: Vec<u8>,
    /// Sentencepiece puts a space before the first word; it is no part of the
    /// text.
    strips_first_space: bool,
}

impl Decoder {
    /// `spec` is the field `decoder`; `tokens` gives the text of every id, `None`
    /// for those that have none (special or unused ones).
    pub(super) fn new<'a>(
        spec: &Value,
        tokens: impl Iterator<Item = Option<&'a str>>,
    ) -> Result<Self, String> {
        let mut plan = Plan::default();
        plan.add(spec)?;
        let (mut starts, mut bytes) = (vec![0], Vec::new());
        for token in tokens {
            if let Some(token) = token {
                decode_token(&plan.steps, token, &mut bytes);
            }
            let end = u32::try_from(bytes.len()).map_err(|_| "the vocabulary is too long")?;
            starts.push(end);
        }
        Ok(Self {
            starts,
            bytes,
            strips_first_space: plan.strips_first_space,
        })
    }

    /// Ids there are: one more than the highest.
    pub(super) fn len(&self) -> usize {
        self.starts.len() - 1
    }

    /// Bytes of one token; none for special and unknown ones.
    pub(super) fn token_bytes(&self, token: u32) -> &[u8] {
        match self.starts.get(token as usize..token as usize + 2) {
            Some([start, end]) => &self.bytes[*start as usize..*end as usize],
            _ => &[],
        }
    }

    pub(super) fn stream(self: &Arc<Self>, is_start: bool) -> TokenStream {
        TokenStream {
            decoder: Arc::clone(self),
            pending: Vec::new(),
            strips_space: self.strips_first_space && is_start,
        }
    }
}

#[derive(Debug, Default)]
struct Plan {
    steps: Vec<Step>,
    is_fused: bool,
    strips_first_space: bool,
}

impl Plan {
    fn add(&mut self, spec: &Value) -> Result<(), String> {
        let text = |field: &str| spec[field].as_str().unwrap_or_default().to_owned();
        match spec["type"].as_str() {
            Some("ByteLevel") => self.steps.push(Step::ByteLevel),
            Some("ByteFallback") => self.steps.push(Step::ByteFallback),
            Some("Fuse") => self.is_fused = true,
            Some("Replace") => {
                let Some(from) = spec["pattern"]["String"].as_str().filter(|p| !p.is_empty())
                else {
                    return Err("decoder.Replace: only a plain string can be replaced".to_owned());
                };
                self.steps
                    .push(Step::Replace(from.to_owned(), text("content")));
            }
            Some("Metaspace") => {
                self.steps
                    .push(Step::Replace(text("replacement"), " ".to_owned()));
                // Older files say `add_prefix_space` instead.
                self.strips_first_space = spec["prepend_scheme"].as_str() != Some("never")
                    && spec["add_prefix_space"].as_bool() != Some(false);
            }
            Some("Strip") => {
                let counts = (spec["start"].as_u64(), spec["stop"].as_u64());
                match (text("content").as_str(), counts) {
                    (_, (Some(0), Some(0))) => {}
                    (" ", (Some(1), Some(0))) if self.is_fused => self.strips_first_space = true,
                    _ => {
                        return Err(
                            "decoder.Strip: only one space at the start, after Fuse, can be stripped"
                                .to_owned(),
                        );
                    }
                }
            }
            Some("Sequence") => {
                for step in spec["decoders"].as_array().into_iter().flatten() {
                    self.add(step)?;
                }
            }
            Some(other) => return Err(format!("the decoder {other} is not supported")),
            None => return Err("there is no decoder".to_owned()),
        }
        Ok(())
    }
}

fn decode_token(steps: &[Step], token: &str, out: &mut Vec<u8>) {
    let mut text = token.to_owned();
    for step in steps {
        match step {
            Step::Replace(from, to) => text = text.replace(from, to),
            Step::ByteLevel => {
                let bytes: Option<Vec<u8>> =
                    text.chars().map(|c| ALPHABET.get(&c).copied()).collect();
                // Added tokens are written as they are.
                return out.extend(bytes.unwrap_or_else(|| text.into_bytes()));
            }
            Step::ByteFallback => {
                let hex = text
                    .strip_prefix("<0x")
                    .and_then(|rest| rest.strip_suffix('>'))
                    .filter(|hex| hex.len() == 2);
                if let Some(byte) = hex.and_then(|hex| u8::from_str_radix(hex, 16).ok()) {
                    return out.push(byte);
                }
            }
        }
    }
    out.extend(text.into_bytes());
}

/// Decodes token by token and never splits a character. Bytes that are not
/// UTF-8 become U+FFFD, one for each sequence that cannot be completed.
#[derive(Debug, Clone)]
pub struct TokenStream {
    decoder: Arc<Decoder>,
    pending: Vec<u8>,
    /// The first byte to come is dropped if it is a space.
    strips_space: bool,
}

impl TokenStream {
    /// Adds a token and returns the characters that are now complete.
    pub fn push(&mut self, token: u32) -> String {
        let mut bytes = self.decoder.token_bytes(token);
        if self.strips_space && !bytes.is_empty() {
            bytes = bytes.strip_prefix(b" ").unwrap_or(bytes);
            self.strips_space = false;
        }
        self.pending.extend(bytes);
        let mut out = String::new();
        loop {
            let (valid, bad) = match std::str::from_utf8(&self.pending) {
                Ok(text) => (text.len(), Some(0)),
                // No length: the character may be completed by a later token.
                Err(e) => (e.valid_up_to(), e.error_len()),
            };
            out.push_str(&String::from_utf8_lossy(&self.pending[..valid]));
            let Some(bad) = bad else {
                self.pending.drain(..valid);
                return out;
            };
            self.pending.drain(..valid + bad);
            if bad == 0 {
                return out;
            }
            out.push(char::REPLACEMENT_CHARACTER);
        }
    }

    /// What is left of an unfinished character: U+FFFD or nothing.
    #[must_use]
    pub fn finish(self) -> String {
        String::from_utf8_lossy(&self.pending).into_owned()
    }
}
