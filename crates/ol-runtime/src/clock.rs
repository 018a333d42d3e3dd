//! Time, passed in.

use std::fmt::Debug;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// Tells the time. Components take `&dyn Clock`, so that tests and simulations
/// decide what time it is.
pub trait Clock: Send + Sync + Debug {
    /// Seconds since 1970-01-01 UTC. May jump when the machine's clock is set.
    fn unix_s(&self) -> u64;

    /// Seconds since some fixed moment; never goes back. For measuring spans.
    fn monotonic_s(&self) -> f64;
}

/// The machine's clock.
#[derive(Debug, Clone)]
pub struct SystemClock {
    started: Instant,
}

impl SystemClock {
    /// A clock whose monotonic time starts at zero now.
    #[must_use]
    #[expect(
        clippy::disallowed_methods,
        reason = "the one place that reads the machine's clock"
    )]
    pub fn new() -> Self {
        Self {
            started: Instant::now(),
        }
    }
}

impl Default for SystemClock {
    fn default() -> Self {
        Self::new()
    }
}

impl Clock for SystemClock {
    #[expect(
        clippy::disallowed_methods,
        reason = "the one place that reads the machine's clock"
    )]
    fn unix_s(&self) -> u64 {
        // A machine set before 1970 reads as 1970: chain rules then refuse the
        // block, with a reason, rather than this crate panicking.
        SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or(Duration::ZERO)
            .as_secs()
    }

    fn monotonic_s(&self) -> f64 {
        self.started.elapsed().as_secs_f64()
    }
}

/// A clock that stands still until it is told to move.
#[derive(Debug)]
pub struct ManualClock {
    /// Unix time at creation, and time passed since.
    state: Mutex<(u64, Duration)>,
}

impl ManualClock {
    /// A clock that shows `unix_s`, with monotonic time zero.
    #[must_use]
    pub const fn new(unix_s: u64) -> Self {
        Self {
            state: Mutex::new((unix_s, Duration::ZERO)),
        }
    }

    /// Lets `span` pass. Saturates at the largest time that can be shown.
    pub fn advance(&self, span: Duration) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.1 = state.1.saturating_add(span);
    }

    fn now(&self) -> (u64, Duration) {
        *self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Clock for ManualClock {
    fn unix_s(&self) -> u64 {
        let (start_s, passed) = self.now();
        start_s.saturating_add(passed.as_secs())
    }

    fn monotonic_s(&self) -> f64 {
        self.now().1.as_secs_f64()
    }
}

#[cfg(test)]
mod tests;
