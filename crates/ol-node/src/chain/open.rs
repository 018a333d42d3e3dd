//! The open block: transactions are executed in it as they come.

use std::collections::HashSet;
use std::sync::Arc;

use alloy_consensus::Transaction as _;
use alloy_primitives::{Address, B256, Bytes, KECCAK256_EMPTY, U256};
use ol_evm::{AccountState, BlockBuilder, BlockContext, ExecuteError, LeftOut, StateDiff};
use signet_libmdbx::Ro;

use super::BlockMakingError;
use crate::mempool::PooledTransaction;
use crate::node::Shared;
use crate::pending::{PendingBlock, PendingTransaction};
use crate::store::Txn;

/// Accounts whose nonce or balance a transaction changed without being their
/// own: code that runs in their name did it (EIP-7702).
pub(super) type Emptied = Vec<(Address, u64, U256)>;

pub(super) struct OpenBlock {
    builder: BlockBuilder<Txn<Ro>>,
    transactions: Vec<Arc<PooledTransaction>>,
    hashes: HashSet<B256>,
    size_bytes: usize,
    n_logs: u64,
    /// There was no room for a transaction.
    pub(super) is_full: bool,
    block: PendingBlock,
    /// Executed, and not in `block` yet.
    unpublished: Vec<(PendingTransaction, StateDiff)>,
}

impl OpenBlock {
    /// Opens a block on top of the newest one, now.
    pub(super) fn new(shared: &Shared) -> Result<Self, BlockMakingError> {
        let context = shared.next_context();
        let builder = BlockBuilder::new(shared.store.read()?, &context)?;
        let mut block = PendingBlock::empty(context);
        block.overlay.push(std::slice::from_ref(builder.opening()));
        Ok(Self {
            builder,
            transactions: Vec::new(),
            hashes: HashSet::new(),
            size_bytes: 0,
            n_logs: 0,
            is_full: false,
            block,
            unpublished: Vec::new(),
        })
    }

    pub(super) const fn context(&self) -> &BlockContext {
        self.builder.context()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.transactions.is_empty()
    }

    pub(super) fn contains(&self, hash: &B256) -> bool {
        self.hashes.contains(hash)
    }

    pub(super) fn transactions(&self) -> &[Arc<PooledTransaction>] {
        &self.transactions
    }

    pub(super) fn into_transactions(self) -> Vec<Arc<PooledTransaction>> {
        self.transactions
    }

    pub(super) const fn size_bytes(&self) -> usize {
        self.size_bytes
    }

    /// The account at an address after the transactions so far.
    pub(super) fn account(&mut self, address: Address) -> Result<AccountState, ExecuteError> {
        Ok(self.builder.account(address)?.unwrap_or_default())
    }

    /// The code of an account after the transactions so far.
    pub(super) fn code(&mut self, address: Address) -> Result<Bytes, ExecuteError> {
        self.builder.code(address)
    }

    /// Executes one more transaction, or says why it is not in the block.
    pub(super) fn execute(
        &mut self,
        pooled: &Arc<PooledTransaction>,
    ) -> Result<Result<Emptied, LeftOut>, ExecuteError> {
        if pooled.transaction.gas_limit() > self.builder.gas_left() {
            return Ok(Err(LeftOut::NoRoom));
        }
        let outcome = match self.builder.execute(&pooled.transaction)? {
            Ok(outcome) => outcome,
            Err(left_out) => return Ok(Err(left_out)),
        };
        let emptied = outcome
            .changes
            .accounts
            .iter()
            .filter(|(address, _)| **address != pooled.sender())
            .filter_map(|(&address, change)| Some((address, change.account?)))
            .filter(|(_, account)| account.code_hash != KECCAK256_EMPTY)
            .map(|(address, account)| (address, account.nonce, account.balance_wei))
            .collect();
        self.transactions.push(Arc::clone(pooled));
        self.hashes.insert(pooled.hash);
        self.size_bytes += pooled.size_bytes;
        let n_logs_before = self.n_logs;
        self.n_logs += outcome.receipt.logs().len() as u64;
        let pending = PendingTransaction {
            transaction: pooled.transaction.clone(),
            hash: pooled.hash,
            receipt: outcome.receipt,
            gas_used: outcome.gas_used,
            n_logs_before,
        };
        self.unpublished.push((pending, outcome.changes));
        Ok(Ok(emptied))
    }

    /// The block with everything that was executed; `None` if it is as it was.
    pub(super) fn publish(&mut self) -> Option<PendingBlock> {
        if self.unpublished.is_empty() {
            return None;
        }
        let (executed, changes): (Vec<_>, Vec<_>) = self.unpublished.drain(..).unzip();
        self.block.n_new = executed.len();
        self.block
            .transactions
            .extend(executed.into_iter().map(Arc::new));
        let n_before = self.block.pooled.len();
        let executed = self.transactions[n_before..].iter().map(Arc::clone);
        self.block.pooled.extend(executed);
        self.block.overlay.push(&changes);
        Some(self.block.clone())
    }

    pub(super) fn into_parts(self) -> (BlockBuilder<Txn<Ro>>, Vec<Arc<PooledTransaction>>) {
        (self.builder, self.transactions)
    }
}
