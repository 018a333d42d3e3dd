//! The state tables and the trie without a chain on them, for benchmarks, fuzzers
//! and conformance tests. Not for products: nothing here has a header, a body or
//! history.

use std::path::Path;

use alloy_primitives::B256;
use ol_evm::StateDiff;

use crate::store::{Store, StoreError};

pub use crate::trie::memory::{MemoryTrie, Proof};

/// State tables in a directory of their own.
#[derive(Debug)]
pub struct StateTables {
    store: Store,
}

impl StateTables {
    /// Opens the tables, making them if they are not there.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn open(path: &Path) -> Result<Self, StoreError> {
        let store = Store::open(path, 256 << 30, |_| Ok::<_, StoreError>(()))?;
        Ok(Self { store })
    }

    /// The state root after a change, which is not written.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn root_after(&self, diff: &StateDiff) -> Result<B256, StoreError> {
        Ok(self.store.read()?.state_update(diff)?.root)
    }

    /// Applies a change durably. Returns the state root afterwards.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn apply(&self, diff: &StateDiff) -> Result<B256, StoreError> {
        let txn = self.store.write()?;
        let update = txn.state_update(diff)?;
        txn.write_state(&update)?;
        txn.commit()?;
        Ok(update.root)
    }

    /// The state root from all leaves, without any stored branch.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn rebuild_root(&self) -> Result<B256, StoreError> {
        self.store.read()?.rebuild_state_root()
    }
}
