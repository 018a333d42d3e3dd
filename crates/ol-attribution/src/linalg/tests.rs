//! Goal: the factorisations reproduce the matrix they came from.
//! Method: random matrices of sizes around the block edge; residuals.

use std::convert::Infallible;

use crate::linalg::eigen::symmetric_eigen;
use crate::linalg::testing::products;
use crate::linalg::{Matrix, add_product, jacobi_eigen, multiply, top_eigen};
use crate::random::SplitMix;

fn random(rows: usize, cols: usize, seed: u64) -> Matrix {
    let mut generator = SplitMix::new(seed);
    let mut matrix = Matrix::zeros(rows, cols);
    for i in 0..rows {
        for x in matrix.row_mut(i) {
            *x = f64::from(u32::try_from(generator.next() >> 40).unwrap()) / 8_388_608.0 - 1.0;
        }
    }
    matrix
}

/// `B Bᵀ + I/10`, positive definite.
fn positive(n: usize, seed: u64) -> Matrix {
    let b = random(n, n + 3, seed);
    let mut a = multiply(b.view(), b.view().t());
    for i in 0..n {
        a.row_mut(i)[i] += 0.1;
    }
    a
}

#[track_caller]
fn assert_close(a: &Matrix, b: &Matrix, tolerance: f64) {
    assert_eq!((a.rows(), a.cols()), (b.rows(), b.cols()));
    for i in 0..a.rows() {
        for j in 0..a.cols() {
            let (x, y) = (a.at(i, j), b.at(i, j));
            assert!((x - y).abs() <= tolerance, "[{i}][{j}]: {x} and {y}");
        }
    }
}

#[test]
fn products_follow_the_definition() {
    let (a, b) = (random(5, 7, 1), random(7, 3, 2));
    let expected = Matrix::from_fn(5, 3, |i, j| (0..7).map(|k| a.at(i, k) * b.at(k, j)).sum());
    assert_close(&multiply(a.view(), b.view()), &expected, 1e-12);
    let turned = multiply(b.view().t(), a.view().t());
    assert_close(
        &turned,
        &Matrix::from_fn(3, 5, |i, j| expected.at(j, i)),
        1e-12,
    );
    let mut into = Matrix::from_fn(9, 9, |_, _| 1.0);
    add_product(&mut into, 2, 4, -2.0, a.view(), b.view());
    let at = |i: usize, j: usize| {
        let is_inside = (2..7).contains(&i) && (4..7).contains(&j);
        if is_inside {
            1.0 - 2.0 * expected.at(i - 2, j - 4)
        } else {
            1.0
        }
    };
    assert_close(&into, &Matrix::from_fn(9, 9, at), 1e-12);
    assert_eq!(
        multiply(random(0, 4, 1).view(), random(4, 2, 1).view()).rows(),
        0
    );
}

#[test]
fn jacobi_diagonalises() {
    for n in [1, 2, 3, 40] {
        let a = positive(n, 5);
        let (values, vectors) = jacobi_eigen(a.clone());
        assert!(values.windows(2).all(|pair| pair[0] >= pair[1]));
        let scaled = Matrix::from_fn(n, n, |i, j| values[i] * vectors.at(i, j));
        assert_close(&multiply(vectors.view().t(), scaled.view()), &a, 1e-9);
        let identity = Matrix::from_fn(n, n, |i, j| f64::from(u8::from(i == j)));
        assert_close(
            &multiply(vectors.view(), vectors.view().t()),
            &identity,
            1e-10,
        );
    }
}

fn top_of(a: &Matrix, count: usize) -> (Vec<f64>, Matrix) {
    let mut apply = |x: &Matrix| Ok::<_, Infallible>(multiply(x.view(), a.view()));
    top_eigen(a.rows(), count, 1, 16, &mut apply).unwrap()
}

#[test]
fn the_top_of_the_spectrum_is_found() {
    let n = 130;
    let a = positive(n, 8);
    let (all, _) = jacobi_eigen(a.clone());
    let (values, vectors) = top_of(&a, 20);
    assert_eq!((vectors.rows(), vectors.cols()), (20, n));
    for (value, exact) in values.iter().zip(&all) {
        assert!((value - exact).abs() < 1e-3 * exact, "{value} for {exact}");
    }
    let captured: f64 = values.iter().sum();
    let best: f64 = all[..20].iter().sum();
    assert!(captured > 0.9999 * best && captured < best * (1.0 + 1e-9));
}

#[test]
fn a_matrix_of_low_rank_has_zeros_below() {
    let b = random(50, 3, 4);
    let a = multiply(b.view(), b.view().t());
    let (values, vectors) = top_of(&a, 10);
    assert!(values[2] > 1e-3 && values[3..].iter().all(|x| x.abs() < 1e-9));
    let identity = Matrix::from_fn(10, 10, |i, j| f64::from(u8::from(i == j)));
    assert_close(
        &multiply(vectors.view(), vectors.view().t()),
        &identity,
        1e-9,
    );
}

#[test]
fn all_eigenvectors_agree_with_jacobi() {
    for n in [1, 2, 3, 17, 80] {
        let b = random(n, n, 11);
        // Half of them singular, with eigenvalues of both signs.
        let mut a = Matrix::from_fn(n, n, |i, j| b.at(i, j) + b.at(j, i));
        if n % 2 == 1 {
            a.row_mut(0).fill(0.0);
            (0..n).for_each(|i| a.row_mut(i)[0] = 0.0);
        }
        let (values, vectors) = symmetric_eigen(a.clone()).unwrap();
        let (expected, _) = jacobi_eigen(a.clone());
        for (value, expected) in values.iter().zip(&expected) {
            assert!((value - expected).abs() < 1e-10, "{n}: {value} {expected}");
        }
        let image = multiply(vectors.view(), a.view());
        let inner = multiply(vectors.view(), vectors.view().t());
        for (i, value) in values.iter().enumerate() {
            for j in 0..n {
                let residual = image.at(i, j) - value * vectors.at(i, j);
                assert!(residual.abs() < 1e-10, "{n}: residual {residual}");
                let unit = f64::from(u8::from(i == j));
                assert!(
                    (inner.at(i, j) - unit).abs() < 1e-10,
                    "{n}: not orthonormal"
                );
            }
        }
    }
    let infinite = Matrix::from_fn(2, 2, |_, _| f64::INFINITY);
    assert!(symmetric_eigen(infinite).is_none());
}

#[test]
fn a_product_is_one_chain_for_each_element() {
    // Around the edges of tiles, blocks and depths.
    for (rows, inner, cols) in [
        (1, 1, 1),
        (3, 5, 23),
        (4, 256, 24),
        (97, 257, 25),
        (9, 300, 770),
    ] {
        let (a, b) = (random(rows, inner, 1), random(inner, cols, 2));
        let chain = |i: usize, j: usize| {
            (0..inner).fold(0.0_f64, |sum, k| a.at(i, k).mul_add(b.at(k, j), sum))
        };
        let expected = Matrix::from_fn(rows, cols, chain);
        for found in products(&a, &b) {
            assert_eq!(found, expected, "{rows} x {inner} x {cols}");
        }
    }
}
