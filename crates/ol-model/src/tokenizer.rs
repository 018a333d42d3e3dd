//! Tokenizers of Hugging Face directories: text to tokens and back, chats.
//!
//! Byte-level BPE (Llama 3, Qwen, DeepSeek) and sentencepiece-style BPE with
//! byte fallback (Llama 2, Mistral) are read from `tokenizer.json`; what the
//! special tokens are for, from `tokenizer_config.json`,
//! `special_tokens_map.json` and `generation_config.json`; how a chat is
//! written, from the chat template (`chat_template`).
//!
//! **Text never becomes a control token.** `<|im_end|>` typed into a prompt, or
//! into a tool's description, is encoded as the characters it consists of.

mod decoder;
mod encoder;
pub(crate) mod files;
mod gguf;
mod native;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use thiserror::Error;

use crate::chat_template::{
    ChatOptions, ChatTemplate, ChatTemplateError, ControlTokens, Conversation, Rendered,
};
use crate::weights::WeightsError;
use decoder::Decoder;
pub use decoder::TokenStream;
pub(crate) use encoder::Control;
use encoder::Encoder;
use files::Files;
pub use files::MAX_TOKENIZER_SIZE_BYTES;
use native::Native;

/// Why a tokenizer cannot be used.
#[derive(Debug, Error)]
pub enum TokenizerError {
    /// A file cannot be read.
    #[error(transparent)]
    File(#[from] WeightsError),
    /// A file is not what this engine can use.
    #[error("{file}: {reason}")]
    Format {
        /// File concerned.
        file: String,
        /// What is wrong.
        reason: String,
    },
    /// A text cannot be encoded, or training failed.
    #[error("tokenizer: {0}")]
    Failed(String),
    /// A chat cannot be written as the model wants it.
    #[error(transparent)]
    Template(#[from] ChatTemplateError),
    /// The model says nothing about chats.
    #[error(
        "the model has no chat template; give one, or use data that needs none (prompt and completion, or plain text)"
    )]
    NoTemplate,
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
    /// Instructions.
    System,
    /// The one who asks.
    User,
    /// The model.
    Assistant,
}

impl Role {
    /// The role's name in chat templates and data files.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::System => "system",
            Self::User => "user",
            Self::Assistant => "assistant",
        }
    }
}

/// One message of a conversation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChatMessage {
    /// Who speaks.
    pub role: Role,
    /// What is said.
    pub content: String,
}

/// A conversation in tokens, and which of them the model is to learn.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChatTokens {
    /// The conversation.
    pub tokens: Vec<u32>,
    /// `[tokens.len()]`: whether the assistant wrote the token. The token that
    /// ends the assistant's turn counts as written by it.
    pub is_assistant: Vec<bool>,
}

/// How conversations are written.
#[derive(Debug, Clone)]
enum Chat {
    /// This project's own format.
    Native(Native),
    /// Templates by name.
    Templates(BTreeMap<String, Arc<ChatTemplate>>),
}

/// A tokenizer with its special tokens and its chat format.
#[derive(Debug, Clone)]
pub struct Tokenizer {
    encoder: Encoder,
    /// Shared with the streams, which outlive a borrow.
    decoder: Arc<Decoder>,
    /// Tokens put before and after a whole text.
    before: Vec<u32>,
    after: Vec<u32>,
    /// At least one; the first is the one to write.
    ends: Vec<u32>,
    pad: Option<u32>,
    /// `bos_token` and the like, for templates.
    names: BTreeMap<String, String>,
    chat: Chat,
}

impl Tokenizer {
    /// Reads the tokenizer in `dir`: `tokenizer.json` and, where they are,
    /// `tokenizer_config.json`, `special_tokens_map.json`,
    /// `generation_config.json` and `chat_template.jinja`. Given a GGUF file
    /// instead, the tokenizer is that of its folder, or else the file's own.
    ///
    /// # Errors
    /// [`TokenizerError`] when a file is absent, too long or of another kind.
    pub fn load(dir: &Path) -> Result<Self, TokenizerError> {
        if !dir.is_file() {
            return Self::from_files(Files::read(dir)?);
        }
        match dir.parent() {
            Some(beside) if beside.join(files::TOKENIZER).is_file() => {
                Self::from_files(Files::read(beside)?)
            }
            _ => Self::load_gguf(dir),
        }
    }

