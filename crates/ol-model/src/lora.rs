//! Low-rank adapters: `y = W x + s B A x` (LoRA, Hu et al., 2021), with
//! `s = alpha / r` or `alpha / sqrt(r)` (rsLoRA, Kalajdzievski, 2023), and DoRA
//! (Liu et al., 2024): `y = m / ||W + s B A|| (W + s B A) x`, norms by output.

mod peft;
mod projection;
mod store;
mod targets;

pub use peft::{MAX_ADAPTER_SIZE_BYTES, PeftError};
pub use projection::Projection;

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::OnceLock;

use ol_types::{B256, keccak256};
use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::config::ModelConfig;
use crate::isa::Isa;
use crate::kernels::{Factor, Mat, MatMut, Strands};
use crate::random::Random;

use store::Store;
use targets::{blocks, check_alpha, check_rank, scale};

/// Largest rank accepted.
pub const MAX_RANK: usize = 256;

/// Shape of an adapter. Fields are in alphabetical order, because manifests
/// are hashed as JSON with sorted keys; what is at its default is left out.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LoraConfig {
    /// The product is scaled by `alpha / rank`.
    pub alpha: f32,
    /// Another alpha for some modules: a regular expression for the end of
    /// their path, as PEFT's `alpha_pattern`.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub alpha_pattern: BTreeMap<String, f32>,
    /// A regular expression for the whole path of a module, as in
    /// `model\.layers\.[0-3]\..*`; others are not adapted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub module_pattern: Option<String>,
    /// Inner width, 1 to [`MAX_RANK`].
    pub rank: usize,
    /// Another rank for some modules, as PEFT's `rank_pattern`.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub rank_pattern: BTreeMap<String, usize>,
    /// Layers that are adapted, in every block.
    pub target_modules: Vec<Projection>,
    /// Whether each output also has a magnitude (DoRA).
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub use_dora: bool,
    /// Scales by `alpha / sqrt(rank)` instead (rsLoRA).
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub use_rslora: bool,
}

impl Default for LoraConfig {
    /// Every linear layer of a dense block at rank 8, alpha 16.
    fn default() -> Self {
        Self::all_linear(8)
    }
}

impl LoraConfig {
    /// Every linear layer of a block of the dense families, alpha twice the
    /// rank. [`Projection::all_linear`] names those of any model.
    #[must_use]
    pub fn all_linear(rank: usize) -> Self {
        #[expect(clippy::cast_precision_loss, reason = "ranks are small")]
        let alpha = 2.0 * rank as f32;
        Self {
            alpha,
            alpha_pattern: BTreeMap::new(),
            module_pattern: None,
            rank,
            rank_pattern: BTreeMap::new(),
            target_modules: Projection::ALL[..7].to_vec(),
            use_dora: false,
            use_rslora: false,
        }
    }

    /// The parameters that an adapter of this shape has for `model`.
    ///
    /// # Errors
    /// [`LoraError`] when the configuration is out of its limits.
    pub fn n_params(&self, model: &ModelConfig) -> Result<usize, LoraError> {
        self.check()?;
        Ok(blocks(model, self)?.1)
    }

    fn check(&self) -> Result<(), LoraError> {
        check_rank(self.rank)?;
        check_alpha(self.alpha)?;
        if self.target_modules.is_empty() {
            return Err(LoraError::NoTarget);
        }
        Ok(())
    }

    /// Whether `openledger-lora/1` describes it.
    fn is_plain(&self) -> bool {
        self.alpha_pattern.is_empty()
            && self.module_pattern.is_none()
            && self.rank_pattern.is_empty()
            && !self.use_dora
            && !self.use_rslora
            && self.target_modules.iter().all(|p| *p <= Projection::Down)
    }
}

/// Why an adapter cannot be made for a model.
#[derive(Debug, Clone, PartialEq, Error)]
pub enum LoraError {
    /// Rank outside 1 to [`MAX_RANK`].
    #[error("rank {0} is outside 1 to {MAX_RANK}")]
    Rank(usize),
    /// Alpha is not a positive number.
    #[error("alpha {0} is not a positive finite number")]
    Alpha(f32),
    /// No layer is adapted.
    #[error("no target module is named that the model has")]
    NoTarget,
    /// A target that is no linear layer of a block.
    #[error("target module {0:?} is not a linear layer of a block")]
    Target(String),
    /// A pattern that cannot be used.
    #[error("pattern {pattern:?}: {reason}")]
    Pattern {
        /// Its beginning, or the field it stands in.
        pattern: String,
        /// What is wrong.
        reason: String,
    },
    /// DoRA starts from the norms of the base's weights.
    #[error("a fresh DoRA adapter needs the base model, not its shape alone")]
    NeedsBase,
    /// The parameters given are too many, too few, or not finite.
    #[error(
        "the adapter needs {expected} finite parameters; got {got} of which {bad} are not finite"
    )]
    Parameters {
        /// Number needed.
        expected: usize,
        /// Number given.
        got: usize,
        /// Number not finite.
        bad: usize,
    },
}

