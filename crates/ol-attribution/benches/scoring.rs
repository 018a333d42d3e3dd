//! Scores one answer against 100,000 and 1,000,000 records, netted by
//! contributor, as the chain does it; against a plain f32 matrix-vector product
//! of the same sketches by `gemm`, which neither nets nor checks anything.
//!
//! `cargo bench -p ol-attribution --bench scoring -- --json`
//! prints a JSON list, without `--json` a line for each row.
#![expect(clippy::print_stdout, reason = "a program that reports its figures")]
#![expect(
    unsafe_code,
    reason = "gemm takes raw pointers; the one call is on whole slices"
)]

use std::hint::black_box;
use std::time::Instant;

use ol_poa::{CHUNK_ENTRIES, ENTRIES_MAX, Entry, Index, K, QuerySketch, weights};
use ol_types::{Address, B256};

const COMMAND: &str = "cargo xtask bench attribution";
const ROUNDS: usize = 15;
const RECORDS_PER_CONTRIBUTOR: u64 = 20;

fn main() {
    let rows: Vec<serde_json::Value> = [100_000, 1_000_000].map(bench).into();
    if std::env::args().any(|arg| arg == "--json") {
        println!("{:#}", serde_json::Value::from(rows));
        return;
    }
    for row in rows {
        println!("{row}");
    }
}

/// The same sketches as indexes of at most 16,384 entries, which is what a
/// model registers, and as one f32 matrix.
struct Sketches {
    indexes: Vec<Index>,
    floats: Vec<f32>,
    n_records: usize,
}

fn bench(n_records: usize) -> serde_json::Value {
    let sketches = sample(n_records);
    let mut next = random(99);
    let query =
        QuerySketch::new(std::array::from_fn(|_| code(next()))).expect("a code is never -128");
    let float_query = query.codes().map(f32::from);

    // In turn, so that both see the same state of the machine; the first round
    // warms up.
    let (mut ours, mut peer) = (Vec::new(), Vec::new());
    for round in 0..=ROUNDS {
        let (our_s, total) = timed(|| score_indexes(&sketches.indexes, &query));
        let (peer_s, scores) = timed(|| multiply(&sketches, &float_query));
        assert!(total > 0 && scores.len() == n_records);
        if round > 0 {
            ours.push(our_s * 1e3);
            peer.push(peer_s * 1e3);
        }
    }
    let (ours, peer) = (median(ours), median(peer));
    serde_json::json!({
        "work": format!("score and net {n_records} records, k={K}, one thread"),
        "unit": "ms",
        "ours": rounded(ours),
        "peer": rounded(peer),
        "peer_name": "gemm f32 matrix-vector, scores only",
        "ratio": rounded(peer / ours),
        "rounds": ROUNDS,
        "command": COMMAND,
    })
}

fn sample(n_records: usize) -> Sketches {
    let mut next = random(7);
    let mut floats = Vec::with_capacity(n_records * K);
    let mut indexes = Vec::new();
    let mut entries = Vec::new();
    for record in 0_u32.. {
        if floats.len() == n_records * K {
            break;
        }
        let contributor = u64::from(record) / RECORDS_PER_CONTRIBUTOR;
        let entry = Entry {
            contributor: Address::left_padding_from(&contributor.to_be_bytes()),
            record: B256::left_padding_from(&record.to_be_bytes()),
            cluster: record,
            scale: u16::try_from(next() >> 48).unwrap_or(1).max(1),
            codes: std::array::from_fn(|_| code(next())),
        };
        let scale = f32::from(entry.scale);
        floats.extend(entry.codes.iter().map(|&code| f32::from(code) * scale));
        entries.push(entry);
        if entries.len() == ENTRIES_MAX || floats.len() == n_records * K {
            let full = std::mem::take(&mut entries);
            indexes.push(Index::new(full).expect("the sample is well formed"));
        }
    }
    Sketches {
        indexes,
        floats,
        n_records,
    }
}

/// What `POA_SCORE` does: checks the form, scores, nets. The sum of all weights.
fn score_indexes(indexes: &[Index], query: &QuerySketch) -> u64 {
    let weights_of = |index: &Index| {
        let chunks = index.chunks();
        assert!(chunks.len() <= ENTRIES_MAX / CHUNK_ENTRIES);
        weights(&chunks, 0, query).expect("the sample is well formed")
    };
    let all = indexes.iter().flat_map(weights_of);
    all.map(|(_, weight)| weight).sum()
}

/// `[N, 128] · [128]`.
fn multiply(sketches: &Sketches, query: &[f32; K]) -> Vec<f32> {
    let n = sketches.n_records;
    let mut scores = vec![0.0_f32; n];
    assert_eq!(sketches.floats.len(), n * K);
    // SAFETY: `scores` is [n, 1], `floats` [n, K] and `query` [K, 1], all
    // row-major and whole; none overlap.
    unsafe {
        gemm::gemm(
            n,
            1,
            K,
            scores.as_mut_ptr(),
            1,
            1,
            false,
            sketches.floats.as_ptr(),
            1,
            const { K.cast_signed() },
            query.as_ptr(),
            1,
            1,
            0.0,
            1.0,
            false,
            false,
            false,
            gemm::Parallelism::None,
        );
    }
    scores
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

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn rounded(x: f64) -> f64 {
    (x * 1e3).round() / 1e3
}

/// splitmix64.
fn random(mut state: u64) -> impl FnMut() -> u64 {
    move || {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
}

/// A code from the low byte, never -128.
fn code(word: u64) -> i8 {
    word.to_le_bytes()[0].cast_signed().max(-127)
}
