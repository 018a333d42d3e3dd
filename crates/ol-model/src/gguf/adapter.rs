//! Adapters as llama.cpp reads them: `general.type` is `adapter`,
//! `adapter.type` is `lora`, and each adapted matrix `NAME` has two tensors,
//! `NAME.lora_a` (rank by inputs) and `NAME.lora_b` (outputs by rank). The
//! product is scaled by `adapter.lora.alpha / rank`, or not at all where alpha
//! is absent or zero.
//!
//! # Source
//! llama.cpp: `convert_lora_to_gguf.py`, `src/llama-adapter.cpp`.

use std::collections::{BTreeMap, HashSet};
use std::path::Path;

use super::config::describe;
use super::names::{file_row, gguf_name, turned_heads};
use super::write::{Plan, write};
use super::{Gguf, GgufError, GgufTensor, Storage, Value};
use crate::config::ModelConfig;
use crate::lora::{
    Lora, LoraBlock, LoraConfig, LoraError, MAX_ADAPTER_SIZE_BYTES, MAX_RANK, Projection,
};
use crate::quant::{Format, dequantise, quantise};
use crate::weights::Dtype;

const TYPE: &str = "general.type";
const ARCHITECTURE: &str = "general.architecture";
const KIND: &str = "adapter.type";
const ALPHA: &str = "adapter.lora.alpha";
/// An adapter that begins to work at some tokens only (activated LoRA).
const INVOCATION: &str = "adapter.alora.invocation_tokens";

/// An adapted matrix of a file.
struct Found<'a> {
    layer: usize,
    projection: Projection,
    module: String,
    rank: usize,
    a: &'a GgufTensor,
    b: &'a GgufTensor,
    /// Width of heads whose rows lie in another order.
    heads: Option<usize>,
}

/// What GGUF calls the weights of a module, before `.lora_a` and `.lora_b`.
fn name_of(module: &str) -> String {
    let (name, _) = gguf_name(&format!("{module}.weight"))
        .expect("every linear layer of a block has a GGUF name");
    name
}

/// Name of the architecture that the file of a base has.
fn architecture(path: &Path, model: &ModelConfig) -> Result<String, GgufError> {
    let refuse = |what| GgufError::Format {
        path: path.to_owned(),
        reason: format!("GGUF cannot say {what}"),
    };
    let (metadata, _) = describe(model).map_err(refuse)?;
    metadata
        .into_iter()
        .find_map(|(key, value)| match value {
            Value::String(name) if key == ARCHITECTURE => Some(name),
            _ => None,
        })
        .ok_or_else(|| refuse("its architecture"))
}

impl Lora {
    /// Takes an adapter for models shaped like `model` out of a GGUF file.
    ///
    /// # Errors
    /// [`GgufError`] that names the file, and the key or tensor: also when the
    /// file is no adapter, or one for another model.
    pub fn from_gguf(gguf: &Gguf, model: &ModelConfig) -> Result<Self, GgufError> {
        let wanted = [
            (TYPE, "adapter".to_owned()),
            (KIND, "lora".to_owned()),
            (ARCHITECTURE, architecture(gguf.path(), model)?),
        ];
        for (key, wanted) in wanted {
            let got = gguf.text(key)?.unwrap_or("missing");
            if got != wanted {
                return Err(gguf.metadata_error(key, format!("is {got}, expected {wanted}")));
            }
        }
        if gguf.metadata().contains_key(INVOCATION) {
            let reason = "activated LoRA is not supported: the adapter would have to work always";
            return Err(gguf.metadata_error(INVOCATION, reason));
        }
        let found = find(gguf, model)?;
        let params: usize = found
            .iter()
            .map(|f| f.a.rows().0 * f.a.rows().1 + f.b.rows().0 * f.rank)
            .sum();
        if (params as u64).saturating_mul(4) > MAX_ADAPTER_SIZE_BYTES {
            return Err(GgufError::Format {
                path: gguf.path().to_owned(),
                reason: format!(
                    "{params} parameters, allowed are {}",
                    MAX_ADAPTER_SIZE_BYTES / 4
                ),
            });
        }
        let alpha = gguf.float(ALPHA)?.filter(|alpha| *alpha != 0.0);
        let config = shape(model, &found, alpha);
        let mut params = Vec::with_capacity(params);
        for f in &found {
            params.extend(gguf.read_f32(f.a)?);
            let rows = gguf.read_f32(f.b)?;
            match f.heads {
                None => params.extend(rows),
                Some(width) => {
                    for row in 0..f.b.rows().0 {
                        let at = file_row(row, width) * f.rank;
                        params.extend(&rows[at..at + f.rank]);
                    }
                }
            }
        }
        Self::from_parameters(model, config, params).map_err(|error: LoraError| GgufError::Format {
            path: gguf.path().to_owned(),
            reason: error.to_string(),
        })
    }

