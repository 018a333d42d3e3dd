//! Builds an index of 10⁷ and 10⁸ tokens of real text and finds the spans of
//! answers of 512 tokens: 200 held out, 200 copied, and 200 put together from
//! pieces of 32 tokens. At 10⁷ tokens infini-gram does the same on the same token
//! file, and its spans are compared with ours.
//!
//! `cargo bench -p ol-spans --bench spans -- --json` prints a JSON list, without
//! `--json` a line for each row. `OPENLEDGER_BENCH_PYTHON` is a Python with
//! `requirements.txt`; without it the peer's columns are empty. The text comes
//! from this machine (`text.rs` says how to choose it) and is kept in tokens in
//! the target folder.
#![expect(clippy::print_stdout, reason = "a program that reports its figures")]
#![expect(clippy::print_stderr, reason = "a program that says how far it is")]

mod text;

use std::collections::HashMap;
use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Instant;

use ol_model::Random;
use ol_poa::spans::{SpanRule, UNITS_PER_MILLIBIT};
use ol_spans::{BuildOptions, Corpus, RecordRef, SpanIndex, Store};
use ol_types::{Address, B256, keccak256};
use serde::Deserialize;

use text::{SEPARATOR, Text, VOCABULARY_SIZE};

const COMMAND: &str = "cargo xtask bench spans";
const PYTHON: &str = "OPENLEDGER_BENCH_PYTHON";
const ANSWER_TOKENS: usize = 512;
const PIECE_TOKENS: usize = 32;
const N_ANSWERS: usize = 200;
const ROUNDS: usize = 15;
const PEER_ROUNDS: usize = 1;
const DOCUMENTS_PER_CONTRIBUTOR: u64 = 20;
/// Share of the answers' spans that the peer is asked for: it is slow.
const PEER_ANSWERS: usize = 50;

fn main() {
    let is_json = std::env::args().any(|arg| arg == "--json");
    let cache = Path::new(env!("CARGO_TARGET_TMPDIR")).join("spans");
    fs::create_dir_all(&cache).expect("the target folder can be written");
    let (all, held_out) = text::load(&cache, 100_000_000);
    let mut rows = Vec::new();
    for n_tokens in [10_000_000, 100_000_000] {
        let text = all.head(n_tokens);
        let answers = [
            ("held-out", windows(&held_out, ANSWER_TOKENS, N_ANSWERS, 1)),
            ("copied", windows(&text, ANSWER_TOKENS, N_ANSWERS, 2)),
            ("patchwork", patchwork(&text, 3)),
        ];
        rows.extend(bench(&cache, &text, &answers, n_tokens));
    }
    if is_json {
        println!("{:#}", serde_json::Value::from(rows));
        return;
    }
    for row in rows {
        println!("{row}");
    }
}

/// Runs of `len` tokens within documents, at random.
fn windows(text: &Text, len: usize, n: usize, seed: u64) -> Vec<Vec<u32>> {
    let long = text.documents().filter(|document| document.len() >= len);
    let long: Vec<&[u16]> = long.collect();
    let mut random = Random::new(seed);
    let mut below =
        |n: usize| usize::try_from(random.next_u64() % n as u64).expect("below a usize");
    let window = |_| {
        let document = long[below(long.len())];
        let start = below(document.len() - len + 1);
        let tokens = document[start..start + len].iter().copied();
        tokens.map(u32::from).collect()
    };
    (0..n).map(window).collect()
}

/// Answers put together from short pieces of as many documents.
fn patchwork(text: &Text, seed: u64) -> Vec<Vec<u32>> {
    let n_pieces = ANSWER_TOKENS / PIECE_TOKENS;
    let pieces = windows(text, PIECE_TOKENS, N_ANSWERS * n_pieces, seed);
    pieces.chunks(n_pieces).map(<[_]>::concat).collect()
}

type Answers<'a> = [(&'a str, Vec<Vec<u32>>); 3];

