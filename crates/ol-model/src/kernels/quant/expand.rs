//! Panels of integer formats, expanded to f32.
//!
//! The operations are those of [`Codes::dequantise`] in its order: no product
//! is fused with a difference, so the bits are the same.

use super::PanelRef;
use crate::isa::{Isa, Level};
use crate::kernels::Line;
use crate::quant::codes::{Codes, LANES, MAX_BLOCK};

impl PanelRef<'_> {
    /// Writes the blocks from `first` on, one column a line, the eight rows into
    /// half `half` of the lines.
    pub(crate) fn expand(&self, isa: Isa, first: usize, half: usize, lines: &mut [Line]) {
        let block = self.format.block();
        assert!(
            lines.len().is_multiple_of(block)
                && first + lines.len() / block <= self.blocks
                && half < 2,
            "columns of a panel"
        );
        for (b, lines) in (first..).zip(lines.chunks_exact_mut(block)) {
            match isa.0 {
                Level::Scalar => self.expand_scalar(b, half, lines),
                #[cfg(target_arch = "x86_64")]
                // SAFETY: an `Isa` exists only for instructions this CPU has; the
                // block exists and there is a line for each column.
                Level::Avx2 | Level::Avx512 => unsafe { x86::expand(self, b, half, lines) },
            }
        }
    }

    /// The oracle.
    fn expand_scalar(&self, b: usize, half: usize, lines: &mut [Line]) {
        let mut row = [0.0_f32; MAX_BLOCK];
        for lane in 0..LANES {
            let codes: Codes = self.codes(b, lane);
            codes.dequantise(self.format, &mut row[..lines.len()]);
            for (line, w) in lines.iter_mut().zip(&row) {
                line.0[LANES * half + lane] = *w;
            }
        }
    }
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::{
        __m256, __m256i, _mm_cvtsi32_si128, _mm_loadu_si128, _mm256_and_si256,
        _mm256_cvtepi8_epi16, _mm256_cvtepi32_ps, _mm256_cvtepu8_epi16, _mm256_cvtph_ps,
        _mm256_loadu_si256, _mm256_mul_ps, _mm256_or_si256, _mm256_set1_epi8, _mm256_set1_epi32,
        _mm256_set1_ps, _mm256_setzero_ps, _mm256_slli_epi16, _mm256_slli_epi32, _mm256_srai_epi32,
        _mm256_srl_epi32, _mm256_srli_epi16, _mm256_storeu_ps, _mm256_sub_ps, _mm256_xor_si256,
    };

    use super::super::PanelRef;
    use crate::kernels::Line;
    use crate::quant::Format;
    use crate::quant::codes::{LANES, panel_block};

    /// One block.
    ///
    /// # Safety
    /// The CPU has AVX2 and F16C; block `b` exists and has a line a column.
    #[target_feature(enable = "avx2,f16c")]
    pub(super) unsafe fn expand(panel: &PanelRef<'_>, b: usize, half: usize, lines: &mut [Line]) {
        let (head_size, body_size) = panel_block(panel.format);
        let head = &panel.head[b * head_size..][..head_size];
        let body = &panel.body[b * body_size..][..body_size];
        // SAFETY: a head holds at least eight halves.
        let d = unsafe { halves(head) };
        let low = |v| _mm256_and_si256(v, _mm256_set1_epi8(15));
        let high = |v| _mm256_and_si256(_mm256_srli_epi16::<4>(v), _mm256_set1_epi8(15));
        let zero = _mm256_setzero_ps();
        let mut put = |first: usize, v: __m256i, scale: __m256, offset: __m256, min: __m256| {
            for (i, line) in (0..).zip(&mut lines[first..first + 4]) {
                let byte = _mm256_srl_epi32(v, _mm_cvtsi32_si128(8 * i));
                let byte = _mm256_and_si256(byte, _mm256_set1_epi32(255));
                let q = _mm256_sub_ps(_mm256_cvtepi32_ps(byte), offset);
                let w = _mm256_sub_ps(_mm256_mul_ps(scale, q), min);
                // SAFETY: eight of sixteen floats.
                unsafe { _mm256_storeu_ps(line.0.as_mut_ptr().add(LANES * half), w) };
            }
        };
        match panel.format {
            Format::Q8_0 => {
                for v in 0..8 {
                    // SAFETY: a block has eight vectors.
                    let w = unsafe { vector(body, v) };
                    // Signed bytes, seen as unsigned ones 128 higher.
                    let w = unsigned(w);
                    put(4 * v, w, d, _mm256_set1_ps(128.0), zero);
                }
            }
            Format::Q4_0 => {
                for v in 0..4 {
                    // SAFETY: a block has four vectors.
                    let w = unsafe { vector(body, v) };
                    let eight = _mm256_set1_ps(8.0);
                    put(4 * v, low(w), d, eight, zero);
                    put(16 + 4 * v, high(w), d, eight, zero);
                }
            }
            Format::Q4K => {
                // SAFETY: the head holds sixteen halves.
                let dmin = unsafe { halves(&head[16..]) };
                for p in 0..4 {
                    // SAFETY: scales and minima of the pair.
                    let (scale, min) = unsafe {
                        let at = body.as_ptr().add(1024 + 16 * p);
                        (
                            _mm256_cvtepu8_epi16(_mm_loadu_si128(at.cast())),
                            _mm256_cvtepu8_epi16(_mm_loadu_si128(at.add(64).cast())),
                        )
                    };
                    let (scale, min) = (pair(scale), pair(min));
                    for v in 0..8 {
                        // SAFETY: a pair of sub-blocks has eight vectors.
                        let w = unsafe { vector(body, 8 * p + v) };
                        let at = 64 * p + 4 * v;
                        let of =
                            |j: usize| (_mm256_mul_ps(d, scale[j]), _mm256_mul_ps(dmin, min[j]));
                        put(at, low(w), of(0).0, zero, of(0).1);
                        put(at + 32, high(w), of(1).0, zero, of(1).1);
                    }
                }
            }
            Format::Q6K => {
                let top = |v| _mm256_and_si256(v, _mm256_set1_epi8(0x30));
                let offset = _mm256_set1_ps(32.0);
                for g in 0..16 {
                    // SAFETY: the scales of the pair, three vectors a sub-block.
                    let (scale, a, c, bits) = unsafe {
                        let at = body.as_ptr().add(1536 + 16 * (g / 2));
                        (
                            _mm256_cvtepi8_epi16(_mm_loadu_si128(at.cast())),
                            vector(body, 3 * g),
                            vector(body, 3 * g + 1),
                            vector(body, 3 * g + 2),
                        )
                    };
                    let scale = _mm256_mul_ps(d, pair(scale)[g % 2]);
                    let w = [
                        _mm256_or_si256(low(a), top(_mm256_slli_epi16::<4>(bits))),
                        _mm256_or_si256(high(a), top(_mm256_slli_epi16::<2>(bits))),
                        _mm256_or_si256(low(c), top(bits)),
                        _mm256_or_si256(high(c), top(_mm256_srli_epi16::<2>(bits))),
                    ];
                    for (i, w) in w.into_iter().enumerate() {
                        put(16 * g + 4 * i, w, scale, offset, zero);
                    }
                }
            }
            _ => unreachable!("not a format of integer codes"),
        }
    }

    /// Turns the sign bit of every byte over: adds 128 to signed bytes.
    #[target_feature(enable = "avx2")]
    fn unsigned(v: __m256i) -> __m256i {
        _mm256_xor_si256(v, _mm256_set1_epi8(-128))
    }

    /// The even and the odd of two signed 16-bit numbers in each lane.
    #[target_feature(enable = "avx2")]
    fn pair(v: __m256i) -> [__m256; 2] {
        let even = _mm256_srai_epi32::<16>(_mm256_slli_epi32::<16>(v));
        let odd = _mm256_srai_epi32::<16>(v);
        [_mm256_cvtepi32_ps(even), _mm256_cvtepi32_ps(odd)]
    }

    /// Eight halves.
    ///
    /// # Safety
    /// There are sixteen bytes.
    #[target_feature(enable = "avx2,f16c")]
    unsafe fn halves(bytes: &[u8]) -> __m256 {
        assert!(bytes.len() >= 16, "eight halves");
        // SAFETY: sixteen bytes, as asserted.
        _mm256_cvtph_ps(unsafe { _mm_loadu_si128(bytes.as_ptr().cast()) })
    }

    /// Vector `i` of a block.
    ///
    /// # Safety
    /// It exists.
    #[target_feature(enable = "avx2")]
    unsafe fn vector(body: &[u8], i: usize) -> __m256i {
        // SAFETY: the caller's promise.
        unsafe { _mm256_loadu_si256(body.as_ptr().add(32 * i).cast()) }
    }
}
