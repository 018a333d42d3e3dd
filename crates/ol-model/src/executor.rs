//! What carries out a server's passes: the CPU engine, or a device.

use std::fmt;
use std::sync::Arc;

use crate::cache::KvPool;
use crate::model::{ForwardError, Model, Segment};
use crate::pool::Pool;

/// How a token is drawn from a segment's last logits.
///
/// Tokens are ordered by logit, the lower id first among equals. Of that order
/// the longest beginning takes part that has at most `top_k` tokens, reaches
/// `top_p` of their probability no more than once, and holds no probability
/// below `min_p` of the largest. The token is the first at which the sum of
/// probabilities exceeds `uniform` of what takes part.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Draw {
    /// Logits are divided by it; 0 takes the likeliest token.
    pub temperature: f32,
    /// Most tokens that take part; 0 for all.
    pub top_k: usize,
    /// Probability that is enough, above 0; 1 keeps all.
    pub top_p: f32,
    /// Least probability, as part of the largest; 0 keeps all.
    pub min_p: f32,
    /// The request's own random number, in `[0, 1)`: a token never depends on
    /// the batch it was drawn in.
    pub uniform: f64,
    /// How many of the likeliest tokens are to be named with their
    /// log-probabilities, besides the one drawn.
    pub n_top: usize,
}

impl Draw {
    /// The likeliest token. Also for a segment whose token nobody needs.
    pub const GREEDY: Self = Self {
        temperature: 0.0,
        top_k: 0,
        top_p: 1.0,
        min_p: 0.0,
        uniform: 0.0,
        n_top: 0,
    };
}

/// A token that was drawn where the logits are.
#[derive(Debug, Clone, PartialEq)]
pub struct Drawn {
    /// Its id.
    pub token: u32,
    /// Its log-probability before temperature and limits.
    pub logprob: f32,
    /// The likeliest tokens, likeliest first.
    pub top: Vec<(u32, f32)>,
}

/// What a pass came to.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Forwarded {
    /// Token of each segment for which the executor drew one.
    pub drawn: Vec<Option<Drawn>>,
    /// Logits of the others' last tokens, in order, `[others, vocab]`.
    pub logits: Vec<f32>,
}

/// Carries out the passes of one model.
pub trait Executor: fmt::Debug + Send {
    /// The pool whose caches it works on, with at most `n_pages` pages. Where
    /// pages lie on a device, it is the same pool every time.
    fn kv_pool(&self, n_pages: usize) -> KvPool;

    /// Feeds the new tokens of every segment. Draws the tokens for which there
    /// is a `draw` where it can; `draws` has one entry a segment.
    ///
    /// # Errors
    /// [`ForwardError`]; no cache has grown then.
    fn forward(
        &mut self,
        segments: &mut [Segment<'_>],
        draws: &[Option<Draw>],
    ) -> Result<Forwarded, ForwardError>;
}

/// The CPU engine: always gives logits.
#[derive(Debug)]
pub struct CpuExecutor {
    model: Arc<Model>,
    pool: Pool,
}

impl CpuExecutor {
    /// Passes of `model` on the threads of `pool`.
    #[must_use]
    pub const fn new(model: Arc<Model>, pool: Pool) -> Self {
        Self { model, pool }
    }
}

impl Executor for CpuExecutor {
    fn kv_pool(&self, n_pages: usize) -> KvPool {
        KvPool::new(self.model.config(), n_pages)
    }

    fn forward(
        &mut self,
        segments: &mut [Segment<'_>],
        _draws: &[Option<Draw>],
    ) -> Result<Forwarded, ForwardError> {
        let logits = self.model.forward(&self.pool, segments)?;
        Ok(Forwarded {
            drawn: vec![None; segments.len()],
            logits,
        })
    }
}
