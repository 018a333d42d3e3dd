//! Direct preference optimisation (Rafailov et al., 2023): an adapter learns
//! from pairs of answers which one is preferred.
//!
//! With `z = beta (ln pi(chosen) - ln ref(chosen) - ln pi(rejected) + ln
//! ref(rejected))` the loss of a pair is `-(1 - s) ln sigmoid(z) - s ln
//! sigmoid(-z)`, `s` being the label smoothing (Mitchell, 2023). The reference is
//! the base without the adapter; its likelihoods are computed once.

use ol_model::{ForwardError, Learner, Lora, Model, Pool, Sequence};

use ol_types::{B256, keccak256};

use crate::adapter::LoraObjective;
use crate::memory::PASS_ROWS;
use crate::options::TrainOptions;
use crate::trainer::{Example, Measurement, Objective, parts};

/// Two answers to one prompt. Weights are 1 on the answer and 0 on the prompt.
#[derive(Debug, Clone, PartialEq)]
pub struct Pair {
    /// The preferred answer, with its prompt.
    pub chosen: Sequence,
    /// The other one, with the same prompt.
    pub rejected: Sequence,
}

/// A pair with what the reference thinks of it.
#[derive(Debug, Clone, PartialEq)]
pub struct ScoredPair {
    pair: Pair,
    /// Negative log-likelihoods by the base: of the chosen answer, of the other.
    reference: (f64, f64),
}

impl ScoredPair {
    /// Scores pairs by the base.
    ///
    /// # Errors
    /// [`ForwardError`] when a sequence does not fit the model.
    pub fn score(learner: &dyn Learner, pairs: &[Pair]) -> Result<Vec<Self>, ForwardError> {
        let losses = learner.losses(None, &sequences(pairs.iter()))?;
        let pairs = pairs.iter().zip(losses.as_chunks::<2>().0);
        Ok(pairs
            .map(|(pair, &[chosen, rejected])| Self {
                pair: pair.clone(),
                reference: (chosen, rejected),
            })
            .collect())
    }

    /// The pair.
    #[must_use]
    pub fn pair(&self) -> &Pair {
        &self.pair
    }
}

/// Chosen and rejected sequences, alternating.
fn sequences<'a>(pairs: impl Iterator<Item = &'a Pair>) -> Vec<Sequence> {
    pairs
        .flat_map(|p| [p.chosen.clone(), p.rejected.clone()])
        .collect()
}

impl Example for ScoredPair {
    fn n_tokens(&self) -> usize {
        self.pair.chosen.n_tokens() + self.pair.rejected.n_tokens()
    }

    /// Every pair counts alike; one whose answers have no weight does not.
    fn weight(&self) -> f64 {
        let has_answers = self.pair.chosen.weight() > 0.0 && self.pair.rejected.weight() > 0.0;
        f64::from(u8::from(has_answers))
    }

    /// The pair only: the reference follows from it and the base.
    fn encode(&self, out: &mut Vec<u8>) {
        self.pair.chosen.encode(out);
        self.pair.rejected.encode(out);
    }
}

/// A base with an adapter that learns preferences.
#[derive(Debug)]
pub struct PreferenceObjective<'a> {
    /// What learns. Its base is also the reference.
    pub policy: LoraObjective<'a>,
    /// How far the adapter may go from the reference: the larger, the nearer.
    pub beta: f64,
    /// Part of the preferences that are taken to be wrong, below a half.
    pub label_smoothing: f64,
}

/// A pair as the adapter sees it.
struct Verdict {
    /// Difference of the answers' rewards, `z`.
    margin: f64,
    loss: f64,
    /// Derivative of the loss by the negative log-likelihood of the chosen
    /// answer; that of the other is its opposite.
    slope: f64,
}

/// `ln(1 + e^x)` without overflow.
fn softplus(x: f64) -> f64 {
    x.max(0.0) + libm::log1p(libm::exp(-x.abs()))
}

/// `1 / (1 + e^-x)`.
fn sigmoid(x: f64) -> f64 {
    1.0 / (1.0 + libm::exp(-x))
}

