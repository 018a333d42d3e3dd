//! The files of a Hugging Face directory that say how text becomes tokens.

use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::path::Path;

use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::TokenizerError;
use crate::generation_config::GenerationConfig;
use crate::weights::{WeightsError, read_limited};

/// Longest `tokenizer.json` accepted.
pub const MAX_TOKENIZER_SIZE_BYTES: u64 = 64 << 20;
/// Longest of the other files accepted.
const MAX_CONFIG_SIZE_BYTES: u64 = 4 << 20;

pub(super) const TOKENIZER: &str = "tokenizer.json";
pub(super) const TOKENIZER_CONFIG: &str = "tokenizer_config.json";
pub(crate) const GENERATION_CONFIG: &str = "generation_config.json";
const SPECIAL_TOKENS_MAP: &str = "special_tokens_map.json";
const CHAT_TEMPLATE: &str = "chat_template.jinja";

/// Everything read, before it is understood.
#[derive(Debug, Default)]
pub(super) struct Files {
    pub(super) tokenizer: Vec<u8>,
    pub(super) names: Names,
    pub(super) generation: GenerationConfig,
    /// Chat templates by name; the nameless one is `default`.
    pub(super) templates: BTreeMap<String, String>,
}

/// The tokens that have a part to play, by their text.
#[derive(Debug, Default)]
pub(super) struct Names {
    /// `bos_token`, `eos_token`, `pad_token`, `unk_token` and the like.
    pub(super) by_part: BTreeMap<String, String>,
    /// Further special tokens.
    pub(super) others: Vec<String>,
    pub(super) add_bos: Option<bool>,
    pub(super) add_end: Option<bool>,
}

/// A token is written as its text or as an object with its `content`.
#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum TokenName {
    Text(String),
    Object { content: String },
}

impl TokenName {
    fn into_text(self) -> String {
        match self {
            Self::Text(text) | Self::Object { content: text } => text,
        }
    }
}

#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum Templates {
    One(String),
    Named(Vec<NamedTemplate>),
}

#[derive(Debug, Deserialize)]
struct NamedTemplate {
    name: String,
    template: String,
}

impl Files {
    pub(super) fn read(dir: &Path) -> Result<Self, TokenizerError> {
        let mut files = Self {
            tokenizer: read_limited(&dir.join(TOKENIZER), MAX_TOKENIZER_SIZE_BYTES)?,
            generation: GenerationConfig::load(dir)?,
            ..Self::default()
        };
        // The newer file wins over the older one.
        for file in [SPECIAL_TOKENS_MAP, TOKENIZER_CONFIG] {
            if let Some(fields) = read_json::<BTreeMap<String, Value>>(dir, file)? {
                files.take(file, fields)?;
            }
        }
        if let Some(bytes) = read_optional(dir, CHAT_TEMPLATE)? {
            let text = String::from_utf8(bytes).map_err(|_| bad(CHAT_TEMPLATE, "is not UTF-8"))?;
            files.templates.insert("default".to_owned(), text);
        }
        Ok(files)
    }

    fn take(&mut self, file: &str, fields: BTreeMap<String, Value>) -> Result<(), TokenizerError> {
        for (field, value) in fields {
            if value.is_null() {
                continue;
            }
            let wrong = |expected: &str| bad(file, format!("{field} is not {expected}"));
            match field.as_str() {
                "add_bos_token" | "add_eos_token" => {
                    let value = value.as_bool().ok_or_else(|| wrong("true or false"))?;
                    if field == "add_bos_token" {
                        self.names.add_bos = Some(value);
                    } else {
                        self.names.add_end = Some(value);
                    }
                }
                "chat_template" => {
                    let expected = "a template, nor a list of named templates";
                    match Templates::deserialize(value).map_err(|_| wrong(expected))? {
                        Templates::One(text) => {
                            self.templates.insert("default".to_owned(), text);
                        }
                        Templates::Named(list) => self
                            .templates
                            .extend(list.into_iter().map(|t| (t.name, t.template))),
                    }
                }
                "additional_special_tokens" | "extra_special_tokens" => {
                    let tokens: Vec<Value> = match value {
                        Value::Array(list) => list,
                        Value::Object(map) => map.into_iter().map(|(_, v)| v).collect(),
                        _ => return Err(wrong("a list of tokens")),
                    };
                    for token in tokens {
                        let name = TokenName::deserialize(token);
                        self.names
                            .others
                            .push(name.map_err(|_| wrong("a list of tokens"))?.into_text());
                    }
                }
                _ if field.ends_with("_token") => {
                    // Other fields of this form hold numbers or flags.
                    if let Ok(name) = TokenName::deserialize(value) {
                        self.names.by_part.insert(field, name.into_text());
                    }
                }
                _ => {}
            }
        }
        Ok(())
    }
}

fn bad(file: &str, reason: impl Into<String>) -> TokenizerError {
    TokenizerError::Format {
        file: file.to_owned(),
        reason: reason.into(),
    }
}

/// `None` when there is no such file.
fn read_optional(dir: &Path, file: &str) -> Result<Option<Vec<u8>>, TokenizerError> {
    match read_limited(&dir.join(file), MAX_CONFIG_SIZE_BYTES) {
        Ok(bytes) => Ok(Some(bytes)),
        Err(WeightsError::Io { source, .. }) if source.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// `None` when there is no such file.
pub(crate) fn read_json<T: DeserializeOwned>(
    dir: &Path,
    file: &str,
) -> Result<Option<T>, TokenizerError> {
    let Some(bytes) = read_optional(dir, file)? else {
        return Ok(None);
    };
    serde_json::from_slice(&bytes)
        .map(Some)
        .map_err(|e| bad(file, e.to_string()))
}