fn bench(
    cache: &Path,
    text: &Text,
    answers: &Answers<'_>,
    n_tokens: usize,
) -> Vec<serde_json::Value> {
    let folder = cache.join("index");
    // An empty folder: what is measured is a whole build.
    drop(fs::remove_dir_all(&folder));
    fs::create_dir_all(&folder).expect("the target folder can be written");
    let store = Store::open(&folder).expect("it was made");
    let (corpus, documents) = corpus(text);
    let ((id, build_s), cpu_s) = with_cpu(|| timed(|| build(&store, &corpus, &documents)));
    eprintln!("{n_tokens} tokens: built in {build_s:.2} s, {cpu_s:.2} s of CPU");
    let index = store.load(id).expect("it was built");
    let rule = SpanRule::default();
    let peer = (n_tokens == 10_000_000)
        .then(|| peer(cache, text, answers, rule))
        .flatten();

    let size_mb = text.0.len() as f64 * 2.0 / 1e6;
    let work = |what: &str| format!("{what}, {n_tokens} tokens of two bytes");
    let peer_build = peer.as_ref().map(|peer| size_mb / peer.index_s);
    let mut rows = vec![
        row(
            &work("build and write an index"),
            "MB/s",
            size_mb / build_s,
            peer_build,
            true,
            1,
        ),
        row(
            &work("build and write an index"),
            "MB/CPU-s",
            size_mb / cpu_s,
            None,
            true,
            1,
        ),
    ];
    for (number, (kind, answers)) in answers.iter().enumerate() {
        let ours = sorted_times(ROUNDS, answers, |answer| {
            index.spans(answer, rule.length_min)
        });
        let paid = sorted_times(ROUNDS, answers, |answer| index.units(answer, &rule));
        let theirs = peer.as_ref().map(|peer| peer.times_of(number));
        let what = format!("spans with documents of a {kind} answer of {ANSWER_TOKENS} tokens");
        for (name, part) in [("p50", 0.5), ("p99", 0.99)] {
            let theirs = theirs.as_ref().map(|times| quantile(times, part));
            let what = work(&format!("{what}, {name}"));
            rows.push(row(
                &what,
                "ms",
                quantile(&ours, part),
                theirs,
                false,
                ROUNDS,
            ));
        }
        let what = work(&format!("units of contributors of a {kind} answer, p99"));
        rows.push(row(&what, "ms", quantile(&paid, 0.99), None, false, ROUNDS));
        let what = work(&format!("information of {kind} answers that is paid"));
        let paid = 100.0 * share_paid(&index, answers, &rule);
        rows.push(row(&what, "%", paid, None, true, 1));
        if let Some(peer) = &peer {
            let equal = peer.equal_to(&index, number, answers, rule);
            let what = work(&format!("{kind} answers with the same spans and counts"));
            rows.push(row(&what, "%", 100.0 * equal, Some(100.0), true, 1));
        }
    }
    rows
}

fn corpus(text: &Text) -> (Corpus, HashMap<B256, Vec<u32>>) {
    let mut records = Vec::new();
    let mut documents = HashMap::new();
    for (number, document) in (0_u32..).zip(text.documents()) {
        let hash = keccak256(number.to_be_bytes());
        let contributor = u64::from(number) / DOCUMENTS_PER_CONTRIBUTOR;
        records.push(RecordRef {
            hash,
            contributor: Address::left_padding_from(&contributor.to_be_bytes()),
            cluster: number,
        });
        documents.insert(hash, document.iter().copied().map(u32::from).collect());
    }
    let corpus = Corpus {
        manifest: keccak256("text of this machine"),
        tokenizer: keccak256("the default tokenizer"),
        vocabulary_size: VOCABULARY_SIZE,
        versions: vec![u32::try_from(records.len()).expect("a text has fewer than 2³² documents")],
        records,
    };
    (corpus, documents)
}

