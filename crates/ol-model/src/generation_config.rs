//! `generation_config.json`: what a model's makers recommend for sampling.

use std::path::Path;

use serde::Deserialize;

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
    /// Tokens kept.
    #[serde(default)]
    pub top_k: Option<u32>,
    /// Divides positive and multiplies negative logits of tokens seen.
    #[serde(default)]
    pub repetition_penalty: Option<f32>,
}

impl GenerationConfig {
    /// Reads `generation_config.json` in `dir`; all `None` when there is none.
    ///
    /// # Errors
    /// [`TokenizerError`] when the file cannot be read, is too long, is not
    /// JSON, or a number is out of its range.
    pub fn load(dir: &Path) -> Result<Self, TokenizerError> {
        let read: Option<Self> = files::read_json(dir, files::GENERATION_CONFIG)?;
        let config = read.unwrap_or_default();
        let refuse = |field: &str, value: f32| {
            Err(TokenizerError::Format {
                file: files::GENERATION_CONFIG.to_owned(),
                reason: format!("{field} is {value}"),
            })
        };
        for (field, value, is_allowed) in [
            (
                "temperature",
                config.temperature,
                (|v| v >= 0.0) as fn(f32) -> bool,
            ),
            ("top_p", config.top_p, |v| (0.0..=1.0).contains(&v)),
            ("repetition_penalty", config.repetition_penalty, |v| v > 0.0),
        ] {
            if let Some(value) = value.filter(|v| !v.is_finite() || !is_allowed(*v)) {
                return refuse(field, value);
            }
        }
        Ok(config)
    }
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
