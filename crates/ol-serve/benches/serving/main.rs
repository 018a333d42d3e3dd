//! Thousands of adapters on the default base: throughput and latency by their
//! number, against the base alone and against other servers on the same prompts;
//! and how long an adapter takes into memory.
//!
//! `cargo bench -p ol-serve --bench serving -- --json` prints a JSON list,
//! without `--json` a line for each row; a further argument keeps only the
//! works whose name contains it. The peers live in `peer.py`; one that is
//! not installed is named on stderr and its rows are left out.
//!
//! Adapters are on q and v (PEFT's default for these families), in f32 unless a
//! row says otherwise, random, with ranks 8, 16, 32 and 64 in turn. Sixteen clients ask
//! for one answer after the other. What is not in memory is in the store's
//! folder, and that in the page cache. Prefixes are not shared.
#![expect(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a program that reports its figures"
)]

mod cold;
mod fixture;
#[path = "../../../ol-train/benches/model/peer.rs"]
mod peer;
mod races;
mod traffic;

use std::time::Instant;

use fixture::{Fixture, Kind};
use traffic::{Measured, Popularity};

/// Against ourselves, and against a peer.
const ROUNDS: usize = 7;
const ROUNDS_OF_PEERS: usize = 3;
/// Tokens of each prompt and of each answer.
const PROMPT: usize = 32;
const ANSWER: usize = 32;
/// Clients, and rows of the engine.
const CLIENTS: usize = 16;
const THREADS: usize = 2;
/// For adapters.
const MEMORY_MIB: u64 = 1200;

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if let [flag, dir, adapter] = arguments.as_slice()
        && flag == "--one-process"
    {
        return races::one_process(dir.as_ref(), adapter);
    }
    let filter = arguments.iter().find(|a| !a.starts_with("--"));
    let mut report = Report {
        filter: filter.cloned(),
        rows: Vec::new(),
    };
    cold::bench(&mut report);
    by_number(&mut report);
    races::bench(&mut report);
    if arguments.iter().any(|a| a == "--json") {
        println!("{:#}", serde_json::Value::from(report.rows));
    }
}

/// Throughput and latency by the number of adapters. The base alone is measured
/// in the same round.
fn by_number(report: &mut Report) {
    const KINDS: [(&str, bool, bool, &[usize]); 4] = [
        ("q and v", false, false, &[1, 10, 100, 1000, 2000]),
        ("q and v, bf16", false, true, &[100, 2000]),
        ("all linear", true, false, &[16, 2000]),
        ("all linear, bf16", true, true, &[16, 2000]),
    ];
    for (what, is_all, is_half, counts) in KINDS {
        let works = |n: usize, popularity: Popularity| {
            format!("{n} adapters r=8–64 on {what}, {popularity:?}, memory {MEMORY_MIB} MiB")
        };
        let popularities = [Popularity::Zipf, Popularity::Uniform];
        let is_wanted = counts
            .iter()
            .any(|n| popularities.iter().any(|p| report.wants(&works(*n, *p))));
        if !is_wanted {
            continue;
        }
        let n_max = counts.iter().copied().max().unwrap_or(1);
        let kind = Kind { is_all, is_half };
        let fixture = Fixture::new(n_max, kind, MEMORY_MIB << 20);
        for &n in counts {
            for popularity in popularities {
                let work = works(n, popularity);
                if !report.wants(&work) {
                    continue;
                }
                let (mut ours, mut base) = (Vec::new(), Vec::new());
                let mut all = Measured::default();
                let loads = fixture.store.stats().n_loads;
                for round in 0..=ROUNDS {
                    let seed = round as u64;
                    let with = fixture.serve(Some((n, popularity)), seed);
                    let without = fixture.serve(None, seed);
                    if round > 0 {
                        ours.push(with.tokens_per_s);
                        base.push(without.tokens_per_s);
                        all.extend(with);
                    }
                }
                let stats = fixture.store.stats();
                eprintln!(
                    "{work}: {} loads, {} of {} versions in memory, {} MiB",
                    stats.n_loads - loads,
                    stats.host.n_versions,
                    stats.n_versions,
                    stats.host.used_bytes >> 20,
                );
                report.add(
                    &work,
                    "tokens/s",
                    &ours,
                    &base,
                    "ours without adapters",
                    Some(&all),
                );
            }
        }
    }
}

/// The rows, and which are wanted.
struct Report {
    filter: Option<String>,
    rows: Vec<serde_json::Value>,
}

impl Report {
    fn wants(&self, work: &str) -> bool {
        self.filter
            .as_ref()
            .is_none_or(|f| work.contains(f.as_str()))
    }

    /// Adds a row of rates, or of times: there less is better.
    fn add(
        &mut self,
        work: &str,
        unit: &str,
        ours: &[f64],
        peer: &[f64],
        peer_name: &str,
        latency: Option<&Measured>,
    ) {
        let spread = |x: &[f64]| {
            let low = x.iter().copied().fold(f64::MAX, f64::min);
            let high = x.iter().copied().fold(0.0, f64::max);
            format!("{}–{}", rounded(low), rounded(high))
        };
        let ratios: Vec<f64> = ours
            .iter()
            .zip(peer)
            .map(|(ours, peer)| {
                if unit == "ms" {
                    peer / ours
                } else {
                    ours / peer
                }
            })
            .collect();
        let mut row = serde_json::json!({
            "work": work,
            "unit": unit,
            "ours": rounded(median(ours)),
            "peer": rounded(median(peer)),
            "peer_name": peer_name,
            "ratio": (median(&ratios) * 1e3).round() / 1e3,
            "rounds": ours.len(),
            "spread": format!("{} / {}", spread(ours), spread(peer)),
        });
        let of = |times: &[f64]| {
            let [p50, p99] = [0.5, 0.99].map(|part| rounded(1e3 * percentile(times, part)));
            format!("{p50} / {p99}")
        };
        if let Some(measured) = latency {
            row["ttft_ms"] = of(&measured.first_s).into();
            row["token_ms"] = of(&measured.between_s).into();
        }
        row["command"] = "cargo xtask bench serve".into();
        eprintln!("{row}");
        self.rows.push(row);
    }
}

#[expect(
    clippy::disallowed_methods,
    reason = "a benchmark measures the machine's time"
)]
fn now() -> Instant {
    Instant::now()
}

fn timed<T>(work: impl FnOnce() -> T) -> f64 {
    let start = now();
    std::hint::black_box(work());
    start.elapsed().as_secs_f64()
}

fn median(values: &[f64]) -> f64 {
    percentile(values, 0.5)
}

fn percentile(values: &[f64], part: f64) -> f64 {
    let mut values = values.to_vec();
    values.sort_by(f64::total_cmp);
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "an index"
    )]
    let at = (float(values.len()) * part) as usize;
    values.get(at).or(values.last()).copied().unwrap_or(0.0)
}

fn rounded(x: f64) -> f64 {
    (x * 100.0).round() / 100.0
}

#[expect(clippy::cast_precision_loss, reason = "counts are small")]
fn float(n: usize) -> f64 {
    n as f64
}
