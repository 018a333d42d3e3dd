//! Fitting: from the gradients of a model's records to the map that sketches
//! records and answers.
//!
//! # Method
//! The influence of record `i` on an answer with gradient `q` is
//! `qᵀ (F + λ)⁻¹ g_i` (Koh and Liang, arXiv:1703.04730; Grosse et al.,
//! arXiv:2308.03296), with `F` the true Fisher information: the mean of `f fᵀ`
//! over gradients `f` whose labels are sampled from the model itself, here in
//! Kronecker eigenbases with corrected eigenvalues
//! ([`Kronecker`](crate::kronecker::Kronecker)). With `a = (F + λ)^-½ g`, the
//! whitened gradient, it is the inner product of two whitened gradients. They
//! are kept in a learned subspace of 256 dimensions with the orthonormal basis
//! `V`: `sketch(g) = Vᵀ (F + λ)^-½ g`, the same for records and answers.
//!
//! `V` spans the principal directions of two kinds of rows: the whitened records,
//! each divided by its length, because every answer pays the same fee whatever
//! the size of its gradient, and the records stand in for the answers to come;
//! and the sums of each contributor's whitened records, because what is paid are
//! sums by contributor, so an error of such a sum counts, and not only errors of
//! single records. A sum counts as much as the records it is of.
//!
//! A randomised Hadamard rotation then spreads the energy evenly over the 256
//! numbers, which makes four bits for each enough.
//!
//! # Memory
//! Gradients are read in pieces from a [`RowSource`] and never held whole: the
//! principal directions come from a subspace iteration (a randomised singular
//! value decomposition) that goes over all rows once for each of its steps, one
//! factor of the adapter at a time, and within it as many rows as a budget
//! allows. How large the pieces are changes no bit, because every sum is one
//! chain over rows or columns, ascending.

use std::ops::Range;

use ol_poa::K;

use crate::kronecker::Kronecker;
use crate::linalg::{Matrix, add_product, multiply, top_eigen};
use crate::map::{
    CONTEXT_SIZE_BYTES_MAX, DIM_MAX, Projection, RecordSketch, SketchError, SketchMap,
};
use crate::random::SplitMix;
use crate::rows::RowSource;

/// Most records of one fit.
pub const RECORDS_MAX: usize = ol_poa::ENTRIES_MAX;

/// Steps of the subspace iteration.
const ITERATIONS: usize = 4;

/// How to fit.
#[derive(Debug, Clone, PartialEq)]
pub struct FitOptions {
    /// `λ` of each factor over the mean eigenvalue of its curvature.
    pub damping: f64,
    /// Seed of the subspace iteration and the rotation.
    pub seed: u64,
    /// Kept in the map as its context, at most 65,536 bytes.
    pub context: Vec<u8>,
    /// Memory for gradients that are held at one time. At least one record's
    /// largest factor is.
    pub budget_bytes: usize,
}

/// What a fit gives.
#[derive(Debug, Clone)]
pub struct Fit {
    /// The map for records and answers.
    pub map: SketchMap,
    /// The sketches of the records, in their order.
    pub records: Vec<RecordSketch>,
    /// The part of the rows' squared lengths that the subspace keeps, between 0
    /// and 1.
    pub energy_kept: f64,
}

/// How far a fit is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FitProgress {
    /// Passes over the records that are done.
    pub passes: usize,
    /// Passes in all.
    pub passes_total: usize,
}

