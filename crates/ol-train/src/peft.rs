//! PEFT directories as files: looked into, converted and merged into a base,
//! tensor by tensor and by name, so that neither needs to fit a model of ours.
//! To and from GGUF they go through a model, whose shape the file relies on.

use std::collections::{BTreeMap, HashMap};
use std::fs::{self, File};
use std::io::Read as _;
use std::path::{Path, PathBuf};

use half::{bf16, f16};
use ol_model::{Dtype, ForwardError, GgufError, LoadError, PeftError, TokenizerError};
use safetensors::SafeTensors;
use serde::Deserialize;
use serde_json::Value;
use thiserror::Error;

mod gguf;
mod inspect;
mod merge;

pub use gguf::{MergedFile, convert_for, is_gguf, merge_gguf};
pub use inspect::{Inspection, LayerNorms, inspect};
pub use merge::{Merged, convert, merge};

/// Longest configuration or index read, in bytes.
const JSON_SIZE_BYTES_MAX: u64 = 16 << 20;
/// Longest adapter read, in bytes.
const ADAPTER_SIZE_BYTES_MAX: u64 = 4 << 30;
/// Longest file of a base read, in bytes.
const SHARD_SIZE_BYTES_MAX: u64 = 64 << 30;

const CONFIG: &str = "adapter_config.json";
const WEIGHTS: &str = "adapter_model.safetensors";

