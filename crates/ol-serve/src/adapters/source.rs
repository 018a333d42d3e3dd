//! Where adapters come from: directories, object stores, the registry.

use std::fmt;
use std::fs::{self, File};
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use object_store::{GetOptions, ObjectStore};
use ol_runtime::{Objects, ObjectsError};
use ol_types::B256;

use super::AdapterError;

pub(super) const CONFIG_FILE: &str = "adapter_config.json";
pub(super) const WEIGHTS_FILE: &str = "adapter_model.safetensors";
/// What a GGUF adapter is called in the store's own folder.
pub(super) const GGUF_FILE: &str = "adapter.gguf";

/// Longest `adapter_config.json` read.
pub(super) const MAX_CONFIG_SIZE_BYTES: u64 = 1 << 20;

/// An adapter as it is stored.
#[derive(Clone, PartialEq, Eq)]
pub enum AdapterFiles {
    /// The two files of a PEFT directory.
    Peft {
        /// `adapter_config.json`.
        config: Bytes,
        /// `adapter_model.safetensors`.
        weights: Bytes,
    },
    /// A GGUF file, as llama.cpp has adapters.
    Gguf(Bytes),
}

impl fmt::Debug for AdapterFiles {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AdapterFiles")
            .field("size_bytes", &self.size_bytes())
            .finish_non_exhaustive()
    }
}

impl AdapterFiles {
    /// The names of the files, and what is in them.
    pub(super) fn by_name(&self) -> Vec<(&'static str, &Bytes)> {
        match self {
            Self::Peft { config, weights } => vec![(CONFIG_FILE, config), (WEIGHTS_FILE, weights)],
            Self::Gguf(file) => vec![(GGUF_FILE, file)],
        }
    }

    pub(super) const fn weights(&self) -> &Bytes {
        match self {
            Self::Peft { weights, .. } | Self::Gguf(weights) => weights,
        }
    }

    pub(super) fn size_bytes(&self) -> u64 {
        let files = self.by_name().into_iter();
        files.map(|(_, bytes)| bytes.len() as u64).sum()
    }
}

/// A place from which one adapter can be read, and read again when it was
/// dropped from memory. Nothing in it is trusted: what is read is checked
/// against the hash of the version that is wanted.
pub trait AdapterSource: fmt::Display + Send + Sync {
    /// Reads all of it; blocks. Weights of more than `max_size_bytes` are
    /// refused before they are read.
    ///
    /// # Errors
    /// [`AdapterError::Missing`], [`AdapterError::Unreadable`],
    /// [`AdapterError::TooLarge`].
    fn read(&self, max_size_bytes: u64) -> Result<AdapterFiles, AdapterError>;
}

/// An adapter whose two files are objects of the registry.
///
/// ```
/// # use ol_runtime::Objects;
/// use ol_serve::{AdapterFiles, AdapterSource as _, ObjectsSource};
/// let objects = Objects::memory();
/// let config = objects.put("{}")?;
/// let weights = objects.put("weights")?;
/// let source = ObjectsSource { objects, config, weights };
/// let AdapterFiles::Peft { weights, .. } = source.read(100)? else { unreachable!() };
/// assert_eq!(weights, "weights");
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug, Clone)]
pub struct ObjectsSource {
    /// Where they are.
    pub objects: Objects,
    /// Id of `adapter_config.json`.
    pub config: B256,
    /// Id of `adapter_model.safetensors`.
    pub weights: B256,
}

impl fmt::Display for ObjectsSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "object {}", self.weights)
    }
}

impl AdapterSource for ObjectsSource {
    fn read(&self, max_size_bytes: u64) -> Result<AdapterFiles, AdapterError> {
        let get = |id, limit_bytes| {
            let location = format!("object {id}");
            self.objects
                .get(id, limit_bytes)
                .map_err(|error| match error {
                    ObjectsError::NotFound { .. } => AdapterError::Missing { location },
                    ObjectsError::TooLarge { size_bytes, .. } => too_large(size_bytes, limit_bytes),
                    error => unreadable(location, &error),
                })
        };
        Ok(AdapterFiles::Peft {
            config: get(self.config, MAX_CONFIG_SIZE_BYTES)?,
            weights: get(self.weights, max_size_bytes)?,
        })
    }
}

/// A PEFT directory, or a GGUF file, below one of the roots.
pub(super) struct LocalPath {
    path: PathBuf,
    roots: Arc<[PathBuf]>,
}

impl LocalPath {
    /// `location`, absolute or below a root, if after `..` and links it is
    /// below one. `roots` are canonical.
    pub(super) fn locate(location: &str, roots: &Arc<[PathBuf]>) -> Result<Self, AdapterError> {
        let is_below = |path: &PathBuf| roots.iter().any(|root| path.starts_with(root));
        // A relative location is tried below every root; an absolute one
        // replaces the root in `join`.
        let path = roots
            .iter()
            .filter_map(|root| root.join(location).canonicalize().ok())
            .find(is_below);
        match path {
            Some(path) => Ok(Self {
                path,
                roots: Arc::clone(roots),
            }),
            // Whether there is something outside of the roots is not told.
            None => Err(AdapterError::Location {
                location: location.chars().take(200).collect(),
            }),
        }
    }

