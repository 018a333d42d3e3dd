//! Goal: of many writers that start from the same head one wins, and a head is
//! never half written.
//! Method: the same cases on a folder and in memory; a race of threads; files
//! damaged by hand.

use std::sync::Arc;

use proptest::prelude::*;

use super::*;

fn id(byte: u8) -> B256 {
    B256::repeat_byte(byte)
}

fn both(check: impl Fn(&dyn Heads)) {
    let dir = tempfile::tempdir().unwrap();
    check(&LocalHeads::open(&dir.path().join("a/heads")).unwrap());
    check(&MemoryHeads::default());
}

#[test]
fn a_head_moves_only_from_where_it_is() {
    both(|heads| {
        assert_eq!(heads.get("h").unwrap(), None);
        let error = heads.compare_and_swap("h", Some(id(9)), id(1)).unwrap_err();
        assert!(matches!(error, HeadsError::Conflict { found: None, .. }));
        heads.compare_and_swap("h", None, id(1)).unwrap();
        assert!(heads.compare_and_swap("h", None, id(2)).is_err());
        heads.compare_and_swap("h", Some(id(1)), id(2)).unwrap();
        let error = heads.compare_and_swap("h", Some(id(1)), id(3)).unwrap_err();
        assert!(matches!(error, HeadsError::Conflict { found: Some(f), .. } if f == id(2)));
        assert_eq!(heads.get("h").unwrap(), Some(id(2)));
    });
}

#[test]
fn names_are_listed_in_order() {
    both(|heads| {
        for name in ["b", "a-1", "0"] {
            heads.compare_and_swap(name, None, id(1)).unwrap();
        }
        assert_eq!(heads.list().unwrap(), ["0", "a-1", "b"]);
    });
}

#[test]
fn bad_names_are_refused_everywhere() {
    let long = "a".repeat(HEAD_NAME_MAX + 1);
    both(|heads| {
        for name in ["", ".", "..", "a/b", "A", "a.b", "ä", "a b", "a\0", &long] {
            assert!(
                matches!(heads.get(name), Err(HeadsError::Name { .. })),
                "{name:?}"
            );
            let moved = heads.compare_and_swap(name, None, id(1));
            assert!(matches!(moved, Err(HeadsError::Name { .. })), "{name:?}");
        }
        heads.compare_and_swap(&long[1..], None, id(1)).unwrap();
    });
}

#[test]
fn every_increment_of_a_race_is_kept() {
    // Each thread adds one to a counter twenty times, by compare-and-swap; a
    // lost update would show in the sum. Each thread opens the folder itself,
    // as another process would.
    let dir = tempfile::tempdir().unwrap();
    let memory: Arc<dyn Heads> = Arc::new(MemoryHeads::default());
    let open_local = || -> Arc<dyn Heads> { Arc::new(LocalHeads::open(dir.path()).unwrap()) };
    let open_memory = || Arc::clone(&memory);
    let openers: [&(dyn Fn() -> Arc<dyn Heads> + Sync); 2] = [&open_local, &open_memory];
    for open in openers {
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    let heads = open();
                    for _ in 0..20 {
                        while !increment(heads.as_ref()) {}
                    }
                });
            }
        });
        let counter = open().get("counter").unwrap().unwrap();
        assert_eq!(counter, B256::with_last_byte(80));
    }
}

fn increment(heads: &dyn Heads) -> bool {
    let old = heads.get("counter").unwrap();
    let new = B256::with_last_byte(old.map_or(0, |id| id[31]) + 1);
    match heads.compare_and_swap("counter", old, new) {
        Ok(()) => true,
        Err(HeadsError::Conflict { .. }) => false,
        Err(error) => panic!("{error}"),
    }
}

#[test]
fn leftovers_of_a_crash_are_overwritten() {
    let dir = tempfile::tempdir().unwrap();
    let heads = LocalHeads::open(dir.path()).unwrap();
    std::fs::write(dir.path().join(".h.new"), "half").unwrap();
    assert_eq!(heads.get("h").unwrap(), None);
    assert!(heads.list().unwrap().is_empty());
    heads.compare_and_swap("h", None, id(1)).unwrap();
    assert_eq!(heads.get("h").unwrap(), Some(id(1)));
}

#[test]
fn a_head_that_cannot_be_read_is_an_error() {
    let dir = tempfile::tempdir().unwrap();
    let heads = LocalHeads::open(dir.path()).unwrap();
    std::fs::create_dir(dir.path().join("folder")).unwrap();
    assert!(matches!(heads.get("folder"), Err(HeadsError::Io { .. })));
}

proptest! {
    #[test]
    fn damaged_files_are_reported_and_never_panic(
        bytes in prop::collection::vec(any::<u8>(), 0..100)
    ) {
        let dir = tempfile::tempdir().unwrap();
        let heads = LocalHeads::open(dir.path()).unwrap();
        std::fs::write(dir.path().join("h"), &bytes).unwrap();
        let got = heads.get("h");
        prop_assert!(matches!(got, Err(HeadsError::Damaged { .. })), "{:?}", got);
    }
}

#[test]
fn near_misses_of_the_file_format_are_damage() {
    let dir = tempfile::tempdir().unwrap();
    let heads = LocalHeads::open(dir.path()).unwrap();
    let good = format!("{}\n", "ab".repeat(32));
    let bad = [
        good.trim().to_owned(),
        format!("0x{good}"),
        good.to_uppercase(),
        format!("{good}\n"),
        good[1..].to_owned(),
    ];
    for text in &bad {
        std::fs::write(dir.path().join("h"), text).unwrap();
        assert!(
            matches!(heads.get("h"), Err(HeadsError::Damaged { .. })),
            "{text:?}"
        );
    }
    std::fs::write(dir.path().join("h"), &good).unwrap();
    assert_eq!(heads.get("h").unwrap(), Some(id(0xab)));
}
