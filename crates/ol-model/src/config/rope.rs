//! Rotary position embedding: the rates of rotation and their scalings.

use super::ConfigError;

/// How the rates of the rotary embedding are stretched for longer contexts.
///
/// Names and formulas are those of transformers' `rope_type`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Rope {
    /// `theta^(-2i/d)` (Su et al., 2021).
    Default,
    /// All rates divided by `factor` (Chen et al., 2023).
    Linear {
        /// The divisor, at least 1.
        factor: f64,
    },
    /// NTK-aware scaling that only acts beyond `max_position_embeddings`. A
    /// context never gets longer than that here, so it equals
    /// [`Rope::Default`]; the factor is kept for the file.
    Dynamic {
        /// Stretch beyond the limit.
        factor: f64,
    },
    /// Llama 3.1: long waves are slowed by `factor`, short ones kept.
    Llama3 {
        /// Divisor of the slow rates.
        factor: f64,
        /// Waves longer than `original / low_freq_factor` are slowed.
        low_freq_factor: f64,
        /// Waves shorter than `original / high_freq_factor` are kept.
        high_freq_factor: f64,
        /// Context before the stretch.
        original_max_position_embeddings: usize,
    },
    /// YaRN (Peng et al., 2023).
    Yarn {
        /// Divisor of the slow rates.
        factor: f64,
        /// Context before the stretch.
        original_max_position_embeddings: usize,
        /// Factor of cosines and sines; derived from the others when absent.
        attention_factor: Option<f64>,
        /// Rotations above which a rate is kept.
        beta_fast: f64,
        /// Rotations below which a rate is divided.
        beta_slow: f64,
        /// Weighs the logarithm in the derived attention factor.
        mscale: Option<f64>,
        /// Divides it; DeepSeek also scales its scores by it.
        mscale_all_dim: Option<f64>,
        /// Whether the bounds of the ramp are rounded outwards.
        truncate: bool,
    },
}

/// YaRN's `0.1 mscale ln(scale) + 1`.
pub(crate) fn yarn_mscale(scale: f64, mscale: f64) -> f64 {
    if scale <= 1.0 {
        1.0
    } else {
        0.1 * mscale * libm::log(scale) + 1.0
    }
}

