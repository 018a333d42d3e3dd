//! Jobs on disk: a folder each, with a state that is replaced as a whole.
//!
//! ```text
//! ROOT/queue.lock            held while a state changes, by whoever changes it
//! ROOT/lock                  held by the engine that runs jobs
//! ROOT/job-000003/spec.json  what to do
//!                 state.json what became of it
//!                 cancel     there when a running job shall be cancelled
//!                 run/       the runner's folder
//! ```

use std::fmt;
use std::fs::{self, File};
use std::io::{self, ErrorKind, Read as _};
use std::path::{Path, PathBuf};
use std::str::FromStr;

use ol_model::write_atomic;
use ol_types::B256;
use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::folder::RunFolder;
use super::spec::{JobSpec, MAX_SPEC_SIZE_BYTES, Problem, SpecError};

/// Longest `state.json` read, in bytes.
const STATE_SIZE_BYTES_MAX: u64 = 64 << 10;
/// Begins the name of a job's folder.
const PREFIX: &str = "job-";
/// Begins the name of a folder that is not a job yet.
const NEW_PREFIX: &str = ".new-";

/// The number of a job; jobs run in this order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct JobId(pub u32);

impl fmt::Display for JobId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

impl FromStr for JobId {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let digits = text.strip_prefix(PREFIX).unwrap_or(text);
        let number = digits.parse().ok().filter(|n| *n > 0);
        number
            .map(Self)
            .ok_or_else(|| format!("{text:?} is no number of a job, such as 3"))
    }
}

/// What became of a job.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum JobState {
    /// Waits for its turn.
    Queued,
    /// An engine works on it.
    Running,
    /// Its adapter is there.
    Done,
    /// It failed; see the message.
    Failed,
    /// Somebody cancelled it.
    Cancelled,
}

impl JobState {
    /// Whether nothing more happens by itself.
    #[must_use]
    pub const fn is_over(self) -> bool {
        matches!(self, Self::Done | Self::Failed | Self::Cancelled)
    }

    /// Name in files, as in `queued`.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Queued => "queued",
            Self::Running => "running",
            Self::Done => "done",
            Self::Failed => "failed",
            Self::Cancelled => "cancelled",
        }
    }
}

/// A hash as `0x` and 64 hexadecimal digits.
pub(super) mod hash {
    use ol_types::B256;
    use serde::{Deserialize as _, Deserializer, Serializer, de::Error as _};

    pub(in crate::job) fn serialize<S: Serializer>(hash: &B256, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(hash)
    }

    pub(in crate::job) fn deserialize<'de, D: Deserializer<'de>>(
        from: D,
    ) -> Result<B256, D::Error> {
        String::deserialize(from)?.parse().map_err(D::Error::custom)
    }
}

/// `state.json` of a job.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Record {
    pub(super) format: String,
    /// Times it was started.
    pub(super) attempts: u32,
    pub(super) ended_s: Option<u64>,
    pub(super) message: String,
    #[serde(with = "hash")]
    pub(super) spec_hash: B256,
    pub(super) started_s: Option<u64>,
    pub(super) state: JobState,
    pub(super) submitted_s: u64,
}

impl Record {
    const FORMAT: &'static str = "openledger-job-state/1";

    pub(super) fn new(spec: &JobSpec, submitted_s: u64) -> Self {
        Self {
            format: Self::FORMAT.to_owned(),
            attempts: 0,
            ended_s: None,
            message: String::new(),
            spec_hash: spec.hash(),
            started_s: None,
            state: JobState::Queued,
            submitted_s,
        }
    }
}

/// A job as it is now.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Job {
    /// Times it was started.
    pub attempts: u32,
    /// When it was done, failed or was cancelled: seconds since 1970.
    pub ended_s: Option<u64>,
    /// Its number.
    pub id: JobId,
    /// Why it failed or stands still; for people.
    pub message: String,
    /// What to do.
    pub spec: JobSpec,
    /// Hash of it.
    #[serde(with = "hash")]
    pub spec_hash: B256,
    /// When it was last started: seconds since 1970.
    pub started_s: Option<u64>,
    /// What became of it.
    pub state: JobState,
    /// When it was submitted: seconds since 1970.
    pub submitted_s: u64,
    /// Folder the runner works in.
    #[serde(skip)]
    pub run: RunFolder,
}

