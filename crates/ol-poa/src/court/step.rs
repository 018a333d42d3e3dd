//! One step: the smallest piece of a claim that can be wrong, with what proves
//! that the operator committed to it.
//!
//! Paths are as long as the trees are deep, so a node can only pass for what it
//! is. Reading never panics and allocates no more than the bytes given.

use alloc::vec::Vec;
use core::fmt;

use alloy_primitives::{Address, B256, U256, keccak256};

use super::claim::{net_hash, score_leaf, share_hash};
use super::index::range_leaf;
use super::tree::{Net, Node, Value, climb, fold};
use super::{COURT_CONTRIBUTORS_MAX, COURT_ENTRIES_MAX, REVEAL_LEVELS, Terms, Tree};
use crate::index::{ENTRY_SIZE_BYTES, EntryView, K};
use crate::merkle;
use crate::score::{QuerySketch, score, weight};

/// First byte of a step about a leaf of the scores.
pub(super) const SCORE: u8 = 1;
/// First byte of a step about a leaf of the nets, by itself.
pub(super) const NET: u8 = 2;
/// First byte of a step about the sum of the nets up to a contributor.
pub(super) const BOUNDARY: u8 = 3;
/// First byte of a step about a leaf of the shares.
pub(super) const SHARE: u8 = 4;
/// First byte of a step about the sum in an inner node.
pub(super) const SUM: u8 = 5;
/// First byte of a step about the form of a leaf of the scores.
pub(super) const FORM: u8 = 6;

/// First byte of a step about an entry that no index may have.
pub(super) const ENTRY: u8 = 7;
/// First byte of a step about two entries that no index may have in this order.
pub(super) const PAIR: u8 = 8;

/// Why a step shows nothing, neither for nor against the claim.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum StepError {
    /// It is not of the form that its first byte announces, or a number is out
    /// of range.
    Malformed,
    /// It is not about what was committed to: a path does not lead to the root.
    Unproven,
}

impl fmt::Display for StepError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Malformed => "malformed step",
            Self::Unproven => "the step is not part of the claim",
        })
    }
}

impl core::error::Error for StepError {}

/// Whether a step shows that the claim is wrong. `Ok(false)`: it is part of the
/// claim, and right.
///
/// # Errors
/// [`StepError`] if it shows neither.
pub fn is_lie(terms: &Terms, step: &[u8]) -> Result<bool, StepError> {
    let (n, m) = (terms.n_entries as usize, terms.n_contributors as usize);
    if n == 0 || n > COURT_ENTRIES_MAX || m == 0 || m > COURT_CONTRIBUTORS_MAX.min(n) {
        return Err(StepError::Malformed);
    }
    let mut reader = Reader(step);
    let [kind] = reader.take()?;
    let verdict = match kind {
        SCORE => score_step(terms, &mut reader),
        NET => net_step(terms, &mut reader),
        BOUNDARY => boundary_step(terms, &mut reader),
        SHARE => share_step(terms, &mut reader),
        SUM => sum_step(terms, &mut reader),
        FORM => form_step(terms, &mut reader),
        ENTRY => entry_step(terms, &mut reader),
        PAIR => pair_step(terms, &mut reader),
        _ => Err(StepError::Malformed),
    }?;
    reader.end()?;
    Ok(verdict)
}

/// The commitment of the node that `path` opens: the node, then its siblings
/// from its level up.
///
/// # Errors
/// [`StepError`] if it does not lead to the root of that tree.
pub fn open(
    terms: &Terms,
    tree: Tree,
    level: u32,
    position: u32,
    path: &[u8],
) -> Result<B256, StepError> {
    fn of<V: Value>(
        terms: &Terms,
        tree: Tree,
        level: u32,
        position: u32,
        path: &[u8],
    ) -> Result<B256, StepError> {
        let mut reader = Reader(path);
        let node: Node<V> = reader.node()?;
        reader.climb(terms, tree, level, position, &node)?;
        reader.end()?;
        Ok(node.commitment())
    }
    let of = match tree {
        Tree::Scores => of::<i64>,
        Tree::Nets => of::<Net>,
        Tree::Shares => of::<u128>,
    };
    of(terms, tree, level, position, path)
}