impl<'a> PreferenceObjective<'a> {
    /// A fresh objective as `options` say.
    #[must_use]
    pub fn new(model: &'a Model, adapter: Lora, pool: &'a Pool, options: &TrainOptions) -> Self {
        Self {
            policy: LoraObjective {
                model,
                adapter,
                pool,
                learner: None,
            },
            beta: f64::from(options.dpo_beta),
            label_smoothing: f64::from(options.dpo_label_smoothing),
        }
    }

    fn verdict(&self, pair: &ScoredPair, chosen: f64, rejected: f64) -> Verdict {
        let gain = (pair.reference.0 - chosen) - (pair.reference.1 - rejected);
        let (z, s) = (self.beta * gain, self.label_smoothing);
        Verdict {
            margin: z,
            loss: (1.0 - s) * softplus(-z) + s * softplus(z),
            slope: self.beta * ((1.0 - s) * sigmoid(-z) - s * sigmoid(z)),
        }
    }

    /// The slope of a pair's loss by each of its likelihoods.
    #[expect(
        clippy::cast_possible_truncation,
        reason = "rounding to f32 is what is wanted"
    )]
    fn factors(&self, pairs: &[ScoredPair], losses: &[f64]) -> Vec<f32> {
        let verdicts = self.verdicts(pairs, losses);
        verdicts
            .iter()
            .flat_map(|v| [v.slope as f32, -v.slope as f32])
            .collect()
    }

    /// Verdicts on pairs, from the losses of their sequences.
    fn verdicts(&self, pairs: &[ScoredPair], losses: &[f64]) -> Vec<Verdict> {
        let pairs = pairs.iter().zip(losses.as_chunks::<2>().0);
        pairs
            .map(|(pair, &[chosen, rejected])| {
                let mut verdict = self.verdict(pair, chosen, rejected);
                let weight = pair.weight();
                verdict.loss *= weight;
                verdict.slope *= weight;
                verdict
            })
            .collect()
    }
}

impl Objective for PreferenceObjective<'_> {
    type Example = ScoredPair;

    fn identity(&self) -> B256 {
        let mut bytes = self.policy.model.hash().to_vec();
        bytes.extend(self.beta.to_le_bytes());
        bytes.extend(self.label_smoothing.to_le_bytes());
        keccak256(bytes)
    }

    fn parameters(&self) -> Vec<f32> {
        self.policy.parameters()
    }

    fn set_parameters(&mut self, params: &[f32]) -> bool {
        self.policy.set_parameters(params)
    }

    fn decays(&self) -> Vec<bool> {
        self.policy.decays()
    }

    fn add_gradient(
        &self,
        pairs: &[ScoredPair],
        recompute: bool,
        gradient: &mut [f32],
    ) -> Result<Vec<f64>, ForwardError> {
        let mut losses = Vec::with_capacity(pairs.len());
        // Both answers of a pair are in one pass.
        for part in parts(pairs, Some(PASS_ROWS)) {
            let seqs = sequences(part.iter().map(ScoredPair::pair));
            let factors = |nlls: &[f64]| self.factors(part, nlls);
            let adapter = &self.policy.adapter;
            let nlls = self.policy.learn(|learner| {
                learner.add_gradient(adapter, &seqs, recompute, Some(&factors), gradient)
            })?;
            losses.extend(self.verdicts(part, &nlls).iter().map(|v| v.loss));
        }
        Ok(losses)
    }

    fn measure(&self, pairs: &[ScoredPair]) -> Result<Vec<Measurement>, ForwardError> {
        let seqs = sequences(pairs.iter().map(ScoredPair::pair));
        let losses = self.policy.losses(&seqs)?;
        let verdicts = self.verdicts(pairs, &losses).into_iter().zip(pairs);
        Ok(verdicts
            .map(|(verdict, pair)| Measurement {
                loss: verdict.loss,
                margin: (pair.weight() > 0.0).then_some(verdict.margin),
            })
            .collect())
    }
}

#[cfg(test)]
mod tests;
