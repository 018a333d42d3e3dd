//! The Llama architecture: weights, inference and gradients.

mod attention;
mod backward;
mod forward;
mod train;

pub use forward::{ForwardError, Segment};
pub use train::{Labels, Sequence, SequenceGradient};

use std::path::Path;
use std::sync::OnceLock;

use ol_types::{B256, keccak256};
use thiserror::Error;

use crate::config::{ConfigError, ModelConfig};
use crate::kernels::{Mat, Panels};
use crate::layout::{DOWN, GATE, Layout, NORM1, NORM2, O, Q};
use crate::pool::Pool;
use crate::random::Random;
use crate::weights::{Dtype, Tensors, WeightsError, read_limited, serialize, write_atomic};

/// Longest `model.safetensors` accepted.
pub const MAX_MODEL_SIZE_BYTES: u64 = 1 << 36;

const MAX_CONFIG_SIZE_BYTES: u64 = 1 << 20;

/// Why a model directory cannot be loaded.
#[derive(Debug, Error)]
pub enum LoadError {
    /// A file or tensor is wrong.
    #[error(transparent)]
    Weights(#[from] WeightsError),
    /// The configuration is wrong.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// Parameters handed over do not fit the configuration.
    #[error("the model needs {expected} finite parameters, got {got}")]
    Parameters {
        /// Number needed.
        expected: usize,
        /// Number given that are finite.
        got: usize,
    },
}

#[derive(Debug)]
struct Layer {
    norm1: Vec<f32>,
    qkv: Panels,
    o: Panels,
    norm2: Vec<f32>,
    gate_up: Panels,
    down: Panels,
}

/// The matrices as right-hand sides of the backward products.
#[derive(Debug)]
struct BackLayer {
    qkv: Panels,
    o: Panels,
    gate_up: Panels,
    down: Panels,
}

#[derive(Debug)]
struct Back {
    layers: Vec<BackLayer>,
    head: Panels,
}

/// Base weights of a Llama-family model; immutable in use, so share it by `Arc`.
///
/// Weights are held in f32 whatever the file stores.
#[derive(Debug)]
pub struct Model {
    config: ModelConfig,
    layout: Layout,
    /// Absent when it is the output layer.
    embedding: Option<Vec<f32>>,
    layers: Vec<Layer>,
    norm: Vec<f32>,
    head: Panels,
    /// Cosines and sines by position, half a head each.
    rope: (Vec<f32>, Vec<f32>),
    back: OnceLock<Back>,
    hash: OnceLock<B256>,
}

/// Cosines and sines of the rotary embedding by position, angles in f64.
#[expect(
    clippy::cast_precision_loss,
    clippy::cast_possible_truncation,
    reason = "rounding is what is wanted"
)]
fn rope(config: &ModelConfig) -> (Vec<f32>, Vec<f32>) {
    let rates = config.rope.rates(config.rope_theta, config.head_dim);
    let factor = config.rope.attention_factor();
    let angles =
        (0..config.max_position_embeddings).flat_map(|p| rates.iter().map(move |r| p as f64 * r));
    angles
        .map(|a| {
            (
                (factor * libm::cos(a)) as f32,
                (factor * libm::sin(a)) as f32,
            )
        })
        .unzip()
}

