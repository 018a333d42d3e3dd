//! The dense algebra that fitting needs, in `f64`, row-major.
//!
//! A fit ends in money, so all of it has one order of operations: products are
//! those of [`product`], everything else is written as loops of single IEEE
//! operations, which the compiler may vectorise but not reorder.

// The paths are spelt out because the benchmark `truth` includes this file too.
#[path = "linalg/eigen.rs"]
pub(crate) mod eigen;
#[path = "linalg/product.rs"]
mod product;

/// How much wider than asked for the block of a subspace iteration is.
const EXTRA: usize = 64;

/// A row-major matrix.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Matrix {
    rows: usize,
    cols: usize,
    data: Vec<f64>,
}

impl Matrix {
    pub(crate) fn zeros(rows: usize, cols: usize) -> Self {
        Self {
            rows,
            cols,
            data: vec![0.0; rows * cols],
        }
    }

    pub(crate) fn from_fn(rows: usize, cols: usize, at: impl Fn(usize, usize) -> f64) -> Self {
        let mut matrix = Self::zeros(rows, cols);
        for row in 0..rows {
            for col in 0..cols {
                matrix.data[row * cols + col] = at(row, col);
            }
        }
        matrix
    }

    pub(crate) const fn rows(&self) -> usize {
        self.rows
    }

    pub(crate) const fn cols(&self) -> usize {
        self.cols
    }

    pub(crate) fn at(&self, row: usize, col: usize) -> f64 {
        self.data[row * self.cols + col]
    }

    pub(crate) fn row(&self, row: usize) -> &[f64] {
        &self.data[row * self.cols..(row + 1) * self.cols]
    }

    pub(crate) fn row_mut(&mut self, row: usize) -> &mut [f64] {
        &mut self.data[row * self.cols..(row + 1) * self.cols]
    }

    /// All numbers, row by row.
    pub(crate) fn values(&self) -> impl ExactSizeIterator<Item = f64> + '_ {
        self.data.iter().copied()
    }

    /// The whole matrix as an operand of [`multiply`].
    pub(crate) fn view(&self) -> View<'_> {
        self.part(0, 0, self.rows, self.cols)
    }

    /// The same numbers, row by row, in another shape.
    pub(crate) fn reshaped(&self, rows: usize, cols: usize) -> Self {
        assert_eq!(rows * cols, self.data.len(), "as many numbers");
        Self {
            rows,
            cols,
            data: self.data.clone(),
        }
    }

    /// A rectangle of the matrix as an operand.
    pub(crate) fn part(&self, row: usize, col: usize, rows: usize, cols: usize) -> View<'_> {
        assert!(row + rows <= self.rows && col + cols <= self.cols);
        View {
            data: &self.data[(row * self.cols + col).min(self.data.len())..],
            rows,
            cols,
            row_stride: self.cols,
            col_stride: 1,
        }
    }
}

/// An operand of a product: a rectangle with strides.
#[derive(Debug, Clone, Copy)]
pub(crate) struct View<'a> {
    data: &'a [f64],
    rows: usize,
    cols: usize,
    row_stride: usize,
    col_stride: usize,
}

impl View<'_> {
    /// The same numbers, rows and columns exchanged.
    pub(crate) const fn t(self) -> Self {
        Self {
            rows: self.cols,
            cols: self.rows,
            row_stride: self.col_stride,
            col_stride: self.row_stride,
            ..self
        }
    }

    fn at(&self, row: usize, col: usize) -> f64 {
        self.data[row * self.row_stride + col * self.col_stride]
    }

    /// `rows` rows from `start` on.
    fn rows_from(self, start: usize, rows: usize) -> Self {
        Self {
            data: &self.data[start * self.row_stride..],
            rows,
            ..self
        }
    }

    /// How long `data` must be for every element to be inside.
    fn span(&self) -> usize {
        if self.rows == 0 || self.cols == 0 {
            return 0;
        }
        (self.rows - 1) * self.row_stride + (self.cols - 1) * self.col_stride + 1
    }
}

