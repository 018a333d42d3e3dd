//! Hyper-parameters in GGUF metadata.

use super::{Gguf, GgufError, Value};
use crate::config::{Family, Mla, ModelConfig, Moe, Rope, Routing, SlidingWindow};

/// Architectures that are read.
const ARCHITECTURES: &str = "llama, qwen2, qwen3 and deepseek2";

/// Keys of one architecture.
struct Keys<'a> {
    gguf: &'a Gguf,
    architecture: &'a str,
}

impl Keys<'_> {
    fn key(&self, name: &str) -> String {
        format!("{}.{name}", self.architecture)
    }

    fn size(&self, name: &str) -> Result<Option<usize>, GgufError> {
        self.gguf.size(&self.key(name))
    }

    fn needed(&self, name: &str) -> Result<usize, GgufError> {
        self.size(name)?
            .ok_or_else(|| self.error(name, "is missing, expected a size"))
    }

    fn float(&self, name: &str) -> Result<Option<f64>, GgufError> {
        self.gguf.float(&self.key(name))
    }

    fn error(&self, name: &str, reason: impl Into<String>) -> GgufError {
        self.gguf.metadata_error(&self.key(name), reason)
    }

    fn has(&self, tensor: &str) -> bool {
        self.gguf.find(tensor).is_some()
    }
}

/// What a file of the Llama architecture with Llama 3's scaling has in
/// `rope_freqs.weight`: divisors of the rates.
fn divisors(rope: &Rope, theta: f64, dim: usize) -> Vec<f64> {
    let plain = Rope::Default.rates(theta, dim);
    let rates = rope.rates(theta, dim);
    plain.iter().zip(rates).map(|(p, r)| p / r).collect()
}

impl Gguf {
    /// The model's configuration.
    ///
    /// # Errors
    /// [`GgufError`] that names the key, when the architecture is another or a
    /// value is absent, of another type or not supported.
    pub fn config(&self) -> Result<ModelConfig, GgufError> {
        const ARCHITECTURE: &str = "general.architecture";
        let architecture = self
            .text(ARCHITECTURE)?
            .ok_or_else(|| self.metadata_error(ARCHITECTURE, "is missing"))?;
        if self.size("split.count")?.is_some_and(|n| n > 1) {
            let reason = "is more than 1; join the parts first (llama-gguf-split --merge)";
            return Err(self.metadata_error("split.count", reason));
        }
        let k = Keys {
            gguf: self,
            architecture,
        };
        let latent = architecture == "deepseek2";
        let sigmoid = match k.size("expert_gating_func")? {
            None | Some(1) => false,
            Some(2) => true,
            Some(other) => {
                let reason = format!("is {other}, expected 1 (softmax) or 2 (sigmoid)");
                return Err(k.error("expert_gating_func", reason));
            }
        };
        let window_tokens = k.size("attention.sliding_window")?;
        let family = match architecture {
            "llama" if window_tokens.is_some() => Family::Mistral,
            "llama" => Family::Llama,
            "qwen2" => Family::Qwen2,
            "qwen3" => Family::Qwen3,
            "deepseek2" if sigmoid => Family::DeepSeekV3,
            "deepseek2" => Family::DeepSeekV2,
            other => {
                let reason = format!("is {other:?}, expected {ARCHITECTURES}");
                return Err(self.metadata_error(ARCHITECTURE, reason));
            }
        };
        if !latent && k.size("expert_count")?.is_some_and(|n| n > 0) {
            return Err(k.error("expert_count", "experts are read in deepseek2 only"));
        }
        if window_tokens.is_some() && family != Family::Mistral {
            let reason = "a window is read in the llama architecture only";
            return Err(k.error("attention.sliding_window", reason));
        }
        let embedding = self
            .find("token_embd.weight")
            .ok_or_else(|| self.tensor_error("token_embd.weight", "is missing"))?;
        let vocab_size = embedding.rows().0;
        let hidden_size = k.needed("embedding_length")?;
        let heads = k.needed("attention.head_count")?;
        let layers = k.needed("block_count")?;
        let mla = latent.then(|| self.latent(&k)).transpose()?;
        let head_dim = match (mla, k.size("attention.key_length")?) {
            (Some(mla), _) => mla.qk_rope_head_dim,
            (None, Some(width)) => width,
            (None, None) => hidden_size / heads.max(1),
        };
        if let Some(rotated) = k.size("rope.dimension_count")?.filter(|d| *d != head_dim) {
            let reason = format!("is {rotated}, expected the head's width {head_dim}");
            return Err(k.error("rope.dimension_count", reason));
        }
        let max_position_embeddings = k.needed("context_length")?;
        let rope_theta = k.float("rope.freq_base")?.unwrap_or(10_000.0);
        #[expect(clippy::cast_possible_truncation, reason = "stored as f32")]
        let rms_norm_eps = k
            .float("attention.layer_norm_rms_epsilon")?
            .ok_or_else(|| k.error("attention.layer_norm_rms_epsilon", "is missing"))?
            as f32;
        let moe = match k.size("expert_count")? {
            Some(n) if n > 0 => Some(self.experts(&k, n, sigmoid)?),
            _ => None,
        };
        let config = ModelConfig {
            family,
            vocab_size,
            hidden_size,
            intermediate_size: k.needed("feed_forward_length")?,
            num_hidden_layers: layers,
            num_attention_heads: heads,
            num_key_value_heads: if latent {
                heads
            } else {
                k.size("attention.head_count_kv")?.unwrap_or(heads)
            },
            head_dim,
            rms_norm_eps,
            rope_theta,
            rope: self.rope(&k, rope_theta, head_dim, max_position_embeddings)?,
            max_position_embeddings,
            tie_word_embeddings: !k.has("output.weight"),
            attention_bias: match family {
                Family::Qwen2 => false,
                _ => k.has("blk.0.attn_q.bias") || k.has("blk.0.attn_q_a.bias"),
            },
            mlp_bias: k.has("blk.0.ffn_gate.bias"),
            sliding_window: window_tokens.map(|window_tokens| SlidingWindow {
                window_tokens,
                layers: vec![true; layers.min(1 << 16)],
            }),
            mla,
            moe,
        };
        config
            .check()
            .map_err(|e| self.metadata_error(architecture, e.to_string()))?;
        Ok(config)
    }

