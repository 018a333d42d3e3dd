//! The backward pass, block by block.

use std::ops::Range;

use super::Model;
use super::attention::{HeadGradient, Rows, Sight, attend_backward};
use super::forward::{ROW_CHUNK, activate, columns};
use super::train::{Batch, Saved};
use crate::kernels::{Mat, MatMut, Output, Panels, math, matmul, matmul_here};
use crate::layout::{DOWN, GATE, NORM1, NORM2, O, Q};
use crate::lora::{Lora, Projection};
use crate::pool::{Parts, Pool};

/// What is differentiated.
pub(super) enum Target<'a> {
    /// The adapter; each group of rows has its own gradient.
    Lora {
        adapter: &'a Lora,
        groups: Vec<(Range<usize>, &'a mut [f32])>,
    },
    /// Every base parameter.
    Full(&'a mut [f32]),
}

impl Model {
    /// Carries `dx`, the gradient of the residual stream after the last block,
    /// back to the embedding and adds what belongs to the target.
    pub(super) fn backward(
        &self,
        pool: &Pool,
        batch: &Batch,
        mut saved: Vec<Saved>,
        mut dx: Vec<f32>,
        target: &mut Target<'_>,
    ) {
        let c = &self.config;
        let (h, f, q, kv) = (
            c.hidden_size,
            c.intermediate_size,
            c.query_size(),
            c.key_value_size(),
        );
        let width = q + 2 * kv;
        let rows = batch.tokens.len();
        let back = self.back(pool);
        let mut normed = vec![0.0_f32; rows * h];
        let mut d_normed = vec![0.0_f32; rows * h];
        let mut act = vec![0.0_f32; rows * f];
        let mut d_act = vec![0.0_f32; rows * f];
        let mut d_attended = vec![0.0_f32; rows * q];
        let mut d_qkv = vec![0.0_f32; rows * width];
        for (i, layer) in self.layers.iter().enumerate().rev() {
            let Some(mut s) = saved.pop() else { return };
            let back = &back.layers[i];
            // Feed-forward.
            activate(pool, &s.gate_up, f, &mut act);
            turn(pool, &dx, h, &back.down, &mut d_act, f);
            self.weigh(
                pool,
                i,
                &[Projection::Down],
                (DOWN, DOWN),
                &act,
                &dx,
                &s.z,
                &mut d_act,
                target,
            );
            activate_backward(pool, &mut s.gate_up, f, &d_act);
            let d_gate_up = std::mem::take(&mut s.gate_up);
            self.norm_again(pool, &s.middle, &layer.norm2, &s.inverse2, &mut normed);
            turn(pool, &d_gate_up, 2 * f, &back.gate_up, &mut d_normed, h);
            let parts = [Projection::Gate, Projection::Up];
            self.weigh(
                pool,
                i,
                &parts,
                (GATE, GATE + 1),
                &normed,
                &d_gate_up,
                &s.z,
                &mut d_normed,
                target,
            );
            if let Target::Full(gradient) = target {
                let d_norm = &mut gradient[self.layout.block(i, NORM2, NORM2)];
                norm_gradient(pool, &s.middle, &s.inverse2, &d_normed, d_norm);
            }
            norm_backward(
                pool,
                &s.middle,
                &layer.norm2,
                &s.inverse2,
                &d_normed,
                &mut dx,
            );
            // Attention.
            turn(pool, &dx, h, &back.o, &mut d_attended, q);
            self.weigh(
                pool,
                i,
                &[Projection::O],
                (O, O),
                &s.attended,
                &dx,
                &s.z,
                &mut d_attended,
                target,
            );
            self.attend_backward_batch(pool, i, batch, &s, &d_attended, &mut d_qkv);
            self.rotate_rows(pool, batch, &mut d_qkv, -1.0);
            self.norm_again(pool, &s.x, &layer.norm1, &s.inverse1, &mut normed);
            let parts = [Projection::Q, Projection::K, Projection::V];
            let last = i == 0 && matches!(target, Target::Lora { .. });
            if !last {
                turn(pool, &d_qkv, width, &back.qkv, &mut d_normed, h);
            }
            self.weigh(
                pool,
                i,
                &parts,
                (Q, Q + 2),
                &normed,
                &d_qkv,
                &s.z,
                &mut d_normed,
                target,
            );
            if last {
                // Nothing below the first block is trained.
                return;
            }
            if let Target::Full(gradient) = target {
                let d_norm = &mut gradient[self.layout.block(i, NORM1, NORM1)];
                norm_gradient(pool, &s.x, &s.inverse1, &d_normed, d_norm);
            }
            norm_backward(pool, &s.x, &layer.norm1, &s.inverse1, &d_normed, &mut dx);
        }
        if let Target::Full(gradient) = target {
            let embedding = &mut gradient[self.layout.embedding()];
            for (dx, &token) in dx.chunks_exact(h).zip(&batch.tokens) {
                math::add(
                    pool.isa(),
                    &mut embedding[token as usize * h..(token as usize + 1) * h],
                    dx,
                );
            }
        }
    }

    /// Gradients of the weights of one fused product `y = x W`: the base
    /// weights' from `x` and `dy`, or the adapters', which also add to `dx`.
    #[expect(
        clippy::too_many_arguments,
        reason = "one call a product, all of it needed"
    )]
    fn weigh(
        &self,
        pool: &Pool,
        layer: usize,
        parts: &[Projection],
        tensors: (usize, usize),
        x: &[f32],
        dy: &[f32],
        z: &[Vec<f32>; 7],
        dx: &mut [f32],
        target: &mut Target<'_>,
    ) {
        let columns = columns(&self.config, parts);
        let d_in = parts[0].shape(&self.config).1;
        let d_out = columns.last().map_or(0, |(_, c)| c.end);
        let rows = x.len() / d_in;
        let mut x_panels = Panels::default();
        x_panels.repack(pool, Mat::new(x, rows, d_in));
        let (adapter, groups) = match target {
            Target::Full(gradient) => {
                let d_w = &mut gradient[self.layout.block(layer, tensors.0, tensors.1)];
                matmul(
                    pool,
                    Mat::new(dy, rows, d_out).t(),
                    x_panels.view(),
                    MatMut::new(d_w, d_out, d_in),
                    true,
                );
                return;
            }
            Target::Lora { adapter, groups } => (*adapter, groups),
        };
        let rank = adapter.config().rank;
        let mut dz = vec![0.0_f32; rows * rank];
        for (projection, columns) in columns {
            let Some(block) = adapter.block(layer, projection) else {
                continue;
            };
            let (a, b) = adapter.back(block);
            let dy = Mat::strided(
                &dy[columns.start.min(dy.len())..],
                rows,
                columns.len(),
                d_out,
            );
            matmul(pool, dy, b.view(), MatMut::new(&mut dz, rows, rank), false);
            math::scale(pool.isa(), &mut dz, adapter.scale());
            matmul(
                pool,
                Mat::new(&dz, rows, rank),
                a.view(),
                MatMut::new(dx, rows, d_in),
                true,
            );
            let z_panels = Panels::pack(Mat::new(&z[projection as usize], rows, rank));
            let spec = &adapter.blocks()[block];
            let one = groups.len() == 1;
            let jobs: Vec<(Range<usize>, Parts<'_, f32>)> = groups
                .iter_mut()
                .map(|(rows, g)| {
                    (
                        rows.clone(),
                        Parts::new(&mut g[spec.offset..spec.range_b().end]),
                    )
                })
                .collect();
            let split = spec.range_a().len();
            let whole = split + spec.range_b().len();
            pool.run(jobs.len() * usize::from(!one), &|i| {
                let (range, gradient) = &jobs[i];
                let (dz, dy) = (Mat::new(&dz, rows, rank).rows(range), dy.rows(range));
                gradient.with(0..whole, |g| {
                    let (d_a, d_b) = g.split_at_mut(split);
                    let d_a = MatMut::new(d_a, rank, d_in);
                    matmul_here(
                        pool.isa(),
                        dz.t(),
                        x_panels.view().rows(range.clone()),
                        d_a,
                        true,
                    );
                    let d_b = MatMut::new(d_b, columns.len(), rank);
                    matmul_here(
                        pool.isa(),
                        dy.t(),
                        z_panels.view().rows(range.clone()),
                        d_b,
                        true,
                    );
                });
            });
            if one {
                let (range, gradient) = &jobs[0];
                let (dz, dy) = (Mat::new(&dz, rows, rank).rows(range), dy.rows(range));
                gradient.with(0..whole, |g| {
                    let (d_a, d_b) = g.split_at_mut(split);
                    let d_a = MatMut::new(d_a, rank, d_in);
                    matmul(pool, dz.t(), x_panels.view().rows(range.clone()), d_a, true);
                    let d_b = MatMut::new(d_b, columns.len(), rank);
                    matmul(pool, dy.t(), z_panels.view().rows(range.clone()), d_b, true);
                });
            }
        }
    }

    /// The normed rows once more, from the kept inverse roots.
    fn norm_again(&self, pool: &Pool, x: &[f32], weight: &[f32], inverse: &[f32], out: &mut [f32]) {
        let h = weight.len();
        let out = Parts::new(out);
        pool.ranges(inverse.len(), ROW_CHUNK, &|range| {
            out.with(range.start * h..range.end * h, |out| {
                let rows = x[range.start * h..range.end * h]
                    .chunks_exact(h)
                    .zip(&inverse[range]);
                for ((x, inverse), out) in rows.zip(out.chunks_exact_mut(h)) {
                    for ((out, x), w) in out.iter_mut().zip(x).zip(weight) {
                        *out = w * (x * inverse);
                    }
                }
            });
        });
    }

    fn attend_backward_batch(
        &self,
        pool: &Pool,
        layer: usize,
        batch: &Batch,
        s: &Saved,
        d_attended: &[f32],
        d_qkv: &mut [f32],
    ) {
        let c = &self.config;
        let (heads, kv_heads, d, q) = (
            c.num_attention_heads,
            c.num_key_value_heads,
            c.head_dim,
            c.query_size(),
        );
        let share = heads / kv_heads;
        let out = Output::new(d_qkv, q + 2 * c.key_value_size());
        pool.run(batch.spans.len() * kv_heads, &|task| {
            let (span, group) = (&batch.spans[task / kv_heads], task % kv_heads);
            if span.is_empty() {
                return;
            }
            let keys = self.head_rows(&s.qkv, span, heads + group);
            let values = self.head_rows(&s.qkv, span, heads + kv_heads + group);
            let of = |data: &'_ [f32], head: usize| -> usize {
                debug_assert!(data.len() >= span.end * q, "attention rows cover the span");
                span.start * q + head * d
            };
            let inputs: Vec<HeadGradient<'_>> = (group * share..(group + 1) * share)
                .map(|head| {
                    let rows = |data| Rows {
                        data,
                        rows: span.len(),
                        width: d,
                        stride: q,
                    };
                    HeadGradient {
                        queries: self.head_rows(&s.qkv, span, head),
                        out: rows(&s.attended[of(&s.attended, head)..]),
                        d_out: rows(&d_attended[of(d_attended, head)..]),
                    }
                })
                .collect();
            let mut d_queries = vec![Vec::new(); share];
            let (mut d_keys, mut d_values) = (Vec::new(), Vec::new());
            attend_backward(
                pool.isa(),
                &inputs,
                &keys,
                &values,
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
}

/// `dx = dy W^T` for all rows.
fn turn(pool: &Pool, dy: &[f32], d_out: usize, w: &Panels, dx: &mut [f32], d_in: usize) {
    let rows = dy.len() / d_out;
    matmul(
        pool,
        Mat::new(dy, rows, d_out),
        w.view(),
        MatMut::new(dx, rows, d_in),
        false,
    );
}

/// Gradient of `[gate, up]` in place of their values.
fn activate_backward(pool: &Pool, gate_up: &mut [f32], f: usize, d_act: &[f32]) {
    let rows = d_act.len() / f;
    let parts = Parts::new(gate_up);
    pool.ranges(rows, ROW_CHUNK, &|range| {
        parts.with(range.start * 2 * f..range.end * 2 * f, |rows| {
            for (row, d) in rows
                .chunks_exact_mut(2 * f)
                .zip(d_act[range.start * f..range.end * f].chunks_exact(f))
            {
                let (gate, up) = row.split_at_mut(f);
                math::silu_mul_backward(pool.isa(), gate, up, d);
            }
        });
    });
}

/// Adds the norm's gradient of all rows to `dx`.
fn norm_backward(
    pool: &Pool,
    x: &[f32],
    weight: &[f32],
    inverse: &[f32],
    dy: &[f32],
    dx: &mut [f32],
) {
    let h = weight.len();
    let dx = Parts::new(dx);
    pool.ranges(inverse.len(), ROW_CHUNK, &|range| {
        dx.with(range.start * h..range.end * h, |dx| {
            for (i, dx) in range.clone().zip(dx.chunks_exact_mut(h)) {
                let row = i * h..(i + 1) * h;
                math::rms_norm_backward(
                    pool.isa(),
                    &x[row.clone()],
                    weight,
                    inverse[i],
                    &dy[row],
                    dx,
                );
            }
        });
    });
}

/// Adds the gradient of a norm's weights: over the rows, ascending.
pub(super) fn norm_gradient(pool: &Pool, x: &[f32], inverse: &[f32], dy: &[f32], out: &mut [f32]) {
    let h = out.len();
    let out = Parts::new(out);
    pool.ranges(h, 64, &|columns| {
        out.with(columns.clone(), |out| {
            for (i, &inverse) in inverse.iter().enumerate() {
                let row = i * h + columns.start..i * h + columns.end;
                math::add_product(pool.isa(), out, &x[row.clone()], &dy[row], inverse);
            }
        });
    });
}
