//! GGUF files: header, metadata and tensors, checked before anything is
//! believed.
//!
//! # Source
//! The GGUF specification (ggml repository, `docs/gguf.md`), versions 2 and 3,
//! little-endian.

mod adapter;
mod config;
mod export;
mod names;
mod parse;
#[cfg(test)]
mod tests;
mod tokenizer;
mod value;
mod write;

pub(crate) use export::ModelWriter;

pub use tokenizer::{GgufTokenizer, TokenKind};
pub use value::{Array, Value};

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::fs::File;
use std::io::BufReader;
use std::ops::Range;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

use thiserror::Error;

use crate::pool::Pool;
use crate::quant::{Format, QuantError, QuantMatrix, dequantise};

/// Longest header (metadata and tensor table) accepted.
pub const MAX_GGUF_HEADER_SIZE_BYTES: u64 = 256 << 20;

/// Why a GGUF file cannot be used; each names the file.
#[derive(Debug, Error)]
pub enum GgufError {
    /// The file cannot be read or written.
    #[error("{path}: {source}")]
    Io {
        /// File concerned.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The file is not GGUF of a version that can be read, or is cut short.
    #[error("{path}: not a readable GGUF file: {reason}")]
    Format {
        /// File concerned.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// A metadata value is absent, of another type or out of range.
    #[error("{path}: metadata {key}: {reason}")]
    Metadata {
        /// File concerned.
        path: PathBuf,
        /// Key concerned.
        key: String,
        /// What is wrong.
        reason: String,
    },
    /// A tensor is absent, or of a wrong shape, type or place.
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

/// How a tensor is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Storage {
    /// 32-bit floats.
    F32,
    /// 16-bit floats or blocks.
    Quantised(Format),
}

impl Storage {
    /// What can be read, for messages.
    pub(crate) const READABLE: &'static str = "F32, F16, BF16, Q8_0, Q4_0, Q4_K and Q6_K";

    /// Number of the type in files (`ggml_type`).
    pub(crate) fn id(self) -> Option<u32> {
        Some(match self {
            Self::F32 => 0,
            Self::Quantised(Format::F16) => 1,
            Self::Quantised(Format::Q4_0) => 2,
            Self::Quantised(Format::Q8_0) => 8,
            Self::Quantised(Format::Q4K) => 12,
            Self::Quantised(Format::Q6K) => 14,
            Self::Quantised(Format::Bf16) => 30,
            Self::Quantised(Format::Nf4 | Format::Nf4Double) => return None,
        })
    }

    /// Whether GGUF has the type.
    pub(crate) fn is_in_files(self) -> bool {
        self.id().is_some()
    }

    /// The type of that number.
    pub(crate) fn from_id(id: u32) -> Option<Self> {
        let all = Format::ALL.map(Self::Quantised);
        all.into_iter()
            .chain([Self::F32])
            .find(|s| s.id() == Some(id))
    }

    /// Name of the type.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::F32 => "F32",
            Self::Quantised(format) => format.name(),
        }
    }

    /// Values in a block and bytes of it.
    pub(crate) fn block(self) -> (usize, usize) {
        match self {
            Self::F32 => (1, 4),
            Self::Quantised(format) => (format.block(), format.block_size_bytes()),
        }
    }
}

/// One tensor of a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GgufTensor {
    /// Its name.
    pub name: String,
    /// Lengths, the one of neighbours in memory last.
    pub shape: Vec<usize>,
    /// How it is stored.
    pub storage: Storage,
    /// Its first byte, from the start of the file.
    pub offset: u64,
    /// Its bytes.
    pub size_bytes: usize,
}

impl GgufTensor {
    /// Rows (all but the last length) and row width.
    #[must_use]
    pub fn rows(&self) -> (usize, usize) {
        let cols = self.shape.last().copied().unwrap_or(1);
        let rows = self.shape[..self.shape.len().saturating_sub(1)]
            .iter()
            .product();
        (rows, cols)
    }
}

