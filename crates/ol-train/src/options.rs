//! How to train: every setting of the loop, with its limits.

use serde::{Deserialize, Serialize};
use thiserror::Error;

/// Most tokens of a batch.
const BATCH_TOKENS_MAX: usize = 1 << 22;

/// The paper's, and TRL's.
const DPO_BETA: f32 = 0.1;

/// How the learning rate goes on after the warm-up.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Schedule {
    /// Half a cosine down to `final_fraction` of the highest rate
    /// (Loshchilov and Hutter, 2017).
    #[default]
    Cosine,
    /// A straight line down to `final_fraction` of the highest rate.
    Linear,
    /// The highest rate to the end.
    Constant,
}

/// What turns gradients into steps.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Optimizer {
    /// AdamW (Loshchilov and Hutter, 2019), moments in f32: 8 bytes a parameter.
    #[default]
    #[serde(rename = "adamw")]
    AdamW,
    /// AdamW with moments in blocks of dynamic 8-bit numbers
    /// (Dettmers et al., 2022): 2 bytes a parameter.
    #[serde(rename = "adamw_8bit")]
    AdamW8Bit,
}

/// How to train. Equal options, data and start give equal bytes, on any number
/// of threads.
///
/// Fields are in alphabetical order, because manifests are hashed as JSON with
/// sorted keys. Those that the first manifests did not have are left out of the
/// JSON while they have their default, so that the hashes of those stay.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TrainOptions {
    /// A batch has exactly this many sequences (or pairs), instead of being
    /// filled by tokens.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub batch_sequences: Option<usize>,
    /// A batch is filled with whole sequences until it has this many tokens.
    /// Sequences are packed without padding and do not see each other.
    pub batch_tokens: usize,
    /// Decay of the first moment.
    pub beta1: f32,
    /// Decay of the second moment.
    pub beta2: f32,
    /// Steps between checkpoints, 0 for none.
    pub checkpoint_every: u32,
    /// Checkpoints kept: the newest ones.
    #[serde(skip_serializing_if = "is_one")]
    pub checkpoints_keep: u32,
    /// Longest gradient; longer ones are scaled down to it.
    pub clip_norm: f32,
    /// Preferences: how far the adapter may go from the base; the larger, the
    /// nearer it stays.
    #[serde(skip_serializing_if = "is_beta")]
    pub dpo_beta: f32,
    /// Preferences: part of them that are taken to be wrong, below a half.
    #[serde(skip_serializing_if = "is_zero")]
    pub dpo_label_smoothing: f32,
    /// Passes over the training data; takes the place of `steps`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub epochs: Option<f64>,
    /// Steps between measurements of the held-out loss.
    pub evaluate_every: u32,
    /// Tokens of held-out text used for a point of the curve; the loss of the
    /// outcome is measured on all of it.
    pub evaluate_tokens: usize,
    /// The schedule ends at this fraction of the highest rate.
    pub final_fraction: f32,
    /// Ends with the parameters of the lowest measured held-out loss, rather
    /// than with the last ones.
    #[serde(skip_serializing_if = "is_false")]
    pub keep_best: bool,
    /// Highest learning rate.
    pub learning_rate: f32,
    /// A batch goes through the model in parts of at most this many tokens
    /// (one longer sequence is a part of its own), whose gradients are added.
    /// Saves memory. An adapter gets the same bits; a whole base with tied
    /// embeddings sums its embedding's gradient in another order.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub micro_batch_tokens: Option<usize>,
    /// What turns gradients into steps.
    #[serde(skip_serializing_if = "is_default")]
    pub optimizer: Optimizer,
    /// Stop after this many measurements in a row without a better one.
    pub patience: Option<u32>,
    /// Keeps only the input of each block and computes the rest again in the
    /// backward pass. Saves memory, costs a forward pass; the result has the
    /// same bits.
    #[serde(skip_serializing_if = "is_false")]
    pub recompute: bool,
    /// How the learning rate goes on after the warm-up.
    #[serde(skip_serializing_if = "is_default")]
    pub schedule: Schedule,
    /// Chooses initial adapter and order of the sequences.
    pub seed: u64,
    /// Whether each pass over the data has its own random order, rather than
    /// the order given.
    #[serde(skip_serializing_if = "is_true")]
    pub shuffle: bool,
    /// Optimiser steps in all.
    pub steps: u32,
    /// Part of the steps that are warm-up; takes the place of `warmup_steps`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub warmup_ratio: Option<f32>,
    /// Steps of linear warm-up.
    pub warmup_steps: u32,
    /// Decoupled weight decay of matrices.
    pub weight_decay: f32,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde's signature")]
