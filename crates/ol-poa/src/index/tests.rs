//! Goal: exactly the byte strings of the specification are an index.
//! Method: well-formed indexes from a strategy, one mutation at a time, and
//! arbitrary bytes.

use alloc::vec;
use alloc::vec::Vec;

use alloy_primitives::{Address, B256};
use proptest::prelude::*;

use super::{
    CHUNK_ENTRIES, CHUNK_SIZE_BYTES, COURT_ENTRIES_MAX, ENTRIES_MAX, ENTRY_SIZE_BYTES, Entry,
    Index, IndexError, K, check_chunks, parse_chunk,
};
use crate::QuerySketch;
use crate::court::{Claim, CommittedIndex};

/// A small reproducible index: `n` entries over `n_contributors`.
pub(crate) fn sample_entries(n: usize, n_contributors: usize, seed: u64) -> Vec<Entry> {
    let mut state = seed | 1;
    let mut next = move || {
        // splitmix64 (Steele, Lea, Flood, 2014).
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    };
    (0..n)
        .map(|i| Entry {
            contributor: Address::left_padding_from(
                &(next() % n_contributors as u64).to_be_bytes(),
            ),
            record: B256::repeat_byte(next().to_be_bytes()[0]),
            cluster: u32::try_from(i).unwrap(),
            scale: u16::try_from(next() % 65_535).unwrap() + 1,
            codes: core::array::from_fn(|_| i8::try_from(next().cast_signed() % 8).unwrap()),
        })
        .collect()
}

fn sample(n: usize) -> Index {
    Index::new(sample_entries(n, 5, 7)).unwrap()
}

#[track_caller]
fn check_error(bytes: Vec<u8>, expected: IndexError) {
    assert_eq!(Index::from_bytes(bytes), Err(expected));
}

#[test]
fn entries_are_186_bytes_and_chunks_23808() {
    assert_eq!(ENTRY_SIZE_BYTES, 186);
    assert_eq!(CHUNK_SIZE_BYTES, 23_808);
}

#[test]
fn fields_lie_where_the_specification_says() {
    let mut codes = [0; K];
    codes[0] = -7;
    codes[127] = 6;
    codes[128] = 3;
    codes[K - 1] = -5;
    let bytes = Entry {
        contributor: Address::repeat_byte(0xaa),
        record: B256::repeat_byte(0xbb),
        cluster: 0x0102_0304,
        scale: 0x0506,
        codes,
    }
    .encode();
    assert_eq!(bytes[..20], [0xaa; 20]);
    assert_eq!(bytes[20..52], [0xbb; 32]);
    assert_eq!(bytes[52..58], [1, 2, 3, 4, 5, 6]);
    assert_eq!((bytes[58], bytes[185]), (0x93, 0x6b));
}

#[test]
fn sizes_are_checked() {
    check_error(vec![], IndexError::Empty);
    let bytes = sample(3).as_bytes().to_vec();
    for cut in [1, ENTRY_SIZE_BYTES - 1, ENTRY_SIZE_BYTES + 1] {
        let size_bytes = bytes.len() - cut;
        check_error(
            bytes[..size_bytes].to_vec(),
            IndexError::ChunkSize {
                chunk: 0,
                size_bytes,
            },
        );
    }
    let too_large = |n_entries_max: usize| IndexError::TooLarge {
        n_chunks: n_entries_max / CHUNK_ENTRIES + 1,
        n_entries_max,
    };
    let most = COURT_ENTRIES_MAX;
    let bytes = vec![0; most * ENTRY_SIZE_BYTES + 1];
    assert_eq!(Index::from_bytes(bytes), Err(too_large(most)));

    // What only fits a commitment is refused where the chain would read it.
    let large = Index::new(sample_entries(ENTRIES_MAX + 1, 3, 1)).unwrap();
    assert!(!large.fits_chain() && sample(3).fits_chain());
    assert_eq!(check_chunks(&large.chunks()), Err(too_large(ENTRIES_MAX)));
    let query = QuerySketch::new([1; K]).unwrap();
    let refused = crate::weights(&large.chunks(), 0, &query);
    assert_eq!(refused, Err(too_large(ENTRIES_MAX)));
    let committed = CommittedIndex::new(large.clone()).unwrap();
    let claim = Claim::compute(&committed, &query, 0, 1_000);
    let of_claim = (0..committed.n_contributors())
        .zip(committed.ranges())
        .map(|(at, (who, _))| (*who, claim.nets.node(0, at).unwrap().value.weight));
    let of_claim: Vec<_> = of_claim.filter(|&(_, weight)| weight > 0).collect();
    assert_eq!(large.weights(0, &query), of_claim);
    assert!(parse_chunk(&[]).is_err());
    assert!(parse_chunk(&vec![1; CHUNK_SIZE_BYTES + ENTRY_SIZE_BYTES]).is_err());
}

