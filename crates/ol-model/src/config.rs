//! Shape of a Llama-family model, as Hugging Face's `config.json` gives it.

use serde::{Deserialize, Serialize};
use thiserror::Error;

/// Why a configuration is refused.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum ConfigError {
    /// Not JSON, or a field is missing or of another type.
    #[error("config.json cannot be read: {0}")]
    Syntax(String),
    /// The model needs something this engine does not do.
    #[error("config.json asks for {0}, which is not supported")]
    Unsupported(String),
    /// The numbers contradict each other or pass a limit.
    #[error("config.json is inconsistent: {0}")]
    Invalid(String),
}

/// Hyper-parameters of a Llama model; field names are those of `config.json`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ModelConfig {
    /// Rows of the embedding.
    pub vocab_size: usize,
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Width of the gated feed-forward layer.
    pub intermediate_size: usize,
    /// Blocks.
    pub num_hidden_layers: usize,
    /// Query heads.
    pub num_attention_heads: usize,
    /// Key and value heads; a divisor of the query heads.
    pub num_key_value_heads: usize,
    /// Width of a head; even.
    pub head_dim: usize,
    /// Added to the mean square in every norm.
    pub rms_norm_eps: f32,
    /// Base of the rotary angles.
    pub rope_theta: f64,
    /// Longest context in tokens.
    pub max_position_embeddings: usize,
    /// Whether the output layer is the embedding.
    pub tie_word_embeddings: bool,
}

/// The file as others write it: fields may be absent, others are ignored.
#[derive(Deserialize)]
struct RawConfig {
    model_type: Option<String>,
    vocab_size: usize,
    hidden_size: usize,
    intermediate_size: usize,
    num_hidden_layers: usize,
    num_attention_heads: usize,
    num_key_value_heads: Option<usize>,
    head_dim: Option<usize>,
    #[serde(default = "default_eps")]
    rms_norm_eps: f32,
    rope_theta: Option<f64>,
    rope_parameters: Option<serde_json::Value>,
    rope_scaling: Option<serde_json::Value>,
    #[serde(default = "default_positions")]
    max_position_embeddings: usize,
    #[serde(default)]
    tie_word_embeddings: bool,
    hidden_act: Option<String>,
    #[serde(default)]
    attention_bias: bool,
    #[serde(default)]
    mlp_bias: bool,
}

fn default_eps() -> f32 {
    1e-6
}

fn default_positions() -> usize {
    2048
}

impl ModelConfig {
    /// The embedded default: 3.1 million parameters, 512 tokens of context.
    #[must_use]
    pub fn default_base() -> Self {
        Self {
            vocab_size: 4096,
            hidden_size: 192,
            intermediate_size: 512,
            num_hidden_layers: 6,
            num_attention_heads: 6,
            num_key_value_heads: 2,
            head_dim: 32,
            rms_norm_eps: 1e-5,
            rope_theta: 10_000.0,
            max_position_embeddings: 512,
            tie_word_embeddings: true,
        }
    }

    /// Reads the text of a `config.json`.
    ///
    /// # Errors
    /// [`ConfigError`] when it is not a Llama configuration this engine can run.
    pub fn from_json(text: &[u8]) -> Result<Self, ConfigError> {
        let raw: RawConfig =
            serde_json::from_slice(text).map_err(|e| ConfigError::Syntax(e.to_string()))?;
        let refuse = |what: &str| Err(ConfigError::Unsupported(what.to_owned()));
        if let Some(kind) = raw.model_type.as_deref().filter(|k| *k != "llama") {
            return refuse(&format!("model_type {kind:?}"));
        }
        if let Some(act) = raw.hidden_act.as_deref().filter(|a| *a != "silu") {
            return refuse(&format!("hidden_act {act:?}"));
        }
        if raw.attention_bias || raw.mlp_bias {
            return refuse("biases in linear layers");
        }
        let mut theta = raw.rope_theta;
        for rope in [&raw.rope_scaling, &raw.rope_parameters]
            .into_iter()
            .flatten()
        {
            let kind = rope
                .get("rope_type")
                .or_else(|| rope.get("type"))
                .and_then(|t| t.as_str());
            if let Some(kind) = kind.filter(|k| *k != "default") {
                return refuse(&format!("rope_type {kind:?}"));
            }
            theta = rope
                .get("rope_theta")
                .and_then(serde_json::Value::as_f64)
                .or(theta);
        }
        let heads = raw.num_attention_heads.max(1);
        let config = Self {
            vocab_size: raw.vocab_size,
            hidden_size: raw.hidden_size,
            intermediate_size: raw.intermediate_size,
            num_hidden_layers: raw.num_hidden_layers,
            num_attention_heads: raw.num_attention_heads,
            num_key_value_heads: raw.num_key_value_heads.unwrap_or(raw.num_attention_heads),
            head_dim: raw.head_dim.unwrap_or(raw.hidden_size / heads),
            rms_norm_eps: raw.rms_norm_eps,
            rope_theta: theta.unwrap_or(10_000.0),
            max_position_embeddings: raw.max_position_embeddings,
            tie_word_embeddings: raw.tie_word_embeddings,
        };
        config.check()?;
        Ok(config)
    }