fn is_one(n: &u32) -> bool {
    *n == 1
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde's signature")]
fn is_false(flag: &bool) -> bool {
    !*flag
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde's signature")]
fn is_true(flag: &bool) -> bool {
    *flag
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde's signature")]
fn is_beta(beta: &f32) -> bool {
    *beta == DPO_BETA
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde's signature")]
fn is_zero(value: &f32) -> bool {
    *value == 0.0
}

fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

impl Default for TrainOptions {
    fn default() -> Self {
        Self {
            batch_sequences: None,
            batch_tokens: 2048,
            beta1: 0.9,
            beta2: 0.95,
            checkpoint_every: 0,
            checkpoints_keep: 1,
            clip_norm: 1.0,
            dpo_beta: DPO_BETA,
            dpo_label_smoothing: 0.0,
            epochs: None,
            evaluate_every: 50,
            evaluate_tokens: 16_384,
            final_fraction: 0.1,
            keep_best: false,
            learning_rate: 1e-3,
            micro_batch_tokens: None,
            optimizer: Optimizer::AdamW,
            patience: None,
            recompute: false,
            schedule: Schedule::Cosine,
            seed: 0,
            shuffle: true,
            steps: 200,
            warmup_ratio: None,
            warmup_steps: 20,
            weight_decay: 0.0,
        }
    }
}

/// A training option outside its limits.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("training option {field}: {reason}")]
pub struct OptionError {
    /// Name of the option, as in JSON.
    pub field: &'static str,
    /// What is wrong with its value.
    pub reason: String,
}

impl TrainOptions {
    /// Checks every option against its limits.
    ///
    /// # Errors
    /// [`OptionError`] with the first field that is outside.
    pub fn check(&self) -> Result<(), OptionError> {
        let fail = |field, reason: String| Err(OptionError { field, reason });
        for (field, value) in [
            ("steps", self.steps as usize),
            ("batch_tokens", self.batch_tokens),
            ("evaluate_every", self.evaluate_every as usize),
            ("checkpoints_keep", self.checkpoints_keep as usize),
            ("batch_sequences", self.batch_sequences.unwrap_or(1)),
            ("micro_batch_tokens", self.micro_batch_tokens.unwrap_or(1)),
            ("patience", self.patience.unwrap_or(1) as usize),
        ] {
            if value == 0 {
                return fail(field, "must be at least 1".to_owned());
            }
        }
        for (field, value, most) in [
            ("batch_tokens", self.batch_tokens, BATCH_TOKENS_MAX),
            (
                "batch_sequences",
                self.batch_sequences.unwrap_or(1),
                BATCH_TOKENS_MAX,
            ),
            ("checkpoints_keep", self.checkpoints_keep as usize, 1000),
        ] {
            if value > most {
                return fail(field, format!("is {value}, may be at most {most}"));
            }
        }
        for (field, value) in [
            ("learning_rate", self.learning_rate),
            ("clip_norm", self.clip_norm),
            ("dpo_beta", self.dpo_beta),
        ] {
            if !(value.is_finite() && value > 0.0) {
                return fail(field, format!("is {value}, must be positive and finite"));
            }
        }
        for (field, value) in [("beta1", self.beta1), ("beta2", self.beta2)] {
            if !(0.0..1.0).contains(&value) {
                return fail(field, format!("is {value}, must be at least 0 and below 1"));
            }
        }
        for (field, value) in [
            ("final_fraction", self.final_fraction),
            ("weight_decay", self.weight_decay),
            ("warmup_ratio", self.warmup_ratio.unwrap_or(0.0)),
        ] {
            if !(0.0..=1.0).contains(&value) {
                return fail(field, format!("is {value}, must be between 0 and 1"));
            }
        }
        if !(0.0..0.5).contains(&self.dpo_label_smoothing) {
            let reason = format!("is {}, must be below a half", self.dpo_label_smoothing);
            return fail("dpo_label_smoothing", reason);
        }
        if let Some(epochs) = self.epochs.filter(|e| !(*e > 0.0 && *e <= 1000.0)) {
            return fail(
                "epochs",
                format!("is {epochs}, must be above 0 and at most 1000"),
            );
        }
        Ok(())
    }

    /// The options with `epochs` and `warmup_ratio` turned into steps, for
    /// training data of `n_tokens` tokens in `n_sequences` sequences.
    ///
    /// # Errors
    /// As [`TrainOptions::check`].
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_precision_loss,
        clippy::cast_sign_loss,
        reason = "counts; the conversion saturates"
    )]
    pub fn resolve(&self, n_sequences: usize, n_tokens: usize) -> Result<Self, OptionError> {
        self.check()?;
        let mut options = self.clone();
        if let Some(epochs) = options.epochs.take() {
            options.steps = match options.batch_sequences {
                Some(n) => (n_sequences as f64 * epochs / n as f64).ceil().max(1.0) as u32,
                None => self.steps_for(n_tokens, epochs),
            };
            // A short run shall not be all warm-up.
            options.warmup_steps = options.warmup_steps.min(options.steps / 5);
        }
        if let Some(ratio) = options.warmup_ratio.take() {
            options.warmup_steps = (f64::from(options.steps) * f64::from(ratio)).ceil() as u32;
        }
        Ok(options)
    }

    /// Steps that `epochs` passes over `tokens` take when batches are filled by
    /// tokens, at least one.
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

    /// Learning rate of step `step` (from 0): linear warm-up, then the schedule.
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
        let left = match self.schedule {
            Schedule::Cosine => 0.5 * (1.0 + libm::cos(std::f64::consts::PI * done)),
            Schedule::Linear => 1.0 - done,
            Schedule::Constant => return self.learning_rate,
        };
        let low = f64::from(self.final_fraction);
        (f64::from(self.learning_rate) * (low + (1.0 - low) * left)) as f32
    }

    /// The options without those that only say what memory and disk are used
    /// for: a run may go on with others.
    pub(crate) fn that_matter(&self) -> Self {
        let free = Self::default();
        Self {
            checkpoint_every: free.checkpoint_every,
            checkpoints_keep: free.checkpoints_keep,
            micro_batch_tokens: free.micro_batch_tokens,
            recompute: free.recompute,
            ..self.clone()
        }
    }
}

#[cfg(test)]
mod tests;
