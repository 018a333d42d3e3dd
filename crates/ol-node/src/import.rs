//! Blocks that others made: checked, executed, and made part of the chain.
//!
//! A block is taken in three stages. Off the chain thread its bytes are
//! decoded, its signature is checked, and the senders of its transactions are
//! recovered, in parallel. On the chain thread it is put where it belongs: on
//! the head, or on a branch, for which the blocks above the common ancestor are
//! unwound first. Then its header is checked against its parent, it is
//! executed, and gas, receipts, bloom and state root are compared. All of it
//! happens in one write transaction, for all blocks of one call and for the
//! unwinding too: what is refused, and a crash, leave the chain as it was.
//!
//! A branch is checked whole before the fork choice is asked. One that does
//! not win is kept in memory, so that its next blocks find their parent.

mod check;
mod error;
mod side;

use std::sync::Arc;

use alloy_eips::eip4895::Withdrawals;
use alloy_primitives::{B256, Signature, U256};
use ol_evm::{EthereumHardfork, Header, Recovered, Rules, Transaction, recover_sender};
use rayon::prelude::*;
use signet_libmdbx::Rw;

pub use error::{BlockFault, ImportError};
pub(crate) use side::SideBlocks;

use crate::chain::Chain;
use crate::event::{ChainEvent, NewBlock};
use crate::node::{Head, Node, NodeConfig, Role, Shared};
use crate::signature::block_signed_by;
use crate::store::Txn;
use crate::wire::{BLOCK_MAX_SIZE_BYTES, WireBlock};

/// Most blocks in one import.
pub const IMPORT_MAX_BLOCKS: usize = 1_024;

/// Most bytes of blocks in one import.
pub const IMPORT_MAX_SIZE_BYTES: usize = 64 << 20;

/// What an import did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Imported {
    /// Blocks that were new.
    pub n_blocks: usize,
    /// Blocks that are no more part of the chain.
    pub n_unwound: usize,
    /// Whether the last block given is on the chain. If not, it is valid, and
    /// on a branch that the fork choice does not prefer.
    pub is_canonical: bool,
    /// Number of the newest block of the chain.
    pub head_number: u64,
    /// Its hash.
    pub head_hash: B256,
}

/// A block that was decoded, and whose senders are known.
#[derive(Debug, Clone)]
pub(crate) struct Candidate {
    pub(crate) header: Header,
    pub(crate) hash: B256,
    pub(crate) transactions: Vec<Recovered<Transaction>>,
    pub(crate) ommers: Vec<Header>,
    pub(crate) withdrawals: Option<Withdrawals>,
    pub(crate) signature: Option<Signature>,
    pub(crate) size_bytes: usize,
}

impl Node {
    /// Imports blocks, each the child of the one before it, and returns when
    /// they are on disk. All of them are taken, or none. Blocks that the chain
    /// has already are passed over.
    ///
    /// Blocks of a branch make the chain change to it if the fork choice
    /// prefers it. With OpenLedger's rules that is the branch whose last block
    /// has the larger `(number, timestamp)`; only blocks with the sequencer's
    /// signature are taken. With Ethereum's rules it is the one with the larger
    /// total difficulty, and after the merge the one that is imported.
    ///
    /// # Errors
    /// [`ImportError`]; then the chain is where it was.
    pub fn import(&self, blocks: Vec<WireBlock>) -> Result<Imported, ImportError> {
        if self.role() != Role::Follower {
            return Err(ImportError::Sequencer);
        }
        let size_bytes = blocks.iter().map(|block| block.rlp.len()).sum();
        if blocks.len() > IMPORT_MAX_BLOCKS || size_bytes > IMPORT_MAX_SIZE_BYTES {
            return Err(ImportError::TooMuch {
                n_blocks: blocks.len(),
                size_bytes,
            });
        }
        let blocks = blocks
            .into_par_iter()
            .enumerate()
            .map(|(position, block)| read(&self.shared, position, &block).map(Arc::new))
            .collect::<Result<Vec<_>, _>>()?;
        check_links(&blocks)?;
        self.on_chain_thread(move |chain| import(chain, &blocks))
            .map_err(|_| ImportError::Stopped)?
    }

    /// Most blocks that a change to another branch may undo.
    #[must_use]
    pub fn reorg_max_blocks(&self) -> u64 {
        reorg_max_blocks(&self.shared.config)
    }
}

/// Most blocks that may be undone: what was asked for, within what history is
/// kept.
fn reorg_max_blocks(config: &NodeConfig) -> u64 {
    match config.history_max_blocks {
        0 => config.reorg_max_blocks,
        kept => config.reorg_max_blocks.min(kept),
    }
}

