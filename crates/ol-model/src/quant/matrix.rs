//! A quantised matrix and its three products.
#![expect(unsafe_code, reason = "aligned chunks are read as bytes")]

use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use half::{bf16, f16};

use super::codes::{Codes, LANES, panel_block};
use super::nf4::{self, Scales};
use super::{Format, QuantError, encode};
use crate::kernels::quant::{Activations, FloatPanel, MAX_ROWS, PanelRef};
use crate::kernels::{Factor, Line, Mat, Output, PANEL, PanelsRef, Strands, matmul_here, memory};
use crate::pool::{Parts, Pool};
use crate::weights::Dtype;

/// Rows of the left-hand side that a task takes through all its panels, so
/// that they stay in the second-level cache.
const ROW_BLOCK: usize = 64;

/// Weights of a row expanded at a time: with [`GROUP`] panels they fill a
/// quarter of the second-level cache. A multiple of every block.
const DEPTH: usize = 256;

/// Panels expanded at a time.
const GROUP: usize = 4;

/// Most rows for which weights of 16 bits are widened in registers, again for
/// every few rows; for more it pays to expand them once.
const WIDENED_ROWS: usize = 16;

/// Rows expanded at a time for the backward product.
const BACK_ROWS: usize = 128;

/// Columns of a backward task.
const BACK_COLS: usize = 512;

/// Multiply-adds that are worth a task.
const TASK_WORK: usize = 1 << 16;

/// Panels start at multiples of a vector, so no load crosses a cache line.
#[derive(Debug, Clone, Copy)]
#[repr(C, align(32))]
struct Chunk([u8; 32]);

fn bytes(chunks: &[Chunk]) -> &[u8] {
    // SAFETY: a chunk is 32 bytes without padding, and any byte is valid.
    unsafe { std::slice::from_raw_parts(chunks.as_ptr().cast(), size_of_val(chunks)) }
}

fn bytes_mut(chunks: &mut [Chunk]) -> &mut [u8] {
    // SAFETY: as in `bytes`; the borrow is exclusive.
    unsafe { std::slice::from_raw_parts_mut(chunks.as_mut_ptr().cast(), size_of_val(chunks)) }
}

/// Weights `[rows, cols]` in one [`Format`], in panels of eight (integer
/// formats) or sixteen rows; never expanded as a whole.
///
/// All products have the same bits at every batch size, on every instruction
/// set and any number of threads.
#[derive(Debug, Clone)]
pub struct QuantMatrix {
    format: Format,
    rows: usize,
    cols: usize,
    data: Vec<Chunk>,
    /// Chunks of a panel.
    panel: usize,
    /// NF4's; empty otherwise.
    scales: Scales,
}

/// Remembers the first bad row that any task finds.
struct Bad(AtomicUsize);

impl Bad {
    const fn new() -> Self {
        Self(AtomicUsize::new(usize::MAX))
    }

    fn report(&self, row: usize) {
        self.0.fetch_min(row, Relaxed);
    }

    fn check(&self, format: Format) -> Result<(), QuantError> {
        match self.0.load(Relaxed) {
            usize::MAX => Ok(()),
            row => Err(QuantError::NotFinite {
                format: format.name(),
                row,
            }),
        }
    }
}

impl QuantMatrix {
    fn zeroed(format: Format, rows: usize, cols: usize) -> Result<Self, QuantError> {
        let size = format.size_bytes(rows, cols)?;
        let panel_size = if format.is_integer() {
            let (head, body) = panel_block(format);
            let blocks = cols / format.block();
            (blocks * head).next_multiple_of(32) + blocks * body
        } else if matches!(format, Format::F16 | Format::Bf16) {
            cols * 2 * PANEL
        } else {
            cols / 2 * PANEL
        };
        let mut this = Self {
            format,
            rows,
            cols,
            data: Vec::new(),
            panel: panel_size / 32,
            scales: Scales::Plain(Vec::new()),
        };
        let chunks = rows
            .div_ceil(this.panel_rows())
            .checked_mul(this.panel)
            .ok_or(QuantError::Length {
                format: format.name(),
                rows,
                cols,
                unit: "bytes",
                expected: usize::MAX,
                got: size,
            })?;
        this.data = memory::filled(Chunk([0; 32]), chunks);
        Ok(this)
    }

