//! Scores answers against 10^5, 10^6 and 10^7 records on two threads: what is
//! paid (the nets of all contributors), the same from the records, and the 50
//! records that count most; against numpy and faiss on the same sketches.
//!
//! `cargo bench -p ol-attribution --bench scoring -- --json`
//! prints a JSON list on stdout; each row goes to stderr when it is there. The peers need
//! `OPENLEDGER_FAISS_PYTHON`, a Python with `requirements.txt`; up to 8 GB of
//! memory and 1.3 GB of disk.
#![expect(clippy::print_stdout, reason = "a program that reports its figures")]
#![expect(clippy::print_stderr, reason = "what is left out, and progress")]

use std::fs::File;
use std::hint::black_box;
use std::io::{BufWriter, Write};
use std::path::Path;
use std::time::Instant;

use ol_attribution::scorer::{Instructions, Scorer};
use ol_model::{Pool, Random};
use ol_poa::court::{COURT_ENTRIES_MAX, Claim, CommittedIndex};
use ol_poa::{Entry, Index, K, QuerySketch};
use ol_types::{Address, B256, keccak256};
use serde_json::{Value, json};

#[path = "../../../ol-train/benches/model/peer.rs"]
mod peer;
use peer::Peer;

const COMMAND: &str = "cargo xtask bench scoring";
const PYTHON: &str = "OPENLEDGER_FAISS_PYTHON";
const THREADS: usize = 2;
const N_BEST: usize = 50;
const N_QUERIES: usize = 16;
const CLAIM_ROUNDS: usize = 8;
/// Measured rounds of ours for each of the peer's.
const OURS_PER_PEER: usize = 8;

fn main() {
    let mut rows = Vec::new();
    for (n_records, rounds) in [(100_000, 400), (1_000_000, 240), (10_000_000, 120)] {
        bench(n_records, 1_000, Lengths::Equal, rounds, &mut rows);
        if n_records <= COURT_ENTRIES_MAX {
            bench_claim(n_records, 1_000, &mut rows);
        }
        if n_records == 10_000_000 {
            bench(n_records, 1_000_000, Lengths::Spread, rounds, &mut rows);
        }
    }
    if std::env::args().any(|arg| arg == "--json") {
        println!("{:#}", Value::from(rows));
    }
}

/// How the scales of the records are drawn.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Lengths {
    /// All the same: no record can be left out by its length.
    Equal,
    /// Uniform in 1..=65535.
    Spread,
}

impl Lengths {
    const fn name(self) -> &'static str {
        match self {
            Self::Equal => "equal lengths",
            Self::Spread => "lengths spread",
        }
    }
}

/// The sketches of `n` records, the same at every call.
fn entries(n: usize, n_contributors: usize, lengths: Lengths) -> impl Iterator<Item = Entry> {
    let mut random = Random::new(7);
    let n = u32::try_from(n).expect("at most 10^7");
    (0..n).map(move |record| {
        let contributor = u64::from(record) * n_contributors as u64 / u64::from(n);
        Entry {
            contributor: Address::left_padding_from(&contributor.to_be_bytes()),
            record: B256::ZERO,
            cluster: record,
            scale: match lengths {
                Lengths::Equal => 30_000,
                Lengths::Spread => random.next_u64().to_le_bytes().map(u16::from)[0].max(1) * 257,
            },
            codes: sketch(&mut random).map(|code| code / 16),
        }
    })
}

/// Codes spread like a normal distribution, a standard deviation of 37.
fn sketch(random: &mut Random) -> [i8; K] {
    let mut codes = [0; K];
    for pair in codes.as_chunks_mut::<2>().0 {
        // Four uniform bytes less their mean, each.
        let bytes = random.next_u64().to_le_bytes();
        for (code, bytes) in pair.iter_mut().zip(bytes.as_chunks::<4>().0) {
            let sum: i32 = bytes.iter().map(|&byte| i32::from(byte)).sum();
            *code = i8::try_from(((sum - 510) / 4).clamp(-127, 127)).expect("clamped");
        }
    }
    codes
}

