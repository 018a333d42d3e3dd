//! The model: weights, inference and gradients.

mod adapters;
mod attention;
mod block;
mod build;
mod direct;
mod dora;
mod forward;
mod gguf;
mod heads;
mod load;
mod merge;
mod mla;
mod mlp;
mod moe;
mod rope;
mod rows;
mod train;

pub use forward::{ForwardError, Segment};
pub use load::MAX_MODEL_SIZE_BYTES;
pub use train::{GradientOptions, Labels, Sequence, SequenceGradient};

use std::path::Path;
use std::sync::OnceLock;

use ol_types::{B256, Keccak256};
use thiserror::Error;

use crate::config::{ConfigError, ModelConfig};
use crate::gguf::GgufError;
use crate::layout::{Layout, TensorSpec};
use crate::linear::{Linear, Norm};
use crate::pool::Pool;
use crate::random::Random;
use crate::weights::{Dtype, WeightsError, write_atomic, write_rows};

use block::Block;
use build::{Builder, Flat};
use rope::RopeTable;

/// Why a model directory cannot be loaded.
#[derive(Debug, Error)]
pub enum LoadError {
    /// A file or tensor is wrong.
    #[error(transparent)]
    Weights(#[from] WeightsError),
    /// The configuration is wrong.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// A GGUF file is wrong.
    #[error(transparent)]
    Gguf(#[from] GgufError),
    /// Parameters handed over do not fit the configuration.
    #[error("the model needs {expected} finite parameters, got {got}")]
    Parameters {
        /// Number needed.
        expected: usize,
        /// Number given that are finite.
        got: usize,
    },
}

/// Base weights of a model; immutable in use, so share it by `Arc`.
///
/// All arithmetic is f32 whatever the weights are stored as.
#[derive(Debug)]
pub struct Model {
    config: ModelConfig,
    layout: Layout,
    /// Absent when it is the output layer.
    embedding: Option<Linear>,
    blocks: Vec<Block>,
    norm: Norm,
    head: Linear,
    rope: RopeTable,
    hash: OnceLock<B256>,
}

/// Where the values of a tensor are.
enum Piece<'a> {
    Matrix(&'a Linear),
    Vector(&'a [f32]),
}

impl Model {
    /// A model from its flat parameters (order of [`Layout`]).
    ///
    /// # Errors
    /// [`LoadError`] when the configuration is invalid or the parameters do
    /// not fit it or are not finite.
    pub fn from_parameters(config: ModelConfig, params: &[f32]) -> Result<Self, LoadError> {
        config.check()?;
        let layout = Layout::new(&config);
        check_parameters(&layout, params)?;
        Builder::new(&config, &layout, &Flat(params), &Pool::new(1)).model()
    }

    /// Replaces all parameters (order of [`Layout`]), for training.
    ///
    /// # Errors
    /// [`LoadError::Parameters`] when they do not fit or are not finite, or
    /// the model is not held in f32; it is then unchanged.
    pub fn set_parameters(&mut self, pool: &Pool, params: &[f32]) -> Result<(), LoadError> {
        check_parameters(&self.layout, params)?;
        if !self.linears().iter().all(|l| l.is_dense()) {
            return Err(LoadError::Parameters {
                expected: 0,
                got: params.len(),
            });
        }
        for linear in self.linears_mut() {
            linear.refill(pool, params);
        }
        for norm in self.norms_mut() {
            let range = norm.flat();
            norm.weight.copy_from_slice(&params[range]);
        }
        self.hash = OnceLock::new();
        Ok(())
    }

    /// All parameters in the order of [`Layout`].
    #[must_use]
    pub fn parameters(&self) -> Vec<f32> {
        let mut params = vec![0.0_f32; self.layout.len()];
        for (spec, piece) in self.pieces() {
            let (_, width) = spec.rows();
            for (row, out) in params[spec.range()].chunks_exact_mut(width).enumerate() {
                piece.row(spec, row, out);
            }
        }
        params
    }

    /// A model with random weights: normal with deviation 0.02, the layers
    /// that write to the residual stream scaled down by `sqrt(2 layers)`
    /// (Radford et al., 2019), norms one, biases zero.
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
        for spec in layout.tensors() {
            let values = &mut params[spec.range()];
            if spec.shape.len() == 2 {
                let writes = spec.name.contains("o_proj") || spec.name.contains("down_proj");
                let deviation = if writes { 0.02 * quiet } else { 0.02 };
                values.fill_with(|| deviation * random.normal());
            } else if spec.name.ends_with("bias") {
                values.fill(0.0);
            }
        }
        Self::from_parameters(config, &params)
    }

    /// Writes `config.json` and `model.safetensors`, row by row.
    ///
    /// # Errors
    /// [`WeightsError::Io`] when a file cannot be written,
    /// [`WeightsError::Tensor`] when a weight is too large for `dtype`.
    pub fn save(&self, dir: &Path, dtype: Dtype) -> Result<(), WeightsError> {
        self.save_weights(dir, dtype)?;
        let path = dir.join("config.json");
        write_atomic(&path, self.config.to_json().as_bytes())
            .map_err(|source| WeightsError::Io { path, source })
    }

    /// Writes `model.safetensors` alone: for a directory whose other files
    /// come from the model it was made of.
    ///
    /// # Errors
    /// As [`Self::save`].
    pub fn save_weights(&self, dir: &Path, dtype: Dtype) -> Result<(), WeightsError> {
        std::fs::create_dir_all(dir).map_err(|source| WeightsError::Io {
            path: dir.to_owned(),
            source,
        })?;
        let pieces: std::collections::HashMap<&str, _> = self
            .pieces()
            .into_iter()
            .map(|(spec, piece)| (spec.name.as_str(), (spec, piece)))
            .collect();
        let tensors: Vec<(&str, &[usize])> = self
            .layout
            .tensors()
            .iter()
            .map(|s| (s.name.as_str(), s.shape.as_slice()))
            .collect();
        write_rows(
            &dir.join("model.safetensors"),
            &tensors,
            dtype,
            |name, row, out| {
                let (spec, piece) = &pieces[name];
                piece.row(spec, row, out);
            },
        )
    }

    /// Shape of the model.
    #[must_use]
    pub fn config(&self) -> &ModelConfig {
        &self.config
    }

    /// Cosines and sines of the rotary embedding, `[positions, head_dim / 2]` each.
    #[must_use]
    pub fn rotations(&self) -> (Vec<f32>, Vec<f32>) {
        let (mut cosines, mut sines) = (Vec::new(), Vec::new());
        for position in 0..self.config.max_position_embeddings {
            let (cos, sin) = self.rope.at(position);
            cosines.extend(cos);
            sines.extend(sin);
        }
        (cosines, sines)
    }

    /// Where each tensor lies in the flat parameters.
    #[must_use]
    pub fn layout(&self) -> &Layout {
        &self.layout
    }

    /// Every tensor, in the order of [`Layout`].
    #[must_use]
    pub fn tensors(&self) -> Vec<StoredTensor<'_>> {
        let pieces = self.pieces().into_iter();
        pieces
            .map(|(spec, piece)| StoredTensor { spec, piece })
            .collect()
    }

    /// Memory of the weights in bytes. The first backward pass of a model below
    /// 256 MiB keeps its matrices once more, turned.
    #[must_use]
    pub fn size_bytes(&self) -> usize {
        let vectors: usize = self.norms().iter().map(|n| n.weight.len() * 4).sum();
        vectors + self.linears().iter().map(|l| l.size_bytes()).sum::<usize>()
    }

    /// keccak256 of the model's content.
    ///
    /// A plain Llama held in f32: `openledger-model/1`, the fields of the
    /// configuration as big-endian 64-bit words, its parameters as
    /// little-endian f32 in flat order. What a 16-bit file stores is exact
    /// in f32, so everyone who loads the same files computes the same hash.
    ///
    /// Any other: `openledger-model/2`, the configuration, then for each tensor
    /// in flat order its name and the name of its format, each with its length
    /// before it, its shape after the number of its dimensions, and its bytes
    /// as stored.
    #[must_use]
    pub fn hash(&self) -> B256 {
        *self.hash.get_or_init(|| {
            let mut hasher = Keccak256::new();
            let plain = self.config.is_plain_llama() && self.linears().iter().all(|l| l.is_dense());
            let mut bytes = Vec::new();
            if plain {
                bytes.extend(b"openledger-model/1");
                self.config.encode(&mut bytes);
            } else {
                bytes.extend(b"openledger-model/2");
                self.config.encode_any(&mut bytes);
            }
            for (spec, piece) in self.pieces() {
                if !plain {
                    let words = |words: &[usize], out: &mut Vec<u8>| {
                        out.extend(words.iter().flat_map(|w| (*w as u64).to_be_bytes()));
                    };
                    for name in [spec.name.as_str(), piece.format_name(spec)] {
                        words(&[name.len()], &mut bytes);
                        bytes.extend(name.as_bytes());
                    }
                    words(&[spec.shape.len()], &mut bytes);
                    words(&spec.shape, &mut bytes);
                }
                let (rows, _) = spec.rows();
                for row in 0..rows {
                    piece.stored_row(spec, row, &mut bytes);
                    if bytes.len() > 1 << 20 {
                        hasher.update(&bytes);
                        bytes.clear();
                    }
                }
            }
            hasher.update(&bytes);
            hasher.finalize()
        })
    }

    /// The embedding; the output layer if they are tied.
    fn embedding(&self) -> &Linear {
        self.embedding.as_ref().unwrap_or(&self.head)
    }

    /// Row of the embedding.
    fn embed(&self, token: usize, out: &mut [f32]) {
        self.embedding().row(token, out);
    }

    fn linears(&self) -> Vec<&Linear> {
        let mut all: Vec<&Linear> = self.embedding.iter().collect();
        all.extend(self.blocks.iter().flat_map(Block::linears));
        all.push(&self.head);
        all
    }

    fn linears_mut(&mut self) -> Vec<&mut Linear> {
        let mut all: Vec<&mut Linear> = self.embedding.iter_mut().collect();
        all.extend(self.blocks.iter_mut().flat_map(Block::linears_mut));
        all.push(&mut self.head);
        all
    }

    fn norms(&self) -> Vec<&Norm> {
        let mut all: Vec<&Norm> = self.blocks.iter().flat_map(Block::norms).collect();
        all.push(&self.norm);
        all
    }

    fn norms_mut(&mut self) -> Vec<&mut Norm> {
        let mut all: Vec<&mut Norm> = self.blocks.iter_mut().flat_map(Block::norms_mut).collect();
        all.push(&mut self.norm);
        all
    }

    /// Every tensor of the layout and where its values are.
    fn pieces(&self) -> Vec<(&TensorSpec, Piece<'_>)> {
        let mut at = std::collections::BTreeMap::new();
        for linear in self.linears() {
            at.insert(linear.flat().start, Piece::Matrix(linear));
            if let (Some(range), Some(bias)) = (linear.flat_bias(), linear.bias()) {
                at.insert(range.start, Piece::Vector(bias));
            }
        }
        for norm in self.norms() {
            at.insert(norm.flat, Piece::Vector(&norm.weight));
        }
        let piece = |spec: &TensorSpec| {
            let (start, piece) = at
                .range(..=spec.offset)
                .next_back()
                .expect("the embedding comes first, and what it is tied to has its place");
            match piece {
                Piece::Matrix(linear) => Piece::Matrix(linear),
                Piece::Vector(values) => {
                    let first = spec.offset - start;
                    Piece::Vector(&values[first..first + spec.len()])
                }
            }
        };
        self.layout
            .tensors()
            .iter()
            .map(|spec| (spec, piece(spec)))
            .collect()
    }
}

/// A tensor of a model as it is stored.
pub struct StoredTensor<'a> {
    spec: &'a TensorSpec,
    piece: Piece<'a>,
}

