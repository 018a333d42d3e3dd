//! The training loop.

use std::path::Path;

use ol_model::{LoadError, LoraError, Model, Random, Sequence};
use ol_runtime::Clock;
use ol_types::keccak256;
use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::adamw::AdamW;
use crate::checkpoint::{self, CheckpointError, Position};
use crate::curve::CurvePoint;

/// How to train. Equal options, data and start give equal bytes. Fields are in
/// alphabetical order, because manifests are hashed as JSON with sorted keys.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TrainOptions {
    /// A batch is filled with whole sequences until it has this many tokens.
    pub batch_tokens: usize,
    /// Decay of the first moment.
    pub beta1: f32,
    /// Decay of the second moment.
    pub beta2: f32,
    /// Steps between checkpoints, 0 for none.
    pub checkpoint_every: u32,
    /// Longest gradient; longer ones are scaled down to it.
    pub clip_norm: f32,
    /// Steps between measurements of the held-out loss.
    pub evaluate_every: u32,
    /// Tokens of held-out text used for a point of the curve; the loss of the
    /// outcome is measured on all of it.
    pub evaluate_tokens: usize,
    /// The cosine ends at this fraction of the highest rate.
    pub final_fraction: f32,
    /// Highest learning rate.
    pub learning_rate: f32,
    /// Stop after this many measurements in a row without a better one.
    pub patience: Option<u32>,
    /// Chooses the order of the sequences.
    pub seed: u64,
    /// Optimiser steps in all.
    pub steps: u32,
    /// Steps of linear warm-up.
    pub warmup_steps: u32,
    /// Decoupled weight decay of matrices.
    pub weight_decay: f32,
}

impl Default for TrainOptions {
    fn default() -> Self {
        Self {
            seed: 0,
            steps: 200,
            batch_tokens: 2048,
            learning_rate: 1e-3,
            final_fraction: 0.1,
            warmup_steps: 20,
            weight_decay: 0.0,
            beta1: 0.9,
            beta2: 0.95,
            clip_norm: 1.0,
            evaluate_every: 50,
            evaluate_tokens: 16_384,
            checkpoint_every: 0,
            patience: None,
        }
    }
}

impl TrainOptions {
    /// Steps that `epochs` passes over `tokens` take, at least one.
    #[must_use]
    #[expect(
        clippy::cast_precision_loss,
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "saturates"
    )]
    pub fn steps_for(&self, tokens: usize, epochs: f64) -> u32 {
        (tokens as f64 * epochs / self.batch_tokens.max(1) as f64)
            .ceil()
            .max(1.0) as u32
    }

    /// Learning rate of step `step` (from 0): linear warm-up, then cosine.
    #[must_use]
    #[expect(
        clippy::cast_possible_truncation,
        reason = "rounding to f32 is what is wanted"
    )]
    pub fn rate(&self, step: u32) -> f32 {
        if step < self.warmup_steps {
            return self.learning_rate
                * ((f64::from(step) + 1.0) / f64::from(self.warmup_steps)) as f32;
        }
        let span = self.steps.saturating_sub(self.warmup_steps).max(1);
        let done = (f64::from(step - self.warmup_steps) / f64::from(span)).min(1.0);
        let cosine = 0.5 * (1.0 + libm::cos(std::f64::consts::PI * done));
        let low = f64::from(self.final_fraction);
        (f64::from(self.learning_rate) * (low + (1.0 - low) * cosine)) as f32
    }

    fn check(&self) -> Result<(), TrainError> {
        let positive = [self.learning_rate, self.clip_norm]
            .iter()
            .all(|v| v.is_finite() && *v > 0.0);
        let fractions = [self.beta1, self.beta2]
            .iter()
            .all(|b| (0.0..1.0).contains(b));
        let rest =
            (0.0..=1.0).contains(&self.final_fraction) && (0.0..=1.0).contains(&self.weight_decay);
        if self.steps == 0 || self.batch_tokens == 0 || self.evaluate_every == 0 {
            return Err(TrainError::Options(
                "steps, batch_tokens and evaluate_every must be at least 1",
            ));
        }
        if self.batch_tokens > 1 << 22 {
            return Err(TrainError::Options("batch_tokens may be at most 4194304"));
        }
        if !(positive && fractions && rest) {
            return Err(TrainError::Options(
                "learning_rate and clip_norm must be positive, betas in [0, 1), the rest in [0, 1]",
            ));
        }
        Ok(())
    }
}

