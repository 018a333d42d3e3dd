//! What the spans that an answer shares with a corpus are worth, and to whom.
//!
//! A span is a run of tokens that stands in the answer and in records. Finding
//! spans needs an index of the corpus; what is here needs only what was found:
//! the spans, the duplicate clusters that hold each, and the committed table of
//! unigram information. So whoever has those recomputes the payment.
//!
//! The rule, section "Units" of `specs/spans.md`:
//! 1. The information of a token is `log2(N / count)` in milli-bits, that of a
//!    span the sum over its tokens, its weight what is above the floor.
//! 2. Each token of the answer is paid once: spans take their tokens in the
//!    order of the versions that they first stood in, then of their weights, ties
//!    to the earlier in the answer, and are worth what is above the floor of the
//!    tokens they got. So what a version adds takes nothing from those before it.
//! 3. That worth is divided evenly over the clusters that held the span in that
//!    version, whatever the number of occurrences, to the last unit.
//! 4. Units are added up by contributor. Next to them stands what the whole answer
//!    would be worth without a floor: what of that is earned, is paid of the pot.
//!
//! # No overflow
//! An answer has at most 2¹⁶ tokens of less than 2¹⁶ milli-bits, so all of it
//! holds less than 2³² milli-bits; a milli-bit is 10⁶ < 2²⁰ units. Every token
//! is paid once, so all units together stay below 2⁵², far under
//! [`WEIGHT_LIMIT`](crate::shares::WEIGHT_LIMIT).

use alloc::vec;
use alloc::vec::Vec;
use core::cmp::Reverse;
use core::fmt;

use alloy_primitives::{Address, B256, keccak256};

use crate::evidence::{Earned, weights_of};
use crate::shares::shares;

/// A span that more clusters held when it first stood in the corpus is
/// boiler-plate, and nobody is paid for it.
pub const CLUSTERS_MAX: usize = 256;

/// Tokens of the longest answer that is paid for.
pub const ANSWER_TOKENS_MAX: usize = 1 << 16;

/// Tokens of the largest vocabulary.
pub const VOCABULARY_MAX: usize = 1 << 20;

/// Tokens of a corpus are fewer than this.
pub const CORPUS_TOKENS_LIMIT: u64 = 1 << 48;

/// Units of one milli-bit. More than one, so that dividing by the clusters
/// loses nothing that matters.
pub const UNITS_PER_MILLIBIT: u64 = 1_000_000;

/// Bits of the fraction that [`log2`] gives.
const FRACTION_BITS: u32 = 32;

/// What counts as a span, and from where on it is worth something.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SpanRule {
    /// Tokens of the shortest span, at least 1.
    pub length_min: u32,
    /// Information that every piece of text has in common with some other, in
    /// milli-bits.
    pub floor_millibits: u64,
}

impl Default for SpanRule {
    /// Eight tokens and 64 bits; `docs/attribution.md` says why.
    fn default() -> Self {
        Self {
            length_min: 8,
            floor_millibits: 64_000,
        }
    }
}

/// `log2(x)` as a fixed-point number with 32 bits of fraction, below the exact
/// value by less than 2⁻³² + 2⁻⁶¹.
///
/// # Source
/// The digit-by-digit method of D. E. Knuth, *The Art of Computer
/// Programming*, vol. 1, 1.2.2, exercise 25, with a mantissa of 64 bits. A
/// squaring rounds down by at most one part in 2⁶³, and what the `i`-th one
/// loses counts 2⁻ⁱ in the result.
///
/// # Panics
/// If `x` is 0, which has no logarithm; that is a bug in the caller.
#[must_use]
pub const fn log2(x: u64) -> u64 {
    assert!(x > 0, "0 has no logarithm");
    let exponent = x.ilog2();
    // In [2⁶³, 2⁶⁴): the mantissa in [1, 2).
    let mut mantissa = x << (63 - exponent);
    let mut result = exponent as u64;
    let mut bit = 0;
    while bit < FRACTION_BITS {
        let square = mantissa as u128 * mantissa as u128;
        let is_two_or_more = square >> 127 == 1;
        result = result << 1 | is_two_or_more as u64;
        let shift = if is_two_or_more { 64 } else { 63 };
        mantissa = low_word(square >> shift);
        bit += 1;
    }
    result
}

