//! Makes a write of the calling thread fail, in tests.

use std::cell::Cell;

use super::StoreError;

thread_local! {
    /// Writes (commits too) that still succeed.
    static LEFT: Cell<usize> = const { Cell::new(usize::MAX) };
}

/// The write after `n_writes` more fails, and all after it, until this is
/// called again.
pub(crate) fn fail_after(n_writes: usize) {
    LEFT.set(n_writes);
}

pub(crate) fn never() {
    LEFT.set(usize::MAX);
}

pub(super) fn step() -> Result<(), StoreError> {
    match LEFT.get() {
        usize::MAX => Ok(()),
        0 => Err(StoreError::Full),
        left => {
            LEFT.set(left - 1);
            Ok(())
        }
    }
}
