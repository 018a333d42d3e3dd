//! What the operator commits to for one answer.

use alloc::vec::Vec;

use alloy_primitives::{Address, B256, U256};

use super::tree::{Net, Node, SumTree};
use super::{CommittedIndex, Terms, hash};
use crate::score::{QuerySketch, weight};
use crate::shares::{SharesError, shares};

/// Who gets one of the units that the floors of the shares leave over: all
/// whose remainder is above `remainder`, and of those that have exactly it the
/// positions up to `position`. Nobody whose remainder is 0. Both are 0 if
/// nothing is left over.
///
/// Largest-remainder apportionment needs a sort; with the cutoff committed,
/// one contributor's share is decided without the others.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Cutoff {
    /// The smallest remainder that still gets a unit.
    pub remainder: u64,
    /// The contributor who has it and comes last, counted from 0.
    pub position: u32,
}

impl Cutoff {
    /// The share of the contributor at `position`, and its remainder.
    pub(super) fn share(self, pot: u128, position: u32, weight: u64, total: u64) -> (U256, U256) {
        if total == 0 {
            return (U256::ZERO, U256::ZERO);
        }
        let (floor, remainder) = (U256::from(pot) * U256::from(weight)).div_rem(U256::from(total));
        let last = U256::from(self.remainder);
        let is_above = remainder > last || (remainder == last && position <= self.position);
        let unit = U256::from(u8::from(is_above && !remainder.is_zero()));
        (floor + unit, remainder)
    }

    /// The cutoff of shares that [`shares`] computed.
    fn of(pot: u128, weights: &[u64], shares: &[u128]) -> Self {
        let total = weights.iter().copied().fold(0, u64::wrapping_add);
        let mut last = Self::default();
        for (position, (&weight, &share)) in (0..).zip(weights.iter().zip(shares)) {
            let (floor, remainder) = Self::NOBODY.share(pot, position, weight, total);
            let remainder = remainder.to::<u64>();
            if U256::from(share) > floor && (last.remainder == 0 || remainder <= last.remainder) {
                last = Self {
                    remainder,
                    position,
                };
            }
        }
        last
    }

    /// Above every remainder.
    const NOBODY: Self = Self {
        remainder: u64::MAX,
        position: 0,
    };
}

/// The leaf of an entry's score.
pub(super) fn score_leaf(position: u32, score: i64) -> Node<i64> {
    Node {
        hash: hash(&[&[0x00], &position.to_be_bytes(), &score.to_be_bytes()]),
        value: score,
    }
}

/// The hash of the leaf of a contributor's net.
pub(super) fn net_hash(contributor: &Address, end: u32, net: i64) -> B256 {
    hash(&[
        &[0x00],
        contributor.as_slice(),
        &end.to_be_bytes(),
        &net.to_be_bytes(),
    ])
}

/// The hash of the leaf of a contributor's share.
pub(super) fn share_hash(contributor: &Address, share: u128) -> B256 {
    hash(&[&[0x00], contributor.as_slice(), &share.to_be_bytes()])
}

/// What goes on chain of a claim: the roots of its trees and the cutoff.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Posted {
    /// Root over the scores.
    pub scores: Node<i64>,
    /// Root over nets and weights.
    pub nets: Node<Net>,
    /// Root over the shares.
    pub shares: Node<u128>,
    /// Who gets the units left over.
    pub cutoff: Cutoff,
}

impl Posted {
    /// Commitments to the roots, in the order of [`super::Tree`].
    #[must_use]
    pub fn roots(&self) -> [B256; 3] {
        [
            self.scores.commitment(),
            self.nets.commitment(),
            self.shares.commitment(),
        ]
    }

    /// What this is judged by.
    ///
    /// `pot` is in wei, `null_threshold` in units of the scores.
    #[must_use]
    pub fn terms(
        &self,
        index: &CommittedIndex,
        query_hash: B256,
        null_threshold: u64,
        pot: u128,
    ) -> Terms {
        Terms {
            index_root: index.root(),
            n_entries: index.n_entries(),
            ranges_root: index.ranges_root(),
            n_contributors: index.n_contributors(),
            query_hash,
            null_threshold,
            pot,
            roots: self.roots(),
            cutoff: self.cutoff,
        }
    }
}

/// Every score, net and share of an answer, with the trees over them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Claim {
    /// Over the entries of the index.
    pub scores: SumTree<i64>,
    /// Over its contributors.
    pub nets: SumTree<Net>,
    /// Over its contributors.
    pub shares: SumTree<u128>,
    /// Who gets the units left over.
    pub cutoff: Cutoff,
}

impl Claim {
    /// Computes everything about an answer: the only claim that stands.
    ///
    /// The shares are those of [`fn@shares`] over all contributors, so that an
    /// answer pays the same in both tiers. `pot` is in wei.
    #[must_use]
    pub fn compute(
        index: &CommittedIndex,
        query: &QuerySketch,
        null_threshold: u64,
        pot: u128,
    ) -> Self {
        let scores = index.index().scores(query);
        let nets = nets(index, &scores);
        let (weights, amounts) = divide(&nets, null_threshold, pot);
        let cutoff = Cutoff::of(pot, &weights, &amounts);
        Self::plant(index, null_threshold, &scores, &nets, &amounts, cutoff)
    }