/// `a · b`.
pub(crate) fn multiply(a: View<'_>, b: View<'_>) -> Matrix {
    let mut product = Matrix::zeros(a.rows, b.cols);
    add_product(&mut product, 0, 0, 1.0, a, b);
    product
}

/// `into[row.., col..] += (factor · a) · b`.
///
/// # Panics
/// If the shapes do not fit; that is a bug in the caller.
pub(crate) fn add_product(
    into: &mut Matrix,
    row: usize,
    col: usize,
    factor: f64,
    a: View<'_>,
    b: View<'_>,
) {
    assert_eq!(a.cols, b.rows, "inner dimensions differ");
    assert!(row + a.rows <= into.rows && col + b.cols <= into.cols);
    assert!(a.span() <= a.data.len() && b.span() <= b.data.len());
    if a.rows == 0 || b.cols == 0 || a.cols == 0 {
        return;
    }
    let row_stride = into.cols;
    let into = &mut into.data[row * row_stride + col..];
    product::add(into, row_stride, factor, a, b);
}

/// `row -= factor · other`.
fn subtract(row: &mut [f64], factor: f64, other: &[f64]) {
    for (x, &y) in row.iter_mut().zip(other) {
        *x -= factor * y;
    }
}

/// A dot product in eight interleaved partial sums, which vectorises.
fn sum_of_products(a: &[f64], b: &[f64]) -> f64 {
    let mut sums = [0.0; 8];
    let (a_blocks, a_rest) = a.as_chunks::<8>();
    let (b_blocks, b_rest) = b.as_chunks::<8>();
    for (x, y) in a_blocks.iter().zip(b_blocks) {
        for lane in 0..8 {
            sums[lane] += x[lane] * y[lane];
        }
    }
    let rest: f64 = a_rest.iter().zip(b_rest).map(|(x, y)| x * y).sum();
    sums.iter().sum::<f64>() + rest
}

/// All eigenvalues, descending, and the eigenvectors as rows, of a symmetric
/// matrix. Meant for small ones: cyclic Jacobi rotations.
///
/// # Source
/// Golub and Van Loan, *Matrix Computations*, 4th ed., section 8.5.
pub(crate) fn jacobi_eigen(mut a: Matrix) -> (Vec<f64>, Matrix) {
    let n = a.rows;
    assert_eq!(n, a.cols, "a square matrix");
    let mut vectors = Matrix::from_fn(n, n, |i, j| f64::from(u8::from(i == j)));
    let total: f64 = a.data.iter().map(|x| x * x).sum();
    // Convergence is quadratic; the limit is only there to end on NaN.
    for _sweep in 0..30 {
        let off: f64 = (0..n)
            .flat_map(|i| (0..i).map(move |j| (i, j)))
            .map(|(i, j)| 2.0 * a.at(i, j) * a.at(i, j))
            .sum();
        if off <= total * 1e-26 {
            break;
        }
        for p in 0..n {
            for q in p + 1..n {
                rotate(&mut a, &mut vectors, p, q);
            }
        }
    }
    let mut order: Vec<usize> = (0..n).collect();
    order.sort_by(|&i, &j| a.at(j, j).total_cmp(&a.at(i, i)));
    let values = order.iter().map(|&i| a.at(i, i)).collect();
    let sorted = Matrix::from_fn(n, n, |i, j| vectors.at(order[i], j));
    (values, sorted)
}

/// One Jacobi rotation that makes `a[p][q]` zero.
fn rotate(a: &mut Matrix, vectors: &mut Matrix, p: usize, q: usize) {
    let n = a.rows;
    let apq = a.at(p, q);
    if apq == 0.0 {
        return;
    }
    let tau = (a.at(q, q) - a.at(p, p)) / (2.0 * apq);
    let t = tau.signum() / (tau.abs() + (1.0 + tau * tau).sqrt());
    let c = 1.0 / (1.0 + t * t).sqrt();
    let s = t * c;
    rotate_rows(a, p, q, c, s);
    rotate_rows(vectors, p, q, c, s);
    for i in 0..n {
        let row = a.row_mut(i);
        let (x, y) = (row[p], row[q]);
        row[p] = c * x - s * y;
        row[q] = s * x + c * y;
    }
}

