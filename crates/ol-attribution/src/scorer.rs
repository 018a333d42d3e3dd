//! Scores of an answer against any number of records, on all cores.
//!
//! What is computed is what [`ol_poa`] defines, bit for bit; this is how a
//! machine that holds millions of sketches computes it in milliseconds.
//!
//! # Nets without records
//! A score is linear in the codes and a net is a plain sum, so
//!
//! ```text
//! net(q, c) = Σ_i a_i <q, c_i> = <q, Σ_i a_i c_i> = <q, A_c>
//! ```
//!
//! over the entries `i` of contributor `c`. (Netting by cluster adds nothing to
//! this: a cluster has one entry. What is not linear, the null threshold and
//! the cut at zero, comes after the net.) So what is *paid* needs one vector for
//! each contributor, however many records it has. The numbers of `A_c` are
//! written in base 15 with digits in -7..=7, which is unique because 15 is odd:
//! twelve rows of codes at most, weighted `1, 15, 15², ..`, which the same inner
//! products take as any record. A contributor with fewer records than digits
//! keeps its records. No rounding, no approximation: the integers are those of
//! the sum over all records.
//!
//! # Records by score
//! Only naming the records that count most reads them all. Within a
//! contributor they lie by falling length, and a block of sixteen whose longest
//! record, times the length of the query, is below the best found so far is not
//! read (Cauchy and Schwarz). So the list is exact.
//!
//! # No overflow
//! `|<q, c>| ≤ 256 · 127 · 7 < 2¹⁸`, a scale is below 2¹⁶, and there are at most
//! 2²⁴ records: every sum of scores is below 2⁵⁸. Digits are summed modulo 2⁶⁴,
//! which gives the same number because the sum is in range.

mod blocks;
mod top;

use std::sync::atomic::{AtomicI64, Ordering::Relaxed};

use ol_model::Pool;
use ol_poa::{CODE_MAX, Entry, K, QuerySketch};
use ol_types::Address;

pub use blocks::Instructions;
use blocks::{Blocks, LANES, Query};
pub use top::{Hit, TOP_MAX};

/// The most records of a scorer.
pub const RECORDS_MAX: usize = 1 << 24;

/// Base of the digits of a contributor's sum.
const BASE: i64 = 2 * CODE_MAX as i64 + 1;

const SCORE_MAX: u64 = K as u64 * 127 * CODE_MAX as u64 * u16::MAX as u64;
const _: () = assert!(SCORE_MAX.checked_mul(RECORDS_MAX as u64).is_some());
const _: () = assert!(SCORE_MAX * (RECORDS_MAX as u64) < 1 << 58);

/// What a code may be.
const CODES: std::ops::RangeInclusive<i8> = -CODE_MAX..=CODE_MAX;

/// Blocks that a thread takes at a time: 128 KiB.
const BLOCKS_PER_TASK: usize = 64;

/// The sketches of a model, laid out for scoring. Immutable.
///
/// About 132 bytes for each record, and at most 12 · 136 for each contributor.
pub struct Scorer {
    contributors: Vec<Address>,
    records: Rows<u16>,
    /// Where each record was when it was given.
    positions: Vec<u32>,
    /// Of each block, the longest record: `ceil(a |c|)`.
    lengths: Vec<u32>,
    sums: Rows<i64>,
    instructions: Instructions,
}

impl std::fmt::Debug for Scorer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Scorer")
            .field("records", &self.len())
            .field("contributors", &self.contributors.len())
            .field("instructions", &self.instructions)
            .finish_non_exhaustive()
    }
}

/// Rows of codes with a weight each, those of a contributor together.
#[derive(Default)]
struct Rows<W> {
    codes: Blocks,
    /// Of each block; 0 for rows that fill up the last.
    weights: Vec<[W; LANES]>,
    /// Where each contributor's rows begin, and the end.
    starts: Vec<u32>,
}

/// One record of the contributor whose records are being gathered.
struct Gathered {
    position: u32,
    scale: u16,
    length: u32,
    codes: [i8; K],
}

