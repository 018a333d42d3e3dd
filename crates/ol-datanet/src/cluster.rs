//! Exact duplicates: records that say the same thing in the same words.

use std::collections::HashMap;

use ol_types::{B256, keccak256};

use crate::Record;

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

/// The clusters of a datanet so far.
#[derive(Debug, Default)]
pub(crate) struct Clusters {
    /// From the hash of the normalised texts to the cluster's number.
    numbers: HashMap<B256, u32>,
}

impl Clusters {
    /// The cluster of a record that comes next, and whether it is new with it.
    pub(crate) fn place(&self, record: &Record) -> Placement {
        let question = normalize(&record.question);
        let mut bytes = Vec::with_capacity(8 + question.len() + record.answer.len());
        // The length keeps ("a", "bc") and ("ab", "c") apart.
        bytes.extend_from_slice(&(question.len() as u64).to_be_bytes());
        bytes.extend_from_slice(question.as_bytes());
        bytes.extend_from_slice(normalize(&record.answer).as_bytes());
        let key = keccak256(bytes);
        match self.numbers.get(&key) {
            Some(&number) => Placement {
                key,
                number,
                is_new: false,
            },
            None => Placement {
                key,
                number: self.len(),
                is_new: true,
            },
        }
    }

    pub(crate) fn insert(&mut self, placement: &Placement) {
        self.numbers.insert(placement.key, placement.number);
    }

    /// How many there are.
    pub(crate) fn len(&self) -> u32 {
        u32::try_from(self.numbers.len()).expect("a datanet has at most 2^20 records")
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
}

#[cfg(test)]
mod tests;