fn bench(
    n_records: usize,
    n_contributors: usize,
    lengths: Lengths,
    rounds: usize,
    rows: &mut Vec<Value>,
) {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let mut random = Random::new(99);
    let queries: Vec<QuerySketch> = (0..N_QUERIES)
        .map(|_| QuerySketch::new(sketch(&mut random)).expect("a code is never -128"))
        .collect();
    let all = || entries(n_records, n_contributors, lengths);
    let (build_s, scorer) = timed(|| Scorer::new(all()).expect("the sample is well formed"));
    let pool = Pool::new(THREADS);
    let setting = format!(
        "{n_records} records of {n_contributors} contributors, {}, {}",
        lengths.name(),
        Instructions::detect().name()
    );
    let mut report = |work: &str, unit: &str, ours: f64, theirs: Option<(&str, f64)>, rounds| {
        rows.push(row(
            &format!("{work}: {setting}"),
            unit,
            ours,
            theirs,
            rounds,
        ));
    };
    report("build", "s", build_s, None, 1);

    let has_peers = lengths == Lengths::Equal;
    if has_peers {
        write(folder.path(), &queries, all()).expect("room for the sample on the disk");
    }
    for query in &queries {
        let nets = scorer.nets(&pool, query);
        assert_eq!(nets, scorer.nets_of_records(&pool, query));
    }
    let nets: Work = ("nets of all contributors", |scorer, pool, query| {
        black_box(scorer.nets(pool, query));
    });
    let scan: Work = ("nets from the records", |scorer, pool, query| {
        black_box(scorer.nets_of_records(pool, query));
    });
    let best: Work = ("50 best records, exact", |scorer, pool, query| {
        black_box(scorer.top(pool, query, N_BEST));
    });
    for (kind, works) in [
        ("numpy", vec![nets, scan]),
        ("sq8", vec![best]),
        ("flat", vec![best]),
    ] {
        // 10^7 rows of f32 are 5 GB, twice that while an index grows; what the
        // lengths are makes no difference to the peers.
        let is_left_out = kind == "flat" && n_records > 1_000_000;
        if is_left_out {
            continue;
        }
        let mut peer = has_peers
            .then(|| Peer::start("scoring", PYTHON, kind, folder.path()))
            .flatten();
        for (name, work) in works {
            let (ours, theirs) = race(&scorer, &pool, &queries, rounds, work, peer.as_mut());
            for (p, of_hundred) in [("p50", 50), ("p99", 99)] {
                let theirs = peer
                    .as_ref()
                    .map(|peer| (peer.name.as_str(), percentile(&theirs, of_hundred)));
                let work = format!("{name}, {p}");
                report(&work, "ms", percentile(&ours, of_hundred), theirs, rounds);
            }
        }
    }
}

/// One figure, and the peer's; a ratio above 1 says that ours is faster.
fn row(work: &str, unit: &str, ours: f64, theirs: Option<(&str, f64)>, rounds: usize) -> Value {
    let mut row = json!({
        "work": work,
        "unit": unit,
        "ours": rounded(ours),
        "rounds": rounds,
        "command": COMMAND,
    });
    if let Some((name, theirs)) = theirs {
        let is_rate = unit.starts_with("1/");
        let ratio = if is_rate {
            ours / theirs
        } else {
            theirs / ours
        };
        row["peer"] = rounded(theirs).into();
        row["peer_name"] = name.into();
        row["ratio"] = rounded(ratio).into();
    }
    eprintln!("{row}");
    row
}

