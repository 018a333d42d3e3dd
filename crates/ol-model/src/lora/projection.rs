//! The linear layers of a block, by name.

use serde::{Deserialize, Serialize};

use crate::config::ModelConfig;

/// A linear layer of a block.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Projection {
    /// Queries.
    #[serde(rename = "q_proj")]
    Q,
    /// Keys.
    #[serde(rename = "k_proj")]
    K,
    /// Values.
    #[serde(rename = "v_proj")]
    V,
    /// Attention output.
    #[serde(rename = "o_proj")]
    O,
    /// Gate of the feed-forward layer.
    #[serde(rename = "gate_proj")]
    Gate,
    /// Input of the feed-forward layer.
    #[serde(rename = "up_proj")]
    Up,
    /// Output of the feed-forward layer.
    #[serde(rename = "down_proj")]
    Down,
    /// Compressed queries of latent attention.
    #[serde(rename = "q_a_proj")]
    QA,
    /// Queries from the compressed ones.
    #[serde(rename = "q_b_proj")]
    QB,
    /// Compressed keys and values, and the shared rotated key.
    #[serde(rename = "kv_a_proj_with_mqa")]
    KvA,
    /// Keys and values from the compressed ones.
    #[serde(rename = "kv_b_proj")]
    KvB,
}

impl Projection {
    /// How many there are.
    pub(crate) const COUNT: usize = 11;

    /// Every linear layer of any family, in flat order.
    pub const ALL: [Self; Self::COUNT] = [
        Self::Q,
        Self::K,
        Self::V,
        Self::O,
        Self::Gate,
        Self::Up,
        Self::Down,
        Self::QA,
        Self::QB,
        Self::KvA,
        Self::KvB,
    ];

    /// What `all-linear` adapts: every linear layer of a block; of a model with
    /// experts, those of the attention. There PEFT 0.21 takes the other names
    /// for the parameters of the experts that tokens choose, so it could not
    /// read an adapter of dense blocks and shared experts.
    #[must_use]
    pub fn all_linear(model: &ModelConfig) -> Vec<Self> {
        let mut all = Self::of(model);
        if model.moe.is_some() {
            all.retain(|p| p.module() == "self_attn");
        }
        all
    }

    /// The linear layers that some block of `model` has. Experts that tokens
    /// choose and the router are not among them.
    #[must_use]
    pub fn of(model: &ModelConfig) -> Vec<Self> {
        let has = |p: &Self| (0..model.num_hidden_layers).any(|i| p.shape(model, i).is_some());
        Self::ALL.into_iter().filter(has).collect()
    }

    /// Name in files, as in `q_proj`.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Q => "q_proj",
            Self::K => "k_proj",
            Self::V => "v_proj",
            Self::O => "o_proj",
            Self::Gate => "gate_proj",
            Self::Up => "up_proj",
            Self::Down => "down_proj",
            Self::QA => "q_a_proj",
            Self::QB => "q_b_proj",
            Self::KvA => "kv_a_proj_with_mqa",
            Self::KvB => "kv_b_proj",
        }
    }

    /// The projection of that name.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|p| p.name() == name)
    }

    /// Module that holds it, as in `self_attn`, in a block without experts.
    #[must_use]
    pub const fn module(self) -> &'static str {
        match self {
            Self::Gate | Self::Up | Self::Down => "mlp",
            _ => "self_attn",
        }
    }

    /// Path of the module in block `layer`, as in `self_attn.q_proj`.
    #[must_use]
    pub fn path(self, model: &ModelConfig, layer: usize) -> String {
        let module = match self.module() {
            "mlp" if model.has_experts(layer) => "mlp.shared_experts",
            module => module,
        };
        format!("{module}.{}", self.name())
    }

    /// Path of the module in the model, as in `model.layers.0.self_attn.q_proj`.
    #[must_use]
    pub fn module_path(self, model: &ModelConfig, layer: usize) -> String {
        format!("model.layers.{layer}.{}", self.path(model, layer))
    }

    /// Output and input width in block `layer`, if it has this projection.
    #[must_use]
    pub fn shape(self, model: &ModelConfig, layer: usize) -> Option<(usize, usize)> {
        let (h, f) = (model.hidden_size, model.feed_forward_size(layer));
        let (q, kv) = (model.query_size(), model.key_value_size());
        let shape = match (self, &model.mla) {
            (Self::O, _) => (h, model.attended_size()),
            (Self::Gate | Self::Up, _) => (f, h),
            (Self::Down, _) => (h, f),
            (Self::Q, None) => (q, h),
            (Self::K | Self::V, None) => (kv, h),
            (Self::Q, Some(mla)) if mla.q_lora_rank.is_none() => (q, h),
            (Self::QA, Some(mla)) => (mla.q_lora_rank?, h),
            (Self::QB, Some(mla)) => (q, mla.q_lora_rank?),
            (Self::KvA, Some(mla)) => (mla.kv_lora_rank + mla.qk_rope_head_dim, h),
            (Self::KvB, Some(mla)) => (
                model.num_attention_heads * (mla.qk_nope_head_dim + mla.v_head_dim),
                mla.kv_lora_rank,
            ),
            _ => return None,
        };
        Some(shape)
    }
}
