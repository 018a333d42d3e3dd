//! How a watcher finds the step that refutes a claim.
//!
//! Whoever has the index and the query knows the only claim that stands. Where
//! a posted root is another, walking down to the first node that differs ends
//! in a sum or a leaf that is wrong. Scores come first, then nets (which are
//! sums of scores), then shares (which follow from nets): what comes later is
//! judged by what came before.

use alloc::collections::BTreeMap;
use alloc::vec::Vec;

use alloy_primitives::B256;

use super::claim::{Posted, share_tree};
use super::step::{BOUNDARY, ENTRY, FORM, NET, PAIR, SCORE, SHARE, SUM, form};
use super::tree::{Net, Node, SumTree, Value};
use super::{Claim, CommittedIndex, REVEAL_LEVELS, Tree};
use crate::index::{ENTRY_SIZE_BYTES, EntryView};
use crate::merkle;
use crate::score::QuerySketch;

/// What is known of the operator's tree.
pub trait Nodes<V> {
    /// The node at `position` of `level`, if it is known.
    fn node(&self, level: u32, position: u32) -> Option<Node<V>>;
}

impl<V: Value> Nodes<V> for SumTree<V> {
    fn node(&self, level: u32, position: u32) -> Option<Node<V>> {
        self.node(level, position)
    }
}

/// What an operator has revealed of a tree.
#[derive(Debug, Clone, Default)]
pub struct Revealed<V>(BTreeMap<(u32, u32), Node<V>>);

impl<V: Value> Revealed<V> {
    /// Adds the row that answered a request for the node at `position` of
    /// `level`; false if it is not of the size asked for.
    pub fn insert(&mut self, level: u32, position: u32, row: &[u8]) -> bool {
        let down = level.min(REVEAL_LEVELS);
        if row.len() != Node::<V>::SIZE_BYTES << down || position >= 1 << (31 - down) {
            return false;
        }
        let nodes: Option<Vec<Node<V>>> = row
            .chunks(Node::<V>::SIZE_BYTES)
            .map(Node::decode)
            .collect();
        let Some(mut nodes) = nodes else {
            return false;
        };
        for at in level - down..level {
            let first = position << (level - at);
            self.0
                .extend((first..).zip(&nodes).map(|(p, node)| ((at, p), *node)));
            nodes = nodes
                .chunks(2)
                .map(|pair| Node::parent(&pair[0], &pair[1]))
                .collect();
        }
        true
    }
}

impl<V: Value> Nodes<V> for Revealed<V> {
    fn node(&self, level: u32, position: u32) -> Option<Node<V>> {
        self.0.get(&(level, position)).copied()
    }
}

/// What is known of the operator's three trees.
#[derive(Clone, Copy)]
#[expect(missing_debug_implementations, reason = "trees are of any kind")]
pub struct Known<'a> {
    /// Of the scores.
    pub scores: &'a dyn Nodes<i64>,
    /// Of the nets.
    pub nets: &'a dyn Nodes<Net>,
    /// Of the shares.
    pub shares: &'a dyn Nodes<u128>,
}

/// What a watcher does next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Finding {
    /// Nothing: the claim is the one that stands.
    Honest,
    /// Challenge by this step.
    Lie(Vec<u8>),
    /// Make the operator reveal what is below this node.
    Hidden {
        /// In which tree.
        tree: Tree,
        /// How far above the leaves.
        level: u32,
        /// Where in its level.
        position: u32,
        /// The node, then its siblings up to the root; see [`super::open`].
        path: Vec<u8>,
    },
}

/// Compares a posted claim with the one that stands.
///
/// `pot` is in wei, `null_threshold` in units of the scores. The posted totals
/// must agree with each other as the court demands before it takes a claim.
#[must_use]
pub fn find(
    index: &CommittedIndex,
    query: &QuerySketch,
    null_threshold: u64,
    pot: u128,
    posted: &Posted,
    known: Known<'_>,
) -> Finding {
    let ours = Claim::compute(index, query, null_threshold, pot);
    if ours.posted() == *posted {
        return Finding::Honest;
    }
    match descend(&ours.scores, posted.scores, known.scores) {
        Descent::Same => {}
        Descent::Leaf(leaf) => return Finding::Lie(score_step(index, query, &leaf)),
        other => return other.finding(Tree::Scores),
    }
    match descend(&ours.nets, posted.nets, known.nets) {
        Descent::Same => {}
        Descent::Leaf(leaf) => return Finding::Lie(net_step(index, &ours, &leaf)),
        other => return other.finding(Tree::Nets),
    }
    // Scores and nets stand, so the total weight does. What the shares must be
    // under the operator's own cutoff:
    let total = ours.nets.root().value.weight;
    let weight_at = |at| ours.nets.node(0, at).unwrap_or_default().value.weight;
    let amounts = (0..index.n_contributors()).map(|at| {
        let (share, _) = posted.cutoff.share(pot, at, weight_at(at), total);
        share.saturating_to::<u128>()
    });
    let expected = share_tree(index, amounts);
    let leaf = match descend(&expected, posted.shares, known.shares) {
        Descent::Leaf(leaf) => leaf,
        // The shares follow from the cutoff, so it is the cutoff that is not
        // the remainder of its own position.
        Descent::Same => {
            let position = posted.cutoff.position;
            Place {
                level: 0,
                position,
                node: expected.node(0, position).unwrap_or_default(),
                siblings: expected.path(0, position),
            }
        }
        other => return other.finding(Tree::Shares),
    };
    Finding::Lie(share_step(index, &ours, &leaf))
}

