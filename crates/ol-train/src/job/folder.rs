//! The folder a runner works in: names and formats of `specs/runner.md`.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use ol_model::write_atomic;
use serde::{Deserialize, Serialize};

/// Longest `state.json` that is read, in bytes.
const STATE_SIZE_BYTES_MAX: usize = 64 << 10;

/// The folder of one run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RunFolder {
    root: PathBuf,
}

impl RunFolder {
    /// The run in `root`, which need not exist yet.
    #[must_use]
    pub fn new(root: impl Into<PathBuf>) -> Self {
        Self { root: root.into() }
    }

    /// The folder itself.
    #[must_use]
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Measurements, one JSON object a line.
    #[must_use]
    pub fn metrics(&self) -> PathBuf {
        self.root.join("metrics.jsonl")
    }

    /// How far the run is, replaced as a whole.
    #[must_use]
    pub fn state(&self) -> PathBuf {
        self.root.join("state.json")
    }

    /// What the runner says.
    #[must_use]
    pub fn log(&self) -> PathBuf {
        self.root.join("log.txt")
    }

    /// Whatever the runner needs to go on; its own business.
    #[must_use]
    pub fn checkpoint(&self) -> PathBuf {
        self.root.join("checkpoint")
    }

    /// The finished adapter with manifest and report. It exists whole or not at all.
    #[must_use]
    pub fn adapter(&self) -> PathBuf {
        self.root.join("adapter")
    }

    /// The adapter while it is written and checked.
    #[must_use]
    pub fn partial(&self) -> PathBuf {
        self.root.join("adapter.partial")
    }

    /// The state, if the run has written a readable one.
    #[must_use]
    pub fn read_state(&self) -> Option<RunState> {
        let bytes = std::fs::read(self.state()).ok()?;
        if bytes.len() > STATE_SIZE_BYTES_MAX {
            return None;
        }
        let state: RunState = serde_json::from_slice(&bytes).ok()?;
        (state.format == RunState::FORMAT).then_some(state)
    }

    pub(crate) fn write_state(&self, state: &RunState) -> std::io::Result<()> {
        let bytes = serde_json::to_vec_pretty(state)?;
        write_atomic(&self.state(), &bytes)
    }

    /// Removes what a run that was not finished left of its adapter.
    pub(crate) fn clear_partial(&self) -> std::io::Result<()> {
        match std::fs::remove_dir_all(self.partial()) {
            Err(error) if error.kind() != ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }
}

/// What a run is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum RunPhase {
    /// Reading model and data.
    Preparing,
    /// Training.
    Training,
    /// Writing, reading back and measuring the adapter.
    Evaluating,
    /// The adapter is there.
    Done,
    /// Asked to stop; started again, it goes on.
    Stopped,
    /// It failed; `message` says why.
    Failed,
}

/// `state.json`: how far a run is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RunState {
    /// Format, [`RunState::FORMAT`].
    pub format: String,
    /// For people: why it failed, or what it does.
    pub message: String,
    /// What the run is doing.
    pub phase: RunPhase,
    /// Steps done.
    pub step: u32,
    /// Steps in all, 0 before they are known.
    pub steps: u32,
}

impl RunState {
    /// Value of `format`.
    pub const FORMAT: &'static str = "openledger-run/1";

    pub(crate) fn new(phase: RunPhase, step: u32, steps: u32, message: impl Into<String>) -> Self {
        Self {
            format: Self::FORMAT.to_owned(),
            message: message.into(),
            phase,
            step,
            steps,
        }
    }
}
