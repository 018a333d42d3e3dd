//! Duplicates: records that say the same thing in the same words, or nearly, or
//! in words that others brought.

use std::collections::HashMap;
use std::fmt;

use ol_types::{B256, keccak256};

use crate::Record;

mod near;
mod recombined;

use near::{NearIndex, WordSet};
use recombined::{Parts, RecombinedIndex};

/// A text as duplicates are compared: runs of Unicode white space become one
/// space, the ends are trimmed, ASCII letters are lowered.
#[must_use]
pub fn normalize(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for word in text.split_whitespace() {
        if !out.is_empty() {
            out.push(' ');
        }
        out.push_str(word);
    }
    out.make_ascii_lowercase();
    out
}

/// What makes records duplicates of each other besides the same question and
/// answer: a datanet's own rules, fixed by its first version.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct DuplicateRules {
    /// Part of their words, by weight, in per cent, 1 to 100, that near duplicates
    /// have in common; `None` if there are none. [`NEAR_DUPLICATES_PERCENT`]
    /// is what was measured to be a good value.
    ///
    /// [`NEAR_DUPLICATES_PERCENT`]: crate::NEAR_DUPLICATES_PERCENT
    pub near_percent: Option<u8>,
    /// Whether records are duplicates whose question and answer each stand in
    /// earlier records: they bring no words. Not for a datanet of labels, whose
    /// honest answers are the same few words.
    pub recombined: bool,
}

impl DuplicateRules {
    /// No more than the same question and answer.
    pub const EXACT: Self = Self {
        near_percent: None,
        recombined: false,
    };

    /// The same rules, and near duplicates.
    #[must_use]
    pub const fn and_near(self, percent: u8) -> Self {
        Self {
            near_percent: Some(percent),
            ..self
        }
    }

    /// The same rules, and recombined records.
    #[must_use]
    pub const fn and_recombined(self) -> Self {
        Self {
            recombined: true,
            ..self
        }
    }
}

impl fmt::Display for DuplicateRules {
    /// As in "duplicates are exact, near (60 %), recombined".
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("exact")?;
        if let Some(percent) = self.near_percent {
            write!(f, ", near ({percent} %)")?;
        }
        f.write_str(if self.recombined { ", recombined" } else { "" })
    }
}

/// Question and answer in normal form.
#[derive(Debug)]
struct Texts([String; 2]);

impl Texts {
    fn of(record: &Record) -> Self {
        Self([&record.question, &record.answer].map(|text| normalize(text)))
    }

    /// What exact duplicates have in common.
    fn key(&self) -> B256 {
        let [question, answer] = &self.0;
        let mut bytes = Vec::with_capacity(8 + question.len() + answer.len());
        // The length keeps ("a", "bc") and ("ab", "c") apart.
        bytes.extend_from_slice(&(question.len() as u64).to_be_bytes());
        bytes.extend_from_slice(question.as_bytes());
        bytes.extend_from_slice(answer.as_bytes());
        keccak256(bytes)
    }

    fn words(&self) -> Option<WordSet> {
        WordSet::of(self.0.iter().flat_map(|text| near::words(text)))
    }
}

/// The clusters of a datanet so far.
#[derive(Debug, Default)]
pub(crate) struct Clusters {
    /// From the hash of the normalised texts to the cluster's number.
    numbers: HashMap<B256, u32>,
    n_clusters: u32,
    /// Records, where near duplicates count.
    near: Option<NearIndex>,
    /// Parts of records, where recombined ones count.
    recombined: Option<RecombinedIndex>,
}

impl Clusters {
    pub(crate) fn new(rules: DuplicateRules) -> Self {
        let near = || rules.near_percent.map(NearIndex::new);
        Self {
            near: near(),
            recombined: rules.recombined.then(|| RecombinedIndex::new(near())),
            ..Self::default()
        }
    }

    /// The cluster of a record that comes next, and whether it is new with it.
    pub(crate) fn place(&self, record: &Record) -> Placement {
        let texts = Texts::of(record);
        let key = texts.key();
        if let Some(&number) = self.numbers.get(&key) {
            return Placement {
                key,
                number,
                is_new: false,
                words: None,
                parts: None,
            };
        }
        let words = self.near.as_ref().and_then(|_| texts.words());
        let recombined = self.recombined.as_ref();
        let parts = recombined.map(|recombined| recombined.parts(&texts));
        let near = || self.near.as_ref()?.find(words.as_ref()?);
        let number = near().or_else(|| recombined?.find(parts.as_ref()?));
        Placement {
            key,
            number: number.unwrap_or(self.n_clusters),
            is_new: number.is_none(),
            words,
            parts,
        }
    }

    pub(crate) fn insert(&mut self, placement: Placement) {
        self.numbers.insert(placement.key, placement.number);
        if placement.is_new {
            self.n_clusters += 1;
        }
        // Not owners alone: a copy of a duplicate may be less like the owner.
        if let (Some(near), Some(words)) = (&mut self.near, placement.words) {
            near.push(words, placement.number);
        }
        if let (Some(recombined), Some(parts)) = (&mut self.recombined, placement.parts) {
            recombined.push(parts, placement.number);
        }
    }

    /// How many there are.
    pub(crate) const fn len(&self) -> u32 {
        self.n_clusters
    }
}

/// Where a record belongs.
#[derive(Debug)]
pub(crate) struct Placement {
    key: B256,
    /// Number of the cluster.
    pub(crate) number: u32,
    /// Whether the record is the first of it, and owns it.
    pub(crate) is_new: bool,
    /// If near duplicates count and the record is no exact one.
    words: Option<WordSet>,
    /// If recombined records count and the record is no exact duplicate.
    parts: Option<Parts>,
}

#[cfg(test)]
mod tests;
