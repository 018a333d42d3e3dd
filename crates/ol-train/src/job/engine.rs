//! The queue and the one who works it off.

use std::fs::{self, File};
use std::io::ErrorKind;
use std::path::Path;
use std::sync::Arc;

use ol_runtime::{Clock, DirLock, LockError, Shutdown};

use super::folder::RunFolder;
use super::metrics::MetricsFollower;
use super::runner::{RunEnd, RunError, Runner};
use super::spec::JobSpec;
use super::store::{
    Changing, EngineLimits, Job, JobError, JobId, JobState, Record, Store, io_at, refuse,
};

/// What working off a queue came to.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Worked {
    /// Jobs that came to an end, in order, with their state.
    pub ended: Vec<(JobId, JobState)>,
}

/// A durable queue of jobs in a folder, and its only worker.
///
/// Any number of processes may open the same folder, to submit, look, follow
/// and cancel; one of them at a time runs jobs. Nothing is lost when a process
/// is killed: its running job is queued again as soon as anybody looks, and
/// goes on from its last checkpoint when it is run.
#[derive(Debug)]
pub struct JobEngine {
    store: Store,
    limits: EngineLimits,
    clock: Arc<dyn Clock>,
}

impl JobEngine {
    /// Opens the jobs in `root`, a folder that is made if it is missing.
    ///
    /// # Errors
    /// [`JobError::Io`].
    pub fn open(
        root: &Path,
        limits: EngineLimits,
        clock: Arc<dyn Clock>,
    ) -> Result<Self, JobError> {
        Ok(Self {
            store: Store::open(root)?,
            limits,
            clock,
        })
    }

    /// Adds a job to the end of the queue. When this returns, it is on disk.
    ///
    /// # Errors
    /// [`JobError::Spec`] with everything that is wrong with it,
    /// [`JobError::QueueFull`], [`JobError::TooMany`], [`JobError::Io`].
    pub fn submit(&self, spec: &JobSpec) -> Result<Job, JobError> {
        refuse(spec.problems())?;
        let changing = self.store.lock()?;
        self.check_room(&changing)?;
        let n_jobs = self.store.ids()?.len();
        if n_jobs >= self.limits.jobs_max {
            return Err(JobError::TooMany {
                jobs_max: self.limits.jobs_max,
                dir: self.store.root().to_owned(),
            });
        }
        let record = Record::new(spec, self.clock.unix_s());
        let id = self.store.add(&changing, spec, &record)?;
        self.store.job(id)
    }

    /// Every job, oldest first.
    ///
    /// # Errors
    /// [`JobError::Damaged`], [`JobError::Io`].
    pub fn list(&self) -> Result<Vec<Job>, JobError> {
        self.settle()?;
        let ids = self.store.ids()?;
        ids.into_iter().map(|id| self.store.job(id)).collect()
    }

    /// One job.
    ///
    /// # Errors
    /// [`JobError::Unknown`], [`JobError::Damaged`], [`JobError::Io`].
    pub fn get(&self, id: JobId) -> Result<Job, JobError> {
        self.settle()?;
        self.store.job(id)
    }

    /// The measurements of a job, from its first step, readable while it runs.
    ///
    /// # Errors
    /// As [`JobEngine::get`].
    pub fn follow(&self, id: JobId) -> Result<MetricsFollower, JobError> {
        let job = self.get(id)?;
        Ok(MetricsFollower::new(job.run.metrics()))
    }

    /// Cancels a job. One that runs writes a checkpoint before it stops; until
    /// then its state stays [`JobState::Running`].
    ///
    /// # Errors
    /// [`JobError::State`] if it is over already; as [`JobEngine::get`].
    pub fn cancel(&self, id: JobId) -> Result<Job, JobError> {
        self.settle()?;
        let changing = self.store.lock()?;
        let mut record = self.store.record(id)?;
        match record.state {
            JobState::Running => {
                let mark = self.store.cancel_mark(id);
                File::create(&mark)
                    .and_then(|file| file.sync_all())
                    .map_err(io_at(&mark))?;
            }
            JobState::Queued => {
                record.state = JobState::Cancelled;
                record.ended_s = Some(self.clock.unix_s());
                record.message = "cancelled before it was run".to_owned();
                self.store.write(&changing, id, &record)?;
            }
            state => {
                return Err(JobError::State {
                    id,
                    state,
                    wanted: "cancelled",
                });
            }
        }
        self.store.job(id)
    }

