//! Tensors in safetensors files: f32, f16 and bf16 on disk, f32 in memory.
//!
//! Files are read tensor by tensor, so a model is never in memory twice. A
//! header is checked as a whole before anything is allocated for its tensors:
//! their bytes follow each other without gaps and end with the file.
//!
//! # Source
//! The format: <https://huggingface.co/docs/safetensors>.

mod header;
#[cfg(test)]
mod tests;

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufWriter, Read, Write};
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use half::{bf16, f16};
use thiserror::Error;

use header::{Entry, MAX_HEADER_SIZE_BYTES};

/// Bytes converted at a time.
const CHUNK_SIZE_BYTES: usize = 1 << 20;

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

impl Dtype {
    /// Name in files.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::F32 => "F32",
            Self::F16 => "F16",
            Self::Bf16 => "BF16",
        }
    }

    /// Bytes of an element.
    #[must_use]
    pub const fn size_bytes(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::F16 | Self::Bf16 => 2,
        }
    }

    fn from_name(name: &str) -> Option<Self> {
        [Self::F32, Self::F16, Self::Bf16]
            .into_iter()
            .find(|d| d.name() == name)
    }

    /// Reads stored elements.
    pub(crate) fn decode(self, bytes: &[u8], out: &mut [f32]) {
        let pairs = || bytes.as_chunks::<2>().0.iter();
        match self {
            Self::F32 => {
                for (out, b) in out.iter_mut().zip(bytes.as_chunks::<4>().0) {
                    *out = f32::from_le_bytes(*b);
                }
            }
            Self::F16 => {
                for (out, b) in out.iter_mut().zip(pairs()) {
                    *out = f16::from_le_bytes(*b).to_f32();
                }
            }
            Self::Bf16 => {
                for (out, b) in out.iter_mut().zip(pairs()) {
                    *out = bf16::from_le_bytes(*b).to_f32();
                }
            }
        }
    }

    /// Index of the first stored element that is infinite or not a number: its
    /// exponent bits are all set.
    fn first_not_finite(self, bytes: &[u8]) -> Option<usize> {
        let of_pairs = |top: u16| {
            let pairs = bytes.as_chunks::<2>().0;
            pairs
                .iter()
                .position(|b| u16::from_le_bytes(*b) & top == top)
        };
        match self {
            Self::F32 => {
                let top = 0x7F80_0000;
                let words = bytes.as_chunks::<4>().0;
                words
                    .iter()
                    .position(|b| u32::from_le_bytes(*b) & top == top)
            }
            Self::F16 => of_pairs(0x7C00),
            Self::Bf16 => of_pairs(0x7F80),
        }
    }

    /// Appends the values; the index of one that does not fit is the error.
    pub(crate) fn encode(self, values: &[f32], out: &mut Vec<u8>) -> Result<(), usize> {
        for (at, value) in values.iter().enumerate() {
            let finite = match self {
                Self::F32 => {
                    out.extend(value.to_le_bytes());
                    value.is_finite()
                }
                Self::F16 => {
                    let half = f16::from_f32(*value);
                    out.extend(half.to_le_bytes());
                    half.is_finite()
                }
                Self::Bf16 => {
                    let half = bf16::from_f32(*value);
                    out.extend(half.to_le_bytes());
                    half.is_finite()
                }
            };
            if !finite {
                return Err(at);
            }
        }
        Ok(())
    }
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
    let too_large = |size_bytes| WeightsError::TooLarge {
        path: path.to_owned(),
        size_bytes,
        limit_bytes,
    };
    let file = File::open(path).map_err(io)?;
    let size_bytes = file.metadata().map_err(io)?.len();
    if size_bytes > limit_bytes {
        return Err(too_large(size_bytes));
    }
    let mut bytes = Vec::new();
    // The file may grow while it is read.
    file.take(limit_bytes.saturating_add(1))
        .read_to_end(&mut bytes)
        .map_err(io)?;
    if bytes.len() as u64 > limit_bytes {
        return Err(too_large(bytes.len() as u64));
    }
    Ok(bytes)
}

/// Writes a file so that a crash leaves the old one or the new one.
///
/// # Errors
/// What the file system says.
pub fn write_atomic(path: &Path, bytes: &[u8]) -> std::io::Result<()> {
    write_atomic_with(path, |file| file.write_all(bytes))
}

/// As [`write_atomic`] for contents written piece by piece.
fn write_atomic_with<E: From<std::io::Error>>(
    path: &Path,
    write: impl FnOnce(&mut BufWriter<File>) -> Result<(), E>,
) -> Result<(), E> {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(".tmp");
    let temporary = path.with_file_name(name);
    let mut file = BufWriter::new(File::create(&temporary)?);
    if let Err(error) = write(&mut file) {
        // What is half written is of no use; that it stays is no new error.
        let _ = std::fs::remove_file(&temporary);
        return Err(error);
    }
    let file = file
        .into_inner()
        .map_err(std::io::IntoInnerError::into_error)?;
    file.sync_all()?;
    std::fs::rename(&temporary, path)?;
    if let Some(dir) = path.parent().filter(|d| !d.as_os_str().is_empty()) {
        File::open(dir)?.sync_all()?;
    }
    Ok(())
}

