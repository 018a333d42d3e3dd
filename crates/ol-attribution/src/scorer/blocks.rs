//! Codes of four bits, and the inner products of a query with sixteen rows at a
//! time.
//!
//! # Layout
//! Sixteen rows are a block: 32 lines of 64 bytes. Line `g` holds the dimensions
//! `8g..8g+8`: byte `4·row + t` has dimension `8g + t` in its low half and
//! `8g + 4 + t` in its high one. So a lane of 32 bits belongs to one row, and
//! sums never cross lanes. A code `c` is kept as `u = c + 8`, so that
//! `<q, c> = Σ u q - 8 Σ q`.
//!
//! # No overflow
//! `|Σ u q|` of 256 halves `u <= 15` is at most `256 · 15 · 127 = 487,680`, in
//! 32 bits. With AVX2 two products are at most `2 · 15 · 127 = 3,810` in 16
//! bits without saturating, and eight of those `30,480 < 2¹⁵`.
#![cfg_attr(
    target_arch = "x86_64",
    expect(unsafe_code, reason = "vector intrinsics for detected instructions")
)]

use ol_poa::{K, QuerySketch};

/// Rows of a block.
pub(super) const LANES: usize = 16;

/// Lines of a block.
const LINES: usize = K / 8;

const _: () = assert!(8 * 2 * 15 * 127 < 1 << 15 && 2 * K * 15 * 127 < 1 << 31);

#[derive(Clone, Copy)]
#[repr(C, align(64))]
struct Line([u8; 64]);

type Block = [Line; LINES];

/// Codes of zero.
const ZEROS: Block = [Line([0x88; 64]); LINES];

/// Rows of codes. Rows that fill up the last block are zero.
#[derive(Default)]
pub(super) struct Blocks {
    blocks: Vec<Block>,
    n_rows: usize,
}

impl Blocks {
    pub(super) fn with_capacity(n_rows: usize) -> Self {
        Self {
            blocks: Vec::with_capacity(n_rows.div_ceil(LANES)),
            n_rows: 0,
        }
    }

    pub(super) fn push(&mut self, codes: &[i8; K]) {
        let lane = self.n_rows % LANES;
        if lane == 0 {
            self.blocks.push(ZEROS);
        }
        self.n_rows += 1;
        let lines = self.blocks.iter_mut().next_back().into_iter().flatten();
        for (dims, line) in codes.as_chunks::<8>().0.iter().zip(lines) {
            for t in 0..4 {
                let [a, b] = [dims[t], dims[4 + t]].map(|code| (code + 8).cast_unsigned());
                line.0[4 * lane + t] = a | b << 4;
            }
        }
    }

    pub(super) const fn n_rows(&self) -> usize {
        self.n_rows
    }

    pub(super) const fn n_blocks(&self) -> usize {
        self.blocks.len()
    }

    /// `weight <q, c>` of the rows of a block, modulo 2⁶⁴.
    #[inline]
    pub(super) fn scores<W: Copy + Into<i64>>(
        &self,
        query: &Query,
        block: usize,
        weights: &[W; LANES],
    ) -> [i64; LANES] {
        let Query { words, sum, .. } = query;
        let block = &self.blocks[block];
        match query.instructions.0 {
            Level::Scalar => weigh(*sum, multiply(words, block), weights),
            #[cfg(target_arch = "x86_64")]
            // SAFETY: `Instructions` exist only for what this CPU has.
            Level::Avx2 => unsafe { x86::avx2::scores(words, *sum, block, weights) },
            #[cfg(target_arch = "x86_64")]
            // SAFETY: as above.
            Level::Vnni => unsafe { x86::vnni::scores(words, *sum, block, weights) },
        }
    }
}

// Wrapping operations keep overflow checks, which would stop the loop from being
// vectorised, out of it. 32-bit ones cannot wrap (see the module); a product
// with a weight may, as `super` says.
#[inline(always)]
fn weigh<W: Copy + Into<i64>>(
    sum: i32,
    products: [i32; LANES],
    weights: &[W; LANES],
) -> [i64; LANES] {
    let offset = 8 * sum;
    let mut scores = [0; LANES];
    for lane in 0..LANES {
        let dot = products[lane].wrapping_sub(offset);
        scores[lane] = i64::from(dot).wrapping_mul(weights[lane].into());
    }
    scores
}

