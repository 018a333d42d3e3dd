//! Multi-head latent attention's way from hidden states to queries, keys and
//! values (DeepSeek-AI, 2024: section 2.1 of the report on V2).
//!
//! Keys and values come from one narrow latent row a token and from one rotated
//! key that all heads share. They are expanded for every head, so that from
//! there on attention, cache and gradients are those of any other model. The
//! cache could hold the latent rows alone (a fraction of the memory), but then
//! either every step expands the whole past again or the expansion moves into
//! queries and outputs, which sums in another order than training does.

use super::adapters::{self, Inner, Pass, Target};
use super::rope::RopeTable;
use super::rows::{ROW_CHUNK, norm, norm_again, norm_backward, norm_gradient};
use crate::config::{Mla, ModelConfig};
use crate::isa::Isa;
use crate::kernels::math;
use crate::linear::{Linear, Norm};
use crate::lora::Projection;
use crate::pool::Parts;

/// Added to the mean square in the norms of the latent rows: transformers
/// leaves its default there, whatever `rms_norm_eps` says.
const LATENT_EPS: f32 = 1e-6;

/// From hidden states to queries.
#[derive(Debug)]
pub(super) enum Queries {
    /// One layer.
    Direct(Linear),
    /// Compressed, normed, expanded.
    LowRank {
        /// To the compressed row.
        a: Linear,
        /// Norm of the compressed row.
        norm: Norm,
        /// To the heads.
        b: Linear,
    },
}

/// Weights of one layer's projections.
#[derive(Debug)]
pub(super) struct Latent {
    pub(super) queries: Queries,
    /// To the latent row and the shared key.
    pub(super) kv_a: Linear,
    /// Norm of the latent row.
    pub(super) kv_norm: Norm,
    /// From the latent row to each head's key part and value.
    pub(super) kv_b: Linear,
    pub(super) shape: Mla,
    /// Factor of the scores besides `1 / sqrt(width)`: queries are scaled by it.
    pub(super) score_factor: f32,
}

/// What the forward pass leaves for the backward pass.
#[derive(Debug, Default)]
pub(super) struct SavedLatent {
    /// Compressed queries before their norm, and its inverse roots.
    query: Vec<f32>,
    query_inverse: Vec<f32>,
    /// Latent rows before their norm, and its inverse roots.
    latent: Vec<f32>,
    latent_inverse: Vec<f32>,
}

/// Widths of a row of queries, keys and values, each with all heads side by
/// side.
#[derive(Clone, Copy)]
struct Widths {
    heads: usize,
    /// Part of a query or key head that is not rotated, and the rotated one.
    nope: usize,
    rope: usize,
    value: usize,
}

impl Widths {
    fn key(self) -> usize {
        self.nope + self.rope
    }

    fn expanded(self) -> usize {
        self.nope + self.value
    }

    fn row(self) -> usize {
        self.heads * (2 * self.key() + self.value)
    }
}

impl Latent {
    fn widths(&self, config: &ModelConfig) -> Widths {
        Widths {
            heads: config.num_attention_heads,
            nope: self.shape.qk_nope_head_dim,
            rope: self.shape.qk_rope_head_dim,
            value: self.shape.v_head_dim,
        }
    }

    /// Every linear layer.
    pub(super) fn linears(&self) -> Vec<&Linear> {
        let mut all = match &self.queries {
            Queries::Direct(q) => vec![q],
            Queries::LowRank { a, b, .. } => vec![a, b],
        };
        all.extend([&self.kv_a, &self.kv_b]);
        all
    }

    /// As [`Self::linears`].
    pub(super) fn linears_mut(&mut self) -> Vec<&mut Linear> {
        let mut all = match &mut self.queries {
            Queries::Direct(q) => vec![q],
            Queries::LowRank { a, b, .. } => vec![a, b],
        };
        all.extend([&mut self.kv_a, &mut self.kv_b]);
        all
    }

    /// Every norm.
    pub(super) fn norms(&self) -> Vec<&Norm> {
        match &self.queries {
            Queries::Direct(_) => vec![&self.kv_norm],
            Queries::LowRank { norm, .. } => vec![norm, &self.kv_norm],
        }
    }

