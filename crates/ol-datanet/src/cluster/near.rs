//! Near duplicates: records that share most of what their words tell.
//!
//! A record's words, of question and answer, make a set; two records are near
//! duplicates if the words of both weigh at least a given part of the words of
//! either (Jaccard's similarity, weighted). A word weighs by its rarity, as
//! "inverse document frequency" does (Spärck Jones, *A statistical
//! interpretation of term specificity*, 1972): the form that honest records
//! have in common says little, the names and numbers that a copy keeps say
//! much. Weights are of the texts so far, and integers, so that everything
//! follows from those: section "Near duplicates" of `specs/datanet.md`.
//!
//! A record is compared only with those that share one of its rarest words:
//! texts that share none of them share too little (prefix filtering: Bayardo,
//! Ma and Srikant, *Scaling up all pairs similarity search*, 2007).
//!
//! Some 12 bytes of memory for each different word of a text, and 100 for each of
//! the texts together.

use std::cmp::Reverse;
use std::collections::{BTreeSet, HashMap};
use std::iter;

use ol_poa::spans::log2;

/// Texts that are found by one word; it finds no later ones. What so many have
/// in common is no copy's mark, and the search stays short.
const TEXTS_OF_A_WORD_MAX: usize = 64;

/// The different words of a text, by hash, ascending.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct WordSet(Box<[u64]>);

impl WordSet {
    /// `None` if there are no words.
    pub(super) fn of<'a>(words: impl Iterator<Item = &'a str>) -> Option<Self> {
        let mut hashes: Vec<u64> = words.map(fnv1a).collect();
        hashes.sort_unstable();
        hashes.dedup();
        (!hashes.is_empty()).then(|| Self(hashes.into()))
    }
}

/// The words of a text in normal form: runs of ASCII letters and digits and of
/// characters beyond ASCII; in scripts that are written without spaces, each
/// character.
pub(super) fn words(text: &str) -> impl Iterator<Item = &str> {
    let mut rest = text;
    iter::from_fn(move || {
        rest = rest.trim_start_matches(|c: char| !is_of_word(c));
        let first = rest.chars().next()?;
        let end = if is_word(first) {
            first.len_utf8()
        } else {
            let is_end = |c: char| !is_of_word(c) || is_word(c);
            rest.find(is_end).unwrap_or(rest.len())
        };
        let (word, after) = rest.split_at(end);
        rest = after;
        Some(word)
    })
}

const fn is_of_word(c: char) -> bool {
    c.is_ascii_alphanumeric() || !c.is_ascii()
}

/// Thai to Burmese, Khmer, kana, and Chinese characters.
const fn is_word(c: char) -> bool {
    matches!(c,
        '\u{e00}'..='\u{109f}'
        | '\u{1780}'..='\u{17ff}'
        | '\u{3040}'..='\u{30ff}'
        | '\u{3400}'..='\u{9fff}'
        | '\u{f900}'..='\u{faff}'
        | '\u{20000}'..='\u{3ffff}')
}

/// FNV-1a of 64 bits. Who makes two words of one hash makes his own record look
/// more like another's.
fn fnv1a(word: &str) -> u64 {
    word.bytes().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    })
}

/// The texts that a word is in.
#[derive(Debug, Default)]
struct Occurrences {
    n_texts: u64,
    /// Of their number.
    log2: u64,
    /// The first of them.
    texts: Vec<u32>,
}

/// The words of a text with what they weigh, ascending by hash.
struct Weighed {
    words: Vec<(u64, u64)>,
    sum: u128,
}

/// Texts by their likeness.
#[derive(Debug)]
pub(super) struct NearIndex {
    /// The least similarity of near duplicates, in per cent.
    percent: u8,
    words: HashMap<u64, Occurrences>,
    /// As they came, with their clusters.
    texts: Vec<(WordSet, u32)>,
    /// Of the number of texts and the one that comes next.
    log2: u64,
}

impl NearIndex {
    /// `percent`, 1 to 100, is the similarity of near duplicates.
    pub(super) fn new(percent: u8) -> Self {
        Self {
            percent,
            words: HashMap::new(),
            texts: Vec::new(),
            log2: log2(1),
        }
    }

    /// The cluster of the first text that is nearly the same.
    pub(super) fn find(&self, words: &WordSet) -> Option<u32> {
        let weighed = self.weigh(words);
        let telling = self.telling(&weighed);
        let found = telling.iter().filter_map(|hash| self.words.get(hash));
        let candidates: BTreeSet<u32> = found.flat_map(|word| &word.texts).copied().collect();
        let candidates = candidates.iter().map(|&at| &self.texts[at as usize]);
        let mut near = candidates.filter(|(text, _)| self.is_near(&weighed, text));
        near.next().map(|&(_, cluster)| cluster)
    }

    fn weigh(&self, words: &WordSet) -> Weighed {
        let words = words.0.iter().map(|&hash| (hash, self.weight(hash)));
        let words: Vec<(u64, u64)> = words.collect();
        let sum = words.iter().map(|&(_, weight)| u128::from(weight)).sum();
        Weighed { words, sum }
    }

    /// Bits that a word tells, times 2^32: how rare it is among the texts and the
    /// one that comes next. A new word weighs as one of a single text.
    fn weight(&self, hash: u64) -> u64 {
        self.log2 - self.words.get(&hash).map_or(0, |word| word.log2)
    }

    /// The rarest words, without which two texts have too little in common.
    fn telling(&self, text: &Weighed) -> Vec<u64> {
        let mut rarest = text.words.clone();
        rarest.sort_unstable_by_key(|&(hash, weight)| (Reverse(weight), hash));
        let mut left = text.sum;
        let telling = rarest.into_iter().take_while(|&(_, weight)| {
            let is_telling = self.is_enough(left, text.sum);
            left -= u128::from(weight);
            is_telling
        });
        telling.map(|(hash, _)| hash).collect()
    }

    fn is_near(&self, text: &Weighed, other: &WordSet) -> bool {
        let mut others = other.0.iter().peekable();
        let is_in_both = |&&(hash, _): &&(u64, u64)| {
            while others.next_if(|other| **other < hash).is_some() {}
            others.next_if_eq(&&hash).is_some()
        };
        let in_both = text.words.iter().filter(is_in_both);
        let both: u128 = in_both.map(|&(_, weight)| u128::from(weight)).sum();
        // Either weighs no less than the text: most comparisons end here.
        self.is_enough(both, text.sum) && {
            let others = other.0.iter().map(|&hash| u128::from(self.weight(hash)));
            self.is_enough(both, text.sum + others.sum::<u128>() - both)
        }
    }

    /// Whether a weight is the least part of another, or more.
    const fn is_enough(&self, part: u128, all: u128) -> bool {
        100 * part >= self.percent as u128 * all
    }

    /// Enters the next text.
    pub(super) fn push(&mut self, words: WordSet, cluster: u32) {
        let number = u32::try_from(self.texts.len()).expect("two for each of 2^20 records at most");
        for &hash in &words.0 {
            let word = self.words.entry(hash).or_default();
            word.n_texts += 1;
            word.log2 = log2(word.n_texts);
            if word.texts.len() < TEXTS_OF_A_WORD_MAX {
                word.texts.push(number);
            }
        }
        self.texts.push((words, cluster));
        self.log2 = log2(self.texts.len() as u64 + 1);
    }
}

#[cfg(test)]
mod tests;
