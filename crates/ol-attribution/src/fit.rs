//! Fitting: from the gradients of a model's records to their sketches and the
//! map for queries.
//!
//! # Method
//! The influence of record `i` on an answer with gradient `q` is
//! `qᵀ (F + λI)⁻¹ g_i` (Koh and Liang, arXiv:1703.04730; Grosse et al.,
//! arXiv:2308.03296), with `F` the true Fisher information: the mean of `f fᵀ`
//! over gradients `f` whose labels are sampled from the model itself. Write
//! `X = (F + λI)⁻¹ Gᵀ`, `[d, N]`: the scores of a query against all records are
//! `Xᵀ q`. They are kept in a learned subspace of 128 dimensions, spanned by
//! `V`, `[N, 128]`: the record's sketch is its row of `V`, the query's sketch
//! is `Vᵀ Xᵀ q`.
//!
//! `V` is chosen so that as much as possible of the *relative* scores of each
//! query is kept: every answer pays the same fee whatever the size of its
//! gradient. So it spans the largest eigenvectors of `Σ ŝ ŝᵀ`, where `ŝ` runs
//! over the rows of scores between records, each divided by its length: the
//! records stand in for the queries to come. (On the digits of the tests this
//! keeps 97 % of the uncompressed quality, principal components of the
//! whitened gradients 94 %.)
//!
//! What is paid are sums by contributor, so an error of such a sum counts, and
//! not only the errors of single records: the error is measured in the metric
//! `W = I + 1_c 1_cᵀ`, summed over contributors `c`, and the eigenvectors are
//! those of `W^½ (Σ ŝ ŝᵀ) W^½`, mapped back by `W^-½`. With fewer than 128
//! contributors their sums survive almost exactly, however many records there
//! are.
//!
//! A randomised Hadamard rotation then spreads the energy evenly over the 128
//! numbers, which makes one byte for each enough.
//!
//! # Size
//! With `S` Fisher samples and `d` larger than `S`, all is done through the
//! Gram matrices of the rows by Woodbury's identity:
//! `(F + λI)⁻¹ = (I − Φᵀ (SλI + ΦΦᵀ)⁻¹ Φ) / λ`, so nothing of size `d × d` is
//! ever built.

use ol_poa::K;

use crate::linalg::{Matrix, add_product, cholesky, cholesky_solve, multiply, top_eigen};
use crate::map::{CONTEXT_SIZE_BYTES_MAX, DIM_MAX, SketchMap, round_to_code};
use crate::random::SplitMix;
use crate::rows::Rows;

/// Most records of one fit.
pub const RECORDS_MAX: usize = ol_poa::ENTRIES_MAX;

/// Most rows that the Fisher information is made of.
pub const FISHER_ROWS_MAX: usize = 32 * ol_poa::ENTRIES_MAX;

/// Columns of the rows that are widened to `f64` at a time.
const COLUMNS_PER_BLOCK: usize = 512;

/// How to fit.
#[derive(Debug, Clone, PartialEq)]
pub struct FitOptions {
    /// `λ` as a fraction of the trace of `F`. Random reductions of the gradient
    /// keep the trace, so the number means the same for all of them.
    pub damping: f64,
    /// Seed of the rotation.
    pub seed: u64,
    /// Kept in the map as its context, at most 65,536 bytes.
    pub context: Vec<u8>,
}

/// The sketch of a record: what goes into an entry of the index.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RecordSketch {
    /// Common factor of the codes.
    pub scale: u16,
    /// Each in -127..=127.
    pub codes: [i8; K],
}

/// What a fit gives.
#[derive(Debug, Clone)]
pub struct Fit {
    /// The map for queries.
    pub map: SketchMap,
    /// The sketches of the records, in their order.
    pub records: Vec<RecordSketch>,
    /// `λ`, in the unit of the gradients squared.
    pub damping: f64,
    /// The part of the records' relative scores that the subspace keeps, between
    /// 0 and 1.
    pub energy_kept: f64,
}

