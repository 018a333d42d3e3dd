//! When a worker that fails is left alone, and when it is tried again.

/// Failures in a row after which a worker is left alone.
const N_FAILURES_MAX: u32 = 3;

/// How long it is left alone at first; twice as long after each failed trial.
const OPEN_MIN_S: f64 = 1.0;

/// The longest it is left alone.
const OPEN_MAX_S: f64 = 30.0;

/// A circuit breaker: closed while a worker answers, open after some failures in
/// a row, half open for one trial when its time is over.
///
/// Time comes from outside: monotonic seconds.
///
/// # Source
/// Nygard, "Release It!", 2nd edition, chapter 5, "Circuit Breaker".
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Breaker {
    state: State,
    n_failures: u32,
    open_s: f64,
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum State {
    Closed,
    Open { until_s: f64 },
    Trial,
}

impl Default for Breaker {
    fn default() -> Self {
        Self {
            state: State::Closed,
            n_failures: 0,
            open_s: OPEN_MIN_S,
        }
    }
}

impl Breaker {
    /// Whether a request may go through now.
    pub(super) fn allows(&self, now_s: f64) -> bool {
        match self.state {
            State::Closed => true,
            State::Open { until_s } => now_s >= until_s,
            State::Trial => false,
        }
    }

    /// A request goes through; it must be [`Breaker::allows`]ed. The first one
    /// after an opening is the trial, and the only one until it ends.
    pub(super) fn begin(&mut self) {
        if let State::Open { .. } = self.state {
            self.state = State::Trial;
        }
    }

    /// A request was answered.
    pub(super) fn succeed(&mut self) {
        *self = Self::default();
    }

    /// A request failed by the worker's fault.
    pub(super) fn fail(&mut self, now_s: f64) {
        self.n_failures = self.n_failures.saturating_add(1);
        match self.state {
            State::Trial => self.open_s = (self.open_s * 2.0).min(OPEN_MAX_S),
            // What began before it opened fails late, and says nothing new.
            State::Open { .. } => return,
            State::Closed if self.n_failures < N_FAILURES_MAX => return,
            State::Closed => {}
        }
        self.state = State::Open {
            until_s: now_s + self.open_s,
        };
    }

    /// A request ended without telling anything about the worker.
    pub(super) fn abandon(&mut self, now_s: f64) {
        if self.state == State::Trial {
            self.state = State::Open { until_s: now_s };
        }
    }

    /// What it is called in a report.
    pub(super) fn as_str(&self, now_s: f64) -> &'static str {
        match self.state {
            State::Closed => "closed",
            State::Open { until_s } if now_s < until_s => "open",
            State::Open { .. } | State::Trial => "half-open",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_opens_after_failures_in_a_row_and_closes_after_a_trial() {
        let mut breaker = Breaker::default();
        for now_s in 0..10 {
            // A success in between starts the count anew.
            for _ in 1..N_FAILURES_MAX {
                breaker.fail(f64::from(now_s));
            }
            assert!(breaker.allows(f64::from(now_s)));
            breaker.succeed();
        }
        for _ in 0..N_FAILURES_MAX {
            breaker.fail(10.0);
        }
        assert!(!breaker.allows(10.9));
        assert_eq!(breaker.as_str(10.9), "open");
        assert!(breaker.allows(11.0));
        breaker.begin();
        assert!(!breaker.allows(11.0), "one trial at a time");
        assert_eq!(breaker.as_str(11.0), "half-open");
        breaker.succeed();
        assert_eq!(breaker, Breaker::default());
    }

    #[test]
    fn every_failed_trial_doubles_the_pause_up_to_a_limit() {
        let mut breaker = Breaker::default();
        let mut now_s = 0.0;
        for _ in 0..N_FAILURES_MAX {
            breaker.fail(now_s);
        }
        let mut pauses = Vec::new();
        for _ in 0..8 {
            let start_s = now_s;
            while !breaker.allows(now_s) {
                now_s += 0.5;
            }
            pauses.push(now_s - start_s);
            breaker.begin();
            breaker.fail(now_s);
        }
        assert_eq!(pauses, [1.0, 2.0, 4.0, 8.0, 16.0, 30.0, 30.0, 30.0]);
    }

    #[test]
    fn a_trial_without_verdict_is_given_to_the_next() {
        let mut breaker = Breaker::default();
        for _ in 0..N_FAILURES_MAX {
            breaker.fail(0.0);
        }
        breaker.begin();
        breaker.abandon(2.0);
        assert!(breaker.allows(2.0));
        // Late failures of requests that began before it opened change nothing.
        breaker.fail(2.0);
        assert!(breaker.allows(2.0));
    }
}
