//! The tokenizer that a GGUF file describes.

use super::{Gguf, GgufError};

/// Most tokens accepted, as in `tokenizer.json`.
const MAX_TOKENS: usize = 1 << 20;

/// What a token stands for (`llama_token_type`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TokenKind {
    /// Text.
    Normal,
    /// What the model cannot write.
    Unknown,
    /// Ends, starts and the like: no text.
    Control,
    /// Text that is never split.
    UserDefined,
    /// Not used.
    Unused,
    /// One byte, written `<0xHH>`.
    Byte,
}

/// The tokenizer of a file: what its metadata under `tokenizer.` say, checked
/// for consistency.
#[derive(Debug, Clone, PartialEq)]
pub struct GgufTokenizer {
    /// `tokenizer.ggml.model`: `gpt2` (byte-level BPE), `llama`
    /// (SentencePiece) and others.
    pub model: String,
    /// `tokenizer.ggml.pre`: name of the pre-tokenizer.
    pub pre: Option<String>,
    /// Text of each token, by id.
    pub tokens: Vec<String>,
    /// Score of each token, or none at all.
    pub scores: Vec<f32>,
    /// Kind of each token, or none at all.
    pub kinds: Vec<TokenKind>,
    /// BPE merges, `left right`, first to last.
    pub merges: Vec<String>,
    /// Begin of a text.
    pub bos: Option<u32>,
    /// End of a text.
    pub eos: Option<u32>,
    /// End of a turn.
    pub eot: Option<u32>,
    /// What cannot be written.
    pub unknown: Option<u32>,
    /// Filling.
    pub padding: Option<u32>,
    /// Whether texts are begun with [`Self::bos`].
    pub add_bos: Option<bool>,
    /// Whether texts are ended with [`Self::eos`].
    pub add_eos: Option<bool>,
    /// Whether a space is put before a text (SentencePiece).
    pub add_space_prefix: Option<bool>,
    /// Jinja template of conversations.
    pub chat_template: Option<String>,
}

impl Gguf {
    /// The tokenizer, if the file has one.
    ///
    /// # Errors
    /// [`GgufError::Metadata`] when a value is of another type, lists differ in
    /// length, or a special token does not exist.
    pub fn tokenizer(&self) -> Result<Option<GgufTokenizer>, GgufError> {
        const TOKENS: &str = "tokenizer.ggml.tokens";
        const KINDS: &str = "tokenizer.ggml.token_type";
        let Some(model) = self.text("tokenizer.ggml.model")? else {
            return Ok(None);
        };
        let Some(tokens) = self.texts(TOKENS)? else {
            return Err(self.metadata_error(TOKENS, "is missing"));
        };
        if tokens.is_empty() || tokens.len() > MAX_TOKENS {
            let reason = format!("has {} tokens, allowed are 1 to {MAX_TOKENS}", tokens.len());
            return Err(self.metadata_error(TOKENS, reason));
        }
        let one_each = |key: &str, n: usize| {
            if n == 0 || n == tokens.len() {
                return Ok(());
            }
            let reason = format!("has {n} values for {} tokens", tokens.len());
            Err(self.metadata_error(key, reason))
        };
        let scores = self.floats("tokenizer.ggml.scores")?.unwrap_or(&[]);
        one_each("tokenizer.ggml.scores", scores.len())?;
        let kinds = self.integers(KINDS)?.unwrap_or(&[]);
        one_each(KINDS, kinds.len())?;
        let kinds = kinds
            .iter()
            .map(|kind| {
                Ok(match kind {
                    // Zero is "undefined"; llama.cpp treats it as text.
                    0 | 1 => TokenKind::Normal,
                    2 => TokenKind::Unknown,
                    3 => TokenKind::Control,
                    4 => TokenKind::UserDefined,
                    5 => TokenKind::Unused,
                    6 => TokenKind::Byte,
                    other => {
                        let reason = format!("has a {other}, expected 1 to 6");
                        return Err(self.metadata_error(KINDS, reason));
                    }
                })
            })
            .collect::<Result<_, _>>()?;
        let special = |name: &str| {
            let key = format!("tokenizer.ggml.{name}_token_id");
            // Some writers say 2^32 - 1 or -1 for "none".
            let none = matches!(
                self.metadata().get(&key),
                Some(super::Value::Integer(-1 | 0xFFFF_FFFF))
            );
            match self.size(&key) {
                _ if none => Ok(None),
                Ok(Some(id)) if id >= tokens.len() => {
                    let reason = format!("is {id}, there are {} tokens", tokens.len());
                    Err(self.metadata_error(&key, reason))
                }
                other => other.map(|id| id.and_then(|id| u32::try_from(id).ok())),
            }
        };
        Ok(Some(GgufTokenizer {
            model: model.to_owned(),
            pre: self.text("tokenizer.ggml.pre")?.map(str::to_owned),
            tokens: tokens.to_vec(),
            scores: scores.to_vec(),
            kinds,
            merges: self.texts("tokenizer.ggml.merges")?.unwrap_or(&[]).to_vec(),
            bos: special("bos")?,
            eos: special("eos")?,
            eot: special("eot")?,
            unknown: special("unknown")?,
            padding: special("padding")?,
            add_bos: self.flag("tokenizer.ggml.add_bos_token")?,
            add_eos: self.flag("tokenizer.ggml.add_eos_token")?,
            add_space_prefix: self.flag("tokenizer.ggml.add_space_prefix")?,
            chat_template: self.text("tokenizer.chat_template")?.map(str::to_owned),
        }))
    }
}