enum Source {
    File(File),
    Memory(Box<dyn AsRef<[u8]> + Send + Sync>),
}

impl fmt::Debug for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(file) => file.fmt(f),
            Self::Memory(bytes) => write!(f, "{} bytes", (**bytes).as_ref().len()),
        }
    }
}

/// An open GGUF file. Tensors are read when asked for.
#[derive(Debug)]
pub struct Gguf {
    path: PathBuf,
    source: Source,
    metadata: BTreeMap<String, Value>,
    tensors: Vec<GgufTensor>,
    index: HashMap<String, usize>,
}

impl Gguf {
    /// Opens a file and checks its header: sizes, types, and that every tensor
    /// lies in the file, aligned, and apart from the others.
    ///
    /// # Errors
    /// [`GgufError`] that names the file, and the key or tensor concerned.
    pub fn open(path: &Path) -> Result<Self, GgufError> {
        let io = |source| GgufError::Io {
            path: path.to_owned(),
            source,
        };
        let file = File::open(path).map_err(io)?;
        let len = file.metadata().map_err(io)?.len();
        let header = parse::header(path, BufReader::new(&file), len)?;
        Ok(Self::new(path, Source::File(file), header))
    }

    /// As [`Self::open`] for a file in memory; `name` stands for its path in
    /// messages.
    ///
    /// # Errors
    /// As [`Self::open`].
    pub fn from_bytes(
        name: &str,
        bytes: impl AsRef<[u8]> + Send + Sync + 'static,
    ) -> Result<Self, GgufError> {
        let path = Path::new(name);
        let all = bytes.as_ref();
        let header = parse::header(path, all, all.len() as u64)?;
        Ok(Self::new(path, Source::Memory(Box::new(bytes)), header))
    }

    fn new(path: &Path, source: Source, header: parse::Header) -> Self {
        let names = header.tensors.iter().enumerate();
        Self {
            path: path.to_owned(),
            source,
            metadata: header.metadata,
            index: names.map(|(i, t)| (t.name.clone(), i)).collect(),
            tensors: header.tensors,
        }
    }

    /// Where the file is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// All metadata, by key.
    #[must_use]
    pub fn metadata(&self) -> &BTreeMap<String, Value> {
        &self.metadata
    }

    /// All tensors, in the order of the file's table.
    #[must_use]
    pub fn tensors(&self) -> &[GgufTensor] {
        &self.tensors
    }

    /// The tensor of that name.
    #[must_use]
    pub fn find(&self, name: &str) -> Option<&GgufTensor> {
        self.index.get(name).map(|i| &self.tensors[*i])
    }

    /// The tensor of that name, which must have this shape.
    ///
    /// # Errors
    /// [`GgufError::Tensor`] when it is missing or has another shape.
    pub fn expect(&self, name: &str, shape: &[usize]) -> Result<&GgufTensor, GgufError> {
        let tensor = self
            .find(name)
            .ok_or_else(|| self.tensor_error(name, format!("is missing, expected {shape:?}")))?;
        if tensor.shape != shape {
            let reason = format!("has shape {:?}, expected {shape:?}", tensor.shape);
            return Err(self.tensor_error(name, reason));
        }
        Ok(tensor)
    }

    pub(crate) fn tensor_error(&self, tensor: &str, reason: impl Into<String>) -> GgufError {
        GgufError::Tensor {
            path: self.path.clone(),
            tensor: tensor.to_owned(),
            reason: reason.into(),
        }
    }

    pub(crate) fn metadata_error(&self, key: &str, reason: impl Into<String>) -> GgufError {
        GgufError::Metadata {
            path: self.path.clone(),
            key: key.to_owned(),
            reason: reason.into(),
        }
    }

