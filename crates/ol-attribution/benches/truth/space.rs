//! Records and queries in a metric: the inner products that scores are made
//! of, and what the learned subspace keeps of them.

#![expect(
    unsafe_code,
    reason = "gemm takes raw pointers; the one call is checked"
)]

use std::convert::Infallible;

use crate::bank::Gradients;
use crate::linalg::{Matrix, add_product, multiply, top_eigen};
use crate::random::SplitMix;
use crate::solve::{Dense as _, solve};
use crate::stats::count;
use crate::truth::Loss;

/// Columns whose products are added up in `f32`.
const COLUMNS: usize = 4096;

/// Seed of the subspace iteration and the rotation.
const SEED: u64 = 1;

/// Steps of the subspace iteration.
const ITERATIONS: usize = 16;

/// Scores of records for queries of both losses, `[query, record]`: positive
/// says that the record lowers the query's loss.
pub(crate) type Scores = [Matrix; Loss::ALL.len()];

/// What a metric says of the records and the queries.
#[derive(Debug, Clone)]
pub(crate) struct Space {
    /// `[record, record]`.
    pub(crate) records: Matrix,
    pub(crate) queries: Scores,
}

/// `a W bᵀ`, with `W` diagonal, or the identity.
pub(crate) fn gram(a: &Gradients, b: &Gradients, weights: Option<&[f32]>) -> Matrix {
    let mut product = Matrix::zeros(a.len(), b.len());
    add_gram(&mut product, a, b, weights, 0..a.dim);
    product
}

/// Adds the part of [`gram`] that some of the columns make.
pub(crate) fn add_gram(
    product: &mut Matrix,
    a: &Gradients,
    b: &Gradients,
    weights: Option<&[f32]>,
    columns: std::ops::Range<usize>,
) {
    let end = columns.end;
    let mut part = vec![0.0_f32; a.len() * b.len()];
    for start in columns.step_by(COLUMNS) {
        let width = COLUMNS.min(end - start);
        let take = |rows: &Gradients, weights: Option<&[f32]>| -> Vec<f32> {
            let mut taken = Vec::with_capacity(rows.len() * width);
            for row in rows.rows() {
                let row = &row[start..start + width];
                match weights {
                    None => taken.extend_from_slice(row),
                    Some(weights) => {
                        let pairs = row.iter().zip(&weights[start..start + width]);
                        taken.extend(pairs.map(|(x, w)| x * w));
                    }
                }
            }
            taken
        };
        multiply_f32(&mut part, &take(a, weights), &take(b, None), width);
        for (i, part) in part.chunks_exact(b.len()).enumerate() {
            let row = product.row_mut(i).iter_mut();
            row.zip(part).for_each(|(sum, x)| *sum += f64::from(*x));
        }
    }
}

/// `product = a bᵀ`, rows of `width` numbers.
fn multiply_f32(product: &mut [f32], a: &[f32], b: &[f32], width: usize) {
    let (m, n) = (a.len() / width, b.len() / width);
    assert_eq!(
        (m * width, n * width, m * n),
        (a.len(), b.len(), product.len())
    );
    let [m_stride, n_stride] = [width, n].map(|n| isize::try_from(n).expect("a slice's length"));
    // SAFETY: the assertion holds the three row-major matrices, `[m, width]`,
    // `[n, width]` (read transposed) and `[m, n]`, inside their slices.
    unsafe {
        gemm::gemm(
            m,
            n,
            width,
            product.as_mut_ptr(),
            1,
            n_stride,
            false,
            a.as_ptr(),
            1,
            m_stride,
            b.as_ptr(),
            m_stride,
            1,
            0.0_f32,
            1.0_f32,
            false,
            false,
            false,
            gemm::Parallelism::None,
        );
    }
}

impl Space {
    /// Inner products, each coordinate weighted.
    pub(crate) fn of(
        records: &Gradients,
        queries: &[Gradients; 2],
        weights: Option<&[f32]>,
    ) -> Self {
        Self {
            records: gram(records, records, weights),
            queries: [0, 1].map(|loss| gram(&queries[loss], records, weights)),
        }
    }

