//! One family of matrix products: `C (+)= A B` with `A` of any strides and `B`
//! in panels of sixteen columns.
#![expect(unsafe_code, reason = "vector intrinsics and disjoint output tiles")]

mod panels;
#[cfg(target_arch = "x86_64")]
mod x86;

use std::cell::RefCell;
use std::marker::PhantomData;
use std::ops::Range;
use std::sync::Arc;

use crate::cache::Page;
use crate::isa::{Isa, Level};
use crate::pool::Pool;

use panels::Lines;
pub(crate) use panels::{Panels, PanelsRef};

/// Columns of a panel: one AVX-512 register, two AVX2 registers.
pub(crate) const PANEL: usize = 16;

/// Depth of a block: a row block of it stays in the first-level cache, a panel
/// group in the second-level one.
const DEPTH: usize = 512;

/// Rows of a block: with `DEPTH` they stay in the second-level cache.
const ROWS: usize = 144;

/// Products of at most this many rows read B once, from memory, in one stream.
const SKINNY: usize = 16;

/// Depth of a block of those.
const SKINNY_DEPTH: usize = 2048;

/// From this many columns and rows on it pays to lay the rows of A side by
/// side: as they lie, they may all fall on one set of the cache.
const PACK_COLUMNS: usize = 8 * PANEL;
const PACK_ROWS: usize = 5;

/// Products smaller than this many multiply-adds are not worth a fork.
const FORK_WORK: usize = 1 << 16;

/// One row of a panel, aligned to a cache line.
#[derive(Debug, Clone, Copy, PartialEq)]
#[repr(C, align(64))]
pub(crate) struct Line(pub(crate) [f32; PANEL]);

impl Line {
    pub(crate) const ZERO: Self = Self([0.0; PANEL]);
}

/// A read-only matrix with any strides.
#[derive(Clone, Copy)]
pub(crate) struct Mat<'a> {
    pub(super) data: &'a [f32],
    pub(super) rows: usize,
    pub(super) cols: usize,
    pub(super) row_stride: usize,
    pub(super) col_stride: usize,
}

impl<'a> Mat<'a> {
    /// A row-major matrix without gaps.
    pub(crate) fn new(data: &'a [f32], rows: usize, cols: usize) -> Self {
        Self::strided(data, rows, cols, cols)
    }

    /// A row-major matrix whose rows start `row_stride` apart.
    pub(crate) fn strided(data: &'a [f32], rows: usize, cols: usize, row_stride: usize) -> Self {
        if rows > 0 && cols > 0 {
            assert!(
                (rows - 1) * row_stride + cols <= data.len(),
                "matrix outside its slice"
            );
        }
        Self {
            data,
            rows,
            cols,
            row_stride,
            col_stride: 1,
        }
    }

    /// The transposed view.
    pub(crate) fn t(self) -> Self {
        Self {
            data: self.data,
            rows: self.cols,
            cols: self.rows,
            row_stride: self.col_stride,
            col_stride: self.row_stride,
        }
    }

    /// Rows `range`.
    pub(crate) fn rows(self, range: &Range<usize>) -> Self {
        assert!(
            range.start <= range.end && range.end <= self.rows,
            "rows outside the matrix"
        );
        let data = &self.data[(range.start * self.row_stride).min(self.data.len())..];
        Self {
            data,
            rows: range.len(),
            ..self
        }
    }

    /// Columns `range`.
    pub(crate) fn columns(self, range: &Range<usize>) -> Self {
        assert!(
            range.start <= range.end && range.end <= self.cols,
            "columns outside the matrix"
        );
        let data = &self.data[(range.start * self.col_stride).min(self.data.len())..];
        Self {
            data,
            cols: range.len(),
            ..self
        }
    }

    pub(crate) fn n_rows(&self) -> usize {
        self.rows
    }

    pub(crate) fn at(&self, row: usize, col: usize) -> f32 {
        self.data[row * self.row_stride + col * self.col_stride]
    }
}

/// A writable row-major matrix whose rows start `row_stride` apart; what lies
/// between the rows is not touched.
pub(crate) struct MatMut<'a> {
    pub(super) data: *mut f32,
    pub(super) rows: usize,
    pub(super) cols: usize,
    pub(super) row_stride: usize,
    life: PhantomData<&'a mut [f32]>,
}

