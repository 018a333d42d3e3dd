//! Models from Hugging Face directories and GGUF files.

use std::collections::{BTreeMap, HashMap};
use std::ops::Range;
use std::path::{Path, PathBuf};

use super::build::{Builder, Source};
use super::{LoadError, Model};
use crate::config::{Family, ModelConfig, WeightFormat};
use crate::gguf::Gguf;
use crate::layout::{Layout, TensorSpec};
use crate::pool::Pool;
use crate::quant::{Format, QuantMatrix};
use crate::weights::{Dtype, Tensors, WeightsError, read_limited};

/// Longest `model.safetensors` accepted, all shards together.
pub const MAX_MODEL_SIZE_BYTES: u64 = 1 << 41;

const MAX_CONFIG_SIZE_BYTES: u64 = 1 << 20;

/// Longest `model.safetensors.index.json`.
const MAX_INDEX_SIZE_BYTES: u64 = 16 << 20;

impl Model {
    /// Reads `config.json` and `model.safetensors` (one file, or the shards
    /// of `model.safetensors.index.json`) from a Hugging Face directory; the
    /// weights are held in f32. Or a GGUF file, whose matrices are held as they
    /// are stored.
    ///
    /// # Errors
    /// [`LoadError`] that names the file, and the tensor where there is one.
    pub fn load(path: &Path) -> Result<Self, LoadError> {
        let format = if path.is_file() {
            WeightFormat::Stored
        } else {
            WeightFormat::F32
        };
        Self::load_as(&Pool::new(1), path, format)
    }

    /// As [`Self::load`] with the matrices in another format. Tensors are read
    /// one by one: memory peaks at the model and one matrix.
    ///
    /// # Errors
    /// As [`Self::load`], and when a matrix cannot be held in `format`.
    pub fn load_as(pool: &Pool, dir: &Path, format: WeightFormat) -> Result<Self, LoadError> {
        if dir.is_file() {
            return Self::from_gguf(pool, &Gguf::open(dir)?, format);
        }
        let text = read_limited(&dir.join("config.json"), MAX_CONFIG_SIZE_BYTES)?;
        let config = ModelConfig::from_json(&text)?;
        let shards = Shards::open(pool, dir)?;
        let layout = Layout::new(&config);
        shards.check(&config, &layout)?;
        Builder::new(&config, &layout, &shards, pool)
            .format(format)
            .model()
    }
}

/// The weight files of a directory.
struct Shards<'a> {
    pool: &'a Pool,
    files: Vec<Tensors<'static>>,
    /// File of each tensor.
    owner: HashMap<String, usize>,
}

/// A tensor's place: file, name and first element there.
struct Place<'a> {
    file: &'a Tensors<'static>,
    name: String,
    first: usize,
}

impl<'a> Shards<'a> {
    fn open(pool: &'a Pool, dir: &Path) -> Result<Self, WeightsError> {
        let mut this = Self {
            pool,
            files: Vec::new(),
            owner: HashMap::new(),
        };
        let index = dir.join("model.safetensors.index.json");
        let map = if index.exists() {
            Some(read_index(&index)?)
        } else {
            None
        };
        let paths: Vec<PathBuf> = match &map {
            None => vec![dir.join("model.safetensors")],
            Some(map) => {
                let names: std::collections::BTreeSet<&String> = map.values().collect();
                names.into_iter().map(|n| dir.join(n)).collect()
            }
        };
        let mut left_bytes = MAX_MODEL_SIZE_BYTES;
        for path in paths {
            let size_bytes = std::fs::metadata(&path).map_or(0, |m| m.len());
            if size_bytes > left_bytes {
                return Err(WeightsError::TooLarge {
                    path,
                    size_bytes,
                    limit_bytes: left_bytes,
                });
            }
            left_bytes -= size_bytes;
            let file = Tensors::open(&path)?;
            for name in file.names() {
                if let Some(other) = this.owner.insert(name.to_owned(), this.files.len()) {
                    let other = this.files[other].path().display();
                    return Err(file.error(name, format!("is also in {other}")));
                }
            }
            this.files.push(file);
        }
        for (name, file) in map.iter().flatten() {
            let found = this.owner.get(name).map(|i| this.files[*i].path());
            let path = dir.join(file);
            if found != Some(path.as_path()) {
                return Err(WeightsError::Tensor {
                    path: index,
                    tensor: name.clone(),
                    reason: format!("is not in {}", path.display()),
                });
            }
        }
        Ok(this)
    }

    /// All shapes before anything is read: what is allocated is then bounded
    /// by the files.
    fn check(&self, config: &ModelConfig, layout: &Layout) -> Result<(), WeightsError> {
        let mut used = std::collections::HashSet::new();
        for spec in layout.tensors() {
            match self.owner.get(&spec.name) {
                Some(file) => self.files[*file].expect(&spec.name, &spec.shape)?,
                None => {
                    let Some((name, shape, _)) = fused(config, spec) else {
                        return Err(self.missing(&spec.name));
                    };
                    let Some(file) = self.owner.get(&name) else {
                        return Err(self.missing(&spec.name));
                    };
                    if used.insert(name.clone()) {
                        self.files[*file].expect(&name, &shape)?;
                    }
                }
            }
        }
        let mut names: Vec<(&String, &usize)> = self.owner.iter().collect();
        names.sort_unstable();
        for (name, file) in names {
            if layout.find(name).is_none() && !used.contains(name) && !is_unused(config, name) {
                return Err(self.files[*file].error(name, "does not belong to this model"));
            }
        }
        Ok(())
    }

