//! The sketches of a model's records: what is registered on chain with it.

use std::collections::HashMap;
use std::io;
use std::path::Path;

use ol_model::{ForwardError, Labels, Lora, Model, Pool, Sequence};
use ol_poa::{Entry, Index, IndexError};
use ol_types::{Address, B256, Keccak256};

use crate::checkpoint::{Checkpoints, Place, Places};
use crate::fit::{FitError, FitOptions, fit};
use crate::kronecker::{Kronecker, KroneckerError};
use crate::map::{RecordSketch, SketchMap};
use crate::method::{FORMAT, Length, LossRule, Method};
use crate::reduce::Reducer;
use crate::rows::{RowSource, Rows};
use crate::work::RowFiles;

/// Tokens that go through one backward pass together.
const BATCH_TOKENS: usize = 2_048;

/// A record that the adapter was trained on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RecordInput {
    /// Question and answer in the chat format, as trained on.
    pub tokens: Vec<u32>,
    /// Position of the answer's first token.
    pub answer_start: usize,
    /// Hash of the record.
    pub hash: B256,
    /// Who is paid for it.
    pub contributor: Address,
    /// Its duplicate cluster; one record stands for a cluster.
    pub cluster: u32,
}

impl RecordInput {
    /// The record's tokens with the loss weights of `rule`, cut to `context`.
    pub(crate) fn sequence(&self, rule: LossRule, context: usize) -> Sequence {
        let n_tokens = self.tokens.len().min(context);
        Sequence {
            tokens: self.tokens[..n_tokens].to_vec(),
            weights: rule.weights(n_tokens, self.answer_start),
        }
    }

    pub(crate) fn entry(&self, sketch: RecordSketch) -> Entry {
        Entry {
            contributor: self.contributor,
            record: self.hash,
            cluster: self.cluster,
            scale: sketch.scale,
            codes: sketch.codes,
        }
    }
}

/// How to make sketches.
#[derive(Debug, Clone)]
pub struct SketchOptions {
    /// Adapters on the way of the training, the last one included; at most 8.
    pub checkpoints: Checkpoints,
    /// Where gradients are taken, given those.
    pub place: Place,
    /// Loss of a record: that of its training.
    pub record_loss: LossRule,
    /// Loss of an answer that is paid for.
    pub query_loss: LossRule,
    /// Longest wide side of a factor's gradient, 1 to 4,096; longer ones are
    /// reduced to it. The size of the map grows with it.
    pub side: usize,
    /// Seed of the reduction, of the Fisher samples and of the rotation.
    pub seed: u64,
    /// Fisher samples of each record, 1 to 16.
    pub fisher_samples: u32,
    /// `λ` of each factor over the mean eigenvalue of its curvature.
    pub damping: f64,
    /// Memory for gradients and second moments that are held at one time, in
    /// bytes. It changes no bit of the sketches.
    pub budget_bytes: usize,
}

impl Default for SketchOptions {
    /// What was measured against retrainings; see `docs/attribution.md`.
    fn default() -> Self {
        let loss = |length| LossRule {
            question_weight: 1.0,
            length,
        };
        Self {
            checkpoints: Checkpoints::default(),
            place: Place::First,
            record_loss: loss(Length::Sum),
            query_loss: loss(Length::Mean),
            side: 512,
            seed: 1,
            fisher_samples: 1,
            damping: 0.1,
            budget_bytes: 1 << 30,
        }
    }
}

/// What is being done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SketchStage {
    /// Gradients, in tokens.
    Gradients,
    /// The Fisher information, in passes over its samples.
    Curvature,
    /// The subspace, in passes over the records.
    Subspace,
}

impl SketchStage {
    /// Name for reports.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Gradients => "gradients",
            Self::Curvature => "curvature",
            Self::Subspace => "subspace",
        }
    }
}

/// How far the sketching is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SketchProgress {
    /// What is being done.
    pub stage: SketchStage,
    /// How much of it is done.
    pub done: u64,
    /// How much there is.
    pub total: u64,
    /// Of the tokens that are done, those of an earlier run.
    pub resumed: u64,
}

/// The sketches of a model.
#[derive(Debug, Clone)]
pub struct Sketches {
    /// The records' sketches, for the chain.
    pub index: Index,
    /// The map for records and answers, to be shipped with the adapter.
    pub map: SketchMap,
    /// The part of the whitened gradients that the sketches keep, 0 to 1.
    pub energy_kept: f64,
}

