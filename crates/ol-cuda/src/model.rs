//! A model's weights, its KV cache and its adapters on a device.

use std::collections::HashMap;

use ol_model::{KvPool, LoraConfig, Model, ModelConfig, PAGE_TOKENS, Projection, StoredTensor};

use crate::adapters::Slots;
use crate::backend::{Backend, Operand};
use crate::error::GpuError;
use crate::kernels::{self, Arguments, Kernel, LoraEntry, THREADS};
use crate::weights::{Matrix, Stored, upload};

/// Rows of one pass.
pub(crate) const MAX_ROWS: usize = 8192;

/// The linear layers in the order of the table of adapters.
pub(crate) const PROJECTIONS: [Projection; 7] = [
    Projection::Q,
    Projection::K,
    Projection::V,
    Projection::O,
    Projection::Gate,
    Projection::Up,
    Projection::Down,
];

/// How matrices are multiplied; norms, activations and adapters are f32 always.
/// Matrices that the model holds in f32 are stored so too.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Precision {
    /// f32, without TF32: for comparison with the CPU engine.
    F32,
    /// bf16 factors, f32 sums: half the memory, tensor cores.
    Bf16,
}

/// Limits of a [`GpuModel`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GpuModelOptions {
    /// How matrices are multiplied.
    pub precision: Precision,
    /// Pages of the KV cache, 16 tokens each.
    pub kv_pages: usize,
    /// Adapters there is room for at a time.
    pub adapter_slots: usize,
    /// Bytes of adapters on the device; those not used for longest make room.
    pub adapter_bytes: usize,
    /// Bytes of the buffer through which matrices go that are not stored as they
    /// are multiplied; a row at least.
    pub workspace_bytes: usize,
}

/// The tensors of a block: matrices, and where the rest lies in the memory of
/// vectors, in elements.
pub(crate) struct Places<M> {
    /// In the order of [`PROJECTIONS`].
    pub(crate) matrices: [Matrix<M>; 7],
    pub(crate) norms: [usize; 2],
    pub(crate) qk_norms: Option<[usize; 2]>,
    pub(crate) qkv_bias: Option<usize>,
    pub(crate) o_bias: Option<usize>,
    pub(crate) gate_up_bias: Option<usize>,
    pub(crate) down_bias: Option<usize>,
}

/// Rows of activations with their copy in the matrices' precision.
pub(crate) struct Input<'a, M> {
    x: &'a M,
    narrow: Option<M>,
    width: usize,
    /// First element and distance of rows, where `x` itself is the factor.
    offset: usize,
}

impl<M> Input<'_, M> {
    /// The factor of products with the base's matrices.
    pub(crate) fn operand(&self) -> Operand<'_, M> {
        match &self.narrow {
            Some(narrow) => Operand::new(narrow, self.width),
            None => Operand::new(self.x, self.width).at(self.offset),
        }
    }
}

/// A model on a device.
pub struct GpuModel<B: Backend> {
    pub(crate) device: B,
    pub(crate) config: ModelConfig,
    pub(crate) options: GpuModelOptions,
    pub(crate) vectors: B::Memory,
    pub(crate) places: Vec<Places<B::Memory>>,
    pub(crate) embedding: Matrix<B::Memory>,
    /// Absent when it is the embedding.
    head: Option<Matrix<B::Memory>>,
    pub(crate) final_norm: usize,
    pub(crate) cosines: B::Memory,
    pub(crate) sines: B::Memory,
    /// Parts of matrices that are not stored as they are multiplied.
    pub(crate) workspace: B::Memory,
    pub(crate) workspace_elements: usize,
    /// Keys and values of each layer, by page.
    pub(crate) cache: Vec<(B::Memory, B::Memory)>,
    pub(crate) pool: KvPool,
    pub(crate) slots: Slots<B::Memory>,
}

impl<B: Backend> std::fmt::Debug for GpuModel<B> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("GpuModel")
            .field("config", &self.config)
            .field("options", &self.options)
            .finish_non_exhaustive()
    }
}

/// A size as a kernel takes it.
pub(crate) fn int(x: usize) -> i32 {
    i32::try_from(x).expect("widths, rows and slots are checked when a model or pass begins")
}

pub(crate) fn floats_to_bytes(x: &[f32]) -> Vec<u8> {
    x.iter().flat_map(|v| v.to_le_bytes()).collect()
}

/// Whether models of this shape, and adapters like this, are done on a GPU.
///
/// # Errors
/// [`GpuError::Unsupported`] names what is not.
pub fn supports(config: &ModelConfig, adapter: Option<&LoraConfig>) -> Result<(), GpuError> {
    let unsupported = |what: &str| Err(GpuError::Unsupported(what.to_owned()));
    if config.mla.is_some() {
        return unsupported("latent attention (DeepSeek V2 and V3)");
    }
    if config.moe.is_some() {
        return unsupported("a mixture of experts");
    }
    if config.head_dim > 2 * THREADS {
        return unsupported("a head wider than 256");
    }
    let Some(adapter) = adapter else {
        return Ok(());
    };
    if adapter.use_dora {
        return unsupported("DoRA");
    }
    let other = |p: &&Projection| !PROJECTIONS.contains(p);
    match adapter.target_modules.iter().find(other) {
        Some(projection) => unsupported(projection.name()),
        None => Ok(()),
    }
}

