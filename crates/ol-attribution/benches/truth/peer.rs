//! Other libraries on the same experiment: what they need, as files, and the
//! scores that they gave.
//!
//! A file of scores: one line of JSON (`domain`, `experiment`, `method`,
//! `size_bytes` of a record, `variants`), then the scores as little-endian
//! `f32`, `[variant, loss, query, record]`, losses in the order of
//! [`Loss::ALL`]. Positive says that the record lowers the query's loss.

use std::io::{BufRead as _, BufReader, Read as _};
use std::path::Path;

use anyhow::{Context as _, ensure};
use serde::{Deserialize, Serialize};

use crate::domain::{Domain, Text};
use crate::linalg::Matrix;
use crate::methods::Method;
use crate::plan::{self, Kept};
use crate::retrain::{self, Machine};
use crate::setting::Setting;
use crate::truth::Loss;

/// A record or a query, as another library reads it.
#[derive(Debug, Serialize)]
struct Sample<'a> {
    tokens: &'a [u32],
    answer_start: usize,
}

impl<'a> From<&'a Text> for Sample<'a> {
    fn from(text: &'a Text) -> Self {
        Self {
            tokens: &text.tokens,
            answer_start: text.answer_start,
        }
    }
}

/// What is attributed, beside the adapter.
#[derive(Debug, Serialize)]
struct Experiment<'a> {
    domain: &'a str,
    experiment: String,
    records: Vec<Sample<'a>>,
    queries: Vec<Sample<'a>>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Header {
    domain: String,
    experiment: String,
    method: String,
    size_bytes: usize,
    variants: Vec<String>,
}

/// Writes the adapter that is attributed, in PEFT's format, and the tokens of
/// records and queries to the folder `NAME.peer`.
pub(crate) fn export(
    folder: &Path,
    machine: &Machine,
    domain: &Domain,
    setting: &Setting,
) -> anyhow::Result<()> {
    let folder = folder.join(format!("{}.peer", domain.name));
    let is_kept = plan::kept(domain, Kept::All);
    let snapshots = retrain::train_on(machine, domain, setting, &is_kept, 0, 1)?;
    let last = snapshots.last().context("a training has an end")?;
    std::fs::create_dir_all(&folder)?;
    last.adapter.save(&folder, "openledger-base")?;
    let experiment = Experiment {
        domain: domain.name,
        experiment: domain.hash.to_string(),
        records: domain.pool.iter().map(Sample::from).collect(),
        queries: domain.queries().map(Sample::from).collect(),
    };
    let path = folder.join("experiment.json");
    std::fs::write(&path, serde_json::to_vec(&experiment)?)
        .with_context(|| path.display().to_string())
}

/// The scores in a file, if they are of this domain.
pub(crate) fn read(path: &Path, domain: &Domain) -> anyhow::Result<Option<Method>> {
    let shown = path.display();
    let file = std::fs::File::open(path).with_context(|| shown.to_string())?;
    let mut file = BufReader::new(file);
    let mut line = String::new();
    file.read_line(&mut line)?;
    let header: Header = serde_json::from_str(&line).with_context(|| shown.to_string())?;
    if header.domain != domain.name {
        return Ok(None);
    }
    ensure!(
        header.experiment == domain.hash.to_string(),
        "{shown} is of another experiment; run `export` and the peer again"
    );
    let (n_queries, n_records) = (domain.n_queries(), domain.pool.len());
    let n_scores = header.variants.len() * Loss::ALL.len() * n_queries * n_records;
    let mut bytes = Vec::new();
    file.take(4 * n_scores as u64 + 1).read_to_end(&mut bytes)?;
    ensure!(
        bytes.len() == 4 * n_scores,
        "{shown} has {} bytes of scores and not {}",
        bytes.len(),
        4 * n_scores
    );
    let scores: Vec<f32> = bytes
        .as_chunks::<4>()
        .0
        .iter()
        .map(|bytes| f32::from_le_bytes(*bytes))
        .collect();
    ensure!(
        scores.iter().all(|score| score.is_finite()),
        "{shown} has scores that are no numbers"
    );
    let matrix = |at: usize| {
        let scores = &scores[at * n_queries * n_records..];
        Matrix::from_fn(n_queries, n_records, |query, record| {
            scores[query * n_records + record].into()
        })
    };
    let variants = header.variants.into_iter().enumerate();
    Ok(Some(Method {
        name: header.method,
        size_bytes: header.size_bytes,
        variants: variants
            .map(|(at, name)| (name, [0, 1].map(|loss| matrix(2 * at + loss))))
            .collect(),
    }))
}
