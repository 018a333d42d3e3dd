//! Indexes of the optimistic tier: what answers pay against millions of records,
//! and the claims about it that go on chain (`specs/court.md`).
//!
//! What is *paid* needs one vector a contributor ([`ol_attribution::scorer`]) and
//! takes microseconds; the *claim* commits to the score of every record and takes
//! as many hashes. Both are the integers of [`ol_poa`].

use std::sync::Arc;

use ol_attribution::scorer::{Scorer, ScorerError};
use ol_model::Pool;
use ol_poa::court::{
    COURT_CONTRIBUTORS_MAX, COURT_ENTRIES_MAX, Claim, CommittedIndex, amounts, share_tree,
};
use ol_poa::{ENTRY_SIZE_BYTES, IndexError, QuerySketch};
use ol_runtime::{Objects, ObjectsError};
use ol_types::{Address, B256};

/// Largest object of a committed index, in bytes: 186 MiB.
pub const INDEX_SIZE_BYTES_MAX: u64 = (COURT_ENTRIES_MAX * ENTRY_SIZE_BYTES) as u64;

/// Largest object with the numbers of a claim, in bytes.
pub const CLAIM_SIZE_BYTES_MAX: u64 = (COURT_ENTRIES_MAX * 8 + COURT_CONTRIBUTORS_MAX * 24) as u64;

/// A committed index with what it takes to score answers against it. Immutable.
///
/// About 350 bytes a record in memory: the entry, its leaf, and the scorer's copy.
pub struct OptimisticIndex {
    committed: CommittedIndex,
    id: B256,
    scorer: Scorer,
    pool: Arc<Pool>,
}

impl std::fmt::Debug for OptimisticIndex {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("OptimisticIndex")
            .field("id", &self.id)
            .field("scorer", &self.scorer)
            .finish_non_exhaustive()
    }
}

/// Why an index cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum IndexObjectError {
    /// The object cannot be read.
    #[error(transparent)]
    Objects(#[from] ObjectsError),
    /// The object is no index.
    #[error("object {object} is no sketch index")]
    Malformed {
        /// The object.
        object: B256,
        /// What is wrong.
        #[source]
        source: IndexError,
    },
    /// The object is an index, and not the one that was committed to.
    #[error("object {object} is index {found}, not {expected}")]
    Other {
        /// The object.
        object: B256,
        /// What the object's own commitment is.
        found: B256,
        /// What the model commits to.
        expected: B256,
    },
    /// It cannot be laid out for scoring.
    #[error(transparent)]
    Scorer(#[from] ScorerError),
}

/// Reads the index `id` from the object that its commitment names, and checks
/// every byte of it.
///
/// # Errors
/// [`IndexObjectError`].
pub fn load_committed(
    objects: &Objects,
    object: B256,
    id: B256,
) -> Result<CommittedIndex, IndexObjectError> {
    let bytes = objects.get(object, INDEX_SIZE_BYTES_MAX)?;
    let index = CommittedIndex::from_bytes(bytes.into());
    let index = index.map_err(|source| IndexObjectError::Malformed { object, source })?;
    if index.id() != id {
        return Err(IndexObjectError::Other {
            object,
            found: index.id(),
            expected: id,
        });
    }
    Ok(index)
}

impl OptimisticIndex {
    /// Lays an index out for scoring on `pool`.
    ///
    /// # Errors
    /// [`ScorerError`]; not for an index whose form was checked.
    pub fn new(committed: CommittedIndex, pool: Arc<Pool>) -> Result<Self, ScorerError> {
        let scorer = Scorer::new(committed.entries().map(|entry| entry.to_entry()))?;
        Ok(Self {
            id: committed.id(),
            committed,
            scorer,
            pool,
        })
    }

    /// What a model names it by, in the place of a sketch root.
    #[must_use]
    pub const fn id(&self) -> B256 {
        self.id
    }

    /// The index with its commitment.
    #[must_use]
    pub const fn committed(&self) -> &CommittedIndex {
        &self.committed
    }

    /// About how much memory it takes, in bytes.
    #[must_use]
    pub fn size_bytes(&self) -> usize {
        let n_entries = self.scorer.len();
        n_entries * (ENTRY_SIZE_BYTES + size_of::<B256>()) + self.scorer.size_bytes()
    }

    /// Who is paid by training, ascending, and by what weight: the same as
    /// [`ol_poa::Index::weights`].
    #[must_use]
    pub fn weights(&self, null_threshold: u64, query: &QuerySketch) -> Vec<(Address, u64)> {
        self.scorer.weights(&self.pool, null_threshold, query)
    }

    /// The records of a contributor that count most, the strongest first, at most
    /// `n` and all above 0: score and hash. None of somebody who has no record.
    #[must_use]
    pub fn strongest(
        &self,
        query: &QuerySketch,
        contributor: Address,
        n: usize,
    ) -> Vec<(i64, B256)> {
        let Ok(at) = self.scorer.contributors().binary_search(&contributor) else {
            return Vec::new();
        };
        let hits = self.scorer.top_of(&self.pool, query, at, n);
        let record = |position| self.committed.entries().nth(position);
        hits.into_iter()
            .filter_map(|hit| Some((hit.score, record(hit.position)?.record())))
            .collect()
    }

    /// The share of every contributor, in the order of the index. `pot` and the
    /// shares are in wei.
    #[must_use]
    pub fn amounts(&self, query: &QuerySketch, null_threshold: u64, pot: u128) -> Vec<u128> {
        amounts(&self.scorer.nets(&self.pool, query), null_threshold, pot)
    }

    /// What contributors show to collect their shares of a paid claim. Those who
    /// have none are left out.
    #[must_use]
    pub fn share_proofs(&self, amounts: &[u128], contributors: &[Address]) -> Vec<ShareProof> {
        let tree = share_tree(&self.committed, amounts.iter().copied());
        let proof = |&contributor| {
            let all = self.scorer.contributors();
            let at = all.binary_search(&contributor).ok()?;
            let share_wei = *amounts.get(at).filter(|share| **share > 0)?;
            let position = u32::try_from(at).ok()?;
            let path = tree.path(0, position);
            Some(ShareProof {
                contributor,
                position,
                share_wei,
                path: path.iter().flat_map(|node| node.encode()).collect(),
            })
        };
        contributors.iter().filter_map(proof).collect()
    }

    /// The claim of an answer: the only one that stands. `pot` is in wei.
    ///
    /// Two hashes a record: about a second for a million.
    #[must_use]
    pub fn claim(&self, query: &QuerySketch, null_threshold: u64, pot: u128) -> Claim {
        Claim::compute(&self.committed, query, null_threshold, pot)
    }
}

/// A share with its path in the tree of shares.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ShareProof {
    /// Who it is of.
    pub contributor: Address,
    /// Position of the contributor, from 0.
    pub position: u32,
    /// The share.
    pub share_wei: u128,
    /// The siblings from the leaf up, encoded.
    pub path: Vec<u8>,
}

#[cfg(test)]
mod tests;
