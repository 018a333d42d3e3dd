//! Goal: every entry proves itself under the root, at its place only.
//! Method: all entries of indexes around the chunk border; every byte flipped.

use alloc::vec::Vec;

use alloy_primitives::B256;
use proptest::prelude::*;

use super::{chunk_root, leaf, proof, proof_len, sketch_root, verify_proof};
use crate::index::tests::sample_entries;
use crate::index::{CHUNK_ENTRIES, ENTRIES_MAX, ENTRY_SIZE_BYTES, Index, IndexError};
use crate::merkle;

fn sample(n: usize) -> Index {
    Index::new(sample_entries(n, 6, n as u64)).unwrap()
}

#[test]
fn one_chunk_is_its_own_root() {
    let index = sample(3);
    let expected = chunk_root(index.as_bytes()).unwrap();
    assert_eq!(index.root(), expected);
    let leaves: Vec<B256> = index.entries().map(|e| leaf(e.bytes())).collect();
    assert_eq!(merkle::root_at_depth(&leaves, 7), expected);
}

#[test]
fn three_chunks_are_padded_to_four() {
    let index = sample(2 * CHUNK_ENTRIES + 1);
    let mut roots: Vec<B256> = index
        .chunks()
        .iter()
        .map(|chunk| chunk_root(chunk).unwrap())
        .collect();
    roots.push(B256::ZERO);
    let expected = merkle::node(
        &merkle::node(&roots[0], &roots[1]),
        &merkle::node(&roots[2], &roots[3]),
    );
    assert_eq!(index.root(), expected);
}

#[test]
fn proofs_have_the_specified_length() {
    let cases = [
        (1, 7),
        (128, 7),
        (129, 8),
        (257, 9),
        (385, 9),
        (513, 10),
        (ENTRIES_MAX, 14),
    ];
    for (n_entries, expected) in cases {
        assert_eq!(proof_len(n_entries), expected, "{n_entries} entries");
    }
}

#[test]
fn every_entry_proves_itself() {
    for n in [1, 2, 127, 128, 129, 300] {
        let index = sample(n);
        let (chunks, root) = (index.chunks(), index.root());
        for (i, entry) in index.entries().enumerate() {
            let proof = proof(&chunks, i).unwrap().unwrap();
            assert_eq!(proof.len(), proof_len(n));
            assert!(
                verify_proof(&root, n, i, entry.bytes(), &proof),
                "{i} of {n}"
            );
            assert!(!verify_proof(&root, n, i ^ 1, entry.bytes(), &proof));
        }
        assert_eq!(proof(&chunks, n), Ok(None));
        assert_eq!(proof(&chunks, usize::MAX), Ok(None));
    }
}

#[test]
fn a_root_needs_a_well_formed_index() {
    assert_eq!(sketch_root(&[]), Err(IndexError::Empty));
    let mut bytes = sample(2).as_bytes().to_vec();
    bytes.rotate_left(ENTRY_SIZE_BYTES);
    assert_eq!(sketch_root(&[&bytes]), Err(IndexError::Order { entry: 1 }));
    assert_eq!(proof(&[&bytes], 0), Err(IndexError::Order { entry: 1 }));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn any_change_breaks_the_proof(n in 1_usize..200, pick: usize, at in 0..ENTRY_SIZE_BYTES, bit in 0..8_u32, sibling: usize, n_claimed: usize) {
        let index = sample(n);
        let (root, i) = (index.root(), pick % n);
        let mut siblings = proof(&index.chunks(), i).unwrap().unwrap();
        let mut bytes = *index.entries().nth(i).unwrap().bytes();

        bytes[at] ^= 1_u8 << bit;
        prop_assert!(!verify_proof(&root, n, i, &bytes, &siblings));
        bytes[at] ^= 1_u8 << bit;
        prop_assert!(verify_proof(&root, n, i, &bytes, &siblings));

        let s = sibling % siblings.len();
        siblings[s][at % 32] ^= 1_u8 << bit;
        prop_assert!(!verify_proof(&root, n, i, &bytes, &siblings));
        prop_assert!(!verify_proof(&root, n_claimed, i, &bytes, &siblings[1..]));
    }
}
