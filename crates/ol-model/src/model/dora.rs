//! DoRA: outputs of `W + s B A` rescaled to learnt magnitudes.
//!
//! The norms of the weights count as constants in the backward pass, as in
//! section 4.3 of the paper and in PEFT.

use std::ops::Range;

use crate::kernels::{Mat, Output, math};
use crate::linear::{Linear, Precision};
use crate::lora::Lora;
use crate::pool::{Parts, Pool};

/// Outputs of a task.
const OUTPUT_CHUNK: usize = 64;

/// Norms and gains of one adapted projection.
pub(super) struct Dora {
    /// `||W + s B A||` of each output.
    norms: Vec<f32>,
    /// Magnitude over norm.
    pub(super) gains: Vec<f32>,
}

impl Dora {
    /// Those of block `at` of the adapter, if it has magnitudes; its outputs
    /// begin at `first` of `linear`.
    pub(super) fn new(
        pool: &Pool,
        linear: &Linear,
        first: usize,
        adapter: &Lora,
        at: usize,
    ) -> Option<Self> {
        let block = &adapter.blocks()[at];
        if !block.has_magnitude {
            return None;
        }
        let compute = || weight_norms(pool, linear, first, adapter, at);
        let kept = adapter
            .weight_norms(at)
            .get_or_init(|| (linear.id(), compute()));
        let norms = if kept.0 == linear.id() {
            kept.1.clone()
        } else {
            compute()
        };
        let gains = adapter.magnitudes(at).iter().zip(&norms);
        let gains = gains
            .map(|(m, norm)| if *norm > 0.0 { m / norm } else { 0.0 })
            .collect();
        Some(Self { norms, gains })
    }

    /// Adds the magnitudes' gradient over rows `rows` to `out`: `dy u / norm`,
    /// where `u` is the output before its gain.
    pub(super) fn magnitude_gradient(
        &self,
        pool: &Pool,
        rows: &Range<usize>,
        dy: Mat<'_>,
        u: Mat<'_>,
        out: &mut [f32],
    ) {
        let out = Parts::new(out);
        pool.ranges(self.norms.len(), OUTPUT_CHUNK, &|columns| {
            out.with(columns.clone(), |out| {
                for ((column, out), norm) in columns.clone().zip(out).zip(&self.norms[columns]) {
                    if *norm > 0.0 {
                        for row in rows.clone() {
                            *out += dy.at(row, column) * u.at(row, column) / norm;
                        }
                    }
                }
            });
        });
    }
}

/// `||W + s B A||` of each output of a block.
pub(super) fn weight_norms(
    pool: &Pool,
    linear: &Linear,
    first: usize,
    adapter: &Lora,
    at: usize,
) -> Vec<f32> {
    let block = &adapter.blocks()[at];
    let factors = adapter.factors(at);
    let mut norms = vec![0.0_f32; block.rows_b.0];
    let parts = Parts::new(&mut norms);
    pool.ranges(block.rows_b.0, OUTPUT_CHUNK, &|range| {
        let mut row = vec![0.0_f32; linear.d_in()];
        parts.with(range.clone(), |norms| {
            for (n, norm) in range.zip(norms) {
                linear.row(first + n, &mut row);
                factors.add_to_row(n, &mut row);
                *norm = math::dot(pool.isa(), &row, &row).sqrt();
            }
        });
    });
    norms
}

/// What a layer gives without bias and gain: `x W^T`, to which the inner
/// products are still to be added.
pub(super) fn base_output(
    pool: &Pool,
    linear: &Linear,
    x: &[f32],
    precision: Precision,
) -> Vec<f32> {
    let rows = x.len() / linear.d_in();
    let mut u = vec![0.0_f32; rows * linear.d_out()];
    linear.product_to(pool, x, &Output::new(&mut u, linear.d_out()), precision);
    u
}