    /// The stored bytes of rows `rows` of a tensor.
    ///
    /// # Errors
    /// [`GgufError::Io`] when the file cannot be read (it may have changed).
    ///
    /// # Panics
    /// If the tensor does not have these rows or is not one of this file.
    pub fn read_rows(&self, tensor: &GgufTensor, rows: Range<usize>) -> Result<Vec<u8>, GgufError> {
        let (n, _) = tensor.rows();
        assert!(
            rows.start <= rows.end && rows.end <= n,
            "rows outside the tensor"
        );
        // The table was checked against the length of the file, so what is
        // allocated is bounded by it.
        let row_size = tensor.size_bytes / n.max(1);
        let mut bytes = vec![0; rows.len() * row_size];
        let offset = tensor.offset + (rows.start * row_size) as u64;
        match &self.source {
            Source::File(file) => {
                file.read_exact_at(&mut bytes, offset)
                    .map_err(|source| GgufError::Io {
                        path: self.path.clone(),
                        source,
                    })?;
            }
            Source::Memory(all) => {
                let start = usize::try_from(offset).expect("inside a slice");
                let end = start + bytes.len();
                bytes.copy_from_slice(&(**all).as_ref()[start..end]);
            }
        }
        Ok(bytes)
    }

    /// All values of a tensor as f32.
    ///
    /// # Errors
    /// [`GgufError`] when the file cannot be read or a value is not finite.
    pub fn read_f32(&self, tensor: &GgufTensor) -> Result<Vec<f32>, GgufError> {
        let (rows, cols) = tensor.rows();
        self.read_rows_f32(tensor, 0..rows).inspect(|values| {
            debug_assert_eq!(values.len(), rows * cols, "shape of a tensor");
        })
    }

    /// Rows of a tensor as f32.
    pub(crate) fn read_rows_f32(
        &self,
        tensor: &GgufTensor,
        rows: Range<usize>,
    ) -> Result<Vec<f32>, GgufError> {
        let (_, cols) = tensor.rows();
        let bytes = self.read_rows(tensor, rows.clone())?;
        let mut values = vec![0.0_f32; rows.len() * cols];
        match tensor.storage {
            Storage::F32 => {
                for (value, b) in values.iter_mut().zip(bytes.as_chunks::<4>().0) {
                    *value = f32::from_le_bytes(*b);
                }
                if let Some(at) = values.iter().position(|v| !v.is_finite()) {
                    let reason = format!("element {at} is {}", values[at]);
                    return Err(self.tensor_error(&tensor.name, reason));
                }
            }
            Storage::Quantised(format) => {
                let row_size = bytes.len() / rows.len().max(1);
                let stored = bytes.chunks_exact(row_size.max(1));
                for (row, stored) in values.chunks_exact_mut(cols.max(1)).zip(stored) {
                    dequantise(format, stored, row)
                        .map_err(|e| self.quant_error(&tensor.name, &e))?;
                }
            }
        }
        Ok(values)
    }

    pub(crate) fn quant_error(&self, tensor: &str, error: &QuantError) -> GgufError {
        self.tensor_error(tensor, error.to_string())
    }

    /// Rows of a tensor as a matrix in the format they are stored in.
    /// `order(i)` names the row of the file that becomes row `i`.
    ///
    /// # Errors
    /// [`GgufError`] when the file cannot be read or a value is not finite.
    ///
    /// # Panics
    /// If the tensor is stored as F32 or does not have these rows.
    pub(crate) fn read_matrix(
        &self,
        pool: &Pool,
        tensor: &GgufTensor,
        rows: Range<usize>,
        order: &dyn Fn(usize) -> usize,
    ) -> Result<QuantMatrix, GgufError> {
        let Storage::Quantised(format) = tensor.storage else {
            panic!("an F32 tensor is not quantised");
        };
        let (_, cols) = tensor.rows();
        let n = rows.len();
        let mut bytes = self.read_rows(tensor, rows)?;
        if (0..n).any(|i| order(i) != i) {
            let row_size = bytes.len() / n;
            bytes = (0..n)
                .flat_map(|i| &bytes[order(i) * row_size..(order(i) + 1) * row_size])
                .copied()
                .collect();
        }
        QuantMatrix::from_stored(pool, format, n, cols, &bytes)
            .map_err(|e| self.quant_error(&tensor.name, &e))
    }
}
