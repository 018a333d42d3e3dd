//! Jobs: submit, run, look, stop.

use std::fs::File;
use std::io::{Read as _, Seek as _, SeekFrom};
use std::path::Path;
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use ol_runtime::{DataDir, Shutdown, SystemClock};
use ol_train::job::{
    EngineLimits, Job, JobEngine, JobError, JobId, JobReport, JobSpec, JobState, LocalRunner,
    ProgramRunner, Runner, plot, run_as_program,
};
use serde_json::{Value, json};

use super::progress::Watcher;
use super::sources::FolderSources;
use super::spec::{from_args, named, refused};
use crate::Exit;
use crate::cli::{JobArgs, WorkerArgs};
use crate::device::{Device, accelerator};
use crate::instance::Layout;
use crate::output::{Out, note, print};

/// How often a file that another process writes is looked at.
const LOOK: Duration = Duration::from_millis(200);

/// Most of a log that is printed, in bytes.
const LOG_SIZE_BYTES_MAX: u64 = 1 << 20;

fn engine(layout: &Layout) -> anyhow::Result<JobEngine> {
    DataDir::open_or_create(layout.root())?;
    let clock = Arc::new(SystemClock::new());
    Ok(JobEngine::open(
        &layout.jobs(),
        EngineLimits::default(),
        clock,
    )?)
}

fn local(layout: &Layout, threads: Option<usize>, device: Device) -> anyhow::Result<LocalRunner> {
    let cores = thread::available_parallelism().map_or(1, usize::from);
    let sources = FolderSources {
        layout: layout.clone(),
    };
    let threads = threads.unwrap_or(cores);
    let runner = LocalRunner::new(threads, Box::new(sources), Arc::new(SystemClock::new()));
    Ok(runner.on(accelerator(device)?))
}

fn runner(layout: &Layout, worker: &WorkerArgs) -> anyhow::Result<Box<dyn Runner>> {
    let Some(command) = &worker.runner else {
        return Ok(Box::new(local(layout, worker.threads, worker.device)?));
    };
    ensure!(
        worker.threads.is_none(),
        "--threads is for the built-in trainer; give it to --runner as the program wants it"
    );
    ensure!(
        worker.device == Device::Cpu,
        "--device is for the built-in trainer; give it to --runner as the program wants it"
    );
    let mut words = command.split_whitespace();
    let program = words.next().context("--runner names no program")?;
    let clock = Arc::new(SystemClock::new());
    Ok(Box::new(ProgramRunner::new(program, words, clock)))
}

/// A command for this folder, for people to type.
fn command(layout: &Layout, words: &str) -> String {
    let home = std::env::home_dir().map(|home| home.join(".openledger"));
    if home.as_deref() == Some(layout.root()) {
        format!("openledger train {words}")
    } else {
        format!("openledger train {words} --dir {}", layout.root().display())
    }
}

pub(super) fn train(
    layout: &Layout,
    args: &JobArgs,
    json: bool,
    out: Out<'_>,
) -> anyhow::Result<()> {
    ensure!(
        args.spec.is_some() || !args.data.is_empty() || args.datanet.is_some(),
        "there is nothing to learn from: give --data FILE, --datanet NAME or --spec FILE; \
         `openledger train --help` has examples"
    );
    DataDir::open_or_create(layout.root())?;
    let spec = from_args(layout, args)?;
    if args.print_spec {
        write!(out, "{}", spec.to_toml()?)?;
        return Ok(());
    }
    if args.dry_run {
        return dry_run(layout, &spec, &args.worker, json, out);
    }
    let engine = engine(layout)?;
    let job = match engine.submit(&spec) {
        Err(JobError::Spec(error)) => return named(Err(error)),
        result => result?,
    };
    if args.queue {
        return print(out, json, &summary(&job), |out| {
            let work = command(layout, "work");
            writeln!(out, "job {} is queued; `{work}` runs the queue", job.id)
        });
    }
    foreground(layout, &engine, &job, &args.worker, json, out)
}

