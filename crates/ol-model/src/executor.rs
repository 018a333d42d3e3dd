//! What carries out the passes of servers and of training: the CPU engine, or a
//! device.

use std::fmt;
use std::sync::Arc;

use crate::cache::KvPool;
use crate::lora::Lora;
use crate::model::{ForwardError, GradientOptions, Labels, Model, Segment, Sequence};
use crate::pool::Pool;

/// How a token is drawn from a segment's last logits.
///
/// Tokens are ordered by probability, the lower id first among equals. Those that
/// take part are a beginning of that order: at most `top_k`, none below `min_p`
/// of the largest, and of what these two leave no more than reach `top_p` of its
/// probability. The token is the first at which the sum of probabilities
/// exceeds `uniform` of what takes part.
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
    /// How many tokens are likelier, plus 1.
    pub rank: u32,
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

    /// Whether segments may have an adapter like this: asked once a request, so
    /// that one adapter never fails a pass for the others.
    ///
    /// # Errors
    /// What is not done here, for people.
    fn check_adapter(&self, _adapter: &Lora) -> Result<(), String> {
        Ok(())
    }

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

/// A factor for the gradient of each sequence, from the losses of all.
type Factors<'a> = &'a dyn Fn(&[f64]) -> Vec<f32>;

/// Computes the losses of one model and their gradients by an adapter.
pub trait Learner: fmt::Debug {
    /// Loss of every sequence: `sum_t weights[t] nll_t`, in nats.
    ///
    /// # Errors
    /// [`ForwardError`] when a sequence or the adapter does not fit the model.
    fn losses(
        &self,
        adapter: Option<&Lora>,
        sequences: &[Sequence],
    ) -> Result<Vec<f64>, ForwardError>;

    /// Adds the gradient of the sum over all sequences by the adapter to
    /// `gradient`, in the flat order of the adapter's parameters; returns the
    /// loss of each. With `factors`, that of each sequence is scaled by what they
    /// make of the losses of all.
    ///
    /// # Errors
    /// As [`Self::losses`]; `gradient` is then unchanged.
    ///
    /// # Panics
    /// If `gradient` has not one element for each parameter of the adapter.
    fn add_gradient(
        &self,
        adapter: &Lora,
        sequences: &[Sequence],
        recompute: bool,
        factors: Option<Factors<'_>>,
        gradient: &mut [f32],
    ) -> Result<Vec<f64>, ForwardError>;
}

/// The CPU engine as a learner.
#[derive(Debug, Clone, Copy)]
pub struct CpuLearner<'a> {
    model: &'a Model,
    pool: &'a Pool,
}

impl<'a> CpuLearner<'a> {
    /// Passes of `model` on the threads of `pool`.
    #[must_use]
    pub const fn new(model: &'a Model, pool: &'a Pool) -> Self {
        Self { model, pool }
    }
}

impl Learner for CpuLearner<'_> {
    fn losses(
        &self,
        adapter: Option<&Lora>,
        sequences: &[Sequence],
    ) -> Result<Vec<f64>, ForwardError> {
        self.model.losses(self.pool, adapter, sequences)
    }

    fn add_gradient(
        &self,
        adapter: &Lora,
        sequences: &[Sequence],
        recompute: bool,
        factors: Option<Factors<'_>>,
        gradient: &mut [f32],
    ) -> Result<Vec<f64>, ForwardError> {
        let options = GradientOptions {
            labels: Labels::Given,
            recompute,
        };
        let (model, pool) = (self.model, self.pool);
        match factors {
            None => model.add_lora_gradient(pool, adapter, sequences, options, gradient),
            Some(factors) => {
                model.add_scaled_lora_gradient(pool, adapter, sequences, options, factors, gradient)
            }
        }
    }
}
