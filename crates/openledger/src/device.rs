//! Where models run: `--device`.
//!
//! A GPU proposes, the CPU decides: adapters trained on a GPU are measured, written
//! and compared by the CPU engine, and the sketches that money depends on are
//! always its own.

use std::sync::Arc;

use clap::ValueEnum;
use ol_model::{CpuExecutor, Executor, Model, Pool};
use ol_serve::EngineOptions;
use ol_train::job::Accelerator;

/// Where models run.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum Device {
    /// The processors: the same bits on every machine
    #[default]
    Cpu,
    /// The first NVIDIA GPU, or an error that says what is missing
    Cuda,
    /// The GPU if there is one that can do it, else the processors
    Auto,
}

/// What carries out the passes of a server of `base`.
///
/// # Errors
/// With [`Device::Cuda`], why the GPU cannot do it.
pub(crate) fn executor(
    device: Device,
    base: &Arc<Model>,
    n_threads: usize,
    options: &EngineOptions,
) -> anyhow::Result<Box<dyn Executor>> {
    let gpu = if device == Device::Cpu {
        None
    } else {
        chosen(device, gpu::executor(base, options))?
    };
    Ok(gpu.unwrap_or_else(|| {
        let pool = Pool::new(n_threads);
        Box::new(CpuExecutor::new(Arc::clone(base), pool))
    }))
}

/// What trains in the place of the processors, if anything.
///
/// # Errors
/// With [`Device::Cuda`], why there is no GPU.
pub(crate) fn accelerator(device: Device) -> anyhow::Result<Option<Box<dyn Accelerator>>> {
    if device == Device::Cpu {
        return Ok(None);
    }
    chosen(device, gpu::accelerator(device == Device::Auto))
}

/// The GPU's, or nothing where the processors may take its place.
fn chosen<T>(device: Device, gpu: Result<T, String>) -> anyhow::Result<Option<T>> {
    match gpu {
        Ok(gpu) => Ok(Some(gpu)),
        Err(why) if device == Device::Auto => {
            tracing::warn!(%why, "models run on the CPU");
            Ok(None)
        }
        Err(why) => Err(anyhow::anyhow!(
            "--device cuda: {why}; `openledger doctor` shows what is there, --device auto takes \
             the CPU where the GPU cannot be used"
        )),
    }
}

#[cfg(feature = "cuda")]
mod gpu {
    use std::sync::Arc;

    use ol_cuda::{
        DeviceInfo, Gpu, GpuError, GpuLearner, GpuModel, GpuModelOptions, Precision, devices,
        supports,
    };
    use ol_model::{Executor, Learner, LoraConfig, Model, ModelConfig};
    use ol_serve::EngineOptions;
    use ol_train::job::Accelerator;

    /// Adapters on the device at a time, if their bytes allow.
    const ADAPTER_SLOTS: usize = 4096;

    /// Bytes of matrices that are expanded at a time.
    const WORKSPACE_BYTES: usize = 128 << 20;

    /// Weights of more bytes are multiplied in 16 bits.
    const F32_BYTES_MAX: usize = 2 << 30;

    fn first() -> Result<DeviceInfo, GpuError> {
        let none = || GpuError::Absent("there is a driver, but no device".to_owned());
        devices()?.into_iter().next().ok_or_else(none)
    }

    fn options(model: &Model, device: &DeviceInfo) -> GpuModelOptions {
        let is_f32 = model.tensors().iter().all(|t| t.format().is_none());
        GpuModelOptions {
            precision: if is_f32 && model.size_bytes() <= F32_BYTES_MAX {
                Precision::F32
            } else {
                Precision::Bf16
            },
            kv_pages: 0,
            adapter_slots: ADAPTER_SLOTS,
            adapter_bytes: device.memory_bytes / 4,
            workspace_bytes: WORKSPACE_BYTES,
        }
    }

    pub(super) fn executor(
        base: &Arc<Model>,
        engine: &EngineOptions,
    ) -> Result<Box<dyn Executor>, String> {
        let open = || {
            let device = first()?;
            supports(base.config(), None)?;
            let options = GpuModelOptions {
                kv_pages: engine.n_pages(),
                ..options(base, &device)
            };
            let model = GpuModel::new(Gpu::open(device.ordinal)?, base, options)?;
            tracing::info!(device = device.name, ?options, "models run on the GPU");
            Ok::<_, GpuError>(Box::new(model) as Box<dyn Executor>)
        };
        open().map_err(|error| error.to_string())
    }

    pub(super) fn accelerator(may_be_cpu: bool) -> Result<Box<dyn Accelerator>, String> {
        let device = first().map_err(|error| error.to_string())?;
        Ok(Box::new(Cuda { device, may_be_cpu }))
    }

    /// Trains on a GPU; where it may, leaves to the CPU what is not done there.
    #[derive(Debug)]
    struct Cuda {
        device: DeviceInfo,
        may_be_cpu: bool,
    }

    impl Accelerator for Cuda {
        fn check(&self, base: &ModelConfig, adapter: &LoraConfig) -> Result<(), String> {
            match supports(base, Some(adapter)) {
                Err(error) if !self.may_be_cpu => Err(error.to_string()),
                _ => Ok(()),
            }
        }

        fn learner(
            &self,
            base: &Model,
            adapter: &LoraConfig,
            log: &mut dyn FnMut(&str),
        ) -> Result<Option<Box<dyn Learner>>, String> {
            let open = || {
                supports(base.config(), Some(adapter))?;
                let options = GpuModelOptions {
                    adapter_slots: 1,
                    ..options(base, &self.device)
                };
                GpuModel::new(Gpu::open(self.device.ordinal)?, base, options)
            };
            match open() {
                Ok(model) => {
                    log(&format!("trains on {}", self.device.name));
                    Ok(Some(Box::new(GpuLearner::new(model))))
                }
                Err(error) if self.may_be_cpu => {
                    log(&format!("trains on the CPU: {error}"));
                    Ok(None)
                }
                Err(error) => Err(error.to_string()),
            }
        }
    }
}

#[cfg(not(feature = "cuda"))]
mod gpu {
    use std::sync::Arc;

    use ol_model::{Executor, Model};
    use ol_serve::EngineOptions;
    use ol_train::job::Accelerator;

    const WHY: &str = "built without the feature `cuda`";

    pub(super) fn executor(
        _base: &Arc<Model>,
        _engine: &EngineOptions,
    ) -> Result<Box<dyn Executor>, String> {
        Err(WHY.to_owned())
    }

    pub(super) fn accelerator(_may_be_cpu: bool) -> Result<Box<dyn Accelerator>, String> {
        Err(WHY.to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_a_gpu_auto_is_the_cpu_and_cuda_says_what_is_missing() {
        let why = || Err::<(), _>("no GPU: the NVIDIA driver is not installed".to_owned());
        assert!(chosen(Device::Auto, why()).unwrap().is_none());
        let error = chosen(Device::Cuda, why()).unwrap_err().to_string();
        assert!(error.contains("driver is not installed"), "{error}");
        assert!(error.contains("--device auto"), "{error}");
        assert_eq!(chosen(Device::Cuda, Ok(1)).unwrap(), Some(1));
    }
}
