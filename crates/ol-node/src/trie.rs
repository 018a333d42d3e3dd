//! The Merkle Patricia trie over 32-byte keys, kept as its branch nodes.
//!
//! A trie is stored as its leaves, in key order, and *all* of its branch nodes
//! by path. A stored branch holds the reference of every child (the hash that
//! goes into its own RLP), so a change costs one path: the leaf is hashed, then
//! each branch above it, and nothing beside the path is read. Extension nodes
//! are not stored: one stands wherever the next branch is deeper than the child
//! it hangs under.
//!
//! [`update`] computes what a set of changed leaves does to the branches and to
//! the root, without writing anything; a caller writes [`TrieUpdate::branches`]
//! together with the leaves, or compares the root and drops it. [`Overlay`]
//! shows a trie as it is after an update that is not written. [`prove`] gives
//! the nodes on the way to a key.
//!
//! # Source
//! Ethereum yellow paper, appendix D; storing branches by path follows the idea
//! of Erigon and reth, but with the references of leaves too: they cost 33 bytes
//! a leaf on disk and save reading and hashing the neighbours of each change.

mod branch;
pub(crate) mod memory;
mod overlay;
mod proof;

use alloy_primitives::{B256, keccak256};
use alloy_trie::nodes::{ExtensionNodeRef, LeafNodeRef, RlpNode};
use alloy_trie::{EMPTY_ROOT_HASH, Nibbles};

use crate::store::StoreError;

pub(crate) use branch::Branch;
pub(crate) use overlay::Overlay;
pub(crate) use proof::prove;

/// What is stored of a trie. No key begins another one.
pub(crate) trait TrieReader {
    /// The uppermost branch at or below `prefix`.
    fn branch_below(&self, prefix: &Nibbles) -> Result<Option<(Nibbles, Branch)>, StoreError>;

    /// The first leaf below `prefix`.
    fn leaf_below(&self, prefix: &Nibbles) -> Result<Option<(Nibbles, Vec<u8>)>, StoreError>;
}

/// A trie over 32-byte keys that is kept in two sorted tables.
pub(crate) trait SortedTrie {
    /// The first stored branch whose path, one byte a nibble, is not below `from`.
    fn branch_from(&self, from: &[u8]) -> Result<Option<(Nibbles, Branch)>, StoreError>;

    /// The first leaf whose key is not below `from`, and its value.
    fn leaf_from(&self, from: B256) -> Result<Option<(B256, Vec<u8>)>, StoreError>;
}

impl<T: SortedTrie> TrieReader for T {
    fn branch_below(&self, prefix: &Nibbles) -> Result<Option<(Nibbles, Branch)>, StoreError> {
        // In path order an ancestor comes before all that is below it.
        let found = self.branch_from(&prefix.to_vec())?;
        Ok(found.filter(|(path, _)| path.starts_with(prefix)))
    }

    fn leaf_below(&self, prefix: &Nibbles) -> Result<Option<(Nibbles, Vec<u8>)>, StoreError> {
        let mut from = B256::ZERO;
        prefix.pack_to(&mut from[..prefix.len().div_ceil(2)]);
        let found = self.leaf_from(from)?;
        let found = found.map(|(key, value)| (Nibbles::unpack(key), value));
        Ok(found.filter(|(key, _)| key.starts_with(prefix)))
    }
}

/// A trie of which nothing is stored.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Empty;

impl TrieReader for Empty {
    fn branch_below(&self, _: &Nibbles) -> Result<Option<(Nibbles, Branch)>, StoreError> {
        Ok(None)
    }

    fn leaf_below(&self, _: &Nibbles) -> Result<Option<(Nibbles, Vec<u8>)>, StoreError> {
        Ok(None)
    }
}

/// A leaf that changed: its value afterwards, `None` if it is gone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Change {
    key: Nibbles,
    value: Option<Vec<u8>>,
}

impl Change {
    pub(crate) fn new(key: B256, value: Option<Vec<u8>>) -> Self {
        Self::at(Nibbles::unpack(key), value)
    }

    const fn at(key: Nibbles, value: Option<Vec<u8>>) -> Self {
        Self { key, value }
    }

    /// The key, in the order that [`update`] asks for.
    pub(crate) const fn key(&self) -> &Nibbles {
        &self.key
    }
}

