//! From hidden states to queries, keys and values by one product: Llama,
//! Mistral, Qwen.

use super::adapters::{self, Inner, Pass, Target};
use super::rope::RopeTable;
use super::rows::{ROW_CHUNK, norm_gradient};
use crate::config::ModelConfig;
use crate::kernels::math;
use crate::linear::{Linear, Norm};
use crate::lora::Projection;
use crate::pool::Parts;

const QKV: [Projection; 3] = [Projection::Q, Projection::K, Projection::V];

/// Norms of every head of queries and of keys (Qwen 3).
#[derive(Debug)]
pub(super) struct HeadNorms {
    pub(super) query: Norm,
    pub(super) key: Norm,
}

/// Weights of one layer's projections.
#[derive(Debug)]
pub(super) struct Direct {
    /// Queries, keys and values side by side.
    pub(super) qkv: Linear,
    pub(super) norms: Option<HeadNorms>,
}

/// What the forward pass leaves for the backward pass: queries and keys before
/// their norms, and the norms' inverse roots.
#[derive(Debug, Default)]
pub(super) struct SavedDirect {
    raw: Vec<f32>,
    inverse: Vec<f32>,
}

impl Direct {
    /// Width of a row of queries, keys and values.
    fn width(&self) -> usize {
        self.qkv.d_out()
    }

    /// Queries, keys and values of all rows, normed and rotated to
    /// `positions`.
    #[expect(clippy::too_many_arguments, reason = "inputs and what is kept of them")]
    pub(super) fn project(
        &self,
        pass: &Pass<'_>,
        layer: usize,
        rope: &RopeTable,
        x: &[f32],
        positions: &[usize],
        qkv: &mut [f32],
        inner: Option<&mut Inner>,
        saved: Option<&mut SavedDirect>,
    ) {
        adapters::product(pass, layer, &self.qkv, &QKV, x, qkv, inner);
        self.norm_heads(pass, qkv, saved);
        rotate(pass, rope, positions, qkv, 1.0);
    }

    fn norm_heads(&self, pass: &Pass<'_>, qkv: &mut [f32], kept: Option<&mut SavedDirect>) {
        let Some(norms) = &self.norms else { return };
        let (c, isa) = (pass.config, pass.pool.isa());
        let (d, width) = (c.head_dim, self.width());
        let (normed, heads) = (
            c.query_size() + c.key_value_size(),
            c.num_attention_heads + c.num_key_value_heads,
        );
        let rows = qkv.len() / width;
        let keep = kept.is_some();
        let mut unused = SavedDirect::default();
        let SavedDirect { raw, inverse } = kept.unwrap_or(&mut unused);
        if keep {
            raw.resize(rows * normed, 0.0);
            inverse.resize(rows * heads, 0.0);
        }
        let (qkv, raw, inverse) = (Parts::new(qkv), Parts::new(raw), Parts::new(inverse));
        pass.pool.ranges(rows, ROW_CHUNK, &|range| {
            let mut before = vec![0.0_f32; d];
            for row in range {
                qkv.with(row * width..row * width + normed, |out| {
                    if keep {
                        raw.with(row * normed..(row + 1) * normed, |raw| {
                            raw.copy_from_slice(out);
                        });
                    }
                    for (head, out) in out.chunks_exact_mut(d).enumerate() {
                        let weight = norms.of(head, c);
                        before.copy_from_slice(out);
                        let root =
                            math::rms_norm(isa, &before, &weight.weight, c.rms_norm_eps, out);
                        if keep {
                            let at = row * heads + head;
                            inverse.with(at..at + 1, |inverse| inverse[0] = root);
                        }
                    }
                });
            }
        });
    }

