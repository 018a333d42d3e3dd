//! What a model takes in memory, from its configuration alone.

use super::ModelConfig;
use crate::layout::Layout;
use crate::quant::Format;

/// How the matrices of a model are held in memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum WeightFormat {
    /// 32-bit.
    F32,
    /// As the file stores them: 16-bit and quantised ones are not expanded.
    Stored,
    /// Quantised while loading, except embedding, output layer and routers,
    /// which stay as stored.
    Quantised(Format),
}

impl ModelConfig {
    /// Bytes of the weights held in `format`; a file is taken to store 16-bit
    /// numbers.
    #[must_use]
    pub fn weight_size_bytes(&self, format: WeightFormat) -> u64 {
        let size = |spec: &crate::layout::TensorSpec| {
            let (rows, cols) = spec.rows();
            let n = spec.len() as u64;
            let outer = spec.name.starts_with("lm_head")
                || spec.name.contains("embed_tokens")
                || spec.name.ends_with("mlp.gate.weight");
            match format {
                _ if spec.shape.len() < 2 => n * 4,
                WeightFormat::F32 => n * 4,
                WeightFormat::Stored => n * 2,
                WeightFormat::Quantised(_) if outer => n * 2,
                WeightFormat::Quantised(format) => {
                    let blocks = rows * cols.div_ceil(format.block());
                    (blocks * format.block_size_bytes()) as u64
                }
            }
        };
        Layout::new(self).tensors().iter().map(size).sum()
    }

    /// Bytes of keys and values that a token adds to a cache. With latent
    /// attention, those of every head, as they are cached; values are
    /// padded to whole panels.
    #[must_use]
    pub fn kv_size_bytes_per_token(&self) -> u64 {
        let (key, value) = match &self.mla {
            Some(mla) => (mla.qk_nope_head_dim + mla.qk_rope_head_dim, mla.v_head_dim),
            None => (self.head_dim, self.head_dim),
        };
        let head = key + value.next_multiple_of(crate::kernels::PANEL);
        (self.num_hidden_layers * self.num_key_value_heads * head * size_of::<f32>()) as u64
    }

    /// Bytes that a token of a training batch takes between the forward and the
    /// backward pass, at the peak; `ranks` is the sum of the adapter's ranks in
    /// one block. With `recompute` all blocks but one keep only their input.
    ///
    /// The logits come on top: they exist for 256 tokens at a time.
    #[must_use]
    pub fn activation_size_bytes_per_token(&self, ranks: usize, recompute: bool) -> u64 {
        let h = self.hidden_size;
        let f = self
            .intermediate_size
            .max(self.feed_forward_size(self.num_hidden_layers - 1));
        let routed = self
            .moe
            .map_or(0, |m| 3 * m.num_experts_per_tok * m.moe_intermediate_size);
        let attended = self.attended_size();
        let projected = self.query_size()
            + match &self.mla {
                Some(mla) => {
                    let latent = mla.q_lora_rank.unwrap_or(0) + mla.kv_lora_rank;
                    self.query_size() + self.key_value_size() + latent
                }
                None => 2 * self.key_value_size(),
            };
        let raw = if self.has_qk_norm() { projected } else { 0 };
        // Input, middle, what attention and feed-forward keep, inner products.
        let block = 2 * h + projected + raw + attended + 2 * f + routed + ranks + 2;
        // In the backward pass: the gradient, normed rows and theirs, and the
        // larger of the two halves.
        let transient = 4 * h + (2 * f + routed).max(projected + attended);
        let kept = if recompute {
            self.num_hidden_layers * h + block
        } else {
            self.num_hidden_layers * block
        };
        ((kept + transient) * size_of::<f32>()) as u64
    }
}