    /// As [`Self::norms`].
    pub(super) fn norms_mut(&mut self) -> Vec<&mut Norm> {
        match &mut self.queries {
            Queries::Direct(_) => vec![&mut self.kv_norm],
            Queries::LowRank { norm, .. } => vec![norm, &mut self.kv_norm],
        }
    }

    /// Queries, keys and values of all rows, rotated to `positions`.
    #[expect(clippy::too_many_arguments, reason = "inputs and what is kept of them")]
    pub(super) fn project(
        &self,
        pass: &Pass<'_>,
        layer: usize,
        rope: &RopeTable,
        x: &[f32],
        positions: &[usize],
        qkv: &mut [f32],
        mut inner: Option<&mut Inner>,
        saved: Option<&mut SavedLatent>,
    ) {
        let mut unused = SavedLatent::default();
        let saved = saved.unwrap_or(&mut unused);
        let (pool, w, rows) = (pass.pool, self.widths(pass.config), positions.len());
        let mut queries = vec![0.0_f32; rows * w.heads * w.key()];
        match &self.queries {
            Queries::Direct(q) => {
                let kept = inner.as_deref_mut();
                adapters::product(pass, layer, q, &[Projection::Q], x, &mut queries, kept);
            }
            Queries::LowRank { a, norm: weight, b } => {
                saved.query.resize(rows * a.d_out(), 0.0);
                let (parts, kept) = ([Projection::QA], inner.as_deref_mut());
                adapters::product(pass, layer, a, &parts, x, &mut saved.query, kept);
                let mut normed = vec![0.0_f32; saved.query.len()];
                let inverse = Some(&mut saved.query_inverse);
                norm(pool, &saved.query, weight, LATENT_EPS, &mut normed, inverse);
                let (parts, kept) = ([Projection::QB], inner.as_deref_mut());
                adapters::product(pass, layer, b, &parts, &normed, &mut queries, kept);
            }
        }
        let (rank, wide) = (self.shape.kv_lora_rank, self.kv_a.d_out());
        let mut compressed = vec![0.0_f32; rows * wide];
        let (parts, kept) = ([Projection::KvA], inner.as_deref_mut());
        adapters::product(pass, layer, &self.kv_a, &parts, x, &mut compressed, kept);
        saved.latent.clear();
        for row in compressed.chunks_exact(wide) {
            saved.latent.extend(&row[..rank]);
        }
        let mut normed = vec![0.0_f32; rows * rank];
        let inverse = Some(&mut saved.latent_inverse);
        norm(
            pool,
            &saved.latent,
            &self.kv_norm,
            LATENT_EPS,
            &mut normed,
            inverse,
        );
        let mut expanded = vec![0.0_f32; rows * w.heads * w.expanded()];
        let parts = [Projection::KvB];
        adapters::product(
            pass,
            layer,
            &self.kv_b,
            &parts,
            &normed,
            &mut expanded,
            inner,
        );
        let out = Parts::new(qkv);
        pool.ranges(rows, ROW_CHUNK, &|range| {
            for row in range {
                out.with(row * w.row()..(row + 1) * w.row(), |out| {
                    let turn = Turn {
                        isa: pool.isa(),
                        angles: rope.at(positions[row]),
                        interleaved: self.shape.rope_interleave,
                    };
                    let of = |all: &'_ [f32], width: usize| -> std::ops::Range<usize> {
                        debug_assert!(all.len() >= (row + 1) * width, "a row of each");
                        row * width..(row + 1) * width
                    };
                    let queries = &queries[of(&queries, w.heads * w.key())];
                    let expanded = &expanded[of(&expanded, w.heads * w.expanded())];
                    let shared = &compressed[of(&compressed, wide)][rank..];
                    assemble(w, &turn, queries, expanded, shared, out);
                    let queries = &mut out[..w.heads * w.key()];
                    math::scale(pool.isa(), queries, self.score_factor);
                });
            }
        });
    }

    /// Gradients for the gradient `d_qkv` of what [`Self::project`] computed:
    /// of the input into `dx` if asked, and what belongs to the target.
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
        saved: &SavedLatent,
        d_qkv: &[f32],
        inner: &Inner,
        mut dx: Option<&mut [f32]>,
        target: &mut Target<'_>,
    ) {
        let (pool, w, rows) = (pass.pool, self.widths(pass.config), positions.len());
        let (rank, wide) = (self.shape.kv_lora_rank, self.kv_a.d_out());
        let mut d_queries = vec![0.0_f32; rows * w.heads * w.key()];
        let mut d_expanded = vec![0.0_f32; rows * w.heads * w.expanded()];
        let mut d_compressed = vec![0.0_f32; rows * wide];
        let outputs = (
            Parts::new(&mut d_queries),
            Parts::new(&mut d_expanded),
            Parts::new(&mut d_compressed),
        );
        pool.ranges(rows, ROW_CHUNK, &|range| {
            for row in range {
                let turn = Turn {
                    isa: pool.isa(),
                    angles: rope.at(positions[row]),
                    interleaved: self.shape.rope_interleave,
                };
                let d_row = &d_qkv[row * w.row()..(row + 1) * w.row()];
                let of = |width: usize| row * width..(row + 1) * width;
                outputs.0.with(of(w.heads * w.key()), |d_queries| {
                    outputs.1.with(of(w.heads * w.expanded()), |d_expanded| {
                        outputs.2.with(of(wide), |d_compressed| {
                            let d_shared = &mut d_compressed[rank..];
                            take_apart(w, &turn, d_row, d_queries, d_expanded, d_shared);
                            math::scale(pool.isa(), d_queries, self.score_factor);
                        });
                    });
                });
            }
        });
        let mut normed = vec![0.0_f32; rows * rank];
        let (latent, inverse) = (&saved.latent, &saved.latent_inverse);
        norm_again(pool, latent, &self.kv_norm, inverse, &mut normed);
        let mut d_normed = vec![0.0_f32; rows * rank];
        let (parts, d) = ([Projection::KvB], Some(d_normed.as_mut_slice()));
        adapters::backward(
            pass,
            layer,
            &self.kv_b,
            &parts,
            &normed,
            &d_expanded,
            inner,
            d,
            target,
        );
        drop(d_expanded);
        let d_latent = norm_to_input(pass, latent, &self.kv_norm, inverse, &d_normed, target);
        for (row, d_latent) in d_compressed
            .chunks_exact_mut(wide)
            .zip(d_latent.chunks_exact(rank))
        {
            row[..rank].copy_from_slice(d_latent);
        }
        let (parts, d) = ([Projection::KvA], dx.as_deref_mut());
        adapters::backward(
            pass,
            layer,
            &self.kv_a,
            &parts,
            x,
            &d_compressed,
            inner,
            d,
            target,
        );
        // The input is read twice: by what makes keys and by what makes queries.
        let mut more = vec![0.0_f32; if dx.is_some() { x.len() } else { 0 }];
        let d = dx.is_some().then_some(more.as_mut_slice());
        match &self.queries {
            Queries::Direct(q) => {
                let parts = [Projection::Q];
                adapters::backward(pass, layer, q, &parts, x, &d_queries, inner, d, target);
            }
            Queries::LowRank { a, norm: weight, b } => {
                let (raw, inverse) = (&saved.query, &saved.query_inverse);
                let mut normed = vec![0.0_f32; raw.len()];
                norm_again(pool, raw, weight, inverse, &mut normed);
                let mut d_normed = vec![0.0_f32; raw.len()];
                let (parts, to) = ([Projection::QB], Some(d_normed.as_mut_slice()));
                adapters::backward(
                    pass, layer, b, &parts, &normed, &d_queries, inner, to, target,
                );
                let d_raw = norm_to_input(pass, raw, weight, inverse, &d_normed, target);
                let parts = [Projection::QA];
                adapters::backward(pass, layer, a, &parts, x, &d_raw, inner, d, target);
            }
        }
        if let Some(dx) = dx {
            math::add(pool.isa(), dx, &more);
        }
    }
}

