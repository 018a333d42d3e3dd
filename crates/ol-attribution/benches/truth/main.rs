//! Ground truth of attribution on a language model: adapters retrained on
//! random halves of a datanet's records and without its contributors, and how
//! well each method foretells the losses that were then measured.
//!
//! ```text
//! cargo bench -p ol-attribution --bench truth -- retrain FOLDER [--setting JSON] [--runs N] [--only NAME]
//! cargo bench -p ol-attribution --bench truth -- reliability [FOLDER] [--setting JSON]
//! cargo bench -p ol-attribution --bench truth -- pack FOLDER [--setting JSON]
//! cargo bench -p ol-attribution --bench truth -- export FOLDER [--setting JSON]
//! cargo bench -p ol-attribution --bench truth -- table [FOLDER] [--setting JSON] [--methods TEXT] [--peer FILE]... [--json]
//! ```
//!
//! `retrain` takes hours; it writes every retraining to the folder as soon as
//! it is done and goes on from there when it is started again. See README.md.
#![expect(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a program that reports its figures"
)]

mod bank;
mod domain;
mod ek_fac;
mod fixture;
#[path = "../../src/linalg.rs"]
#[expect(
    dead_code,
    reason = "the library's algebra, of which only a part is used here"
)]
mod linalg;
mod log;
mod methods;
mod peer;
mod plan;
#[path = "../../src/random.rs"]
#[expect(dead_code, reason = "as above")]
mod random;
mod retrain;
mod segments;
mod setting;
mod solve;
mod space;
mod stats;
mod table;
mod text;
mod truth;

use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use ol_model::{Model, Pool, Tokenizer};
use ol_runtime::{Clock as _, SystemClock};

use domain::{Domain, NAMES};
use retrain::Machine;
use setting::Setting;
use table::{Row, Table};
use truth::{Loss, Truth};

/// What was measured, in the repository.
const FIXTURE: &str = "fixtures/attribution/truth.bin.xz";

fn main() -> anyhow::Result<()> {
    let arguments = Arguments::read(std::env::args().skip(1))?;
    let root = root();
    std::fs::create_dir_all(&arguments.folder)?;
    let base = root.join("assets/base");
    let machine = Machine {
        model: Model::load(&base)?,
        pool: Pool::new(arguments.threads),
    };
    let tokenizer = Tokenizer::load(&base)?;
    let wanted = |name: &&str| arguments.only.as_deref().is_none_or(|only| only == *name);
    let domains = NAMES
        .into_iter()
        .filter(wanted)
        .map(|name| Domain::load(&root, name, &arguments.setting, &machine.model, &tokenizer))
        .collect::<anyhow::Result<Vec<_>>>()?;
    match arguments.command.as_str() {
        "retrain" => retrain_all(&machine, &domains, &arguments),
        "reliability" => reliability(&machine, &domains, &arguments),
        "pack" => pack(&root.join(FIXTURE), &domains, &arguments),
        "export" => domains.iter().try_for_each(|domain| {
            peer::export(&arguments.folder, &machine, domain, &arguments.setting)
        }),
        "table" => table(&machine, &domains, &arguments),
        other => {
            bail!("no command `{other}`; there are: retrain, reliability, pack, export, table")
        }
    }
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

struct Arguments {
    command: String,
    /// Where gradients are kept, and what is measured is written.
    folder: PathBuf,
    /// What was measured: a folder, or the fixture.
    measured: PathBuf,
    setting: Setting,
    threads: usize,
    runs: usize,
    only: Option<String>,
    /// Scores of other libraries.
    peers: Vec<PathBuf>,
    methods: Option<String>,
    json: bool,
}

impl Arguments {
    fn read(arguments: impl Iterator<Item = String>) -> anyhow::Result<Self> {
        // `cargo bench` adds a flag of its own.
        let mut arguments = arguments
            .filter(|argument| argument != "--bench")
            .peekable();
        // `cargo xtask bench` names no command and wants JSON.
        let command = arguments.next_if(|first| !first.starts_with("--"));
        let mut read = Self {
            command: command.unwrap_or_else(|| "table".to_owned()),
            json: false,
            folder: PathBuf::new(),
            measured: PathBuf::new(),
            setting: Setting::default(),
            threads: 1,
            runs: usize::MAX,
            only: None,
            peers: Vec::new(),
            methods: None,
        };
        while let Some(argument) = arguments.next() {
            let mut value = || {
                arguments
                    .next()
                    .with_context(|| format!("{argument} what?"))
            };
            match argument.as_str() {
                "--setting" => read.setting = Setting::from_json(&value()?)?,
                "--threads" => read.threads = value()?.parse()?,
                "--runs" => read.runs = value()?.parse()?,
                "--json" => read.json = true,
                "--peer" => read.peers.push(PathBuf::from(value()?)),
                "--only" => read.only = Some(value()?),
                "--methods" => read.methods = Some(value()?),
                _ => read.folder = PathBuf::from(argument),
            }
        }
        // Gradients are kept beside the build where no folder is named.
        read.measured = read.folder.clone();
        if read.folder.as_os_str().is_empty() {
            read.measured = root().join(FIXTURE);
            read.folder = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("attribution-truth");
        }
        Ok(read)
    }
}

/// Makes what is missing, of every domain in turn.
fn retrain_all(machine: &Machine, domains: &[Domain], arguments: &Arguments) -> anyhow::Result<()> {
    let setting = &arguments.setting;
    let mut work = Vec::new();
    let mut logs = Vec::new();
    for (at, domain) in domains.iter().enumerate() {
        let (log, runs) = truth::open(&arguments.folder, domain)?;
        let plan = plan::plan(setting, domain);
        let n_runs = plan.len();
        // By progress, so that no domain is far ahead.
        let all = plan
            .into_iter()
            .enumerate()
            .map(|(i, run)| (stats::count(i) / stats::count(n_runs), at, run));
        let before = work.len();
        work.extend(all.filter(|(_, _, run)| !runs.contains_key(&run.number())));
        let missing = work.len() - before;
        println!(
            "{}: {} of {n_runs} runs are there",
            domain.name,
            n_runs - missing
        );
        logs.push(log);
    }
    work.sort_by(|a, b| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1)));
    work.truncate(arguments.runs);
    let clock = SystemClock::new();
    let started_s = clock.monotonic_s();
    let total = work.len();
    for (done, (_, at, run)) in work.into_iter().enumerate() {
        let domain = &domains[at];
        let is_kept = plan::kept(domain, run.kept);
        let snapshots = retrain::train_on(machine, domain, setting, &is_kept, run.seed, 1)?;
        let adapter = snapshots.last().map(|last| &last.adapter);
        logs[at].append(run.number(), &retrain::losses(machine, adapter, domain)?)?;
        let elapsed_s = clock.monotonic_s() - started_s;
        let left_s = elapsed_s / stats::count(done + 1) * stats::count(total - done - 1);
        println!(
            "{}: {:?} seed {}; {} of {total}, {elapsed_s:.0} s, {:.1} h left",
            domain.name,
            run.kept,
            run.seed,
            done + 1,
            left_s / 3600.0
        );
    }
    Ok(())
}

