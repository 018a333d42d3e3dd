//! Corpora for tests, and the slow search that they are compared with.

use std::collections::BTreeMap;

use ol_poa::spans::{CLUSTERS_MAX, Holder, Holders, Span};
use ol_types::{Address, B256, keccak256};

use crate::{BuildOptions, Corpus, Match, Progress, RecordRef, SpansError, Store};

/// A record and its texts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Document {
    pub(crate) record: RecordRef,
    pub(crate) texts: Vec<Vec<u32>>,
}

/// Whoever `n` is.
pub(crate) fn contributor(n: u8) -> Address {
    Address::repeat_byte(n)
}

/// Record `name` of a cluster and a contributor.
pub(crate) fn document(name: u32, cluster: u32, who: u8, texts: Vec<Vec<u32>>) -> Document {
    let record = RecordRef {
        hash: keccak256(name.to_be_bytes()),
        contributor: contributor(who),
        cluster,
    };
    Document { record, texts }
}

pub(crate) fn corpus(documents: &[Document], vocabulary_size: usize) -> Corpus {
    Corpus {
        manifest: keccak256("manifest"),
        tokenizer: keccak256("tokenizer"),
        vocabulary_size,
        records: documents.iter().map(|document| document.record).collect(),
    }
}

/// Indexes documents; also how many of them were asked for.
pub(crate) fn update(
    store: &Store,
    documents: &[Document],
    vocabulary_size: usize,
    tokens_max: usize,
) -> Result<(B256, usize), SpansError> {
    let mut n_asked = 0;
    let mut tokens = |record: &RecordRef| {
        n_asked += 1;
        let found = documents.iter().find(|document| document.record == *record);
        Ok(found.ok_or("it is not in the sample")?.texts.clone())
    };
    let options = BuildOptions {
        memory_budget_bytes: 8 * tokens_max,
    };
    let mut last = None;
    let corpus = corpus(documents, vocabulary_size);
    let id = store.update(&corpus, &options, &mut tokens, &mut |progress| {
        last = Some(progress)
    })?;
    if let Some(Progress {
        records,
        records_total,
        ..
    }) = last
    {
        assert_eq!((records, records_total), (documents.len(), documents.len()));
    }
    Ok((id, n_asked))
}

/// The longest match at each position of an answer.
fn longest_at(documents: &[Document], answer: &[u32], at: usize) -> usize {
    let texts = documents.iter().flat_map(|document| &document.texts);
    let suffixes = texts.flat_map(|text| (0..text.len()).map(|start| &text[start..]));
    let common = |suffix: &[u32]| {
        suffix
            .iter()
            .zip(&answer[at..])
            .take_while(|(a, b)| a == b)
            .count()
    };
    suffixes.map(common).max().unwrap_or(0)
}

/// All maximal spans by comparing everything with everything.
pub(crate) fn naive(documents: &[Document], answer: &[u32], length_min: usize) -> Vec<Match> {
    let mut matches = Vec::new();
    let mut end = 0;
    for start in 0..answer.len() {
        let len = longest_at(documents, answer, start);
        if len < length_min || start + len <= end {
            continue;
        }
        end = start + len;
        let wanted = &answer[start..end];
        let mut occurrences = 0;
        let mut first: BTreeMap<u32, u32> = BTreeMap::new();
        for (number, document) in (0..).zip(documents) {
            for text in &document.texts {
                let n = text.windows(len).filter(|window| *window == wanted).count();
                occurrences += n as u64;
                if n > 0 {
                    first.entry(document.record.cluster).or_insert(number);
                }
            }
        }
        let owner = |cluster: u32| {
            documents
                .iter()
                .find(|document| document.record.cluster == cluster)
        };
        let holder = |&cluster: &u32| Holder {
            cluster,
            contributor: owner(cluster).unwrap().record.contributor,
        };
        let is_too_many = first.len() > CLUSTERS_MAX;
        let (holders, records) = if is_too_many {
            (Holders::TooMany, Vec::new())
        } else {
            (
                Holders::Listed(first.keys().map(holder).collect()),
                first.into_values().collect(),
            )
        };
        let narrow = |n: usize| u32::try_from(n).unwrap();
        let span = Span {
            start: narrow(start),
            len: narrow(len),
            holders,
        };
        matches.push(Match {
            span,
            occurrences,
            records,
        });
    }
    matches
}