/// Gradient of a norm's input; that of its weights goes to the target.
fn norm_to_input(
    pass: &Pass<'_>,
    x: &[f32],
    weight: &Norm,
    inverse: &[f32],
    dy: &[f32],
    target: &mut Target<'_>,
) -> Vec<f32> {
    if let Target::Full(gradient) = target {
        norm_gradient(pass.pool, x, inverse, dy, &mut gradient[weight.flat()]);
    }
    let mut dx = vec![0.0_f32; x.len()];
    norm_backward(pass.pool, x, weight, inverse, dy, &mut dx);
    dx
}

/// The rotation of one position.
struct Turn<'a> {
    isa: Isa,
    /// Cosines and sines.
    angles: (&'a [f32], &'a [f32]),
    /// Whether the pairs lie side by side in what the layers compute.
    interleaved: bool,
}

impl Turn<'_> {
    /// Rotates `from` to `to`, whose pairs lie half its length apart. Queries
    /// and keys are laid out alike, so their products do not notice.
    fn forth(&self, from: &[f32], to: &mut [f32]) {
        if self.interleaved {
            let (low, high) = to.split_at_mut(from.len() / 2);
            for ((pair, low), high) in from.as_chunks::<2>().0.iter().zip(low).zip(high) {
                [*low, *high] = *pair;
            }
        } else {
            to.copy_from_slice(from);
        }
        math::rotate(self.isa, to, self.angles.0, self.angles.1, 1.0);
    }

    /// The way back of a gradient; `from` is used up.
    fn back(&self, from: &mut [f32], to: &mut [f32]) {
        math::rotate(self.isa, from, self.angles.0, self.angles.1, -1.0);
        if self.interleaved {
            let (low, high) = from.split_at(to.len() / 2);
            for ((pair, low), high) in to.as_chunks_mut::<2>().0.iter_mut().zip(low).zip(high) {
                *pair = [*low, *high];
            }
        } else {
            to.copy_from_slice(from);
        }
    }
}