/// The step that refutes every claim against an index whose entries no index may
/// have: a value out of range, a wrong order, or a cluster twice. `None` if nothing
/// is wrong with them, or the object is not the one that `index_root` is over.
#[must_use]
#[expect(clippy::missing_panics_doc, reason = "the expectation cannot fail")]
pub fn find_malformed(object: &[u8], index_root: &B256, n_entries: u32) -> Option<Vec<u8>> {
    let (entries, rest) = object.as_chunks::<ENTRY_SIZE_BYTES>();
    let n = usize::try_from(n_entries).ok()?;
    if !rest.is_empty() || entries.len() != n || n == 0 || n > super::COURT_ENTRIES_MAX {
        return None;
    }
    let leaves: Vec<B256> = entries.iter().map(|entry| merkle::leaf(entry)).collect();
    if merkle::root(&leaves) != *index_root {
        return None;
    }
    let step = |kind: u8, positions: &[usize]| {
        let mut step = alloc::vec![kind];
        for &at in positions {
            let position = u32::try_from(at).expect("at most 2^20 entries");
            step.extend_from_slice(&position.to_be_bytes());
            step.extend_from_slice(&entries[at]);
            for sibling in merkle::proof(&leaves, merkle::depth(n), at) {
                step.extend_from_slice(sibling.as_slice());
            }
        }
        step
    };
    let view = |at: usize| EntryView::of(&entries[at]);
    if let Some(at) = (0..n).find(|&at| view(at).check(at).is_err()) {
        return Some(step(ENTRY, &[at]));
    }
    if let Some(at) = (1..n).find(|&at| view(at - 1).key() >= view(at).key()) {
        return Some(step(PAIR, &[at - 1, at]));
    }
    let mut clusters: Vec<(u32, usize)> = (0..n).map(|at| (view(at).cluster(), at)).collect();
    clusters.sort_unstable();
    let twice = clusters.windows(2).find(|pair| pair[0].0 == pair[1].0)?;
    Some(step(PAIR, &[twice[0].1, twice[1].1]))
}

/// A node of the operator's tree, with its siblings from its level up.
struct Place<V> {
    level: u32,
    position: u32,
    node: Node<V>,
    siblings: Vec<Node<V>>,
}

impl<V: Value> Place<V> {
    fn path(&self, out: &mut Vec<u8>) {
        for sibling in &self.siblings {
            out.extend_from_slice(&sibling.encode());
        }
    }
}

enum Descent<V> {
    Same,
    Leaf(Place<V>),
    Sum(Place<V>, [Node<V>; 2]),
    Hidden(Place<V>),
}

impl<V: Value> Descent<V> {
    fn finding(self, tree: Tree) -> Finding {
        match self {
            Self::Sum(place, children) => {
                let level = u8::try_from(place.level).expect("a tree has at most 20 levels");
                let mut step = alloc::vec![SUM, tree as u8, level];
                step.extend_from_slice(&place.position.to_be_bytes());
                for node in [&place.node, &children[0], &children[1]] {
                    step.extend_from_slice(&node.encode());
                }
                place.path(&mut step);
                Finding::Lie(step)
            }
            Self::Leaf(place) | Self::Hidden(place) => {
                let mut path = place.node.encode();
                place.path(&mut path);
                Finding::Hidden {
                    tree,
                    level: place.level,
                    position: place.position,
                    path,
                }
            }
            Self::Same => Finding::Honest,
        }
    }
}

