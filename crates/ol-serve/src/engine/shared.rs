//! What the handles and the engine's thread share.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::observe::EngineStats;
use super::queue::Queue;
use super::row::Job;
use super::signal::Signal;
use crate::request::{Event, GenerateError};

#[derive(Debug, Default)]
pub(super) struct Shared {
    state: Mutex<State>,
    /// Raised when there may be work, or the engine should close.
    pub(super) signal: Arc<Signal>,
}

#[derive(Debug, Default)]
pub(super) struct State {
    pub(super) queue: Queue,
    pub(super) is_closing: bool,
    pub(super) next_arrival: u64,
    pub(super) stats: EngineStats,
    pub(super) pace: Pace,
}

impl Shared {
    pub(super) fn lock(&self) -> MutexGuard<'_, State> {
        // Every change of the state is complete before anything can panic.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes no more requests and ends those that have not started; the others
    /// go on.
    pub(super) fn close(&self) {
        self.refuse(|job| job.started_s.is_none());
    }

    /// Ends all that wait: nobody works any more.
    pub(super) fn end(&self) {
        self.refuse(|_| true);
    }

    fn refuse(&self, is_refused: impl Fn(&Job) -> bool) {
        let mut state = self.lock();
        state.is_closing = true;
        for job in state.queue.remove_if(is_refused) {
            job.send(Event::Failed(GenerateError::Stopped));
        }
        drop(state);
        self.signal.raise();
    }
}

/// How fast tokens are computed, to tell when to come again.
#[derive(Debug, Default)]
pub(super) struct Pace {
    n_tokens: f64,
    seconds: f64,
    tokens_out_mean: Option<f64>,
}

/// What remains of the past at each new measurement: the last hundred count.
const KEPT: f64 = 0.99;
/// What to say while nothing was measured, and the least ever said.
const RETRY_MIN_S: f64 = 1.0;
const RETRY_MAX_S: f64 = 600.0;

impl Pace {
    /// A pass computed so many tokens.
    pub(super) fn passed(&mut self, n_tokens: usize, seconds: f64) {
        self.n_tokens = KEPT * self.n_tokens + n_tokens as f64;
        self.seconds = KEPT * self.seconds + seconds;
    }

    /// An answer had so many tokens.
    pub(super) fn answered(&mut self, tokens_out: usize) {
        let tokens_out = tokens_out as f64;
        let mean = self.tokens_out_mean.unwrap_or(tokens_out);
        self.tokens_out_mean = Some(KEPT * mean + (1.0 - KEPT) * tokens_out);
    }

    /// When what waits now will have been computed, by the pace measured: the
    /// prompts, and answers as long as answers were.
    pub(super) fn retry_after(&self, queue: &Queue) -> Duration {
        let n_tokens: f64 = queue
            .jobs()
            .map(|job| {
                let n_left = (job.max_tokens - job.n_out()) as f64;
                job.tokens.len() as f64 + self.tokens_out_mean.map_or(n_left, |m| m.min(n_left))
            })
            .sum();
        if self.n_tokens == 0.0 {
            return Duration::from_secs_f64(RETRY_MIN_S);
        }
        let seconds = n_tokens * self.seconds / self.n_tokens;
        Duration::from_secs_f64(seconds.clamp(RETRY_MIN_S, RETRY_MAX_S))
    }
}