/// One row of queries, keys and values from the parts the layers computed.
fn assemble(
    w: Widths,
    turn: &Turn<'_>,
    queries: &[f32],
    expanded: &[f32],
    shared: &[f32],
    out: &mut [f32],
) {
    let (out_queries, rest) = out.split_at_mut(w.heads * w.key());
    let (keys, values) = rest.split_at_mut(w.heads * w.key());
    for (from, to) in queries
        .chunks_exact(w.key())
        .zip(out_queries.chunks_exact_mut(w.key()))
    {
        to[..w.nope].copy_from_slice(&from[..w.nope]);
        turn.forth(&from[w.nope..], &mut to[w.nope..]);
    }
    let mut turned = vec![0.0_f32; w.rope];
    turn.forth(shared, &mut turned);
    for ((from, key), value) in expanded
        .chunks_exact(w.expanded())
        .zip(keys.chunks_exact_mut(w.key()))
        .zip(values.chunks_exact_mut(w.value))
    {
        key[..w.nope].copy_from_slice(&from[..w.nope]);
        key[w.nope..].copy_from_slice(&turned);
        value.copy_from_slice(&from[w.nope..]);
    }
}

/// The way back of [`assemble`]: what the heads say about the shared key is
/// added up, first head first.
fn take_apart(
    w: Widths,
    turn: &Turn<'_>,
    d_row: &[f32],
    d_queries: &mut [f32],
    d_expanded: &mut [f32],
    d_shared: &mut [f32],
) {
    let (queries, rest) = d_row.split_at(w.heads * w.key());
    let (keys, values) = rest.split_at(w.heads * w.key());
    let mut turned = vec![0.0_f32; w.rope];
    for (from, to) in queries
        .chunks_exact(w.key())
        .zip(d_queries.chunks_exact_mut(w.key()))
    {
        to[..w.nope].copy_from_slice(&from[..w.nope]);
        turned.copy_from_slice(&from[w.nope..]);
        turn.back(&mut turned, &mut to[w.nope..]);
    }
    turned.fill(0.0);
    for ((to, key), value) in d_expanded
        .chunks_exact_mut(w.expanded())
        .zip(keys.chunks_exact(w.key()))
        .zip(values.chunks_exact(w.value))
    {
        to[..w.nope].copy_from_slice(&key[..w.nope]);
        to[w.nope..].copy_from_slice(value);
        math::add(turn.isa, &mut turned, &key[w.nope..]);
    }
    turn.back(&mut turned, d_shared);
}