/// Walks down to the leftmost leaf that is not ours, or to a node above it that
/// is not the sum of its children.
fn descend<V: Value>(ours: &SumTree<V>, root: Node<V>, known: &dyn Nodes<V>) -> Descent<V> {
    if ours.root() == root {
        return Descent::Same;
    }
    let (mut node, mut position) = (root, 0);
    let mut siblings = Vec::new();
    for level in (0..ours.depth()).rev() {
        let at = [2 * position, 2 * position + 1];
        let own = at.map(|p| ours.node(level, p).unwrap_or_default());
        let is_known = |pair: &[Node<V>; 2]| Node::parent(&pair[0], &pair[1]).hash == node.hash;
        let theirs = match at.map(|p| known.node(level, p)) {
            [Some(left), Some(right)] => Some([left, right]),
            _ => None,
        };
        // Where only the sum is wrong, the children are ours.
        let children = [theirs, Some(own)].into_iter().flatten().find(is_known);
        let place = |siblings: &[Node<V>], node, level, position| Place {
            level,
            position,
            node,
            siblings: siblings.iter().rev().copied().collect(),
        };
        let Some(children) = children else {
            return Descent::Hidden(place(&siblings, node, level + 1, position));
        };
        if children[0].value.add(children[1].value) != node.value {
            let place = place(&siblings, node, level + 1, position);
            return Descent::Sum(place, children);
        }
        let side = usize::from(children[0] == own[0]);
        siblings.push(children[1 - side]);
        node = children[side];
        position = at[side];
    }
    siblings.reverse();
    Descent::Leaf(Place {
        level: 0,
        position,
        node,
        siblings,
    })
}

fn leaf_step<V: Value>(kind: u8, leaf: &Place<V>) -> Vec<u8> {
    let mut step = alloc::vec![kind];
    step.extend_from_slice(&leaf.position.to_be_bytes());
    step.extend_from_slice(&leaf.node.encode());
    leaf.path(&mut step);
    step
}

fn score_step(index: &CommittedIndex, query: &QuerySketch, leaf: &Place<i64>) -> Vec<u8> {
    let Node { value, .. } = leaf.node;
    let entry = index
        .entry(leaf.position)
        .filter(|_| leaf.node == form(index.n_entries(), leaf.position, value));
    let Some(entry) = entry else {
        return leaf_step(FORM, leaf);
    };
    let mut step = alloc::vec![SCORE];
    step.extend_from_slice(&leaf.position.to_be_bytes());
    step.extend_from_slice(&value.to_be_bytes());
    leaf.path(&mut step);
    step.extend_from_slice(entry);
    for sibling in index.entry_proof(leaf.position) {
        step.extend_from_slice(sibling.as_slice());
    }
    step.extend_from_slice(&query.to_bytes());
    step
}

/// The scores stand, and so do all nets to the left of this one.
fn net_step(index: &CommittedIndex, ours: &Claim, leaf: &Place<Net>) -> Vec<u8> {
    let Some(&(contributor, end)) = index.ranges().get(leaf.position as usize) else {
        return leaf_step(NET, leaf);
    };
    let net = leaf.node.value.net;
    let is_well_formed = leaf.node.hash == super::claim::net_hash(&contributor, end, net);
    let own = ours.nets.node(0, leaf.position).unwrap_or_default();
    if !is_well_formed || net == own.value.net {
        let mut step = leaf_step(NET, leaf);
        step.extend_from_slice(contributor.as_slice());
        step.extend_from_slice(&end.to_be_bytes());
        for sibling in index.range_proof(leaf.position) {
            step.extend_from_slice(sibling.as_slice());
        }
        return step;
    }
    let mut step = alloc::vec![BOUNDARY];
    step.extend_from_slice(&leaf.position.to_be_bytes());
    net_leaf(&mut step, index, leaf.position, leaf.node.value);
    leaf.path(&mut step);
    let last = end - 1;
    let score = ours.scores.node(0, last).unwrap_or_default().value;
    step.extend_from_slice(&score.to_be_bytes());
    for sibling in ours.scores.path(0, last) {
        step.extend_from_slice(&sibling.encode());
    }
    step
}

/// Scores and nets stand.
fn share_step(index: &CommittedIndex, ours: &Claim, leaf: &Place<u128>) -> Vec<u8> {
    let mut step = leaf_step(SHARE, leaf);
    if leaf.position < index.n_contributors() {
        let net = ours.nets.node(0, leaf.position).unwrap_or_default();
        net_leaf(&mut step, index, leaf.position, net.value);
        for sibling in ours.nets.path(0, leaf.position) {
            step.extend_from_slice(&sibling.encode());
        }
    }
    step
}

fn net_leaf(step: &mut Vec<u8>, index: &CommittedIndex, position: u32, value: Net) {
    if let Some((contributor, end)) = index.ranges().get(position as usize) {
        step.extend_from_slice(contributor.as_slice());
        step.extend_from_slice(&end.to_be_bytes());
        value.write(step);
    }
}
