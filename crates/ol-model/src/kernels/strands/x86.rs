//! Strands for x86-64.

use std::arch::x86_64::{
    __m256, __m256i, __m512, _MM_HINT_T0, _mm_loadu_si128, _mm_prefetch, _mm256_castsi256_ps,
    _mm256_cvtepu16_epi32, _mm256_cvtph_ps, _mm256_fmadd_ps, _mm256_loadu_ps, _mm256_loadu_si256,
    _mm256_maskload_ps, _mm256_maskstore_ps, _mm256_mul_ps, _mm256_set1_ps, _mm256_setzero_ps,
    _mm256_slli_epi32, _mm512_castsi512_ps, _mm512_cvtepu16_epi32, _mm512_cvtph_ps,
    _mm512_fmadd_ps, _mm512_loadu_ps, _mm512_mask_storeu_ps, _mm512_maskz_loadu_ps, _mm512_mul_ps,
    _mm512_set1_ps, _mm512_setzero_ps, _mm512_slli_epi32,
};

use super::{PANEL, SIDE, Strand};
use crate::weights::Dtype;

/// Runs `strands` on AVX-512, or on AVX2.
///
/// # Safety
/// Their rows (`k` floats), panels (`k` rows and a vector behind them) and
/// outputs exist, no two outputs overlap, and the CPU has the instructions.
pub(super) unsafe fn run(
    wide: bool,
    dtype: Dtype,
    k: usize,
    strands: &[Strand; SIDE],
    accumulate: bool,
) {
    let shared = strands.iter().all(|s| s.panel == strands[0].panel);
    // SAFETY: passed on.
    unsafe {
        match (wide, dtype, shared) {
            (true, Dtype::F32, false) => wide_f32::<false>(k, strands, accumulate),
            (true, Dtype::F32, true) => wide_f32::<true>(k, strands, accumulate),
            (true, Dtype::F16, false) => wide_f16::<false>(k, strands, accumulate),
            (true, Dtype::F16, true) => wide_f16::<true>(k, strands, accumulate),
            (true, Dtype::Bf16, false) => wide_bf16::<false>(k, strands, accumulate),
            (true, Dtype::Bf16, true) => wide_bf16::<true>(k, strands, accumulate),
            (false, Dtype::F32, false) => half_f32::<false>(k, strands, accumulate),
            (false, Dtype::F32, true) => half_f32::<true>(k, strands, accumulate),
            (false, Dtype::F16, false) => half_f16::<false>(k, strands, accumulate),
            (false, Dtype::F16, true) => half_f16::<true>(k, strands, accumulate),
            (false, Dtype::Bf16, false) => half_bf16::<false>(k, strands, accumulate),
            (false, Dtype::Bf16, true) => half_bf16::<true>(k, strands, accumulate),
        }
    }
}

/// A kernel from what tells its instruction set and type apart: registers of a
/// panel's row, and how they are loaded, summed and stored.
macro_rules! kernel {
    ($name:ident, $features:literal, $zero:ident, $add:ident, $row:expr, $start:ident, $finish:ident) => {
        /// # Safety
        /// As [`run`]; with `SHARED` all panels are the same.
        #[target_feature(enable = $features)]
        unsafe fn $name<const SHARED: bool>(k: usize, strands: &[Strand; SIDE], accumulate: bool) {
            let mut sums = [$zero(); SIDE];
            if accumulate {
                for (sum, strand) in sums.iter_mut().zip(strands) {
                    // SAFETY: `width` outputs are read.
                    *sum = unsafe { $start(strand.out, strand.width) };
                }
            }
            let mut at = strands.map(|s| s.panel);
            for i in 0..k {
                let mut row = $zero();
                for s in 0..SIDE {
                    if s == 0 || !SHARED {
                        // SAFETY: row i of the panel, and a vector behind it.
                        row = unsafe { $row(at[s]) };
                        _mm_prefetch::<_MM_HINT_T0>(at[s].wrapping_add(strands[s].ahead).cast());
                        at[s] = at[s].wrapping_add(strands[s].step);
                    }
                    // SAFETY: the row has k elements.
                    let x = unsafe { *strands[s].x.add(i) };
                    sums[s] = $add(x, row, sums[s]);
                }
            }
            for (sum, strand) in sums.into_iter().zip(strands) {
                // SAFETY: `width` outputs are written.
                unsafe { $finish(sum, strand.scale, strand.out, strand.width) };
            }
        }
    };
}

kernel!(
    wide_f32,
    "avx512f",
    _mm512_setzero_ps,
    wide_add,
    wide_row_f32,
    wide_start,
    wide_finish
);
kernel!(
    wide_f16,
    "avx512f",
    _mm512_setzero_ps,
    wide_add,
    wide_row_f16,
    wide_start,
    wide_finish
);
kernel!(
    wide_bf16,
    "avx512f",
    _mm512_setzero_ps,
    wide_add,
    wide_row_bf16,
    wide_start,
    wide_finish
);
kernel!(
    half_f32,
    "avx2,fma,f16c",
    half_zero,
    half_add,
    half_row_f32,
    half_start,
    half_finish
);
kernel!(
    half_f16,
    "avx2,fma,f16c",
    half_zero,
    half_add,
    half_row_f16,
    half_start,
    half_finish
);
kernel!(
    half_bf16,
    "avx2,fma,f16c",
    half_zero,
    half_add,
    half_row_bf16,
    half_start,
    half_finish
);

/// # Safety
/// 64 bytes can be read.
#[inline]
#[target_feature(enable = "avx512f")]
unsafe fn wide_row_f32(at: *const u8) -> __m512 {
    // SAFETY: the caller's promise.
    unsafe { _mm512_loadu_ps(at.cast()) }
}

