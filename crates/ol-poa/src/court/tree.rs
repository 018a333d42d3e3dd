//! Merkle-sum trees: every node holds its hash and the sum below it.
//!
//! Sums wrap. A wrapped sum convinces nobody of anything: whoever accepts a
//! root accepts that every leaf was open to challenge, and the leaves that
//! stand are small enough that their sums do not wrap.

use alloc::vec::Vec;
use core::fmt::Debug;

use alloy_primitives::{B256, keccak256};

use super::hash;

/// What is summed up.
pub trait Value: Copy + Debug + Default + PartialEq {
    /// Bytes of its encoding.
    const SIZE_BYTES: usize;
    /// The sum, wrapping.
    #[must_use]
    fn add(self, other: Self) -> Self;
    /// Appends the encoding, big-endian.
    fn write(self, out: &mut Vec<u8>);
    /// Reads it from exactly [`Self::SIZE_BYTES`] bytes.
    fn read(bytes: &[u8]) -> Option<Self>;
}

impl Value for i64 {
    const SIZE_BYTES: usize = 8;
    fn add(self, other: Self) -> Self {
        self.wrapping_add(other)
    }
    fn write(self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.to_be_bytes());
    }
    fn read(bytes: &[u8]) -> Option<Self> {
        Some(Self::from_be_bytes(bytes.try_into().ok()?))
    }
}

impl Value for u128 {
    const SIZE_BYTES: usize = 16;
    fn add(self, other: Self) -> Self {
        self.wrapping_add(other)
    }
    fn write(self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.to_be_bytes());
    }
    fn read(bytes: &[u8]) -> Option<Self> {
        Some(Self::from_be_bytes(bytes.try_into().ok()?))
    }
}

/// A contributor's net, and what it weighs.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Net {
    /// Sum of the scores.
    pub net: i64,
    /// `max(0, net − null_threshold)`.
    pub weight: u64,
}

impl Value for Net {
    const SIZE_BYTES: usize = 16;
    fn add(self, other: Self) -> Self {
        Self {
            net: self.net.wrapping_add(other.net),
            weight: self.weight.wrapping_add(other.weight),
        }
    }
    fn write(self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.net.to_be_bytes());
        out.extend_from_slice(&self.weight.to_be_bytes());
    }
    fn read(bytes: &[u8]) -> Option<Self> {
        let (net, weight) = bytes.split_at_checked(8)?;
        Some(Self {
            net: i64::from_be_bytes(net.try_into().ok()?),
            weight: u64::from_be_bytes(weight.try_into().ok()?),
        })
    }
}

/// A node: its hash, and the sum of the leaves below it. The default is the
/// padding leaf.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Node<V> {
    /// `keccak256(0x01 ‖ left ‖ right)`, or the leaf's.
    pub hash: B256,
    /// The sum.
    pub value: V,
}

impl<V: Value> Node<V> {
    /// Bytes of its encoding: hash, then value.
    pub const SIZE_BYTES: usize = 32 + V::SIZE_BYTES;

    /// The node above two.
    #[must_use]
    pub fn parent(left: &Self, right: &Self) -> Self {
        // One buffer: a claim makes two million of these.
        let mut bytes = Vec::with_capacity(1 + 2 * Self::SIZE_BYTES);
        bytes.push(0x01);
        for node in [left, right] {
            bytes.extend_from_slice(node.hash.as_slice());
            node.value.write(&mut bytes);
        }
        Self {
            hash: keccak256(&bytes),
            value: left.value.add(right.value),
        }
    }

    /// Hash and value as bytes.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(Self::SIZE_BYTES);
        bytes.extend_from_slice(self.hash.as_slice());
        self.value.write(&mut bytes);
        bytes
    }

    /// Reads a node from exactly [`Self::SIZE_BYTES`] bytes.
    #[must_use]
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let (hash, value) = bytes.split_at_checked(32)?;
        Some(Self {
            hash: B256::from_slice(hash),
            value: V::read(value)?,
        })
    }

    /// What stands for the node on chain: `keccak256(0x02 ‖ node)`.
    #[must_use]
    pub fn commitment(&self) -> B256 {
        hash(&[&[0x02], &self.encode()])
    }
}

/// The root that a node at `position` of its level and its siblings lead to,
/// and the sum of everything to its left.
pub(super) fn climb<V: Value>(node: &Node<V>, position: u32, siblings: &[Node<V>]) -> (Node<V>, V) {
    let mut top = *node;
    let mut before = V::default();
    for (level, sibling) in siblings.iter().enumerate() {
        top = if position >> level & 1 == 0 {
            Node::parent(&top, sibling)
        } else {
            before = before.add(sibling.value);
            Node::parent(sibling, &top)
        };
    }
    (top, before)
}

