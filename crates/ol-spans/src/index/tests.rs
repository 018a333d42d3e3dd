//! Goal: the spans found, their counts and their holders are those of a search
//! that compares everything with everything, however the corpus is cut into
//! shards and in whatever order it grew and shrank; and no attack on the index
//! pays.
//! Method: random corpora over two to four tokens, so that matches are long and
//! many; then the limits; then attacks, with the gain computed.

use ol_types::Address;
use proptest::prelude::*;
use tempfile::tempdir;

use super::*;
use crate::sample::{
    Document, contributor, document, naive, naive_versions, update, update_versions,
};
use crate::{SpansError, Store};

const LARGE: usize = 1 << 20;

fn texts() -> impl Strategy<Value = Vec<Vec<u32>>> {
    prop::collection::vec(prop::collection::vec(0_u32..3, 0..14), 0..3)
}

/// Records of few clusters; some with empty texts or none.
fn documents() -> impl Strategy<Value = Vec<Document>> {
    let one = (0_u32..5, 1_u8..4, texts());
    prop::collection::vec(one, 1..10).prop_map(|all| {
        let number = |(n, (cluster, who, texts))| document(n, cluster, who, texts);
        (0..).zip(all).map(number).collect()
    })
}

fn has_tokens(documents: &[Document]) -> bool {
    // Those of the cluster's first record are counted.
    let mut clusters = std::collections::HashSet::new();
    let is_first = |d: &&Document| clusters.insert(d.record.cluster);
    documents
        .iter()
        .filter(is_first)
        .any(|d| d.texts.iter().any(|text| !text.is_empty()))
}

proptest! {
    #[test]
    fn spans_are_those_of_a_naive_search(
        documents in documents(),
        answer in prop::collection::vec(0_u32..4, 0..40),
        length_min in 1_u32..6,
        tokens_max in prop_oneof![1_usize..40, Just(LARGE)],
        first in prop::collection::vec(any::<bool>(), 10),
        second in prop::collection::vec(any::<bool>(), 10),
    ) {
        let dir = tempdir().unwrap();
        let store = Store::open(dir.path()).unwrap();
        // Two other versions before this one: records of theirs leave, others come.
        let choose = |mask: &[bool]| -> Vec<Document> {
            documents.iter().zip(mask).filter(|(_, is_in)| **is_in).map(|(d, _)| d.clone()).collect()
        };
        for (version, mask) in [&first, &second].into_iter().enumerate() {
            let mut earlier = choose(mask);
            let gone = u32::try_from(1_000 + version).unwrap();
            earlier.push(document(gone, 9, 9, vec![vec![0, 1, 2, 0, 1, 1, 2], vec![3, 3, 3, 2]]));
            update(&store, &earlier, 4, tokens_max).unwrap();
        }
        prop_assume!(has_tokens(&documents));
        let (id, _) = update(&store, &documents, 4, tokens_max).unwrap();
        let index = store.load(id).unwrap();
        store.verify(id).unwrap();
        let expected = naive(&documents, &answer, length_min as usize);
        prop_assert_eq!(index.spans(&answer, length_min).unwrap(), expected);

        // One build of the whole gives the same, and the same id.
        let other = tempdir().unwrap();
        let store = Store::open(other.path()).unwrap();
        let (same, n_asked) = update(&store, &documents, 4, LARGE).unwrap();
        prop_assert_eq!((same, n_asked), (id, documents.len()));
        let rule = SpanRule { length_min, floor_millibits: 500 };
        let whole = store.load(id).unwrap();
        prop_assert_eq!(whole.n_shards(), 1);
        prop_assert_eq!(whole.units(&answer, &rule).unwrap(), index.units(&answer, &rule).unwrap());
    }
}

proptest! {
    /// With versions too, however they are cut into shards; and what a version has
    /// stays as it is, whatever later ones add.
    #[test]
    fn spans_belong_to_the_version_that_they_first_stood_in(
        documents in documents(),
        answer in prop::collection::vec(0_u32..4, 0..40),
        length_min in 1_u32..6,
        tokens_max in prop_oneof![1_usize..40, Just(LARGE)],
        cuts in prop::collection::btree_set(1_usize..10, 0..4),
    ) {
        let mut versions: Vec<usize> =
            cuts.into_iter().filter(|&cut| cut < documents.len()).collect();
        versions.push(documents.len());
        let dir = tempdir().unwrap();
        let store = Store::open(dir.path()).unwrap();
        let mut found = Vec::new();
        for n in 1..=versions.len() {
            let documents = &documents[..versions[n - 1]];
            if !has_tokens(documents) {
                continue;
            }
            let (id, _) = update_versions(&store, documents, &versions[..n], 4, tokens_max).unwrap();
            store.verify(id).unwrap();
            let spans = store.load(id).unwrap().spans(&answer, length_min).unwrap();
            let expected = naive_versions(documents, &versions[..n], &answer, length_min as usize);
            prop_assert_eq!(&spans, &expected);
            found.push((u32::try_from(n).unwrap(), spans));
        }
        if let Some((_, last)) = found.last() {
            for (version, spans) in &found {
                let kept: Vec<(&Span, &Vec<u32>)> = last
                    .iter()
                    .filter(|matched| matched.span.since <= *version)
                    .map(|matched| (&matched.span, &matched.records))
                    .collect();
                let before: Vec<(&Span, &Vec<u32>)> =
                    spans.iter().map(|matched| (&matched.span, &matched.records)).collect();
                prop_assert_eq!(kept, before);
            }
        }
    }
}

