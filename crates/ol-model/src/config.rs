//! Shape of a model, as Hugging Face's `config.json` gives it.

mod json;
mod memory;
mod rope;

use thiserror::Error;

pub use memory::WeightFormat;
pub use rope::Rope;

/// Longest context accepted, in tokens.
pub(crate) const MAX_POSITIONS: usize = 1 << 21;

/// Most routed experts of all layers together: each is three tensors.
const MAX_EXPERTS: usize = 1 << 16;

/// Why a configuration is refused.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum ConfigError {
    /// Not JSON, or a field is missing or of another type.
    #[error("config.json cannot be read: {0}")]
    Syntax(String),
    /// The model needs something this engine does not do.
    #[error("config.json asks for {0}, which is not supported")]
    Unsupported(String),
    /// The numbers contradict each other or pass a limit.
    #[error("config.json is inconsistent: {0}")]
    Invalid(String),
}

/// Architecture of a model.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Family {
    /// Llama 2 and 3, and what is built like them (DeepSeek-R1-Distill-Llama).
    Llama,
    /// Mistral: Llama with a sliding window in every layer.
    Mistral,
    /// Qwen 2 and 2.5: biases on queries, keys and values.
    Qwen2,
    /// Qwen 3: a norm on every head of queries and keys.
    Qwen3,
    /// DeepSeek V2: latent attention, experts chosen by softmax.
    DeepSeekV2,
    /// DeepSeek V3 and R1: latent attention, experts chosen by sigmoid.
    DeepSeekV3,
}

impl Family {
    /// Every family.
    pub const ALL: [Self; 6] = [
        Self::Llama,
        Self::Mistral,
        Self::Qwen2,
        Self::Qwen3,
        Self::DeepSeekV2,
        Self::DeepSeekV3,
    ];

    /// `model_type` in files.
    #[must_use]
    pub const fn model_type(self) -> &'static str {
        match self {
            Self::Llama => "llama",
            Self::Mistral => "mistral",
            Self::Qwen2 => "qwen2",
            Self::Qwen3 => "qwen3",
            Self::DeepSeekV2 => "deepseek_v2",
            Self::DeepSeekV3 => "deepseek_v3",
        }
    }

    /// Name of the class in transformers.
    #[must_use]
    pub const fn architecture(self) -> &'static str {
        match self {
            Self::Llama => "LlamaForCausalLM",
            Self::Mistral => "MistralForCausalLM",
            Self::Qwen2 => "Qwen2ForCausalLM",
            Self::Qwen3 => "Qwen3ForCausalLM",
            Self::DeepSeekV2 => "DeepseekV2ForCausalLM",
            Self::DeepSeekV3 => "DeepseekV3ForCausalLM",
        }
    }
}

/// Layers whose tokens see only the latest tokens before them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SlidingWindow {
    /// Tokens a token sees, itself included.
    pub window_tokens: usize,
    /// For each layer, whether it has the window.
    pub layers: Vec<bool>,
}

/// Widths of DeepSeek's latent attention.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Mla {
    /// Width of the compressed queries; without it queries are not compressed.
    pub q_lora_rank: Option<usize>,
    /// Width of the compressed keys and values.
    pub kv_lora_rank: usize,
    /// Part of a query or key head that is not rotated.
    pub qk_nope_head_dim: usize,
    /// Part that is rotated; all heads share its key.
    pub qk_rope_head_dim: usize,
    /// Width of a value head.
    pub v_head_dim: usize,
    /// Whether the rotated pairs lie side by side (`x0 x1`, `x2 x3`, ...)
    /// and not half a head apart.
    pub rope_interleave: bool,
}

/// Rule by which tokens choose experts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Routing {
    /// The largest softmax scores.
    Greedy,
    /// The largest softmax scores within the groups of the largest maxima.
    GroupLimitedGreedy,
    /// Sigmoid scores, chosen with a correction bias within the groups of the
    /// largest sums of two (`noaux_tc`).
    NoAuxTc,
}

/// Numbers of DeepSeek's expert layers.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Moe {
    /// Experts to choose from.
    pub n_routed_experts: usize,
    /// Experts chosen for a token.
    pub num_experts_per_tok: usize,
    /// Experts every token uses; together one feed-forward layer.
    pub n_shared_experts: usize,
    /// Width of one expert.
    pub moe_intermediate_size: usize,
    /// Layers before the first with experts.
    pub first_k_dense_replace: usize,
    /// Groups the experts fall into.
    pub n_group: usize,
    /// Groups a token may choose from.
    pub topk_group: usize,
    /// Factor of the chosen weights.
    pub routed_scaling_factor: f32,
    /// Whether the chosen weights are divided by their sum.
    pub norm_topk_prob: bool,
    /// How experts are chosen.
    pub routing: Routing,
}

