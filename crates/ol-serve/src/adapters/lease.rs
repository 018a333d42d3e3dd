//! A version that was resolved, and the lease that keeps it in memory.

use std::any::Any;
use std::fmt;
use std::ops::Deref;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Poll, Waker};

use ol_model::{Lora, ModelConfig};
use ol_types::B256;

use super::table::{Answer, Loaded};
use super::version::{Version, rank_max};
use super::{AdapterError, Shared};

/// One immutable version of an adapter, which need not be in memory.
///
/// Clones are the same version and ask for leases on their own.
pub struct AdapterRef {
    kind: Kind,
}

enum Kind {
    Resident(Arc<Lora>),
    Stored(Stored),
}

struct Stored {
    shared: Arc<Shared>,
    version: Arc<Version>,
    /// Number of the demand for a lease; 0: there is none. Its lock is never
    /// contended: it makes the reference shareable.
    ticket: Mutex<u64>,
}

impl AdapterRef {
    /// An adapter that is in memory for as long as this exists, outside of any
    /// store and its budget.
    #[must_use]
    pub const fn resident(lora: Arc<Lora>) -> Self {
        Self {
            kind: Kind::Resident(lora),
        }
    }

    /// A reference that the table has counted.
    pub(super) fn stored(shared: &Arc<Shared>, version: &Arc<Version>) -> Self {
        Self {
            kind: Kind::Stored(Stored {
                shared: Arc::clone(shared),
                version: Arc::clone(version),
                ticket: Mutex::new(0),
            }),
        }
    }

    /// Hash of its content: what caches key on and receipts name.
    #[must_use]
    pub fn hash(&self) -> B256 {
        match &self.kind {
            Kind::Resident(lora) => lora.hash(),
            Kind::Stored(stored) => stored.version.hash,
        }
    }

    /// Largest rank of its factors.
    #[must_use]
    pub fn rank_max(&self) -> usize {
        match &self.kind {
            Kind::Resident(lora) => rank_max(lora),
            Kind::Stored(stored) => stored.version.rank_max,
        }
    }

    /// Whether it is a weighted sum of others, which no receipt can name.
    #[must_use]
    pub fn is_sum(&self) -> bool {
        matches!(&self.kind, Kind::Stored(stored) if stored.version.is_sum())
    }

    /// Whether it was made for models of this shape.
    #[must_use]
    pub fn fits(&self, model: &ModelConfig) -> bool {
        match &self.kind {
            Kind::Resident(lora) => lora.fits(model),
            Kind::Stored(stored) => stored.shared.reader.model == *model,
        }
    }

    /// The adapter under a lease, if it is in memory. If it is not, this asks
    /// for it to be loaded and keeps `waker`, which is woken once there is
    /// something to see; the latest waker counts. Never blocks; asking early is
    /// prefetching. Dropping the reference takes the wish back.
    ///
    /// `waker` may be woken on another thread, with no lock of the store held.
    ///
    /// # Errors
    /// [`AdapterError`] when loading failed.
    pub fn poll_lease(&self, waker: &Waker) -> Poll<Result<AdapterLease, AdapterError>> {
        let stored = match &self.kind {
            Kind::Resident(lora) => {
                let lora = Arc::clone(lora);
                return Poll::Ready(Ok(AdapterLease {
                    loaded: Loaded { lora, device: None },
                    held: None,
                }));
            }
            Kind::Stored(stored) => stored,
        };
        let shared = &stored.shared;
        let now_s = shared.components.clock.monotonic_s();
        let mut ticket = stored.ticket.lock().unwrap_or_else(PoisonError::into_inner);
        let answer = shared.change(|state, _| {
            let table = &mut state.table;
            table.poll(&stored.version, &mut ticket, waker, now_s)
        });
        match answer {
            Answer::Leased(loaded) => Poll::Ready(Ok(AdapterLease {
                loaded,
                held: Some(Held {
                    shared: Arc::clone(shared),
                    hash: stored.version.hash,
                }),
            })),
            Answer::Pending => Poll::Pending,
            Answer::Failed(error) => Poll::Ready(Err(error)),
        }
    }
}

impl Clone for AdapterRef {
    fn clone(&self) -> Self {
        match &self.kind {
            Kind::Resident(lora) => Self::resident(Arc::clone(lora)),
            Kind::Stored(stored) => {
                let Stored {
                    shared, version, ..
                } = stored;
                shared.change(|state, _| state.table.add_ref(version));
                Self::stored(shared, version)
            }
        }
    }
}

impl Drop for Stored {
    fn drop(&mut self) {
        let ticket = *self
            .ticket
            .get_mut()
            .unwrap_or_else(PoisonError::into_inner);
        self.shared.change(|state, after| {
            state.table.drop_ref(self.version.hash, ticket, after);
        });
    }
}

impl fmt::Debug for AdapterRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AdapterRef")
            .field("hash", &self.hash())
            .finish_non_exhaustive()
    }
}

/// An adapter in memory, which stays there while this exists.
pub struct AdapterLease {
    loaded: Loaded,
    held: Option<Held>,
}

struct Held {
    shared: Arc<Shared>,
    hash: B256,
}

impl Drop for Held {
    fn drop(&mut self) {
        self.shared
            .change(|state, after| state.table.drop_lease(self.hash, after));
    }
}

impl AdapterLease {
    /// Its copy on the device, as [`super::AdapterDevice::upload`] made it.
    #[must_use]
    pub fn device(&self) -> Option<&(dyn Any + Send + Sync)> {
        self.loaded.device.as_deref()
    }
}

impl Deref for AdapterLease {
    type Target = Lora;

    fn deref(&self) -> &Lora {
        &self.loaded.lora
    }
}

impl fmt::Debug for AdapterLease {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AdapterLease")
            .field("is_stored", &self.held.is_some())
            .finish_non_exhaustive()
    }
}
