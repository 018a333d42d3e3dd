//! The GPU's host code and kernels against the CPU engine, on an emulated
//! device; on a real one where there is one.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on stops")]

mod emulator;
mod passes;
mod serving;
mod training;
