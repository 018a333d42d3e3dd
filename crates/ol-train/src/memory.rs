//! What a run of training will need, before it starts.

use std::fmt;
use std::path::Path;

use ol_model::{Format, LoraConfig, ModelConfig, WeightFormat};
use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::adamw::AdamW;
use crate::options::{Optimizer, TrainOptions};

/// Rows that a pass of the model has at most, unless one sequence is longer.
pub(crate) const PASS_ROWS: usize = 2048;
/// Rows whose logits exist at the same time.
const LOGIT_ROWS: usize = 256;
/// f32 models up to this size keep their matrices turned for backward passes.
const KEPT_BACK_SIZE_BYTES: usize = 256 << 20;
/// Rows of a matrix that are turned at a time where it is not kept.
const BACK_ROWS: usize = 1024;
/// Queries of one attention task, whose scores exist at the same time.
const QUERY_ROWS: usize = 64;
/// Columns that products pad their right-hand sides to.
const PANEL: usize = 16;
/// Program, stacks, what products pack for each thread, and what the allocator
/// keeps.
const FIXED_SIZE_BYTES: usize = 16 << 20;
const F32: usize = size_of::<f32>();

/// The frozen base in memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BaseMemory {
    /// Its weights.
    pub size_bytes: usize,
    /// Whether its matrices are f32.
    pub is_dense: bool,
}

impl BaseMemory {
    /// A base whose matrices are held in `format`.
    #[must_use]
    pub fn of(config: &ModelConfig, format: WeightFormat) -> Self {
        let size_bytes = config.weight_size_bytes(format);
        Self {
            size_bytes: usize::try_from(size_bytes).unwrap_or(usize::MAX),
            is_dense: format == WeightFormat::F32,
        }
    }

    /// Matrices kept turned for the backward pass.
    fn kept_back_bytes(&self) -> usize {
        if self.is_dense && self.size_bytes <= KEPT_BACK_SIZE_BYTES {
            self.size_bytes
        } else {
            0
        }
    }
}

/// What decides over the memory of a run.
#[derive(Debug, Clone, Copy)]
pub struct MemoryPlan<'a> {
    /// Shape of the model.
    pub config: &'a ModelConfig,
    /// The base.
    pub base: BaseMemory,
    /// Shape of the adapter.
    pub lora: &'a LoraConfig,
    /// Its parameters.
    pub n_params: usize,
    /// How it is trained.
    pub options: &'a TrainOptions,
    /// Tokens of the longest sequence; with preferences of the longest pair.
    pub longest_tokens: usize,
    /// Tokens of all sequences.
    pub data_tokens: usize,
    /// Threads.
    pub n_threads: usize,
}

/// Memory of a run by what it is for, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemoryEstimate {
    /// Activations kept for the backward pass, and what it works with.
    pub activations_bytes: usize,
    /// The adapter, with copies that products read and the best one if kept.
    pub adapter_bytes: usize,
    /// Weights of the base, with copies for the backward pass.
    pub base_bytes: usize,
    /// A checkpoint while it is written.
    pub checkpoint_bytes: usize,
    /// Training data, and the program itself.
    pub data_bytes: usize,
    /// The gradient.
    pub gradient_bytes: usize,
    /// Logits and their gradient.
    pub logits_bytes: usize,
    /// Moments of the optimiser.
    pub optimizer_bytes: usize,
}

impl MemoryEstimate {
    /// All of it together.
    #[must_use]
    pub fn total_bytes(&self) -> usize {
        self.parts()
            .iter()
            .fold(0, |sum, (_, bytes)| sum.saturating_add(*bytes))
    }

    /// Each part with its name.
    #[must_use]
    pub fn parts(&self) -> [(&'static str, usize); 8] {
        [
            ("base", self.base_bytes),
            ("activations", self.activations_bytes),
            ("logits", self.logits_bytes),
            ("adapter", self.adapter_bytes),
            ("gradient", self.gradient_bytes),
            ("optimizer", self.optimizer_bytes),
            ("checkpoint", self.checkpoint_bytes),
            ("data", self.data_bytes),
        ]
    }
}

impl fmt::Display for MemoryEstimate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: ", Size(self.total_bytes()))?;
        for (i, (name, bytes)) in self.parts().into_iter().enumerate() {
            let comma = if i > 0 { ", " } else { "" };
            write!(f, "{comma}{name} {}", Size(bytes))?;
        }
        Ok(())
    }
}

/// Bytes for people.
struct Size(usize);

