//! Tokenizers of GGUF files, rewritten as the `tokenizer.json` they were made
//! from.

mod export;

use std::cmp::Reverse;
use std::collections::{BTreeMap, HashMap};
use std::path::Path;

use serde_json::{Value, json};

use super::files::{Files, Names};
use super::{Tokenizer, TokenizerError};
use crate::generation_config::GenerationConfig;
use crate::gguf::{Gguf, GgufTokenizer, TokenKind};

/// Words, with contractions apart; how many digits stay together is filled in.
const WORDS: [&str; 2] = [
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|",
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
];

/// DeepSeek: digits by three, then Chinese and Japanese, then the rest.
const DEEPSEEK: [&str; 3] = [
    r"\p{N}{1,3}",
    r"[一-龥぀-ゟ゠-ヿ]+",
    concat!(
        r##"[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+"##,
        r"|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    ),
];

/// Mistral's Tekken: words in lower case and words that begin in upper case.
const TEKKEN: &str = concat!(
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+",
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*",
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+",
);

impl Tokenizer {
    pub(super) fn load_gguf(path: &Path) -> Result<Self, TokenizerError> {
        let bad = |reason: String| TokenizerError::Format {
            file: path.display().to_string(),
            reason,
        };
        let described = Gguf::open(path)
            .and_then(|gguf| gguf.tokenizer())
            .map_err(|e| bad(e.to_string()))?;
        let described = described.ok_or_else(|| bad("describes no tokenizer".to_owned()))?;
        Self::from_gguf(&described)
    }

    /// The tokenizer that a GGUF file describes: byte-level BPE (`gpt2`) of the
    /// families, or sentencepiece (`llama`).
    ///
    /// # Errors
    /// [`TokenizerError::Format`] when it is of another kind, with a
    /// pre-tokenizer that is not known, or contradicts itself.
    pub fn from_gguf(gguf: &GgufTokenizer) -> Result<Self, TokenizerError> {
        let bad = |reason: String| TokenizerError::Format {
            file: "tokenizer in the GGUF file".to_owned(),
            reason,
        };
        let json = tokenizer_json(gguf).map_err(bad)?;
        let name = |id: Option<u32>| id.and_then(|id| gguf.tokens.get(id as usize)).cloned();
        let by_part: BTreeMap<String, String> = [
            ("bos_token", gguf.bos),
            ("eos_token", gguf.eos),
            ("pad_token", gguf.padding),
            ("unk_token", gguf.unknown),
        ]
        .into_iter()
        .filter_map(|(part, id)| Some((part.to_owned(), name(id)?)))
        .collect();
        let is_sentencepiece = gguf.model == "llama";
        Self::from_files(Files {
            tokenizer: serde_json::to_vec(&json).map_err(|e| bad(e.to_string()))?,
            names: Names {
                by_part,
                others: Vec::new(),
                // llama.cpp begins texts of these models unless told not to.
                add_bos: Some(gguf.add_bos.unwrap_or(is_sentencepiece)),
                add_end: Some(gguf.add_eos.unwrap_or(false)),
            },
            generation: GenerationConfig {
                end_ids: gguf.eos.into_iter().chain(gguf.eot).collect(),
                ..GenerationConfig::default()
            },
            templates: gguf
                .chat_template
                .iter()
                .map(|source| ("default".to_owned(), source.clone()))
                .collect(),
        })
    }
}

fn tokenizer_json(gguf: &GgufTokenizer) -> Result<Value, String> {
    let kind = |id: usize| gguf.kinds.get(id).copied().unwrap_or(TokenKind::Normal);
    let added: Vec<Value> = gguf
        .tokens
        .iter()
        .enumerate()
        .filter_map(|(id, token)| {
            let is_special = match kind(id) {
                TokenKind::Control | TokenKind::Unknown => true,
                TokenKind::UserDefined => false,
                TokenKind::Normal | TokenKind::Unused | TokenKind::Byte => return None,
            };
            Some(json!({
                "id": id, "content": token, "special": is_special, "single_word": false,
                "lstrip": false, "rstrip": false, "normalized": false,
            }))
        })
        .collect();
    let vocab: serde_json::Map<String, Value> = gguf
        .tokens
        .iter()
        .enumerate()
        .map(|(id, token)| (token.clone(), json!(id)))
        .collect();
    let pairs: Vec<(String, String)> = gguf
        .merges
        .iter()
        .map(|merge| {
            // A token may itself begin with the space that parts them.
            let at = merge
                .char_indices()
                .skip(1)
                .find(|(_, c)| *c == ' ')
                .ok_or_else(|| format!("the merge {merge:?} is not two tokens"))?;
            Ok((merge[..at.0].to_owned(), merge[at.0 + 1..].to_owned()))
        })
        .collect::<Result<_, String>>()?;
    let whole = |model: Value, normalizer: Value, pre_tokenizer: Value, decoder: Value| {
        json!({
            "version": "1.0", "truncation": null, "padding": null, "added_tokens": added,
            "normalizer": normalizer, "pre_tokenizer": pre_tokenizer,
            "post_processor": null, "decoder": decoder, "model": model,
        })
    };
    match gguf.model.as_str() {
        "gpt2" => {
            let (pre_tokenizer, normalizer, ignore_merges) =
                pre_tokenizer(gguf.pre.as_deref().unwrap_or("default"))?;
            let model = json!({
                "type": "BPE", "vocab": vocab, "merges": pairs, "dropout": null,
                "unk_token": null, "fuse_unk": false, "byte_fallback": false,
                "ignore_merges": ignore_merges,
            });
            let decoder = byte_level(false);
            Ok(whole(model, normalizer, pre_tokenizer, decoder))
        }
        "llama" => {
            let pairs = if pairs.is_empty() {
                merges_of_scores(gguf)?
            } else {
                pairs
            };
            let unknown = gguf.unknown.and_then(|id| gguf.tokens.get(id as usize));
            let model = json!({
                "type": "BPE", "vocab": vocab, "merges": pairs, "dropout": null,
                "unk_token": unknown, "fuse_unk": true, "byte_fallback": true,
            });
            let has_prefix = gguf.add_space_prefix.unwrap_or(true);
            let mut normalizers = vec![json!({
                "type": "Replace", "pattern": {"String": " "}, "content": "▁",
            })];
            let mut decoders = vec![
                json!({"type": "Replace", "pattern": {"String": "▁"}, "content": " "}),
                json!({"type": "ByteFallback"}),
                json!({"type": "Fuse"}),
            ];
            if has_prefix {
                normalizers.insert(0, json!({"type": "Prepend", "prepend": "▁"}));
                decoders.push(json!({"type": "Strip", "content": " ", "start": 1, "stop": 0}));
            }
            let normalizer = json!({"type": "Sequence", "normalizers": normalizers});
            let decoder = json!({"type": "Sequence", "decoders": decoders});
            Ok(whole(model, normalizer, Value::Null, decoder))
        }
        other => Err(format!(
            "tokenizer.ggml.model is {other}; gpt2 and llama can be read"
        )),
    }
}

fn byte_level(use_regex: bool) -> Value {
    json!({
        "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": false,
        "use_regex": use_regex,
    })
}

/// Pre-tokenizer, normalizer, and whether whole words of the vocabulary are
/// taken as they are.
fn pre_tokenizer(name: &str) -> Result<(Value, Value, bool), String> {
    let words = |digits: &str| format!("{}{digits}{}", WORDS[0], WORDS[1]);
    let nfc = || json!({"type": "NFC"});
    let (patterns, normalizer, ignore_merges) = match name {
        "default" | "gpt-2" => return Ok((byte_level(true), Value::Null, false)),
        "llama-bpe" | "llama3" | "llama-v3" => (vec![words(r"\p{N}{1,3}")], Value::Null, true),
        "qwen2" | "deepseek-r1-qwen" => (vec![words(r"\p{N}")], nfc(), false),
        "deepseek-v3" => (DEEPSEEK.map(str::to_owned).to_vec(), Value::Null, false),
        "tekken" => (vec![TEKKEN.to_owned()], Value::Null, true),
        other => {
            return Err(format!(
                "tokenizer.ggml.pre is {other}; default, gpt-2, llama-bpe, qwen2, \
                 deepseek-r1-qwen, deepseek-v3 and tekken can be read. Put the model's \
                 tokenizer.json beside the file"
            ));
        }
    };
    let mut steps: Vec<Value> = patterns
        .into_iter()
        .map(|pattern| {
            json!({
                "type": "Split", "pattern": {"Regex": pattern},
                "behavior": "Isolated", "invert": false,
            })
        })
        .collect();
    steps.push(byte_level(false));
    let steps = json!({"type": "Sequence", "pretokenizers": steps});
    Ok((steps, normalizer, ignore_merges))
}

/// Sentencepiece has no list of merges: two pieces are joined when the whole is
/// a piece, that with the highest score first. Sorted by score they are a list.
/// Of equal scores (Mistral's runs of spaces) it takes the leftmost pair, which
/// makes one piece grow as long as it can: so does a list where longer left
/// parts come first.
fn merges_of_scores(gguf: &GgufTokenizer) -> Result<Vec<(String, String)>, String> {
    if gguf.scores.len() != gguf.tokens.len() {
        return Err("there are neither merges nor scores".to_owned());
    }
    let is_piece = |id: usize| {
        matches!(
            gguf.kinds.get(id).copied().unwrap_or(TokenKind::Normal),
            TokenKind::Normal | TokenKind::UserDefined
        )
    };
    let pieces: HashMap<&str, usize> = gguf
        .tokens
        .iter()
        .enumerate()
        .filter(|(id, _)| is_piece(*id))
        .map(|(id, token)| (token.as_str(), id))
        .collect();
    let mut merges = Vec::new();
    for (id, token) in gguf
        .tokens
        .iter()
        .enumerate()
        .filter(|(id, _)| is_piece(*id))
    {
        for (at, _) in token.char_indices().skip(1) {
            let (left, right) = token.split_at(at);
            if let (Some(left_id), Some(right_id)) = (pieces.get(left), pieces.get(right)) {
                let lengths = Reverse((left.chars().count(), right.chars().count()));
                let ids = (*left_id, *right_id);
                merges.push((gguf.scores[id], (lengths, ids), left, right));
            }
        }
    }
    merges.sort_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)));
    Ok(merges
        .into_iter()
        .map(|(_, _, left, right)| (left.to_owned(), right.to_owned()))
        .collect())
}

#[cfg(test)]
mod tests;
