//! Tokenizers of Hugging Face directories, as a GGUF file describes them.

use std::collections::HashMap;
use std::path::Path;

use serde::Deserialize;
use serde_json::Value;

use super::pre_tokenizer;
use crate::gguf::{GgufTokenizer, TokenKind};
use crate::tokenizer::files::{Files, TOKENIZER};
use crate::tokenizer::{Tokenizer, TokenizerError};

/// Names that llama.cpp knows of the pre-tokenizers that are read.
const PRE: [&str; 5] = ["default", "llama-bpe", "qwen2", "deepseek-v3", "tekken"];

/// Score of a piece that no merge makes: it is chosen last.
const NEVER: f32 = -1e9;

/// The parts of `tokenizer.json` that become metadata.
#[derive(Deserialize)]
struct Parts {
    #[serde(default)]
    added_tokens: Vec<Added>,
    #[serde(default)]
    normalizer: Value,
    #[serde(default)]
    pre_tokenizer: Value,
    model: Bpe,
}

#[derive(Deserialize)]
struct Added {
    id: u32,
    content: String,
    #[serde(default)]
    special: bool,
}

#[derive(Deserialize)]
struct Bpe {
    vocab: HashMap<String, u32>,
    merges: Vec<Merge>,
    #[serde(default)]
    unk_token: Option<String>,
    #[serde(default)]
    byte_fallback: bool,
    #[serde(default)]
    ignore_merges: bool,
}

/// Newer files have pairs, older ones a text with a space.
#[derive(Deserialize)]
#[serde(untagged)]
enum Merge {
    Pair(String, String),
    Text(String),
}

impl Merge {
    fn into_text(self) -> String {
        match self {
            Self::Pair(left, right) => format!("{left} {right}"),
            Self::Text(text) => text,
        }
    }
}

impl GgufTokenizer {
    /// The tokenizer in a Hugging Face directory, for a model with rows for
    /// `vocab_size` tokens: ids that have no text are named `[PAD…]`, as
    /// llama.cpp's converter names them. Sentencepiece scores are the ranks of
    /// the merges.
    ///
    /// # Errors
    /// [`TokenizerError`] when the directory has no tokenizer that can be used,
    /// GGUF has no name for its rules, or it has more tokens than the model.
    pub fn load(dir: &Path, vocab_size: usize) -> Result<Self, TokenizerError> {
        let bad = |reason: String| TokenizerError::Format {
            file: TOKENIZER.to_owned(),
            reason,
        };
        let files = Files::read(dir)?;
        let chat_template = files.templates.get("default").cloned();
        let parts: Parts =
            serde_json::from_slice(&files.tokenizer).map_err(|e| bad(e.to_string()))?;
        let bos = files.names.by_part.get("bos_token").cloned();
        let bos_id = files.generation.bos_id;
        let tokenizer = Tokenizer::from_files(files)?;
        if tokenizer.vocab_size() > vocab_size {
            return Err(bad(format!(
                "{} tokens, the model has {vocab_size}",
                tokenizer.vocab_size()
            )));
        }
        let is_sentencepiece = parts.model.byte_fallback;
        let pre = if is_sentencepiece {
            "default"
        } else {
            name_of(&parts).map_err(bad)?
        };
        let (tokens, kinds) = table(&parts, vocab_size);
        let merges: Vec<String> = parts
            .model
            .merges
            .into_iter()
            .map(Merge::into_text)
            .collect();
        let id_of = |name: &str| parts.model.vocab.get(name).copied();
        let bos = bos.and_then(|name| tokenizer.encoder.token_to_id(&name));
        let described = Self {
            model: if is_sentencepiece { "llama" } else { "gpt2" }.to_owned(),
            pre: Some(pre.to_owned()),
            scores: if is_sentencepiece {
                scores(&tokens, &kinds, &merges)
            } else {
                Vec::new()
            },
            bos: bos.or(bos_id).or_else(|| tokenizer.before.first().copied()),
            eos: Some(tokenizer.end_id()),
            eot: tokenizer.end_ids().get(1).copied(),
            unknown: parts.model.unk_token.as_deref().and_then(id_of),
            padding: tokenizer.pad_id(),
            add_bos: Some(!tokenizer.before.is_empty()),
            add_eos: Some(!tokenizer.after.is_empty()),
            add_space_prefix: is_sentencepiece
                .then(|| has_prefix(&parts.normalizer, &parts.pre_tokenizer)),
            chat_template,
            tokens,
            kinds,
            merges,
        };
        // What is written must be readable here too.
        Tokenizer::from_gguf(&described)?;
        Ok(described)
    }
}

