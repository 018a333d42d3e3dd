//! The race: the same signed transactions over JSON-RPC to this node, with
//! persistence and a state root for every block, and to anvil, which keeps its
//! chain in memory; in turn, each as a process on a fresh chain.
//!
//! `cargo bench -p openledger --bench chain -- --json` prints a JSON list,
//! without `--json` a line for each row. Needs the packages of `contracts/`
//! (`npm ci`) and its client contracts (`node clients/build.mjs`); `cargo xtask
//! bench chain` sees to both.
#![expect(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a program that reports its figures"
)]

mod latency;
mod nodes;
mod rpc;
mod work;

use std::time::{Duration, Instant};

use nodes::{Kind, Running};
use rpc::Connection;
use serde_json::{Value, json};
use work::{BATCH, Load, N_SENDERS, Work};

const COMMAND: &str = "cargo xtask bench chain";
const N_TRANSACTIONS: usize = 5_000;
const ROUNDS: usize = 5;

/// How often the receipts are asked for before the node is taken to be stuck.
const ASKED_MAX: usize = 10_000;

fn main() {
    let arguments: Vec<String> = std::env::args().collect();
    if !arguments.iter().any(|argument| argument == "--bench") {
        // `cargo test --benches` checks that it builds.
        return;
    }
    let work = Work::sign(N_TRANSACTIONS);
    let mut rows = race(&work);
    rows.extend(latency::rows(&work, COMMAND));
    if arguments.iter().any(|argument| argument == "--json") {
        println!("{:#}", Value::from(rows));
        return;
    }
    for row in rows {
        println!("{row}");
    }
}

/// What one load took.
#[derive(Debug, Clone)]
struct Took {
    wall_s: f64,
    node_cpu_s: f64,
    client_cpu_s: f64,
    /// By stage, in seconds, if the node says so.
    stages_s: Vec<(String, f64)>,
}

fn race(work: &Work) -> Vec<Value> {
    let mut rows = Vec::new();
    for n_connections in [1, 5] {
        let mut ours = [Vec::new(), Vec::new()];
        let mut theirs = [Vec::new(), Vec::new()];
        for round in 0..ROUNDS {
            let mut order = [Kind::Ours, Kind::AnvilOnCall];
            if round % 2 == 1 {
                order.reverse();
            }
            for kind in order {
                let took = run(kind, work, n_connections);
                eprintln!("round {round}, {n_connections} connections, {kind:?}: {took:?}");
                let lists = if kind == Kind::Ours {
                    &mut ours
                } else {
                    &mut theirs
                };
                for (list, took) in lists.iter_mut().zip(took) {
                    assert!(
                        took.client_cpu_s < took.node_cpu_s / 4.0,
                        "the client is a part of what is measured: {took:?}"
                    );
                    list.push(took);
                }
            }
        }
        for (load, (ours, theirs)) in ["native transfers", "ERC-20 transfers"]
            .iter()
            .zip(ours.iter().zip(&theirs))
        {
            let work = format!(
                "{N_TRANSACTIONS} {load}, batches of {BATCH} over {n_connections} connection{}",
                if n_connections == 1 { "" } else { "s" }
            );
            rows.push(row(&work, "tx/s", ours, theirs, |took| took.wall_s));
            rows.push(row(&work, "tx/CPU-s", ours, theirs, |took| took.node_cpu_s));
            if n_connections == 1 {
                rows.extend(stage_rows(&work, ours));
            }
        }
    }
    rows
}

/// Both loads on a fresh chain.
fn run(kind: Kind, work: &Work, n_connections: usize) -> [Took; 2] {
    let node = Running::start(kind);
    send(&node, &work.setup, 1);
    [&work.transfers, &work.tokens].map(|load| send(&node, load, n_connections))
}

