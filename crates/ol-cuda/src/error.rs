//! What can go wrong on a device.

use thiserror::Error;

/// Why a device did not do what was asked.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum GpuError {
    /// There is no usable driver, library or device; the CPU does the work.
    #[error("no GPU: {0}")]
    Absent(String),
    /// The driver or cuBLASLt refused a call.
    #[error("GPU call {call} failed: {reason}")]
    Device {
        /// What was called.
        call: &'static str,
        /// What the driver said.
        reason: String,
    },
    /// The device has not enough memory left.
    #[error(
        "the GPU has {free_bytes} bytes free and {wanted_bytes} are needed for {what}; use bf16 weights, fewer KV pages or a smaller batch"
    )]
    Memory {
        /// What it is for.
        what: &'static str,
        /// Bytes needed.
        wanted_bytes: usize,
        /// Bytes free.
        free_bytes: usize,
    },
    /// The model or adapter has something that is not done on the GPU.
    #[error("{0} is not done on the GPU; use the CPU")]
    Unsupported(String),
    /// An argument does not fit the model, or a limit of this instance.
    #[error("{0}")]
    Invalid(String),
    /// All KV pages, or all adapter slots, are taken: try again when some are free.
    #[error("no free {0} on the GPU")]
    Full(&'static str),
}
