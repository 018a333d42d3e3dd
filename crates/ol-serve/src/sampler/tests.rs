//! Goal: draws follow the distribution asked for and depend on nothing else.
//! Method: hand-checked cases, properties, and frequencies of a fixed seed
//! against the exact probabilities.

use proptest::prelude::*;

use super::*;

fn sampling(temperature: f32, top_p: f32, seed: u64) -> Sampling {
    Sampling {
        temperature,
        top_p,
        seed,
        ..Sampling::GREEDY
    }
}

#[test]
fn greedy_takes_the_first_of_the_largest() {
    let mut sampler = Sampler::new(Sampling::GREEDY);
    assert_eq!(sampler.next(&[0.0, 3.0, -1.0, 3.0]), Ok(1));
    assert_eq!(sampler.next(&[f32::NEG_INFINITY, -7.0]), Ok(1));
}

#[test]
fn logits_without_a_number_are_refused() {
    for temperature in [0.0, 1.0] {
        let mut sampler = Sampler::new(sampling(temperature, 0.9, 1));
        for logits in [
            &[0.0, f32::NAN][..],
            &[f32::INFINITY, 0.0],
            &[f32::NEG_INFINITY, f32::NEG_INFINITY],
            &[],
        ] {
            assert_eq!(sampler.next(logits), Err(UnusableLogits.into()));
        }
    }
}

#[test]
fn ranges_are_checked() {
    for bad in [-0.1, f32::NAN, f32::INFINITY] {
        assert!(matches!(
            sampling(bad, 1.0, 0).validate(),
            Err(SamplingError::Temperature { .. })
        ));
    }
    for bad in [0.0, -1.0, 1.01, f32::NAN] {
        assert!(matches!(
            sampling(1.0, bad, 0).validate(),
            Err(SamplingError::TopP { .. })
        ));
    }
    assert_eq!(sampling(2.0, 1e-6, 0).validate(), Ok(()));
}

/// 20,000 draws: the standard error of a frequency is at most 0.0036, so 0.02
/// is more than five of them.
#[test]
fn frequencies_match_the_softmax() {
    let logits = [1.0_f32, 0.0, 2.0, -1.0];
    let temperature = 1.5_f32;
    let mut sampler = Sampler::new(sampling(temperature, 1.0, 42));
    let mut counts = [0_u32; 4];
    for _ in 0..20_000 {
        counts[sampler.next(&logits).unwrap() as usize] += 1;
    }
    let weights = logits.map(|logit| f64::from(logit / temperature).exp());
    let total: f64 = weights.iter().sum();
    for (count, weight) in counts.into_iter().zip(weights) {
        let found = f64::from(count) / 20_000.0;
        assert!(
            (found - weight / total).abs() < 0.02,
            "{found} instead of {}",
            weight / total
        );
    }
}

#[test]
fn the_nucleus_is_the_smallest_set_that_reaches_top_p() {
    // Probabilities 0.5, 0.3, 0.2 in scrambled order.
    let logits = [0.2_f32.ln(), 0.5_f32.ln(), 0.3_f32.ln()];
    let drawn = |top_p: f32| {
        let mut sampler = Sampler::new(sampling(1.0, top_p, 3));
        let mut seen = [false; 3];
        for _ in 0..500 {
            seen[sampler.next(&logits).unwrap() as usize] = true;
        }
        seen
    };
    assert_eq!(drawn(0.4), [false, true, false]);
    assert_eq!(drawn(0.7), [false, true, true]);
    assert_eq!(drawn(0.95), [true, true, true]);
    assert_eq!(drawn(1.0), [true, true, true]);
}

#[test]
fn near_seeds_differ() {
    let draws = |seed: u64| {
        (0..8)
            .map(|k| unit_draw(seed, k).to_bits())
            .collect::<Vec<_>>()
    };
    assert_ne!(draws(0), draws(1));
    assert_ne!(draws(0)[1..], draws(0x9e37_79b9_7f4a_7c15)[..7]);
}

proptest! {
    #[test]
    fn a_draw_depends_on_seed_position_and_logits_only(
        seed: u64,
        rows in prop::collection::vec(prop::collection::vec(-20.0_f32..20.0, 7), 1..12),
        top_p in 0.05_f32..=1.0,
        temperature in 0.01_f32..3.0,
    ) {
        let mut one = Sampler::new(sampling(temperature, top_p, seed));
        let mut two = Sampler::new(sampling(temperature, top_p, seed));
        for row in &rows {
            let id = one.next(row).unwrap();
            prop_assert_eq!(id, two.next(row).unwrap());
            prop_assert!((id as usize) < row.len());
            // Another request drawing in between changes nothing.
            Sampler::new(sampling(1.0, 1.0, seed)).next(row).unwrap();
        }
    }

    #[test]
    fn a_shift_of_all_logits_changes_nothing(seed: u64, logits in prop::collection::vec(-8_i8..8, 1..20)) {
        let draw = |shift: f32| {
            let logits: Vec<f32> = logits.iter().map(|&l| f32::from(l) + shift).collect();
            Sampler::new(sampling(0.8, 0.9, seed)).next(&logits)
        };
        // Whole numbers this small stay exact, so the draw is the same to the bit.
        prop_assert_eq!(draw(0.0), draw(1024.0));
    }
}

fn greedy(change: impl FnOnce(&mut Sampling)) -> Sampling {
    let mut sampling = Sampling::GREEDY;
    change(&mut sampling);
    sampling
}

