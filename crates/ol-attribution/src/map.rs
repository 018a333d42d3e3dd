//! The map from a gradient to a sketch: what is committed and shipped.
//!
//! A sketch is `codes(Pᵀ x)`, with `x` the (reduced) gradient, `[d]`, and `P`
//! the matrix that [`fit`](crate::fit::fit) found, `[d, 256]`. Records and
//! answers go through the same map and are only rounded differently: an answer
//! counts by its direction alone, so its largest number becomes 127; a record
//! has four bits for each number and a scale.
//!
//! `P` is stored as one factor for each row and small codes: eight bits for each
//! number, or two (-3, -1, 1 or 3) where the file would have more than 16 MiB.
//! Then a gradient has so many numbers that what rounding adds to the 256 sums
//! averages out.
//!
//! # Bit equality
//! Every machine must get the same sketch from the same gradient, so all sums
//! are integers: `x_j · factor_j` is rounded to 16 bits on a common power of
//! two (each step one correctly rounded IEEE operation), multiplied by the
//! stored codes and added as integers, in which order does not matter.
//!
//! # File
//! Little-endian:
//!
//! | bytes | field |
//! |---|---|
//! | 8 | `OLSKMAP2` |
//! | 4 | `d`: 1 to 4,194,304 |
//! | 4 | length of the context, at most 65,536 |
//! | 4 | bits of a code, 2 or 8 |
//! | 8 | unit of the records' scales, `f64`, finite, above 0 |
//! | .. | context: what the map is for, opaque here |
//! | 4·d | factors, `f32`, finite, not negative |
//! | 256·d | codes of 8 bits, row-major, each in -127..=127; or |
//! | 64·d | codes of 2 bits: byte `t` of a row has the numbers `t`, `64 + t`, `128 + t` and `192 + t` from its lowest bits up; `b` stands for `2b - 3` |
//!
//! The map is named by keccak256 of the file.

use ol_poa::{CODE_MAX, K, QuerySketch};
use ol_types::{B256, keccak256};

const MAGIC: &[u8; 8] = b"OLSKMAP2";
const HEADER_SIZE_BYTES: usize = 28;

/// The largest gradient (after reduction) that a map takes.
pub const DIM_MAX: usize = 1 << 22;

/// The longest context of a map.
pub const CONTEXT_SIZE_BYTES_MAX: usize = 65_536;

/// Longest file whose codes have eight bits.
const WIDE_SIZE_BYTES_MAX: usize = 16 << 20;

/// Bytes of a row of codes of two bits.
const NARROW_SIZE_BYTES: usize = K / 4;

/// Rows whose products are added in 32 bits before they go to 64: each is below
/// 2¹⁵ · 2⁷, so 2⁸ of them stay below 2³⁰.
const ROWS_PER_BLOCK: usize = 256;

/// Width of a step of the two-bit codes over the standard deviation: what has
/// the least square error for normal numbers.
///
/// # Source
/// Max, "Quantizing for minimum distortion", IRE Trans. Inf. Theory 6, 1960.
const STEP_OVER_DEVIATION: f64 = 0.996;

/// Part of the largest number of a record that its largest code stands for;
/// what is above is cut. Finer steps for all the others are worth more.
const RANGE: f64 = 0.8;

/// Scale of the largest record of a fit: records that come later may be four
/// times as large before they are cut.
const LARGEST_SCALE: f64 = 16_384.0;

/// From a gradient to a sketch. Immutable, cheap to share.
#[derive(Debug, Clone, PartialEq)]
pub struct SketchMap {
    context: Vec<u8>,
    unit: f64,
    factors: Vec<f32>,
    codes: Codes,
}

/// The rows of `P` without their factors.
#[derive(Debug, Clone, PartialEq)]
enum Codes {
    Wide(Vec<[i8; K]>),
    Narrow(Vec<[u8; NARROW_SIZE_BYTES]>),
}