/// Fits sketches of `records` and the map for queries.
///
/// # Shapes and units
/// - `records`: `[N, d]`, gradients of the records' losses.
/// - `fisher`: `[S, d]`, the rows whose mean outer product is `F`: gradients of
///   losses with labels sampled from the model.
/// - `groups`: `[N]`, the number of each record's contributor, below `N`.
///
/// # Errors
/// [`FitError`] if a size is out of range, numbers are not finite, or all
/// gradients are zero.
pub fn fit(
    records: &Rows,
    fisher: &Rows,
    groups: &[usize],
    options: &FitOptions,
) -> Result<Fit, FitError> {
    check(records, fisher, groups, options)?;
    let trace = mean_square_norm(fisher);
    let lambda = options.damping * trace;
    if !(lambda.is_finite() && lambda > 0.0) {
        return Err(FitError::Degenerate);
    }
    let system = System::new(records, fisher, lambda).ok_or(FitError::Degenerate)?;

    let (kept, energy_kept) =
        subspace(&system, &Metric::new(groups), options.seed).ok_or(FitError::Degenerate)?;
    let records = quantise_records(&kept.record_codes);
    let map = system.query_map(&kept.query_weights, options.context.clone());
    Ok(Fit {
        map,
        records,
        damping: lambda,
        energy_kept,
    })
}

fn check(
    records: &Rows,
    fisher: &Rows,
    groups: &[usize],
    options: &FitOptions,
) -> Result<(), FitError> {
    if groups.len() != records.len() || groups.iter().any(|&group| group >= records.len()) {
        return Err(FitError::Groups);
    }
    for (rows, rows_max) in [(records, RECORDS_MAX), (fisher, FISHER_ROWS_MAX)] {
        if rows.is_empty() || rows.len() > rows_max {
            return Err(FitError::Size { n_rows: rows.len() });
        }
        let is_finite = |row: &[f32]| row.iter().all(|x| x.is_finite());
        if let Some(row) = rows.iter().position(|row| !is_finite(row)) {
            return Err(FitError::NotFinite { row });
        }
    }
    let d = records.dim();
    if d != fisher.dim() || d > DIM_MAX || options.context.len() > CONTEXT_SIZE_BYTES_MAX {
        return Err(FitError::Shape {
            d,
            d_fisher: fisher.dim(),
        });
    }
    Ok(())
}

/// The trace of `F`.
fn mean_square_norm(rows: &Rows) -> f64 {
    let total: f64 = rows.iter().flatten().map(|&x| f64::from(x).powi(2)).sum();
    total / count(rows.len())
}

/// A number of rows, at most [`FISHER_ROWS_MAX`], as a factor.
fn count(n: usize) -> f64 {
    f64::from(u32::try_from(n).expect("rows are limited"))
}

/// `(F + λI)⁻¹` applied to the records, in the cheaper of two forms.
struct System<'a> {
    records: &'a Rows,
    fisher: &'a Rows,
    /// Scores between records: `G X`, `[N, N]`.
    record_scores: Matrix,
    solved: Solved,
}

enum Solved {
    /// `X`, `[d, N]`.
    Primal(Matrix),
    /// `λ` and `(SλI + ΦΦᵀ)⁻¹ Φ Gᵀ`, `[S, N]`.
    Dual(f64, Matrix),
}

impl<'a> System<'a> {
    fn new(records: &'a Rows, fisher: &'a Rows, lambda: f64) -> Option<Self> {
        if fisher.dim() <= fisher.len() {
            Self::primal(records, fisher, lambda)
        } else {
            Self::dual(records, fisher, lambda)
        }
    }

    fn primal(records: &'a Rows, fisher: &'a Rows, lambda: f64) -> Option<Self> {
        let all = |rows: &Rows| widen(rows, 0, rows.dim());
        let (g, f) = (all(records), all(fisher));
        let mut information = multiply(f.view().t(), f.view());
        information.scale(1.0 / count(fisher.len()));
        information.add_to_diagonal(lambda);
        let transposed = Matrix::from_fn(g.cols(), g.rows(), |i, j| g.at(j, i));
        let x = cholesky_solve(&cholesky(information)?, transposed);
        Some(Self {
            records,
            fisher,
            record_scores: multiply(g.view(), x.view()),
            solved: Solved::Primal(x),
        })
    }

