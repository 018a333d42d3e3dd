//! Trains the default base model: `ol-train-base PROSE RECORDS WORK_DIR OUT_DIR
//! [--steps N] [--threads N] [--batch-tokens N] [--rate R] [--snapshot DIR]`.
#![expect(clippy::print_stdout, reason = "a program that reports its progress")]

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use ol_model::{Dtype, ModelConfig, Pool};
use ol_runtime::SystemClock;
use ol_train::{
    BaseJob, BaseObjective, Corpus, Observer, Progress, TrainOptions, curve_csv, curve_svg,
    train_base,
};

/// Contributors whose records belong to the base, not to a datanet.
const CONTRIBUTORS: [&str; 2] = ["GHR", "GARD"];

const USAGE: &str = "usage: ol-train-base PROSE RECORDS WORK_DIR OUT_DIR [--steps N] [--threads N] \
[--batch-tokens N] [--rate R] [--snapshot DIR]";

struct Printer {
    snapshot: Option<PathBuf>,
}

impl Observer<BaseObjective<'_>> for Printer {
    fn on_step(&mut self, p: &Progress) {
        if p.step.is_multiple_of(10) || p.held_out.is_some() {
            let held_out = p
                .held_out
                .map(|h| format!("  held out {h:.4}"))
                .unwrap_or_default();
            println!(
                "step {}/{}  loss {:.4}  rate {:.6}  {:.0} tokens/s  {:.0} s left{held_out}",
                p.step, p.steps, p.loss, p.learning_rate, p.tokens_per_s, p.eta_s
            );
        }
    }

    fn on_checkpoint(&mut self, objective: &BaseObjective<'_>, step: u32) {
        if let Some(dir) = &self.snapshot {
            match objective.model.save(dir, Dtype::F16) {
                Ok(()) => println!("snapshot of step {step}"),
                Err(e) => println!("no snapshot: {e}"),
            }
        }
    }
}

fn run() -> Result<(), String> {
    let mut positional = Vec::new();
    // 2,600 steps are about two passes over the text.
    let mut options = TrainOptions {
        seed: 20_260_101,
        steps: 2600,
        batch_tokens: 3072,
        learning_rate: 3e-3,
        final_fraction: 0.05,
        warmup_steps: 60,
        weight_decay: 0.1,
        evaluate_every: 50,
        evaluate_tokens: 12_000,
        checkpoint_every: 100,
        ..TrainOptions::default()
    };
    let (mut threads, mut snapshot) = (2, None);
    let mut args = std::env::args().skip(1);
    while let Some(arg) = args.next() {
        if !arg.starts_with("--") {
            positional.push(PathBuf::from(arg));
            continue;
        }
        let value = args.next().ok_or(USAGE)?;
        let bad = |e: &dyn std::fmt::Display| format!("{arg} {value}: {e}");
        match arg.as_str() {
            "--steps" => {
                options.steps = value
                    .parse()
                    .map_err(|e: std::num::ParseIntError| bad(&e))?
            }
            "--threads" => {
                threads = value
                    .parse()
                    .map_err(|e: std::num::ParseIntError| bad(&e))?
            }
            "--batch-tokens" => {
                options.batch_tokens = value
                    .parse()
                    .map_err(|e: std::num::ParseIntError| bad(&e))?
            }
            "--rate" => {
                options.learning_rate = value
                    .parse()
                    .map_err(|e: std::num::ParseFloatError| bad(&e))?
            }
            "--snapshot" => snapshot = Some(PathBuf::from(value)),
            _ => return Err(USAGE.to_owned()),
        }
    }
    let [prose, records, work_dir, out_dir] = positional.as_slice() else {
        return Err(USAGE.to_owned());
    };
    let mut corpus = Corpus::default();
    corpus.add_prose(prose).map_err(|e| e.to_string())?;
    corpus
        .add_records(records, &CONTRIBUTORS)
        .map_err(|e| e.to_string())?;
    println!("{} documents", corpus.len());
    let config = ModelConfig::default_base();
    let pool = Pool::new(threads);
    println!("{} threads, {}", pool.threads(), pool.isa().name());
    let job = BaseJob {
        config,
        corpus: &corpus,
        options,
        work_dir,
        out_dir,
    };
    let report = train_base(&job, &pool, &SystemClock::new(), &mut Printer { snapshot })
        .map_err(|e| e.to_string())?;
    let write = |name: &str, text: String| {
        let path: &Path = &out_dir.join(name);
        ol_model::write_atomic(path, text.as_bytes())
            .map_err(|e| format!("{}: {e}", path.display()))
    };
    write("loss.csv", curve_csv(&report.curve))?;
    write("loss.svg", curve_svg("Default base: loss", &report.curve))?;
    println!(
        "{} steps, {} tokens seen ({} an epoch), held-out loss {:.4} on {} tokens, hash {}",
        report.steps,
        report.tokens,
        report.tokens_per_epoch,
        report.held_out,
        report.held_out_tokens,
        report.hash
    );
    Ok(())
}

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(reason) => {
            println!("ol-train-base: {reason}");
            ExitCode::FAILURE
        }
    }
}
