use super::*;

fn eight_bit(n: usize) -> AdamW {
    let options = TrainOptions {
        optimizer: Optimizer::AdamW8Bit,
        ..TrainOptions::default()
    };
    AdamW::of(&options, n)
}

#[test]
fn the_first_step_moves_by_the_rate_against_the_sign() {
    for mut adam in [AdamW::new(3, 0.9, 0.95, 0.0), eight_bit(3)] {
        let mut params = [1.0, 1.0, 1.0];
        adam.step(&mut params, &[0.3, -7.0, 0.0], &[false; 3], 0.1);
        for (p, want) in params.iter().zip([0.9, 1.1, 1.0]) {
            assert!((p - want).abs() < 1e-5, "{p} {want}");
        }
    }
}

#[test]
fn decay_shrinks_only_what_decays() {
    let mut adam = AdamW::new(2, 0.9, 0.95, 0.5);
    let mut params = [1.0, 1.0];
    adam.step(&mut params, &[0.0, 0.0], &[true, false], 0.1);
    assert_eq!(params, [0.95, 1.0]);
}

#[test]
fn a_quadratic_is_minimised() {
    for mut adam in [AdamW::new(2, 0.9, 0.95, 0.0), eight_bit(2)] {
        let mut params = [3.0_f32, -2.0];
        for _ in 0..500 {
            let gradient = [params[0] - 1.0, 10.0 * (params[1] - 0.5)];
            adam.step(&mut params, &gradient, &[false; 2], 0.05);
        }
        assert!(
            (params[0] - 1.0).abs() < 0.05 && (params[1] - 0.5).abs() < 0.05,
            "{params:?}"
        );
    }
}

/// Gradients of very different sizes in one block are what 8 bits are bad at:
/// no parameter may be thrown far by a second moment that became zero.
#[test]
fn eight_bits_follow_full_precision() {
    let n = 1000;
    let mut full = AdamW::of(&TrainOptions::default(), n);
    let mut eight = eight_bit(n);
    let (mut a, mut b) = (vec![0.0_f32; n], vec![0.0_f32; n]);
    let mut random = ol_model::Random::new(5);
    for _ in 0..50 {
        let gradient: Vec<f32> = (0..n)
            .map(|i| {
                let decade = i32::try_from(i % 8).unwrap();
                (0.3 + random.normal()) * 10.0_f32.powi(-decade)
            })
            .collect();
        full.step(&mut a, &gradient, &vec![false; n], 0.01);
        eight.step(&mut b, &gradient, &vec![false; n], 0.01);
    }
    for (i, (a, b)) in a.iter().zip(&b).enumerate() {
        // A step moves by about the rate, however badly a value is kept.
        assert!(b.abs() < 0.6, "{i}: {a} {b}");
    }
    let mean = |x: &[f32]| x.iter().sum::<f32>() / x.len() as f32;
    // Those of the three largest sizes are resolved well.
    let large: Vec<usize> = (0..n).filter(|i| i % 8 < 3).collect();
    let of = |x: &[f32]| large.iter().map(|&i| x[i]).collect::<Vec<_>>();
    let (a, b) = (of(&a), of(&b));
    assert!(
        (mean(&a) - mean(&b)).abs() < 0.05 * mean(&a).abs(),
        "{} {}",
        mean(&a),
        mean(&b)
    );
}

#[test]
fn eight_bits_take_a_quarter() {
    let n = 1 << 20;
    let full = AdamW::size_bytes(Optimizer::AdamW, n);
    let eight = AdamW::size_bytes(Optimizer::AdamW8Bit, n);
    assert!(4 * eight < full + full / 50, "{eight} {full}");
    let held = |adam: &AdamW| -> usize {
        adam.values()
            .iter()
            .map(|(_, v)| match v {
                Values::F32(v) => 4 * v.len(),
                Values::U8(v) => v.len(),
            })
            .sum()
    };
    assert_eq!(held(&eight_bit(n)), eight);
    assert_eq!(held(&AdamW::new(n, 0.9, 0.95, 0.0)), full);
}