impl Scorer {
    /// Takes the entries of one or more indexes, in order of contributors.
    ///
    /// Clusters are not looked at: entries come from indexes that were checked.
    ///
    /// # Errors
    /// [`ScorerError`] if there is no entry, or too many, or a contributor's
    /// entries are not together, or a value is out of range.
    #[expect(clippy::missing_panics_doc, reason = "the expectation cannot fail")]
    pub fn new(entries: impl IntoIterator<Item = Entry>) -> Result<Self, ScorerError> {
        let entries = entries.into_iter();
        let capacity = entries.size_hint().0.min(RECORDS_MAX);
        let mut scorer = Self {
            contributors: Vec::new(),
            records: Rows::with_capacity(capacity),
            positions: Vec::with_capacity(capacity),
            lengths: Vec::with_capacity(capacity.div_ceil(LANES)),
            sums: Rows::default(),
            instructions: Instructions::detect(),
        };
        let mut gathered: Vec<Gathered> = Vec::new();
        for (position, entry) in entries.enumerate() {
            if position == RECORDS_MAX {
                return Err(ScorerError::TooMany);
            }
            if entry.scale == 0 || !entry.codes.iter().all(|code| CODES.contains(code)) {
                return Err(ScorerError::Value { position });
            }
            match scorer.contributors.last() {
                Some(&last) if last == entry.contributor => {}
                Some(&last) if last > entry.contributor => {
                    return Err(ScorerError::Order { position });
                }
                _ => {
                    scorer.take(&mut gathered);
                    scorer.contributors.push(entry.contributor);
                }
            }
            gathered.push(Gathered {
                position: u32::try_from(position).expect("at most 2^24 records"),
                scale: entry.scale,
                length: length(entry.scale, &entry.codes),
                codes: entry.codes,
            });
        }
        if gathered.is_empty() {
            return Err(ScorerError::Empty);
        }
        scorer.take(&mut gathered);
        scorer.records.end();
        scorer.sums.end();
        Ok(scorer)
    }

    /// The same on chosen instructions, for comparing them.
    #[must_use]
    pub fn with_instructions(mut self, instructions: Instructions) -> Self {
        self.instructions = instructions;
        self
    }

    /// Stores the records of one contributor.
    fn take(&mut self, gathered: &mut Vec<Gathered>) {
        if gathered.is_empty() {
            return;
        }
        self.records.end();
        self.sums.end();
        gathered.sort_unstable_by_key(|record| (std::cmp::Reverse(record.length), record.position));
        let mut sum = [0_i64; K];
        for record in gathered.iter() {
            if self.records.codes.n_rows().is_multiple_of(LANES) {
                self.lengths.push(0);
            }
            if let Some(longest) = self.lengths.last_mut() {
                *longest = (*longest).max(record.length);
            }
            self.records.push(&record.codes, record.scale);
            self.positions.push(record.position);
            for (sum, code) in sum.iter_mut().zip(record.codes) {
                // At most 2^24 · 2^16 · 7 in size.
                *sum += i64::from(record.scale) * i64::from(code);
            }
        }
        let digits = digits(sum);
        if digits.len() < gathered.len() {
            let mut weight = 1;
            for row in &digits {
                self.sums.push(row, weight);
                weight *= BASE;
            }
        } else {
            for record in gathered.iter() {
                self.sums.push(&record.codes, i64::from(record.scale));
            }
        }
        gathered.clear();
    }

    /// Who is paid, ascending.
    #[must_use]
    pub fn contributors(&self) -> &[Address] {
        &self.contributors
    }

    /// How many records there are; never 0.
    #[must_use]
    #[expect(
        clippy::len_without_is_empty,
        reason = "a scorer without records cannot be built"
    )]
    pub const fn len(&self) -> usize {
        self.positions.len()
    }

    /// About how much memory it takes, in bytes.
    #[must_use]
    pub const fn size_bytes(&self) -> usize {
        let n_rows = self.records.codes.n_rows() + self.sums.codes.n_rows();
        n_rows * (K / 2)
            + self.records.codes.n_rows() * size_of::<(u16, u32)>()
            + self.sums.codes.n_rows() * size_of::<i64>()
            + self.contributors.len() * size_of::<Address>()
    }

    /// Rows of codes that [`Self::nets`] reads.
    #[must_use]
    pub const fn n_sum_rows(&self) -> usize {
        self.sums.codes.n_rows()
    }

    /// The net of every contributor, in their order: what
    /// [`ol_poa::score::nets`] gives for the same entries.
    #[must_use]
    pub fn nets(&self, pool: &Pool, query: &QuerySketch) -> Vec<i64> {
        self.sums.nets(pool, &self.query(query))
    }

    /// The same from the records themselves: for whoever does not want to rely
    /// on the sums.
    #[must_use]
    pub fn nets_of_records(&self, pool: &Pool, query: &QuerySketch) -> Vec<i64> {
        self.records.nets(pool, &self.query(query))
    }

    /// [`ol_poa::weights`] of the same entries: the contributors whose net is
    /// above the null threshold, ascending, with what it is above by.
    #[must_use]
    pub fn weights(
        &self,
        pool: &Pool,
        null_threshold: u64,
        query: &QuerySketch,
    ) -> Vec<(Address, u64)> {
        let above = |net: i64| u64::try_from(net).ok()?.checked_sub(null_threshold);
        let nets = self.nets(pool, query);
        let weighed = self.contributors.iter().zip(nets);
        weighed
            .filter_map(|(&contributor, net)| Some((contributor, above(net)?)))
            .filter(|&(_, weight)| weight > 0)
            .collect()
    }

    fn query(&self, query: &QuerySketch) -> Query {
        Query::new(query, self.instructions)
    }
}