/// What changed leaves do to a trie.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct TrieUpdate {
    /// The root afterwards.
    pub(crate) root: B256,
    /// Branches to store and, where there is none, to delete; ascending by path.
    pub(crate) branches: Vec<(Nibbles, Option<Branch>)>,
}

/// Computes what `changes` do to the trie. They must ascend strictly by key.
pub(crate) fn update<R: TrieReader>(
    reader: &R,
    changes: Vec<Change>,
) -> Result<TrieUpdate, StoreError> {
    debug_assert!(changes.is_sorted_by(|a, b| a.key < b.key));
    let mut changes = changes;
    let mut updater = Updater::new(reader);
    let root = if changes.is_empty() {
        updater.load(&Nibbles::new())?
    } else {
        updater.subtree(Nibbles::new(), Child::Unknown, &mut changes)?
    };
    let root = root.map_or(EMPTY_ROOT_HASH, |root| root.root(&mut updater.buffer));
    let mut branches = updater.branches;
    branches.sort_unstable_by_key(|(path, _)| *path);
    Ok(TrieUpdate { root, branches })
}

/// A part of the trie that is not yet tied to the depth it hangs at, so that it
/// can move up when the branch above it collapses.
#[derive(Debug, Clone)]
enum Subtree {
    Leaf { key: Nibbles, value: Vec<u8> },
    Branch { path: Nibbles, reference: RlpNode },
}

impl Subtree {
    const fn path(&self) -> &Nibbles {
        match self {
            Self::Leaf { key, .. } => key,
            Self::Branch { path, .. } => path,
        }
    }

    const fn is_branch(&self) -> bool {
        matches!(self, Self::Branch { .. })
    }

    /// How a parent at `depth - 1` refers to it.
    fn reference(&self, depth: usize, buffer: &mut Vec<u8>) -> RlpNode {
        buffer.clear();
        match self {
            Self::Leaf { key, value } => LeafNodeRef::new(&key.slice(depth..), value).rlp(buffer),
            Self::Branch { path, reference } if path.len() == depth => reference.clone(),
            Self::Branch { path, reference } => {
                ExtensionNodeRef::new(&path.slice(depth..), reference).rlp(buffer)
            }
        }
    }

    /// Its hash if it is the whole trie; that one is hashed however short it is.
    fn root(&self, buffer: &mut Vec<u8>) -> B256 {
        let reference = self.reference(0, buffer);
        reference.as_hash().unwrap_or_else(|| keccak256(&reference))
    }
}

/// What is known of the stored trie at some prefix.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Child {
    Absent,
    Leaf,
    Branch,
    Unknown,
}

struct Updater<'a, R> {
    reader: &'a R,
    branches: Vec<(Nibbles, Option<Branch>)>,
    buffer: Vec<u8>,
}

impl<'a, R: TrieReader> Updater<'a, R> {
    fn new(reader: &'a R) -> Self {
        Self {
            reader,
            branches: Vec::new(),
            buffer: Vec::with_capacity(544),
        }
    }

    /// What is below `prefix` after `changes`, all of which are below it.
    /// There is at least one.
    fn subtree(
        &mut self,
        prefix: Nibbles,
        child: Child,
        changes: &mut [Change],
    ) -> Result<Option<Subtree>, StoreError> {
        if matches!(child, Child::Branch | Child::Unknown)
            && let Some((path, branch)) = self.reader.branch_below(&prefix)?
        {
            // Everything stored below `prefix` is below `path`; changes beside
            // it are new leaves (or the absence of what never was).
            let start = changes.partition_point(|change| change.key < path);
            let len = changes[start..].partition_point(|change| change.key.starts_with(&path));
            let (before, rest) = changes.split_at_mut(start);
            let (below, after) = rest.split_at_mut(len);
            let mut parts: Vec<Option<Subtree>> = new_leaves(before).collect();
            let inner = if below.is_empty() {
                Some(branch.subtree(path))
            } else {
                self.branch(path, &branch, below)?
            };
            parts.extend(inner.map(Some));
            parts.extend(new_leaves(after));
            return Ok(self.join(&mut parts));
        }
        // Without a branch there is at most one leaf.
        let known = match child {
            Child::Absent => None,
            _ => self.reader.leaf_below(&prefix)?,
        };
        let mut parts: Vec<Option<Subtree>> = Vec::with_capacity(changes.len() + 1);
        let mut known = known.map(|(key, value)| Subtree::Leaf { key, value });
        for change in changes {
            match known.as_ref().map(|known| known.path().cmp(&change.key)) {
                Some(std::cmp::Ordering::Less) => parts.push(known.take()),
                Some(std::cmp::Ordering::Equal) => known = None,
                _ => {}
            }
            parts.extend(change.take_leaf().map(Some));
        }
        parts.extend(known.map(Some));
        Ok(self.join(&mut parts))
    }

