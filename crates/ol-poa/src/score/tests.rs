//! Goal: the fast scan gives the numbers of the specification's formulas.
//! Method: a slow oracle in `i128` over decoded entries; extremes; mutations.

use alloc::collections::BTreeMap;
use alloc::vec;
use alloc::vec::Vec;

use alloy_primitives::{Address, B256, keccak256};
use proptest::prelude::*;

use super::{QuerySketch, dot, nets, nets_on_any, nets_within, score, weights};
use crate::index::tests::sample_entries;
use crate::index::{ENTRIES_MAX, Entry, Index, IndexError, K};

fn sample_query(seed: u64) -> QuerySketch {
    QuerySketch::new(
        sample_entries(1, 1, seed)[0]
            .codes
            .map(|code| 18 * code + 1),
    )
    .unwrap()
}

fn oracle_score(query: &QuerySketch, entry: &Entry) -> i128 {
    let products = query.codes().iter().zip(&entry.codes);
    let dot: i128 = products.map(|(&q, &c)| i128::from(q) * i128::from(c)).sum();
    dot * i128::from(entry.scale)
}

fn oracle_nets(query: &QuerySketch, entries: &[Entry]) -> BTreeMap<Address, i128> {
    let mut nets = BTreeMap::new();
    for entry in entries {
        *nets.entry(entry.contributor).or_default() += oracle_score(query, entry);
    }
    nets
}

/// One contributor, every value at its limit, all of one sign.
fn extreme(n: u32, code: i8) -> Index {
    let entry = |cluster| Entry {
        contributor: Address::repeat_byte(0xff),
        record: B256::ZERO,
        cluster,
        scale: u16::MAX,
        codes: [code; K],
    };
    Index::new((0..n).map(entry).collect()).unwrap()
}

#[test]
fn the_largest_index_stays_in_bounds() {
    let query = QuerySketch::new([127; K]).unwrap();
    for (code, sign) in [(7_i8, 1_i64), (-7, -1)] {
        let index = extreme(16_384, code);
        assert_eq!(index.len(), ENTRIES_MAX);
        let first = index.entries().next().unwrap();
        assert_eq!(i64::from(dot(&query, first.code_bytes())), sign * 227_584);
        assert!(score(&query, first).unsigned_abs() < 1 << 34);
        let net = nets(&index.chunks(), &query).unwrap()[0].1;
        assert_eq!(net, sign * 16_384 * 65_535 * 227_584);
        assert!(net.unsigned_abs() < 1 << 48);
        assert_eq!(
            nets_on_any(&index.chunks(), ENTRIES_MAX, &query),
            nets(&index.chunks(), &query)
        );
        assert_eq!(index.weights(0, &query).len(), usize::from(sign > 0));
    }
}

#[test]
fn the_threshold_is_subtracted_and_the_rest_left_out() {
    let index = extreme(1, 1);
    let query = QuerySketch::new([1; K]).unwrap();
    let net = 256 * 65_535;
    let contributor = Address::repeat_byte(0xff);
    let cases = [
        (0, vec![(contributor, net)]),
        (1, vec![(contributor, net - 1)]),
        (net - 1, vec![(contributor, 1)]),
        (net, vec![]),
        (u64::MAX, vec![]),
    ];
    for (null_threshold, expected) in cases {
        assert_eq!(index.weights(null_threshold, &query), expected);
    }
    // A negative net does not wrap around into a large weight.
    let opposite = QuerySketch::new([-1; K]).unwrap();
    assert_eq!(index.weights(0, &opposite), vec![]);
}

#[test]
fn queries_are_checked() {
    assert_eq!(QuerySketch::from_bytes(&[0; 255]), Err(IndexError::Query));
    assert_eq!(QuerySketch::from_bytes(&[0; 257]), Err(IndexError::Query));
    for position in [0, 127, 128, 255] {
        let mut bytes = [1; K];
        bytes[position] = 0x80;
        assert_eq!(QuerySketch::from_bytes(&bytes), Err(IndexError::Query));
    }
    let query = sample_query(5);
    assert_eq!(QuerySketch::from_bytes(&query.to_bytes()), Ok(query));
    assert_eq!(query.hash(), keccak256(query.to_bytes()));
}

#[test]
fn malformed_chunks_are_refused() {
    let index = Index::new(sample_entries(3, 2, 1)).unwrap();
    let query = sample_query(2);
    assert_eq!(weights(&[], 0, &query), Err(IndexError::Empty));
    let mut bytes = index.as_bytes().to_vec();
    bytes[58] = 0x80;
    assert_eq!(
        weights(&[&bytes], 0, &query),
        Err(IndexError::Code { entry: 0 })
    );
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn scan_agrees_with_the_oracle(n in 1_usize..300, people in 1_usize..40, seed: u64, null_threshold in 0_u64..1 << 38) {
        let entries = sample_entries(n, people, seed);
        let query = sample_query(seed ^ 99);
        let expected = oracle_nets(&query, &entries);
        let index = Index::new(entries).unwrap();

        for (view, score) in index.entries().zip(index.scores(&query)) {
            prop_assert_eq!(i128::from(score), oracle_score(&query, &view.to_entry()));
            prop_assert_eq!(super::score(&query, view), score);
        }
        // With the instructions of this machine, and without.
        for nets in [nets_within, nets_on_any] {
            let nets: BTreeMap<Address, i128> = nets(&index.chunks(), ENTRIES_MAX, &query)
                .unwrap()
                .into_iter()
                .map(|(who, net)| (who, i128::from(net)))
                .collect();
            prop_assert_eq!(&nets, &expected);
        }
        let weights = weights(&index.chunks(), null_threshold, &query).unwrap();
        let expected: Vec<(Address, u64)> = expected
            .into_iter()
            .filter_map(|(who, net)| {
                let weight = net - i128::from(null_threshold);
                (weight > 0).then(|| (who, u64::try_from(weight).unwrap()))
            })
            .collect();
        prop_assert_eq!(weights, expected);
    }

    #[test]
    fn arbitrary_bytes_never_panic(
        chunk in prop::collection::vec(any::<u8>(), 0..1000),
        query in prop::collection::vec(any::<u8>(), 0..300),
        null_threshold: u64,
    ) {
        let _ = QuerySketch::from_bytes(&query);
        let _ = weights(&[&chunk], null_threshold, &sample_query(1));
    }
}
