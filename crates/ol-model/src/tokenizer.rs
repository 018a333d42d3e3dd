//! Byte-level BPE tokenizer (`tokenizer.json`), chat format and streaming decoder.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use thiserror::Error;
use tokenizers::models::bpe::{BPE, BpeTrainerBuilder};
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::{AddedToken, DecoderWrapper, ModelWrapper};

use crate::weights::{WeightsError, read_limited, write_atomic};

/// Longest `tokenizer.json` accepted.
pub const MAX_TOKENIZER_SIZE_BYTES: u64 = 64 << 20;

/// Special tokens in the order of their ids in a tokenizer trained here.
const SPECIAL: [&str; 4] = ["<|end|>", "<|user|>", "<|assistant|>", "<|pad|>"];

/// The chat format for other programs; the same as [`Tokenizer::chat`].
const CHAT_TEMPLATE: &str = "{% set ns = namespace(system='') %}{% for m in messages %}\
{% if m['role'] == 'system' %}{% set ns.system = ns.system + m['content'] + '\n\n' %}\
{% elif m['role'] == 'user' %}{{ '<|user|>' + ns.system + m['content'] }}{% set ns.system = '' %}\
{% else %}{{ '<|assistant|>' + m['content'] + '<|end|>' }}{% endif %}{% endfor %}\
{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}";

/// Why a tokenizer cannot be used.
#[derive(Debug, Error)]
pub enum TokenizerError {
    /// The file cannot be read.
    #[error(transparent)]
    File(#[from] WeightsError),
    /// The file is not a tokenizer this engine can use.
    #[error("tokenizer.json: {0}")]
    Format(String),
    /// A text cannot be encoded, or training failed.
    #[error("tokenizer: {0}")]
    Failed(String),
    /// A file cannot be written.
    #[error("{path}: {source}")]
    Write {
        /// File concerned.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
}

/// Who speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// Instructions; put before the next user message.
    System,
    /// The one who asks.
    User,
    /// The model.
    Assistant,
}

/// One message of a conversation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChatMessage {
    /// Who speaks.
    pub role: Role,
    /// What is said.
    pub content: String,
}

/// A byte-level BPE tokenizer with this project's four special tokens.
///
/// Text from users never becomes a special token: `<|end|>` typed into a
/// prompt is encoded as the characters it consists of.
#[derive(Debug, Clone)]
pub struct Tokenizer {
    inner: tokenizers::Tokenizer,
    /// Bytes of every token; special tokens have none.
    bytes: Vec<Vec<u8>>,
    end: u32,
    user: u32,
    assistant: u32,
    pad: u32,
}

/// Bytes that the byte-level alphabet writes as themselves; the others are
/// written as the characters from U+0100 on, in order (the GPT-2 alphabet).
fn alphabet() -> HashMap<char, u8> {
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
}

impl Tokenizer {
    /// Reads `tokenizer.json` in `dir`.
    ///
    /// # Errors
    /// [`TokenizerError`] when it is absent, too long or of another kind.
    pub fn load(dir: &Path) -> Result<Self, TokenizerError> {
        Self::from_bytes(&read_limited(
            &dir.join("tokenizer.json"),
            MAX_TOKENIZER_SIZE_BYTES,
        )?)
    }

