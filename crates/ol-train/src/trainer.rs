//! The training loop.

use std::path::Path;

use ol_model::{ForwardError, Model, Random, Sequence};
use ol_runtime::Clock;
use ol_types::{B256, Keccak256, keccak256};
use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::adamw::AdamW;
use crate::checkpoint::{Best, CheckpointError, Checkpoints, LocalDisk, Position, RunId, State};
use crate::curve::CurvePoint;
use crate::options::{OptionError, TrainOptions};

/// Why training stopped early.
#[derive(Debug, Error)]
pub enum TrainError {
    /// An option makes no sense.
    #[error(transparent)]
    Options(#[from] OptionError),
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

/// One thing to learn from or to measure with: a sequence, a pair of answers.
pub trait Example: Clone {
    /// Tokens that go through the model.
    fn n_tokens(&self) -> usize;
    /// What its loss weighs in a mean.
    fn weight(&self) -> f64;
    /// Appends everything that the result of a run depends on.
    fn encode(&self, out: &mut Vec<u8>);
}

impl Example for Sequence {
    fn n_tokens(&self) -> usize {
        self.tokens.len()
    }

    fn weight(&self) -> f64 {
        self.weights.iter().skip(1).map(|w| f64::from(*w)).sum()
    }

    fn encode(&self, out: &mut Vec<u8>) {
        out.extend((self.tokens.len() as u64).to_le_bytes());
        out.extend(self.tokens.iter().flat_map(|t| t.to_le_bytes()));
        out.extend(self.weights.iter().flat_map(|w| w.to_le_bytes()));
    }
}

/// How well a preference is learnt, over some pairs.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Rewards {
    /// Part of the pairs whose chosen answer has the higher reward.
    pub accuracy: f64,
    /// Mean of the chosen answers' rewards less those of the rejected ones.
    pub margin: f64,
}

/// A measurement of one example.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Measurement {
    /// Its loss.
    pub loss: f64,
    /// For a preference: reward of the chosen answer less that of the other.
    pub margin: Option<f64>,
}

impl Measurement {
    /// Measurements of examples that have a loss only.
    pub(crate) fn of_losses(losses: Vec<f64>) -> Vec<Self> {
        let of = |loss| Self { loss, margin: None };
        losses.into_iter().map(of).collect()
    }
}

/// Measurements over some examples.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Measured {
    /// Mean loss by weight.
    pub(crate) loss: f64,
    pub(crate) rewards: Option<Rewards>,
}

/// What is trained: a vector of parameters with a loss.
pub trait Objective {
    /// What it learns from.
    type Example: Example;
    /// Hash of what decides over the loss and is not trained, the base above
    /// all: a checkpoint of another one is refused.
    fn identity(&self) -> B256;
    /// All parameters.
    fn parameters(&self) -> Vec<f32>;
    /// Replaces all parameters; false if one is not finite.
    fn set_parameters(&mut self, params: &[f32]) -> bool;
    /// Which parameters decay.
    fn decays(&self) -> Vec<bool>;
    /// Adds the gradient of the sum of the losses to `gradient`, as
    /// consecutive examples one by one would; returns the loss of each.
    ///
    /// # Errors
    /// When an example does not fit the model.
    fn add_gradient(
        &self,
        examples: &[Self::Example],
        recompute: bool,
        gradient: &mut [f32],
    ) -> Result<Vec<f64>, ForwardError>;
    /// Measures each example without training.
    ///
    /// # Errors
    /// When an example does not fit the model.
    fn measure(&self, examples: &[Self::Example]) -> Result<Vec<Measurement>, ForwardError>;
}

/// How far a run is.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Progress {
    /// Steps done.
    pub step: u32,
    /// Steps in all.
    pub steps: u32,
    /// Passes over the training data begun, from 0.
    pub epoch: u64,
    /// Loss of the last batch, nats a token (for preferences: a pair).
    pub loss: f64,
    /// Learning rate of the last step.
    pub learning_rate: f32,
    /// Length of the last batch's gradient before clipping.
    pub gradient_norm: f64,
    /// Tokens trained on so far, repeats counted.
    pub tokens: u64,
    /// Tokens trained on a second, since this process started the run.
    pub tokens_per_s: f64,
    /// Estimated seconds to the end.
    pub eta_s: f64,
    /// Held-out loss, when it was just measured.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub held_out: Option<f64>,
    /// Held-out rewards, when they were just measured and there are any.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rewards: Option<Rewards>,
}