    /// Gradients for the gradient `d_qkv` of what [`Self::project`] computed,
    /// which is used up: of the input into `dx` if asked, and what belongs to
    /// the target.
    #[expect(
        clippy::too_many_arguments,
        reason = "inputs, what was kept, and two outputs"
    )]
    pub(super) fn backward(
        &self,
        pass: &Pass<'_>,
        layer: usize,
        rope: &RopeTable,
        positions: &[usize],
        x: &[f32],
        saved: &SavedDirect,
        d_qkv: &mut [f32],
        inner: &Inner,
        dx: Option<&mut [f32]>,
        target: &mut Target<'_>,
    ) {
        rotate(pass, rope, positions, d_qkv, -1.0);
        self.norm_heads_backward(pass, saved, d_qkv, target);
        adapters::backward(pass, layer, &self.qkv, &QKV, x, d_qkv, inner, dx, target);
    }

    /// Turns the gradient of normed queries and keys into that of the raw
    /// ones, in place.
    fn norm_heads_backward(
        &self,
        pass: &Pass<'_>,
        saved: &SavedDirect,
        d_qkv: &mut [f32],
        target: &mut Target<'_>,
    ) {
        let Some(norms) = &self.norms else { return };
        let (c, pool) = (pass.config, pass.pool);
        let (d, width) = (c.head_dim, self.width());
        let (normed, heads) = (
            c.query_size() + c.key_value_size(),
            c.num_attention_heads + c.num_key_value_heads,
        );
        let rows = d_qkv.len() / width;
        let head_of = |row: usize, head: usize| row * normed + head * d;
        if let Target::Full(gradient) = target {
            for (norm, range) in [
                (&norms.query, 0..c.num_attention_heads),
                (&norms.key, c.num_attention_heads..heads),
            ] {
                let pick = |from: &[f32], at: &dyn Fn(usize, usize) -> usize| -> Vec<f32> {
                    let places = (0..rows).flat_map(|r| range.clone().map(move |h| (r, h)));
                    places
                        .flat_map(|(r, h)| from[at(r, h)..at(r, h) + d].iter().copied())
                        .collect()
                };
                let x = pick(&saved.raw, &head_of);
                let dy = pick(d_qkv, &|row, head| row * width + head * d);
                let inverse: Vec<f32> = saved
                    .inverse
                    .chunks_exact(heads)
                    .flat_map(|row| row[range.clone()].iter().copied())
                    .collect();
                norm_gradient(pool, &x, &inverse, &dy, &mut gradient[norm.flat()]);
            }
        }
        let parts = Parts::new(d_qkv);
        pool.ranges(rows, ROW_CHUNK, &|range| {
            let mut dy = vec![0.0_f32; d];
            for row in range {
                parts.with(row * width..row * width + normed, |d_row| {
                    for (head, dx) in d_row.chunks_exact_mut(d).enumerate() {
                        dy.copy_from_slice(dx);
                        dx.fill(0.0);
                        let x = &saved.raw[head_of(row, head)..][..d];
                        let inverse = saved.inverse[row * heads + head];
                        let weight = &norms.of(head, c).weight;
                        math::rms_norm_backward(pool.isa(), x, weight, inverse, &dy, dx);
                    }
                });
            }
        });
    }
}

impl HeadNorms {
    /// The norm of head `head`, counted through queries and keys.
    fn of(&self, head: usize, config: &ModelConfig) -> &Norm {
        if head < config.num_attention_heads {
            &self.query
        } else {
            &self.key
        }
    }
}

/// Rotates queries and keys of all rows to their positions (1) or back (-1).
fn rotate(pass: &Pass<'_>, rope: &RopeTable, positions: &[usize], qkv: &mut [f32], sign: f32) {
    let turned = pass.config.query_size() + pass.config.key_value_size();
    let width = turned + pass.config.key_value_size();
    let parts = Parts::new(qkv);
    pass.pool.ranges(positions.len(), ROW_CHUNK, &|range| {
        for row in range {
            parts.with(row * width..row * width + turned, |row_values| {
                rope.rotate(pass.pool.isa(), row_values, positions[row], sign);
            });
        }
    });
}