fn dry_run(
    layout: &Layout,
    spec: &JobSpec,
    worker: &WorkerArgs,
    json: bool,
    out: Out<'_>,
) -> anyhow::Result<()> {
    let problems = spec.problems();
    if !problems.is_empty() {
        return Err(refused(&problems));
    }
    let plan = local(layout, worker.threads, worker.device)?.plan(spec)?;
    print(out, json, &serde_json::to_value(&plan)?, |out| {
        for line in plan.lines() {
            writeln!(out, "{line}")?;
        }
        writeln!(out, "Nothing was trained; leave out --dry-run to begin.")
    })
}

/// Runs a job and shows how it goes, until it ends or somebody stops it.
fn foreground(
    layout: &Layout,
    engine: &JobEngine,
    job: &Job,
    worker: &WorkerArgs,
    json: bool,
    out: Out<'_>,
) -> anyhow::Result<()> {
    let runner = runner(layout, worker)?;
    let stop = Shutdown::on_signals().context("signals")?;
    let mut watcher = Watcher::new(engine.follow(job.id)?, &job.spec.name, json);
    let (ended, end) = mpsc::channel::<()>();
    let (result, shown) = thread::scope(|scope| {
        let run = scope.spawn(|| {
            // Dropped when this returns, however it does.
            let _ended = ended;
            engine.run(job.id, runner.as_ref(), &stop)
        });
        let mut shown = Ok(());
        while end.recv_timeout(LOOK) == Err(mpsc::RecvTimeoutError::Timeout) {
            shown = watcher.look(&mut *out);
            if shown.is_err() {
                stop.trigger();
                break;
            }
        }
        (run.join(), shown)
    });
    shown?;
    watcher.look(out)?;
    watcher.finish();
    let Ok(result) = result else {
        bail!("the trainer panicked; the job is queued again");
    };
    let job = match result {
        Err(JobError::Busy { .. }) => {
            let work = command(layout, "work");
            note(&format!(
                "another process runs a job of this folder; this one is job {} and queued. \
                 `{work}` runs it afterwards",
                job.id
            ));
            engine.get(job.id)?
        }
        result => result?,
    };
    ended_job(layout, engine, &job, json, out)
}

/// Says what became of a job.
fn ended_job(
    layout: &Layout,
    engine: &JobEngine,
    job: &Job,
    json: bool,
    out: Out<'_>,
) -> anyhow::Result<()> {
    let value = summary(job);
    match job.state {
        JobState::Done => {
            let lines = engine.follow(job.id)?.poll()?;
            if json {
                writeln!(out, "{value}")?;
                return Ok(());
            }
            write!(out, "{}", plot(&lines, 60, 12))?;
            result(&job_dir(job), out)?;
            Ok(())
        }
        JobState::Failed => bail!(
            "job {} failed: {}; the log is {}",
            job.id,
            job.message,
            job.run.log().display()
        ),
        _ if json => Ok(writeln!(out, "{value}")?),
        JobState::Cancelled | JobState::Queued | JobState::Running => {
            let step = job.run.read_state().map_or(0, |state| state.step);
            let resume = command(layout, &format!("resume {}", job.id));
            Err(Exit {
                code: 130,
                said: format!("stopped at step {step} with a checkpoint; go on with `{resume}`"),
            }
            .into())
        }
    }
}

/// Where a finished adapter is.
fn job_dir(job: &Job) -> std::path::PathBuf {
    let own = job.run.adapter();
    job.spec.output.clone().unwrap_or(own)
}

fn report(dir: &Path) -> Option<JobReport> {
    let bytes = std::fs::read(dir.join("report.json")).ok()?;
    serde_json::from_slice(&bytes).ok()
}

fn result(dir: &Path, out: Out<'_>) -> anyhow::Result<()> {
    if let Some(report) = report(dir) {
        for line in report.lines() {
            writeln!(out, "{line}")?;
        }
    }
    writeln!(out, "The adapter is in {}", dir.display())?;
    Ok(())
}