/// Hyper-parameters of a model; field names are those of `config.json`.
#[derive(Debug, Clone, PartialEq)]
pub struct ModelConfig {
    /// Architecture.
    pub family: Family,
    /// Rows of the embedding.
    pub vocab_size: usize,
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Width of the gated feed-forward layer.
    pub intermediate_size: usize,
    /// Blocks.
    pub num_hidden_layers: usize,
    /// Query heads.
    pub num_attention_heads: usize,
    /// Key and value heads; a divisor of the query heads.
    pub num_key_value_heads: usize,
    /// Width of a head; even. With latent attention, of its rotated part.
    pub head_dim: usize,
    /// Added to the mean square in every norm.
    pub rms_norm_eps: f32,
    /// Base of the rotary angles.
    pub rope_theta: f64,
    /// Scaling of the rotary angles.
    pub rope: Rope,
    /// Longest context in tokens.
    pub max_position_embeddings: usize,
    /// Whether the output layer is the embedding.
    pub tie_word_embeddings: bool,
    /// Whether the attention layers have biases (always, for Qwen 2's
    /// queries, keys and values).
    pub attention_bias: bool,
    /// Whether the feed-forward layers have biases.
    pub mlp_bias: bool,
    /// Layers with a sliding window.
    pub sliding_window: Option<SlidingWindow>,
    /// Latent attention in place of the usual one.
    pub mla: Option<Mla>,
    /// Experts in place of the feed-forward layer.
    pub moe: Option<Moe>,
}

impl ModelConfig {
    /// The embedded default: 3.1 million parameters, 512 tokens of context.
    #[must_use]
    pub fn default_base() -> Self {
        Self {
            family: Family::Llama,
            vocab_size: 4096,
            hidden_size: 192,
            intermediate_size: 512,
            num_hidden_layers: 6,
            num_attention_heads: 6,
            num_key_value_heads: 2,
            head_dim: 32,
            rms_norm_eps: 1e-5,
            rope_theta: 10_000.0,
            rope: Rope::Default,
            max_position_embeddings: 512,
            tie_word_embeddings: true,
            attention_bias: false,
            mlp_bias: false,
            sliding_window: None,
            mla: None,
            moe: None,
        }
    }

    /// Checks limits and divisibility.
    ///
    /// # Errors
    /// [`ConfigError::Invalid`] with the first thing wrong.
    pub fn check(&self) -> Result<(), ConfigError> {
        let invalid = |reason: String| Err(ConfigError::Invalid(reason));
        in_limits(&[
            ("vocab_size", self.vocab_size, 1 << 20),
            ("hidden_size", self.hidden_size, 1 << 15),
            ("intermediate_size", self.intermediate_size, 1 << 17),
            ("num_hidden_layers", self.num_hidden_layers, 256),
            ("num_attention_heads", self.num_attention_heads, 512),
            ("num_key_value_heads", self.num_key_value_heads, 512),
            ("head_dim", self.head_dim, 1024),
            (
                "max_position_embeddings",
                self.max_position_embeddings,
                MAX_POSITIONS,
            ),
        ])?;
        if !self
            .num_attention_heads
            .is_multiple_of(self.num_key_value_heads)
        {
            return invalid("num_key_value_heads does not divide num_attention_heads".to_owned());
        }
        if !self.head_dim.is_multiple_of(2) {
            return invalid(format!("head_dim is {}, which is odd", self.head_dim));
        }
        if !(self.rms_norm_eps > 0.0 && self.rms_norm_eps < 1.0) {
            return invalid(format!("rms_norm_eps is {}", self.rms_norm_eps));
        }
        if !(self.rope_theta >= 1.0 && self.rope_theta <= 1e12) {
            return invalid(format!("rope_theta is {}", self.rope_theta));
        }
        self.rope.check(self.rope_theta)?;
        if let Some(window) = &self.sliding_window {
            in_limits(&[("sliding_window", window.window_tokens, 1 << 30)])?;
            if window.layers.len() != self.num_hidden_layers {
                return invalid(format!(
                    "layer_types has {} entries for {} layers",
                    window.layers.len(),
                    self.num_hidden_layers
                ));
            }
        }
        let deepseek = matches!(self.family, Family::DeepSeekV2 | Family::DeepSeekV3);
        if deepseek != self.mla.is_some() || (self.moe.is_some() && !deepseek) {
            return invalid(format!(
                "model_type {} does not go with its attention or experts",
                self.family.model_type()
            ));
        }
        self.check_latent()?;
        self.check_experts()
    }

