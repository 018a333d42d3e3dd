//! Panels of sixteen rows in 16-bit formats and NF4, expanded to f32.

use half::{bf16, f16};

use crate::isa::{Isa, Level};
use crate::kernels::{Line, PANEL};
use crate::quant::{Format, NF4_TABLE};

/// Some columns of a panel.
#[derive(Clone, Copy)]
pub(crate) enum FloatPanel<'a> {
    /// F16 or BF16: sixteen values a column.
    Half(Format, &'a [u8]),
    /// NF4: blocks of 64 columns, twice eight vectors of 32 bytes (eight rows
    /// of eight codes); and the scales of each block.
    Nf4(&'a [u8], &'a [[f32; PANEL]]),
}

impl FloatPanel<'_> {
    fn n_columns(&self) -> usize {
        match self {
            Self::Half(_, values) => values.len() / (2 * PANEL),
            Self::Nf4(codes, scales) => (codes.len() / 512).min(scales.len()) * 64,
        }
    }

    /// Writes the columns, one to a line.
    pub(crate) fn expand(&self, isa: Isa, lines: &mut [Line]) {
        assert_eq!(self.n_columns(), lines.len(), "columns of a panel");
        match isa.0 {
            Level::Scalar => self.expand_scalar(lines),
            #[cfg(target_arch = "x86_64")]
            // SAFETY: an `Isa` exists only for instructions this CPU has; there
            // is a line for each column.
            Level::Avx2 | Level::Avx512 => unsafe {
                match *self {
                    Self::Half(Format::F16, values) => x86::f16(values, lines),
                    Self::Half(_, values) => x86::bf16(values, lines),
                    Self::Nf4(codes, scales) => x86::nf4(codes, scales, lines),
                }
            },
        }
    }

    /// The oracle.
    fn expand_scalar(&self, lines: &mut [Line]) {
        match *self {
            Self::Half(format, values) => {
                let values = values.as_chunks::<2>().0.iter();
                let lines = lines.iter_mut().flat_map(|l| &mut l.0);
                for (out, b) in lines.zip(values) {
                    *out = if format == Format::F16 {
                        f16::from_le_bytes(*b).to_f32()
                    } else {
                        bf16::from_le_bytes(*b).to_f32()
                    };
                }
            }
            Self::Nf4(codes, scales) => {
                for (k, line) in lines.iter_mut().enumerate() {
                    let (block, k) = (k / 64, k % 64);
                    for (lane, w) in line.0.iter_mut().enumerate() {
                        let at = 512 * block + 256 * (lane / 8) + 32 * (k / 8) + 4 * (lane % 8);
                        let code = codes[at + k % 8 / 2] >> (4 * (k % 2)) & 15;
                        *w = NF4_TABLE[usize::from(code)] * scales[block][lane];
                    }
                }
            }
        }
    }
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::{
        _mm_loadu_si128, _mm256_blendv_ps, _mm256_castsi256_ps, _mm256_cvtepu16_epi32,
        _mm256_cvtph_ps, _mm256_loadu_ps, _mm256_loadu_si256, _mm256_mul_ps,
        _mm256_permutevar8x32_ps, _mm256_slli_epi32, _mm256_srli_epi32, _mm256_storeu_ps,
    };

    use super::{Line, NF4_TABLE, PANEL};

    /// # Safety
    /// The CPU has AVX2 and F16C; `values` holds sixteen halves a line.
    #[target_feature(enable = "avx2,f16c")]
    pub(super) unsafe fn f16(values: &[u8], lines: &mut [Line]) {
        for (line, values) in lines.iter_mut().zip(values.as_chunks::<32>().0) {
            // SAFETY: 32 bytes read, sixteen floats written.
            unsafe {
                let from = values.as_ptr();
                let to = line.0.as_mut_ptr();
                _mm256_storeu_ps(to, _mm256_cvtph_ps(_mm_loadu_si128(from.cast())));
                let high = _mm_loadu_si128(from.add(16).cast());
                _mm256_storeu_ps(to.add(8), _mm256_cvtph_ps(high));
            }
        }
    }

    /// # Safety
    /// As [`f16`].
    #[target_feature(enable = "avx2")]
    pub(super) unsafe fn bf16(values: &[u8], lines: &mut [Line]) {
        for (line, values) in lines.iter_mut().zip(values.as_chunks::<32>().0) {
            for half in 0..2 {
                // SAFETY: 16 of the 32 bytes read, eight of sixteen floats written.
                unsafe {
                    let bits = _mm_loadu_si128(values.as_ptr().add(16 * half).cast());
                    let wide = _mm256_slli_epi32::<16>(_mm256_cvtepu16_epi32(bits));
                    let to = line.0.as_mut_ptr().add(8 * half);
                    _mm256_storeu_ps(to, _mm256_castsi256_ps(wide));
                }
            }
        }
    }

    /// # Safety
    /// The CPU has AVX2; there are 64 lines a block.
    #[target_feature(enable = "avx2")]
    pub(super) unsafe fn nf4(codes: &[u8], scales: &[[f32; PANEL]], lines: &mut [Line]) {
        // SAFETY: the table has sixteen values.
        let (low, high) = unsafe {
            (
                _mm256_loadu_ps(NF4_TABLE.as_ptr()),
                _mm256_loadu_ps(NF4_TABLE.as_ptr().add(8)),
            )
        };
        let blocks = lines.as_chunks_mut::<64>().0.iter_mut();
        for ((lines, codes), scales) in blocks.zip(codes.as_chunks::<512>().0).zip(scales) {
            for half in 0..2 {
                // SAFETY: eight of sixteen scales.
                let scale = unsafe { _mm256_loadu_ps(scales.as_ptr().add(8 * half)) };
                for (v, lines) in lines.as_chunks_mut::<8>().0.iter_mut().enumerate() {
                    // SAFETY: vector v of eight in this half.
                    let mut c = unsafe {
                        _mm256_loadu_si256(codes.as_ptr().add(256 * half + 32 * v).cast())
                    };
                    for line in lines {
                        // A permutation looks at three bits, a blend at the sign.
                        let fourth = _mm256_castsi256_ps(_mm256_slli_epi32::<28>(c));
                        let w = _mm256_blendv_ps(
                            _mm256_permutevar8x32_ps(low, c),
                            _mm256_permutevar8x32_ps(high, c),
                            fourth,
                        );
                        // SAFETY: eight of sixteen floats.
                        unsafe {
                            let to = line.0.as_mut_ptr().add(8 * half);
                            _mm256_storeu_ps(to, _mm256_mul_ps(w, scale));
                        }
                        c = _mm256_srli_epi32::<4>(c);
                    }
                }
            }
        }
    }
}
