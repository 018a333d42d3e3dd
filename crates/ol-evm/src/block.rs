//! Transactions of one block, executed in order.

use alloy_consensus::{Header, transaction::Recovered};
use alloy_evm::EvmEnv;
use alloy_evm::block::{BlockExecutionError, BlockValidationError, InternalBlockExecutionError};
use alloy_op_hardforks::{ForkCondition, OpChainHardforks, OpHardfork};
use alloy_primitives::{B256, Bloom, U256};
use op_revm::OpSpecId;
use revm::context::{BlockEnv, CfgEnv};
use revm::context_interface::block::BlobExcessGasAndPrice;
use revm::context_interface::result::InvalidTransaction;

pub use builder::{BlockBuilder, TransactionOutcome};

use crate::transaction::{Transaction, TransactionReceipt};
use crate::{SEQUENCER_FEE_VAULT, StateDiff, StateReader, header};

mod builder;

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
}

impl BlockContext {
    /// The context in which the transactions of a block were executed.
    #[must_use]
    pub fn of(header: &Header, chain_id: u64) -> Self {
        Self {
            chain_id,
            number: header.number,
            timestamp_s: header.timestamp,
            gas_limit: header.gas_limit,
            base_fee_wei: header.base_fee_per_gas.unwrap_or_default(),
            parent_hash: header.parent_hash,
        }
    }

    /// The context of the block after `parent`.
    ///
    /// The timestamp never runs backwards: a `timestamp_s` below the parent's
    /// is raised to it.
    #[must_use]
    pub fn after(parent: &Header, parent_hash: B256, chain_id: u64, timestamp_s: u64) -> Self {
        Self {
            chain_id,
            number: parent.number + 1,
            timestamp_s: timestamp_s.max(parent.timestamp),
            gas_limit: parent.gas_limit,
            base_fee_wei: header::next_base_fee_wei(parent),
            parent_hash,
        }
    }

    pub(crate) fn evm_env(&self) -> EvmEnv<OpSpecId> {
        let cfg_env = CfgEnv::new()
            .with_chain_id(self.chain_id)
            .with_spec_and_mainnet_gas_params(OpSpecId::JOVIAN);
        let block_env = BlockEnv {
            number: U256::from(self.number),
            beneficiary: SEQUENCER_FEE_VAULT,
            timestamp: U256::from(self.timestamp_s),
            gas_limit: self.gas_limit,
            basefee: self.base_fee_wei,
            difficulty: U256::ZERO,
            // There is no beacon to take randomness from.
            prevrandao: Some(B256::ZERO),
            blob_excess_gas_and_price: Some(BlobExcessGasAndPrice {
                excess_blob_gas: 0,
                blob_gasprice: 1,
            }),
            slot_num: 0,
        };
        EvmEnv::new(cfg_env, block_env)
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
    /// The state could not be read or does not add up; no block can be made.
    #[error("the block could not be executed")]
    Internal(#[source] Box<dyn std::error::Error + Send + Sync>),
}

impl ExecuteError {
    pub(crate) fn internal(error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        Self::Internal(error.into())
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
    let built = build_block(state, context, transactions)?;
    match built.left_out.into_iter().next() {
        None => Ok(built.execution),
        Some((position, left_out)) => Err(left_out.at(position)),
    }
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

/// Every fork up to Jovian, active from genesis.
fn hardforks() -> OpChainHardforks {
    let always = [
        OpHardfork::Bedrock,
        OpHardfork::Regolith,
        OpHardfork::Canyon,
        OpHardfork::Ecotone,
        OpHardfork::Fjord,
        OpHardfork::Granite,
        OpHardfork::Holocene,
        OpHardfork::Isthmus,
        OpHardfork::Jovian,
    ];
    OpChainHardforks::new(always.into_iter().map(|fork| {
        let condition = match fork {
            OpHardfork::Bedrock => ForkCondition::Block(0),
            _ => ForkCondition::Timestamp(0),
        };
        (fork, condition)
    }))
}

/// The transaction types that no block may hold for now: deposits mint coins
/// and need a portal to stand against them, and a layer 2 keeps no blobs.
fn refused_type(transaction: &Transaction) -> Option<String> {
    match transaction {
        Transaction::Deposit(_) => Some("deposits are not accepted".to_owned()),
        Transaction::Eip4844(_) => Some("blob transactions are not accepted".to_owned()),
        _ => None,
    }
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
