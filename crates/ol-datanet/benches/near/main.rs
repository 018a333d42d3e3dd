//! Near duplicates against MinHash: the records of the shipped datanets and then a
//! copy of each with 15 % of the words changed. How many copies are found, how
//! many honest records are left out, and how long it takes; ours with hashing,
//! trees and files, the peer's without.
//!
//! `cargo bench -p ol-datanet --bench near -- --json` prints a JSON list, without
//! `--json` a line for each row. `OPENLEDGER_BENCH_PYTHON` is a Python with
//! `requirements.txt`; without it the peer's columns are empty.
#![expect(clippy::print_stdout, reason = "a program that reports its figures")]
#![expect(clippy::print_stderr, reason = "a program that says what it lacks")]
#![expect(clippy::unwrap_used, reason = "a program that may end at any failure")]

#[path = "../../tests/demo/mod.rs"]
mod demo;

use std::io::Write as _;
use std::process::{Command, Stdio};

use ol_datanet::{DuplicateRules, NEAR_DUPLICATES_PERCENT};
use ol_runtime::{Clock as _, SystemClock};
use serde_json::{Value, json};

const NAMES: [&str; 3] = ["defi-exploits", "healthcare", "legal"];
const CHANGED_PERCENT: u64 = 15;

/// Seconds for originals and copies, copies found and honest records left out,
/// in per cent.
type Figures = [f64; 3];

fn main() {
    let is_json = std::env::args().any(|arg| arg == "--json");
    let rows: Vec<Value> = NAMES.iter().flat_map(|name| rows(name)).collect();
    if is_json {
        println!("{:#}", Value::from(rows));
        return;
    }
    for row in rows {
        println!("{row}");
    }
}

fn rows(name: &'static str) -> Vec<Value> {
    let rules = DuplicateRules::EXACT.and_near(NEAR_DUPLICATES_PERCENT);
    let copies = demo::commit(name, rules).copies(CHANGED_PERCENT);
    let clock = SystemClock::new();
    let started_s = clock.monotonic_s();
    let committed = demo::commit(name, rules);
    let n_found = committed.add_copies(&copies);
    let seconds = clock.monotonic_s() - started_s;
    let exact = demo::commit(name, DuplicateRules::EXACT).added;
    let n_left_out = committed.added.duplicates - exact.duplicates;

    let n = copies.len();
    let of_hundred = |part: f64| 100.0 * part / n as f64;
    let ours = [
        seconds,
        of_hundred(n_found as f64),
        of_hundred(n_left_out as f64),
    ];
    let records = committed.records();
    let originals = records[..n]
        .iter()
        .map(|of| [&of.record.question, &of.record.answer]);
    let peer = peer(&json!({ "originals": originals.collect::<Vec<_>>(), "copies": copies }));
    let work = [
        format!("{name}: {} records and copies, placed", 2 * n),
        format!("{name}: copies found, {CHANGED_PERCENT} % of the words changed"),
        format!("{name}: honest records left out"),
    ];
    (0..work.len())
        .map(|at| {
            let mut row = json!({
                "work": work[at],
                "unit": if at == 0 { "s" } else { "%" },
                "ours": rounded(ours[at]),
                "rounds": 1,
                "command": "cargo xtask bench datanet",
            });
            if let Some(peer) = &peer {
                row["peer"] = rounded(peer[at]).into();
                row["peer_name"] = "datasketch 1.6.5, MinHash of pairs of words, half alike".into();
                let ratio = if at == 1 {
                    ours[at] / peer[at]
                } else {
                    peer[at] / ours[at]
                };
                if ratio.is_finite() {
                    row["ratio"] = rounded(ratio).into();
                }
            }
            row
        })
        .collect()
}

/// The peer on the same texts; `None` if it is not there.
fn peer(texts: &Value) -> Option<Figures> {
    let python = std::env::var("OPENLEDGER_BENCH_PYTHON").unwrap_or_else(|_| "python3".to_owned());
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/benches/near/peer.py");
    let mut child = Command::new(&python)
        .arg(script)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .ok()?;
    // A peer that cannot start does not read.
    drop(child.stdin.take()?.write_all(texts.to_string().as_bytes()));
    let output = child.wait_with_output().ok()?;
    let figures = serde_json::from_slice(&output.stdout);
    if figures.is_err() {
        eprintln!("no datasketch under {python} (OPENLEDGER_BENCH_PYTHON names another)");
    }
    figures.ok()
}

fn rounded(x: f64) -> f64 {
    (x * 1e3).round() / 1e3
}
