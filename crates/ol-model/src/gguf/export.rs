//! Whole models as GGUF files.

use std::path::Path;

use super::config::describe;
use super::names::{file_row, gguf_name, turned_heads};
use super::write::{Plan, tokenizer_metadata, write};
use super::{GgufError, GgufTokenizer, Storage, Value};
use crate::config::ModelConfig;
use crate::layout::{Layout, TensorSpec};
use crate::quant::{Format, quantise};

/// A tensor of the file and the tensors of the model it is made of, one above
/// the other.
struct Tensor<'a> {
    plan: Plan,
    parts: Vec<&'a TensorSpec>,
}

/// Writes a model tensor by tensor.
pub(crate) struct ModelWriter<'a> {
    config: &'a ModelConfig,
    tensors: Vec<Tensor<'a>>,
}

/// The storage of a matrix: the format asked for or, where rows are not whole
/// blocks of it, the next that fits.
fn storage(spec: &TensorSpec, format: Format) -> Storage {
    let [_, cols] = spec.shape[..] else {
        return Storage::F32;
    };
    // Routers decide much and weigh little.
    if spec.name.ends_with("mlp.gate.weight") {
        return Storage::F32;
    }
    let is_output = spec.name == "lm_head.weight" || spec.name == "model.embed_tokens.weight";
    let wanted = if is_output && format == Format::Q4K {
        Format::Q6K
    } else {
        format
    };
    let fits = |f: &Format| cols.is_multiple_of(f.block());
    let all = [wanted, Format::Q8_0, Format::F16];
    Storage::Quantised(all.into_iter().find(fits).unwrap_or(Format::F16))
}

impl<'a> ModelWriter<'a> {
    /// Plans a file with its matrices in `format`.
    pub(crate) fn new(config: &'a ModelConfig, layout: &'a Layout, format: Format) -> Self {
        let mut tensors: Vec<Tensor<'a>> = Vec::new();
        for spec in layout.tensors() {
            let (name, expert) =
                gguf_name(&spec.name).expect("every tensor of a layout has a GGUF name");
            match expert {
                None => tensors.push(Tensor {
                    plan: Plan {
                        name,
                        shape: spec.shape.clone(),
                        storage: storage(spec, format),
                    },
                    parts: vec![spec],
                }),
                Some(0) => {
                    let n = config.moe.map_or(1, |moe| moe.n_routed_experts);
                    tensors.push(Tensor {
                        plan: Plan {
                            name,
                            shape: [&[n], spec.shape.as_slice()].concat(),
                            storage: storage(spec, format),
                        },
                        parts: vec![spec],
                    });
                }
                // Experts come in order in the layout.
                Some(_) => tensors
                    .iter_mut()
                    .find(|t| t.plan.name == name)
                    .expect("expert 0 came before")
                    .parts
                    .push(spec),
            }
        }
        Self { config, tensors }
    }

    /// Writes the file; `read(name, row, out)` gives a row of a tensor.
    ///
    /// # Errors
    /// As [`crate::Model::save_gguf`].
    pub(crate) fn write(
        &self,
        path: &Path,
        tokenizer: Option<&GgufTokenizer>,
        mut read: impl FnMut(&str, usize, &mut [f32]),
    ) -> Result<(), GgufError> {
        let (mut metadata, freqs) = describe(self.config).map_err(|what| GgufError::Format {
            path: path.to_owned(),
            reason: format!("GGUF cannot say {what}"),
        })?;
        metadata.push(("general.quantization_version".to_owned(), Value::Integer(2)));
        metadata.extend(tokenizer.map(tokenizer_metadata).into_iter().flatten());
        let mut plans: Vec<Plan> = self.tensors.iter().map(|t| t.plan.clone()).collect();
        if let Some(freqs) = &freqs {
            plans.push(Plan {
                name: "rope_freqs.weight".to_owned(),
                shape: vec![freqs.len()],
                storage: Storage::F32,
            });
        }
        write(path, &metadata, &plans, |i| {
            let Some(tensor) = self.tensors.get(i) else {
                let freqs = freqs.iter().flatten();
                return Ok(freqs.flat_map(|f| f.to_le_bytes()).collect());
            };
            let mut bytes = Vec::new();
            for spec in &tensor.parts {
                self.put(path, &tensor.plan, spec, &mut read, &mut bytes)?;
            }
            Ok(bytes)
        })
    }

    /// Appends one tensor of the model in the order of rows that GGUF has.
    fn put(
        &self,
        path: &Path,
        plan: &Plan,
        spec: &TensorSpec,
        read: &mut impl FnMut(&str, usize, &mut [f32]),
        bytes: &mut Vec<u8>,
    ) -> Result<(), GgufError> {
        let (rows, cols) = spec.rows();
        let heads = turned_heads(self.config, &spec.name);
        let is_vector = spec.shape.len() == 1;
        // The row here that is row `i` there.
        let n = if is_vector { cols } else { rows };
        let mut order: Vec<usize> = (0..n).collect();
        if let Some(width) = heads {
            for row in 0..n {
                order[file_row(row, width)] = row;
            }
        }
        let mut values = vec![0.0_f32; cols];
        if is_vector {
            read(&spec.name, 0, &mut values);
            values = order.iter().map(|i| values[*i]).collect();
            order = vec![0];
        }
        for row in order {
            if !is_vector {
                read(&spec.name, row, &mut values);
            }
            match plan.storage {
                Storage::F32 => bytes.extend(values.iter().flat_map(|v| v.to_le_bytes())),
                Storage::Quantised(format) => {
                    let start = bytes.len();
                    quantise(format, &values, bytes);
                    crate::quant::dequantise(format, &bytes[start..], &mut values).map_err(
                        |_| GgufError::Tensor {
                            path: path.to_owned(),
                            tensor: spec.name.clone(),
                            reason: format!("a weight is too large for {}", format.name()),
                        },
                    )?;
                }
            }
        }
        Ok(())
    }
}