    fn check_latent(&self) -> Result<(), ConfigError> {
        let Some(mla) = &self.mla else { return Ok(()) };
        in_limits(&[
            ("q_lora_rank", mla.q_lora_rank.unwrap_or(1), 1 << 15),
            ("kv_lora_rank", mla.kv_lora_rank, 1 << 15),
            ("qk_nope_head_dim", mla.qk_nope_head_dim, 1024),
            ("qk_rope_head_dim", mla.qk_rope_head_dim, 1024),
            ("v_head_dim", mla.v_head_dim, 1024),
        ])?;
        if self.head_dim != mla.qk_rope_head_dim {
            return Err(ConfigError::Invalid(format!(
                "head_dim is {}, qk_rope_head_dim {}",
                self.head_dim, mla.qk_rope_head_dim
            )));
        }
        if self.num_key_value_heads != self.num_attention_heads {
            return Err(ConfigError::Invalid(
                "num_key_value_heads differs from num_attention_heads, but latent attention \
                 gives every head its keys"
                    .to_owned(),
            ));
        }
        Ok(())
    }

    fn check_experts(&self) -> Result<(), ConfigError> {
        let Some(moe) = &self.moe else { return Ok(()) };
        let invalid = |reason: String| Err(ConfigError::Invalid(reason));
        in_limits(&[
            ("n_routed_experts", moe.n_routed_experts, 4096),
            ("num_experts_per_tok", moe.num_experts_per_tok, 256),
            ("n_shared_experts", moe.n_shared_experts, 256),
            ("moe_intermediate_size", moe.moe_intermediate_size, 1 << 16),
            ("n_group", moe.n_group, 4096),
            ("topk_group", moe.topk_group, moe.n_group),
        ])?;
        if moe.n_routed_experts * self.num_hidden_layers > 1 << 16 {
            return invalid(format!(
                "n_routed_experts is {} in {} layers, allowed are 65536 in all",
                moe.n_routed_experts, self.num_hidden_layers
            ));
        }
        if moe.first_k_dense_replace > self.num_hidden_layers {
            return invalid(format!(
                "first_k_dense_replace is {} of {} layers",
                moe.first_k_dense_replace, self.num_hidden_layers
            ));
        }
        let experts = self.num_hidden_layers * moe.n_routed_experts;
        if experts > MAX_EXPERTS {
            return invalid(format!(
                "n_routed_experts is {} in {} layers, allowed are {MAX_EXPERTS} in all",
                moe.n_routed_experts, self.num_hidden_layers
            ));
        }
        if !moe.n_routed_experts.is_multiple_of(moe.n_group) {
            return invalid(format!(
                "n_group {} does not divide n_routed_experts {}",
                moe.n_group, moe.n_routed_experts
            ));
        }
        let choice = moe.n_routed_experts / moe.n_group * moe.topk_group;
        if moe.num_experts_per_tok > choice {
            return invalid(format!(
                "num_experts_per_tok is {}, topk_group leaves {choice}",
                moe.num_experts_per_tok
            ));
        }
        if moe.routing == Routing::NoAuxTc && moe.n_routed_experts / moe.n_group < 2 {
            return invalid("noaux_tc needs two experts in a group".to_owned());
        }
        if !(moe.routed_scaling_factor.is_finite() && moe.routed_scaling_factor > 0.0) {
            return invalid(format!(
                "routed_scaling_factor is {}",
                moe.routed_scaling_factor
            ));
        }
        Ok(())
    }

    /// Whether the fields are all that `openledger-model/1` hashes.
    pub(crate) fn is_plain_llama(&self) -> bool {
        let plain = Self {
            family: Family::Llama,
            rope: Rope::Default,
            attention_bias: false,
            mlp_bias: false,
            sliding_window: None,
            mla: None,
            moe: None,
            ..self.clone()
        };
        *self == plain
    }

    /// Appends the fields of a plain Llama in declared order, each as eight
    /// bytes (big-endian; floats as the bits of an f64, flags as 0 or 1), for
    /// hashing: no JSON writer's habits get in.
    pub(crate) fn encode(&self, out: &mut Vec<u8>) {
        put(
            out,
            &[
                self.vocab_size,
                self.hidden_size,
                self.intermediate_size,
                self.num_hidden_layers,
                self.num_attention_heads,
                self.num_key_value_heads,
                self.head_dim,
            ],
        );
        out.extend(f64::from(self.rms_norm_eps).to_be_bytes());
        out.extend(self.rope_theta.to_be_bytes());
        put(
            out,
            &[
                self.max_position_embeddings,
                usize::from(self.tie_word_embeddings),
            ],
        );
    }

