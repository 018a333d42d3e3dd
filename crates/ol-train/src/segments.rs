//! Adapters kept on the way of a training: one at the end of each of some equal
//! parts of its steps.
//!
//! They are written before the checkpoint of their step, so that a run that goes
//! on from a checkpoint finds all that came before it, and writes the others
//! again, to the same bytes.

use std::path::{Path, PathBuf};

use ol_model::{Lora, ModelConfig, WeightsError};

use crate::adapter::{AdapterError, AdapterJob, LoraObjective};
use crate::trainer::{Observer, Progress};

/// Most parts.
pub(crate) const SEGMENTS_MAX: u32 = 8;

/// The folder of the adapter at the end of a segment, numbered from 0, of a
/// training into `dir`.
#[must_use]
pub fn segment_dir(dir: &Path, segment: usize) -> PathBuf {
    dir.join("segments").join((segment + 1).to_string())
}

/// Keeps adapters, and tells everything to another observer.
pub(crate) struct Segments<'o, O> {
    observer: &'o mut O,
    /// The last step of every part but the last one, ascending.
    ends: Vec<u32>,
    dir: PathBuf,
    base_name: String,
    failure: Option<WeightsError>,
}

impl<'o, O> Segments<'o, O> {
    pub(crate) fn new(observer: &'o mut O, job: &AdapterJob<'_>, steps: u32) -> Self {
        Self {
            observer,
            ends: ends(steps, job.segments),
            dir: job.out_dir.to_owned(),
            base_name: job.base_name.to_owned(),
            failure: None,
        }
    }

    fn path(&self, segment: usize) -> PathBuf {
        segment_dir(&self.dir, segment)
    }

    /// What went wrong on the way.
    pub(crate) fn kept(&mut self) -> Result<(), WeightsError> {
        self.failure.take().map_or(Ok(()), Err)
    }

    /// The adapters, in order.
    pub(crate) fn read(&self, config: &ModelConfig) -> Result<Vec<Lora>, AdapterError> {
        let read = |segment| Ok(Lora::load(&self.path(segment), config)?);
        (0..self.ends.len()).map(read).collect()
    }
}

impl<'a, O: Observer<LoraObjective<'a>>> Observer<LoraObjective<'a>> for Segments<'_, O> {
    fn on_step(&mut self, progress: &Progress) {
        self.observer.on_step(progress);
    }

    fn on_update(&mut self, objective: &LoraObjective<'a>, step: u32) {
        self.observer.on_update(objective, step);
        if let Ok(segment) = self.ends.binary_search(&step) {
            let saved = objective.adapter.save(&self.path(segment), &self.base_name);
            self.failure = self.failure.take().or(saved.err());
        }
    }

    fn on_checkpoint(&mut self, objective: &LoraObjective<'a>, step: u32) {
        self.observer.on_checkpoint(objective, step);
    }

    fn stop(&self) -> bool {
        self.failure.is_some() || self.observer.stop()
    }
}

/// The last steps of `n` parts of `steps` steps, but the last one.
fn ends(steps: u32, n: u32) -> Vec<u32> {
    let end = |part: u32| (u64::from(steps) * u64::from(part)).div_ceil(u64::from(n));
    let mut ends: Vec<u32> = (1..n)
        .filter_map(|part| u32::try_from(end(part)).ok())
        .filter(|&step| step < steps)
        .collect();
    ends.dedup();
    ends
}

#[cfg(test)]
mod tests;
