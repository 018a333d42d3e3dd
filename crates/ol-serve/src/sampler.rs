//! Choosing the next token from logits, the same way on every machine.

use std::collections::{BTreeMap, BTreeSet};

use ol_model::{Draw, Drawn};

use crate::constraint::{Constraint, ConstraintError};
use crate::request::StopReason;

/// Most entries of [`Sampling::logit_bias`].
pub const MAX_LOGIT_BIASES: usize = 1024;

/// Largest size of a bias, either way.
pub const MAX_LOGIT_BIAS: f32 = 100.0;

/// Most likeliest tokens reported beside each token.
pub const MAX_LOGPROBS: u32 = 20;

/// Most token ids that end an answer.
pub const MAX_STOP_TOKENS: usize = 64;

/// How tokens are drawn, and which of them end the answer.
///
/// Everything here but the seed has a value that changes nothing; all of them
/// together are [`Sampling::GREEDY`] with a temperature of 1. What is asked for
/// is applied in this order: constraint, bias, tokens that may not end the
/// answer yet, repetition, frequency and presence penalty, temperature,
/// `top_k`, `min_p`, `top_p`.
#[derive(Debug, Clone)]
pub struct Sampling {
    /// Logits are divided by it; 0 takes the likeliest token.
    pub temperature: f32,
    /// Only the smallest set of likeliest tokens whose probability reaches
    /// `top_p` takes part; 1 keeps all.
    pub top_p: f32,
    /// Only so many likeliest tokens take part; 0 keeps all.
    pub top_k: u32,
    /// Only tokens with at least this share of the likeliest token's
    /// probability take part; 0 keeps all.
    pub min_p: f32,
    /// Seed of the request's own generator.
    pub seed: u64,
    /// Taken off the logit of every token that the answer has already; -2 to 2.
    pub presence_penalty: f32,
    /// Taken off a token's logit for every time the answer has it; -2 to 2.
    pub frequency_penalty: f32,
    /// Positive logits of tokens in prompt or answer are divided by it, negative
    /// ones multiplied; above 0, 1 changes nothing.
    pub repetition_penalty: f32,
    /// Added to the logits of these tokens; at most [`MAX_LOGIT_BIASES`].
    pub logit_bias: Vec<(u32, f32)>,
    /// How many of the likeliest tokens are reported beside each drawn one, with
    /// their log-probabilities; `None` reports nothing.
    pub n_logprobs: Option<u32>,
    /// Tokens that end the answer besides those of the model; not part of it.
    pub stop_token_ids: Vec<u32>,
    /// Tokens before which no token ends the answer.
    pub min_tokens: usize,
    /// The model's end tokens are tokens like others.
    pub ignores_end: bool,
    /// What the answer has to look like.
    pub constraint: Option<Constraint>,
}

/// Why sampling parameters are refused.
#[derive(Debug, Clone, Copy, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum SamplingError {
    /// Not a number, infinite or negative.
    #[error("temperature must be a number of at least 0, found {found}")]
    Temperature {
        /// The value given.
        found: f32,
    },
    /// Not in (0, 1].
    #[error("top_p must be above 0 and at most 1, found {found}")]
    TopP {
        /// The value given.
        found: f32,
    },
    /// Another number is out of its range.
    #[error("{name} must be from {min} to {max}, found {found}")]
    Range {
        /// Name of the parameter.
        name: &'static str,
        /// The value given.
        found: f32,
        /// The least there may be.
        min: f32,
        /// The most there may be.
        max: f32,
    },
    /// A list is too long.
    #[error("{name} takes at most {max} tokens")]
    TooMany {
        /// Name of the parameter.
        name: &'static str,
        /// The most there may be.
        max: usize,
    },
}

/// The model gave logits nothing can be drawn from: a NaN, plus infinity, or
/// minus infinity everywhere. Broken weights; the request fails.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the model gave logits that are not numbers")]
pub struct UnusableLogits;

