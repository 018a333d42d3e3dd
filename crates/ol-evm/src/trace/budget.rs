//! What recording may cost.

use std::fmt;
use std::sync::Arc;

use revm::context_interface::{ContextTr, context::ContextError};
use revm::interpreter::Interpreter;
use revm::interpreter::interpreter_types::LoopControl;

/// Instructions between two looks at the clock: about 50 µs.
const STEPS_BETWEEN_CHECKS: u64 = 8_192;

/// Limits of one trace request, over all transactions that it traces.
#[derive(Clone)]
pub struct TraceLimits {
    /// Most bytes of what is recorded. Default 256 MiB.
    pub size_max_bytes: usize,
    /// Most single instructions that are recorded. Default 2,000,000.
    pub steps_max: u64,
    /// Whether the time is over; asked every few thousand instructions and
    /// between transactions. The default never says yes.
    pub is_over: Arc<dyn Fn() -> bool + Send + Sync>,
}

impl Default for TraceLimits {
    fn default() -> Self {
        Self {
            size_max_bytes: 256 << 20,
            steps_max: 2_000_000,
            is_over: Arc::new(|| false),
        }
    }
}

impl fmt::Debug for TraceLimits {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TraceLimits")
            .field("size_max_bytes", &self.size_max_bytes)
            .field("steps_max", &self.steps_max)
            .finish_non_exhaustive()
    }
}

/// Which limit of [`TraceLimits`] was passed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum LimitPassed {
    /// Too much was recorded.
    #[error("the trace is larger than {max_bytes} bytes")]
    Size {
        /// The limit.
        max_bytes: usize,
    },
    /// Too many single instructions were recorded.
    #[error("the trace has more than {max} steps")]
    Steps {
        /// The limit.
        max: u64,
    },
    /// It took too long.
    #[error("the trace took too long")]
    Time,
}

/// What is used of the limits so far.
#[derive(Debug)]
pub(crate) struct Budget {
    limits: TraceLimits,
    size_bytes: usize,
    n_recorded: u64,
    n_seen: u64,
    passed: Option<LimitPassed>,
}

impl Default for Budget {
    fn default() -> Self {
        Self::new(TraceLimits::default())
    }
}

impl Budget {
    pub(crate) const fn new(limits: TraceLimits) -> Self {
        Self {
            limits,
            size_bytes: 0,
            n_recorded: 0,
            n_seen: 0,
            passed: None,
        }
    }

    /// The first limit that was passed.
    pub(crate) const fn passed(&self) -> Option<LimitPassed> {
        self.passed
    }

    /// Whether so many bytes more may be recorded.
    pub(crate) fn take_bytes(&mut self, size_bytes: usize) -> bool {
        self.size_bytes = self.size_bytes.saturating_add(size_bytes);
        if self.size_bytes > self.limits.size_max_bytes {
            self.pass(LimitPassed::Size {
                max_bytes: self.limits.size_max_bytes,
            });
        }
        self.passed.is_none()
    }

    /// Whether one instruction more may be recorded, of so many bytes.
    pub(crate) fn take_step(&mut self, size_bytes: usize) -> bool {
        self.n_recorded += 1;
        if self.n_recorded > self.limits.steps_max {
            self.pass(LimitPassed::Steps {
                max: self.limits.steps_max,
            });
        }
        self.take_bytes(size_bytes)
    }

    /// Counts an instruction, recorded or not, and looks at the clock now and
    /// then.
    pub(crate) fn see_step(&mut self) {
        self.n_seen += 1;
        if self.n_seen.is_multiple_of(STEPS_BETWEEN_CHECKS) {
            self.check_time();
        }
    }

    pub(crate) fn check_time(&mut self) {
        if (self.limits.is_over)() {
            self.pass(LimitPassed::Time);
        }
    }

    fn pass(&mut self, limit: LimitPassed) {
        self.passed.get_or_insert(limit);
    }

    /// Stops the EVM if a limit was passed: the transaction ends as if the
    /// database had failed, so nothing of it can be taken for a result.
    pub(crate) fn stop_if_passed<CTX: ContextTr>(
        &self,
        interpreter: &mut Interpreter,
        context: &mut CTX,
    ) {
        let Some(limit) = self.passed else {
            return;
        };
        if context.error().is_ok() {
            *context.error() = Err(ContextError::Custom(limit.to_string()));
        }
        interpreter.bytecode.action().take();
        interpreter.bytecode.reset_action();
        interpreter.halt_fatal();
    }
}