/// Why training stopped early.
#[derive(Debug, Error)]
pub enum TrainError {
    /// An option makes no sense.
    #[error("training options: {0}")]
    Options(&'static str),
    /// There is nothing to train on or to measure with.
    #[error("no training data: {0}")]
    Data(&'static str),
    /// A sequence does not fit the model.
    #[error(transparent)]
    Forward(#[from] ol_model::ForwardError),
    /// The loss or a parameter is no longer a number.
    #[error("training diverged at step {step}: loss {loss}; lower the learning rate")]
    Diverged {
        /// Step at which it happened.
        step: u32,
        /// Last loss.
        loss: f64,
    },
    /// A checkpoint cannot be used.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
}

/// What is trained: a vector of parameters with a loss.
pub trait Objective {
    /// All parameters.
    fn parameters(&self) -> Vec<f32>;
    /// Replaces all parameters; false if one is not finite.
    fn set_parameters(&mut self, params: &[f32]) -> bool;
    /// Which parameters decay.
    fn decays(&self) -> Vec<bool>;
    /// Sum of the losses and its gradient.
    ///
    /// # Errors
    /// When a sequence does not fit the model.
    fn gradient(&self, seqs: &[Sequence]) -> Result<(f64, Vec<f32>), ol_model::ForwardError>;
    /// Loss of each sequence.
    ///
    /// # Errors
    /// When a sequence does not fit the model.
    fn losses(&self, seqs: &[Sequence]) -> Result<Vec<f64>, ol_model::ForwardError>;
}

/// How far a run is.
#[derive(Debug, Clone, PartialEq)]
pub struct Progress {
    /// Steps done.
    pub step: u32,
    /// Steps in all.
    pub steps: u32,
    /// Loss of the last batch, nats a token.
    pub loss: f64,
    /// Learning rate of the last step.
    pub learning_rate: f32,
    /// Tokens trained on a second, since this process started the run.
    pub tokens_per_s: f64,
    /// Estimated seconds to the end.
    pub eta_s: f64,
    /// Held-out loss, when it was just measured.
    pub held_out: Option<f64>,
}

/// Watches a run.
pub trait Observer<O> {
    /// After every step.
    fn on_step(&mut self, progress: &Progress);
    /// After a checkpoint was written.
    fn on_checkpoint(&mut self, _objective: &O, _step: u32) {}
    /// Asked before every step; true ends the run after a checkpoint.
    fn stop(&self) -> bool {
        false
    }
}

/// Watches nothing.
#[derive(Debug, Clone, Copy)]
pub struct Silent;

impl<O> Observer<O> for Silent {
    fn on_step(&mut self, _progress: &Progress) {}
}

/// What a run came to.
#[derive(Debug, Clone, PartialEq)]
pub struct Outcome {
    /// Steps done.
    pub steps: u32,
    /// Tokens seen, repeats counted.
    pub tokens: u64,
    /// Whether the run came to its end, rather than being stopped by its observer.
    pub finished: bool,
    /// Loss on all held-out sequences at the end, nats a token.
    pub held_out: f64,
    /// Measurements on the way, the last one included.
    pub curve: Vec<CurvePoint>,
}

/// Sum of the loss weights.
pub(crate) fn weight(seqs: &[Sequence]) -> f64 {
    seqs.iter()
        .flat_map(|s| s.weights.iter().skip(1))
        .map(|w| f64::from(*w))
        .sum()
}

/// Mean loss, nats a weighted token.
pub(crate) fn mean_loss(objective: &impl Objective, seqs: &[Sequence]) -> Result<f64, TrainError> {
    Ok(objective.losses(seqs)?.iter().sum::<f64>() / weight(seqs))
}

fn data_hash(train: &[Sequence], held_out: &[Sequence]) -> String {
    let mut bytes = Vec::new();
    for part in [train, held_out] {
        bytes.extend((part.len() as u64).to_le_bytes());
        for s in part {
            bytes.extend((s.tokens.len() as u64).to_le_bytes());
            bytes.extend(s.tokens.iter().flat_map(|t| t.to_le_bytes()));
            bytes.extend(s.weights.iter().flat_map(|w| w.to_le_bytes()));
        }
    }
    keccak256(&bytes).to_string()
}

/// The order of one epoch.
fn order(n: usize, seed: u64, epoch: u64) -> Vec<usize> {
    let mut order: Vec<usize> = (0..n).collect();
    Random::new(seed.wrapping_mul(0x9E37_79B9).wrapping_add(epoch)).shuffle(&mut order);
    order
}

/// Trains `objective` on `train`, measuring on `held_out`; goes on from the
/// checkpoint if there is one.
///
/// # Errors
/// [`TrainError`]; the checkpoint, if any, stays usable.
pub fn train<O: Objective>(
    objective: &mut O,
    train: &[Sequence],
    held_out: &[Sequence],
    options: &TrainOptions,
    checkpoint: Option<&Path>,
    clock: &dyn Clock,
    observer: &mut impl Observer<O>,
) -> Result<Outcome, TrainError> {
    options.check()?;
    if weight(train) <= 0.0 {
        return Err(TrainError::Data("no sequence has a weighted token"));
    }
    if weight(held_out) <= 0.0 {
        return Err(TrainError::Data(
            "no held-out sequence has a weighted token",
        ));
    }
    let mut params = objective.parameters();
    let decays = objective.decays();
    let mut adam = AdamW::new(
        params.len(),
        options.beta1,
        options.beta2,
        options.weight_decay,
    );
    let data = data_hash(train, held_out);
    let found = match checkpoint {
        Some(path) => checkpoint::read(path, options, &data, &mut params, &mut adam)?,
        None => None,
    };
    let mut at = found.unwrap_or_else(|| Position {
        options: options.clone(),
        data,
        step: 0,
        epoch: 0,
        next: 0,
        tokens: 0,
        loss_sum: 0.0,
        loss_weight: 0.0,
        best: None,
        worse: 0,
        curve: Vec::new(),
    });
    if !objective.set_parameters(&params) {
        return Err(TrainError::Diverged {
            step: at.step,
            loss: f64::NAN,
        });
    }
    let sample = sample(held_out, options.evaluate_tokens);
    let mut sequence_order = order(train.len(), options.seed, at.epoch);
    let (started_s, first_step, first_tokens) = (clock.monotonic_s(), at.step, at.tokens);
    let patient = |at: &Position| options.patience.is_none_or(|p| at.worse < p);
    let mut finished = true;
    while at.step < options.steps && patient(&at) {
        if observer.stop() {
            finished = false;
            break;
        }
        let mut batch: Vec<Sequence> = Vec::new();
        let mut tokens = 0;
        while tokens < options.batch_tokens {
            if at.next == train.len() {
                at.epoch += 1;
                at.next = 0;
                sequence_order = order(train.len(), options.seed, at.epoch);
            }
            let s = &train[sequence_order[at.next]];
            tokens += s.tokens.len().max(1);
            batch.push(s.clone());
            at.next += 1;
        }
        let batch_weight = weight(&batch).max(f64::MIN_POSITIVE);
        let (loss, mut gradient) = objective.gradient(&batch)?;
        let rate = options.rate(at.step);
        at.step += 1;
        at.tokens += tokens as u64;
        if !loss.is_finite() {
            return Err(TrainError::Diverged {
                step: at.step,
                loss,
            });
        }
        clip(&mut gradient, batch_weight, options.clip_norm);
        adam.step(&mut params, &gradient, &decays, rate);
        if !objective.set_parameters(&params) {
            return Err(TrainError::Diverged {
                step: at.step,
                loss: loss / batch_weight,
            });
        }
        at.loss_sum += loss;
        at.loss_weight += batch_weight;
        let last = at.step == options.steps;
        let mut measured = None;
        if last || at.step.is_multiple_of(options.evaluate_every) {
            let value = mean_loss(objective, sample)?;
            measured = Some(value);
            at.curve.push(CurvePoint {
                step: at.step,
                tokens: at.tokens,
                learning_rate: rate,
                loss: at.loss_sum / at.loss_weight,
                held_out: value,
            });
            (at.loss_sum, at.loss_weight) = (0.0, 0.0);
            if at.best.is_none_or(|best| value < best) {
                at.best = Some(value);
                at.worse = 0;
            } else {
                at.worse += 1;
            }
        }
        if let Some(path) = checkpoint.filter(|_| last || due(at.step, options.checkpoint_every)) {
            checkpoint::write(path, &at, &params, &adam)?;
            observer.on_checkpoint(objective, at.step);
        }
        let elapsed_s = (clock.monotonic_s() - started_s).max(1e-9);
        #[expect(clippy::cast_precision_loss, reason = "for display")]
        observer.on_step(&Progress {
            step: at.step,
            steps: options.steps,
            loss: loss / batch_weight,
            learning_rate: rate,
            tokens_per_s: (at.tokens - first_tokens) as f64 / elapsed_s,
            eta_s: elapsed_s / f64::from(at.step - first_step) * f64::from(options.steps - at.step),
            held_out: measured,
        });
    }
    if let Some(path) = checkpoint.filter(|_| !finished && at.step > 0) {
        checkpoint::write(path, &at, &params, &adam)?;
        observer.on_checkpoint(objective, at.step);
    }
    let held_out = mean_loss(objective, held_out)?;
    Ok(Outcome {
        steps: at.step,
        tokens: at.tokens,
        finished,
        held_out,
        curve: at.curve,
    })
}

fn due(step: u32, every: u32) -> bool {
    every > 0 && step.is_multiple_of(every)
}

/// The first sequences that have `tokens` together, at least one.
fn sample(seqs: &[Sequence], tokens: usize) -> &[Sequence] {
    let mut seen = 0;
    let n = seqs.iter().take_while(|s| {
        let more = seen < tokens;
        seen += s.tokens.len();
        more
    });
    let mut n = n.count().max(1);
    while n < seqs.len() && weight(&seqs[..n]) <= 0.0 {
        n += 1;
    }
    &seqs[..n]
}

/// Scales the gradient of a sum to that of the mean, and down to `longest`.
#[expect(
    clippy::cast_possible_truncation,
    reason = "rounding to f32 is what is wanted"
)]
fn clip(gradient: &mut [f32], weight: f64, longest: f32) {
    let norm = gradient
        .iter()
        .map(|g| f64::from(*g) * f64::from(*g))
        .sum::<f64>()
        .sqrt()
        / weight;
    let down = if norm > f64::from(longest) {
        f64::from(longest) / norm
    } else {
        1.0
    };
    let factor = (down / weight) as f32;
    for g in gradient {
        *g *= factor;
    }
}

impl From<LoraError> for TrainError {
    fn from(_: LoraError) -> Self {
        Self::Options("the adapter's shape is out of its limits")
    }
}

impl From<LoadError> for TrainError {
    fn from(_: LoadError) -> Self {
        Self::Options("the model's shape is out of its limits")
    }
}

/// The whole of a model's tensors that decay: matrices, not norms.
pub(crate) fn matrix_decay(model: &Model) -> Vec<bool> {
    let mut decays = vec![false; model.layout().len()];
    for spec in model
        .layout()
        .tensors()
        .iter()
        .filter(|s| s.shape.len() == 2)
    {
        decays[spec.range()].fill(true);
    }
    decays
}

#[cfg(test)]
mod tests;