/// # Safety
/// 32 bytes can be read.
#[inline]
#[target_feature(enable = "avx512f")]
unsafe fn wide_row_f16(at: *const u8) -> __m512 {
    // SAFETY: the caller's promise.
    _mm512_cvtph_ps(unsafe { _mm256_loadu_si256(at.cast()) })
}

/// # Safety
/// 32 bytes can be read.
#[inline]
#[target_feature(enable = "avx512f")]
unsafe fn wide_row_bf16(at: *const u8) -> __m512 {
    // SAFETY: the caller's promise.
    let bits = _mm512_cvtepu16_epi32(unsafe { _mm256_loadu_si256(at.cast()) });
    _mm512_castsi512_ps(_mm512_slli_epi32::<16>(bits))
}

#[inline]
#[target_feature(enable = "avx512f")]
fn wide_add(x: f32, row: __m512, sum: __m512) -> __m512 {
    _mm512_fmadd_ps(_mm512_set1_ps(x), row, sum)
}

/// The first `width` lanes.
#[inline]
fn wide_mask(width: usize) -> u16 {
    u16::MAX >> (PANEL - width)
}

/// # Safety
/// `width` floats can be read.
#[inline]
#[target_feature(enable = "avx512f")]
unsafe fn wide_start(from: *const f32, width: usize) -> __m512 {
    // SAFETY: the caller's promise.
    unsafe { _mm512_maskz_loadu_ps(wide_mask(width), from) }
}

/// # Safety
/// `width` floats can be written.
#[inline]
#[target_feature(enable = "avx512f")]
unsafe fn wide_finish(sum: __m512, scale: f32, to: *mut f32, width: usize) {
    let scaled = _mm512_mul_ps(sum, _mm512_set1_ps(scale));
    // SAFETY: the caller's promise.
    unsafe { _mm512_mask_storeu_ps(to, wide_mask(width), scaled) };
}

#[inline]
#[target_feature(enable = "avx2")]
fn half_zero() -> [__m256; 2] {
    [_mm256_setzero_ps(); 2]
}

/// # Safety
/// 64 bytes can be read.
#[inline]
#[target_feature(enable = "avx2")]
unsafe fn half_row_f32(at: *const u8) -> [__m256; 2] {
    // SAFETY: the caller's promise.
    unsafe {
        [
            _mm256_loadu_ps(at.cast()),
            _mm256_loadu_ps(at.add(32).cast()),
        ]
    }
}

/// # Safety
/// 32 bytes can be read.
#[inline]
#[target_feature(enable = "avx2,f16c")]
unsafe fn half_row_f16(at: *const u8) -> [__m256; 2] {
    // SAFETY: the caller's promise.
    let halves = unsafe {
        [
            _mm_loadu_si128(at.cast()),
            _mm_loadu_si128(at.add(16).cast()),
        ]
    };
    [_mm256_cvtph_ps(halves[0]), _mm256_cvtph_ps(halves[1])]
}

/// # Safety
/// 32 bytes can be read.
#[inline]
#[target_feature(enable = "avx2")]
unsafe fn half_row_bf16(at: *const u8) -> [__m256; 2] {
    // SAFETY: the caller's promise.
    let halves = unsafe {
        [
            _mm_loadu_si128(at.cast()),
            _mm_loadu_si128(at.add(16).cast()),
        ]
    };
    let low = _mm256_slli_epi32::<16>(_mm256_cvtepu16_epi32(halves[0]));
    let high = _mm256_slli_epi32::<16>(_mm256_cvtepu16_epi32(halves[1]));
    [_mm256_castsi256_ps(low), _mm256_castsi256_ps(high)]
}

#[inline]
#[target_feature(enable = "avx2,fma")]
fn half_add(x: f32, row: [__m256; 2], sum: [__m256; 2]) -> [__m256; 2] {
    let x = _mm256_set1_ps(x);
    [
        _mm256_fmadd_ps(x, row[0], sum[0]),
        _mm256_fmadd_ps(x, row[1], sum[1]),
    ]
}

/// The first `width` lanes of two registers.
#[inline]
#[target_feature(enable = "avx2")]
fn half_mask(width: usize) -> [__m256i; 2] {
    static LANES: [i32; 2 * PANEL] = {
        let mut lanes = [0; 2 * PANEL];
        let mut i = 0;
        while i < PANEL {
            lanes[i] = -1;
            i += 1;
        }
        lanes
    };
    let from = &LANES[PANEL - width..][..PANEL];
    // SAFETY: sixteen numbers, as sliced.
    unsafe {
        [
            _mm256_loadu_si256(from.as_ptr().cast()),
            _mm256_loadu_si256(from.as_ptr().add(8).cast()),
        ]
    }
}

/// # Safety
/// `width` floats can be read.
#[inline]
#[target_feature(enable = "avx2")]
unsafe fn half_start(from: *const f32, width: usize) -> [__m256; 2] {
    let mask = half_mask(width);
    // SAFETY: the caller's promise; lanes outside the mask are not touched.
    unsafe {
        [
            _mm256_maskload_ps(from, mask[0]),
            _mm256_maskload_ps(from.wrapping_add(8), mask[1]),
        ]
    }
}

/// # Safety
/// `width` floats can be written.
#[inline]
#[target_feature(enable = "avx2")]
unsafe fn half_finish(sum: [__m256; 2], scale: f32, to: *mut f32, width: usize) {
    let (mask, scale) = (half_mask(width), _mm256_set1_ps(scale));
    // SAFETY: as in `half_start`.
    unsafe {
        _mm256_maskstore_ps(to, mask[0], _mm256_mul_ps(sum[0], scale));
        _mm256_maskstore_ps(to.wrapping_add(8), mask[1], _mm256_mul_ps(sum[1], scale));
    }
}