    fn panel_rows(&self) -> usize {
        if self.format.is_integer() {
            LANES
        } else {
            PANEL
        }
    }

    fn n_blocks(&self) -> usize {
        self.cols / self.format.block()
    }

    /// Where the codes start in a panel; the scales are before.
    fn body_start(&self) -> usize {
        let (head, _) = panel_block(self.format);
        (self.n_blocks() * head).next_multiple_of(32)
    }

    /// Writes every row, `write(row, codes of the panel, row in the panel)`.
    fn fill(&mut self, pool: &Pool, write: &(dyn Fn(usize, &mut [u8], usize) + Sync)) {
        let (height, chunks, rows) = (self.panel_rows(), self.panel, self.rows);
        let data = Parts::new(&mut self.data);
        pool.ranges(rows.div_ceil(height), 4, &|range| {
            for p in range {
                data.with(p * chunks..(p + 1) * chunks, |panel| {
                    let panel = bytes_mut(panel);
                    for row in p * height..((p + 1) * height).min(rows) {
                        write(row, panel, row % height);
                    }
                });
            }
        });
    }

    /// Writes every block of an integer format; reports rows that are not
    /// finite.
    fn fill_codes(
        &mut self,
        pool: &Pool,
        bad: &Bad,
        codes: &(dyn Fn(usize, usize) -> Codes + Sync),
    ) {
        let (format, blocks, start) = (self.format, self.n_blocks(), self.body_start());
        let (head, body) = panel_block(format);
        self.fill(pool, &|row, panel, lane| {
            let (heads, bodies) = panel.split_at_mut(start);
            for b in 0..blocks {
                let codes = codes(row, b);
                if !codes.is_finite() {
                    bad.report(row);
                }
                codes.to_panel(
                    format,
                    &mut heads[b * head..][..head],
                    &mut bodies[b * body..][..body],
                    lane,
                );
            }
        });
    }

    /// Takes a matrix as a GGUF file stores it (F16, BF16 and the integer formats).
    ///
    /// # Errors
    /// [`QuantError`] when the bytes are not of this shape, or a weight is not finite.
    ///
    /// # Panics
    /// For NF4, which GGUF does not have.
    pub fn from_stored(
        pool: &Pool,
        format: Format,
        rows: usize,
        cols: usize,
        stored: &[u8],
    ) -> Result<Self, QuantError> {
        assert!(
            !matches!(format, Format::Nf4 | Format::Nf4Double),
            "NF4 is not stored by rows"
        );
        let expected = format.size_bytes(rows, cols)?;
        if stored.len() != expected {
            return Err(QuantError::Length {
                format: format.name(),
                rows,
                cols,
                unit: "bytes",
                expected,
                got: stored.len(),
            });
        }
        let mut this = Self::zeroed(format, rows, cols)?;
        let row_size = expected / rows.max(1);
        let bad = Bad::new();
        if format.is_integer() {
            let size = format.block_size_bytes();
            this.fill_codes(pool, &bad, &|row, b| {
                Codes::from_stored(format, &stored[row * row_size + b * size..][..size])
            });
        } else {
            // Exponent bits all set: infinity or NaN.
            let top = if format == Format::F16 {
                0x7C00
            } else {
                0x7F80
            };
            this.fill(pool, &|row, panel, lane| {
                let values = stored[row * row_size..(row + 1) * row_size].as_chunks::<2>();
                for (k, b) in values.0.iter().enumerate() {
                    if u16::from_le_bytes(*b) & top == top {
                        bad.report(row);
                    }
                    panel[2 * (k * PANEL + lane)..][..2].copy_from_slice(b);
                }
            });
        }
        bad.check(format)?;
        Ok(this)
    }