#[test]
fn only_the_last_chunk_may_be_short() {
    let index = sample(CHUNK_ENTRIES + 2);
    let (full, short) = (index.chunks()[0], index.chunks()[1]);
    assert_eq!(check_chunks(&[full, short]), Ok(()));
    let cut = &full[..full.len() - ENTRY_SIZE_BYTES];
    assert_eq!(
        check_chunks(&[cut, short]),
        Err(IndexError::ChunkSize {
            chunk: 0,
            size_bytes: cut.len()
        })
    );
    assert_eq!(
        check_chunks(&[full, &[]]),
        Err(IndexError::ChunkSize {
            chunk: 1,
            size_bytes: 0
        })
    );
}

#[test]
fn order_is_checked_across_chunks() {
    let index = sample(CHUNK_ENTRIES + 2);
    let (full, short) = (index.chunks()[0], index.chunks()[1]);
    // The first entry of the second chunk repeated: not strictly ascending.
    let twice = [&short[..ENTRY_SIZE_BYTES], short].concat();
    assert_eq!(
        check_chunks(&[full, &twice]),
        Err(IndexError::Order {
            entry: CHUNK_ENTRIES + 1
        })
    );
    let mut bytes = index.as_bytes().to_vec();
    bytes.rotate_left(ENTRY_SIZE_BYTES);
    check_error(
        bytes,
        IndexError::Order {
            entry: CHUNK_ENTRIES + 1,
        },
    );
}

#[test]
fn a_cluster_belongs_to_one_entry() {
    let mut entries = sample_entries(4, 200, 3);
    entries[3].cluster = 0;
    assert_ne!(entries[0].contributor, entries[3].contributor);
    assert_eq!(
        Index::new(entries),
        Err(IndexError::DuplicateCluster { cluster: 0 })
    );
}

#[test]
fn scale_zero_and_code_minus_8_are_refused() {
    let mut bytes = sample(3).as_bytes().to_vec();
    let at = ENTRY_SIZE_BYTES + 56;
    bytes[at..at + 2].fill(0);
    check_error(bytes.clone(), IndexError::Scale { entry: 1 });
    bytes[at] = 1;
    for (code, byte) in [(0, 0x80), (64, 0x8f), (127, 0x18), (3, 0x08)] {
        let mut bytes = bytes.clone();
        bytes[at + 2 + code] = byte;
        check_error(bytes.clone(), IndexError::Code { entry: 1 });
        let entry = &bytes[ENTRY_SIZE_BYTES..2 * ENTRY_SIZE_BYTES];
        assert_eq!(Entry::decode(entry), Err(IndexError::Code { entry: 0 }));
    }
}

#[test]
fn codes_out_of_range_are_refused() {
    for code in [-128, -8, 8, 127] {
        for place in [0, 127, 128, 255] {
            let mut entries = sample_entries(2, 1, 5);
            entries[1].codes[place] = code;
            assert_eq!(Index::new(entries), Err(IndexError::Code { entry: 1 }));
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn entries_survive_the_bytes(n in 1_usize..300, seed: u64) {
        let mut entries = sample_entries(n, 9, seed);
        let index = Index::new(entries.clone()).unwrap();
        entries.sort_by_key(|e| (e.contributor, e.cluster));
        let read: Vec<Entry> = index.entries().map(|view| view.to_entry()).collect();
        prop_assert_eq!(&read, &entries);
        prop_assert_eq!(Index::from_bytes(index.as_bytes().to_vec()).unwrap().root(), index.root());
        prop_assert_eq!(index.len(), n);
        for (view, entry) in index.entries().zip(&entries) {
            prop_assert_eq!(&Entry::decode(view.bytes()).unwrap(), entry);
        }
        let by_chunk: usize = index
            .chunks()
            .iter()
            .map(|chunk| parse_chunk(chunk).unwrap().count())
            .sum();
        prop_assert_eq!(by_chunk, n);
    }

    #[test]
    fn input_order_does_not_matter(n in 2_usize..40, seed: u64, turn in 1_usize..40) {
        let mut entries = sample_entries(n, 9, seed);
        let index = Index::new(entries.clone()).unwrap();
        entries.rotate_left(turn % n);
        entries.reverse();
        prop_assert_eq!(Index::new(entries).unwrap(), index);
    }

    #[test]
    fn arbitrary_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..1500)) {
        let _ = Index::from_bytes(bytes.clone());
        let _ = Entry::decode(&bytes);
        let _ = check_chunks(&[&bytes, &bytes]);
        let whole = bytes.len() / ENTRY_SIZE_BYTES * ENTRY_SIZE_BYTES;
        let _ = Index::from_bytes(bytes[..whole].to_vec());
    }
}
