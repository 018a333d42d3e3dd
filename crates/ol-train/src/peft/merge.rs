//! An adapter stored in another format, or added to its base.

use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap};
use std::fs::{self, File};
use std::path::{Path, PathBuf};

use ol_model::{Dtype, write_atomic};
use safetensors::Dtype as Stored;
use serde_json::Value;

use super::{
    Adapter, CONFIG, Factors, JSON_SIZE_BYTES_MAX, Matrix, PeftFileError, SHARD_SIZE_BYTES_MAX,
    WEIGHTS, floats, format, io, new_dir, parse, read_limited, safetensors_dtype, stored,
};

/// What a merge came to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Merged {
    /// Modules of the base that were changed.
    pub n_modules: usize,
    /// Tensors of the base that were copied as they are.
    pub n_copied: usize,
    /// Size of the weights written, in bytes.
    pub size_bytes: u64,
}

/// One tensor to write.
struct Out<'a> {
    shape: Vec<usize>,
    dtype: Stored,
    data: Cow<'a, [u8]>,
}

impl safetensors::View for &Out<'_> {
    fn dtype(&self) -> Stored {
        self.dtype
    }
    fn shape(&self) -> &[usize] {
        &self.shape
    }
    fn data(&self) -> Cow<'_, [u8]> {
        Cow::Borrowed(&self.data)
    }
    fn data_len(&self) -> usize {
        self.data.len()
    }
}

fn write(path: &Path, tensors: &BTreeMap<String, Out<'_>>) -> Result<u64, PeftFileError> {
    let metadata = HashMap::from([("format".to_owned(), "pt".to_owned())]);
    let bytes = safetensors::serialize(tensors.iter(), Some(metadata))
        .map_err(|e| format(path, e.to_string()))?;
    write_atomic(path, &bytes).map_err(io(path))?;
    Ok(bytes.len() as u64)
}

/// Stores a PEFT directory's factors as `dtype` in a new folder; everything
/// else in it is copied.
///
/// # Errors
/// [`PeftFileError`]; [`PeftFileError::Taken`] if `out` has files in it.
pub fn convert(dir: &Path, out: &Path, dtype: Dtype) -> Result<(), PeftFileError> {
    let adapter = Adapter::read(dir)?;
    // What is no adapter is refused before anything is written.
    adapter.modules()?;
    new_dir(out)?;
    adapter.store(out, dtype)
}

impl Adapter {
    /// Writes both files into a folder.
    pub(super) fn store(&self, out: &Path, dtype: Dtype) -> Result<(), PeftFileError> {
        let tensors = self.tensors()?;
        let mut converted = BTreeMap::new();
        for (name, view) in tensors.iter() {
            let values = floats(&view).map_err(|reason| PeftFileError::Tensor {
                path: self.weights_path.clone(),
                tensor: name.to_owned(),
                reason,
            })?;
            let tensor = Out {
                shape: view.shape().to_vec(),
                dtype: safetensors_dtype(dtype),
                data: Cow::Owned(stored(&values, dtype)),
            };
            converted.insert(name.to_owned(), tensor);
        }
        write(&out.join(WEIGHTS), &converted)?;
        let path = out.join(CONFIG);
        write_atomic(&path, &self.config_text).map_err(io(&path))
    }
}