    fn latent(&self, k: &Keys<'_>) -> Result<Mla, GgufError> {
        let rotated = k.needed("rope.dimension_count")?;
        let kv_lora_rank = k.needed("attention.kv_lora_rank")?;
        // Newer files give the width of the compressed key here, and that of
        // the expanded one apart.
        let key = match k.size("attention.key_length_mla")? {
            Some(width) => width,
            None => k.needed("attention.key_length")?,
        };
        let value = match k.size("attention.value_length_mla")? {
            Some(width) => width,
            None => k.needed("attention.value_length")?,
        };
        Ok(Mla {
            q_lora_rank: k.size("attention.q_lora_rank")?.filter(|r| *r > 0),
            kv_lora_rank,
            qk_nope_head_dim: key.checked_sub(rotated).ok_or_else(|| {
                let reason = format!("is {key}, below rope.dimension_count {rotated}");
                k.error("attention.key_length", reason)
            })?,
            qk_rope_head_dim: rotated,
            v_head_dim: value,
            rope_interleave: true,
        })
    }

    fn experts(&self, k: &Keys<'_>, n: usize, sigmoid: bool) -> Result<Moe, GgufError> {
        let n_group = k.size("expert_group_count")?.unwrap_or(1).max(1);
        #[expect(clippy::cast_possible_truncation, reason = "stored as f32")]
        let scale = k.float("expert_weights_scale")?.unwrap_or(1.0) as f32;
        let norm = self.flag(&k.key("expert_weights_norm"))?.unwrap_or(false);
        if norm && !sigmoid {
            let reason = "is true, expected false with softmax gating";
            return Err(k.error("expert_weights_norm", reason));
        }
        Ok(Moe {
            n_routed_experts: n,
            num_experts_per_tok: k.needed("expert_used_count")?,
            n_shared_experts: k.needed("expert_shared_count")?,
            moe_intermediate_size: k.needed("expert_feed_forward_length")?,
            first_k_dense_replace: k.size("leading_dense_block_count")?.unwrap_or(0),
            n_group,
            topk_group: k.size("expert_group_used_count")?.unwrap_or(n_group).max(1),
            routed_scaling_factor: scale,
            norm_topk_prob: norm,
            routing: match (sigmoid, n_group) {
                (true, _) => Routing::NoAuxTc,
                (false, 1) => Routing::Greedy,
                (false, _) => Routing::GroupLimitedGreedy,
            },
        })
    }