/// Why an adapter cannot be looked into, converted or merged.
#[derive(Debug, Error)]
pub enum PeftFileError {
    /// A file cannot be read or written.
    #[error("{path}: {source}")]
    Io {
        /// File concerned.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// A file is not what it should be.
    #[error("{path}: {reason}")]
    Format {
        /// File concerned.
        path: PathBuf,
        /// What is wrong, and what was expected.
        reason: String,
    },
    /// A tensor is not what it should be.
    #[error("{path}: tensor {tensor}: {reason}")]
    Tensor {
        /// File concerned.
        path: PathBuf,
        /// Its name.
        tensor: String,
        /// What is wrong, and what was expected.
        reason: String,
    },
    /// There are files already where the result should be.
    #[error("{path} exists and is not empty; name a new one")]
    Taken {
        /// The folder or file.
        path: PathBuf,
    },
    /// An adapter does not fit the base, or its files are wrong.
    #[error(transparent)]
    Adapter(#[from] PeftError),
    /// A GGUF file cannot be read or written.
    #[error(transparent)]
    Gguf(#[from] GgufError),
    /// The base cannot be loaded.
    #[error(transparent)]
    Base(#[from] LoadError),
    /// The base's tokenizer cannot be put into a GGUF file.
    #[error(transparent)]
    Tokenizer(#[from] TokenizerError),
    /// The adapter cannot be added to the base.
    #[error(transparent)]
    Merge(#[from] ForwardError),
}

fn io(path: &Path) -> impl FnOnce(std::io::Error) -> PeftFileError {
    let path = path.to_owned();
    move |source| PeftFileError::Io { path, source }
}

fn format(path: &Path, reason: impl Into<String>) -> PeftFileError {
    PeftFileError::Format {
        path: path.to_owned(),
        reason: reason.into(),
    }
}

/// What `adapter_config.json` says that matters here.
#[derive(Debug, Clone, Deserialize)]
struct Config {
    peft_type: String,
    r: usize,
    lora_alpha: f64,
    #[serde(default)]
    base_model_name_or_path: Option<String>,
    #[serde(default)]
    use_rslora: bool,
    #[serde(default)]
    use_dora: bool,
    #[serde(default)]
    fan_in_fan_out: bool,
    #[serde(default)]
    rank_pattern: BTreeMap<String, Value>,
    #[serde(default)]
    alpha_pattern: BTreeMap<String, Value>,
    #[serde(default)]
    target_parameters: Option<Value>,
}

/// An adapter's files, read.
struct Adapter {
    config: Config,
    config_text: Vec<u8>,
    weights_path: PathBuf,
    weights: Vec<u8>,
}

impl Adapter {
    fn read(dir: &Path) -> Result<Self, PeftFileError> {
        let config_text = read_limited(&dir.join(CONFIG), JSON_SIZE_BYTES_MAX)?;
        let weights = read_limited(&dir.join(WEIGHTS), ADAPTER_SIZE_BYTES_MAX)?;
        Self::parse(dir, config_text, weights)
    }

    /// The contents of the two files of `dir`.
    fn parse(dir: &Path, config_text: Vec<u8>, weights: Vec<u8>) -> Result<Self, PeftFileError> {
        let path = dir.join(CONFIG);
        let config: Config = serde_json::from_slice(&config_text)
            .map_err(|e| format(&path, format!("not an adapter's configuration: {e}")))?;
        let refuse = |reason: String| Err(format(&path, reason));
        if config.peft_type != "LORA" {
            return refuse(format!(
                "peft_type is {:?}, only LORA is known",
                config.peft_type
            ));
        }
        if config.r == 0 || !config.lora_alpha.is_finite() {
            return refuse("r must be at least 1 and lora_alpha a number".to_owned());
        }
        Ok(Self {
            config,
            config_text,
            weights_path: dir.join(WEIGHTS),
            weights,
        })
    }

    fn tensors(&self) -> Result<SafeTensors<'_>, PeftFileError> {
        parse(&self.weights_path, &self.weights)
    }

    /// What the product of the factors is scaled by.
    #[expect(clippy::cast_precision_loss, reason = "ranks are small")]
    fn scale(&self) -> f64 {
        let rank = self.config.r as f64;
        self.config.lora_alpha
            / if self.config.use_rslora {
                rank.sqrt()
            } else {
                rank
            }
    }

    /// The factors of every adapted module, by the module's name in the base.
    fn modules(&self) -> Result<BTreeMap<String, Factors>, PeftFileError> {
        let tensors = self.tensors()?;
        let mut found: HashMap<String, [Option<Matrix>; 3]> = HashMap::new();
        for name in tensors.names() {
            let fail = |reason: String| PeftFileError::Tensor {
                path: self.weights_path.clone(),
                tensor: name.to_owned(),
                reason,
            };
            let inner = name.strip_prefix("base_model.model.").unwrap_or(name);
            let part = [
                (".lora_A.weight", 0),
                (".lora_B.weight", 1),
                (".lora_magnitude_vector", 2),
                (".lora_magnitude_vector.weight", 2),
            ]
            .into_iter()
            .find_map(|(end, part)| Some((inner.strip_suffix(end)?, part)));
            let Some((module, part)) = part else {
                return Err(fail("is no factor of a LoRA layer".to_owned()));
            };
            let view = tensors.tensor(name).map_err(|e| fail(e.to_string()))?;
            let matrix = Matrix::of(&view).map_err(fail)?;
            found.entry(module.to_owned()).or_default()[part] = Some(matrix);
        }
        let mut modules = BTreeMap::new();
        for (module, parts) in found {
            let fail = |reason: String| PeftFileError::Tensor {
                path: self.weights_path.clone(),
                tensor: module.clone(),
                reason,
            };
            let [Some(a), Some(b), magnitude] = parts else {
                return Err(fail("lacks lora_A or lora_B".to_owned()));
            };
            if a.rows == 0 || a.rows != b.columns {
                return Err(fail(format!(
                    "lora_A is {}x{} and lora_B {}x{}; the inner width differs",
                    a.rows, a.columns, b.rows, b.columns
                )));
            }
            if let Some(m) = &magnitude
                && m.values.len() != b.rows
            {
                return Err(fail(format!(
                    "has {} magnitudes for {} outputs",
                    m.values.len(),
                    b.rows
                )));
            }
            modules.insert(module, Factors { a, b, magnitude });
        }
        Ok(modules)
    }
}

/// The trained factors of one module.
struct Factors {
    /// Rank by inputs.
    a: Matrix,
    /// Outputs by rank.
    b: Matrix,
    /// DoRA's magnitude of each output.
    magnitude: Option<Matrix>,
}

/// A matrix in f32, row-major; a vector has one column.
#[derive(Debug, Clone)]
struct Matrix {
    rows: usize,
    columns: usize,
    values: Vec<f32>,
}

impl Matrix {
    fn of(view: &safetensors::tensor::TensorView<'_>) -> Result<Self, String> {
        let (rows, columns) = match view.shape() {
            [rows] => (*rows, 1),
            [rows, columns] => (*rows, *columns),
            other => return Err(format!("has shape {other:?}, expected a matrix")),
        };
        let values = floats(view)?;
        Ok(Self {
            rows,
            columns,
            values,
        })
    }

    fn row(&self, row: usize) -> &[f32] {
        &self.values[row * self.columns..(row + 1) * self.columns]
    }
}

/// The values of a tensor, all finite.
fn floats(view: &safetensors::tensor::TensorView<'_>) -> Result<Vec<f32>, String> {
    let data = view.data();
    let values: Vec<f32> = match view.dtype() {
        safetensors::Dtype::F32 => data
            .as_chunks::<4>()
            .0
            .iter()
            .map(|b| f32::from_le_bytes(*b))
            .collect(),
        safetensors::Dtype::F16 => data
            .as_chunks::<2>()
            .0
            .iter()
            .map(|b| f16::from_le_bytes(*b).to_f32())
            .collect(),
        safetensors::Dtype::BF16 => data
            .as_chunks::<2>()
            .0
            .iter()
            .map(|b| bf16::from_le_bytes(*b).to_f32())
            .collect(),
        other => {
            return Err(format!(
                "is stored as {other:?}; F32, F16 and BF16 can be read"
            ));
        }
    };
    match values.iter().position(|v| !v.is_finite()) {
        Some(at) => Err(format!("element {at} is {}", values[at])),
        None => Ok(values),
    }
}

/// The bytes of values in a format, rounded to nearest even.
fn stored(values: &[f32], dtype: Dtype) -> Vec<u8> {
    match dtype {
        Dtype::F32 => values.iter().flat_map(|v| v.to_le_bytes()).collect(),
        Dtype::F16 => values
            .iter()
            .flat_map(|v| f16::from_f32(*v).to_le_bytes())
            .collect(),
        Dtype::Bf16 => values
            .iter()
            .flat_map(|v| bf16::from_f32(*v).to_le_bytes())
            .collect(),
    }
}

const fn safetensors_dtype(dtype: Dtype) -> safetensors::Dtype {
    match dtype {
        Dtype::F32 => safetensors::Dtype::F32,
        Dtype::F16 => safetensors::Dtype::F16,
        Dtype::Bf16 => safetensors::Dtype::BF16,
    }
}

fn parse<'a>(path: &Path, bytes: &'a [u8]) -> Result<SafeTensors<'a>, PeftFileError> {
    SafeTensors::deserialize(bytes)
        .map_err(|e| format(path, format!("not a safetensors file: {e}")))
}

fn read_limited(path: &Path, limit_bytes: u64) -> Result<Vec<u8>, PeftFileError> {
    let file = File::open(path).map_err(io(path))?;
    let mut bytes = Vec::new();
    file.take(limit_bytes + 1)
        .read_to_end(&mut bytes)
        .map_err(io(path))?;
    if bytes.len() as u64 > limit_bytes {
        return Err(format(path, format!("longer than {limit_bytes} bytes")));
    }
    Ok(bytes)
}

/// Makes a folder for a result, beside files of nobody else.
fn new_dir(path: &Path) -> Result<(), PeftFileError> {
    fs::create_dir_all(path).map_err(io(path))?;
    if fs::read_dir(path).map_err(io(path))?.next().is_some() {
        return Err(PeftFileError::Taken {
            path: path.to_owned(),
        });
    }
    Ok(())
}

#[cfg(test)]
mod tests;
