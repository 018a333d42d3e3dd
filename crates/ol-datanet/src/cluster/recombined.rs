//! Recombined records: those whose question and answer each stand in earlier
//! records, so that they bring no words.
//!
//! A record that pairs one record's question with another's answer is no near
//! duplicate of either, and a model learns both of its parts: on scores it
//! cannot be told from an honest one. A part stands in earlier records if its
//! words are those of an earlier part or sentence, if those of each of its
//! sentences are, or, where near duplicates count, if it is near to an earlier
//! part. Section "Recombined records" of `specs/datanet.md`.
//!
//! What a duplicate says counts too: were only the owners of clusters known,
//! whether a record is new would depend on the order of those before it.
//!
//! Some 60 bytes of memory for each sentence, at most 64 a part.

use std::cmp::Reverse;
use std::collections::HashMap;
use std::iter;

use ol_types::{B256, keccak256};

use super::Texts;
use super::near::{NearIndex, WordSet, words};

/// Sentences of a part that are told apart; the last takes the rest. Bounds the
/// memory that a record of many short ones takes.
const SENTENCES_MAX: usize = 64;

/// Question and answer.
#[derive(Debug)]
pub(super) struct Parts([Part; 2]);

#[derive(Debug)]
struct Part {
    /// Hash of its words; `None` if it has none.
    whole: Option<B256>,
    /// Hashes of the words of its sentences that have some, the longest first.
    sentences: Vec<B256>,
    /// Where near duplicates count, if it has words.
    words: Option<WordSet>,
}

impl Part {
    /// Of a text in normal form.
    fn of(text: &str, with_words: bool) -> Self {
        let all: Vec<&str> = words(text).collect();
        let mut parted: Vec<Vec<&str>> = Vec::new();
        for sentence in sentences(text) {
            let mut words = words(sentence).peekable();
            if words.peek().is_none() {
                continue;
            }
            if parted.len() < SENTENCES_MAX {
                parted.push(Vec::new());
            }
            let last = parted
                .last_mut()
                .expect("one was just made, or there are 64");
            last.extend(words);
        }
        parted.sort_by_key(|words| Reverse(size_bytes(words)));
        Self {
            whole: (!all.is_empty()).then(|| hash(&all)),
            sentences: parted.iter().map(|words| hash(words)).collect(),
            words: with_words
                .then(|| WordSet::of(all.iter().copied()))
                .flatten(),
        }
    }
}

/// The sentences of a text in normal form, without the signs that end them.
fn sentences(text: &str) -> impl Iterator<Item = &str> {
    let mut rest = text;
    iter::from_fn(move || {
        if rest.is_empty() {
            return None;
        }
        let ends = |&(at, sign): &(usize, char)| match sign {
            '.' | '!' | '?' => matches!(rest.as_bytes().get(at + 1), None | Some(b' ')),
            '。' | '！' | '？' => true,
            _ => false,
        };
        let (end, begin) = match rest.char_indices().find(ends) {
            Some((at, sign)) => (at, at + sign.len_utf8()),
            None => (rest.len(), rest.len()),
        };
        let sentence = &rest[..end];
        rest = &rest[begin..];
        Some(sentence)
    })
}

fn size_bytes(words: &[&str]) -> usize {
    words.iter().map(|word| word.len() + 1).sum()
}

/// Keccak256 of the words, a zero byte after each.
fn hash(words: &[&str]) -> B256 {
    let mut bytes = Vec::with_capacity(size_bytes(words));
    for word in words {
        bytes.extend_from_slice(word.as_bytes());
        bytes.push(0);
    }
    keccak256(bytes)
}

/// Where a part stands in earlier records.
enum Standing {
    /// Nowhere: it is new.
    New,
    /// It has no words.
    Empty,
    /// In this cluster first.
    In(u32),
}

/// The parts of the records so far.
#[derive(Debug)]
pub(super) struct RecombinedIndex {
    /// From the hash of the words of a part or sentence to the cluster of the
    /// first record that has it.
    holders: HashMap<B256, u32>,
    /// Where near duplicates count: both parts of each record.
    near: Option<NearIndex>,
}

impl RecombinedIndex {
    /// `near` is empty, and there if near duplicates count.
    pub(super) fn new(near: Option<NearIndex>) -> Self {
        Self {
            holders: HashMap::new(),
            near,
        }
    }

    pub(super) fn parts(&self, texts: &Texts) -> Parts {
        let with_words = self.near.is_some();
        Parts([0, 1].map(|at| Part::of(&texts.0[at], with_words)))
    }

    /// The cluster of a record that brings no words: where its answer stands.
    pub(super) fn find(&self, parts: &Parts) -> Option<u32> {
        let [question, answer] = &parts.0;
        match (self.standing(question), self.standing(answer)) {
            (Standing::New, _) | (_, Standing::New) => None,
            (_, Standing::In(cluster)) | (Standing::In(cluster), Standing::Empty) => Some(cluster),
            (Standing::Empty, Standing::Empty) => None,
        }
    }

    fn standing(&self, part: &Part) -> Standing {
        let Some(whole) = &part.whole else {
            return Standing::Empty;
        };
        let holder = |hash| self.holders.get(hash).copied();
        let of_sentences = || {
            // A word may be in none: a sign that ends sentences.
            let longest = holder(part.sentences.first()?)?;
            let all = part.sentences.iter();
            all.map(holder)
                .all(|found| found.is_some())
                .then_some(longest)
        };
        let of_near = || self.near.as_ref()?.find(part.words.as_ref()?);
        let found = holder(whole).or_else(of_sentences).or_else(of_near);
        found.map_or(Standing::New, Standing::In)
    }

    /// Enters the parts of a record.
    pub(super) fn push(&mut self, parts: Parts, cluster: u32) {
        for part in parts.0 {
            for hash in part.whole.into_iter().chain(part.sentences) {
                self.holders.entry(hash).or_insert(cluster);
            }
            if let (Some(near), Some(words)) = (&mut self.near, part.words) {
                near.push(words, cluster);
            }
        }
    }
}

#[cfg(test)]
mod tests;