/// Adds an adapter to its base: `W + scale * B A` for every adapted module,
/// with DoRA each row then scaled to its magnitude. The result is a Hugging
/// Face directory of the same shards, stored as `dtype`, or as the base is.
///
/// # Errors
/// [`PeftFileError`]: also if a module of the adapter is not in the base, or
/// has another shape there.
pub fn merge(
    base: &Path,
    adapter: &Path,
    out: &Path,
    dtype: Option<Dtype>,
) -> Result<Merged, PeftFileError> {
    let config_path = adapter.join(CONFIG);
    let adapter = Adapter::read(adapter)?;
    let config = &adapter.config;
    for (set, name) in [
        (config.fan_in_fan_out, "fan_in_fan_out"),
        (!config.rank_pattern.is_empty(), "rank_pattern"),
        (!config.alpha_pattern.is_empty(), "alpha_pattern"),
        (
            config
                .target_parameters
                .as_ref()
                .is_some_and(|p| !p.is_null()),
            "target_parameters",
        ),
    ] {
        if set {
            return Err(format(&config_path, format!("{name} cannot be merged")));
        }
    }
    let scale = adapter.scale();
    let mut modules = adapter.modules()?;
    let shards = shards(base)?;
    new_dir(out)?;
    let mut merged = Merged {
        n_modules: 0,
        n_copied: 0,
        size_bytes: 0,
    };
    for shard in &shards {
        let path = base.join(shard);
        let bytes = read_limited(&path, SHARD_SIZE_BYTES_MAX)?;
        let tensors = parse(&path, &bytes)?;
        let mut result = BTreeMap::new();
        for (name, view) in tensors.iter() {
            let fail = |reason: String| PeftFileError::Tensor {
                path: path.clone(),
                tensor: name.to_owned(),
                reason,
            };
            let factors = name
                .strip_suffix(".weight")
                .and_then(|module| modules.remove(module));
            let is_float = matches!(view.dtype(), Stored::F32 | Stored::F16 | Stored::BF16);
            let wanted = dtype.filter(|_| is_float).map(safetensors_dtype);
            let to = wanted.unwrap_or(view.dtype());
            let data = if let Some(factors) = factors {
                merged.n_modules += 1;
                let mut weight = Matrix::of(&view).map_err(fail)?;
                add(&mut weight, &factors, scale).map_err(fail)?;
                Cow::Owned(stored(&weight.values, dtype_of(to).map_err(fail)?))
            } else {
                merged.n_copied += 1;
                if to == view.dtype() {
                    Cow::Borrowed(view.data())
                } else {
                    let values = floats(&view).map_err(fail)?;
                    Cow::Owned(stored(&values, dtype_of(to).map_err(fail)?))
                }
            };
            let tensor = Out {
                shape: view.shape().to_vec(),
                dtype: to,
                data,
            };
            result.insert(name.to_owned(), tensor);
        }
        merged.size_bytes += write(&out.join(shard), &result)?;
    }
    if let Some((module, factors)) = modules.first_key_value() {
        return Err(PeftFileError::Tensor {
            path: base.to_owned(),
            tensor: format!("{module}.weight"),
            reason: format!(
                "is missing; the adapter changes it as a {}x{} matrix, so it belongs to another base",
                factors.b.rows, factors.a.columns
            ),
        });
    }
    copy_rest(base, out, &shards, dtype)?;
    Ok(merged)
}

fn dtype_of(stored: Stored) -> Result<Dtype, String> {
    match stored {
        Stored::F32 => Ok(Dtype::F32),
        Stored::F16 => Ok(Dtype::F16),
        Stored::BF16 => Ok(Dtype::Bf16),
        other => Err(format!(
            "is stored as {other:?}, which nothing can be added to"
        )),
    }
}