    /// Reads the content of a `tokenizer.json` that needs no other file: one in
    /// this project's chat format.
    ///
    /// # Errors
    /// [`TokenizerError::Format`] when it is not, or does not say what ends a
    /// text.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, TokenizerError> {
        Self::from_files(Files {
            tokenizer: bytes.to_vec(),
            ..Files::default()
        })
    }

    fn from_files(files: Files) -> Result<Self, TokenizerError> {
        let format = |reason: String| TokenizerError::Format {
            file: files::TOKENIZER.to_owned(),
            reason,
        };
        let names = &files.names;
        let named: BTreeSet<&str> = names
            .by_part
            .values()
            .chain(&names.others)
            .map(String::as_str)
            .collect();
        let (encoder, decoder) = Encoder::parse(&files.tokenizer, &named).map_err(format)?;
        let vocabulary = encoder.vocabulary().map_err(format)?;
        let shown = vocabulary.iter().zip(0..).map(|(token, id)| {
            let is_hidden = encoder.controls().get(&id).is_some_and(|t| t.special);
            token.as_deref().filter(|_| !is_hidden)
        });
        let decoder = Decoder::new(&decoder, shown).map_err(format)?;
        let id_of = |part: &str| {
            let name = names.by_part.get(part)?;
            encoder.token_to_id(name)
        };
        let native = Native::find(&encoder);
        let bos = id_of("bos_token").or(files.generation.bos_id);
        let mut ends: Vec<u32> = native.iter().map(|n| n.end).collect();
        ends.extend(id_of("eos_token"));
        ends.extend(&files.generation.end_ids);
        let mut seen = BTreeSet::new();
        ends.retain(|id| seen.insert(*id) && (*id as usize) < vocabulary.len());
        let Some(&end) = ends.first() else {
            return Err(format(
                "nothing says which token ends a text: eos_token in tokenizer_config.json or \
                 eos_token_id in generation_config.json"
                    .to_owned(),
            ));
        };
        let (before, after) = if names.add_bos.is_some() || names.add_end.is_some() {
            // Said outright, it replaces what the post-processor does.
            let wanted = |flag: Option<bool>, id| if flag == Some(true) { id } else { None };
            (
                wanted(names.add_bos, bos).into_iter().collect(),
                wanted(names.add_end, Some(end)).into_iter().collect(),
            )
        } else {
            encoder.frame().map_err(format)?
        };
        let mut tokenizer = Self {
            decoder: Arc::new(decoder),
            before,
            after,
            ends,
            pad: native
                .map(|n| n.pad)
                .or_else(|| id_of("pad_token"))
                .or(files.generation.pad_id),
            names: files.names.by_part.clone(),
            chat: Chat::Templates(BTreeMap::new()),
            encoder,
        };
        if let Some(native) = native {
            tokenizer.chat = Chat::Native(native);
        } else {
            for (name, source) in &files.templates {
                tokenizer.add_template(name, source)?;
            }
        }
        Ok(tokenizer)
    }

    /// Takes `source` for chats instead of what the model's files say.
    ///
    /// # Errors
    /// [`TokenizerError::Template`] when it is no template this engine can use.
    pub fn set_chat_template(&mut self, source: &str) -> Result<(), TokenizerError> {
        self.chat = Chat::Templates(BTreeMap::new());
        self.add_template("default", source)
    }

    fn add_template(&mut self, name: &str, source: &str) -> Result<(), TokenizerError> {
        let controls = ControlTokens {
            tokens: self.encoder.controls(),
            names: &self.names,
        };
        let template = Arc::new(ChatTemplate::compile(name, source, &controls)?);
        if let Chat::Templates(templates) = &mut self.chat {
            templates.insert(name.to_owned(), template);
        }
        Ok(())
    }

    /// Tokens of a text, without any that the model's files put around it.
    ///
    /// # Errors
    /// [`TokenizerError::Failed`] when the tokenizer's rules give up on the text.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>, TokenizerError> {
        self.encoder.encode(text).map_err(TokenizerError::Failed)
    }

    /// Tokens of a text that is to be continued: with the beginning-of-text
    /// token, if the model's files ask for one.
    ///
    /// # Errors
    /// As [`Tokenizer::encode`].
    pub fn encode_prompt(&self, text: &str) -> Result<Vec<u32>, TokenizerError> {
        let mut tokens = self.before.clone();
        tokens.extend(self.encode(text)?);
        Ok(tokens)
    }

    /// Tokens of a whole document: beginning (if the model has one), text, end.
    ///
    /// # Errors
    /// As [`Tokenizer::encode`].
    pub fn encode_document(&self, text: &str) -> Result<Vec<u32>, TokenizerError> {
        let mut tokens = self.encode_prompt(text)?;
        if self.after.is_empty() {
            tokens.push(self.end_id());
        }
        tokens.extend(&self.after);
        Ok(tokens)
    }

    /// Text of tokens; special and unknown ones have none, bytes that are not
    /// UTF-8 become U+FFFD.
    #[must_use]
    pub fn decode(&self, tokens: &[u32]) -> String {
        let mut stream = self.stream();
        let mut text: String = tokens.iter().map(|token| stream.push(*token)).collect();
        text.push_str(&stream.finish());
        text
    }

    /// Bytes of one token; none for special and unknown tokens.
    #[must_use]
    pub fn token_bytes(&self, token: u32) -> &[u8] {
        self.decoder.token_bytes(token)
    }

    /// The id of a token that text never becomes, by how it is written
    /// (`<tool_call>`).
    #[must_use]
    pub fn added_token(&self, written: &str) -> Option<u32> {
        let mut tokens = self.encoder.controls().iter();
        tokens.find_map(|(id, token)| (token.content == written).then_some(*id))
    }

    /// Whether the chat format can describe tools to the model.
    #[must_use]
    pub const fn has_tool_format(&self) -> bool {
        matches!(self.chat, Chat::Templates(_))
    }

    /// Ids there are: one more than the highest. A model may have rows for more.
    #[must_use]
    pub fn vocab_size(&self) -> usize {
        self.decoder.len()
    }

    /// Ends an answer or a document.
    #[must_use]
    pub fn end_id(&self) -> u32 {
        self.ends[0]
    }

    /// Every token that ends an answer; the first is [`Tokenizer::end_id`].
    #[must_use]
    pub fn end_ids(&self) -> &[u32] {
        &self.ends
    }

    /// Whether the token ends an answer.
    #[must_use]
    pub fn is_end(&self, token: u32) -> bool {
        self.ends.contains(&token)
    }

    /// Fills up; never predicted.
    #[must_use]
    pub const fn pad_id(&self) -> Option<u32> {
        self.pad
    }

    /// Whether [`Tokenizer::chat`] and its like can work.
    #[must_use]
    pub fn has_chat_format(&self) -> bool {
        match &self.chat {
            Chat::Native(_) => true,
            Chat::Templates(templates) => !templates.is_empty(),
        }
    }

    /// A conversation up to where the model answers. A trailing assistant
    /// message is left open, for the model to go on with.
    ///
    /// # Errors
    /// [`TokenizerError`] when a text cannot be encoded, or the model's template
    /// does not take the conversation.
    pub fn chat(&self, messages: &[ChatMessage]) -> Result<Vec<u32>, TokenizerError> {
        if let Chat::Native(native) = &self.chat {
            return native.prompt(messages, |text| self.encode(text));
        }
        self.chat_prompt(&Conversation::from(messages), &ChatOptions::default())
    }

    /// As [`Tokenizer::chat`], with tools and whatever else the model's template
    /// knows.
    ///
    /// # Errors
    /// As [`Tokenizer::chat`].
    pub fn chat_prompt(
        &self,
        conversation: &Conversation,
        options: &ChatOptions,
    ) -> Result<Vec<u32>, TokenizerError> {
        if let Chat::Native(native) = &self.chat {
            return native.prompt(&conversation.plain_messages()?, |text| self.encode(text));
        }
        let rendered = self
            .template(conversation, options)?
            .prompt(conversation, options)?;
        Ok(self.place(&rendered)?.tokens)
    }

    /// A whole conversation with the tokens of the assistant marked, as training
    /// wants it. Where the template has `{% generation %}`, that says which they
    /// are; else it is found out by rendering the conversation message by
    /// message.
    ///
    /// # Errors
    /// As [`Tokenizer::chat`], and if it cannot be told which tokens are the
    /// assistant's.
    pub fn chat_training(
        &self,
        conversation: &Conversation,
        options: &ChatOptions,
    ) -> Result<ChatTokens, TokenizerError> {
        if let Chat::Native(native) = &self.chat {
            return native.training(&conversation.plain_messages()?, |text| self.encode(text));
        }
        let rendered =
            self.template(conversation, options)?
                .training(conversation, options, &|id| self.is_end(id))?;
        self.place(&rendered)
    }

    /// A question and its answer as training text, and where the answer begins
    /// (the first token that the model writes).
    ///
    /// # Errors
    /// As [`Tokenizer::chat_training`].
    pub fn record(
        &self,
        question: &str,
        answer: &str,
    ) -> Result<(Vec<u32>, usize), TokenizerError> {
        let message = |role, content: &str| ChatMessage {
            role,
            content: content.to_owned(),
        };
        let messages = [
            message(Role::User, question),
            message(Role::Assistant, answer),
        ];
        let chat = match &self.chat {
            Chat::Native(native) => native.training(&messages, |text| self.encode(text))?,
            Chat::Templates(_) => self.chat_training(
                &Conversation::from(messages.as_slice()),
                &ChatOptions::default(),
            )?,
        };
        let start = chat.is_assistant.iter().position(|is| *is);
        Ok((chat.tokens, start.unwrap_or_default()))
    }

    /// A text and how it goes on, as training text with its end; the
    /// continuation counts as the assistant's. A token that spans both is part of
    /// the continuation.
    ///
    /// # Errors
    /// As [`Tokenizer::encode`].
    pub fn completion(&self, prompt: &str, completion: &str) -> Result<ChatTokens, TokenizerError> {
        let placed = self
            .encoder
            .encode_placed(&format!("{prompt}{completion}"), &[])
            .map_err(TokenizerError::Failed)?;
        let mut tokens = self.before.clone();
        let mut is_assistant = vec![false; tokens.len()];
        for token in placed {
            tokens.push(token.id);
            is_assistant.push(token.range.end > prompt.len());
        }
        if self.after.is_empty() {
            tokens.push(self.end_id());
        }
        tokens.extend(&self.after);
        is_assistant.resize(tokens.len(), true);
        Ok(ChatTokens {
            tokens,
            is_assistant,
        })
    }

    /// A decoder that gives out text as tokens come, as [`Tokenizer::decode`]
    /// does.
    #[must_use]
    pub fn stream(&self) -> TokenStream {
        self.decoder.stream(true)
    }

    /// A decoder for what follows `prompt`: a space before the first word stays
    /// if the prompt ends with text, and goes if it ends with a control token.
    #[must_use]
    pub fn stream_after(&self, prompt: &[u32]) -> TokenStream {
        let is_start = prompt
            .last()
            .is_none_or(|id| self.encoder.controls().contains_key(id));
        self.decoder.stream(is_start)
    }

    pub(crate) fn template(
        &self,
        conversation: &Conversation,
        options: &ChatOptions,
    ) -> Result<&ChatTemplate, TokenizerError> {
        let Chat::Templates(templates) = &self.chat else {
            return Err(TokenizerError::NoTemplate);
        };
        let name = match &options.template {
            Some(name) => name.as_str(),
            None if conversation.has_tools() && templates.contains_key("tool_use") => "tool_use",
            None => "default",
        };
        match templates.get(name) {
            Some(template) => Ok(template),
            None if templates.is_empty() => Err(TokenizerError::NoTemplate),
            None => Err(ChatTemplateError::Unknown {
                name: name.to_owned(),
                known: templates.keys().cloned().collect(),
            }
            .into()),
        }
    }

    pub(crate) fn place(&self, rendered: &Rendered) -> Result<ChatTokens, TokenizerError> {
        let placed = self
            .encoder
            .encode_placed(&rendered.text, &rendered.controls)
            .map_err(TokenizerError::Failed)?;
        let mut spans = rendered.assistant.iter().peekable();
        let is_assistant = placed
            .iter()
            .map(|token| {
                while spans.next_if(|s| s.end <= token.range.start).is_some() {}
                spans.peek().is_some_and(|s| s.start < token.range.end)
            })
            .collect();
        Ok(ChatTokens {
            tokens: placed.into_iter().map(|token| token.id).collect(),
            is_assistant,
        })
    }
}

#[cfg(test)]
pub(crate) mod tests;
