//! Right-hand sides of products: panels of sixteen columns, in memory of their
//! own or in pages of a cache.

use std::ops::Range;
use std::sync::Arc;

use super::{FORK_WORK, Line, Mat, PANEL};
use crate::cache::Page;
use crate::isa::{Isa, Level};
use crate::kernels::math::for_each_isa;
use crate::kernels::memory;
use crate::pool::Pool;

/// A `k x n` matrix in panels: panel `p` holds columns `16 p ..`, its row `i` is
/// one [`Line`]; the last panel is filled up with zeros.
#[derive(Debug, Clone, Default)]
pub(crate) struct Panels {
    pub(super) lines: Vec<Line>,
    pub(super) k: usize,
    pub(super) n: usize,
}

impl Panels {
    /// Packs `b` (`k x n`).
    pub(crate) fn pack(b: Mat<'_>) -> Self {
        let mut panels = Self {
            lines: vec![Line::ZERO; b.rows * b.cols.div_ceil(PANEL)],
            k: b.rows,
            n: b.cols,
        };
        for (p, panel) in panels.lines.chunks_exact_mut(b.rows.max(1)).enumerate() {
            pack_panel(b, p, panel);
        }
        panels
    }

    /// As [`Panels::pack`], on all threads and into memory already there.
    pub(crate) fn repack(&mut self, pool: &Pool, b: Mat<'_>) {
        let (k, n_panels) = (b.rows, b.cols.div_ceil(PANEL));
        self.k = k;
        self.n = b.cols;
        self.lines.clear();
        self.lines.resize(k * n_panels, Line::ZERO);
        let parts = crate::pool::Parts::new(&mut self.lines);
        let chunk = if k * b.cols < FORK_WORK { n_panels } else { 1 };
        pool.ranges(n_panels, chunk, &|range| {
            for p in range {
                // SAFETY: each panel is written by one task.
                pack_panel(b, p, unsafe { parts.slice(p * k..(p + 1) * k) });
            }
        });
    }

    /// A `k x n` matrix of zeros, in memory for weights.
    pub(crate) fn zeros(k: usize, n: usize) -> Self {
        Self {
            lines: memory::filled(Line::ZERO, k * n.div_ceil(PANEL)),
            k,
            n,
        }
    }

    /// Columns `first..` become the rows of `rows`, each `k` long.
    pub(crate) fn write_t(&mut self, pool: &Pool, first: usize, rows: Mat<'_>) {
        let (k, last) = (self.k, first + rows.rows);
        assert!(rows.cols == k && last <= self.n, "shape of the columns");
        if rows.rows == 0 || k == 0 {
            return;
        }
        let first_panel = first / PANEL;
        let n_panels = last.div_ceil(PANEL) - first_panel;
        let parts = crate::pool::Parts::new(&mut self.lines);
        let chunk = if rows.rows * k < FORK_WORK {
            n_panels
        } else {
            1
        };
        pool.ranges(n_panels, chunk, &|range| {
            for p in range.start + first_panel..range.end + first_panel {
                // SAFETY: each panel is written by one task.
                let panel = unsafe { parts.slice(p * k..(p + 1) * k) };
                for column in (p * PANEL).max(first)..((p + 1) * PANEL).min(last) {
                    for (i, line) in panel.iter_mut().enumerate() {
                        line.0[column % PANEL] = rows.at(column - first, i);
                    }
                }
            }
        });
    }

