//! Scores of an answer against an index, netted by contributor.
//!
//! # No overflow
//! Codes of a query are in -127..=127, those of an entry in -7..=7 (-128 and -8
//! are refused at the door), so a dot product is at most
//! `256 · 127 · 7 = 227,584 < 2¹⁸` in size and every partial sum fits an `i32`.
//! Times a scale of at most 65,535 it stays below 2³⁴, and the sum over at most
//! 16,384 = 2¹⁴ entries stays below 2⁴⁸: an `i64` is enough for any net.
//!
//! # Instructions
//! With the feature `std`, nets are added up with AVX2 where it is there.
//! They are integers, so it changes the time and nothing else.
#![cfg_attr(
    all(feature = "std", target_arch = "x86_64"),
    expect(unsafe_code, reason = "vector instructions that were found")
)]

use alloc::vec::Vec;

use alloy_primitives::{Address, B256};

use crate::court::COURT_ENTRIES_MAX;
use crate::index::{CODES_SIZE_BYTES, ENTRIES_MAX, EntryView, Index, IndexError, K, scan};

#[cfg(all(feature = "std", target_arch = "x86_64"))]
mod avx2;

/// The sketch of an answer: [`K`] codes in -127..=127.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct QuerySketch([i8; K]);

impl QuerySketch {
    /// Takes codes that are in range.
    ///
    /// # Errors
    /// [`IndexError::Query`] if a code is -128.
    pub fn new(codes: [i8; K]) -> Result<Self, IndexError> {
        if codes.contains(&i8::MIN) {
            return Err(IndexError::Query);
        }
        Ok(Self(codes))
    }

    /// Reads the codes from their bytes.
    ///
    /// # Errors
    /// [`IndexError::Query`] if there are not [`K`] bytes or one is `0x80`.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, IndexError> {
        let bytes: &[u8; K] = bytes.try_into().map_err(|_| IndexError::Query)?;
        Self::new(bytes.map(u8::cast_signed))
    }

    /// The codes.
    #[must_use]
    pub const fn codes(&self) -> &[i8; K] {
        &self.0
    }

    /// The codes as bytes, as they go on chain.
    #[must_use]
    pub fn to_bytes(&self) -> [u8; K] {
        self.0.map(i8::cast_unsigned)
    }

    /// What a receipt names the query by: keccak256 of the bytes.
    #[must_use]
    pub fn hash(&self) -> B256 {
        alloy_primitives::keccak256(self.to_bytes())
    }

    /// The codes widened once per query, so that the dot product widens only
    /// the entry's.
    fn widen(&self) -> [i16; K] {
        self.0.map(i16::from)
    }
}

/// `sum_j query_j · codes_j`.
#[must_use]
pub fn dot(query: &QuerySketch, codes: &[u8; CODES_SIZE_BYTES]) -> i32 {
    dot_wide(&query.widen(), codes)
}

/// In lanes that the compiler turns into vector instructions. A product is at
/// most 127 · 8 = 1,016 in size even of codes that were not checked, and a lane
/// adds sixteen of them: 16,256 fits an `i16`. Wrapping operations cannot wrap
/// here; they keep overflow checks, which would stop the loop from being
/// vectorised, out.
#[inline]
fn dot_wide(query: &[i16; K], codes: &[u8; CODES_SIZE_BYTES]) -> i32 {
    const LANES: usize = 16;
    let mut sums = [0_i16; LANES];
    let (high, low) = query.split_at(CODES_SIZE_BYTES);
    let (high, low) = (high.as_chunks::<LANES>().0, low.as_chunks::<LANES>().0);
    for ((high, low), codes) in high.iter().zip(low).zip(codes.as_chunks::<LANES>().0) {
        for lane in 0..LANES {
            // The byte in the upper half of 16 bits: its halves are what
            // arithmetic shifts leave.
            let byte = i16::from(codes[lane]) << 8;
            let pair = (byte >> 12)
                .wrapping_mul(high[lane])
                .wrapping_add((byte << 4 >> 12).wrapping_mul(low[lane]));
            sums[lane] = sums[lane].wrapping_add(pair);
        }
    }
    sums.into_iter().map(i32::from).fold(0, i32::wrapping_add)
}

#[inline]
fn score_wide(query: &[i16; K], entry: EntryView<'_>) -> i64 {
    i64::from(dot_wide(query, entry.code_bytes())) * i64::from(entry.scale())
}

