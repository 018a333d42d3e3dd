//! Inference: new tokens of many sequences, each with its own cache and
//! adapter, in one pass.

use std::ops::Range;

use thiserror::Error;

use super::Model;
use super::adapters::{self, Group, Pass};
use super::moe::SavedFeedForward;
use super::rows::norm;
use crate::cache::{KvCache, PoolFull};
use crate::kernels::{Output, math};
use crate::linear::Precision;
use crate::lora::{Lora, Projection};
use crate::pool::Pool;

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
    /// The device that carries out the pass failed.
    #[error("the device failed: {0}")]
    Device(String),
    /// The base weights themselves cannot be trained.
    #[error("{0} cannot be trained itself; train an adapter")]
    Frozen(&'static str),
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

/// Rows of a segment and the position of the first.
struct Span {
    rows: Range<usize>,
    first: usize,
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
        let hidden = self.hidden(pool, segments)?;
        let mut logits = vec![0.0_f32; segments.len() * self.config.vocab_size];
        if !segments.is_empty() {
            self.head
                .product(pool, &hidden, &mut logits, Precision::Serving);
        }
        Ok(logits)
    }

    /// As [`Model::forward`], but returns what the logits are made of: the last
    /// token's normed hidden state of every segment, `[segments, hidden_size]`.
    ///
    /// # Errors
    /// As [`Model::forward`].
    pub fn hidden(
        &self,
        pool: &Pool,
        segments: &mut [Segment<'_>],
    ) -> Result<Vec<f32>, ForwardError> {
        self.check_segments(segments)?;
        reserve(segments)?;
        if segments.is_empty() {
            return Ok(Vec::new());
        }
        let (c, isa) = (&self.config, pool.isa());
        let (h, q) = (c.hidden_size, c.attended_size());
        let order = by_adapter(segments);
        let mut spans: Vec<Span> = segments
            .iter()
            .map(|s| Span {
                rows: 0..s.tokens.len(),
                first: s.cache.len(),
            })
            .collect();
        let (mut rows, mut positions) = (0, Vec::new());
        for &at in &order {
            let span = &mut spans[at];
            span.rows = rows..rows + span.rows.len();
            rows = span.rows.end;
            positions.extend(span.first..span.first + span.rows.len());
        }
        let mut groups = group(segments, &order, &spans);
        let mut x = vec![0.0_f32; rows * h];
        for (row, &token) in x
            .chunks_exact_mut(h)
            .zip(order.iter().flat_map(|&at| segments[at].tokens))
        {
            self.embed(token as usize, row);
        }
        let mut normed = vec![0.0_f32; rows * h];
        let mut projected = Vec::new();
        let mut attended = vec![0.0_f32; rows * q];
        let mut scratch = SavedFeedForward::default();
        let mut delta = vec![0.0_f32; rows * h];
        for (i, block) in self.blocks.iter().enumerate() {
            let attention = &block.attention;
            let width = attention.width();
            let pass = Pass {
                pool,
                config: c,
                groups: &groups,
                precision: Precision::Serving,
            };
            norm(pool, &x, &block.norm1, c.rms_norm_eps, &mut normed, None);
            projected.resize(rows * width, 0.0_f32);
            let rope = &self.rope;
            attention.project(&pass, i, rope, &normed, &positions, &mut projected, None);
            for (segment, span) in segments.iter_mut().zip(&spans) {
                attention.store(i, &projected, &span.rows, span.first, segment.cache);
            }
            if i + 1 == self.blocks.len() && rows > segments.len() {
                // Only the last row of each segment is asked for; everything
                // above its keys and values is skipped for the others.
                for (at, &segment) in order.iter().enumerate() {
                    let span = &mut spans[segment];
                    let last = span.rows.end - 1;
                    x.copy_within(last * h..(last + 1) * h, at * h);
                    projected.copy_within(last * width..(last + 1) * width, at * width);
                    span.first += span.rows.len() - 1;
                    span.rows = at..at + 1;
                }
                rows = segments.len();
                x.truncate(rows * h);
                normed.truncate(rows * h);
                projected.truncate(rows * width);
                attended.truncate(rows * q);
                delta.truncate(rows * h);
                groups = group(segments, &order, &spans);
            }
            let pass = Pass {
                pool,
                config: c,
                groups: &groups,
                precision: Precision::Serving,
            };
            let out = Output::new(&mut attended, q);
            let heads = c.num_attention_heads;
            pool.run(segments.len() * heads, &|task| {
                let (s, head) = (task / heads, task % heads);
                let (span, cache) = (&spans[s], &*segments[s].cache);
                let (rows, first) = (&span.rows, span.first);
                attention.attend_cached(&pass, i, head, &projected, rows, first, cache, &out);
            });
            let parts = [Projection::O];
            adapters::product(&pass, i, &attention.o, &parts, &attended, &mut delta, None);
            math::add(isa, &mut x, &delta);
            norm(pool, &x, &block.norm2, c.rms_norm_eps, &mut normed, None);
            block
                .mlp
                .forward(&pass, i, &normed, &mut scratch, None, &mut delta);
            math::add(isa, &mut x, &delta);
        }
        for segment in segments.iter_mut() {
            segment.cache.advance(segment.tokens.len());
        }
        // Back to the order of the segments; each has one row by now.
        for (span, delta) in spans.iter().zip(delta.chunks_exact_mut(h)) {
            delta.copy_from_slice(&x[span.rows.start * h..span.rows.end * h]);
        }
        norm(pool, &delta, &self.norm, c.rms_norm_eps, &mut normed, None);
        Ok(normed)
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

/// The segments, those that share an adapter side by side: one product then
/// serves all their rows. The order of rows changes no bit of any.
fn by_adapter(segments: &[Segment<'_>]) -> Vec<usize> {
    let mut seen: Vec<*const Lora> = Vec::new();
    let rank: Vec<usize> = segments
        .iter()
        .map(|segment| {
            let adapter = segment.adapter.map_or(std::ptr::null(), std::ptr::from_ref);
            seen.iter().position(|&a| a == adapter).unwrap_or_else(|| {
                seen.push(adapter);
                seen.len() - 1
            })
        })
        .collect();
    let mut order: Vec<usize> = (0..segments.len()).collect();
    order.sort_by_key(|&at| rank[at]);
    order
}

/// Runs of rows with the same adapter.
fn group<'a>(segments: &[Segment<'a>], order: &[usize], spans: &[Span]) -> Vec<Group<'a>> {
    let mut groups: Vec<Group<'a>> = Vec::new();
    for &at in order {
        let Some(adapter) = segments[at].adapter else {
            continue;
        };
        let rows = &spans[at].rows;
        match groups.last_mut() {
            Some(g) if std::ptr::eq(g.adapter, adapter) && g.rows.end == rows.start => {
                g.rows.end = rows.end;
            }
            _ => groups.push(Group {
                rows: rows.clone(),
                adapter,
            }),
        }
    }
    groups
}