/// The commitment of the node above a row of nodes: what the operator answers
/// to a request to reveal that node, which is `level` levels above the leaves.
///
/// # Errors
/// [`StepError::Malformed`] if the row is not the one
/// [`REVEAL_LEVELS`] below, or the leaves.
pub fn reveal(tree: Tree, level: u32, row: &[u8]) -> Result<B256, StepError> {
    fn of<V: Value>(row: &[u8]) -> Option<B256> {
        let nodes: Option<Vec<Node<V>>> = row
            .chunks(Node::<V>::SIZE_BYTES)
            .map(Node::decode)
            .collect();
        Some(fold(&nodes?)?.commitment())
    }
    if row.len() != tree.node_size_bytes() << level.min(REVEAL_LEVELS) {
        return Err(StepError::Malformed);
    }
    let node = match tree {
        Tree::Scores => of::<i64>(row),
        Tree::Nets => of::<Net>(row),
        Tree::Shares => of::<u128>(row),
    };
    node.ok_or(StepError::Malformed)
}

impl Terms {
    /// Levels of a tree above its leaves.
    const fn depth(&self, tree: Tree) -> u32 {
        merkle::depth(match tree {
            Tree::Scores => self.n_entries,
            Tree::Nets | Tree::Shares => self.n_contributors,
        } as usize)
    }
}

/// `position ‖ score ‖ path ‖ entry ‖ its path ‖ query`: the longest step, so it
/// leaves out the leaf's hash, which follows from position and score.
fn score_step(terms: &Terms, reader: &mut Reader<'_>) -> Result<bool, StepError> {
    let position = reader.number()?;
    let claimed = i64::from_be_bytes(reader.take()?);
    let leaf = score_leaf(position, claimed);
    reader.climb(terms, Tree::Scores, 0, position, &leaf)?;
    if position >= terms.n_entries {
        return Err(StepError::Malformed);
    }
    let entry: [u8; ENTRY_SIZE_BYTES] = reader.take()?;
    let (root, n) = (&terms.index_root, terms.n_entries);
    reader.member(root, n, position, &merkle::leaf(&entry))?;
    let codes: [u8; K] = reader.take()?;
    if keccak256(codes) != terms.query_hash {
        return Err(StepError::Unproven);
    }
    let query = QuerySketch::from_bytes(&codes).map_err(|_| StepError::Malformed)?;
    Ok(claimed != score(&query, EntryView::of(&entry)))
}

/// `position ‖ node ‖ path`: a leaf that is of no score, or not zero past the
/// last entry.
fn form_step(terms: &Terms, reader: &mut Reader<'_>) -> Result<bool, StepError> {
    let position = reader.number()?;
    let leaf: Node<i64> = reader.node()?;
    reader.climb(terms, Tree::Scores, 0, position, &leaf)?;
    Ok(leaf != form(terms.n_entries, position, leaf.value))
}

/// `position ‖ entry ‖ its path`: a scale or a code that is out of range. Who
/// claims against a malformed index answers for it.
fn entry_step(terms: &Terms, reader: &mut Reader<'_>) -> Result<bool, StepError> {
    let (_, entry) = reader.index_entry(terms)?;
    Ok(EntryView::of(&entry).check(0).is_err())
}

/// `position ‖ entry ‖ its path`, twice: two entries of one cluster, or out of
/// order.
fn pair_step(terms: &Terms, reader: &mut Reader<'_>) -> Result<bool, StepError> {
    let (first, one) = reader.index_entry(terms)?;
    let (second, other) = reader.index_entry(terms)?;
    if first >= second {
        return Err(StepError::Malformed);
    }
    let (one, other) = (EntryView::of(&one), EntryView::of(&other));
    Ok(one.key() >= other.key() || one.cluster() == other.cluster())
}