    /// The trees over the numbers that an operator published with
    /// [`Self::to_bytes`], right or not; `None` if there are not as many as the
    /// index asks for.
    #[must_use]
    pub fn from_bytes(
        index: &CommittedIndex,
        null_threshold: u64,
        cutoff: Cutoff,
        bytes: &[u8],
    ) -> Option<Self> {
        let (n, m) = (index.n_entries() as usize, index.n_contributors() as usize);
        if bytes.len() != 8 * n + 24 * m {
            return None;
        }
        let (numbers, amounts) = bytes.split_at(8 * (n + m));
        let numbers: Vec<i64> = numbers
            .as_chunks()
            .0
            .iter()
            .map(|b| i64::from_be_bytes(*b))
            .collect();
        let amounts: Vec<u128> = amounts
            .as_chunks()
            .0
            .iter()
            .map(|b| u128::from_be_bytes(*b))
            .collect();
        let (scores, nets) = numbers.split_at(n);
        Some(Self::plant(
            index,
            null_threshold,
            scores,
            nets,
            &amounts,
            cutoff,
        ))
    }

    /// The numbers under the trees, as the object that the operator publishes:
    /// scores, then nets (8 bytes each), then shares (16 bytes each).
    #[must_use]
    #[expect(clippy::missing_panics_doc, reason = "the expectation cannot fail")]
    pub fn to_bytes(&self, index: &CommittedIndex) -> Vec<u8> {
        let (n, m) = (index.n_entries(), index.n_contributors());
        let mut bytes = Vec::new();
        let leaf = "a claim has a leaf for each entry and contributor of its index";
        for position in 0..n {
            let score = self.scores.node(0, position).expect(leaf).value;
            bytes.extend_from_slice(&score.to_be_bytes());
        }
        for position in 0..m {
            let net = self.nets.node(0, position).expect(leaf).value.net;
            bytes.extend_from_slice(&net.to_be_bytes());
        }
        for position in 0..m {
            let share = self.shares.node(0, position).expect(leaf).value;
            bytes.extend_from_slice(&share.to_be_bytes());
        }
        bytes
    }

    /// What goes on chain.
    #[must_use]
    pub fn posted(&self) -> Posted {
        Posted {
            scores: self.scores.root(),
            nets: self.nets.root(),
            shares: self.shares.root(),
            cutoff: self.cutoff,
        }
    }

    fn plant(
        index: &CommittedIndex,
        null_threshold: u64,
        scores: &[i64],
        nets: &[i64],
        amounts: &[u128],
        cutoff: Cutoff,
    ) -> Self {
        let scores = (0..).zip(scores).map(|(at, &score)| score_leaf(at, score));
        let ranges = index.ranges();
        let net_leaves = ranges
            .iter()
            .zip(nets)
            .map(|((contributor, end), &net)| Node {
                hash: net_hash(contributor, *end, net),
                value: Net {
                    net,
                    weight: weight(net, null_threshold),
                },
            });
        Self {
            scores: SumTree::new(scores.collect()),
            nets: SumTree::new(net_leaves.collect()),
            shares: share_tree(index, amounts.iter().copied()),
            cutoff,
        }
    }
}

/// The shares that nets are worth, for every contributor of an index, those that
/// get nothing included; all of them nothing if no net is above the threshold.
/// `pot` and the shares are in wei.
#[must_use]
pub fn amounts(nets: &[i64], null_threshold: u64, pot: u128) -> Vec<u128> {
    divide(nets, null_threshold, pot).1
}

fn divide(nets: &[i64], null_threshold: u64, pot: u128) -> (Vec<u64>, Vec<u128>) {
    let weights: Vec<u64> = nets
        .iter()
        .map(|&net| weight(net, null_threshold))
        .collect();
    let amounts = match shares(pot, &weights) {
        Ok(amounts) => amounts,
        Err(SharesError::NoWeight) => alloc::vec![0; weights.len()],
        // An index has at most 2^14 contributors, and a net is below 2^57.
        Err(error) => unreachable!("weights out of range: {error}"),
    };
    (weights, amounts)
}

/// The tree over the shares of an index's contributors: what a share is
/// collected by.
#[must_use]
pub fn share_tree(index: &CommittedIndex, amounts: impl Iterator<Item = u128>) -> SumTree<u128> {
    let leaves = index.ranges().iter().zip(amounts);
    let leaves = leaves.map(|((contributor, _), share)| Node {
        hash: share_hash(contributor, share),
        value: share,
    });
    SumTree::new(leaves.collect())
}

/// The sum of the scores of each contributor.
fn nets(index: &CommittedIndex, scores: &[i64]) -> Vec<i64> {
    let mut start = 0;
    let ranges = index.ranges().iter();
    ranges
        .map(|&(_, end)| {
            let end = end as usize;
            let net = scores[start..end].iter().sum();
            start = end;
            net
        })
        .collect()
}