/// Why no token could be drawn.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum DrawError {
    /// The model's fault.
    #[error(transparent)]
    Logits(#[from] UnusableLogits),
    /// The constraint's: it cannot be followed within its limits.
    #[error(transparent)]
    Constraint(#[from] ConstraintError),
}

/// How likely a drawn token was, before anything of [`Sampling`] was applied.
#[derive(Debug, Clone, PartialEq)]
pub struct TokenLogprobs {
    /// Natural logarithm of the token's probability.
    pub logprob: f32,
    /// How many tokens are likelier, plus 1.
    pub rank: u32,
    /// The likeliest tokens with theirs, the likeliest first.
    pub top: Vec<(u32, f32)>,
}

impl Sampling {
    /// Always the likeliest token; of equals, the lowest id.
    pub const GREEDY: Self = Self {
        temperature: 0.0,
        top_p: 1.0,
        top_k: 0,
        min_p: 0.0,
        seed: 0,
        presence_penalty: 0.0,
        frequency_penalty: 0.0,
        repetition_penalty: 1.0,
        logit_bias: Vec::new(),
        n_logprobs: None,
        stop_token_ids: Vec::new(),
        min_tokens: 0,
        ignores_end: false,
        constraint: None,
    };

    /// Checks the ranges.
    ///
    /// # Errors
    /// [`SamplingError`] names the parameter that is out of range.
    pub fn validate(&self) -> Result<(), SamplingError> {
        if !self.temperature.is_finite() || self.temperature < 0.0 {
            return Err(SamplingError::Temperature {
                found: self.temperature,
            });
        }
        if !(self.top_p > 0.0 && self.top_p <= 1.0) {
            return Err(SamplingError::TopP { found: self.top_p });
        }
        let range = |name, found: f32, min: f32, max: f32| {
            if (min..=max).contains(&found) {
                Ok(())
            } else {
                Err(SamplingError::Range {
                    name,
                    found,
                    min,
                    max,
                })
            }
        };
        range("min_p", self.min_p, 0.0, 1.0)?;
        range("presence_penalty", self.presence_penalty, -2.0, 2.0)?;
        range("frequency_penalty", self.frequency_penalty, -2.0, 2.0)?;
        range("repetition_penalty", self.repetition_penalty, 0.01, 100.0)?;
        for &(_, bias) in &self.logit_bias {
            range("logit_bias", bias, -MAX_LOGIT_BIAS, MAX_LOGIT_BIAS)?;
        }
        let few = |name, found: usize, max: usize| {
            if found <= max {
                Ok(())
            } else {
                Err(SamplingError::TooMany { name, max })
            }
        };
        few("logit_bias", self.logit_bias.len(), MAX_LOGIT_BIASES)?;
        few("stop_token_ids", self.stop_token_ids.len(), MAX_STOP_TOKENS)?;
        few(
            "logprobs",
            self.n_logprobs.unwrap_or(0) as usize,
            MAX_LOGPROBS as usize,
        )
    }

    /// Whether logits are changed before the temperature is applied.
    fn changes_logits(&self) -> bool {
        self.constraint.is_some()
            || !self.logit_bias.is_empty()
            || self.min_tokens > 0
            || self.repetition_penalty != 1.0
            || self.has_output_penalty()
    }

    fn has_output_penalty(&self) -> bool {
        self.frequency_penalty != 0.0 || self.presence_penalty != 0.0
    }
}

/// Draws the tokens of one request.
///
/// The k-th draw depends on the seed, k, the logits and the tokens before it
/// alone: the generator is a counter, not a stream shared with other requests.
/// Arithmetic is `f64` in a fixed order with `libm`, so every machine draws the
/// same token.
#[derive(Debug, Clone)]
pub struct Sampler {
    sampling: Sampling,
    n_drawn: u64,
    /// The model's end tokens.
    end_ids: Vec<u32>,
    /// Different tokens of the prompt; empty where nothing asks for them.
    prompt_ids: BTreeSet<u32>,
    /// How often the answer has each token; empty where nothing asks for it.
    n_by_id: BTreeMap<u32, u32>,
    /// Logits as the sampling changes them; kept to reuse its memory.
    changed: Vec<f32>,
    /// `(weight, id)` of the tokens taking part; kept to reuse its memory.
    candidates: Vec<(f64, u32)>,
}

impl Sampler {
    /// A sampler before its first draw, of a request without prompt, for a model
    /// without end tokens.
    #[must_use]
    pub const fn new(sampling: Sampling) -> Self {
        Self {
            sampling,
            n_drawn: 0,
            end_ids: Vec::new(),
            prompt_ids: BTreeSet::new(),
            n_by_id: BTreeMap::new(),
            changed: Vec::new(),
            candidates: Vec::new(),
        }
    }

    /// A sampler before its first draw, for the answer to a prompt by a model
    /// with these end tokens.
    #[must_use]
    pub fn for_prompt(sampling: Sampling, prompt_ids: &[u32], end_ids: &[u32]) -> Self {
        let is_prompt_asked_for = sampling.repetition_penalty != 1.0;
        Self {
            end_ids: end_ids.to_vec(),
            prompt_ids: prompt_ids
                .iter()
                .copied()
                .filter(|_| is_prompt_asked_for)
                .collect(),
            ..Self::new(sampling)
        }
    }

    /// Whether the token, once drawn, ends the answer and is not part of it.
    #[must_use]
    pub fn is_end(&self, id: u32) -> bool {
        self.sampling.stop_token_ids.contains(&id)
            || !self.sampling.ignores_end && self.end_ids.contains(&id)
    }

    /// What of the request asked for an end at this token; `None` if it is the
    /// model's own.
    #[must_use]
    pub fn stop_reason(&self, id: u32) -> Option<StopReason> {
        let is_own = !self.sampling.ignores_end && self.end_ids.contains(&id);
        let is_asked_for = !is_own && self.sampling.stop_token_ids.contains(&id);
        is_asked_for.then_some(StopReason::Token(id))
    }

    /// Whether a constraint is met and leaves nothing to be said.
    #[must_use]
    pub fn is_complete(&self) -> bool {
        let constraint = self.sampling.constraint.as_ref();
        constraint.is_some_and(Constraint::is_complete)
    }

    /// The next token.
    ///
    /// # Shapes
    /// `logits`: `[vocab]`, natural-log scale, any offset.
    ///
    /// # Errors
    /// [`UnusableLogits`] if there is a NaN or plus infinity among them, or nothing else
    /// than minus infinity; [`ConstraintError`].
    ///
    /// # Source
    /// Nucleus sampling: Holtzman et al., arXiv:1904.09751, section 3.1. `min_p`:
    /// Nguyen et al., arXiv:2407.01082. Repetition penalty: Keskar et al.,
    /// arXiv:1909.05858, section 4.1.
    pub fn next(&mut self, logits: &[f32]) -> Result<u32, DrawError> {
        let id = if self.sampling.changes_logits() {
            argmax(logits)?;
            let mut changed = std::mem::take(&mut self.changed);
            changed.clear();
            changed.extend_from_slice(logits);
            self.change(&mut changed)?;
            let drawn = self.draw(&changed);
            self.changed = changed;
            drawn?
        } else {
            self.draw(logits)?
        };
        if !self.is_end(id) {
            self.accept(id)?;
        }
        Ok(id)
    }

    /// How an executor may draw the next token where the logits are; `None` where
    /// they have to be changed first.
    #[must_use]
    pub fn wish(&self) -> Option<Draw> {
        let sampling = &self.sampling;
        (!sampling.changes_logits()).then(|| Draw {
            temperature: sampling.temperature,
            top_k: sampling.top_k as usize,
            top_p: sampling.top_p,
            min_p: sampling.min_p,
            uniform: unit_draw(sampling.seed, self.n_drawn),
            n_top: sampling.n_logprobs.unwrap_or(0) as usize,
        })
    }

    /// Takes the token that an executor drew as [`Self::wish`] says; gives its
    /// log-probabilities, if they are asked for.
    ///
    /// # Errors
    /// [`ConstraintError`]; never where a wish was given.
    pub fn take(&mut self, drawn: Drawn) -> Result<Option<TokenLogprobs>, ConstraintError> {
        self.n_drawn += 1;
        if !self.is_end(drawn.token) {
            self.accept(drawn.token)?;
        }
        Ok(self.sampling.n_logprobs.map(|_| TokenLogprobs {
            logprob: drawn.logprob,
            rank: drawn.rank,
            top: drawn.top,
        }))
    }

    /// How likely the token was.
    ///
    /// `None` if the request asks for no log-probabilities, or there is no such
    /// token.
    #[must_use]
    pub fn logprobs(&self, logits: &[f32], id: u32) -> Option<TokenLogprobs> {
        let n_top = self.sampling.n_logprobs? as usize;
        let (_, max) = argmax(logits).ok()?;
        let drawn = *logits.get(id as usize)?;
        let sum: f64 = logits
            .iter()
            .map(|&logit| libm::exp(f64::from(logit) - f64::from(max)))
            .sum();
        let log_total = f64::from(max) + libm::log(sum);
        #[expect(clippy::cast_possible_truncation, reason = "shown, not computed with")]
        let logprob = |logit: f32| (f64::from(logit) - log_total) as f32;
        let n_likelier = logits.iter().filter(|&&logit| logit > drawn).count();
        let mut top: Vec<(u32, f32)> = (0_u32..).zip(logits.iter().copied()).collect();
        let by_logit = |a: &(u32, f32), b: &(u32, f32)| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0));
        if n_top < top.len() {
            top.select_nth_unstable_by(n_top, by_logit);
            top.truncate(n_top);
        }
        top.sort_unstable_by(by_logit);
        for (_, value) in &mut top {
            *value = logprob(*value);
        }
        Some(TokenLogprobs {
            logprob: logprob(drawn),
            rank: u32::try_from(n_likelier + 1).unwrap_or(u32::MAX),
            top,
        })
    }

    /// Remembers a token that became part of the answer.
    fn accept(&mut self, id: u32) -> Result<(), ConstraintError> {
        if let Some(constraint) = &mut self.sampling.constraint {
            constraint.accept(id)?;
        }
        if self.sampling.has_output_penalty() || self.sampling.repetition_penalty != 1.0 {
            *self.n_by_id.entry(id).or_insert(0) += 1;
        }
        Ok(())
    }

    /// Applies what changes single logits.
    fn change(&mut self, logits: &mut [f32]) -> Result<(), ConstraintError> {
        let Self {
            sampling,
            n_drawn,
            end_ids,
            prompt_ids,
            n_by_id,
            ..
        } = self;
        if let Some(constraint) = &mut sampling.constraint {
            constraint.mask(logits, end_ids, &sampling.stop_token_ids)?;
        }
        let mut at = |id: u32, change: &dyn Fn(f32) -> f32| {
            if let Some(logit) = logits.get_mut(id as usize) {
                *logit = change(*logit);
            }
        };
        for &(id, bias) in &sampling.logit_bias {
            at(id, &|logit| logit + bias);
        }
        if (*n_drawn as u128) < sampling.min_tokens as u128 {
            for &id in end_ids.iter().chain(&sampling.stop_token_ids) {
                at(id, &|_| f32::NEG_INFINITY);
            }
        }
        if sampling.repetition_penalty != 1.0 {
            let penalty = sampling.repetition_penalty;
            for &id in prompt_ids
                .iter()
                .chain(n_by_id.keys().filter(|id| !prompt_ids.contains(id)))
            {
                at(id, &|logit| {
                    if logit > 0.0 {
                        logit / penalty
                    } else {
                        logit * penalty
                    }
                });
            }
        }
        if sampling.has_output_penalty() {
            for (&id, &n) in &*n_by_id {
                #[expect(clippy::cast_precision_loss, reason = "an answer is far shorter")]
                let taken = sampling.presence_penalty + sampling.frequency_penalty * n as f32;
                at(id, &|logit| logit - taken);
            }
        }
        Ok(())
    }

    fn draw(&mut self, logits: &[f32]) -> Result<u32, UnusableLogits> {
        let (likeliest, max) = argmax(logits)?;
        let draw = unit_draw(self.sampling.seed, self.n_drawn);
        self.n_drawn += 1;
        if self.sampling.temperature == 0.0 {
            return Ok(likeliest);
        }
        let temperature = f64::from(self.sampling.temperature);
        self.candidates.clear();
        self.candidates
            .extend((0_u32..).zip(logits).filter_map(|(id, &logit)| {
                let weight = libm::exp((f64::from(logit) - f64::from(max)) / temperature);
                (weight > 0.0).then_some((weight, id))
            }));
        self.keep_top_k();
        if self.sampling.min_p > 0.0 {
            // The likeliest token has weight 1.
            let least = f64::from(self.sampling.min_p);
            self.candidates.retain(|(weight, _)| *weight >= least);
        }
        if self.sampling.top_p < 1.0 {
            self.keep_nucleus();
        }
        let total: f64 = self.candidates.iter().map(|(weight, _)| weight).sum();
        let target = draw * total;
        let mut sum = 0.0;
        for &(weight, id) in &self.candidates {
            sum += weight;
            if sum > target {
                return Ok(id);
            }
        }
        // Only rounding of `draw * total` up to `total` leads here.
        Ok(self.candidates.last().map_or(likeliest, |&(_, id)| id))
    }

    /// Keeps the `top_k` likeliest tokens; of equals, those with lower ids.
    fn keep_top_k(&mut self) {
        let n_kept = self.sampling.top_k as usize;
        if n_kept == 0 || n_kept >= self.candidates.len() {
            return;
        }
        self.candidates
            .select_nth_unstable_by(n_kept, |a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)));
        self.candidates.truncate(n_kept);
        // What is left of the order above depends on the algorithm.
        self.candidates.sort_unstable_by_key(|&(_, id)| id);
    }

    /// Keeps the shortest run of likeliest tokens that reaches `top_p`.
    fn keep_nucleus(&mut self) {
        self.candidates
            .sort_unstable_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)));
        let total: f64 = self.candidates.iter().map(|(weight, _)| weight).sum();
        let wanted = f64::from(self.sampling.top_p) * total;
        let mut sum = 0.0;
        let n_kept = self.candidates.iter().position(|(weight, _)| {
            sum += weight;
            sum >= wanted
        });
        if let Some(last) = n_kept {
            self.candidates.truncate(last + 1);
        }
    }
}

