//! Goal: the optimistic tier pays the integers of the exact one, for any index.
//! Method: random indexes, queries, thresholds and pots; the exact tier's own
//! functions as the oracle, and the court's claim on the other side.

use std::sync::Arc;

use alloy_primitives::keccak256;
use ol_model::{Pool, Random};
use ol_poa::court::CommittedIndex;
use ol_poa::{Entry, Index, K, QuerySketch};
use ol_runtime::Objects;
use ol_types::{Address, B256};
use proptest::prelude::*;

use super::{IndexObjectError, OptimisticIndex, load_committed};

fn codes(random: &mut Random, modulus: i8) -> [i8; K] {
    std::array::from_fn(|_| {
        let byte = random.next_u64().to_le_bytes()[0].cast_signed();
        if modulus == 0 {
            byte.max(-127)
        } else {
            byte % modulus
        }
    })
}

fn index(n_entries: u32, n_contributors: u32, random: &mut Random) -> Index {
    let entry = |cluster: u32| Entry {
        contributor: Address::left_padding_from(&(cluster % n_contributors + 1).to_be_bytes()),
        record: keccak256(cluster.to_be_bytes()),
        cluster,
        scale: u16::try_from(random.next_u64() % 65_535).unwrap() + 1,
        codes: codes(random, 8),
    };
    Index::new((0..n_entries).map(entry).collect()).unwrap()
}

fn optimistic(index: &Index) -> OptimisticIndex {
    let committed = CommittedIndex::new(index.clone()).unwrap();
    OptimisticIndex::new(committed, Arc::new(Pool::new(2))).unwrap()
}

proptest! {
    #[test]
    fn both_tiers_pay_the_same(
        seed in any::<u64>(),
        n_entries in 1_u32..300,
        n_contributors in 1_u32..40,
        null_threshold in prop_oneof![Just(0), 0_u64..1 << 40, Just(u64::MAX)],
        pot in prop_oneof![0_u128..1_000, any::<u64>().prop_map(u128::from)],
    ) {
        let mut random = Random::new(seed);
        let index = index(n_entries, n_contributors.min(n_entries), &mut random);
        let optimistic = optimistic(&index);
        let query = QuerySketch::new(codes(&mut random, 0)).unwrap();

        let exact = index.weights(null_threshold, &query);
        prop_assert_eq!(&optimistic.weights(null_threshold, &query), &exact);
        let weights: Vec<u64> = exact.iter().map(|&(_, weight)| weight).collect();
        let shares = ol_poa::shares(pot, &weights).unwrap_or_default();
        let shared = exact.iter().zip(shares).map(|(&(who, _), share)| (who, share));
        let expected: Vec<(Address, u128)> = shared.filter(|&(_, share)| share > 0).collect();

        let amounts = optimistic.amounts(&query, null_threshold, pot);
        let claim = optimistic.claim(&query, null_threshold, pot);
        let mut paid = Vec::new();
        for (at, &(contributor, _)) in (0..).zip(optimistic.committed().ranges()) {
            let claimed = claim.shares.node(0, at).unwrap().value;
            prop_assert_eq!(amounts[at as usize], claimed);
            let proof = optimistic.share_proofs(&amounts, &[contributor]).pop();
            prop_assert_eq!(proof.is_some(), claimed > 0);
            if let Some(proof) = proof {
                let path = claim.shares.path(0, at);
                let path: Vec<u8> = path.iter().flat_map(ol_poa::court::Node::encode).collect();
                prop_assert_eq!((proof.position, proof.path), (at, path));
                paid.push((contributor, proof.share_wei));
            }
        }
        prop_assert_eq!(&paid, &expected);
        let all: Vec<Address> = optimistic.committed().ranges().iter().map(|range| range.0).collect();
        let proofs = optimistic.share_proofs(&amounts, &all).into_iter();
        let paid: Vec<_> = proofs.map(|proof| (proof.contributor, proof.share_wei)).collect();
        prop_assert_eq!(paid, expected);
    }
}

#[test]
fn the_strongest_records_are_those_of_sorting() {
    let mut random = Random::new(3);
    let index = index(500, 7, &mut random);
    let optimistic = optimistic(&index);
    let query = QuerySketch::new(codes(&mut random, 0)).unwrap();
    for &(contributor, _) in optimistic.committed().ranges() {
        let scores = index.entries().zip(index.scores(&query));
        let mut expected: Vec<(i64, B256)> = scores
            .filter(|(entry, score)| entry.contributor() == contributor && *score > 0)
            .map(|(entry, score)| (score, entry.record()))
            .collect();
        expected.sort_by_key(|&(score, _)| std::cmp::Reverse(score));
        expected.truncate(5);
        assert_eq!(optimistic.strongest(&query, contributor, 5), expected);
    }
    assert!(optimistic.strongest(&query, Address::ZERO, 5).is_empty());
}

#[test]
fn an_object_is_the_index_that_was_committed_to_or_named() {
    let objects = Objects::memory();
    let one = CommittedIndex::new(index(40, 3, &mut Random::new(1))).unwrap();
    let other = CommittedIndex::new(index(40, 3, &mut Random::new(2))).unwrap();
    let missing = load_committed(&objects, one.object(), one.id()).unwrap_err();
    assert!(matches!(missing, IndexObjectError::Objects(_)), "{missing}");
    let object = objects.put(one.as_bytes().to_vec()).unwrap();
    assert_eq!(load_committed(&objects, object, one.id()).unwrap(), one);
    let wrong = load_committed(&objects, object, other.id()).unwrap_err();
    assert!(matches!(wrong, IndexObjectError::Other { .. }), "{wrong}");
    let object = objects.put(one.as_bytes()[1..].to_vec()).unwrap();
    let damaged = load_committed(&objects, object, one.id()).unwrap_err();
    assert!(
        matches!(damaged, IndexObjectError::Malformed { .. }),
        "{damaged}"
    );
}
