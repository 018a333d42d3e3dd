//! Reduction of a LoRA gradient before it is fitted.
//!
//! The map for queries has 68 bytes for each number of a gradient, so for large
//! adapters the wide side of each factor is shortened by a random ±1 projection:
//! the gradient of `A`, `[rank, d_in]`, becomes `[rank, side]`, that of `B`,
//! `[d_out, rank]`, becomes `[side, rank]`. A side that is not longer stays as it
//! is. The signs come from a counter under a seed, so nothing is stored; the
//! order of all sums is fixed.
//!
//! # Source
//! Choe et al., "What is your data worth to GPT?" (LoGra), arXiv:2405.13954,
//! with random signs (Achlioptas, 2003) instead of Gaussians.

use crate::random::word;

/// The widest side that a factor is reduced to.
pub const SIDE_MAX: usize = 4_096;

/// The two factors of one adapted projection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BlockShape {
    /// Rank of the adapter.
    pub rank: usize,
    /// Width of the input: `A` is `[rank, d_in]`.
    pub d_in: usize,
    /// Width of the output: `B` is `[d_out, rank]`.
    pub d_out: usize,
}

/// Reduces flat LoRA gradients: for each block `A`, then `B`.
#[derive(Debug, Clone)]
pub struct Reducer {
    factors: Vec<Factor>,
    input_len: usize,
    output_len: usize,
}

/// One factor: which way it lies, and the signs of its wide side.
#[derive(Debug, Clone)]
struct Factor {
    rank: usize,
    wide: usize,
    is_a: bool,
    signs: Signs,
}

#[derive(Debug, Clone)]
enum Signs {
    /// The wide side is not longer than the reduced one: kept as it is.
    Keep,
    /// `[wide, side]`, each `±1/√side`.
    Table { side: usize, values: Vec<f32> },
}

impl Reducer {
    /// Prepares the reduction of gradients of `blocks` to `side` numbers per
    /// rank and factor.
    ///
    /// # Panics
    /// If `side` is not in `1..=4096`; that is a bug in the caller.
    #[must_use]
    pub fn new(blocks: &[BlockShape], side: usize, seed: u64) -> Self {
        assert!((1..=SIDE_MAX).contains(&side), "a side of {side}");
        let mut factors = Vec::with_capacity(2 * blocks.len());
        for block in blocks {
            for (wide, is_a) in [(block.d_in, true), (block.d_out, false)] {
                let stream = u64::try_from(factors.len()).expect("a length fits 64 bits");
                factors.push(Factor {
                    rank: block.rank,
                    wide,
                    is_a,
                    signs: Signs::new(wide, side, seed, stream),
                });
            }
        }
        Self {
            input_len: factors.iter().map(|f| f.rank * f.wide).sum(),
            output_len: factors.iter().map(|f| f.rank * f.signs.side(f.wide)).sum(),
            factors,
        }
    }

    /// Numbers of a gradient.
    #[must_use]
    pub const fn input_len(&self) -> usize {
        self.input_len
    }

    /// Numbers of a reduced gradient.
    #[must_use]
    pub const fn output_len(&self) -> usize {
        self.output_len
    }

    /// The shapes of the blocks of reduced gradients.
    #[must_use]
    pub fn reduced_blocks(&self) -> Vec<BlockShape> {
        let pairs = self.factors.as_chunks::<2>().0.iter();
        pairs
            .map(|[a, b]| BlockShape {
                rank: a.rank,
                d_in: a.signs.side(a.wide),
                d_out: b.signs.side(b.wide),
            })
            .collect()
    }

    /// Reduces one gradient.
    ///
    /// # Panics
    /// If the gradient does not have [`Self::input_len`] numbers; that is a bug
    /// in the caller.
    #[must_use]
    pub fn reduce(&self, gradient: &[f32]) -> Vec<f32> {
        assert_eq!(gradient.len(), self.input_len, "a gradient of the blocks");
        let mut reduced = Vec::with_capacity(self.output_len);
        let mut rest = gradient;
        for factor in &self.factors {
            let (values, after) = rest.split_at(factor.rank * factor.wide);
            rest = after;
            factor.reduce(values, &mut reduced);
        }
        reduced
    }
}

impl Factor {
    fn reduce(&self, values: &[f32], reduced: &mut Vec<f32>) {
        let Signs::Table {
            side,
            values: signs,
        } = &self.signs
        else {
            reduced.extend_from_slice(values);
            return;
        };
        let start = reduced.len();
        reduced.resize(start + self.rank * side, 0.0);
        let out = &mut reduced[start..];
        if self.is_a {
            // [rank, wide] · [wide, side]
            for (row, sums) in values
                .chunks_exact(self.wide)
                .zip(out.chunks_exact_mut(*side))
            {
                for (&x, sign_row) in row.iter().zip(signs.chunks_exact(*side)) {
                    for (sum, &sign) in sums.iter_mut().zip(sign_row) {
                        *sum += x * sign;
                    }
                }
            }
        } else {
            // [wide, side]ᵀ · [wide, rank]
            for (row, sign_row) in values
                .chunks_exact(self.rank)
                .zip(signs.chunks_exact(*side))
            {
                for (sums, &sign) in out.chunks_exact_mut(self.rank).zip(sign_row) {
                    for (sum, &x) in sums.iter_mut().zip(row) {
                        *sum += x * sign;
                    }
                }
            }
        }
    }
}

impl Signs {
    fn new(wide: usize, side: usize, seed: u64, stream: u64) -> Self {
        if wide <= side {
            return Self::Keep;
        }
        let side_u16 = u16::try_from(side).expect("a side is at most 4096");
        let size = 1.0 / f32::from(side_u16).sqrt();
        let mut values = Vec::with_capacity(wide * side);
        let mut words = (0_u64..).map(|counter| word(seed, stream, counter));
        for _ in 0..wide {
            let mut left = side;
            for bits in words.by_ref().take(side.div_ceil(64)) {
                let sign = |bit| if bits >> bit & 1 == 0 { size } else { -size };
                values.extend((0..left.min(64)).map(sign));
                left = left.saturating_sub(64);
            }
        }
        Self::Table { side, values }
    }

    const fn side(&self, wide: usize) -> usize {
        match self {
            Self::Keep => wide,
            Self::Table { side, .. } => *side,
        }
    }
}

#[cfg(test)]
mod tests;
