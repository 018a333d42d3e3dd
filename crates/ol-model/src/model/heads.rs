//! Attention with grouped key-value heads: Llama, Mistral, Qwen.

use std::ops::Range;

use super::adapters::{self, Inner, Pass, Target};
use super::attention::{HeadGradient, HeadPanels, Rows, Sight, attend, attend_backward};
use super::rope::RopeTable;
use super::rows::{ROW_CHUNK, norm_gradient};
use crate::cache::KvCache;
use crate::config::ModelConfig;
use crate::kernels::{Output, math};
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

/// Weights of one attention layer.
#[derive(Debug)]
pub(super) struct Heads {
    /// Queries, keys and values side by side.
    pub(super) qkv: Linear,
    pub(super) norms: Option<HeadNorms>,
    pub(super) o: Linear,
}

/// What the forward pass leaves for the backward pass.
#[derive(Debug, Default)]
pub(super) struct SavedHeads {
    /// Queries, keys and values after norm and rotation.
    qkv: Vec<f32>,
    /// Queries and keys before their norms, and the norms' inverse roots.
    raw: Vec<f32>,
    inverse: Vec<f32>,
    /// Input of the output layer.
    attended: Vec<f32>,
}

impl Heads {
    /// Width of a row of queries, keys and values.
    pub(super) fn width(&self) -> usize {
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
        raw: Option<(&mut Vec<f32>, &mut Vec<f32>)>,
    ) {
        adapters::product(pass, layer, &self.qkv, &QKV, x, qkv, inner);
        self.norm_heads(pass, qkv, raw);
        rotate(pass, rope, positions, qkv, 1.0);
    }

