//! What a node tells its subscribers.

use std::sync::Arc;

use crate::follow::FollowStatus;
use crate::mempool::PooledTransaction;
use crate::pending::PendingBlock;
use alloy_primitives::B256;
use ol_evm::{Header, Recovered, Transaction, TransactionReceipt};

/// A block and what it left.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewBlock {
    /// Its header.
    pub header: Header,
    /// Hash of the header.
    pub hash: B256,
    /// Its transactions with their senders, in order.
    pub transactions: Vec<Recovered<Transaction>>,
    /// One receipt for each.
    pub receipts: Vec<TransactionReceipt>,
}

/// Something that happened to the chain. Events come in the order in which
/// things happened.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub enum ChainEvent {
    /// A block is on disk and is the newest now.
    Block(Arc<NewBlock>),
    /// Blocks are no more part of the chain. The blocks that took their place
    /// come next.
    Unwound {
        /// The blocks, newest first.
        blocks: Arc<[NewBlock]>,
    },
    /// Transactions were executed in the pending block: their receipts and
    /// what they changed can be seen by [`BlockRef::Pending`](crate::BlockRef::Pending).
    Pending(Arc<PendingBlock>),
    /// Transactions were taken into the pool, in this order.
    PendingTransactions(Arc<[Arc<PooledTransaction>]>),
    /// The node follows another one, and has begun or ceased to catch up:
    /// [`FollowStatus::is_syncing`] says which.
    Syncing(Arc<FollowStatus>),
}
