//! BM25 in integers.
//!
//! The crates for BM25 score in floats whose last bits, and with them the order
//! of near ties, depend on the library's logarithm; here a passage may be paid
//! for being found. So the logarithm is the integer one of `ol_poa::spans`, and
//! what a term adds to a passage is computed once, when the index is made.

use std::collections::{HashMap, HashSet};

use ol_poa::spans::log2;

use crate::passage::PASSAGES_MAX;
use crate::words::{term_into, terms, words};
use crate::{Hit, PassageError, best};

/// Different terms of a query that are looked up; further ones are left out.
const QUERY_TERMS_MAX: usize = 1_024;

/// Bits of the fraction of a score.
const SCORE_BITS: u32 = 16;

/// Bits of the fraction of a term's frequency, saturated.
const FREQUENCY_BITS: u32 = 20;

/// Bits of the fraction that [`log2`] gives.
const LOG_BITS: u32 = 32;

/// An inverted index: Okapi BM25 with `k1 = 1.2` and `b = 0.75` (Robertson and
/// Zaragoza, *The Probabilistic Relevance Framework*, 2009) and the rarity
/// `log(1 + (N - n + 0.5) / (n + 0.5))` of Lucene, which is never negative.
///
/// Scores are in bits (logarithms to base 2), with 16 bits of fraction. No
/// overflow: a rarity is below 24 bits as there are at most 2²² passages, a
/// saturated frequency below 2.2, so 1,024 terms stay below 24 · 2.2 · 2²⁶ < 2³².
#[derive(Debug, Clone)]
pub struct Lexical {
    numbers: HashMap<Box<str>, u32>,
    /// By term; passages ascending.
    postings: Vec<Vec<Posting>>,
    n_passages: usize,
}

#[derive(Debug, Clone, Copy)]
struct Posting {
    passage: u32,
    /// While the index is made, how often the term is there; then what it adds.
    impact: u32,
}

impl Lexical {
    /// The index of texts.
    ///
    /// # Errors
    /// [`PassageError::TooMany`] past [`PASSAGES_MAX`], [`PassageError::TooMuchText`]
    /// if there are 2³² words.
    #[expect(clippy::missing_panics_doc, reason = "the expectations cannot fail")]
    pub fn new<'a>(texts: impl IntoIterator<Item = &'a str>) -> Result<Self, PassageError> {
        let mut numbers: HashMap<Box<str>, u32> = HashMap::new();
        let mut postings: Vec<Vec<Posting>> = Vec::new();
        let (mut lens, mut n_words) = (Vec::<u32>::new(), 0_u32);
        let (mut term, mut found) = (String::new(), Vec::new());
        for (text, passage) in texts.into_iter().zip(0_u32..) {
            if lens.len() == PASSAGES_MAX {
                return Err(PassageError::TooMany);
            }
            found.clear();
            for word in words(text) {
                term_into(&text[word], &mut term);
                let number = match numbers.get(term.as_str()) {
                    Some(&number) => number,
                    None => {
                        let number = u32::try_from(postings.len());
                        let number = number.map_err(|_| PassageError::TooMuchText)?;
                        numbers.insert(term.as_str().into(), number);
                        postings.push(Vec::new());
                        number
                    }
                };
                found.push(number);
            }
            let len = u32::try_from(found.len()).map_err(|_| PassageError::TooMuchText)?;
            n_words = n_words.checked_add(len).ok_or(PassageError::TooMuchText)?;
            lens.push(len);
            found.sort_unstable();
            for run in found.chunk_by(|a, b| a == b) {
                let impact = u32::try_from(run.len()).expect("a run is within `len`");
                postings[run[0] as usize].push(Posting { passage, impact });
            }
        }
        let n_passages = lens.len();
        for postings in &mut postings {
            let rarity = rarity(postings.len() as u64, n_passages as u64);
            for posting in postings {
                let len = lens[posting.passage as usize];
                let frequency = frequency(posting.impact, len, n_words, n_passages);
                let impact = (rarity * frequency) >> (LOG_BITS + FREQUENCY_BITS - SCORE_BITS);
                posting.impact = u32::try_from(impact).expect("below 24 · 2.2 · 2¹⁶");
            }
        }
        Ok(Self {
            numbers,
            postings,
            n_passages,
        })
    }

    /// Passages of the index.
    #[must_use]
    pub const fn len(&self) -> usize {
        self.n_passages
    }

    /// Whether it has none.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.n_passages == 0
    }

    /// The score of every passage. A term counts once, however often it is asked
    /// for.
    #[must_use]
    pub fn scores(&self, query: &str) -> Vec<u32> {
        let mut scores = vec![0_u32; self.n_passages];
        let mut seen = HashSet::new();
        for term in terms(query) {
            let Some(&number) = self.numbers.get(term.as_str()) else {
                continue;
            };
            if seen.len() == QUERY_TERMS_MAX {
                break;
            }
            if seen.insert(number) {
                for posting in &self.postings[number as usize] {
                    scores[posting.passage as usize] += posting.impact;
                }
            }
        }
        scores
    }

    /// The `n` best passages that have a term of the query, best first, ties to
    /// the lower position.
    #[must_use]
    pub fn search(&self, query: &str, n: usize) -> Vec<Hit> {
        let scores = self.scores(query);
        let hit = |(score, passage): (u32, u32)| Hit {
            passage,
            score: score.into(),
        };
        let hits = scores.into_iter().zip(0_u32..);
        best(hits.filter(|(score, _)| *score > 0).map(hit).collect(), n)
    }
}

/// `log2(1 + (n - with + 0.5) / (with + 0.5))`, which is
/// `log2(2n + 2) - log2(2 with + 1)`.
const fn rarity(n_with: u64, n_passages: u64) -> u64 {
    log2(2 * n_passages + 2) - log2(2 * n_with + 1)
}

/// `f (k1 + 1) / (f + k1 (1 - b + b len / mean))`, everything times a million.
fn frequency(count: u32, len: u32, n_words: u32, n_passages: usize) -> u64 {
    // Below 2²⁰ · 2³² · 2²².
    let relative = 900_000 * u128::from(len) * n_passages as u128 / u128::from(n_words.max(1));
    let count = u128::from(count);
    let saturated =
        ((2_200_000 * count) << FREQUENCY_BITS) / (1_000_000 * count + 300_000 + relative);
    u64::try_from(saturated).expect("below 2.2 · 2²⁰")
}

#[cfg(test)]
mod tests;
