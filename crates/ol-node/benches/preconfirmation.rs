//! How long a sender waits until its transaction shows in the pending block
//! with a receipt, under a steady load; and how many transactions a node takes
//! at once, with where the time goes. The database is on disk and every block
//! has its root.
//!
//! `cargo bench -p ol-node --bench preconfirmation -- --json`
//! prints a JSON list, without `--json` a line for each row.
#![expect(
    clippy::disallowed_methods,
    reason = "a benchmark measures the machine's time"
)]
#![expect(clippy::unwrap_used, reason = "a benchmark fails by a panic")]

use std::num::NonZeroU64;
use std::path::Path;
use std::sync::{Arc, Mutex, mpsc};
use std::time::{Duration, Instant};

use alloy_consensus::{SignableTransaction, TxEip1559};
use alloy_eips::eip2718::Encodable2718;
use alloy_primitives::{Address, U256};
use alloy_signer::SignerSync;
use alloy_signer_local::PrivateKeySigner;
use metrics::{Counter, Gauge, Histogram, HistogramFn, Key, KeyName, Metadata, SharedString, Unit};
use ol_node::{BlockMode, Genesis, GenesisAccount, Node, NodeConfig, Transaction};
use ol_runtime::SystemClock;
use report::{COMMAND, median};

mod report;

const CHAIN_ID: u64 = 161_200;
const N_SENDERS: usize = 8;

const RATE_PER_S: u32 = 500;
const LOAD_S: u32 = 10;

const BURST: usize = 5_000;
const BATCH: usize = 250;
const ROUNDS: usize = 5;

fn main() {
    metrics::set_global_recorder(Sums).unwrap();
    let mut rows = latency();
    rows.extend(throughput());
    report::print(rows);
}

fn row(work: String, unit: &str, ours: f64, rounds: usize) -> serde_json::Value {
    serde_json::json!({
        "work": work,
        "unit": unit,
        "ours": (ours * 1e3).round() / 1e3,
        "peer": "",
        "peer_name": "",
        "ratio": "",
        "rounds": rounds,
        "command": COMMAND,
    })
}

/// A steady load: one transfer every 2 ms, whatever became of the one before.
fn latency() -> Vec<serde_json::Value> {
    let dir = tempfile::tempdir().unwrap();
    let block_mode = BlockMode::Interval(NonZeroU64::new(1_000).unwrap());
    let node = open(dir.path(), block_mode);
    let raws = transfers((RATE_PER_S * LOAD_S) as usize);
    let (done, outcomes) = mpsc::channel();
    let start = Instant::now();
    for (number, raw) in (0..).zip(&raws) {
        let due = start + Duration::from_secs(1) / RATE_PER_S * number;
        std::thread::sleep(due.saturating_duration_since(Instant::now()));
        let (done, seen_by) = (done.clone(), node.clone());
        node.submit_with(raw, move |outcome| {
            // From when it was due, so that a slow node cannot slow the load.
            let latency_s = due.elapsed().as_secs_f64();
            let hash = outcome.unwrap().transaction_hash();
            assert!(seen_by.pending().find(hash).is_some());
            done.send(latency_s).unwrap();
        })
        .unwrap();
    }
    drop(done);
    let mut latencies_s: Vec<f64> = outcomes.iter().collect();
    assert_eq!(latencies_s.len(), raws.len());
    latencies_s.sort_by(f64::total_cmp);
    let percentile = |p: usize| latencies_s[(latencies_s.len() - 1) * p / 100] * 1e3;
    [50, 99, 100]
        .map(|p| {
            let work = format!("sent to visible with receipt at {RATE_PER_S} tx/s, p{p}");
            row(work, "ms", percentile(p), 1)
        })
        .into()
}