    /// Columns `columns` (from a multiple of sixteen on) as the rows of `out`:
    /// the right-hand side of a backward product, or a part of it.
    pub(crate) fn transpose_to(&self, pool: &Pool, columns: Range<usize>, out: &mut Self) {
        assert!(
            columns.start.is_multiple_of(PANEL) && columns.end <= self.n,
            "columns of whole panels"
        );
        let (k, n) = (columns.len(), self.k);
        out.k = k;
        out.n = n;
        // Every line is written below.
        out.lines.resize(k * n.div_ceil(PANEL), Line::ZERO);
        if k == 0 {
            return;
        }
        let parts = crate::pool::Parts::new(&mut out.lines);
        let n_panels = n.div_ceil(PANEL);
        let chunk = if k * n < FORK_WORK { n_panels } else { 1 };
        pool.ranges(n_panels, chunk, &|range| {
            for q in range {
                // SAFETY: each panel is written by one task.
                let to = unsafe { parts.slice(q * k..(q + 1) * k) };
                for (at, to) in to.chunks_mut(PANEL).enumerate() {
                    let from = (columns.start / PANEL + at) * self.k + q * PANEL;
                    let height = PANEL.min(self.k - q * PANEL);
                    let from = &self.lines[from..from + height];
                    match (to.as_mut_array(), from.as_array()) {
                        (Some(to), Some(from)) => transpose(pool.isa(), from, to),
                        _ => transpose_part(from, to),
                    }
                }
            }
        });
    }

    pub(crate) fn view(&self) -> PanelsRef<'_> {
        PanelsRef {
            lines: Lines::Strided {
                lines: &self.lines,
                stride: self.k,
            },
            k: self.k,
            n: self.n,
        }
    }

    /// Column `column`.
    pub(crate) fn read_t(&self, column: usize, out: &mut [f32]) {
        assert!(
            out.len() == self.k && column < self.n,
            "shape of the column"
        );
        let panel = &self.lines[column / PANEL * self.k..][..self.k];
        for (value, line) in out.iter_mut().zip(panel) {
            *value = line.0[column % PANEL];
        }
    }

    /// Bytes in memory.
    pub(crate) fn size_bytes(&self) -> usize {
        self.lines.len() * size_of::<Line>()
    }
}

/// Sixteen lines as columns: at every distance, what belongs to the other side
/// of the diagonal changes places with the partner line.
#[inline(always)]
fn transpose_body(from: &[Line; PANEL], to: &mut [Line; PANEL]) {
    #[inline(always)]
    fn change_places<const DISTANCE: usize>(lines: [Line; PANEL]) -> [Line; PANEL] {
        std::array::from_fn(|i| {
            let (own, other) = (&lines[i].0, &lines[i ^ DISTANCE].0);
            Line(std::array::from_fn(|j| {
                if (i ^ j) & DISTANCE == 0 {
                    own[j]
                } else {
                    other[j ^ DISTANCE]
                }
            }))
        })
    }
    let lines = change_places::<4>(change_places::<8>(*from));
    *to = change_places::<1>(change_places::<2>(lines));
}

for_each_isa!(transpose(from: &[Line; PANEL], to: &mut [Line; PANEL]) => transpose_body);

/// Up to sixteen lines as columns of up to sixteen; zeros beside them.
fn transpose_part(from: &[Line], to: &mut [Line]) {
    for (j, to) in to.iter_mut().enumerate() {
        *to = Line::ZERO;
        for (value, from) in to.0.iter_mut().zip(from) {
            *value = from.0[j];
        }
    }
}

fn pack_panel(b: Mat<'_>, p: usize, panel: &mut [Line]) {
    let first = p * PANEL;
    let width = PANEL.min(b.cols - first);
    if b.col_stride == 1 && width == PANEL {
        for (k, line) in panel.iter_mut().enumerate() {
            // A copy of known length is two instructions, not a call.
            let row = b.data[k * b.row_stride + first..].first_chunk();
            line.0 = *row.expect("a panel's width is left in each row");
        }
    } else if b.col_stride == 1 {
        for (k, line) in panel.iter_mut().enumerate() {
            let start = k * b.row_stride + first;
            line.0[..width].copy_from_slice(&b.data[start..start + width]);
        }
    } else {
        for c in 0..width {
            for (k, line) in panel.iter_mut().enumerate() {
                line.0[c] = b.at(k, first + c);
            }
        }
    }
}

