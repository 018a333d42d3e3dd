//! The curvature against the dense Fisher matrix, and what it refuses.

use std::convert::Infallible;

use super::*;
use crate::random::SplitMix;

const BLOCKS: [BlockShape; 2] = [
    BlockShape {
        rank: 2,
        d_in: 7,
        d_out: 5,
    },
    BlockShape {
        rank: 3,
        d_in: 4,
        d_out: 6,
    },
];
const DIM: usize = 2 * (7 + 5) + 3 * (4 + 6);

/// Gradients whose factors are outer products on scaled axes, so that their
/// Fisher information is Kronecker-factored.
#[expect(clippy::cast_possible_truncation, reason = "gradients are f32")]
fn outer_products(n: usize) -> Vec<Vec<f32>> {
    let mut random = SplitMix::new(7);
    let sample = |_| {
        let mut gradient = Vec::with_capacity(DIM);
        for shape in factor_shapes(&BLOCKS) {
            // Independent signs: E[G_ij G_kl] is diagonal.
            for i in 0..shape.m {
                for j in 0..shape.n {
                    let size = (1.0 + i as f64) / (1.0 + j as f64);
                    gradient.push((random.sign() * size) as f32);
                }
            }
        }
        gradient
    };
    (0..n).map(sample).collect()
}

fn fit(gradients: &[Vec<f32>], budget_bytes: usize) -> (Kronecker, usize) {
    let mut passes = 0;
    let mut samples = |visit: &mut dyn FnMut(&[f32])| {
        gradients.iter().for_each(|gradient| visit(gradient));
        Ok::<(), Infallible>(())
    };
    let fitted = Kronecker::fit(&BLOCKS, &mut samples, budget_bytes, &mut |progress| {
        passes = progress.passes;
        assert!(progress.passes <= progress.passes_total);
    });
    (fitted.unwrap(), passes)
}

#[test]
fn a_rotation_keeps_inner_products() {
    let gradients = outer_products(40);
    let (fitted, _) = fit(&gradients, usize::MAX);
    let dot = |a: &[f32], b: &[f32]| -> f64 {
        a.iter()
            .zip(b)
            .map(|(x, y)| f64::from(*x) * f64::from(*y))
            .sum()
    };
    for pair in gradients.windows(2) {
        let before = dot(&pair[0], &pair[1]);
        let after = dot(&fitted.rotate(&pair[0]), &fitted.rotate(&pair[1]));
        assert!((before - after).abs() < 1e-4, "{before} {after}");
    }
}

/// Oracle: the dense second moment of all samples.
#[test]
fn the_trace_is_that_of_the_dense_fisher() {
    let gradients = outer_products(60);
    let (fitted, _) = fit(&gradients, usize::MAX);
    for range in fitted.factors() {
        let dense: f64 = gradients
            .iter()
            .flat_map(|g| &g[range.clone()])
            .map(|x| f64::from(*x).powi(2))
            .sum::<f64>()
            / 60.0;
        let trace: f64 = fitted.eigenvalues()[range]
            .iter()
            .map(|x| f64::from(*x))
            .sum();
        assert!((dense - trace).abs() < 1e-4 * dense, "{dense} {trace}");
    }
}

/// Where the Fisher information is a Kronecker product, its eigenvalues are
/// found.
#[test]
fn a_kronecker_product_is_recovered() {
    let gradients = outer_products(4_000);
    let (fitted, _) = fit(&gradients, usize::MAX);
    for (range, shape) in fitted.factors().zip(factor_shapes(&BLOCKS)) {
        let mut expected: Vec<f64> = (0..shape.m * shape.n)
            .map(|at| ((1.0 + (at / shape.n) as f64) / (1.0 + (at % shape.n) as f64)).powi(2))
            .collect();
        let mut found: Vec<f64> = fitted.eigenvalues()[range]
            .iter()
            .map(|x| f64::from(*x))
            .collect();
        expected.sort_by(f64::total_cmp);
        found.sort_by(f64::total_cmp);
        for (expected, found) in expected.iter().zip(&found) {
            assert!((found / expected - 1.0).abs() < 0.15, "{expected} {found}");
        }
    }
}

#[test]
fn a_small_budget_takes_more_passes_and_gives_the_same() {
    let gradients = outer_products(30);
    let (whole, passes) = fit(&gradients, usize::MAX);
    let (parts, more_passes) = fit(&gradients, 8 * (49 + 4));
    assert_eq!((passes, more_passes), (2, 8));
    assert_eq!(whole.eigenvalues(), parts.eigenvalues());
    assert_eq!(whole.rotate(&gradients[0]), parts.rotate(&gradients[0]));
}

#[test]
fn what_cannot_be_measured_is_refused() {
    let fit = |gradients: Vec<Vec<f32>>, budget_bytes| {
        let mut samples = |visit: &mut dyn FnMut(&[f32])| {
            gradients.iter().for_each(|gradient| visit(gradient));
            Ok::<(), Infallible>(())
        };
        Kronecker::fit(&BLOCKS, &mut samples, budget_bytes, &mut |_| {})
            .expect_err("refused")
            .to_string()
    };
    assert!(fit(Vec::new(), usize::MAX).contains("no gradient"));
    assert!(fit(vec![vec![1.0; 3]], usize::MAX).contains("3 numbers"));
    assert!(fit(vec![vec![f32::NAN; DIM]], usize::MAX).contains("not finite"));
    assert!(fit(outer_products(1), 100).contains("raise it"));
    let mut failing = |_: &mut dyn FnMut(&[f32])| Err("out of disk");
    let error = Kronecker::fit(&BLOCKS, &mut failing, usize::MAX, &mut |_| {}).unwrap_err();
    assert_eq!(error.to_string(), "out of disk");
}
