//! Goal: a record that says nothing but what earlier records say is found
//! however it is put together, and one with a word of its own never is.
//! Method: `fixtures/datanet/recombined`, made by another implementation;
//! records of random sentences, pieced together at random.

use proptest::prelude::*;
use proptest::sample::Index;

use super::*;
use crate::Record;
use crate::cluster::DuplicateRules;
use crate::cluster::tests::{place_all, record, vectors};

const RECOMBINED: DuplicateRules = DuplicateRules::EXACT.and_recombined();
const WITH_NEAR: DuplicateRules = RECOMBINED.and_near(40);

#[test]
fn clusters_are_those_of_the_specification() {
    let bytes = include_bytes!("../../../../../fixtures/datanet/recombined/vectors.json");
    let (records, clusters) = vectors(bytes);
    for (name, rules) in [
        ("recombined", RECOMBINED),
        ("recombined, near 40", WITH_NEAR),
    ] {
        assert_eq!(place_all(rules, &records), clusters[name], "{name}");
    }
}

#[test]
fn sentences_end_where_the_specification_says() {
    for (text, expected) in [
        ("", vec![]),
        ("a", vec!["a"]),
        ("a. b! c?", vec!["a", " b", " c"]),
        ("3.5 is e.g. a.b", vec!["3.5 is e.g", " a.b"]),
        ("...", vec![".."]),
        ("a。b！ c", vec!["a", "b", " c"]),
    ] {
        assert_eq!(sentences(text).collect::<Vec<_>>(), expected, "{text:?}");
    }
}

#[test]
fn a_record_of_many_sentences_takes_bounded_memory() {
    let texts = |n: usize| {
        let all: Vec<String> = (0..n).map(|i| format!("{i}.")).collect();
        Texts::of(&record("?", &all.join(" ")))
    };
    let mut index = RecombinedIndex::new(None);
    let parts = index.parts(&texts(30_000));
    index.push(parts, 0);
    assert_eq!(index.holders.len(), SENTENCES_MAX + 1);
    // What is found is still all of it, or the sentences that it begins with.
    for (n, is_found) in [(30_000, true), (63, true), (64, false), (29_999, false)] {
        let found = index.find(&index.parts(&texts(n)));
        assert_eq!(found, is_found.then_some(0), "{n}");
    }
}

/// One to three sentences of one to three of so many words.
fn text(n_words: u8) -> impl Strategy<Value = String> {
    let words = prop::collection::vec(0..n_words, 1..4);
    let sentence = words.prop_map(|words| {
        let words: Vec<String> = words.iter().map(|word| format!("w{word}")).collect();
        words.join(" ")
    });
    prop::collection::vec(sentence, 1..4).prop_map(|all| all.join(". "))
}

fn records(n_words: u8, most: usize) -> impl Strategy<Value = Vec<Record>> {
    let one = (text(n_words), text(n_words));
    let one = one.prop_map(|(question, answer)| record(&question, &answer));
    prop::collection::vec(one, 1..most)
}

/// Whether the record owns a cluster when it comes after the others.
fn is_new(rules: DuplicateRules, before: &[Record], last: Record) -> bool {
    let numbers = place_all(rules, &[before, &[last]].concat());
    let (last, before) = numbers.split_last().unwrap();
    !before.contains(last)
}

proptest! {
    #[test]
    fn what_is_pieced_together_is_found_and_an_own_word_never_is(
        before in records(40, 20),
        pieces in prop::collection::vec(any::<Index>(), 2..8),
        cut in any::<Index>(),
        end in prop::sample::select(vec![". ", "! ", " ?  "]),
        own_question in any::<bool>(),
    ) {
        let parts = before.iter().flat_map(|record| [&record.question, &record.answer]);
        let all: Vec<&str> = parts.flat_map(|text| text.split(". ")).collect();
        let pieces: Vec<&str> = pieces.iter().map(|at| *at.get(&all)).collect();
        let (question, answer) = pieces.split_at(1 + cut.index(pieces.len() - 1));
        let (question, answer) = (question.join(end), answer.join(end));
        prop_assert!(!is_new(RECOMBINED, &before, record(&question, &answer)));
        let own = |text: &str, is_own: bool| format!("{text}{}", if is_own { " mine" } else { "" });
        let own = record(&own(&question, own_question), &own(&answer, !own_question));
        prop_assert!(is_new(RECOMBINED, &before, own));
    }

    #[test]
    fn a_records_question_with_anothers_answer_is_found(
        before in records(40, 20),
        [question, answer] in any::<[Index; 2]>(),
        with_near in any::<bool>(),
    ) {
        let rules = if with_near { WITH_NEAR } else { RECOMBINED };
        let [question, answer] = [question, answer].map(|at| at.get(&before));
        prop_assert!(!is_new(rules, &before, record(&question.question, &answer.answer)));
        prop_assert!(!is_new(rules, &before, record(&answer.answer, &question.question)));
    }

    #[test]
    fn whether_a_record_brings_words_follows_from_the_set_of_those_before(
        (before, shuffled) in records(6, 24)
            .prop_flat_map(|all| (Just(all.clone()), Just(all).prop_shuffle())),
        last in (text(6), text(6)),
    ) {
        let last = record(&last.0, &last.1);
        prop_assert_eq!(
            is_new(RECOMBINED, &before, last.clone()),
            is_new(RECOMBINED, &shuffled, last)
        );
    }
}
