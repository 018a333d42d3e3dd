//! Goal: an update asks only for what is new, goes on after it was cut off at
//! any record, and leaves few shards; corpora share shards without seeing each
//! other; nothing in a folder can do more harm than an error with its name.
//! Method: a real folder; interruptions at every record; every byte of every
//! file changed, one at a time, and every length cut.

use std::collections::BTreeSet;

use ol_types::keccak256;
use proptest::prelude::*;
use tempfile::{TempDir, tempdir};

use super::*;
use crate::sample::{Document, corpus, document, naive, update, update_versions};

const VOCABULARY: usize = 50;
const LARGE: usize = 1 << 20;

fn folder() -> (TempDir, Store) {
    let dir = tempdir().unwrap();
    let store = Store::open(dir.path()).unwrap();
    (dir, store)
}

/// Record `n`: some thirty tokens, partly those of its neighbours.
fn record(n: u32) -> Document {
    let text = (0..30)
        .map(|i| (n / 3 * 7 + i * i * (1 + n % 2) + n % 5) % 50)
        .collect();
    document(
        n,
        n / 2,
        1 + u8::try_from(n % 7).unwrap(),
        vec![text, vec![n % 50, 3, 4]],
    )
}

fn records(range: std::ops::Range<u32>) -> Vec<Document> {
    range.map(record).collect()
}

fn n_files(store: &Store, extension: &str) -> usize {
    store.files(extension).unwrap().len()
}

/// Whether the index finds what the slow search does.
#[track_caller]
fn check(store: &Store, id: B256, documents: &[Document]) {
    let index = store.load(id).unwrap();
    for n in [0, 5, 11] {
        let answer = [&record(n).texts[0][4..20], &record(n + 1).texts[0][..25]].concat();
        assert_eq!(
            index.spans(&answer, 3).unwrap(),
            naive(documents, &answer, 3)
        );
    }
}

#[test]
fn a_version_asks_only_for_its_new_records() {
    let (_dir, store) = folder();
    let (first, n_asked) = update(&store, &records(0..20), VOCABULARY, LARGE).unwrap();
    assert_eq!(n_asked, 20);
    let (second, n_asked) = update(&store, &records(0..30), VOCABULARY, LARGE).unwrap();
    assert_eq!(n_asked, 10);
    // Some left; nothing is new.
    let (third, n_asked) = update(&store, &records(5..30), VOCABULARY, LARGE).unwrap();
    assert_eq!(n_asked, 0);
    let all = BTreeSet::from([first, second, third]);
    assert_eq!(all.len(), 3);
    // All are of one manifest here, which says where to look for them.
    let (manifest, tokenizer) = (keccak256("manifest"), keccak256("tokenizer"));
    let found = store.find(manifest, tokenizer).unwrap();
    assert_eq!(BTreeSet::from_iter(found), all);
    assert!(store.find(tokenizer, manifest).unwrap().is_empty());
    // All versions stay readable.
    check(&store, first, &records(0..20));
    check(&store, second, &records(0..30));
    check(&store, third, &records(5..30));
}

#[test]
fn other_tokens_and_contributors_are_other_corpora() {
    let (_dir, store) = folder();
    let documents = records(0..4);
    let (id, _) = update(&store, &documents, VOCABULARY, LARGE).unwrap();
    // Another tokenizer: its tokens are not in the folder.
    let mut other = corpus(&documents, VOCABULARY);
    other.tokenizer = B256::repeat_byte(7);
    let mut n_asked = 0;
    let mut tokens = |_: &RecordRef| {
        n_asked += 1;
        Ok(vec![vec![1, 2, 3]])
    };
    let options = BuildOptions::default();
    let second = store
        .update(&other, &options, &mut tokens, &mut |_| ())
        .unwrap();
    assert_eq!(n_asked, 4);
    assert_ne!(id, second);
    // Another contributor: the same shards, another id.
    let mut documents = documents;
    documents[2].record.contributor = crate::sample::contributor(200);
    let (third, n_asked) = update(&store, &documents, VOCABULARY, LARGE).unwrap();
    assert_eq!(n_asked, 0);
    assert!(third != id && third != second);
    check(&store, third, &documents);
}