impl Model {
    /// Reads `config.json` and `model.safetensors` (one file, or the shards
    /// of `model.safetensors.index.json`) from a Hugging Face directory.
    ///
    /// # Errors
    /// [`LoadError`] that names the file, and the tensor where there is one.
    pub fn load(dir: &Path) -> Result<Self, LoadError> {
        let config = ModelConfig::from_json(&read_limited(
            &dir.join("config.json"),
            MAX_CONFIG_SIZE_BYTES,
        )?)?;
        let files = weight_files(dir)?;
        let layout = Layout::new(&config);
        let mut bytes = Vec::new();
        let mut left_bytes = MAX_MODEL_SIZE_BYTES;
        for path in &files {
            let file = read_limited(path, left_bytes)?;
            left_bytes -= file.len() as u64;
            bytes.push(file);
        }
        let shards = files
            .iter()
            .zip(&bytes)
            .map(|(p, b)| Tensors::parse(p, b))
            .collect::<Result<Vec<_>, _>>()?;
        let owner = |name: &str| {
            shards
                .iter()
                .find(|s| s.view(name).is_ok())
                .unwrap_or(&shards[0])
        };
        // All shapes first: what is allocated is then bounded by the files.
        for spec in layout.tensors() {
            let shard = owner(&spec.name);
            let view = shard.view(&spec.name)?;
            if view.shape() != spec.shape {
                let reason = format!("has shape {:?}, expected {:?}", view.shape(), spec.shape);
                return Err(shard.error(&spec.name, reason).into());
            }
        }
        let mut params = vec![0.0_f32; layout.len()];
        for spec in layout.tensors() {
            owner(&spec.name).read(&spec.name, &spec.shape, &mut params[spec.range()])?;
        }
        drop(shards);
        drop(bytes);
        Self::from_parameters(config, &params)
    }

    /// A model from its flat parameters (order of [`Layout`]).
    ///
    /// # Errors
    /// [`LoadError`] when the configuration is invalid or the parameters do
    /// not fit it or are not finite.
    pub fn from_parameters(config: ModelConfig, params: &[f32]) -> Result<Self, LoadError> {
        config.check()?;
        if !config.is_plain_llama() {
            let kind = format!("model_type {:?}", config.family.model_type());
            return Err(ConfigError::Unsupported(kind).into());
        }
        let layout = Layout::new(&config);
        let finite = params.iter().filter(|p| p.is_finite()).count();
        if params.len() != layout.len() || finite != params.len() {
            return Err(LoadError::Parameters {
                expected: layout.len(),
                got: finite,
            });
        }
        let rope = rope(&config);
        let layers = (0..config.num_hidden_layers)
            .map(|_| Layer {
                norm1: Vec::new(),
                qkv: Panels::default(),
                o: Panels::default(),
                norm2: Vec::new(),
                gate_up: Panels::default(),
                down: Panels::default(),
            })
            .collect();
        let mut model = Self {
            config,
            layout,
            embedding: None,
            layers,
            norm: Vec::new(),
            head: Panels::default(),
            rope,
            back: OnceLock::new(),
            hash: OnceLock::new(),
        };
        model.fill(&Pool::new(1), params);
        Ok(model)
    }

    fn fill(&mut self, pool: &Pool, params: &[f32]) {
        let (c, layout) = (&self.config, &self.layout);
        let (h, q, f) = (c.hidden_size, c.query_size(), c.intermediate_size);
        let qkv = q + 2 * c.key_value_size();
        for (i, layer) in self.layers.iter_mut().enumerate() {
            let part = |first, last| &params[layout.block(i, first, last)];
            layer.norm1 = part(NORM1, NORM1).to_vec();
            layer.norm2 = part(NORM2, NORM2).to_vec();
            layer.qkv.repack(pool, Mat::new(part(Q, Q + 2), qkv, h).t());
            layer.o.repack(pool, Mat::new(part(O, O), h, q).t());
            layer
                .gate_up
                .repack(pool, Mat::new(part(GATE, GATE + 1), 2 * f, h).t());
            layer
                .down
                .repack(pool, Mat::new(part(DOWN, DOWN), h, f).t());
        }
        let n = self.layers.len();
        self.norm = params[layout.final_norm(n)].to_vec();
        self.head
            .repack(pool, Mat::new(&params[layout.head(n)], c.vocab_size, h).t());
        self.embedding = (!c.tie_word_embeddings).then(|| params[layout.embedding()].to_vec());
        self.back = OnceLock::new();
        self.hash = OnceLock::new();
    }

