//! The optimistic tier: commitments to an answer's attribution that anyone can
//! refute in one step.
//!
//! The operator commits to every score, net and share of an answer; nobody
//! computes them on chain. Whoever recomputes something else sends one *step*:
//! a leaf or a node with its path, which [`is_lie`] judges alone. The format
//! and the argument that every lie has a step are in `specs/court.md`.
//!
//! - [`CommittedIndex`]: what a model commits to once, of any size up to
//!   [`COURT_ENTRIES_MAX`].
//! - [`Claim`]: what the operator commits to for each answer.
//! - [`is_lie`]: what the chain runs (`POA_VERIFY`).
//! - [`find`]: how a watcher finds the step for a claim that is not its own.

use alloy_primitives::{B256, Keccak256};

mod claim;
mod find;
mod index;
mod step;
mod tree;

pub use claim::{Claim, Cutoff, Posted, amounts, share_tree};
pub use find::{Finding, Known, Nodes, Revealed, find, find_malformed};
pub use index::CommittedIndex;
pub use step::{StepError, is_lie, open, reveal};
pub use tree::{Net, Node, SumTree, Value};

/// Entries of the largest index that a model can commit to.
pub const COURT_ENTRIES_MAX: usize = 1 << 20;

/// Contributors of the largest index that a model can commit to.
pub const COURT_CONTRIBUTORS_MAX: usize = 1 << 14;

/// How many levels below a node one reveal opens, at most.
pub const REVEAL_LEVELS: u32 = 4;

/// One of the three trees of a claim.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Tree {
    /// One leaf for each entry of the index.
    Scores = 0,
    /// One leaf for each contributor: net and weight.
    Nets = 1,
    /// One leaf for each contributor: the share.
    Shares = 2,
}

impl Tree {
    /// Every tree, in the order of their numbers.
    pub const ALL: [Self; 3] = [Self::Scores, Self::Nets, Self::Shares];

    /// The tree with this number.
    #[must_use]
    pub fn from_number(number: u8) -> Option<Self> {
        Self::ALL.get(usize::from(number)).copied()
    }

    /// Bytes of one of its nodes.
    #[must_use]
    pub const fn node_size_bytes(self) -> usize {
        match self {
            Self::Scores => Node::<i64>::SIZE_BYTES,
            Self::Nets => Node::<Net>::SIZE_BYTES,
            Self::Shares => Node::<u128>::SIZE_BYTES,
        }
    }
}

/// What a claim is judged by: the model's commitment, the answer's, and the
/// operator's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Terms {
    /// Root over the entries of the index.
    pub index_root: B256,
    /// How many entries there are.
    pub n_entries: u32,
    /// Root over the contributors and where their entries end.
    pub ranges_root: B256,
    /// How many contributors there are.
    pub n_contributors: u32,
    /// Hash of the query sketch.
    pub query_hash: B256,
    /// What a net must exceed to weigh anything, in units of the scores.
    pub null_threshold: u64,
    /// What is divided, in wei.
    pub pot: u128,
    /// Commitments to the roots of the three trees, in the order of [`Tree`].
    pub roots: [B256; 3],
    /// Who gets one of the units that the floors leave over.
    pub cutoff: Cutoff,
}

fn hash(parts: &[&[u8]]) -> B256 {
    let mut hasher = Keccak256::new();
    for part in parts {
        hasher.update(part);
    }
    hasher.finalize()
}

#[cfg(test)]
mod tests;
