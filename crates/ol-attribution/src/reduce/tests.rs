//! Goal: the reduction is the linear map it claims to be, and keeps products.
//! Method: the map's matrix read off unit vectors; averages over seeds.

use super::{BlockShape, Reducer};
use crate::random::SplitMix;

const BLOCKS: [BlockShape; 2] = [
    BlockShape {
        rank: 2,
        d_in: 40,
        d_out: 5,
    },
    BlockShape {
        rank: 3,
        d_in: 6,
        d_out: 50,
    },
];

fn random(n: usize, seed: u64) -> Vec<f32> {
    let mut generator = SplitMix::new(seed);
    (0..n)
        .map(|_| f32::from(u16::try_from(generator.next() >> 48).unwrap()) / 32_768.0 - 1.0)
        .collect()
}

fn dot(a: &[f32], b: &[f32]) -> f64 {
    a.iter()
        .zip(b)
        .map(|(&x, &y)| f64::from(x) * f64::from(y))
        .sum()
}

#[test]
fn lengths_follow_the_shapes() {
    let reducer = Reducer::new(&BLOCKS, 16, 1);
    assert_eq!(reducer.input_len(), 2 * (40 + 5) + 3 * (6 + 50));
    // Sides of 5 and 6 are shorter than 16 and kept.
    assert_eq!(reducer.output_len(), 2 * (16 + 5) + 3 * (6 + 16));
    let reduced = reducer.reduce(&random(reducer.input_len(), 3));
    assert_eq!(reduced.len(), reducer.output_len());
}

#[test]
fn short_sides_are_kept() {
    let reducer = Reducer::new(&BLOCKS, 64, 1);
    let gradient = random(reducer.input_len(), 3);
    assert_eq!(reducer.reduce(&gradient), gradient);
}

#[test]
fn each_number_goes_where_it_belongs() {
    let side = 16;
    let reducer = Reducer::new(&BLOCKS, side, 7);
    let unit = |at: usize| {
        let mut gradient = vec![0.0; reducer.input_len()];
        gradient[at] = 1.0;
        reducer.reduce(&gradient)
    };
    // A[1][3] of the first block lands in the 16 sums of rank 1 only.
    let from_a = unit(40 + 3);
    for (at, x) in from_a.iter().enumerate() {
        assert_eq!(x.abs(), if (16..32).contains(&at) { 0.25 } else { 0.0 });
    }
    // B[7][2] of the second block lands in rank 2 of every reduced row.
    let start = 2 * (16 + 5) + 3 * 6;
    let from_b = unit(2 * 45 + 3 * 6 + 7 * 3 + 2);
    for (at, x) in from_b.iter().enumerate() {
        let is_rank_2 = at >= start && (at - start) % 3 == 2;
        assert_eq!(x.abs(), if is_rank_2 { 0.25 } else { 0.0 });
    }
    // The same column has the same signs in every rank.
    let other_rank = unit(3);
    assert_eq!(other_rank[..16], from_a[16..32]);
}

#[test]
fn inner_products_are_kept_on_average() {
    let n = Reducer::new(&BLOCKS, 16, 0).input_len();
    let (a, b) = (random(n, 1), random(n, 2));
    let exact = dot(&a, &b);
    let mean = (0..400)
        .map(|seed| {
            let reducer = Reducer::new(&BLOCKS, 16, seed);
            dot(&reducer.reduce(&a), &reducer.reduce(&b))
        })
        .sum::<f64>()
        / 400.0;
    let length = (dot(&a, &a) * dot(&b, &b)).sqrt();
    assert!((mean - exact).abs() < 0.03 * length, "{mean} for {exact}");
}

#[test]
fn seeds_differ() {
    let gradient = random(Reducer::new(&BLOCKS, 16, 0).input_len(), 5);
    let reduced = |seed| Reducer::new(&BLOCKS, 16, seed).reduce(&gradient);
    assert_eq!(reduced(1), reduced(1));
    assert_ne!(reduced(1), reduced(2));
}
