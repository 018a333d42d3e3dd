//! Attention of all heads over sequences and caches.

use std::ops::Range;

use super::adapters::{self, Inner, Pass, Target};
use super::attention::{HeadGradient, HeadPanels, Rows, Sight, attend, attend_backward};
use super::direct::{Direct, SavedDirect};
use super::mla::{Latent, SavedLatent};
use super::rope::RopeTable;
use crate::cache::KvCache;
use crate::config::ModelConfig;
use crate::kernels::{MatMut, Output};
use crate::linear::{Linear, Norm};
use crate::lora::Projection;

/// From hidden states to queries, keys and values.
#[derive(Debug)]
pub(super) enum Inputs {
    /// By one product.
    Direct(Direct),
    /// By way of latent rows (DeepSeek).
    Latent(Box<Latent>),
}

/// Where heads lie in a row: all queries, then all keys, then all values.
#[derive(Debug, Clone, Copy)]
pub(super) struct Shape {
    heads: usize,
    kv_heads: usize,
    /// Width of a query or key.
    key: usize,
    value: usize,
}

impl Shape {
    /// The heads of `config`.
    pub(super) fn new(config: &ModelConfig) -> Self {
        let (key, value) = match &config.mla {
            Some(mla) => (mla.qk_nope_head_dim + mla.qk_rope_head_dim, mla.v_head_dim),
            None => (config.head_dim, config.head_dim),
        };
        Self {
            heads: config.num_attention_heads,
            kv_heads: config.num_key_value_heads,
            key,
            value,
        }
    }

    /// Query heads that share keys and values.
    fn share(&self) -> usize {
        self.heads / self.kv_heads
    }

    /// First column of keys, and of values.
    fn starts(&self) -> (usize, usize) {
        let keys = self.heads * self.key;
        (keys, keys + self.kv_heads * self.key)
    }

    /// Width of a row.
    fn width(&self) -> usize {
        self.starts().1 + self.kv_heads * self.value
    }

    /// Width of what all heads together put out.
    fn attended(&self) -> usize {
        self.heads * self.value
    }

    fn query<'a>(&self, qkv: &'a [f32], rows: &Range<usize>, head: usize) -> Rows<'a> {
        Rows::of(qkv, rows, head * self.key, self.key, self.width())
    }

    fn keys<'a>(&self, qkv: &'a [f32], rows: &Range<usize>, group: usize) -> Rows<'a> {
        let first = self.starts().0 + group * self.key;
        Rows::of(qkv, rows, first, self.key, self.width())
    }

    fn values<'a>(&self, qkv: &'a [f32], rows: &Range<usize>, group: usize) -> Rows<'a> {
        let first = self.starts().1 + group * self.value;
        Rows::of(qkv, rows, first, self.value, self.width())
    }

    /// Columns of what a head puts out.
    fn output(&self, head: usize) -> Range<usize> {
        head * self.value..(head + 1) * self.value
    }
}

/// Weights of one attention layer.
#[derive(Debug)]
pub(super) struct Heads {
    pub(super) inputs: Inputs,
    pub(super) shape: Shape,
    /// Back to the residual stream.
    pub(super) o: Linear,
}

/// What making queries, keys and values leaves for the backward pass; the part
/// of the other kind stays empty.
#[derive(Debug, Default)]
pub(super) struct SavedInputs {
    direct: SavedDirect,
    latent: SavedLatent,
}

/// What the forward pass leaves for the backward pass.
#[derive(Debug, Default)]
pub(super) struct SavedHeads {
    /// Queries, keys and values after norm and rotation.
    qkv: Vec<f32>,
    inputs: SavedInputs,
    /// Input of the output layer.
    attended: Vec<f32>,
}

impl Inputs {
    /// Every linear layer.
    pub(super) fn linears(&self) -> Vec<&Linear> {
        match self {
            Self::Direct(direct) => vec![&direct.qkv],
            Self::Latent(latent) => latent.linears(),
        }
    }

