//! Waking the engine's thread.

use std::sync::{Condvar, Mutex, PoisonError};
use std::time::Duration;

/// A flag that one thread waits for. It stays raised until it is seen, so that
/// nothing is missed between looking for work and waiting. Holds no other lock.
#[derive(Debug, Default)]
pub(super) struct Signal {
    is_raised: Mutex<bool>,
    changed: Condvar,
}

impl Signal {
    pub(super) fn raise(&self) {
        *self
            .is_raised
            .lock()
            .unwrap_or_else(PoisonError::into_inner) = true;
        self.changed.notify_all();
    }

    /// Waits until it is raised or the time is over, and lowers it.
    pub(super) fn wait(&self, timeout: Option<Duration>) {
        let mut is_raised = self
            .is_raised
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let is_low = |is_raised: &mut bool| !*is_raised;
        is_raised = match timeout {
            Some(timeout) => {
                self.changed
                    .wait_timeout_while(is_raised, timeout, is_low)
                    .unwrap_or_else(PoisonError::into_inner)
                    .0
            }
            None => self
                .changed
                .wait_while(is_raised, is_low)
                .unwrap_or_else(PoisonError::into_inner),
        };
        *is_raised = false;
    }
}
