//! Integer dot products for AVX2.
//!
//! `maddubs` multiplies unsigned by signed bytes and adds pairs to 16 bits. A
//! four-bit code times a signed byte, twice, is at most 3810, so eight of them
//! stay in 16 bits; a six-bit code gives 16002, so two of them do.

use std::arch::x86_64::{
    __m128i, __m256, __m256i, _MM_HINT_T0, _mm_loadu_si128, _mm_prefetch, _mm256_abs_epi8,
    _mm256_add_epi16, _mm256_add_epi32, _mm256_and_si256, _mm256_cvtepi8_epi16, _mm256_cvtepi32_ps,
    _mm256_cvtepu8_epi16, _mm256_cvtph_ps, _mm256_fmadd_ps, _mm256_fnmadd_ps, _mm256_loadu_si256,
    _mm256_madd_epi16, _mm256_maddubs_epi16, _mm256_mul_ps, _mm256_or_si256, _mm256_set1_epi8,
    _mm256_set1_epi16, _mm256_set1_epi32, _mm256_set1_ps, _mm256_setr_epi8, _mm256_setzero_ps,
    _mm256_setzero_si256, _mm256_shuffle_epi8, _mm256_sign_epi8, _mm256_slli_epi16,
    _mm256_slli_epi32, _mm256_srli_epi16, _mm256_storeu_ps, _mm256_sub_epi32,
};

use super::{Activations, PanelRef};
use crate::quant::Format;
use crate::quant::codes::{LANES, panel_block};

/// Pointers of one call: a panel and `R` rows of activations.
#[derive(Clone, Copy)]
struct Call<const R: usize> {
    head: *const u8,
    body: *const u8,
    blocks: usize,
    q: [*const i8; R],
    d: [*const f32; R],
    sums: [*const i16; R],
}

/// As [`PanelRef::dot`].
///
/// # Safety
/// The CPU has AVX2, FMA and F16C.
pub(super) unsafe fn dot(
    panel: PanelRef<'_>,
    x: &Activations,
    first: usize,
    out: &mut [[f32; LANES]],
) {
    match out.len() {
        0 => {}
        // SAFETY: passed on.
        1 => unsafe { dot_rows::<1>(panel, x, first, out) },
        // SAFETY: passed on.
        2 => unsafe { dot_rows::<2>(panel, x, first, out) },
        // SAFETY: passed on.
        3 => unsafe { dot_rows::<3>(panel, x, first, out) },
        // SAFETY: passed on.
        _ => unsafe { dot_rows::<4>(panel, x, first, out) },
    }
}

