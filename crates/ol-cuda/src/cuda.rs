//! CUDA through the driver API, loaded at run time.
#![expect(unsafe_code, reason = "calls into the driver and cuBLASLt")]

mod lt;

use std::collections::HashMap;
use std::sync::Arc;

use cudarc::driver::{
    CudaContext, CudaFunction, CudaSlice, CudaStream, DevicePtr, DriverError, LaunchConfig,
    PushKernelArg,
};
use cudarc::nvrtc::Ptx;

use crate::backend::{Backend, Operand, Product, check_operands};
use crate::blob::PTX;
use crate::error::GpuError;
use crate::kernels::{Kernel, THREADS};

/// What is known of a device before it is opened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeviceInfo {
    /// Its number, as the driver counts.
    pub ordinal: usize,
    /// Its name.
    pub name: String,
    /// Compute capability.
    pub capability: (i32, i32),
    /// Memory in all.
    pub memory_bytes: usize,
}

fn absent(reason: impl Into<String>) -> GpuError {
    GpuError::Absent(reason.into())
}

fn failed(call: &'static str) -> impl Fn(DriverError) -> GpuError {
    move |error| GpuError::Device {
        call,
        reason: format!("{error:?}"),
    }
}

/// Whether the libraries are there. Without this question the bindings panic.
fn libraries() -> Result<(), GpuError> {
    // SAFETY: both only try to open a shared library by its usual names.
    let (driver, lt) = unsafe {
        (
            cudarc::driver::sys::is_culib_present(),
            cudarc::cublaslt::sys::is_culib_present(),
        )
    };
    if !driver {
        return Err(absent("the NVIDIA driver (libcuda) is not installed"));
    }
    if !lt {
        return Err(absent(
            "cuBLASLt (libcublasLt, CUDA 13) is not in the library path",
        ));
    }
    Ok(())
}

/// The devices of this machine.
///
/// # Errors
/// [`GpuError::Absent`] with what is missing.
pub fn devices() -> Result<Vec<DeviceInfo>, GpuError> {
    libraries()?;
    cudarc::driver::result::init()
        .map_err(|e| absent(format!("the driver does not start: {e:?}")))?;
    let count =
        CudaContext::device_count().map_err(|e| absent(format!("no device is counted: {e:?}")))?;
    (0..usize::try_from(count).unwrap_or(0))
        .map(|ordinal| {
            let context = CudaContext::new(ordinal).map_err(failed("open a device"))?;
            Ok(DeviceInfo {
                ordinal,
                name: context.name().map_err(failed("name of a device"))?,
                capability: context
                    .compute_capability()
                    .map_err(failed("capability of a device"))?,
                memory_bytes: context.total_mem().map_err(failed("memory of a device"))?,
            })
        })
        .collect()
}

/// An opened device with the kernels loaded.
pub struct Gpu {
    context: Arc<CudaContext>,
    stream: Arc<CudaStream>,
    kernels: HashMap<Kernel, CudaFunction>,
    lt: lt::Lt,
}

impl std::fmt::Debug for Gpu {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Gpu")
            .field("ordinal", &self.context.ordinal())
            .finish_non_exhaustive()
    }
}

impl Gpu {
    /// Opens device `ordinal` and loads the kernels.
    ///
    /// # Errors
    /// [`GpuError::Absent`] when the machine has no such device or it is older
    /// than compute capability 8.0, [`GpuError::Device`] when the driver
    /// refuses (for one older than CUDA 13.0: the kernels).
    pub fn open(ordinal: usize) -> Result<Self, GpuError> {
        let found = devices()?;
        let device = found
            .get(ordinal)
            .ok_or_else(|| absent(format!("device {ordinal} of {}", found.len())))?;
        if device.capability.0 < 8 {
            return Err(absent(format!(
                "{} has compute capability {}.{}, at least 8.0 is needed",
                device.name, device.capability.0, device.capability.1
            )));
        }
        let context = CudaContext::new(ordinal).map_err(failed("open a device"))?;
        let stream = context.new_stream().map_err(failed("make a stream"))?;
        let module = context
            .load_module(Ptx::from_src(PTX))
            .map_err(failed("load the kernels"))?;
        let kernels = Kernel::ALL
            .iter()
            .map(|&kernel| Ok((kernel, module.load_function(kernel.name())?)))
            .collect::<Result<_, DriverError>>()
            .map_err(failed("find a kernel"))?;
        let lt = lt::Lt::new(&stream)?;
        Ok(Self {
            context,
            stream,
            kernels,
            lt,
        })
    }
}