/// Decodes a block and recovers what its signatures say.
fn read(shared: &Shared, position: usize, wire: &WireBlock) -> Result<Candidate, ImportError> {
    let size_bytes = wire.rlp.len();
    let malformed = |reason: String| ImportError::Malformed { position, reason };
    if size_bytes > BLOCK_MAX_SIZE_BYTES {
        return Err(malformed(format!(
            "it has {size_bytes} bytes, at most {BLOCK_MAX_SIZE_BYTES} are read"
        )));
    }
    let block = wire
        .decode()
        .map_err(|error| malformed(error.to_string()))?;
    let header = block.header;
    let hash = header.hash_slow();
    let refused = |fault| ImportError::Refused {
        position,
        number: header.number,
        hash,
        fault: Box::new(fault),
    };
    check_signature(shared, hash, wire.signature.as_ref()).map_err(refused)?;
    let fork = match &shared.rules {
        Rules::OpenLedger => EthereumHardfork::Prague,
        Rules::Ethereum(rules) => rules.fork(&header),
    };
    let transactions = block
        .body
        .transactions
        .into_par_iter()
        .enumerate()
        .map(|(index, transaction)| {
            recover_sender(&transaction, fork)
                .map(|sender| Recovered::new_unchecked(transaction, sender))
                .map_err(|error| BlockFault::Transaction {
                    position: index,
                    reason: error.to_string(),
                })
        })
        .collect::<Result<Vec<_>, _>>()
        .map_err(refused)?;
    Ok(Candidate {
        hash,
        transactions,
        ommers: block.body.ommers,
        withdrawals: block.body.withdrawals,
        signature: wire.signature,
        size_bytes,
        header,
    })
}

fn check_signature(
    shared: &Shared,
    hash: B256,
    signature: Option<&Signature>,
) -> Result<(), BlockFault> {
    let Some(expected) = shared.sequencer else {
        return Ok(());
    };
    let signature = signature.ok_or(BlockFault::Unsigned)?;
    let found = block_signed_by(shared.chain_id, hash, signature);
    if found != Some(expected) {
        return Err(BlockFault::Signer { expected, found });
    }
    Ok(())
}

/// Each block must be the child of the one before it.
fn check_links(blocks: &[Arc<Candidate>]) -> Result<(), ImportError> {
    for (position, pair) in (1..).zip(blocks.windows(2)) {
        let [parent, child] = pair else { continue };
        check::link(&parent.header, parent.hash, &child.header)
            .map_err(|fault| child.refused(position, fault))?;
    }
    Ok(())
}

impl Candidate {
    fn refused(&self, position: usize, fault: BlockFault) -> ImportError {
        ImportError::Refused {
            position,
            number: self.header.number,
            hash: self.hash,
            fault: Box::new(fault),
        }
    }
}

/// Puts blocks where they belong, on the chain thread.
fn import(chain: &mut Chain, blocks: &[Arc<Candidate>]) -> Result<Imported, ImportError> {
    let shared = Arc::clone(&chain.shared);
    let old_head = shared.head();
    let branch = find_branch(&shared, &chain.side, blocks)?;
    let Some(branch) = branch else {
        return Ok(Imported {
            n_blocks: 0,
            n_unwound: 0,
            is_canonical: true,
            head_number: old_head.header.number,
            head_hash: old_head.hash,
        });
    };
    let depth = old_head.header.number - branch.ancestor.number;
    let limit = reorg_max_blocks(&shared.config);
    if depth > limit {
        return Err(ImportError::ReorgTooDeep { depth, limit });
    }

    let txn = shared.store.write()?;
    let unwound = match depth {
        0 => Vec::new(),
        _ => unwind(&txn, &old_head, branch.ancestor.number)?,
    };
    let (mut parent, mut parent_hash) = (&branch.ancestor, branch.ancestor_hash);
    let mut new_blocks = Vec::with_capacity(branch.blocks.len());
    for (index, block) in branch.blocks.iter().enumerate() {
        // Blocks from the side store stand before those of the caller, and
        // were checked when they were put there.
        let position = (index + branch.n_passed_over).saturating_sub(branch.n_from_side);
        let new = check::append(&shared, &txn, parent, block)
            .map_err(|error| error.into_import(|fault| block.refused(position, fault)))?;
        new_blocks.push(new);
        (parent, parent_hash) = (&block.header, block.hash);
    }
    let n_blocks = branch.blocks.len() - branch.n_from_side;
    if !unwound.is_empty() && !is_preferred(&shared, &unwound, &branch.blocks) {
        // Dropping the transaction leaves the chain as it was.
        drop(txn);
        branch
            .blocks
            .into_iter()
            .for_each(|block| chain.side.insert(block));
        return Ok(Imported {
            n_blocks,
            n_unwound: 0,
            is_canonical: false,
            head_number: old_head.header.number,
            head_hash: old_head.hash,
        });
    }
    txn.commit()?;

    let new_head = Head {
        header: parent.clone(),
        hash: parent_hash,
    };
    let imported = Imported {
        n_blocks,
        n_unwound: unwound.len(),
        is_canonical: true,
        head_number: new_head.header.number,
        head_hash: new_head.hash,
    };
    for block in &branch.blocks {
        chain.side.remove(block.hash);
    }
    if !unwound.is_empty() {
        tracing::warn!(
            ancestor = branch.ancestor.number,
            n_unwound = unwound.len(),
            n_new = new_blocks.len(),
            "the chain changed to another branch"
        );
        let events: Vec<NewBlock> = unwound.iter().map(|(_, event)| event.clone()).collect();
        for (block, _) in unwound {
            chain.side.insert(Arc::new(block));
        }
        shared.set_head(Head {
            header: branch.ancestor.clone(),
            hash: branch.ancestor_hash,
        });
        shared.set_pending(None);
        shared.publish(&ChainEvent::Unwound {
            blocks: events.into(),
        });
    }
    for (block, diff) in new_blocks {
        chain.advance(block, &diff);
    }
    Ok(imported)
}

