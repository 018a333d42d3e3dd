//! What can be asked of a chain. Every query sees one whole block.

use std::sync::Arc;

use alloy_consensus::Transaction as _;
use alloy_primitives::{Address, B256, Bytes, U256};
use ol_evm::{
    BlockContext, CallError, CallOutput, CallRequest, Header, LimitPassed, Recovered,
    SimulateError, StateReader, TraceError, Transaction, TransactionReceipt, header,
};
use signet_libmdbx::Ro;

use crate::Node;
use crate::pending::PendingBlock;
use crate::store::{Snapshot, StoreError, Txn};
use crate::view::StateView;

mod logs;
mod proof;
mod trace;

pub use proof::{AccountProof, StorageProof};

pub use logs::{LOG_BLOCKS_READ_MAX, LOG_RANGE_MAX_BLOCKS, LOGS_MAX, LogFilter, LogInBlock};
pub use trace::{TraceConfig, TracedBlock, TracedTransaction};

/// Most blocks in one fee history.
pub const FEE_HISTORY_MAX_BLOCKS: u64 = 1_024;

/// Most slots in one proof.
pub const PROOF_SLOTS_MAX: usize = 1_024;

/// The tip that is suggested, in wei for one unit of gas. Nobody competes for
/// room while blocks are made on demand, so it is small.
pub const PRIORITY_FEE_WEI: u64 = 1_000_000;

/// Which block is meant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BlockRef {
    /// The newest durable block.
    Latest,
    /// The block that is being made. For a state or a context it is that block
    /// with what is in it; asked for a header, body or receipts it is
    /// [`BlockRef::Latest`], and [`Node::pending`] has the pending ones.
    Pending,
    /// Block 0.
    Earliest,
    /// The newest durable block, as long as there is no L1 to say more.
    Safe,
    /// The newest durable block, as long as there is no L1 to say more.
    Finalized,
    /// By number.
    Number(u64),
    /// By hash.
    Hash(B256),
}

/// Why a query has no answer.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum QueryError {
    /// There is no such block.
    #[error("unknown block")]
    UnknownBlock,
    /// The state of a block is asked for that is no longer kept.
    #[error("the state of block {number} is pruned: kept are those of blocks {oldest} to {newest}")]
    StatePruned {
        /// The block asked for.
        number: u64,
        /// The oldest block whose state is kept.
        oldest: u64,
        /// The newest block.
        newest: u64,
    },
    /// A proof is asked for at a block that is too far back.
    #[error("no proof for block {number}: proofs are given for blocks {oldest} to {newest}")]
    ProofTooOld {
        /// The block asked for.
        number: u64,
        /// The oldest block that proofs are given for.
        oldest: u64,
        /// The newest block.
        newest: u64,
    },
    /// More than [`PROOF_SLOTS_MAX`] slots are to be proven at one time.
    #[error("at most {PROOF_SLOTS_MAX} slots can be proven at one time")]
    TooManySlots,
    /// The block range of a log query is upside down.
    #[error("invalid block range params")]
    Range {
        /// First block asked for.
        from: u64,
        /// Last block asked for.
        to: u64,
    },
    /// More blocks would have to be read for a log query than may be.
    #[error(
        "query reads too many blocks, name an address or a topic, or retry with the range {from:#x}-{to:#x}"
    )]
    TooManyBlocks {
        /// First block asked for.
        from: u64,
        /// Last block of a range that is small enough.
        to: u64,
    },
    /// More than [`LOGS_MAX`] logs match.
    #[error("query exceeds max results {LOGS_MAX}, retry with the range {from:#x}-{to:#x}")]
    TooManyLogs {
        /// First block asked for.
        from: u64,
        /// Last block of a range that is small enough.
        to: u64,
    },
    /// Block 0 is made by nobody: there is nothing to replay.
    #[error("genesis is not traceable")]
    GenesisTrace,
    /// A trace would be too large, or would take too long.
    #[error(transparent)]
    TraceLimit(LimitPassed),
    /// A block could not be replayed.
    #[error("the block could not be replayed")]
    Trace(#[source] TraceError),
    /// Nothing could be simulated.
    #[error(transparent)]
    Simulate(#[from] SimulateError),
    /// A call could not be tried.
    #[error(transparent)]
    Call(#[from] CallError),
    /// The database failed.
    #[error(transparent)]
    Store(StoreError),
}

impl From<StoreError> for QueryError {
    fn from(error: StoreError) -> Self {
        match error {
            StoreError::Pruned {
                number,
                oldest,
                newest,
            } => Self::StatePruned {
                number,
                oldest,
                newest,
            },
            other => Self::Store(other),
        }
    }
}

/// A block with its transactions.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Block {
    /// Its header.
    pub header: Header,
    /// Hash of the header.
    pub hash: B256,
    /// Its transactions with their senders, in order.
    pub transactions: Vec<Recovered<Transaction>>,
}

/// A transaction and where it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TransactionInBlock {
    /// The transaction, with its sender.
    pub transaction: Recovered<Transaction>,
    /// Header of its block.
    pub header: Header,
    /// Hash of its block.
    pub block_hash: B256,
    /// Position in the block, from 0.
    pub position: usize,
}

