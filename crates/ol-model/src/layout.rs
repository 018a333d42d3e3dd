//! Where each tensor lies in the flat parameter vector.

use crate::config::ModelConfig;

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
}

/// Tensors of one block, as indices into [`Layout::tensors`].
pub(crate) const NORM1: usize = 0;
pub(crate) const Q: usize = 1;
pub(crate) const O: usize = 4;
pub(crate) const NORM2: usize = 5;
pub(crate) const GATE: usize = 6;
pub(crate) const DOWN: usize = 8;
const PER_LAYER: usize = 9;

/// Order of all parameters: embedding, blocks (norm, q, k, v, o, norm, gate,
/// up, down), final norm, output layer unless tied. Matrices are
/// `[out, in]`, row-major; q, k, v and gate, up lie side by side.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layout {
    tensors: Vec<TensorSpec>,
    len: usize,
}

impl Layout {
    /// The layout of `config`.
    #[must_use]
    pub fn new(config: &ModelConfig) -> Self {
        let (h, f) = (config.hidden_size, config.intermediate_size);
        let (q, kv) = (config.query_size(), config.key_value_size());
        let mut this = Self {
            tensors: Vec::new(),
            len: 0,
        };
        this.push(
            "model.embed_tokens.weight".to_owned(),
            vec![config.vocab_size, h],
        );
        for layer in 0..config.num_hidden_layers {
            let parts: [(&str, Vec<usize>); PER_LAYER] = [
                ("input_layernorm", vec![h]),
                ("self_attn.q_proj", vec![q, h]),
                ("self_attn.k_proj", vec![kv, h]),
                ("self_attn.v_proj", vec![kv, h]),
                ("self_attn.o_proj", vec![h, q]),
                ("post_attention_layernorm", vec![h]),
                ("mlp.gate_proj", vec![f, h]),
                ("mlp.up_proj", vec![f, h]),
                ("mlp.down_proj", vec![h, f]),
            ];
            for (name, shape) in parts {
                this.push(format!("model.layers.{layer}.{name}.weight"), shape);
            }
        }
        this.push("model.norm.weight".to_owned(), vec![h]);
        if !config.tie_word_embeddings {
            this.push("lm_head.weight".to_owned(), vec![config.vocab_size, h]);
        }
        this
    }

    fn push(&mut self, name: String, shape: Vec<usize>) {
        let spec = TensorSpec {
            name,
            shape,
            offset: self.len,
        };
        self.len += spec.len();
        self.tensors.push(spec);
    }

    /// Every tensor, in flat order.
    #[must_use]
    pub fn tensors(&self) -> &[TensorSpec] {
        &self.tensors
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

    /// Elements from tensor `first` to tensor `last` of block `layer`.
    pub(crate) fn block(&self, layer: usize, first: usize, last: usize) -> std::ops::Range<usize> {
        let at = |part: usize| self.tensors[1 + layer * PER_LAYER + part].range();
        at(first).start..at(last).end
    }

    pub(crate) fn embedding(&self) -> std::ops::Range<usize> {
        self.tensors[0].range()
    }

    pub(crate) fn final_norm(&self, layers: usize) -> std::ops::Range<usize> {
        self.tensors[1 + layers * PER_LAYER].range()
    }

    /// The output layer; the embedding if they are tied.
    pub(crate) fn head(&self, layers: usize) -> std::ops::Range<usize> {
        self.tensors
            .get(2 + layers * PER_LAYER)
            .map_or_else(|| self.embedding(), TensorSpec::range)
    }
}