    /// As [`Self::encode`] for any family: `model_type` with its length, the
    /// plain fields, then the rest; what may be absent after a flag.
    pub(crate) fn encode_any(&self, out: &mut Vec<u8>) {
        let kind = self.family.model_type();
        put(out, &[kind.len()]);
        out.extend(kind.as_bytes());
        self.encode(out);
        self.rope.encode(out);
        put(
            out,
            &[
                usize::from(self.attention_bias),
                usize::from(self.mlp_bias),
                usize::from(self.sliding_window.is_some()),
            ],
        );
        if let Some(window) = &self.sliding_window {
            put(out, &[window.window_tokens]);
            out.extend(window.layers.iter().map(|l| u8::from(*l)));
        }
        put(out, &[usize::from(self.mla.is_some())]);
        if let Some(mla) = &self.mla {
            put(
                out,
                &[
                    mla.q_lora_rank.unwrap_or(0),
                    mla.kv_lora_rank,
                    mla.qk_nope_head_dim,
                    mla.qk_rope_head_dim,
                    mla.v_head_dim,
                    usize::from(mla.rope_interleave),
                ],
            );
        }
        put(out, &[usize::from(self.moe.is_some())]);
        if let Some(moe) = &self.moe {
            put(
                out,
                &[
                    moe.n_routed_experts,
                    moe.num_experts_per_tok,
                    moe.n_shared_experts,
                    moe.moe_intermediate_size,
                    moe.first_k_dense_replace,
                    moe.n_group,
                    moe.topk_group,
                    usize::from(moe.norm_topk_prob),
                    moe.routing as usize,
                ],
            );
            out.extend(f64::from(moe.routed_scaling_factor).to_be_bytes());
        }
    }

    /// Width of the query rows: heads times head width.
    #[must_use]
    pub const fn query_size(&self) -> usize {
        match self.mla {
            Some(mla) => self.num_attention_heads * (mla.qk_nope_head_dim + mla.qk_rope_head_dim),
            None => self.num_attention_heads * self.head_dim,
        }
    }

    /// Width of the key rows, and of the value rows. With latent attention, of
    /// the values.
    #[must_use]
    pub const fn key_value_size(&self) -> usize {
        match self.mla {
            Some(mla) => self.num_attention_heads * mla.v_head_dim,
            None => self.num_key_value_heads * self.head_dim,
        }
    }

    /// Width of what the attention's output layer reads.
    #[must_use]
    pub const fn attended_size(&self) -> usize {
        match self.mla {
            Some(mla) => self.num_attention_heads * mla.v_head_dim,
            None => self.query_size(),
        }
    }

    /// Whether queries, keys and values have biases.
    #[must_use]
    pub fn has_qkv_bias(&self) -> bool {
        self.attention_bias || self.family == Family::Qwen2
    }

    /// Whether the attention's output layer has a bias.
    #[must_use]
    pub fn has_output_bias(&self) -> bool {
        self.attention_bias && self.family != Family::Qwen2
    }

    /// Whether the heads of queries and keys are normed.
    #[must_use]
    pub fn has_qk_norm(&self) -> bool {
        self.family == Family::Qwen3
    }

    /// Tokens that a token of `layer` sees, itself included, if not all.
    #[must_use]
    pub fn window(&self, layer: usize) -> Option<usize> {
        let window = self.sliding_window.as_ref()?;
        let on = window.layers.get(layer).copied().unwrap_or(false);
        on.then_some(window.window_tokens)
    }

    /// Whether `layer` has experts.
    #[must_use]
    pub fn has_experts(&self, layer: usize) -> bool {
        self.moe
            .is_some_and(|moe| layer >= moe.first_k_dense_replace)
    }

    /// Width of the feed-forward layer that adapters see in `layer`: with
    /// experts, of the shared ones.
    #[must_use]
    pub fn feed_forward_size(&self, layer: usize) -> usize {
        match self.moe {
            Some(moe) if self.has_experts(layer) => {
                moe.moe_intermediate_size * moe.n_shared_experts
            }
            _ => self.intermediate_size,
        }
    }

    /// Parameters of the model, tied ones once.
    #[must_use]
    pub fn n_params(&self) -> usize {
        crate::layout::Layout::new(self).len()
    }
}

fn put(out: &mut Vec<u8>, words: &[usize]) {
    out.extend(words.iter().flat_map(|w| (*w as u64).to_be_bytes()));
}

fn in_limits(limits: &[(&str, usize, usize)]) -> Result<(), ConfigError> {
    for &(name, value, most) in limits {
        if value == 0 || value > most {
            return Err(ConfigError::Invalid(format!(
                "{name} is {value}, allowed are 1 to {most}"
            )));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests;
