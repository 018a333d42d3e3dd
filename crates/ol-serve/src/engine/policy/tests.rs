//! Goal: the order keeps its promises: classes age, tenants are charged within
//! the bound, and every pass's tokens are shared out.
//! Method: simulations of counters against the bound stated, and properties.

use proptest::prelude::*;

use super::*;

#[test]
fn waiting_raises_the_class_one_by_one() {
    let class = |priority: Priority, waited_s| priority.aged(waited_s, 10.0);
    assert_eq!(class(Priority::Batch, 0.0), 2);
    assert_eq!(class(Priority::Batch, 9.9), 2);
    assert_eq!(class(Priority::Batch, 10.0), 1);
    assert_eq!(class(Priority::Batch, 20.0), 0);
    assert_eq!(class(Priority::Normal, 1e9), 0);
    assert_eq!(class(Priority::Interactive, 1e9), 0);
    // A clock that went back is no reason to wait longer.
    assert_eq!(class(Priority::Batch, -5.0), 2);
}

#[test]
fn who_was_idle_has_saved_nothing_up() {
    let mut counters = Counters::default();
    counters.enter(&"busy");
    counters.charge(&"busy", 1_000);
    counters.enter(&"new");
    assert_eq!(counters.charged(&"new"), 1_000);
    // Nor does it pay for what it got while nobody else waited.
    counters.leave(&"new");
    counters.leave(&"busy");
    counters.enter(&"later");
    assert_eq!(counters.charged(&"later"), 1_000);
}

#[test]
fn counters_of_the_idle_are_bounded() {
    let mut counters = Counters::default();
    for key in 0..3 * N_IDLE_COUNTERS_MAX {
        counters.enter(&key);
        counters.charge(&key, key as u64);
        counters.leave(&key);
        assert!(counters.by_key.len() <= N_IDLE_COUNTERS_MAX + 1);
    }
}

proptest! {
    /// Two tenants that always wait, served one request at a time by the least
    /// charge: however different their requests, the charges never differ by
    /// more than one request costs at most.
    #[test]
    fn charges_of_those_who_wait_stay_together(
        costs in prop::collection::vec((1_u64..50, 1_u64..2_000), 1..200),
    ) {
        let mut counters = Counters::default();
        counters.enter(&0);
        counters.enter(&1);
        for (small, large) in costs {
            let key = (0..2).min_by_key(|key| (counters.charged(key), *key)).unwrap();
            let cost = if key == 0 { small } else { large };
            counters.enter(&key);
            counters.charge(&key, cost);
            counters.leave(&key);
            prop_assert!(counters.charged(&0).abs_diff(counters.charged(&1)) <= 2_000);
        }
    }

    #[test]
    fn a_pass_is_shared_out_whole(
        remaining in prop::collection::vec(1_usize..500, 0..12),
        budget in 0_usize..600,
    ) {
        let shares = share_prefill(&remaining, budget);
        prop_assert_eq!(shares.len(), remaining.len());
        prop_assert!(shares.iter().zip(&remaining).all(|(share, left)| share <= left));
        let total: usize = remaining.iter().sum();
        prop_assert_eq!(shares.iter().sum::<usize>(), budget.min(total));
        if let (Some(first), Some(share)) = (remaining.first(), shares.first()) {
            prop_assert!(*share >= budget.div_ceil(2).min(*first));
        }
        // Whoever did not get all got at least as much as each of the others
        // behind the first.
        if shares.len() > 1 {
            let most = shares[1..].iter().max().copied().unwrap_or(0);
            for (share, left) in shares.iter().zip(&remaining).skip(1) {
                prop_assert!(share == left || share + 1 >= most);
            }
        }
    }
}

#[test]
fn a_short_prompt_does_not_wait_for_a_long_one() {
    assert_eq!(share_prefill(&[4_000, 50], 256), [206, 50]);
    assert_eq!(share_prefill(&[4_000, 4_000, 4_000], 256), [128, 64, 64]);
    assert_eq!(share_prefill(&[10, 4_000], 256), [10, 246]);
    assert_eq!(share_prefill(&[10], 0), [0]);
}
