//! Goal: near duplicates are those of the specification, the first owner wins,
//! and no number of alike records makes the search long.
//! Method: `fixtures/datanet/near`, made by another implementation; every pair
//! compared one by one.

use proptest::prelude::*;
use serde::Deserialize;

use super::*;
use crate::Record;
use crate::cluster::tests::{place_all, record};
use crate::cluster::{DuplicateRules, Texts};

#[derive(Deserialize)]
struct Vectors {
    records: Vec<Text>,
    signature_of_the_first: Vec<u16>,
    clusters: std::collections::BTreeMap<String, Vec<u32>>,
}

#[derive(Deserialize)]
struct Text {
    question: String,
    answer: String,
}

fn signature(record: &Record) -> Signature {
    Texts::of(record).signature().unwrap()
}

#[test]
fn clusters_are_those_of_the_specification() {
    let vectors = include_bytes!("../../../../../fixtures/datanet/near/vectors.json");
    let vectors: Vectors = serde_json::from_slice(vectors).unwrap();
    let texts = vectors.records.iter();
    let records: Vec<Record> = texts.map(|t| record(&t.question, &t.answer)).collect();
    let first = signature(&records[0]);
    assert_eq!(first.0.as_slice(), vectors.signature_of_the_first);
    for (percent, expected) in &vectors.clusters {
        let found = place_all(
            DuplicateRules::EXACT.and_near(percent.parse().unwrap()),
            &records,
        );
        assert_eq!(&found, expected, "{percent} %");
    }
}

#[test]
fn words_are_cut_where_the_specification_says() {
    for (text, expected) in [
        ("", vec![]),
        (" .,- ", vec![]),
        ("it's 3.5 %", vec!["it", "s", "3", "5"]),
        ("für-dich", vec!["für", "dich"]),
        ("ab数据cd", vec!["ab", "数", "据", "cd"]),
    ] {
        assert_eq!(words(text).collect::<Vec<_>>(), expected, "{text:?}");
    }
}

#[test]
fn a_bucket_stays_bounded_and_keeps_the_first() {
    // All begin alike, and are otherwise apart.
    let of = |i: usize| {
        let own: Vec<String> = (0..30).map(|k| format!("w{i}x{k}")).collect();
        record("the same beginning of all records", &own.join(" "))
    };
    let mut index = NearIndex::new(50);
    for i in 0..3_000 {
        index.push(Some(signature(&of(i))));
    }
    for bucket in index.buckets.values() {
        assert!(bucket.n <= BUCKET_MAX);
    }
    assert!(index.buckets.values().any(|bucket| bucket.n == BUCKET_MAX));
    for i in [0, 1, 2_999] {
        let found = index.find(&signature(&of(i)));
        assert_eq!(found, Some(u32::try_from(i).unwrap()));
    }
}

proptest! {
    #[test]
    fn what_is_found_is_what_comparing_all_finds(
        texts in prop::collection::vec("[a-c]( [a-c]){0,12}", 1..40),
        percent in 1_u8..=100,
    ) {
        let records: Vec<Record> = texts.iter().map(|text| record(text, "x")).collect();
        let mut owners: Vec<Signature> = Vec::new();
        let mut expected = Vec::new();
        for record in &records {
            let signature = signature(record);
            let is_near = |owner: &Signature| {
                let bands = |of: &Signature| of.0.as_chunks::<BAND_VALUES>().0[..BANDS].to_vec();
                bands(owner).iter().zip(bands(&signature)).any(|(a, b)| *a == b)
                    && 100 * owner.n_equal(&signature) >= usize::from(percent) * VALUES
            };
            let number = owners.iter().position(is_near);
            expected.push(u32::try_from(number.unwrap_or(owners.len())).unwrap());
            if number.is_none() {
                owners.push(signature);
            }
        }
        prop_assert_eq!(place_all(DuplicateRules::EXACT.and_near(percent), &records), expected);
    }
}
