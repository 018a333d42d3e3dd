//! Tensors of the engine's models under their GGUF names.

use std::ops::Range;

use super::{Gguf, GgufError, GgufTensor, Storage};
use crate::config::{Family, ModelConfig};
use crate::layout::TensorSpec;
use crate::pool::Pool;
use crate::quant::QuantMatrix;

/// Parts of a block: in Hugging Face directories, in GGUF.
const BLOCK: [(&str, &str); 21] = [
    ("input_layernorm", "attn_norm"),
    ("post_attention_layernorm", "ffn_norm"),
    ("self_attn.q_proj", "attn_q"),
    ("self_attn.k_proj", "attn_k"),
    ("self_attn.v_proj", "attn_v"),
    ("self_attn.o_proj", "attn_output"),
    ("self_attn.q_norm", "attn_q_norm"),
    ("self_attn.k_norm", "attn_k_norm"),
    ("self_attn.q_a_proj", "attn_q_a"),
    ("self_attn.q_a_layernorm", "attn_q_a_norm"),
    ("self_attn.q_b_proj", "attn_q_b"),
    ("self_attn.kv_a_proj_with_mqa", "attn_kv_a_mqa"),
    ("self_attn.kv_a_layernorm", "attn_kv_a_norm"),
    ("self_attn.kv_b_proj", "attn_kv_b"),
    ("mlp.gate_proj", "ffn_gate"),
    ("mlp.up_proj", "ffn_up"),
    ("mlp.down_proj", "ffn_down"),
    ("mlp.gate", "ffn_gate_inp"),
    ("mlp.shared_experts.gate_proj", "ffn_gate_shexp"),
    ("mlp.shared_experts.up_proj", "ffn_up_shexp"),
    ("mlp.shared_experts.down_proj", "ffn_down_shexp"),
];

/// Name of a tensor in GGUF and, where all experts of a layer are one tensor
/// there, which of them it is.
pub(super) fn gguf_name(name: &str) -> Option<(String, Option<usize>)> {
    match name {
        "model.embed_tokens.weight" => return Some(("token_embd.weight".to_owned(), None)),
        "model.norm.weight" => return Some(("output_norm.weight".to_owned(), None)),
        "lm_head.weight" => return Some(("output.weight".to_owned(), None)),
        _ => {}
    }
    let (layer, part) = name.strip_prefix("model.layers.")?.split_once('.')?;
    if part == "mlp.gate.e_score_correction_bias" {
        return Some((format!("blk.{layer}.exp_probs_b.bias"), None));
    }
    let (part, kind) = part.rsplit_once('.')?;
    if let Some((expert, part)) = part
        .strip_prefix("mlp.experts.")
        .and_then(|p| p.split_once('.'))
    {
        let part = part.strip_suffix("_proj")?;
        let expert = expert.parse().ok()?;
        return Some((format!("blk.{layer}.ffn_{part}_exps.{kind}"), Some(expert)));
    }
    let (_, theirs) = BLOCK.iter().find(|(ours, _)| *ours == part)?;
    Some((format!("blk.{layer}.{theirs}.{kind}"), None))
}

/// Width of the heads whose rows GGUF has in another order: for the Llama
/// architecture, queries and keys are stored so that the two values a
/// rotation mixes lie side by side.
pub(super) fn turned_heads(config: &ModelConfig, name: &str) -> Option<usize> {
    let turned = matches!(config.family, Family::Llama | Family::Mistral)
        && [".q_proj.", ".k_proj."].iter().any(|p| name.contains(p));
    turned.then_some(config.head_dim)
}

/// The row of a GGUF file that is row `row` here, for heads of `width`.
pub(super) fn file_row(row: usize, width: usize) -> usize {
    let (head, at) = (row / width, row % width);
    let half = width / 2;
    head * width + 2 * (at % half) + at / half
}

/// Where a tensor of the model lies.
struct Place<'a> {
    tensor: &'a GgufTensor,
    rows: Range<usize>,
    heads: Option<usize>,
}