/// Memory of a [`Gpu`].
type GpuMemory = CudaSlice<u8>;

fn range_of(held: usize, offset: usize, len: usize) -> Result<std::ops::Range<usize>, GpuError> {
    offset
        .checked_add(len)
        .filter(|end| *end <= held)
        .map(|end| offset..end)
        .ok_or_else(|| GpuError::Invalid(format!("{len} bytes at {offset} of {held}")))
}

impl Backend for Gpu {
    type Memory = GpuMemory;

    fn allocate(&self, what: &'static str, size_bytes: usize) -> Result<GpuMemory, GpuError> {
        // An allocation of nothing has no address to give to kernels.
        self.stream
            .alloc_zeros::<u8>(size_bytes.max(4))
            .map_err(|error| {
                if error.0 == cudarc::driver::sys::CUresult::CUDA_ERROR_OUT_OF_MEMORY {
                    GpuError::Memory {
                        what,
                        wanted_bytes: size_bytes,
                        free_bytes: self.context.mem_get_info().map_or(0, |(free, _)| free),
                    }
                } else {
                    failed("allocate")(error)
                }
            })
    }

    fn size_bytes(&self, memory: &GpuMemory) -> usize {
        memory.len()
    }

    fn address(&self, memory: &GpuMemory) -> u64 {
        memory.device_ptr(&self.stream).0
    }

    fn write(
        &self,
        memory: &mut GpuMemory,
        offset_bytes: usize,
        bytes: &[u8],
    ) -> Result<(), GpuError> {
        if bytes.is_empty() {
            return Ok(());
        }
        let range = range_of(memory.len(), offset_bytes, bytes.len())?;
        self.stream
            .memcpy_htod(bytes, &mut memory.slice_mut(range))
            .map_err(failed("copy to the device"))
    }

    fn read(
        &self,
        memory: &GpuMemory,
        offset_bytes: usize,
        bytes: &mut [u8],
    ) -> Result<(), GpuError> {
        if bytes.is_empty() {
            return Ok(());
        }
        let range = range_of(memory.len(), offset_bytes, bytes.len())?;
        self.stream
            .memcpy_dtoh(&memory.slice(range), bytes)
            .map_err(failed("copy from the device"))?;
        self.stream
            .synchronize()
            .map_err(failed("wait for the device"))
    }

    unsafe fn launch(
        &self,
        kernel: Kernel,
        blocks: (usize, usize),
        arguments: &[u8],
    ) -> Result<(), GpuError> {
        let Some(first) = arguments.first().filter(|_| blocks.0 > 0 && blocks.1 > 0) else {
            return Ok(());
        };
        let size = |n: usize| {
            u32::try_from(n).map_err(|_| GpuError::Invalid(format!("{blocks:?} blocks")))
        };
        let config = LaunchConfig {
            grid_dim: (size(blocks.0)?, size(blocks.1)?, 1),
            block_dim: (size(THREADS)?, 1, 1),
            shared_mem_bytes: 0,
        };
        // The driver copies as many bytes as the kernel's one parameter has,
        // from the address of the first.
        let mut launch = self.stream.launch_builder(&self.kernels[&kernel]);
        launch.arg(first);
        // SAFETY: the caller answers for the struct and its addresses.
        unsafe { launch.launch(config) }
            .map(|_| ())
            .map_err(failed(kernel.name()))
    }

    fn multiply(
        &self,
        product: &Product,
        a: Operand<'_, GpuMemory>,
        b: Operand<'_, GpuMemory>,
        c: Operand<'_, GpuMemory>,
    ) -> Result<(), GpuError> {
        if product.m == 0 || product.n == 0 {
            return Ok(());
        }
        check_operands(self, product, [&a, &b, &c])?;
        let width = if product.bf16 { 2 } else { 4 };
        let at = |o: &Operand<'_, GpuMemory>, width: usize| {
            self.address(o.memory) + (o.offset * width) as u64
        };
        self.lt.multiply(
            &self.stream,
            product,
            [at(&a, width), at(&b, width), at(&c, 4)],
            [a.stride, b.stride, c.stride],
        )
    }
}