/// How much an engine takes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EngineLimits {
    /// Most jobs that wait.
    pub queued_max: usize,
    /// Most jobs kept, ended ones included.
    pub jobs_max: usize,
    /// Times a job is started again by itself after its process died.
    pub attempts_max: u32,
}

impl Default for EngineLimits {
    fn default() -> Self {
        Self {
            queued_max: 64,
            jobs_max: 4096,
            attempts_max: 8,
        }
    }
}

/// Why a job cannot be submitted, found or changed.
#[derive(Debug, Error)]
pub enum JobError {
    /// The specification is wrong.
    #[error(transparent)]
    Spec(#[from] SpecError),
    /// As many jobs wait as may.
    #[error("{queued_max} jobs wait already; wait for one to end, or cancel one")]
    QueueFull {
        /// How many may wait.
        queued_max: usize,
    },
    /// As many jobs are kept as may be.
    #[error("{jobs_max} jobs are kept in {dir}; delete folders of old ones")]
    TooMany {
        /// How many may be kept.
        jobs_max: usize,
        /// Where they are.
        dir: PathBuf,
    },
    /// There is no such job.
    #[error("there is no job {0}; `openledger train jobs` lists them")]
    Unknown(JobId),
    /// The job's state does not allow it.
    #[error("job {id} is {}, so it cannot be {wanted}", state.name())]
    State {
        /// The job.
        id: JobId,
        /// Its state.
        state: JobState,
        /// What was asked for, as in `cancelled`.
        wanted: &'static str,
    },
    /// Another process runs jobs here.
    #[error("another process runs the jobs in {dir}; it will take this one too")]
    Busy {
        /// Where the jobs are.
        dir: PathBuf,
    },
    /// A file of a job is not what this version writes.
    #[error("{path} is damaged: {reason}")]
    Damaged {
        /// File concerned.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// A file cannot be read or written.
    #[error("{path}: {source}")]
    Io {
        /// File concerned.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

/// Names the file in what the system said.
pub(super) fn io_at(path: &Path) -> impl FnOnce(io::Error) -> JobError {
    move |source| JobError::Io {
        path: path.to_owned(),
        source,
    }
}

/// The folder of all jobs. Every change of a state is made under the lock.
#[derive(Debug)]
pub(super) struct Store {
    root: PathBuf,
}

/// Held while states change.
#[derive(Debug)]
pub(super) struct Changing {
    _file: File,
}

impl Store {
    pub(super) fn open(root: &Path) -> Result<Self, JobError> {
        fs::create_dir_all(root).map_err(io_at(root))?;
        Ok(Self {
            root: root.to_owned(),
        })
    }

    pub(super) fn root(&self) -> &Path {
        &self.root
    }

    pub(super) fn folder(&self, id: JobId) -> PathBuf {
        self.root.join(format!("{PREFIX}{:06}", id.0))
    }

    pub(super) fn cancel_mark(&self, id: JobId) -> PathBuf {
        self.folder(id).join("cancel")
    }

    /// Waits for the others that change something; they hold it for moments.
    pub(super) fn lock(&self) -> Result<Changing, JobError> {
        let path = self.root.join("queue.lock");
        let file = File::options()
            .create(true)
            .truncate(false)
            .write(true)
            .open(&path)
            .map_err(io_at(&path))?;
        file.lock().map_err(io_at(&path))?;
        Ok(Changing { _file: file })
    }

    /// Every job's number, ascending.
    pub(super) fn ids(&self) -> Result<Vec<JobId>, JobError> {
        let mut ids = Vec::new();
        for entry in fs::read_dir(&self.root).map_err(io_at(&self.root))? {
            let entry = entry.map_err(io_at(&self.root))?;
            let name = entry.file_name();
            let digits = name.to_str().and_then(|name| name.strip_prefix(PREFIX));
            ids.extend(digits.and_then(|digits| digits.parse().ok()).map(JobId));
        }
        ids.sort_unstable();
        Ok(ids)
    }

    /// Adds a job; a crash leaves it whole or absent.
    pub(super) fn add(
        &self,
        _changing: &Changing,
        spec: &JobSpec,
        record: &Record,
    ) -> Result<JobId, JobError> {
        for entry in fs::read_dir(&self.root).map_err(io_at(&self.root))? {
            let path = entry.map_err(io_at(&self.root))?.path();
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            // Left by a process that died; nobody else is at it under the lock.
            if name.starts_with(NEW_PREFIX) {
                fs::remove_dir_all(&path).map_err(io_at(&path))?;
            }
        }
        let last = self.ids()?.last().map_or(0, |id| id.0);
        let id = JobId(last.saturating_add(1));
        let new = self.root.join(format!("{NEW_PREFIX}{:06}", id.0));
        let run = new.join("run");
        fs::create_dir_all(&run).map_err(io_at(&run))?;
        let path = new.join("spec.json");
        let mut text = serde_json::to_vec_pretty(spec).expect("numbers and strings are JSON");
        text.push(b'\n');
        write_atomic(&path, &text).map_err(io_at(&path))?;
        write_record(&new, record)?;
        let folder = self.folder(id);
        fs::rename(&new, &folder).map_err(io_at(&folder))?;
        File::open(&self.root)
            .and_then(|root| root.sync_all())
            .map_err(io_at(&self.root))?;
        Ok(id)
    }

    pub(super) fn record(&self, id: JobId) -> Result<Record, JobError> {
        let path = self.folder(id).join("state.json");
        let bytes = self.read(id, &path, STATE_SIZE_BYTES_MAX)?;
        let damaged = |reason: String| JobError::Damaged {
            path: path.clone(),
            reason,
        };
        let record: Record = serde_json::from_slice(&bytes).map_err(|e| damaged(e.to_string()))?;
        if record.format != Record::FORMAT {
            return Err(damaged(format!(
                "format is {:?}, this version reads {:?}",
                record.format,
                Record::FORMAT
            )));
        }
        Ok(record)
    }

    pub(super) fn write(
        &self,
        _changing: &Changing,
        id: JobId,
        record: &Record,
    ) -> Result<(), JobError> {
        write_record(&self.folder(id), record)
    }

    pub(super) fn spec(&self, id: JobId) -> Result<JobSpec, JobError> {
        let path = self.folder(id).join("spec.json");
        let bytes = self.read(id, &path, MAX_SPEC_SIZE_BYTES)?;
        let damaged = |reason: String| JobError::Damaged { path, reason };
        let text = String::from_utf8(bytes).map_err(|e| damaged(e.to_string()));
        JobSpec::from_json(&text?).map_err(|error| JobError::Damaged {
            path: self.folder(id).join("spec.json"),
            reason: error.to_string(),
        })
    }

    pub(super) fn job(&self, id: JobId) -> Result<Job, JobError> {
        let record = self.record(id)?;
        Ok(Job {
            attempts: record.attempts,
            ended_s: record.ended_s,
            id,
            message: record.message,
            spec: self.spec(id)?,
            spec_hash: record.spec_hash,
            started_s: record.started_s,
            state: record.state,
            submitted_s: record.submitted_s,
            run: RunFolder::new(self.folder(id).join("run")),
        })
    }

    fn read(&self, id: JobId, path: &Path, limit_bytes: u64) -> Result<Vec<u8>, JobError> {
        let file = match File::open(path) {
            Ok(file) => file,
            Err(e) if e.kind() == ErrorKind::NotFound && !self.folder(id).exists() => {
                return Err(JobError::Unknown(id));
            }
            Err(error) => return Err(io_at(path)(error)),
        };
        let mut bytes = Vec::new();
        file.take(limit_bytes + 1)
            .read_to_end(&mut bytes)
            .map_err(io_at(path))?;
        if bytes.len() as u64 > limit_bytes {
            return Err(JobError::Damaged {
                path: path.to_owned(),
                reason: format!("longer than {limit_bytes} bytes"),
            });
        }
        Ok(bytes)
    }
}

fn write_record(folder: &Path, record: &Record) -> Result<(), JobError> {
    let path = folder.join("state.json");
    let bytes = serde_json::to_vec_pretty(record).expect("numbers and strings are JSON");
    write_atomic(&path, &bytes).map_err(io_at(&path))
}

/// The refusal of a job, if something is wrong with it.
pub(super) fn refuse(problems: Vec<Problem>) -> Result<(), JobError> {
    if problems.is_empty() {
        Ok(())
    } else {
        Err(SpecError::Invalid(problems).into())
    }
}