/// Text and kind of every id.
fn table(parts: &Parts, vocab_size: usize) -> (Vec<String>, Vec<TokenKind>) {
    let mut tokens: Vec<String> = (0..vocab_size).map(|id| format!("[PAD{id}]")).collect();
    let mut kinds = vec![TokenKind::Unused; vocab_size];
    let mut put = |id: u32, text: &str, kind| {
        if let Some(token) = tokens.get_mut(id as usize) {
            text.clone_into(token);
            kinds[id as usize] = kind;
        }
    };
    for (text, id) in &parts.model.vocab {
        let is_byte = parts.model.byte_fallback
            && text.len() == 6
            && text.starts_with("<0x")
            && text.ends_with('>');
        let kind = if is_byte {
            TokenKind::Byte
        } else {
            TokenKind::Normal
        };
        put(*id, text, kind);
    }
    for added in &parts.added_tokens {
        let kind = if parts.model.unk_token.as_ref() == Some(&added.content) {
            TokenKind::Unknown
        } else if added.special {
            TokenKind::Control
        } else {
            TokenKind::UserDefined
        };
        put(added.id, &added.content, kind);
    }
    (tokens, kinds)
}

/// Minus the rank of the first merge that makes a piece.
#[expect(
    clippy::cast_precision_loss,
    reason = "there are fewer than 2^24 merges"
)]
fn scores(tokens: &[String], kinds: &[TokenKind], merges: &[String]) -> Vec<f32> {
    let mut ranks: HashMap<String, usize> = HashMap::new();
    for (rank, merge) in merges.iter().enumerate() {
        ranks.entry(merge.replacen(' ', "", 1)).or_insert(rank);
    }
    let score = |(token, kind): (&String, &TokenKind)| match ranks.get(token) {
        Some(rank) => -(*rank as f32) - 1.0,
        None if *kind == TokenKind::Normal && token.chars().count() > 1 => NEVER,
        None => 0.0,
    };
    tokens.iter().zip(kinds).map(score).collect()
}

/// Whether a space is put before a text.
fn has_prefix(normalizer: &Value, pre_tokenizer: &Value) -> bool {
    let prepends = |value: &Value| value["type"] == "Prepend";
    let in_list = normalizer["normalizers"]
        .as_array()
        .is_some_and(|list| list.iter().any(prepends));
    let metaspace = pre_tokenizer["type"] == "Metaspace"
        && !matches!(pre_tokenizer["prepend_scheme"].as_str(), Some("never"));
    in_list || prepends(normalizer) || metaspace
}

/// The steps of a pre-tokenizer that decide where text is split.
fn steps(pre_tokenizer: &Value) -> Vec<String> {
    let list = match pre_tokenizer["pretokenizers"].as_array() {
        Some(list) => list.as_slice(),
        None => std::slice::from_ref(pre_tokenizer),
    };
    list.iter()
        .map(|step| {
            if step["type"] == "ByteLevel" {
                return format!("bytes {} {}", step["use_regex"], step["add_prefix_space"]);
            }
            // Some writers escape characters that need it not.
            let regex = step["pattern"]["Regex"].as_str().unwrap_or_default();
            let regex = regex.replace("\\\"", "\"").replace("\\#", "#");
            let (kind, behavior) = (&step["type"], &step["behavior"]);
            format!("{kind} {behavior} {} {regex}", step["invert"])
        })
        .collect()
}

/// GGUF's name of byte-level rules.
fn name_of(parts: &Parts) -> Result<&'static str, String> {
    let is_plain = parts.normalizer.is_null() || parts.normalizer["type"] == "NFC";
    PRE.into_iter()
        .find(|name| {
            pre_tokenizer(name).is_ok_and(|(known, _, ignore_merges)| {
                is_plain
                    && steps(&known) == steps(&parts.pre_tokenizer)
                    && ignore_merges == parts.model.ignore_merges
            })
        })
        .ok_or_else(|| {
            format!(
                "GGUF has no name for its pre-tokenizer; known are those of {}",
                PRE.join(", ")
            )
        })
}
