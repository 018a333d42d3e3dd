//! Products of single rows with narrow matrices: what an adapter adds.
//!
//! A decoding batch multiplies each row by another adapter's factors, a few
//! columns wide. One such product is a single chain of multiply-adds whose
//! latency nothing hides, so chains of several rows, layers and adapters are
//! collected and run side by side ([`Strands`]). Each output is still one chain
//! over k, ascending, as in [`super`]: what runs beside it changes no bit.
//!
//! Punica (Chen et al., 2023) calls the products of a decoding batch BGMV and
//! those of several rows an adapter SGMV.
#![expect(unsafe_code, reason = "vector intrinsics on collected pointers")]

#[cfg(target_arch = "x86_64")]
mod x86;

use std::marker::PhantomData;

use super::{Mat, MatMut, PANEL};
use crate::isa::{Isa, Level};
use crate::weights::Dtype;

/// Chains that run side by side: as many as hide the latency of one on four
/// registers of sixteen lanes, or eight of eight.
const SIDE: usize = 4;

/// Bytes behind a factor that may be read, and are thrown away: a whole vector
/// is loaded where the last panel is narrower.
pub(crate) const SLACK_BYTES: usize = 64;

/// How far ahead of a long panel's row in use memory is asked for.
const AHEAD_BYTES: usize = 1024;

/// A `k x n` matrix in panels of sixteen columns, in 32 or 16 bits. The last
/// panel is as narrow as what is left, so nothing is stored but the elements.
#[derive(Clone, Copy)]
pub(crate) struct Factor<'a> {
    dtype: Dtype,
    bytes: &'a [u8],
    k: usize,
    n: usize,
    /// Whether the last panel is as wide as the others.
    is_padded: bool,
}

impl<'a> Factor<'a> {
    /// The matrix at the beginning of `bytes`, behind which lie
    /// [`SLACK_BYTES`].
    pub(crate) fn new(dtype: Dtype, bytes: &'a [u8], k: usize, n: usize) -> Self {
        assert!(
            k * n * dtype.size_bytes() + SLACK_BYTES <= bytes.len(),
            "factor outside its bytes"
        );
        Self {
            dtype,
            bytes,
            k,
            n,
            is_padded: false,
        }
    }

    /// A matrix whose last panel is filled up to sixteen columns.
    pub(crate) fn padded(dtype: Dtype, bytes: &'a [u8], k: usize, n: usize) -> Self {
        assert!(
            k * n.next_multiple_of(PANEL) * dtype.size_bytes() <= bytes.len(),
            "factor outside its bytes"
        );
        Self {
            dtype,
            bytes,
            k,
            n,
            is_padded: true,
        }
    }

    /// Writes the matrix whose columns are the rows of `from` (`n x k`, stored as
    /// `dtype`, one after the other) to the beginning of `to`.
    pub(crate) fn write(dtype: Dtype, from: &[u8], k: usize, to: &mut [u8]) {
        match dtype {
            Dtype::F32 => write_panels::<4>(from, k, to),
            Dtype::F16 | Dtype::Bf16 => write_panels::<2>(from, k, to),
        }
    }

    /// Writes the columns as the rows of `out`, one after the other: what
    /// [`Self::write`] was given, as f32.
    pub(crate) fn read(&self, out: &mut [f32]) {
        assert!(
            out.len() == self.k * self.n && !self.is_padded,
            "room for the elements"
        );
        let size = self.dtype.size_bytes();
        let mut line = [0.0_f32; PANEL];
        for (panel, out) in out.chunks_mut((PANEL * self.k).max(1)).enumerate() {
            let width = self.width(panel);
            let rows = &self.bytes[panel * PANEL * self.k * size..][..out.len() * size];
            for (i, row) in rows.chunks_exact(width * size).enumerate() {
                self.dtype.decode(row, &mut line[..width]);
                for (out, value) in out[i..].iter_mut().step_by(self.k).zip(&line[..width]) {
                    *out = *value;
                }
            }
        }
    }

    /// Columns of a panel.
    fn width(&self, panel: usize) -> usize {
        PANEL.min(self.n - panel * PANEL)
    }
}

fn write_panels<const SIZE: usize>(from: &[u8], k: usize, to: &mut [u8]) {
    let from = from.as_chunks::<SIZE>().0;
    let to = &mut to.as_chunks_mut::<SIZE>().0[..from.len()];
    let whole = (PANEL * k).max(1);
    for (from, to) in from.chunks(whole).zip(to.chunks_mut(whole)) {
        let width = from.len() / k;
        for (column, from) in from.chunks_exact(k).enumerate() {
            for (to, value) in to[column..].iter_mut().step_by(width).zip(from) {
                *to = *value;
            }
        }
    }
}

/// One row times one panel.
#[derive(Clone, Copy)]
struct Strand {
    x: *const f32,
    panel: *const u8,
    /// Bytes of a row of the panel.
    step: usize,
    /// How far ahead memory is asked for, in bytes.
    #[cfg_attr(
        not(target_arch = "x86_64"),
        expect(dead_code, reason = "portable code leaves it to the machine")
    )]
    ahead: usize,
    width: usize,
    scale: f32,
    out: *mut f32,
}

/// Collects chains of one length and runs them side by side. The last ones run
/// when it is dropped.
pub(crate) struct Strands<'a> {
    isa: Isa,
    accumulate: bool,
    k: usize,
    dtype: Dtype,
    waiting: [Strand; SIDE],
    n: usize,
    life: PhantomData<&'a mut [f32]>,
}