    /// Replaces all parameters (order of [`Layout`]), for training.
    ///
    /// # Errors
    /// [`LoadError::Parameters`] when they do not fit or are not finite; the
    /// model is then unchanged.
    pub fn set_parameters(&mut self, pool: &Pool, params: &[f32]) -> Result<(), LoadError> {
        let finite = params.iter().filter(|p| p.is_finite()).count();
        if params.len() != self.layout.len() || finite != params.len() {
            return Err(LoadError::Parameters {
                expected: self.layout.len(),
                got: finite,
            });
        }
        self.fill(pool, params);
        Ok(())
    }

    /// All parameters in the order of [`Layout`].
    #[must_use]
    pub fn parameters(&self) -> Vec<f32> {
        let layout = &self.layout;
        let n = self.layers.len();
        let mut params = vec![0.0_f32; layout.len()];
        for (i, layer) in self.layers.iter().enumerate() {
            params[layout.block(i, NORM1, NORM1)].copy_from_slice(&layer.norm1);
            params[layout.block(i, NORM2, NORM2)].copy_from_slice(&layer.norm2);
            layer.qkv.unpack_t(&mut params[layout.block(i, Q, Q + 2)]);
            layer.o.unpack_t(&mut params[layout.block(i, O, O)]);
            layer
                .gate_up
                .unpack_t(&mut params[layout.block(i, GATE, GATE + 1)]);
            layer
                .down
                .unpack_t(&mut params[layout.block(i, DOWN, DOWN)]);
        }
        params[layout.final_norm(n)].copy_from_slice(&self.norm);
        if let Some(embedding) = &self.embedding {
            params[layout.embedding()].copy_from_slice(embedding);
        }
        self.head.unpack_t(&mut params[layout.head(n)]);
        params
    }

    /// A model with random weights: normal with deviation 0.02, the layers
    /// that write to the residual stream scaled down by `sqrt(2 layers)`
    /// (Radford et al., 2019), norms one.
    ///
    /// # Errors
    /// [`LoadError::Config`] when the configuration is invalid.
    #[expect(clippy::cast_precision_loss, reason = "layer counts are small")]
    pub fn random(config: ModelConfig, seed: u64) -> Result<Self, LoadError> {
        config.check()?;
        let layout = Layout::new(&config);
        let mut random = Random::new(seed);
        let mut params = vec![1.0_f32; layout.len()];
        let quiet = 1.0 / (2.0 * config.num_hidden_layers as f32).sqrt();
        for spec in layout.tensors().iter().filter(|s| s.shape.len() == 2) {
            let writes = spec.name.contains("o_proj") || spec.name.contains("down_proj");
            let deviation = if writes { 0.02 * quiet } else { 0.02 };
            params[spec.range()].fill_with(|| deviation * random.normal());
        }
        Self::from_parameters(config, &params)
    }

    /// Writes `config.json` and `model.safetensors`.
    ///
    /// # Errors
    /// [`WeightsError::Io`] when a file cannot be written.
    pub fn save(&self, dir: &Path, dtype: Dtype) -> Result<(), WeightsError> {
        let params = self.parameters();
        let tensors: Vec<(&str, &[usize], &[f32])> = self
            .layout
            .tensors()
            .iter()
            .map(|s| (s.name.as_str(), s.shape.as_slice(), &params[s.range()]))
            .collect();
        std::fs::create_dir_all(dir).map_err(|source| WeightsError::Io {
            path: dir.to_owned(),
            source,
        })?;
        let files = [
            ("model.safetensors", serialize(&tensors, dtype)),
            ("config.json", self.config.to_json().into_bytes()),
        ];
        for (name, bytes) in files {
            let path = dir.join(name);
            write_atomic(&path, &bytes).map_err(|source| WeightsError::Io { path, source })?;
        }
        Ok(())
    }

    /// Shape of the model.
    #[must_use]
    pub fn config(&self) -> &ModelConfig {
        &self.config
    }

