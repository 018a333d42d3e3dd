//! Products of `f64` matrices with one order of operations.
//!
//! Every element of a product is one chain of fused multiply-adds over the
//! summed index, ascending, from the value that is already there: the rule of
//! `ol_model`'s kernels. How the work is cut over blocks, vector lanes and
//! threads changes no bit, so a fit is the same on every machine.
//!
//! # Source
//! The cutting is that of Goto and van de Geijn, "Anatomy of high-performance
//! matrix multiplication", ACM TOMS 34(3), 2008.
#![cfg_attr(
    target_arch = "x86_64",
    expect(unsafe_code, reason = "vector intrinsics for detected instructions")
)]

use std::num::NonZero;

use ol_model::{Isa, Level};

use super::View;

/// Summed elements that are multiplied at a time.
const DEPTH: usize = 256;
/// Rows of the left operand that are packed at a time.
const ROWS: usize = 96;
/// Columns of the right operand that are packed at a time.
const COLS: usize = 768;
/// Below this many multiply-adds another thread costs more than it does.
const WORK_PER_THREAD: usize = 1 << 22;

/// Rows and columns of a tile, the same on every machine.
const TILE: (usize, usize) = (4, 24);

type LeftLine = [f64; TILE.0];
type RightLine = [f64; TILE.1];
type Tile = [RightLine; TILE.0];

/// `tile[i][j]` continues its chain over the lines of both panels.
fn run(isa: Isa, left: &[LeftLine], right: &[RightLine], tile: &mut Tile) {
    match isa.level() {
        Level::Scalar => {
            for (left, right) in left.iter().zip(right) {
                for (row, a) in tile.iter_mut().zip(left) {
                    for (c, b) in row.iter_mut().zip(right) {
                        *c = a.mul_add(*b, *c);
                    }
                }
            }
        }
        #[cfg(target_arch = "x86_64")]
        // SAFETY: an `Isa` exists only for instructions this CPU has.
        Level::Avx2 => unsafe { x86::run_avx2(left, right, tile) },
        #[cfg(target_arch = "x86_64")]
        // SAFETY: as above.
        Level::Avx512 => unsafe { x86::run_avx512(left, right, tile) },
    }
}

/// `into += (factor · a) · b`, with `into` the rows of `row_stride` numbers that
/// begin at its first.
pub(super) fn add(into: &mut [f64], row_stride: usize, factor: f64, a: View<'_>, b: View<'_>) {
    let threads = std::thread::available_parallelism().map_or(1, NonZero::get);
    let work = a.rows.saturating_mul(a.cols).saturating_mul(b.cols);
    let threads = threads.min(work / WORK_PER_THREAD).max(1);
    add_with(Isa::detect(), threads, into, row_stride, factor, a, b);
}

/// [`add`] on given instructions and threads.
pub(super) fn add_with(
    isa: Isa,
    n_threads: usize,
    into: &mut [f64],
    row_stride: usize,
    factor: f64,
    a: View<'_>,
    b: View<'_>,
) {
    let work = |into: &mut [f64], a: View<'_>| {
        Product {
            isa,
            row_stride,
            factor,
            b,
        }
        .add(into, a);
    };
    let rows = a.rows.div_ceil(n_threads).next_multiple_of(TILE.0);
    if rows >= a.rows {
        work(into, a);
        return;
    }
    std::thread::scope(|scope| {
        let parts = into.chunks_mut(rows * row_stride);
        for (part, start) in parts.zip((0..a.rows).step_by(rows)) {
            let left = a.rows_from(start, rows.min(a.rows - start));
            scope.spawn(move || work(part, left));
        }
    });
}

struct Product<'a> {
    isa: Isa,
    row_stride: usize,
    factor: f64,
    b: View<'a>,
}