impl<'a> Strands<'a> {
    /// `out = s x B`, or `out += x B`.
    pub(crate) fn new(isa: Isa, accumulate: bool) -> Self {
        Self {
            isa,
            accumulate,
            k: 0,
            dtype: Dtype::F32,
            waiting: [Strand {
                x: std::ptr::null(),
                panel: std::ptr::null(),
                step: 0,
                ahead: 0,
                width: 0,
                scale: 1.0,
                out: std::ptr::null_mut(),
            }; SIDE],
            n: 0,
            life: PhantomData,
        }
    }

    /// Adds the product of all rows of `x` with `factor`. The result is there
    /// after [`Self::flush`].
    pub(crate) fn push(&mut self, x: Mat<'a>, factor: Factor<'a>, scale: f32, out: MatMut<'a>) {
        assert!(
            x.cols == factor.k && x.col_stride == 1 && out.rows == x.rows && out.cols == factor.n,
            "shapes of a narrow product do not fit"
        );
        assert!(!self.accumulate || scale == 1.0, "a sum is not scaled");
        if (self.k, self.dtype) != (factor.k, factor.dtype) {
            self.flush();
            (self.k, self.dtype) = (factor.k, factor.dtype);
        }
        let size = factor.dtype.size_bytes();
        let whole = PANEL * size * factor.k;
        let ahead = if whole > 2 * AHEAD_BYTES {
            AHEAD_BYTES
        } else {
            // The panels that come next.
            SIDE * whole
        };
        // Panels outside: the rows that share one run side by side.
        for panel in 0..factor.n.div_ceil(PANEL) {
            let width = factor.width(panel);
            let step = if factor.is_padded { PANEL } else { width };
            for row in 0..x.rows {
                // SAFETY: the row, the panel and this part of the output row
                // exist, by the constructors of the three and the assertion.
                self.waiting[self.n] = unsafe {
                    Strand {
                        x: x.data.as_ptr().add(row * x.row_stride),
                        panel: factor.bytes.as_ptr().add(panel * whole),
                        step: step * size,
                        ahead,
                        width,
                        scale,
                        out: out.data.add(row * out.row_stride + panel * PANEL),
                    }
                };
                self.n += 1;
                if self.n == SIDE {
                    self.flush();
                }
            }
        }
    }

    /// Runs what is waiting.
    pub(crate) fn flush(&mut self) {
        let n = std::mem::take(&mut self.n);
        if n == 0 {
            return;
        }
        match self.isa.0 {
            Level::Scalar => {
                for strand in &self.waiting[..n] {
                    // SAFETY: what `push` collected is borrowed for 'a and no
                    // two outputs overlap.
                    unsafe { self.run_scalar(*strand) };
                }
            }
            #[cfg(target_arch = "x86_64")]
            level => {
                // Places left over repeat the first chain into nowhere, which
                // takes no longer.
                let mut nowhere = [0.0_f32; PANEL];
                for i in n..SIDE {
                    self.waiting[i] = Strand {
                        out: nowhere.as_mut_ptr(),
                        ..self.waiting[0]
                    };
                }
                // SAFETY: as above; an `Isa` exists only for instructions this
                // CPU has, and behind each panel a vector can be read.
                unsafe {
                    x86::run(
                        level == Level::Avx512,
                        self.dtype,
                        self.k,
                        &self.waiting,
                        self.accumulate,
                    );
                }
            }
        }
    }

    /// The oracle.
    ///
    /// # Safety
    /// The strand's row, panel and output exist.
    unsafe fn run_scalar(&self, strand: Strand) {
        let Strand { step, width, .. } = strand;
        // SAFETY: the caller's promise.
        let (x, panel, out) = unsafe {
            (
                std::slice::from_raw_parts(strand.x, self.k),
                std::slice::from_raw_parts(strand.panel, self.k * step),
                std::slice::from_raw_parts_mut(strand.out, width),
            )
        };
        let mut line = [0.0_f32; PANEL];
        let mut sums = [0.0_f32; PANEL];
        if self.accumulate {
            sums[..width].copy_from_slice(out);
        }
        for (x, row) in x.iter().zip(panel.chunks_exact(step)) {
            self.dtype
                .decode(&row[..width * self.dtype.size_bytes()], &mut line[..width]);
            for (sum, b) in sums.iter_mut().zip(&line[..width]) {
                *sum = x.mul_add(*b, *sum);
            }
        }
        for (out, sum) in out.iter_mut().zip(sums) {
            *out = sum * strand.scale;
        }
    }
}

impl Drop for Strands<'_> {
    fn drop(&mut self) {
        self.flush();
    }
}

/// Bytes that begin at a cache line, with [`SLACK_BYTES`] behind them.
#[derive(Debug, Clone)]
pub(crate) struct FactorBytes {
    lines: Vec<super::Line>,
}

impl FactorBytes {
    /// `len` zeros.
    pub(crate) fn zeroed(len: usize) -> Self {
        let lines = (len + SLACK_BYTES).div_ceil(size_of::<super::Line>());
        Self {
            lines: vec![super::Line::ZERO; lines],
        }
    }

    /// All bytes, those behind included.
    pub(crate) fn bytes(&self) -> &[u8] {
        let size = size_of_val(self.lines.as_slice());
        // SAFETY: floats are bytes without padding, and any byte is valid.
        unsafe { std::slice::from_raw_parts(self.lines.as_ptr().cast(), size) }
    }

    /// As [`Self::bytes`].
    pub(crate) fn bytes_mut(&mut self) -> &mut [u8] {
        let size = size_of_val(self.lines.as_slice());
        // SAFETY: as above; any bytes are floats, and the borrow is exclusive.
        unsafe { std::slice::from_raw_parts_mut(self.lines.as_mut_ptr().cast(), size) }
    }
}

#[cfg(test)]
mod tests;
