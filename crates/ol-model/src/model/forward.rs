//! Inference: new tokens of many sequences, each with its own cache and
//! adapter, in one pass.

use std::ops::Range;

use thiserror::Error;

use super::Model;
use super::attention::{Rows, Sight, attend};
use crate::cache::{KvCache, PoolFull};
use crate::config::ModelConfig;
use crate::kernels::{Mat, MatMut, Output, math, matmul};
use crate::lora::{Lora, Projection};
use crate::pool::{Parts, Pool};

/// Rows of one element-wise task.
pub(super) const ROW_CHUNK: usize = 32;

/// Why a pass was refused; nothing has changed then.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum ForwardError {
    /// A segment has no tokens.
    #[error("segment {0} has no tokens")]
    Empty(usize),
    /// A token is not in the vocabulary.
    #[error("segment {segment}: token {token} is outside the vocabulary of {vocab_size}")]
    Token {
        /// Segment or sequence.
        segment: usize,
        /// The token.
        token: u32,
        /// Tokens there are.
        vocab_size: usize,
    },
    /// The tokens do not fit the cache or the model's context.
    #[error("segment {segment}: {needed} tokens, there is room for {room}")]
    TooLong {
        /// Segment or sequence.
        segment: usize,
        /// Tokens in all.
        needed: usize,
        /// Tokens allowed.
        room: usize,
    },
    /// The pool of the segment's cache has too few pages left.
    #[error("segment {segment}: {source}")]
    PoolFull {
        /// Segment.
        segment: usize,
        /// Pages needed and free.
        source: PoolFull,
    },
    /// The cache or the adapter was made for another shape of model.
    #[error("segment {segment}: its {what} belongs to a model of another shape")]
    Shape {
        /// Segment or sequence.
        segment: usize,
        /// Cache or adapter.
        what: &'static str,
    },
    /// Tokens and weights of a sequence differ in number, or a weight is not finite.
    #[error("sequence {0}: needs one finite weight a token")]
    Weights(usize),
}

/// New tokens of one sequence: a prompt, or the one token chosen last.
#[derive(Debug)]
pub struct Segment<'a> {
    /// Tokens not yet in the cache; at least one.
    pub tokens: &'a [u32],
    /// What the sequence has seen; the tokens are added to it.
    pub cache: &'a mut KvCache,
    /// Adapter of this sequence.
    pub adapter: Option<&'a Lora>,
}

/// Rows that share an adapter.
pub(super) struct Group<'a> {
    pub(super) rows: Range<usize>,
    pub(super) adapter: &'a Lora,
}

/// Rows of a segment and the position of the first.
struct Span {
    rows: Range<usize>,
    first: usize,
}

/// Output columns of the layers that one fused product computes.
pub(super) fn columns(
    config: &ModelConfig,
    parts: &[Projection],
) -> Vec<(Projection, Range<usize>)> {
    let mut at = 0;
    parts
        .iter()
        .map(|&p| {
            let start = at;
            at += p.shape(config).0;
            (p, start..at)
        })
        .collect()
}