/// A receipt and what it belongs to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReceiptInBlock {
    /// The receipt.
    pub receipt: TransactionReceipt,
    /// The transaction, and where it is.
    pub place: TransactionInBlock,
    /// Gas of this transaction alone.
    pub gas_used: u64,
    /// Logs of the block before those of this receipt.
    pub n_logs_before: u64,
}

impl ReceiptInBlock {
    /// What was paid for one unit of gas, in wei.
    #[must_use]
    pub fn effective_gas_price_wei(&self) -> u128 {
        let base_fee_wei = self.place.header.base_fee_per_gas;
        self.place.transaction.effective_gas_price(base_fee_wei)
    }

    /// The contract that the transaction made, if it was to make one.
    #[must_use]
    pub fn contract_address(&self) -> Option<Address> {
        let transaction = &self.place.transaction;
        transaction
            .is_create()
            .then(|| transaction.signer().create(transaction.nonce()))
    }
}

/// What gas cost in a row of blocks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FeeHistory {
    /// Number of the first block.
    pub oldest_block: u64,
    /// Base fee of every block and of the one after the last, in wei.
    pub base_fees_wei: Vec<u64>,
    /// Gas used and gas limit of every block.
    pub gas: Vec<(u64, u64)>,
    /// For every block, the tips at the percentiles asked for, in wei.
    pub tips_wei: Vec<Vec<u128>>,
}

impl Node {
    fn read(&self) -> Result<Txn<Ro>, QueryError> {
        Ok(self.shared.store.read()?)
    }

    /// The header of a block and its hash, if there is such a block.
    ///
    /// # Errors
    /// [`QueryError::Store`].
    pub fn header(&self, block: BlockRef) -> Result<Option<(Header, B256)>, QueryError> {
        Ok(find_header(&self.read()?, block)?)
    }

    /// A block, if there is one.
    ///
    /// # Errors
    /// [`QueryError::Store`].
    pub fn block(&self, block: BlockRef) -> Result<Option<Block>, QueryError> {
        let txn = self.read()?;
        let Some((header, hash)) = find_header(&txn, block)? else {
            return Ok(None);
        };
        let transactions = txn.body(header.number)?;
        Ok(Some(Block {
            header,
            hash,
            transactions,
        }))
    }

    /// All receipts of a block, if there is such a block.
    ///
    /// # Errors
    /// [`QueryError::Store`].
    pub fn block_receipts(
        &self,
        block: BlockRef,
    ) -> Result<Option<Vec<ReceiptInBlock>>, QueryError> {
        let txn = self.read()?;
        let Some((header, hash)) = find_header(&txn, block)? else {
            return Ok(None);
        };
        Ok(Some(receipts_of(&txn, &header, hash)?))
    }