/// Bursts: batches of transfers, each sent when the one before is on disk.
fn throughput() -> Vec<serde_json::Value> {
    let raws = transfers(BURST);
    let mut rounds = Vec::new();
    for round in 0..=ROUNDS {
        let dir = tempfile::tempdir().unwrap();
        let node = open(dir.path(), BlockMode::OnDemand);
        take_sums();
        let start = Instant::now();
        for batch in raws.chunks(BATCH) {
            let (done, outcomes) = mpsc::channel();
            for raw in batch {
                let done = done.clone();
                node.submit_then(raw, move |outcome| done.send(outcome).unwrap())
                    .unwrap();
            }
            drop(done);
            assert!(outcomes.iter().all(|outcome| outcome.is_ok()));
        }
        // The first round warms up.
        if round > 0 {
            rounds.push((start.elapsed().as_secs_f64(), take_sums()));
        }
    }
    let median_of_part = |part: usize| median(rounds.iter().map(|round| round.1[part]));
    let total_s = median(rounds.iter().map(|round| round.0));
    let name = format!("{BURST} transfers in batches of {BATCH}, each on disk before the next");
    #[expect(clippy::cast_precision_loss, reason = "a count of thousands")]
    let rate = BURST as f64 / total_s;
    let mut rows = vec![row(name, "tx/s", rate, ROUNDS)];
    for (part, stage) in STAGES.iter().enumerate() {
        let part_ms = median_of_part(part) * 1e3;
        let work = format!("of these: {stage}");
        rows.push(row(work, "ms", part_ms, ROUNDS));
    }
    let work = "of these: all together".to_owned();
    rows.push(row(work, "ms", total_s * 1e3, ROUNDS));
    rows
}

fn wallets() -> Vec<PrivateKeySigner> {
    let key = |number: usize| U256::from(number + 1_000).to_be_bytes::<32>();
    (0..N_SENDERS)
        .map(|number| PrivateKeySigner::from_slice(&key(number)).unwrap())
        .collect()
}

/// Signed transfers of a few senders in turn, each to an account of its own.
fn transfers(count: usize) -> Vec<Vec<u8>> {
    let wallets = wallets();
    (0..count)
        .map(|number| {
            let transaction = TxEip1559 {
                chain_id: CHAIN_ID,
                nonce: (number / N_SENDERS) as u64,
                gas_limit: 21_000,
                max_fee_per_gas: 100_000_000_000,
                max_priority_fee_per_gas: 1_000_000,
                to: Address::left_padding_from(&(number as u64 + (1 << 40)).to_be_bytes()).into(),
                value: U256::from(1),
                ..TxEip1559::default()
            };
            let hash = transaction.signature_hash();
            let signature = wallets[number % N_SENDERS].sign_hash_sync(&hash).unwrap();
            Transaction::from(transaction.into_signed(signature)).encoded_2718()
        })
        .collect()
}

fn open(dir: &Path, block_mode: BlockMode) -> Node {
    let mut genesis = Genesis::default();
    genesis.config.chain_id = CHAIN_ID;
    for wallet in wallets() {
        let account = GenesisAccount {
            balance: U256::from(10_u128.pow(24)),
            ..GenesisAccount::default()
        };
        genesis.alloc.insert(wallet.address(), account);
    }
    let config = NodeConfig {
        block_mode,
        ..NodeConfig::default()
    };
    Node::open_with(dir, &genesis, Arc::new(SystemClock::new()), config).unwrap()
}

/// The stages that the node measures.
const STAGES: [&str; 5] = ["recovery", "execute", "root", "write", "commit"];

static SUMS_S: Mutex<[f64; 5]> = Mutex::new([0.0; 5]);

fn take_sums() -> [f64; 5] {
    std::mem::take(&mut SUMS_S.lock().unwrap())
}

/// Adds up the time of every stage; the rest of the metrics is dropped.
struct Sums;

struct StageSum(usize);

impl HistogramFn for StageSum {
    fn record(&self, value_s: f64) {
        SUMS_S.lock().unwrap()[self.0] += value_s;
    }
}

impl metrics::Recorder for Sums {
    fn register_histogram(&self, key: &Key, _: &Metadata<'_>) -> Histogram {
        let stage = key.labels().find(|label| label.key() == "stage");
        let stage = stage.and_then(|label| STAGES.iter().position(|name| *name == label.value()));
        stage.map_or_else(Histogram::noop, |stage| {
            Histogram::from_arc(Arc::new(StageSum(stage)))
        })
    }

    fn register_counter(&self, _: &Key, _: &Metadata<'_>) -> Counter {
        Counter::noop()
    }

    fn register_gauge(&self, _: &Key, _: &Metadata<'_>) -> Gauge {
        Gauge::noop()
    }

    fn describe_counter(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}
    fn describe_gauge(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}
    fn describe_histogram(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}
}
