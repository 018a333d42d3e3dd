//! Goal: no unit is minted or lost, a bigger weight never earns less, and
//! nobody is more than one unit from the exact fraction.
//! Method: examples a reader can check by hand, then properties, then extremes.

use alloc::vec;
use alloc::vec::Vec;

use alloy_primitives::U256;
use proptest::prelude::*;

use super::{DEFAULT_SPLIT_BPS, SharesError, WEIGHT_LIMIT, WEIGHTS_MAX, shares, split_fee};

#[track_caller]
fn check(pot: u128, weights: &[u64], expected: &[u128]) {
    assert_eq!(shares(pot, weights).unwrap(), expected);
}

#[test]
fn leftover_goes_to_largest_remainder_then_lowest_position() {
    check(10, &[1, 1, 1], &[4, 3, 3]);
    check(11, &[1, 1, 1], &[4, 4, 3]);
    check(100, &[0, 2, 1], &[0, 67, 33]);
    check(1, &[1, 2, 3], &[0, 0, 1]);
    check(5, &[3, 3, 2], &[2, 2, 1]);
    check(0, &[1, 2], &[0, 0]);
    check(7, &[9], &[7]);
}

#[test]
fn nothing_is_shared_without_a_weight() {
    assert_eq!(shares(5, &[]), Err(SharesError::NoWeight));
    assert_eq!(shares(5, &[0, 0]), Err(SharesError::NoWeight));
}

#[test]
fn limits_are_enforced() {
    assert_eq!(
        shares(5, &[1, WEIGHT_LIMIT]),
        Err(SharesError::WeightTooLarge { position: 1 })
    );
    assert_eq!(
        shares(5, &vec![1; WEIGHTS_MAX + 1]),
        Err(SharesError::TooMany {
            n_weights: WEIGHTS_MAX + 1
        })
    );
}

#[test]
fn the_extremes_do_not_overflow() {
    let weights = vec![WEIGHT_LIMIT - 1; WEIGHTS_MAX];
    let parts = shares(u128::MAX, &weights).unwrap();
    assert_eq!(parts.iter().copied().reduce(|a, b| a + b), Some(u128::MAX));
    // 2^128 - 1 = 2^14 * (2^114 - 1) + 2^14 - 1: all but the last get one more.
    let floor = (1_u128 << 114) - 1;
    assert!(parts[..WEIGHTS_MAX - 1].iter().all(|&p| p == floor + 1));
    assert_eq!(parts[WEIGHTS_MAX - 1], floor);

    check(u128::MAX, &[WEIGHT_LIMIT - 1], &[u128::MAX]);
    check(u128::MAX, &[0, 1], &[0, u128::MAX]);
}

#[test]
fn a_fee_splits_by_basis_points() {
    assert_eq!(
        split_fee(10_000, DEFAULT_SPLIT_BPS).unwrap(),
        [1_000, 2_000, 2_000, 5_000]
    );
    assert_eq!(split_fee(1, DEFAULT_SPLIT_BPS).unwrap(), [0, 0, 0, 1]);
    assert_eq!(
        split_fee(9, [2_500, 2_500, 2_500, 2_500]).unwrap(),
        [3, 2, 2, 2]
    );
    assert_eq!(
        split_fee(9, [10_000, 1, 0, 0]),
        Err(SharesError::Split { total_bps: 10_001 })
    );
    assert_eq!(
        split_fee(9, [u16::MAX; 4]),
        Err(SharesError::Split { total_bps: 262_140 })
    );
}

fn pots() -> impl Strategy<Value = u128> {
    prop_oneof![
        0..100_u128,
        any::<u64>().prop_map(u128::from),
        any::<u128>()
    ]
}

fn weight_lists() -> impl Strategy<Value = Vec<u64>> {
    let weight = prop_oneof![Just(0), 0..10_u64, 0..WEIGHT_LIMIT];
    prop::collection::vec(weight, 1..40)
}

proptest! {
    #[test]
    fn conserves_and_orders(pot in pots(), weights in weight_lists()) {
        prop_assume!(weights.iter().any(|&w| w > 0));
        let parts = shares(pot, &weights).unwrap();
        prop_assert_eq!(parts.len(), weights.len());
        prop_assert_eq!(parts.iter().sum::<u128>(), pot);
        for i in 0..weights.len() {
            for j in 0..i {
                if weights[i] > weights[j] {
                    prop_assert!(parts[i] >= parts[j]);
                }
                // A tie is broken by position.
                if weights[i] == weights[j] {
                    prop_assert!(parts[j] >= parts[i] && parts[j] - parts[i] <= 1);
                }
            }
        }
    }

    #[test]
    fn nobody_is_a_unit_from_the_exact_fraction(pot in pots(), weights in weight_lists()) {
        prop_assume!(weights.iter().any(|&w| w > 0));
        let sum: U256 = weights.iter().map(|&w| U256::from(w)).sum();
        for (part, &weight) in shares(pot, &weights).unwrap().iter().zip(&weights) {
            // |part - pot*weight/sum| < 1, cross-multiplied.
            let given = U256::from(*part) * sum;
            let exact = U256::from(pot) * U256::from(weight);
            prop_assert!(given.abs_diff(exact) < sum);
            prop_assert!(weight > 0 || *part == 0);
        }
    }

    #[test]
    fn a_permutation_moves_at_most_the_tied_units(pot in pots(), weights in weight_lists(), turn in 0_usize..40) {
        prop_assume!(weights.iter().any(|&w| w > 0));
        let turn = turn % weights.len();
        let straight = shares(pot, &weights).unwrap();
        let mut turned = weights.clone();
        turned.rotate_left(turn);
        let mut back = shares(pot, &turned).unwrap();
        back.rotate_right(turn);
        for (i, (a, b)) in straight.iter().zip(&back).enumerate() {
            prop_assert!(a.abs_diff(*b) <= 1);
            let is_tied = weights.iter().filter(|&&w| w == weights[i]).count() > 1;
            // Equal remainders tie too, even of unequal weights.
            let sum: U256 = weights.iter().map(|&w| U256::from(w)).sum();
            let remainder = |w: u64| (U256::from(pot) * U256::from(w)) % sum;
            let same = weights.iter().filter(|&&w| remainder(w) == remainder(weights[i])).count() > 1;
            prop_assert!(a == b || is_tied || same);
        }
    }
}
