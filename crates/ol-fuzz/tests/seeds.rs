//! Goal: every fuzz target holds for its seeds and for what is near them.
//! Method: all seeds; seeds cut, joined and changed by proptest; random bytes.
//! The same functions run for hours under libFuzzer (`fuzz/`).

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs;
use std::path::PathBuf;

use ol_fuzz::{TARGETS, Target};
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};

/// Largest random input.
const RANDOM_MAX_SIZE_BYTES: usize = 512;

fn seeds(target: &Target) -> Vec<Vec<u8>> {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR"))
        .join("../../fuzz/seeds")
        .join(target.name);
    let entries = fs::read_dir(&folder).unwrap_or_else(|error| panic!("{folder:?}: {error}"));
    let mut paths: Vec<_> = entries.map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    assert!(!paths.is_empty(), "{} has no seed", target.name);
    paths.iter().map(|path| fs::read(path).unwrap()).collect()
}

/// What a byte of an input becomes.
#[derive(Debug, Clone)]
enum Change {
    Set(u8),
    Flip(u8),
    Delete,
    Repeat,
}

fn change() -> impl Strategy<Value = Change> {
    prop_oneof![
        any::<u8>().prop_map(Change::Set),
        (0..8_u8).prop_map(|bit| Change::Flip(1 << bit)),
        Just(Change::Delete),
        Just(Change::Repeat),
    ]
}

fn changed(mut bytes: Vec<u8>, changes: &[(usize, Change)]) -> Vec<u8> {
    for (at, change) in changes {
        if bytes.is_empty() {
            break;
        }
        let at = at % bytes.len();
        match change {
            Change::Set(value) => bytes[at] = *value,
            Change::Flip(mask) => bytes[at] ^= mask,
            Change::Delete => drop(bytes.remove(at)),
            Change::Repeat => bytes.insert(at, bytes[at]),
        }
    }
    bytes
}

/// Runs one target over everything; `OPENLEDGER_TEST_SCALE` multiplies the cases.
fn check(name: &str, n_cases: u32) {
    let scale = std::env::var("OPENLEDGER_TEST_SCALE").map_or(1, |scale| scale.parse().unwrap());
    let n_cases = n_cases.saturating_mul(scale);
    let target = TARGETS.iter().find(|target| target.name == name).unwrap();
    let seeds = seeds(target);
    for seed in &seeds {
        (target.run)(seed);
    }
    let near_seeds = (
        any::<prop::sample::Index>(),
        vec((any::<usize>(), change()), 1..8),
    )
        .prop_map(move |(index, changes)| changed(index.get(&seeds).clone(), &changes));
    let random = vec(any::<u8>(), 0..RANDOM_MAX_SIZE_BYTES);
    let inputs = prop_oneof![3 => near_seeds, 1 => random];
    let config = Config {
        cases: n_cases,
        failure_persistence: None,
        ..Config::default()
    };
    let result = TestRunner::new(config).run(&inputs, |bytes| {
        (target.run)(&bytes);
        Ok(())
    });
    result.unwrap_or_else(|failure| panic!("{name}: {failure}"));
}

macro_rules! targets {
    ($($name:ident: $n_cases:literal,)*) => {
        $(
            #[test]
            fn $name() {
                check(stringify!($name), $n_cases);
            }
        )*

        #[test]
        fn every_target_is_tested_and_has_a_program() {
            let tested = [$(stringify!($name)),*];
            let names: Vec<_> = TARGETS.iter().map(|target| target.name).collect();
            assert_eq!(names, tested);
            let manifest = include_str!("../../../fuzz/Cargo.toml");
            for name in names {
                assert!(manifest.contains(&format!("name = \"{name}\"")), "{name}");
            }
        }
    };
}

targets! {
    transaction: 4_000,
    block: 4_000,
    receipt: 4_000,
    submit: 500,
    rpc: 1_000,
    method: 2_000,
    genesis: 100,
    execute: 1_000,
    trie: 1_000,
    model: 200,
    adapter: 2_000,
    gguf: 1_000,
    gguf_adapter: 2_000,
    spans: 2_000,
    span_units: 4_000,
    evidence: 4_000,
}
