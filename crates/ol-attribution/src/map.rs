//! The map from a gradient to a query sketch: what is committed and shipped.
//!
//! A sketch is `codes(Pᵀ x)`, with `x` the (reduced) gradient, `[d]`, and `P`
//! the matrix that [`fit`](crate::fit::fit) found, `[d, 128]`. `P` is stored as
//! one byte per number, with one factor per row.
//!
//! # Bit equality
//! Every machine must get the same sketch from the same gradient, so all sums
//! are integers: `x_j · factor_j` is rounded to 16 bits on a common power of
//! two (each step one correctly rounded IEEE operation), multiplied by the
//! stored bytes and added as integers, in which order does not matter.
//!
//! # File
//! Little-endian:
//!
//! | bytes | field |
//! |---|---|
//! | 8 | `OLSKMAP1` |
//! | 4 | `d`: 1 to 65,536 |
//! | 4 | length of the context, at most 65,536 |
//! | .. | context: what the map is for, opaque here |
//! | 4·d | factors, `f32`, finite, not negative |
//! | 128·d | bytes of `P`, row-major, each in -127..=127 |
//!
//! The map is named by keccak256 of the file.

use ol_poa::{K, QuerySketch};
use ol_types::{B256, keccak256};

const MAGIC: &[u8; 8] = b"OLSKMAP1";
const HEADER_SIZE_BYTES: usize = 16;

/// The largest gradient (after reduction) that a map takes.
pub const DIM_MAX: usize = 65_536;

/// The longest context of a map.
pub const CONTEXT_SIZE_BYTES_MAX: usize = 65_536;

/// Rows whose products are added in 32 bits before they go to 64: each is below
/// 2¹⁵ · 2⁷, so 2⁸ of them stay below 2³⁰.
const ROWS_PER_BLOCK: usize = 256;

/// From a gradient to the sketch of a query. Immutable, cheap to share.
#[derive(Debug, Clone, PartialEq)]
pub struct SketchMap {
    context: Vec<u8>,
    factors: Vec<f32>,
    codes: Vec<[i8; K]>,
}