enum Backing<'a> {
    File(File),
    Bytes(&'a [u8]),
}

impl Backing<'_> {
    fn read_at(&self, at: u64, out: &mut [u8]) -> std::io::Result<()> {
        match self {
            Self::File(file) => file.read_exact_at(out, at),
            Self::Bytes(bytes) => {
                let start = usize::try_from(at).unwrap_or(usize::MAX);
                let range = start..start.saturating_add(out.len());
                let from = bytes.get(range).ok_or(std::io::ErrorKind::UnexpectedEof)?;
                out.copy_from_slice(from);
                Ok(())
            }
        }
    }
}

/// The tensors of one safetensors file, converted when they are read.
pub(crate) struct Tensors<'a> {
    path: PathBuf,
    backing: Backing<'a>,
    data_start: u64,
    size_bytes: u64,
    entries: BTreeMap<String, Entry>,
}

impl<'a> Tensors<'a> {
    /// Opens a file and checks its header.
    pub(crate) fn open(path: &Path) -> Result<Tensors<'static>, WeightsError> {
        let io = |source| WeightsError::Io {
            path: path.to_owned(),
            source,
        };
        let file = File::open(path).map_err(io)?;
        let size_bytes = file.metadata().map_err(io)?.len();
        Tensors::new(path, Backing::File(file), size_bytes)
    }

    /// As [`Self::open`] for a file already read.
    pub(crate) fn parse(path: &Path, bytes: &'a [u8]) -> Result<Self, WeightsError> {
        Self::new(path, Backing::Bytes(bytes), bytes.len() as u64)
    }

    fn new(path: &Path, backing: Backing<'a>, size_bytes: u64) -> Result<Self, WeightsError> {
        let io = |source| WeightsError::Io {
            path: path.to_owned(),
            source,
        };
        let format = |reason: String| WeightsError::Format {
            path: path.to_owned(),
            reason,
        };
        if size_bytes < 8 {
            return Err(format(format!("{size_bytes} bytes hold no header")));
        }
        let mut length = [0; 8];
        backing.read_at(0, &mut length).map_err(io)?;
        let length = u64::from_le_bytes(length);
        let most = MAX_HEADER_SIZE_BYTES.min(size_bytes - 8);
        if length > most {
            return Err(format(format!(
                "its header says it has {length} bytes, allowed are {most}"
            )));
        }
        let mut text = vec![0; usize::try_from(length).expect("below the limit of a header")];
        backing.read_at(8, &mut text).map_err(io)?;
        let entries = header::parse(&text, size_bytes - 8 - length).map_err(format)?;
        Ok(Self {
            path: path.to_owned(),
            backing,
            data_start: 8 + length,
            size_bytes,
            entries,
        })
    }

    /// The file.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Its length.
    pub(crate) fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    pub(crate) fn names(&self) -> impl Iterator<Item = &str> {
        self.entries.keys().map(String::as_str)
    }

    pub(crate) fn error(&self, tensor: &str, reason: impl Into<String>) -> WeightsError {
        WeightsError::Tensor {
            path: self.path.clone(),
            tensor: tensor.to_owned(),
            reason: reason.into(),
        }
    }

    /// Type of tensor `name`.
    pub(crate) fn dtype(&self, name: &str) -> Result<Dtype, WeightsError> {
        let entry = self.entry(name)?;
        Dtype::from_name(&entry.dtype).ok_or_else(|| {
            let reason = format!(
                "is stored as {}; F32, F16 and BF16 can be read",
                entry.dtype
            );
            self.error(name, reason)
        })
    }

    fn entry(&self, name: &str) -> Result<&Entry, WeightsError> {
        self.entries
            .get(name)
            .ok_or_else(|| self.error(name, "is missing"))
    }

    /// Checks that tensor `name` is there with this shape and a type that can
    /// be read.
    pub(crate) fn expect(&self, name: &str, shape: &[usize]) -> Result<(), WeightsError> {
        let entry = self.entry(name)?;
        if entry.shape != shape {
            return Err(self.error(
                name,
                format!("has shape {:?}, expected {shape:?}", entry.shape),
            ));
        }
        self.dtype(name).map(|_| ())
    }

    /// Type and first byte of elements `range` of tensor `name`.
    fn locate(&self, name: &str, range: &Range<usize>) -> Result<(Dtype, u64), WeightsError> {
        let (entry, dtype) = (self.entry(name)?, self.dtype(name)?);
        if entry.n_elements() < range.end {
            return Err(self.error(
                name,
                format!(
                    "has {} elements, expected {} or more",
                    entry.n_elements(),
                    range.end
                ),
            ));
        }
        let skipped = (range.start * dtype.size_bytes()) as u64;
        Ok((dtype, self.data_start + entry.start + skipped))
    }

    fn read_at(&self, at: u64, out: &mut [u8]) -> Result<(), WeightsError> {
        self.backing
            .read_at(at, out)
            .map_err(|source| WeightsError::Io {
                path: self.path.clone(),
                source,
            })
    }

    /// Elements `range` of tensor `name` as they are stored.
    pub(crate) fn read_stored(
        &self,
        name: &str,
        range: Range<usize>,
    ) -> Result<Vec<u8>, WeightsError> {
        let (dtype, at) = self.locate(name, &range)?;
        let mut bytes = vec![0; range.len() * dtype.size_bytes()];
        self.read_at(at, &mut bytes)?;
        Ok(bytes)
    }

    /// As [`Self::read_stored`]; all elements are finite. A file already read
    /// lends its bytes.
    pub(crate) fn read_finite(
        &self,
        name: &str,
        range: Range<usize>,
    ) -> Result<Cow<'a, [u8]>, WeightsError> {
        let (dtype, at) = self.locate(name, &range)?;
        let width = dtype.size_bytes();
        let len = range.len() * width;
        let lent = match self.backing {
            Backing::File(_) => None,
            Backing::Bytes(bytes) => usize::try_from(at)
                .ok()
                .and_then(|at| bytes.get(at..at + len)),
        };
        let stored = match lent {
            Some(lent) => Cow::Borrowed(lent),
            None => Cow::Owned(self.read_stored(name, range)?),
        };
        let Some(bad) = dtype.first_not_finite(&stored) else {
            return Ok(stored);
        };
        let mut value = [0.0];
        dtype.decode(&stored[bad * width..][..width], &mut value);
        Err(self.error(name, format!("element {bad} is {}", value[0])))
    }

    /// Elements `range` of tensor `name` as f32.
    ///
    /// # Panics
    /// If `out` is not as long as the range.
    pub(crate) fn read(
        &self,
        name: &str,
        range: Range<usize>,
        out: &mut [f32],
    ) -> Result<(), WeightsError> {
        assert_eq!(out.len(), range.len(), "room for the elements");
        let (dtype, mut from) = self.locate(name, &range)?;
        let width = dtype.size_bytes();
        let mut bytes = vec![0; CHUNK_SIZE_BYTES.min(range.len() * width)];
        let mut at = range.start;
        for out in out.chunks_mut(CHUNK_SIZE_BYTES / width) {
            let bytes = &mut bytes[..out.len() * width];
            self.read_at(from, bytes)?;
            dtype.decode(bytes, out);
            if let Some(bad) = out.iter().position(|v| !v.is_finite()) {
                let reason = format!("element {} is {}", at + bad, out[bad]);
                return Err(self.error(name, reason));
            }
            at += out.len();
            from += bytes.len() as u64;
        }
        Ok(())
    }
}