#[test]
fn what_later_versions_quote_stays_its_authors() {
    let passage: Vec<u32> = (100..160).collect();
    let own = |n: u32| -> Vec<u32> { (0..40).map(|i| 200 + (n * 31 + i * 17) % 700).collect() };
    // The first version, then 300 records that quote all of it and go on as the
    // answer does.
    let answer = [passage.clone(), own(7)].concat();
    let quoting = |n: u32| document(n, n, 9, vec![[own(n + 1_000), answer.clone()].concat()]);
    let mut documents = vec![document(0, 0, 1, vec![[own(1), passage].concat()])];
    documents.extend((1..=300).map(quoting));
    let units = |versions: &[usize]| {
        let dir = tempdir().unwrap();
        let store = Store::open(dir.path()).unwrap();
        let (id, _) = update_versions(&store, &documents, versions, 1_000, LARGE).unwrap();
        let index = store.load(id).unwrap();
        (
            index.spans(&answer, 8).unwrap(),
            index.units(&answer, &SpanRule::default()).unwrap(),
        )
    };
    let (found, earned) = units(&[1, 301]);
    let spans: Vec<(u32, u32, u32)> = found
        .iter()
        .map(|f| (f.span.start, f.span.len, f.span.since))
        .collect();
    assert_eq!(spans, [(0, 60, 1), (0, 100, 2)]);
    // The passage is its author's; what follows has too many holders.
    let authors: Vec<Address> = earned.weights.iter().map(|&(who, _)| who).collect();
    assert_eq!(authors, [contributor(1)]);
    // In one version nobody is first, and 301 clusters are too many.
    let (found, earned) = units(&[301]);
    assert_eq!(found.len(), 1);
    assert!(earned.weights.is_empty());
}

#[test]
fn vocabularies_beyond_sixteen_bits_are_found_too() {
    let dir = tempdir().unwrap();
    let store = Store::open(dir.path()).unwrap();
    // 70,000 different tokens, far apart, in one shard.
    let text: Vec<u32> = (0..70_000).map(|i| (i * 7_919) % 1_000_003).collect();
    let short: Vec<u32> = text[500..520].to_vec();
    let documents = [
        document(0, 0, 1, vec![text.clone()]),
        document(1, 1, 2, vec![short]),
    ];
    let (id, _) = update(&store, &documents, 1_000_003, LARGE).unwrap();
    store.verify(id).unwrap();
    let mut answer = text[495..530].to_vec();
    answer[3] = 999_999;
    let found = store.load(id).unwrap().spans(&answer, 3).unwrap();
    assert_eq!(found, naive(&documents, &answer, 3));
    assert_eq!(found.len(), 2);
}

/// The phrase that many records have.
fn phrase() -> Vec<u32> {
    (20..40).collect()
}

/// A text around the phrase that nobody else has.
fn around(n: u32) -> Vec<u32> {
    let own = |i: u32| 100 + (n * 31 + i * 17) % 800;
    let before = (0..30).map(own);
    before.chain(phrase()).chain((30..60).map(own)).collect()
}

#[test]
fn a_phrase_in_more_clusters_than_the_cap_is_boiler_plate() {
    for (n_clusters, is_listed) in [(256, true), (257, false)] {
        let dir = tempdir().unwrap();
        let store = Store::open(dir.path()).unwrap();
        // Twice in each, so that occurrences are not what is counted.
        let both = |n| document(n, n, 1, vec![around(n), phrase()]);
        let documents: Vec<Document> = (0..n_clusters).map(both).collect();
        let (id, _) = update(&store, &documents, 1_000, 700).unwrap();
        let index = store.load(id).unwrap();
        assert!(index.n_shards() > 1);
        let found = index.spans(&phrase(), 8).unwrap();
        assert_eq!(found, naive(&documents, &phrase(), 8));
        assert_eq!(found[0].occurrences, 2 * u64::from(n_clusters));
        assert_eq!(found[0].span.holders != Holders::TooMany, is_listed);
        let units = index
            .units(&phrase(), &SpanRule::default())
            .unwrap()
            .weights;
        assert_eq!(units.is_empty(), !is_listed);
    }
}