/// # Safety
/// As [`dot`]; `out` has `R` rows.
unsafe fn dot_rows<const R: usize>(
    panel: PanelRef<'_>,
    x: &Activations,
    first: usize,
    out: &mut [[f32; LANES]],
) {
    let rows: [super::Row<'_>; R] = std::array::from_fn(|r| x.row(first + r));
    let call = Call {
        head: panel.head.as_ptr(),
        body: panel.body.as_ptr(),
        blocks: panel.blocks,
        q: rows.map(|r| r.q.as_ptr()),
        d: rows.map(|r| r.d.as_ptr()),
        sums: rows.map(|r| r.sums.as_ptr()),
    };
    // SAFETY: `PanelRef::new` checked the panel's bytes, `PanelRef::dot` that the
    // rows are as long, `Activations::row` that they exist.
    let acc = unsafe {
        match panel.format {
            Format::Q8_0 => q8_0(call),
            Format::Q4_0 => q4_0(call),
            Format::Q4K => q4_k(call),
            Format::Q6K => q6_k(call),
            _ => unreachable!("not a format of integer codes"),
        }
    };
    for (acc, out) in acc.into_iter().zip(out) {
        // SAFETY: `out` holds eight floats.
        unsafe { store(out, acc) };
    }
}

/// # Safety
/// The CPU has AVX2.
#[target_feature(enable = "avx2")]
unsafe fn store(out: &mut [f32; LANES], acc: __m256) {
    // SAFETY: eight floats.
    unsafe { _mm256_storeu_ps(out.as_mut_ptr(), acc) };
}

/// How far ahead of the codes in use the next ones are asked for: the
/// prefetcher of the machine stops at the end of a page, and a panel is
/// passed too fast to wait for it to start again.
const AHEAD_BYTES: usize = 2048;

/// Asks for `64 LINES` bytes that will be read soon. A hint: it may name any
/// address.
#[inline]
#[target_feature(enable = "avx2")]
fn ask_ahead<const LINES: usize>(at: *const u8) {
    for line in 0..LINES {
        let at = at.wrapping_add(AHEAD_BYTES + 64 * line);
        _mm_prefetch::<_MM_HINT_T0>(at.cast());
    }
}

/// Four activations in every lane.
///
/// # Safety
/// Four bytes can be read.
#[inline]
#[target_feature(enable = "avx2")]
unsafe fn four(q: *const i8) -> __m256i {
    // SAFETY: the caller's promise.
    _mm256_set1_epi32(unsafe { q.cast::<i32>().read_unaligned() })
}

/// Two sums in every lane.
///
/// # Safety
/// Two sums can be read.
#[inline]
#[target_feature(enable = "avx2")]
unsafe fn two(sums: *const i16) -> __m256i {
    // SAFETY: the caller's promise.
    _mm256_set1_epi32(unsafe { sums.cast::<i32>().read_unaligned() })
}

/// # Safety
/// 32 bytes can be read.
#[inline]
#[target_feature(enable = "avx2")]
unsafe fn load(at: *const u8) -> __m256i {
    // SAFETY: the caller's promise.
    unsafe { _mm256_loadu_si256(at.cast()) }
}

/// # Safety
/// 16 bytes can be read.
#[inline]
#[target_feature(enable = "avx2")]
unsafe fn load_half(at: *const u8) -> __m128i {
    // SAFETY: the caller's promise.
    unsafe { _mm_loadu_si128(at.cast()) }
}

/// Eight half-precision scales.
///
/// # Safety
/// 16 bytes can be read.
#[inline]
#[target_feature(enable = "avx2,f16c")]
unsafe fn scales(at: *const u8) -> __m256 {
    // SAFETY: the caller's promise.
    _mm256_cvtph_ps(unsafe { load_half(at) })
}

/// Copies of the even (odd) one of two 16-bit numbers in each lane.
#[inline]
#[target_feature(enable = "avx2")]
fn spread() -> (__m256i, __m256i) {
    (
        _mm256_setr_epi8(
            0, 1, 0, 1, 4, 5, 4, 5, 8, 9, 8, 9, 12, 13, 12, 13, 0, 1, 0, 1, 4, 5, 4, 5, 8, 9, 8, 9,
            12, 13, 12, 13,
        ),
        _mm256_setr_epi8(
            2, 3, 2, 3, 6, 7, 6, 7, 10, 11, 10, 11, 14, 15, 14, 15, 2, 3, 2, 3, 6, 7, 6, 7, 10, 11,
            10, 11, 14, 15, 14, 15,
        ),
    )
}

/// # Safety
/// As [`dot_rows`].
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn q8_0<const R: usize>(call: Call<R>) -> [__m256; R] {
    let (head_size, body_size) = const { panel_block(Format::Q8_0) };
    let ones = _mm256_set1_epi16(1);
    let mut acc = [_mm256_setzero_ps(); R];
    for b in 0..call.blocks {
        // SAFETY: block b exists.
        let (head, body) = unsafe { (call.head.add(b * head_size), call.body.add(b * body_size)) };
        ask_ahead::<4>(body);
        let mut sum = [_mm256_setzero_si256(); R];
        for v in 0..8 {
            // SAFETY: a block has eight vectors.
            let w = unsafe { load(body.add(32 * v)) };
            let size = _mm256_abs_epi8(w);
            for (sum, q) in sum.iter_mut().zip(call.q) {
                // SAFETY: four of the 32 activations of the block.
                let x = unsafe { four(q.add(32 * b + 4 * v)) };
                // The sign goes to the activations, which are never -128.
                let x = _mm256_sign_epi8(x, w);
                let pairs = _mm256_maddubs_epi16(size, x);
                *sum = _mm256_add_epi32(*sum, _mm256_madd_epi16(pairs, ones));
            }
        }
        // SAFETY: the head of block b.
        let d = unsafe { scales(head) };
        for r in 0..R {
            // SAFETY: scale b of the row.
            let d = _mm256_mul_ps(d, _mm256_set1_ps(unsafe { *call.d[r].add(b) }));
            acc[r] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(sum[r]), d, acc[r]);
        }
    }
    acc
}

