//! Curvature at scale: the Fisher information of LoRA factors in Kronecker
//! eigenbases with corrected eigenvalues.
//!
//! # Method
//! The gradient of one factor is a matrix `G`, `[m, n]`: `A`, `[rank, d_in]`, or
//! `B`, `[d_out, rank]`. Its Fisher information `E[vec G vec Gᵀ]`, over labels
//! sampled from the model, has `(mn)²` numbers; it is taken to be diagonal in
//! the basis `U_L ⊗ U_R`, with `U_L` the eigenvectors of `E[G Gᵀ]` and `U_R`
//! those of `E[Gᵀ G]`. The eigenvalue of each pair of them is the mean square of
//! that element of `U_Lᵀ G U_R`, so the diagonal is exact in this basis, and the
//! trace is that of the true Fisher.
//!
//! The samples are whole sequences. The gradients of sampled labels at
//! different tokens have mean zero given the text and are independent, so the
//! second moment of their sum is the sum of their second moments: no access to
//! single tokens is needed.
//!
//! # Memory
//! Two passes over the samples for each group of factors: second moments, then
//! eigenvalues. Groups are as large as the budget allows; beside a group's
//! moments, the bases (`4 (m² + n²)` bytes a factor) and eigenvalues are kept.
//!
//! # Source
//! George et al., "Fast approximate natural gradient descent in a
//! Kronecker-factored eigenbasis" (EK-FAC), arXiv:1806.03884; Grosse et al.,
//! arXiv:2308.03296; Gupta et al., "Shampoo", arXiv:1802.09568 (the one-sided
//! moments).

use std::ops::Range;

use crate::linalg::eigen::symmetric_eigen;
use crate::linalg::{Matrix, add_product, multiply};
use crate::reduce::BlockShape;

/// Calls back with every sample of a gradient, the same ones each time it is
/// called.
pub type Samples<'a, E> = dyn FnMut(&mut dyn FnMut(&[f32])) -> Result<(), E> + 'a;

/// The Fisher information of an adapter.
#[derive(Debug, Clone)]
pub struct Kronecker {
    factors: Vec<Factor>,
    eigenvalues: Vec<f32>,
}

/// One factor and its bases, as rows of eigenvectors.
#[derive(Debug, Clone)]
struct Factor {
    range: Range<usize>,
    m: usize,
    n: usize,
    left: Matrix,
    right: Matrix,
}

/// How far a fit is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KroneckerProgress {
    /// Passes over the samples that are done.
    pub passes: usize,
    /// Passes in all.
    pub passes_total: usize,
}