    /// Queues a failed or cancelled job again; it goes on from its checkpoint.
    ///
    /// # Errors
    /// [`JobError::State`] for other jobs, [`JobError::QueueFull`]; as
    /// [`JobEngine::get`].
    pub fn resume(&self, id: JobId) -> Result<Job, JobError> {
        self.settle()?;
        let changing = self.store.lock()?;
        let mut record = self.store.record(id)?;
        if !matches!(record.state, JobState::Failed | JobState::Cancelled) {
            return Err(JobError::State {
                id,
                state: record.state,
                wanted: "resumed",
            });
        }
        self.check_room(&changing)?;
        self.remove_mark(id)?;
        record.state = JobState::Queued;
        record.attempts = 0;
        record.ended_s = None;
        record.message.clear();
        self.store.write(&changing, id, &record)?;
        self.store.job(id)
    }

    /// Runs one queued job to its end, whoever else waits. A job that stops
    /// because of `stop` is queued again.
    ///
    /// # Errors
    /// [`JobError::Busy`] if another process runs jobs here,
    /// [`JobError::State`] if the job is not queued. That the job failed is no
    /// error of this function but a state of the job.
    pub fn run(&self, id: JobId, runner: &dyn Runner, stop: &Shutdown) -> Result<Job, JobError> {
        let _worker = self.work_lock()?;
        self.run_queued(id, runner, stop)?;
        self.store.job(id)
    }

    /// Runs queued jobs, oldest first, until none is left or `stop` is
    /// triggered; `started` hears of each before it begins.
    ///
    /// # Errors
    /// [`JobError::Busy`] if another process runs jobs here;
    /// [`JobError::Damaged`], [`JobError::Io`].
    pub fn work(
        &self,
        runner: &dyn Runner,
        stop: &Shutdown,
        started: &mut dyn FnMut(&Job),
    ) -> Result<Worked, JobError> {
        let _worker = self.work_lock()?;
        let mut worked = Worked::default();
        while !stop.is_triggered() {
            let mut queued = None;
            for id in self.store.ids()? {
                if self.store.record(id)?.state == JobState::Queued {
                    queued = Some(id);
                    break;
                }
            }
            let Some(id) = queued else {
                break;
            };
            started(&self.store.job(id)?);
            let state = match self.run_queued(id, runner, stop) {
                Ok(state) => state,
                // Cancelled by somebody since we looked.
                Err(JobError::State { .. }) => continue,
                Err(error) => return Err(error),
            };
            if state.is_over() {
                worked.ended.push((id, state));
            }
        }
        Ok(worked)
    }

    fn run_queued(
        &self,
        id: JobId,
        runner: &dyn Runner,
        stop: &Shutdown,
    ) -> Result<JobState, JobError> {
        {
            let changing = self.store.lock()?;
            let mut record = self.store.record(id)?;
            if record.state != JobState::Queued {
                return Err(JobError::State {
                    id,
                    state: record.state,
                    wanted: "run",
                });
            }
            self.remove_mark(id)?;
            record.state = JobState::Running;
            record.attempts += 1;
            record.started_s = Some(self.clock.unix_s());
            record.message.clear();
            self.store.write(&changing, id, &record)?;
        }
        let job = self.store.job(id)?;
        let mark = self.store.cancel_mark(id);
        let should_stop = || stop.is_triggered() || mark.exists();
        let ended = runner
            .run(&job.spec, &job.run, &should_stop)
            .and_then(|end| {
                if end == RunEnd::Done {
                    publish(&job.run, job.spec.output.as_deref())?;
                }
                Ok(end)
            });
        let changing = self.store.lock()?;
        let mut record = self.store.record(id)?;
        let (state, message) = match ended {
            Ok(RunEnd::Done) => (JobState::Done, String::new()),
            Ok(RunEnd::Stopped) if mark.exists() => (
                JobState::Cancelled,
                "cancelled; `resume` goes on from its checkpoint".to_owned(),
            ),
            Ok(RunEnd::Stopped) => (JobState::Queued, "stopped with its engine".to_owned()),
            Err(error) => (JobState::Failed, error.to_string()),
        };
        if state == JobState::Queued {
            // Stopped by us, not by its own fault.
            record.attempts -= 1;
        } else {
            record.ended_s = Some(self.clock.unix_s());
        }
        record.state = state;
        record.message = message;
        self.store.write(&changing, id, &record)?;
        self.remove_mark(id)?;
        Ok(state)
    }

