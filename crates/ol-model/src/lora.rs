//! Low-rank adapters (Hu et al., 2021): `y = W x + (alpha / r) B A x`.

mod peft;

pub use peft::{MAX_ADAPTER_SIZE_BYTES, PeftError};

use std::sync::OnceLock;

use ol_types::{B256, keccak256};
use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::config::ModelConfig;
use crate::isa::Isa;
use crate::kernels::{Mat, MatMut, Panels, math, matmul_here};
use crate::random::Random;

/// Largest rank accepted.
pub const MAX_RANK: usize = 256;

/// A linear layer of a block.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Projection {
    /// Queries.
    #[serde(rename = "q_proj")]
    Q,
    /// Keys.
    #[serde(rename = "k_proj")]
    K,
    /// Values.
    #[serde(rename = "v_proj")]
    V,
    /// Attention output.
    #[serde(rename = "o_proj")]
    O,
    /// Gate of the feed-forward layer.
    #[serde(rename = "gate_proj")]
    Gate,
    /// Input of the feed-forward layer.
    #[serde(rename = "up_proj")]
    Up,
    /// Output of the feed-forward layer.
    #[serde(rename = "down_proj")]
    Down,
    /// Compressed queries of latent attention.
    #[serde(rename = "q_a_proj")]
    QA,
    /// Queries from the compressed ones.
    #[serde(rename = "q_b_proj")]
    QB,
    /// Compressed keys and values, and the shared rotated key.
    #[serde(rename = "kv_a_proj_with_mqa")]
    KvA,
    /// Keys and values from the compressed ones.
    #[serde(rename = "kv_b_proj")]
    KvB,
}

impl Projection {
    /// How many there are.
    pub(crate) const COUNT: usize = 11;

    /// Every linear layer of any family, in flat order.
    pub const ALL: [Self; Self::COUNT] = [
        Self::Q,
        Self::K,
        Self::V,
        Self::O,
        Self::Gate,
        Self::Up,
        Self::Down,
        Self::QA,
        Self::QB,
        Self::KvA,
        Self::KvB,
    ];

    /// The linear layers that some block of `model` has: what `all-linear`
    /// adapts. Experts that tokens choose and the router are not among them.
    #[must_use]
    pub fn of(model: &ModelConfig) -> Vec<Self> {
        let has = |p: &Self| (0..model.num_hidden_layers).any(|i| p.shape(model, i).is_some());
        Self::ALL.into_iter().filter(has).collect()
    }

    /// Name in files, as in `q_proj`.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Q => "q_proj",
            Self::K => "k_proj",
            Self::V => "v_proj",
            Self::O => "o_proj",
            Self::Gate => "gate_proj",
            Self::Up => "up_proj",
            Self::Down => "down_proj",
            Self::QA => "q_a_proj",
            Self::QB => "q_b_proj",
            Self::KvA => "kv_a_proj_with_mqa",
            Self::KvB => "kv_b_proj",
        }
    }

    /// The projection of that name.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|p| p.name() == name)
    }

    /// Module that holds it, as in `self_attn`, in a block without experts.
    #[must_use]
    pub const fn module(self) -> &'static str {
        match self {
            Self::Gate | Self::Up | Self::Down => "mlp",
            _ => "self_attn",
        }
    }

    /// Path of the module in block `layer`, as in `self_attn.q_proj`.
    #[must_use]
    pub fn path(self, model: &ModelConfig, layer: usize) -> String {
        let module = match self.module() {
            "mlp" if model.has_experts(layer) => "mlp.shared_experts",
            module => module,
        };
        format!("{module}.{}", self.name())
    }

    /// Output and input width in block `layer`, if it has this projection.
    #[must_use]
    pub fn shape(self, model: &ModelConfig, layer: usize) -> Option<(usize, usize)> {
        let (h, f) = (model.hidden_size, model.feed_forward_size(layer));
        let (q, kv) = (model.query_size(), model.key_value_size());
        let shape = match (self, &model.mla) {
            (Self::O, _) => (h, model.attended_size()),
            (Self::Gate | Self::Up, _) => (f, h),
            (Self::Down, _) => (h, f),
            (Self::Q, None) => (q, h),
            (Self::K | Self::V, None) => (kv, h),
            (Self::Q, Some(mla)) if mla.q_lora_rank.is_none() => (q, h),
            (Self::QA, Some(mla)) => (mla.q_lora_rank?, h),
            (Self::QB, Some(mla)) => (q, mla.q_lora_rank?),
            (Self::KvA, Some(mla)) => (mla.kv_lora_rank + mla.qk_rope_head_dim, h),
            (Self::KvB, Some(mla)) => (
                model.num_attention_heads * (mla.qk_nope_head_dim + mla.v_head_dim),
                mla.kv_lora_rank,
            ),
            _ => return None,
        };
        Some(shape)
    }
}

/// Shape of an adapter. Fields are in alphabetical order, because manifests
/// are hashed as JSON with sorted keys.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct LoraConfig {
    /// The product is scaled by `alpha / rank`.
    pub alpha: f32,
    /// Inner width, 1 to [`MAX_RANK`].
    pub rank: usize,
    /// Layers that are adapted, in every block.
    pub target_modules: Vec<Projection>,
}