/// Claims of the optimistic tier: from the query sketch of an answer to what goes on
/// chain, beside as many bare hashes of nodes as a claim has.
fn bench_claim(n_records: usize, n_contributors: usize, rows: &mut Vec<Value>) {
    let all = entries(n_records, n_contributors, Lengths::Equal).collect();
    let index = Index::new(all).expect("the sample is well formed");
    let (load_s, index) = timed(|| CommittedIndex::new(index).expect("few contributors"));
    let mut random = Random::new(98);
    let mut query = || QuerySketch::new(sketch(&mut random)).expect("a code is never -128");
    let queries: Vec<QuerySketch> = (0..2 * CLAIM_ROUNDS).map(|_| query()).collect();
    let claim = |query| black_box(Claim::compute(&index, query, 0, 1 << 60).posted());
    let setting = format!("{n_records} records of {n_contributors} contributors");
    let mut report = |work: &str, unit: &str, ours: f64, theirs: Option<f64>| {
        let theirs = theirs.map(|theirs| ("bare keccak256 of as many nodes", theirs));
        let work = format!("{work}: {setting}");
        rows.push(row(&work, unit, ours, theirs, CLAIM_ROUNDS));
    };
    report("commitment to the index, once", "s", load_s, None);

    let n_nodes = 2 * n_records.next_power_of_two();
    let bare = || {
        let mut node = [1; 81];
        for _ in 0..n_nodes {
            let hash = keccak256(node);
            node[..32].copy_from_slice(hash.as_slice());
        }
        black_box(node);
    };
    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    for query in &queries[..CLAIM_ROUNDS] {
        ours.push(timed(|| claim(query)).0);
        theirs.push(timed(bare).0);
    }
    let theirs_s = percentile(&theirs, 50);
    report(
        "claim of an answer, one thread",
        "s",
        percentile(&ours, 50),
        Some(theirs_s),
    );

    let pool = Pool::new(THREADS);
    let (both_s, ()) = timed(|| {
        pool.run(queries.len(), &|at| {
            claim(&queries[at]);
        });
    });
    let (bare_s, ()) = timed(|| pool.run(queries.len(), &|_| bare()));
    let per_s = |seconds: f64| count(queries.len()) / seconds;
    report(
        "claims, two threads",
        "1/s",
        per_s(both_s),
        Some(per_s(bare_s)),
    );
}

#[expect(clippy::cast_precision_loss, reason = "few")]
const fn count(n: usize) -> f64 {
    n as f64
}

type Work = (&'static str, fn(&Scorer, &Pool, &QuerySketch));

/// Milliseconds of ours and of the peer, in turn, so that both see the same
/// state of the machine.
fn race(
    scorer: &Scorer,
    pool: &Pool,
    queries: &[QuerySketch],
    rounds: usize,
    work: fn(&Scorer, &Pool, &QuerySketch),
    mut peer: Option<&mut Peer>,
) -> (Vec<f64>, Vec<f64>) {
    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    for (at, query) in queries.iter().enumerate() {
        work(scorer, pool, query);
        if let Some(peer) = &mut peer {
            let (_, best) = peer.ask(&format!("{at} {N_BEST}"));
            if at == 0 {
                let ours = scorer.top(pool, query, 1)[0].position;
                eprintln!("{}: best record {best}, ours {ours}", peer.name);
            }
        }
    }
    for round in 0..rounds {
        let at = round % queries.len();
        let (seconds, ()) = timed(|| work(scorer, pool, &queries[at]));
        ours.push(seconds * 1e3);
        if round % OURS_PER_PEER == 0
            && let Some(peer) = &mut peer
        {
            theirs.push(peer.ask(&format!("{at} {N_BEST}")).0 * 1e3);
        }
    }
    (ours, theirs)
}

/// The sample as the peers read it.
fn write(
    folder: &Path,
    queries: &[QuerySketch],
    entries: impl Iterator<Item = Entry>,
) -> std::io::Result<()> {
    let file = |name| File::create(folder.join(name)).map(BufWriter::new);
    let (mut codes, mut scales) = (file("codes.i8")?, file("scales.u16")?);
    for entry in entries {
        codes.write_all(&entry.codes.map(i8::cast_unsigned))?;
        scales.write_all(&entry.scale.to_le_bytes())?;
    }
    codes.flush()?;
    scales.flush()?;
    let queries: Vec<u8> = queries.iter().flat_map(QuerySketch::to_bytes).collect();
    std::fs::write(folder.join("queries.i8"), queries)
}

#[expect(
    clippy::disallowed_methods,
    reason = "a benchmark measures the machine's time"
)]
fn timed<T>(work: impl FnOnce() -> T) -> (f64, T) {
    let start = Instant::now();
    let result = black_box(work());
    (start.elapsed().as_secs_f64(), result)
}

fn percentile(values: &[f64], of_hundred: usize) -> f64 {
    let mut values = values.to_vec();
    values.sort_by(f64::total_cmp);
    values[(values.len() * of_hundred).div_ceil(100).max(1) - 1]
}

fn rounded(x: f64) -> f64 {
    (x * 1e3).round() / 1e3
}