    /// Takes the right to run jobs, and queues again what the last holder of it
    /// was at when it died.
    fn work_lock(&self) -> Result<DirLock, JobError> {
        let changing = self.store.lock()?;
        let root = self.store.root();
        match DirLock::acquire(root) {
            Ok(lock) => {
                self.requeue(&changing)?;
                Ok(lock)
            }
            Err(LockError::InUse { dir }) => Err(JobError::Busy { dir }),
            Err(LockError::Io { dir, source }) => Err(JobError::Io { path: dir, source }),
            Err(other) => Err(io_at(root)(std::io::Error::other(other))),
        }
    }

    /// If nobody runs jobs, then none is running, whatever its file says.
    fn settle(&self) -> Result<(), JobError> {
        match self.work_lock() {
            Ok(_) | Err(JobError::Busy { .. }) => Ok(()),
            Err(error) => Err(error),
        }
    }

    fn requeue(&self, changing: &Changing) -> Result<(), JobError> {
        for id in self.store.ids()? {
            let mut record = self.store.record(id)?;
            if record.state != JobState::Running {
                continue;
            }
            let attempts_max = self.limits.attempts_max;
            (record.state, record.message) = if self.store.cancel_mark(id).exists() {
                (JobState::Cancelled, "cancelled".to_owned())
            } else if record.attempts >= attempts_max {
                let message = format!(
                    "its process died {attempts_max} times (out of memory?); `resume` tries again"
                );
                (JobState::Failed, message)
            } else {
                let message = "its process died; it goes on from its checkpoint".to_owned();
                (JobState::Queued, message)
            };
            if record.state.is_over() {
                record.ended_s = Some(self.clock.unix_s());
            }
            self.store.write(changing, id, &record)?;
            self.remove_mark(id)?;
        }
        Ok(())
    }

    fn check_room(&self, _changing: &Changing) -> Result<(), JobError> {
        let mut n_queued = 0;
        for id in self.store.ids()? {
            n_queued += usize::from(self.store.record(id)?.state == JobState::Queued);
        }
        let queued_max = self.limits.queued_max;
        if n_queued >= queued_max {
            return Err(JobError::QueueFull { queued_max });
        }
        Ok(())
    }

    fn remove_mark(&self, id: JobId) -> Result<(), JobError> {
        let mark = self.store.cancel_mark(id);
        match fs::remove_file(&mark) {
            Err(error) if error.kind() != ErrorKind::NotFound => Err(io_at(&mark)(error)),
            _ => Ok(()),
        }
    }
}

/// Copies a finished adapter to where it was wanted; a crash leaves it whole or
/// absent there.
fn publish(run: &RunFolder, output: Option<&Path>) -> Result<(), RunError> {
    let Some(output) = output else {
        return Ok(());
    };
    let at = |path: &Path| {
        let path = path.to_owned();
        move |source| RunError::Io { path, source }
    };
    // A copy of ours, made before this process or one before it died.
    let manifest = "training.json";
    let ours = fs::read(run.adapter().join(manifest)).map_err(at(&run.adapter().join(manifest)))?;
    if fs::read(output.join(manifest)).is_ok_and(|found| found == ours) {
        return Ok(());
    }
    let mut name = output.file_name().unwrap_or_default().to_owned();
    name.push(".partial");
    let partial = output.with_file_name(name);
    if partial.exists() {
        fs::remove_dir_all(&partial).map_err(at(&partial))?;
    }
    fs::create_dir_all(&partial).map_err(at(&partial))?;
    for entry in fs::read_dir(run.adapter()).map_err(at(&run.adapter()))? {
        let from = entry.map_err(at(&run.adapter()))?.path();
        let to = partial.join(from.file_name().unwrap_or_default());
        fs::copy(&from, &to).map_err(at(&from))?;
        File::open(&to)
            .and_then(|file| file.sync_all())
            .map_err(at(&to))?;
    }
    // An empty folder gives way; one with files in it is not ours.
    fs::rename(&partial, output).map_err(at(output))?;
    let parent = output.parent().filter(|p| !p.as_os_str().is_empty());
    let parent = parent.unwrap_or(Path::new("."));
    File::open(parent)
        .and_then(|dir| dir.sync_all())
        .map_err(at(parent))
}

#[cfg(test)]
mod tests;