impl LoraConfig {
    /// Every linear layer of a block of the dense families, alpha twice the
    /// rank. [`Projection::of`] names those of any model.
    #[must_use]
    pub fn all_linear(rank: usize) -> Self {
        #[expect(clippy::cast_precision_loss, reason = "ranks are small")]
        let alpha = 2.0 * rank as f32;
        Self {
            rank,
            alpha,
            target_modules: Projection::ALL[..7].to_vec(),
        }
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
    #[error("no target module is named")]
    NoTarget,
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

/// Where the two factors of one adapted layer lie in the flat vector: A
/// (`rank x d_in`) at `offset`, then B (`d_out x rank`), both row-major.
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
}

impl LoraBlock {
    /// Inner width.
    #[must_use]
    pub const fn rank(&self) -> usize {
        self.rows_a.0
    }

    /// Elements of the block in the flat vector.
    #[must_use]
    pub fn range(&self) -> std::ops::Range<usize> {
        self.offset..self.range_b().end
    }

    /// Elements of A in the flat vector.
    #[must_use]
    pub fn range_a(&self) -> std::ops::Range<usize> {
        self.offset..self.offset + self.rows_a.0 * self.rows_a.1
    }

    /// Elements of B in the flat vector.
    #[must_use]
    pub fn range_b(&self) -> std::ops::Range<usize> {
        let start = self.range_a().end;
        start..start + self.rows_b.0 * self.rows_b.1
    }
}

/// The factors of one block as right-hand sides of products.
#[derive(Debug, Clone)]
struct Factors {
    a_t: Panels,
    b_t: Panels,
}

#[derive(Debug, Clone)]
struct BackFactors {
    a: Panels,
    b: Panels,
}

/// An adapter for one shape of model.
#[derive(Debug, Clone)]
pub struct Lora {
    config: LoraConfig,
    dims: [usize; 5],
    blocks: Vec<LoraBlock>,
    /// Index into `blocks` by layer and projection.
    index: Vec<[Option<usize>; Projection::COUNT]>,
    params: Vec<f32>,
    factors: Vec<Factors>,
    back: OnceLock<Vec<BackFactors>>,
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

/// Blocks of an adapter in flat order, and the number of parameters.
#[expect(clippy::cast_precision_loss, reason = "ranks are small")]
fn blocks(model: &ModelConfig, config: &LoraConfig) -> (Vec<LoraBlock>, usize) {
    let mut targets = config.target_modules.clone();
    targets.sort_unstable();
    targets.dedup();
    let mut blocks = Vec::new();
    let mut offset = 0;
    for layer in 0..model.num_hidden_layers {
        for &projection in &targets {
            let Some((d_out, d_in)) = projection.shape(model, layer) else {
                continue;
            };
            let block = LoraBlock {
                layer,
                projection,
                module: format!("model.layers.{layer}.{}", projection.path(model, layer)),
                rows_a: (config.rank, d_in),
                rows_b: (d_out, config.rank),
                offset,
                scale: config.alpha / config.rank as f32,
            };
            offset = block.range_b().end;
            blocks.push(block);
        }
    }
    (blocks, offset)
}

impl Lora {
    /// A fresh adapter that changes nothing yet: A uniform in
    /// `±1/sqrt(d_in)`, B zero.
    ///
    /// # Errors
    /// [`LoraError`] when `config` is out of its limits.
    pub fn init(model: &ModelConfig, config: LoraConfig, seed: u64) -> Result<Self, LoraError> {
        check(&config)?;
        let (blocks, n) = blocks(model, &config);
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
        }
        Self::from_parameters(model, config, params)
    }