/// Sketches the records of an adapter and fits the map for its answers.
///
/// Two backward passes a record and place, more with more Fisher samples, then some
/// passes over the gradients. They are kept in the folder `place`, `4 · d` bytes
/// a record and sample, where a later call with the same arguments finds those
/// that were finished, and which is the caller's to remove; without one, in
/// memory.
///
/// # Errors
/// [`SketchRecordsError`] if a record does not fit the model or the index, or
/// nothing can be fitted, or the folder cannot be used.
pub fn sketch_records(
    model: &Model,
    pool: &Pool,
    adapter: &Lora,
    records: &[RecordInput],
    options: &SketchOptions,
    place: Option<&Path>,
    progress: &mut dyn FnMut(SketchProgress),
) -> Result<Sketches, SketchRecordsError> {
    let method = Method {
        format: FORMAT.to_owned(),
        base: model.hash().to_string(),
        adapter: adapter.hash().to_string(),
        checkpoints: options.checkpoints.hashes(adapter),
        place: options.place,
        record_loss: options.record_loss,
        query_loss: options.query_loss,
        side: options.side,
        seed: options.seed,
        fisher_samples: options.fisher_samples,
        damping: options.damping,
    };
    let places = Places::new(adapter, &options.checkpoints, options.place)
        .filter(|_| method.is_valid())
        .ok_or(SketchRecordsError::Options)?;
    // Checked before the work: a bad record should not cost minutes first.
    if records.is_empty() || records.len() > ol_poa::ENTRIES_MAX {
        return Err(FitError::Size {
            n_rows: records.len(),
        }
        .into());
    }
    let context = model.config().max_position_embeddings;
    let sequences: Vec<Sequence> = records
        .iter()
        .map(|record| record.sequence(options.record_loss, context))
        .collect();
    let n_tokens: usize = sequences.iter().map(|s| s.tokens.len()).sum();
    let reducer = method.reducer(adapter);
    let blocks = reducer.reduced_blocks();
    let mut pass = Pass {
        model,
        pool,
        places,
        reducer,
        place: place.map(|dir| (dir, job_key(&method, &sequences))),
        progress,
        state: SketchProgress {
            stage: SketchStage::Gradients,
            done: 0,
            total: to_u64(n_tokens) * (1 + u64::from(options.fisher_samples)),
            resumed: 0,
        },
    };
    let mut gradients = pass.collect("records", &sequences, &[Labels::Given])?;
    let samples: Vec<Labels> = (0..options.fisher_samples)
        .map(|sample| fisher_labels(options.seed, sample))
        .collect();
    let mut fisher = pass.collect("fisher", &sequences, &samples)?;

    let mut report = |stage, done: usize, total: usize| {
        (pass.progress)(SketchProgress {
            stage,
            done: to_u64(done),
            total: to_u64(total),
            resumed: 0,
        });
    };
    let mut row = vec![0.0; fisher.n_columns()];
    let curvature = Kronecker::fit(
        &blocks,
        &mut |visit| {
            for at in 0..fisher.n_rows() {
                fisher.read(at, 0, &mut row)?;
                visit(&row);
            }
            Ok::<_, io::Error>(())
        },
        options.budget_bytes,
        &mut |done| report(SketchStage::Curvature, done.passes, done.passes_total),
    )?;
    let contributors: Vec<Address> = records.iter().map(|record| record.contributor).collect();
    let fit = fit(
        &curvature,
        gradients.as_mut(),
        &groups(&contributors),
        &FitOptions {
            damping: options.damping,
            seed: options.seed,
            context: method.to_context(),
            budget_bytes: options.budget_bytes,
        },
        &mut |done| report(SketchStage::Subspace, done.passes, done.passes_total),
    )?;
    let entries = records.iter().zip(fit.records);
    let entries = entries.map(|(record, sketch)| record.entry(sketch));
    Ok(Sketches {
        index: Index::new(entries.collect())?,
        map: fit.map,
        energy_kept: fit.energy_kept,
    })
}

/// What the gradients of a job depend on.
fn job_key(method: &Method, sequences: &[Sequence]) -> B256 {
    let mut hasher = Keccak256::new();
    hasher.update(method.to_context());
    for sequence in sequences {
        hasher.update(to_u64(sequence.tokens.len()).to_le_bytes());
        for (token, weight) in sequence.tokens.iter().zip(&sequence.weights) {
            hasher.update(token.to_le_bytes());
            hasher.update(weight.to_bits().to_le_bytes());
        }
    }
    hasher.finalize()
}