impl<'a> MatMut<'a> {
    pub(crate) fn new(data: &'a mut [f32], rows: usize, cols: usize) -> Self {
        Output::new(data, cols).tile(0..rows, 0..cols)
    }

    /// Rows `range` of the matrix.
    pub(crate) fn rows(&mut self, range: Range<usize>) -> MatMut<'_> {
        assert!(
            range.start <= range.end && range.end <= self.rows,
            "rows outside the matrix"
        );
        // SAFETY: the first row is inside the matrix, or the view is empty.
        let data = unsafe {
            self.data.add(if range.is_empty() {
                0
            } else {
                range.start * self.row_stride
            })
        };
        MatMut {
            data,
            rows: range.len(),
            ..*self
        }
    }

    /// One row.
    pub(crate) fn row(&mut self, i: usize) -> &mut [f32] {
        assert!(i < self.rows, "row outside the matrix");
        // SAFETY: the constructor checked that every row lies in the buffer.
        unsafe { std::slice::from_raw_parts_mut(self.data.add(i * self.row_stride), self.cols) }
    }
}

/// A row-major buffer whose tiles are written by different tasks.
#[derive(Clone, Copy)]
pub(crate) struct Output<'a> {
    start: *mut f32,
    len: usize,
    width: usize,
    life: PhantomData<&'a mut [f32]>,
}

// SAFETY: tiles are only lent to the task they belong to, see `tile`.
unsafe impl Send for Output<'_> {}
// SAFETY: as above.
unsafe impl Sync for Output<'_> {}

impl<'a> Output<'a> {
    /// A buffer with rows of `width`.
    pub(crate) fn new(data: &'a mut [f32], width: usize) -> Self {
        Self {
            start: data.as_mut_ptr(),
            len: data.len(),
            width,
            life: PhantomData,
        }
    }

    /// The `rows x cols` matrix without gaps whose first element is `first`.
    /// Internal contract: as for [`Self::tile`].
    pub(crate) fn dense(&self, first: usize, rows: usize, cols: usize) -> MatMut<'a> {
        assert!(
            first <= self.len && rows * cols <= self.len - first,
            "matrix outside its buffer"
        );
        MatMut {
            // SAFETY: in bounds by the assertion.
            data: unsafe { self.start.add(first) },
            rows,
            cols,
            row_stride: cols,
            life: PhantomData,
        }
    }

    /// The tile `rows x columns`. Internal contract: tiles in use at the same
    /// time do not overlap, because each belongs to one task.
    pub(crate) fn tile(&self, rows: Range<usize>, columns: Range<usize>) -> MatMut<'a> {
        assert!(
            rows.start <= rows.end && columns.start <= columns.end && columns.end <= self.width,
            "no such tile"
        );
        assert!(rows.end * self.width <= self.len, "tile outside its buffer");
        let first = if rows.is_empty() || columns.is_empty() {
            0
        } else {
            rows.start * self.width + columns.start
        };
        // SAFETY: in bounds by the assertions.
        let data = unsafe { self.start.add(first) };
        MatMut {
            data,
            rows: rows.len(),
            cols: columns.len(),
            row_stride: self.width,
            life: PhantomData,
        }
    }
}

/// [`Lines`] without their bounds.
#[derive(Clone, Copy)]
enum Address {
    Strided { first: *const f32, panel: usize },
    KeyPages { pages: *const Arc<Page>, at: usize },
    ValuePages { pages: *const Arc<Page>, at: usize },
}

impl Address {
    fn new(lines: Lines<'_>) -> Self {
        match lines {
            Lines::Strided { lines, stride } => Self::Strided {
                first: lines.as_ptr().cast(),
                panel: stride * PANEL,
            },
            Lines::KeyPages { pages, at } => Self::KeyPages {
                pages: pages.as_ptr(),
                at,
            },
            Lines::ValuePages { pages, at } => Self::ValuePages {
                pages: pages.as_ptr(),
                at,
            },
        }
    }