/// Sends a load and waits until every transaction is in a block.
#[expect(
    clippy::disallowed_methods,
    reason = "a benchmark measures the machine's time"
)]
fn send(node: &Running, load: &Load, n_connections: usize) -> Took {
    let batches = load.batches(n_connections);
    let last = work::receipts(load.last());
    let mut connections: Vec<Connection> = (0..n_connections)
        .map(|_| Connection::open(node.addr))
        .collect();

    let stages_s = node.stages_s();
    let (node_cpu_s, client_cpu_s) = (node.cpu_s(), nodes::cpu_s("self"));
    let start = Instant::now();
    std::thread::scope(|scope| {
        for (connection, batches) in connections.iter_mut().zip(&batches) {
            scope.spawn(move || {
                for batch in batches {
                    connection.post_batch(&batch.body, batch.n_calls);
                }
            });
        }
    });
    let connection = &mut connections[0];
    let mut n_asked = 0;
    while work::n_successes(connection.post(&last)) < N_SENDERS {
        n_asked += 1;
        assert!(n_asked < ASKED_MAX, "the transactions are in no block");
        match node.kind {
            Kind::AnvilOnCall => {
                connection.call("evm_mine", &json!([]));
            }
            Kind::Ours => {}
            Kind::OursInterval | Kind::AnvilInterval => {
                std::thread::sleep(Duration::from_millis(20));
            }
        }
    }
    let took = Took {
        wall_s: start.elapsed().as_secs_f64(),
        node_cpu_s: node.cpu_s() - node_cpu_s,
        client_cpu_s: nodes::cpu_s("self") - client_cpu_s,
        stages_s: Vec::new(),
    };
    let before = |name: &str| {
        let found = stages_s.iter().find(|(stage, _)| stage == name);
        found.map_or(0.0, |&(_, seconds)| seconds)
    };
    let stages_s = node.stages_s().into_iter();
    let stages_s = stages_s.map(|(name, seconds)| {
        let spent_s = seconds - before(&name);
        (name, spent_s)
    });
    let took = Took {
        stages_s: stages_s.collect(),
        ..took
    };
    for hashes in load.hashes.chunks(BATCH) {
        let n_successes = work::n_successes(connection.post(&work::receipts(hashes)));
        assert_eq!(n_successes, hashes.len(), "not every transaction succeeded");
    }
    took
}

/// Where our node's time goes.
fn stage_rows(work: &str, ours: &[Took]) -> Vec<Value> {
    let stages = ours[0].stages_s.iter();
    let row = |(stage, (name, _)): (usize, &(String, f64))| {
        let mut times_ms: Vec<f64> = ours
            .iter()
            .map(|took| took.stages_s[stage].1 * 1e3)
            .collect();
        times_ms.sort_by(f64::total_cmp);
        json!({
            "work": format!("{work}: stage {name}, sum of all"),
            "unit": "ms",
            "ours": median(&times_ms).round(),
            "rounds": ROUNDS,
            "spread": format!("{:.0}–{:.0}", times_ms[0], times_ms[times_ms.len() - 1]),
            "command": COMMAND,
        })
    };
    stages.enumerate().map(row).collect()
}

/// Of a sorted list.
fn median(values: &[f64]) -> f64 {
    values[values.len() / 2]
}

fn row(
    work: &str,
    unit: &str,
    ours: &[Took],
    theirs: &[Took],
    seconds: impl Fn(&Took) -> f64,
) -> Value {
    let rates = |list: &[Took]| {
        let mut rates: Vec<f64> = list
            .iter()
            .map(|took| N_TRANSACTIONS as f64 / seconds(took))
            .collect();
        rates.sort_by(f64::total_cmp);
        rates
    };
    let (ours, theirs) = (rates(ours), rates(theirs));
    let spread = |rates: &[f64]| format!("{:.0}–{:.0}", rates[0], rates[rates.len() - 1]);
    json!({
        "work": work,
        "unit": unit,
        "ours": median(&ours).round(),
        "peer": median(&theirs).round(),
        "peer_name": "anvil 1.7.1 --no-mining, then evm_mine",
        "ratio": (median(&ours) / median(&theirs) * 100.0).round() / 100.0,
        "rounds": ROUNDS,
        "spread": format!("{} / {}", spread(&ours), spread(&theirs)),
        "command": COMMAND,
    })
}
