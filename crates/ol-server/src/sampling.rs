//! How an answer is drawn: as its request says, else as the model's makers
//! recommend, else from the model's own distribution.

use std::fmt;

use ol_model::GenerationConfig;
use ol_serve::{Sampling, SamplingError};

/// How tokens are drawn, as far as a request says it.
#[derive(Debug, Clone)]
pub struct SamplingRequest {
    /// As in [`Sampling`].
    pub temperature: Option<f32>,
    /// As in [`Sampling`].
    pub top_p: Option<f32>,
    /// As in [`Sampling`].
    pub top_k: Option<u32>,
    /// As in [`Sampling`].
    pub min_p: Option<f32>,
    /// As in [`Sampling`].
    pub repetition_penalty: Option<f32>,
    /// What no model recommends: the other fields. Those above, the seed and the
    /// constraint are not looked at.
    pub rest: Sampling,
}

impl Default for SamplingRequest {
    /// Says nothing.
    fn default() -> Self {
        Self {
            temperature: None,
            top_p: None,
            top_k: None,
            min_p: None,
            repetition_penalty: None,
            rest: Sampling::GREEDY,
        }
    }
}

/// How tokens are drawn where a request does not say.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct SamplingDefaults {
    temperature: f32,
    top_p: f32,
    top_k: u32,
    min_p: f32,
    repetition_penalty: f32,
}

impl Default for SamplingDefaults {
    /// The model's own distribution, as at OpenAI.
    fn default() -> Self {
        Self {
            temperature: 1.0,
            top_p: 1.0,
            top_k: 0,
            min_p: 0.0,
            repetition_penalty: 1.0,
        }
    }
}

impl SamplingDefaults {
    /// What a model's makers recommend. `do_sample: false` is a temperature of 0.
    ///
    /// # Errors
    /// [`SamplingError`] if a number is one that no request may have either.
    pub fn recommended(config: &GenerationConfig) -> Result<Self, SamplingError> {
        let ours = Self::default();
        let is_greedy = config.do_sample == Some(false);
        let temperature = config.temperature.unwrap_or(ours.temperature);
        let found = Self {
            temperature: if is_greedy { 0.0 } else { temperature },
            top_p: config.top_p.unwrap_or(ours.top_p),
            top_k: config.top_k.unwrap_or(ours.top_k),
            min_p: config.min_p.unwrap_or(ours.min_p),
            repetition_penalty: config.repetition_penalty.unwrap_or(ours.repetition_penalty),
        };
        found.resolve(SamplingRequest::default()).validate()?;
        Ok(found)
    }

    /// A request's sampling, with what it does not say filled in. The seed is 0.
    pub(crate) fn resolve(&self, request: SamplingRequest) -> Sampling {
        Sampling {
            temperature: request.temperature.unwrap_or(self.temperature),
            // A nucleus of nothing holds the likeliest token, as the smallest one does.
            top_p: request.top_p.unwrap_or(self.top_p).max(f32::MIN_POSITIVE),
            top_k: request.top_k.unwrap_or(self.top_k),
            min_p: request.min_p.unwrap_or(self.min_p),
            repetition_penalty: request
                .repetition_penalty
                .unwrap_or(self.repetition_penalty),
            seed: 0,
            constraint: None,
            ..request.rest
        }
    }
}

impl fmt::Display for SamplingDefaults {
    /// What differs from [`SamplingDefaults::default`].
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ours = Self::default();
        #[expect(clippy::cast_precision_loss, reason = "for people")]
        let parts: Vec<String> = [
            ("temperature", self.temperature, ours.temperature),
            ("top_p", self.top_p, ours.top_p),
            ("top_k", self.top_k as f32, ours.top_k as f32),
            ("min_p", self.min_p, ours.min_p),
            (
                "repetition_penalty",
                self.repetition_penalty,
                ours.repetition_penalty,
            ),
        ]
        .into_iter()
        .filter(|(_, found, ours)| found != ours)
        .map(|(name, found, _)| format!("{name} {found}"))
        .collect();
        f.write_str(&parts.join(", "))
    }
}

#[cfg(test)]
mod tests;
