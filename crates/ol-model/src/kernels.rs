//! Matrix products and element-wise functions with one order of operations.
//!
//! # The order
//! * Every output element of every matrix product is **one chain of fused
//!   multiply-adds over k, ascending**, that starts from 0 or, when
//!   accumulating, from the value already there. Vector lanes run over output
//!   columns, threads over output rows and columns.
//! * Sums over a row (norms, softmax, dot products) use sixteen partial sums,
//!   element `j` going to sum `j % 16`, which [`math::tree`] then adds.
//! * `exp` is our own polynomial; `sqrt` and `/` are IEEE.
//!
//! So scalar, AVX2 and AVX-512 code give the same bits, at every batch size and
//! every number of threads.

pub(crate) mod gemm;
pub(crate) mod math;
pub(crate) mod memory;
pub(crate) mod quant;
mod strands;

pub(crate) use gemm::{
    Line, Mat, MatMut, Output, PANEL, Panels, PanelsRef, Products, matmul, matmul_here,
};
pub(crate) use strands::{Factor, FactorBytes, Strands};