#[expect(
    clippy::cast_possible_truncation,
    reason = "a square below 2¹²⁸ shifted down by 64, or below 2¹²⁷ by 63, is below 2⁶⁴"
)]
const fn low_word(x: u128) -> u64 {
    x as u64
}

/// The information of a token that is `count` of `total` tokens: `1000 ·
/// log2(total / count)`, rounded down to milli-bits from two [`log2`]. A token
/// that does not occur counts as one that occurs once.
fn information(count: u64, total: u64) -> u16 {
    let difference = log2(total) - log2(count.max(1));
    let millibits = (u128::from(difference) * 1_000) >> FRACTION_BITS;
    u16::try_from(millibits).expect("log2 of a total below 2⁴⁸ is below 48, so below 48,000")
}

/// The committed table: the information of every token of a vocabulary, in
/// milli-bits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unigrams {
    millibits: Vec<u16>,
}

impl Unigrams {
    /// The table of a corpus in which token `i` occurs `counts[i]` times.
    ///
    /// # Errors
    /// [`SpanError::Vocabulary`], [`SpanError::Corpus`] if there is no token at
    /// all, or there are [`CORPUS_TOKENS_LIMIT`] or more.
    pub fn from_counts(counts: &[u64]) -> Result<Self, SpanError> {
        check_vocabulary(counts.len())?;
        let add = |sum: u64, &count: &u64| sum.checked_add(count);
        let total = counts.iter().try_fold(0, add);
        let total = total.filter(|total| (1..CORPUS_TOKENS_LIMIT).contains(total));
        let total = total.ok_or(SpanError::Corpus)?;
        let millibits = counts.iter().map(|&count| information(count, total));
        Ok(Self {
            millibits: millibits.collect(),
        })
    }

    /// Reads what [`Unigrams::to_bytes`] wrote. Every 16 bits are a value.
    ///
    /// # Errors
    /// [`SpanError::Vocabulary`] if the size is not that of a table.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, SpanError> {
        let (values, rest) = bytes.as_chunks::<2>();
        check_vocabulary(values.len())?;
        if !rest.is_empty() {
            return Err(SpanError::Vocabulary { size: values.len() });
        }
        Ok(Self {
            millibits: values.iter().copied().map(u16::from_le_bytes).collect(),
        })
    }

    /// The table as it is stored and hashed: `u16`, little-endian, by token.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        self.millibits
            .iter()
            .flat_map(|value| value.to_le_bytes())
            .collect()
    }

    /// What commits to the table: keccak256 of its bytes.
    #[must_use]
    pub fn hash(&self) -> B256 {
        keccak256(self.to_bytes())
    }

    /// Tokens of the vocabulary; at least 1.
    #[must_use]
    #[expect(
        clippy::len_without_is_empty,
        reason = "an empty table cannot be built"
    )]
    pub const fn len(&self) -> usize {
        self.millibits.len()
    }

    /// Information of one token in milli-bits; `None` if the vocabulary has no
    /// such token.
    #[must_use]
    pub fn get(&self, token: u32) -> Option<u16> {
        self.millibits.get(usize::try_from(token).ok()?).copied()
    }

    /// The least and the most information of a token.
    #[must_use]
    pub fn bounds(&self) -> (u16, u16) {
        let all = self.millibits.iter().copied();
        let bounds = (all.clone().min(), all.max());
        (bounds.0.unwrap_or_default(), bounds.1.unwrap_or_default())
    }
}

const fn check_vocabulary(size: usize) -> Result<(), SpanError> {
    if size == 0 || size > VOCABULARY_MAX {
        return Err(SpanError::Vocabulary { size });
    }
    Ok(())
}

/// A duplicate cluster that holds a span, and who is paid for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Holder {
    /// Number of the cluster.
    pub cluster: u32,
    /// Who owns the cluster.
    pub contributor: Address,
}