    /// The mean square of a record.
    pub(crate) fn trace(&self) -> f64 {
        let n = self.records.rows();
        (0..n).map(|i| self.records.at(i, i)).sum::<f64>() / count(n)
    }

    /// With the records' own gradients as curvature:
    /// `q (GᵀG/N + λ)⁻¹ Gᵀ = q Gᵀ (GGᵀ/N + λ)⁻¹`.
    pub(crate) fn whiten_by_records(&self, lambda: f64) -> Option<Self> {
        let n = self.records.rows();
        let mut inner = self.records.clone();
        inner.scale(1.0 / count(n));
        inner.add_to_diagonal(lambda);
        let solved = solve(inner, identity(n))?;
        let apply = |scores: &Matrix| multiply(scores.view(), solved.view());
        Some(Self {
            records: apply(&self.records),
            queries: [0, 1].map(|loss| apply(&self.queries[loss])),
        })
    }

    /// With other rows `Φ` as curvature, by Woodbury's identity.
    pub(crate) fn whiten_by(&self, rows: &Curvature, lambda: f64) -> Option<Self> {
        let s = rows.inner.rows();
        let mut inner = rows.inner.clone();
        inner.add_to_diagonal(count(s) * lambda);
        let solved = solve(inner, rows.records.clone())?;
        let apply = |scores: &Matrix, to_rows: &Matrix| {
            let mut whitened = scores.clone();
            add_product(&mut whitened, 0, 0, -1.0, to_rows.view(), solved.view());
            whitened.scale(1.0 / lambda);
            whitened
        };
        let to_records = transpose(&rows.records);
        Some(Self {
            records: apply(&self.records, &to_records),
            queries: [0, 1].map(|loss| apply(&self.queries[loss], &rows.queries[loss])),
        })
    }

    /// Only the directions of records and queries count, not their lengths.
    pub(crate) fn cosine(&self) -> Self {
        let lengths: Vec<f64> = (0..self.records.rows())
            .map(|i| self.records.at(i, i).max(f64::MIN_POSITIVE).sqrt())
            .collect();
        let scale = |scores: &Matrix| {
            Matrix::from_fn(scores.rows(), scores.cols(), |i, j| {
                scores.at(i, j) / lengths[j]
            })
        };
        Self {
            records: scale(&self.records),
            queries: [0, 1].map(|loss| scale(&self.queries[loss])),
        }
    }

    /// Divided by the mean square of a record.
    pub(crate) fn relative(&self) -> Self {
        Self::sum(&[self])
    }

    /// The sum of spaces, each divided by the mean square of a record.
    pub(crate) fn sum(spaces: &[&Self]) -> Self {
        let parts: Vec<(f64, &Self)> = spaces.iter().map(|s| (1.0 / s.trace(), *s)).collect();
        Self::weighted(&parts)
    }

    /// The sum of spaces, each times its weight.
    pub(crate) fn weighted(parts: &[(f64, &Self)]) -> Self {
        let combine = |of: &dyn Fn(&Self) -> &Matrix| {
            let first = of(parts[0].1);
            Matrix::from_fn(first.rows(), first.cols(), |i, j| {
                parts
                    .iter()
                    .map(|(part, space)| part * of(space).at(i, j))
                    .sum()
            })
        };
        Self {
            records: combine(&|space| &space.records),
            queries: [0, 1].map(|loss| combine(&|space| &space.queries[loss])),
        }
    }

