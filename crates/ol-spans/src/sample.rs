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

/// All of them in one version.
pub(crate) fn corpus(documents: &[Document], vocabulary_size: usize) -> Corpus {
    Corpus {
        versions: vec![u32::try_from(documents.len()).unwrap()],
        manifest: keccak256("manifest"),
        tokenizer: keccak256("tokenizer"),
        vocabulary_size,
        records: documents.iter().map(|document| document.record).collect(),
    }
}

/// Indexes documents of one version; also how many of them were asked for.
pub(crate) fn update(
    store: &Store,
    documents: &[Document],
    vocabulary_size: usize,
    tokens_max: usize,
) -> Result<(B256, usize), SpansError> {
    update_versions(
        store,
        documents,
        &[documents.len()],
        vocabulary_size,
        tokens_max,
    )
}

/// Indexes documents that came in versions, each of which ends where it says.
pub(crate) fn update_versions(
    store: &Store,
    documents: &[Document],
    versions: &[usize],
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
    let versions = versions.iter().map(|&end| u32::try_from(end).unwrap());
    let corpus = Corpus {
        versions: versions.collect(),
        ..corpus(documents, vocabulary_size)
    };
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

/// Every run of an answer that stands in the documents, with the version that it
/// first stood in.
fn runs(
    documents: &[Document],
    versions: &[usize],
    answer: &[u32],
    length_min: usize,
) -> BTreeMap<(usize, usize), u32> {
    let mut runs = BTreeMap::new();
    for start in 0..answer.len() {
        for end in start + length_min..=answer.len() {
            let first = documents
                .iter()
                .position(|d| occurrences(d, &answer[start..end]) > 0);
            let Some(first) = first else { break };
            let before = versions.iter().filter(|&&end| end <= first).count();
            runs.insert((start, end), u32::try_from(before + 1).unwrap());
        }
    }
    runs
}

fn occurrences(document: &Document, wanted: &[u32]) -> u64 {
    let windows = |text: &Vec<u32>| text.windows(wanted.len()).filter(|w| *w == wanted).count();
    document.texts.iter().map(|text| windows(text) as u64).sum()
}

/// All spans by comparing everything with everything.
pub(crate) fn naive(documents: &[Document], answer: &[u32], length_min: usize) -> Vec<Match> {
    naive_versions(documents, &[documents.len()], answer, length_min)
}

/// The same, of documents that came in versions.
pub(crate) fn naive_versions(
    documents: &[Document],
    versions: &[usize],
    answer: &[u32],
    length_min: usize,
) -> Vec<Match> {
    let runs = runs(documents, versions, answer, length_min);
    let is_within = |(a, b): (usize, usize), other: (usize, usize)| {
        other != (a, b) && other.0 <= a && b <= other.1
    };
    let mut matches = Vec::new();
    for (&run, &since) in &runs {
        if runs
            .iter()
            .any(|(&other, &version)| version <= since && is_within(run, other))
        {
            continue;
        }
        let wanted = &answer[run.0..run.1];
        let all = documents
            .iter()
            .map(|document| occurrences(document, wanted));
        let end = versions[since as usize - 1];
        let mut first: BTreeMap<u32, u32> = BTreeMap::new();
        for (number, document) in (0..).zip(&documents[..end]) {
            if occurrences(document, wanted) > 0 {
                first.entry(document.record.cluster).or_insert(number);
            }
        }
        let owner = |cluster: u32| documents.iter().find(|d| d.record.cluster == cluster);
        let holder = |&cluster: &u32| Holder {
            cluster,
            contributor: owner(cluster).unwrap().record.contributor,
        };
        let (holders, records) = if first.len() > CLUSTERS_MAX {
            (Holders::TooMany, Vec::new())
        } else {
            let holders = first.keys().map(holder).collect();
            (Holders::Listed(holders), first.into_values().collect())
        };
        let narrow = |n: usize| u32::try_from(n).unwrap();
        matches.push(Match {
            span: Span {
                start: narrow(run.0),
                len: narrow(run.1 - run.0),
                since,
                holders,
            },
            occurrences: all.sum(),
            records,
        });
    }
    matches
}