    /// Rows that lie one after the other, from a multiple of this on.
    fn run(self) -> usize {
        match self {
            Self::Strided { .. } | Self::KeyPages { .. } => usize::MAX,
            Self::ValuePages { .. } => PANEL,
        }
    }

    /// The matrix from `panel` and `row` (a multiple of sixteen) on.
    ///
    /// # Safety
    /// They exist.
    unsafe fn skip(self, panel: usize, row: usize) -> Self {
        match self {
            Self::Strided {
                first,
                panel: stride,
            } => Self::Strided {
                // SAFETY: by the caller's promise.
                first: unsafe { first.add(panel * stride + row * PANEL) },
                panel: stride,
            },
            Self::KeyPages { pages, at } => Self::KeyPages {
                // SAFETY: as above.
                pages: unsafe { pages.add(panel) },
                at: at + row,
            },
            Self::ValuePages { pages, at } => Self::ValuePages {
                // SAFETY: as above.
                pages: unsafe { pages.add(row / PANEL) },
                at: at + panel * PANEL,
            },
        }
    }

    /// Row `row` (a multiple of [`Address::run`], or 0) of a panel.
    ///
    /// # Safety
    /// They exist.
    #[inline(always)]
    unsafe fn line(self, panel: usize, row: usize) -> *const f32 {
        match self {
            Self::Strided {
                first,
                panel: stride,
            } => {
                // SAFETY: by the caller's promise.
                unsafe { first.add(panel * stride + row * PANEL) }
            }
            Self::KeyPages { pages, at } => {
                // SAFETY: as above; the pages are borrowed while the view lives.
                let lines = unsafe { &*pages.add(panel) }.lines().as_ptr();
                // SAFETY: the constructor of the view checked every page.
                unsafe { lines.add(at + row) }.cast()
            }
            Self::ValuePages { pages, at } => {
                // SAFETY: as above.
                let lines = unsafe { &*pages.add(row / PANEL) }.lines().as_ptr();
                // SAFETY: as above.
                unsafe { lines.add(at + panel * PANEL) }.cast()
            }
        }
    }
}

/// Pointers and sizes of one product; what the unsafe part works on.
#[derive(Clone, Copy)]
struct Tile {
    m: usize,
    n: usize,
    k: usize,
    a: *const f32,
    a_row: usize,
    a_col: usize,
    b: Address,
    c: *mut f32,
    c_row: usize,
    accumulate: bool,
}

// SAFETY: a tile is sent to a task together with the promise that it alone
// writes this part of C; A and B are only read.
unsafe impl Send for Tile {}
// SAFETY: as above.
unsafe impl Sync for Tile {}

impl Tile {
    /// At most `rows` rows from `row` and `cols` panels from `panel`.
    ///
    /// # Safety
    /// `row` and `panel` exist.
    unsafe fn part(&self, row: usize, rows: usize, panel: usize, cols: usize) -> Self {
        Self {
            m: rows.min(self.m - row),
            n: (cols * PANEL).min(self.n - panel * PANEL),
            // SAFETY: by the caller's promise this stays inside A.
            a: unsafe { self.a.add(row * self.a_row) },
            // SAFETY: as above, inside B.
            b: unsafe { self.b.skip(panel, 0) },
            // SAFETY: as above, inside C.
            c: unsafe { self.c.add(row * self.c_row + panel * PANEL) },
            ..*self
        }
    }
}

fn tile(a: Mat<'_>, b: PanelsRef<'_>, c: &MatMut<'_>, accumulate: bool) -> Tile {
    assert!(
        a.rows == c.rows && a.cols == b.k && b.n == c.cols,
        "shapes of a product do not fit"
    );
    Tile {
        m: a.rows,
        n: b.n,
        k: b.k,
        a: a.data.as_ptr(),
        a_row: a.row_stride,
        a_col: a.col_stride,
        b: Address::new(b.lines),
        c: c.data,
        c_row: c.row_stride,
        accumulate,
    }
}

/// `C = A B`, or `C += A B`, on the calling thread.
pub(crate) fn matmul_here(isa: Isa, a: Mat<'_>, b: PanelsRef<'_>, c: MatMut<'_>, accumulate: bool) {
    let t = tile(a, b, &c, accumulate);
    // SAFETY: the constructors of the three views checked their bounds and
    // `tile` that the shapes fit; C is borrowed mutably.
    unsafe { block(isa, t) }
}

