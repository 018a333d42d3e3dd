//! The rules of a block, in the order in which they cost.

use std::sync::Arc;

use alloy_consensus::BlockBody;
use alloy_primitives::{B256, U256};
use ol_evm::{
    Ancestor, BlockContext, BlockError, Closing, ExecuteError, Header, OMMER_GENERATIONS_MAX,
    Rules, StateDiff, execute_block_with, validate_body, validate_execution, validate_header,
    validate_ommers, validate_terminal_difficulty,
};
use signet_libmdbx::Rw;

use super::{BlockFault, Candidate, ImportError};
use crate::event::NewBlock;
use crate::node::Shared;
use crate::store::{StoreError, StoredBlock, Txn};

/// Why a block could not be put on its parent.
pub(super) enum AppendError {
    Fault(BlockFault),
    Internal(Arc<dyn std::error::Error + Send + Sync>),
}

impl AppendError {
    pub(super) fn into_import(
        self,
        refused: impl FnOnce(BlockFault) -> ImportError,
    ) -> ImportError {
        match self {
            Self::Fault(fault) => refused(fault),
            Self::Internal(error) => ImportError::Internal(error),
        }
    }
}

impl From<BlockError> for AppendError {
    fn from(error: BlockError) -> Self {
        Self::Fault(error.into())
    }
}

impl From<StoreError> for AppendError {
    fn from(error: StoreError) -> Self {
        Self::Internal(Arc::new(error))
    }
}

/// Whether a block may follow another by number and parent hash.
pub(super) fn link(parent: &Header, parent_hash: B256, child: &Header) -> Result<(), BlockFault> {
    let number = parent.number.saturating_add(1);
    if child.number != number {
        return Err(BlockFault::Rule(BlockError::Number {
            field: "number",
            found: U256::from(child.number),
            expected: U256::from(number),
        }));
    }
    if child.parent_hash != parent_hash {
        return Err(BlockFault::Rule(BlockError::ParentHash {
            found: child.parent_hash,
            expected: parent_hash,
        }));
    }
    Ok(())
}

/// Checks a block against its parent, whose state `txn` has, executes it, and
/// writes it into `txn`. Returns the block and what it changed. After an error `txn` is good for nothing.
pub(super) fn append(
    shared: &Shared,
    txn: &Txn<Rw>,
    parent: &Header,
    block: &Candidate,
) -> Result<(NewBlock, StateDiff), AppendError> {
    let rules = &shared.rules;
    let header = &block.header;
    validate_header(parent, header, rules)?;
    let body = BlockBody {
        transactions: block
            .transactions
            .iter()
            .map(|transaction| transaction.inner().clone())
            .collect(),
        ommers: block.ommers.clone(),
        withdrawals: block.withdrawals.clone(),
    };
    validate_body(header, &body, rules)?;
    let total_difficulty = match rules {
        Rules::OpenLedger => None,
        Rules::Ethereum(_) => {
            let total = match parent.number {
                0 => parent.difficulty,
                number => txn.total_difficulty(number)?,
            };
            validate_terminal_difficulty(total, header, rules)?;
            Some(total.saturating_add(header.difficulty))
        }
    };
    if !block.ommers.is_empty() {
        validate_ommers(header, &block.ommers, &ancestors(txn, parent)?, rules)?;
    }

    let context = BlockContext::of(header, shared.chain_id, rules);
    let closing = Closing {
        ommers: &block.ommers,
        withdrawals: block.withdrawals.as_ref().map(|list| list.as_slice()),
    };
    let execution = execute_block_with(txn, &context, &block.transactions, closing).map_err(
        |error| match error {
            ExecuteError::Invalid { position, reason } => {
                AppendError::Fault(BlockFault::Transaction { position, reason })
            }
            ExecuteError::Block { reason } => AppendError::Fault(BlockFault::System { reason }),
            other => AppendError::Internal(Arc::new(other)),
        },
    )?;
    validate_execution(header, &execution, rules)?;
    let update = txn.state_update(&execution.diff)?;
    if update.root != header.state_root {
        return Err(AppendError::Fault(BlockFault::Rule(BlockError::Hash {
            field: "stateRoot",
            found: header.state_root,
            expected: update.root,
        })));
    }
    let stored = StoredBlock {
        header,
        hash: block.hash,
        transactions: &block.transactions,
        receipts: &execution.receipts,
    };
    txn.write_block(&stored, &update, shared.config.history_max_blocks)?;
    if let Some(signature) = &block.signature {
        txn.set_signature(header.number, signature)?;
    }
    txn.set_ommers_and_withdrawals(header.number, &block.ommers, block.withdrawals.as_ref())?;
    if let Some(total) = total_difficulty {
        txn.set_total_difficulty(header.number, total)?;
    }
    let new = NewBlock {
        header: header.clone(),
        hash: block.hash,
        transactions: block.transactions.clone(),
        receipts: execution.receipts,
    };
    Ok((new, execution.diff))
}

/// The block's parent and what is before it, as far as ommers may refer to it.
fn ancestors(txn: &Txn<Rw>, parent: &Header) -> Result<Vec<Ancestor>, StoreError> {
    (0..=parent.number)
        .rev()
        .take(OMMER_GENERATIONS_MAX)
        .map(|number| {
            let (header, _) = txn.known_header(number)?;
            let (ommers, _) = txn.ommers_and_withdrawals(number)?;
            Ok(Ancestor { header, ommers })
        })
        .collect()
}