/// A query as the products need it.
pub(super) struct Query {
    /// Four codes in each, in order.
    words: [i32; K / 4],
    sum: i32,
    instructions: Instructions,
}

impl Query {
    pub(super) fn new(query: &QuerySketch, instructions: Instructions) -> Self {
        let bytes = query.to_bytes();
        let (words, _) = bytes.as_chunks::<4>();
        Self {
            words: std::array::from_fn(|i| i32::from_le_bytes(words[i])),
            sum: query.codes().iter().map(|&code| i32::from(code)).sum(),
            instructions,
        }
    }
}

/// `Σ u q` of each row of a block: the oracle.
fn multiply(words: &[i32; K / 4], block: &Block) -> [i32; LANES] {
    let mut sums = [0_i32; LANES];
    for (line, words) in block.iter().zip(words.as_chunks::<2>().0) {
        let [low, high] = words.map(i32::to_le_bytes);
        for (sum, bytes) in sums.iter_mut().zip(line.0.as_chunks::<4>().0) {
            for ((&byte, low), high) in bytes.iter().zip(low).zip(high) {
                let [low, high] = [low, high].map(|byte| i32::from(byte.cast_signed()));
                *sum += i32::from(byte & 15) * low + i32::from(byte >> 4) * high;
            }
        }
    }
    sums
}

/// Instructions that inner products run on. A value other than
/// [`Instructions::SCALAR`] can only be had on a CPU that has them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Instructions(Level);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Level {
    Scalar,
    #[cfg(target_arch = "x86_64")]
    Avx2,
    #[cfg(target_arch = "x86_64")]
    Vnni,
}

impl Instructions {
    /// Portable; what the others must equal.
    pub const SCALAR: Self = Self(Level::Scalar);

