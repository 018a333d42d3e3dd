//! Products of quantised matrices.
//!
//! # Integer formats
//! A row of activations is rounded to signed bytes in blocks as long as those
//! of the weights, with one f32 scale each (the largest magnitude over 127).
//! The products of a block are summed as integers, which no order can change;
//! then the sum of an output is one chain over the blocks, ascending:
//!
//! `y = fma(sum, d_weights * d_activations, y)` and, where there are minima,
//! `y = fma(-sum_min, dmin_weights * d_activations, y)`.
//!
//! So, as in [`super`], every instruction set, number of threads and batch
//! size gives the same bits. Scale or minimum times byte times byte, summed over
//! 256 weights, is below 2^29.
//!
//! # Float formats
//! Weights are expanded to f32 on the way, and multiplied and added in the
//! order of [`super::gemm`]: the result is that of the expanded matrix.
#![cfg_attr(
    target_arch = "x86_64",
    expect(
        unsafe_code,
        reason = "vector intrinsics, called for detected instructions"
    )
)]
#![expect(
    clippy::cast_possible_truncation,
    clippy::cast_precision_loss,
    reason = "activations are rounded to bytes, sums to floats"
)]

mod expand;
mod float;
#[cfg(target_arch = "x86_64")]
mod x86;

pub(crate) use float::FloatPanel;

use half::f16;

use super::math::for_each_isa;
use crate::isa::{Isa, Level};
use crate::pool::{Parts, Pool};
use crate::quant::Format;
use crate::quant::codes::{Codes, LANES, panel_block};

/// Rows of activations that share one pass over the weights.
pub(crate) const MAX_ROWS: usize = 4;

/// Rows of activations, rounded to bytes.
pub(crate) struct Activations {
    /// `[rows, cols]`.
    q: Vec<i8>,
    /// Scale of each block.
    d: Vec<f32>,
    /// Sums of the bytes of each sub-block that has a minimum or an offset.
    sums: Vec<i16>,
    cols: usize,
    /// Bytes in a block.
    block: usize,
    /// Bytes in a sum.
    part: usize,
}

impl Activations {
    /// Rounds the rows of `x` for weights of `format` (integer codes).
    pub(crate) fn new(pool: &Pool, format: Format, x: &[f32], cols: usize) -> Self {
        let part = match format {
            Format::Q6K => 16,
            _ => 32,
        };
        let block = format.block();
        let mut this = Self {
            q: vec![0; x.len()],
            d: vec![0.0; x.len() / block],
            sums: vec![0; x.len() / part],
            cols,
            block,
            part,
        };
        let (q, d, sums) = (
            Parts::new(&mut this.q),
            Parts::new(&mut this.d),
            Parts::new(&mut this.sums),
        );
        let rows = x.len() / cols.max(1);
        let chunk = (1_usize << 14).div_ceil(cols.max(1));
        pool.ranges(rows, chunk, &|rows| {
            let all = rows.start * cols..rows.end * cols;
            q.with(all.clone(), |q| {
                d.with(all.start / block..all.end / block, |d| {
                    sums.with(all.start / part..all.end / part, |sums| {
                        round_blocks(pool.isa(), &x[all.clone()], block, part, q, d, sums);
                    });
                });
            });
        });
        this
    }

    /// Where row `row` starts.
    fn row(&self, row: usize) -> Row<'_> {
        Row {
            q: &self.q[row * self.cols..(row + 1) * self.cols],
            d: &self.d[row * self.cols / self.block..(row + 1) * self.cols / self.block],
            sums: &self.sums[row * self.cols / self.part..(row + 1) * self.cols / self.part],
        }
    }
}

/// One row of [`Activations`].
#[derive(Clone, Copy)]
struct Row<'a> {
    q: &'a [i8],
    d: &'a [f32],
    sums: &'a [i16],
}

/// Rounds to bytes block by block. A block that is not finite gets the scale
/// NaN, so that its products are NaN too.
#[inline(always)]
fn round_blocks_body(
    x: &[f32],
    block: usize,
    part: usize,
    q: &mut [i8],
    d: &mut [f32],
    sums: &mut [i16],
) {
    /// Adding it rounds to the nearest integer, ties to even; that lands in
    /// the low bits.
    const ROUND: f32 = 12_582_912.0;
    for ((x, q), d) in x
        .chunks_exact(block)
        .zip(q.chunks_exact_mut(block))
        .zip(&mut *d)
    {
        // Of values without sign, the larger has the larger bits; infinity and
        // NaN have the largest.
        let peak = x
            .iter()
            .fold(0_u32, |m, v| m.max(v.to_bits() & 0x7FFF_FFFF));
        let peak = f32::from_bits(peak);
        if !peak.is_finite() || peak < 1e-30 {
            q.fill(0);
            *d = if peak.is_finite() { 0.0 } else { f32::NAN };
            continue;
        }
        *d = peak / 127.0;
        let inverse = 127.0 / peak;
        for (q, x) in q.iter_mut().zip(x) {
            let t = x * inverse + ROUND;
            *q = (t.to_bits() as u8).cast_signed();
        }
    }
    for (sum, q) in sums.iter_mut().zip(q.chunks_exact(part)) {
        *sum = q
            .iter()
            .fold(0_i16, |sum, q| sum.wrapping_add(i16::from(*q)));
    }
}