/// The leaf of a score at a position, which is zero past the last entry.
pub(super) fn form(n_entries: u32, position: u32, score: i64) -> Node<i64> {
    if position < n_entries {
        score_leaf(position, score)
    } else {
        Node::default()
    }
}

/// `position ‖ node ‖ path`, then, unless the position is past the last
/// contributor: `contributor ‖ end ‖ their path`.
fn net_step(terms: &Terms, reader: &mut Reader<'_>) -> Result<bool, StepError> {
    let position = reader.number()?;
    let leaf: Node<Net> = reader.node()?;
    reader.climb(terms, Tree::Nets, 0, position, &leaf)?;
    if position >= terms.n_contributors {
        return Ok(leaf != Node::default());
    }
    let contributor = Address::from(reader.take()?);
    let end = reader.number()?;
    let range = range_leaf(&contributor, end);
    reader.member(&terms.ranges_root, terms.n_contributors, position, &range)?;
    let Net { net, weight: given } = leaf.value;
    Ok(leaf.hash != net_hash(&contributor, end, net) || given != weight(net, terms.null_threshold))
}

/// `position ‖ contributor ‖ end ‖ net ‖ weight ‖ path`, then
/// `score ‖ path` of the entry before `end`.
fn boundary_step(terms: &Terms, reader: &mut Reader<'_>) -> Result<bool, StepError> {
    let position = reader.number()?;
    let (_, end, leaf) = reader.net_leaf()?;
    let (_, before) = reader.climb(terms, Tree::Nets, 0, position, &leaf)?;
    let last = match end.checked_sub(1) {
        Some(last) if end <= terms.n_entries => last,
        _ => return Err(StepError::Malformed),
    };
    let score = score_leaf(last, i64::from_be_bytes(reader.take()?));
    let (_, scores_before) = reader.climb(terms, Tree::Scores, 0, last, &score)?;
    Ok(before.add(leaf.value).net != scores_before.add(score.value))
}

/// `position ‖ node ‖ path` in the shares, then, unless the position is past
/// the last contributor: `contributor ‖ end ‖ net ‖ weight ‖ path` in the nets.
fn share_step(terms: &Terms, reader: &mut Reader<'_>) -> Result<bool, StepError> {
    let position = reader.number()?;
    let leaf: Node<u128> = reader.node()?;
    reader.climb(terms, Tree::Shares, 0, position, &leaf)?;
    if position >= terms.n_contributors {
        return Ok(leaf != Node::default());
    }
    let (contributor, _, net) = reader.net_leaf()?;
    let (root, _) = reader.climb(terms, Tree::Nets, 0, position, &net)?;
    let (weight, total) = (net.value.weight, root.value.weight);
    let (share, remainder) = terms.cutoff.share(terms.pot, position, weight, total);
    let is_cutoff_wrong =
        position == terms.cutoff.position && remainder != U256::from(terms.cutoff.remainder);
    Ok(is_cutoff_wrong
        || U256::from(leaf.value) != share
        || leaf.hash != share_hash(&contributor, leaf.value))
}

/// `tree ‖ level ‖ position ‖ node ‖ left ‖ right ‖ path`.
fn sum_step(terms: &Terms, reader: &mut Reader<'_>) -> Result<bool, StepError> {
    fn of<V: Value>(
        terms: &Terms,
        tree: Tree,
        level: u32,
        reader: &mut Reader<'_>,
    ) -> Result<bool, StepError> {
        let position = reader.number()?;
        let node: Node<V> = reader.node()?;
        let expected = Node::<V>::parent(&reader.node()?, &reader.node()?);
        reader.climb(terms, tree, level, position, &node)?;
        if expected.hash != node.hash {
            return Err(StepError::Unproven);
        }
        Ok(expected.value != node.value)
    }
    let [tree, level] = reader.take()?;
    let tree = Tree::from_number(tree).ok_or(StepError::Malformed)?;
    if level == 0 {
        return Err(StepError::Malformed);
    }
    let of = match tree {
        Tree::Scores => of::<i64>,
        Tree::Nets => of::<Net>,
        Tree::Shares => of::<u128>,
    };
    of(terms, tree, level.into(), reader)
}

