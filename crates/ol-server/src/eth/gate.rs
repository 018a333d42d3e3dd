//! How many methods run at one time, and for how long one is waited for.
//!
//! A method that reads the disk or runs the EVM blocks a thread. Reads and
//! calls have threads of their own, so that slow calls never keep a balance
//! from being answered. Past the threads methods wait, past the places to wait
//! they are refused, and past the time limit the caller is told so; the thread
//! is free again only when the method has ended.

use std::sync::Arc;
use std::time::Duration;

use jsonrpsee::types::ErrorObjectOwned;
use tokio::sync::Semaphore;

use super::{Limits, errors};

/// What a method costs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Weight {
    /// Memory only: answered where it arrives.
    Free,
    /// A few reads of the database.
    Read,
    /// Runs the EVM, or reads much.
    Call,
    /// Runs the EVM and keeps what it does.
    Trace,
}

/// The way to the threads.
#[derive(Debug)]
pub(super) struct Gate {
    reads: Lane,
    calls: Lane,
    traces: Lane,
    timeout: Duration,
}

#[derive(Debug)]
struct Lane {
    /// Those that run or wait.
    places: Arc<Semaphore>,
    /// Those that run.
    threads: Arc<Semaphore>,
}

impl Lane {
    fn new(threads: usize, waiting_max: usize) -> Self {
        Self {
            places: Arc::new(Semaphore::new(threads.saturating_add(waiting_max))),
            threads: Arc::new(Semaphore::new(threads)),
        }
    }
}

impl Gate {
    pub(super) fn new(limits: &Limits) -> Self {
        Self {
            reads: Lane::new(limits.reads_max, limits.waiting_max),
            calls: Lane::new(limits.calls_max, limits.waiting_max),
            traces: Lane::new(limits.traces_max, limits.traces_waiting_max),
            timeout: Duration::from_secs(limits.request_timeout_s),
        }
    }

    /// Runs `work` on a thread that may block.
    ///
    /// # Errors
    /// If too many wait, or it takes too long.
    pub(super) async fn run<T: Send + 'static>(
        &self,
        weight: Weight,
        work: impl FnOnce() -> Result<T, ErrorObjectOwned> + Send + 'static,
    ) -> Result<T, ErrorObjectOwned> {
        let lane = match weight {
            Weight::Free => return work(),
            Weight::Read => &self.reads,
            Weight::Call => &self.calls,
            Weight::Trace => &self.traces,
        };
        let place = Arc::clone(&lane.places)
            .try_acquire_owned()
            .map_err(|_| errors::busy())?;
        let threads = Arc::clone(&lane.threads);
        let answered = self.within(async move {
            let thread = threads.acquire_owned().await.map_err(|_| errors::busy())?;
            tokio::task::spawn_blocking(move || {
                // Held until the method has ended, even if nobody waits for it.
                let _held = (place, thread);
                work()
            })
            .await
            .map_err(|failure| errors::internal(&failure))?
        });
        answered.await
    }

    /// Waits for an answer no longer than a request may take.
    ///
    /// # Errors
    /// If it takes too long.
    pub(super) async fn within<T>(
        &self,
        answer: impl Future<Output = Result<T, ErrorObjectOwned>> + Send,
    ) -> Result<T, ErrorObjectOwned> {
        tokio::time::timeout(self.timeout, answer)
            .await
            .map_err(|_| errors::timed_out())?
    }
}

#[cfg(test)]
mod tests;