    fn missing(&self, name: &str) -> WeightsError {
        let reason = match self.files.len() {
            1 => "is missing".to_owned(),
            n => format!("is in none of {n} files"),
        };
        self.files[0].error(name, reason)
    }

    fn place(&self, spec: &TensorSpec) -> Result<Place<'_>, WeightsError> {
        if let Some(file) = self.owner.get(&spec.name) {
            return Ok(Place {
                file: &self.files[*file],
                name: spec.name.clone(),
                first: 0,
            });
        }
        // Where the experts of a layer are one tensor, `check` has seen it.
        let place = fused_name(&spec.name).and_then(|(name, expert, up)| {
            let file = &self.files[*self.owner.get(&name)?];
            let halves = if name.ends_with("gate_up_proj") { 2 } else { 1 };
            let first = (expert * halves + usize::from(up)) * spec.len();
            Some(Place { file, name, first })
        });
        place.ok_or_else(|| self.missing(&spec.name))
    }
}

impl Source for Shards<'_> {
    fn read(
        &self,
        spec: &TensorSpec,
        rows: Range<usize>,
        out: &mut [f32],
    ) -> Result<(), LoadError> {
        let place = self.place(spec)?;
        let (_, width) = spec.rows();
        let first = place.first + rows.start * width;
        let range = first..first + rows.len() * width;
        Ok(place.file.read(&place.name, range, out)?)
    }

    fn stored(&self, spec: &TensorSpec) -> Result<Option<QuantMatrix>, LoadError> {
        let place = self.place(spec)?;
        let format = match place.file.dtype(&place.name)? {
            Dtype::F32 => return Ok(None),
            Dtype::F16 => Format::F16,
            Dtype::Bf16 => Format::Bf16,
        };
        let (rows, cols) = spec.rows();
        let range = place.first..place.first + spec.len();
        let bytes = place.file.read_stored(&place.name, range)?;
        QuantMatrix::from_stored(self.pool, format, rows, cols, &bytes)
            .map(Some)
            .map_err(|reason| self.unfit(spec, reason.to_string()))
    }

    fn unfit(&self, spec: &TensorSpec, reason: String) -> LoadError {
        match self.place(spec) {
            Ok(place) => place.file.error(&place.name, reason).into(),
            Err(error) => error.into(),
        }
    }
}

/// For `...mlp.experts.E.gate_proj.weight`, the tensor in which transformers 5
/// can hold all experts of the layer, `E`, and whether it is the second half.
fn fused_name(name: &str) -> Option<(String, usize, bool)> {
    let (prefix, rest) = name.split_once(".mlp.experts.")?;
    let (expert, part) = rest.split_once('.')?;
    let (fused, up) = match part {
        "gate_proj.weight" => ("gate_up_proj", false),
        "up_proj.weight" => ("gate_up_proj", true),
        "down_proj.weight" => ("down_proj", false),
        _ => return None,
    };
    let expert = expert.parse().ok()?;
    Some((format!("{prefix}.mlp.experts.{fused}"), expert, up))
}

/// As [`fused_name`], with the shape of that tensor.
fn fused(config: &ModelConfig, spec: &TensorSpec) -> Option<(String, Vec<usize>, bool)> {
    let (name, _, up) = fused_name(&spec.name)?;
    let n = config.moe?.n_routed_experts;
    let (rows, cols) = spec.rows();
    let halves = if name.ends_with("gate_up_proj") { 2 } else { 1 };
    Some((name, vec![n, halves * rows, cols], up))
}

/// Tensors that transformers leaves unread too: tables of old files, the
/// output layer where it is the embedding, DeepSeek's layers that predict
/// further tokens.
fn is_unused(config: &ModelConfig, name: &str) -> bool {
    let further = || {
        let layer = name.strip_prefix("model.layers.")?.split('.').next()?;
        Some(layer.parse::<usize>().ok()? >= config.num_hidden_layers)
    };
    name.ends_with(".rotary_emb.inv_freq")
        || (config.tie_word_embeddings && name == "lm_head.weight")
        || (config.family == Family::DeepSeekV3 && further() == Some(true))
}

/// The file of each tensor, as the index names it.
fn read_index(index: &Path) -> Result<BTreeMap<String, String>, WeightsError> {
    let bad = |reason: String| WeightsError::Format {
        path: index.to_owned(),
        reason,
    };
    let value: serde_json::Value =
        serde_json::from_slice(&read_limited(index, MAX_INDEX_SIZE_BYTES)?)
            .map_err(|e| bad(e.to_string()))?;
    let map = value
        .get("weight_map")
        .and_then(|m| m.as_object())
        .ok_or_else(|| bad("no weight_map".to_owned()))?;
    let mut files = BTreeMap::new();
    for (tensor, file) in map {
        let file = file
            .as_str()
            .filter(|n| !n.contains(['/', '\\', '\0']) && *n != ".." && n.ends_with(".safetensors"))
            .ok_or_else(|| {
                bad(format!(
                    "the file of {tensor:?} is not a safetensors file of the directory"
                ))
            })?;
        files.insert(tensor.clone(), file.to_owned());
    }
    let n_files = files
        .values()
        .collect::<std::collections::BTreeSet<_>>()
        .len();
    if n_files == 0 || n_files > 1000 {
        return Err(bad(format!("names {n_files} files")));
    }
    Ok(files)
}