    /// Quantises a row-major f32 matrix.
    ///
    /// # Errors
    /// [`QuantError`] when rows are not whole blocks, the number of weights is
    /// wrong, or one is not finite (in half-precision formats: too large).
    pub fn quantise(
        pool: &Pool,
        format: Format,
        rows: usize,
        cols: usize,
        weights: &[f32],
    ) -> Result<Self, QuantError> {
        format.size_bytes(rows, cols)?;
        if rows.checked_mul(cols) != Some(weights.len()) {
            return Err(QuantError::Length {
                format: format.name(),
                rows,
                cols,
                unit: "weights",
                expected: rows.saturating_mul(cols),
                got: weights.len(),
            });
        }
        if let Some(at) = weights.iter().position(|w| !w.is_finite()) {
            return Err(QuantError::NotFinite {
                format: format.name(),
                row: at / cols,
            });
        }
        let mut this = Self::zeroed(format, rows, cols)?;
        let row_of = |row: usize| &weights[row * cols..(row + 1) * cols];
        let bad = Bad::new();
        match format {
            Format::F16 | Format::Bf16 => this.fill(pool, &|row, panel, lane| {
                for (k, w) in row_of(row).iter().enumerate() {
                    let (bits, finite) = if format == Format::F16 {
                        let half = f16::from_f32(*w);
                        (half.to_bits(), half.is_finite())
                    } else {
                        let half = bf16::from_f32(*w);
                        (half.to_bits(), half.is_finite())
                    };
                    if !finite {
                        bad.report(row);
                    }
                    panel[2 * (k * PANEL + lane)..][..2].copy_from_slice(&bits.to_le_bytes());
                }
            }),
            Format::Nf4 | Format::Nf4Double => {
                let n = this.n_blocks();
                let mut scales = vec![0.0_f32; rows * n];
                let parts = Parts::new(&mut scales);
                this.fill(pool, &|row, panel, lane| {
                    let mut codes = [0_u8; nf4::BLOCK];
                    parts.with(row * n..(row + 1) * n, |scales| {
                        let blocks = row_of(row).chunks_exact(nf4::BLOCK);
                        for ((b, x), scale) in blocks.enumerate().zip(scales) {
                            *scale = nf4::encode(x, &mut codes);
                            for (pair, code) in codes.as_chunks::<2>().0.iter().enumerate() {
                                panel[nf4_byte(b, pair, lane)] = code[0] | code[1] << 4;
                            }
                        }
                    });
                });
                this.scales = if format == Format::Nf4Double {
                    Scales::double(&scales)
                } else {
                    Scales::Plain(scales)
                };
            }
            _ => this.fill_codes(pool, &bad, &|row, b| {
                let block = format.block();
                encode::encode(format, &row_of(row)[b * block..][..block])
            }),
        }
        bad.check(format)?;
        Ok(this)
    }

    /// How the weights are stored.
    #[must_use]
    pub fn format(&self) -> Format {
        self.format
    }

    /// Output width.
    #[must_use]
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Input width.
    #[must_use]
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// Bytes in memory.
    #[must_use]
    pub fn size_bytes(&self) -> usize {
        size_of_val(self.data.as_slice()) + self.scales.size_bytes()
    }

    fn panel_bytes(&self, p: usize) -> &[u8] {
        bytes(&self.data[p * self.panel..(p + 1) * self.panel])
    }