#[test]
fn an_update_goes_on_where_it_was_cut_off() {
    let documents = records(0..12);
    let (_dir, whole) = folder();
    let (expected, _) = update(&whole, &documents, VOCABULARY, 100).unwrap();
    for stop in 0..12 {
        let (dir, store) = folder();
        let mut n_asked = 0;
        let mut tokens = |record: &RecordRef| {
            if n_asked == stop {
                return Err("no power".into());
            }
            n_asked += 1;
            let found = documents.iter().find(|document| document.record == *record);
            Ok(found.unwrap().texts.clone())
        };
        let options = BuildOptions {
            memory_budget_bytes: 800,
        };
        let corpus = corpus(&documents, VOCABULARY);
        let error = store
            .update(&corpus, &options, &mut tokens, &mut |_| ())
            .unwrap_err();
        assert!(matches!(error, SpansError::Tokens { record, .. } if record as usize == stop));
        // What a crash would leave beside the finished shards.
        fs::write(dir.path().join(".unfinished-shard"), b"OLSPANSS cut").unwrap();
        // Two records fill a shard; those in finished ones are not asked for.
        let (id, n_asked) = update(&store, &documents, VOCABULARY, 100).unwrap();
        assert_eq!(id, expected, "cut off at record {stop}");
        assert_eq!(
            n_asked,
            12 - (stop.max(1) - 1) / 2 * 2,
            "cut off at record {stop}"
        );
        assert!(!dir.path().join(".unfinished-shard").exists());
        store.verify(id).unwrap();
        check(&store, id, &documents);
    }
}

#[test]
fn many_versions_leave_few_shards() {
    let (_dir, store) = folder();
    for n in 1..60 {
        let (id, n_asked) = update(&store, &records(0..n), VOCABULARY, LARGE).unwrap();
        assert_eq!(n_asked, 1);
        assert!(store.load(id).unwrap().n_shards() < MERGE_COUNT);
    }
    let (id, _) = update(&store, &records(0..60), VOCABULARY, LARGE).unwrap();
    check(&store, id, &records(0..60));
    store.verify(id).unwrap();
}

#[test]
fn sizes_grow_by_four() {
    let of = |shards: usize| size(shards * SMALL_SHARD_TOKENS);
    assert_eq!([1, 3, 4, 15, 16, 63, 64].map(of), [0, 0, 1, 1, 2, 2, 3]);
    assert_eq!(size(1), 0);
}

#[test]
fn pruning_keeps_what_is_kept_and_nothing_else() {
    let (_dir, store) = folder();
    let (first, _) = update(&store, &records(0..10), VOCABULARY, LARGE).unwrap();
    let (second, _) = update(&store, &records(0..20), VOCABULARY, LARGE).unwrap();
    update(&store, &records(40..50), VOCABULARY, LARGE).unwrap();
    let open = store.load(first).unwrap();
    assert_eq!(
        (n_files(&store, "corpus"), n_files(&store, "shard")),
        (3, 3)
    );
    assert_eq!(store.prune(&[second]).unwrap(), 3);
    check(&store, second, &records(0..20));
    assert!(matches!(store.load(first), Err(SpansError::Io { .. })));
    // What was open is still answered from.
    assert!(!open.spans(&record(3).texts[0], 3).unwrap().is_empty());
    // A corpus to keep that is not there: nothing is deleted.
    assert!(store.prune(&[first]).is_err());
    check(&store, second, &records(0..20));
    assert_eq!(store.prune(&[]).unwrap(), 3);
}

#[test]
fn a_corpus_outside_the_limits_is_refused() {
    let (_dir, store) = folder();
    let refused = |documents: &[Document], vocabulary: usize, wanted: &str| {
        let error = update(&store, documents, vocabulary, LARGE).unwrap_err();
        assert!(error.to_string().contains(wanted), "{error}");
    };
    refused(&[], VOCABULARY, "0 records");
    refused(&records(0..1), 0, "a vocabulary of 0 tokens");
    refused(&records(0..1), 3, "not in the vocabulary");
    refused(&[record(1), record(1)], VOCABULARY, "stands twice");
    refused(&[document(0, 0, 1, vec![])], VOCABULARY, "no token");
    for versions in [&[][..], &[0, 4], &[2, 2, 4], &[3, 2, 4], &[3], &[5]] {
        let error = update_versions(&store, &records(0..4), versions, VOCABULARY, LARGE);
        let error = error.unwrap_err().to_string();
        assert!(
            error.contains("versions do not grow to 4 records"),
            "{error}"
        );
    }
    let (_dir, store) = folder();
    let error = update(&store, &records(0..300), VOCABULARY, 1).unwrap_err();
    assert!(
        error.to_string().contains("raise the memory budget"),
        "{error}"
    );
}