    fn dual(records: &'a Rows, fisher: &'a Rows, lambda: f64) -> Option<Self> {
        let (n, s) = (records.len(), fisher.len());
        let mut gram = Matrix::zeros(n, n);
        let mut cross = Matrix::zeros(s, n);
        let mut inner = Matrix::zeros(s, s);
        for (start, width) in column_blocks(records.dim()) {
            let g = widen(records, start, width);
            let f = widen(fisher, start, width);
            add_product(&mut gram, 0, 0, 1.0, g.view(), g.view().t());
            add_product(&mut cross, 0, 0, 1.0, f.view(), g.view().t());
            add_product(&mut inner, 0, 0, 1.0, f.view(), f.view().t());
        }
        inner.add_to_diagonal(count(s) * lambda);
        let inverse_cross = cholesky_solve(&cholesky(inner)?, cross.clone());
        // G X = (G Gᵀ − Cᵀ M⁻¹ C) / λ
        add_product(
            &mut gram,
            0,
            0,
            -1.0,
            cross.view().t(),
            inverse_cross.view(),
        );
        gram.scale(1.0 / lambda);
        Some(Self {
            records,
            fisher,
            record_scores: gram,
            solved: Solved::Dual(lambda, inverse_cross),
        })
    }

    /// `X · weights`, rounded to a map. `weights`: `[N, 128]`.
    fn query_map(&self, weights: &Matrix, context: Vec<u8>) -> SketchMap {
        let d = self.records.dim();
        let mut p = Matrix::zeros(d, K);
        match &self.solved {
            Solved::Primal(x) => add_product(&mut p, 0, 0, 1.0, x.view(), weights.view()),
            Solved::Dual(lambda, inverse_cross) => {
                // X W = (Gᵀ W − Φᵀ (M⁻¹ C W)) / λ
                let inner = multiply(inverse_cross.view(), weights.view());
                for (start, width) in column_blocks(d) {
                    let g = widen(self.records, start, width);
                    let f = widen(self.fisher, start, width);
                    add_product(&mut p, start, 0, 1.0, g.view().t(), weights.view());
                    add_product(&mut p, start, 0, -1.0, f.view().t(), inner.view());
                }
                p.scale(1.0 / lambda);
            }
        }
        let rows = (0..d).map(|j| p.row(j).try_into().expect("P has K columns"));
        SketchMap::quantise(context, rows)
    }
}

fn column_blocks(d: usize) -> impl Iterator<Item = (usize, usize)> {
    (0..d)
        .step_by(COLUMNS_PER_BLOCK)
        .map(move |start| (start, COLUMNS_PER_BLOCK.min(d - start)))
}

fn widen(rows: &Rows, start: usize, width: usize) -> Matrix {
    Matrix::from_fn(rows.len(), width, |i, j| f64::from(rows.row(i)[start + j]))
}

/// The learned subspace, rotated.
struct Subspace {
    /// Sketches of the records before rounding: `[N, 128]`.
    record_codes: Matrix,
    /// What `X` is multiplied by for the query map: `[N, 128]`.
    query_weights: Matrix,
}

fn subspace(system: &System<'_>, metric: &Metric<'_>, seed: u64) -> Option<(Subspace, f64)> {
    let n = system.record_scores.rows();
    let mut relative = with_unit_rows(&system.record_scores)?;
    for i in 0..n {
        metric.apply_root(relative.row_mut(i), Side::Into);
    }
    let spread = multiply(relative.view().t(), relative.view());
    let total: f64 = (0..n).map(|i| spread.at(i, i)).sum();
    let (values, vectors) = top_eigen(&spread, K, seed);
    let kept: f64 = values.iter().sum();
    if !(total > 0.0 && kept.is_finite()) {
        return None;
    }

    // Balance the two sides: a direction with eigenvalue `v` gets `v^¼` on
    // the records' side and `v^-¼` on the queries', so both are rounded alike.
    let floor = values.first().copied().unwrap_or(0.0) * 1e-12;
    let mut record_codes = Matrix::zeros(n, K);
    let mut query_weights = Matrix::zeros(n, K);
    for (direction, &value) in values.iter().enumerate() {
        if value <= floor {
            break;
        }
        let balance = value.sqrt().sqrt();
        let mut weights = vectors.row(direction).to_vec();
        let mut codes = weights.clone();
        metric.apply_root(&mut weights, Side::Into);
        metric.apply_root(&mut codes, Side::Back);
        for i in 0..n {
            record_codes.row_mut(i)[direction] = codes[i] * balance;
            query_weights.row_mut(i)[direction] = weights[i] / balance;
        }
    }
    let rotation = rotation(seed);
    let subspace = Subspace {
        record_codes: multiply(record_codes.view(), rotation.view()),
        query_weights: multiply(query_weights.view(), rotation.view()),
    };
    Some((subspace, kept / total))
}

/// `W = I + Σ_c 1_c 1_cᵀ`: how much an error of the scores counts.
struct Metric<'a> {
    groups: &'a [usize],
    /// Records of each group.
    sizes: Vec<f64>,
}