    fn norm_heads(
        &self,
        pass: &Pass<'_>,
        qkv: &mut [f32],
        kept: Option<(&mut Vec<f32>, &mut Vec<f32>)>,
    ) {
        let Some(norms) = &self.norms else { return };
        let (c, isa) = (pass.config, pass.pool.isa());
        let (d, width) = (c.head_dim, self.width());
        let (normed, heads) = (
            c.query_size() + c.key_value_size(),
            c.num_attention_heads + c.num_key_value_heads,
        );
        let rows = qkv.len() / width;
        let (mut no_raw, mut no_inverse) = (Vec::new(), Vec::new());
        let (raw, inverse) = match kept {
            Some((raw, inverse)) => {
                raw.resize(rows * normed, 0.0);
                inverse.resize(rows * heads, 0.0);
                (raw, inverse)
            }
            None => (&mut no_raw, &mut no_inverse),
        };
        let keep = !raw.is_empty();
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

    /// Stores keys and values of rows `rows` at positions from `first` on.
    pub(super) fn store(
        &self,
        config: &ModelConfig,
        layer: usize,
        qkv: &[f32],
        rows: &Range<usize>,
        first: usize,
        cache: &mut KvCache,
    ) {
        let (q, kv, width) = (config.query_size(), config.key_value_size(), self.width());
        let rows = qkv[rows.start * width..rows.end * width].chunks_exact(width);
        for (position, row) in (first..).zip(rows) {
            cache.write(layer, position, &row[q..q + kv], &row[q + kv..]);
        }
    }

    /// One head of rows `rows`, whose first is at position `first`, against
    /// the cache.
    #[expect(clippy::too_many_arguments, reason = "one task's coordinates")]
    pub(super) fn attend_cached(
        &self,
        pass: &Pass<'_>,
        layer: usize,
        head: usize,
        qkv: &[f32],
        rows: &Range<usize>,
        first: usize,
        cache: &KvCache,
        attended: &Output<'_>,
    ) {
        let c = pass.config;
        let (d, share) = (c.head_dim, c.num_attention_heads / c.num_key_value_heads);
        let queries = Rows::of(qkv, rows, head * d, d, self.width());
        let sight = Sight::new(c, layer, first);
        let (from, seen) = (sight.from(), first + rows.len());
        let keys = cache.keys(layer, head / share, from..seen);
        let values = cache.values(layer, head / share, from..seen);
        let out = attended.tile(rows.clone(), head * d..(head + 1) * d);
        attend(pass.pool.isa(), &queries, keys, values, from, sight, out);
    }

    /// `out = attention(x)` for whole sequences (`spans` of rows, `positions`
    /// within them); what the backward pass needs is left in `saved`.
    #[expect(clippy::too_many_arguments, reason = "inputs and what is kept of them")]
    pub(super) fn forward(
        &self,
        pass: &Pass<'_>,
        layer: usize,
        rope: &RopeTable,
        spans: &[Range<usize>],
        positions: &[usize],
        x: &[f32],
        saved: &mut SavedHeads,
        inner: &mut Inner,
        out: &mut [f32],
    ) {
        let (c, rows) = (pass.config, positions.len());
        saved.qkv.resize(rows * self.width(), 0.0);
        let raw = Some((&mut saved.raw, &mut saved.inverse));
        let kept = Some(&mut *inner);
        self.project(pass, layer, rope, x, positions, &mut saved.qkv, kept, raw);
        saved.attended.resize(rows * c.query_size(), 0.0);
        self.attend_spans(pass, layer, spans, &saved.qkv, &mut saved.attended);
        let parts = [Projection::O];
        let kept = Some(inner);
        adapters::product(pass, layer, &self.o, &parts, &saved.attended, out, kept);
    }

    fn attend_spans(
        &self,
        pass: &Pass<'_>,
        layer: usize,
        spans: &[Range<usize>],
        qkv: &[f32],
        attended: &mut [f32],
    ) {
        let c = pass.config;
        let (heads, kv_heads, d) = (c.num_attention_heads, c.num_key_value_heads, c.head_dim);
        let (share, width) = (heads / kv_heads, self.width());
        let out = Output::new(attended, c.query_size());
        pass.pool.run(spans.len() * kv_heads, &|task| {
            let (span, group) = (&spans[task / kv_heads], task % kv_heads);
            let of = |head: usize| Rows::of(qkv, span, head * d, d, width);
            let panels = HeadPanels::new(&of(heads + group), &of(heads + kv_heads + group));
            for head in group * share..(group + 1) * share {
                attend(
                    pass.pool.isa(),
                    &of(head),
                    panels.keys.view(),
                    panels.values.view(),
                    0,
                    Sight::new(c, layer, 0),
                    out.tile(span.clone(), head * d..(head + 1) * d),
                );
            }
        });
    }

    /// Gradients for the gradient `d_out` of the output: of the input into
    /// `dx` if asked, and what belongs to the target.
    #[expect(
        clippy::too_many_arguments,
        reason = "inputs, what was kept, and two outputs"
    )]
    pub(super) fn backward(
        &self,
        pass: &Pass<'_>,
        layer: usize,
        rope: &RopeTable,
        spans: &[Range<usize>],
        positions: &[usize],
        x: &[f32],
        saved: &SavedHeads,
        inner: &Inner,
        d_out: &[f32],
        dx: Option<&mut [f32]>,
        target: &mut Target<'_>,
    ) {
        let rows = positions.len();
        let mut d_attended = vec![0.0_f32; rows * pass.config.query_size()];
        let d = Some(d_attended.as_mut_slice());
        let parts = [Projection::O];
        let attended = &saved.attended;
        adapters::backward(
            pass, layer, &self.o, &parts, attended, d_out, inner, d, target,
        );
        let mut d_qkv = vec![0.0_f32; rows * self.width()];
        self.attend_backward_spans(pass, layer, spans, saved, &d_attended, &mut d_qkv);
        drop(d_attended);
        rotate(pass, rope, positions, &mut d_qkv, -1.0);
        self.norm_heads_backward(pass, saved, &mut d_qkv, target);
        adapters::backward(pass, layer, &self.qkv, &QKV, x, &d_qkv, inner, dx, target);
    }

    fn attend_backward_spans(
        &self,
        pass: &Pass<'_>,
        layer: usize,
        spans: &[Range<usize>],
        saved: &SavedHeads,
        d_attended: &[f32],
        d_qkv: &mut [f32],
    ) {
        let c = pass.config;
        let (heads, kv_heads, d, q) = (
            c.num_attention_heads,
            c.num_key_value_heads,
            c.head_dim,
            c.query_size(),
        );
        let (share, width) = (heads / kv_heads, self.width());
        let out = Output::new(d_qkv, width);
        pass.pool.run(spans.len() * kv_heads, &|task| {
            let (span, group) = (&spans[task / kv_heads], task % kv_heads);
            if span.is_empty() {
                return;
            }
            let of = |head: usize| Rows::of(&saved.qkv, span, head * d, d, width);
            let inputs: Vec<HeadGradient<'_>> = (group * share..(group + 1) * share)
                .map(|head| HeadGradient {
                    queries: of(head),
                    out: Rows::of(&saved.attended, span, head * d, d, q),
                    d_out: Rows::of(d_attended, span, head * d, d, q),
                })
                .collect();
            let mut d_queries = vec![Vec::new(); share];
            let (mut d_keys, mut d_values) = (Vec::new(), Vec::new());
            attend_backward(
                pass.pool.isa(),
                &inputs,
                &of(heads + group),
                &of(heads + kv_heads + group),
                Sight::new(c, layer, 0),
                &mut d_queries,
                &mut d_keys,
                &mut d_values,
            );
            let query_heads = d_queries
                .iter()
                .enumerate()
                .map(|(i, g)| (group * share + i, g));
            for (head, gradient) in query_heads.chain([
                (heads + group, &d_keys),
                (heads + kv_heads + group, &d_values),
            ]) {
                let mut tile = out.tile(span.clone(), head * d..(head + 1) * d);
                for (i, row) in gradient.chunks_exact(d).enumerate() {
                    tile.row(i).copy_from_slice(row);
                }
            }
        });
    }

    /// Turns the gradient of normed queries and keys into that of the raw
    /// ones, in place.
    fn norm_heads_backward(
        &self,
        pass: &Pass<'_>,
        saved: &SavedHeads,
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