    /// Cosines and sines of the rotary embedding, `[positions, head_dim / 2]` each.
    #[must_use]
    pub fn rotations(&self) -> (&[f32], &[f32]) {
        (&self.rope.0, &self.rope.1)
    }

    /// Where each tensor lies in the flat parameters.
    #[must_use]
    pub fn layout(&self) -> &Layout {
        &self.layout
    }

    /// keccak256 of the model's content: `openledger-model/1`, the fields of the
    /// configuration as big-endian 64-bit words, its parameters as
    /// little-endian f32 in flat order. What a 16-bit file stores is exact
    /// in f32, so everyone who loads the same files computes the same hash.
    #[must_use]
    pub fn hash(&self) -> B256 {
        *self.hash.get_or_init(|| {
            let mut bytes = Vec::new();
            if self.config.is_plain_llama() {
                bytes.extend(b"openledger-model/1");
                self.config.encode(&mut bytes);
            } else {
                bytes.extend(b"openledger-model/2");
                self.config.encode_any(&mut bytes);
            }
            bytes.extend(self.parameters().iter().flat_map(|p| p.to_le_bytes()));
            keccak256(&bytes)
        })
    }

    /// The backward right-hand sides, packed on first use.
    fn back(&self, pool: &Pool) -> &Back {
        self.back.get_or_init(|| {
            let turn = |panels: &Panels| panels.transposed(pool);
            Back {
                layers: self
                    .layers
                    .iter()
                    .map(|l| BackLayer {
                        qkv: turn(&l.qkv),
                        o: turn(&l.o),
                        gate_up: turn(&l.gate_up),
                        down: turn(&l.down),
                    })
                    .collect(),
                head: turn(&self.head),
            }
        })
    }

    /// Row of the embedding.
    fn embed(&self, token: usize, out: &mut [f32]) {
        if let Some(embedding) = &self.embedding {
            out.copy_from_slice(&embedding[token * out.len()..(token + 1) * out.len()]);
        } else {
            for (k, out) in out.iter_mut().enumerate() {
                *out = self.head.at(k, token);
            }
        }
    }

    /// Rotates every head of `row` to (`sign` 1) or back from (-1) `position`.
    fn rotate(&self, isa: crate::Isa, row: &mut [f32], position: usize, sign: f32) {
        let half = self.config.head_dim / 2;
        let at = position * half..(position + 1) * half;
        for head in row.chunks_exact_mut(self.config.head_dim) {
            crate::kernels::math::rotate(
                isa,
                head,
                &self.rope.0[at.clone()],
                &self.rope.1[at.clone()],
                sign,
            );
        }
    }
}

/// The weight files of a directory: one, or those that the index names.
fn weight_files(dir: &Path) -> Result<Vec<std::path::PathBuf>, WeightsError> {
    let index = dir.join("model.safetensors.index.json");
    if !index.exists() {
        return Ok(vec![dir.join("model.safetensors")]);
    }
    let bad = |reason: String| WeightsError::Format {
        path: index.clone(),
        reason,
    };
    let value: serde_json::Value =
        serde_json::from_slice(&read_limited(&index, 16 << 20)?).map_err(|e| bad(e.to_string()))?;
    let map = value
        .get("weight_map")
        .and_then(|m| m.as_object())
        .ok_or_else(|| bad("no weight_map".to_owned()))?;
    let mut names = std::collections::BTreeSet::new();
    for name in map.values() {
        let name = name
            .as_str()
            .filter(|n| !n.contains(['/', '\\']) && *n != "..");
        names.insert(
            name.ok_or_else(|| bad("a file name in weight_map leaves the directory".to_owned()))?,
        );
    }
    if names.is_empty() || names.len() > 1000 {
        return Err(bad(format!("names {} files", names.len())));
    }
    Ok(names.into_iter().map(|n| dir.join(n)).collect())
}

#[cfg(test)]
mod tests;