/// Share of contributor 9 in the payment for an answer, given what it puts in.
fn share_of_attacker(honest: &[Document], attack: &[Vec<Vec<u32>>], answer: &[u32]) -> f64 {
    let dir = tempdir().unwrap();
    let store = Store::open(dir.path()).unwrap();
    let mut documents = honest.to_vec();
    for (n, texts) in (10_000..).zip(attack) {
        documents.push(document(n, n, 9, texts.clone()));
    }
    let (id, _) = update(&store, &documents, 1_000, LARGE).unwrap();
    let units = store
        .load(id)
        .unwrap()
        .units(answer, &SpanRule::default())
        .unwrap()
        .weights;
    let sum: u64 = units.iter().map(|(_, units)| units).sum();
    let own = units.iter().find(|(who, _)| *who == contributor(9));
    own.map_or(0.0, |(_, units)| *units as f64 / sum as f64)
}

/// Honest records, 20 of 10 contributors, and an answer that quotes one of them
/// and one of the attacker's.
fn honest() -> (Vec<Document>, Vec<u32>, Vec<u32>) {
    let who = |n: u32| 1 + u8::try_from(n % 8).unwrap();
    let documents: Vec<Document> = (0..20)
        .map(|n| document(n, n, who(n), vec![around(n)]))
        .collect();
    let own = around(77);
    let answer = [&documents[3].texts[0][5..50], &[999], &own[..45]].concat();
    (documents, own, answer)
}

#[test]
fn a_thousand_repeats_gain_less_than_a_twentieth() {
    let (documents, own, answer) = honest();
    let once = share_of_attacker(&documents, &[vec![own.clone()]], &answer);
    assert!(once > 0.2 && once < 0.6, "{once}");
    // The whole text, or the quoted phrase alone, a thousand times in a record.
    let texts = vec![own.clone(); 1_000];
    let phrases = [vec![own.clone()], vec![own[..45].to_vec(); 1_000]].concat();
    for repeated in [texts, phrases, vec![own.repeat(1_000)]] {
        let gain = share_of_attacker(&documents, &[repeated], &answer) / once;
        assert!(gain < 1.05, "repeats: {gain}");
    }
}

/// The same attack on a rule that counted occurrences would take all.
#[test]
fn a_phrase_repeated_is_shared_by_clusters_and_not_by_occurrences() {
    let (documents, _, _) = honest();
    let once = share_of_attacker(&documents, &[vec![phrase()]], &phrase());
    let repeated = share_of_attacker(&documents, &[vec![phrase(); 1_000]], &phrase());
    assert!(
        (once - 1.0 / 21.0).abs() < 1e-6 && (repeated - once).abs() < 1e-6,
        "{once} {repeated}"
    );

    let dir = tempdir().unwrap();
    let store = Store::open(dir.path()).unwrap();
    let attack = document(10_000, 10_000, 9, vec![phrase(); 1_000]);
    let (id, _) = update(&store, &[documents, vec![attack]].concat(), 1_000, LARGE).unwrap();
    let found = store.load(id).unwrap().spans(&phrase(), 8).unwrap();
    assert_eq!(found[0].occurrences, 1_020);
}

#[test]
fn boiler_plate_is_worth_little_to_the_one_who_adds_it() {
    let (documents, own, mut answer) = honest();
    let without = share_of_attacker(&documents, &[vec![own.clone()]], &answer);
    // The answer ends with the phrase that all honest records hold too.
    answer.push(998);
    answer.extend(phrase());
    let quoted = share_of_attacker(&documents, &[vec![own.clone()]], &answer);
    let farmed = share_of_attacker(&documents, &[vec![own, phrase(), phrase()]], &answer);
    assert!(farmed < quoted * 1.05, "{farmed} against {quoted}");
    assert!(farmed < without * 1.05, "{farmed} against {without}");
}

#[test]
fn copies_in_the_cluster_of_another_pay_the_owner() {
    let (mut documents, _, answer) = honest();
    let before = share_of_attacker(&documents, &[], &answer);
    assert!(before < 1e-9);
    let copied = documents[3].texts.clone();
    for n in 500..600 {
        documents.push(document(n, documents[3].record.cluster, 9, copied.clone()));
    }
    assert!(share_of_attacker(&documents, &[], &answer) < 1e-9);
}

#[test]
fn an_answer_beyond_the_limit_is_refused() {
    let dir = tempdir().unwrap();
    let store = Store::open(dir.path()).unwrap();
    let (id, _) = update(&store, &[document(0, 0, 1, vec![vec![1, 2]])], 4, LARGE).unwrap();
    let index = store.load(id).unwrap();
    let refused = index.spans(&vec![1; ANSWER_TOKENS_MAX + 1], 1);
    assert!(matches!(
        refused,
        Err(SpansError::Spans(SpanError::Answer { .. }))
    ));
    // A token outside the vocabulary is in no span, and cannot be paid for.
    assert_eq!(index.spans(&[1, 2, 4_000_000_000], 1).unwrap().len(), 1);
    let unknown = index.units(&[1, 2, 4_000_000_000], &SpanRule::default());
    assert!(matches!(
        unknown,
        Err(SpansError::Spans(SpanError::Token { position: 2 }))
    ));
    assert!(index.spans(&[], 1).unwrap().is_empty());
}
