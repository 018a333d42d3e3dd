//! `generation_config.json`: what a model's makers recommend for sampling.

use std::path::Path;

use serde::Deserialize;
use serde::de::Error as _;

use crate::gguf::{Gguf, GgufError};
use crate::tokenizer::{TokenizerError, files};

/// Recommended sampling; what the file does not say is `None`.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
pub struct GenerationConfig {
    /// Tokens that end an answer.
    #[serde(default, rename = "eos_token_id", deserialize_with = "one_or_many")]
    pub end_ids: Vec<u32>,
    /// Token that begins a text.
    #[serde(default, rename = "bos_token_id")]
    pub bos_id: Option<u32>,
    /// Token that fills up.
    #[serde(default, rename = "pad_token_id", deserialize_with = "first")]
    pub pad_id: Option<u32>,
    /// Whether to sample; greedy otherwise.
    #[serde(default)]
    pub do_sample: Option<bool>,
    /// Divides the logits.
    #[serde(default)]
    pub temperature: Option<f32>,
    /// Probability mass kept.
    #[serde(default)]
    pub top_p: Option<f32>,
    /// Tokens kept; 0 keeps all, as does -1 in the file.
    #[serde(default, deserialize_with = "tokens_kept")]
    pub top_k: Option<u32>,
    /// Share of the likeliest token's probability that a token needs.
    #[serde(default)]
    pub min_p: Option<f32>,
    /// Divides positive and multiplies negative logits of tokens seen.
    #[serde(default)]
    pub repetition_penalty: Option<f32>,
}

impl GenerationConfig {
    /// Reads `generation_config.json` in `dir`, all `None` when there is none;
    /// or what a GGUF file says under `general.sampling`.
    ///
    /// # Errors
    /// [`TokenizerError`] when the file cannot be read, is too long, is not
    /// JSON or GGUF, or a number is out of its range.
    pub fn load(dir: &Path) -> Result<Self, TokenizerError> {
        let (config, file) = if dir.is_file() {
            let file = dir.display().to_string();
            let read = Gguf::open(dir).and_then(|gguf| Self::from_gguf(&gguf));
            let config = read.map_err(|error| TokenizerError::Format {
                file: file.clone(),
                reason: error.to_string(),
            })?;
            (config, file)
        } else {
            let read: Option<Self> = files::read_json(dir, files::GENERATION_CONFIG)?;
            (
                read.unwrap_or_default(),
                files::GENERATION_CONFIG.to_owned(),
            )
        };
        for (field, value, is_allowed) in [
            (
                "temperature",
                config.temperature,
                (|v| v >= 0.0) as fn(f32) -> bool,
            ),
            ("top_p", config.top_p, |v| (0.0..=1.0).contains(&v)),
            ("min_p", config.min_p, |v| (0.0..=1.0).contains(&v)),
            ("repetition_penalty", config.repetition_penalty, |v| v > 0.0),
        ] {
            if let Some(value) = value.filter(|v| !v.is_finite() || !is_allowed(*v)) {
                return Err(TokenizerError::Format {
                    file,
                    reason: format!("{field} is {value}"),
                });
            }
        }
        Ok(config)
    }

    fn from_gguf(gguf: &Gguf) -> Result<Self, GgufError> {
        #[expect(clippy::cast_possible_truncation, reason = "files have it in f32")]
        let float = |key: &str| Ok::<_, GgufError>(gguf.float(key)?.map(|value| value as f32));
        let top_k = gguf.size("general.sampling.top_k")?;
        Ok(Self {
            temperature: float("general.sampling.temp")?,
            top_p: float("general.sampling.top_p")?,
            top_k: top_k.map(|k| u32::try_from(k).expect("sizes are at most 32 bits")),
            min_p: float("general.sampling.min_p")?,
            repetition_penalty: float("general.sampling.penalty_repeat")?,
            ..Self::default()
        })
    }
}

fn tokens_kept<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Option<u32>, D::Error> {
    Option::<i64>::deserialize(deserializer)?
        .map(|k| match k {
            -1 => Ok(0),
            k => u32::try_from(k).map_err(|_| D::Error::custom(format!("top_k is {k}"))),
        })
        .transpose()
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Ids {
    One(u32),
    Many(Vec<u32>),
}

fn one_or_many<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Vec<u32>, D::Error> {
    Ok(match Option::<Ids>::deserialize(deserializer)? {
        None => Vec::new(),
        Some(Ids::One(id)) => vec![id],
        Some(Ids::Many(ids)) => ids,
    })
}

fn first<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Option<u32>, D::Error> {
    Ok(one_or_many(deserializer)?.first().copied())
}
