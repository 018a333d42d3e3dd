//! Bounds of the engine.

use std::io;
use std::time::Duration;

use ol_model::PAGE_TOKENS;

/// The engine's bounds.
#[derive(Debug, Clone)]
pub struct EngineOptions {
    /// Most requests decoded together. Default 16.
    pub n_rows_max: usize,
    /// Most tokens of KV cache over all running requests and shared pages. Pages
    /// are taken as answers grow; when none is left, a running request makes
    /// room and starts again later. Default 8,192.
    pub n_kv_tokens_max: usize,
    /// Most tokens of KV cache kept for prompts that begin alike; they are part
    /// of `n_kv_tokens_max` and give way to running requests. 0 shares nothing.
    /// Default: no limit of its own.
    pub n_prefix_tokens_max: usize,
    /// Most tokens of one forward pass: every running request gets its token,
    /// and prompts are prefilled with what is left. Fewer keep the time between
    /// tokens short, more compute prompts faster. Default 256.
    pub n_step_tokens_max: usize,
    /// Most requests waiting to start. Default 256.
    pub n_waiting_max: usize,
    /// Most requests of one tenant waiting to start. Default 128.
    pub n_waiting_per_tenant_max: usize,
    /// Most tokens of waiting prompts. Default 1,048,576.
    pub n_waiting_tokens_max: usize,
    /// After so much waiting a request counts as one priority class higher.
    /// Default 10 s.
    pub aging: Duration,
}

impl Default for EngineOptions {
    fn default() -> Self {
        Self {
            n_rows_max: 16,
            n_kv_tokens_max: 8192,
            n_prefix_tokens_max: usize::MAX,
            n_step_tokens_max: 256,
            n_waiting_max: 256,
            n_waiting_per_tenant_max: 128,
            n_waiting_tokens_max: 1 << 20,
            aging: Duration::from_secs(10),
        }
    }
}

impl EngineOptions {
    pub(super) fn check(&self) -> Result<(), StartError> {
        let bounds = [
            self.n_rows_max,
            self.n_kv_tokens_max,
            self.n_waiting_max,
            self.n_waiting_per_tenant_max,
            self.n_waiting_tokens_max,
        ];
        if bounds.contains(&0)
            || self.n_step_tokens_max < self.n_rows_max
            || self.aging == Duration::ZERO
        {
            return Err(StartError::Options {
                options: self.clone(),
            });
        }
        Ok(())
    }

    /// Pages of the pool: each running request may leave its last one partly
    /// empty.
    #[must_use]
    pub fn n_pages(&self) -> usize {
        let n_pages = self.n_kv_tokens_max.div_ceil(PAGE_TOKENS);
        n_pages.saturating_add(self.n_rows_max)
    }
}

/// Why the engine did not start.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StartError {
    /// A bound is zero, or a forward pass could not hold a token of every row.
    #[error(
        "engine bounds must be at least 1, and n_step_tokens_max at least n_rows_max: {options:?}"
    )]
    Options {
        /// The bounds given.
        options: EngineOptions,
    },
    /// The operating system gave no thread.
    #[error("could not start the engine's thread")]
    Thread(#[source] io::Error),
}
