//! How the sketches of one model are made: everything that must be known to
//! make them again, kept in the map's context and so covered by its hash.

use ol_model::Lora;
use ol_types::B256;
use serde::{Deserialize, Serialize};

use crate::checkpoint::{CHECKPOINTS_MAX, Place};
use crate::reduce::{BlockShape, Reducer, SIDE_MAX};

/// Value of [`Method::format`].
pub const FORMAT: &str = "openledger-sketch/3";

/// The format before: gradients at the adapter itself, and nothing said of it.
const FORMAT_2: &str = "openledger-sketch/2";

/// The most Fisher samples that are drawn for one record.
pub const FISHER_SAMPLES_MAX: u32 = 16;

/// By what the losses of a part, question or answer, are divided.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Length {
    /// Nothing: a long part counts for all its tokens.
    Sum,
    /// The root of the number of its tokens.
    Root,
    /// The number of its tokens.
    Mean,
}

/// Which loss of a question and its answer is differentiated.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LossRule {
    /// Weight of the question, 0 to 1; the answer weighs 1.
    pub question_weight: f32,
    /// Normalisation of each of the two by its length.
    pub length: Length,
}

impl LossRule {
    /// The loss weight of every token of a sequence whose answer begins at
    /// `answer_start`. The first token has none: nothing predicts it.
    #[must_use]
    pub fn weights(&self, n_tokens: usize, answer_start: usize) -> Vec<f32> {
        let divisor = |n: usize| {
            // Sequences are at most some thousands of tokens: exact in f32.
            let n = f32::from(u16::try_from(n.max(1)).unwrap_or(u16::MAX));
            match self.length {
                Length::Sum => 1.0,
                Length::Root => n.sqrt(),
                Length::Mean => n,
            }
        };
        let n_question = answer_start.min(n_tokens);
        let question = self.question_weight / divisor(n_question.saturating_sub(1));
        let answer = 1.0 / divisor(n_tokens - n_question);
        let weight = |t: usize| match t {
            0 => 0.0,
            t if t < n_question => question,
            _ => answer,
        };
        (0..n_tokens).map(weight).collect()
    }

    fn is_valid(&self) -> bool {
        (0.0..=1.0).contains(&self.question_weight)
    }
}

/// Everything that the sketches of a model depend on beside its records.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Method {
    /// Always [`FORMAT`].
    pub format: String,
    /// Content hash of the base model.
    pub base: String,
    /// Content hash of the adapter.
    pub adapter: String,
    /// Content hashes of the adapters on the way of the training, in order; the
    /// last is [`Self::adapter`], which may be the only one.
    #[serde(default)]
    pub checkpoints: Vec<String>,
    /// Where gradients are taken, given those.
    #[serde(default)]
    pub place: Place,
    /// Loss of a record.
    pub record_loss: LossRule,
    /// Loss of an answer that is paid for.
    pub query_loss: LossRule,
    /// Longest wide side of a factor's gradient, after reduction.
    pub side: usize,
    /// Seed of the reduction, of the Fisher samples and of the rotation.
    pub seed: u64,
    /// Fisher samples of each record.
    pub fisher_samples: u32,
    /// `λ` of each factor over the mean eigenvalue of its curvature.
    pub damping: f64,
}

impl Method {
    pub(crate) fn to_context(&self) -> Vec<u8> {
        serde_json::to_vec(self).expect("a struct of numbers and text is JSON")
    }

    pub(crate) fn from_context(context: &[u8]) -> Option<Self> {
        let mut method: Self = serde_json::from_slice(context).ok()?;
        if method.format == FORMAT_2 && method.checkpoints.is_empty() {
            FORMAT.clone_into(&mut method.format);
            method.checkpoints = vec![method.adapter.clone()];
            method.place = Place::Mean;
        }
        method.is_valid().then_some(method)
    }

    pub(crate) fn is_valid(&self) -> bool {
        self.format == FORMAT
            && (1..=CHECKPOINTS_MAX).contains(&self.checkpoints.len())
            && self.record_loss.is_valid()
            && self.query_loss.is_valid()
            && (1..=SIDE_MAX).contains(&self.side)
            && (1..=FISHER_SAMPLES_MAX).contains(&self.fisher_samples)
            && self.damping.is_finite()
            && self.damping > 0.0
    }

    pub(crate) fn is_for(&self, base: B256, adapter: B256) -> bool {
        self.base == base.to_string() && self.adapter == adapter.to_string()
    }

    pub(crate) fn reducer(&self, adapter: &Lora) -> Reducer {
        let shapes: Vec<BlockShape> = adapter.blocks().iter().map(shape).collect();
        Reducer::new(
            &shapes.repeat(self.place.count(self.checkpoints.len())),
            self.side,
            self.seed,
        )
    }
}

/// The shape of an adapted projection.
pub(crate) fn shape(block: &ol_model::LoraBlock) -> BlockShape {
    BlockShape {
        rank: block.rows_a.0,
        d_in: block.rows_a.1,
        d_out: block.rows_b.0,
    }
}

#[cfg(test)]
mod tests;