    /// A transaction by its hash, if it is in a block.
    ///
    /// # Errors
    /// [`QueryError::Store`].
    pub fn transaction(&self, hash: B256) -> Result<Option<TransactionInBlock>, QueryError> {
        let txn = self.read()?;
        let Some((number, position)) = txn.transaction_place(hash)? else {
            return Ok(None);
        };
        let (header, block_hash) = known_header(&txn, number)?;
        let transaction = txn
            .body(number)?
            .into_iter()
            .nth(position)
            .ok_or_else(|| missing("a transaction", number))?;
        Ok(Some(TransactionInBlock {
            transaction,
            header,
            block_hash,
            position,
        }))
    }

    /// The receipt of a transaction, if it is in a block.
    ///
    /// # Errors
    /// [`QueryError::Store`].
    pub fn receipt(&self, transaction_hash: B256) -> Result<Option<ReceiptInBlock>, QueryError> {
        let txn = self.read()?;
        let Some((number, position)) = txn.transaction_place(transaction_hash)? else {
            return Ok(None);
        };
        let (header, hash) = known_header(&txn, number)?;
        let receipt = receipts_of(&txn, &header, hash)?
            .into_iter()
            .nth(position)
            .ok_or_else(|| missing("a receipt", number))?;
        Ok(Some(receipt))
    }

    /// The balance of an account, in wei.
    ///
    /// # Errors
    /// [`QueryError::UnknownBlock`], [`QueryError::StatePruned`].
    pub fn balance_wei(&self, address: Address, at: BlockRef) -> Result<U256, QueryError> {
        let account = self.state(at)?.account(address)?;
        Ok(account.unwrap_or_default().balance_wei)
    }

    /// The nonce of an account: that of its next transaction.
    ///
    /// # Errors
    /// As [`Node::balance_wei`].
    pub fn nonce(&self, address: Address, at: BlockRef) -> Result<u64, QueryError> {
        let account = self.state(at)?.account(address)?;
        Ok(account.unwrap_or_default().nonce)
    }

    /// The code of an account; empty if it has none.
    ///
    /// # Errors
    /// As [`Node::balance_wei`].
    pub fn code(&self, address: Address, at: BlockRef) -> Result<Bytes, QueryError> {
        let state = self.state(at)?;
        let account = state.account(address)?.unwrap_or_default();
        Ok(state.code(account.code_hash)?)
    }

    /// A storage slot of an account.
    ///
    /// # Errors
    /// As [`Node::balance_wei`].
    pub fn storage(&self, address: Address, slot: U256, at: BlockRef) -> Result<U256, QueryError> {
        Ok(StateReader::storage(&self.state(at)?, address, slot)?)
    }

    /// Tries a message after the transactions of a block: on its state, and
    /// with its number, time and base fee ([`Node::context`]).
    ///
    /// # Errors
    /// [`QueryError::Call`] if the message cannot be sent; a message that
    /// reverts is no error. Also as [`Node::balance_wei`].
    pub fn call(&self, request: &CallRequest, at: BlockRef) -> Result<CallOutput, QueryError> {
        let (state, context) = self.state_and_context(at)?;
        Ok(ol_evm::call(&state, &context, &self.capped(request))?)
    }

    /// The least gas limit with which a message succeeds, within 1/64.
    ///
    /// # Errors
    /// As [`Node::call`]; [`CallError::Reverted`] and [`CallError::OutOfReach`]
    /// if it fails with the most gas it may have.
    pub fn estimate_gas(&self, request: &CallRequest, at: BlockRef) -> Result<u64, QueryError> {
        let (state, context) = self.state_and_context(at)?;
        Ok(ol_evm::estimate_gas(
            &state,
            &context,
            &self.capped(request),
        )?)
    }

    /// A message with no more gas than a call may have.
    fn capped(&self, request: &CallRequest) -> CallRequest {
        let most = self.shared.config.call_gas_max;
        CallRequest {
            gas_limit: Some(request.gas_limit.map_or(most, |limit| limit.min(most))),
            ..request.clone()
        }
    }

    /// The base fee of the next block, in wei for one unit of gas.
    #[must_use]
    pub fn next_base_fee_wei(&self) -> u64 {
        header::next_base_fee_wei(&self.head().header)
    }

