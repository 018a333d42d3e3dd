//! Matrices on a device, stored as the model stores them.
//!
//! A matrix in the precision of the products is multiplied where it lies. Any
//! other stays in its blocks and is expanded part by part into a buffer of fixed
//! size in front of each product: the device holds a quantised base in the space
//! of its file.

use half::bf16;
use ol_model::{Format, StoredTensor};

use crate::backend::{Backend, Operand, Product};
use crate::error::GpuError;
use crate::kernels::{self, Kernel};
use crate::model::{GpuModel, Input, Precision, int};

/// Bytes copied to the device at a time.
const UPLOAD_BYTES: usize = 4 << 20;

/// How a matrix lies on the device; numbered for the kernels.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stored {
    F32 = 0,
    Bf16 = 1,
    F16 = 2,
    Q8_0 = 3,
    Q4_0 = 4,
    Q4K = 5,
    Q6K = 6,
    Nf4 = 7,
}

impl Stored {
    /// How a tensor is kept: f32 in the products' precision, all else as it is.
    fn of(format: Option<Format>, precision: Precision) -> Self {
        match format {
            None if precision == Precision::Bf16 => Self::Bf16,
            None => Self::F32,
            Some(Format::F16) => Self::F16,
            Some(Format::Bf16) => Self::Bf16,
            Some(Format::Q8_0) => Self::Q8_0,
            Some(Format::Q4_0) => Self::Q4_0,
            Some(Format::Q4K) => Self::Q4K,
            Some(Format::Q6K) => Self::Q6K,
            Some(Format::Nf4 | Format::Nf4Double) => Self::Nf4,
        }
    }

    /// Bytes of a row of `width`.
    pub(crate) const fn row_bytes(self, width: usize) -> usize {
        match self {
            Self::F32 => 4 * width,
            Self::Bf16 | Self::F16 => 2 * width,
            Self::Q8_0 => width / 32 * 34,
            Self::Q4_0 => width / 32 * 18,
            Self::Q4K => width / 256 * 144,
            Self::Q6K => width / 256 * 210,
            Self::Nf4 => width / 64 * 36,
        }
    }
}

/// A matrix `[rows, width]` on the device.
pub(crate) struct Matrix<M> {
    pub(crate) memory: M,
    pub(crate) stored: Stored,
    pub(crate) rows: usize,
    pub(crate) width: usize,
}

/// Appends row `row` of `tensor` as it is kept.
fn append(tensor: &StoredTensor<'_>, row: usize, stored: Stored, out: &mut Vec<u8>) {
    let (_, width) = tensor.shape();
    match (tensor.format(), stored) {
        (None, Stored::Bf16) => {
            let mut values = vec![0.0_f32; width];
            tensor.row(row, &mut values);
            out.extend(values.iter().flat_map(|v| bf16::from_f32(*v).to_le_bytes()));
        }
        (Some(format @ (Format::Nf4 | Format::Nf4Double)), _) => {
            let start = out.len();
            tensor.stored_row(row, out);
            out.truncate(start + width / 2);
            let mut values = vec![0.0_f32; width];
            tensor.row(row, &mut values);
            let codes: Vec<u8> = out[start..].iter().flat_map(|b| [b >> 4, b & 15]).collect();
            let block = format.block();
            for (codes, values) in codes.chunks_exact(block).zip(values.chunks_exact(block)) {
                // Codes 0 and 15 stand for -1 and 1 times the scale, and every
                // block that is not all zero has one of them.
                let scale = codes.iter().zip(values).find_map(|(code, v)| match code {
                    0 => Some(-v),
                    15 => Some(*v),
                    _ => None,
                });
                out.extend(scale.unwrap_or(0.0).to_le_bytes());
            }
        }
        _ => tensor.stored_row(row, out),
    }
}

/// Copies a tensor to `device`, some rows at a time.
pub(crate) fn upload<B: Backend>(
    device: &B,
    tensor: &StoredTensor<'_>,
    precision: Precision,
) -> Result<Matrix<B::Memory>, GpuError> {
    let (rows, width) = tensor.shape();
    let stored = Stored::of(tensor.format(), precision);
    let size_bytes = rows * stored.row_bytes(width);
    let mut memory = device.allocate("the weights", size_bytes)?;
    let (mut part, mut at) = (Vec::new(), 0);
    for row in 0..rows {
        append(tensor, row, stored, &mut part);
        if part.len() >= UPLOAD_BYTES || row + 1 == rows {
            device.write(&mut memory, at, &part)?;
            at += part.len();
            part.clear();
        }
    }
    Ok(Matrix {
        memory,
        stored,
        rows,
        width,
    })
}

/// Which side of a matrix a product reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Side {
    /// `y = x W^T`.
    Forward,
    /// `dx = dy W`.
    Back,
}

impl<B: Backend> GpuModel<B> {
    fn is_bf16(&self) -> bool {
        self.options.precision == Precision::Bf16
    }

    /// Rows of `matrix` as f32 or bf16 in `out`: those named by `rows`, or `n`
    /// from `first` on.
    pub(crate) fn expand(
        &self,
        matrix: &Matrix<B::Memory>,
        rows: Option<&B::Memory>,
        (first, n): (usize, usize),
        out: &B::Memory,
        is_bf16: bool,
    ) -> Result<(), GpuError> {
        let arguments = kernels::Expand {
            table: self.address(&matrix.memory),
            rows: rows.map_or(0, |rows| self.address(rows)),
            out: self.address(out),
            row_bytes: matrix.stored.row_bytes(matrix.width) as i64,
            width: int(matrix.width),
            format: matrix.stored as i32,
            first: int(first),
            is_bf16: i32::from(is_bf16),
        };
        self.launch(Kernel::Expand, (n, 1), &arguments)
    }

    /// `y = x W^T`, or `y = x W`; `beta` times what `y` holds is added.
    pub(crate) fn product(
        &self,
        x: &Input<'_, B::Memory>,
        rows: usize,
        matrix: &Matrix<B::Memory>,
        side: Side,
        y: Operand<'_, B::Memory>,
        beta: f32,
    ) -> Result<(), GpuError> {
        let x = x.operand();
        let is_bf16 = self.is_bf16();
        let native = if is_bf16 { Stored::Bf16 } else { Stored::F32 };
        let product = |n, k, beta| Product {
            m: rows,
            n,
            k,
            a_transposed: false,
            b_transposed: side == Side::Forward,
            alpha: 1.0,
            beta,
            bf16: is_bf16,
        };
        let part = if matrix.stored == native {
            matrix.rows
        } else {
            self.workspace_elements / matrix.width
        };
        for first in (0..matrix.rows).step_by(part.max(1)) {
            let n = part.min(matrix.rows - first);
            let w = if matrix.stored == native {
                Operand::new(&matrix.memory, matrix.width)
            } else {
                self.expand(matrix, None, (first, n), &self.workspace, is_bf16)?;
                Operand::new(&self.workspace, matrix.width)
            };
            match side {
                Side::Forward => {
                    let y = y.at(y.offset + first);
                    self.device
                        .multiply(&product(n, matrix.width, beta), x, w, y)?;
                }
                Side::Back => {
                    let beta = if first == 0 { beta } else { 1.0 };
                    let x = x.at(x.offset + first);
                    self.device
                        .multiply(&product(matrix.width, n, beta), x, w, y)?;
                }
            }
        }
        Ok(())
    }
}