/// Fits the map, and sketches the records with it.
///
/// # Shapes and units
/// - `records`: `[N, d]`, gradients of the records' losses, of the shapes that
///   `curvature` was measured for.
/// - `groups`: `[N]`, the number of each record's contributor, below `N`.
///
/// # Errors
/// [`FitError`] if a size is out of range, numbers are not finite, all gradients
/// are zero, or they cannot be read.
pub fn fit(
    curvature: &Kronecker,
    records: &mut dyn RowSource,
    groups: &[usize],
    options: &FitOptions,
    progress: &mut dyn FnMut(FitProgress),
) -> Result<Fit, FitError> {
    check(curvature, records, groups, options)?;
    let mut done = FitProgress {
        passes: 0,
        // Lengths, the iteration and its last product, the map, the sketches.
        passes_total: ITERATIONS + 4,
    };
    let mut passed = || {
        done.passes += 1;
        progress(done);
    };
    let mut whitened = Whitened {
        weights: curvature.weights(options.damping),
        ranges: curvature.factors().collect(),
        curvature,
        records,
        budget_bytes: options.budget_bytes,
    };
    let rows = whitened.weights_of(groups)?;
    passed();

    let (values, vectors) = top_eigen(
        rows.len(),
        K,
        options.seed,
        ITERATIONS,
        &mut |basis: &Matrix| {
            let image = whitened.multiply(&rows.to_records(basis))?;
            passed();
            Ok::<_, FitError>(rows.weigh(&image))
        },
    )?;
    let kept: f64 = values.iter().sum();
    if !(kept.is_finite() && kept > 0.0) {
        return Err(FitError::Degenerate);
    }
    // The basis is `Aᵀ Tᵀ u / σ`, with `u` the eigenvectors of `T A Aᵀ Tᵀ`.
    let floor = values.first().copied().unwrap_or(0.0) * 1e-12;
    let mut directions = Matrix::zeros(K, rows.len());
    for (direction, &value) in values.iter().enumerate().filter(|(_, v)| **v > floor) {
        let to = directions.row_mut(direction).iter_mut();
        let root = value.sqrt();
        to.zip(vectors.row(direction))
            .for_each(|(to, x)| *to = x / root);
    }
    let directions = rows.to_records(&directions);
    let rotated = multiply(directions.view(), rotation(options.seed).view());
    let mut map = whitened.map(&rotated, options.context.clone())?;
    passed();

    let projections = project(&map, whitened.records)?;
    passed();
    map.fit_unit(projections.iter());
    Ok(Fit {
        records: projections.iter().map(|p| map.round_record(p)).collect(),
        map,
        energy_kept: kept / rows.energy,
    })
}

fn check(
    curvature: &Kronecker,
    records: &dyn RowSource,
    groups: &[usize],
    options: &FitOptions,
) -> Result<(), FitError> {
    let n_rows = records.n_rows();
    if n_rows == 0 || n_rows > RECORDS_MAX {
        return Err(FitError::Size { n_rows });
    }
    if groups.len() != n_rows || groups.iter().any(|&group| group >= n_rows) {
        return Err(FitError::Groups);
    }
    let d = records.n_columns();
    if d != curvature.dim() || d > DIM_MAX || options.context.len() > CONTEXT_SIZE_BYTES_MAX {
        return Err(FitError::Shape {
            d,
            d_curvature: curvature.dim(),
        });
    }
    Ok(())
}

/// Every record through the map.
fn project(map: &SketchMap, records: &mut dyn RowSource) -> Result<Vec<Projection>, FitError> {
    let (n_rows, mut gradient) = (records.n_rows(), vec![0.0; records.n_columns()]);
    let mut each = |row| {
        records.read(row, 0, &mut gradient)?;
        map.project(&gradient).map_err(|error| match error {
            SketchError::NotFinite { .. } => FitError::NotFinite { row },
            SketchError::Length { .. } => FitError::Degenerate,
        })
    };
    (0..n_rows).map(&mut each).collect()
}

/// The records in the metric of the curvature: `A`, `[N, d]`.
struct Whitened<'a> {
    curvature: &'a Kronecker,
    ranges: Vec<Range<usize>>,
    weights: Vec<f64>,
    records: &'a mut dyn RowSource,
    budget_bytes: usize,
}