#[test]
fn what_is_out_of_range_is_refused_by_name() {
    type Change = fn(&mut Sampling);
    let cases: [(&str, Change); 11] = [
        ("min_p", |s| s.min_p = 1.1),
        ("min_p", |s| s.min_p = f32::NAN),
        ("presence_penalty", |s| s.presence_penalty = 2.1),
        ("frequency_penalty", |s| s.frequency_penalty = -2.1),
        ("frequency_penalty", |s| s.frequency_penalty = f32::INFINITY),
        ("repetition_penalty", |s| s.repetition_penalty = 0.0),
        ("repetition_penalty", |s| s.repetition_penalty = f32::NAN),
        ("logit_bias", |s| s.logit_bias = vec![(1, 100.5)]),
        ("logit_bias", |s| {
            s.logit_bias = vec![(1, 1.0); MAX_LOGIT_BIASES + 1];
        }),
        ("stop_token_ids", |s| {
            s.stop_token_ids = vec![1; MAX_STOP_TOKENS + 1];
        }),
        ("logprobs", |s| s.n_logprobs = Some(MAX_LOGPROBS + 1)),
    ];
    for (name, change) in cases {
        let error = greedy(change).validate().unwrap_err().to_string();
        assert!(error.starts_with(name), "{name}: {error}");
    }
    assert_eq!(Sampling::GREEDY.validate(), Ok(()));
}

/// Greedy draws from fixed logits: each change shows in which token is next.
#[test]
fn each_parameter_changes_what_it_says() {
    let logits = [2.0_f32, 1.9, -1.0, 0.5];
    let draws = |sampling: Sampling, prompt: &[u32], n: usize| -> Vec<u32> {
        let mut sampler = Sampler::for_prompt(sampling, prompt, &[3]);
        (0..n).map(|_| sampler.next(&logits).unwrap()).collect()
    };
    assert_eq!(draws(Sampling::GREEDY, &[], 2), [0, 0]);
    assert_eq!(
        draws(
            greedy(|s| s.logit_bias = vec![(2, 100.0), (9, 1.0)]),
            &[],
            1
        ),
        [2]
    );
    assert_eq!(
        draws(greedy(|s| s.presence_penalty = 1.0), &[], 4),
        [0, 1, 0, 0]
    );
    // 2.0, 1.9 → 1.8, 1.9 → 1.8, 1.7 → …: each time once more.
    assert_eq!(
        draws(greedy(|s| s.frequency_penalty = 0.2), &[], 4),
        [0, 1, 0, 1]
    );
    assert_eq!(
        draws(greedy(|s| s.repetition_penalty = 2.0), &[], 3),
        [0, 1, 0]
    );
    assert_eq!(
        draws(greedy(|s| s.repetition_penalty = 2.0), &[0], 2),
        [1, 0]
    );
    // The end token is the likeliest by its bias, and may not come yet.
    let early = greedy(|s| {
        s.logit_bias = vec![(3, 50.0)];
        s.min_tokens = 2;
    });
    assert_eq!(draws(early, &[], 3), [0, 0, 3]);
}

#[test]
fn tokens_that_end_an_answer() {
    let stops = greedy(|s| s.stop_token_ids = vec![7]);
    let sampler = Sampler::for_prompt(stops.clone(), &[], &[3]);
    assert!(sampler.is_end(3) && sampler.is_end(7) && !sampler.is_end(1));
    let ignoring = Sampling {
        ignores_end: true,
        ..stops
    };
    let sampler = Sampler::for_prompt(ignoring, &[], &[3]);
    assert!(!sampler.is_end(3) && sampler.is_end(7));
}

proptest! {
    /// `top_k` and `min_p` leave exactly the tokens they should.
    #[test]
    fn only_the_likeliest_take_part(
        logits in prop::collection::vec(-4.0_f32..4.0, 2..20),
        top_k in 0_u32..8, min_p in 0.0_f32..1.0, seed: u64,
    ) {
        let cut = Sampling { top_k, min_p, ..sampling(1.0, 1.0, seed) };
        let id = Sampler::new(cut).next(&logits).unwrap() as usize;
        let likelier = |at: usize| logits[at] > logits[id] || logits[at] == logits[id] && at < id;
        let n_likelier = (0..logits.len()).filter(|&at| likelier(at)).count();
        prop_assert!(top_k == 0 || n_likelier < top_k as usize);
        let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        prop_assert!((logits[id] - max).exp() >= min_p - 1e-5);
    }

    /// Against the plain formula in `f64`.
    #[test]
    fn log_probabilities_are_those_of_the_softmax(
        logits in prop::collection::vec(-9.0_f32..9.0, 1..30), n_top in 0_u32..=20, at: prop::sample::Index,
    ) {
        let id = at.index(logits.len());
        let sampler = Sampler::new(greedy(|s| s.n_logprobs = Some(n_top)));
        let found = sampler.logprobs(&logits, u32::try_from(id).unwrap()).unwrap();
        let total: f64 = logits.iter().map(|&l| f64::from(l).exp()).sum();
        let exact = |id: usize| f64::from(logits[id]) - total.ln();
        prop_assert!((f64::from(found.logprob) - exact(id)).abs() < 1e-5);
        prop_assert_eq!(found.top.len(), logits.len().min(n_top as usize));
        prop_assert!(found.top.is_sorted_by(|a, b| a.1 >= b.1));
        for &(id, logprob) in &found.top {
            prop_assert!((f64::from(logprob) - exact(id as usize)).abs() < 1e-5);
        }
        if let Some(&(best, _)) = found.top.first() {
            prop_assert!(logits.iter().all(|&l| l <= logits[best as usize]));
        }
        let rank = logits.iter().filter(|&&l| l > logits[id]).count() + 1;
        prop_assert_eq!(found.rank as usize, rank);
        prop_assert!(Sampler::new(Sampling::GREEDY).logprobs(&logits, 0).is_none());
    }
}