    fn rope(
        &self,
        k: &Keys<'_>,
        theta: f64,
        dim: usize,
        max_positions: usize,
    ) -> Result<Rope, GgufError> {
        let kind = self.text(&k.key("rope.scaling.type"))?.unwrap_or("none");
        let factor = || {
            k.float("rope.scaling.factor")?
                .ok_or_else(|| k.error("rope.scaling.factor", "is missing"))
        };
        let rope = match kind {
            "none" => Rope::Default,
            "linear" => Rope::Linear { factor: factor()? },
            "yarn" => {
                if let Some(other) = k
                    .float("rope.scaling.attn_factor")?
                    .filter(|f| (f - 1.0).abs() > 1e-6)
                {
                    let reason = format!("is {other}, expected 1");
                    return Err(k.error("rope.scaling.attn_factor", reason));
                }
                // Stored as 0.1 times the weight.
                let mscale = k
                    .float("rope.scaling.yarn_log_multiplier")?
                    .filter(|m| *m != 0.0)
                    .map(|m| (m * 1e5).round() / 1e4);
                Rope::Yarn {
                    factor: factor()?,
                    original_max_position_embeddings: k
                        .size("rope.scaling.original_context_length")?
                        .unwrap_or(max_positions),
                    attention_factor: None,
                    beta_fast: k.float("rope.scaling.yarn_beta_fast")?.unwrap_or(32.0),
                    beta_slow: k.float("rope.scaling.yarn_beta_slow")?.unwrap_or(1.0),
                    mscale,
                    mscale_all_dim: mscale,
                    truncate: true,
                }
            }
            other => {
                let reason = format!("is {other:?}, expected none, linear or yarn");
                return Err(k.error("rope.scaling.type", reason));
            }
        };
        let Some(tensor) = self.find("rope_freqs.weight") else {
            return Ok(rope);
        };
        let bad = |reason: &str| Err(self.tensor_error(&tensor.name, reason));
        if rope != Rope::Default || tensor.shape != [dim / 2] {
            return bad("is there besides another scaling, or not half a head long");
        }
        let stored = self.read_f32(tensor)?;
        let factor = stored.iter().copied().fold(1.0_f32, f32::max);
        if stored.iter().all(|f| (f - 1.0).abs() < 1e-6) {
            return Ok(Rope::Default);
        }
        // The file has the result, not the four numbers it came from; all
        // published models have 1 and 4 for the two bounds.
        let mut candidates = (5..=20).map(|power| 1_usize << power);
        let found = candidates.find_map(|original| {
            let rope = Rope::Llama3 {
                factor: f64::from(factor),
                low_freq_factor: 1.0,
                high_freq_factor: 4.0,
                original_max_position_embeddings: original,
            };
            let same = divisors(&rope, theta, dim)
                .iter()
                .zip(&stored)
                .all(|(want, got)| (want - f64::from(*got)).abs() < 1e-4 * want);
            same.then_some(rope)
        });
        match found {
            Some(rope) => Ok(rope),
            None => bad("is not Llama 3's scaling (bounds 1 and 4) of a known context"),
        }
    }
}

/// Metadata, and the tensor of divisors if the scaling of the rotation needs one.
pub(super) type Description = (Vec<(String, Value)>, Option<Vec<f32>>);