impl Whitened<'_> {
    fn n_rows(&self) -> usize {
        self.records.n_rows()
    }

    /// The rows that are held at one time of a factor, one block after another.
    fn blocks(&self, factor: usize) -> impl ExactSizeIterator<Item = Range<usize>> + use<> {
        // As read, in f64, turned on one side, and turned on both.
        let row_size_bytes = self.ranges[factor].len() * (4 + 3 * 8);
        let n_rows = self.n_rows();
        let height = (self.budget_bytes / row_size_bytes).clamp(1, n_rows);
        (0..n_rows)
            .step_by(height)
            .map(move |start| start..(start + height).min(n_rows))
    }

    /// The columns of a factor of some rows.
    fn load(&mut self, factor: usize, rows: Range<usize>) -> Result<Matrix, FitError> {
        let range = self.ranges[factor].clone();
        let mut gradients = vec![0.0_f32; rows.len() * range.len()];
        for (row, gradient) in rows.clone().zip(gradients.chunks_exact_mut(range.len())) {
            self.records.read(row, range.start, gradient)?;
            if !gradient.iter().all(|x| x.is_finite()) {
                return Err(FitError::NotFinite { row });
            }
        }
        let mut whitened = self.curvature.rotate_factor(factor, &gradients);
        for row in 0..rows.len() {
            let weights = &self.weights[range.clone()];
            let pairs = whitened.row_mut(row).iter_mut().zip(weights);
            pairs.for_each(|(x, weight)| *x *= weight);
        }
        Ok(whitened)
    }

    /// How much each record and each contributor's sum counts.
    fn weights_of<'g>(&mut self, groups: &'g [usize]) -> Result<Weighted<'g>, FitError> {
        let n_groups = groups.iter().max().map_or(0, |&group| group + 1);
        let (mut of_records, mut of_groups) = (vec![0.0; self.n_rows()], vec![0.0; n_groups]);
        let square = |row: &[f64]| row.iter().map(|x| x * x).sum::<f64>();
        for factor in 0..self.ranges.len() {
            let mut sums = Matrix::zeros(n_groups, self.ranges[factor].len());
            for rows in self.blocks(factor) {
                let block = self.load(factor, rows.clone())?;
                for (at, row) in rows.enumerate() {
                    of_records[row] += square(block.row(at));
                    let sum = sums.row_mut(groups[row]).iter_mut();
                    sum.zip(block.row(at)).for_each(|(sum, x)| *sum += x);
                }
            }
            for (group, total) in of_groups.iter_mut().enumerate() {
                *total += square(sums.row(group));
            }
        }
        let mut sizes = vec![0.0; n_groups];
        groups.iter().for_each(|&group| sizes[group] += 1.0);
        let weight = |square: &f64, size: f64| {
            if *square > 0.0 {
                (size / square).sqrt()
            } else {
                0.0
            }
        };
        let records: Vec<f64> = of_records
            .iter()
            .map(|square| weight(square, 1.0))
            .collect();
        let sums: Vec<f64> = of_groups
            .iter()
            .zip(&sizes)
            .map(|(square, &size)| weight(square, size))
            .collect();
        let is_used = |weights: &[f64]| weights.iter().any(|weight| *weight > 0.0);
        if !(records.iter().chain(&sums).all(|weight| weight.is_finite()) && is_used(&records)) {
            return Err(FitError::Degenerate);
        }
        // Every row has been given the length of its weight.
        let used = records.iter().filter(|weight| **weight > 0.0).map(|_| 1.0);
        let of_sums = sums.iter().zip(&sizes).filter(|(weight, _)| **weight > 0.0);
        let energy = used.chain(of_sums.map(|(_, size)| *size)).sum();
        Ok(Weighted {
            groups,
            records,
            sums,
            energy,
        })
    }

    /// `A Aᵀ X`.
    fn multiply(&mut self, x: &Matrix) -> Result<Matrix, FitError> {
        let mut product = Matrix::zeros(self.n_rows(), x.cols());
        for factor in 0..self.ranges.len() {
            let blocks = self.blocks(factor);
            let is_whole = blocks.len() == 1;
            let mut across = Matrix::zeros(self.ranges[factor].len(), x.cols());
            let mut kept = None;
            for rows in blocks {
                let block = self.load(factor, rows.clone())?;
                let of_rows = x.part(rows.start, 0, rows.len(), x.cols());
                add_product(&mut across, 0, 0, 1.0, block.view().t(), of_rows);
                kept = is_whole.then_some(block);
            }
            for rows in self.blocks(factor) {
                let block = match kept.take() {
                    Some(block) => block,
                    None => self.load(factor, rows.clone())?,
                };
                add_product(
                    &mut product,
                    rows.start,
                    0,
                    1.0,
                    block.view(),
                    across.view(),
                );
            }
        }
        Ok(product)
    }

    /// `(F + λ)^-½ Aᵀ X`, in the coordinates of gradients, as a map.
    fn map(&mut self, x: &Matrix, context: Vec<u8>) -> Result<SketchMap, FitError> {
        let mut map = SketchMap::new(context, self.curvature.dim());
        for factor in 0..self.ranges.len() {
            let range = self.ranges[factor].clone();
            let mut basis = Matrix::zeros(range.len(), K);
            for rows in self.blocks(factor) {
                let block = self.load(factor, rows.clone())?;
                let of_rows = x.part(rows.start, 0, rows.len(), K);
                add_product(&mut basis, 0, 0, 1.0, block.view().t(), of_rows);
            }
            for (at, weight) in self.weights[range].iter().enumerate() {
                basis.row_mut(at).iter_mut().for_each(|x| *x *= weight);
            }
            let basis = self.curvature.unrotate_factor(factor, &basis);
            for at in 0..basis.rows() {
                map.push(basis.row(at).try_into().expect("a basis of K columns"));
            }
        }
        Ok(map)
    }
}

