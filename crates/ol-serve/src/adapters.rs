//! Adapters by name, and the lease under which a request uses one.
//!
//! A name stands for one immutable version, known by the hash of its content.
//! [`AdapterStore::resolve`] fixes the version a request will use; it never
//! waits. The engine then asks for a lease ([`AdapterRef::poll_lease`]), which
//! keeps the adapter in memory until it is dropped. Replacing or unloading a
//! name changes what is resolved from then on and nothing else.

use std::collections::BTreeMap;
use std::fmt;
use std::ops::Deref;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Poll, Waker};

use ol_model::{Lora, ModelConfig};
use ol_types::B256;

/// Longest name of an adapter, in bytes.
pub const MAX_ADAPTER_NAME_BYTES: usize = 256;

/// Bounds of an [`AdapterStore`].
#[derive(Debug, Clone)]
pub struct AdapterStoreOptions {
    /// Most names. Default 4,096.
    pub n_names_max: usize,
}

impl Default for AdapterStoreOptions {
    fn default() -> Self {
        Self { n_names_max: 4096 }
    }
}

/// Why an adapter cannot be had. Cheap to clone: one failure answers every
/// request that waited for it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum AdapterError {
    /// No adapter has this name.
    #[error("there is no adapter {name:?}")]
    Unknown {
        /// The name asked for.
        name: String,
    },
    /// The name is empty, too long, or has control characters.
    #[error("an adapter's name has 1 to {MAX_ADAPTER_NAME_BYTES} bytes and no control characters")]
    Name,
    /// As many names as there may be; unload one first.
    #[error("{n_max} adapters are registered, which is the most there may be; unload one first")]
    TooMany {
        /// The limit.
        n_max: usize,
    },
    /// It was made for a model of another shape.
    #[error("the adapter does not fit the base model")]
    Misfit,
}

/// Adapters by name. Clones share the store.
#[derive(Clone)]
pub struct AdapterStore {
    shared: Arc<Shared>,
}

struct Shared {
    model: ModelConfig,
    options: AdapterStoreOptions,
    by_name: Mutex<BTreeMap<Arc<str>, Arc<Lora>>>,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<Arc<str>, Arc<Lora>>> {
        // Every change is complete before anything can panic.
        self.by_name.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for AdapterStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AdapterStore")
            .field("n_names", &self.shared.lock().len())
            .finish_non_exhaustive()
    }
}

impl AdapterStore {
    /// An empty store of adapters for models shaped like `model`.
    #[must_use]
    pub fn new(model: &ModelConfig, options: AdapterStoreOptions) -> Self {
        Self {
            shared: Arc::new(Shared {
                model: model.clone(),
                options,
                by_name: Mutex::new(BTreeMap::new()),
            }),
        }
    }

    /// Puts an adapter that is in memory under a name, instead of what was
    /// there.
    ///
    /// # Errors
    /// [`AdapterError::Misfit`], [`AdapterError::Name`], [`AdapterError::TooMany`].
    pub fn insert(&self, name: &str, lora: Arc<Lora>) -> Result<AdapterRef, AdapterError> {
        if !lora.fits(&self.shared.model) {
            return Err(AdapterError::Misfit);
        }
        if !(1..=MAX_ADAPTER_NAME_BYTES).contains(&name.len()) || name.contains(char::is_control) {
            return Err(AdapterError::Name);
        }
        let mut by_name = self.shared.lock();
        let n_max = self.shared.options.n_names_max;
        if by_name.len() >= n_max && !by_name.contains_key(name) {
            return Err(AdapterError::TooMany { n_max });
        }
        by_name.insert(name.into(), Arc::clone(&lora));
        Ok(AdapterRef::resident(lora))
    }

    /// The version that `name` stands for now. Loads nothing.
    ///
    /// # Errors
    /// [`AdapterError::Unknown`].
    pub fn resolve(&self, name: &str) -> Result<AdapterRef, AdapterError> {
        match self.shared.lock().get(name) {
            Some(lora) => Ok(AdapterRef::resident(Arc::clone(lora))),
            None => Err(AdapterError::Unknown { name: name.into() }),
        }
    }

    /// Takes a name away; requests that resolved it before are not touched.
    ///
    /// # Errors
    /// [`AdapterError::Unknown`].
    pub fn unload(&self, name: &str) -> Result<(), AdapterError> {
        match self.shared.lock().remove(name) {
            Some(_) => Ok(()),
            None => Err(AdapterError::Unknown { name: name.into() }),
        }
    }

    /// All names, ascending.
    #[must_use]
    pub fn names(&self) -> Vec<String> {
        self.shared.lock().keys().map(ToString::to_string).collect()
    }
}

/// One immutable version of an adapter, which need not be in memory.
///
/// Clones are the same version and ask for leases on their own.
#[derive(Clone)]
pub struct AdapterRef {
    lora: Arc<Lora>,
}

impl AdapterRef {
    /// An adapter that is in memory for as long as this exists, outside of any
    /// store and its budget.
    #[must_use]
    pub const fn resident(lora: Arc<Lora>) -> Self {
        Self { lora }
    }

    /// Hash of its content: what caches key on and receipts name.
    #[must_use]
    pub fn hash(&self) -> B256 {
        self.lora.hash()
    }

    /// Largest rank of its factors.
    #[must_use]
    pub fn rank_max(&self) -> usize {
        let ranks = self.lora.blocks().iter().map(ol_model::LoraBlock::rank);
        ranks.max().unwrap_or(0)
    }

    /// Whether it was made for models of this shape.
    #[must_use]
    pub fn fits(&self, model: &ModelConfig) -> bool {
        self.lora.fits(model)
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
    pub fn poll_lease(&self, _waker: &Waker) -> Poll<Result<AdapterLease, AdapterError>> {
        Poll::Ready(Ok(AdapterLease {
            lora: Arc::clone(&self.lora),
        }))
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
    lora: Arc<Lora>,
}

impl Deref for AdapterLease {
    type Target = Lora;

    fn deref(&self) -> &Lora {
        &self.lora
    }
}

impl fmt::Debug for AdapterLease {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AdapterLease").finish_non_exhaustive()
    }
}