/// `C = A B`, or `C += A B`, split over the pool.
pub(crate) fn matmul(pool: &Pool, a: Mat<'_>, b: PanelsRef<'_>, c: MatMut<'_>, accumulate: bool) {
    let mut products = Products::default();
    products.add(pool, a, b, c, accumulate);
    products.run(pool);
}

/// A product and how it is split.
struct Split {
    tile: Tile,
    /// Rows and panels of a task.
    rows: usize,
    panels: usize,
    /// Tasks side by side.
    across: usize,
    /// Tasks of this and the products before.
    end: usize,
}

/// Products that run together: one fork for all, and no thread is idle at the
/// end of each.
#[derive(Default)]
pub(crate) struct Products<'a> {
    all: Vec<Split>,
    life: PhantomData<&'a mut [f32]>,
}

impl<'a> Products<'a> {
    /// Adds `C = A B`, or `C += A B`.
    pub(crate) fn add(
        &mut self,
        pool: &Pool,
        a: Mat<'a>,
        b: PanelsRef<'a>,
        c: MatMut<'a>,
        accumulate: bool,
    ) {
        let t = tile(a, b, &c, accumulate);
        let panels = t.n.div_ceil(PANEL);
        let threads = pool.threads();
        let work = t.m.saturating_mul(t.n).saturating_mul(t.k);
        let (rows, cols) = if threads == 1 || work < FORK_WORK {
            (t.m.max(1), panels.max(1))
        } else {
            // A few tasks a thread, so that a core which is busy elsewhere
            // does less.
            let wanted = (threads * 4).min(work / (FORK_WORK / 2));
            let row_parts = t.m.div_ceil(ROWS / 2).clamp(1, wanted);
            let col_parts = panels.div_ceil(4).clamp(1, wanted.div_ceil(row_parts));
            let rows = t.m.div_ceil(row_parts).next_multiple_of(12);
            (rows, panels.div_ceil(col_parts))
        };
        let across = panels.div_ceil(cols);
        let before = self.all.last().map_or(0, |s| s.end);
        self.all.push(Split {
            tile: t,
            rows,
            panels: cols,
            across,
            end: before + t.m.div_ceil(rows) * across,
        });
    }

    /// Runs all of them.
    pub(crate) fn run(&self, pool: &Pool) {
        let tasks = self.all.last().map_or(0, |s| s.end);
        pool.run(tasks, &|task| {
            let at = self.all.partition_point(|s| s.end <= task);
            let before = at.checked_sub(1).map_or(0, |at| self.all[at].end);
            let (s, task) = (&self.all[at], task - before);
            let (row, panel) = (task / s.across * s.rows, task % s.across * s.panels);
            // SAFETY: the constructors of the three views checked their bounds
            // and `tile` that the shapes fit; row < m and panel < panels, by
            // the divisions in `add`.
            let part = unsafe { s.tile.part(row, s.rows, panel, s.panels) };
            // SAFETY: parts cover disjoint rows and columns of C, which is
            // borrowed mutably for 'a.
            unsafe { block(pool.isa(), part) }
        });
    }
}

/// Room for a block of A of either kind.
const SCRATCH_LINES: usize = if ROWS * DEPTH > SKINNY * SKINNY_DEPTH {
    ROWS * DEPTH / PANEL
} else {
    SKINNY * SKINNY_DEPTH / PANEL
};

thread_local! {
    static SCRATCH: RefCell<Vec<Line>> = const { RefCell::new(Vec::new()) };
}

