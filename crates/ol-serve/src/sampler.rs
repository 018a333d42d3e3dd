//! Choosing the next token from logits, the same way on every machine.

/// How tokens are drawn.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Sampling {
    /// Logits are divided by it; 0 takes the likeliest token.
    pub temperature: f32,
    /// Only the smallest set of likeliest tokens whose probability reaches
    /// `top_p` takes part; 1 keeps all.
    pub top_p: f32,
    /// Seed of the request's own generator.
    pub seed: u64,
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
}

/// The model gave logits nothing can be drawn from: a NaN, plus infinity, or
/// minus infinity everywhere. Broken weights; the request fails.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the model gave logits that are not numbers")]
pub struct UnusableLogits;

impl Sampling {
    /// Always the likeliest token; of equals, the lowest id.
    pub const GREEDY: Self = Self {
        temperature: 0.0,
        top_p: 1.0,
        seed: 0,
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
        Ok(())
    }
}

/// Draws the tokens of one request.
///
/// The k-th draw depends on the seed, k and the logits alone: the generator is
/// a counter, not a stream shared with other requests. Arithmetic is `f64` in a
/// fixed order with `libm`, so every machine draws the same token.
#[derive(Debug, Clone)]
pub struct Sampler {
    sampling: Sampling,
    n_drawn: u64,
    /// `(weight, id)` of the tokens taking part; kept to reuse its memory.
    candidates: Vec<(f64, u32)>,
}

impl Sampler {
    /// A sampler before its first draw.
    #[must_use]
    pub const fn new(sampling: Sampling) -> Self {
        Self {
            sampling,
            n_drawn: 0,
            candidates: Vec::new(),
        }
    }

    /// The next token.
    ///
    /// # Shapes
    /// `logits`: `[vocab]`, natural-log scale, any offset.
    ///
    /// # Errors
    /// [`UnusableLogits`] if there is a NaN or plus infinity among them, or nothing else
    /// than minus infinity.
    ///
    /// # Source
    /// Nucleus sampling: Holtzman et al., arXiv:1904.09751, section 3.1.
    pub fn next(&mut self, logits: &[f32]) -> Result<u32, UnusableLogits> {
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
