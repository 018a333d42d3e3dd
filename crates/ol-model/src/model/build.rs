//! Assembles a model from its tensors, wherever they come from.

use std::ops::Range;

use super::block::Block;
use super::direct::{Direct, HeadNorms};
use super::heads::{Heads, Inputs, Shape};
use super::mla::{Latent, Queries};
use super::mlp::Mlp;
use super::moe::{Experts, FeedForward, Router};
use super::rope::RopeTable;
use super::{LoadError, Model};
use crate::config::{ModelConfig, Routing, WeightFormat};
use crate::kernels::{Mat, Panels};
use crate::layout::{Layout, TensorSpec};
use crate::linear::{Linear, Norm, Weight};
use crate::pool::Pool;
use crate::quant::QuantMatrix;

/// Weights read at a time.
const READ_WEIGHTS: usize = 1 << 22;

/// Models up to this size keep their matrices turned for backward passes.
const KEEP_BACK_SIZE_BYTES: usize = 256 << 20;

/// Where tensors come from. What it hands out is finite.
pub(crate) trait Source {
    /// Rows `rows` of a tensor as f32 (a vector is one row).
    fn read(&self, spec: &TensorSpec, rows: Range<usize>, out: &mut [f32])
    -> Result<(), LoadError>;

    /// The matrix as it is stored, if that is not f32.
    fn stored(&self, spec: &TensorSpec) -> Result<Option<QuantMatrix>, LoadError>;

    /// The error for a tensor that cannot be held in the format asked for.
    fn unfit(&self, spec: &TensorSpec, reason: String) -> LoadError;
}

/// Flat parameters, checked before.
pub(super) struct Flat<'a>(pub(super) &'a [f32]);

impl Source for Flat<'_> {
    fn read(
        &self,
        spec: &TensorSpec,
        rows: Range<usize>,
        out: &mut [f32],
    ) -> Result<(), LoadError> {
        let (_, width) = spec.rows();
        let start = spec.offset + rows.start * width;
        out.copy_from_slice(&self.0[start..start + rows.len() * width]);
        Ok(())
    }

    fn stored(&self, _: &TensorSpec) -> Result<Option<QuantMatrix>, LoadError> {
        Ok(None)
    }

    fn unfit(&self, _: &TensorSpec, _: String) -> LoadError {
        LoadError::Parameters {
            expected: 0,
            got: self.0.len(),
        }
    }
}

/// Makes the parts of a model out of named tensors.
pub(crate) struct Builder<'a> {
    config: &'a ModelConfig,
    layout: &'a Layout,
    source: &'a dyn Source,
    pool: &'a Pool,
    format: WeightFormat,
    keep_back: bool,
}

impl<'a> Builder<'a> {
    /// Holds matrices in f32.
    pub(super) fn new(
        config: &'a ModelConfig,
        layout: &'a Layout,
        source: &'a dyn Source,
        pool: &'a Pool,
    ) -> Self {
        Self {
            config,
            layout,
            source,
            pool,
            format: WeightFormat::F32,
            keep_back: layout.len().saturating_mul(4) <= KEEP_BACK_SIZE_BYTES,
        }
    }

    /// Holds matrices in `format`.
    pub(super) fn format(self, format: WeightFormat) -> Self {
        Self { format, ..self }
    }

    /// Every part of the model.
    pub(super) fn model(&self) -> Result<Model, LoadError> {
        let config = self.config;
        let blocks = (0..config.num_hidden_layers)
            .map(|layer| self.block(layer))
            .collect::<Result<_, _>>()?;
        let embed = ["embed_tokens"];
        let (embedding, head) = if config.tie_word_embeddings {
            (None, self.linear("model", &embed)?)
        } else {
            let embedding = self.linear("model", &embed)?;
            (Some(embedding), self.linear("", &["lm_head"])?)
        };
        Ok(Model {
            config: config.clone(),
            layout: self.layout.clone(),
            embedding,
            blocks,
            norm: self.norm("model.norm.weight")?,
            head,
            rope: RopeTable::new(config),
            hash: std::sync::OnceLock::new(),
        })
    }

