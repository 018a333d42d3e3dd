//! This project's own tokenizer: byte-level BPE with four special tokens.
//!
//! `<|user|>…<|assistant|>…<|end|><|user|>…<|assistant|>`; system messages come
//! before the next user message, an empty line between.

use std::path::Path;

use tokenizers::models::bpe::{BPE, BpeTrainerBuilder};
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::{AddedToken, NormalizerWrapper, PostProcessorWrapper, TokenizerBuilder};

use super::decoder::ALPHABET;
use super::encoder::Encoder;
use super::{ChatMessage, ChatTokens, Role, Tokenizer, TokenizerError};
use crate::weights::write_atomic;

/// Special tokens in the order of their ids.
const SPECIAL: [&str; 4] = ["<|end|>", "<|user|>", "<|assistant|>", "<|pad|>"];

/// The format for other programs; the same as [`Native::prompt`].
const CHAT_TEMPLATE: &str = "{% set ns = namespace(system='') %}{% for m in messages %}\
{% if m['role'] == 'system' %}{% set ns.system = ns.system + m['content'] + '\n\n' %}\
{% elif m['role'] == 'user' %}{{ '<|user|>' + ns.system + m['content'] }}{% set ns.system = '' %}\
{% else %}{{ '<|assistant|>' + m['content'] + '<|end|>' }}{% endif %}{% endfor %}\
{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}";

/// The ids of the four.
#[derive(Debug, Clone, Copy)]
pub(super) struct Native {
    pub(super) end: u32,
    user: u32,
    assistant: u32,
    pub(super) pad: u32,
}

impl Native {
    /// `None` when the tokenizer is another one.
    pub(super) fn find(encoder: &Encoder) -> Option<Self> {
        let is_ours = SPECIAL.iter().zip(0..).all(|(name, id)| {
            let token = encoder.controls().get(&id);
            token.is_some_and(|t| t.special && t.content == *name)
        });
        is_ours.then_some(Self {
            end: 0,
            user: 1,
            assistant: 2,
            pad: 3,
        })
    }

    /// Up to where the model answers.
    pub(super) fn prompt(
        self,
        messages: &[ChatMessage],
        encode: impl Fn(&str) -> Result<Vec<u32>, TokenizerError>,
    ) -> Result<Vec<u32>, TokenizerError> {
        let mut tokens = self.training(messages, encode)?.tokens;
        if messages.last().is_some_and(|m| m.role == Role::Assistant) {
            tokens.pop();
        } else {
            tokens.push(self.assistant);
        }
        Ok(tokens)
    }

    /// The whole conversation.
    pub(super) fn training(
        self,
        messages: &[ChatMessage],
        encode: impl Fn(&str) -> Result<Vec<u32>, TokenizerError>,
    ) -> Result<ChatTokens, TokenizerError> {
        let mut tokens = Vec::new();
        let mut is_assistant = Vec::new();
        let mut system = String::new();
        for message in messages {
            let content = &message.content;
            match message.role {
                Role::System => {
                    system.push_str(content);
                    system.push_str("\n\n");
                }
                Role::User => {
                    tokens.push(self.user);
                    tokens.extend(encode(&(std::mem::take(&mut system) + content))?);
                }
                Role::Assistant => {
                    tokens.push(self.assistant);
                    is_assistant.resize(tokens.len(), false);
                    tokens.extend(encode(content)?);
                    tokens.push(self.end);
                    is_assistant.resize(tokens.len(), true);
                }
            }
        }
        is_assistant.resize(tokens.len(), false);
        Ok(ChatTokens {
            tokens,
            is_assistant,
        })
    }
}

impl Tokenizer {
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
            .initial_alphabet(ALPHABET.keys().copied().collect())
            .build();
        let mut plain = TokenizerBuilder::<
            BPE,
            NormalizerWrapper,
            ByteLevel,
            PostProcessorWrapper,
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

    /// Writes `tokenizer.json` and `tokenizer_config.json` of a tokenizer in
    /// this project's chat format; `max_tokens` is the model's context.
    ///
    /// # Errors
    /// [`TokenizerError`] when a file cannot be written.
    ///
    /// # Panics
    /// Never: what it writes is plain JSON.
    pub fn save(&self, dir: &Path, max_tokens: usize) -> Result<(), TokenizerError> {
        let mut text = self.encoder.to_json().map_err(TokenizerError::Failed)?;
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
        for (name, text) in [
            (super::files::TOKENIZER, text),
            (super::files::TOKENIZER_CONFIG, config),
        ] {
            let path = dir.join(name);
            write_atomic(&path, text.as_bytes())
                .map_err(|source| TokenizerError::Write { path, source })?;
        }
        Ok(())
    }
}