impl Kronecker {
    /// Measures the Fisher information from `samples`: gradients of losses
    /// whose labels are sampled from the model, `A` then `B` of each block.
    ///
    /// `budget_bytes` bounds the second moments that are held at one time; a
    /// factor that is larger alone is refused.
    ///
    /// # Errors
    /// [`KroneckerError`] if there are no samples, they do not have the length
    /// of the blocks or are not finite, or a factor is over the budget.
    pub fn fit<E>(
        blocks: &[BlockShape],
        samples: &mut Samples<'_, E>,
        budget_bytes: usize,
        progress: &mut dyn FnMut(KroneckerProgress),
    ) -> Result<Self, KroneckerError<E>> {
        let shapes = factor_shapes(blocks);
        let groups = groups(&shapes, budget_bytes)?;
        let mut done = KroneckerProgress {
            passes: 0,
            passes_total: 2 * groups.len(),
        };
        let mut passed = |progress: &mut dyn FnMut(KroneckerProgress)| {
            done.passes += 1;
            progress(done);
        };
        let mut fitted = Self {
            factors: Vec::with_capacity(shapes.len()),
            eigenvalues: Vec::new(),
        };
        let dim = shapes.last().map_or(0, |shape| shape.range.end);
        for group in groups {
            let shapes = &shapes[group];
            let mut moments: Vec<[Matrix; 2]> = shapes
                .iter()
                .map(|s| [Matrix::zeros(s.m, s.m), Matrix::zeros(s.n, s.n)])
                .collect();
            visit(samples, dim, |gradient| {
                for (shape, [left, right]) in shapes.iter().zip(&mut moments) {
                    let g = shape.matrix(gradient);
                    add_product(left, 0, 0, 1.0, g.view(), g.view().t());
                    add_product(right, 0, 0, 1.0, g.view().t(), g.view());
                }
            })?;
            passed(progress);
            let first = fitted.factors.len();
            for (shape, [left, right]) in shapes.iter().zip(moments) {
                let basis = |moment| symmetric_eigen(moment).ok_or(KroneckerError::NotFinite);
                fitted.factors.push(Factor {
                    range: shape.range.clone(),
                    m: shape.m,
                    n: shape.n,
                    left: basis(left)?.1,
                    right: basis(right)?.1,
                });
            }
            let factors = &fitted.factors[first..];
            let mut squares: Vec<Vec<f64>> = shapes.iter().map(|s| vec![0.0; s.m * s.n]).collect();
            let n_samples = visit(samples, dim, |gradient| {
                for (factor, squares) in factors.iter().zip(&mut squares) {
                    let rotated = factor.rotate(&gradient[factor.range.clone()]);
                    let values = squares.iter_mut().zip(rotated.values());
                    values.for_each(|(sum, x)| *sum += x * x);
                }
            })?;
            passed(progress);
            #[expect(
                clippy::cast_possible_truncation,
                clippy::cast_precision_loss,
                reason = "a mean, kept as f32"
            )]
            let mean = |sum: f64| (sum / n_samples as f64) as f32;
            fitted
                .eigenvalues
                .extend(squares.into_iter().flatten().map(mean));
        }
        Ok(fitted)
    }

    /// Numbers of a gradient.
    #[must_use]
    pub const fn dim(&self) -> usize {
        self.eigenvalues.len()
    }

    /// The eigenvalue of every coordinate of a rotated gradient, in the unit of
    /// the samples squared.
    #[must_use]
    pub fn eigenvalues(&self) -> &[f32] {
        &self.eigenvalues
    }

    /// `1/√(eigenvalue + λ)` of every coordinate: what makes the inner product of
    /// two rotated gradients the one in the inverse of the curvature. `λ` is
    /// `damping` times the mean eigenvalue of the coordinate's factor; a factor
    /// without curvature has the weight 0.
    #[must_use]
    pub fn weights(&self, damping: f64) -> Vec<f64> {
        let mut weights = Vec::with_capacity(self.dim());
        for range in self.factors() {
            let values = &self.eigenvalues[range];
            let total: f64 = values.iter().map(|x| f64::from(*x)).sum();
            #[expect(clippy::cast_precision_loss, reason = "a factor's size")]
            let lambda = damping * (total / values.len() as f64);
            weights.extend(values.iter().map(|x| {
                let sum = f64::from(*x) + lambda;
                if sum > 0.0 { 1.0 / sum.sqrt() } else { 0.0 }
            }));
        }
        weights
    }

    /// The coordinates of each factor, in order.
    pub fn factors(&self) -> impl ExactSizeIterator<Item = Range<usize>> + '_ {
        self.factors.iter().map(|factor| factor.range.clone())
    }

    /// A gradient in the eigenbases: lengths and angles stay as they are.
    ///
    /// # Panics
    /// If it does not have [`Self::dim`] numbers; that is a bug in the caller.
    #[must_use]
    #[expect(clippy::cast_possible_truncation, reason = "gradients are f32")]
    pub fn rotate(&self, gradient: &[f32]) -> Vec<f32> {
        assert_eq!(gradient.len(), self.dim(), "a gradient of the blocks");
        let mut rotated = Vec::with_capacity(gradient.len());
        for factor in &self.factors {
            let of_factor = factor.rotate(&gradient[factor.range.clone()]);
            rotated.extend(of_factor.values().map(|x| x as f32));
        }
        rotated
    }

    /// The coordinates of one factor of many gradients in its eigenbases:
    /// `[row, coordinate]` from the rows one after the other.
    pub(crate) fn rotate_factor(&self, factor: usize, rows: &[f32]) -> Matrix {
        self.factors[factor].rotate(rows)
    }

    /// Columns given in the eigenbases of one factor, `[coordinate, column]`, as
    /// they act on gradients that are not rotated.
    pub(crate) fn unrotate_factor(&self, factor: usize, columns: &Matrix) -> Matrix {
        self.factors[factor].unrotate(columns)
    }
}

impl Factor {
    /// `U_L G U_Rᵀ` of each gradient, the bases having eigenvectors as rows:
    /// `[gradient, m · n]`.
    ///
    /// The longer side is turned for all gradients in one product; the shorter
    /// one has the rank's length.
    fn rotate(&self, gradients: &[f32]) -> Matrix {
        let (m, n) = (self.m, self.n);
        let n_gradients = gradients.len() / (m * n);
        let is_tall = m > n;
        let (short, long) = if is_tall { (n, m) } else { (m, n) };
        let (of_short, of_long) = if is_tall {
            (&self.right, &self.left)
        } else {
            (&self.left, &self.right)
        };
        // Where a short and a long coordinate meet.
        let at = |s: usize, l: usize| if is_tall { l * n + s } else { s * n + l };
        let stacked = Matrix::from_fn(n_gradients * short, long, |row, l| {
            f64::from(gradients[row / short * (m * n) + at(row % short, l)])
        });
        let turned = multiply(stacked.view(), of_long.view().t());
        let mut rotated = Matrix::zeros(n_gradients, m * n);
        for gradient in 0..n_gradients {
            let row = rotated.row_mut(gradient);
            for to in 0..short {
                for from in 0..short {
                    let factor = of_short.at(to, from);
                    let turned = turned.row(gradient * short + from);
                    for (l, x) in turned.iter().enumerate() {
                        row[at(to, l)] += factor * x;
                    }
                }
            }
        }
        rotated
    }

