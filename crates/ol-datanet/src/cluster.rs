//! Duplicates: records that say the same thing in the same words, or nearly.

use std::collections::HashMap;

use ol_types::{B256, keccak256};

use crate::Record;

mod near;

use near::{NearIndex, Signature};

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
    n_clusters: u32,
    /// Where near duplicates count.
    near: Option<NearIndex>,
}

impl Clusters {
    /// Of a datanet whose near duplicates are similar to `percent`, 1 to 100,
    /// if they count.
    pub(crate) fn new(near_duplicates_percent: Option<u8>) -> Self {
        Self {
            near: near_duplicates_percent.map(NearIndex::new),
            ..Self::default()
        }
    }

    /// The cluster of a record that comes next, and whether it is new with it.
    pub(crate) fn place(&self, record: &Record) -> Placement {
        let question = normalize(&record.question);
        let mut bytes = Vec::with_capacity(8 + question.len() + record.answer.len());
        // The length keeps ("a", "bc") and ("ab", "c") apart.
        bytes.extend_from_slice(&(question.len() as u64).to_be_bytes());
        bytes.extend_from_slice(question.as_bytes());
        bytes.extend_from_slice(normalize(&record.answer).as_bytes());
        let key = keccak256(bytes);
        let (mut number, mut signature) = (self.numbers.get(&key).copied(), None);
        if let (None, Some(near)) = (number, &self.near) {
            signature = Signature::of(record);
            number = signature.as_ref().and_then(|found| near.find(found));
        }
        Placement {
            key,
            number: number.unwrap_or(self.n_clusters),
            is_new: number.is_none(),
            signature,
        }
    }

    pub(crate) fn insert(&mut self, placement: Placement) {
        self.numbers.insert(placement.key, placement.number);
        if placement.is_new {
            self.n_clusters += 1;
            if let Some(near) = &mut self.near {
                near.push(placement.signature);
            }
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
    signature: Option<Signature>,
}

#[cfg(test)]
mod tests;