for_each_isa!(round_blocks(
    x: &[f32],
    block: usize,
    part: usize,
    q: &mut [i8],
    d: &mut [f32],
    sums: &mut [i16],
) => round_blocks_body);

/// One panel of eight rows of weights.
#[derive(Clone, Copy)]
pub(crate) struct PanelRef<'a> {
    format: Format,
    /// Scales of all blocks.
    head: &'a [u8],
    /// Codes of all blocks.
    body: &'a [u8],
    blocks: usize,
}

impl<'a> PanelRef<'a> {
    /// A panel of `blocks` blocks.
    pub(crate) fn new(format: Format, head: &'a [u8], body: &'a [u8], blocks: usize) -> Self {
        let (head_size, body_size) = panel_block(format);
        assert!(
            head.len() >= blocks * head_size && body.len() >= blocks * body_size,
            "panel outside its bytes"
        );
        Self {
            format,
            head,
            body,
            blocks,
        }
    }

    /// Codes of lane `lane` of block `block`.
    pub(crate) fn codes(&self, block: usize, lane: usize) -> Codes {
        let (head, body) = panel_block(self.format);
        Codes::from_panel(
            self.format,
            &self.head[block * head..][..head],
            &self.body[block * body..][..body],
            lane,
        )
    }

    /// Products of the eight rows with activations `first ..`, one for each
    /// element of `out` (at most [`MAX_ROWS`]).
    pub(crate) fn dot(&self, isa: Isa, x: &Activations, first: usize, out: &mut [[f32; LANES]]) {
        assert!(
            out.len() <= MAX_ROWS && self.blocks * self.format.block() == x.cols,
            "shape of a quantised product"
        );
        match isa.0 {
            Level::Scalar => self.dot_scalar(x, first, out),
            #[cfg(target_arch = "x86_64")]
            // SAFETY: an `Isa` exists only for instructions this CPU has; the
            // panel has its bytes (`new`) and the rows have `x.cols` (`row`).
            Level::Avx2 | Level::Avx512 => unsafe { x86::dot(*self, x, first, out) },
        }
    }

    /// The oracle.
    fn dot_scalar(&self, x: &Activations, first: usize, out: &mut [[f32; LANES]]) {
        out.fill([0.0; LANES]);
        let (block, parts) = (x.block, x.block / x.part);
        for b in 0..self.blocks {
            let lanes: [Codes; LANES] = std::array::from_fn(|lane| self.codes(b, lane));
            for (r, out) in out.iter_mut().enumerate() {
                let row = x.row(first + r);
                let q = &row.q[b * block..][..block];
                let sums = &row.sums[b * parts..][..parts];
                for (codes, y) in lanes.iter().zip(out) {
                    let (sum, min) = block_sums(self.format, codes, q, sums);
                    let d = f16::from_bits(codes.d).to_f32() * row.d[b];
                    *y = (sum as f32).mul_add(d, *y);
                    if self.format == Format::Q4K {
                        let d = f16::from_bits(codes.dmin).to_f32() * row.d[b];
                        *y = (-(min as f32)).mul_add(d, *y);
                    }
                }
            }
        }
    }
}

/// The integer sums of one block: of the codes and of the minima.
fn block_sums(format: Format, codes: &Codes, x: &[i8], sums: &[i16]) -> (i32, i32) {
    fn dot(q: &[u8], x: &[i8]) -> i32 {
        let products = q.iter().zip(x).map(|(q, x)| i32::from(*q) * i32::from(*x));
        products.fold(0, i32::wrapping_add)
    }
    match format {
        Format::Q8_0 => {
            let products = codes.q.iter().zip(x);
            let sum = products.map(|(q, x)| i32::from(q.cast_signed()) * i32::from(*x));
            (sum.fold(0, i32::wrapping_add), 0)
        }
        Format::Q4_0 => (dot(&codes.q, x) - 8 * i32::from(sums[0]), 0),
        Format::Q4K => {
            let (mut sum, mut min) = (0, 0);
            for (j, x_sum) in sums.iter().enumerate() {
                let part = 32 * j..32 * j + 32;
                sum += i32::from(codes.scales[j]) * dot(&codes.q[part.clone()], &x[part]);
                min += i32::from(codes.mins[j]) * i32::from(*x_sum);
            }
            (sum, min)
        }
        Format::Q6K => {
            let mut sum = 0;
            for (j, x_sum) in sums.iter().enumerate() {
                let part = 16 * j..16 * j + 16;
                let product = dot(&codes.q[part.clone()], &x[part]) - 32 * i32::from(*x_sum);
                sum += i32::from(codes.scales[j].cast_signed()) * product;
            }
            (sum, 0)
        }
        _ => unreachable!("not a format of integer codes"),
    }
}