    /// `U_Lᵀ V U_R` of each column: `[m · n, columns]`.
    fn unrotate(&self, columns: &Matrix) -> Matrix {
        let (m, n, width) = (self.m, self.n, columns.cols());
        let half = multiply(self.left.view().t(), columns.reshaped(m, n * width).view())
            .reshaped(m * n, width);
        let mut all = Matrix::zeros(m * n, width);
        for row in 0..m {
            let part = half.part(row * n, 0, n, width);
            add_product(&mut all, row * n, 0, 1.0, self.right.view().t(), part);
        }
        all
    }
}

/// Where a factor's gradient lies and its shape.
#[derive(Debug)]
struct FactorShape {
    range: Range<usize>,
    m: usize,
    n: usize,
}

impl FactorShape {
    const fn moment_size_bytes(&self) -> usize {
        8 * (self.m * self.m + self.n * self.n)
    }

    fn matrix(&self, gradient: &[f32]) -> Matrix {
        widen(&gradient[self.range.clone()], self.m, self.n)
    }
}

fn widen(values: &[f32], m: usize, n: usize) -> Matrix {
    Matrix::from_fn(m, n, |i, j| f64::from(values[i * n + j]))
}

fn factor_shapes(blocks: &[BlockShape]) -> Vec<FactorShape> {
    let mut start = 0;
    let sides = blocks
        .iter()
        .flat_map(|block| [(block.rank, block.d_in), (block.d_out, block.rank)]);
    let shape = |(m, n)| {
        let range = start..start + m * n;
        start = range.end;
        FactorShape { range, m, n }
    };
    sides.map(shape).collect()
}

/// Consecutive factors whose moments fit the budget together.
fn groups<E>(
    shapes: &[FactorShape],
    budget_bytes: usize,
) -> Result<Vec<Range<usize>>, KroneckerError<E>> {
    let mut groups: Vec<Range<usize>> = Vec::new();
    let mut held = 0;
    for (at, shape) in shapes.iter().enumerate() {
        let size = shape.moment_size_bytes();
        if size > budget_bytes {
            return Err(KroneckerError::Budget {
                needed_bytes: size,
                budget_bytes,
            });
        }
        match groups.last_mut() {
            Some(group) if held + size <= budget_bytes => {
                group.end = at + 1;
                held += size;
            }
            _ => {
                groups.push(at..at + 1);
                held = size;
            }
        }
    }
    Ok(groups)
}

/// One pass over the samples; returns how many there were.
fn visit<E>(
    samples: &mut Samples<'_, E>,
    dim: usize,
    mut each: impl FnMut(&[f32]),
) -> Result<usize, KroneckerError<E>> {
    let mut n_samples = 0;
    let mut wrong = None;
    samples(&mut |gradient| {
        if gradient.len() == dim {
            each(gradient);
            n_samples += 1;
        } else {
            wrong = Some(gradient.len());
        }
    })
    .map_err(KroneckerError::Samples)?;
    match wrong {
        Some(found) => Err(KroneckerError::Length {
            expected: dim,
            found,
        }),
        None if n_samples == 0 => Err(KroneckerError::Empty),
        None => Ok(n_samples),
    }
}

/// Why the curvature could not be measured.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum KroneckerError<E> {
    /// The gradients could not be computed.
    #[error("{0}")]
    Samples(E),
    /// There are none.
    #[error("no gradient to measure the curvature from")]
    Empty,
    /// A gradient is not one of the adapter's.
    #[error("a gradient of {found} numbers, the adapter has {expected}")]
    Length {
        /// What the blocks have.
        expected: usize,
        /// What was given.
        found: usize,
    },
    /// A gradient is infinite or not a number.
    #[error("the gradients are not finite: the model or its input is broken")]
    NotFinite,
    /// One factor alone needs more than the budget.
    #[error(
        "one factor's second moments take {needed_bytes} bytes, the budget is {budget_bytes}; raise it"
    )]
    Budget {
        /// What the factor needs.
        needed_bytes: usize,
        /// What there is.
        budget_bytes: usize,
    },
}

#[cfg(test)]
mod tests;
