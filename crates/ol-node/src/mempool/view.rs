//! What can be asked of the pool.

use std::sync::Arc;

use alloy_primitives::{Address, B256};
use ol_evm::StateReader;

use super::{PoolContent, PoolStatus, PooledTransaction};
use crate::Node;
use crate::query::{BlockRef, QueryError};

impl Node {
    /// How full the pool is.
    #[must_use]
    pub fn pool_status(&self) -> PoolStatus {
        let mut status = self.shared.pool().status();
        for pooled in &self.pending().pooled {
            status.pending += 1;
            status.size_bytes += pooled.size_bytes;
        }
        status
    }

    /// Everything that is in the pool. Its size is bounded by
    /// [`PoolConfig`](crate::PoolConfig).
    #[must_use]
    pub fn pool_content(&self) -> PoolContent {
        let mut content = self.shared.pool().content();
        for pooled in &self.pending().pooled {
            let by_nonce = content.pending.entry(pooled.sender()).or_default();
            by_nonce.insert(pooled.nonce(), Arc::clone(pooled));
        }
        content
    }

    /// A transaction that waits, or that was executed in the pending block.
    #[must_use]
    pub fn pool_transaction(&self, hash: B256) -> Option<Arc<PooledTransaction>> {
        if let Some(pooled) = self.shared.pool().get(&hash) {
            return Some(Arc::clone(pooled));
        }
        let pending = self.pending();
        let (position, _) = pending.find(hash)?;
        pending.pooled.get(position).cloned()
    }

    /// The nonce that the next transaction of an account should have, counting
    /// those that wait and follow each other.
    ///
    /// # Errors
    /// [`QueryError::Store`].
    pub fn next_nonce(&self, address: Address) -> Result<u64, QueryError> {
        if let Some(next_nonce) = self.shared.pool().next_nonce(&address) {
            return Ok(next_nonce);
        }
        let account = self.state(BlockRef::Pending)?.account(address)?;
        Ok(account.unwrap_or_default().nonce)
    }
}