/// What [`Gguf::config`] reads back.
///
/// # Errors
/// What GGUF cannot say.
pub(super) fn describe(config: &ModelConfig) -> Result<Description, &'static str> {
    let architecture = match config.family {
        Family::Llama | Family::Mistral => "llama",
        Family::Qwen2 => "qwen2",
        Family::Qwen3 => "qwen3",
        Family::DeepSeekV2 | Family::DeepSeekV3 => "deepseek2",
    };
    let mut all = vec![(
        "general.architecture".to_owned(),
        Value::String(architecture.to_owned()),
    )];
    let mut put = |name: &str, value: Value| all.push((format!("{architecture}.{name}"), value));
    let size = |n: usize| Value::Integer(n as i128);
    put("vocab_size", size(config.vocab_size));
    put("context_length", size(config.max_position_embeddings));
    put("embedding_length", size(config.hidden_size));
    put("block_count", size(config.num_hidden_layers));
    put("feed_forward_length", size(config.intermediate_size));
    put("attention.head_count", size(config.num_attention_heads));
    put("attention.head_count_kv", size(config.num_key_value_heads));
    put(
        "attention.layer_norm_rms_epsilon",
        Value::Float(config.rms_norm_eps.into()),
    );
    put("rope.freq_base", Value::Float(config.rope_theta));
    put("rope.dimension_count", size(config.head_dim));
    if let Some(mla) = &config.mla {
        if !mla.rope_interleave {
            return Err("rotated pairs that lie half a head apart in latent attention");
        }
        if let Some(rank) = mla.q_lora_rank {
            put("attention.q_lora_rank", size(rank));
        }
        put("attention.kv_lora_rank", size(mla.kv_lora_rank));
        put(
            "attention.key_length",
            size(mla.qk_nope_head_dim + mla.qk_rope_head_dim),
        );
        put("attention.value_length", size(mla.v_head_dim));
    } else {
        put("attention.key_length", size(config.head_dim));
        put("attention.value_length", size(config.head_dim));
    }
    if let Some(moe) = &config.moe {
        put("expert_count", size(moe.n_routed_experts));
        put("expert_used_count", size(moe.num_experts_per_tok));
        put("expert_shared_count", size(moe.n_shared_experts));
        put(
            "expert_feed_forward_length",
            size(moe.moe_intermediate_size),
        );
        put("leading_dense_block_count", size(moe.first_k_dense_replace));
        put("expert_group_count", size(moe.n_group));
        put("expert_group_used_count", size(moe.topk_group));
        put(
            "expert_weights_scale",
            Value::Float(moe.routed_scaling_factor.into()),
        );
        put("expert_weights_norm", Value::Bool(moe.norm_topk_prob));
        let sigmoid = moe.routing == Routing::NoAuxTc;
        put("expert_gating_func", size(if sigmoid { 2 } else { 1 }));
    }
    if let Some(window) = &config.sliding_window {
        if config.family != Family::Mistral || window.layers.contains(&false) {
            return Err("a sliding window in some layers only");
        }
        put("attention.sliding_window", size(window.window_tokens));
    }
    let mut freqs = None;
    match config.rope {
        Rope::Default | Rope::Dynamic { .. } => {}
        Rope::Linear { factor } => {
            put("rope.scaling.type", Value::String("linear".to_owned()));
            put("rope.scaling.factor", Value::Float(factor));
        }
        #[expect(clippy::cast_possible_truncation, reason = "stored as f32")]
        Rope::Llama3 { .. } => {
            let all = divisors(&config.rope, config.rope_theta, config.head_dim);
            freqs = Some(all.into_iter().map(|f| f as f32).collect());
        }
        Rope::Yarn {
            factor,
            original_max_position_embeddings,
            attention_factor,
            beta_fast,
            beta_slow,
            mscale,
            mscale_all_dim,
            truncate,
        } => {
            if attention_factor.is_some() || mscale != mscale_all_dim || !truncate {
                return Err("YaRN with an attention factor of its own");
            }
            put("rope.scaling.type", Value::String("yarn".to_owned()));
            put("rope.scaling.factor", Value::Float(factor));
            put(
                "rope.scaling.original_context_length",
                size(original_max_position_embeddings),
            );
            put("rope.scaling.yarn_beta_fast", Value::Float(beta_fast));
            put("rope.scaling.yarn_beta_slow", Value::Float(beta_slow));
            if let Some(mscale) = mscale {
                let stored = Value::Float(0.1 * mscale);
                put("rope.scaling.yarn_log_multiplier", stored);
            }
        }
    }
    Ok((all, freqs))
}
