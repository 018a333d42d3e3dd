//! What a raw transaction must be before it waits for a block.

use std::sync::Arc;

use alloy_consensus::Transaction as _;
use alloy_eips::eip2718::Decodable2718;
use alloy_primitives::B256;
use ol_evm::{INIT_CODE_MAX_SIZE_BYTES, Transaction, intrinsic_gas};

use crate::mempool::PoolError;

/// Largest raw transaction, as in geth.
pub const RAW_TRANSACTION_MAX_SIZE_BYTES: usize = 128 * 1024;

/// Types of transactions that are taken.
pub(crate) const POOLED_TYPES: [u8; 4] = [0, 1, 2, 4];

/// Where a transaction went.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Inclusion {
    /// The transaction.
    pub transaction_hash: B256,
    /// The block that holds it, by number.
    pub block_number: u64,
    /// The block that holds it, by hash.
    pub block_hash: B256,
    /// Position in the block, from 0.
    pub position: usize,
}

/// What became of a transaction first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SubmitOutcome {
    /// It is in a block that is on disk.
    Included(Inclusion),
    /// It was executed in the pending block, where its receipt can be seen;
    /// the block is not on disk yet.
    Preconfirmed {
        /// The transaction.
        transaction_hash: B256,
        /// The block to come, by number.
        block_number: u64,
        /// Position in the block, from 0.
        position: usize,
    },
    /// It waits: for a missing predecessor of the same sender, for a lower
    /// base fee, or for room in a block.
    Queued {
        /// The transaction.
        transaction_hash: B256,
    },
}

impl SubmitOutcome {
    /// The transaction.
    #[must_use]
    pub const fn transaction_hash(&self) -> B256 {
        match *self {
            Self::Included(Inclusion {
                transaction_hash, ..
            })
            | Self::Preconfirmed {
                transaction_hash, ..
            }
            | Self::Queued { transaction_hash } => transaction_hash,
        }
    }
}