/// Runs one product block by block.
///
/// # Safety
/// `t` describes memory that may be read (A, B: whole panels) and written (C),
/// and this CPU has `isa`.
unsafe fn block(isa: Isa, t: Tile) {
    if t.k == 0 {
        if !t.accumulate {
            for i in 0..t.m {
                // SAFETY: row i of C has n elements.
                unsafe { std::slice::from_raw_parts_mut(t.c.add(i * t.c_row), t.n) }.fill(0.0);
            }
        }
        return;
    }
    let is_skinny = t.m <= SKINNY;
    let most_rows = match isa.0 {
        Level::Scalar => 8,
        #[cfg(target_arch = "x86_64")]
        Level::Avx2 => 6,
        #[cfg(target_arch = "x86_64")]
        Level::Avx512 if is_skinny => 8,
        #[cfg(target_arch = "x86_64")]
        Level::Avx512 => 12,
    };
    let depth = if is_skinny { SKINNY_DEPTH } else { DEPTH };
    let is_packed = t.a_col != 1 || (t.n >= PACK_COLUMNS && t.m >= PACK_ROWS);
    for m0 in (0..t.m).step_by(ROWS) {
        let mc = ROWS.min(t.m - m0);
        let rows = mc.div_ceil(mc.div_ceil(most_rows));
        for k0 in (0..t.k).step_by(depth) {
            let kc = depth.min(t.k - k0);
            // SAFETY: (m0, k0) lies inside A.
            let a = unsafe { t.a.add(m0 * t.a_row + k0 * t.a_col) };
            let part = Tile {
                m: mc,
                k: kc,
                a,
                // SAFETY: row k0 lies inside each panel.
                b: unsafe { t.b.skip(0, k0) },
                // SAFETY: row m0 lies inside C.
                c: unsafe { t.c.add(m0 * t.c_row) },
                accumulate: t.accumulate || k0 > 0,
                ..t
            };
            if !is_packed {
                // SAFETY: `part` is inside `t`.
                unsafe { sweep(isa, part, rows, None) };
            } else {
                SCRATCH.with_borrow_mut(|scratch| {
                    scratch.resize(SCRATCH_LINES, Line::ZERO);
                    let packed = scratch.as_mut_ptr().cast::<f32>();
                    // SAFETY: `packed` has room for `mc x kc` floats and
                    // `part` is inside `t`.
                    unsafe {
                        pack_a(part, rows, packed);
                        sweep(isa, part, rows, Some(packed));
                    }
                });
            }
        }
    }
}

/// Copies A to `out` so that the rows of a row block lie side by side.
///
/// # Safety
/// As [`block`]; `out` holds `m * k` floats.
unsafe fn pack_a(t: Tile, rows: usize, out: *mut f32) {
    for i0 in (0..t.m).step_by(rows) {
        let height = rows.min(t.m - i0);
        // SAFETY: block i0 starts at i0 * k and has k rows of `height`; its
        // first element in A is (i0, 0).
        let (to, from) = unsafe {
            let to = std::slice::from_raw_parts_mut(out.add(i0 * t.k), height * t.k);
            (to, t.a.add(i0 * t.a_row))
        };
        for (kk, to) in to.chunks_exact_mut(height).enumerate() {
            // SAFETY: column kk is inside A.
            let from = unsafe { from.add(kk * t.a_col) };
            if t.a_row == 1 {
                // SAFETY: `height` rows lie side by side from here.
                let from = unsafe { std::slice::from_raw_parts(from, height) };
                match (to.as_mut_array::<12>(), from.as_array::<12>()) {
                    // A copy of known length is no call.
                    (Some(to), Some(from)) => *to = *from,
                    _ => to.copy_from_slice(from),
                }
            } else {
                for (i, to) in to.iter_mut().enumerate() {
                    // SAFETY: (i0 + i, kk) is inside A.
                    *to = unsafe { *from.add(i * t.a_row) };
                }
            }
        }
    }
}

