//! Goal: near duplicates are those of the specification, the first owner wins,
//! and no number of alike records makes the search long.
//! Method: `fixtures/datanet/near`, made by another implementation; every pair
//! compared one by one.

use std::collections::BTreeSet;

use proptest::prelude::*;
use serde::Deserialize;

use super::*;
use crate::Record;
use crate::cluster::tests::{place_all, record, vectors};
use crate::cluster::{DuplicateRules, Texts};

#[derive(Deserialize)]
struct Words {
    words_of_the_first: Vec<u64>,
}

fn word_set(record: &Record) -> WordSet {
    Texts::of(record).words().unwrap()
}

#[test]
fn clusters_are_those_of_the_specification() {
    let bytes = include_bytes!("../../../../../fixtures/datanet/near/vectors.json");
    let (records, clusters) = vectors(bytes);
    let words: Words = serde_json::from_slice(bytes).unwrap();
    assert_eq!(*word_set(&records[0]).0, words.words_of_the_first);
    for (percent, expected) in &clusters {
        let rules = DuplicateRules::EXACT.and_near(percent.parse().unwrap());
        assert_eq!(&place_all(rules, &records), expected, "{percent} %");
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
fn a_word_finds_no_more_than_the_first_texts() {
    // All begin alike, and are otherwise apart.
    let of = |i: usize| {
        let own: Vec<String> = (0..30).map(|k| format!("w{i}x{k}")).collect();
        word_set(&record("the same beginning of all records", &own.join(" ")))
    };
    let mut index = NearIndex::new(50);
    for i in 0..3_000 {
        index.push(of(i), u32::try_from(i).unwrap());
    }
    let n_texts: Vec<usize> = index.words.values().map(|word| word.texts.len()).collect();
    assert_eq!(n_texts.iter().max(), Some(&TEXTS_OF_A_WORD_MAX));
    for i in [0, 1, 2_999] {
        assert_eq!(index.find(&of(i)), Some(u32::try_from(i).unwrap()));
    }
    let form = word_set(&record("the same beginning of all records", ""));
    assert_eq!(index.find(&form), None);
}

/// The number of the first text that is near, by the definition.
fn first_near(percent: u8, texts: &[BTreeSet<u64>], words: &BTreeSet<u64>) -> Option<usize> {
    let all = log2(texts.len() as u64 + 1);
    let weight = |word: &u64| {
        let n_texts = texts.iter().filter(|text| text.contains(word)).count();
        u128::from(all - log2((n_texts as u64).max(1)))
    };
    texts.iter().position(|text| {
        let both: u128 = words.intersection(text).map(weight).sum();
        let either: u128 = words.union(text).map(weight).sum();
        100 * both >= u128::from(percent) * either
    })
}

proptest! {
    #[test]
    fn what_is_found_is_what_comparing_all_finds(
        texts in prop::collection::vec("[a-m]( [a-m]){0,12}", 1..40),
        percent in 1_u8..=100,
    ) {
        let mut index = NearIndex::new(percent);
        let mut before: Vec<BTreeSet<u64>> = Vec::new();
        for (number, text) in (0..).zip(&texts) {
            let words = WordSet::of(words(text)).unwrap();
            let by_definition = words.0.iter().copied().collect();
            let expected = first_near(percent, &before, &by_definition);
            let found = index.find(&words);
            prop_assert_eq!(found.map(|found| found as usize), expected);
            index.push(words, number);
            before.push(by_definition);
        }
    }
}
