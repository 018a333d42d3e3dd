//! A thread of the gateway.

use std::io;
use std::sync::{Mutex, PoisonError};
use std::thread::{self, JoinHandle};

/// A thread that whoever is first waits for.
#[derive(Debug)]
pub(super) struct Thread {
    handle: Mutex<Option<JoinHandle<()>>>,
}

impl Thread {
    pub(super) fn spawn(name: &str, work: impl FnOnce() + Send + 'static) -> io::Result<Self> {
        let handle = thread::Builder::new().name(name.to_owned()).spawn(work)?;
        Ok(Self {
            handle: Mutex::new(Some(handle)),
        })
    }

    pub(super) fn is_running(&self) -> bool {
        let handle = self.handle.lock().unwrap_or_else(PoisonError::into_inner);
        handle.as_ref().is_some_and(|handle| !handle.is_finished())
    }

    /// Waits for its end, if nobody did before. Blocks.
    pub(super) fn join(&self) {
        let handle = self
            .handle
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        if let Some(handle) = handle {
            // A panic was reported by its hook; what it left is in the journal.
            let _ = handle.join();
        }
    }
}