/// `weight += scale * B A`; with magnitudes, rows are scaled to them.
fn add(weight: &mut Matrix, factors: &Factors, scale: f64) -> Result<(), String> {
    let (a, b) = (&factors.a, &factors.b);
    if (weight.rows, weight.columns) != (b.rows, a.columns) {
        return Err(format!(
            "is {}x{}, the adapter changes a {}x{} matrix; it belongs to another base",
            weight.rows, weight.columns, b.rows, a.columns
        ));
    }
    let mut delta = vec![0.0_f64; a.columns];
    for o in 0..weight.rows {
        delta.fill(0.0);
        for (inner, factor) in b.row(o).iter().enumerate() {
            for (sum, x) in delta.iter_mut().zip(a.row(inner)) {
                *sum += f64::from(*factor) * f64::from(*x);
            }
        }
        let row = &mut weight.values[o * a.columns..(o + 1) * a.columns];
        let sums = row
            .iter()
            .zip(&delta)
            .map(|(w, d)| f64::from(*w) + scale * d);
        let mut sums: Vec<f64> = sums.collect();
        if let Some(magnitude) = &factors.magnitude {
            let length = sums.iter().map(|v| v * v).sum::<f64>().sqrt();
            let factor = f64::from(magnitude.values[o]) / length.max(f64::MIN_POSITIVE);
            for value in &mut sums {
                *value *= factor;
            }
        }
        #[expect(
            clippy::cast_possible_truncation,
            reason = "rounding to f32 is what is wanted"
        )]
        for (w, value) in row.iter_mut().zip(sums) {
            *w = value as f32;
        }
    }
    Ok(())
}

/// The files of a base's weights, by name.
fn shards(base: &Path) -> Result<Vec<String>, PeftFileError> {
    let index = base.join("model.safetensors.index.json");
    if !index.exists() {
        let whole = base.join("model.safetensors");
        if whole.exists() {
            return Ok(vec!["model.safetensors".to_owned()]);
        }
        let reason = "has neither model.safetensors nor model.safetensors.index.json; name a \
                      Hugging Face folder";
        return Err(format(base, reason));
    }
    let bytes = read_limited(&index, JSON_SIZE_BYTES_MAX)?;
    let value: Value = serde_json::from_slice(&bytes).map_err(|e| format(&index, e.to_string()))?;
    let map = value["weight_map"]
        .as_object()
        .ok_or_else(|| format(&index, "has no weight_map"))?;
    let mut names = Vec::new();
    for name in map.values() {
        let name = name.as_str().unwrap_or_default();
        // A name, not a path that leads out of the folder.
        if name.is_empty() || name.contains(['/', '\\']) || name.starts_with('.') {
            return Err(format(&index, format!("names the file {name:?}")));
        }
        names.push(name.to_owned());
    }
    names.sort();
    names.dedup();
    Ok(names)
}

/// Copies what is beside the weights: configuration, tokenizer, template.
fn copy_rest(
    base: &Path,
    out: &Path,
    shards: &[String],
    dtype: Option<Dtype>,
) -> Result<(), PeftFileError> {
    for entry in fs::read_dir(base).map_err(io(base))? {
        let from: PathBuf = entry.map_err(io(base))?.path();
        let name = from.file_name().unwrap_or_default().to_string_lossy();
        let is_wanted = ["json", "jinja", "txt", "model"]
            .iter()
            .any(|end| from.extension().is_some_and(|e| e == *end));
        if !from.is_file() || !is_wanted || shards.iter().any(|s| *s == name) {
            continue;
        }
        let to = out.join(&*name);
        if name == "config.json" && dtype.is_some() {
            let bytes = read_limited(&from, JSON_SIZE_BYTES_MAX)?;
            let mut config: Value =
                serde_json::from_slice(&bytes).map_err(|e| format(&from, e.to_string()))?;
            if let (Some(dtype), Some(fields)) = (dtype, config.as_object_mut()) {
                let name = match dtype {
                    Dtype::F32 => "float32",
                    Dtype::F16 => "float16",
                    Dtype::Bf16 => "bfloat16",
                };
                // transformers 5 says dtype, 4 torch_dtype.
                fields.remove("torch_dtype");
                fields.insert("dtype".to_owned(), Value::from(name));
            }
            let mut text = serde_json::to_vec_pretty(&config).expect("a JSON value has a text");
            text.push(b'\n');
            write_atomic(&to, &text).map_err(io(&to))?;
        } else {
            fs::copy(&from, &to).map_err(io(&from))?;
        }
    }
    File::open(out)
        .and_then(|dir| dir.sync_all())
        .map_err(io(out))
}