/// Adds the adapters' products to `y`; keeps `scale x A^T` in `z` if given.
#[expect(
    clippy::too_many_arguments,
    reason = "one call a product, all of it needed"
)]
pub(super) fn add_adapters(
    pool: &Pool,
    config: &ModelConfig,
    layer: usize,
    parts: &[Projection],
    groups: &[Group<'_>],
    x: &[f32],
    y: &mut [f32],
    z: Option<&mut [Vec<f32>; 7]>,
) {
    let columns = columns(config, parts);
    let d_in = parts[0].shape(config).1;
    let width = columns.last().map_or(0, |(_, c)| c.end);
    let mut jobs = Vec::new();
    for group in groups {
        for (projection, columns) in &columns {
            let Some(block) = group.adapter.block(layer, *projection) else {
                continue;
            };
            for start in group.rows.clone().step_by(64) {
                jobs.push((
                    group.adapter,
                    block,
                    *projection,
                    columns,
                    start..(start + 64).min(group.rows.end),
                ));
            }
        }
    }
    let rows_total = x.len() / d_in;
    let kept = z.map(|z| {
        let mut kept: [Option<Parts<'_, f32>>; 7] = [None; 7];
        for (i, z) in z.iter_mut().enumerate() {
            if let Some(job) = jobs.iter().find(|j| j.2 as usize == i) {
                z.resize(rows_total * job.0.config().rank, 0.0);
                kept[i] = Some(Parts::new(z));
            }
        }
        kept
    });
    let out = Output::new(y, width);
    pool.run(jobs.len(), &|i| {
        let (adapter, block, projection, columns, rows) = &jobs[i];
        let rank = adapter.config().rank;
        let x = Mat::new(&x[rows.start * d_in..rows.end * d_in], rows.len(), d_in);
        let y = out.tile(rows.clone(), (*columns).clone());
        if let Some(z) = kept.as_ref().and_then(|k| k[*projection as usize]) {
            z.with(rows.start * rank..rows.end * rank, |z| {
                adapter.apply(pool.isa(), *block, x, z, y)
            });
        } else {
            adapter.apply(pool.isa(), *block, x, &mut vec![0.0; rows.len() * rank], y);
        }
    });
}

impl Model {
    /// Feeds the new tokens of every segment and returns the logits of each
    /// segment's last token, `[segments, vocab]`.
    ///
    /// Segments may differ in length, adapter and rank. A segment's logits are
    /// bit-identical alone and in any batch, on any number of threads, and
    /// whether its tokens come at once or one by one.
    ///
    /// # Errors
    /// [`ForwardError`]; no cache has changed then.
    pub fn forward(
        &self,
        pool: &Pool,
        segments: &mut [Segment<'_>],
    ) -> Result<Vec<f32>, ForwardError> {
        self.check_segments(segments)?;
        reserve(segments)?;
        if segments.is_empty() {
            return Ok(Vec::new());
        }
        let c = &self.config;
        let isa = pool.isa();
        let (h, f, q, kv) = (
            c.hidden_size,
            c.intermediate_size,
            c.query_size(),
            c.key_value_size(),
        );
        let mut spans = Vec::with_capacity(segments.len());
        let mut rows = 0;
        for s in segments.iter() {
            spans.push(Span {
                rows: rows..rows + s.tokens.len(),
                first: s.cache.len(),
            });
            rows += s.tokens.len();
        }
        let mut groups = group(segments, &spans);
        let mut x = vec![0.0_f32; rows * h];
        for (row, &token) in x
            .chunks_exact_mut(h)
            .zip(segments.iter().flat_map(|s| s.tokens))
        {
            self.embed(token as usize, row);
        }
        let mut normed = vec![0.0_f32; rows * h];
        let mut qkv = vec![0.0_f32; rows * (q + 2 * kv)];
        let mut attended = vec![0.0_f32; rows * q];
        let mut gate_up = vec![0.0_f32; rows * 2 * f];
        let mut act = vec![0.0_f32; rows * f];
        let mut delta = vec![0.0_f32; rows * h];
        for (i, layer) in self.layers.iter().enumerate() {
            self.norm_rows(pool, &x, &layer.norm1, &mut normed, None);
            product(pool, &normed, h, &layer.qkv, &mut qkv, q + 2 * kv);
            let parts = [Projection::Q, Projection::K, Projection::V];
            add_adapters(pool, c, i, &parts, &groups, &normed, &mut qkv, None);
            let width = q + 2 * kv;
            for (segment, span) in segments.iter_mut().zip(&spans) {
                for (position, row) in (span.first..).zip(
                    qkv[span.rows.start * width..]
                        .chunks_exact_mut(width)
                        .take(span.rows.len()),
                ) {
                    self.rotate(isa, &mut row[..q + kv], position, 1.0);
                    segment
                        .cache
                        .write(i, position, &row[q..q + kv], &row[q + kv..]);
                }
            }
            if i + 1 == self.layers.len() && rows > segments.len() {
                // Only the last row of each segment is asked for; everything
                // above its keys and values is skipped for the others.
                for (at, span) in spans.iter_mut().enumerate() {
                    let last = span.rows.end - 1;
                    x.copy_within(last * h..(last + 1) * h, at * h);
                    qkv.copy_within(last * width..(last + 1) * width, at * width);
                    span.first += span.rows.len() - 1;
                    span.rows = at..at + 1;
                }
                rows = segments.len();
                for (buffer, width) in [
                    (&mut x, h),
                    (&mut normed, h),
                    (&mut qkv, width),
                    (&mut attended, q),
                    (&mut gate_up, 2 * f),
                    (&mut act, f),
                    (&mut delta, h),
                ] {
                    buffer.truncate(rows * width);
                }
                groups = group(segments, &spans);
            }
            self.attend_segments(pool, i, segments, &spans, &qkv, &mut attended);
            product(pool, &attended, q, &layer.o, &mut delta, h);
            add_adapters(
                pool,
                c,
                i,
                &[Projection::O],
                &groups,
                &attended,
                &mut delta,
                None,
            );
            math::add(isa, &mut x, &delta);
            self.norm_rows(pool, &x, &layer.norm2, &mut normed, None);
            product(pool, &normed, h, &layer.gate_up, &mut gate_up, 2 * f);
            let parts = [Projection::Gate, Projection::Up];
            add_adapters(pool, c, i, &parts, &groups, &normed, &mut gate_up, None);
            activate(pool, &gate_up, f, &mut act);
            product(pool, &act, f, &layer.down, &mut delta, h);
            add_adapters(
                pool,
                c,
                i,
                &[Projection::Down],
                &groups,
                &act,
                &mut delta,
                None,
            );
            math::add(isa, &mut x, &delta);
        }
        for segment in segments.iter_mut() {
            segment.cache.advance(segment.tokens.len());
        }
        self.norm_rows(pool, &x, &self.norm, &mut normed, None);
        let mut logits = vec![0.0_f32; rows * c.vocab_size];
        product(pool, &normed, h, &self.head, &mut logits, c.vocab_size);
        Ok(logits)
    }

    fn check_segments(&self, segments: &[Segment<'_>]) -> Result<(), ForwardError> {
        for (segment, s) in segments.iter().enumerate() {
            if s.tokens.is_empty() {
                return Err(ForwardError::Empty(segment));
            }
            self.check_tokens(segment, s.tokens)?;
            if !s.cache.fits(&self.config) {
                return Err(ForwardError::Shape {
                    segment,
                    what: "cache",
                });
            }
            let needed = s.cache.len() + s.tokens.len();
            let room = s.cache.capacity_tokens();
            if needed > room {
                return Err(ForwardError::TooLong {
                    segment,
                    needed,
                    room,
                });
            }
            if s.adapter.is_some_and(|a| !a.fits(&self.config)) {
                return Err(ForwardError::Shape {
                    segment,
                    what: "adapter",
                });
            }
        }
        Ok(())
    }

    pub(super) fn check_tokens(&self, segment: usize, tokens: &[u32]) -> Result<(), ForwardError> {
        let vocab_size = self.config.vocab_size;
        match tokens.iter().find(|t| **t as usize >= vocab_size) {
            Some(&token) => Err(ForwardError::Token {
                segment,
                token,
                vocab_size,
            }),
            None => Ok(()),
        }
    }

    /// Norms every row of `x`; keeps the inverse roots if asked.
    pub(super) fn norm_rows(
        &self,
        pool: &Pool,
        x: &[f32],
        weight: &[f32],
        out: &mut [f32],
        inverse: Option<&mut Vec<f32>>,
    ) {
        let h = weight.len();
        let rows = x.len() / h;
        let eps = self.config.rms_norm_eps;
        let out = Parts::new(out);
        let mut unused = Vec::new();
        let inverse = inverse.unwrap_or(&mut unused);
        inverse.resize(rows, 0.0);
        let inverse = Parts::new(inverse);
        pool.ranges(rows, ROW_CHUNK, &|range| {
            inverse.with(range.clone(), |inverse| {
                out.with(range.start * h..range.end * h, |out| {
                    let x = x[range.start * h..range.end * h].chunks_exact(h);
                    for ((x, out), inverse) in x.zip(out.chunks_exact_mut(h)).zip(inverse) {
                        *inverse = math::rms_norm(pool.isa(), x, weight, eps, out);
                    }
                });
            });
        });
    }

    fn attend_segments(
        &self,
        pool: &Pool,
        layer: usize,
        segments: &[Segment<'_>],
        spans: &[Span],
        qkv: &[f32],
        attended: &mut [f32],
    ) {
        let c = &self.config;
        let (q, kv, d) = (c.query_size(), c.key_value_size(), c.head_dim);
        let width = q + 2 * kv;
        let share = c.num_attention_heads / c.num_key_value_heads;
        let out = Output::new(attended, q);
        pool.run(segments.len() * c.num_attention_heads, &|task| {
            let (s, head) = (task / c.num_attention_heads, task % c.num_attention_heads);
            let span = &spans[s];
            let seen = span.first + span.rows.len();
            let queries = Rows {
                data: &qkv[span.rows.start * width + head * d..],
                rows: span.rows.len(),
                width: d,
                stride: width,
            };
            let sight = Sight::new(c, layer, span.first);
            let from = sight.from();
            let keys = segments[s].cache.keys(layer, head / share, from..seen);
            let values = segments[s].cache.values(layer, head / share, from..seen);
            let out = out.tile(span.rows.clone(), head * d..(head + 1) * d);
            attend(pool.isa(), &queries, keys, values, from, sight, out);
        });
    }
}

/// Gets pages for all new tokens, or none.
fn reserve(segments: &mut [Segment<'_>]) -> Result<(), ForwardError> {
    for segment in 0..segments.len() {
        let s = &mut segments[segment];
        if let Err(source) = s.cache.reserve(s.tokens.len()) {
            for s in &mut segments[..segment] {
                s.cache.truncate(s.cache.len());
            }
            return Err(ForwardError::PoolFull { segment, source });
        }
    }
    Ok(())
}

/// Runs of rows with the same adapter.
fn group<'a>(segments: &[Segment<'a>], spans: &[Span]) -> Vec<Group<'a>> {
    let mut groups: Vec<Group<'a>> = Vec::new();
    for (segment, span) in segments.iter().zip(spans) {
        let Some(adapter) = segment.adapter else {
            continue;
        };
        match groups.last_mut() {
            Some(g) if std::ptr::eq(g.adapter, adapter) && g.rows.end == span.rows.start => {
                g.rows.end = span.rows.end;
            }
            _ => groups.push(Group {
                rows: span.rows.clone(),
                adapter,
            }),
        }
    }
    groups
}

/// `y = x W` for all rows.
pub(super) fn product(
    pool: &Pool,
    x: &[f32],
    k: usize,
    w: &crate::kernels::Panels,
    y: &mut [f32],
    n: usize,
) {
    let rows = x.len() / k;
    matmul(
        pool,
        Mat::new(x, rows, k),
        w.view(),
        MatMut::new(y, rows, n),
        false,
    );
}

/// `silu(gate) up` for all rows of `[gate, up]`.
pub(super) fn activate(pool: &Pool, gate_up: &[f32], f: usize, act: &mut [f32]) {
    let rows = act.len() / f;
    let act = Parts::new(act);
    pool.ranges(rows, ROW_CHUNK, &|range| {
        act.with(range.start * f..range.end * f, |act| {
            let rows = gate_up[range.start * 2 * f..range.end * 2 * f].chunks_exact(2 * f);
            for (row, act) in rows.zip(act.chunks_exact_mut(f)) {
                math::silu_mul(pool.isa(), &row[..f], &row[f..], act);
            }
        });
    });
}