/// The bytes of a safetensors file with these tensors.
///
/// # Errors
/// The tensor and element that cannot be stored as `dtype`.
pub(crate) fn serialize(
    tensors: &[(&str, &[usize], &[f32])],
    dtype: Dtype,
) -> Result<Vec<u8>, (String, usize)> {
    let mut sorted: Vec<_> = tensors.iter().collect();
    sorted.sort_unstable_by_key(|(name, ..)| *name);
    let mut out = header::write(sorted.iter().map(|(name, shape, _)| (*name, *shape)), dtype);
    for (name, _, values) in sorted {
        dtype
            .encode(values, &mut out)
            .map_err(|at| ((*name).to_owned(), at))?;
    }
    Ok(out)
}

/// Writes a safetensors file row by row: `rows(name, row, values)` fills one
/// row of a matrix (or a whole vector) at a time.
pub(crate) fn write_rows(
    path: &Path,
    tensors: &[(&str, &[usize])],
    dtype: Dtype,
    mut rows: impl FnMut(&str, usize, &mut [f32]),
) -> Result<(), WeightsError> {
    enum Failure {
        Io(std::io::Error),
        Value(String, f32),
    }
    impl From<std::io::Error> for Failure {
        fn from(error: std::io::Error) -> Self {
            Self::Io(error)
        }
    }
    let mut sorted = tensors.to_vec();
    sorted.sort_unstable();
    let written = write_atomic_with(path, |file| {
        file.write_all(&header::write(sorted.iter().copied(), dtype))?;
        let (mut values, mut bytes) = (Vec::new(), Vec::new());
        for (name, shape) in &sorted {
            let (n, width) = match **shape {
                [n, width] => (n, width),
                _ => (1, shape.iter().product()),
            };
            values.resize(width, 0.0_f32);
            for row in 0..n {
                rows(name, row, &mut values);
                bytes.clear();
                dtype
                    .encode(&values, &mut bytes)
                    .map_err(|at| Failure::Value((*name).to_owned(), values[at]))?;
                file.write_all(&bytes)?;
            }
        }
        Ok(())
    });
    written.map_err(|failure| match failure {
        Failure::Io(source) => WeightsError::Io {
            path: path.to_owned(),
            source,
        },
        Failure::Value(tensor, value) => WeightsError::Tensor {
            path: path.to_owned(),
            tensor,
            reason: format!("{value} cannot be stored as {}", dtype.name()),
        },
    })
}