impl SketchMap {
    /// Rounds the rows of `P` to bytes.
    pub(crate) fn quantise(context: Vec<u8>, rows: impl Iterator<Item = [f64; K]>) -> Self {
        let mut factors = Vec::new();
        let mut codes = Vec::new();
        for row in rows {
            let largest = row.iter().fold(0.0_f64, |max, x| max.max(x.abs()));
            #[expect(
                clippy::cast_possible_truncation,
                reason = "rounding a factor to f32 is the stored format"
            )]
            let factor = (largest / 127.0) as f32;
            factors.push(factor);
            let divisor = f64::from(factor);
            codes.push(row.map(|x| {
                if divisor == 0.0 {
                    0
                } else {
                    round_to_code(x / divisor)
                }
            }));
        }
        Self {
            context,
            factors,
            codes,
        }
    }

    /// Numbers that a gradient has.
    #[must_use]
    pub const fn dim(&self) -> usize {
        self.factors.len()
    }

    /// What the map is for, as given when it was fitted.
    #[must_use]
    pub fn context(&self) -> &[u8] {
        &self.context
    }

    /// The sketch of a gradient. All zero for a gradient of zeros: then nobody
    /// is paid for it.
    ///
    /// # Shapes and units
    /// `gradient`: `[d]`, any unit: only its direction counts.
    ///
    /// # Errors
    /// [`SketchError`] if the length is not `d` or a number is not finite.
    #[expect(clippy::missing_panics_doc, reason = "the expectation cannot fail")]
    pub fn sketch(&self, gradient: &[f32]) -> Result<QuerySketch, SketchError> {
        let sums = self.project(gradient)?.0;
        let largest = sums.iter().map(|x| x.unsigned_abs()).max().unwrap_or(0);
        let codes = sums.map(|sum| code_of(sum, largest));
        Ok(QuerySketch::new(codes).expect("codes are rounded to at most 127 in size"))
    }

    /// `Pᵀ x` as integers, and the exponent `e` of their unit: the real numbers
    /// are `sum · 2⁻ᵉ`.
    fn project(&self, gradient: &[f32]) -> Result<([i64; K], i32), SketchError> {
        if gradient.len() != self.dim() {
            return Err(SketchError::Length {
                expected: self.dim(),
                found: gradient.len(),
            });
        }
        // The product of two f32 is exact in f64.
        let scaled: Vec<f64> = gradient
            .iter()
            .zip(&self.factors)
            .map(|(&x, &factor)| f64::from(x) * f64::from(factor))
            .collect();
        let mut largest = 0.0_f64;
        for (position, x) in scaled.iter().enumerate() {
            if !x.is_finite() {
                return Err(SketchError::NotFinite { position });
            }
            largest = largest.max(x.abs());
        }
        if largest == 0.0 {
            return Ok(([0; K], 0));
        }
        // 2^14 <= largest * 2^exponent < 2^15.
        let exponent = 14 - exponent_of(largest);
        let unit = power_of_two(exponent);

        let mut sums = [0_i64; K];
        for (xs, rows) in scaled
            .chunks(ROWS_PER_BLOCK)
            .zip(self.codes.chunks(ROWS_PER_BLOCK))
        {
            let mut partial = [0_i32; K];
            for (&x, row) in xs.iter().zip(rows) {
                let x = round_to_i16(x * unit);
                add_scaled(&mut partial, x, row);
            }
            for (sum, part) in sums.iter_mut().zip(partial) {
                *sum += i64::from(part);
            }
        }
        Ok((sums, exponent))
    }

    /// The map as a file.
    #[must_use]
    #[expect(clippy::missing_panics_doc, reason = "the expectation cannot fail")]
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(self.size_bytes());
        bytes.extend_from_slice(MAGIC);
        for length in [self.dim(), self.context.len()] {
            let length = u32::try_from(length).expect("limited when the map was made");
            bytes.extend_from_slice(&length.to_le_bytes());
        }
        bytes.extend_from_slice(&self.context);
        for factor in &self.factors {
            bytes.extend_from_slice(&factor.to_le_bytes());
        }
        for row in &self.codes {
            bytes.extend(row.iter().map(|code| code.cast_unsigned()));
        }
        bytes
    }

    /// Length of the file.
    #[must_use]
    pub const fn size_bytes(&self) -> usize {
        HEADER_SIZE_BYTES + self.context.len() + self.dim() * (4 + K)
    }

    /// The name of the map: keccak256 of its file.
    #[must_use]
    pub fn hash(&self) -> B256 {
        keccak256(self.to_bytes())
    }

    /// Reads a map from its file.
    ///
    /// # Errors
    /// [`MapError`] if the file is not a whole, well-formed map of this
    /// version; nothing is allocated past its own size.
    #[expect(clippy::missing_panics_doc, reason = "the expectation cannot fail")]
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, MapError> {
        let (header, rest) = bytes
            .split_first_chunk::<HEADER_SIZE_BYTES>()
            .ok_or(MapError::Truncated)?;
        let (magic, lengths) = header.split_at(MAGIC.len());
        if magic != MAGIC {
            return Err(MapError::Format);
        }
        let [d, context_size_bytes] = [&lengths[..4], &lengths[4..]].map(|length| {
            let length = length.try_into().expect("four of eight bytes");
            usize::try_from(u32::from_le_bytes(length)).unwrap_or(usize::MAX)
        });
        if d == 0 || d > DIM_MAX || context_size_bytes > CONTEXT_SIZE_BYTES_MAX {
            return Err(MapError::TooLarge {
                d,
                context_size_bytes,
            });
        }
        if rest.len() != context_size_bytes + d * (4 + K) {
            return Err(MapError::Truncated);
        }
        let (context, rest) = rest.split_at(context_size_bytes);
        let (factors, codes) = rest.split_at(4 * d);
        let factors: Vec<f32> = factors
            .as_chunks::<4>()
            .0
            .iter()
            .map(|bytes| f32::from_le_bytes(*bytes))
            .collect();
        if let Some(row) = factors
            .iter()
            .position(|f| !f.is_finite() || f.is_sign_negative())
        {
            return Err(MapError::Value { row });
        }
        if let Some(at) = codes.iter().position(|&byte| byte == 0x80) {
            return Err(MapError::Value { row: at / K });
        }
        let codes = codes
            .as_chunks::<K>()
            .0
            .iter()
            .map(|row| row.map(u8::cast_signed))
            .collect();
        Ok(Self {
            context: context.to_vec(),
            factors,
            codes,
        })
    }
}