/// The clusters that held a span in the version that it first stood in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Holders {
    /// All of them, strictly ascending by cluster: 1 to [`CLUSTERS_MAX`].
    Listed(Vec<Holder>),
    /// More than [`CLUSTERS_MAX`]: boiler-plate.
    TooMany,
}

/// A run of the answer's tokens that stands in records too.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Span {
    /// Position of its first token in the answer.
    pub start: u32,
    /// Its number of tokens.
    pub len: u32,
    /// The version of the corpus in which it stood first.
    pub since: u32,
    /// Who had it then.
    pub holders: Holders,
}

/// What every contributor has earned by an answer, of what all of its tokens
/// would be worth ([`answer_units`]): that part of the pot for spans is shared by
/// these weights, the rest falls to training. Nothing if no span is worth anything.
///
/// If more than [`EVIDENCE_MAX`](crate::evidence::EVIDENCE_MAX) contributors
/// earned something, those with the most units are kept, ties to the lower
/// address.
///
/// # Shapes and units
/// - `answer`: the tokens, at most [`ANSWER_TOKENS_MAX`].
/// - `spans`: strictly ascending by start, then by length.
/// - units: 10⁻⁶ milli-bits.
///
/// # Errors
/// [`SpanError`] if the input is not as described.
pub fn span_units(
    answer: &[u32],
    spans: &[Span],
    table: &Unigrams,
    rule: &SpanRule,
) -> Result<Earned, SpanError> {
    let mut earned = Vec::new();
    for (span, worth) in worths(answer, spans, table, rule)? {
        if let Holders::Listed(holders) = &spans[span].holders {
            earned.extend(divide(worth, holders));
        }
    }
    Ok(Earned::new(
        weights_of(earned),
        answer_units(answer, table)?,
    ))
}

/// What an answer would be worth if all of it were one span, and there were no
/// floor: the most that spans of it can be worth together.
///
/// # Errors
/// As [`span_units`].
pub fn answer_units(answer: &[u32], table: &Unigrams) -> Result<u64, SpanError> {
    let millibits: u64 = millibits_of(answer, table)?.iter().sum();
    Ok(millibits * UNITS_PER_MILLIBIT)
}

fn millibits_of(answer: &[u32], table: &Unigrams) -> Result<Vec<u64>, SpanError> {
    if answer.len() > ANSWER_TOKENS_MAX {
        return Err(SpanError::Answer {
            n_tokens: answer.len(),
        });
    }
    let value = |(position, &token): (usize, &u32)| {
        let value = table.get(token).ok_or(SpanError::Token { position })?;
        Ok(u64::from(value))
    };
    answer.iter().enumerate().map(value).collect()
}

/// The worth of a span divided over the clusters that hold it: evenly, the
/// units left over to the first. Nothing if there is none.
#[must_use]
#[expect(clippy::missing_panics_doc, reason = "the expectation cannot fail")]
pub fn divide(worth: u64, holders: &[Holder]) -> Vec<(Address, u64)> {
    let Ok(parts) = shares(worth.into(), &vec![1; holders.len()]) else {
        return Vec::new();
    };
    let part = |(holder, part): (&Holder, u128)| {
        let part = u64::try_from(part).expect("a part of a u64 fits one");
        (holder.contributor, part)
    };
    holders.iter().zip(parts).map(part).collect()
}

