//! What a raw transaction must be before it waits for a block.

use std::sync::Arc;

use alloy_consensus::Transaction as _;
use alloy_consensus::transaction::SignerRecoverable;
use alloy_eips::eip2718::Decodable2718;
use alloy_primitives::B256;
use ol_evm::{Recovered, Transaction};

use crate::StoreError;

/// Largest raw transaction, as in geth.
pub const RAW_TRANSACTION_MAX_SIZE_BYTES: usize = 128 * 1024;

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
    /// The sender has sent a transaction with this nonce.
    #[error("nonce too low: next nonce {expected}, tx nonce {found}")]
    NonceTooLow {
        /// Its nonce.
        found: u64,
        /// The sender's next.
        expected: u64,
    },
    /// A transaction of the sender is missing before this one.
    #[error("nonce too high: next nonce {expected}, tx nonce {found}")]
    NonceTooHigh {
        /// Its nonce.
        found: u64,
        /// The sender's next.
        expected: u64,
    },
    /// It cannot be executed on the newest state.
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

impl SubmitError {
    pub(crate) fn storage(error: StoreError) -> Self {
        Self::Storage(Arc::new(error))
    }
}

/// Decodes a raw transaction and recovers its sender, checking what does not
/// depend on the state.
pub(crate) fn admit(
    raw: &[u8],
    chain_id: u64,
    block_gas_limit: u64,
) -> Result<Recovered<Transaction>, SubmitError> {
    if raw.len() > RAW_TRANSACTION_MAX_SIZE_BYTES {
        return Err(SubmitError::TooLarge {
            size_bytes: raw.len(),
        });
    }
    // Below 0xC0 the first byte is a type; from there on it begins a list, and
    // the transaction is of type 0.
    match raw.first() {
        Some(&tx_type) if tx_type < 0xC0 && !matches!(tx_type, 1 | 2 | 4) => {
            return Err(SubmitError::Type { tx_type });
        }
        _ => {}
    }
    let transaction =
        Transaction::decode_2718_exact(raw).map_err(|error| SubmitError::Malformed {
            reason: error.to_string(),
        })?;
    let found = transaction.chain_id();
    if found != Some(chain_id) {
        return Err(SubmitError::ChainId {
            found,
            expected: chain_id,
        });
    }
    if transaction.gas_limit() > block_gas_limit {
        return Err(SubmitError::GasLimit {
            found: transaction.gas_limit(),
            limit: block_gas_limit,
        });
    }
    transaction
        .try_into_recovered()
        .map_err(|_| SubmitError::Signature)
}

#[cfg(test)]
mod tests;