impl<W: Copy + Default + Into<i64> + Sync> Rows<W> {
    fn with_capacity(n_rows: usize) -> Self {
        Self {
            codes: Blocks::with_capacity(n_rows),
            weights: Vec::with_capacity(n_rows.div_ceil(LANES)),
            starts: Vec::new(),
        }
    }

    fn push(&mut self, codes: &[i8; K], weight: W) {
        let lane = self.codes.n_rows() % LANES;
        self.codes.push(codes);
        if lane == 0 {
            self.weights.push([W::default(); LANES]);
        }
        if let Some(weights) = self.weights.last_mut() {
            weights[lane] = weight;
        }
    }

    /// Ends the rows of one contributor and begins the next.
    fn end(&mut self) {
        let end = u32::try_from(self.codes.n_rows()).expect("at most 2^24 rows");
        self.starts.push(end);
    }

    /// `Σ weight <q, c>` over the rows of each contributor.
    fn nets(&self, pool: &Pool, query: &Query) -> Vec<i64> {
        let n = self.starts.len() - 1;
        let nets: Vec<AtomicI64> = (0..n).map(|_| AtomicI64::new(0)).collect();
        let n_tasks = self.codes.n_blocks().div_ceil(BLOCKS_PER_TASK);
        pool.run(n_tasks, &|task| self.add_nets(query, task, &nets));
        nets.into_iter().map(AtomicI64::into_inner).collect()
    }

    /// Adds the rows of one task. A contributor's rows may lie in several:
    /// integers add up to the same in any order.
    fn add_nets(&self, query: &Query, task: usize, nets: &[AtomicI64]) {
        let blocks =
            task * BLOCKS_PER_TASK..self.codes.n_blocks().min((task + 1) * BLOCKS_PER_TASK);
        let mut scores = [0_i64; BLOCKS_PER_TASK * LANES];
        let first = blocks.start * LANES;
        let end = self.codes.n_rows().min(blocks.end * LANES);
        for (block, scores) in blocks.zip(scores.as_chunks_mut::<LANES>().0) {
            *scores = self.codes.scores(query, block, &self.weights[block]);
        }
        let mut contributor = self
            .starts
            .partition_point(|&start| start as usize <= first)
            - 1;
        let mut at = first;
        while at < end {
            let stop = end.min(self.starts[contributor + 1] as usize);
            let net = scores[at - first..stop - first]
                .iter()
                .fold(0_i64, |sum, &score| sum.wrapping_add(score));
            // Wraps, as it may; see the module.
            nets[contributor].fetch_add(net, Relaxed);
            at = stop;
            contributor += 1;
        }
    }
}

/// `ceil(a |c|)`: no score exceeds it times the length of the query.
fn length(scale: u16, codes: &[i8; K]) -> u32 {
    let squares = codes.iter().map(|&code| i32::from(code) * i32::from(code));
    let squared = u64::from(squares.sum::<i32>().unsigned_abs());
    let scale = u64::from(scale);
    u32::try_from(root_up(scale * scale * squared)).expect("below 2^16 · 2^7")
}

/// The root, rounded up.
const fn root_up(x: u64) -> u64 {
    let root = x.isqrt();
    root + (root * root < x) as u64
}

/// The digits of every number in base 15, each in -7..=7, the lowest first.
/// Numbers below 2⁴³ in size have at most twelve.
fn digits(mut numbers: [i64; K]) -> Vec<[i8; K]> {
    let mut rows = Vec::new();
    while numbers != [0; K] {
        rows.push(numbers.each_mut().map(|number| {
            // The remainder of least size; what is left is divisible.
            let digit = (*number + BASE / 2).rem_euclid(BASE) - BASE / 2;
            *number = (*number - digit) / BASE;
            i8::try_from(digit).expect("a digit is in -7..=7")
        }));
    }
    rows
}

/// Why entries cannot be scored.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ScorerError {
    /// There is no entry.
    #[error("there is no sketch to score against")]
    Empty,
    /// There are more than [`RECORDS_MAX`].
    #[error("more than {RECORDS_MAX} sketches do not fit a scorer")]
    TooMany,
    /// A contributor comes after a higher one.
    #[error("sketch {position} is not in order of contributors")]
    Order {
        /// Which entry, from 0.
        position: usize,
    },
    /// The scale is 0 or a code is not in -7..=7.
    #[error("sketch {position} has a scale or a code out of range")]
    Value {
        /// Which entry, from 0.
        position: usize,
    },
}

#[cfg(test)]
mod tests;
