//! A model's weights, its KV cache and its adapters on a device.

use std::sync::{Arc, Mutex};

use half::bf16;
use ol_model::{Lora, LoraBlock, Model, ModelConfig, Projection};

use crate::backend::{Backend, Operand, Product};
use crate::cache::{FreePages, GpuSequence, PAGE_TOKENS};
use crate::error::GpuError;
use crate::kernels::{self, Arguments, Kernel, LoraEntry, THREADS};

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

/// How matrices are stored and multiplied; norms, activations and adapters are
/// f32 always.
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
    /// How matrices are stored.
    pub precision: Precision,
    /// Pages of the KV cache, 16 tokens each.
    pub kv_pages: usize,
    /// Adapters there is room for.
    pub adapter_slots: usize,
}

/// An adapter's place; [`GpuModel::remove_adapter`] frees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct AdapterSlot(pub(crate) usize);

/// Where a block's tensors lie: matrices in the memory of matrices, the rest in
/// the memory of vectors, in elements.
#[derive(Debug, Clone)]
pub(crate) struct Places {
    /// In the order of [`PROJECTIONS`].
    pub(crate) matrices: [usize; 7],
    pub(crate) norms: [usize; 2],
    pub(crate) qk_norms: Option<[usize; 2]>,
    pub(crate) qkv_bias: Option<usize>,
    pub(crate) o_bias: Option<usize>,
    pub(crate) gate_up_bias: Option<usize>,
    pub(crate) down_bias: Option<usize>,
}

pub(crate) struct GpuAdapter<M> {
    pub(crate) parameters: M,
    /// The widest rank.
    pub(crate) rank: usize,
    pub(crate) n_params: usize,
    /// By layer and [`PROJECTIONS`].
    pub(crate) blocks: Vec<Option<Factors>>,
}

/// Where the factors of one adapted layer begin, in elements.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Factors {
    pub(crate) a: usize,
    pub(crate) b: usize,
    pub(crate) rank: usize,
    pub(crate) scale: f32,
}

/// Rows of activations with their copy in the matrices' precision.
pub(crate) struct Input<'a, M> {
    pub(crate) x: &'a M,
    narrow: Option<M>,
    pub(crate) width: usize,
}