fn rotate_rows(matrix: &mut Matrix, p: usize, q: usize, c: f64, s: f64) {
    let cols = matrix.cols;
    let (above, below) = matrix.data.split_at_mut(q * cols);
    let row_p = &mut above[p * cols..(p + 1) * cols];
    for (x, y) in row_p.iter_mut().zip(&mut below[..cols]) {
        (*x, *y) = (c * *x - s * *y, s * *x + c * *y);
    }
}

/// The largest eigenvalues (at most `count`, descending) and their vectors, as
/// rows, of a symmetric positive semidefinite matrix `A`, `[n, n]`, of which only
/// products are needed: `apply` gives `X A` for some rows `X`.
///
/// Subspace iteration with a block wider than `count`, then Rayleigh–Ritz. The
/// last vectors of a slowly falling spectrum are not exact, but the subspace
/// holds as much of the matrix as the exact one to a fraction of a percent. A
/// block as wide as the matrix needs no iteration.
///
/// # Errors
/// What `apply` fails with.
///
/// # Source
/// Halko, Martinsson, Tropp, "Finding structure with randomness",
/// arXiv:0909.4061, algorithm 4.4.
pub(crate) fn top_eigen<E>(
    n: usize,
    count: usize,
    seed: u64,
    n_iterations: usize,
    apply: &mut dyn FnMut(&Matrix) -> Result<Matrix, E>,
) -> Result<(Vec<f64>, Matrix), E> {
    let count = count.min(n);
    let width = (count + EXTRA).min(n);
    let mut signs = crate::random::SplitMix::new(seed);
    let mut basis = Matrix::zeros(width, n);
    basis.data.iter_mut().for_each(|x| *x = signs.sign());
    orthonormalise(&mut basis, &mut signs);
    if width < n {
        for _ in 0..n_iterations {
            basis = apply(&basis)?;
            orthonormalise(&mut basis, &mut signs);
        }
    }
    let image = apply(&basis)?;
    let small = multiply(image.view(), basis.view().t());
    let symmetric = Matrix::from_fn(width, width, |i, j| 0.5 * (small.at(i, j) + small.at(j, i)));
    let (mut values, ritz) = jacobi_eigen(symmetric);
    values.truncate(count);
    let vectors = multiply(ritz.part(0, 0, count, width), basis.view());
    Ok((values, vectors))
}

/// Makes the rows orthonormal by Gram–Schmidt, twice each ("twice is enough");
/// a row that lies in the span of those before it is replaced by a random one.
fn orthonormalise(basis: &mut Matrix, signs: &mut crate::random::SplitMix) {
    let (rows, cols) = (basis.rows, basis.cols);
    for i in 0..rows {
        let (done, rest) = basis.data.split_at_mut(i * cols);
        let row = &mut rest[..cols];
        loop {
            let before = sum_of_products(row, row).sqrt();
            for _ in 0..2 {
                for other in done.chunks_exact(cols) {
                    let along = sum_of_products(row, other);
                    subtract(row, along, other);
                }
            }
            let norm = sum_of_products(row, row).sqrt();
            if norm > before * 1e-10 && norm > f64::MIN_POSITIVE {
                row.iter_mut().for_each(|x| *x /= norm);
                break;
            }
            row.iter_mut().for_each(|x| *x = signs.sign());
        }
    }
}

#[cfg(test)]
pub(crate) mod testing {
    //! What the tests beside this module see of it.
    use super::{Matrix, product};

    /// `a · b` on every kind of instructions and one to three threads.
    pub(crate) fn products(a: &Matrix, b: &Matrix) -> Vec<Matrix> {
        let mut all = Vec::new();
        for isa in ol_model::Isa::available() {
            for n_threads in 1..=3 {
                let mut into = Matrix::zeros(a.rows, b.cols);
                let (row_stride, a, b) = (into.cols, a.view(), b.view());
                product::add_with(isa, n_threads, &mut into.data, row_stride, 1.0, a, b);
                all.push(into);
            }
        }
        all
    }
}