fn build(store: &Store, corpus: &Corpus, documents: &HashMap<B256, Vec<u32>>) -> B256 {
    let mut tokens = |record: &RecordRef| Ok(vec![documents[&record.hash].clone()]);
    store
        .update(corpus, &BuildOptions::default(), &mut tokens, &mut |_| ())
        .expect("the corpus is within the limits")
}

/// Of all milli-bits of the answers, those that are in units.
fn share_paid(index: &SpanIndex, answers: &[Vec<u32>], rule: &SpanRule) -> f64 {
    let millibits = |answer: &Vec<u32>| {
        let of_token = |token: &u32| index.unigrams().get(*token).map_or(0, u64::from);
        answer.iter().map(of_token).sum::<u64>()
    };
    let paid = |answer: &Vec<u32>| {
        let units = index.units(answer, rule).expect("short enough").weights;
        units.iter().map(|(_, units)| units).sum::<u64>() / UNITS_PER_MILLIBIT
    };
    let paid: u64 = answers.iter().map(paid).sum();
    paid as f64 / answers.iter().map(millibits).sum::<u64>() as f64
}

/// Begin, end and occurrences of a span.
type Found = (u32, u32, u64);

#[derive(Deserialize)]
struct Peer {
    index_s: f64,
    times_ms: Vec<f64>,
    spans: Vec<Vec<Found>>,
}

impl Peer {
    /// The times of one kind of answers, ascending.
    fn times_of(&self, kind: usize) -> Vec<f64> {
        let of_kind = |(at, _): &(usize, &f64)| at / PEER_ANSWERS % 3 == kind;
        let times = self.times_ms.iter().enumerate().filter(of_kind);
        sorted(times.map(|(_, ms)| *ms).collect())
    }

    /// Share of the answers for which both found the same spans and counts.
    fn equal_to(
        &self,
        index: &SpanIndex,
        kind: usize,
        answers: &[Vec<u32>],
        rule: SpanRule,
    ) -> f64 {
        let theirs = &self.spans[kind * PEER_ANSWERS..(kind + 1) * PEER_ANSWERS];
        let same = answers.iter().zip(theirs).filter(|(answer, theirs)| {
            let ours = index.spans(answer, rule.length_min).expect("short enough");
            let ours = ours.iter().map(|found| {
                let span = &found.span;
                (span.start, span.start + span.len, found.occurrences)
            });
            let mut theirs = (*theirs).clone();
            theirs.sort_unstable();
            let ours: Vec<Found> = ours.collect();
            if ours != theirs {
                eprintln!(
                    "only ours {:?}, only theirs {:?}",
                    only(&ours, &theirs),
                    only(&theirs, &ours)
                );
            }
            ours == theirs
        });
        same.count() as f64 / PEER_ANSWERS as f64
    }
}

/// What the first has and the second has not.
fn only(these: &[Found], others: &[Found]) -> Vec<Found> {
    let is_other = |found: &&Found| !others.contains(found);
    these.iter().filter(is_other).copied().collect()
}