    /// Writes the adapter as one GGUF file for llama.cpp; `model` is the shape
    /// it was made for. Modules with an alpha of their own have it in their
    /// factor B then, for a file has one alpha.
    ///
    /// # Errors
    /// [`GgufError`] when the file cannot be written, a factor is too large for
    /// `dtype`, or llama.cpp would not compute what the adapter says: it knows
    /// no DoRA, and of latent attention it adapts the output only.
    pub fn save_gguf(
        &self,
        path: &Path,
        model: &ModelConfig,
        dtype: Dtype,
    ) -> Result<(), GgufError> {
        let refuse = |reason: &str| GgufError::Format {
            path: path.to_owned(),
            reason: reason.to_owned(),
        };
        if !self.fits(model) {
            return Err(refuse("the adapter belongs to another shape of model"));
        }
        if self.config().use_dora {
            return Err(refuse(
                "llama.cpp knows no DoRA; merge the adapter into its base instead",
            ));
        }
        let is_ignored = |block: &&LoraBlock| {
            let of_attention = block.projection.module() == "self_attn";
            model.mla.is_some() && of_attention && block.projection != Projection::O
        };
        if let Some(block) = self.blocks().iter().find(is_ignored) {
            return Err(refuse(&format!(
                "llama.cpp ignores adapters on {} of latent attention; merge the adapter into \
                 its base instead",
                block.projection.name()
            )));
        }
        let storage = match dtype {
            Dtype::F32 => Storage::F32,
            Dtype::F16 => Storage::Quantised(Format::F16),
            Dtype::Bf16 => Storage::Quantised(Format::Bf16),
        };
        let alpha = self.file_alpha();
        let text = |text: &str| Value::String(text.to_owned());
        let metadata = [
            (
                ARCHITECTURE.to_owned(),
                Value::String(architecture(path, model)?),
            ),
            (TYPE.to_owned(), text("adapter")),
            (KIND.to_owned(), text("lora")),
            (ALPHA.to_owned(), Value::Float(alpha.into())),
        ];
        let plans: Vec<Plan> = self
            .blocks()
            .iter()
            .flat_map(|block| {
                let name = name_of(&block.module);
                [("lora_a", block.rows_a), ("lora_b", block.rows_b)].map(|(part, (rows, cols))| {
                    Plan {
                        name: format!("{name}.{part}"),
                        shape: vec![rows, cols],
                        storage,
                    }
                })
            })
            .collect();
        write(path, &metadata, &plans, |i| {
            let block = &self.blocks()[i / 2];
            let values = if i % 2 == 0 {
                self.parameters()[block.range_a()].to_vec()
            } else {
                self.factor_b(model, block, alpha)
            };
            store(path, &plans[i], &values)
        })
    }

    /// The one alpha of a file: the configured one where it holds for all, else
    /// that of the first module.
    #[expect(clippy::cast_precision_loss, reason = "ranks are small")]
    fn file_alpha(&self) -> f32 {
        let config = self.config();
        let first = &self.blocks()[0];
        if config.use_rslora || !config.alpha_pattern.is_empty() {
            first.scale * first.rank() as f32
        } else {
            config.alpha
        }
    }

    /// Factor B with its rows in the order of the file, for a product scaled by
    /// `alpha / rank`.
    #[expect(clippy::cast_precision_loss, reason = "ranks are small")]
    fn factor_b(&self, model: &ModelConfig, block: &LoraBlock, alpha: f32) -> Vec<f32> {
        let rank = block.rank();
        let scale = alpha / rank as f32;
        let ours = &self.parameters()[block.range_b()];
        let mut theirs = ours.to_vec();
        let name = format!("{}.weight", block.module);
        if let Some(width) = turned_heads(model, &name) {
            for (row, values) in ours.chunks_exact(rank).enumerate() {
                let at = file_row(row, width) * rank;
                theirs[at..at + rank].copy_from_slice(values);
            }
        }
        if scale.to_bits() != block.scale.to_bits() {
            theirs
                .iter_mut()
                .for_each(|value| *value *= block.scale / scale);
        }
        theirs
    }
}

/// The bytes of a factor.
fn store(path: &Path, plan: &Plan, values: &[f32]) -> Result<Vec<u8>, GgufError> {
    let Storage::Quantised(format) = plan.storage else {
        return Ok(values.iter().flat_map(|v| v.to_le_bytes()).collect());
    };
    let mut bytes = Vec::new();
    quantise(format, values, &mut bytes);
    let mut read = vec![0.0_f32; values.len()];
    dequantise(format, &bytes, &mut read).map_err(|_| GgufError::Tensor {
        path: path.to_owned(),
        tensor: plan.name.clone(),
        reason: format!("a factor is too large for {}", format.name()),
    })?;
    Ok(bytes)
}