    /// What is below a stored branch after `changes`, all of which are below it.
    fn branch(
        &mut self,
        path: Nibbles,
        branch: &Branch,
        changes: &mut [Change],
    ) -> Result<Option<Subtree>, StoreError> {
        let depth = path.len();
        let mut children = branch.unpack();
        let mut last: Option<(u8, Subtree)> = None;
        let mut rest = changes;
        while let [first, ..] = rest {
            let nibble = first.key.get_unchecked(depth);
            let len = rest.partition_point(|change| change.key.get_unchecked(depth) == nibble);
            let (below, after) = rest.split_at_mut(len);
            rest = after;
            let mut prefix = path;
            prefix.push(nibble);
            match self.subtree(prefix, children.kind(nibble), below)? {
                Some(child) => {
                    let reference = child.reference(depth + 1, &mut self.buffer);
                    children.set(nibble, reference, child.is_branch());
                    last = Some((nibble, child));
                }
                None => children.clear(nibble),
            }
        }
        if let Some(nibble) = children.only() {
            // Too few for a branch: what is left moves up.
            self.branches.push((path, None));
            if let Some((changed, child)) = last
                && changed == nibble
            {
                return Ok(Some(child));
            }
            let mut prefix = path;
            prefix.push(nibble);
            return self.load(&prefix)?.map(Some).ok_or_else(|| damaged(&path));
        }
        if children.is_empty() {
            self.branches.push((path, None));
            return Ok(None);
        }
        Ok(Some(self.keep(path, children.pack())))
    }

    /// The trie over parts that are in order and none of which is below another.
    fn join(&mut self, parts: &mut [Option<Subtree>]) -> Option<Subtree> {
        let (first, last) = match parts {
            [] => return None,
            [only] => return only.take(),
            [Some(first), .., Some(last)] => (first.path(), last.path()),
            _ => unreachable!("parts are taken once, below"),
        };
        let depth = first.common_prefix_length(last);
        let path = first.slice(..depth);
        let mut children = Branch::default().unpack();
        let mut rest = parts;
        while let [Some(first), ..] = rest {
            let nibble = first.path().get_unchecked(depth);
            let is_same = |part: &Option<Subtree>| {
                part.as_ref()
                    .is_some_and(|part| part.path().get_unchecked(depth) == nibble)
            };
            let len = rest.partition_point(is_same);
            let (below, after) = rest.split_at_mut(len);
            rest = after;
            if let Some(child) = self.join(below) {
                let reference = child.reference(depth + 1, &mut self.buffer);
                children.set(nibble, reference, child.is_branch());
            }
        }
        Some(self.keep(path, children.pack()))
    }

    fn keep(&mut self, path: Nibbles, branch: Branch) -> Subtree {
        let subtree = branch.subtree(path);
        self.branches.push((path, Some(branch)));
        subtree
    }

    /// What is stored below `prefix`.
    fn load(&self, prefix: &Nibbles) -> Result<Option<Subtree>, StoreError> {
        if let Some((path, branch)) = self.reader.branch_below(prefix)? {
            return Ok(Some(branch.subtree(path)));
        }
        let leaf = self.reader.leaf_below(prefix)?;
        Ok(leaf.map(|(key, value)| Subtree::Leaf { key, value }))
    }
}

impl Change {
    fn take_leaf(&mut self) -> Option<Subtree> {
        let key = self.key;
        self.value.take().map(|value| Subtree::Leaf { key, value })
    }
}

fn new_leaves(changes: &mut [Change]) -> impl Iterator<Item = Option<Subtree>> {
    changes
        .iter_mut()
        .filter_map(|change| change.take_leaf().map(Some))
}

fn damaged(path: &Nibbles) -> StoreError {
    StoreError::corrupt(format!("the state trie misses a child of {path:?}"))
}

#[cfg(test)]
mod tests;