/// Where the factors of one adapted layer lie in the flat vector: A
/// (`rank x d_in`) at `offset`, then B (`d_out x rank`), both row-major, then
/// with DoRA the magnitudes (`d_out`).
#[derive(Debug, Clone, PartialEq)]
pub struct LoraBlock {
    /// Block of the model.
    pub layer: usize,
    /// Layer in the block.
    pub projection: Projection,
    /// Path of the layer, as in `model.layers.0.self_attn.q_proj`.
    pub module: String,
    /// Shape of A: rank, input width.
    pub rows_a: (usize, usize),
    /// Shape of B: output width, rank.
    pub rows_b: (usize, usize),
    /// First parameter of A.
    pub offset: usize,
    /// Factor of the low-rank product.
    pub scale: f32,
    /// Whether there are magnitudes.
    pub has_magnitude: bool,
}

impl LoraBlock {
    /// Inner width.
    #[must_use]
    pub const fn rank(&self) -> usize {
        self.rows_a.0
    }

    /// Elements of the block in the flat vector.
    #[must_use]
    pub fn range(&self) -> Range<usize> {
        self.offset..self.range_magnitude().end
    }

    /// Elements of A in the flat vector.
    #[must_use]
    pub fn range_a(&self) -> Range<usize> {
        self.offset..self.offset + self.rows_a.0 * self.rows_a.1
    }

    /// Elements of B in the flat vector.
    #[must_use]
    pub fn range_b(&self) -> Range<usize> {
        let start = self.range_a().end;
        start..start + self.rows_b.0 * self.rows_b.1
    }

    /// Magnitudes in the flat vector; empty without DoRA.
    #[must_use]
    pub fn range_magnitude(&self) -> Range<usize> {
        let start = self.range_b().end;
        let n = if self.has_magnitude { self.rows_b.0 } else { 0 };
        start..start + n
    }
}

/// Norms of `W + s B A` by output, and the base weights they belong to.
pub(crate) type WeightNorms = (u64, Vec<f32>);

/// An adapter for one shape of model.
///
/// It holds one copy of its factors, in the type of the file it was read from,
/// laid out for the products of a decoding batch. The flat parameters are made
/// when they are asked for.
#[derive(Debug, Clone)]
pub struct Lora {
    config: LoraConfig,
    /// The model that it was made for.
    model: ModelConfig,
    blocks: Vec<LoraBlock>,
    /// Index into `blocks` by layer and projection.
    index: Vec<[Option<usize>; Projection::COUNT]>,
    n_params: usize,
    store: Store,
    flat: OnceLock<Vec<f32>>,
    /// For each block, of the base first used with.
    weight_norms: Vec<OnceLock<WeightNorms>>,
    hash: OnceLock<B256>,
}

fn dims(c: &ModelConfig) -> [usize; 5] {
    [
        c.num_hidden_layers,
        c.hidden_size,
        c.intermediate_size,
        c.query_size(),
        c.key_value_size(),
    ]
}

impl Lora {
    /// A fresh adapter that changes nothing yet: A uniform in
    /// `±1/sqrt(d_in)`, B zero.
    ///
    /// # Errors
    /// [`LoraError`] when `config` is out of its limits, or for DoRA
    /// ([`crate::Model::fresh_adapter`] makes those).
    pub fn init(model: &ModelConfig, config: LoraConfig, seed: u64) -> Result<Self, LoraError> {
        if config.use_dora {
            return Err(LoraError::NeedsBase);
        }
        Self::init_with(model, config, seed)
    }

