use alloc::vec;
use alloc::vec::Vec;

use alloy_primitives::Address;
use proptest::prelude::*;

use super::*;
use crate::{SharesError, shares};

fn passage(cluster: u32, owner: u8, drop_millinats: u32) -> PassageDrop {
    PassageDrop {
        cluster,
        contributor: Address::repeat_byte(owner),
        drop_millinats,
    }
}

const NO_FLOOR: ContextRule = ContextRule { floor_millinats: 0 };

#[test]
fn golden_units() {
    let a = Address::repeat_byte(1);
    let b = Address::repeat_byte(2);
    let c = Address::repeat_byte(3);
    type Case = (Vec<PassageDrop>, u32, Vec<(Address, u64)>, u64);
    let cases: Vec<Case> = vec![
        (vec![], 0, vec![], 0),
        (vec![passage(0, 1, 0)], 0, vec![], 0),
        (vec![passage(7, 1, 2_500)], 1_000, vec![(a, 1_500)], 2_500),
        (vec![passage(7, 1, 1_000)], 1_000, vec![], 0),
        // The two passages of a cluster pass the floor together, once.
        (
            vec![passage(7, 1, 600), passage(7, 1, 700)],
            1_000,
            vec![(a, 300)],
            1_300,
        ),
        // Two clusters of one owner have a floor each; what is below it counts in
        // the total.
        (
            vec![passage(7, 1, 600), passage(8, 1, 1_700)],
            1_000,
            vec![(a, 700)],
            2_300,
        ),
        (
            vec![passage(9, 3, 4_321), passage(1, 2, 1_234), passage(2, 1, 7)],
            0,
            vec![(a, 7), (b, 1_234), (c, 4_321)],
            5_562,
        ),
    ];
    for (passages, floor_millinats, weights, total) in cases {
        let rule = ContextRule { floor_millinats };
        let wanted = Earned { weights, total };
        assert_eq!(context_units(&passages, &rule).unwrap(), wanted);
    }
}

#[test]
fn limits_are_errors_and_the_largest_case_is_exact() {
    let largest = vec![passage(0, 1, u32::MAX); PASSAGES_MAX];
    let units = context_units(&largest, &NO_FLOOR).unwrap();
    assert_eq!(units.weights[0].1, u64::from(u32::MAX) * 256);
    assert!(units.weights[0].1 < crate::shares::WEIGHT_LIMIT);
    let one_more = vec![passage(0, 1, 1); PASSAGES_MAX + 1];
    let n_passages = PASSAGES_MAX + 1;
    assert_eq!(
        context_units(&one_more, &NO_FLOOR),
        Err(ContextError::TooMany { n_passages })
    );
    assert_eq!(
        context_units(&[passage(4, 1, 5), passage(4, 2, 5)], &NO_FLOOR),
        Err(ContextError::Owners { position: 1 })
    );
}

proptest! {
    /// Nothing is lost or made, whatever the order; splitting an identity over
    /// clusters gains nothing.
    #[test]
    fn units_are_what_passes_the_floor(
        drops in prop::collection::vec((0..12_u32, 0..u32::MAX), 0..40),
        floor_millinats in 0..5_000_u32,
        rotation in 0..40_usize,
    ) {
        let rule = ContextRule { floor_millinats };
        let owner = |cluster: u32| u8::try_from(cluster % 5 + 1).unwrap();
        let passages: Vec<PassageDrop> = drops
            .iter()
            .map(|&(cluster, drop)| passage(cluster, owner(cluster), drop))
            .collect();
        let earned = context_units(&passages, &rule).unwrap();
        let units = &earned.weights;

        let mut wanted = 0_u64;
        for cluster in 0..12 {
            let of_cluster = drops.iter().filter(|(c, _)| *c == cluster);
            let sum: u64 = of_cluster.map(|(_, drop)| u64::from(*drop)).sum();
            wanted += sum.saturating_sub(floor_millinats.into());
        }
        prop_assert_eq!(units.iter().map(|(_, units)| units).sum::<u64>(), wanted);
        prop_assert!(units.windows(2).all(|pair| pair[0].0 < pair[1].0));
        let all: u64 = drops.iter().map(|(_, drop)| u64::from(*drop)).sum();
        prop_assert_eq!(earned.total, if wanted == 0 { 0 } else { all });

        let mut turned = passages;
        if !turned.is_empty() {
            let by = rotation % turned.len();
            turned.rotate_left(by);
        }
        prop_assert_eq!(&context_units(&turned, &rule).unwrap(), &earned);

        // Each cluster under a name of its own earns what it earned before.
        let split: Vec<PassageDrop> = drops
            .iter()
            .map(|&(cluster, drop)| passage(cluster, u8::try_from(cluster + 1).unwrap(), drop))
            .collect();
        let split = context_units(&split, &rule).unwrap().weights;
        prop_assert_eq!(split.iter().map(|(_, units)| units).sum::<u64>(), wanted);

        let weights: Vec<u64> = units.iter().map(|(_, units)| *units).collect();
        match shares(1_000_000_007, &weights) {
            Ok(parts) => prop_assert_eq!(parts.iter().sum::<u128>(), 1_000_000_007),
            Err(error) => prop_assert_eq!((error, wanted), (SharesError::NoWeight, 0)),
        }
    }
}