fn summary(job: &Job) -> Value {
    let state = job.run.read_state();
    let dir = job_dir(job);
    let done = job.state == JobState::Done;
    json!({
        "job": job.id,
        "name": job.spec.name,
        "state": job.state,
        "message": job.message,
        "method": job.spec.method,
        "spec_hash": job.spec_hash.to_string(),
        "step": state.as_ref().map_or(0, |state| state.step),
        "steps": state.as_ref().map_or(0, |state| state.steps),
        "submitted_s": job.submitted_s,
        "started_s": job.started_s,
        "ended_s": job.ended_s,
        "folder": job.run.root(),
        "adapter": done.then_some(&dir),
        "report": done.then(|| report(&dir)).flatten(),
    })
}

pub(super) fn list(layout: &Layout, json: bool, out: Out<'_>) -> anyhow::Result<()> {
    let jobs = engine(layout)?.list()?;
    let value = Value::Array(jobs.iter().map(summary).collect());
    print(out, json, &value, |out| {
        if jobs.is_empty() {
            return writeln!(out, "no jobs; `openledger train --help` shows how to begin");
        }
        writeln!(
            out,
            "{:>4}  {:<9}  {:>13}  {:<7}  {:<24}  message",
            "job", "state", "steps", "method", "name"
        )?;
        for job in &jobs {
            let state = job.run.read_state();
            let steps = state.map_or_else(String::new, |s| format!("{} of {}", s.step, s.steps));
            writeln!(
                out,
                "{:>4}  {:<9}  {steps:>13}  {:<7}  {:<24}  {}",
                job.id.0,
                job.state.name(),
                job.spec.method.name(),
                job.spec.name,
                job.message
            )?;
        }
        Ok(())
    })
}

pub(super) fn show(layout: &Layout, id: JobId, json: bool, out: Out<'_>) -> anyhow::Result<()> {
    let engine = engine(layout)?;
    let job = engine.get(id)?;
    if json {
        let mut value = summary(&job);
        value["spec"] = serde_json::to_value(&job.spec)?;
        writeln!(out, "{}", serde_json::to_string_pretty(&value)?)?;
        return Ok(());
    }
    writeln!(out, "job {id}: {} ({})", job.spec.name, job.state.name())?;
    if !job.message.is_empty() {
        writeln!(out, "{}", job.message)?;
    }
    writeln!(out, "\n{}", job.spec.to_toml()?)?;
    write!(out, "{}", plot(&engine.follow(id)?.poll()?, 60, 12))?;
    if job.state == JobState::Done {
        return result(&job_dir(&job), out);
    }
    writeln!(out, "folder {}", job.run.root().display())?;
    Ok(())
}

pub(super) fn logs(
    layout: &Layout,
    id: JobId,
    follow: bool,
    json: bool,
    out: Out<'_>,
) -> anyhow::Result<()> {
    let engine = engine(layout)?;
    let job = engine.get(id)?;
    if !follow {
        let path = job.run.log();
        let mut file = match File::open(&path) {
            Ok(file) => file,
            Err(_) => bail!("job {id} has no log yet: it is {}", job.state.name()),
        };
        let size_bytes = file.metadata()?.len();
        file.seek(SeekFrom::Start(
            size_bytes.saturating_sub(LOG_SIZE_BYTES_MAX),
        ))?;
        let mut bytes = Vec::new();
        file.take(LOG_SIZE_BYTES_MAX).read_to_end(&mut bytes)?;
        out.write_all(&bytes)?;
        return Ok(());
    }
    let stop = Shutdown::on_signals().context("signals")?;
    let mut watcher = Watcher::new(engine.follow(id)?, &job.spec.name, json);
    loop {
        // The state first: what was written before it changed is then seen.
        let is_over = engine.get(id)?.state.is_over();
        watcher.look(&mut *out)?;
        if is_over || stop.wait_timeout(LOOK) {
            break;
        }
    }
    watcher.finish();
    let job = engine.get(id)?;
    if job.state.is_over() {
        return ended_job(layout, &engine, &job, json, out);
    }
    Ok(())
}

