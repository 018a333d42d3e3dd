//! Retrieval and what answers lean on: whether a question finds its record and
//! whether leaving it out is what an answer loses most by, on two datanets; and
//! how long a search takes, against bm25s on the same words.
//!
//! `cargo bench -p ol-attribution --bench context -- --json`
//! prints a JSON list on stdout; each row goes to stderr when it is there. The
//! peer needs `OPENLEDGER_BM25_PYTHON`, a Python with `requirements.txt`.
#![expect(clippy::disallowed_methods, reason = "a benchmark measures real time")]
#![expect(clippy::print_stdout, reason = "a program that reports its figures")]
#![expect(clippy::print_stderr, reason = "what is left out, and progress")]

mod datanet;
mod drops;
#[path = "../../../ol-train/benches/model/peer.rs"]
mod peer;
mod recall;
mod speed;

use std::path::{Path, PathBuf};

use ol_model::{Model, Pool, Tokenizer};
use serde_json::{Value, json};

const COMMAND: &str = "cargo xtask bench context";
const THREADS: usize = 2;

fn main() -> anyhow::Result<()> {
    let mut rows = Rows::default();
    let model = Model::load(&assets().join("base"))?;
    let tokenizer = Tokenizer::load(&assets().join("base"))?;
    let pool = Pool::new(THREADS);
    let machine = Machine {
        model: model.into(),
        tokenizer: tokenizer.into(),
        pool,
    };
    for name in ["defi-exploits", "healthcare"] {
        let texts = datanet::load(name)?;
        recall::measure(name, &texts, &machine, &mut rows)?;
        drops::measure(name, &texts, &machine, &mut rows)?;
    }
    speed::measure(&mut rows)?;
    if std::env::args().any(|arg| arg == "--json") {
        println!("{:#}", Value::from(rows.0));
    }
    Ok(())
}

fn assets() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../assets")
}

/// The shipped base and the threads it runs on.
struct Machine {
    model: std::sync::Arc<Model>,
    tokenizer: std::sync::Arc<Tokenizer>,
    pool: Pool,
}

/// What was measured.
#[derive(Default)]
struct Rows(Vec<Value>);

impl Rows {
    fn add(&mut self, work: &str, unit: &str, ours: f64, rounds: usize) {
        self.push(json!({
            "work": work, "unit": unit, "ours": rounded(ours), "rounds": rounds, "command": COMMAND,
        }));
    }

    fn race(
        &mut self,
        work: &str,
        unit: &str,
        ours: f64,
        (name, theirs): (&str, f64),
        rounds: usize,
    ) {
        self.push(json!({
            "work": work, "unit": unit, "ours": rounded(ours), "peer": rounded(theirs),
            "peer_name": name, "ratio": rounded(theirs / ours), "rounds": rounds, "command": COMMAND,
        }));
    }

    fn push(&mut self, row: Value) {
        eprintln!("{row}");
        self.0.push(row);
    }
}

/// Three digits that count.
fn rounded(x: f64) -> f64 {
    if x == 0.0 {
        return 0.0;
    }
    let scale = 10_f64.powf(2.0 - x.abs().log10().floor());
    (x * scale).round() / scale
}

#[expect(clippy::cast_precision_loss, reason = "counts of records")]
fn percent(n: usize, of: usize) -> f64 {
    100.0 * n as f64 / of.max(1) as f64
}
