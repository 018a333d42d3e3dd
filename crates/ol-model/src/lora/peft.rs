//! Adapters as PEFT writes them: `adapter_config.json` and
//! `adapter_model.safetensors`.

use std::path::Path;

use serde::Deserialize;
use thiserror::Error;

use super::{Lora, LoraBlock, LoraConfig, LoraError, Projection, blocks, check};
use crate::config::ModelConfig;
use crate::weights::{Dtype, Tensors, WeightsError, read_limited, serialize, write_atomic};

/// Longest `adapter_model.safetensors` accepted.
pub const MAX_ADAPTER_SIZE_BYTES: u64 = 1 << 30;

const MAX_CONFIG_SIZE_BYTES: u64 = 1 << 20;

/// Why an adapter directory is refused.
#[derive(Debug, Error)]
pub enum PeftError {
    /// A file or tensor is wrong.
    #[error(transparent)]
    Weights(#[from] WeightsError),
    /// `adapter_config.json` is not readable or asks for what is not supported.
    #[error("adapter_config.json: {0}")]
    Config(String),
    /// The shape is out of its limits.
    #[error("adapter_config.json: {0}")]
    Shape(#[from] LoraError),
}

/// The fields of `adapter_config.json` that change the result.
#[derive(Deserialize)]
struct RawAdapter {
    peft_type: String,
    r: usize,
    lora_alpha: f32,
    target_modules: Targets,
    #[serde(default)]
    use_rslora: bool,
    #[serde(default)]
    use_dora: bool,
    #[serde(default)]
    fan_in_fan_out: bool,
    bias: Option<String>,
    #[serde(default)]
    rank_pattern: serde_json::Map<String, serde_json::Value>,
    #[serde(default)]
    alpha_pattern: serde_json::Map<String, serde_json::Value>,
    modules_to_save: Option<Vec<String>>,
    layers_to_transform: Option<serde_json::Value>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Targets {
    Names(Vec<String>),
    Pattern(String),
}

fn parse_config(text: &[u8], model: &ModelConfig) -> Result<LoraConfig, PeftError> {
    let raw: RawAdapter =
        serde_json::from_slice(text).map_err(|e| PeftError::Config(e.to_string()))?;
    let refuse = |what: String| Err(PeftError::Config(what));
    if raw.peft_type != "LORA" {
        return refuse(format!("peft_type {:?} is not LORA", raw.peft_type));
    }
    for (set, name) in [
        (raw.use_rslora, "use_rslora"),
        (raw.use_dora, "use_dora"),
        (raw.fan_in_fan_out, "fan_in_fan_out"),
        (!raw.rank_pattern.is_empty(), "rank_pattern"),
        (!raw.alpha_pattern.is_empty(), "alpha_pattern"),
        (
            raw.modules_to_save.is_some_and(|m| !m.is_empty()),
            "modules_to_save",
        ),
        (
            raw.layers_to_transform.is_some_and(|l| !l.is_null()),
            "layers_to_transform",
        ),
        (raw.bias.is_some_and(|b| b != "none"), "bias"),
    ] {
        if set {
            return refuse(format!("{name} is not supported"));
        }
    }
    let target_modules = match raw.target_modules {
        Targets::Pattern(p) if p == "all-linear" => Projection::of(model),
        Targets::Pattern(p) => {
            return refuse(format!(
                "target_modules {p:?} is a pattern; name the layers"
            ));
        }
        Targets::Names(names) => names
            .iter()
            .map(|name| {
                // PEFT 0.21 writes `all-linear` as the paths of all layers.
                let last = name.rsplit('.').next().unwrap_or(name);
                Projection::from_name(last).ok_or_else(|| {
                    PeftError::Config(format!(
                        "target module {name:?} is not a linear layer of a block"
                    ))
                })
            })
            .collect::<Result<_, _>>()?,
    };
    let config = LoraConfig {
        rank: raw.r,
        alpha: raw.lora_alpha,
        target_modules,
    };
    check(&config)?;
    Ok(config)
}

fn tensor_names(block: &LoraBlock) -> [String; 2] {
    ["A", "B"].map(|factor| format!("base_model.model.{}.lora_{factor}.weight", block.module))
}

impl Lora {
    /// Reads a PEFT directory for models shaped like `model`.
    ///
    /// # Errors
    /// [`PeftError`] that names the file, and the tensor where there is one.
    pub fn load(dir: &Path, model: &ModelConfig) -> Result<Self, PeftError> {
        let config = read_limited(&dir.join("adapter_config.json"), MAX_CONFIG_SIZE_BYTES)?;
        let path = dir.join("adapter_model.safetensors");
        let weights = read_limited(&path, MAX_ADAPTER_SIZE_BYTES)?;
        Self::parse(&path, &config, &weights, model)
    }

    /// Reads the contents of `adapter_config.json` and
    /// `adapter_model.safetensors`.
    ///
    /// # Errors
    /// As [`Lora::load`].
    pub fn from_bytes(
        config_json: &[u8],
        weights: &[u8],
        model: &ModelConfig,
    ) -> Result<Self, PeftError> {
        Self::parse(
            Path::new("adapter_model.safetensors"),
            config_json,
            weights,
            model,
        )
    }

    fn parse(
        path: &Path,
        config_json: &[u8],
        weights: &[u8],
        model: &ModelConfig,
    ) -> Result<Self, PeftError> {
        let size_bytes = weights.len() as u64;
        if size_bytes > MAX_ADAPTER_SIZE_BYTES {
            let limit_bytes = MAX_ADAPTER_SIZE_BYTES;
            return Err(WeightsError::TooLarge {
                path: path.to_owned(),
                size_bytes,
                limit_bytes,
            }
            .into());
        }
        let config = parse_config(config_json, model)?;
        let tensors = Tensors::parse(path, weights)?;
        let (blocks, n) = blocks(model, &config);
        let known: std::collections::HashSet<String> =
            blocks.iter().flat_map(tensor_names).collect();
        if let Some(extra) = tensors.names().find(|name| !known.contains(*name)) {
            return Err(tensors
                .error(extra, "does not belong to this model or to target_modules")
                .into());
        }
        // All shapes first: what is allocated is then bounded by the file.
        for block in &blocks {
            for (name, shape) in tensor_names(block).iter().zip([block.rows_a, block.rows_b]) {
                tensors.expect(name, &[shape.0, shape.1])?;
            }
        }
        let mut params = vec![0.0_f32; n];
        for block in &blocks {
            let [a, b] = tensor_names(block);
            for (name, range) in [(a, block.range_a()), (b, block.range_b())] {
                tensors.read(&name, 0..range.len(), &mut params[range])?;
            }
        }
        Ok(Self::from_parameters(model, config, params)?)
    }

    /// The two files of the PEFT directory: configuration, weights (f32).
    ///
    /// # Panics
    /// Never: what it writes has been checked before.
    #[must_use]
    pub fn to_bytes(&self, base_model: &str) -> (Vec<u8>, Vec<u8>) {
        let config = serde_json::json!({
            "base_model_name_or_path": base_model,
            "bias": "none",
            "fan_in_fan_out": false,
            "inference_mode": true,
            "lora_alpha": self.config.alpha,
            "lora_dropout": 0.0,
            "peft_type": "LORA",
            "r": self.config.rank,
            "target_modules": self.config.target_modules,
            "task_type": "CAUSAL_LM",
            "use_dora": false,
            "use_rslora": false,
        });
        let mut text = serde_json::to_vec_pretty(&config).expect("a JSON value has a text");
        text.push(b'\n');
        let names: Vec<[String; 2]> = self.blocks.iter().map(tensor_names).collect();
        let shapes: Vec<[[usize; 2]; 2]> = self
            .blocks
            .iter()
            .map(|b| [[b.rows_a.0, b.rows_a.1], [b.rows_b.0, b.rows_b.1]])
            .collect();
        let mut tensors: Vec<(&str, &[usize], &[f32])> = Vec::new();
        for ((block, names), shapes) in self.blocks.iter().zip(&names).zip(&shapes) {
            tensors.push((&names[0], &shapes[0], &self.params[block.range_a()]));
            tensors.push((&names[1], &shapes[1], &self.params[block.range_b()]));
        }
        let weights = serialize(&tensors, Dtype::F32).expect("the parameters are finite");
        (text, weights)
    }

    /// Writes a PEFT directory; `base_model` is the name it records.
    ///
    /// # Errors
    /// [`WeightsError::Io`] when a file cannot be written.
    pub fn save(&self, dir: &Path, base_model: &str) -> Result<(), WeightsError> {
        let (config, weights) = self.to_bytes(base_model);
        std::fs::create_dir_all(dir).map_err(|source| WeightsError::Io {
            path: dir.to_owned(),
            source,
        })?;
        for (name, bytes) in [
            ("adapter_model.safetensors", weights),
            ("adapter_config.json", config),
        ] {
            let path = dir.join(name);
            write_atomic(&path, &bytes).map_err(|source| WeightsError::Io { path, source })?;
        }
        Ok(())
    }
}
