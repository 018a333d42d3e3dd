//! Why an adapter cannot be had.

use std::path::PathBuf;

use ol_model::MAX_RANK;
use ol_types::B256;

/// Longest name of an adapter, in bytes.
pub const MAX_ADAPTER_NAME_BYTES: usize = 256;

/// Most adapters merged for one request.
pub const MAX_WEIGHTED_PARTS: usize = 8;

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
    /// The name stands for an adapter already, and replacing was not asked for.
    #[error("the name {name:?} is taken; unload it first, or ask for it to be replaced")]
    Taken {
        /// The name.
        name: String,
    },
    /// As many names as there may be.
    #[error("{n_max} adapters are registered, which is the most there may be; unload one first")]
    TooMany {
        /// The limit.
        n_max: usize,
    },
    /// The place is not below a configured root or store.
    #[error("{location:?} is not below a configured adapter root or store")]
    Location {
        /// What was asked for.
        location: String,
    },
    /// There is nothing at the place.
    #[error("{location}: there is no adapter")]
    Missing {
        /// The place.
        location: String,
    },
    /// The place could not be read; it may be readable later.
    #[error("{location}: {reason}")]
    Unreadable {
        /// The place.
        location: String,
        /// What the system or the store said.
        reason: String,
    },
    /// What is there is no adapter that can be served.
    #[error("{location}: {reason}")]
    Refused {
        /// The place.
        location: String,
        /// What is wrong with it.
        reason: String,
    },
    /// Its file, or what it takes in memory, is over a limit.
    #[error("the adapter has {size_bytes} bytes {what}, allowed are {limit_bytes}")]
    TooLarge {
        /// Where it has that size.
        what: &'static str,
        /// Its size.
        size_bytes: u64,
        /// The limit.
        limit_bytes: u64,
    },
    /// It was made for a model of another shape.
    #[error("the adapter does not fit the base model")]
    Misfit,
    /// What the source holds now is another adapter than the one registered.
    #[error("{location} has changed since it was registered as {expected}; register it again")]
    Changed {
        /// The place.
        location: String,
        /// Hash of the version that was registered.
        expected: B256,
    },
    /// Memory is full of adapters that are in use or pinned; try again later.
    #[error("{size_bytes} bytes are needed for the adapter, and all are in use or pinned")]
    Overloaded {
        /// What it takes.
        size_bytes: u64,
    },
    /// As many adapters are being registered as may be at a time; try again.
    #[error("other adapters are being registered; try again")]
    Busy,
    /// A weighted sum that cannot be made.
    #[error("the adapters cannot be merged: {reason}")]
    Merge {
        /// What is wrong.
        reason: String,
    },
    /// The store's folder, or a thread, could not be had.
    #[error("{}: {reason}", path.display())]
    Start {
        /// Folder concerned.
        path: PathBuf,
        /// What the system said.
        reason: String,
    },
    /// Loading panicked: a defect. The report is on stderr.
    #[error("loading the adapter failed")]
    Defect,
    /// The store is closed.
    #[error("the adapter store is closed")]
    Closed,
}

impl AdapterError {
    pub(super) fn too_high_rank(total: usize) -> Self {
        Self::Merge {
            reason: format!("their ranks add up to {total}, allowed are {MAX_RANK}"),
        }
    }
}