/// Watches a run.
pub trait Observer<O> {
    /// After every step.
    fn on_step(&mut self, progress: &Progress);
    /// After every step, with what was trained so far; before a checkpoint of it
    /// is written.
    fn on_update(&mut self, _objective: &O, _step: u32) {}
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
    /// Step whose parameters the objective has: the last one, or the best
    /// where that is kept.
    pub kept_step: u32,
    /// Loss on all held-out examples with those parameters, nats a token.
    pub held_out: f64,
    /// Rewards on all held-out examples, where those are preferences.
    pub rewards: Option<Rewards>,
    /// Measurements on the way, the last one included.
    pub curve: Vec<CurvePoint>,
}

/// Sum of the loss weights.
pub(crate) fn weight<E: Example>(examples: &[E]) -> f64 {
    examples.iter().map(Example::weight).sum()
}

/// Mean loss, nats a weighted token.
pub(crate) fn mean_loss<O: Objective>(
    objective: &O,
    examples: &[O::Example],
) -> Result<f64, TrainError> {
    Ok(measure(objective, examples, None)?.loss)
}

/// Measures examples in parts of at most so many tokens; the parts do not
/// change a bit.
#[expect(clippy::cast_precision_loss, reason = "a mean over examples")]
fn measure<O: Objective>(
    objective: &O,
    examples: &[O::Example],
    part_tokens: Option<usize>,
) -> Result<Measured, TrainError> {
    let mut all = Vec::with_capacity(examples.len());
    for part in parts(examples, part_tokens) {
        all.extend(objective.measure(part)?);
    }
    let margins: Vec<f64> = all.iter().filter_map(|m| m.margin).collect();
    let n = margins.len() as f64;
    let won = margins.iter().filter(|m| **m > 0.0).count() as f64;
    Ok(Measured {
        loss: all.iter().map(|m| m.loss).sum::<f64>() / weight(examples),
        rewards: (!margins.is_empty()).then(|| Rewards {
            accuracy: won / n,
            margin: margins.iter().sum::<f64>() / n,
        }),
    })
}

/// Hash of what is trained before the first step.
fn start_hash(identity: B256, params: &[f32]) -> String {
    let mut hasher = Keccak256::new();
    hasher.update(identity);
    for part in params.chunks(1 << 16) {
        let bytes: Vec<u8> = part.iter().flat_map(|p| p.to_le_bytes()).collect();
        hasher.update(bytes);
    }
    hasher.finalize().to_string()
}

fn data_hash<E: Example>(train: &[E], held_out: &[E]) -> String {
    let mut bytes = Vec::new();
    for part in [train, held_out] {
        bytes.extend((part.len() as u64).to_le_bytes());
        for example in part {
            example.encode(&mut bytes);
        }
    }
    keccak256(&bytes).to_string()
}

/// The order of one epoch.
fn order(n: usize, options: &TrainOptions, epoch: u64) -> Vec<usize> {
    let mut order: Vec<usize> = (0..n).collect();
    if options.shuffle {
        let seed = options.seed.wrapping_mul(0x9E37_79B9).wrapping_add(epoch);
        Random::new(seed).shuffle(&mut order);
    }
    order
}

/// Trains `objective` on `train`, measuring on `held_out`; goes on from the
/// newest of the checkpoints `CHECKPOINT.STEP` if there is one.
///
/// # Errors
/// [`TrainError`]; the checkpoints, if any, stay usable.
pub fn train<O: Objective>(
    objective: &mut O,
    train: &[O::Example],
    held_out: &[O::Example],
    options: &TrainOptions,
    checkpoint: Option<&Path>,
    clock: &dyn Clock,
    observer: &mut impl Observer<O>,
) -> Result<Outcome, TrainError> {
    let checkpoints = checkpoint.map(|path| Checkpoints::new(path, &LocalDisk));
    run(
        objective,
        train,
        held_out,
        options,
        checkpoints,
        clock,
        observer,
    )
}