    /// Reads the content of a `tokenizer.json`.
    ///
    /// # Errors
    /// [`TokenizerError::Format`] when it is not byte-level BPE with the
    /// special tokens of the chat format.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, TokenizerError> {
        let inner = tokenizers::Tokenizer::from_bytes(bytes)
            .map_err(|e| TokenizerError::Format(e.to_string()))?;
        Self::wrap(inner)
    }

    fn wrap(mut inner: tokenizers::Tokenizer) -> Result<Self, TokenizerError> {
        let refuse = |what: &str| Err(TokenizerError::Format(what.to_owned()));
        if !matches!(inner.get_model(), ModelWrapper::BPE(_)) {
            return refuse("the model is not BPE");
        }
        if !matches!(inner.get_decoder(), Some(DecoderWrapper::ByteLevel(_))) {
            return refuse("the decoder is not byte-level");
        }
        inner.set_encode_special_tokens(true);
        // A prompt is never cut or filled up behind the caller's back.
        inner
            .with_truncation(None)
            .map_err(|e| TokenizerError::Format(e.to_string()))?;
        inner.with_padding(None);
        let added: Vec<u32> = inner.get_added_tokens_decoder().keys().copied().collect();
        let alphabet = alphabet();
        let vocabulary = inner.get_vocab(true);
        let size = vocabulary.values().max().map_or(0, |m| *m as usize + 1);
        if size == 0 || size > 1 << 20 {
            return refuse("the vocabulary is empty or passes 1,048,576 tokens");
        }
        let mut table = vec![Vec::new(); size];
        for (token, &id) in &vocabulary {
            if added.contains(&id) {
                continue;
            }
            let bytes: Option<Vec<u8>> = token.chars().map(|c| alphabet.get(&c).copied()).collect();
            let Some(bytes) = bytes else {
                return Err(TokenizerError::Format(format!(
                    "token {id} is not written in the byte alphabet"
                )));
            };
            table[id as usize] = bytes;
        }
        let special = |name: &str| {
            let missing = || TokenizerError::Format(format!("the special token {name} is missing"));
            inner
                .token_to_id(name)
                .filter(|id| added.contains(id))
                .ok_or_else(missing)
        };
        let [end, user, assistant, pad] = SPECIAL.map(special);
        Ok(Self {
            end: end?,
            user: user?,
            assistant: assistant?,
            pad: pad?,
            bytes: table,
            inner,
        })
    }

    /// Trains byte-level BPE with `vocab_size` tokens, special ones and the
    /// 256 bytes included, on `texts`.
    ///
    /// # Errors
    /// [`TokenizerError::Failed`] when the trainer fails.
    pub fn train(
        texts: impl Iterator<Item = String> + Send,
        vocab_size: usize,
    ) -> Result<Self, TokenizerError> {
        let failed = |e: tokenizers::Error| TokenizerError::Failed(e.to_string());
        let special = SPECIAL.map(|s| AddedToken::from(s, true)).to_vec();
        let mut trainer = BpeTrainerBuilder::new()
            .show_progress(false)
            .vocab_size(vocab_size)
            .min_frequency(2)
            .special_tokens(special.clone())
            .initial_alphabet(alphabet().into_keys().collect())
            .build();
        let mut plain = tokenizers::TokenizerBuilder::<
            BPE,
            tokenizers::NormalizerWrapper,
            ByteLevel,
            tokenizers::PostProcessorWrapper,
            ByteLevel,
        >::new()
        .with_model(BPE::default())
        .with_pre_tokenizer(Some(ByteLevel::new(false, false, true)))
        .with_decoder(Some(ByteLevel::new(false, false, true)))
        .build()
        .map_err(failed)?;
        plain.train(&mut trainer, texts).map_err(failed)?;
        plain.add_special_tokens(&special);
        Self::from_bytes(plain.to_string(false).map_err(failed)?.as_bytes())
    }

    /// Writes `tokenizer.json` and `tokenizer_config.json`; `max_tokens` is the
    /// model's context.
    ///
    /// # Errors
    /// [`TokenizerError`] when a file cannot be written.
    ///
    /// # Panics
    /// Never: what it writes is plain JSON.
    pub fn save(&self, dir: &Path, max_tokens: usize) -> Result<(), TokenizerError> {
        let mut text = self
            .inner
            .to_string(false)
            .map_err(|e| TokenizerError::Failed(e.to_string()))?;
        text.push('\n');
        let config = serde_json::json!({
            "chat_template": CHAT_TEMPLATE,
            "clean_up_tokenization_spaces": false,
            "eos_token": SPECIAL[0],
            "model_max_length": max_tokens,
            "pad_token": SPECIAL[3],
            "tokenizer_class": "PreTrainedTokenizerFast",
        });
        let mut config = serde_json::to_string_pretty(&config).expect("a JSON value has a text");
        config.push('\n');
        for (name, text) in [("tokenizer.json", text), ("tokenizer_config.json", config)] {
            let path = dir.join(name);
            write_atomic(&path, text.as_bytes())
                .map_err(|source| TokenizerError::Write { path, source })?;
        }
        Ok(())
    }

    /// Tokens of a text, without special ones.
    ///
    /// # Errors
    /// [`TokenizerError::Failed`] when the pre-tokenizer gives up on the text.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>, TokenizerError> {
        let encoding = self
            .inner
            .encode_fast(text, false)
            .map_err(|e| TokenizerError::Failed(e.to_string()))?;
        Ok(encoding.get_ids().to_vec())
    }

    /// Text of tokens; special and unknown ones have none, bytes that are not
    /// UTF-8 become U+FFFD.
    #[must_use]
    pub fn decode(&self, tokens: &[u32]) -> String {
        let bytes: Vec<u8> = tokens
            .iter()
            .flat_map(|t| self.token_bytes(*t))
            .copied()
            .collect();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// Bytes of one token; none for special and unknown tokens.
    #[must_use]
    pub fn token_bytes(&self, token: u32) -> &[u8] {
        self.bytes.get(token as usize).map_or(&[], Vec::as_slice)
    }

    /// Ids there are: one more than the highest.
    #[must_use]
    pub fn vocab_size(&self) -> usize {
        self.bytes.len()
    }

    /// Ends an answer or a document.
    #[must_use]
    pub fn end_id(&self) -> u32 {
        self.end
    }

    /// Fills up; never predicted.
    #[must_use]
    pub fn pad_id(&self) -> u32 {
        self.pad
    }

    /// Begins a user message.
    #[must_use]
    pub fn user_id(&self) -> u32 {
        self.user
    }

    /// Begins an answer.
    #[must_use]
    pub fn assistant_id(&self) -> u32 {
        self.assistant
    }

    /// A conversation up to where the model answers:
    /// `<|user|>…<|assistant|>…<|end|><|user|>…<|assistant|>`. System messages
    /// come before the next user message, an empty line between. A trailing
    /// assistant message is left open, for the model to go on with.
    ///
    /// # Errors
    /// [`TokenizerError::Failed`] when a text cannot be encoded.
    pub fn chat(&self, messages: &[ChatMessage]) -> Result<Vec<u32>, TokenizerError> {
        let mut tokens = Vec::new();
        let mut system = String::new();
        for (i, message) in messages.iter().enumerate() {
            match message.role {
                Role::System => {
                    system.push_str(&message.content);
                    system.push_str("\n\n");
                }
                Role::User => {
                    tokens.push(self.user);
                    tokens.extend(self.encode(&(std::mem::take(&mut system) + &message.content))?);
                }
                Role::Assistant => {
                    tokens.push(self.assistant);
                    tokens.extend(self.encode(&message.content)?);
                    if i + 1 < messages.len() {
                        tokens.push(self.end);
                    }
                }
            }
        }
        if messages.last().is_none_or(|m| m.role != Role::Assistant) {
            tokens.push(self.assistant);
        }
        Ok(tokens)
    }

    /// A question and its answer as training text,
    /// `<|user|>QUESTION<|assistant|>ANSWER<|end|>`, and where the answer
    /// begins (the first token after `<|assistant|>`).
    ///
    /// # Errors
    /// [`TokenizerError::Failed`] when a text cannot be encoded.
    pub fn record(
        &self,
        question: &str,
        answer: &str,
    ) -> Result<(Vec<u32>, usize), TokenizerError> {
        let mut tokens = vec![self.user];
        tokens.extend(self.encode(question)?);
        tokens.push(self.assistant);
        let start = tokens.len();
        tokens.extend(self.encode(answer)?);
        tokens.push(self.end);
        Ok((tokens, start))
    }

    /// A decoder that gives out text as tokens come.
    #[must_use]
    pub fn stream(&self) -> TokenStream<'_> {
        TokenStream {
            tokenizer: self,
            pending: Vec::new(),
        }
    }
}

/// Decodes token by token and never splits a character.
#[derive(Debug)]
pub struct TokenStream<'a> {
    tokenizer: &'a Tokenizer,
    pending: Vec<u8>,
}

impl TokenStream<'_> {
    /// Adds a token and returns the characters that are now complete.
    pub fn push(&mut self, token: u32) -> String {
        self.pending.extend(self.tokenizer.token_bytes(token));
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

#[cfg(test)]
mod tests;