/// The largest logit and its position; of equals the first.
fn argmax(logits: &[f32]) -> Result<(u32, f32), UnusableLogits> {
    let mut best = None;
    for (id, &logit) in (0_u32..).zip(logits) {
        if logit.is_nan() || logit == f32::INFINITY {
            return Err(UnusableLogits);
        }
        if best.is_none_or(|(_, max)| logit > max) {
            best = Some((id, logit));
        }
    }
    best.filter(|(_, max)| max.is_finite())
        .ok_or(UnusableLogits)
}

/// The `counter`-th number of a seed, uniform in [0, 1) on a grid of 2⁻⁵³.
///
/// # Source
/// SplitMix64: Steele, Lea and Flood, "Fast splittable pseudorandom number
/// generators", 2014; the seed is mixed first, so that near seeds do not overlap.
fn unit_draw(seed: u64, counter: u64) -> f64 {
    const GOLDEN: u64 = 0x9e37_79b9_7f4a_7c15;
    let start = mix(seed.wrapping_add(GOLDEN));
    let bits = mix(start.wrapping_add(counter.wrapping_add(1).wrapping_mul(GOLDEN)));
    // 53 bits are exact in an f64.
    (bits >> 11) as f64 / (1_u64 << 53) as f64
}

const fn mix(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests;