    /// Panel `p` of an integer format.
    fn integer_panel(&self, p: usize) -> PanelRef<'_> {
        let (head, body) = self.panel_bytes(p).split_at(self.body_start());
        PanelRef::new(self.format, head, body, self.n_blocks())
    }

    /// Writes row `row` as f32.
    ///
    /// # Panics
    /// If there is no such row or `out` is not one row long.
    pub fn dequantise_row(&self, row: usize, out: &mut [f32]) {
        assert!(
            row < self.rows && out.len() == self.cols,
            "row outside the matrix"
        );
        let (p, lane) = (row / self.panel_rows(), row % self.panel_rows());
        let block = self.format.block();
        match self.format {
            Format::F16 | Format::Bf16 => {
                let panel = self.panel_bytes(p);
                for (k, out) in out.iter_mut().enumerate() {
                    let at = 2 * (k * PANEL + lane);
                    let bits = u16::from_le_bytes([panel[at], panel[at + 1]]);
                    *out = if self.format == Format::F16 {
                        f16::from_bits(bits).to_f32()
                    } else {
                        bf16::from_bits(bits).to_f32()
                    };
                }
            }
            Format::Nf4 | Format::Nf4Double => {
                let panel = self.panel_bytes(p);
                for (b, out) in out.chunks_exact_mut(block).enumerate() {
                    let scale = self.scales.at(row * self.n_blocks() + b);
                    for (pair, out) in out.as_chunks_mut::<2>().0.iter_mut().enumerate() {
                        let codes = panel[nf4_byte(b, pair, lane)];
                        *out = [codes & 15, codes >> 4].map(|c| nf4::TABLE[usize::from(c)] * scale);
                    }
                }
            }
            format => {
                let panel = self.integer_panel(p);
                for (b, out) in out.chunks_exact_mut(block).enumerate() {
                    panel.codes(b, lane).dequantise(format, out);
                }
            }
        }
    }

    /// Appends the stored bytes of row `row`: for formats of GGUF those of the
    /// file, for NF4 the codes two a byte (the first in the high half, as in
    /// bitsandbytes), then the scales.
    ///
    /// # Panics
    /// If there is no such row.
    pub fn stored_row(&self, row: usize, out: &mut Vec<u8>) {
        assert!(row < self.rows, "row outside the matrix");
        let (p, lane) = (row / self.panel_rows(), row % self.panel_rows());
        match self.format {
            Format::F16 | Format::Bf16 => {
                let panel = self.panel_bytes(p);
                out.extend((0..self.cols).flat_map(|k| {
                    let at = 2 * (k * PANEL + lane);
                    [panel[at], panel[at + 1]]
                }));
            }
            Format::Nf4 | Format::Nf4Double => {
                let (panel, n) = (self.panel_bytes(p), self.n_blocks());
                for b in 0..n {
                    out.extend((0..32).map(|pair| panel[nf4_byte(b, pair, lane)].rotate_left(4)));
                }
                self.scales.stored(row * n..(row + 1) * n, out);
            }
            format => {
                let panel = self.integer_panel(p);
                for b in 0..self.n_blocks() {
                    let start = out.len();
                    out.resize(start + format.block_size_bytes(), 0);
                    panel.codes(b, lane).to_stored(format, &mut out[start..]);
                }
            }
        }
    }

    /// Appends what belongs to the stored form but to no row: the scales of
    /// the scales of double-quantised NF4; nothing otherwise.
    pub fn stored_shared(&self, out: &mut Vec<u8>) {
        self.scales.stored_shared(out);
    }

    /// `y = x W^T`; rounds `x` to bytes if the format [is
    /// integer](Format::is_integer), else computes in f32.
    ///
    /// # Shapes
    /// - `x`: `[n, cols]` - `y`: `[n, rows]`
    ///
    /// # Panics
    /// If a length does not match its shape.
    pub fn product(&self, pool: &Pool, x: &[f32], y: &mut [f32]) {
        let n = self.n_rows_of(x);
        assert_eq!(y.len(), n * self.rows, "shape of y");
        self.product_to(pool, x, &Output::new(y, self.rows), 0);
    }

    fn n_rows_of(&self, x: &[f32]) -> usize {
        assert!(
            self.cols > 0 && x.len().is_multiple_of(self.cols),
            "shape of x"
        );
        x.len() / self.cols
    }

    /// As [`Self::product`] into columns `first..` of `y`.
    pub(crate) fn product_to(&self, pool: &Pool, x: &[f32], y: &Output<'_>, first: usize) {
        if !self.format.is_integer() {
            self.product_f32_to(pool, x, y, first);
            return;
        }
        let n = self.n_rows_of(x);
        let isa = pool.isa();
        let x = Activations::new(pool, self.format, x, self.cols);
        let panels = self.rows.div_ceil(LANES);
        let chunk = self.task_panels(pool, panels, n * LANES);
        let row_parts = self.row_parts(pool, panels.div_ceil(chunk), n);
        let height = n.div_ceil(row_parts).max(1);
        pool.run(panels.div_ceil(chunk) * row_parts, &|task| {
            let (part, task) = (task % row_parts, task / row_parts);
            let end = ((part + 1) * height).min(n);
            for start in (part * height..end).step_by(ROW_BLOCK) {
                let block = ROW_BLOCK.min(end - start);
                // Equal tiles: five rows are three and two.
                let tile = block.div_ceil(block.div_ceil(MAX_ROWS));
                for p in task * chunk..((task + 1) * chunk).min(panels) {
                    let panel = self.integer_panel(p);
                    let columns = p * LANES..((p + 1) * LANES).min(self.rows);
                    let width = columns.len();
                    for r0 in (start..start + block).step_by(tile) {
                        let tile = tile.min(start + block - r0);
                        let mut out = [[0.0_f32; LANES]; MAX_ROWS];
                        panel.dot(isa, &x, r0, &mut out[..tile]);
                        let mut y =
                            y.tile(r0..r0 + tile, first + columns.start..first + columns.end);
                        for (i, out) in out[..tile].iter().enumerate() {
                            y.row(i).copy_from_slice(&out[..width]);
                        }
                    }
                }
            }
        });
    }

    /// Panels of a task, when a panel is `row_work` multiply-adds a column.
    fn task_panels(&self, pool: &Pool, panels: usize, row_work: usize) -> usize {
        if pool.threads() == 1 {
            return panels.max(1);
        }
        // A few tasks a thread, so that a core which is busy elsewhere does less.
        let even = panels.div_ceil(pool.threads() * 4);
        let worth = TASK_WORK.div_ceil((row_work * self.cols).max(1));
        even.max(worth).clamp(1, panels.max(1))
    }

    /// Parts to split the rows into when there are too few tasks.
    fn row_parts(&self, pool: &Pool, tasks: usize, n: usize) -> usize {
        if tasks >= pool.threads() {
            return 1;
        }
        (pool.threads() * 2)
            .div_ceil(tasks.max(1))
            .min(n.div_ceil(ROW_BLOCK))
            .max(1)
    }

    /// `y = x W^T` in f32 whatever the format: the bits of a product with the
    /// expanded matrix.
    ///
    /// # Shapes
    /// As [`Self::product`].
    ///
    /// # Panics
    /// If a length does not match its shape.
    pub fn product_f32(&self, pool: &Pool, x: &[f32], y: &mut [f32]) {
        let n = self.n_rows_of(x);
        assert_eq!(y.len(), n * self.rows, "shape of y");
        self.product_f32_to(pool, x, &Output::new(y, self.rows), 0);
    }

    /// As [`Self::product_f32`] into columns `first..` of `y`.
    pub(crate) fn product_f32_to(&self, pool: &Pool, x: &[f32], y: &Output<'_>, first: usize) {
        let n = self.n_rows_of(x);
        let isa = pool.isa();
        let x = Mat::new(x, n, self.cols);
        let panels = self.rows.div_ceil(PANEL);
        let chunk = self.task_panels(pool, panels, n * PANEL);
        let halves = match self.format {
            Format::F16 => Some(Dtype::F16),
            Format::Bf16 => Some(Dtype::Bf16),
            _ => None,
        };
        pool.run(panels.div_ceil(chunk), &|task| {
            let end = ((task + 1) * chunk).min(panels);
            if let (Some(dtype), true) = (halves, n <= WIDENED_ROWS) {
                // Few rows wait for memory: widened in registers.
                let columns = task * chunk * PANEL..(end * PANEL).min(self.rows);
                let stored = bytes(&self.data[task * chunk * self.panel..end * self.panel]);
                let weights = Factor::padded(dtype, stored, self.cols, columns.len());
                let y = y.tile(0..n, first + columns.start..first + columns.end);
                Strands::new(isa, false).push(x, weights, 1.0, y);
                return;
            }
            let mut lines = Vec::new();
            for p in (task * chunk..end).step_by(GROUP) {
                let group = GROUP.min(end - p);
                let columns = p * PANEL..((p + group) * PANEL).min(self.rows);
                for k in (0..self.cols).step_by(DEPTH) {
                    let depth = DEPTH.min(self.cols - k);
                    lines.resize(group * depth, Line::ZERO);
                    for (p, lines) in (p..).zip(lines.chunks_exact_mut(depth)) {
                        self.expand_panel(pool, p, k, lines);
                    }
                    matmul_here(
                        isa,
                        x.t().rows(&(k..k + depth)).t(),
                        PanelsRef::new(&lines, depth, columns.len(), depth),
                        y.tile(0..n, first + columns.start..first + columns.end),
                        k > 0,
                    );
                }
            }
        });
    }

    /// Columns `k..` of sixteen rows, transposed: `lines[i]` holds column `k + i`.
    fn expand_panel(&self, pool: &Pool, p: usize, k: usize, lines: &mut [Line]) {
        let depth = lines.len();
        match self.format {
            Format::F16 | Format::Bf16 => {
                let values = &self.panel_bytes(p)[2 * PANEL * k..][..2 * PANEL * depth];
                FloatPanel::Half(self.format, values).expand(pool.isa(), lines);
            }
            Format::Nf4 | Format::Nf4Double => {
                let (first, n) = (k / nf4::BLOCK, self.n_blocks());
                let blocks = depth / nf4::BLOCK;
                let mut scales = [[0.0_f32; PANEL]; DEPTH / nf4::BLOCK];
                for (b, scales) in (first..first + blocks).zip(&mut scales) {
                    for (row, scale) in (p * PANEL..self.rows).zip(scales) {
                        *scale = self.scales.at(row * n + b);
                    }
                }
                let codes = &self.panel_bytes(p)[512 * first..][..512 * blocks];
                FloatPanel::Nf4(codes, &scales[..blocks]).expand(pool.isa(), lines);
            }
            _ => {
                for half in 0..2 {
                    let panel = 2 * p + half;
                    if panel * LANES < self.rows {
                        let first = k / self.format.block();
                        self.integer_panel(panel)
                            .expand(pool.isa(), first, half, lines);
                    }
                }
            }
        }
    }

    /// `dx = dy W`, or `dx += dy W`, in f32 with the expanded weights.
    ///
    /// # Shapes
    /// - `dy`: `[n, rows]` - `dx`: `[n, cols]`
    ///
    /// # Panics
    /// If a length does not match its shape.
    pub fn product_back(&self, pool: &Pool, dy: &[f32], dx: &mut [f32], accumulate: bool) {
        let n = self.n_rows_of(dx);
        self.product_back_of(pool, Mat::new(dy, n, self.rows), dx, accumulate);
    }

    /// As [`Self::product_back`] with some columns of a wider `dy`.
    pub(crate) fn product_back_of(
        &self,
        pool: &Pool,
        dy: Mat<'_>,
        dx: &mut [f32],
        accumulate: bool,
    ) {
        let n = self.n_rows_of(dx);
        assert_eq!(dy.n_rows(), n, "shape of dy");
        if self.rows == 0 && !accumulate {
            dx.fill(0.0);
        }
        let unit = self.format.block().max(PANEL);
        let even = self.cols.div_ceil(pool.threads() * 2);
        let width = even
            .next_multiple_of(unit)
            .min(BACK_COLS.next_multiple_of(unit));
        let dx = Output::new(dx, self.cols);
        pool.run(self.cols.div_ceil(width), &|task| {
            let columns = task * width..((task + 1) * width).min(self.cols);
            let panels = columns.len().div_ceil(PANEL);
            let mut lines = vec![Line::ZERO; panels * BACK_ROWS];
            let mut turned = [Line::ZERO; DEPTH];
            for first in (0..self.rows).step_by(BACK_ROWS) {
                let rows = first..(first + BACK_ROWS).min(self.rows);
                for k in columns.clone().step_by(DEPTH) {
                    let depth = DEPTH.min(columns.end - k);
                    // The last panel of columns may be narrow.
                    let padded = depth.next_multiple_of(PANEL);
                    turned[depth..padded].fill(Line::ZERO);
                    for start in rows.clone().step_by(PANEL) {
                        self.expand_panel(pool, start / PANEL, k, &mut turned[..depth]);
                        let parts = turned[..padded].as_chunks::<PANEL>().0;
                        for (c, turned) in parts.iter().enumerate() {
                            let at = ((k - columns.start) / PANEL + c) * BACK_ROWS + start - first;
                            transpose(turned, &mut lines[at..at + PANEL]);
                        }
                    }
                }
                matmul_here(
                    pool.isa(),
                    dy.t().rows(&rows).t(),
                    PanelsRef::new(&lines, rows.len(), columns.len(), BACK_ROWS),
                    dx.tile(0..n, columns.clone()),
                    accumulate || first > 0,
                );
            }
        });
    }
}

/// Sixteen lines as columns.
fn transpose(from: &[Line; PANEL], to: &mut [Line]) {
    for (i, to) in to.iter_mut().enumerate() {
        for (j, from) in from.iter().enumerate() {
            to.0[j] = from.0[i];
        }
    }
}

/// Where codes `2 pair` and `2 pair + 1` of block `b` lie in a panel: vectors
/// of 32 bytes, eight rows of eight codes each.
fn nf4_byte(b: usize, pair: usize, lane: usize) -> usize {
    512 * b + 256 * (lane / 8) + 32 * (pair / 4) + 4 * (lane % 8) + pair % 4
}