/// The adapted matrices of a file in flat order; every tensor belongs to one.
fn find<'a>(gguf: &'a Gguf, model: &ModelConfig) -> Result<Vec<Found<'a>>, GgufError> {
    let mut found = Vec::new();
    let mut known = HashSet::new();
    let projections = Projection::of(model);
    for layer in 0..model.num_hidden_layers {
        for &projection in &projections {
            let Some((d_out, d_in)) = projection.shape(model, layer) else {
                continue;
            };
            let module = projection.module_path(model, layer);
            let names = ["lora_a", "lora_b"].map(|part| format!("{}.{part}", name_of(&module)));
            let (a, b) = match names.each_ref().map(|name| gguf.find(name)) {
                [None, None] => continue,
                [Some(a), Some(b)] => (a, b),
                [Some(_), None] => {
                    return Err(gguf.tensor_error(&names[1], "is missing beside its lora_a"));
                }
                [None, Some(_)] => {
                    return Err(gguf.tensor_error(&names[0], "is missing beside its lora_b"));
                }
            };
            let rank = a.rows().0;
            for (tensor, wanted) in [(a, (rank, d_in)), (b, (d_out, rank))] {
                if tensor.shape.len() > 2 || tensor.rows() != wanted {
                    let reason = format!(
                        "has shape {:?}, expected [{}, {}] for this model",
                        tensor.shape, wanted.0, wanted.1
                    );
                    return Err(gguf.tensor_error(&tensor.name, reason));
                }
            }
            if rank > MAX_RANK {
                let reason = format!("has rank {rank}, allowed are 1 to {MAX_RANK}");
                return Err(gguf.tensor_error(&a.name, reason));
            }
            let heads = turned_heads(model, &format!("{module}.weight"));
            known.extend(names);
            found.push(Found {
                layer,
                projection,
                module,
                rank,
                a,
                b,
                heads,
            });
        }
    }
    match gguf.tensors().iter().find(|t| !known.contains(&t.name)) {
        Some(other) => {
            let kind = model.family.model_type();
            let reason = format!("is no factor of a linear layer of this {kind} model's blocks");
            Err(gguf.tensor_error(&other.name, reason))
        }
        None if found.is_empty() => Err(GgufError::Format {
            path: gguf.path().to_owned(),
            reason: "it adapts no layer".to_owned(),
        }),
        None => Ok(found),
    }
}

/// The configuration that has just these modules, ranks and scales.
#[expect(clippy::cast_precision_loss, reason = "ranks are small")]
#[expect(clippy::cast_possible_truncation, reason = "alpha is stored as f32")]
fn shape(model: &ModelConfig, found: &[Found<'_>], alpha: Option<f64>) -> LoraConfig {
    let mut ranks: BTreeMap<usize, usize> = BTreeMap::new();
    let mut layers: BTreeMap<Projection, Vec<usize>> = BTreeMap::new();
    for f in found {
        *ranks.entry(f.rank).or_default() += 1;
        layers.entry(f.projection).or_default().push(f.layer);
    }
    let rank = ranks
        .iter()
        .max_by_key(|(rank, n)| (**n, std::cmp::Reverse(**rank)))
        .map_or(1, |(rank, _)| *rank);
    let others = || found.iter().filter(|f| f.rank != rank);
    let is_partly = layers.iter().any(|(projection, layers)| {
        let has = |layer: &usize| projection.shape(model, *layer).is_some();
        (0..model.num_hidden_layers).filter(has).count() != layers.len()
    });
    let module_pattern = is_partly.then(|| {
        let mut by_path: BTreeMap<String, Vec<String>> = BTreeMap::new();
        for f in found {
            let path = f.projection.path(model, f.layer);
            by_path.entry(path).or_default().push(f.layer.to_string());
        }
        let alternatives = by_path
            .into_iter()
            .map(|(path, layers)| format!("(?:{})\\.{}", layers.join("|"), regex::escape(&path)));
        let all: Vec<String> = alternatives.collect();
        format!("model\\.layers\\.(?:{})", all.join("|"))
    });
    LoraConfig {
        alpha: alpha.map_or(rank as f32, |alpha| alpha as f32),
        alpha_pattern: match alpha {
            Some(_) => BTreeMap::new(),
            None => others()
                .map(|f| (regex::escape(&f.module), f.rank as f32))
                .collect(),
        },
        module_pattern,
        rank,
        rank_pattern: others()
            .map(|f| (regex::escape(&f.module), f.rank))
            .collect(),
        target_modules: layers.into_keys().collect(),
        use_dora: false,
        use_rslora: false,
    }
}
