//! The runner that trains in this process.

use std::fmt::Debug;
use std::fs::{self, File};
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use ol_model::{CpuLearner, Learner, LoraConfig, Model, ModelConfig, Pool};
use ol_runtime::Clock;

use super::folder::{RunFolder, RunPhase, RunState};
use super::manifest::JobManifest;
use super::metrics::{MetricsLine, MetricsWriter};
use super::runner::{RunEnd, RunError, Runner, Stop};
use super::spec::{JobSpec, Problem};
use crate::adapter::LoraObjective;
use crate::data::Examples;
use crate::options::TrainOptions;
use crate::preference::{Pair, PreferenceObjective, ScoredPair};
use crate::trainer::{Objective, Observer, Outcome, Progress, train};

mod finish;
mod prepare;

use finish::Trained;
pub use prepare::{NoSources, Plan, Sources};
use prepare::{Prepared, prepare};

/// A device that can train in the place of the processors.
pub trait Accelerator: Debug + Send + Sync {
    /// Asked when base and adapter are known by their configurations, before data
    /// and weights are read.
    ///
    /// # Errors
    /// Why this base or this adapter is not trained there, for people.
    fn check(&self, base: &ModelConfig, adapter: &LoraConfig) -> Result<(), String>;

    /// The base on the device; `None` if the processors shall train after all.
    /// What there is to know goes to `log`.
    ///
    /// # Errors
    /// Why it cannot be had, for people.
    fn learner(
        &self,
        base: &Model,
        adapter: &LoraConfig,
        log: &mut dyn FnMut(&str),
    ) -> Result<Option<Box<dyn Learner>>, String>;
}

/// Trains jobs on this machine's processors, or on its accelerator.
#[derive(Debug)]
pub struct LocalRunner {
    accelerator: Option<Box<dyn Accelerator>>,
    pool: Pool,
    sources: Box<dyn Sources>,
    clock: Arc<dyn Clock>,
}

impl LocalRunner {
    /// A runner on `threads` threads; `sources` brings what is not a file.
    #[must_use]
    pub fn new(threads: usize, sources: Box<dyn Sources>, clock: Arc<dyn Clock>) -> Self {
        Self {
            accelerator: None,
            pool: Pool::new(threads),
            sources,
            clock,
        }
    }

    /// The same with gradients and losses from `accelerator`. The adapter is still
    /// measured, written and compared by the processors.
    #[must_use]
    pub fn on(mut self, accelerator: Option<Box<dyn Accelerator>>) -> Self {
        self.accelerator = accelerator;
        self
    }

    fn refuse_what_is_not_done(&self, prepared: &Prepared) -> Result<(), RunError> {
        let checked = match &self.accelerator {
            Some(device) => device.check(&prepared.config, &prepared.lora),
            None => Ok(()),
        };
        checked.map_err(|why| RunError::Refused(vec![Problem::new("the device", why)]))
    }

    /// What a job would do, and what it would need: the data is read, nothing is
    /// trained or written.
    ///
    /// # Errors
    /// As [`Runner::run`], but for too little memory, which the plan names.
    pub fn plan(&self, spec: &JobSpec) -> Result<Plan, RunError> {
        check(spec)?;
        let sources = self.sources.as_ref();
        let prepared = prepare(spec, sources, self.pool.threads(), &mut |_| ())?;
        self.refuse_what_is_not_done(&prepared)?;
        Ok(prepared.plan)
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
        let sources = self.sources.as_ref();
        let prepared = prepare(spec, sources, self.pool.threads(), &mut |line| {
            log.line(line)
        })?;
        for line in prepared.plan.lines() {
            log.line(&line);
        }
        self.refuse_what_is_not_done(&prepared)?;
        let model = prepared.load(&self.pool)?;
        let learner = match &self.accelerator {
            Some(device) => device
                .learner(&model, &prepared.lora, &mut |line| log.line(line))
                .map_err(RunError::Failed)?,
            None => None,
        };
        let learner = learner.as_deref();
        let adapter = model
            .fresh_adapter(&self.pool, prepared.lora.clone(), prepared.options.seed)
            .map_err(failed)?;
        let run = Training {
            runner: self,
            folder,
            stop,
            options: &prepared.options,
        };
        let (adapter, outcome, held_out) = match (&prepared.training, &prepared.held_out) {
            (Examples::Sequences(training), Examples::Sequences(held_out)) => {
                let mut objective = LoraObjective {
                    model: &model,
                    adapter,
                    pool: &self.pool,
                    learner,
                };
                let outcome = run.train(&mut objective, training, held_out)?;
                (objective.adapter, outcome, held_out.clone())
            }
            (Examples::Preferences(training), Examples::Preferences(held_out)) => {
                let cpu = CpuLearner::new(&model, &self.pool);
                let score = |pairs: &[Pair]| ScoredPair::score(learner.unwrap_or(&cpu), pairs);
                let (scored, scored_held) = (
                    score(training).map_err(failed)?,
                    score(held_out).map_err(failed)?,
                );
                let mut objective =
                    PreferenceObjective::new(&model, adapter, &self.pool, &prepared.options);
                objective.policy.learner = learner;
                let outcome = run.train(&mut objective, &scored, &scored_held)?;
                // The answers wanted are what the adapter shall make likelier.
                let chosen = held_out.iter().map(|pair| pair.chosen.clone());
                (objective.policy.adapter, outcome, chosen.collect())
            }
            _ => {
                let what = "data and evaluation files are not of one kind: pairs cannot be \
                            measured on other examples";
                return Err(RunError::Failed(what.to_owned()));
            }
        };
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
        let result = Trained {
            spec,
            prepared: &prepared,
            model: &model,
            pool: &self.pool,
            adapter,
            outcome,
            held_out,
            seconds: self.clock.monotonic_s() - started_s,
        };
        let evaluation = result.write(folder)?;
        write_state(folder, RunPhase::Done, step, steps, "")?;
        log.line(&format!(
            "done: held-out loss {:.4} → {:.4} nats a token",
            evaluation.before.loss, evaluation.after.loss
        ));
        Ok(RunEnd::Done)
    }
}

/// What the training loop is told and watched by.
struct Training<'a> {
    runner: &'a LocalRunner,
    folder: &'a RunFolder,
    stop: Stop<'a>,
    options: &'a TrainOptions,
}

impl Training<'_> {
    fn train<O: Objective>(
        &self,
        objective: &mut O,
        training: &[O::Example],
        held_out: &[O::Example],
    ) -> Result<Outcome, RunError> {
        make_dir(&self.folder.checkpoint())?;
        let clock = self.runner.clock.as_ref();
        let mut watch = Watch {
            folder: self.folder,
            stop: self.stop,
            clock,
            metrics: None,
            failure: None,
        };
        let outcome = train(
            objective,
            training,
            held_out,
            self.options,
            Some(&self.folder.checkpoint().join("state")),
            clock,
            &mut watch,
        );
        match watch.failure {
            Some(failure) => Err(failure),
            None => outcome.map_err(failed),
        }
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
