//! Models on NVIDIA GPUs.
//!
//! The driver and cuBLASLt are looked for at run time: a machine without them
//! runs everything else, and [`devices`] says what was found or why nothing was.
//! Matrix products go through cuBLASLt; the rest are this crate's own kernels
//! (`kernels/kernels.cu`), embedded as PTX with the hash of their source.
//!
//! * [`Gpu`]: an opened device.
//! * [`GpuModel`]: a model's weights on it, with a bounded paged KV cache,
//!   adapters, [`GpuModel::forward`] for mixed-adapter batches and
//!   [`GpuModel::lora_gradient`] for training.
//!
//! **What a GPU computes is a proposal.** cuBLASLt chooses its order of
//! summation by shape and chip, so logits differ from the CPU engine's in the
//! last bits. Whatever ends in money is recomputed by the CPU engine.

mod backend;
mod blob;
mod cache;
mod cuda;
mod error;
mod forward;
mod kernels;
mod model;
mod train;

pub use backend::{Backend, Operand, Product};
pub use cache::GpuSequence;
pub use cuda::{DeviceInfo, Gpu, devices};
pub use error::GpuError;
pub use forward::GpuSegment;
pub use kernels::{Kernel, THREADS};
pub use model::{AdapterSlot, GpuModel, GpuModelOptions, Precision};
