//! A runner that is a program (`specs/runner.md`).

use std::ffi::OsString;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use ol_model::write_atomic;
use ol_runtime::Clock;
use rustix::process::{Pid, Signal, kill_process};

use super::folder::{RunFolder, RunPhase};
use super::manifest::{ADAPTER_FILES, JobManifest, sha256_of};
use super::runner::{RunEnd, RunError, Runner, Stop, exit_code};
use super::spec::{JobSpec, Problem};

/// How often it is looked whether the program ended or shall stop. Both are
/// events of other processes, and no system call waits for both.
const LOOK: Duration = Duration::from_millis(50);

/// Runs jobs by a program that is called as `PROGRAM ARGS… SPEC FOLDER`.
#[derive(Debug, Clone)]
pub struct ProgramRunner {
    program: PathBuf,
    args: Vec<OsString>,
    grace_s: f64,
    clock: Arc<dyn Clock>,
}

impl ProgramRunner {
    /// The program with the arguments that come before those of the contract.
    #[must_use]
    pub fn new(
        program: impl Into<PathBuf>,
        args: impl IntoIterator<Item = impl Into<OsString>>,
        clock: Arc<dyn Clock>,
    ) -> Self {
        Self {
            program: program.into(),
            args: args.into_iter().map(Into::into).collect(),
            grace_s: 600.0,
            clock,
        }
    }

    /// Seconds from the request to stop until the program is killed; ten
    /// minutes if nothing is said.
    #[must_use]
    pub const fn with_grace_s(mut self, grace_s: f64) -> Self {
        self.grace_s = grace_s;
        self
    }

    /// Waits for the end, passing on the wish to stop.
    fn wait(&self, child: &mut Child, stop: Stop<'_>) -> std::io::Result<ExitStatus> {
        let mut asked_s: Option<f64> = None;
        loop {
            if let Some(status) = child.try_wait()? {
                return Ok(status);
            }
            match asked_s {
                None if stop() => {
                    terminate(child);
                    asked_s = Some(self.clock.monotonic_s());
                }
                Some(since_s) if self.clock.monotonic_s() - since_s > self.grace_s => {
                    child.kill()?;
                    return child.wait();
                }
                _ => {}
            }
            thread::park_timeout(LOOK);
        }
    }
}

/// SIGTERM, to a child that was not waited for, so that its number is its own.
fn terminate(child: &Child) {
    let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
    if let Some(pid) = pid {
        // It may have ended just now.
        let _ = kill_process(pid, Signal::TERM);
    }
}

/// Whether what a program left is the result of the job; if not, why.
fn accept(spec: &JobSpec, folder: &RunFolder) -> Result<(), String> {
    let adapter = folder.adapter();
    let bytes = fs::read(adapter.join(JobManifest::FILE))
        .map_err(|error| format!("left no adapter/{}: {error}", JobManifest::FILE))?;
    let manifest = JobManifest::from_bytes(&bytes)
        .map_err(|error| format!("its {} is wrong: {error}", JobManifest::FILE))?;
    if manifest
        .job
        .is_some_and(|job| job != spec.hash().to_string())
    {
        return Err(format!("its {} is of another job", JobManifest::FILE));
    }
    for name in ADAPTER_FILES {
        let found = sha256_of(&adapter.join(name)).map_err(|e| format!("left no {name}: {e}"))?;
        if manifest.files.get(name) != Some(&found) {
            return Err(format!("{name} is not the file that its manifest names"));
        }
    }
    Ok(())
}

impl Runner for ProgramRunner {
    fn run(&self, spec: &JobSpec, folder: &RunFolder, stop: Stop<'_>) -> Result<RunEnd, RunError> {
        let at = |path: &Path| {
            let path = path.to_owned();
            move |source| RunError::Io { path, source }
        };
        fs::create_dir_all(folder.root()).map_err(at(folder.root()))?;
        let spec_path = folder.root().join("spec.json");
        // Where the result goes afterwards is no business of the runner's.
        let given = JobSpec {
            output: None,
            ..spec.clone()
        };
        write_atomic(&spec_path, &given.to_bytes()).map_err(at(&spec_path))?;
        let log_path = folder.log();
        let log = File::options()
            .create(true)
            .append(true)
            .open(&log_path)
            .map_err(at(&log_path))?;
        let errors = log.try_clone().map_err(at(&log_path))?;
        let mut child = Command::new(&self.program)
            .args(&self.args)
            .arg(&spec_path)
            .arg(folder.root())
            .env("OPENLEDGER_JOB_HASH", spec.hash().to_string())
            .stdin(Stdio::null())
            .stdout(log)
            .stderr(errors)
            .spawn()
            .map_err(at(&self.program))?;
        let status = self.wait(&mut child, stop).map_err(at(&self.program))?;
        let state = folder.read_state();
        let said = |phase: RunPhase| {
            let state = state.as_ref().filter(|state| state.phase == phase);
            state.map(|state| state.message.clone())
        };
        match status.code().and_then(|code| u8::try_from(code).ok()) {
            Some(exit_code::DONE) => {
                accept(spec, folder).map_err(|reason| {
                    let program = self.program.display();
                    RunError::Failed(format!("{program} said it was done, but {reason}"))
                })?;
                Ok(RunEnd::Done)
            }
            Some(exit_code::STOPPED) => Ok(RunEnd::Stopped),
            Some(exit_code::REFUSED) => Err(RunError::Refused(vec![Problem::new(
                "the runner",
                said(RunPhase::Failed)
                    .unwrap_or_else(|| format!("says why in {}", log_path.display())),
            )])),
            _ if stop() => Ok(RunEnd::Stopped),
            _ => Err(RunError::Failed(said(RunPhase::Failed).unwrap_or_else(
                || {
                    format!(
                        "{} ended with {status}; see {}",
                        self.program.display(),
                        log_path.display()
                    )
                },
            ))),
        }
    }
}

#[cfg(test)]
mod tests;
