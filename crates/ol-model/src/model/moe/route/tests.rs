//! Goal: the rules of choice, by examples that a reader can check by hand.

use super::*;

fn shape(routing: Routing) -> Moe {
    Moe {
        n_routed_experts: 6,
        num_experts_per_tok: 2,
        n_shared_experts: 1,
        moe_intermediate_size: 4,
        first_k_dense_replace: 0,
        n_group: 3,
        topk_group: 2,
        routed_scaling_factor: 1.0,
        norm_topk_prob: false,
        routing,
    }
}

#[track_caller]
fn check(routing: Routing, scores: [f32; 6], bias: Option<[f32; 6]>, want: [usize; 2]) {
    let bias = bias.as_ref().map(<[f32; 6]>::as_slice);
    assert_eq!(choose(&shape(routing), &scores, bias), want);
}

#[test]
fn greedy_takes_the_largest_and_the_lower_number_among_equals() {
    check(
        Routing::Greedy,
        [0.1, 0.3, 0.0, 0.2, 0.4, 0.0],
        None,
        [1, 4],
    );
    check(Routing::Greedy, [0.2; 6], None, [0, 1]);
}

#[test]
fn a_group_is_as_good_as_its_best_expert() {
    // The groups of 0.9 and 0.5 are open; 0.45 beside 0.4 is not.
    let scores = [0.9, 0.1, 0.45, 0.4, 0.5, 0.0];
    check(Routing::GroupLimitedGreedy, scores, None, [0, 4]);
}

#[test]
fn with_a_correction_a_group_is_as_good_as_its_two_best() {
    let scores = [0.9, 0.1, 0.45, 0.6, 0.5, 0.0];
    check(Routing::NoAuxTc, scores, None, [0, 3]);
    // The bias opens the last group and chooses in it.
    let bias = [0.0, 0.0, 0.0, 0.0, 0.3, 0.7];
    check(Routing::NoAuxTc, scores, Some(bias), [4, 5]);
}

#[test]
fn scores_that_are_no_numbers_choose_someone() {
    assert_eq!(
        choose(&shape(Routing::NoAuxTc), &[f32::NAN; 6], None).len(),
        2
    );
}
