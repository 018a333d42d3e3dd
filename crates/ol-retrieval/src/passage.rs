//! Passages: records cut to what fits a prompt several times.

use std::ops::Range;

use ol_datanet::{CommittedRecord, Record, cluster_owners};
use ol_types::{Address, B256};

use crate::words::words;

/// The most passages of one version.
pub const PASSAGES_MAX: usize = 1 << 22;

/// The most bytes of all texts together.
const TEXT_MAX_SIZE_BYTES: usize = 1 << 30;

/// Bytes of a passage for each word that it may have, so that a text without
/// words has short passages too.
const WORD_SIZE_BYTES_MAX: usize = 24;

/// How records are cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CutRule {
    /// Words of the longest passage, 8 to 4,096.
    pub words_max: usize,
}

impl Default for CutRule {
    /// 64 words: about a hundred tokens, so that four passages, a question and
    /// an answer fit a context of 512.
    fn default() -> Self {
        Self { words_max: 64 }
    }
}

/// A record that passages are cut from: the owner of its duplicate cluster.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Source {
    /// Hash of the record.
    pub record: B256,
    /// Its duplicate cluster.
    pub cluster: u32,
    /// Who wrote it, by name.
    pub contributor: String,
    /// Who is paid for it.
    pub address: Address,
    /// SPDX expression of the licence.
    pub license: String,
    /// Where it was published; may be empty.
    pub url: String,
    /// What is cut: see [`record_text`].
    pub text: String,
}

/// A passage: a part of a record's text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Passage<'a> {
    /// The record it is of.
    pub source: &'a Source,
    /// Its first byte in the record's text.
    pub start: u32,
    /// The byte behind its last.
    pub end: u32,
    /// What it says.
    pub text: &'a str,
}

/// The text of a record that passages are parts of: question, line feed, answer.
#[must_use]
pub fn record_text(record: &Record) -> String {
    format!("{}\n{}", record.question, record.answer)
}

/// The passages of a version, in commit order.
#[derive(Debug, Clone)]
pub struct Passages {
    rule: CutRule,
    sources: Vec<Source>,
    places: Vec<Place>,
}

#[derive(Debug, Clone, Copy)]
struct Place {
    source: u32,
    start: u32,
    end: u32,
}

/// Why records cannot be cut.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PassageError {
    /// The rule is none.
    #[error("passages of {words_max} words; allowed are 8 to 4096")]
    Rule {
        /// What it says.
        words_max: usize,
    },
    /// There are too many passages.
    #[error("the datanet has more than {PASSAGES_MAX} passages; cut longer ones")]
    TooMany,
    /// There is too much text.
    #[error(
        "the datanet has more than {TEXT_MAX_SIZE_BYTES} bytes of text, which is too much to be searched here"
    )]
    TooMuchText,
}

impl Passages {
    /// Cuts the records of a version, given in commit order. Of a duplicate
    /// cluster only its owner is taken.
    ///
    /// # Errors
    /// [`PassageError`].
    pub fn cut(records: &[CommittedRecord], rule: CutRule) -> Result<Self, PassageError> {
        let words_max = rule.words_max;
        if !(8..=4_096).contains(&words_max) {
            return Err(PassageError::Rule { words_max });
        }
        let (mut sources, mut places) = (Vec::new(), Vec::new());
        let mut size_bytes = 0;
        for committed in cluster_owners(records) {
            let record = &committed.record;
            let text = record_text(record);
            size_bytes += text.len();
            if size_bytes > TEXT_MAX_SIZE_BYTES {
                return Err(PassageError::TooMuchText);
            }
            let number = |n: usize| u32::try_from(n).map_err(|_| PassageError::TooMuchText);
            let source = number(sources.len())?;
            for range in cut(&text, words_max) {
                if places.len() == PASSAGES_MAX {
                    return Err(PassageError::TooMany);
                }
                let (start, end) = (number(range.start)?, number(range.end)?);
                places.push(Place { source, start, end });
            }
            sources.push(Source {
                record: committed.record_hash,
                cluster: committed.cluster,
                contributor: record.contributor.clone(),
                address: committed.contributor_address,
                license: record.license.clone(),
                url: record.url.clone(),
                text,
            });
        }
        Ok(Self {
            rule,
            sources,
            places,
        })
    }

    /// How they were cut.
    #[must_use]
    pub const fn rule(&self) -> CutRule {
        self.rule
    }

    /// How many there are.
    #[must_use]
    pub const fn len(&self) -> usize {
        self.places.len()
    }

    /// Whether there is none.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.places.is_empty()
    }

    /// One of them.
    #[must_use]
    pub fn get(&self, passage: u32) -> Option<Passage<'_>> {
        let place = self.places.get(passage as usize)?;
        Some(self.passage(place))
    }

    /// All of them.
    pub fn iter(&self) -> impl Iterator<Item = Passage<'_>> {
        self.places.iter().map(|place| self.passage(place))
    }

    fn passage(&self, place: &Place) -> Passage<'_> {
        let Place { source, start, end } = *place;
        let source = &self.sources[source as usize];
        Passage {
            source,
            start,
            end,
            text: &source.text[start as usize..end as usize],
        }
    }
}

/// Cuts a text at the ends of sentences where there are any in the second half
/// of a passage, else between words.
fn cut(text: &str, words_max: usize) -> Vec<Range<usize>> {
    let (mut passages, mut start) = (Vec::new(), 0);
    loop {
        let rest = &text[start..];
        start += rest.len() - rest.trim_start().len();
        if start == text.len() {
            return passages;
        }
        let end = passage_end(text, start, words_max);
        let len = text[start..end].trim_end().len();
        passages.push(start..start + len);
        start = end;
    }
}

/// Where the passage that begins at `start` ends; behind `start`.
fn passage_end(text: &str, start: usize, words_max: usize) -> usize {
    let limit = text.floor_char_boundary(start + words_max * WORD_SIZE_BYTES_MAX);
    let part = &text[start..limit];
    let (mut last_end, mut sentence) = (0, None);
    for (n, word) in words(part).enumerate() {
        if n == words_max {
            return sentence.unwrap_or(start + word.start);
        }
        let ends_sentence = |c: char| matches!(c, '.' | '?' | '!' | '\n');
        if n > words_max / 2 && part[last_end..word.start].contains(ends_sentence) {
            sentence = Some(start + word.start);
        }
        last_end = word.end;
    }
    if limit == text.len() {
        limit
    } else {
        sentence.unwrap_or(limit)
    }
}

#[cfg(test)]
pub(crate) mod tests;
