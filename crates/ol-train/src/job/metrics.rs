//! The measurements of a run: one JSON object a line, readable while it grows.

use std::fs::File;
use std::io::{ErrorKind, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use ol_model::write_atomic;
use serde::{Deserialize, Serialize};

/// Longest file of measurements that is read, in bytes: two million steps.
pub const MAX_METRICS_SIZE_BYTES: u64 = 512 << 20;

/// One step of a run. Later lines of a step that was repeated after a crash
/// count, earlier ones do not.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct MetricsLine {
    /// Passes over the training data begun, from 0.
    pub epoch: u64,
    /// Estimated seconds to the end of training.
    pub eta_s: f64,
    /// Length of the gradient before clipping.
    pub gradient_norm: f64,
    /// Held-out loss, nats a token, where it was measured after this step.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub held_out: Option<f64>,
    /// Learning rate of this step.
    pub learning_rate: f64,
    /// Loss of this step's batch, nats a weighted token.
    pub loss: f64,
    /// Part of the held-out pairs whose chosen answer is preferred, for DPO.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reward_accuracy: Option<f64>,
    /// Mean distance of the rewards of held-out pairs, for DPO.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reward_margin: Option<f64>,
    /// Steps done, from 1.
    pub step: u32,
    /// Steps in all.
    pub steps: u32,
    /// Tokens trained on so far, repeats counted.
    pub tokens: u64,
    /// Tokens trained on a second.
    pub tokens_per_s: f64,
    /// Seconds since 1970 at the end of the step.
    pub unix_s: u64,
}

/// Appends lines to a file.
#[derive(Debug)]
pub(crate) struct MetricsWriter {
    file: File,
}

impl MetricsWriter {
    /// Opens the file of a run that goes on after `done` steps: what a process
    /// that died had written of later ones, or half a line, is cut off.
    pub(crate) fn open(path: &Path, done: u32) -> std::io::Result<Self> {
        let mut reader = MetricsFollower::new(path);
        let lines = reader.poll()?;
        let mut kept = Vec::new();
        for line in lines.iter().filter(|line| line.step <= done) {
            serde_json::to_writer(&mut kept, line)?;
            kept.push(b'\n');
        }
        write_atomic(path, &kept)?;
        let file = File::options().append(true).open(path)?;
        Ok(Self { file })
    }

    /// Appends one line, whole.
    pub(crate) fn write(&mut self, line: &MetricsLine) -> std::io::Result<()> {
        let mut bytes = serde_json::to_vec(line)?;
        bytes.push(b'\n');
        self.file.write_all(&bytes)
    }
}

/// Reads what has been added to a file of measurements since the last look.
#[derive(Debug)]
pub struct MetricsFollower {
    path: PathBuf,
    /// Bytes of whole lines read.
    at: u64,
}

impl MetricsFollower {
    /// Begins at the first line.
    #[must_use]
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self {
            path: path.into(),
            at: 0,
        }
    }

    /// The whole lines that are new; none if there is no file yet. If the file
    /// became shorter (its run was resumed), reading begins anew. Lines that
    /// are no measurements are passed over.
    ///
    /// # Errors
    /// If the file cannot be read, or passes [`MAX_METRICS_SIZE_BYTES`].
    pub fn poll(&mut self) -> std::io::Result<Vec<MetricsLine>> {
        let mut file = match File::open(&self.path) {
            Ok(file) => file,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(error),
        };
        let size_bytes = file.metadata()?.len();
        if size_bytes > MAX_METRICS_SIZE_BYTES {
            let what = format!("longer than {MAX_METRICS_SIZE_BYTES} bytes");
            return Err(std::io::Error::new(ErrorKind::InvalidData, what));
        }
        if size_bytes < self.at {
            self.at = 0;
        }
        file.seek(SeekFrom::Start(self.at))?;
        let mut bytes = Vec::new();
        file.take(size_bytes - self.at).read_to_end(&mut bytes)?;
        let whole = bytes
            .iter()
            .rposition(|b| *b == b'\n')
            .map_or(0, |at| at + 1);
        self.at += whole as u64;
        let lines = bytes[..whole].split(|b| *b == b'\n');
        Ok(lines
            .filter_map(|line| serde_json::from_slice(line).ok())
            .collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(step: u32) -> MetricsLine {
        MetricsLine {
            step,
            steps: 9,
            loss: 2.5,
            ..MetricsLine::default()
        }
    }

    fn steps(lines: &[MetricsLine]) -> Vec<u32> {
        lines.iter().map(|line| line.step).collect()
    }

    #[test]
    fn a_follower_sees_each_whole_line_once() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("metrics.jsonl");
        let mut follower = MetricsFollower::new(&path);
        assert!(follower.poll().unwrap().is_empty());
        let mut writer = MetricsWriter::open(&path, 0).unwrap();
        writer.write(&line(1)).unwrap();
        writer.write(&line(2)).unwrap();
        assert_eq!(steps(&follower.poll().unwrap()), [1, 2]);
        assert!(follower.poll().unwrap().is_empty());
        let whole = serde_json::to_vec(&line(3)).unwrap();
        writer.file.write_all(&whole[..10]).unwrap();
        assert!(follower.poll().unwrap().is_empty());
        writer.file.write_all(&whole[10..]).unwrap();
        writer.file.write_all(b"\nno measurement\n").unwrap();
        assert_eq!(follower.poll().unwrap(), [line(3)]);
    }

    #[test]
    fn a_resumed_run_cuts_what_it_will_do_again() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("metrics.jsonl");
        let mut writer = MetricsWriter::open(&path, 0).unwrap();
        for step in 1..=5 {
            writer.write(&line(step)).unwrap();
        }
        writer.file.write_all(b"{\"step\":6,").unwrap();
        let mut follower = MetricsFollower::new(&path);
        assert_eq!(follower.poll().unwrap().len(), 5);
        let mut writer = MetricsWriter::open(&path, 3).unwrap();
        assert_eq!(steps(&follower.poll().unwrap()), [1, 2, 3]);
        writer.write(&line(4)).unwrap();
        assert_eq!(steps(&follower.poll().unwrap()), [4]);
    }
}