/// Which root of the metric: `W^½` or `W^-½`.
#[derive(Clone, Copy)]
enum Side {
    Into,
    Back,
}

impl<'a> Metric<'a> {
    fn new(groups: &'a [usize]) -> Self {
        let mut sizes = vec![0.0; groups.iter().max().map_or(0, |&group| group + 1)];
        for &group in groups {
            sizes[group] += 1.0;
        }
        Self { groups, sizes }
    }

    /// On the records of a group of size `n`, `W` has the eigenvalue `1 + n`
    /// along the vector of ones and 1 across it: so only the mean is scaled.
    fn apply_root(&self, scores: &mut [f64], side: Side) {
        let mut means = vec![0.0; self.sizes.len()];
        for (&group, score) in self.groups.iter().zip(scores.iter()) {
            means[group] += score / self.sizes[group];
        }
        for (mean, size) in means.iter_mut().zip(&self.sizes) {
            let root = (1.0 + size).sqrt();
            *mean *= match side {
                Side::Into => root - 1.0,
                Side::Back => 1.0 / root - 1.0,
            };
        }
        for (&group, score) in self.groups.iter().zip(scores) {
            *score += means[group];
        }
    }
}

/// The rows divided by their lengths; rows of zeros stay. `None` if a number is
/// not finite.
fn with_unit_rows(scores: &Matrix) -> Option<Matrix> {
    let mut unit = scores.clone();
    for i in 0..unit.rows() {
        let row = unit.row_mut(i);
        let length = row.iter().map(|x| x * x).sum::<f64>().sqrt();
        if !length.is_finite() {
            return None;
        }
        if length > 0.0 {
            row.iter_mut().for_each(|x| *x /= length);
        }
    }
    Some(unit)
}

/// An orthogonal matrix whose entries are all `±1/√128`: Hadamard's, with the
/// signs of its rows drawn from the seed.
///
/// # Source
/// Ailon and Chazelle, "The fast Johnson–Lindenstrauss transform", SIAM J.
/// Comput. 39, 2009 (the preconditioner `HD`).
fn rotation(seed: u64) -> Matrix {
    let mut signs = SplitMix::new(!seed);
    let row_signs: [f64; K] = std::array::from_fn(|_| signs.sign());
    let length = count(K).sqrt();
    Matrix::from_fn(K, K, |i, j| {
        let sign = if (i & j).count_ones() % 2 == 0 {
            1.0
        } else {
            -1.0
        };
        row_signs[i] * sign / length
    })
}

/// Rounds the record sketches on one common unit: the largest record gets the
/// scale 65,535.
fn quantise_records(codes: &Matrix) -> Vec<RecordSketch> {
    let largest_of = |row: &[f64]| row.iter().fold(0.0_f64, |max, x| max.max(x.abs()));
    let sizes: Vec<f64> = (0..codes.rows())
        .map(|i| largest_of(codes.row(i)))
        .collect();
    let unit = largest_of(&sizes) / 127.0 / f64::from(u16::MAX);
    let quantise = |(i, size): (usize, &f64)| {
        // Rounded up, so that no code is cut at 127.
        let scale = (size / 127.0 / unit).ceil().clamp(1.0, f64::from(u16::MAX));
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "clamped to 1..=65535"
        )]
        let scale_u16 = scale as u16;
        let row: [f64; K] = codes.row(i).try_into().expect("K columns");
        RecordSketch {
            scale: scale_u16,
            codes: row.map(|x| {
                if unit == 0.0 {
                    0
                } else {
                    round_to_code(x / (scale * unit))
                }
            }),
        }
    };
    sizes.iter().enumerate().map(quantise).collect()
}

/// Why sketches could not be fitted.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum FitError {
    /// There are no rows, or too many.
    #[error("{n_rows} rows; a fit takes 1 to {RECORDS_MAX} records")]
    Size {
        /// How many there are.
        n_rows: usize,
    },
    /// The rows of records and Fisher samples differ in length, or they or the
    /// context are too long.
    #[error("records of {d} numbers, Fisher samples of {d_fisher}, or too long a context")]
    Shape {
        /// Length of a record's row.
        d: usize,
        /// Length of a Fisher sample's row.
        d_fisher: usize,
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
    /// All gradients are zero, or so large or small that the system cannot be
    /// solved.
    #[error("the gradients are degenerate: nothing can be learned from them")]
    Degenerate,
}

#[cfg(test)]
mod tests;