fn to_u64(n: usize) -> u64 {
    u64::try_from(n).expect("a length fits 64 bits")
}

/// The number of each record's contributor, in the order of first appearance.
fn groups(contributors: &[Address]) -> Vec<usize> {
    let mut numbers = HashMap::new();
    let number = |contributor| {
        let next = numbers.len();
        *numbers.entry(contributor).or_insert(next)
    };
    contributors.iter().map(number).collect()
}

/// Keeps the seeds of the Fisher samples apart from those of the reduction,
/// whose streams count up from 0.
const FISHER_STREAM: u64 = u64::MAX;

/// Labels of one Fisher sample of every record.
pub(crate) fn fisher_labels(seed: u64, sample: u32) -> Labels {
    Labels::Sampled {
        seed: crate::random::word(seed, FISHER_STREAM, sample.into()),
    }
}

/// Backward passes over the records, in batches.
struct Pass<'a> {
    model: &'a Model,
    pool: &'a Pool,
    places: Places,
    reducer: Reducer,
    /// Folder of what is finished, and the job's key.
    place: Option<(&'a Path, B256)>,
    progress: &'a mut dyn FnMut(SketchProgress),
    state: SketchProgress,
}

impl Pass<'_> {
    /// The reduced gradients of all sequences with these labels, one after
    /// another.
    fn collect(
        &mut self,
        name: &'static str,
        sequences: &[Sequence],
        labels: &[Labels],
    ) -> Result<Box<dyn RowSource>, SketchRecordsError> {
        let n_columns = self.reducer.output_len();
        let mut rows = Rows::new(n_columns);
        let mut files = match self.place {
            Some((dir, key)) => Some(RowFiles::new(dir, name, key, n_columns)?),
            None => None,
        };
        for &labels in labels {
            let mut rest = sequences;
            while !rest.is_empty() {
                let (batch, after) = rest.split_at(batch_len(rest));
                rest = after;
                let n_tokens = to_u64(batch.iter().map(|s| s.tokens.len()).sum());
                if let Some(files) = &mut files
                    && files.resume(batch.len())?
                {
                    self.state.resumed += n_tokens;
                } else {
                    let reduced = self.gradients(batch, labels)?;
                    match &mut files {
                        Some(files) => files.append(&reduced)?,
                        None => reduced.iter().for_each(|row| rows.push(row)),
                    }
                }
                self.state.done += n_tokens;
                (self.progress)(self.state);
            }
        }
        Ok(match files {
            Some(files) => Box::new(files),
            None => Box::new(rows),
        })
    }

    fn gradients(&self, batch: &[Sequence], labels: Labels) -> Result<Vec<Vec<f32>>, ForwardError> {
        let gradients = self
            .places
            .gradients(self.model, self.pool, batch, labels)?;
        Ok(gradients
            .iter()
            .map(|row| self.reducer.reduce(row))
            .collect())
    }
}

/// How many of the next sequences make up a batch: at least one.
fn batch_len(sequences: &[Sequence]) -> usize {
    let mut n_tokens = 0;
    let fits = |sequence: &&Sequence| {
        n_tokens += sequence.tokens.len();
        n_tokens <= BATCH_TOKENS
    };
    sequences.iter().take_while(fits).count().max(1)
}

/// Why records could not be sketched.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SketchRecordsError {
    /// An option is out of its range.
    #[error("sketch options are out of range, or a checkpoint is not of the adapter's shape")]
    Options,
    /// The folder of finished gradients cannot be used.
    #[error("gradients could not be kept: {0}")]
    Keep(#[from] io::Error),
    /// The curvature cannot be measured.
    #[error("the curvature could not be measured: {0}")]
    Curvature(#[from] KroneckerError<io::Error>),
    /// A record does not fit the model, or the adapter is of another model.
    #[error(transparent)]
    Forward(#[from] ForwardError),
    /// The gradients cannot be fitted.
    #[error(transparent)]
    Fit(#[from] FitError),
    /// Two records stand for one cluster.
    #[error(transparent)]
    Index(#[from] IndexError),
}

#[cfg(test)]
pub(crate) mod tests;