/// Where the lines of a right-hand side lie.
#[derive(Clone, Copy)]
pub(super) enum Lines<'a> {
    /// Panels `stride` lines apart.
    Strided { lines: &'a [Line], stride: usize },
    /// Each panel in its own page, from line `at` on.
    KeyPages { pages: &'a [Arc<Page>], at: usize },
    /// Rows `16 r ..` in page `r`, the panels one after the other, from line
    /// `at` on.
    ValuePages { pages: &'a [Arc<Page>], at: usize },
}

/// A view of a matrix in panels of sixteen columns.
#[derive(Clone, Copy)]
pub(crate) struct PanelsRef<'a> {
    pub(super) lines: Lines<'a>,
    pub(super) k: usize,
    pub(super) n: usize,
}

impl<'a> PanelsRef<'a> {
    /// Panels of `k` rows, `stride` lines apart.
    pub(crate) fn new(lines: &'a [Line], k: usize, n: usize, stride: usize) -> Self {
        if n > 0 {
            assert!(
                k <= stride && (n.div_ceil(PANEL) - 1) * stride + k <= lines.len(),
                "panels outside their lines"
            );
        }
        Self {
            lines: Lines::Strided { lines, stride },
            k,
            n,
        }
    }

    pub(crate) fn n_rows(&self) -> usize {
        self.k
    }

    pub(crate) fn n_columns(&self) -> usize {
        self.n
    }

    /// The keys of one head in `pages`, positions as columns.
    pub(crate) fn key_pages(pages: &'a [Arc<Page>], at: usize, k: usize, n: usize) -> Self {
        let fit = |page: &Arc<Page>| at + k <= page.lines().len();
        assert!(
            n.div_ceil(PANEL) <= pages.len() && pages.iter().all(fit),
            "keys outside their pages"
        );
        Self {
            lines: Lines::KeyPages { pages, at },
            k,
            n,
        }
    }

    /// The values of one head in `pages`, positions as rows.
    pub(crate) fn value_pages(pages: &'a [Arc<Page>], at: usize, k: usize, n: usize) -> Self {
        let fit = |page: &Arc<Page>| at + n.div_ceil(PANEL) * PANEL <= page.lines().len();
        assert!(
            k.div_ceil(PANEL) <= pages.len() && pages.iter().all(fit),
            "values outside their pages"
        );
        Self {
            lines: Lines::ValuePages { pages, at },
            k,
            n,
        }
    }

    /// Columns `range`, from a multiple of sixteen on.
    pub(crate) fn columns(self, range: Range<usize>) -> Self {
        assert!(
            range.start.is_multiple_of(PANEL) && range.start <= range.end && range.end <= self.n,
            "columns of whole panels"
        );
        let first = range.start / PANEL;
        let lines = match self.lines {
            Lines::Strided { lines, stride } => Lines::Strided {
                lines: &lines[(first * stride).min(lines.len())..],
                stride,
            },
            Lines::KeyPages { pages, at } => Lines::KeyPages {
                pages: &pages[first..],
                at,
            },
            Lines::ValuePages { pages, at } => Lines::ValuePages {
                pages,
                at: at + range.start,
            },
        };
        Self {
            lines,
            n: range.len(),
            ..self
        }
    }

    /// Rows `range`; in pages of positions from a multiple of sixteen on.
    pub(crate) fn rows(self, range: Range<usize>) -> Self {
        assert!(
            range.start <= range.end && range.end <= self.k,
            "rows outside the panels"
        );
        let lines = match self.lines {
            Lines::Strided { lines, stride } => Lines::Strided {
                lines: &lines[range.start.min(lines.len())..],
                stride,
            },
            Lines::KeyPages { pages, at } => Lines::KeyPages {
                pages,
                at: at + range.start,
            },
            Lines::ValuePages { pages, at } => {
                assert!(range.start.is_multiple_of(PANEL), "rows of whole pages");
                Lines::ValuePages {
                    pages: &pages[range.start / PANEL..],
                    at,
                }
            }
        };
        Self {
            lines,
            k: range.len(),
            ..self
        }
    }
}
