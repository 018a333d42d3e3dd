//! One matrix product by cuBLASLt.
#![expect(unsafe_code, reason = "calls into cuBLASLt")]

use std::ffi::c_void;
use std::sync::Arc;

use cudarc::cublaslt::result::{self, CublasError};
use cudarc::cublaslt::sys;
use cudarc::driver::{CudaSlice, CudaStream, DevicePtr};

use crate::backend::Product;
use crate::error::GpuError;

/// Bytes the library may use for itself; what NVIDIA recommends for Hopper.
const WORKSPACE_BYTES: usize = 32 << 20;

fn failed(error: CublasError) -> GpuError {
    GpuError::Device {
        call: "cuBLASLt",
        reason: format!("{error:?}"),
    }
}

/// A handle and its workspace.
pub(super) struct Lt {
    handle: sys::cublasLtHandle_t,
    workspace: CudaSlice<u8>,
}

// SAFETY: cuBLASLt handles may be used from several threads (its manual,
// "Thread safety"); the workspace is only used by calls of one stream, which
// carries them out in order.
unsafe impl Send for Lt {}
// SAFETY: as above.
unsafe impl Sync for Lt {}

impl Drop for Lt {
    fn drop(&mut self) {
        // SAFETY: made by `create_handle`, destroyed once. A failure here leaves
        // nothing to be done.
        let _ = unsafe { result::destroy_handle(self.handle) };
    }
}

/// Descriptions of one call, destroyed with it.
struct Plan {
    operation: sys::cublasLtMatmulDesc_t,
    layouts: Vec<sys::cublasLtMatrixLayout_t>,
    preference: Option<sys::cublasLtMatmulPreference_t>,
}

impl Drop for Plan {
    fn drop(&mut self) {
        // SAFETY: each was made by the matching call and is destroyed once.
        unsafe {
            for layout in self.layouts.drain(..) {
                let _ = result::destroy_matrix_layout(layout);
            }
            if let Some(preference) = self.preference {
                let _ = result::destroy_matmul_pref(preference);
            }
            let _ = result::destroy_matmul_desc(self.operation);
        }
    }
}

/// A matrix as cuBLASLt sees it: column-major, so rows and columns swapped.
fn layout(
    plan: &mut Plan,
    kind: sys::cudaDataType,
    (rows, cols): (usize, usize),
    stride: usize,
) -> Result<sys::cublasLtMatrixLayout_t, GpuError> {
    let too_long = |_| GpuError::Invalid(format!("a matrix with rows {stride} apart"));
    let made = result::create_matrix_layout(
        kind,
        cols as u64,
        rows as u64,
        i64::try_from(stride).map_err(too_long)?,
    )
    .map_err(failed)?;
    plan.layouts.push(made);
    Ok(made)
}

impl Lt {
    pub(super) fn new(stream: &Arc<CudaStream>) -> Result<Self, GpuError> {
        let workspace =
            stream
                .alloc_zeros::<u8>(WORKSPACE_BYTES)
                .map_err(|error| GpuError::Device {
                    call: "allocate the workspace of cuBLASLt",
                    reason: format!("{error:?}"),
                })?;
        Ok(Self {
            handle: result::create_handle().map_err(failed)?,
            workspace,
        })
    }

    /// `product` on the operands at these addresses, with these row strides.
    ///
    /// A row-major C = A B is the column-major Cᵀ = Bᵀ Aᵀ: the operands change
    /// places, and each is read as its own transpose.
    pub(super) fn multiply(
        &self,
        stream: &Arc<CudaStream>,
        product: &Product,
        addresses: [u64; 3],
        strides: [usize; 3],
    ) -> Result<(), GpuError> {
        let kind = if product.bf16 {
            sys::cudaDataType_t::CUDA_R_16BF
        } else {
            sys::cudaDataType_t::CUDA_R_32F
        };
        // Full f32: no TF32, so that the golden fixtures hold.
        let mut plan = Plan {
            operation: result::create_matmul_desc(
                sys::cublasComputeType_t::CUBLAS_COMPUTE_32F,
                sys::cudaDataType_t::CUDA_R_32F,
            )
            .map_err(failed)?,
            layouts: Vec::new(),
            preference: None,
        };
        for (attribute, transposed) in [
            (
                sys::cublasLtMatmulDescAttributes_t::CUBLASLT_MATMUL_DESC_TRANSA,
                product.b_transposed,
            ),
            (
                sys::cublasLtMatmulDescAttributes_t::CUBLASLT_MATMUL_DESC_TRANSB,
                product.a_transposed,
            ),
        ] {
            let value = i32::from(transposed);
            // SAFETY: the attribute is an i32, which the call copies.
            unsafe {
                result::set_matmul_desc_attribute(
                    plan.operation,
                    attribute,
                    std::ptr::from_ref(&value).cast::<c_void>(),
                    size_of::<i32>(),
                )
            }
            .map_err(failed)?;
        }
        let stored = |transposed: bool, rows: usize, cols: usize| {
            if transposed {
                (cols, rows)
            } else {
                (rows, cols)
            }
        };
        let a = layout(
            &mut plan,
            kind,
            stored(product.a_transposed, product.m, product.k),
            strides[0],
        )?;
        let b = layout(
            &mut plan,
            kind,
            stored(product.b_transposed, product.k, product.n),
            strides[1],
        )?;
        let c = layout(
            &mut plan,
            sys::cudaDataType_t::CUDA_R_32F,
            (product.m, product.n),
            strides[2],
        )?;
        let preference = result::create_matmul_pref().map_err(failed)?;
        plan.preference = Some(preference);
        // SAFETY: the attribute is a size_t, which the call copies; all
        // descriptions live until `plan` is dropped; the caller has checked
        // that the operands' memory covers the product.
        unsafe {
            result::set_matmul_pref_attribute(
                preference,
                sys::cublasLtMatmulPreferenceAttributes_t::CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES,
                std::ptr::from_ref(&WORKSPACE_BYTES).cast::<c_void>(),
                size_of::<usize>(),
            )
            .map_err(failed)?;
            let chosen = result::get_matmul_algo_heuristic(
                self.handle,
                plan.operation,
                b,
                a,
                c,
                c,
                preference,
            )
            .map_err(failed)?;
            let (workspace, _record) = self.workspace.device_ptr(stream);
            result::matmul(
                self.handle,
                plan.operation,
                std::ptr::from_ref(&product.alpha).cast::<c_void>(),
                std::ptr::from_ref(&product.beta).cast::<c_void>(),
                addresses[1] as *const c_void,
                b,
                addresses[0] as *const c_void,
                a,
                addresses[2] as *const c_void,
                c,
                addresses[2] as *mut c_void,
                c,
                std::ptr::from_ref(&chosen.algo),
                workspace as *mut c_void,
                WORKSPACE_BYTES,
                stream.cu_stream().cast(),
            )
            .map_err(failed)
        }
    }
}