/// Blocks that are not on the chain, and where they join it.
struct Branch {
    ancestor: Header,
    ancestor_hash: B256,
    blocks: Vec<Arc<Candidate>>,
    /// How many of them, the first ones, were in the side store.
    n_from_side: usize,
    /// How many of the given blocks the chain has.
    n_passed_over: usize,
}

/// Where the blocks belong. `None` if the chain has them all.
fn find_branch(
    shared: &Shared,
    side: &SideBlocks,
    blocks: &[Arc<Candidate>],
) -> Result<Option<Branch>, ImportError> {
    let txn = shared.store.read()?;
    let mut n_passed_over = 0;
    for block in blocks {
        if txn.block_number(block.hash)?.is_none() {
            break;
        }
        n_passed_over += 1;
    }
    let Some(first) = blocks.get(n_passed_over) else {
        return Ok(None);
    };
    let mut before = Vec::new();
    let mut parent_hash = first.header.parent_hash;
    let ancestor = loop {
        if let Some(number) = txn.block_number(parent_hash)? {
            break txn.header(number)?;
        }
        let Some(block) = side.get(parent_hash) else {
            break None;
        };
        parent_hash = block.header.parent_hash;
        before.push(block);
    };
    let Some((ancestor, ancestor_hash)) = ancestor else {
        return Err(ImportError::UnknownParent {
            number: first.header.number,
            hash: first.hash,
            parent_hash: first.header.parent_hash,
        });
    };
    before.reverse();
    let n_from_side = before.len();
    before.extend(blocks[n_passed_over..].iter().cloned());
    Ok(Some(Branch {
        ancestor,
        ancestor_hash,
        blocks: before,
        n_from_side,
        n_passed_over,
    }))
}

/// Undoes the blocks above `ancestor`, newest first, and returns them.
fn unwind(
    txn: &Txn<Rw>,
    head: &Head,
    ancestor: u64,
) -> Result<Vec<(Candidate, NewBlock)>, ImportError> {
    let mut unwound = Vec::new();
    for number in (ancestor + 1..=head.header.number).rev() {
        unwound.push(stored(txn, number)?);
    }
    txn.unwind(ancestor)?;
    Ok(unwound)
}

/// A block of the chain as a candidate, and as what subscribers are told.
fn stored(txn: &Txn<Rw>, number: u64) -> Result<(Candidate, NewBlock), ImportError> {
    let (header, hash) = txn.known_header(number)?;
    let transactions = txn.body(number)?;
    let event = NewBlock {
        header: header.clone(),
        hash,
        transactions: transactions.clone(),
        receipts: txn.receipts(number)?,
    };
    let (ommers, withdrawals) = txn.ommers_and_withdrawals(number)?;
    let withdrawals = withdrawals.or(header.withdrawals_root.map(|_| Withdrawals::default()));
    let wire = txn.wire_block(number)?;
    let candidate = Candidate {
        size_bytes: wire.map_or(0, |wire| wire.rlp.len()),
        signature: txn.signature(number)?,
        header,
        hash,
        transactions,
        ommers,
        withdrawals,
    };
    Ok((candidate, event))
}

/// The fork choice: whether `branch` is to take the place of `unwound` (newest
/// first). Both begin after the same block.
fn is_preferred(
    shared: &Shared,
    unwound: &[(Candidate, NewBlock)],
    branch: &[Arc<Candidate>],
) -> bool {
    let (Some((ours, _)), Some(theirs)) = (unwound.first(), branch.last()) else {
        return true;
    };
    if shared.rules == Rules::OpenLedger {
        let age = |header: &Header| (header.number, header.timestamp);
        return age(&theirs.header) > age(&ours.header);
    }
    if theirs.header.difficulty.is_zero() {
        return true;
    }
    let sum = |difficulties: &mut dyn Iterator<Item = U256>| {
        difficulties.fold(U256::ZERO, U256::saturating_add)
    };
    let our_difficulty = sum(&mut unwound.iter().map(|(block, _)| block.header.difficulty));
    let their_difficulty = sum(&mut branch.iter().map(|block| block.header.difficulty));
    their_difficulty > our_difficulty
}

#[cfg(test)]
mod tests;