/// Lets infini-gram index the same tokens and attribute the same answers.
fn peer(cache: &Path, text: &Text, answers: &Answers<'_>, rule: SpanRule) -> Option<Peer> {
    let folder = cache.join("peer");
    drop(fs::remove_dir_all(&folder));
    fs::create_dir_all(&folder).ok()?;
    let starts = text
        .0
        .iter()
        .enumerate()
        .filter(|(_, token)| **token == SEPARATOR);
    let offsets: Vec<u8> = starts
        .flat_map(|(at, _)| (2 * at as u64).to_le_bytes())
        .collect();
    let mut counts = vec![0_u64; 1 << 16];
    for &token in &text.0 {
        counts[usize::from(token)] += 1;
    }
    let counts = counts.iter().enumerate().filter(|(_, count)| **count > 0);
    let counts: String = counts
        .map(|(token, count)| format!("{token} {count}\n"))
        .collect();
    let asked: Vec<&[Vec<u32>]> = answers
        .iter()
        .map(|(_, answers)| &answers[..PEER_ANSWERS])
        .collect();
    fs::write(folder.join("tokenized.0"), text::encode(&text.0)).ok()?;
    fs::write(folder.join("offset.0"), offsets).ok()?;
    fs::write(folder.join("unigram.0"), counts).ok()?;
    fs::write(
        folder.join("answers.json"),
        serde_json::to_vec(&asked.concat()).ok()?,
    )
    .ok()?;
    let python = std::env::var(PYTHON).unwrap_or_else(|_| "python3".to_owned());
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("benches/spans/peer.py");
    let numbers = [0, VOCABULARY_SIZE, rule.length_min as usize, PEER_ROUNDS];
    let output = Command::new(&python)
        .arg(script)
        .arg(&folder)
        .args(numbers.map(|number| number.to_string()))
        .stderr(Stdio::inherit())
        .output();
    let parsed = output
        .map_err(|error| error.to_string())
        .and_then(|output| {
            serde_json::from_slice(&output.stdout).map_err(|error| error.to_string())
        });
    parsed
        .inspect_err(|error| {
            eprintln!("no infini-gram under {python} ({PYTHON} names another): {error}")
        })
        .ok()
}

fn row(
    work: &str,
    unit: &str,
    ours: f64,
    peer: Option<f64>,
    is_more_better: bool,
    rounds: usize,
) -> serde_json::Value {
    let mut row = serde_json::json!({
        "work": work,
        "unit": unit,
        "ours": rounded(ours),
        "rounds": rounds,
        "command": COMMAND,
    });
    if let Some(peer) = peer {
        let ratio = if is_more_better {
            ours / peer
        } else {
            peer / ours
        };
        row["peer"] = rounded(peer).into();
        row["peer_name"] = "infini-gram 2.6.0, in memory, from Python".into();
        row["ratio"] = rounded(ratio).into();
    }
    row
}

/// Milliseconds of every answer, each the median of its rounds after a first
/// one, ascending.
fn sorted_times<T>(
    rounds: usize,
    answers: &[Vec<u32>],
    mut ask: impl FnMut(&[u32]) -> T,
) -> Vec<f64> {
    let mut times = vec![Vec::with_capacity(rounds); answers.len()];
    for round in 0..=rounds {
        for (answer, times) in answers.iter().zip(&mut times) {
            let (_, seconds) = timed(|| ask(answer));
            if round > 0 {
                times.push(seconds * 1e3);
            }
        }
    }
    let median = |times| quantile(&sorted(times), 0.5);
    sorted(times.into_iter().map(median).collect())
}

fn sorted(mut times: Vec<f64>) -> Vec<f64> {
    times.sort_by(f64::total_cmp);
    times
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "a part of a length"
)]
fn quantile(sorted: &[f64], part: f64) -> f64 {
    let last = sorted.len() - 1;
    sorted[((last as f64 * part).ceil() as usize).min(last)]
}

#[expect(
    clippy::disallowed_methods,
    reason = "a benchmark measures the machine's time"
)]
fn timed<T>(work: impl FnOnce() -> T) -> (T, f64) {
    let start = Instant::now();
    let result = std::hint::black_box(work());
    (result, start.elapsed().as_secs_f64())
}

/// What `work` gives, and the seconds of CPU that this process spent on it.
fn with_cpu<T>(work: impl FnOnce() -> T) -> (T, f64) {
    let before = cpu_s();
    let result = work();
    (result, cpu_s() - before)
}

/// User and system time so far, in Linux's hundredths of a second.
fn cpu_s() -> f64 {
    let stat = fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let fields = stat.rsplit(") ").next().unwrap_or_default();
    let ticks = fields.split(' ').skip(11).take(2);
    ticks
        .filter_map(|field| field.parse::<f64>().ok())
        .sum::<f64>()
        / 100.0
}

fn rounded(x: f64) -> f64 {
    (x * 1e3).round() / 1e3
}