/// The sketch of a record: what goes into an entry of the index.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RecordSketch {
    /// Common factor of the codes.
    pub scale: u16,
    /// Each in -7..=7.
    pub codes: [i8; K],
}

/// `Pᵀ x`.
#[derive(Debug, Clone)]
pub(crate) struct Projection {
    sums: [i64; K],
    /// The numbers are `sum · 2⁻ᵉ`.
    exponent: i32,
}

impl SketchMap {
    /// A map for gradients of `d` numbers without its rows. The unit of records
    /// is 1 until [`Self::fit_unit`] sets it.
    pub(crate) const fn new(context: Vec<u8>, d: usize) -> Self {
        let is_wide = d * (4 + K) <= WIDE_SIZE_BYTES_MAX;
        Self {
            context,
            unit: 1.0,
            factors: Vec::new(),
            codes: if is_wide {
                Codes::Wide(Vec::new())
            } else {
                Codes::Narrow(Vec::new())
            },
        }
    }

    /// Rounds a row of `P` to codes, and appends it.
    pub(crate) fn push(&mut self, row: &[f64; K]) {
        let factor = match &self.codes {
            Codes::Wide(_) => row.iter().fold(0.0_f64, |max, x| max.max(x.abs())) / 127.0,
            Codes::Narrow(_) => {
                let mean_square = row.iter().map(|x| x * x).sum::<f64>() / 256.0;
                mean_square.sqrt() * (STEP_OVER_DEVIATION / 2.0)
            }
        };
        #[expect(
            clippy::cast_possible_truncation,
            reason = "rounding a factor to f32 is the stored format"
        )]
        let factor = factor as f32;
        self.factors.push(factor);
        let over = |x: f64| {
            if factor == 0.0 {
                0.0
            } else {
                x / f64::from(factor)
            }
        };
        match &mut self.codes {
            Codes::Wide(rows) => rows.push(row.map(|x| round_to_code(over(x)))),
            Codes::Narrow(rows) => {
                let mut codes = [0; NARROW_SIZE_BYTES];
                for (at, &x) in row.iter().enumerate() {
                    let shift = 2 * (at / NARROW_SIZE_BYTES);
                    codes[at % NARROW_SIZE_BYTES] |= round_to_bits(over(x) / 2.0) << shift;
                }
                rows.push(codes);
            }
        }
    }

    /// Sets the unit of records so that the largest of these has room.
    pub(crate) fn fit_unit<'a>(&mut self, records: impl Iterator<Item = &'a Projection>) {
        let largest = records
            .map(Projection::step)
            .fold(0.0_f64, |max, step| max.max(step));
        if largest > 0.0 {
            self.unit = (largest / LARGEST_SCALE).max(f64::MIN_POSITIVE);
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

    /// The sketch of an answer's gradient. All zero for a gradient of zeros:
    /// then nobody is paid for it.
    ///
    /// # Shapes and units
    /// `gradient`: `[d]`, any unit: only its direction counts.
    ///
    /// # Errors
    /// [`SketchError`] if the length is not `d` or a number is not finite.
    #[expect(clippy::missing_panics_doc, reason = "the expectation cannot fail")]
    pub fn sketch(&self, gradient: &[f32]) -> Result<QuerySketch, SketchError> {
        let Projection { sums, .. } = self.project(gradient)?;
        let largest = sums.iter().map(|x| x.unsigned_abs()).max().unwrap_or(0);
        let codes = sums.map(|sum| code_of(sum, largest));
        Ok(QuerySketch::new(codes).expect("codes are rounded to at most 127 in size"))
    }

    /// The sketch of a record's gradient.
    ///
    /// # Shapes and units
    /// `gradient`: `[d]`, in the unit of the gradients that the map was fitted
    /// to: a longer one is a larger effect.
    ///
    /// # Errors
    /// As [`Self::sketch`].
    pub fn record(&self, gradient: &[f32]) -> Result<RecordSketch, SketchError> {
        Ok(self.round_record(&self.project(gradient)?))
    }

    /// Rounds a record to four bits a number.
    pub(crate) fn round_record(&self, projection: &Projection) -> RecordSketch {
        // Rounded up, so that no more than intended is cut.
        let scale = (projection.step() / self.unit)
            .ceil()
            .clamp(1.0, f64::from(u16::MAX));
        let step = scale * self.unit;
        let most = f64::from(CODE_MAX);
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "clamped to 1..=65535 and -7..=7"
        )]
        RecordSketch {
            scale: scale as u16,
            codes: projection
                .numbers()
                .map(|x| (x / step).round_ties_even().clamp(-most, most) as i8),
        }
    }

    /// `Pᵀ x` in integers.
    pub(crate) fn project(&self, gradient: &[f32]) -> Result<Projection, SketchError> {
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
            return Ok(Projection {
                sums: [0; K],
                exponent: 0,
            });
        }
        // 2^14 <= largest * 2^exponent < 2^15.
        let exponent = 14 - exponent_of(largest);
        let unit = power_of_two(exponent);

        let mut sums = [0_i64; K];
        for start in (0..self.dim()).step_by(ROWS_PER_BLOCK) {
            let end = (start + ROWS_PER_BLOCK).min(self.dim());
            let xs = scaled[start..end].iter().map(|x| round_to_i16(x * unit));
            for (sum, part) in sums.iter_mut().zip(self.codes.add_up(start, xs)) {
                *sum += i64::from(part);
            }
        }
        Ok(Projection { sums, exponent })
    }

    /// The map as a file.
    #[must_use]
    #[expect(clippy::missing_panics_doc, reason = "the expectation cannot fail")]
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(self.size_bytes());
        bytes.extend_from_slice(MAGIC);
        for length in [self.dim(), self.context.len(), self.codes.bits()] {
            let length = u32::try_from(length).expect("limited when the map was made");
            bytes.extend_from_slice(&length.to_le_bytes());
        }
        bytes.extend_from_slice(&self.unit.to_le_bytes());
        bytes.extend_from_slice(&self.context);
        for factor in &self.factors {
            bytes.extend_from_slice(&factor.to_le_bytes());
        }
        match &self.codes {
            Codes::Wide(rows) => {
                bytes.extend(rows.iter().flatten().map(|code| code.cast_unsigned()));
            }
            Codes::Narrow(rows) => bytes.extend(rows.iter().flatten()),
        }
        bytes
    }

    /// Length of the file.
    #[must_use]
    pub const fn size_bytes(&self) -> usize {
        HEADER_SIZE_BYTES + self.context.len() + self.dim() * (4 + K * self.codes.bits() / 8)
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
        let (magic, fields) = header.split_at(MAGIC.len());
        if magic != MAGIC {
            return Err(MapError::Format);
        }
        let [d, context_size_bytes, bits] = [0, 4, 8].map(|at| {
            let length = &fields[at..at + 4];
            let length = length.try_into().expect("four bytes");
            usize::try_from(u32::from_le_bytes(length)).unwrap_or(usize::MAX)
        });
        let unit = f64::from_le_bytes(fields[12..].try_into().expect("eight bytes"));
        if d == 0 || d > DIM_MAX || context_size_bytes > CONTEXT_SIZE_BYTES_MAX {
            return Err(MapError::TooLarge {
                d,
                context_size_bytes,
            });
        }
        if !(unit.is_normal() && unit > 0.0) {
            return Err(MapError::Unit);
        }
        if ![2, 8].contains(&bits) {
            return Err(MapError::Format);
        }
        if rest.len() != context_size_bytes + d * (4 + K * bits / 8) {
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
        let codes = if bits == 2 {
            Codes::Narrow(codes.as_chunks().0.to_vec())
        } else if let Some(at) = codes.iter().position(|&byte| byte == 0x80) {
            return Err(MapError::Value { row: at / K });
        } else {
            let rows = codes.as_chunks::<K>().0.iter();
            Codes::Wide(rows.map(|row| row.map(u8::cast_signed)).collect())
        };
        Ok(Self {
            context: context.to_vec(),
            unit,
            factors,
            codes,
        })
    }
}