    /// What gas cost in `n_blocks` blocks up to `newest`, and the tips at the
    /// given percentiles (in basis points: 5,000 is the median) of gas.
    ///
    /// `n_blocks` is cut to what there is and to [`FEE_HISTORY_MAX_BLOCKS`].
    ///
    /// # Errors
    /// [`QueryError::UnknownBlock`], [`QueryError::Store`].
    pub fn fee_history(
        &self,
        n_blocks: u64,
        newest: BlockRef,
        percentiles_bps: &[u32],
    ) -> Result<FeeHistory, QueryError> {
        let txn = self.read()?;
        let (newest, _) = find_header(&txn, newest)?.ok_or(QueryError::UnknownBlock)?;
        let n_blocks = n_blocks
            .clamp(1, FEE_HISTORY_MAX_BLOCKS)
            .min(newest.number + 1);
        let oldest_block = newest.number + 1 - n_blocks;
        let mut history = FeeHistory {
            oldest_block,
            base_fees_wei: Vec::new(),
            gas: Vec::new(),
            tips_wei: Vec::new(),
        };
        for number in oldest_block..=newest.number {
            let (header, hash) = known_header(&txn, number)?;
            history
                .base_fees_wei
                .push(header.base_fee_per_gas.unwrap_or_default());
            history.gas.push((header.gas_used, header.gas_limit));
            if !percentiles_bps.is_empty() {
                let receipts = receipts_of(&txn, &header, hash)?;
                history.tips_wei.push(tips(&receipts, percentiles_bps));
            }
        }
        history
            .base_fees_wei
            .push(header::next_base_fee_wei(&newest));
        Ok(history)
    }

    /// Checks the newest block against everything that is stored: the parent
    /// hashes of all blocks, the state root, recomputed from every account by
    /// two ways, and every stored branch of the tries.
    ///
    /// Takes time and memory in proportion to the chain.
    ///
    /// # Errors
    /// [`StoreError::Corrupt`] with what does not fit.
    pub fn verify(&self) -> Result<(), QueryError> {
        let txn = self.read()?;
        let (head, _) = txn.head()?;
        let mut parent_hash = B256::ZERO;
        for number in 0..=head.number {
            let (header, hash) = known_header(&txn, number)?;
            if header.parent_hash != parent_hash || header.hash_slow() != hash {
                return Err(missing("the right header", number));
            }
            let receipts = txn.receipts(number)?;
            if header::receipts_root(&receipts) != header.receipts_root {
                return Err(missing("the right receipts", number));
            }
            parent_hash = hash;
        }
        if txn.rebuild_state_root()? != head.state_root
            || txn.recompute_state_root()? != head.state_root
        {
            return Err(missing("the right state", head.number));
        }
        txn.check_tries()?;
        Ok(())
    }

    /// The state after a block.
    ///
    /// # Errors
    /// [`QueryError::UnknownBlock`], [`QueryError::StatePruned`].
    pub fn state(&self, at: BlockRef) -> Result<StateView, QueryError> {
        Ok(self.state_and_context(at)?.0)
    }

    /// The context of a block: number, time, gas limit, base fee and parent,
    /// as its own transactions saw them. For [`BlockRef::Pending`] these are
    /// the context of the block that is being made, or that would be made now.
    ///
    /// To try a message *after* a block, take this and [`Node::state`] of the
    /// same block; to execute a block again, take this and the state of its
    /// parent.
    ///
    /// # Errors
    /// [`QueryError::UnknownBlock`], [`QueryError::Store`].
    pub fn context(&self, at: BlockRef) -> Result<BlockContext, QueryError> {
        if at == BlockRef::Pending {
            return Ok(self.state_and_context(at)?.1);
        }
        let found = find_header(&self.read()?, at)?;
        let (header, _) = found.ok_or(QueryError::UnknownBlock)?;
        Ok(BlockContext::of(
            &header,
            self.shared.chain_id,
            &self.shared.rules,
        ))
    }

