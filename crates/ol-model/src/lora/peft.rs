//! Adapters as PEFT writes them: `adapter_config.json` and
//! `adapter_model.safetensors`.

use std::collections::BTreeMap;
use std::path::Path;

use serde::Deserialize;
use serde_json::{Value, json};
use thiserror::Error;

use super::store::{self, Part, Store};
use super::targets::{of_names, of_text};
use super::{Lora, LoraBlock, LoraConfig, LoraError};
use crate::config::ModelConfig;
use crate::gguf::{Gguf, GgufError};
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
    /// A GGUF file is wrong.
    #[error(transparent)]
    Gguf(#[from] GgufError),
}

/// The fields of `adapter_config.json` that are used; [`UNUSED`] and
/// [`refused`] deal with the others.
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
    rank_pattern: Option<BTreeMap<String, usize>>,
    #[serde(default)]
    alpha_pattern: Option<BTreeMap<String, f32>>,
    #[serde(flatten)]
    rest: BTreeMap<String, Value>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Targets {
    Names(Vec<String>),
    Pattern(String),
}

/// Fields that change nothing in what an adapter computes once it is trained.
const UNUSED: [&str; 17] = [
    "auto_mapping",
    "base_model_name_or_path",
    "eva_config",
    "inference_mode",
    "init_lora_weights",
    "layers_pattern",
    "lora_dropout",
    "loftq_config",
    "megatron_core",
    "model_type",
    "peft_version",
    "qalora_group_size",
    "revision",
    "runtime_config",
    "task_type",
    "ensure_weight_tying",
    "monteclora_config",
];

/// The field if it asks for something that is not done: anything but null,
/// false, zero, an empty list or `"none"` in a field not known to be harmless.
fn refused(rest: &BTreeMap<String, Value>) -> Option<String> {
    // These replace the base's weights, or the adapter would not fit them.
    if let Some(Value::String(init)) = rest.get("init_lora_weights") {
        let init = init.to_ascii_lowercase();
        let changes = ["pissa", "olora", "corda", "loftq", "lora_ga"];
        if changes.iter().any(|name| init.starts_with(name)) {
            return Some(format!("init_lora_weights {init:?}"));
        }
    }
    let is_off = |value: &Value| match value {
        Value::Null | Value::Bool(false) => true,
        Value::Number(n) => n.as_f64() == Some(0.0),
        Value::String(s) => s == "none",
        Value::Array(a) => a.is_empty(),
        Value::Object(o) => o.is_empty(),
        Value::Bool(true) => false,
    };
    rest.iter()
        .find(|(name, value)| !UNUSED.contains(&name.as_str()) && !is_off(value))
        .map(|(name, _)| name.clone())
}

pub(super) fn parse_config(text: &[u8], model: &ModelConfig) -> Result<LoraConfig, PeftError> {
    let raw: RawAdapter =
        serde_json::from_slice(text).map_err(|e| PeftError::Config(e.to_string()))?;
    if raw.peft_type != "LORA" {
        let reason = format!("peft_type {:?} is not LORA", raw.peft_type);
        return Err(PeftError::Config(reason));
    }
    if let Some(field) = refused(&raw.rest) {
        return Err(PeftError::Config(format!("{field} is not supported")));
    }
    let selection = match &raw.target_modules {
        Targets::Pattern(text) => of_text(model, text)?,
        Targets::Names(names) => of_names(model, names)?,
    };
    let config = LoraConfig {
        alpha: raw.lora_alpha,
        alpha_pattern: raw.alpha_pattern.unwrap_or_default(),
        module_pattern: selection.pattern,
        rank: raw.r,
        rank_pattern: raw.rank_pattern.unwrap_or_default(),
        target_modules: selection.projections,
        use_dora: raw.use_dora,
        use_rslora: raw.use_rslora,
    };
    config.check()?;
    Ok(config)
}

fn tensor_name(block: &LoraBlock, part: Part) -> String {
    let part = match part {
        Part::A => "lora_A.weight",
        Part::B => "lora_B.weight",
        Part::Magnitude => "lora_magnitude_vector",
    };
    format!("base_model.model.{}.{part}", block.module)
}

