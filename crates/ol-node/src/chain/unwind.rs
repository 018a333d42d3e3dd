//! Going back to an older block.

use std::collections::VecDeque;
use std::sync::Arc;

use alloy_consensus::Typed2718 as _;
use alloy_primitives::B256;
use ol_evm::header;
use signet_libmdbx::Ro;

use super::Chain;
use crate::Node;
use crate::admission::POOLED_TYPES;
use crate::event::{ChainEvent, NewBlock};
use crate::intake;
use crate::mempool::PooledTransaction;
use crate::node::{Head, Role, Shared};
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
    /// Takes the chain back to block `to`, and returns how many blocks are gone
    /// when that is on disk. State, history and indices are then what they were
    /// when `to` was the newest block.
    ///
    /// Of the transactions of these blocks, those that `waits_again` names and
    /// that are still valid go back to the pool, and so into the blocks to
    /// come; as many as the pool holds, the oldest first. The others are
    /// forgotten. What waited stays, and counts from the nonces of that state.
    ///
    /// On a chain that others follow, this is a promise broken: followers change
    /// to the blocks that come next.
    ///
    /// # Errors
    /// [`UnwindError`]; the chain is then as it was.
    pub fn unwind(
        &self,
        to: u64,
        waits_again: impl Fn(&B256) -> bool + Send + 'static,
    ) -> Result<u64, UnwindError> {
        let unwind = move |chain: &mut Chain| {
            let n_gone = chain.unwind(to, &waits_again)?;
            // What waits again is executed before anybody looks.
            chain.work();
            Ok(n_gone)
        };
        self.on_chain_thread(unwind)
            .map_err(|_| UnwindError::Stopped)?
    }
}

impl Chain {
    fn unwind(&mut self, to: u64, waits_again: &dyn Fn(&B256) -> bool) -> Result<u64, UnwindError> {
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
        let mut waiting = Waiting::new(&self.shared);
        let mut blocks = Vec::new();
        for number in (to + 1..=newest).rev() {
            let block = stored_block(&before, number)?;
            waiting.add(&block, waits_again);
            blocks.push(block);
            if blocks.len() == EVENT_MAX_BLOCKS || number == to + 1 {
                self.shared.publish(&ChainEvent::Unwound {
                    blocks: std::mem::take(&mut blocks).into(),
                });
            }
        }
        self.take_back(waiting.oldest_first.into());
        Ok(newest - to)
    }
}

/// Transactions of blocks that are gone, as many as the pool may hold.
struct Waiting<'a> {
    shared: &'a Shared,
    now_s: u64,
    size_bytes: usize,
    oldest_first: VecDeque<Arc<PooledTransaction>>,
}

impl<'a> Waiting<'a> {
    fn new(shared: &'a Shared) -> Self {
        Self {
            shared,
            now_s: shared.clock.unix_s(),
            size_bytes: 0,
            oldest_first: VecDeque::new(),
        }
    }

    /// Puts the transactions of a block before those of the blocks after it.
    fn add(&mut self, block: &NewBlock, waits_again: &dyn Fn(&B256) -> bool) {
        // A node that makes no blocks has nothing in its pool.
        if self.shared.config.role == Role::Follower {
            return;
        }
        for transaction in block.transactions.iter().rev() {
            let is_wanted = waits_again(&transaction.tx_hash());
            if !is_wanted || !POOLED_TYPES.contains(&transaction.ty()) {
                continue;
            }
            let pooled = intake::with_sender(transaction.clone(), self.now_s);
            self.size_bytes += pooled.size_bytes;
            self.oldest_first.push_front(Arc::new(pooled));
            self.drop_newest();
        }
    }

    fn drop_newest(&mut self) {
        let limits = &self.shared.config.pool;
        while self.oldest_first.len() > limits.transactions_max
            || self.size_bytes > limits.size_bytes_max
        {
            let Some(newest) = self.oldest_first.pop_back() else {
                break;
            };
            self.size_bytes -= newest.size_bytes;
        }
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
