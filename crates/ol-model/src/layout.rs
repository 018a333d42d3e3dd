//! Which tensors a model has and where each lies in the flat parameters.

use std::collections::HashMap;

use crate::config::{ModelConfig, Routing};

/// One tensor of the model.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorSpec {
    /// Name in the safetensors file.
    pub name: String,
    /// Rows and columns, or one length.
    pub shape: Vec<usize>,
    /// First element in the flat vector.
    pub offset: usize,
}

impl TensorSpec {
    /// Elements of the tensor.
    #[must_use]
    pub fn len(&self) -> usize {
        self.shape.iter().product()
    }

    /// Whether the tensor has no elements (it never has none).
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Elements as a range of the flat vector.
    #[must_use]
    pub fn range(&self) -> std::ops::Range<usize> {
        self.offset..self.offset + self.len()
    }

    /// Rows and row width; a vector is one row.
    pub(crate) fn rows(&self) -> (usize, usize) {
        match self.shape.as_slice() {
            [rows, cols] => (*rows, *cols),
            _ => (1, self.len()),
        }
    }
}

/// Order of all parameters: embedding, blocks, final norm, output layer unless
/// tied. A block is norm, attention, norm, feed-forward in order of
/// computation. Matrices are `[out, in]`, row-major; those that read the same
/// input (q, k, v; gate, up) lie side by side, then their biases.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layout {
    tensors: Vec<TensorSpec>,
    index: HashMap<String, usize>,
    len: usize,
}

impl Layout {
    /// The layout of `config`.
    #[must_use]
    pub fn new(config: &ModelConfig) -> Self {
        let h = config.hidden_size;
        let mut this = Self {
            tensors: Vec::new(),
            index: HashMap::new(),
            len: 0,
        };
        let embedding = vec![config.vocab_size, h];
        this.push("model.embed_tokens.weight", embedding.clone());
        for layer in 0..config.num_hidden_layers {
            let prefix = format!("model.layers.{layer}");
            this.push(&format!("{prefix}.input_layernorm.weight"), vec![h]);
            this.push_attention(config, &format!("{prefix}.self_attn"));
            this.push(
                &format!("{prefix}.post_attention_layernorm.weight"),
                vec![h],
            );
            this.push_feed_forward(config, layer, &format!("{prefix}.mlp"));
        }
        this.push("model.norm.weight", vec![h]);
        if !config.tie_word_embeddings {
            this.push("lm_head.weight", embedding);
        }
        this
    }

    fn push(&mut self, name: &str, shape: Vec<usize>) {
        let spec = TensorSpec {
            name: name.to_owned(),
            shape,
            offset: self.len,
        };
        self.len += spec.len();
        self.index.insert(spec.name.clone(), self.tensors.len());
        self.tensors.push(spec);
    }

    /// Matrices that read the same input, then their biases.
    fn push_linear(&mut self, prefix: &str, d_in: usize, outputs: &[(&str, usize)], bias: bool) {
        for (name, d_out) in outputs {
            self.push(&format!("{prefix}.{name}.weight"), vec![*d_out, d_in]);
        }
        for (name, d_out) in outputs.iter().filter(|_| bias) {
            self.push(&format!("{prefix}.{name}.bias"), vec![*d_out]);
        }
    }

    fn push_attention(&mut self, config: &ModelConfig, prefix: &str) {
        let h = config.hidden_size;
        if let Some(mla) = &config.mla {
            let bias = config.attention_bias;
            let q = config.query_size();
            if let Some(rank) = mla.q_lora_rank {
                self.push_linear(prefix, h, &[("q_a_proj", rank)], bias);
                self.push(&format!("{prefix}.q_a_layernorm.weight"), vec![rank]);
                self.push_linear(prefix, rank, &[("q_b_proj", q)], false);
            } else {
                self.push_linear(prefix, h, &[("q_proj", q)], false);
            }
            let rank = mla.kv_lora_rank;
            let width = rank + mla.qk_rope_head_dim;
            self.push_linear(prefix, h, &[("kv_a_proj_with_mqa", width)], bias);
            self.push(&format!("{prefix}.kv_a_layernorm.weight"), vec![rank]);
            let width = config.num_attention_heads * (mla.qk_nope_head_dim + mla.v_head_dim);
            self.push_linear(prefix, rank, &[("kv_b_proj", width)], false);
        } else {
            let kv = config.key_value_size();
            let outputs = [
                ("q_proj", config.query_size()),
                ("k_proj", kv),
                ("v_proj", kv),
            ];
            self.push_linear(prefix, h, &outputs, config.has_qkv_bias());
            if config.has_qk_norm() {
                for name in ["q_norm", "k_norm"] {
                    self.push(&format!("{prefix}.{name}.weight"), vec![config.head_dim]);
                }
            }
        }
        let attended = config.attended_size();
        let bias = config.has_output_bias();
        self.push_linear(prefix, attended, &[("o_proj", h)], bias);
    }

    fn push_feed_forward(&mut self, config: &ModelConfig, layer: usize, prefix: &str) {
        let h = config.hidden_size;
        let bias = config.mlp_bias;
        let Some(moe) = config.moe.filter(|_| config.has_experts(layer)) else {
            return self.push_gated(prefix, h, config.intermediate_size, bias);
        };
        self.push(
            &format!("{prefix}.gate.weight"),
            vec![moe.n_routed_experts, h],
        );
        if moe.routing == Routing::NoAuxTc {
            let name = format!("{prefix}.gate.e_score_correction_bias");
            self.push(&name, vec![moe.n_routed_experts]);
        }
        for expert in 0..moe.n_routed_experts {
            let prefix = format!("{prefix}.experts.{expert}");
            self.push_gated(&prefix, h, moe.moe_intermediate_size, false);
        }
        let width = config.feed_forward_size(layer);
        self.push_gated(&format!("{prefix}.shared_experts"), h, width, bias);
    }

    fn push_gated(&mut self, prefix: &str, h: usize, f: usize, bias: bool) {
        self.push_linear(prefix, h, &[("gate_proj", f), ("up_proj", f)], bias);
        self.push_linear(prefix, f, &[("down_proj", h)], bias);
    }

    /// Every tensor, in flat order.
    #[must_use]
    pub fn tensors(&self) -> &[TensorSpec] {
        &self.tensors
    }

    /// The tensor of that name.
    #[must_use]
    pub fn find(&self, name: &str) -> Option<&TensorSpec> {
        self.index.get(name).map(|i| &self.tensors[*i])
    }

    /// Parameters in all.
    #[must_use]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are no parameters (there always are).
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }
}