    fn file(&self, path: &Path, limit_bytes: u64) -> Result<Bytes, AdapterError> {
        let location = || path.display().to_string();
        let from_io = |error: io::Error| match error.kind() {
            io::ErrorKind::NotFound => AdapterError::Missing {
                location: location(),
            },
            _ => unreadable(location(), &error),
        };
        // Hub caches link to blobs, which is fine below the roots.
        let real = path.canonicalize().map_err(from_io)?;
        if !self.roots.iter().any(|root| real.starts_with(root)) {
            return Err(AdapterError::Location {
                location: location(),
            });
        }
        read_file(&real, limit_bytes).map_err(|error| match error {
            ReadError::Io(error) => from_io(error),
            ReadError::TooLarge(size_bytes) => too_large(size_bytes, limit_bytes),
        })
    }
}

impl fmt::Display for LocalPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.path.display().fmt(f)
    }
}

impl AdapterSource for LocalPath {
    fn read(&self, max_size_bytes: u64) -> Result<AdapterFiles, AdapterError> {
        if self.path.is_file() {
            return self
                .file(&self.path, max_size_bytes)
                .map(AdapterFiles::Gguf);
        }
        Ok(AdapterFiles::Peft {
            config: self.file(&self.path.join(CONFIG_FILE), MAX_CONFIG_SIZE_BYTES)?,
            weights: self.file(&self.path.join(WEIGHTS_FILE), max_size_bytes)?,
        })
    }
}

pub(super) enum ReadError {
    Io(io::Error),
    TooLarge(u64),
}

impl From<io::Error> for ReadError {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

/// A whole file, in one read.
pub(super) fn read_file(path: &Path, limit_bytes: u64) -> Result<Bytes, ReadError> {
    // A pipe would block here for ever.
    if !fs::metadata(path)?.is_file() {
        return Err(io::Error::other("it is not a file").into());
    }
    let file = File::open(path)?;
    let size_bytes = file.metadata()?.len();
    if size_bytes > limit_bytes {
        return Err(ReadError::TooLarge(size_bytes));
    }
    let size = usize::try_from(size_bytes).map_err(|_| ReadError::TooLarge(size_bytes))?;
    // One more, so that reaching the end needs no second buffer.
    let mut bytes = Vec::with_capacity(size + 1);
    // The file may grow while it is read.
    file.take(limit_bytes.saturating_add(1))
        .read_to_end(&mut bytes)?;
    if bytes.len() as u64 > limit_bytes {
        return Err(ReadError::TooLarge(bytes.len() as u64));
    }
    Ok(bytes.into())
}

/// A PEFT directory in an object store, or a GGUF file, which is told by its
/// ending.
pub(super) struct StorePath {
    pub(super) store: Arc<dyn ObjectStore>,
    pub(super) path: object_store::path::Path,
    /// As it was asked for.
    pub(super) url: String,
}

impl StorePath {
    fn object(
        &self,
        path: &object_store::path::Path,
        limit_bytes: u64,
    ) -> Result<Bytes, AdapterError> {
        let location = || match path.filename() {
            Some(name) if *path != self.path => format!("{}/{name}", self.url),
            _ => self.url.clone(),
        };
        let from_store = |error| match error {
            object_store::Error::NotFound { .. } => AdapterError::Missing {
                location: location(),
            },
            error => unreadable(location(), &error),
        };
        ol_runtime::block_on(async {
            let found = self
                .store
                .get_opts(path, GetOptions::default())
                .await
                .map_err(from_store)?;
            if found.meta.size > limit_bytes {
                return Err(too_large(found.meta.size, limit_bytes));
            }
            found.bytes().await.map_err(from_store)
        })
    }
}

impl fmt::Display for StorePath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.url)
    }
}

impl AdapterSource for StorePath {
    fn read(&self, max_size_bytes: u64) -> Result<AdapterFiles, AdapterError> {
        if self.path.extension() == Some("gguf") {
            return self
                .object(&self.path, max_size_bytes)
                .map(AdapterFiles::Gguf);
        }
        let file = |name: &str| self.path.clone().join(name);
        Ok(AdapterFiles::Peft {
            config: self.object(&file(CONFIG_FILE), MAX_CONFIG_SIZE_BYTES)?,
            weights: self.object(&file(WEIGHTS_FILE), max_size_bytes)?,
        })
    }
}

fn too_large(size_bytes: u64, limit_bytes: u64) -> AdapterError {
    AdapterError::TooLarge {
        what: "on disk",
        size_bytes,
        limit_bytes,
    }
}

fn unreadable(location: String, error: &dyn std::error::Error) -> AdapterError {
    let mut reason = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        reason.push_str(": ");
        reason.push_str(&error.to_string());
        source = error.source();
    }
    AdapterError::Unreadable { location, reason }
}