/// # Safety
/// As [`dot_rows`].
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn q4_0<const R: usize>(call: Call<R>) -> [__m256; R] {
    let (head_size, body_size) = const { panel_block(Format::Q4_0) };
    let ones = _mm256_set1_epi16(1);
    let nibble = _mm256_set1_epi8(15);
    let mut acc = [_mm256_setzero_ps(); R];
    for b in 0..call.blocks {
        // SAFETY: block b exists.
        let (head, body) = unsafe { (call.head.add(b * head_size), call.body.add(b * body_size)) };
        ask_ahead::<2>(body);
        let mut low_sum = [_mm256_setzero_si256(); R];
        let mut high_sum = [_mm256_setzero_si256(); R];
        for v in 0..4 {
            // SAFETY: a block has four vectors.
            let w = unsafe { load(body.add(32 * v)) };
            let low = _mm256_and_si256(w, nibble);
            let high = _mm256_and_si256(_mm256_srli_epi16::<4>(w), nibble);
            for r in 0..R {
                // SAFETY: four of the first 16 activations of the block.
                let x = unsafe { four(call.q[r].add(32 * b + 4 * v)) };
                low_sum[r] = _mm256_add_epi16(low_sum[r], _mm256_maddubs_epi16(low, x));
                // SAFETY: four of the last 16.
                let x = unsafe { four(call.q[r].add(32 * b + 16 + 4 * v)) };
                high_sum[r] = _mm256_add_epi16(high_sum[r], _mm256_maddubs_epi16(high, x));
            }
        }
        // SAFETY: the head of block b.
        let d = unsafe { scales(head) };
        for r in 0..R {
            let sum = _mm256_madd_epi16(_mm256_add_epi16(low_sum[r], high_sum[r]), ones);
            // SAFETY: sum b of the row.
            let offset = _mm256_set1_epi32(8 * i32::from(unsafe { *call.sums[r].add(b) }));
            let sum = _mm256_cvtepi32_ps(_mm256_sub_epi32(sum, offset));
            // SAFETY: scale b of the row.
            let d = _mm256_mul_ps(d, _mm256_set1_ps(unsafe { *call.d[r].add(b) }));
            acc[r] = _mm256_fmadd_ps(sum, d, acc[r]);
        }
    }
    acc
}

/// # Safety
/// As [`dot_rows`].
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn q4_k<const R: usize>(call: Call<R>) -> [__m256; R] {
    let (head_size, body_size) = const { panel_block(Format::Q4K) };
    let nibble = _mm256_set1_epi8(15);
    let (even, odd) = spread();
    let mut acc = [_mm256_setzero_ps(); R];
    for b in 0..call.blocks {
        // SAFETY: block b exists.
        let (head, body) = unsafe { (call.head.add(b * head_size), call.body.add(b * body_size)) };
        let mut sum = [_mm256_setzero_si256(); R];
        let mut min = [_mm256_setzero_si256(); R];
        ask_ahead::<2>(body.wrapping_add(1024));
        for p in 0..4 {
            ask_ahead::<4>(body.wrapping_add(256 * p));
            let mut low_sum = [_mm256_setzero_si256(); R];
            let mut high_sum = [_mm256_setzero_si256(); R];
            for v in 0..8 {
                // SAFETY: a pair of sub-blocks has eight vectors.
                let w = unsafe { load(body.add(256 * p + 32 * v)) };
                let low = _mm256_and_si256(w, nibble);
                let high = _mm256_and_si256(_mm256_srli_epi16::<4>(w), nibble);
                for r in 0..R {
                    let at = 256 * b + 64 * p + 4 * v;
                    // SAFETY: four activations of the even sub-block.
                    let x = unsafe { four(call.q[r].add(at)) };
                    low_sum[r] = _mm256_add_epi16(low_sum[r], _mm256_maddubs_epi16(low, x));
                    // SAFETY: four of the odd one.
                    let x = unsafe { four(call.q[r].add(at + 32)) };
                    high_sum[r] = _mm256_add_epi16(high_sum[r], _mm256_maddubs_epi16(high, x));
                }
            }
            // SAFETY: the scales and minima of this pair.
            let (scale, minimum) = unsafe {
                (
                    _mm256_cvtepu8_epi16(load_half(body.add(1024 + 16 * p))),
                    _mm256_cvtepu8_epi16(load_half(body.add(1088 + 16 * p))),
                )
            };
            let low_scale = _mm256_shuffle_epi8(scale, even);
            let high_scale = _mm256_shuffle_epi8(scale, odd);
            for r in 0..R {
                let low = _mm256_madd_epi16(low_sum[r], low_scale);
                let high = _mm256_madd_epi16(high_sum[r], high_scale);
                sum[r] = _mm256_add_epi32(sum[r], _mm256_add_epi32(low, high));
                // SAFETY: the two sums of this pair.
                let x = unsafe { two(call.sums[r].add(8 * b + 2 * p)) };
                min[r] = _mm256_add_epi32(min[r], _mm256_madd_epi16(minimum, x));
            }
        }
        // SAFETY: the head of block b.
        let (d, dmin) = unsafe { (scales(head), scales(head.add(16))) };
        for r in 0..R {
            // SAFETY: scale b of the row.
            let x = _mm256_set1_ps(unsafe { *call.d[r].add(b) });
            let (d, dmin) = (_mm256_mul_ps(d, x), _mm256_mul_ps(dmin, x));
            acc[r] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(sum[r]), d, acc[r]);
            acc[r] = _mm256_fnmadd_ps(_mm256_cvtepi32_ps(min[r]), dmin, acc[r]);
        }
    }
    acc
}

