//! Transactions of one block, executed in order.

use alloy_consensus::{Header, transaction::Recovered};
use alloy_evm::EvmEnv;
use alloy_evm::block::{BlockExecutionError, BlockValidationError, InternalBlockExecutionError};
use alloy_primitives::{B256, Bloom, U256};
use op_revm::OpSpecId;
use revm::context_interface::result::InvalidTransaction;

pub use builder::{BlockBuilder, TransactionOutcome};
pub use executor::Closing;

use crate::rules::{BlockRules, Rules};
use crate::stateless::refused_before;
use crate::transaction::{Transaction, TransactionReceipt};
use crate::{StateDiff, StateReader, header};

mod builder;
mod executor;

/// Everything that execution knows of its block besides the state.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BlockContext {
    /// The chain, for `CHAINID` and signatures.
    pub chain_id: u64,
    /// Number of the block.
    pub number: u64,
    /// Unix time in seconds.
    pub timestamp_s: u64,
    /// Gas of all transactions together, at most.
    pub gas_limit: u64,
    /// Base fee for one unit of gas.
    pub base_fee_wei: u64,
    /// Hash of the parent block.
    pub parent_hash: B256,
    /// The rules of the block, and what they ask of its header.
    pub rules: BlockRules,
}

impl BlockContext {
    /// The context in which the transactions of a block are executed.
    #[must_use]
    pub fn of(header: &Header, chain_id: u64, rules: &Rules) -> Self {
        Self {
            chain_id,
            number: header.number,
            timestamp_s: header.timestamp,
            gas_limit: header.gas_limit,
            base_fee_wei: header.base_fee_per_gas.unwrap_or_default(),
            parent_hash: header.parent_hash,
            rules: rules.for_block(header),
        }
    }

    /// The context of the block after `parent`.
    ///
    /// The timestamp never runs backwards: a `timestamp_s` below the parent's
    /// is raised to it, and past it under Ethereum's rules. There the block is
    /// one of proof of stake with the parent's beneficiary and randomness.
    #[must_use]
    pub fn after(
        parent: &Header,
        parent_hash: B256,
        chain_id: u64,
        timestamp_s: u64,
        rules: &Rules,
    ) -> Self {
        match rules {
            Rules::OpenLedger => Self {
                chain_id,
                number: parent.number + 1,
                timestamp_s: timestamp_s.max(parent.timestamp),
                gas_limit: parent.gas_limit,
                base_fee_wei: header::next_base_fee_wei(parent),
                parent_hash,
                rules: BlockRules::OpenLedger,
            },
            Rules::Ethereum(ethereum) => {
                let timestamp_s = timestamp_s.max(parent.timestamp.saturating_add(1));
                let draft = header::draft_after(parent, parent_hash, timestamp_s, ethereum);
                Self::of(&draft, chain_id, rules)
            }
        }
    }

    pub(crate) fn evm_env(&self) -> EvmEnv<OpSpecId> {
        executor::call_env(self)
    }
}

/// What the transactions of a block did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Execution {
    /// One receipt for each transaction.
    pub receipts: Vec<TransactionReceipt>,
    /// Gas of all transactions.
    pub gas_used: u64,
    /// What changed in the state.
    pub diff: StateDiff,
    /// Bloom filter over the logs of all receipts.
    pub logs_bloom: Bloom,
    /// What the senders paid for gas. Under our rules all of it is in the vaults.
    pub fees_wei: U256,
    /// Hash of what the block asks of the beacon chain (EIP-7685); of nothing
    /// under our rules, `None` before Prague.
    pub requests_hash: Option<B256>,
}

/// A block made from candidates.
#[derive(Debug)]
pub struct BuiltBlock {
    /// What the included transactions did.
    pub execution: Execution,
    /// Positions of the included candidates, ascending.
    pub included: Vec<usize>,
    /// Positions of the others, and why.
    pub left_out: Vec<(usize, LeftOut)>,
}

/// Why a candidate is not in the block.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LeftOut {
    /// The block has no room for its gas limit; the next one may.
    NoRoom,
    /// It cannot be executed on this state.
    Invalid {
        /// Why.
        reason: String,
    },
}

impl LeftOut {
    /// What it makes of a block that has the transaction anyway.
    pub(crate) fn at(self, position: usize) -> ExecuteError {
        let reason = match self {
            Self::NoRoom => "its gas limit is more than the block has left".to_owned(),
            Self::Invalid { reason } => reason,
        };
        ExecuteError::Invalid { position, reason }
    }
}

/// Why a block was not executed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ExecuteError {
    /// A transaction does not belong in the block: the block is invalid.
    #[error("transaction {position} of the block is invalid: {reason}")]
    Invalid {
        /// Which, from 0.
        position: usize,
        /// Why.
        reason: String,
    },
    /// A system call fails that the rules ask for: the block is invalid.
    #[error("the block is invalid: {reason}")]
    Block {
        /// Why.
        reason: String,
    },
    /// The state could not be read or does not add up; no block can be made.
    #[error("the block could not be executed")]
    Internal(#[source] Box<dyn std::error::Error + Send + Sync>),
}

