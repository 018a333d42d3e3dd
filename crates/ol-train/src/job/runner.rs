//! Who executes a job.

use std::path::PathBuf;

use ol_runtime::Shutdown;
use thiserror::Error;

use super::folder::{RunFolder, RunPhase, RunState};
use super::spec::{JobSpec, Problem, SpecError};

/// How a run came to an end without failing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RunEnd {
    /// The adapter is in its folder.
    Done,
    /// It was asked to stop; run again in the same folder, it goes on.
    Stopped,
}

/// Why a run failed.
#[derive(Debug, Error)]
pub enum RunError {
    /// The job cannot run as it is described: trying again is of no use.
    #[error("the job was refused: {}", .0.iter().map(Problem::to_string).collect::<Vec<_>>().join("; "))]
    Refused(Vec<Problem>),
    /// A step of it failed.
    #[error("{0}")]
    Failed(String),
    /// A file of the run cannot be read or written.
    #[error("{path}: {source}")]
    Io {
        /// File concerned.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
}

/// Exit codes of a runner that is a program.
pub mod exit_code {
    /// The adapter is in its folder.
    pub const DONE: u8 = 0;
    /// The run failed; it may be tried again, and goes on from its checkpoint.
    pub const FAILED: u8 = 1;
    /// The specification was refused; trying again is of no use.
    pub const REFUSED: u8 = 2;
    /// The run was asked to stop and can be resumed (`EX_TEMPFAIL`).
    pub const STOPPED: u8 = 75;
}

/// Whether a run shall stop; asked again and again, from any thread.
pub type Stop<'a> = &'a (dyn Fn() -> bool + Sync);

/// Executes jobs. A run that ends in any way and is started again in the same
/// folder goes on from its last checkpoint, to the same bytes.
pub trait Runner: Send + Sync {
    /// Runs `spec` in `folder` until it is done, fails, or `stop` says so.
    ///
    /// # Errors
    /// [`RunError`].
    fn run(&self, spec: &JobSpec, folder: &RunFolder, stop: Stop<'_>) -> Result<RunEnd, RunError>;
}

/// Runs a job as a program of the contract does. Returns the exit code, and
/// what to say on stderr.
pub fn run_as_program(
    runner: &dyn Runner,
    spec: Result<JobSpec, SpecError>,
    folder: PathBuf,
    stop: &Shutdown,
) -> (u8, String) {
    let folder = RunFolder::new(folder);
    let result = match spec {
        Ok(spec) => runner.run(&spec, &folder, &|| stop.is_triggered()),
        Err(SpecError::Invalid(problems)) => Err(RunError::Refused(problems)),
        Err(error) => Err(RunError::Refused(vec![Problem::new(
            "the specification",
            error.to_string(),
        )])),
    };
    let error = match result {
        Ok(RunEnd::Done) => return (exit_code::DONE, String::new()),
        Ok(RunEnd::Stopped) => {
            let said = "stopped; start it again with the same arguments and it goes on";
            return (exit_code::STOPPED, said.to_owned());
        }
        Err(error) => error,
    };
    let code = match &error {
        RunError::Refused(_) => exit_code::REFUSED,
        RunError::Failed(_) | RunError::Io { .. } => exit_code::FAILED,
    };
    // Whoever started us reads the reason there; where the folder itself is at
    // fault, stderr is all there is.
    let (step, steps) = folder.read_state().map_or((0, 0), |s| (s.step, s.steps));
    let state = RunState::new(RunPhase::Failed, step, steps, error.to_string());
    let _ = std::fs::create_dir_all(folder.root()).and_then(|()| folder.write_state(&state));
    (code, error.to_string())
}