/// Takes bytes from the front.
struct Reader<'a>(&'a [u8]);

impl Reader<'_> {
    fn take<const N: usize>(&mut self) -> Result<[u8; N], StepError> {
        let (taken, rest) = self.0.split_first_chunk().ok_or(StepError::Malformed)?;
        self.0 = rest;
        Ok(*taken)
    }

    fn number(&mut self) -> Result<u32, StepError> {
        self.take().map(u32::from_be_bytes)
    }

    fn node<V: Value>(&mut self) -> Result<Node<V>, StepError> {
        let (taken, rest) = self
            .0
            .split_at_checked(Node::<V>::SIZE_BYTES)
            .ok_or(StepError::Malformed)?;
        self.0 = rest;
        Node::decode(taken).ok_or(StepError::Malformed)
    }

    /// The leaf of a net from what it is the hash of.
    fn net_leaf(&mut self) -> Result<(Address, u32, Node<Net>), StepError> {
        let contributor = Address::from(self.take()?);
        let end = self.number()?;
        let net = i64::from_be_bytes(self.take()?);
        let weight = u64::from_be_bytes(self.take()?);
        let leaf = Node {
            hash: net_hash(&contributor, end, net),
            value: Net { net, weight },
        };
        Ok((contributor, end, leaf))
    }

    /// Takes the siblings of a node and checks that they lead to the root;
    /// returns the root and the sum of what is left of the node.
    fn climb<V: Value>(
        &mut self,
        terms: &Terms,
        tree: Tree,
        level: u32,
        position: u32,
        node: &Node<V>,
    ) -> Result<(Node<V>, V), StepError> {
        let height = terms
            .depth(tree)
            .checked_sub(level)
            .filter(|height| position >> height == 0)
            .ok_or(StepError::Malformed)?;
        let siblings: Vec<Node<V>> = (0..height).map(|_| self.node()).collect::<Result<_, _>>()?;
        let (root, before) = climb(node, position, &siblings);
        if root.commitment() != terms.roots[tree as usize] {
            return Err(StepError::Unproven);
        }
        Ok((root, before))
    }

    /// Takes `position ‖ entry ‖ its path` in the index, and checks it.
    fn index_entry(&mut self, terms: &Terms) -> Result<(u32, [u8; ENTRY_SIZE_BYTES]), StepError> {
        let position = self.number()?;
        let entry: [u8; ENTRY_SIZE_BYTES] = self.take()?;
        let (root, n) = (&terms.index_root, terms.n_entries);
        self.member(root, n, position, &merkle::leaf(&entry))?;
        Ok((position, entry))
    }

    /// Takes the proof of a leaf in a tree without sums, and checks it.
    fn member(
        &mut self,
        root: &B256,
        n_leaves: u32,
        position: u32,
        leaf: &B256,
    ) -> Result<(), StepError> {
        let n_leaves = n_leaves as usize;
        let siblings: Vec<B256> = (0..merkle::depth(n_leaves))
            .map(|_| self.take().map(B256::from))
            .collect::<Result<_, _>>()?;
        if merkle::verify(root, n_leaves, position as usize, leaf, &siblings) {
            Ok(())
        } else {
            Err(StepError::Unproven)
        }
    }

    const fn end(&self) -> Result<(), StepError> {
        if self.0.is_empty() {
            Ok(())
        } else {
            Err(StepError::Malformed)
        }
    }
}
