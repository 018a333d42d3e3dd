//! Tensors in safetensors files: f32, f16 and bf16 on disk, f32 in memory.

use std::borrow::Cow;
use std::collections::HashMap;
use std::fs::File;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};

use half::{bf16, f16};
use safetensors::SafeTensors;
use safetensors::tensor::TensorView;
use thiserror::Error;

/// Storage of tensors on disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Dtype {
    /// 32-bit.
    F32,
    /// 16-bit IEEE half.
    F16,
    /// 16-bit with f32's exponent.
    Bf16,
}

/// Why a file of tensors cannot be used; each names the file.
#[derive(Debug, Error)]
pub enum WeightsError {
    /// The file cannot be read or written.
    #[error("{path}: {source}")]
    Io {
        /// File concerned.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The file is longer than its limit.
    #[error("{path}: {size_bytes} bytes, allowed are {limit_bytes}")]
    TooLarge {
        /// File concerned.
        path: PathBuf,
        /// Its size.
        size_bytes: u64,
        /// The limit.
        limit_bytes: u64,
    },
    /// The file is not safetensors.
    #[error("{path}: not a safetensors file: {reason}")]
    Format {
        /// File concerned.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// A tensor is absent, unexpected, of a wrong shape or type, or not finite.
    #[error("{path}: tensor {tensor}: {reason}")]
    Tensor {
        /// File concerned.
        path: PathBuf,
        /// Tensor concerned.
        tensor: String,
        /// What is wrong.
        reason: String,
    },
}

/// Reads a whole file that may not be longer than `limit_bytes`.
pub(crate) fn read_limited(path: &Path, limit_bytes: u64) -> Result<Vec<u8>, WeightsError> {
    let io = |source| WeightsError::Io {
        path: path.to_owned(),
        source,
    };
    let file = File::open(path).map_err(io)?;
    let size_bytes = file.metadata().map_err(io)?.len();
    if size_bytes > limit_bytes {
        return Err(WeightsError::TooLarge {
            path: path.to_owned(),
            size_bytes,
            limit_bytes,
        });
    }
    let mut bytes = Vec::new();
    // The file may grow while it is read.
    file.take(limit_bytes.saturating_add(1))
        .read_to_end(&mut bytes)
        .map_err(io)?;
    if bytes.len() as u64 > limit_bytes {
        return Err(WeightsError::TooLarge {
            path: path.to_owned(),
            size_bytes: bytes.len() as u64,
            limit_bytes,
        });
    }
    Ok(bytes)
}

/// Writes a file so that a crash leaves the old one or the new one.
///
/// # Errors
/// What the file system says.
pub fn write_atomic(path: &Path, bytes: &[u8]) -> std::io::Result<()> {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(".tmp");
    let temporary = path.with_file_name(name);
    let mut file = File::create(&temporary)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    std::fs::rename(&temporary, path)?;
    if let Some(dir) = path.parent().filter(|d| !d.as_os_str().is_empty()) {
        File::open(dir)?.sync_all()?;
    }
    Ok(())
}

/// The tensors of one file, checked and converted one by one.
pub(crate) struct Tensors<'a> {
    path: &'a Path,
    tensors: SafeTensors<'a>,
}

impl<'a> Tensors<'a> {
    pub(crate) fn parse(path: &'a Path, bytes: &'a [u8]) -> Result<Self, WeightsError> {
        let tensors = SafeTensors::deserialize(bytes).map_err(|e| WeightsError::Format {
            path: path.to_owned(),
            reason: e.to_string(),
        })?;
        Ok(Self { path, tensors })
    }

    pub(crate) fn names(&self) -> Vec<String> {
        self.tensors
            .names()
            .into_iter()
            .map(str::to_owned)
            .collect()
    }

    pub(crate) fn error(&self, tensor: &str, reason: impl Into<String>) -> WeightsError {
        WeightsError::Tensor {
            path: self.path.to_owned(),
            tensor: tensor.to_owned(),
            reason: reason.into(),
        }
    }

    pub(crate) fn view(&self, name: &str) -> Result<TensorView<'a>, WeightsError> {
        self.tensors
            .tensor(name)
            .map_err(|_| self.error(name, "is missing"))
    }

    /// Copies tensor `name` to `out` as f32.
    pub(crate) fn read(
        &self,
        name: &str,
        shape: &[usize],
        out: &mut [f32],
    ) -> Result<(), WeightsError> {
        let view = self.view(name)?;
        if view.shape() != shape {
            return Err(self.error(
                name,
                format!("has shape {:?}, expected {shape:?}", view.shape()),
            ));
        }
        let data = view.data();
        match view.dtype() {
            safetensors::Dtype::F32 => {
                for (out, b) in out.iter_mut().zip(data.as_chunks::<4>().0) {
                    *out = f32::from_le_bytes(*b);
                }
            }
            safetensors::Dtype::F16 => {
                for (out, b) in out.iter_mut().zip(data.as_chunks::<2>().0) {
                    *out = f16::from_le_bytes(*b).to_f32();
                }
            }
            safetensors::Dtype::BF16 => {
                for (out, b) in out.iter_mut().zip(data.as_chunks::<2>().0) {
                    *out = bf16::from_le_bytes(*b).to_f32();
                }
            }
            other => {
                return Err(self.error(
                    name,
                    format!("is stored as {other:?}; F32, F16 and BF16 can be read"),
                ));
            }
        }
        if let Some(at) = out.iter().position(|v| !v.is_finite()) {
            return Err(self.error(name, format!("element {at} is {}", out[at])));
        }
        Ok(())
    }
}

/// The bytes of a safetensors file with these tensors.
pub(crate) fn serialize(tensors: &[(&str, &[usize], &[f32])], dtype: Dtype) -> Vec<u8> {
    struct View<'a> {
        shape: &'a [usize],
        dtype: Dtype,
        data: Vec<u8>,
    }
    impl safetensors::View for View<'_> {
        fn dtype(&self) -> safetensors::Dtype {
            match self.dtype {
                Dtype::F32 => safetensors::Dtype::F32,
                Dtype::F16 => safetensors::Dtype::F16,
                Dtype::Bf16 => safetensors::Dtype::BF16,
            }
        }
        fn shape(&self) -> &[usize] {
            self.shape
        }
        fn data(&self) -> Cow<'_, [u8]> {
            Cow::Borrowed(&self.data)
        }
        fn data_len(&self) -> usize {
            self.data.len()
        }
    }
    let views = tensors.iter().map(|&(name, shape, values)| {
        let data = match dtype {
            Dtype::F32 => values.iter().flat_map(|v| v.to_le_bytes()).collect(),
            Dtype::F16 => values
                .iter()
                .flat_map(|v| f16::from_f32(*v).to_le_bytes())
                .collect(),
            Dtype::Bf16 => values
                .iter()
                .flat_map(|v| bf16::from_f32(*v).to_le_bytes())
                .collect(),
        };
        (name, View { shape, dtype, data })
    });
    let metadata = HashMap::from([("format".to_owned(), "pt".to_owned())]);
    safetensors::serialize(views, Some(metadata)).expect("shapes match their data by construction")
}
