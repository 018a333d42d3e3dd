//! The state root after a block: 1,000 accounts change and 100 are new, among
//! up to a million; against the root rebuilt from all leaves by `alloy_trie`,
//! and against `eth_trie` (in memory, while ours is on disk) on the same work.
//! Then a whole write of the state (root, tables, tries, fsync) at growing sizes.
//!
//! `cargo bench -p ol-node --bench state -- --json`
//! prints a JSON list, without `--json` a line for each row. `--large` goes on
//! to ten million accounts.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use alloy_primitives::{Address, B256, KECCAK256_EMPTY, U256, keccak256};
use alloy_trie::{EMPTY_ROOT_HASH, TrieAccount};
use eth_trie::{EthTrie, MemoryDB, Trie};
use ol_evm::{AccountChange, AccountState, StateDiff};
use ol_node::testing::StateTables;
use report::{COMMAND, median};

mod report;

const N_CHANGED: u64 = 1_000;
const N_NEW: u64 = 100;
const LOAD_STEP: usize = 1_000_000;
const ROUNDS: u64 = 9;
const REBUILD_ROUNDS: u64 = 3;

fn main() {
    let sizes: &[u64] = if std::env::args().any(|argument| argument == "--large") {
        &[10_000, 100_000, 1_000_000, 10_000_000]
    } else {
        &[10_000, 100_000, 1_000_000]
    };
    let dir = tempfile::tempdir().expect("a temporary directory can be made");
    report::print(bench(dir.path(), sizes));
}

fn bench(dir: &Path, sizes: &[u64]) -> Vec<serde_json::Value> {
    let tables = StateTables::open(dir).expect("the tables can be made");
    let mut rows = Vec::new();
    let mut n_accounts = 0;
    for &size in sizes {
        load(&tables, n_accounts..size);
        n_accounts = size;
        let mut root = Vec::new();
        for round in 0..=ROUNDS {
            let diff = block(n_accounts, round);
            let (ms, _) = timed(|| tables.root_after(&diff).expect("the tables can be read"));
            root.push(ms);
        }
        let mut rebuild = Vec::new();
        for _ in 0..rebuild_rounds(size) {
            let (ms, _) = timed(|| tables.rebuild_root().expect("the tables can be read"));
            rebuild.push(ms);
        }
        rows.push(row(
            format!("state root, {N_CHANGED} changed and {N_NEW} new of {size} accounts"),
            root,
            rebuild,
            "alloy_trie, rebuilt from all leaves",
        ));
        if size == 1_000_000 {
            rows.push(against_eth_trie(&tables, size));
        }
        let (mut write, mut rewrite) = (Vec::new(), Vec::new());
        for round in 0..=ROUNDS {
            let diff = block(n_accounts, 100 + round);
            let (ms, root) = timed(|| tables.apply(&diff).expect("the tables can be written"));
            write.push(ms);
            if round < rebuild_rounds(size) {
                let (ms, rebuilt) =
                    timed(|| tables.rebuild_root().expect("the tables can be read"));
                assert_eq!(root, rebuilt);
                rewrite.push(write.last().copied().unwrap_or_default() + ms);
            }
            n_accounts += N_NEW;
        }
        rows.push(row(
            format!("durable state write, {N_CHANGED} changed and {N_NEW} new of {size} accounts"),
            write,
            rewrite,
            "the same with the root rebuilt",
        ));
    }
    rows
}

/// Adds accounts. In the order of their hashes each step writes to its own part
/// of the two large tables, and not to every page of them.
fn load(tables: &StateTables, numbers: Range<u64>) {
    let mut numbers: Vec<(B256, u64)> = numbers
        .map(|number| (keccak256(address(number)), number))
        .collect();
    numbers.sort_unstable();
    for step in numbers.chunks(LOAD_STEP) {
        tables
            .apply(&diff(step.iter().map(|&(_, number)| number), 1))
            .expect("the tables can be written");
    }
}

fn address(number: u64) -> Address {
    Address::left_padding_from(&number.to_be_bytes())
}

