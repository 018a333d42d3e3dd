//! The sketches of a model's records: what is registered on chain with it.

use std::collections::HashMap;

use ol_model::{ForwardError, Labels, Lora, Model, Pool, Sequence};
use ol_poa::{Entry, Index, IndexError};
use ol_types::{Address, B256};

use crate::fit::{FitError, FitOptions, fit};
use crate::map::SketchMap;
use crate::method::{FORMAT, Length, LossRule, Method};
use crate::reduce::Reducer;
use crate::rows::Rows;

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
    fn sequence(&self, rule: LossRule, context: usize) -> Sequence {
        let n_tokens = self.tokens.len().min(context);
        Sequence {
            tokens: self.tokens[..n_tokens].to_vec(),
            weights: rule.weights(n_tokens, self.answer_start),
        }
    }
}

/// How to make sketches.
#[derive(Debug, Clone, PartialEq)]
pub struct SketchOptions {
    /// Loss of a record: that of its training.
    pub record_loss: LossRule,
    /// Loss of an answer that is paid for.
    pub query_loss: LossRule,
    /// Numbers per rank that each factor's gradient is reduced to, 1 to 64. The
    /// size of the map grows with it.
    pub side: usize,
    /// Seed of the reduction, of the Fisher samples and of the rotation.
    pub seed: u64,
    /// Fisher samples of each record, 1 to 16.
    pub fisher_samples: u32,
    /// `λ` over the trace of the Fisher information.
    pub damping: f64,
}

impl Default for SketchOptions {
    /// What was measured to pay the right contributor on the three demo
    /// datanets.
    fn default() -> Self {
        let loss = LossRule {
            question_weight: 1.0,
            length: Length::Mean,
        };
        Self {
            record_loss: loss,
            query_loss: loss,
            side: 16,
            seed: 1,
            fisher_samples: 1,
            damping: 3e-5,
        }
    }
}

/// How far the sketching is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SketchProgress {
    /// Tokens that went through a backward pass.
    pub tokens: u64,
    /// Tokens in all.
    pub tokens_total: u64,
}

/// The sketches of a model.
#[derive(Debug, Clone)]
pub struct Sketches {
    /// The records' sketches, for the chain.
    pub index: Index,
    /// The map for queries, to be shipped with the adapter.
    pub map: SketchMap,
    /// The part of the records' relative scores that the sketches keep, 0 to 1.
    pub energy_kept: f64,
}

/// Sketches the records of an adapter and fits the map for its answers.
///
/// Two backward passes a record and more with more Fisher samples; about
/// `4 · d · N · (2 + fisher_samples)` bytes of memory for the reduced gradients,
/// with `d` some ten thousand.
///
/// # Errors
/// [`SketchRecordsError`] if a record does not fit the model or the index, or
/// nothing can be fitted.
pub fn sketch_records(
    model: &Model,
    pool: &Pool,
    adapter: &Lora,
    records: &[RecordInput],
    options: &SketchOptions,
    progress: &mut dyn FnMut(SketchProgress),
) -> Result<Sketches, SketchRecordsError> {
    let method = Method {
        format: FORMAT.to_owned(),
        base: model.hash().to_string(),
        adapter: adapter.hash().to_string(),
        record_loss: options.record_loss,
        query_loss: options.query_loss,
        side: options.side,
        seed: options.seed,
        fisher_samples: options.fisher_samples,
        damping: options.damping,
    };
    if !method.is_valid() {
        return Err(SketchRecordsError::Options);
    }
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
    let mut pass = Pass {
        model,
        pool,
        adapter,
        reducer: method.reducer(adapter),
        progress,
        state: SketchProgress {
            tokens: 0,
            tokens_total: u64::try_from(n_tokens).unwrap_or(u64::MAX)
                * (1 + u64::from(options.fisher_samples)),
        },
    };

    let mut gradients = pass.rows();
    pass.collect(&sequences, Labels::Given, &mut gradients)?;
    let mut fisher = pass.rows();
    for sample in 0..options.fisher_samples {
        let seed = crate::random::word(options.seed, FISHER_STREAM, sample.into());
        pass.collect(&sequences, Labels::Sampled { seed }, &mut fisher)?;
    }

    // The records' own gradients count as curvature too, as in TRAK: credit is
    // then joint, and what many records share is not credited to each of them.
    for row in gradients.iter() {
        fisher.push(row);
    }
    let contributors: Vec<Address> = records.iter().map(|record| record.contributor).collect();
    let fit = fit(
        &gradients,
        &fisher,
        &groups(&contributors),
        &FitOptions {
            damping: options.damping,
            seed: options.seed,
            context: method.to_context(),
        },
    )?;
    let entries = records.iter().zip(fit.records);
    let entries = entries.map(|(record, sketch)| Entry {
        contributor: record.contributor,
        record: record.hash,
        cluster: record.cluster,
        scale: sketch.scale,
        codes: sketch.codes,
    });
    Ok(Sketches {
        index: Index::new(entries.collect())?,
        map: fit.map,
        energy_kept: fit.energy_kept,
    })
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

/// Backward passes over the records, in batches.
struct Pass<'a> {
    model: &'a Model,
    pool: &'a Pool,
    adapter: &'a Lora,
    reducer: Reducer,
    progress: &'a mut dyn FnMut(SketchProgress),
    state: SketchProgress,
}

impl Pass<'_> {
    fn rows(&self) -> Rows {
        Rows::new(self.reducer.output_len())
    }

    fn collect(
        &mut self,
        sequences: &[Sequence],
        labels: Labels,
        into: &mut Rows,
    ) -> Result<(), ForwardError> {
        let mut rest = sequences;
        while !rest.is_empty() {
            let (batch, after) = rest.split_at(batch_len(rest));
            rest = after;
            let gradients = self
                .model
                .lora_gradients(self.pool, self.adapter, batch, labels)?;
            for gradient in &gradients {
                into.push(&self.reducer.reduce(&gradient.gradient));
            }
            let n_tokens: usize = batch.iter().map(|s| s.tokens.len()).sum();
            self.state.tokens += u64::try_from(n_tokens).unwrap_or(u64::MAX);
            (self.progress)(self.state);
        }
        Ok(())
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
    #[error("sketch options are out of range")]
    Options,
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
mod tests;