impl std::fmt::Debug for StoredTensor<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("StoredTensor").field(self.spec).finish()
    }
}

impl StoredTensor<'_> {
    /// Its name and shape.
    #[must_use]
    pub const fn spec(&self) -> &TensorSpec {
        self.spec
    }

    /// Its rows and their width; a vector is one row.
    #[must_use]
    pub fn shape(&self) -> (usize, usize) {
        self.spec.rows()
    }

    /// How it is stored; `None` for f32.
    #[must_use]
    pub fn format(&self) -> Option<crate::Format> {
        crate::Format::from_name(self.piece.format_name(self.spec))
    }

    /// Writes row `row` as f32.
    ///
    /// # Panics
    /// If there is no such row or `out` is not one row long.
    pub fn row(&self, row: usize, out: &mut [f32]) {
        self.piece.row(self.spec, row, out);
    }

    /// Appends the bytes of row `row` as [`crate::QuantMatrix::stored_row`]
    /// gives them; little-endian f32 where it is not quantised.
    ///
    /// # Panics
    /// If there is no such row.
    pub fn stored_row(&self, row: usize, out: &mut Vec<u8>) {
        self.piece.stored_row(self.spec, row, out);
    }
}

impl Piece<'_> {
    fn row(&self, spec: &TensorSpec, row: usize, out: &mut [f32]) {
        match self {
            Self::Matrix(linear) => linear.row(first_row(linear, spec) + row, out),
            Self::Vector(values) => out.copy_from_slice(values),
        }
    }

    fn stored_row(&self, spec: &TensorSpec, row: usize, out: &mut Vec<u8>) {
        match self {
            Self::Matrix(linear) => linear.stored_row(first_row(linear, spec) + row, out),
            Self::Vector(values) => out.extend(values.iter().flat_map(|v| v.to_le_bytes())),
        }
    }

    fn format_name(&self, spec: &TensorSpec) -> &'static str {
        match self {
            Self::Matrix(linear) => linear.format_name(first_row(linear, spec)),
            Self::Vector(_) => "F32",
        }
    }
}

/// Output of `linear` that the tensor begins with.
fn first_row(linear: &Linear, spec: &TensorSpec) -> usize {
    (spec.offset - linear.flat().start) / linear.d_in()
}

fn check_parameters(layout: &Layout, params: &[f32]) -> Result<(), LoadError> {
    let finite = params.iter().filter(|p| p.is_finite()).count();
    if params.len() == layout.len() && finite == params.len() {
        return Ok(());
    }
    Err(LoadError::Parameters {
        expected: layout.len(),
        got: finite,
    })
}

#[cfg(test)]
mod tests;