/// Reading ten million leaves takes most of a minute.
const fn rebuild_rounds(size: u64) -> u64 {
    if size > 1_000_000 { 2 } else { REBUILD_ROUNDS }
}

fn against_eth_trie(tables: &StateTables, size: u64) -> serde_json::Value {
    let mut trie = EthTrie::new(Arc::new(MemoryDB::new(false)));
    let insert = |trie: &mut EthTrie<MemoryDB>, diff: &StateDiff| {
        for (address, change) in &diff.accounts {
            let account = change.account.unwrap_or_default();
            let leaf = alloy_rlp::encode(TrieAccount {
                nonce: account.nonce,
                balance: account.balance_wei,
                storage_root: EMPTY_ROOT_HASH,
                code_hash: account.code_hash,
            });
            trie.insert(keccak256(address).as_slice(), &leaf)
                .expect("the trie is whole");
        }
        trie.root_hash().expect("the trie is whole")
    };
    // What the tables went through: every size before this one was written to.
    let mut n_accounts = 0;
    let replay = &mut |trie: &mut EthTrie<MemoryDB>| {
        for step in [10_000, 100_000, size] {
            insert(trie, &diff(n_accounts..step, 1));
            n_accounts = step;
            if step < size {
                for round in 0..=ROUNDS {
                    insert(trie, &block(n_accounts, 100 + round));
                    n_accounts += N_NEW;
                }
            }
        }
    };
    replay(&mut trie);
    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    let start: B256 = trie.root_hash().expect("the trie is whole");
    assert_eq!(
        start,
        tables.root_after(&StateDiff::default()).expect("readable")
    );
    for round in 0..=ROUNDS {
        let diff = block(size, round);
        let (ms, root) = timed(|| tables.root_after(&diff).expect("the tables can be read"));
        ours.push(ms);
        let (ms, their_root) = timed(|| insert(&mut trie, &diff));
        theirs.push(ms);
        if round == 0 {
            assert_eq!(root, their_root);
        }
    }
    row(
        format!("state root, {N_CHANGED} changed and {N_NEW} new of {size} accounts"),
        ours,
        theirs,
        "eth_trie 0.6, in memory",
    )
}

/// What the accounts with these numbers are after a block.
fn diff(numbers: impl IntoIterator<Item = u64>, seed: u64) -> StateDiff {
    let accounts: BTreeMap<Address, AccountChange> = numbers
        .into_iter()
        .map(|number| {
            let address = address(number);
            let account = AccountState {
                nonce: seed,
                balance_wei: U256::from(number) * U256::from(1_000_000_007_u64) + U256::from(seed),
                code_hash: KECCAK256_EMPTY,
            };
            let change = AccountChange {
                account: Some(account),
                ..AccountChange::default()
            };
            (address, change)
        })
        .collect();
    StateDiff {
        accounts,
        ..StateDiff::default()
    }
}

/// A block of changes, spread over all accounts, other ones in every round.
fn block(n_accounts: u64, round: u64) -> StateDiff {
    let stride = n_accounts / N_CHANGED;
    let changed = (0..N_CHANGED).map(|n| n * stride + round % stride.max(1));
    diff(changed.chain(n_accounts..n_accounts + N_NEW), round + 2)
}

fn row(work: String, ours: Vec<f64>, peer: Vec<f64>, peer_name: &str) -> serde_json::Value {
    // The first of each warms up.
    let warm = |samples: Vec<f64>| median(samples.into_iter().skip(1));
    let (rounds, ours, peer) = (ours.len() - 1, warm(ours), warm(peer));
    serde_json::json!({
        "work": work,
        "unit": "ms",
        "ours": rounded(ours),
        "peer": rounded(peer),
        "peer_name": peer_name,
        "ratio": rounded(peer / ours),
        "rounds": rounds,
        "command": COMMAND,
    })
}

#[expect(clippy::disallowed_methods, reason = "a benchmark measures real time")]
fn timed<T>(work: impl FnOnce() -> T) -> (f64, T) {
    let start = Instant::now();
    let output = work();
    (start.elapsed().as_secs_f64() * 1e3, output)
}

fn rounded(figure: f64) -> f64 {
    (figure * 100.0).round() / 100.0
}