impl ExecuteError {
    pub(crate) fn internal(error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        Self::Internal(error.into())
    }

    /// What an error outside of any transaction means.
    fn of_block(error: BlockExecutionError) -> Self {
        match error {
            BlockExecutionError::Validation(error) => Self::Block {
                reason: error.to_string(),
            },
            BlockExecutionError::Internal(error) => Self::internal(error),
        }
    }
}

/// Executes a block whose transactions are given.
///
/// # Errors
/// [`ExecuteError::Invalid`] for the first transaction that does not belong;
/// [`ExecuteError::Internal`] if the state cannot be read.
pub fn execute_block<S: StateReader>(
    state: &S,
    context: &BlockContext,
    transactions: &[Recovered<Transaction>],
) -> Result<Execution, ExecuteError> {
    execute_block_with(state, context, transactions, Closing::default())
}

/// [`execute_block`], with what the block does after its transactions.
///
/// # Errors
/// As [`execute_block`]; [`ExecuteError::Block`] if a system call fails that
/// the rules ask for.
pub fn execute_block_with<S: StateReader>(
    state: &S,
    context: &BlockContext,
    transactions: &[Recovered<Transaction>],
    closing: Closing<'_>,
) -> Result<Execution, ExecuteError> {
    let mut builder = BlockBuilder::new(state, context)?;
    for (position, transaction) in transactions.iter().enumerate() {
        let executed = builder.execute(transaction)?;
        executed.map_err(|left_out| left_out.at(position))?;
    }
    builder.finish_with(closing)
}

/// Makes a block from candidates, in order, leaving out what does not fit.
///
/// # Errors
/// [`ExecuteError::Internal`] if the state cannot be read.
pub fn build_block<S: StateReader>(
    state: &S,
    context: &BlockContext,
    candidates: &[Recovered<Transaction>],
) -> Result<BuiltBlock, ExecuteError> {
    let mut builder = BlockBuilder::new(state, context)?;
    let mut included = Vec::with_capacity(candidates.len());
    let mut left_out = Vec::new();
    for (position, candidate) in candidates.iter().enumerate() {
        match builder.execute(candidate)? {
            Ok(_) => included.push(position),
            Err(reason) => left_out.push((position, reason)),
        }
    }
    Ok(BuiltBlock {
        execution: builder.finish()?,
        included,
        left_out,
    })
}

/// Why the rules have no place for a transaction, whatever the state.
///
/// Ours take no deposits for now (they mint coins, and need a portal to stand
/// against them), and a layer 2 keeps no blobs.
fn refused(transaction: &Transaction, rules: &BlockRules) -> Option<String> {
    let reason = match (transaction, rules) {
        (Transaction::Deposit(_), BlockRules::OpenLedger) => "deposits are not accepted",
        (Transaction::Eip4844(_), BlockRules::OpenLedger) => "blob transactions are not accepted",
        (_, BlockRules::OpenLedger) => return None,
        (_, BlockRules::Ethereum(block)) => refused_before(transaction, block.fork)?,
    };
    Some(reason.to_owned())
}

fn left_out_reason(error: BlockExecutionError) -> Result<LeftOut, ExecuteError> {
    match error {
        BlockExecutionError::Validation(
            BlockValidationError::TransactionGasLimitMoreThanAvailableBlockGas { .. },
        ) => Ok(LeftOut::NoRoom),
        BlockExecutionError::Validation(BlockValidationError::InvalidTx { error, .. }) => {
            let reason = match error.as_invalid_tx_err() {
                Some(invalid) => refusal(invalid),
                None => error.to_string(),
            };
            Ok(LeftOut::Invalid { reason })
        }
        BlockExecutionError::Internal(InternalBlockExecutionError::EVM { error, .. }) => {
            Err(ExecuteError::Internal(error))
        }
        other => Err(ExecuteError::internal(other)),
    }
}

/// Why a transaction cannot be executed, in the words that Ethereum tools know.
pub(crate) fn refusal(invalid: &InvalidTransaction) -> String {
    match invalid {
        InvalidTransaction::LackOfFundForMaxFee { fee, balance } => {
            format!("insufficient funds for gas * price + value: have {balance}, want {fee}")
        }
        InvalidTransaction::GasPriceLessThanBasefee => {
            "max fee per gas less than block base fee".to_owned()
        }
        InvalidTransaction::NonceTooLow { tx, state } => {
            format!("nonce too low: next nonce {state}, tx nonce {tx}")
        }
        InvalidTransaction::NonceTooHigh { tx, state } => {
            format!("nonce too high: next nonce {state}, tx nonce {tx}")
        }
        InvalidTransaction::CallGasCostMoreThanGasLimit { .. }
        | InvalidTransaction::GasFloorMoreThanGasLimit { .. } => {
            format!("intrinsic gas too low: {invalid}")
        }
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests;
