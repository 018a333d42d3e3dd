//! Going back to an older block.

use std::sync::Arc;

use alloy_primitives::Address;
use ol_evm::{StateReader, header};
use signet_libmdbx::Ro;

use super::Chain;
use crate::Node;
use crate::event::{ChainEvent, NewBlock};
use crate::node::Head;
use crate::store::{StoreError, Txn};

/// Most blocks in one event.
const EVENT_MAX_BLOCKS: usize = 64;

/// Why the chain did not go back.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum UnwindError {
    /// There is no such block.
    #[error("block {number} is not there: the newest is {newest}")]
    UnknownBlock {
        /// The block asked for.
        number: u64,
        /// The newest block.
        newest: u64,
    },
    /// The state of the block is no longer kept, or the database failed. The
    /// chain is as it was.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The node is stopping.
    #[error("the node is stopping")]
    Stopped,
}

impl Node {
    /// Takes the chain back to block `to`, and returns how many blocks are gone,
    /// with their transactions, when that is on disk. State, history and
    /// indices are then what they were when `to` was the newest block. Waiting
    /// transactions stay, and count from the nonces of that state.
    ///
    /// On a chain that others follow, this is a promise broken: followers change
    /// to the blocks that come next.
    ///
    /// # Errors
    /// [`UnwindError`]; the chain is then as it was.
    pub fn unwind(&self, to: u64) -> Result<u64, UnwindError> {
        self.on_chain_thread(move |chain| chain.unwind(to))
            .map_err(|_| UnwindError::Stopped)?
    }
}

impl Chain {
    fn unwind(&mut self, to: u64) -> Result<u64, UnwindError> {
        let newest = self.shared.head().header.number;
        if to == newest {
            return Ok(0);
        }
        // Still sees the blocks when they are gone.
        let before = self.shared.store.read()?;
        let target = before.header(to)?;
        let (header, hash) = target.ok_or(UnwindError::UnknownBlock { number: to, newest })?;
        self.abandon_open();
        let txn = self.shared.store.write()?;
        txn.unwind(to)?;
        txn.commit()?;
        tracing::warn!(from = newest, to, %hash, "the chain went back");

        let base_fee_wei = header::next_base_fee_wei(&header);
        self.shared.set_head(Head { header, hash });
        self.shared.set_pending(None);
        self.shared.pool().open_block(base_fee_wei);
        self.recount_senders()?;
        let mut blocks = Vec::new();
        for number in (to + 1..=newest).rev() {
            blocks.push(stored_block(&before, number)?);
            if blocks.len() == EVENT_MAX_BLOCKS || number == to + 1 {
                self.shared.publish(&ChainEvent::Unwound {
                    blocks: std::mem::take(&mut blocks).into(),
                });
            }
        }
        Ok(newest - to)
    }

    /// Tells the pool what its senders have now.
    fn recount_senders(&mut self) -> Result<(), StoreError> {
        let shared = Arc::clone(&self.shared);
        let state = shared.store.read()?;
        let senders: Vec<Address> = shared.pool().senders().collect();
        for address in senders {
            let account = state.account(address)?.unwrap_or_default();
            let mut pool = shared.pool();
            let dropped = pool.update_sender(address, account.nonce, account.balance_wei);
            drop(pool);
            self.tell_dropped(dropped);
        }
        Ok(())
    }
}

fn stored_block(txn: &Txn<Ro>, number: u64) -> Result<NewBlock, StoreError> {
    let (header, hash) = txn
        .header(number)?
        .ok_or_else(|| StoreError::corrupt(format!("block {number} is missing")))?;
    Ok(NewBlock {
        header,
        hash,
        transactions: txn.body(number)?,
        receipts: txn.receipts(number)?,
    })
}