impl fmt::Display for Size {
    #[expect(clippy::cast_precision_loss, reason = "two digits are shown")]
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let bytes = self.0 as f64;
        if self.0 >= 1 << 30 {
            write!(f, "{:.1} GiB", bytes / f64::from(1 << 30))
        } else {
            write!(f, "{:.0} MiB", (bytes / f64::from(1 << 20)).ceil())
        }
    }
}

/// A setting that makes a run smaller.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Saving {
    /// `micro_batch_tokens` of the options.
    MicroBatchTokens(usize),
    /// `recompute` of the options.
    Recompute,
    /// `optimizer` of the options: moments in 8 bits.
    EightBitMoments,
    /// A base in NF4.
    QuantisedBase,
}

impl fmt::Display for Saving {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::MicroBatchTokens(n) => write!(f, "micro_batch_tokens = {n}"),
            Self::Recompute => f.write_str("recompute = true"),
            Self::EightBitMoments => f.write_str("optimizer = \"adamw_8bit\""),
            Self::QuantisedBase => f.write_str("the base quantised to nf4"),
        }
    }
}

/// Settings with which a run would fit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fit {
    /// What to change; nothing of it can be left out.
    pub savings: Vec<Saving>,
    /// What the run then needs.
    pub total_bytes: usize,
}

/// The run does not fit the machine.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub struct TooLittleMemory {
    /// What the run needs.
    pub estimate: MemoryEstimate,
    /// What there is.
    pub available_bytes: usize,
    /// Settings with which it would fit, the smallest changes first.
    pub fits: Vec<Fit>,
    /// What it needs with all savings.
    pub least_bytes: usize,
}

impl fmt::Display for TooLittleMemory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "training needs {}; {} are available",
            self.estimate,
            Size(self.available_bytes)
        )?;
        if self.fits.is_empty() {
            return write!(
                f,
                ". With every saving it needs {}: take shorter sequences, a lower rank or a smaller base",
                Size(self.least_bytes)
            );
        }
        f.write_str(". It would fit with ")?;
        for (i, fit) in self.fits.iter().enumerate() {
            f.write_str(if i > 0 { "; or with " } else { "" })?;
            for (j, saving) in fit.savings.iter().enumerate() {
                write!(f, "{}{saving}", if j > 0 { " and " } else { "" })?;
            }
            write!(f, " ({})", Size(fit.total_bytes))?;
        }
        Ok(())
    }
}

