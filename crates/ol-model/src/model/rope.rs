//! Cosines and sines of the rotary embedding, computed as far as they are used.

use std::sync::OnceLock;

use crate::config::ModelConfig;
use crate::isa::Isa;
use crate::kernels::math;

/// Positions computed together.
const CHUNK: usize = 64;

/// The rotary angles of one model. Positions are filled in chunks on first
/// use, so that a model with a context of a million tokens costs what its
/// requests need.
#[derive(Debug)]
pub(crate) struct RopeTable {
    rates: Vec<f64>,
    factor: f64,
    /// For each position of a chunk all cosines, then all sines.
    chunks: Vec<OnceLock<Vec<f32>>>,
}

impl RopeTable {
    /// The table of `config`, empty.
    pub(crate) fn new(config: &ModelConfig) -> Self {
        let n_chunks = config.max_position_embeddings.div_ceil(CHUNK);
        Self {
            rates: config.rope.rates(config.rope_theta, config.head_dim),
            factor: config.rope.attention_factor(),
            chunks: (0..n_chunks).map(|_| OnceLock::new()).collect(),
        }
    }

    /// Cosines and sines at `position`, `dim / 2` each.
    #[expect(
        clippy::cast_precision_loss,
        clippy::cast_possible_truncation,
        reason = "rounding is what is wanted"
    )]
    pub(crate) fn at(&self, position: usize) -> (&[f32], &[f32]) {
        let half = self.rates.len();
        let chunk = self.chunks[position / CHUNK].get_or_init(|| {
            let mut values = Vec::with_capacity(CHUNK * 2 * half);
            for p in position / CHUNK * CHUNK..(position / CHUNK + 1) * CHUNK {
                let angles = || self.rates.iter().map(move |r| p as f64 * r);
                values.extend(angles().map(|a| (self.factor * libm::cos(a)) as f32));
                values.extend(angles().map(|a| (self.factor * libm::sin(a)) as f32));
            }
            values
        });
        chunk[position % CHUNK * 2 * half..][..2 * half].split_at(half)
    }

    /// Rotates every head of `row` to (`sign` 1) or back from (-1) `position`;
    /// the pairs lie half a head apart.
    pub(crate) fn rotate(&self, isa: Isa, row: &mut [f32], position: usize, sign: f32) {
        let (cos, sin) = self.at(position);
        for head in row.chunks_exact_mut(2 * cos.len()) {
            math::rotate(isa, head, cos, sin, sign);
        }
    }
}