impl Projection {
    fn numbers(&self) -> [f64; K] {
        // Below 2^17 · 2^22, exact in f64; so is the power of two, in two steps
        // because one may be out of range.
        let half = self.exponent / 2;
        let (a, b) = (power_of_two(-half), power_of_two(half - self.exponent));
        #[expect(clippy::cast_precision_loss, reason = "below 2^40")]
        self.sums.map(|sum| sum as f64 * a * b)
    }

    /// What a code of 1 stands for, before it is rounded to the unit.
    fn step(&self) -> f64 {
        let largest = self
            .numbers()
            .iter()
            .fold(0.0_f64, |max, x| max.max(x.abs()));
        largest * RANGE / f64::from(CODE_MAX)
    }
}

impl Codes {
    const fn bits(&self) -> usize {
        match self {
            Self::Wide(_) => 8,
            Self::Narrow(_) => 2,
        }
    }

    /// `Σ x · row` over at most [`ROWS_PER_BLOCK`] rows from `start` on.
    fn add_up(&self, start: usize, xs: impl ExactSizeIterator<Item = i16>) -> [i32; K] {
        let mut sums = [0_i32; K];
        match self {
            Self::Wide(rows) => {
                for (x, row) in xs.zip(&rows[start..]) {
                    add_wide(&mut sums, x, row);
                }
                sums
            }
            // Σ x (2b - 3) = 2 Σ x b - 3 Σ x
            Self::Narrow(rows) => {
                let mut total = 0;
                for (x, row) in xs.zip(&rows[start..]) {
                    total += i32::from(x);
                    add_narrow(&mut sums, x, row);
                }
                sums.map(|sum| 2 * sum - 3 * total)
            }
        }
    }
}

