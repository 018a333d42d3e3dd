//! Goal: a shard gives back what went in, finds the document of every position,
//! and has the suffix array that sorting gives; one that is well hashed but
//! wrong is refused by verifying.
//! Method: random documents; then a shard forged with all sums right.

use proptest::prelude::*;
use tempfile::tempdir;

use super::*;
use crate::build::ShardBuilder;

fn build(dir: &Path, vocabulary: usize, documents: &[Vec<Vec<u32>>]) -> Shard {
    let mut builder = ShardBuilder::new(B256::repeat_byte(1), vocabulary);
    for (number, texts) in (0_u8..).zip(documents) {
        builder.push(B256::repeat_byte(number), texts).unwrap();
    }
    let id = builder.write(dir).unwrap();
    Shard::open(dir, id).unwrap()
}

fn suffixes(shard: &Shard) -> Vec<u32> {
    (0..shard.n_tokens())
        .map(|rank| shard.search().position(rank).unwrap())
        .collect()
}

proptest! {
    #[test]
    fn documents_come_back_and_suffixes_are_sorted(
        documents in prop::collection::vec(
            prop::collection::vec(prop::collection::vec(0_u32..5, 0..300), 1..4), 1..8),
    ) {
        let dir = tempdir().unwrap();
        let shard = build(dir.path(), 5, &documents);
        shard.verify().unwrap();
        for (number, texts) in documents.iter().enumerate() {
            prop_assert_eq!(&shard.texts(number), texts);
            for position in shard.document_range(number) {
                let position = u32::try_from(position).unwrap();
                prop_assert_eq!(shard.document_at(position), Some(number));
            }
        }
        let end = u32::try_from(shard.n_tokens()).unwrap();
        prop_assert_eq!(shard.document_at(end), None);
        let codes: Vec<u32> = (0..shard.n_tokens()).map(|at| shard.code_at(at)).collect();
        let mut sorted: Vec<u32> = (0..end).collect();
        sorted.sort_by_key(|&at| &codes[at as usize..]);
        prop_assert_eq!(suffixes(&shard), sorted);
    }
}

#[test]
fn letters_are_the_tokens_that_occur() {
    let dir = tempdir().unwrap();
    let shard = build(
        dir.path(),
        1_000,
        &[vec![vec![900, 7, 900]], vec![vec![7, 900, 30]]],
    );
    let letters: Vec<(u32, u32)> = shard.alphabet().collect();
    assert_eq!(letters, [(7, 2), (30, 1), (900, 3)]);
    assert_eq!(
        [7, 30, 900, 31].map(|token| shard.code(token)),
        [1, 2, 3, SEPARATOR]
    );
}

#[test]
fn a_shard_does_not_depend_on_how_its_tokens_were_held() {
    let most = u32::from(u16::MAX);
    let documents = [
        vec![vec![most - 1, 0, most - 1], vec![]],
        vec![],
        vec![vec![0]],
    ];
    let dir = tempdir().unwrap();
    let ids = [u16::MAX as usize, u16::MAX as usize + 1, 1 << 20]
        .map(|vocabulary| build(dir.path(), vocabulary, &documents).id);
    assert_eq!(ids, [ids[0]; 3]);
    let beyond = [vec![most]];
    let mut builder = ShardBuilder::new(B256::ZERO, u16::MAX as usize);
    builder.push(B256::ZERO, &beyond).unwrap_err();
}

#[test]
fn a_wrong_suffix_array_with_right_sums_does_not_verify() {
    let dir = tempdir().unwrap();
    let shard = build(dir.path(), 9, &[vec![vec![1, 2, 1, 2, 3, 1]]]);
    let path = shard.path().to_owned();
    let (start, end) = shard.layout.suffixes;
    let good = std::fs::read(&path).unwrap();
    let id = shard.id;
    drop(shard);
    let mut swapped = good.clone();
    for byte in start..start + 4 {
        swapped.swap(byte, byte + 8);
    }
    let mut doubled = good.clone();
    doubled.copy_within(start..start + 4, start + 4);
    let mut beyond = good;
    beyond[start..start + 4].fill(0xff);
    for mut bytes in [swapped, doubled, beyond] {
        let sum = crc32fast::hash(&bytes[start..end]);
        bytes[end..].copy_from_slice(&sum.to_le_bytes());
        std::fs::write(&path, bytes).unwrap();
        let error = Shard::open(dir.path(), id).unwrap().verify().unwrap_err();
        assert!(
            error.to_string().contains("suffix array is wrong"),
            "{error}"
        );
    }
}

#[test]
fn headers_that_claim_too_much_are_refused_without_memory() {
    let dir = tempdir().unwrap();
    let shard = build(dir.path(), 9, &[vec![vec![1, 2]]]);
    let (path, id) = (shard.path().to_owned(), shard.id);
    let good = std::fs::read(&path).unwrap();
    drop(shard);
    // Width, tokens, documents and letters, each at its most.
    for (at, n) in [(12, 4), (16, 8), (24, 4), (28, 4)] {
        for value in [0x00, 0x7f, 0xff] {
            let mut bad = good.clone();
            bad[at..at + n].fill(value);
            std::fs::write(&path, bad).unwrap();
            assert!(matches!(
                Shard::open(dir.path(), id),
                Err(SpansError::Damaged { .. })
            ));
        }
    }
}
