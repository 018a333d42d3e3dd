//! From a trained adapter to a checked one on disk, with all that belongs to it.

use std::collections::BTreeMap;
use std::fs::{self, File};

use ol_model::{Lora, Model, Pool, Sequence, write_atomic};

use super::super::folder::RunFolder;
use super::super::manifest::{ADAPTER_FILES, JobManifest, sha256_of};
use super::super::report::JobReport;
use super::super::runner::RunError;
use super::super::spec::JobSpec;
use super::prepare::Prepared;
use super::{at, failed};
use crate::evaluate::{Answering, Evaluation};
use crate::trainer::Outcome;

/// Held-out sequences on which the adapter read back is compared.
const PROBES: usize = 8;

/// An adapter at the end of its training.
pub(super) struct Trained<'a> {
    pub(super) spec: &'a JobSpec,
    pub(super) prepared: &'a Prepared,
    pub(super) model: &'a Model,
    pub(super) pool: &'a Pool,
    pub(super) adapter: Lora,
    pub(super) outcome: Outcome,
    pub(super) held_out: Vec<Sequence>,
    pub(super) seconds: f64,
}

impl Trained<'_> {
    /// Writes the adapter, reads it back, compares, measures, and moves it to
    /// its place.
    pub(super) fn write(self, folder: &RunFolder) -> Result<Evaluation, RunError> {
        let partial = folder.partial();
        folder.clear_partial().map_err(at(&partial))?;
        let prepared = self.prepared;
        self.adapter
            .save(&partial, &prepared.base_name)
            .map_err(failed)?;
        let read = self.read_back(folder)?;
        let answering = Answering {
            max_new_tokens: self.spec.evaluation.max_new_tokens,
            end_ids: prepared.tokenizer.end_ids(),
            decode: &|tokens| prepared.tokenizer.decode(tokens),
        };
        let evaluation = Evaluation::measure(
            self.model,
            self.pool,
            &read,
            &self.held_out,
            &prepared.questions,
            &answering,
            &mut |_| (),
        )
        .map_err(failed)?;
        let manifest = self.manifest(folder, &evaluation)?;
        let report = JobReport {
            base: prepared.base_name.clone(),
            curve: self.outcome.curve.clone(),
            evaluation: evaluation.clone(),
            manifest: manifest.id().to_string(),
            method: self.spec.method,
            n_parameters: read.n_params() as u64,
            name: self.spec.name.clone(),
            rewards: self.outcome.rewards,
            seconds: self.seconds,
            steps: self.outcome.steps,
            tokens: self.outcome.tokens,
        };
        report.write(&partial)?;
        let path = partial.join(JobManifest::FILE);
        write_atomic(&path, &manifest.to_bytes()).map_err(at(&path))?;
        let place = folder.adapter();
        fs::rename(&partial, &place).map_err(at(&place))?;
        File::open(folder.root())
            .and_then(|dir| dir.sync_all())
            .map_err(at(folder.root()))?;
        let checkpoint = folder.checkpoint();
        fs::remove_dir_all(&checkpoint).map_err(at(&checkpoint))?;
        Ok(evaluation)
    }

    /// The adapter as its files say, if it is the one that was trained.
    fn read_back(&self, folder: &RunFolder) -> Result<Lora, RunError> {
        let read = Lora::load(&folder.partial(), self.model.config())
            .map_err(|error| RunError::Failed(format!("the adapter does not load: {error}")))?;
        let probe = &self.held_out[..self.held_out.len().min(PROBES)];
        let losses = |adapter: &Lora| {
            let losses = self.model.losses(self.pool, Some(adapter), probe);
            let losses = losses.map_err(failed)?;
            Ok::<_, RunError>(losses.into_iter().map(f64::to_bits).collect::<Vec<_>>())
        };
        if read.hash() != self.adapter.hash() || losses(&read)? != losses(&self.adapter)? {
            return Err(RunError::Failed(
                "the adapter read back from its files answers differently from the trained one"
                    .to_owned(),
            ));
        }
        Ok(read)
    }

    fn manifest(
        &self,
        folder: &RunFolder,
        evaluation: &Evaluation,
    ) -> Result<JobManifest, RunError> {
        let mut files = BTreeMap::new();
        for name in ADAPTER_FILES {
            let path = folder.partial().join(name);
            files.insert(name.to_owned(), sha256_of(&path).map_err(at(&path))?);
        }
        let prepared = self.prepared;
        Ok(JobManifest {
            adapter: Some(self.adapter.hash().to_string()),
            base: Some(self.model.hash().to_string()),
            base_name: prepared.base_name.clone(),
            data: prepared.data.clone(),
            files,
            format: JobManifest::FORMAT.to_owned(),
            held_out_after: evaluation.after.loss,
            held_out_before: evaluation.before.loss,
            job: Some(self.spec.hash().to_string()),
            lora: self.spec.lora.clone(),
            method: self.spec.method,
            n_held_out: prepared.plan.n_held_out,
            n_trained: prepared.plan.n_examples,
            options: prepared.options.clone(),
            prompt_weight: self.spec.data.prompt_weight,
            runner: concat!("openledger ", env!("CARGO_PKG_VERSION")).to_owned(),
            steps: self.outcome.steps,
            tokens: self.outcome.tokens,
        })
    }
}