    /// Checks limits and divisibility.
    ///
    /// # Errors
    /// [`ConfigError::Invalid`] with the first thing wrong.
    pub fn check(&self) -> Result<(), ConfigError> {
        let limits = [
            ("vocab_size", self.vocab_size, 1 << 20),
            ("hidden_size", self.hidden_size, 1 << 15),
            ("intermediate_size", self.intermediate_size, 1 << 17),
            ("num_hidden_layers", self.num_hidden_layers, 256),
            ("num_attention_heads", self.num_attention_heads, 512),
            ("num_key_value_heads", self.num_key_value_heads, 512),
            ("head_dim", self.head_dim, 1024),
            (
                "max_position_embeddings",
                self.max_position_embeddings,
                1 << 17,
            ),
        ];
        for (name, value, most) in limits {
            if value == 0 || value > most {
                return Err(ConfigError::Invalid(format!(
                    "{name} is {value}, allowed are 1 to {most}"
                )));
            }
        }
        if !self
            .num_attention_heads
            .is_multiple_of(self.num_key_value_heads)
        {
            return Err(ConfigError::Invalid(
                "num_key_value_heads does not divide num_attention_heads".to_owned(),
            ));
        }
        if !self.head_dim.is_multiple_of(2) {
            return Err(ConfigError::Invalid("head_dim is odd".to_owned()));
        }
        if !(self.rms_norm_eps > 0.0 && self.rms_norm_eps < 1.0) {
            return Err(ConfigError::Invalid(format!(
                "rms_norm_eps is {}",
                self.rms_norm_eps
            )));
        }
        if !(self.rope_theta >= 1.0 && self.rope_theta <= 1e12) {
            return Err(ConfigError::Invalid(format!(
                "rope_theta is {}",
                self.rope_theta
            )));
        }
        Ok(())
    }

    /// Appends the fields in declared order, each as eight bytes (big-endian;
    /// floats as the bits of an f64, flags as 0 or 1). For hashing: no JSON
    /// writer's habits get in.
    pub(crate) fn encode(&self, out: &mut Vec<u8>) {
        let sizes = [
            self.vocab_size,
            self.hidden_size,
            self.intermediate_size,
            self.num_hidden_layers,
            self.num_attention_heads,
            self.num_key_value_heads,
            self.head_dim,
        ];
        out.extend(sizes.iter().flat_map(|s| (*s as u64).to_be_bytes()));
        out.extend(f64::from(self.rms_norm_eps).to_be_bytes());
        out.extend(self.rope_theta.to_be_bytes());
        out.extend((self.max_position_embeddings as u64).to_be_bytes());
        out.extend(u64::from(self.tie_word_embeddings).to_be_bytes());
    }

    /// The text of a `config.json` that transformers reads too.
    ///
    /// # Panics
    /// Never: every field is a number or a flag.
    #[must_use]
    pub fn to_json(&self) -> String {
        let mut value = serde_json::json!({
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "hidden_act": "silu",
            "attention_bias": false,
            "mlp_bias": false,
            "bos_token_id": null,
            "eos_token_id": 0,
            "pad_token_id": 3,
            "rope_parameters": { "rope_type": "default", "rope_theta": self.rope_theta },
        });
        let own = serde_json::to_value(self).expect("a struct of numbers is JSON");
        if let (Some(all), serde_json::Value::Object(own)) = (value.as_object_mut(), own) {
            all.extend(own);
        }
        let mut text = serde_json::to_string_pretty(&value).expect("a JSON value has a text");
        text.push('\n');
        text
    }

    /// Width of the query rows: heads times head width.
    #[must_use]
    pub const fn query_size(&self) -> usize {
        self.num_attention_heads * self.head_dim
    }

    /// Width of the key rows, and of the value rows.
    #[must_use]
    pub const fn key_value_size(&self) -> usize {
        self.num_key_value_heads * self.head_dim
    }

    /// Parameters of the model, tied ones once.
    #[must_use]
    pub fn n_params(&self) -> usize {
        crate::layout::Layout::new(self).len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn json_round_trips_and_reads_both_rope_styles() {
        let config = ModelConfig::default_base();
        assert_eq!(
            ModelConfig::from_json(config.to_json().as_bytes()).unwrap(),
            config
        );
        assert_eq!(config.n_params(), 3_148_224);
        let old = r#"{"vocab_size":10,"hidden_size":8,"intermediate_size":16,"num_hidden_layers":1,
            "num_attention_heads":2,"rope_theta":500.0}"#;
        let read = ModelConfig::from_json(old.as_bytes()).unwrap();
        assert_eq!(
            (read.rope_theta, read.head_dim, read.num_key_value_heads),
            (500.0, 4, 2)
        );
    }

    #[test]
    fn what_cannot_be_run_is_refused_by_name() {
        let base: serde_json::Value =
            serde_json::from_str(&ModelConfig::default_base().to_json()).unwrap();
        for (field, value, word) in [
            ("model_type", serde_json::json!("gpt2"), "gpt2"),
            ("hidden_act", serde_json::json!("gelu"), "gelu"),
            ("attention_bias", serde_json::json!(true), "bias"),
            (
                "rope_parameters",
                serde_json::json!({"rope_type": "yarn"}),
                "yarn",
            ),
            ("num_key_value_heads", serde_json::json!(4), "divide"),
            ("head_dim", serde_json::json!(31), "odd"),
            ("vocab_size", serde_json::json!(0), "vocab_size"),
            ("hidden_size", serde_json::json!(1_u64 << 40), "hidden_size"),
            ("rms_norm_eps", serde_json::json!(-1.0), "eps"),
            ("vocab_size", serde_json::json!("many"), "cannot be read"),
        ] {
            let mut bad = base.clone();
            bad[field] = value;
            let error = ModelConfig::from_json(bad.to_string().as_bytes())
                .unwrap_err()
                .to_string();
            assert!(error.contains(word), "{field}: {error}");
        }
    }
}