/// A model on a device.
pub struct GpuModel<B: Backend> {
    pub(crate) device: B,
    pub(crate) config: ModelConfig,
    pub(crate) options: GpuModelOptions,
    pub(crate) matrices: B::Memory,
    pub(crate) vectors: B::Memory,
    pub(crate) places: Vec<Places>,
    pub(crate) embedding: usize,
    pub(crate) head: usize,
    pub(crate) final_norm: usize,
    pub(crate) cosines: B::Memory,
    pub(crate) sines: B::Memory,
    /// Keys and values of each layer.
    pub(crate) cache: Vec<(B::Memory, B::Memory)>,
    free: FreePages,
    pub(crate) adapters: Vec<Option<GpuAdapter<B::Memory>>>,
    pub(crate) table: B::Memory,
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

/// Collects tensors and remembers where each begins.
#[derive(Default)]
struct Heap {
    data: Vec<f32>,
}

impl Heap {
    fn put(&mut self, part: &[f32]) -> usize {
        let at = self.data.len();
        self.data.extend_from_slice(part);
        at
    }
}

fn refuse_what_is_not_done(config: &ModelConfig) -> Result<(), GpuError> {
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
    Ok(())
}

impl<B: Backend> GpuModel<B> {
    /// Copies `model` to `device`.
    ///
    /// # Errors
    /// [`GpuError::Unsupported`] for latent attention and experts,
    /// [`GpuError::Memory`] when the device is too small.
    pub fn new(device: B, model: &Model, options: GpuModelOptions) -> Result<Self, GpuError> {
        let config = model.config().clone();
        refuse_what_is_not_done(&config)?;
        let kv_slots = options
            .kv_pages
            .checked_mul(PAGE_TOKENS)
            .filter(|slots| i32::try_from(*slots).is_ok())
            .ok_or_else(|| GpuError::Invalid(format!("{} KV pages", options.kv_pages)))?;
        let params = model.parameters();
        let tensor = |name: &str| {
            model
                .layout()
                .tensors()
                .iter()
                .find(|spec| spec.name == name)
                .map(|spec| &params[spec.range()])
        };
        let needed = |name: &str| {
            tensor(name)
                .ok_or_else(|| GpuError::Unsupported(format!("a model without the tensor {name}")))
        };
        let (mut matrices, mut vectors) = (Heap::default(), Heap::default());
        let embedding = matrices.put(needed("model.embed_tokens.weight")?);
        let mut places = Vec::with_capacity(config.num_hidden_layers);
        for layer in 0..config.num_hidden_layers {
            let at = |name: &str| format!("model.layers.{layer}.{name}");
            let mut offsets = [0; 7];
            for (offset, projection) in offsets.iter_mut().zip(PROJECTIONS) {
                let name = format!("{}.{}.weight", projection.module(), projection.name());
                *offset = matrices.put(needed(&at(&name))?);
            }
            let mut biases = |projections: &[Projection]| {
                let names = projections
                    .iter()
                    .map(|p| at(&format!("{}.{}.bias", p.module(), p.name())));
                let parts: Option<Vec<&[f32]>> = names.map(|name| tensor(&name)).collect();
                parts.map(|parts| vectors.put(&parts.concat()))
            };
            let qkv_bias = biases(&PROJECTIONS[..3]);
            let o_bias = biases(&PROJECTIONS[3..4]);
            let gate_up_bias = biases(&PROJECTIONS[4..6]);
            let down_bias = biases(&PROJECTIONS[6..]);
            let norms = [
                vectors.put(needed(&at("input_layernorm.weight"))?),
                vectors.put(needed(&at("post_attention_layernorm.weight"))?),
            ];
            let qk_norms = if config.has_qk_norm() {
                Some([
                    vectors.put(needed(&at("self_attn.q_norm.weight"))?),
                    vectors.put(needed(&at("self_attn.k_norm.weight"))?),
                ])
            } else {
                None
            };
            places.push(Places {
                matrices: offsets,
                norms,
                qk_norms,
                qkv_bias,
                o_bias,
                gate_up_bias,
                down_bias,
            });
        }
        let final_norm = vectors.put(needed("model.norm.weight")?);
        let head = tensor("lm_head.weight").map_or(embedding, |head| matrices.put(head));
        let load = |what, bytes: &[u8]| {
            let mut memory = device.allocate(what, bytes.len())?;
            device.write(&mut memory, 0, bytes)?;
            Ok::<_, GpuError>(memory)
        };
        let matrix_bytes = match options.precision {
            Precision::F32 => floats_to_bytes(&matrices.data),
            Precision::Bf16 => matrices
                .data
                .iter()
                .flat_map(|v| bf16::from_f32(*v).to_le_bytes())
                .collect(),
        };
        drop(matrices);
        let (cosines, sines) = model.rotations();
        let kv_bytes = kv_slots * config.key_value_size() * size_of::<f32>();
        let mut cache = Vec::with_capacity(config.num_hidden_layers);
        for _ in 0..config.num_hidden_layers {
            cache.push((
                device.allocate("the KV cache", kv_bytes)?,
                device.allocate("the KV cache", kv_bytes)?,
            ));
        }
        let table_bytes =
            options.adapter_slots * config.num_hidden_layers * 7 * size_of::<LoraEntry>();
        let pages = u32::try_from(options.kv_pages).unwrap_or(u32::MAX);
        Ok(Self {
            matrices: load("the weights", &matrix_bytes)?,
            vectors: load("the weights", &floats_to_bytes(&vectors.data))?,
            places,
            embedding,
            head,
            final_norm,
            cosines: load("the rotary angles", &floats_to_bytes(&cosines))?,
            sines: load("the rotary angles", &floats_to_bytes(&sines))?,
            cache,
            free: Arc::new(Mutex::new((0..pages).rev().collect())),
            adapters: (0..options.adapter_slots).map(|_| None).collect(),
            table: device.allocate("the table of adapters", table_bytes)?,
            device,
            config,
            options,
        })
    }

    /// Shape of the model.
    pub const fn config(&self) -> &ModelConfig {
        &self.config
    }

    /// A sequence without tokens.
    pub fn sequence(&self) -> GpuSequence {
        GpuSequence::new(Arc::clone(&self.free))
    }

    pub(crate) fn owns(&self, sequence: &GpuSequence) -> bool {
        sequence.belongs_to(&self.free)
    }

    /// Copies an adapter to a free slot.
    ///
    /// # Errors
    /// [`GpuError::Full`] when there is none, [`GpuError::Invalid`] when it belongs to a
    /// model of another shape, [`GpuError::Memory`].
    pub fn add_adapter(&mut self, adapter: &Lora) -> Result<AdapterSlot, GpuError> {
        let slot = self
            .adapters
            .iter()
            .position(Option::is_none)
            .ok_or(GpuError::Full("adapter slot"))?;
        self.replace_adapter(AdapterSlot(slot), adapter)?;
        Ok(AdapterSlot(slot))
    }

