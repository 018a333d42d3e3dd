//! Quantised weights: block formats, and matrices that are multiplied without
//! being expanded.
//!
//! The formats are those of GGUF files (Q8_0, Q4_0, Q4_K, Q6_K, F16, BF16) and
//! NF4 of QLoRA; all hold blocks along a row. [`QuantMatrix`] keeps them in an
//! order that suits the kernels; [`QuantMatrix::stored_row`] gives the file's
//! bytes back.
//!
//! # Source
//! The GGUF specification and `ggml-quants.c` (layouts); Dettmers et al.,
//! "QLoRA", arXiv:2305.14314 (NF4, double quantisation).

pub(crate) mod codes;
mod encode;
mod matrix;
mod nf4;
#[cfg(test)]
mod tests;

pub use matrix::QuantMatrix;
pub(crate) use nf4::TABLE as NF4_TABLE;

use half::{bf16, f16};
use thiserror::Error;

/// How the weights of a matrix are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Format {
    /// 16-bit IEEE half.
    F16,
    /// 16-bit with f32's exponent.
    Bf16,
    /// 32 signed bytes and a half-precision scale.
    Q8_0,
    /// 32 four-bit codes from -8 to 7 and a half-precision scale.
    Q4_0,
    /// 256 four-bit codes; each 32 have a six-bit scale and a six-bit minimum.
    Q4K,
    /// 256 six-bit codes; each 16 have an eight-bit scale.
    Q6K,
    /// 64 codes into a table of sixteen values, and an f32 scale.
    Nf4,
    /// As [`Format::Nf4`], the scales themselves in eight bits.
    Nf4Double,
}

/// Why a matrix cannot be quantised or its bytes not be used.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum QuantError {
    /// Rows must consist of whole blocks.
    #[error("rows of {cols} weights are not whole {format} blocks of {block}")]
    Columns {
        /// Name of the format.
        format: &'static str,
        /// Weights in a row.
        cols: usize,
        /// Weights in a block.
        block: usize,
    },
    /// The data are too short or too long for the shape.
    #[error("a {rows} x {cols} matrix in {format} takes {expected} {unit}, got {got}")]
    Length {
        /// Name of the format.
        format: &'static str,
        /// Rows.
        rows: usize,
        /// Weights in a row.
        cols: usize,
        /// Bytes or weights.
        unit: &'static str,
        /// Number needed.
        expected: usize,
        /// Number given.
        got: usize,
    },
    /// A weight or scale is infinite or not a number.
    #[error("row {row}: a weight or scale is not finite, or too large for {format}")]
    NotFinite {
        /// Name of the format.
        format: &'static str,
        /// First row concerned.
        row: usize,
    },
}

impl Format {
    /// Every format.
    pub const ALL: [Self; 8] = [
        Self::F16,
        Self::Bf16,
        Self::Q8_0,
        Self::Q4_0,
        Self::Q4K,
        Self::Q6K,
        Self::Nf4,
        Self::Nf4Double,
    ];