    /// What sketches of `k` numbers of `bits` bits say: the subspace of the
    /// records' relative scores, rotated, rounded with a scale for each record
    /// and each query. Without own scores, the subspace need not keep what a
    /// record says of itself.
    pub(crate) fn sketched(&self, k: usize, bits: u32, with_own: bool) -> Option<Scores> {
        let n = self.records.rows();
        let mut relative = self.records.clone();
        for i in 0..n {
            let row = relative.row_mut(i);
            if !with_own {
                row[i] = 0.0;
            }
            let length = row.iter().map(|x| x * x).sum::<f64>().sqrt();
            row.iter_mut()
                .for_each(|x| *x /= length.max(f64::MIN_POSITIVE));
        }
        let spread = multiply(relative.view().t(), relative.view());
        let mut apply = |x: &Matrix| Ok::<_, Infallible>(multiply(x.view(), spread.view()));
        let Ok((values, vectors)) = top_eigen(n, k, SEED, ITERATIONS, &mut apply);
        let floor = values.first()? * 1e-12;
        let mut codes = Matrix::zeros(n, k);
        let mut weights = Matrix::zeros(n, k);
        for (direction, &value) in values.iter().enumerate().filter(|(_, v)| **v > floor) {
            let balance = value.sqrt().sqrt();
            for i in 0..n {
                let along = vectors.at(direction, i);
                codes.row_mut(i)[direction] = along * balance;
                weights.row_mut(i)[direction] = along / balance;
            }
        }
        let mut codes = spread_rows(codes);
        round_rows(&mut codes, bits);
        let weights = spread_rows(weights);
        Some([0, 1].map(|loss| {
            let mut queries = multiply(self.queries[loss].view(), weights.view());
            round_rows(&mut queries, 8);
            multiply(queries.view(), codes.view().t())
        }))
    }
}

/// Inner products of curvature rows with everything.
#[derive(Debug)]
pub(crate) struct Curvature {
    /// `[row, row]`.
    inner: Matrix,
    /// `[row, record]`.
    records: Matrix,
    /// `[query, row]`.
    queries: Scores,
}

impl Curvature {
    pub(crate) fn of(rows: &Gradients, records: &Gradients, queries: &[Gradients; 2]) -> Self {
        Self {
            inner: gram(rows, rows, None),
            records: gram(rows, records, None),
            queries: [0, 1].map(|loss| gram(&queries[loss], rows, None)),
        }
    }

    /// The trace of the curvature.
    pub(crate) fn trace(&self) -> f64 {
        let s = self.inner.rows();
        (0..s).map(|i| self.inner.at(i, i)).sum::<f64>() / count(s)
    }
}

fn identity(n: usize) -> Matrix {
    Matrix::from_fn(n, n, |i, j| f64::from(u8::from(i == j)))
}

fn transpose(a: &Matrix) -> Matrix {
    Matrix::from_fn(a.cols(), a.rows(), |i, j| a.at(j, i))
}

/// Rows times a random orthogonal matrix: signs, then Hadamard's where the
/// length is a power of two.
fn spread_rows(mut rows: Matrix) -> Matrix {
    let k = rows.cols();
    let mut random = SplitMix::new(SEED);
    let signs: Vec<f64> = (0..k).map(|_| random.sign()).collect();
    for i in 0..rows.rows() {
        let row = rows.row_mut(i);
        row.iter_mut().zip(&signs).for_each(|(x, sign)| *x *= sign);
        if !k.is_power_of_two() {
            continue;
        }
        let mut half = 1;
        while half < k {
            for block in row.chunks_exact_mut(2 * half) {
                let (a, b) = block.split_at_mut(half);
                for (a, b) in a.iter_mut().zip(b) {
                    (*a, *b) = (*a + *b, *a - *b);
                }
            }
            half *= 2;
        }
    }
    rows
}

/// Rounds each row to codes of so many bits on a scale of its own.
fn round_rows(rows: &mut Matrix, bits: u32) {
    let top = f64::from((1_u32 << (bits - 1)) - 1);
    for i in 0..rows.rows() {
        let row = rows.row_mut(i);
        let largest = row.iter().fold(0.0_f64, |max, x| max.max(x.abs()));
        if largest > 0.0 {
            let unit = largest / top;
            row.iter_mut()
                .for_each(|x| *x = (*x / unit).round_ties_even() * unit);
        }
    }
}