/// The score of one entry: its scale times the dot product. Positive means
/// that the record made the answer more likely.
#[must_use]
pub fn score(query: &QuerySketch, entry: EntryView<'_>) -> i64 {
    score_wide(&query.widen(), entry)
}

/// The net of every contributor of an index given as its chunks, ascending by
/// address: the sum of the scores of their entries.
///
/// # Errors
/// [`IndexError`] if the chunks are malformed; see
/// [`check_chunks`](crate::index::check_chunks) for what is checked.
pub fn nets(chunks: &[&[u8]], query: &QuerySketch) -> Result<Vec<(Address, i64)>, IndexError> {
    nets_within(chunks, ENTRIES_MAX, query)
}

fn nets_within(
    chunks: &[&[u8]],
    n_entries_max: usize,
    query: &QuerySketch,
) -> Result<Vec<(Address, i64)>, IndexError> {
    #[cfg(all(feature = "std", target_arch = "x86_64"))]
    if std::arch::is_x86_feature_detected!("avx2") {
        // SAFETY: this CPU has AVX2.
        return unsafe { avx2::nets(chunks, n_entries_max, query) };
    }
    nets_on_any(chunks, n_entries_max, query)
}

/// [`nets_within`] without instructions that a machine may lack.
fn nets_on_any(
    chunks: &[&[u8]],
    n_entries_max: usize,
    query: &QuerySketch,
) -> Result<Vec<(Address, i64)>, IndexError> {
    let query = query.widen();
    add_nets(chunks, n_entries_max, |codes| dot_wide(&query, codes))
}

/// Nets, of the inner product that `dot` gives. Inlined, so that it is compiled
/// for the instructions of its caller.
#[inline(always)]
fn add_nets(
    chunks: &[&[u8]],
    n_entries_max: usize,
    dot: impl Fn(&[u8; CODES_SIZE_BYTES]) -> i32,
) -> Result<Vec<(Address, i64)>, IndexError> {
    let mut nets: Vec<(Address, i64)> = Vec::new();
    scan(chunks, n_entries_max, |entry| {
        let score = i64::from(dot(entry.code_bytes())) * i64::from(entry.scale());
        let contributor = entry.contributor();
        match nets.last_mut() {
            Some((last, net)) if *last == contributor => *net += score,
            _ => nets.push((contributor, score)),
        }
    })?;
    Ok(nets)
}

/// The contributors with a positive weight, ascending by address, with their
/// weights: `max(0, net − null_threshold)`.
///
/// Works on the chunk bytes in place; nothing is allocated per entry.
///
/// # Shapes and units
/// - `chunks`: as on chain, without the leading STOP byte, in order.
/// - `null_threshold`, weights: units of the scores. A weight is below 2⁵¹.
///
/// # Errors
/// [`IndexError`] if the chunks are malformed; see
/// [`check_chunks`](crate::index::check_chunks) for what is checked.
pub fn weights(
    chunks: &[&[u8]],
    null_threshold: u64,
    query: &QuerySketch,
) -> Result<Vec<(Address, u64)>, IndexError> {
    Ok(weigh(nets(chunks, query)?, null_threshold))
}

fn weigh(nets: Vec<(Address, i64)>, null_threshold: u64) -> Vec<(Address, u64)> {
    let nets = nets.into_iter();
    nets.map(|(contributor, net)| (contributor, weight(net, null_threshold)))
        .filter(|&(_, weight)| weight > 0)
        .collect()
}

/// `max(0, net − null_threshold)`.
#[must_use]
pub fn weight(net: i64, null_threshold: u64) -> u64 {
    u64::try_from(net)
        .unwrap_or(0)
        .saturating_sub(null_threshold)
}

impl Index {
    /// The score of every entry, in order.
    #[must_use]
    pub fn scores(&self, query: &QuerySketch) -> Vec<i64> {
        let query = query.widen();
        self.entries()
            .map(|entry| score_wide(&query, entry))
            .collect()
    }

    /// [`weights`] of an index that was checked when it was built.
    #[must_use]
    #[expect(clippy::missing_panics_doc, reason = "the expectation cannot fail")]
    pub fn weights(&self, null_threshold: u64, query: &QuerySketch) -> Vec<(Address, u64)> {
        let nets = nets_within(&self.chunks(), COURT_ENTRIES_MAX, query);
        weigh(
            nets.expect("the index was checked when it was built"),
            null_threshold,
        )
    }
}

#[cfg(test)]
mod tests;
