//! What can be seen of the engine: totals, and single events as they happen.

use std::fmt::Debug;

use crate::request::FinishReason;

/// What the engine is doing. Numbers of things are as of now, the others are
/// totals since the start.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct EngineStats {
    /// Requests being decoded.
    pub n_running: usize,
    /// Requests waiting to start, or to start again.
    pub n_waiting: usize,
    /// Those of them that wait for their adapter.
    pub n_loading: usize,
    /// Pages of KV cache there may be.
    pub n_pages: usize,
    /// Pages that running requests use.
    pub n_pages_used: usize,
    /// Pages kept for prompts that begin alike, which nobody uses now.
    pub n_pages_idle: usize,
    /// Forward passes.
    pub n_steps: u64,
    /// Prompt tokens prefilled, without those found in the prefix cache.
    pub n_tokens_in: u64,
    /// Tokens generated.
    pub n_tokens_out: u64,
    /// Tokens computed again after a preemption.
    pub n_tokens_again: u64,
    /// Prompt tokens looked for in the prefix cache.
    pub n_prefix_tokens_asked: u64,
    /// Prompt tokens found there.
    pub n_prefix_tokens_found: u64,
    /// Running requests that had to make room.
    pub n_preempted: u64,
    /// Requests refused because a limit of the queue was reached.
    pub n_refused: u64,
    /// Requests ended by their deadline, waiting or running.
    pub n_expired: u64,
    /// Requests whose client went away, waiting or running.
    pub n_cancelled: u64,
}

/// Something that happened, for histograms. Times in seconds.
#[derive(Debug, Clone, Copy, PartialEq)]
#[non_exhaustive]
pub enum Observation {
    /// A request started for the first time.
    Started {
        /// Time from its arrival.
        waited_s: f64,
    },
    /// A request got its first token.
    FirstToken {
        /// Time from its arrival.
        ttft_s: f64,
    },
    /// A request got another token.
    NextToken {
        /// Time from the one before, a preemption between them included.
        itl_s: f64,
    },
    /// An answer was finished.
    Finished {
        /// Why.
        reason: FinishReason,
        /// Time from its arrival.
        total_s: f64,
        /// Tokens of the prompt.
        tokens_in: usize,
        /// Tokens of the answer.
        tokens_out: usize,
    },
    /// A forward pass was computed.
    Pass {
        /// How long it took.
        duration_s: f64,
        /// Requests that took part.
        n_rows: usize,
        /// Tokens computed.
        n_tokens: usize,
        /// Different adapters among the requests.
        n_adapters: usize,
    },
}

/// Is told what happens, on the engine's thread: it must be quick.
pub trait Observer: Send + Sync + Debug {
    /// Something happened.
    fn observe(&self, observation: &Observation);
}

/// Looks away.
#[derive(Debug)]
pub(super) struct Unobserved;

impl Observer for Unobserved {
    fn observe(&self, _: &Observation) {}
}