impl Rope {
    /// The `rope_type` in files.
    #[must_use]
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Default => "default",
            Self::Linear { .. } => "linear",
            Self::Dynamic { .. } => "dynamic",
            Self::Llama3 { .. } => "llama3",
            Self::Yarn { .. } => "yarn",
        }
    }

    /// Radians a position adds to each of the `dim / 2` pairs, in f64.
    #[expect(clippy::cast_precision_loss, reason = "widths and contexts are small")]
    pub(crate) fn rates(&self, theta: f64, dim: usize) -> Vec<f64> {
        let base: Vec<f64> = (0..dim / 2)
            .map(|i| libm::pow(theta, -(2.0 * i as f64) / dim as f64))
            .collect();
        match *self {
            Self::Default | Self::Dynamic { .. } => base,
            Self::Linear { factor } => base.into_iter().map(|r| r / factor).collect(),
            Self::Llama3 {
                factor,
                low_freq_factor: low,
                high_freq_factor: high,
                original_max_position_embeddings,
            } => {
                let original = original_max_position_embeddings as f64;
                let stretch = |rate: f64| {
                    let wave = std::f64::consts::TAU / rate;
                    if wave < original / high {
                        rate
                    } else if wave > original / low {
                        rate / factor
                    } else {
                        let smooth = (original / wave - low) / (high - low);
                        (1.0 - smooth) * rate / factor + smooth * rate
                    }
                };
                base.into_iter().map(stretch).collect()
            }
            Self::Yarn {
                factor,
                original_max_position_embeddings,
                beta_fast,
                beta_slow,
                truncate,
                ..
            } => {
                let original = original_max_position_embeddings as f64;
                // The pair that turns `rotations` times within the context.
                let pair = |rotations: f64| {
                    dim as f64 * libm::log(original / (rotations * std::f64::consts::TAU))
                        / (2.0 * libm::log(theta))
                };
                let (mut low, mut high) = (pair(beta_fast), pair(beta_slow));
                if truncate {
                    (low, high) = (low.floor(), high.ceil());
                }
                let low = low.max(0.0);
                let mut high = high.min(dim as f64 - 1.0);
                if low == high {
                    high += 0.001;
                }
                base.into_iter()
                    .enumerate()
                    .map(|(i, rate)| {
                        let ramp = ((i as f64 - low) / (high - low)).clamp(0.0, 1.0);
                        rate / factor * ramp + rate * (1.0 - ramp)
                    })
                    .collect()
            }
        }
    }

    /// Factor of all cosines and sines.
    pub(crate) fn attention_factor(&self) -> f64 {
        match *self {
            Self::Yarn {
                factor,
                attention_factor,
                mscale,
                mscale_all_dim,
                ..
            } => attention_factor.unwrap_or_else(|| {
                match (
                    mscale.filter(|m| *m != 0.0),
                    mscale_all_dim.filter(|m| *m != 0.0),
                ) {
                    (Some(m), Some(all)) => yarn_mscale(factor, m) / yarn_mscale(factor, all),
                    _ => yarn_mscale(factor, 1.0),
                }
            }),
            _ => 1.0,
        }
    }

    /// Factor of the attention scores in DeepSeek's latent attention:
    /// `mscale(factor, mscale_all_dim)^2` under YaRN.
    #[must_use]
    pub fn score_factor(&self) -> f64 {
        match *self {
            Self::Yarn {
                factor,
                mscale_all_dim: Some(all),
                ..
            } if all != 0.0 => {
                let mscale = yarn_mscale(factor, all);
                mscale * mscale
            }
            _ => 1.0,
        }
    }

    /// Checks the numbers.
    pub(super) fn check(&self, theta: f64) -> Result<(), ConfigError> {
        let bad = |name: &str, value: f64, want: &str| {
            Err(ConfigError::Invalid(format!(
                "rope_parameters: {name} is {value}, expected {want}"
            )))
        };
        let factor = match *self {
            Self::Default => 1.0,
            Self::Linear { factor }
            | Self::Dynamic { factor }
            | Self::Llama3 { factor, .. }
            | Self::Yarn { factor, .. } => factor,
        };
        if !(1.0..=1e6).contains(&factor) {
            return bad("factor", factor, "a number from 1 to 1e6");
        }
        match *self {
            Self::Llama3 {
                low_freq_factor: low,
                high_freq_factor: high,
                original_max_position_embeddings: original,
                ..
            } => {
                if !(low > 0.0 && low.is_finite()) {
                    return bad("low_freq_factor", low, "a positive number");
                }
                if !(high > low && high.is_finite()) {
                    return bad("high_freq_factor", high, "more than low_freq_factor");
                }
                check_original(original)
            }
            Self::Yarn {
                original_max_position_embeddings: original,
                attention_factor,
                beta_fast,
                beta_slow,
                mscale,
                mscale_all_dim,
                ..
            } => {
                if !(beta_slow > 0.0 && beta_slow.is_finite()) {
                    return bad("beta_slow", beta_slow, "a positive number");
                }
                if !(beta_fast >= beta_slow && beta_fast.is_finite()) {
                    return bad("beta_fast", beta_fast, "at least beta_slow");
                }
                if theta <= 1.0 {
                    return bad("rope_theta", theta, "more than 1");
                }
                for (name, value) in [
                    ("attention_factor", attention_factor),
                    ("mscale", mscale),
                    ("mscale_all_dim", mscale_all_dim),
                ] {
                    if let Some(value) = value.filter(|v| !(0.0..=1e3).contains(v)) {
                        return bad(name, value, "a number from 0 to 1000");
                    }
                }
                check_original(original)
            }
            _ => Ok(()),
        }
    }

    /// Appends tag and numbers as 64-bit big-endian words, for hashing.
    pub(super) fn encode(&self, out: &mut Vec<u8>) {
        let optional = |v: Option<f64>| [f64::from(u8::from(v.is_some())), v.unwrap_or(0.0)];
        #[expect(clippy::cast_precision_loss, reason = "contexts are below 2^53")]
        let (tag, numbers): (u64, Vec<f64>) = match *self {
            Self::Default => (0, vec![]),
            Self::Linear { factor } => (1, vec![factor]),
            Self::Dynamic { factor } => (2, vec![factor]),
            Self::Llama3 {
                factor,
                low_freq_factor,
                high_freq_factor,
                original_max_position_embeddings,
            } => (
                3,
                vec![
                    factor,
                    low_freq_factor,
                    high_freq_factor,
                    original_max_position_embeddings as f64,
                ],
            ),
            Self::Yarn {
                factor,
                original_max_position_embeddings,
                attention_factor,
                beta_fast,
                beta_slow,
                mscale,
                mscale_all_dim,
                truncate,
            } => {
                let mut numbers = vec![
                    factor,
                    original_max_position_embeddings as f64,
                    beta_fast,
                    beta_slow,
                    f64::from(u8::from(truncate)),
                ];
                for value in [attention_factor, mscale, mscale_all_dim] {
                    numbers.extend(optional(value));
                }
                (4, numbers)
            }
        };
        out.extend(tag.to_be_bytes());
        out.extend(numbers.iter().flat_map(|n| n.to_be_bytes()));
    }
}

fn check_original(original: usize) -> Result<(), ConfigError> {
    if original == 0 || original > super::MAX_POSITIONS {
        return Err(ConfigError::Invalid(format!(
            "rope_parameters: original_max_position_embeddings is {original}, allowed are 1 to {}",
            super::MAX_POSITIONS
        )));
    }
    Ok(())
}