/// As [`train`], with checkpoints on any disk.
pub(crate) fn run<O: Objective>(
    objective: &mut O,
    train: &[O::Example],
    held_out: &[O::Example],
    options: &TrainOptions,
    checkpoints: Option<Checkpoints<'_>>,
    clock: &dyn Clock,
    observer: &mut impl Observer<O>,
) -> Result<Outcome, TrainError> {
    if weight(train) <= 0.0 {
        return Err(TrainError::Data("no sequence has a weighted token"));
    }
    if weight(held_out) <= 0.0 {
        return Err(TrainError::Data(
            "no held-out sequence has a weighted token",
        ));
    }
    let tokens = train.iter().map(Example::n_tokens).sum();
    let options = &options.resolve(train.len(), tokens)?;
    let params = objective.parameters();
    let decays = objective.decays();
    let mut state = State {
        adam: AdamW::of(options, params.len()),
        params,
        best: None,
    };
    // Hashes that only checkpoints need: a large base takes some seconds.
    let mut run = RunId::default();
    let mut found = None;
    if let Some(checkpoints) = &checkpoints {
        run.start = start_hash(objective.identity(), &state.params);
        run.data = data_hash(train, held_out);
        found = checkpoints.read(options, &run, &mut state)?;
    }
    let mut at = found.unwrap_or_else(|| Position {
        options: options.clone(),
        run,
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
    set(objective, &state.params, at.step, f64::NAN)?;
    let sample = sample(held_out, options.evaluate_tokens);
    let mut batches = Batches::new(train, options, &at);
    let mut gradient = vec![0.0_f32; state.params.len()];
    let (started_s, first_step, first_tokens) = (clock.monotonic_s(), at.step, at.tokens);
    let mut finished = true;
    // Whether the newest checkpoint is of this step.
    let mut saved = at.step > 0;
    while at.step < options.steps && options.patience.is_none_or(|p| at.worse < p) {
        if observer.stop() {
            finished = false;
            break;
        }
        let batch = batches.next(&mut at);
        let batch_weight = weight(&batch).max(f64::MIN_POSITIVE);
        gradient.fill(0.0);
        let mut loss = 0.0;
        for part in parts(&batch, options.micro_batch_tokens) {
            let losses = objective.add_gradient(part, options.recompute, &mut gradient)?;
            loss = losses.iter().fold(loss, |sum, l| sum + l);
        }
        let rate = options.rate(at.step);
        at.step += 1;
        at.tokens += batch.iter().map(|e| e.n_tokens() as u64).sum::<u64>();
        if !loss.is_finite() {
            return Err(TrainError::Diverged {
                step: at.step,
                loss,
            });
        }
        let gradient_norm = clip(&mut gradient, batch_weight, options.clip_norm);
        state.adam.step(&mut state.params, &gradient, &decays, rate);
        set(objective, &state.params, at.step, loss / batch_weight)?;
        observer.on_update(objective, at.step);
        at.loss_sum += loss;
        at.loss_weight += batch_weight;
        let last = at.step == options.steps;
        let mut measured = None;
        if last || at.step.is_multiple_of(options.evaluate_every) {
            let got = measure(objective, sample, options.micro_batch_tokens)?;
            let held_out = got.loss;
            measured = Some(got);
            at.curve.push(CurvePoint {
                step: at.step,
                tokens: at.tokens,
                learning_rate: rate,
                loss: at.loss_sum / at.loss_weight,
                held_out,
                rewards: got.rewards,
            });
            (at.loss_sum, at.loss_weight) = (0.0, 0.0);
            if at.best.is_none_or(|best| held_out < best.held_out) {
                at.best = Some(Best {
                    step: at.step,
                    held_out,
                });
                at.worse = 0;
                if options.keep_best {
                    state.best = Some(state.params.clone());
                }
            } else {
                at.worse += 1;
            }
        }
        saved = false;
        if let Some(checkpoints) = &checkpoints
            && (last || due(at.step, options.checkpoint_every))
        {
            checkpoints.write(&at, &state)?;
            saved = true;
            observer.on_checkpoint(objective, at.step);
        }
        let elapsed_s = (clock.monotonic_s() - started_s).max(1e-9);
        #[expect(clippy::cast_precision_loss, reason = "for display")]
        observer.on_step(&Progress {
            step: at.step,
            steps: options.steps,
            epoch: at.epoch,
            loss: loss / batch_weight,
            learning_rate: rate,
            gradient_norm,
            tokens: at.tokens,
            tokens_per_s: (at.tokens - first_tokens) as f64 / elapsed_s,
            eta_s: elapsed_s / f64::from(at.step - first_step) * f64::from(options.steps - at.step),
            held_out: measured.map(|m| m.loss),
            rewards: measured.and_then(|m| m.rewards),
        });
    }
    if let Some(checkpoints) = &checkpoints
        && !saved
        && at.step > 0
    {
        checkpoints.write(&at, &state)?;
        observer.on_checkpoint(objective, at.step);
    }
    let mut kept_step = at.step;
    if let (Some(best), Some(params), true) = (at.best, &state.best, finished) {
        set(objective, params, best.step, best.held_out)?;
        kept_step = best.step;
    }
    let measured = measure(objective, held_out, options.micro_batch_tokens)?;
    Ok(Outcome {
        steps: at.step,
        tokens: at.tokens,
        finished,
        kept_step,
        held_out: measured.loss,
        rewards: measured.rewards,
        curve: at.curve,
    })
}

/// Gives the objective its parameters.
fn set<O: Objective>(
    objective: &mut O,
    params: &[f32],
    step: u32,
    loss: f64,
) -> Result<(), TrainError> {
    if objective.set_parameters(params) {
        Ok(())
    } else {
        Err(TrainError::Diverged { step, loss })
    }
}

/// The batches of a run, one after the other.
struct Batches<'a, E> {
    examples: &'a [E],
    options: &'a TrainOptions,
    order: Vec<usize>,
}

impl<'a, E: Example> Batches<'a, E> {
    fn new(examples: &'a [E], options: &'a TrainOptions, at: &Position) -> Self {
        Self {
            examples,
            options,
            order: order(examples.len(), options, at.epoch),
        }
    }

    /// The next batch: so many examples, or as many as fill it with tokens. The
    /// next pass over the data begins where the last one ends.
    fn next(&mut self, at: &mut Position) -> Vec<E> {
        let mut batch: Vec<E> = Vec::new();
        let mut tokens = 0;
        let full = |n: usize, tokens: usize| match self.options.batch_sequences {
            Some(most) => n >= most,
            None => tokens >= self.options.batch_tokens,
        };
        while !full(batch.len(), tokens) {
            if at.next == self.examples.len() {
                at.epoch += 1;
                at.next = 0;
                self.order = order(self.examples.len(), self.options, at.epoch);
            }
            let example = &self.examples[self.order[at.next]];
            tokens += example.n_tokens().max(1);
            batch.push(example.clone());
            at.next += 1;
        }
        batch
    }
}

/// Consecutive examples of at most `tokens` tokens together, or one longer one.
pub(crate) fn parts<E: Example>(batch: &[E], tokens: Option<usize>) -> Vec<&[E]> {
    let most = tokens.unwrap_or(usize::MAX);
    let (mut parts, mut first, mut seen) = (Vec::new(), 0, 0);
    for (i, example) in batch.iter().enumerate() {
        let n = example.n_tokens();
        if i > first && seen + n > most {
            parts.push(&batch[first..i]);
            (first, seen) = (i, 0);
        }
        seen += n;
    }
    parts.push(&batch[first..]);
    parts
}

fn due(step: u32, every: u32) -> bool {
    every > 0 && step.is_multiple_of(every)
}

/// The first examples that have `tokens` together, at least one.
fn sample<E: Example>(examples: &[E], tokens: usize) -> &[E] {
    let mut seen = 0;
    let n = examples.iter().take_while(|e| {
        let more = seen < tokens;
        seen += e.n_tokens();
        more
    });
    let mut n = n.count().max(1);
    while n < examples.len() && weight(&examples[..n]) <= 0.0 {
        n += 1;
    }
    &examples[..n]
}

/// Scales the gradient of a sum to that of the mean, and down to `longest`;
/// returns the length of the mean's.
#[expect(
    clippy::cast_possible_truncation,
    reason = "rounding to f32 is what is wanted"
)]
fn clip(gradient: &mut [f32], weight: f64, longest: f32) -> f64 {
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
    norm
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
