//! Keys and values of the tokens a sequence has seen.

use crate::config::ModelConfig;
use crate::kernels::{Line, PANEL, PanelsRef};

/// Keys and values of one sequence, stored as the panels that the attention
/// products read: keys with positions as columns, values with positions as rows.
///
/// Memory is taken once, for `capacity_tokens`.
#[derive(Debug, Clone)]
pub struct KvCache {
    keys: Vec<Line>,
    values: Vec<Line>,
    capacity: usize,
    len: usize,
    layers: usize,
    heads: usize,
    head_dim: usize,
}

impl KvCache {
    /// An empty cache for at most `capacity_tokens` tokens, or the model's
    /// longest context if that is less.
    #[must_use]
    pub fn new(config: &ModelConfig, capacity_tokens: usize) -> Self {
        let capacity = capacity_tokens.min(config.max_position_embeddings);
        let mut cache = Self {
            keys: Vec::new(),
            values: Vec::new(),
            capacity,
            len: 0,
            layers: config.num_hidden_layers,
            heads: config.num_key_value_heads,
            head_dim: config.head_dim,
        };
        let heads = cache.layers * cache.heads;
        cache.keys = vec![Line::ZERO; heads * cache.key_lines()];
        cache.values = vec![Line::ZERO; heads * cache.value_lines()];
        cache
    }

    /// Tokens held.
    #[must_use]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether no token is held.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Tokens there is room for.
    #[must_use]
    pub fn capacity_tokens(&self) -> usize {
        self.capacity
    }

    /// Forgets all but the first `n` tokens.
    pub fn truncate(&mut self, n: usize) {
        self.len = self.len.min(n);
    }

    /// Memory held, in bytes.
    #[must_use]
    pub fn size_bytes(&self) -> usize {
        (self.keys.len() + self.values.len()) * size_of::<Line>()
    }

    pub(crate) fn fits(&self, config: &ModelConfig) -> bool {
        self.layers == config.num_hidden_layers
            && self.heads == config.num_key_value_heads
            && self.head_dim == config.head_dim
    }

    pub(crate) fn advance(&mut self, n: usize) {
        self.len += n;
    }

    fn key_lines(&self) -> usize {
        self.capacity.div_ceil(PANEL) * self.head_dim
    }

    fn value_lines(&self) -> usize {
        self.head_dim.div_ceil(PANEL) * self.capacity
    }

    /// Stores the key and value rows (all heads) of position `at`.
    pub(crate) fn write(&mut self, layer: usize, at: usize, key: &[f32], value: &[f32]) {
        for head in 0..self.heads {
            let row = head * self.head_dim..(head + 1) * self.head_dim;
            let first = (layer * self.heads + head) * self.key_lines() + at / PANEL * self.head_dim;
            for (line, &k) in self.keys[first..].iter_mut().zip(&key[row.clone()]) {
                line.0[at % PANEL] = k;
            }
            let first = (layer * self.heads + head) * self.value_lines() + at;
            for (panel, v) in value[row].chunks(PANEL).enumerate() {
                self.values[first + panel * self.capacity].0[..v.len()].copy_from_slice(v);
            }
        }
    }

    /// Keys of one head: `head_dim x n` in panels.
    pub(crate) fn keys(&self, layer: usize, head: usize, n: usize) -> PanelsRef<'_> {
        let first = (layer * self.heads + head) * self.key_lines();
        PanelsRef::new(
            &self.keys[first..first + self.key_lines()],
            self.head_dim,
            n,
            self.head_dim,
        )
    }

    /// Values of one head: `n x head_dim` in panels.
    pub(crate) fn values(&self, layer: usize, head: usize, n: usize) -> PanelsRef<'_> {
        let first = (layer * self.heads + head) * self.value_lines();
        PanelsRef::new(
            &self.values[first..first + self.value_lines()],
            n,
            self.head_dim,
            self.capacity,
        )
    }
}