    /// As [`Self::linears`].
    pub(super) fn linears_mut(&mut self) -> Vec<&mut Linear> {
        match self {
            Self::Direct(direct) => vec![&mut direct.qkv],
            Self::Latent(latent) => latent.linears_mut(),
        }
    }

    /// Every norm.
    pub(super) fn norms(&self) -> Vec<&Norm> {
        match self {
            Self::Direct(direct) => direct
                .norms
                .iter()
                .flat_map(|n| [&n.query, &n.key])
                .collect(),
            Self::Latent(latent) => latent.norms(),
        }
    }

    /// As [`Self::norms`].
    pub(super) fn norms_mut(&mut self) -> Vec<&mut Norm> {
        match self {
            Self::Direct(direct) => {
                let norms = direct.norms.iter_mut();
                norms.flat_map(|n| [&mut n.query, &mut n.key]).collect()
            }
            Self::Latent(latent) => latent.norms_mut(),
        }
    }
}

impl Heads {
    /// Width of a row of queries, keys and values.
    pub(super) fn width(&self) -> usize {
        self.shape.width()
    }

    /// Width of the output layer's input.
    pub(super) fn attended_size(&self) -> usize {
        self.shape.attended()
    }

    /// Queries, keys and values of all rows, as the heads use them.
    #[expect(clippy::too_many_arguments, reason = "inputs and what is kept of them")]
    pub(super) fn project(
        &self,
        pass: &Pass<'_>,
        layer: usize,
        rope: &RopeTable,
        x: &[f32],
        positions: &[usize],
        qkv: &mut [f32],
        kept: Option<(&mut Inner, &mut SavedInputs)>,
    ) {
        let (inner, saved) = kept.unzip();
        match &self.inputs {
            Inputs::Direct(direct) => {
                let saved = saved.map(|s| &mut s.direct);
                direct.project(pass, layer, rope, x, positions, qkv, inner, saved);
            }
            Inputs::Latent(latent) => {
                let saved = saved.map(|s| &mut s.latent);
                latent.project(pass, layer, rope, x, positions, qkv, inner, saved);
            }
        }
    }

    /// Stores keys and values of rows `rows` at positions from `first` on.
    pub(super) fn store(
        &self,
        layer: usize,
        qkv: &[f32],
        rows: &Range<usize>,
        first: usize,
        cache: &mut KvCache,
    ) {
        let ((keys, values), width) = (self.shape.starts(), self.width());
        let rows = qkv[rows.start * width..rows.end * width].chunks_exact(width);
        for (position, row) in (first..).zip(rows) {
            cache.write(layer, position, &row[keys..values], &row[values..]);
        }
    }