impl Product<'_> {
    fn add(&self, into: &mut [f64], a: View<'_>) {
        let b = self.b;
        let (mut left, mut right) = (Vec::new(), Vec::new());
        for col in (0..b.cols).step_by(COLS) {
            let width = COLS.min(b.cols - col);
            for k in (0..a.cols).step_by(DEPTH) {
                let depth = DEPTH.min(a.cols - k);
                right.clear();
                pack(&mut right, width, depth, |j, t| b.at(k + t, col + j));
                for row in (0..a.rows).step_by(ROWS) {
                    let height = ROWS.min(a.rows - row);
                    left.clear();
                    pack(&mut left, height, depth, |i, t| {
                        self.factor * a.at(row + i, k + t)
                    });
                    self.add_block(
                        &mut into[row * self.row_stride + col..],
                        [height, width],
                        depth,
                        &left,
                        &right,
                    );
                }
            }
        }
    }

    /// All tiles of one packed block of each operand.
    fn add_block(
        &self,
        into: &mut [f64],
        [height, width]: [usize; 2],
        depth: usize,
        left: &[LeftLine],
        right: &[RightLine],
    ) {
        for (right, col) in right.chunks_exact(depth).zip((0..width).step_by(TILE.1)) {
            let cols = TILE.1.min(width - col);
            for (left, row) in left.chunks_exact(depth).zip((0..height).step_by(TILE.0)) {
                let rows = TILE.0.min(height - row);
                let mut tile: Tile = [[0.0; TILE.1]; TILE.0];
                let at = |i: usize| (row + i) * self.row_stride + col;
                for (i, tile) in tile[..rows].iter_mut().enumerate() {
                    tile[..cols].copy_from_slice(&into[at(i)..at(i) + cols]);
                }
                run(self.isa, left, right, &mut tile);
                for (i, tile) in tile[..rows].iter().enumerate() {
                    into[at(i)..at(i) + cols].copy_from_slice(&tile[..cols]);
                }
            }
        }
    }
}

/// Panels of `N` rows (or columns), line after line over the summed index;
/// zeros beyond the last.
fn pack<const N: usize>(
    to: &mut Vec<[f64; N]>,
    n: usize,
    depth: usize,
    at: impl Fn(usize, usize) -> f64,
) {
    for start in (0..n).step_by(N) {
        let filled = N.min(n - start);
        for t in 0..depth {
            let mut line = [0.0; N];
            for (i, x) in line[..filled].iter_mut().enumerate() {
                *x = at(start + i, t);
            }
            to.push(line);
        }
    }
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::{
        _mm256_fmadd_pd, _mm256_loadu_pd, _mm256_set1_pd, _mm256_setzero_pd, _mm256_storeu_pd,
        _mm512_fmadd_pd, _mm512_loadu_pd, _mm512_set1_pd, _mm512_setzero_pd, _mm512_storeu_pd,
    };

    use super::{LeftLine, RightLine, TILE, Tile};

    /// A tile in registers of `$lanes` numbers, `$columns` registers of columns
    /// at a time.
    macro_rules! run {
        ($name:ident, $features:literal, $lanes:literal, $columns:literal, $zero:ident, $load:ident,
         $store:ident, $set:ident, $fma:ident) => {
            #[target_feature(enable = $features)]
            pub(super) fn $name(left: &[LeftLine], right: &[RightLine], tile: &mut Tile) {
                for start in (0..TILE.1).step_by($lanes * $columns) {
                    let mut sums = [[$zero(); $columns]; TILE.0];
                    for (row, sums) in tile.iter().zip(&mut sums) {
                        for (c, sum) in sums.iter_mut().enumerate() {
                            // SAFETY: the step divides the width of a tile.
                            *sum = unsafe { $load(row.as_ptr().add(start + c * $lanes)) };
                        }
                    }
                    for (left, right) in left.iter().zip(right) {
                        let mut line = [$zero(); $columns];
                        for (c, line) in line.iter_mut().enumerate() {
                            // SAFETY: as above; a line is as wide as a tile.
                            *line = unsafe { $load(right.as_ptr().add(start + c * $lanes)) };
                        }
                        for (&a, sums) in left.iter().zip(&mut sums) {
                            let a = $set(a);
                            for (&b, sum) in line.iter().zip(sums) {
                                *sum = $fma(a, b, *sum);
                            }
                        }
                    }
                    for (row, sums) in tile.iter_mut().zip(sums) {
                        for (c, sum) in sums.into_iter().enumerate() {
                            // SAFETY: as above.
                            unsafe { $store(row.as_mut_ptr().add(start + c * $lanes), sum) };
                        }
                    }
                }
            }
        };
    }

    run!(
        run_avx2,
        "avx2,fma",
        4,
        3,
        _mm256_setzero_pd,
        _mm256_loadu_pd,
        _mm256_storeu_pd,
        _mm256_set1_pd,
        _mm256_fmadd_pd
    );
    run!(
        run_avx512,
        "avx512f",
        8,
        3,
        _mm512_setzero_pd,
        _mm512_loadu_pd,
        _mm512_storeu_pd,
        _mm512_set1_pd,
        _mm512_fmadd_pd
    );
    const _: () = assert!(TILE.1 == 8 * 3 && TILE.1.is_multiple_of(4 * 3));
}