/// The node above a row of nodes; `None` if their number is no power of two.
pub(super) fn fold<V: Value>(row: &[Node<V>]) -> Option<Node<V>> {
    if !row.len().is_power_of_two() {
        return None;
    }
    let mut row = row.to_vec();
    while row.len() > 1 {
        row = row
            .chunks(2)
            .map(|pair| Node::parent(&pair[0], &pair[1]))
            .collect();
    }
    row.first().copied()
}

/// A whole tree. Leaves that are missing up to a power of two are padding.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SumTree<V> {
    /// Level 0 are the leaves; what is missing on the right is padding.
    levels: Vec<Vec<Node<V>>>,
    /// The node of each level below which there is only padding.
    padding: Vec<Node<V>>,
}

impl<V: Value> SumTree<V> {
    /// The smallest tree with room for `leaves`.
    #[must_use]
    pub fn new(leaves: Vec<Node<V>>) -> Self {
        let depth = crate::merkle::depth(leaves.len()) as usize;
        let mut levels = Vec::with_capacity(depth + 1);
        let mut padding = Vec::with_capacity(depth + 1);
        let (mut level, mut empty) = (leaves, Node::default());
        for _ in 0..depth {
            let above = level
                .chunks(2)
                .map(|pair| Node::parent(&pair[0], pair.get(1).unwrap_or(&empty)))
                .collect();
            levels.push(core::mem::replace(&mut level, above));
            padding.push(empty);
            empty = Node::parent(&empty, &empty);
        }
        levels.push(level);
        padding.push(empty);
        Self { levels, padding }
    }

    /// Levels above the leaves.
    #[must_use]
    #[expect(clippy::missing_panics_doc, reason = "the expectation cannot fail")]
    pub fn depth(&self) -> u32 {
        u32::try_from(self.levels.len() - 1).expect("a tree has fewer than 2^32 levels")
    }

    /// The root.
    #[must_use]
    #[expect(clippy::missing_panics_doc, reason = "the expectation cannot fail")]
    pub fn root(&self) -> Node<V> {
        self.node(self.depth(), 0).expect("a tree has a root")
    }

    /// The node at `position` of `level`, the leaves being level 0; `None`
    /// outside the tree.
    #[must_use]
    pub fn node(&self, level: u32, position: u32) -> Option<Node<V>> {
        let at = usize::try_from(level).ok()?;
        let (nodes, padding) = (self.levels.get(at)?, self.padding.get(at)?);
        let is_inside = u64::from(position) < 1_u64 << (self.depth() - level);
        is_inside.then(|| {
            let node = usize::try_from(position).ok().and_then(|at| nodes.get(at));
            *node.unwrap_or(padding)
        })
    }

    /// The siblings of a node from its level up; empty outside the tree.
    #[must_use]
    pub fn path(&self, level: u32, position: u32) -> Vec<Node<V>> {
        (level..self.depth())
            .filter_map(|at| self.node(at, position >> (at - level) ^ 1))
            .collect()
    }

    /// What answers a request to reveal a node: the row
    /// [`super::REVEAL_LEVELS`] below it, or its leaves. `None` outside the
    /// tree.
    #[must_use]
    pub fn row_below(&self, level: u32, position: u32) -> Option<Vec<Node<V>>> {
        self.node(level, position)?;
        let down = level.min(super::REVEAL_LEVELS);
        let first = position << down;
        (first..first + (1 << down))
            .map(|at| self.node(level - down, at))
            .collect()
    }

    /// Replaces one node, and the hashes and sums above it: what an operator
    /// that lies commits to, for the tests of those who must notice.
    ///
    /// # Panics
    /// If the node is outside the tree.
    pub fn replace(&mut self, level: u32, position: u32, node: Node<V>) {
        assert!(self.node(level, position).is_some(), "outside the tree");
        let mut position = position;
        for at in level..=self.depth() {
            let row = &mut self.levels[at as usize];
            let padding = self.padding[at as usize];
            while row.len() <= position as usize {
                row.push(padding);
            }
            if at == level {
                row[position as usize] = node;
            } else {
                let pair = [2 * position, 2 * position + 1]
                    .map(|below| self.node(at - 1, below).unwrap_or_default());
                self.levels[at as usize][position as usize] = Node::parent(&pair[0], &pair[1]);
            }
            position >>= 1;
        }
    }
}
