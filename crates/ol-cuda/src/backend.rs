//! What a device must do: hold memory, launch kernels, multiply matrices.
//!
//! There are two devices: [`crate::Gpu`], and the emulator of this crate's tests,
//! which runs the same kernels thread by thread on the CPU. Everything above
//! this trait is tested against the CPU engine through the emulator.

use crate::error::GpuError;
use crate::kernels::Kernel;

/// Memory of a device with the place of the first element meant.
#[derive(Debug)]
pub struct Operand<'a, M> {
    /// The memory.
    pub memory: &'a M,
    /// First element, in elements of the operand's type.
    pub offset: usize,
    /// Elements from one row to the next.
    pub stride: usize,
}

impl<M> Clone for Operand<'_, M> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<M> Copy for Operand<'_, M> {}

impl<'a, M> Operand<'a, M> {
    /// Rows of `stride` elements from the start of `memory`.
    pub const fn new(memory: &'a M, stride: usize) -> Self {
        Self {
            memory,
            offset: 0,
            stride,
        }
    }

    /// The same with its first element at `offset`.
    #[must_use]
    pub const fn at(self, offset: usize) -> Self {
        Self { offset, ..self }
    }
}

/// `C = alpha op(A) op(B) + beta C`, row-major; `op(A)` is `m x k`, `op(B)` is
/// `k x n`, `C` is `m x n` in f32.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Product {
    /// Rows of the result.
    pub m: usize,
    /// Columns of the result.
    pub n: usize,
    /// Length of the sums.
    pub k: usize,
    /// Whether A is stored `k x m`.
    pub a_transposed: bool,
    /// Whether B is stored `n x k`.
    pub b_transposed: bool,
    /// Factor of the product.
    pub alpha: f32,
    /// Factor of what C holds.
    pub beta: f32,
    /// Whether A and B are bf16 rather than f32.
    pub bf16: bool,
}

impl Product {
    /// Elements spanned by A, B and C, for checks of their memory.
    #[must_use]
    pub(crate) fn spans(&self, strides: [usize; 3]) -> [usize; 3] {
        let span = |rows: usize, cols: usize, stride: usize| {
            if rows == 0 || cols == 0 {
                0
            } else {
                (rows - 1) * stride + cols
            }
        };
        let (a, b) = (
            if self.a_transposed {
                (self.k, self.m)
            } else {
                (self.m, self.k)
            },
            if self.b_transposed {
                (self.n, self.k)
            } else {
                (self.k, self.n)
            },
        );
        [
            span(a.0, a.1, strides[0]),
            span(b.0, b.1, strides[1]),
            span(self.m, self.n, strides[2]),
        ]
    }
}

/// A device. Calls are carried out in order; only `read` waits for them.
pub trait Backend {
    /// Memory on the device, freed when dropped.
    type Memory;

    /// Zeroed memory. `what` is for the error.
    ///
    /// # Errors
    /// [`GpuError::Memory`] when there is not enough.
    fn allocate(&self, what: &'static str, size_bytes: usize) -> Result<Self::Memory, GpuError>;

    /// Bytes of `memory`.
    fn size_bytes(&self, memory: &Self::Memory) -> usize;

    /// Address of `memory` for kernels.
    fn address(&self, memory: &Self::Memory) -> u64;

    /// Copies `bytes` to `memory`.
    ///
    /// # Errors
    /// [`GpuError::Invalid`] when they reach beyond its end, [`GpuError::Device`]
    /// when the copy fails.
    fn write(
        &self,
        memory: &mut Self::Memory,
        offset_bytes: usize,
        bytes: &[u8],
    ) -> Result<(), GpuError>;

    /// Copies from `memory`, after all calls before.
    ///
    /// # Errors
    /// As [`Backend::write`].
    fn read(
        &self,
        memory: &Self::Memory,
        offset_bytes: usize,
        bytes: &mut [u8],
    ) -> Result<(), GpuError>;

    /// Runs `kernel` in `blocks.0 x blocks.1` blocks of [`crate::THREADS`]
    /// threads.
    ///
    /// # Safety
    /// `arguments` is the kernel's struct; its addresses point to memory of
    /// this device that outlives the call in the device's order, and the kernel
    /// stays within it.
    ///
    /// # Errors
    /// [`GpuError::Device`] when the launch fails.
    #[expect(unsafe_code, reason = "kernels get raw addresses")]
    unsafe fn launch(
        &self,
        kernel: Kernel,
        blocks: (usize, usize),
        arguments: &[u8],
    ) -> Result<(), GpuError>;

    /// A matrix product.
    ///
    /// # Errors
    /// [`GpuError::Invalid`] when an operand is shorter than the product needs,
    /// [`GpuError::Device`] when the call fails.
    fn multiply(
        &self,
        product: &Product,
        a: Operand<'_, Self::Memory>,
        b: Operand<'_, Self::Memory>,
        c: Operand<'_, Self::Memory>,
    ) -> Result<(), GpuError>;
}

/// Checks that the operands' memory covers `product`.
pub(crate) fn check_operands<B: Backend>(
    device: &B,
    product: &Product,
    operands: [&Operand<'_, B::Memory>; 3],
) -> Result<(), GpuError> {
    let spans = product.spans(operands.map(|o| o.stride));
    let narrow = if product.bf16 { 2 } else { 4 };
    for ((operand, span), (name, width)) in
        operands
            .into_iter()
            .zip(spans)
            .zip([("A", narrow), ("B", narrow), ("C", 4)])
    {
        let end = (operand.offset + span) * width;
        let held = device.size_bytes(operand.memory);
        if end > held {
            return Err(GpuError::Invalid(format!(
                "a product needs {end} bytes of {name}, its memory has {held}"
            )));
        }
    }
    Ok(())
}
