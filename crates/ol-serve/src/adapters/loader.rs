//! Loads that begin and end when they are told to.

use std::fmt;
use std::sync::Arc;

use super::Shared;
use super::table::Job;

/// The loads of a store that has no threads for them
/// ([`super::AdapterStore::without_threads`]): each begins and ends when it is told to,
/// and several may be under way.
pub struct AdapterLoader {
    pub(super) shared: Arc<Shared>,
}

impl fmt::Debug for AdapterLoader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AdapterLoader").finish_non_exhaustive()
    }
}

impl AdapterLoader {
    /// Begins the load that was asked for first, with room made for it; `None` if
    /// none is asked for, or there is no room yet.
    #[must_use]
    pub fn begin(&self) -> Option<AdapterLoad> {
        let job = self
            .shared
            .change(|state, after| state.table.next_job(after))?;
        Some(AdapterLoad {
            shared: Arc::clone(&self.shared),
            job,
        })
    }
}

/// A load under way, which ends when this is dropped: the adapter is read then.
pub struct AdapterLoad {
    shared: Arc<Shared>,
    job: Job,
}

impl fmt::Debug for AdapterLoad {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AdapterLoad")
            .field("hash", &self.job.version.hash)
            .finish_non_exhaustive()
    }
}

impl Drop for AdapterLoad {
    fn drop(&mut self) {
        self.shared.run_job(&self.job);
    }
}
