//! The runner that trains in this process.

use std::fs::{self, File};
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use ol_model::{Lora, Pool};
use ol_runtime::Clock;

use super::folder::{RunFolder, RunPhase, RunState};
use super::manifest::{ADAPTER_FILES, JobManifest, sha256_of};
use super::metrics::{MetricsLine, MetricsWriter};
use super::report::JobReport;
use super::runner::{RunEnd, RunError, Runner, Stop};
use super::spec::{JobSpec, Problem};
use crate::adapter::LoraObjective;
use crate::trainer::{Observer, Outcome, Progress, mean_loss, train};

mod prepare;

pub use prepare::{NoSources, Plan, Sources};
use prepare::{Prepared, prepare};

/// Trains jobs on this machine's processors.
#[derive(Debug)]
pub struct LocalRunner {
    pool: Pool,
    sources: Box<dyn Sources>,
    clock: Arc<dyn Clock>,
}

impl LocalRunner {
    /// A runner on `threads` threads; `sources` brings what is not a file.
    #[must_use]
    pub fn new(threads: usize, sources: Box<dyn Sources>, clock: Arc<dyn Clock>) -> Self {
        Self {
            pool: Pool::new(threads),
            sources,
            clock,
        }
    }

    /// What a job would do, and what it would need: the model and the data are
    /// read, nothing is trained or written.
    ///
    /// # Errors
    /// As [`Runner::run`].
    pub fn plan(&self, spec: &JobSpec) -> Result<Plan, RunError> {
        check(spec)?;
        Ok(prepare(spec, self.sources.as_ref(), &mut |_| ())?.plan(spec))
    }

    fn execute(
        &self,
        spec: &JobSpec,
        folder: &RunFolder,
        stop: Stop<'_>,
        log: &mut Log<'_>,
    ) -> Result<RunEnd, RunError> {
        let started_s = self.clock.monotonic_s();
        write_state(folder, RunPhase::Preparing, 0, 0, "reading model and data")?;
        let prepared = prepare(spec, self.sources.as_ref(), &mut |line| log.line(line))?;
        let plan = prepared.plan(spec);
        for line in plan.lines() {
            log.line(&line);
        }
        let adapter = prepared
            .model
            .fresh_adapter(&self.pool, prepared.lora.clone(), prepared.options.seed)
            .map_err(failed)?;
        let mut objective = LoraObjective {
            model: &prepared.model,
            adapter,
            pool: &self.pool,
        };
        // B is zero at first: the fresh adapter is the base.
        let held_out_before = mean_loss(&objective, &prepared.held_out).map_err(failed)?;
        log.line(&format!(
            "held-out loss of the base: {held_out_before:.4} nats a token"
        ));
        make_dir(&folder.checkpoint())?;
        let mut watch = Watch {
            folder,
            stop,
            clock: self.clock.as_ref(),
            metrics: None,
            failure: None,
        };
        let trained = train(
            &mut objective,
            &prepared.training,
            &prepared.held_out,
            &prepared.options,
            Some(&folder.checkpoint().join("state")),
            self.clock.as_ref(),
            &mut watch,
        );
        if let Some(failure) = watch.failure.take() {
            return Err(failure);
        }
        let outcome = trained.map_err(failed)?;
        let (step, steps) = (outcome.steps, prepared.options.steps);
        if !outcome.finished {
            let message = format!("stopped after step {step} of {steps}; a checkpoint is kept");
            write_state(folder, RunPhase::Stopped, step, steps, &message)?;
            log.line(&message);
            return Ok(RunEnd::Stopped);
        }
        write_state(
            folder,
            RunPhase::Evaluating,
            step,
            steps,
            "measuring the adapter",
        )?;
        let seconds = self.clock.monotonic_s() - started_s;
        self.write(
            spec,
            folder,
            &prepared,
            &objective,
            held_out_before,
            &outcome,
            seconds,
        )?;
        write_state(folder, RunPhase::Done, step, steps, "")?;
        log.line(&format!(
            "done: held-out loss {held_out_before:.4} → {:.4} nats a token",
            outcome.held_out
        ));
        Ok(RunEnd::Done)
    }