/// The memory of vectors while it is collected: small beside the matrices.
#[derive(Default)]
struct Vectors(Vec<f32>);

impl Vectors {
    fn put(&mut self, tensor: &StoredTensor<'_>) -> usize {
        let at = self.0.len();
        self.0.resize(at + tensor.spec().len(), 0.0);
        tensor.row(0, &mut self.0[at..]);
        at
    }
}

impl<B: Backend> GpuModel<B> {
    /// Copies `model` to `device`, tensor by tensor.
    ///
    /// # Errors
    /// [`GpuError::Unsupported`] for latent attention and experts,
    /// [`GpuError::Memory`] when the device is too small.
    pub fn new(device: B, model: &Model, options: GpuModelOptions) -> Result<Self, GpuError> {
        Self::with_layers(device, model, model.config().num_hidden_layers, options)
    }

    /// A model of `layers` blocks that have the weights of `model`'s, over and over:
    /// the shape of a large model for measurements, without its memory on the host.
    ///
    /// # Errors
    /// As [`GpuModel::new`].
    pub fn with_layers(
        device: B,
        model: &Model,
        layers: usize,
        options: GpuModelOptions,
    ) -> Result<Self, GpuError> {
        let config = ModelConfig {
            num_hidden_layers: layers,
            ..model.config().clone()
        };
        supports(&config, None)?;
        let kv_slots = options
            .kv_pages
            .checked_mul(PAGE_TOKENS)
            .filter(|slots| i32::try_from(*slots).is_ok())
            .ok_or_else(|| GpuError::Invalid(format!("{} KV pages", options.kv_pages)))?;
        let tensors = model.tensors();
        let by_name: HashMap<&str, &StoredTensor<'_>> = tensors
            .iter()
            .map(|tensor| (tensor.spec().name.as_str(), tensor))
            .collect();
        let needed = |name: &str| {
            by_name
                .get(name)
                .copied()
                .ok_or_else(|| GpuError::Unsupported(format!("a model without the tensor {name}")))
        };
        let matrix = |name: &str| upload(&device, needed(name)?, options.precision);
        let mut vectors = Vectors::default();
        let embedding = matrix("model.embed_tokens.weight")?;
        let mut places = Vec::with_capacity(config.num_hidden_layers);
        for layer in 0..config.num_hidden_layers {
            let from = layer % model.config().num_hidden_layers;
            let at = |name: &str| format!("model.layers.{from}.{name}");
            let of = |p: Projection, kind: &str| at(&format!("{}.{}.{kind}", p.module(), p.name()));
            let matrices: Vec<_> = PROJECTIONS
                .iter()
                .map(|p| matrix(&of(*p, "weight")))
                .collect::<Result<_, _>>()?;
            let Ok(matrices) = <[_; 7]>::try_from(matrices) else {
                unreachable!("one matrix for each projection")
            };
            // Biases of matrices that share their input lie side by side.
            let mut biases = |projections: &[Projection]| {
                let parts: Option<Vec<_>> = projections
                    .iter()
                    .map(|p| by_name.get(of(*p, "bias").as_str()))
                    .collect();
                parts.and_then(|parts| parts.into_iter().map(|b| vectors.put(b)).min())
            };
            let qkv_bias = biases(&PROJECTIONS[..3]);
            let o_bias = biases(&PROJECTIONS[3..4]);
            let gate_up_bias = biases(&PROJECTIONS[4..6]);
            let down_bias = biases(&PROJECTIONS[6..]);
            let mut pair = |names: [&str; 2]| {
                let [first, second] = names.map(|name| needed(&at(name)));
                Ok::<_, GpuError>([vectors.put(first?), vectors.put(second?)])
            };
            places.push(Places {
                matrices,
                norms: pair(["input_layernorm.weight", "post_attention_layernorm.weight"])?,
                qk_norms: if config.has_qk_norm() {
                    Some(pair([
                        "self_attn.q_norm.weight",
                        "self_attn.k_norm.weight",
                    ])?)
                } else {
                    None
                },
                qkv_bias,
                o_bias,
                gate_up_bias,
                down_bias,
            });
        }
        let final_norm = vectors.put(needed("model.norm.weight")?);
        let head = match by_name.get("lm_head.weight") {
            Some(head) => Some(upload(&device, head, options.precision)?),
            None => None,
        };
        let load = |what, values: &[f32]| {
            let bytes = floats_to_bytes(values);
            let mut memory = device.allocate(what, bytes.len())?;
            device.write(&mut memory, 0, &bytes)?;
            Ok::<_, GpuError>(memory)
        };
        let (cosines, sines) = model.rotations();
        let kv_bytes = kv_slots * config.key_value_size() * size_of::<f32>();
        let mut cache = Vec::with_capacity(config.num_hidden_layers);
        for _ in 0..config.num_hidden_layers {
            cache.push((
                device.allocate("the KV cache", kv_bytes)?,
                device.allocate("the KV cache", kv_bytes)?,
            ));
        }
        let (native, element) = match options.precision {
            Precision::F32 => (Stored::F32, 4),
            Precision::Bf16 => (Stored::Bf16, 2),
        };
        let mut workspace_elements = 0;
        let blocks = places.iter().flat_map(|p| &p.matrices);
        for matrix in blocks.chain(&head).chain([&embedding]) {
            if matrix.stored != native {
                let all = matrix.rows * matrix.width;
                let wanted = all.min((options.workspace_bytes / element).max(matrix.width));
                workspace_elements = workspace_elements.max(wanted);
            }
        }
        let table_bytes =
            options.adapter_slots * config.num_hidden_layers * 7 * size_of::<LoraEntry>();
        let table = device.allocate("the table of adapters", table_bytes)?;
        Ok(Self {
            vectors: load("the weights", &vectors.0)?,
            places,
            embedding,
            head,
            final_norm,
            cosines: load("the rotary angles", &cosines)?,
            sines: load("the rotary angles", &sines)?,
            workspace: device.allocate("expanded weights", workspace_elements * element)?,
            workspace_elements,
            cache,
            pool: KvPool::remote(&config, options.kv_pages),
            slots: Slots::new(table, options.adapter_slots, options.adapter_bytes),
            device,
            config,
            options,
        })
    }

