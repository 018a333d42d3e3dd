//! All eigenvectors of a symmetric matrix of some hundred rows.

use super::{Matrix, sum_of_products};

/// All eigenvalues, descending, and the eigenvectors as rows, of a symmetric
/// matrix; `None` if it has numbers that are not finite.
///
/// Reduction to tridiagonal form by reflections, then implicit QR steps with
/// Wilkinson's shift; `O(n³)`, a few seconds for a thousand rows.
///
/// # Source
/// Golub and Van Loan, *Matrix Computations*, 4th ed., algorithms 8.3.1 to
/// 8.3.3.
pub(crate) fn symmetric_eigen(a: Matrix) -> Option<(Vec<f64>, Matrix)> {
    let n = a.rows();
    assert_eq!(n, a.cols(), "a square matrix");
    if a.data.iter().any(|x| !x.is_finite()) {
        return None;
    }
    let (mut diagonal, mut off, mut vectors) = tridiagonal(a);
    // Each eigenvalue takes two to three steps; the limit ends what cannot be.
    let mut steps_left = 60 * n;
    let mut high = n.saturating_sub(1);
    while high > 0 {
        let is_zero = |i: usize, off: &[f64], diagonal: &[f64]| {
            off[i].abs() <= f64::EPSILON * (diagonal[i].abs() + diagonal[i + 1].abs())
        };
        if is_zero(high - 1, &off, &diagonal) {
            high -= 1;
            continue;
        }
        let unreduced = (0..high).rev().find(|&i| is_zero(i, &off, &diagonal));
        let low = unreduced.map_or(0, |i| i + 1);
        qr_step(&mut diagonal, &mut off, &mut vectors, low, high);
        steps_left = steps_left.checked_sub(1)?;
    }
    let mut order: Vec<usize> = (0..n).collect();
    order.sort_by(|&i, &j| diagonal[j].total_cmp(&diagonal[i]));
    let values = order.iter().map(|&i| diagonal[i]).collect();
    let mut sorted = Matrix::zeros(n, n);
    for (to, &from) in order.iter().enumerate() {
        sorted.row_mut(to).copy_from_slice(vectors.row(from));
    }
    Some((values, sorted))
}

/// `Z A Zᵀ = T` with `T` tridiagonal: its diagonal, its off-diagonal, and `Z`.
fn tridiagonal(mut a: Matrix) -> (Vec<f64>, Vec<f64>, Matrix) {
    let n = a.rows();
    let mut vectors = Matrix::from_fn(n, n, |i, j| f64::from(u8::from(i == j)));
    let mut off = vec![0.0; n.saturating_sub(1)];
    for k in 0..n.saturating_sub(1) {
        // A reflection I - 2 v vᵀ takes column k below the diagonal to its
        // first element.
        let mut v: Vec<f64> = (k + 1..n).map(|i| a.at(i, k)).collect();
        let length = sum_of_products(&v, &v).sqrt();
        let first = if v[0] > 0.0 { -length } else { length };
        off[k] = first;
        v[0] -= first;
        let size = sum_of_products(&v, &v).sqrt();
        if size == 0.0 {
            continue;
        }
        v.iter_mut().for_each(|x| *x /= size);
        // A - v wᵀ - w vᵀ, with w = p - (vᵀp) v and p = 2 A v.
        let mut w: Vec<f64> = (k + 1..n)
            .map(|i| 2.0 * sum_of_products(&a.row(i)[k + 1..], &v))
            .collect();
        let along = sum_of_products(&v, &w);
        w.iter_mut().zip(&v).for_each(|(w, v)| *w -= along * v);
        for i in k + 1..n {
            let (v_i, w_i) = (v[i - k - 1], w[i - k - 1]);
            for ((x, &v), &w) in a.row_mut(i)[k + 1..].iter_mut().zip(&v).zip(&w) {
                *x -= v_i * w + w_i * v;
            }
        }
        // Rows k+1.. of Z become (I - 2 v vᵀ) Z.
        let mut sums = vec![0.0; n];
        for (i, &v) in (k + 1..n).zip(&v) {
            let row = vectors.row(i);
            sums.iter_mut().zip(row).for_each(|(sum, x)| *sum += v * x);
        }
        for (i, &v) in (k + 1..n).zip(&v) {
            let row = vectors.row_mut(i);
            row.iter_mut()
                .zip(&sums)
                .for_each(|(x, sum)| *x -= 2.0 * v * sum);
        }
    }
    let diagonal = (0..n).map(|i| a.at(i, i)).collect();
    (diagonal, off, vectors)
}

/// One implicit QR step on rows `low..=high`, whose off-diagonal is not zero.
fn qr_step(diagonal: &mut [f64], off: &mut [f64], vectors: &mut Matrix, low: usize, high: usize) {
    let half = (diagonal[high - 1] - diagonal[high]) / 2.0;
    let last = off[high - 1];
    let root = length(half, last).copysign(half);
    let shift = diagonal[high] - last * last / (half + root);
    let (mut x, mut z) = (diagonal[low] - shift, off[low]);
    for k in low..high {
        let size = length(x, z);
        let (c, s) = if size == 0.0 {
            (1.0, 0.0)
        } else {
            (x / size, z / size)
        };
        if k > low {
            off[k - 1] = size;
        }
        let (a, b, e) = (diagonal[k], diagonal[k + 1], off[k]);
        diagonal[k] = c * c * a + 2.0 * c * s * e + s * s * b;
        diagonal[k + 1] = s * s * a - 2.0 * c * s * e + c * c * b;
        off[k] = c * s * (b - a) + (c * c - s * s) * e;
        if k + 1 < high {
            x = off[k];
            z = s * off[k + 1];
            off[k + 1] *= c;
        }
        let cols = vectors.cols;
        let (above, below) = vectors.data.split_at_mut((k + 1) * cols);
        for (x, y) in above[k * cols..].iter_mut().zip(&mut below[..cols]) {
            (*x, *y) = (c * *x + s * *y, c * *y - s * *x);
        }
    }
}

/// `√(x² + y²)` by IEEE operations alone: that of the system's library differs
/// between systems. Scaled, so that squares neither overflow nor vanish.
fn length(x: f64, y: f64) -> f64 {
    let (x, y) = (x.abs(), y.abs());
    let (large, small) = if x > y { (x, y) } else { (y, x) };
    if large == 0.0 {
        return 0.0;
    }
    let ratio = small / large;
    large * (1.0 + ratio * ratio).sqrt()
}