/// Panel groups outside, row blocks inside, so that a panel group stays in the
/// first-level cache.
///
/// # Safety
/// As [`block`].
unsafe fn sweep(isa: Isa, t: Tile, rows: usize, packed: Option<*const f32>) {
    let full = t.n / PANEL;
    let group = match isa.0 {
        Level::Scalar => 1,
        // Few rows wait for memory: one stream at a time. Panels side by side
        // are often a multiple of a page apart, where their lines would push
        // each other out of the cache.
        #[cfg(target_arch = "x86_64")]
        _ if t.m <= SKINNY && matches!(t.b, Address::Strided { .. }) => 1,
        #[cfg(target_arch = "x86_64")]
        Level::Avx2 => x86::group_avx2(rows),
        #[cfg(target_arch = "x86_64")]
        Level::Avx512 => x86::group_avx512(rows),
    };
    let mut p = 0;
    while p * PANEL < t.n {
        let width = if p + group <= full { group } else { 1 };
        // SAFETY: panel p exists.
        let b = unsafe { t.b.skip(p, 0) };
        for i0 in (0..t.m).step_by(rows) {
            let height = rows.min(t.m - i0);
            let (a, a_row, a_col) = match packed {
                // SAFETY: block i0 was written there by `pack_a`.
                Some(packed) => (unsafe { packed.add(i0 * t.k) }, 1, height),
                // SAFETY: row i0 is inside A.
                None => (unsafe { t.a.add(i0 * t.a_row) }, t.a_row, t.a_col),
            };
            // SAFETY: (i0, p) is inside C.
            let c = unsafe { t.c.add(i0 * t.c_row + p * PANEL) };
            let piece = Tile {
                m: height,
                n: width * PANEL,
                a,
                a_row,
                a_col,
                b,
                c,
                ..t
            };
            if p < full {
                // SAFETY: all `width` panels and their columns of C exist.
                unsafe { micro(isa, width, piece) };
            } else {
                // The last panel is narrower than a register: go through a
                // buffer of full width.
                let mut buffer = [Line::ZERO; 12];
                let n = t.n - p * PANEL;
                if t.accumulate {
                    for (i, line) in buffer.iter_mut().enumerate().take(height) {
                        // SAFETY: row i0 + i of C has n columns from here.
                        line.0[..n].copy_from_slice(unsafe {
                            std::slice::from_raw_parts(c.add(i * t.c_row), n)
                        });
                    }
                }
                // SAFETY: the buffer has `height <= 12` rows of 16 columns.
                unsafe {
                    micro(
                        isa,
                        1,
                        Tile {
                            c: buffer.as_mut_ptr().cast(),
                            c_row: PANEL,
                            ..piece
                        },
                    )
                };
                for (i, line) in buffer.iter().enumerate().take(height) {
                    // SAFETY: as above; C is ours to write.
                    unsafe { std::slice::from_raw_parts_mut(c.add(i * t.c_row), n) }
                        .copy_from_slice(&line.0[..n]);
                }
            }
        }
        p += width;
    }
}

/// One register tile: `t.m` rows by `panels` full panels.
///
/// # Safety
/// As [`block`], for full panels.
unsafe fn micro(isa: Isa, panels: usize, t: Tile) {
    match isa.0 {
        // SAFETY: passed on.
        Level::Scalar => unsafe { micro_scalar(t) },
        #[cfg(target_arch = "x86_64")]
        // SAFETY: passed on; the CPU has AVX2 and FMA.
        Level::Avx2 => unsafe { x86::micro_avx2(panels, t) },
        #[cfg(target_arch = "x86_64")]
        // SAFETY: passed on; the CPU has AVX-512.
        Level::Avx512 => unsafe { x86::micro_avx512(panels, t) },
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = panels;
}

/// The oracle: one panel, rows one after the other.
///
/// # Safety
/// As [`micro`] with one panel.
unsafe fn micro_scalar(t: Tile) {
    for i in 0..t.m {
        // SAFETY: row i of C has 16 columns here.
        let c = unsafe { std::slice::from_raw_parts_mut(t.c.add(i * t.c_row), PANEL) };
        let mut acc = [0.0_f32; PANEL];
        if t.accumulate {
            acc.copy_from_slice(c);
        }
        let run = t.b.run();
        for kk in 0..t.k {
            // SAFETY: (i, kk) is inside A, row kk inside the panel.
            let (a, b) = unsafe {
                let b = t.b.line(0, kk / run * run).add(kk % run * PANEL);
                (
                    *t.a.add(i * t.a_row + kk * t.a_col),
                    std::slice::from_raw_parts(b, PANEL),
                )
            };
            for (sum, &b) in acc.iter_mut().zip(b) {
                *sum = a.mul_add(b, *sum);
            }
        }
        c.copy_from_slice(&acc);
    }
}

#[cfg(test)]
mod tests;
