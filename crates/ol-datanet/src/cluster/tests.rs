//! Goal: the normal form is the one of the specification, and texts that run
//! into each other stay apart.

use std::collections::BTreeMap;

use proptest::prelude::*;
use serde::Deserialize;

use super::*;

#[test]
fn white_space_and_ascii_case_do_not_matter() {
    for (text, expected) in [
        ("  What\tis\u{a0}\u{2003}it ?\r\n", "what is it ?"),
        ("ÄÖ Straße", "ÄÖ straße"),
        (" \n", ""),
        // A zero-width space is not white space in Unicode.
        ("a\u{200b}b", "a\u{200b}b"),
    ] {
        assert_eq!(normalize(text), expected, "{text:?}");
    }
}

pub(super) fn record(question: &str, answer: &str) -> Record {
    Record {
        question: question.into(),
        answer: answer.into(),
        ..Record::default()
    }
}

/// The records of a file of vectors, and their clusters under each of its rules.
pub(super) fn vectors(bytes: &[u8]) -> (Vec<Record>, BTreeMap<String, Vec<u32>>) {
    #[derive(Deserialize)]
    struct Vectors {
        records: Vec<Text>,
        clusters: BTreeMap<String, Vec<u32>>,
    }
    #[derive(Deserialize)]
    struct Text {
        question: String,
        answer: String,
    }
    let vectors: Vectors = serde_json::from_slice(bytes).unwrap();
    let texts = vectors.records.iter();
    let records = texts.map(|text| record(&text.question, &text.answer));
    (records.collect(), vectors.clusters)
}

/// The cluster of each record, committed in their order.
pub(super) fn place_all(rules: DuplicateRules, records: &[Record]) -> Vec<u32> {
    let mut clusters = Clusters::new(rules);
    let mut place = |record| {
        let placement = clusters.place(record);
        let number = placement.number;
        clusters.insert(placement);
        number
    };
    records.iter().map(&mut place).collect()
}

#[test]
fn the_border_between_question_and_answer_counts() {
    let mut clusters = Clusters::default();
    let first = clusters.place(&record("a", "b c"));
    assert!(first.is_new && first.number == 0);
    clusters.insert(first);
    let other = clusters.place(&record("a b", "c"));
    assert!(other.is_new && other.number == 1);
    let same = clusters.place(&record(" A", "b\nC"));
    assert!(!same.is_new && same.number == 0);
}

proptest! {
    #[test]
    fn normalizing_twice_changes_nothing(text in "\\PC{0,40}|[ \\t\\n\\u{a0}A-Za-z]{0,40}") {
        let once = normalize(&text);
        prop_assert_eq!(normalize(&once), once);
    }
}
