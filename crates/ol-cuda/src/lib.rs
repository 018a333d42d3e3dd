//! Models on NVIDIA GPUs.
//!
//! The driver and cuBLASLt are looked for at run time: a machine without them
//! runs everything else, and [`devices`] says what was found or why nothing was.
//! Matrix products go through cuBLASLt; the rest are this crate's own kernels
//! (`kernels/kernels.cu`), embedded as PTX with the hash of their source.
//!
//! * [`Gpu`]: an opened device.
//! * [`GpuModel`]: a model's weights on it, quantised ones as they are, with a
//!   bounded paged KV cache and slots for adapters. It is an
//!   [`Executor`](ol_model::Executor): a server's batches run on it, mixed
//!   adapters, ranks and drawing of tokens included.
//! * [`GpuLearner`]: losses and gradients of an adapter, for training.
//!
//! **What a GPU computes is a proposal.** cuBLASLt chooses its order of
//! summation by shape and chip, so logits differ from the CPU engine's in the
//! last bits. Whatever ends in money is recomputed by the CPU engine.

mod adapters;
mod backend;
mod blob;
mod cuda;
mod error;
mod forward;
mod generate;
mod kernels;
mod learner;
mod model;
mod train;
mod weights;

pub use adapters::{AdapterSlot, AdapterStats};
pub use backend::{Backend, Operand, Product};
pub use cuda::{DeviceInfo, Gpu, devices};
pub use error::GpuError;
pub use kernels::{Kernel, THREADS};
pub use learner::GpuLearner;
pub use model::{GpuModel, GpuModelOptions, Precision, supports};
