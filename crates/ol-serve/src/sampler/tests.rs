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
            assert_eq!(sampler.next(logits), Err(UnusableLogits));
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