    /// Shape of the model.
    pub const fn config(&self) -> &ModelConfig {
        &self.config
    }

    /// The pool of the caches that this model works on.
    pub fn kv_pool(&self) -> KvPool {
        self.pool.clone()
    }

    /// The output layer.
    pub(crate) fn head(&self) -> &Matrix<B::Memory> {
        self.head.as_ref().unwrap_or(&self.embedding)
    }

    pub(crate) fn floats(&self, what: &'static str, n: usize) -> Result<B::Memory, GpuError> {
        self.device.allocate(what, n * size_of::<f32>())
    }

    pub(crate) fn upload_ints(&self, x: &[i32]) -> Result<B::Memory, GpuError> {
        let bytes: Vec<u8> = x.iter().flat_map(|v| v.to_le_bytes()).collect();
        let mut memory = self.device.allocate("a batch", bytes.len())?;
        self.device.write(&mut memory, 0, &bytes)?;
        Ok(memory)
    }

    pub(crate) fn upload_floats(&self, x: &[f32]) -> Result<B::Memory, GpuError> {
        let mut memory = self.floats("a batch", x.len())?;
        self.device.write(&mut memory, 0, &floats_to_bytes(x))?;
        Ok(memory)
    }

    pub(crate) fn download(&self, memory: &B::Memory, n: usize) -> Result<Vec<f32>, GpuError> {
        let mut bytes = vec![0; n * size_of::<f32>()];
        self.device.read(memory, 0, &mut bytes)?;
        Ok(bytes
            .chunks_exact(4)
            .map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]]))
            .collect())
    }

    pub(crate) fn address(&self, memory: &B::Memory) -> u64 {
        self.device.address(memory)
    }

    /// Address of element `at` of the vectors.
    pub(crate) fn vector(&self, at: usize) -> u64 {
        self.address(&self.vectors) + (at * size_of::<f32>()) as u64
    }

    #[expect(unsafe_code, reason = "kernels get raw addresses")]
    pub(crate) fn launch(
        &self,
        kernel: Kernel,
        blocks: (usize, usize),
        arguments: &impl Arguments,
    ) -> Result<(), GpuError> {
        // SAFETY: every caller in this crate passes the kernel's own struct
        // with addresses of memory it allocated for the rows and widths it
        // also passes; memory is freed in the device's order. The emulator's
        // tests run under the same sizes, with guard bytes around each
        // allocation.
        unsafe { self.device.launch(kernel, blocks, arguments.bytes()) }
    }

    /// `rows` rows of `width` elements of `x` as an input of products with the
    /// base's matrices.
    pub(crate) fn input<'a>(
        &self,
        x: Operand<'a, B::Memory>,
        rows: usize,
        width: usize,
    ) -> Result<Input<'a, B::Memory>, GpuError> {
        let narrow = match self.options.precision {
            Precision::F32 => None,
            Precision::Bf16 => {
                let out = self.device.allocate("activations", rows * width * 2)?;
                let arguments = kernels::Narrow {
                    x: self.address(x.memory) + (x.offset * size_of::<f32>()) as u64,
                    out: self.address(&out),
                    width: int(width),
                    stride: int(x.stride),
                };
                self.launch(Kernel::Narrow, (rows, 1), &arguments)?;
                Some(out)
            }
        };
        Ok(Input {
            x: x.memory,
            width: if narrow.is_some() { width } else { x.stride },
            narrow,
            offset: x.offset,
        })
    }
}