    /// [`Node::state`] and [`Node::context`] of the same moment.
    ///
    /// # Errors
    /// As both.
    pub fn state_and_context(&self, at: BlockRef) -> Result<(StateView, BlockContext), QueryError> {
        // Taken first: the snapshot below is then of its parent or newer.
        let pending = self.pending();
        let txn = self.read()?;
        let (head, head_hash) = txn.head()?;
        if at == BlockRef::Pending {
            if pending.context.parent_hash == head_hash {
                let context = pending.context;
                let durable = Snapshot::at(txn, head.number)?;
                return Ok((StateView::pending(durable, pending), context));
            }
            // It became durable in between, and what is in the next does not
            // show yet.
            let now_s = self.shared.time().now_s(&*self.shared.clock);
            let context = self.shared.context_after(&head, head_hash, now_s);
            let durable = Snapshot::at(txn, head.number)?;
            return Ok((StateView::durable(durable), context));
        }
        let (asked, _) = find_header(&txn, at)?.ok_or(QueryError::UnknownBlock)?;
        let context = BlockContext::of(&asked, self.shared.chain_id, &self.shared.rules);
        let durable = Snapshot::at(txn, asked.number)?;
        Ok((StateView::durable(durable), context))
    }

    /// The block that is being made, with what is in it at this moment.
    #[must_use]
    pub fn pending(&self) -> Arc<PendingBlock> {
        self.shared.pending()
    }
}

fn find_header(txn: &Txn<Ro>, block: BlockRef) -> Result<Option<(Header, B256)>, StoreError> {
    match block {
        BlockRef::Latest | BlockRef::Pending | BlockRef::Safe | BlockRef::Finalized => {
            txn.head().map(Some)
        }
        BlockRef::Earliest => txn.header(0),
        BlockRef::Number(number) => txn.header(number),
        BlockRef::Hash(hash) => match txn.block_number(hash)? {
            Some(number) => txn.header(number),
            None => Ok(None),
        },
    }
}

fn known_header(txn: &Txn<Ro>, number: u64) -> Result<(Header, B256), QueryError> {
    txn.header(number)?
        .ok_or_else(|| missing("the header", number))
}

fn missing(what: &str, number: u64) -> QueryError {
    QueryError::Store(StoreError::Corrupt {
        what: format!("block {number} lacks {what}"),
    })
}

fn receipts_of(
    txn: &Txn<Ro>,
    header: &Header,
    block_hash: B256,
) -> Result<Vec<ReceiptInBlock>, QueryError> {
    let transactions = txn.body(header.number)?;
    let receipts = txn.receipts(header.number)?;
    if transactions.len() != receipts.len() {
        return Err(missing("receipts", header.number));
    }
    let mut gas_before = 0;
    let mut n_logs_before = 0;
    let mut found = Vec::with_capacity(receipts.len());
    for (position, (transaction, receipt)) in transactions.into_iter().zip(receipts).enumerate() {
        let gas_so_far = receipt.cumulative_gas_used();
        let n_logs = receipt.logs().len() as u64;
        found.push(ReceiptInBlock {
            receipt,
            place: TransactionInBlock {
                transaction,
                header: header.clone(),
                block_hash,
                position,
            },
            gas_used: gas_so_far.saturating_sub(gas_before),
            n_logs_before,
        });
        gas_before = gas_so_far;
        n_logs_before += n_logs;
    }
    Ok(found)
}

/// The tips below which the given parts of a block's gas were bought.
fn tips(receipts: &[ReceiptInBlock], percentiles_bps: &[u32]) -> Vec<u128> {
    let mut by_tip: Vec<(u128, u64)> = receipts
        .iter()
        .map(|receipt| {
            let base_fee_wei = receipt.place.header.base_fee_per_gas.unwrap_or_default();
            let tip_wei = receipt
                .effective_gas_price_wei()
                .saturating_sub(u128::from(base_fee_wei));
            (tip_wei, receipt.gas_used)
        })
        .collect();
    by_tip.sort_unstable();
    let total: u128 = by_tip.iter().map(|&(_, gas)| u128::from(gas)).sum();
    percentiles_bps
        .iter()
        .map(|&bps| {
            let threshold = total * u128::from(bps) / 10_000;
            let mut so_far = 0;
            for &(tip_wei, gas) in &by_tip {
                so_far += u128::from(gas);
                if so_far >= threshold {
                    return tip_wei;
                }
            }
            0
        })
        .collect()
}
