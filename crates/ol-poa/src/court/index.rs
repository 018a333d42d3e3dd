//! What a model of the optimistic tier commits to once.

use alloc::vec::Vec;

use alloy_primitives::{Address, B256};

use super::{COURT_CONTRIBUTORS_MAX, hash};
use crate::index::{ENTRY_SIZE_BYTES, EntryView, Index, IndexError};
use crate::merkle;

/// An index with the trees of its commitment.
///
/// Entries are those of `specs/poa.md` in the same order; there may be
/// [`super::COURT_ENTRIES_MAX`] of them, from [`COURT_CONTRIBUTORS_MAX`]
/// contributors. It takes 32 bytes an entry beside the index itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CommittedIndex {
    index: Index,
    /// Contributors ascending, and the position after the last of their entries.
    ranges: Vec<(Address, u32)>,
    leaves: Vec<B256>,
    range_leaves: Vec<B256>,
    object: B256,
    root: B256,
    ranges_root: B256,
}

impl CommittedIndex {
    /// Takes an index as its entries one after the other, in order: the bytes
    /// that are published as an object.
    ///
    /// # Errors
    /// [`IndexError`] as [`Index::from_bytes`], or if there are more contributors
    /// than a claim can pay.
    pub fn from_bytes(bytes: Vec<u8>) -> Result<Self, IndexError> {
        Self::new(Index::from_bytes(bytes)?)
    }

    /// Takes an index.
    ///
    /// # Errors
    /// [`IndexError::TooManyContributors`].
    #[expect(clippy::missing_panics_doc, reason = "the expectation cannot fail")]
    pub fn new(index: Index) -> Result<Self, IndexError> {
        let mut leaves = Vec::with_capacity(index.len());
        let mut ranges: Vec<(Address, u32)> = Vec::new();
        for (entry, view) in index.entries().enumerate() {
            leaves.push(merkle::leaf(view.bytes()));
            let end = u32::try_from(entry + 1).expect("an index has at most 2^20 entries");
            match ranges.last_mut() {
                Some((contributor, last)) if *contributor == view.contributor() => *last = end,
                _ => ranges.push((view.contributor(), end)),
            }
        }
        if ranges.len() > COURT_CONTRIBUTORS_MAX {
            return Err(IndexError::TooManyContributors {
                n_contributors: ranges.len(),
            });
        }
        let range_leaves: Vec<B256> = ranges
            .iter()
            .map(|(contributor, end)| range_leaf(contributor, *end))
            .collect();
        Ok(Self {
            object: alloy_primitives::keccak256(index.as_bytes()),
            root: merkle::root(&leaves),
            ranges_root: merkle::root(&range_leaves),
            index,
            ranges,
            leaves,
            range_leaves,
        })
    }

    /// The index itself.
    #[must_use]
    pub const fn index(&self) -> &Index {
        &self.index
    }

    /// How many entries there are, at least 1.
    #[must_use]
    #[expect(clippy::missing_panics_doc, reason = "the expectation cannot fail")]
    pub fn n_entries(&self) -> u32 {
        u32::try_from(self.leaves.len()).expect("an index has at most 2^20 entries")
    }

    /// How many contributors there are, at least 1.
    #[must_use]
    #[expect(clippy::missing_panics_doc, reason = "the expectation cannot fail")]
    pub fn n_contributors(&self) -> u32 {
        u32::try_from(self.ranges.len()).expect("an index has at most 2^14 contributors")
    }

    /// The entries, one after the other: the object that is published.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        self.index.as_bytes()
    }

    /// The id of the object: keccak256 of the entries.
    #[must_use]
    pub const fn object(&self) -> B256 {
        self.object
    }

    /// The root over the entries.
    #[must_use]
    pub const fn root(&self) -> B256 {
        self.root
    }

    /// The root over contributors and where their entries end.
    #[must_use]
    pub const fn ranges_root(&self) -> B256 {
        self.ranges_root
    }

    /// What names the commitment on chain, in the place of the sketch root:
    /// `keccak256(0x03 ‖ object ‖ root ‖ n_entries ‖ ranges root ‖
    /// n_contributors)`.
    #[must_use]
    pub fn id(&self) -> B256 {
        hash(&[
            &[0x03],
            self.object.as_slice(),
            self.root().as_slice(),
            &self.n_entries().to_be_bytes(),
            self.ranges_root().as_slice(),
            &self.n_contributors().to_be_bytes(),
        ])
    }

    /// The entries in order, read in place.
    pub fn entries(&self) -> impl ExactSizeIterator<Item = EntryView<'_>> {
        self.index.entries()
    }

    /// Contributors ascending, with the position after the last of their
    /// entries.
    #[must_use]
    pub fn ranges(&self) -> &[(Address, u32)] {
        &self.ranges
    }

    /// Bytes of an entry; `None` past the last.
    pub(super) fn entry(&self, position: u32) -> Option<&[u8]> {
        let from = usize::try_from(position)
            .ok()?
            .checked_mul(ENTRY_SIZE_BYTES)?;
        self.as_bytes().get(from..from + ENTRY_SIZE_BYTES)
    }

    pub(super) fn entry_proof(&self, position: u32) -> Vec<B256> {
        proof(&self.leaves, position)
    }

    pub(super) fn range_proof(&self, position: u32) -> Vec<B256> {
        proof(&self.range_leaves, position)
    }
}

/// The leaf of a contributor: `keccak256(0x00 ‖ contributor ‖ end)`.
pub(super) fn range_leaf(contributor: &Address, end: u32) -> B256 {
    hash(&[&[0x00], contributor.as_slice(), &end.to_be_bytes()])
}

fn proof(leaves: &[B256], position: u32) -> Vec<B256> {
    merkle::proof(leaves, merkle::depth(leaves.len()), position as usize)
}