/// Why a transaction was not taken.
///
/// Only [`SubmitError::Overloaded`], [`SubmitError::Stopped`] and
/// [`SubmitError::Storage`] may change without another transaction being sent.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum SubmitError {
    /// It is larger than [`RAW_TRANSACTION_MAX_SIZE_BYTES`].
    #[error(
        "oversized data: transaction size {size_bytes}, limit {RAW_TRANSACTION_MAX_SIZE_BYTES}"
    )]
    TooLarge {
        /// Its size.
        size_bytes: usize,
    },
    /// Its bytes are no transaction.
    #[error("transaction cannot be decoded: {reason}")]
    Malformed {
        /// Why.
        reason: String,
    },
    /// Its type is not taken: only 0, 1, 2 and 4 are.
    #[error("transaction type {tx_type:#04x} is not supported")]
    Type {
        /// Its type.
        tx_type: u8,
    },
    /// It is signed for another chain, or for any chain.
    #[error("invalid chain id: have {}, want {expected}", found.map_or("none".to_owned(), |id| id.to_string()))]
    ChainId {
        /// The chain it names, if it names one.
        found: Option<u64>,
        /// Our chain.
        expected: u64,
    },
    /// Its signature gives no sender.
    #[error("invalid signature")]
    Signature,
    /// It asks for more gas than a block has.
    #[error("exceeds block gas limit: have {found}, limit {limit}")]
    GasLimit {
        /// Its gas limit.
        found: u64,
        /// The block's.
        limit: u64,
    },
    /// Its gas limit is below what any execution of it takes.
    #[error("intrinsic gas too low: have {found}, want {least}")]
    IntrinsicGas {
        /// Its gas limit.
        found: u64,
        /// The least it must be.
        least: u64,
    },
    /// Its tip is higher than its maximum fee.
    #[error("max priority fee per gas higher than max fee per gas: {tip_wei} > {max_fee_wei}")]
    TipAboveFee {
        /// Its tip.
        tip_wei: u128,
        /// Its maximum fee.
        max_fee_wei: u128,
    },
    /// The code that makes its contract is larger than
    /// [`INIT_CODE_MAX_SIZE_BYTES`].
    #[error("max initcode size exceeded: code size {size_bytes}, limit {INIT_CODE_MAX_SIZE_BYTES}")]
    InitCodeTooLarge {
        /// Its size.
        size_bytes: usize,
    },
    /// No nonce comes after its own (EIP-2681).
    #[error("nonce has max value: {}", u64::MAX)]
    NonceMax,
    /// It delegates code and names no delegation (EIP-7702).
    #[error("EIP-7702 transaction with empty auth list")]
    NoAuthorization,
    /// The pool does not take it, or no longer keeps it.
    #[error(transparent)]
    Pool(#[from] PoolError),
    /// It could not be executed when its turn came.
    #[error("{reason}")]
    Rejected {
        /// Why.
        reason: String,
    },
    /// Too many transactions wait; try again.
    #[error("too many transactions are waiting")]
    Overloaded,
    /// This node does not make blocks; send to the one that does.
    #[error("this node follows another one and takes no transactions")]
    Follower,
    /// The node is stopping.
    #[error("the node is stopping")]
    Stopped,
    /// The block could not be made or written. Nothing of it is kept.
    #[error("the block could not be written")]
    Storage(#[source] Arc<dyn std::error::Error + Send + Sync>),
}

/// Decodes a raw transaction and checks what depends neither on its sender nor
/// on the state.
pub(crate) fn decode(
    raw: &[u8],
    chain_id: u64,
    block_gas_limit: u64,
) -> Result<Transaction, SubmitError> {
    if raw.len() > RAW_TRANSACTION_MAX_SIZE_BYTES {
        return Err(SubmitError::TooLarge {
            size_bytes: raw.len(),
        });
    }
    // Below 0xC0 the first byte is a type; from there on it begins a list, and
    // the transaction is of type 0.
    match raw.first() {
        Some(&tx_type) if tx_type < 0xC0 && (tx_type == 0 || !POOLED_TYPES.contains(&tx_type)) => {
            return Err(SubmitError::Type { tx_type });
        }
        _ => {}
    }
    let transaction =
        Transaction::decode_2718_exact(raw).map_err(|error| SubmitError::Malformed {
            reason: error.to_string(),
        })?;
    check(&transaction, chain_id, block_gas_limit)?;
    Ok(transaction)
}

fn check(
    transaction: &Transaction,
    chain_id: u64,
    block_gas_limit: u64,
) -> Result<(), SubmitError> {
    let found = transaction.chain_id();
    if found != Some(chain_id) {
        return Err(SubmitError::ChainId {
            found,
            expected: chain_id,
        });
    }
    let (found, limit) = (transaction.gas_limit(), block_gas_limit);
    if found > limit {
        return Err(SubmitError::GasLimit { found, limit });
    }
    let least = intrinsic_gas(transaction);
    if found < least {
        return Err(SubmitError::IntrinsicGas { found, least });
    }
    let max_fee_wei = transaction.max_fee_per_gas();
    let tip_wei = transaction.max_priority_fee_per_gas().unwrap_or_default();
    if tip_wei > max_fee_wei {
        return Err(SubmitError::TipAboveFee {
            tip_wei,
            max_fee_wei,
        });
    }
    if transaction.nonce() == u64::MAX {
        return Err(SubmitError::NonceMax);
    }
    let size_bytes = transaction.input().len();
    if transaction.is_create() && size_bytes > INIT_CODE_MAX_SIZE_BYTES {
        return Err(SubmitError::InitCodeTooLarge { size_bytes });
    }
    if transaction
        .authorization_list()
        .is_some_and(<[_]>::is_empty)
    {
        return Err(SubmitError::NoAuthorization);
    }
    Ok(())
}

#[cfg(test)]
mod tests;
