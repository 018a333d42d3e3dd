//! The GPU's host code and kernels against the CPU engine, on an emulated
//! device; on a real one where there is one.

mod emulator;
mod passes;