/// `sums += x · row`. Wrapping operations cannot wrap here (see
/// [`ROWS_PER_BLOCK`]); they keep overflow checks out of the inner loop.
#[inline]
fn add_scaled(sums: &mut [i32; K], x: i16, row: &[i8; K]) {
    for (sum, &code) in sums.iter_mut().zip(row) {
        *sum = sum.wrapping_add(i32::from(x).wrapping_mul(i32::from(code)));
    }
}

/// `127 · sum / largest`, rounded half away from zero, in integers.
fn code_of(sum: i64, largest: u64) -> i8 {
    if largest == 0 {
        return 0;
    }
    let magnitude =
        (254 * u128::from(sum.unsigned_abs()) + u128::from(largest)) / (2 * u128::from(largest));
    let code = i8::try_from(magnitude).expect("no sum is larger than the largest");
    if sum < 0 { -code } else { code }
}

/// The nearest code, ties to even, cut at 127.
#[expect(
    clippy::cast_possible_truncation,
    reason = "the value is clamped to the range of a code"
)]
pub(crate) fn round_to_code(x: f64) -> i8 {
    x.round_ties_even().clamp(-127.0, 127.0) as i8
}

#[expect(
    clippy::cast_possible_truncation,
    reason = "the value is clamped to the range of an i16"
)]
fn round_to_i16(x: f64) -> i16 {
    x.round_ties_even().clamp(-32_767.0, 32_767.0) as i16
}

/// The `e` with `2ᵉ <= x < 2ᵉ⁺¹`, of a positive normal number.
fn exponent_of(x: f64) -> i32 {
    let biased = (x.to_bits() >> 52) & 0x7ff;
    i32::try_from(biased).expect("eleven bits") - 1023
}

/// `2ᵉ`, for the exponents that products of two `f32` can have.
fn power_of_two(e: i32) -> f64 {
    let biased = u64::try_from(e + 1023).expect("a product of two f32 is between 2^-298 and 2^256");
    f64::from_bits(biased << 52)
}

/// Why a gradient has no sketch.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SketchError {
    /// The gradient is not of the model that the map is for.
    #[error("a gradient of {found} numbers, the map takes {expected}")]
    Length {
        /// What the map takes.
        expected: usize,
        /// What was given.
        found: usize,
    },
    /// The gradient is infinite or not a number: the model or its input is
    /// broken.
    #[error("number {position} of the gradient is not finite")]
    NotFinite {
        /// The first such number.
        position: usize,
    },
}

/// Why bytes are not a sketch map.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum MapError {
    /// The file is of another kind or version.
    #[error("not a sketch map of this version")]
    Format,
    /// The file is shorter or longer than its header says.
    #[error("the sketch map is cut short or has bytes left over")]
    Truncated,
    /// A length in the header is out of range.
    #[error(
        "a sketch map for {d} numbers with a context of {context_size_bytes} bytes is out of range"
    )]
    TooLarge {
        /// Numbers in a gradient.
        d: usize,
        /// Bytes of context.
        context_size_bytes: usize,
    },
    /// A factor is negative or not finite, or a code is -128.
    #[error("row {row} of the sketch map has a value out of range")]
    Value {
        /// Which row, from 0.
        row: usize,
    },
}

#[cfg(test)]
mod tests;
