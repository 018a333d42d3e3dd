//! Dense symmetric systems, for the methods that have them.

use crate::linalg::Matrix;

/// What the library's matrices do not need.
pub(crate) trait Dense {
    fn scale(&mut self, factor: f64);
    fn add_to_diagonal(&mut self, value: f64);
}

impl Dense for Matrix {
    fn scale(&mut self, factor: f64) {
        for i in 0..self.rows() {
            self.row_mut(i).iter_mut().for_each(|x| *x *= factor);
        }
    }

    fn add_to_diagonal(&mut self, value: f64) {
        for i in 0..self.rows() {
            self.row_mut(i)[i] += value;
        }
    }
}

/// `a⁻¹ b` of a symmetric positive definite matrix by Cholesky's factorisation,
/// or `None` if it is not (numerically) positive definite.
pub(crate) fn solve(mut a: Matrix, mut b: Matrix) -> Option<Matrix> {
    let n = a.rows();
    for i in 0..n {
        for j in 0..=i {
            let sum: f64 = (0..j).map(|k| a.at(i, k) * a.at(j, k)).sum();
            let rest = a.at(i, j) - sum;
            a.row_mut(i)[j] = if i > j {
                rest / a.at(j, j)
            } else if rest > 0.0 {
                rest.sqrt()
            } else {
                return None;
            };
        }
    }
    // L y = b from the top, then Lᵀ x = y from the bottom.
    for i in 0..n {
        for j in 0..i {
            subtract(&mut b, i, j, a.at(i, j));
        }
        divide(&mut b, i, a.at(i, i));
    }
    for i in (0..n).rev() {
        for j in i + 1..n {
            subtract(&mut b, i, j, a.at(j, i));
        }
        divide(&mut b, i, a.at(i, i));
    }
    Some(b)
}

/// Row `i` less `factor` times row `j`.
fn subtract(b: &mut Matrix, i: usize, j: usize, factor: f64) {
    let other = b.row(j).to_vec();
    let row = b.row_mut(i).iter_mut();
    row.zip(other).for_each(|(x, y)| *x -= factor * y);
}

fn divide(b: &mut Matrix, i: usize, by: f64) {
    b.row_mut(i).iter_mut().for_each(|x| *x /= by);
}