    fn block(&self, layer: usize) -> Result<Block, LoadError> {
        let prefix = format!("model.layers.{layer}");
        let attention = format!("{prefix}.self_attn");
        Ok(Block {
            norm1: self.norm(&format!("{prefix}.input_layernorm.weight"))?,
            attention: Heads {
                inputs: self.inputs(&attention)?,
                shape: Shape::new(self.config),
                o: self.linear(&attention, &["o_proj"])?,
            },
            norm2: self.norm(&format!("{prefix}.post_attention_layernorm.weight"))?,
            mlp: self.feed_forward(layer, &format!("{prefix}.mlp"))?,
        })
    }

    /// What makes queries, keys and values.
    #[expect(
        clippy::cast_possible_truncation,
        reason = "rounding to f32 is what is wanted"
    )]
    fn inputs(&self, prefix: &str) -> Result<Inputs, LoadError> {
        let norm = |name: &str| self.norm(&format!("{prefix}.{name}.weight"));
        let Some(mla) = self.config.mla else {
            let norms = if self.config.has_qk_norm() {
                Some(HeadNorms {
                    query: norm("q_norm")?,
                    key: norm("k_norm")?,
                })
            } else {
                None
            };
            return Ok(Inputs::Direct(Direct {
                qkv: self.linear(prefix, &["q_proj", "k_proj", "v_proj"])?,
                norms,
            }));
        };
        let queries = if mla.q_lora_rank.is_some() {
            Queries::LowRank {
                a: self.linear(prefix, &["q_a_proj"])?,
                norm: norm("q_a_layernorm")?,
                b: self.linear(prefix, &["q_b_proj"])?,
            }
        } else {
            Queries::Direct(self.linear(prefix, &["q_proj"])?)
        };
        Ok(Inputs::Latent(Box::new(Latent {
            queries,
            kv_a: self.linear(prefix, &["kv_a_proj_with_mqa"])?,
            kv_norm: norm("kv_a_layernorm")?,
            kv_b: self.linear(prefix, &["kv_b_proj"])?,
            shape: mla,
            score_factor: self.config.rope.score_factor() as f32,
        })))
    }

    fn feed_forward(&self, layer: usize, prefix: &str) -> Result<FeedForward, LoadError> {
        let Some(moe) = self.config.moe.filter(|_| self.config.has_experts(layer)) else {
            return Ok(FeedForward::Dense(self.mlp(prefix)?));
        };
        let bias = match moe.routing {
            Routing::NoAuxTc => Some(self.norm(&format!("{prefix}.gate.e_score_correction_bias"))?),
            Routing::Greedy | Routing::GroupLimitedGreedy => None,
        };
        Ok(FeedForward::Experts(Box::new(Experts {
            router: Router {
                gate: self.linear(prefix, &["gate"])?,
                bias,
            },
            routed: (0..moe.n_routed_experts)
                .map(|expert| self.mlp(&format!("{prefix}.experts.{expert}")))
                .collect::<Result<_, _>>()?,
            shared: self.mlp(&format!("{prefix}.shared_experts"))?,
            shape: moe,
        })))
    }

    /// A gated feed-forward layer.
    pub(crate) fn mlp(&self, prefix: &str) -> Result<Mlp, LoadError> {
        Ok(Mlp {
            gate_up: self.linear(prefix, &["gate_proj", "up_proj"])?,
            down: self.linear(prefix, &["down_proj"])?,
        })
    }

    fn spec(&self, name: &str) -> &'a TensorSpec {
        self.layout
            .find(name)
            .expect("the layout names what the model is built of")
    }

    /// A vector of the layout.
    pub(crate) fn norm(&self, name: &str) -> Result<Norm, LoadError> {
        let spec = self.spec(name);
        let mut weight = vec![0.0_f32; spec.len()];
        self.source.read(spec, 0..1, &mut weight)?;
        Ok(Norm {
            weight,
            flat: spec.offset,
        })
    }

    /// One layer of matrices that lie side by side, with their biases if the
    /// layout has them.
    pub(crate) fn linear(&self, prefix: &str, names: &[&str]) -> Result<Linear, LoadError> {
        let full = |name: &str, what: &str| {
            let dot = if prefix.is_empty() { "" } else { "." };
            format!("{prefix}{dot}{name}.{what}")
        };
        let specs: Vec<&TensorSpec> = names
            .iter()
            .map(|name| self.spec(&full(name, "weight")))
            .collect();
        let biases: Vec<&TensorSpec> = names
            .iter()
            .filter_map(|name| self.layout.find(&full(name, "bias")))
            .collect();
        let (_, d_in) = specs[0].rows();
        let bias = if biases.is_empty() {
            None
        } else {
            let mut bias = vec![0.0_f32; biases.iter().map(|s| s.len()).sum()];
            let mut rest = bias.as_mut_slice();
            for spec in &biases {
                let (out, after) = rest.split_at_mut(spec.len());
                self.source.read(spec, 0..1, out)?;
                rest = after;
            }
            Some(bias)
        };
        let flat = (specs[0].offset, biases.first().map_or(0, |s| s.offset));
        let weights = self.weights(&specs, d_in)?;
        Ok(Linear::new(weights, bias, d_in, flat, self.keep_back))
    }

    /// The matrices in the format asked for; f32 ones become one.
    fn weights(&self, specs: &[&TensorSpec], d_in: usize) -> Result<Vec<Weight>, LoadError> {
        let mut weights: Vec<Weight> = Vec::new();
        // f32 matrices so far, to be joined with the next.
        let mut dense: Vec<&TensorSpec> = Vec::new();
        for spec in specs {
            match self.quantised(spec)? {
                Some(matrix) => {
                    if !dense.is_empty() {
                        weights.push(self.panels(&std::mem::take(&mut dense), d_in)?);
                    }
                    weights.push(Weight::Quantised(matrix));
                }
                None => dense.push(spec),
            }
        }
        if !dense.is_empty() {
            weights.push(self.panels(&dense, d_in)?);
        }
        Ok(weights)
    }

    fn quantised(&self, spec: &TensorSpec) -> Result<Option<QuantMatrix>, LoadError> {
        let (rows, cols) = spec.rows();
        let format = match self.format {
            WeightFormat::F32 => return Ok(None),
            WeightFormat::Stored => return self.source.stored(spec),
            WeightFormat::Quantised(format) => format,
        };
        // Router, embedding and output layer decide much and weigh little.
        let outer = spec.name.starts_with("lm_head") || spec.name.contains("embed_tokens");
        if outer || spec.name.ends_with("mlp.gate.weight") {
            return self.source.stored(spec);
        }
        let mut values = vec![0.0_f32; rows * cols];
        self.source.read(spec, 0..rows, &mut values)?;
        match QuantMatrix::quantise(self.pool, format, rows, cols, &values) {
            Ok(matrix) => Ok(Some(matrix)),
            Err(reason) => Err(self.source.unfit(spec, reason.to_string())),
        }
    }

    /// Matrices one above the other as f32, read a piece at a time.
    fn panels(&self, specs: &[&TensorSpec], d_in: usize) -> Result<Weight, LoadError> {
        let n = specs.iter().map(|s| s.rows().0).sum();
        let mut panels = Panels::zeros(d_in, n);
        let step = (READ_WEIGHTS / d_in.max(1)).max(16);
        let mut values = Vec::new();
        let mut first = 0;
        for spec in specs {
            let (rows, _) = spec.rows();
            for start in (0..rows).step_by(step) {
                let range = start..(start + step).min(rows);
                values.resize(range.len() * d_in, 0.0_f32);
                self.source.read(spec, range.clone(), &mut values)?;
                let from = Mat::new(&values, range.len(), d_in);
                panels.write_t(self.pool, first + start, from);
            }
            first += rows;
        }
        Ok(Weight::Dense(panels))
    }
}