impl MemoryPlan<'_> {
    /// What the run will need at its peak.
    #[must_use]
    pub fn estimate(&self) -> MemoryEstimate {
        let (c, options) = (self.config, self.options);
        let n = self.n_params;
        let optimizer_bytes = AdamW::size_bytes(options.optimizer, n);
        let best = if options.keep_best { n * F32 } else { 0 };
        // A factor is held as it is, and as the right-hand side of products
        // forth and back, of which one is padded; the one replaced dies last.
        let padded = self
            .lora
            .rank
            .next_multiple_of(PANEL)
            .div_ceil(self.lora.rank.max(1));
        let adapter_bytes = n * F32 * (2 + 3 * (1 + padded) / 2) + n + best;
        let rows = self.rows();
        let ranks = self.rank_most() * self.lora.target_modules.len();
        let row = c.activation_size_bytes_per_token(ranks, options.recompute);
        // A tenth for the inputs that products pack.
        let row = usize::try_from(row + row / 10).unwrap_or(usize::MAX);
        let longest = self.longest_tokens.min(c.max_position_embeddings + 1);
        // Keys, values, queries and their gradients of the heads at work, and
        // the scores of some queries.
        let attention = self.n_threads * longest * (12 * c.head_dim + 2 * QUERY_ROWS);
        let back = if self.base.kept_back_bytes() > 0 {
            0
        } else {
            BACK_ROWS * c.hidden_size.max(c.intermediate_size)
        };
        let logits = LOGIT_ROWS * (c.vocab_size + PANEL + 3 * c.hidden_size);
        MemoryEstimate {
            activations_bytes: rows.saturating_mul(row) + F32 * (attention + back),
            adapter_bytes,
            base_bytes: self.base.size_bytes + self.base.kept_back_bytes(),
            checkpoint_bytes: n * F32 + optimizer_bytes + best,
            // Token and weight, once more in the batch.
            data_bytes: 2 * self.data_tokens * 8 + FIXED_SIZE_BYTES,
            gradient_bytes: n * F32,
            logits_bytes: F32 * logits,
            optimizer_bytes,
        }
    }

    /// The largest rank of a module.
    fn rank_most(&self) -> usize {
        let others = self.lora.rank_pattern.values().copied();
        others.fold(self.lora.rank, usize::max)
    }

    /// Rows of the largest pass.
    fn rows(&self) -> usize {
        let options = self.options;
        let longest = self.longest_tokens.max(1);
        let batch = match options.batch_sequences {
            Some(n) => n.saturating_mul(longest),
            None => options.batch_tokens.saturating_add(longest),
        };
        let part = PASS_ROWS.min(options.micro_batch_tokens.unwrap_or(PASS_ROWS));
        batch.min(part.max(longest))
    }

    /// Compares the estimate with the memory there is.
    ///
    /// # Errors
    /// [`TooLittleMemory`] with settings that would fit.
    pub fn check(&self, available_bytes: usize) -> Result<MemoryEstimate, TooLittleMemory> {
        let estimate = self.estimate();
        if estimate.total_bytes() <= available_bytes {
            return Ok(estimate);
        }
        let least_micro = self.longest_tokens.clamp(64, PASS_ROWS);
        let all: Vec<Saving> = [
            (self.rows() > least_micro).then_some(Saving::MicroBatchTokens(least_micro)),
            (!self.options.recompute).then_some(Saving::Recompute),
            (self.options.optimizer != Optimizer::AdamW8Bit).then_some(Saving::EightBitMoments),
            self.base.is_dense.then_some(Saving::QuantisedBase),
        ]
        .into_iter()
        .flatten()
        .collect();
        // Every choice of savings, the smaller ones first.
        let mut choices: Vec<u32> = (1..1_u32 << all.len()).collect();
        choices.sort_by_key(|set| set.count_ones());
        let mut found: Vec<u32> = Vec::new();
        let mut fits = Vec::new();
        for set in choices {
            if found.iter().any(|smaller| smaller & set == *smaller) {
                continue;
            }
            let mut savings: Vec<Saving> = (0..all.len())
                .filter(|i| set & 1 << i != 0)
                .map(|i| all[i])
                .collect();
            if self.total_with(&savings) > available_bytes {
                continue;
            }
            found.push(set);
            self.enlarge(&mut savings, available_bytes);
            fits.push(Fit {
                total_bytes: self.total_with(&savings),
                savings,
            });
        }
        Err(TooLittleMemory {
            estimate,
            available_bytes,
            fits,
            least_bytes: self.total_with(&all),
        })
    }

    /// Doubles the micro-batch while the run still fits.
    fn enlarge(&self, savings: &mut Vec<Saving>, available_bytes: usize) {
        let is_micro = |s: &Saving| matches!(s, Saving::MicroBatchTokens(_));
        let Some(at) = savings.iter().position(is_micro) else {
            return;
        };
        let mut tokens = 64;
        while tokens < PASS_ROWS {
            let mut larger = savings.clone();
            larger[at] = Saving::MicroBatchTokens(tokens);
            if tokens >= self.longest_tokens && self.total_with(&larger) <= available_bytes {
                *savings = larger;
            }
            tokens *= 2;
        }
    }

    /// What the run needs with some savings.
    fn total_with(&self, savings: &[Saving]) -> usize {
        let mut options = self.options.clone();
        let mut base = self.base;
        for saving in savings {
            match saving {
                Saving::MicroBatchTokens(n) => options.micro_batch_tokens = Some(*n),
                Saving::Recompute => options.recompute = true,
                Saving::EightBitMoments => options.optimizer = Optimizer::AdamW8Bit,
                Saving::QuantisedBase => {
                    base = BaseMemory::of(self.config, WeightFormat::Quantised(Format::Nf4))
                }
            }
        }
        let smaller = MemoryPlan {
            options: &options,
            base,
            ..*self
        };
        smaller.estimate().total_bytes()
    }
}

/// Memory that a new run may take: what the system says is available, or what
/// the limit of its control group leaves, whichever is less. `None` where the
/// system says neither.
#[must_use]
pub fn available_memory_bytes() -> Option<usize> {
    let read = |path: &str| std::fs::read_to_string(Path::new(path)).ok();
    let machine = read("/proc/meminfo").and_then(|text| mem_available_bytes(&text));
    let number = |path: &str| read(path)?.trim().parse::<usize>().ok();
    let group = number("/sys/fs/cgroup/memory.max")
        .zip(number("/sys/fs/cgroup/memory.current"))
        .map(|(most, now)| most.saturating_sub(now));
    machine.into_iter().chain(group).min()
}

/// `MemAvailable` of a `/proc/meminfo`.
fn mem_available_bytes(text: &str) -> Option<usize> {
    let line = text.lines().find_map(|l| l.strip_prefix("MemAvailable:"))?;
    let kib: usize = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    kib.checked_mul(1024)
}

#[cfg(test)]
mod tests;
