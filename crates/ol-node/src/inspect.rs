//! Looking into a chain's folder without running a node on it.

use std::path::Path;

use alloy_consensus::proofs::{calculate_receipt_root, calculate_transaction_root};
use alloy_primitives::B256;
use ol_evm::{Header, Recovered, Transaction};
use signet_libmdbx::Ro;

use crate::store::{FORMAT_VERSION, Store, StoreError, Txn};
use crate::{NodeConfig, OpenError};

/// How many of the newest blocks a quick look verifies.
const QUICK_BLOCKS: u64 = 128;

/// How much is verified.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Depth {
    /// The newest 128 blocks.
    Quick,
    /// Every block, and the state root from all accounts and slots. Takes time
    /// in proportion to the chain.
    Full,
}

/// What a folder holds. Everything that was looked at fits together.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Inspection {
    /// Format of the database.
    pub format_version: u32,
    /// The chain's id.
    pub chain_id: u64,
    /// Number of the newest block.
    pub head_number: u64,
    /// Its time.
    pub head_timestamp_s: u64,
    /// Blocks whose hash, parent, transactions and receipts were verified.
    pub n_blocks_checked: u64,
    /// Pages of the database in use.
    pub size_bytes: u64,
}

/// Verifies the chain in a folder that no process has open. Nothing is changed.
///
/// # Errors
/// [`OpenError::Store`] if it is in use, cannot be read or is damaged;
/// [`OpenError::Format`] if another version wrote it.
pub fn inspect(path: &Path, depth: Depth) -> Result<Inspection, OpenError> {
    let max_size_bytes = NodeConfig::default().store_max_size_bytes;
    let store = Store::open(path, max_size_bytes, |txn| match txn.format_version()? {
        Some(FORMAT_VERSION) => Ok(()),
        Some(found) => Err(OpenError::Format { found }),
        None => Err(StoreError::Corrupt {
            what: "it holds no chain".to_owned(),
        }
        .into()),
    })?;
    let txn = store.read()?;
    let (head, _) = txn.head()?;
    let first = match depth {
        Depth::Quick => head.number.saturating_sub(QUICK_BLOCKS - 1),
        Depth::Full => 0,
    };
    let mut parent = match first.checked_sub(1) {
        Some(number) => Some(header(&txn, number)?.1),
        None => None,
    };
    for number in first..=head.number {
        parent = Some(check_block(&txn, number, parent)?);
    }
    if depth == Depth::Full {
        if txn.rebuild_state_root()? != head.state_root {
            return Err(damaged("the state does not have the root of the newest block").into());
        }
        txn.check_tries()?;
    }
    Ok(Inspection {
        format_version: FORMAT_VERSION,
        chain_id: txn.chain_id()?.unwrap_or_default(),
        head_number: head.number,
        head_timestamp_s: head.timestamp,
        n_blocks_checked: head.number - first + 1,
        size_bytes: store.size_bytes()?,
    })
}

fn damaged(what: impl Into<String>) -> StoreError {
    StoreError::Corrupt { what: what.into() }
}

fn header(txn: &Txn<Ro>, number: u64) -> Result<(Header, B256), StoreError> {
    txn.header(number)?
        .ok_or_else(|| damaged(format!("there is no block {number}")))
}

/// Verifies one block, and returns its hash.
fn check_block(txn: &Txn<Ro>, number: u64, parent: Option<B256>) -> Result<B256, StoreError> {
    let wrong = |what: &str| damaged(format!("block {number}: {what}"));
    let (header, hash) = header(txn, number)?;
    if header.hash_slow() != hash || header.number != number {
        return Err(wrong("the header does not have its hash"));
    }
    if parent.is_some_and(|parent| parent != header.parent_hash) {
        return Err(wrong("it does not follow the block before it"));
    }
    if txn.block_number(hash)? != Some(number) {
        return Err(wrong("it is not found by its hash"));
    }
    let body = txn.body(number)?;
    let bare: Vec<&Transaction> = body.iter().map(Recovered::inner).collect();
    if calculate_transaction_root(&bare) != header.transactions_root {
        return Err(wrong("the transactions do not have their root"));
    }
    for (position, transaction) in bare.iter().enumerate() {
        if txn.transaction_place(transaction.tx_hash())? != Some((number, position)) {
            return Err(wrong("a transaction is not found by its hash"));
        }
    }
    let receipts = txn.receipts(number)?;
    if calculate_receipt_root(&receipts) != header.receipts_root {
        return Err(wrong("the receipts do not have their root"));
    }
    Ok(hash)
}