/// Writes what is finished to the repository.
fn pack(fixture: &Path, domains: &[Domain], arguments: &Arguments) -> anyhow::Result<()> {
    let measured = domains
        .iter()
        .map(|domain| truth::read(&arguments.folder, domain))
        .collect::<anyhow::Result<Vec<_>>>()?;
    let size_bytes = fixture::write(fixture, &arguments.setting, domains, &measured)?;
    println!("{}: {size_bytes} bytes", fixture.display());
    Ok(())
}

/// Every method against what was measured.
fn table(machine: &Machine, domains: &[Domain], arguments: &Arguments) -> anyhow::Result<()> {
    let setting = &arguments.setting;
    let blocks = bank::block_shapes(machine, setting)?;
    let clock = SystemClock::new();
    let started_s = clock.monotonic_s();
    let mut of_domains = Vec::new();
    for domain in domains {
        let truth = Truth::read(&arguments.measured, setting, domain)?;
        let banks = bank::banks(&arguments.folder, machine, domain, setting, 0)?;
        let wanted = arguments.methods.as_deref();
        let mut elsewhere = bank::Elsewhere::ALL.into_iter().map(|place| {
            let bank = place.bank(machine, domain, setting)?;
            Ok((place, bank))
        });
        let mut methods = methods::all(
            machine,
            domain,
            &blocks,
            &banks,
            &mut elsewhere,
            wanted,
            &mut |what| {
                eprintln!("{:.0} s: {what}", clock.monotonic_s() - started_s);
            },
        )?;
        drop(banks);
        for file in &arguments.peers {
            methods.extend(peer::read(file, domain)?);
        }
        let table = Table::new(domain, &truth);
        let rows: Vec<Row> = methods
            .iter()
            .filter_map(|method| table.row(method))
            .collect();
        if !arguments.json {
            print!("{}", table::markdown(domain, &table, &rows));
        }
        of_domains.push(rows);
    }
    if arguments.json {
        println!("{:#}", table::json(&of_domains));
    }
    Ok(())
}

/// Whether what was measured is more than chance.
fn reliability(machine: &Machine, domains: &[Domain], arguments: &Arguments) -> anyhow::Result<()> {
    for domain in domains {
        let truth = Truth::read(&arguments.measured, &arguments.setting, domain)?;
        let halves = truth.halves();
        let before = retrain::losses(machine, None, domain)?;
        println!("{}: {} halves", domain.name, halves.len());
        let asked = [
            ("held out", 0..domain.held_out.len()),
            ("own", domain.held_out.len()..domain.n_queries()),
        ];
        for (name, queries) in asked {
            for loss in Loss::ALL {
                let [pearson, spearman] = truth.reliability(loss, queries.clone());
                let of_base: Vec<f64> = queries
                    .clone()
                    .map(|query| loss.of(&before, query))
                    .collect();
                let (mut after, mut spread) = (Vec::new(), Vec::new());
                for query in queries.clone() {
                    let losses = truth.losses(&halves, loss, query);
                    let middle = stats::mean(&losses);
                    let squares: Vec<f64> = losses.iter().map(|x| (x - middle).powi(2)).collect();
                    after.push(middle);
                    spread.push(stats::mean(&squares).sqrt());
                }
                println!(
                    "  {name}, {}: {:.3} -> {:.3} nats, spread {:.4}, seed with seed: Pearson {pearson:.3}, Spearman {spearman:.3}",
                    loss.name(),
                    stats::mean(&of_base),
                    stats::mean(&after),
                    stats::mean(&spread),
                );
            }
        }
    }
    Ok(())
}