    /// One head of rows `rows`, whose first is at position `first`, against
    /// the cache. For a single row the first of the heads that share keys does
    /// the work of all, so that keys and values are read once.
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
        let (c, isa, shape) = (pass.config, pass.pool.isa(), &self.shape);
        let (share, seen) = (shape.share(), first + rows.len());
        let of_cache = |from: usize| {
            (
                cache.keys(layer, head / share, from..seen),
                cache.values(layer, head / share, from..seen),
            )
        };
        if rows.len() > 1 {
            let sight = Sight::new(c, layer, first);
            let (keys, values) = of_cache(sight.from());
            let queries = shape.query(qkv, rows, head);
            let out = attended.tile(rows.clone(), shape.output(head));
            attend(isa, &queries, keys, values, sight.from(), sight, out);
        } else if head.is_multiple_of(share) {
            let sight = Sight::of_token(c, layer, first);
            let (keys, values) = of_cache(sight.from());
            let queries = Rows {
                rows: share,
                stride: shape.key,
                ..shape.query(qkv, rows, head)
            };
            let columns = shape.output(head).start..shape.output(head + share - 1).end;
            let mut out = attended.tile(rows.clone(), columns);
            let out = MatMut::new(out.row(0), share, shape.value);
            attend(isa, &queries, keys, values, sight.from(), sight, out);
        }
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
        let rows = positions.len();
        saved.qkv.resize(rows * self.width(), 0.0);
        let kept = Some((&mut *inner, &mut saved.inputs));
        self.project(pass, layer, rope, x, positions, &mut saved.qkv, kept);
        saved.attended.resize(rows * self.attended_size(), 0.0);
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
        let shape = &self.shape;
        let (kv_heads, share) = (shape.kv_heads, shape.share());
        let out = Output::new(attended, shape.attended());
        pass.pool.run(spans.len() * kv_heads, &|task| {
            let (span, group) = (&spans[task / kv_heads], task % kv_heads);
            let panels = HeadPanels::new(
                &shape.keys(qkv, span, group),
                &shape.values(qkv, span, group),
            );
            for head in group * share..(group + 1) * share {
                attend(
                    pass.pool.isa(),
                    &shape.query(qkv, span, head),
                    panels.keys.view(),
                    panels.values.view(),
                    0,
                    Sight::new(pass.config, layer, 0),
                    out.tile(span.clone(), shape.output(head)),
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
        let mut d_attended = vec![0.0_f32; rows * self.attended_size()];
        let d = Some(d_attended.as_mut_slice());
        let parts = [Projection::O];
        let attended = &saved.attended;
        adapters::backward(
            pass, layer, &self.o, &parts, attended, d_out, inner, d, target,
        );
        let mut d_qkv = vec![0.0_f32; rows * self.width()];
        self.attend_backward_spans(pass, layer, spans, saved, &d_attended, &mut d_qkv);
        drop(d_attended);
        let d_qkv = &mut d_qkv;
        match &self.inputs {
            Inputs::Direct(direct) => {
                let saved = &saved.inputs.direct;
                direct.backward(
                    pass, layer, rope, positions, x, saved, d_qkv, inner, dx, target,
                );
            }
            Inputs::Latent(latent) => {
                let saved = &saved.inputs.latent;
                latent.backward(
                    pass, layer, rope, positions, x, saved, d_qkv, inner, dx, target,
                );
            }
        }
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
        let shape = &self.shape;
        let (kv_heads, share) = (shape.kv_heads, shape.share());
        let out = Output::new(d_qkv, shape.width());
        pass.pool.run(spans.len() * kv_heads, &|task| {
            let (span, group) = (&spans[task / kv_heads], task % kv_heads);
            if span.is_empty() {
                return;
            }
            let attended = |from, head: usize| {
                Rows::of(
                    from,
                    span,
                    head * shape.value,
                    shape.value,
                    shape.attended(),
                )
            };
            let inputs: Vec<HeadGradient<'_>> = (group * share..(group + 1) * share)
                .map(|head| HeadGradient {
                    queries: shape.query(&saved.qkv, span, head),
                    out: attended(&saved.attended, head),
                    d_out: attended(d_attended, head),
                })
                .collect();
            let mut d_queries = vec![Vec::new(); share];
            let (mut d_keys, mut d_values) = (Vec::new(), Vec::new());
            attend_backward(
                pass.pool.isa(),
                &inputs,
                &shape.keys(&saved.qkv, span, group),
                &shape.values(&saved.qkv, span, group),
                Sight::new(pass.config, layer, 0),
                &mut d_queries,
                &mut d_keys,
                &mut d_values,
            );
            let (keys, values) = shape.starts();
            let queries = d_queries.iter().enumerate();
            let queries = queries.map(|(i, g)| ((group * share + i) * shape.key, shape.key, g));
            for (first, width, gradient) in queries.chain([
                (keys + group * shape.key, shape.key, &d_keys),
                (values + group * shape.value, shape.value, &d_values),
            ]) {
                let mut tile = out.tile(span.clone(), first..first + width);
                for (i, row) in gradient.chunks_exact(width).enumerate() {
                    tile.row(i).copy_from_slice(row);
                }
            }
        });
    }
}