/// # Safety
/// As [`dot_rows`].
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn q6_k<const R: usize>(call: Call<R>) -> [__m256; R] {
    let (head_size, body_size) = const { panel_block(Format::Q6K) };
    let nibble = _mm256_set1_epi8(15);
    let two_bits = _mm256_set1_epi8(0x30);
    let (even, odd) = spread();
    let mut acc = [_mm256_setzero_ps(); R];
    for b in 0..call.blocks {
        // SAFETY: block b exists.
        let (head, body) = unsafe { (call.head.add(b * head_size), call.body.add(b * body_size)) };
        let mut sum = [_mm256_setzero_si256(); R];
        let mut offset = [_mm256_setzero_si256(); R];
        ask_ahead::<2>(body.wrapping_add(1536));
        for p in 0..8 {
            ask_ahead::<3>(body.wrapping_add(192 * p));
            // SAFETY: the scales of this pair of sub-blocks.
            let scale = _mm256_cvtepi8_epi16(unsafe { load_half(body.add(1536 + 16 * p)) });
            for (g, spread) in [(2 * p, even), (2 * p + 1, odd)] {
                // SAFETY: a sub-block has three vectors.
                let (a, c, bits) = unsafe {
                    let at = body.add(96 * g);
                    (load(at), load(at.add(32)), load(at.add(64)))
                };
                let low = |w| _mm256_and_si256(w, nibble);
                let high = |w| _mm256_and_si256(_mm256_srli_epi16::<4>(w), nibble);
                let top = |w| _mm256_and_si256(w, two_bits);
                let w = [
                    _mm256_or_si256(low(a), top(_mm256_slli_epi16::<4>(bits))),
                    _mm256_or_si256(high(a), top(_mm256_slli_epi16::<2>(bits))),
                    _mm256_or_si256(low(c), top(bits)),
                    _mm256_or_si256(high(c), top(_mm256_srli_epi16::<2>(bits))),
                ];
                let scale = _mm256_shuffle_epi8(scale, spread);
                for (sum, q) in sum.iter_mut().zip(call.q) {
                    // SAFETY: the 16 activations of the sub-block.
                    let at = unsafe { q.add(256 * b + 16 * g) };
                    // SAFETY: as above, four by four.
                    let (first, second) = unsafe {
                        (
                            _mm256_add_epi16(
                                _mm256_maddubs_epi16(w[0], four(at)),
                                _mm256_maddubs_epi16(w[1], four(at.add(4))),
                            ),
                            _mm256_add_epi16(
                                _mm256_maddubs_epi16(w[2], four(at.add(8))),
                                _mm256_maddubs_epi16(w[3], four(at.add(12))),
                            ),
                        )
                    };
                    let part = _mm256_add_epi32(
                        _mm256_madd_epi16(first, scale),
                        _mm256_madd_epi16(second, scale),
                    );
                    *sum = _mm256_add_epi32(*sum, part);
                }
            }
            for (offset, sums) in offset.iter_mut().zip(call.sums) {
                // SAFETY: the two sums of this pair.
                let x = unsafe { two(sums.add(16 * b + 2 * p)) };
                *offset = _mm256_add_epi32(*offset, _mm256_madd_epi16(scale, x));
            }
        }
        // SAFETY: the head of block b.
        let d = unsafe { scales(head) };
        for r in 0..R {
            let sum = _mm256_sub_epi32(sum[r], _mm256_slli_epi32::<5>(offset[r]));
            // SAFETY: scale b of the row.
            let d = _mm256_mul_ps(d, _mm256_set1_ps(unsafe { *call.d[r].add(b) }));
            acc[r] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(sum), d, acc[r]);
        }
    }
    acc
}