pub(super) fn cancel(layout: &Layout, id: JobId, json: bool, out: Out<'_>) -> anyhow::Result<()> {
    let job = engine(layout)?.cancel(id)?;
    print(out, json, &summary(&job), |out| match job.state {
        JobState::Running => writeln!(
            out,
            "job {id} stops after its present step, with a checkpoint"
        ),
        _ => writeln!(out, "job {id} is cancelled"),
    })
}

pub(super) fn resume(
    layout: &Layout,
    id: JobId,
    worker: &WorkerArgs,
    queue: bool,
    json: bool,
    out: Out<'_>,
) -> anyhow::Result<()> {
    let engine = engine(layout)?;
    let mut job = engine.get(id)?;
    if job.state != JobState::Queued {
        job = engine.resume(id)?;
    }
    if queue {
        return print(out, json, &summary(&job), |out| {
            writeln!(out, "job {id} is queued")
        });
    }
    foreground(layout, &engine, &job, worker, json, out)
}

pub(super) fn work(
    layout: &Layout,
    worker: &WorkerArgs,
    json: bool,
    out: Out<'_>,
) -> anyhow::Result<()> {
    let engine = engine(layout)?;
    let runner = runner(layout, worker)?;
    let stop = Shutdown::on_signals().context("signals")?;
    let (started, starts) = mpsc::channel::<Job>();
    let mut watcher: Option<Watcher> = None;
    let (result, shown) = thread::scope(|scope| {
        let (engine, stop, runner) = (&engine, &stop, runner.as_ref());
        let run = scope.spawn(move || {
            engine.work(runner, stop, &mut |job| {
                // Nobody listens only when nobody looks any more.
                let _ = started.send(job.clone());
            })
        });
        let mut shown = Ok(());
        loop {
            match starts.recv_timeout(LOOK) {
                Ok(job) => {
                    if let Some(watcher) = watcher.take() {
                        watcher.finish();
                    }
                    let follower = ol_train::job::MetricsFollower::new(job.run.metrics());
                    watcher = Some(Watcher::new(follower, &job.spec.name, json));
                }
                Err(mpsc::RecvTimeoutError::Timeout) => {}
                Err(mpsc::RecvTimeoutError::Disconnected) => break,
            }
            if let Some(watcher) = &mut watcher {
                shown = watcher.look(&mut *out);
            }
            if shown.is_err() {
                stop.trigger();
                break;
            }
        }
        (run.join(), shown)
    });
    shown?;
    if let Some(mut watcher) = watcher.take() {
        watcher.look(&mut *out)?;
        watcher.finish();
    }
    let Ok(worked) = result else {
        bail!("the trainer panicked; its job is queued again");
    };
    let worked = worked?;
    let mut n_failed = 0;
    for (id, state) in &worked.ended {
        let job = engine.get(*id)?;
        n_failed += usize::from(*state == JobState::Failed);
        if json {
            writeln!(out, "{}", summary(&job))?;
        } else {
            writeln!(
                out,
                "job {id} ({}): {} {}",
                job.spec.name,
                state.name(),
                job.message
            )?;
        }
    }
    if stop.is_triggered() {
        note("stopped; what was running is queued again");
    } else if worked.ended.is_empty() && !json {
        writeln!(out, "no job is queued")?;
    }
    ensure!(n_failed == 0, "{n_failed} jobs failed");
    Ok(())
}

/// A runner for whoever schedules jobs elsewhere.
pub(super) fn run(
    layout: &Layout,
    spec: &Path,
    folder: &Path,
    threads: Option<usize>,
    device: Device,
) -> anyhow::Result<()> {
    let stop = Shutdown::on_signals().context("signals")?;
    let runner = local(layout, threads, device)?;
    let (code, said) = run_as_program(&runner, JobSpec::load(spec), folder.to_owned(), &stop);
    if code == ol_train::job::exit_code::DONE {
        return Ok(());
    }
    Err(Exit { code, said }.into())
}
