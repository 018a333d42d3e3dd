//! A state that can be read, at one block.

use std::sync::Arc;

use alloy_primitives::{Address, B256, Bytes, U256};
use ol_evm::{AccountState, StateReader};

use crate::pending::PendingBlock;
use crate::store::{Snapshot, StoreError};

/// The state after one block. It stays the same for as long as it lives,
/// whatever happens to the chain; it holds a database snapshot, so let go of
/// it soon.
#[derive(Debug)]
pub struct StateView {
    durable: Snapshot,
    pending: Option<Arc<PendingBlock>>,
}

impl StateView {
    /// The state after a durable block.
    pub(crate) const fn durable(durable: Snapshot) -> Self {
        Self {
            durable,
            pending: None,
        }
    }

    /// The state after the pending block, whose parent is the newest block
    /// that `durable` has.
    pub(crate) const fn pending(durable: Snapshot, pending: Arc<PendingBlock>) -> Self {
        Self {
            durable,
            pending: Some(pending),
        }
    }
}

impl StateReader for StateView {
    type Error = StoreError;

    fn account(&self, address: Address) -> Result<Option<AccountState>, StoreError> {
        let pending = self.pending.as_deref();
        match pending.and_then(|pending| pending.overlay.account(address)) {
            Some(account) => Ok(account),
            None => self.durable.account(address),
        }
    }

    fn code(&self, hash: B256) -> Result<Bytes, StoreError> {
        let pending = self.pending.as_deref();
        match pending.and_then(|pending| pending.overlay.code(hash)) {
            Some(code) => Ok(code),
            None => self.durable.code(hash),
        }
    }

    fn storage(&self, address: Address, slot: U256) -> Result<U256, StoreError> {
        let pending = self.pending.as_deref();
        match pending.and_then(|pending| pending.overlay.storage(address, slot)) {
            Some(value) => Ok(value),
            None => self.durable.storage(address, slot),
        }
    }

    fn block_hash(&self, number: u64) -> Result<B256, StoreError> {
        self.durable.block_hash(number)
    }
}