/// The spans that are worth something, by position in `spans`, each with its
/// units before they are divided. No token counts for two of them.
///
/// # Errors
/// As [`span_units`].
pub fn worths(
    answer: &[u32],
    spans: &[Span],
    table: &Unigrams,
    rule: &SpanRule,
) -> Result<Vec<(usize, u64)>, SpanError> {
    // What is paid becomes 0, so that no token is paid twice.
    let mut millibits = millibits_of(answer, table)?;
    check_spans(answer.len(), spans, rule)?;

    let range = |span: &Span| span.start as usize..(span.start + span.len) as usize;
    let above_floor = |tokens: &[u64]| {
        tokens
            .iter()
            .sum::<u64>()
            .saturating_sub(rule.floor_millibits)
    };
    let mut order: Vec<(u32, Reverse<u64>, usize)> = Vec::with_capacity(spans.len());
    for (position, span) in spans.iter().enumerate() {
        let weight = above_floor(&millibits[range(span)]);
        if weight > 0 && span.holders != Holders::TooMany {
            order.push((span.since, Reverse(weight), position));
        }
    }
    order.sort_unstable();

    let mut worths = Vec::with_capacity(order.len());
    for (_, _, position) in order {
        let tokens = &mut millibits[range(&spans[position])];
        let left = above_floor(tokens);
        // A span that the others left too little of takes nothing from those
        // that follow.
        if left > 0 {
            tokens.fill(0);
            worths.push((position, left * UNITS_PER_MILLIBIT));
        }
    }
    Ok(worths)
}

fn check_spans(n_tokens: usize, spans: &[Span], rule: &SpanRule) -> Result<(), SpanError> {
    let mut before: Option<(u32, u32)> = None;
    for (span, Span { start, len, .. }) in spans.iter().enumerate() {
        let end = start.checked_add(*len);
        let end = end.filter(|&end| end as usize <= n_tokens);
        let end = end.ok_or(SpanError::Range { span })?;
        if *len < rule.length_min.max(1) {
            return Err(SpanError::Range { span });
        }
        if before.is_some_and(|before| (*start, end) <= before) {
            return Err(SpanError::Order { span });
        }
        before = Some((*start, end));
        if let Holders::Listed(holders) = &spans[span].holders {
            let is_ascending = holders.windows(2).all(|p| p[0].cluster < p[1].cluster);
            if holders.is_empty() || holders.len() > CLUSTERS_MAX || !is_ascending {
                return Err(SpanError::Holders { span });
            }
        }
    }
    Ok(())
}

/// Why spans cannot be paid for.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum SpanError {
    /// A vocabulary has no token, more than [`VOCABULARY_MAX`], or a half one.
    Vocabulary {
        /// Tokens of it.
        size: usize,
    },
    /// A corpus has no token, or [`CORPUS_TOKENS_LIMIT`] or more.
    Corpus,
    /// The answer has more than [`ANSWER_TOKENS_MAX`] tokens.
    Answer {
        /// How many it has.
        n_tokens: usize,
    },
    /// A token of the answer is not in the table.
    Token {
        /// Its position, from 0.
        position: usize,
    },
    /// A span is shorter than the rule allows, or reaches beyond the answer.
    Range {
        /// Its position in the list, from 0.
        span: usize,
    },
    /// A span neither begins after the one before it, nor where that begins and
    /// ends after it.
    Order {
        /// Its position in the list, from 0.
        span: usize,
    },
    /// The clusters of a span are none, too many, or not ascending.
    Holders {
        /// Its position in the list, from 0.
        span: usize,
    },
}

impl fmt::Display for SpanError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Vocabulary { size } => write!(
                f,
                "a table of {size} tokens; it must have 1 to {VOCABULARY_MAX}, two bytes each"
            ),
            Self::Corpus => write!(
                f,
                "the corpus has no token, or {CORPUS_TOKENS_LIMIT} or more"
            ),
            Self::Answer { n_tokens } => write!(
                f,
                "an answer of {n_tokens} tokens, at most {ANSWER_TOKENS_MAX} are paid for"
            ),
            Self::Token { position } => {
                write!(f, "token {position} of the answer is not in the table")
            }
            Self::Range { span } => write!(
                f,
                "span {span} is shorter than the rule allows or reaches beyond the answer"
            ),
            Self::Order { span } => write!(f, "span {span} does not come after the one before"),
            Self::Holders { span } => write!(
                f,
                "the clusters of span {span} are not 1 to {CLUSTERS_MAX}, ascending"
            ),
        }
    }
}

impl core::error::Error for SpanError {}

#[cfg(test)]
mod tests;
