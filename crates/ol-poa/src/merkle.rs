//! A binary Merkle tree over hashes, padded with zero hashes to a power of two.
//!
//! `node = keccak256(0x01 ‖ left ‖ right)`; missing leaves are 32 zero bytes.
//! Leaves must be hashed by the caller under the prefix `0x00` ([`leaf`]), so
//! that no inner node can pass for a leaf. A tree is named by its root *and*
//! its number of leaves: verifying needs both, because the root alone does not
//! say how deep the tree is.

use alloc::vec::Vec;

use alloy_primitives::{B256, Keccak256};

/// The hash of a leaf: `keccak256(0x00 ‖ bytes)`.
#[must_use]
pub fn leaf(bytes: &[u8]) -> B256 {
    let mut hasher = Keccak256::new();
    hasher.update([0x00]);
    hasher.update(bytes);
    hasher.finalize()
}

/// The hash of an inner node: `keccak256(0x01 ‖ left ‖ right)`.
#[must_use]
pub fn node(left: &B256, right: &B256) -> B256 {
    let mut bytes = [0x01; 65];
    bytes[1..33].copy_from_slice(left.as_slice());
    bytes[33..].copy_from_slice(right.as_slice());
    alloy_primitives::keccak256(bytes)
}

/// The depth of the smallest perfect tree with room for `n_leaves`:
/// `ceil(log2(n_leaves))`, and 0 for no leaf or one.
#[must_use]
pub const fn depth(n_leaves: usize) -> u32 {
    match n_leaves {
        0 | 1 => 0,
        n => usize::BITS - (n - 1).leading_zeros(),
    }
}

/// The root of `leaves` padded to the next power of two.
///
/// One leaf is its own root; no leaf gives 32 zero bytes.
#[must_use]
pub fn root(leaves: &[B256]) -> B256 {
    root_at_depth(leaves, depth(leaves.len()))
}

/// The root of a perfect tree of `depth` whose first leaves are `leaves`.
///
/// # Panics
/// If `leaves` do not fit in a tree of that depth; that is a bug in the caller.
#[must_use]
pub fn root_at_depth(leaves: &[B256], depth: u32) -> B256 {
    assert_fits(leaves.len(), depth);
    let mut level = leaves.to_vec();
    let mut padding = B256::ZERO;
    for _ in 0..depth {
        climb(&mut level, &mut padding);
    }
    level.first().copied().unwrap_or(padding)
}

/// The siblings of leaf `index`, from the leaves up, in a perfect tree of
/// `depth`.
///
/// # Panics
/// If `leaves` do not fit in a tree of that depth or `index` is not one of
/// them; both are bugs in the caller.
#[must_use]
pub fn proof(leaves: &[B256], depth: u32, index: usize) -> Vec<B256> {
    assert_fits(leaves.len(), depth);
    assert!(index < leaves.len(), "leaf {index} of {}", leaves.len());
    let mut level = leaves.to_vec();
    let mut padding = B256::ZERO;
    let mut position = index;
    let mut siblings = Vec::with_capacity(depth as usize);
    for _ in 0..depth {
        siblings.push(level.get(position ^ 1).copied().unwrap_or(padding));
        climb(&mut level, &mut padding);
        position >>= 1;
    }
    siblings
}

/// Whether `leaf` is at `index` of the tree of `n_leaves` leaves under `root`.
///
/// A proof of the wrong length is refused, as is an index past the last leaf.
#[must_use]
pub fn verify(root: &B256, n_leaves: usize, index: usize, leaf: &B256, proof: &[B256]) -> bool {
    index < n_leaves && proof.len() == depth(n_leaves) as usize && fold(leaf, index, proof) == *root
}

/// The root that a leaf at `index` and its siblings lead to.
#[must_use]
pub fn fold(leaf: &B256, index: usize, proof: &[B256]) -> B256 {
    let mut hash = *leaf;
    let mut position = index;
    for sibling in proof {
        hash = if position & 1 == 0 {
            node(&hash, sibling)
        } else {
            node(sibling, &hash)
        };
        position >>= 1;
    }
    hash
}

/// Replaces a level of the tree by the one above it. `padding` is the root of
/// an empty subtree of that height.
fn climb(level: &mut Vec<B256>, padding: &mut B256) {
    let n_parents = level.len().div_ceil(2);
    for i in 0..n_parents {
        let right = level.get(2 * i + 1).unwrap_or(padding);
        level[i] = node(&level[2 * i], right);
    }
    level.truncate(n_parents);
    *padding = node(padding, padding);
}

fn assert_fits(n_leaves: usize, depth: u32) {
    assert!(
        self::depth(n_leaves) <= depth,
        "{n_leaves} leaves in a tree of depth {depth}"
    );
}

#[cfg(test)]
mod tests;
