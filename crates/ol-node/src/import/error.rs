//! Why blocks are not taken.

use std::sync::Arc;

use alloy_primitives::{Address, B256};
use ol_evm::BlockError;

use super::{IMPORT_MAX_BLOCKS, IMPORT_MAX_SIZE_BYTES};
use crate::store::StoreError;

/// Which rule a block breaks.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum BlockFault {
    /// It has no signature, and this chain's blocks are signed.
    #[error("it is not signed")]
    Unsigned,
    /// Its signature is not the sequencer's.
    #[error(
        "it is signed by {}, not by the sequencer {expected}",
        found.map_or("nobody".to_owned(), |address| address.to_string())
    )]
    Signer {
        /// The sequencer.
        expected: Address,
        /// Who signed, if anybody can have.
        found: Option<Address>,
    },
    /// Its header, its body or what its execution gives is not what the rules say.
    #[error(transparent)]
    Rule(#[from] BlockError),
    /// A system call that the rules ask for fails.
    #[error("system call: {reason}")]
    System {
        /// Why.
        reason: String,
    },
    /// A transaction does not belong in it.
    #[error("transaction {position}: {reason}")]
    Transaction {
        /// Which, from 0.
        position: usize,
        /// Why.
        reason: String,
    },
}

impl BlockFault {
    /// One word for the rule, for metrics and logs: a field by its name in
    /// JSON-RPC, or `signature`, `transactions`.
    #[must_use]
    pub const fn rule(&self) -> &'static str {
        match self {
            Self::Unsigned | Self::Signer { .. } => "signature",
            Self::Transaction { .. } => "transactions",
            Self::System { .. } => "system",
            Self::Rule(error) => match error {
                BlockError::Number { field, .. }
                | BlockError::Hash { field, .. }
                | BlockError::Missing { field }
                | BlockError::TooEarly { field } => field,
                BlockError::ParentHash { .. } => "parentHash",
                BlockError::Timestamp { .. } => "timestamp",
                BlockError::GasLimit { .. } => "gasLimit",
                BlockError::GasUsed { .. } => "gasUsed",
                BlockError::BlobGasUsed { .. } => "blobGasUsed",
                BlockError::ExtraData { .. } | BlockError::DaoExtraData => "extraData",
                BlockError::Merge { .. } => "difficulty",
                BlockError::TransactionType { .. } => "transactions",
                BlockError::Ommer { .. }
                | BlockError::OmmerHeader { .. }
                | BlockError::TooManyOmmers { .. } => "uncles",
                _ => "rules",
            },
        }
    }
}

/// Why blocks were not imported. The chain is where it was.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum ImportError {
    /// This node makes the blocks of its chain itself.
    #[error("this node makes its blocks itself and imports none")]
    Sequencer,
    /// Too much at one time.
    #[error(
        "{n_blocks} blocks of {size_bytes} bytes at one time, at most {IMPORT_MAX_BLOCKS} of {IMPORT_MAX_SIZE_BYTES} bytes"
    )]
    TooMuch {
        /// Blocks given.
        n_blocks: usize,
        /// Their bytes.
        size_bytes: usize,
    },
    /// The bytes are no block.
    #[error("block at position {position} cannot be decoded: {reason}")]
    Malformed {
        /// Which of the given, from 0.
        position: usize,
        /// Why.
        reason: String,
    },
    /// A block breaks a rule. The blocks before it are valid.
    #[error("block {number} ({hash}) is refused: {fault}")]
    Refused {
        /// Which of the given, from 0.
        position: usize,
        /// Its number.
        number: u64,
        /// Its hash.
        hash: B256,
        /// Which rule.
        fault: Box<BlockFault>,
    },
    /// The first block's parent is nowhere.
    #[error("the parent {parent_hash} of block {number} ({hash}) is unknown")]
    UnknownParent {
        /// Its number.
        number: u64,
        /// Its hash.
        hash: B256,
        /// The missing parent.
        parent_hash: B256,
    },
    /// The blocks are on a branch that leaves the chain too far back.
    #[error("the branch leaves the chain {depth} blocks ago, at most {limit} may be undone")]
    ReorgTooDeep {
        /// Blocks that would be undone.
        depth: u64,
        /// Most that may.
        limit: u64,
    },
    /// The node is stopping.
    #[error("the node is stopping")]
    Stopped,
    /// The node itself failed: its database, or its state.
    #[error("the node could not import")]
    Internal(#[source] Arc<dyn std::error::Error + Send + Sync>),
}

impl ImportError {
    /// Which of the given blocks is at fault, from 0, if it is one of them.
    #[must_use]
    pub const fn position(&self) -> Option<usize> {
        match self {
            Self::Malformed { position, .. } | Self::Refused { position, .. } => Some(*position),
            _ => None,
        }
    }

    /// The rule that a block breaks, if that is the reason.
    #[must_use]
    pub fn fault(&self) -> Option<&BlockFault> {
        match self {
            Self::Refused { fault, .. } => Some(fault),
            _ => None,
        }
    }
}

impl From<StoreError> for ImportError {
    fn from(error: StoreError) -> Self {
        Self::Internal(Arc::new(error))
    }
}