#[test]
fn only_one_at_a_time_changes_a_folder() {
    let (dir, store) = folder();
    let _lock = DirLock::acquire(dir.path()).unwrap();
    let error = update(&store, &records(0..1), VOCABULARY, LARGE).unwrap_err();
    assert!(matches!(error, SpansError::Lock(_)));
    assert!(matches!(store.prune(&[]), Err(SpansError::Lock(_))));
}

/// Every file of a small index with one bit changed, and cut to every length.
#[test]
fn a_changed_or_cut_file_is_an_error_that_names_it() {
    let (dir, store) = folder();
    let documents = [record(0), record(1)];
    let (id, _) = update(&store, &documents, VOCABULARY, LARGE).unwrap();
    let answer = [record(1).texts[0].clone(), record(0).texts[0].clone()].concat();
    for extension in ["corpus", "shard"] {
        let (_, path) = store.files(extension).unwrap().pop().unwrap();
        let name = path.file_name().unwrap().to_str().unwrap().to_owned();
        let good = fs::read(&path).unwrap();
        for at in 0..good.len() {
            let mut bad = good.clone();
            bad[at] ^= 1 << (at % 8);
            fs::write(&path, &bad).unwrap();
            // Asking never panics; checking always finds it.
            if let Ok(index) = store.load(id) {
                drop(index.units(&answer, &ol_poa::spans::SpanRule::default()));
                drop(index.spans(&answer, 1));
            }
            let error = store.verify(id).unwrap_err();
            let shown = error.to_string();
            // A corpus that names another shard leads to one that is missing.
            let is_missing = matches!(error, SpansError::Io { .. });
            assert!(
                shown.contains(&name) || is_missing,
                "byte {at} of {name}: {shown}"
            );
        }
        for len in (0..good.len()).step_by(7) {
            fs::write(&path, &good[..len]).unwrap();
            let error = store.load(id).unwrap_err().to_string();
            assert!(error.contains(&name), "{len} bytes of {name}: {error}");
        }
        let mut long = good.clone();
        long.push(0);
        fs::write(&path, &long).unwrap();
        assert!(store.load(id).unwrap_err().to_string().contains(&name));
        fs::write(&path, &good).unwrap();
    }
    store.verify(id).unwrap();
    drop(dir);
}

#[test]
fn files_of_others_are_left_alone() {
    let (dir, store) = folder();
    for name in ["notes.txt", "00.shard", "XYZ.corpus", "ABCDEF.shard"] {
        fs::write(dir.path().join(name), b"mine").unwrap();
    }
    let (id, _) = update(&store, &records(0..3), VOCABULARY, LARGE).unwrap();
    store.prune(&[id]).unwrap();
    assert!(dir.path().join("notes.txt").exists() && dir.path().join("00.shard").exists());
}

proptest! {
    /// Several bytes at once, so that fields contradict each other.
    #[test]
    fn whatever_the_bytes_are_asking_does_not_panic(
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..12),
        is_header in any::<bool>(),
    ) {
        let (_dir, store) = folder();
        let (id, _) = update(&store, &records(0..3), VOCABULARY, LARGE).unwrap();
        let (_, path) = store.files("shard").unwrap().pop().unwrap();
        let mut bytes = fs::read(&path).unwrap();
        let end = if is_header { 64 + 3 * 36 } else { bytes.len() };
        for (at, value) in changes {
            bytes[at.index(end)] = value;
        }
        fs::write(&path, &bytes).unwrap();
        if let Ok(index) = store.load(id) {
            drop(index.spans(&record(1).texts[0], 1));
            drop(index.units(&record(2).texts[0], &ol_poa::spans::SpanRule::default()));
        }
        drop(store.verify(id));
        drop(update(&store, &records(0..4), VOCABULARY, LARGE));
    }
}