    /// An adapter from its flat parameters.
    ///
    /// # Errors
    /// [`LoraError`] when `config` is out of its limits or the parameters do not fit it.
    pub fn from_parameters(
        model: &ModelConfig,
        mut config: LoraConfig,
        params: Vec<f32>,
    ) -> Result<Self, LoraError> {
        check(&config)?;
        config.target_modules.sort_unstable();
        config.target_modules.dedup();
        // What no block has is no target, as in PEFT.
        let known = Projection::of(model);
        config.target_modules.retain(|p| known.contains(p));
        check(&config)?;
        let (blocks, expected) = blocks(model, &config);
        let bad = params.iter().filter(|p| !p.is_finite()).count();
        if params.len() != expected || bad > 0 {
            return Err(LoraError::Parameters {
                expected,
                got: params.len(),
                bad,
            });
        }
        let mut index = vec![[None; Projection::COUNT]; model.num_hidden_layers];
        for (i, block) in blocks.iter().enumerate() {
            index[block.layer][block.projection as usize] = Some(i);
        }
        let factors = blocks.iter().map(|b| pack(b, &params)).collect();
        Ok(Self {
            config,
            dims: dims(model),
            blocks,
            index,
            params,
            factors,
            back: OnceLock::new(),
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
        self.params.len()
    }

    /// All parameters in flat order: by layer, then projection, A before B.
    #[must_use]
    pub fn parameters(&self) -> &[f32] {
        &self.params
    }

    /// Replaces all parameters.
    ///
    /// # Errors
    /// [`LoraError::Parameters`] when they are too few, too many or not finite;
    /// the adapter is then unchanged.
    pub fn set_parameters(&mut self, params: &[f32]) -> Result<(), LoraError> {
        let bad = params.iter().filter(|p| !p.is_finite()).count();
        if params.len() != self.params.len() || bad > 0 {
            return Err(LoraError::Parameters {
                expected: self.params.len(),
                got: params.len(),
                bad,
            });
        }
        self.params.copy_from_slice(params);
        self.factors = self.blocks.iter().map(|b| pack(b, &self.params)).collect();
        self.back = OnceLock::new();
        self.hash = OnceLock::new();
        Ok(())
    }

    /// Where each factor lies in the flat vector.
    #[must_use]
    pub fn blocks(&self) -> &[LoraBlock] {
        &self.blocks
    }

    /// Factor of the low-rank products: `alpha / rank`.
    #[must_use]
    #[expect(clippy::cast_precision_loss, reason = "ranks are small")]
    pub fn scale(&self) -> f32 {
        self.config.alpha / self.config.rank as f32
    }

    /// keccak256 of the adapter's content: `openledger-lora/1`, five sizes of the
    /// model (layers, hidden, feed-forward, query, key-value), rank and alpha
    /// (f64) as big-endian 64-bit words, one byte with a bit for each target,
    /// the parameters as little-endian f32 in flat order. Equal adapters have equal hashes
    /// however their files are laid out.
    #[must_use]
    pub fn hash(&self) -> B256 {
        *self.hash.get_or_init(|| {
            let mut bytes = b"openledger-lora/1".to_vec();
            bytes.extend(self.dims.iter().flat_map(|d| (*d as u64).to_be_bytes()));
            bytes.extend((self.config.rank as u64).to_be_bytes());
            bytes.extend(f64::from(self.config.alpha).to_be_bytes());
            bytes.push(
                self.config
                    .target_modules
                    .iter()
                    .fold(0, |set, p| set | 1 << *p as u8),
            );
            bytes.extend(self.params.iter().flat_map(|p| p.to_le_bytes()));
            keccak256(&bytes)
        })
    }

    /// Memory held, in bytes.
    #[must_use]
    pub fn size_bytes(&self) -> usize {
        self.params.len() * size_of::<f32>() * 2
    }

    /// Whether the adapter was made for models of this shape.
    #[must_use]
    pub fn fits(&self, config: &ModelConfig) -> bool {
        self.dims == dims(config)
    }

    pub(crate) fn block(&self, layer: usize, projection: Projection) -> Option<usize> {
        self.index.get(layer).and_then(|l| l[projection as usize])
    }

    /// `z = scale x A^T`, `y += z B^T`; `z` is `rows x rank`.
    pub(crate) fn apply(&self, isa: Isa, block: usize, x: Mat<'_>, z: &mut [f32], y: MatMut<'_>) {
        let (factors, block) = (&self.factors[block], &self.blocks[block]);
        let (rows, rank) = (z.len() / block.rank(), block.rank());
        let out = MatMut::new(z, rows, rank);
        matmul_here(isa, x, factors.a_t.view(), out, false);
        math::scale(isa, z, block.scale);
        let z = Mat::new(z, rows, rank);
        matmul_here(isa, z, factors.b_t.view(), y, true);
    }

    /// A (`rank x d_in`) and B (`d_out x rank`) as right-hand sides.
    pub(crate) fn back(&self, block: usize) -> (&Panels, &Panels) {
        let all = self.back.get_or_init(|| {
            self.blocks
                .iter()
                .map(|b| BackFactors {
                    a: Panels::pack(Mat::new(&self.params[b.range_a()], b.rows_a.0, b.rows_a.1)),
                    b: Panels::pack(Mat::new(&self.params[b.range_b()], b.rows_b.0, b.rows_b.1)),
                })
                .collect()
        });
        (&all[block].a, &all[block].b)
    }
}

fn pack(block: &LoraBlock, params: &[f32]) -> Factors {
    Factors {
        a_t: Panels::pack(Mat::new(&params[block.range_a()], block.rows_a.0, block.rows_a.1).t()),
        b_t: Panels::pack(Mat::new(&params[block.range_b()], block.rows_b.0, block.rows_b.1).t()),
    }
}

fn check(config: &LoraConfig) -> Result<(), LoraError> {
    if config.rank == 0 || config.rank > MAX_RANK {
        return Err(LoraError::Rank(config.rank));
    }
    if !(config.alpha.is_finite() && config.alpha > 0.0) {
        return Err(LoraError::Alpha(config.alpha));
    }
    if config.target_modules.is_empty() {
        return Err(LoraError::NoTarget);
    }
    Ok(())
}

#[cfg(test)]
mod tests;