    /// As [`Self::init`]; magnitudes are one.
    pub(crate) fn init_with(
        model: &ModelConfig,
        config: LoraConfig,
        seed: u64,
    ) -> Result<Self, LoraError> {
        config.check()?;
        let (blocks, n) = blocks(model, &config)?;
        let mut params = vec![0.0_f32; n];
        let mut random = Random::new(seed);
        for block in &blocks {
            #[expect(clippy::cast_precision_loss, reason = "widths are small")]
            let bound = 1.0 / (block.rows_a.1 as f64).sqrt();
            for value in &mut params[block.range_a()] {
                #[expect(
                    clippy::cast_possible_truncation,
                    reason = "rounding to f32 is what is wanted"
                )]
                let drawn = (bound * (2.0 * random.uniform() - 1.0)) as f32;
                *value = drawn;
            }
            params[block.range_magnitude()].fill(1.0);
        }
        Self::from_parameters(model, config, params)
    }

    /// An adapter from its flat parameters.
    ///
    /// # Errors
    /// [`LoraError`] when `config` is out of its limits or the parameters do not fit it.
    pub fn from_parameters(
        model: &ModelConfig,
        config: LoraConfig,
        params: Vec<f32>,
    ) -> Result<Self, LoraError> {
        Self::with_store(model, config, |blocks, n| {
            check_parameters(&params, n)?;
            Ok(Store::of_parameters(blocks, &params))
        })
    }

    /// An adapter whose factors `store` makes from its blocks and their
    /// parameters' number.
    fn with_store<E: From<LoraError>>(
        model: &ModelConfig,
        mut config: LoraConfig,
        store: impl FnOnce(&[LoraBlock], usize) -> Result<Store, E>,
    ) -> Result<Self, E> {
        config.target_modules.sort_unstable();
        config.target_modules.dedup();
        // What no block has is no target, as in PEFT.
        let known = Projection::of(model);
        config.target_modules.retain(|p| known.contains(p));
        config.check()?;
        let (blocks, n_params) = blocks(model, &config)?;
        let mut index = vec![[None; Projection::COUNT]; model.num_hidden_layers];
        for (i, block) in blocks.iter().enumerate() {
            index[block.layer][block.projection as usize] = Some(i);
        }
        Ok(Self {
            config,
            model: model.clone(),
            weight_norms: vec![OnceLock::new(); blocks.len()],
            store: store(&blocks, n_params)?,
            blocks,
            index,
            n_params,
            flat: OnceLock::new(),
            hash: OnceLock::new(),
        })
    }

    /// Shape of the adapter; its targets are sorted.
    #[must_use]
    pub fn config(&self) -> &LoraConfig {
        &self.config
    }

    /// Number of parameters.
    #[must_use]
    pub fn n_params(&self) -> usize {
        self.n_params
    }

    /// All parameters in flat order: by layer, then projection, A before B. They
    /// are kept from the first call on, beside the factors: who needs them once
    /// takes [`Self::to_parameters`].
    #[must_use]
    pub fn parameters(&self) -> &[f32] {
        self.flat.get_or_init(|| self.to_parameters())
    }

    /// A copy of all parameters in the order of [`Self::parameters`].
    #[must_use]
    pub fn to_parameters(&self) -> Vec<f32> {
        if let Some(flat) = self.flat.get() {
            return flat.clone();
        }
        let mut flat = vec![0.0_f32; self.n_params];
        for (at, block) in self.blocks.iter().enumerate() {
            self.a_t(at).read(&mut flat[block.range_a()]);
            self.b_t(at).read(&mut flat[block.range_b()]);
            flat[block.range_magnitude()].copy_from_slice(self.magnitudes(at));
        }
        flat
    }

    /// Replaces all parameters.
    ///
    /// # Errors
    /// [`LoraError::Parameters`] when they are too few, too many or not finite;
    /// the adapter is then unchanged.
    pub fn set_parameters(&mut self, params: &[f32]) -> Result<(), LoraError> {
        check_parameters(params, self.n_params)?;
        self.store = Store::of_parameters(&self.blocks, params);
        self.flat = OnceLock::new();
        self.weight_norms = vec![OnceLock::new(); self.blocks.len()];
        self.hash = OnceLock::new();
        Ok(())
    }

    /// Where each factor lies in the flat vector.
    #[must_use]
    pub fn blocks(&self) -> &[LoraBlock] {
        &self.blocks
    }

    /// Factor of the low-rank products of modules without a rank or alpha of
    /// their own: `alpha / rank`, or `alpha / sqrt(rank)`.
    #[must_use]
    pub fn scale(&self) -> f32 {
        scale(self.config.alpha, self.config.rank, self.config.use_rslora)
    }

    /// keccak256 of the adapter's content. Equal adapters have equal hashes
    /// however their files are laid out.
    ///
    /// Where one rank, `alpha / rank` and whole projections describe it:
    /// `openledger-lora/1`, five sizes of the model (layers, hidden,
    /// feed-forward, query, key-value), rank and alpha (f64) as big-endian
    /// 64-bit words, one byte with a bit for each target, the parameters as
    /// little-endian f32 in flat order.
    ///
    /// Any other: `openledger-lora/2`, the number of blocks, then for each its
    /// path after its length, rank, input and output width, scale (f64) and
    /// whether there are magnitudes, as words; then the parameters.
    #[must_use]
    pub fn hash(&self) -> B256 {
        *self.hash.get_or_init(|| {
            let mut bytes = Vec::new();
            let word = |n: usize| (n as u64).to_be_bytes();
            if self.config.is_plain() {
                bytes.extend(b"openledger-lora/1");
                bytes.extend(dims(&self.model).into_iter().flat_map(word));
                bytes.extend(word(self.config.rank));
                bytes.extend(f64::from(self.config.alpha).to_be_bytes());
                bytes.push(
                    self.config
                        .target_modules
                        .iter()
                        .fold(0, |set, p| set | 1 << *p as u8),
                );
            } else {
                bytes.extend(b"openledger-lora/2");
                bytes.extend(word(self.blocks.len()));
                for block in &self.blocks {
                    bytes.extend(word(block.module.len()));
                    bytes.extend(block.module.as_bytes());
                    for n in [block.rank(), block.rows_a.1, block.rows_b.0] {
                        bytes.extend(word(n));
                    }
                    bytes.extend(f64::from(block.scale).to_be_bytes());
                    bytes.extend(word(block.has_magnitude.into()));
                }
            }
            bytes.extend(self.to_parameters().iter().flat_map(|p| p.to_le_bytes()));
            keccak256(&bytes)
        })
    }

    /// Memory held now, in bytes: the factors in the type of their file, and
    /// what was made from them and kept.
    #[must_use]
    pub fn resident_size_bytes(&self) -> usize {
        let kept = self
            .flat
            .get()
            .map_or(0, |flat| size_of_val(flat.as_slice()));
        let norms = self.weight_norms.iter().filter_map(OnceLock::get);
        let norms: usize = norms.map(|n| size_of_val(n.1.as_slice())).sum();
        let names: usize = self.blocks.iter().map(|b| b.module.len()).sum();
        size_of::<Self>()
            + self.store.size_bytes()
            + kept
            + norms
            + names
            + size_of_val(self.blocks.as_slice())
            + size_of_val(self.index.as_slice())
            + size_of_val(self.weight_norms.as_slice())
    }

    /// Whether the adapter was made for models of this shape.
    #[must_use]
    pub fn fits(&self, config: &ModelConfig) -> bool {
        self.model == *config
            || dims(&self.model) == dims(config)
                && self.blocks.iter().all(|b| {
                    b.projection.shape(config, b.layer) == Some((b.rows_b.0, b.rows_a.1))
                        && b.module == b.projection.module_path(config, b.layer)
                })
    }

    pub(crate) fn block(&self, layer: usize, projection: Projection) -> Option<usize> {
        self.index.get(layer).and_then(|l| l[projection as usize])
    }

    /// A^T of a block, `d_in x rank`.
    pub(crate) fn a_t(&self, block: usize) -> Factor<'_> {
        self.store.a_t(&self.blocks[block], block)
    }

    /// B^T of a block, `rank x d_out`.
    pub(crate) fn b_t(&self, block: usize) -> Factor<'_> {
        self.store.b_t(&self.blocks[block], block)
    }

    /// `y += z B^T`.
    pub(crate) fn apply_inner(&self, isa: Isa, block: usize, z: Mat<'_>, y: MatMut<'_>) {
        Strands::new(isa, true).push(z, self.b_t(block), 1.0, y);
    }

    /// A and B of a block in f32.
    pub(crate) fn factors(&self, block: usize) -> Factors {
        let LoraBlock { rows_a, rows_b, .. } = self.blocks[block];
        let mut factors = Factors {
            a: vec![0.0; rows_a.0 * rows_a.1],
            b: vec![0.0; rows_b.0 * rows_b.1],
            d_in: rows_a.1,
            scale: self.blocks[block].scale,
        };
        self.a_t(block).read(&mut factors.a);
        self.b_t(block).read(&mut factors.b);
        factors
    }

    /// Magnitudes of a DoRA block; none of another.
    pub(crate) fn magnitudes(&self, block: usize) -> &[f32] {
        self.store.magnitudes(&self.blocks, block)
    }

    /// Where the norms of a block's weights are kept.
    pub(crate) fn weight_norms(&self, block: usize) -> &OnceLock<WeightNorms> {
        &self.weight_norms[block]
    }
}

/// The factors of a block, row-major in f32.
pub(crate) struct Factors {
    /// `rank x d_in`.
    pub(crate) a: Vec<f32>,
    /// `d_out x rank`.
    pub(crate) b: Vec<f32>,
    d_in: usize,
    scale: f32,
}

impl Factors {
    /// Adds output `row` of `s B A` to a row of the base's weights.
    pub(crate) fn add_to_row(&self, row: usize, weights: &mut [f32]) {
        let rank = self.a.len() / self.d_in;
        let b = &self.b[row * rank..(row + 1) * rank];
        for (a, b) in self.a.chunks_exact(self.d_in).zip(b) {
            let factor = b * self.scale;
            for (weight, a) in weights.iter_mut().zip(a) {
                *weight += factor * a;
            }
        }
    }
}

fn check_parameters(params: &[f32], expected: usize) -> Result<(), LoraError> {
    let bad = params.iter().filter(|p| !p.is_finite()).count();
    if params.len() == expected && bad == 0 {
        return Ok(());
    }
    Err(LoraError::Parameters {
        expected,
        got: params.len(),
        bad,
    })
}

#[cfg(test)]
mod tests;