impl Gguf {
    fn locate(&self, config: &ModelConfig, spec: &TensorSpec) -> Result<Place<'_>, GgufError> {
        let (name, expert) = gguf_name(&spec.name)
            .ok_or_else(|| self.tensor_error(&spec.name, "has no name in GGUF"))?;
        let rows = spec.rows().0;
        let place = |tensor, first| Place {
            tensor,
            rows: first..first + rows,
            heads: turned_heads(config, &spec.name),
        };
        if let (Some(expert), Some(moe)) = (expert, &config.moe) {
            let shape = [&[moe.n_routed_experts], spec.shape.as_slice()].concat();
            return Ok(place(self.expect(&name, &shape)?, expert * rows));
        }
        Ok(place(self.expect(&name, &spec.shape)?, 0))
    }

    /// Whether the tensor of the model is there, with its shape; names it if not.
    pub(crate) fn check_model_tensor(
        &self,
        config: &ModelConfig,
        spec: &TensorSpec,
    ) -> Result<(), GgufError> {
        if self.is_split(config, spec) {
            return self.split_parts(config, spec).map(|_| ());
        }
        self.locate(config, spec).map(|_| ())
    }

    /// Rows of a tensor of the model in f32 (a vector is one row).
    pub(crate) fn read_model_rows(
        &self,
        config: &ModelConfig,
        spec: &TensorSpec,
        rows: Range<usize>,
        out: &mut [f32],
    ) -> Result<(), GgufError> {
        let (_, cols) = spec.rows();
        if self.is_split(config, spec) {
            let all = self.join_latent(config, spec)?;
            out.copy_from_slice(&all[rows.start * cols..rows.end * cols]);
            return Ok(());
        }
        let place = self.locate(config, spec)?;
        let Some(width) = place.heads else {
            let first = place.rows.start;
            let rows = first + rows.start..first + rows.end;
            out.copy_from_slice(&self.read_rows_f32(place.tensor, rows)?);
            return Ok(());
        };
        if spec.shape.len() == 1 {
            let all = self.read_rows_f32(place.tensor, 0..1)?;
            for (i, out) in out.iter_mut().enumerate() {
                *out = all[file_row(i, width)];
            }
            return Ok(());
        }
        // Rows change places only within their head.
        let first = rows.start / width * width;
        let heads = first..rows.end.next_multiple_of(width);
        let all = self.read_rows_f32(place.tensor, heads)?;
        for (row, out) in rows.zip(out.chunks_exact_mut(cols)) {
            let at = file_row(row, width) - first;
            out.copy_from_slice(&all[at * cols..(at + 1) * cols]);
        }
        Ok(())
    }

    /// A matrix of the model as it is stored, unless that is f32 or it has to
    /// be computed from several.
    pub(crate) fn read_model_matrix(
        &self,
        pool: &Pool,
        config: &ModelConfig,
        spec: &TensorSpec,
    ) -> Result<Option<QuantMatrix>, GgufError> {
        if self.is_split(config, spec) {
            return Ok(None);
        }
        let place = self.locate(config, spec)?;
        if place.tensor.storage == Storage::F32 {
            return Ok(None);
        }
        let order = |row| place.heads.map_or(row, |width| file_row(row, width));
        self.read_matrix(pool, place.tensor, place.rows, &order)
            .map(Some)
    }

    /// Refuses a configuration with more layers or experts than the file has
    /// tensors for, before they are listed.
    pub(crate) fn check_size(&self, config: &ModelConfig) -> Result<(), GgufError> {
        // Every layer has tensors, every expert a row in one of them.
        let n = self.tensors().len();
        if config.num_hidden_layers > n {
            let reason = format!("is {}, with {n} tensors", config.num_hidden_layers);
            return Err(self.metadata_error("block_count", reason));
        }
        if let Some(moe) = &config.moe {
            for layer in moe.first_k_dense_replace..config.num_hidden_layers {
                let name = format!("blk.{layer}.ffn_gate_inp.weight");
                self.expect(&name, &[moe.n_routed_experts, config.hidden_size])?;
            }
        }
        Ok(())
    }

    /// Whether the file has the keys' and the values' part of a latent
    /// up-projection apart, as newer converters write it.
    fn is_split(&self, config: &ModelConfig, spec: &TensorSpec) -> bool {
        config.mla.is_some()
            && spec.name.ends_with(".kv_b_proj.weight")
            && gguf_name(&spec.name).is_some_and(|(name, _)| self.find(&name).is_none())
    }

    fn split_parts(
        &self,
        config: &ModelConfig,
        spec: &TensorSpec,
    ) -> Result<(&GgufTensor, &GgufTensor), GgufError> {
        let (name, _) = gguf_name(&spec.name)
            .ok_or_else(|| self.tensor_error(&spec.name, "has no name in GGUF"))?;
        let mla = config
            .mla
            .ok_or_else(|| self.tensor_error(&name, "belongs to latent attention"))?;
        let (heads, rank) = (config.num_attention_heads, mla.kv_lora_rank);
        let part = |letter: &str, shape: &[usize]| {
            self.expect(
                &name.replace("attn_kv_b", &format!("attn_{letter}_b")),
                shape,
            )
        };
        Ok((
            part("k", &[heads, rank, mla.qk_nope_head_dim])?,
            part("v", &[heads, mla.v_head_dim, rank])?,
        ))
    }

    /// `kv_b_proj` from its two parts; the keys' is stored transposed, so it
    /// cannot stay in its format.
    fn join_latent(&self, config: &ModelConfig, spec: &TensorSpec) -> Result<Vec<f32>, GgufError> {
        let (k, v) = self.split_parts(config, spec)?;
        let (heads, rank, nope) = (k.shape[0], k.shape[1], k.shape[2]);
        let v_dim = v.shape[1];
        let (k, v) = (self.read_f32(k)?, self.read_f32(v)?);
        let mut out = Vec::with_capacity(spec.len());
        for head in 0..heads {
            let k = &k[head * rank * nope..(head + 1) * rank * nope];
            out.extend((0..nope).flat_map(|i| (0..rank).map(move |r| k[r * nope + i])));
            out.extend(&v[head * v_dim * rank..(head + 1) * v_dim * rank]);
        }
        Ok(out)
    }

    /// Refuses tensors that are no part of the model: the file would mean
    /// something else than what is computed.
    pub(crate) fn check_no_others<'a>(
        &self,
        config: &ModelConfig,
        specs: impl Iterator<Item = &'a TensorSpec>,
    ) -> Result<(), GgufError> {
        let mut known = std::collections::HashSet::from(["rope_freqs.weight".to_owned()]);
        for spec in specs {
            let Some((name, _)) = gguf_name(&spec.name) else {
                continue;
            };
            if self.is_split(config, spec) {
                for part in ["attn_k_b", "attn_v_b"] {
                    known.insert(name.replace("attn_kv_b", part));
                }
            }
            known.insert(name);
        }
        match self.tensors().iter().find(|t| !known.contains(&t.name)) {
            None => Ok(()),
            Some(tensor) => {
                let kind = config.family.model_type();
                let reason = format!("is no part of a {kind} model this engine computes");
                Err(self.tensor_error(&tensor.name, reason))
            }
        }
    }
}