    /// All that this CPU has, slowest first.
    #[must_use]
    pub fn available() -> Vec<Self> {
        #[cfg_attr(
            not(target_arch = "x86_64"),
            expect(unused_mut, reason = "elsewhere there is only the portable one")
        )]
        let mut levels = vec![Self::SCALAR];
        #[cfg(target_arch = "x86_64")]
        {
            if is_x86_feature_detected!("avx2") {
                levels.push(Self(Level::Avx2));
            }
            if is_x86_feature_detected!("avx512f")
                && is_x86_feature_detected!("avx512bw")
                && is_x86_feature_detected!("avx512dq")
                && is_x86_feature_detected!("avx512vnni")
            {
                levels.push(Self(Level::Vnni));
            }
        }
        levels
    }

    /// The fastest that this CPU has.
    #[must_use]
    pub fn detect() -> Self {
        Self::available().pop().unwrap_or(Self::SCALAR)
    }

    /// Name for reports.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self.0 {
            Level::Scalar => "scalar",
            #[cfg(target_arch = "x86_64")]
            Level::Avx2 => "avx2",
            #[cfg(target_arch = "x86_64")]
            Level::Vnni => "avx512-vnni",
        }
    }
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    /// What is done with the products, compiled for the same instructions.
    macro_rules! with_products {
        ($module:ident, $features:literal, $multiply:ident) => {
            pub(super) mod $module {
                use super::super::{Block, LANES, weigh};
                use super::$multiply;
                use ol_poa::K;

                #[target_feature(enable = $features)]
                pub(in super::super) fn scores<W: Copy + Into<i64>>(
                    words: &[i32; K / 4],
                    sum: i32,
                    block: &Block,
                    weights: &[W; LANES],
                ) -> [i64; LANES] {
                    weigh(sum, $multiply(words, block), weights)
                }
            }
        };
    }
    with_products!(avx2, "avx2", multiply_avx2);
    with_products!(vnni, "avx512f,avx512bw,avx512dq,avx512vnni", multiply_vnni);

    use std::arch::x86_64::{
        __m256i, __m512i, _mm256_add_epi16, _mm256_add_epi32, _mm256_and_si256, _mm256_load_si256,
        _mm256_madd_epi16, _mm256_maddubs_epi16, _mm256_set1_epi8, _mm256_set1_epi16,
        _mm256_set1_epi32, _mm256_setzero_si256, _mm256_srli_epi16, _mm256_storeu_si256,
        _mm512_add_epi32, _mm512_and_si512, _mm512_dpbusd_epi32, _mm512_load_si512,
        _mm512_set1_epi8, _mm512_set1_epi32, _mm512_setzero_si512, _mm512_srli_epi16,
        _mm512_storeu_si512,
    };

    use ol_poa::K;

    use super::{Block, LANES};

    #[inline]
    #[target_feature(enable = "avx2")]
    fn multiply_avx2(words: &[i32; K / 4], block: &Block) -> [i32; LANES] {
        const GROUP: usize = 4;
        let halves = _mm256_set1_epi8(15);
        let ones = _mm256_set1_epi16(1);
        let mut sums = [_mm256_setzero_si256(); 2];
        let groups = block.as_chunks::<GROUP>().0.iter();
        for (lines, words) in groups.zip(words.as_chunks::<{ 2 * GROUP }>().0) {
            // Eight products of pairs fit 16 bits; see the module.
            let mut pairs = [_mm256_setzero_si256(); 2];
            for (line, words) in lines.iter().zip(words.as_chunks::<2>().0) {
                let [first, second] = words.map(|word| _mm256_set1_epi32(word));
                for (half, pairs) in pairs.iter_mut().enumerate() {
                    // SAFETY: a line has 64 bytes and begins at a multiple of 64.
                    let bytes =
                        unsafe { _mm256_load_si256(line.0.as_ptr().cast::<__m256i>().add(half)) };
                    let low = _mm256_and_si256(bytes, halves);
                    let high = _mm256_and_si256(_mm256_srli_epi16::<4>(bytes), halves);
                    let low = _mm256_maddubs_epi16(low, first);
                    let high = _mm256_maddubs_epi16(high, second);
                    *pairs = _mm256_add_epi16(*pairs, _mm256_add_epi16(low, high));
                }
            }
            for (sum, pairs) in sums.iter_mut().zip(pairs) {
                *sum = _mm256_add_epi32(*sum, _mm256_madd_epi16(pairs, ones));
            }
        }
        let mut out = [0; LANES];
        for (out, sum) in out.as_chunks_mut::<8>().0.iter_mut().zip(sums) {
            // SAFETY: eight numbers of 32 bits, at any address.
            unsafe { _mm256_storeu_si256(out.as_mut_ptr().cast(), sum) };
        }
        out
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vnni")]
    fn multiply_vnni(words: &[i32; K / 4], block: &Block) -> [i32; LANES] {
        let halves = _mm512_set1_epi8(15);
        let mut sums: [__m512i; 4] = [_mm512_setzero_si512(); 4];
        for (lines, words) in block
            .as_chunks::<2>()
            .0
            .iter()
            .zip(words.as_chunks::<4>().0)
        {
            for (i, line) in lines.iter().enumerate() {
                // SAFETY: a line has 64 bytes and begins at a multiple of 64.
                let bytes = unsafe { _mm512_load_si512(line.0.as_ptr().cast()) };
                let low = _mm512_and_si512(bytes, halves);
                let high = _mm512_and_si512(_mm512_srli_epi16::<4>(bytes), halves);
                let [first, second] = [words[2 * i], words[2 * i + 1]];
                sums[2 * i] = _mm512_dpbusd_epi32(sums[2 * i], low, _mm512_set1_epi32(first));
                sums[2 * i + 1] =
                    _mm512_dpbusd_epi32(sums[2 * i + 1], high, _mm512_set1_epi32(second));
            }
        }
        let sum = _mm512_add_epi32(
            _mm512_add_epi32(sums[0], sums[1]),
            _mm512_add_epi32(sums[2], sums[3]),
        );
        let mut out = [0; LANES];
        // SAFETY: sixteen numbers of 32 bits, at any address.
        unsafe { _mm512_storeu_si512(out.as_mut_ptr().cast(), sum) };
        out
    }
}