    /// Writes the adapter, reads it back, compares, measures, and moves it to
    /// its place with all that belongs to it.
    #[expect(clippy::too_many_arguments, reason = "the parts of one result")]
    fn write(
        &self,
        spec: &JobSpec,
        folder: &RunFolder,
        prepared: &Prepared,
        trained: &LoraObjective<'_>,
        held_out_before: f64,
        outcome: &Outcome,
        seconds: f64,
    ) -> Result<(), RunError> {
        let partial = folder.partial();
        folder.clear_partial().map_err(at(&partial))?;
        trained
            .adapter
            .save(&partial, &prepared.base_name)
            .map_err(failed)?;
        let adapter = Lora::load(&partial, prepared.model.config())
            .map_err(|error| RunError::Failed(format!("the adapter does not load: {error}")))?;
        let read = LoraObjective {
            model: &prepared.model,
            adapter,
            pool: &self.pool,
        };
        let probe = &prepared.held_out[..prepared.held_out.len().min(8)];
        let again = mean_loss(&read, probe).map_err(failed)?;
        let before = mean_loss(trained, probe).map_err(failed)?;
        if read.adapter.hash() != trained.adapter.hash() || again.to_bits() != before.to_bits() {
            return Err(RunError::Failed(
                "the adapter read back from its files answers differently from the trained one"
                    .to_owned(),
            ));
        }
        let mut files = std::collections::BTreeMap::new();
        for name in ADAPTER_FILES {
            let path = partial.join(name);
            files.insert(name.to_owned(), sha256_of(&path).map_err(at(&path))?);
        }
        let manifest = JobManifest {
            adapter: Some(read.adapter.hash().to_string()),
            base: Some(prepared.model.hash().to_string()),
            base_name: prepared.base_name.clone(),
            data: prepared.data.clone(),
            files,
            format: JobManifest::FORMAT.to_owned(),
            held_out_after: outcome.held_out,
            held_out_before,
            job: Some(spec.hash().to_string()),
            lora: spec.lora.clone(),
            method: spec.method,
            options: prepared.options.clone(),
            prompt_weight: spec.data.prompt_weight,
            runner: concat!("openledger ", env!("CARGO_PKG_VERSION")).to_owned(),
            steps: outcome.steps,
            tokens: outcome.tokens,
        };
        let report = JobReport {
            base: prepared.base_name.clone(),
            curve: outcome.curve.clone(),
            held_out_after: outcome.held_out,
            held_out_before,
            manifest: manifest.id().to_string(),
            method: spec.method,
            n_parameters: read.adapter.n_params() as u64,
            name: spec.name.clone(),
            seconds,
            steps: outcome.steps,
            tokens: outcome.tokens,
        };
        report.write(&partial)?;
        let path = partial.join(JobManifest::FILE);
        ol_model::write_atomic(&path, &manifest.to_bytes()).map_err(at(&path))?;
        let place = folder.adapter();
        fs::rename(&partial, &place).map_err(at(&place))?;
        File::open(folder.root())
            .and_then(|dir| dir.sync_all())
            .map_err(at(folder.root()))?;
        let checkpoint = folder.checkpoint();
        fs::remove_dir_all(&checkpoint).map_err(at(&checkpoint))
    }
}

impl Runner for LocalRunner {
    fn run(&self, spec: &JobSpec, folder: &RunFolder, stop: Stop<'_>) -> Result<RunEnd, RunError> {
        make_dir(folder.root())?;
        let mut log = Log::open(&folder.log(), self.clock.as_ref())?;
        if let Some(end) = finished_before(spec, folder)? {
            return Ok(end);
        }
        let result = check(spec).and_then(|()| self.execute(spec, folder, stop, &mut log));
        if let Err(error) = &result {
            log.line(&format!("failed: {error}"));
            let (step, steps) = folder.read_state().map_or((0, 0), |s| (s.step, s.steps));
            write_state(folder, RunPhase::Failed, step, steps, &error.to_string())?;
        }
        result
    }
}