    /// Name, as in GGUF.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::F16 => "F16",
            Self::Bf16 => "BF16",
            Self::Q8_0 => "Q8_0",
            Self::Q4_0 => "Q4_0",
            Self::Q4K => "Q4_K",
            Self::Q6K => "Q6_K",
            Self::Nf4 => "NF4",
            Self::Nf4Double => "NF4_DOUBLE",
        }
    }

    /// The format of that name, in any case.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL
            .into_iter()
            .find(|f| f.name().eq_ignore_ascii_case(name))
    }

    /// Weights in a block.
    #[must_use]
    pub const fn block(self) -> usize {
        match self {
            Self::F16 | Self::Bf16 => 1,
            Self::Q8_0 | Self::Q4_0 => 32,
            Self::Q4K | Self::Q6K => 256,
            Self::Nf4 | Self::Nf4Double => 64,
        }
    }

    /// Bytes of a stored block. Double-quantised NF4 has besides an f32 for
    /// each 256 blocks and one for the matrix.
    #[must_use]
    pub const fn block_size_bytes(self) -> usize {
        match self {
            Self::F16 | Self::Bf16 => 2,
            Self::Q8_0 => 34,
            Self::Q4_0 => 18,
            Self::Q4K => 144,
            Self::Q6K => 210,
            Self::Nf4 => 36,
            Self::Nf4Double => 33,
        }
    }

    /// Whether [`QuantMatrix::product`] rounds the activations to eight bits
    /// and multiplies integers.
    #[must_use]
    pub const fn is_integer(self) -> bool {
        matches!(self, Self::Q8_0 | Self::Q4_0 | Self::Q4K | Self::Q6K)
    }

    /// Bytes of a stored matrix, if it can be stored so and they can be counted.
    pub(crate) fn size_bytes(self, rows: usize, cols: usize) -> Result<usize, QuantError> {
        let blocks = cols / self.block();
        if !cols.is_multiple_of(self.block()) {
            return Err(QuantError::Columns {
                format: self.name(),
                cols,
                block: self.block(),
            });
        }
        blocks
            .checked_mul(rows)
            .and_then(|n| n.checked_mul(self.block_size_bytes()))
            .ok_or(QuantError::Length {
                format: self.name(),
                rows,
                cols,
                unit: "bytes",
                expected: usize::MAX,
                got: 0,
            })
    }
}

/// Writes the values of one stored row to `out`.
///
/// # Errors
/// [`QuantError`] when the row is not as long as `out` asks for, or holds a
/// scale that is not finite.
///
/// # Panics
/// For NF4, whose scales lie apart from the codes.
pub(crate) fn dequantise(format: Format, stored: &[u8], out: &mut [f32]) -> Result<(), QuantError> {
    let expected = format.size_bytes(1, out.len())?;
    if stored.len() != expected {
        return Err(QuantError::Length {
            format: format.name(),
            rows: 1,
            cols: out.len(),
            unit: "bytes",
            expected,
            got: stored.len(),
        });
    }
    match format {
        Format::F16 => {
            for (out, b) in out.iter_mut().zip(stored.as_chunks::<2>().0) {
                *out = f16::from_le_bytes(*b).to_f32();
            }
        }
        Format::Bf16 => {
            for (out, b) in out.iter_mut().zip(stored.as_chunks::<2>().0) {
                *out = bf16::from_le_bytes(*b).to_f32();
            }
        }
        Format::Q8_0 | Format::Q4_0 | Format::Q4K | Format::Q6K => {
            let blocks = stored.chunks_exact(format.block_size_bytes());
            for (stored, out) in blocks.zip(out.chunks_exact_mut(format.block())) {
                codes::Codes::from_stored(format, stored).dequantise(format, out);
            }
        }
        Format::Nf4 | Format::Nf4Double => unreachable!("NF4 is not stored by rows"),
    }
    if out.iter().all(|v| v.is_finite()) {
        Ok(())
    } else {
        Err(QuantError::NotFinite {
            format: format.name(),
            row: 0,
        })
    }
}

/// Appends the stored form of one row.
///
/// # Panics
/// If the row is not whole blocks of finite weights, or the format is NF4.
pub(crate) fn quantise(format: Format, row: &[f32], out: &mut Vec<u8>) {
    match format {
        Format::F16 => out.extend(row.iter().flat_map(|v| f16::from_f32(*v).to_le_bytes())),
        Format::Bf16 => out.extend(row.iter().flat_map(|v| bf16::from_f32(*v).to_le_bytes())),
        Format::Q8_0 | Format::Q4_0 | Format::Q4K | Format::Q6K => {
            assert!(
                row.len().is_multiple_of(format.block()),
                "a row of whole blocks"
            );
            for block in row.chunks_exact(format.block()) {
                let start = out.len();
                out.resize(start + format.block_size_bytes(), 0);
                encode::encode(format, block).to_stored(format, &mut out[start..]);
            }
        }
        Format::Nf4 | Format::Nf4Double => unreachable!("NF4 is not stored by rows"),
    }
}
