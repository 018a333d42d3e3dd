//! How much an answer leant on each passage that it was given.
//!
//! The drop of a passage is what the answer's log-probability loses when the
//! passage is left out of the prompt. For up to [`LEAVE_ONE_OUT_MAX`] passages
//! each is left out once. Above, passages are left out at random, half of them
//! at a time, and a sparse linear model of the log-probability is fitted to
//! that (ContextCite, Cohen-Wang et al., arXiv:2409.00729); the drop of a
//! passage is its coefficient.
//!
//! Drops are milli-nats. The log-probability of each prompt is rounded once,
//! and leave-one-out drops are differences of those integers. Everything before
//! has one order of operations (`ol-model`), so drops are the same on every
//! machine; who is paid by them is decided by `ol_poa::context`.

use ol_model::{ForwardError, Lora, Model, Pool, Random, Sequence};

mod lasso;

/// Up to so many passages each is left out by itself.
pub const LEAVE_ONE_OUT_MAX: usize = 8;

/// Random ablations of more passages than that.
pub const ABLATIONS: usize = 64;

/// The most passages; a draw has a bit for each.
pub const PASSAGES_MAX: usize = 64;

/// Seed of the random ablations.
const SEED: u64 = 0x636F_6E74_6578_7431;

/// An answer and the model that gave it.
#[derive(Debug, Clone, Copy)]
pub struct Answered<'a> {
    /// The base model.
    pub model: &'a Model,
    /// Threads; their number changes no bit.
    pub pool: &'a Pool,
    /// The adapter, if the answer came from one.
    pub adapter: Option<&'a Lora>,
    /// The answer's tokens.
    pub tokens: &'a [u32],
}

/// The tokens of the prompt with those passages that its argument says.
pub type PromptOf<'a, E> = &'a dyn Fn(&[bool]) -> Result<Vec<u32>, E>;

/// Why there are no drops.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DropsError<E: std::error::Error + 'static> {
    /// There are more passages than can be told apart.
    #[error("{n_passages} passages, at most {PASSAGES_MAX} can be told apart")]
    TooMany {
        /// How many there are.
        n_passages: usize,
    },
    /// A prompt could not be made.
    #[error("a prompt without some of the passages cannot be made")]
    Prompt(#[source] E),
    /// The model refused a prompt.
    #[error(transparent)]
    Forward(#[from] ForwardError),
}

impl Answered<'_> {
    /// What the answer loses without each passage, in milli-nats; 0 for those
    /// that it does not lose by.
    ///
    /// `prompt` gives the tokens of the prompt with those passages that its
    /// argument says (`[n_passages]`). All prompts go through the model in
    /// packed passes of bounded size: `n_passages + 1` for up to
    /// [`LEAVE_ONE_OUT_MAX`] passages, [`ABLATIONS`] `+ 1` above.
    ///
    /// # Errors
    /// [`DropsError`].
    pub fn drops<E: std::error::Error + 'static>(
        &self,
        n_passages: usize,
        prompt: PromptOf<'_, E>,
    ) -> Result<Vec<u32>, DropsError<E>> {
        if n_passages > PASSAGES_MAX {
            return Err(DropsError::TooMany { n_passages });
        }
        if n_passages == 0 || self.tokens.is_empty() {
            return Ok(vec![0; n_passages]);
        }
        if n_passages <= LEAVE_ONE_OUT_MAX {
            let mut masks = vec![vec![true; n_passages]; n_passages + 1];
            for (left_out, mask) in masks[1..].iter_mut().enumerate() {
                mask[left_out] = false;
            }
            let found = self.log_probabilities(&masks, prompt)?;
            let drop = |without: &i64| clamp(found[0].saturating_sub(*without));
            return Ok(found[1..].iter().map(drop).collect());
        }
        let masks = random_masks(n_passages);
        let found = self.log_probabilities(&masks, prompt)?;
        Ok(lasso::fit(&masks, &found, self.tokens.len())
            .into_iter()
            .map(clamp)
            .collect())
    }

    /// The answer's log-probability after each prompt, in milli-nats.
    ///
    /// # Errors
    /// [`DropsError::Prompt`], [`DropsError::Forward`].
    fn log_probabilities<E: std::error::Error + 'static>(
        &self,
        masks: &[Vec<bool>],
        prompt: PromptOf<'_, E>,
    ) -> Result<Vec<i64>, DropsError<E>> {
        let sequence = |mask: &Vec<bool>| {
            let mut tokens = prompt(mask).map_err(DropsError::Prompt)?;
            let mut weights = vec![0.0; tokens.len()];
            weights.resize(tokens.len() + self.tokens.len(), 1.0);
            tokens.extend(self.tokens);
            Ok::<_, DropsError<E>>(Sequence { tokens, weights })
        };
        let sequences: Vec<Sequence> = masks
            .iter()
            .map(sequence)
            .collect::<Result<_, DropsError<E>>>()?;
        let losses = self.model.losses(self.pool, self.adapter, &sequences)?;
        Ok(losses.into_iter().map(|nats| -millinats(nats)).collect())
    }
}

/// Nats as milli-nats, the nearest; halves away from 0.
fn millinats(nats: f64) -> i64 {
    #[expect(
        clippy::cast_possible_truncation,
        reason = "some thousands of tokens of at most 200 nats; a cast saturates anyway"
    )]
    {
        (nats * 1_000.0).round() as i64
    }
}

fn clamp(drop: i64) -> u32 {
    u32::try_from(drop.max(0)).unwrap_or(u32::MAX)
}

/// Each passage with probability one half, [`ABLATIONS`] times; and all of them,
/// once.
fn random_masks(n_passages: usize) -> Vec<Vec<bool>> {
    let mut random = Random::new(SEED);
    let mut masks: Vec<Vec<bool>> = (0..ABLATIONS)
        .map(|_| {
            let bits = random.next_u64();
            (0..n_passages).map(|j| bits >> j & 1 == 1).collect()
        })
        .collect();
    masks.push(vec![true; n_passages]);
    masks
}

#[cfg(test)]
mod tests;