/// Name, shape and place of each tensor of a block.
pub(super) fn tensors_of(block: &LoraBlock) -> Vec<(String, Vec<usize>, std::ops::Range<usize>)> {
    let mut all = vec![
        (Part::A, vec![block.rows_a.0, block.rows_a.1]),
        (Part::B, vec![block.rows_b.0, block.rows_b.1]),
    ];
    if block.has_magnitude {
        all.push((Part::Magnitude, vec![block.rows_b.0]));
    }
    all.into_iter()
        .map(|(part, shape)| (tensor_name(block, part), shape, store::range(block, part)))
        .collect()
}

impl Lora {
    /// Reads a PEFT directory, or a GGUF file, for models shaped like `model`.
    ///
    /// # Errors
    /// [`PeftError`] that names the file, and the tensor where there is one.
    pub fn load(dir: &Path, model: &ModelConfig) -> Result<Self, PeftError> {
        if dir.is_file() {
            return Ok(Self::from_gguf(&Gguf::open(dir)?, model)?);
        }
        let config = read_limited(&dir.join("adapter_config.json"), MAX_CONFIG_SIZE_BYTES)?;
        let tensors = Tensors::open(&dir.join("adapter_model.safetensors"))?;
        Self::parse(&config, &tensors, model)
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
        let tensors = Tensors::parse(Path::new("adapter_model.safetensors"), weights)?;
        Self::parse(config_json, &tensors, model)
    }

    fn parse(
        config_json: &[u8],
        tensors: &Tensors<'_>,
        model: &ModelConfig,
    ) -> Result<Self, PeftError> {
        let (size_bytes, limit_bytes) = (tensors.size_bytes(), MAX_ADAPTER_SIZE_BYTES);
        if size_bytes > limit_bytes {
            return Err(WeightsError::TooLarge {
                path: tensors.path().to_owned(),
                size_bytes,
                limit_bytes,
            }
            .into());
        }
        let config = parse_config(config_json, model)?;
        Self::with_store(model, config, |blocks, _| {
            let wanted: Vec<_> = blocks.iter().flat_map(tensors_of).collect();
            let known: std::collections::HashSet<&str> =
                wanted.iter().map(|(name, ..)| name.as_str()).collect();
            if let Some(extra) = tensors.names().find(|name| !known.contains(*name)) {
                return Err(tensors
                    .error(extra, "does not belong to this model or to target_modules")
                    .into());
            }
            // All shapes first: what is allocated is then bounded by the file.
            for (name, shape, _) in &wanted {
                tensors.expect(name, shape)?;
            }
            Ok(Store::new(
                blocks,
                |block, part| tensors.dtype(&tensor_name(block, part)),
                |block, part| {
                    let n = store::range(block, part).len();
                    tensors.read_finite(&tensor_name(block, part), 0..n)
                },
            )?)
        })
    }

    /// The two files of the PEFT directory: configuration, weights (f32).
    ///
    /// # Panics
    /// Never: what it writes has been checked before.
    #[must_use]
    pub fn to_bytes(&self, base_model: &str) -> (Vec<u8>, Vec<u8>) {
        let c = &self.config;
        let targets = match &c.module_pattern {
            // The projections' names are in no pattern written by hand.
            Some(_) => json!(self.blocks.iter().map(|b| &b.module).collect::<Vec<_>>()),
            None => json!(c.target_modules),
        };
        let config = json!({
            "alpha_pattern": c.alpha_pattern,
            "base_model_name_or_path": base_model,
            "bias": "none",
            "fan_in_fan_out": false,
            "inference_mode": true,
            "lora_alpha": c.alpha,
            "lora_dropout": 0.0,
            "peft_type": "LORA",
            "r": c.rank,
            "rank_pattern": c.rank_pattern,
            "target_modules": targets,
            "task_type": "CAUSAL_LM",
            "use_dora": c.use_dora,
            "use_rslora": c.use_rslora,
        });
        let mut text = serde_json::to_vec_pretty(&config).expect("a JSON value has a text");
        text.push(b'\n');
        let named: Vec<_> = self.blocks.iter().flat_map(tensors_of).collect();
        let params = self.to_parameters();
        let tensors: Vec<(&str, &[usize], &[f32])> = named
            .iter()
            .map(|(name, shape, range)| (name.as_str(), shape.as_slice(), &params[range.clone()]))
            .collect();
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