/// A run that was killed after its adapter was in place is done.
fn finished_before(spec: &JobSpec, folder: &RunFolder) -> Result<Option<RunEnd>, RunError> {
    let path = folder.adapter().join(JobManifest::FILE);
    if !path.exists() {
        return Ok(None);
    }
    let bytes = fs::read(&path).map_err(at(&path))?;
    let manifest = JobManifest::from_bytes(&bytes)
        .map_err(|error| RunError::Failed(format!("{}: {error}", path.display())))?;
    if manifest.job != Some(spec.hash().to_string()) {
        let what = format!(
            "{} holds the adapter of another job; give each job a folder of its own",
            folder.root().display()
        );
        return Err(RunError::Refused(vec![Problem::new("the folder", what)]));
    }
    let steps = manifest.steps;
    write_state(folder, RunPhase::Done, steps, steps, "")?;
    Ok(Some(RunEnd::Done))
}

/// What [`JobSpec::problems`] says, but for the output, which is not a runner's.
fn check(spec: &JobSpec) -> Result<(), RunError> {
    let mut problems = spec.problems();
    problems.retain(|problem| problem.at != "output");
    if problems.is_empty() {
        Ok(())
    } else {
        Err(RunError::Refused(problems))
    }
}

fn failed(error: impl std::fmt::Display) -> RunError {
    RunError::Failed(error.to_string())
}

fn at(path: &Path) -> impl FnOnce(std::io::Error) -> RunError {
    let path: PathBuf = path.to_owned();
    move |source| RunError::Io { path, source }
}

fn make_dir(path: &Path) -> Result<(), RunError> {
    fs::create_dir_all(path).map_err(at(path))
}

fn write_state(
    folder: &RunFolder,
    phase: RunPhase,
    step: u32,
    steps: u32,
    message: &str,
) -> Result<(), RunError> {
    let state = RunState::new(phase, step, steps, message);
    folder.write_state(&state).map_err(at(&folder.state()))
}

/// `log.txt`: a line with the time of it.
struct Log<'a> {
    file: File,
    clock: &'a dyn Clock,
}

impl<'a> Log<'a> {
    fn open(path: &Path, clock: &'a dyn Clock) -> Result<Self, RunError> {
        let file = File::options()
            .create(true)
            .append(true)
            .open(path)
            .map_err(at(path))?;
        Ok(Self { file, clock })
    }

    fn line(&mut self, text: &str) {
        // A full disk shows itself at the next checkpoint, with its name.
        let _ = writeln!(self.file, "{} {text}", self.clock.unix_s());
    }
}

/// Writes measurements and state after every step.
struct Watch<'a> {
    folder: &'a RunFolder,
    stop: Stop<'a>,
    clock: &'a dyn Clock,
    metrics: Option<MetricsWriter>,
    failure: Option<RunError>,
}

impl Watch<'_> {
    fn record(&mut self, progress: &Progress) -> Result<(), RunError> {
        let path = self.folder.metrics();
        if self.metrics.is_none() {
            let done = progress.step.saturating_sub(1);
            self.metrics = Some(MetricsWriter::open(&path, done).map_err(at(&path))?);
        }
        let line = MetricsLine {
            epoch: progress.epoch,
            eta_s: rounded(progress.eta_s),
            gradient_norm: progress.gradient_norm,
            held_out: progress.held_out,
            learning_rate: f64::from(progress.learning_rate),
            loss: progress.loss,
            reward_accuracy: progress.rewards.map(|rewards| rewards.accuracy),
            reward_margin: progress.rewards.map(|rewards| rewards.margin),
            step: progress.step,
            steps: progress.steps,
            tokens: progress.tokens,
            tokens_per_s: rounded(progress.tokens_per_s),
            unix_s: self.clock.unix_s(),
        };
        if let Some(metrics) = &mut self.metrics {
            metrics.write(&line).map_err(at(&path))?;
        }
        // The file is for those who look in; a step of a small model is shorter
        // than its fsync.
        if progress.step == 1 || progress.step.is_multiple_of(progress.steps.div_ceil(100)) {
            write_state(
                self.folder,
                RunPhase::Training,
                progress.step,
                progress.steps,
                "",
            )?;
        }
        Ok(())
    }
}

/// To a tenth: nobody needs more of a speed.
fn rounded(value: f64) -> f64 {
    (value * 10.0).round() / 10.0
}

impl<O> Observer<O> for Watch<'_> {
    fn on_step(&mut self, progress: &Progress) {
        if self.failure.is_none() {
            self.failure = self.record(progress).err();
        }
    }

    fn stop(&self) -> bool {
        self.failure.is_some() || (self.stop)()
    }
}

#[cfg(test)]
mod tests;