    /// Puts another adapter in the place of one, as every step of training does.
    ///
    /// # Errors
    /// As [`GpuModel::add_adapter`].
    pub fn replace_adapter(&mut self, slot: AdapterSlot, adapter: &Lora) -> Result<(), GpuError> {
        if slot.0 >= self.adapters.len() {
            return Err(GpuError::Invalid(format!(
                "there is no adapter slot {}",
                slot.0
            )));
        }
        if !adapter.fits(&self.config) {
            return Err(GpuError::Invalid(
                "the adapter belongs to a model of another shape".to_owned(),
            ));
        }
        let layers = self.config.num_hidden_layers;
        let mut blocks = vec![None; layers * 7];
        for block in adapter.blocks() {
            let place = PROJECTIONS
                .iter()
                .position(|p| *p == block.projection)
                .ok_or_else(|| GpuError::Unsupported(block.projection.name().to_owned()))?;
            if block.has_magnitude {
                return Err(GpuError::Unsupported("DoRA".to_owned()));
            }
            blocks[block.layer * 7 + place] = Some(Factors {
                a: block.range_a().start,
                b: block.range_b().start,
                rank: block.rank(),
                scale: block.scale,
            });
        }
        let bytes = floats_to_bytes(adapter.parameters());
        let mut parameters = self.device.allocate("an adapter", bytes.len())?;
        self.device.write(&mut parameters, 0, &bytes)?;
        let base = self.device.address(&parameters);
        let entries: Vec<u8> = blocks
            .iter()
            .flat_map(|block| {
                let entry = block.map_or(
                    LoraEntry {
                        a: 0,
                        b: 0,
                        rank: 0,
                        scale: 0.0,
                    },
                    |block: Factors| LoraEntry {
                        a: base + (block.a * size_of::<f32>()) as u64,
                        b: base + (block.b * size_of::<f32>()) as u64,
                        rank: int(block.rank),
                        scale: block.scale,
                    },
                );
                entry.bytes().to_vec()
            })
            .collect();
        self.device
            .write(&mut self.table, slot.0 * entries.len(), &entries)?;
        self.adapters[slot.0] = Some(GpuAdapter {
            parameters,
            rank: adapter
                .blocks()
                .iter()
                .map(LoraBlock::rank)
                .max()
                .unwrap_or(0),
            n_params: adapter.n_params(),
            blocks,
        });
        Ok(())
    }

    /// Frees an adapter's slot and memory.
    pub fn remove_adapter(&mut self, slot: AdapterSlot) {
        if let Some(held) = self.adapters.get_mut(slot.0) {
            *held = None;
        }
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

    /// Rows as an input of products with the base's matrices.
    pub(crate) fn input<'a>(
        &self,
        x: &'a B::Memory,
        rows: usize,
        width: usize,
    ) -> Result<Input<'a, B::Memory>, GpuError> {
        let narrow = match self.options.precision {
            Precision::F32 => None,
            Precision::Bf16 => {
                let n = rows * width;
                let out = self.device.allocate("activations", n * 2)?;
                let arguments = kernels::Narrow {
                    x: self.address(x),
                    out: self.address(&out),
                    n: n as i64,
                };
                self.launch(Kernel::Narrow, (n.div_ceil(THREADS), 1), &arguments)?;
                Some(out)
            }
        };
        Ok(Input { x, narrow, width })
    }

    /// `y = x W^T` (`W` is `[n, width]` at `matrix`), or `y = x W` (`W` is `[width, n]`).
    #[expect(
        clippy::too_many_arguments,
        reason = "one call a product, all of it needed"
    )]
    pub(crate) fn product(
        &self,
        input: &Input<'_, B::Memory>,
        rows: usize,
        matrix: usize,
        n: usize,
        back: bool,
        y: Operand<'_, B::Memory>,
        beta: f32,
    ) -> Result<(), GpuError> {
        let product = Product {
            m: rows,
            n,
            k: input.width,
            a_transposed: false,
            b_transposed: !back,
            alpha: 1.0,
            beta,
            bf16: self.options.precision == Precision::Bf16,
        };
        let x = input.narrow.as_ref().unwrap_or(input.x);
        let stride = if back { n } else { input.width };
        self.device.multiply(
            &product,
            Operand::new(x, input.width),
            Operand::new(&self.matrices, stride).at(matrix),
            y,
        )
    }
}