// Wrapping operations in the two below cannot wrap (see `ROWS_PER_BLOCK`); they
// keep overflow checks out of the inner loops.

/// `sums += x · row`.
#[inline]
fn add_wide(sums: &mut [i32; K], x: i16, row: &[i8; K]) {
    for (sum, &code) in sums.iter_mut().zip(row) {
        *sum = sum.wrapping_add(i32::from(x).wrapping_mul(i32::from(code)));
    }
}

/// `sums += x · b` for the bits `b` of a row. Multiplying by two bits is adding
/// what they mask: vector instructions of every kind can do that.
#[inline]
fn add_narrow(sums: &mut [i32; K], x: i16, row: &[u8; NARROW_SIZE_BYTES]) {
    let x = i32::from(x);
    let quarters = sums.as_chunks_mut::<NARROW_SIZE_BYTES>().0;
    for (quarter, sums) in quarters.iter_mut().enumerate() {
        for (sum, &byte) in sums.iter_mut().zip(row) {
            let bits = i32::from(byte) >> (2 * quarter);
            let once = x & (bits & 1).wrapping_neg();
            let twice = x & (bits >> 1 & 1).wrapping_neg();
            *sum = sum.wrapping_add(once).wrapping_add(twice << 1);
        }
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
fn round_to_code(x: f64) -> i8 {
    x.round_ties_even().clamp(-127.0, 127.0) as i8
}

/// The two bits of a number of steps.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "the value is clamped to two bits"
)]
fn round_to_bits(steps: f64) -> u8 {
    (steps.floor() + 2.0).clamp(0.0, 3.0) as u8
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
    #[error("not a sketch map of this version: sketch the model again")]
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
    /// The unit of records is not a positive number.
    #[error("the sketch map's unit is not a positive number")]
    Unit,
    /// A factor is negative or not finite, or a code is -128.
    #[error("row {row} of the sketch map has a value out of range")]
    Value {
        /// Which row, from 0.
        row: usize,
    },
}

#[cfg(test)]
mod tests;