/// The rows whose principal directions are kept: `T A`, with `T` the records
/// and the contributors' sums, each times its weight.
struct Weighted<'a> {
    groups: &'a [usize],
    records: Vec<f64>,
    sums: Vec<f64>,
    /// The sum of the rows' squared lengths.
    energy: f64,
}

impl Weighted<'_> {
    fn len(&self) -> usize {
        self.records.len() + self.sums.len()
    }

    /// `Tᵀ Xᵀ` of rows `X`, `[width, len]`: `[N, width]`.
    fn to_records(&self, x: &Matrix) -> Matrix {
        let n = self.records.len();
        Matrix::from_fn(n, x.rows(), |record, row| {
            let group = self.groups[record];
            self.records[record] * x.at(row, record) + self.sums[group] * x.at(row, n + group)
        })
    }

    /// `(T Y)ᵀ` of `Y`, `[N, width]`: `[width, len]`.
    fn weigh(&self, y: &Matrix) -> Matrix {
        let n = self.records.len();
        let mut x = Matrix::zeros(y.cols(), self.len());
        for row in 0..y.cols() {
            let to = x.row_mut(row);
            for (record, &group) in self.groups.iter().enumerate() {
                let value = y.at(record, row);
                to[record] = self.records[record] * value;
                to[n + group] += self.sums[group] * value;
            }
        }
        x
    }
}

/// An orthogonal matrix whose entries are all `±1/16`: Hadamard's, with the
/// signs of its rows drawn from the seed.
///
/// # Source
/// Ailon and Chazelle, "The fast Johnson–Lindenstrauss transform", SIAM J.
/// Comput. 39, 2009 (the preconditioner `HD`).
fn rotation(seed: u64) -> Matrix {
    let mut signs = SplitMix::new(!seed);
    let row_signs: [f64; K] = std::array::from_fn(|_| signs.sign());
    Matrix::from_fn(K, K, |i, j| {
        let sign = if (i & j).count_ones() % 2 == 0 {
            1.0
        } else {
            -1.0
        };
        row_signs[i] * sign / 16.0
    })
}

/// Why sketches could not be fitted.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FitError {
    /// There are no rows, or too many.
    #[error("{n_rows} rows; a fit takes 1 to {RECORDS_MAX} records")]
    Size {
        /// How many there are.
        n_rows: usize,
    },
    /// The rows are not of the curvature's length, or they or the context are
    /// too long.
    #[error("records of {d} numbers, a curvature of {d_curvature}, or too long a context")]
    Shape {
        /// Length of a record's row.
        d: usize,
        /// What the curvature is of.
        d_curvature: usize,
    },
    /// There is not one group for each record, or its number is too high.
    #[error("every record needs a group, numbered below the number of records")]
    Groups,
    /// A gradient is infinite or not a number: the model or its input is broken.
    #[error("row {row} has a number that is not finite")]
    NotFinite {
        /// The first such row.
        row: usize,
    },
    /// All gradients are zero, or so large or small that nothing can be told
    /// from them.
    #[error("the gradients are degenerate: nothing can be learned from them")]
    Degenerate,
    /// The gradients could not be read.
    #[error("gradients could not be read: {0}")]
    Read(#[from] std::io::Error),
}

#[cfg(test)]
mod tests;
