//! Goal: every leaf proves itself at its own place and nowhere else.
//! Method: a recursive tree over padded leaves as oracle, then mutations.

use alloc::vec;
use alloc::vec::Vec;

use alloy_primitives::B256;
use proptest::prelude::*;

use super::{depth, fold, leaf, node, proof, root, root_at_depth, verify};

fn leaves(n: usize) -> Vec<B256> {
    (0..n).map(|i| leaf(&i.to_be_bytes())).collect()
}

/// The root by the definition: pad, then halve.
fn oracle(leaves: &[B256], depth: u32) -> B256 {
    let mut padded = leaves.to_vec();
    padded.resize(1 << depth, B256::ZERO);
    fn rec(leaves: &[B256]) -> B256 {
        match leaves {
            [one] => *one,
            _ => {
                let (left, right) = leaves.split_at(leaves.len() / 2);
                node(&rec(left), &rec(right))
            }
        }
    }
    rec(&padded)
}

#[test]
fn depth_is_the_rounded_up_logarithm() {
    let cases = [
        (0, 0),
        (1, 0),
        (2, 1),
        (3, 2),
        (4, 2),
        (5, 3),
        (128, 7),
        (129, 8),
    ];
    for (n, expected) in cases {
        assert_eq!(depth(n), expected, "{n} leaves");
    }
}

#[test]
fn root_follows_the_definition() {
    assert_eq!(root(&[]), B256::ZERO);
    for n in 1..=33 {
        let leaves = leaves(n);
        assert_eq!(root(&leaves), oracle(&leaves, depth(n)), "{n} leaves");
        assert_eq!(root_at_depth(&leaves, 7), oracle(&leaves, 7), "{n} leaves");
    }
}

#[test]
fn an_inner_node_is_not_a_leaf() {
    let leaves = leaves(4);
    let inner = node(&leaves[0], &leaves[1]);
    let sibling = node(&leaves[2], &leaves[3]);
    let root = root(&leaves);
    // The shortened proof leads to the root, but not with the right length.
    assert_eq!(fold(&inner, 0, &[sibling]), root);
    assert!(!verify(&root, 4, 0, &inner, &[sibling]));
}

proptest! {
    #[test]
    fn proofs_hold_at_their_place_only(n in 1_usize..70, pick in 0_usize..70, byte in 0_usize..32) {
        let leaves = leaves(n);
        let root = root(&leaves);
        let i = pick % n;
        let siblings = proof(&leaves, depth(n), i);
        prop_assert!(verify(&root, n, i, &leaves[i], &siblings));
        prop_assert!(!verify(&root, n, n, &leaves[i], &siblings));
        for j in (0..n).filter(|&j| j != i) {
            prop_assert!(!verify(&root, n, j, &leaves[i], &siblings));
        }
        let mut forged = leaves[i];
        forged[byte] ^= 1;
        prop_assert!(!verify(&root, n, i, &forged, &siblings));
        for s in 0..siblings.len() {
            let mut bad = siblings.clone();
            bad[s][byte] ^= 1;
            prop_assert!(!verify(&root, n, i, &leaves[i], &bad));
        }
        let longer = [siblings, vec![B256::ZERO]].concat();
        prop_assert!(!verify(&root, n, i, &leaves[i], &longer));
    }
}
