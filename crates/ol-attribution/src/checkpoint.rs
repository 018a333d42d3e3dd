//! Where gradients are taken: on the way to the adapter that answers.
//!
//! The influence at the last parameters alone says little of records that taught
//! early and fit by now. Gradients at the first of a training's checkpoints, or at
//! the mean of all, which lies inside of its way, foretell retrainings better, at
//! no cost. The sum of the influences at each of several checkpoints, or of several trainings (Bae et
//! al., "SOURCE", arXiv:2405.12186; Park et al., "TRAK", arXiv:2303.14186) is
//! another way, at the cost of a backward pass for each. Such a sum is an inner
//! product too: that of the whitened gradients of all places, one after the
//! other, so that sketches stay as long as they are and only the rows get longer.

use std::sync::Arc;

use ol_model::{ForwardError, Labels, Lora, Model, Pool, Sequence};
use serde::{Deserialize, Serialize};

/// Most checkpoints at which gradients are taken.
pub const CHECKPOINTS_MAX: usize = 8;

/// Adapters at which gradients are taken, in order; none stands for the adapter
/// that answers.
#[derive(Debug, Clone, Default)]
pub struct Checkpoints(Vec<Arc<Lora>>);

impl Checkpoints {
    /// Gradients at each of `adapters`, which have the shape of the one that
    /// answers.
    #[must_use]
    pub const fn new(adapters: Vec<Arc<Lora>>) -> Self {
        Self(adapters)
    }

    /// Content hashes of the checkpoints for an adapter that answers, in order.
    #[must_use]
    pub fn hashes(&self, adapter: &Lora) -> Vec<String> {
        let checkpoints = self.of(adapter);
        checkpoints.map(|at| at.hash().to_string()).collect()
    }

    /// Whether there are not too many, all of the adapter's shape.
    fn are_for(&self, adapter: &Lora) -> bool {
        let fits =
            |at: &Arc<Lora>| at.config() == adapter.config() && at.blocks() == adapter.blocks();
        self.0.len() <= CHECKPOINTS_MAX && self.0.iter().all(fits)
    }

    fn of<'a>(&'a self, adapter: &'a Lora) -> impl Iterator<Item = &'a Lora> {
        let alone = self.0.is_empty().then_some(adapter);
        self.0.iter().map(AsRef::as_ref).chain(alone)
    }
}

/// Where gradients are taken, given some checkpoints.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Place {
    /// At the first of them: one backward pass.
    First,
    /// At the mean of their parameters: one backward pass.
    #[default]
    Mean,
    /// At each of them: as many backward passes.
    Each,
}

impl Place {
    /// How many places that is.
    pub(crate) const fn count(self, n_checkpoints: usize) -> usize {
        match self {
            Self::First | Self::Mean => 1,
            Self::Each => n_checkpoints,
        }
    }
}

/// The adapter whose parameters are the means of those of others, which have one
/// shape. `None` of none, and of other shapes.
#[must_use]
pub fn mean_of(adapters: &[&Lora]) -> Option<Lora> {
    let mut mean = (*adapters.first()?).clone();
    let mut sums = vec![0.0_f64; mean.n_params()];
    for adapter in adapters {
        if adapter.config() != mean.config() || adapter.n_params() != sums.len() {
            return None;
        }
        let pairs = sums.iter_mut().zip(adapter.parameters());
        pairs.for_each(|(sum, x)| *sum += f64::from(*x));
    }
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_precision_loss,
        reason = "a mean of f32"
    )]
    let parameters: Vec<f32> = sums
        .iter()
        .map(|sum| (sum / adapters.len() as f64) as f32)
        .collect();
    mean.set_parameters(&parameters).ok()?;
    Some(mean)
}

/// The adapters at whose parameters gradients are taken.
#[derive(Debug, Clone)]
pub(crate) struct Places(Vec<Lora>);

impl Places {
    /// `None` if the checkpoints are not for the adapter.
    pub(crate) fn new(adapter: &Lora, checkpoints: &Checkpoints, place: Place) -> Option<Self> {
        if !checkpoints.are_for(adapter) {
            return None;
        }
        let all: Vec<&Lora> = checkpoints.of(adapter).collect();
        Some(Self(match place {
            Place::First => vec![(*all.first()?).clone()],
            Place::Mean => vec![mean_of(&all)?],
            Place::Each => all.into_iter().cloned().collect(),
        }))
    }

    /// The gradients of each sequence at all places, one after the other.
    pub(crate) fn gradients(
        &self,
        model: &Model,
        pool: &Pool,
        sequences: &[Sequence],
        labels: Labels,
    ) -> Result<Vec<Vec<f32>>, ForwardError> {
        let mut rows: Vec<Vec<f32>> = sequences.iter().map(|_| Vec::new()).collect();
        for place in &self.0 {
            let of_place = model.lora_gradients(pool, place, sequences, labels)?;
            for (row, of_one) in rows.iter_mut().zip(of_place) {
                row.extend(of_one.gradient);
            }
        }
        Ok(rows)
    }
}

#[cfg(test)]
mod tests;
