//! Content-addressed objects.

use std::future::Future;
use std::path::Path;
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll, Wake, Waker};
use std::thread::Thread;

use bytes::Bytes;
use object_store::local::LocalFileSystem;
use object_store::memory::InMemory;
use object_store::{GetOptions, ObjectStore, ObjectStoreExt as _};
use ol_types::{B256, keccak256};

/// Immutable bytes, named by their keccak256.
///
/// Clones share one store. A `put` that returned is durable: in a local folder
/// the file and every directory above it that was new have been fsynced, and
/// the file appears under its name only when it is complete (written beside
/// it, then renamed).
///
/// All calls block the thread. Async code calls them through
/// `spawn_blocking`.
#[derive(Debug, Clone)]
pub struct Objects {
    store: Arc<dyn ObjectStore>,
}

/// Why an object could not be written or read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ObjectsError {
    /// The store has no such object.
    #[error("object {id} is missing")]
    NotFound {
        /// The id asked for.
        id: B256,
    },
    /// The bytes under this id are other bytes: damaged, or changed by somebody.
    #[error("object {expected} is damaged: its bytes hash to {found}")]
    Tampered {
        /// The id asked for.
        expected: B256,
        /// What the bytes hash to.
        found: B256,
    },
    /// The object is larger than the caller is ready to hold.
    #[error("object {id} has {size_bytes} bytes, the limit is {max_size_bytes}")]
    TooLarge {
        /// The id asked for.
        id: B256,
        /// Size of the object.
        size_bytes: u64,
        /// The caller's limit.
        max_size_bytes: u64,
    },
    /// The store itself failed: disk full, no permission, no network.
    #[error("the object store failed")]
    Store(#[source] object_store::Error),
}

impl Objects {
    /// Objects on any store. `put` must be atomic there, and durable once it
    /// has returned.
    #[must_use]
    pub fn new(store: Arc<dyn ObjectStore>) -> Self {
        Self { store }
    }

    /// Objects in a local folder, which is made if it is missing.
    ///
    /// # Errors
    /// [`ObjectsError::Store`] if the folder cannot be made or opened.
    pub fn local(dir: &Path) -> Result<Self, ObjectsError> {
        crate::data_dir::create_dir_durably(dir).map_err(|source| {
            ObjectsError::Store(object_store::Error::Generic {
                store: "local folder",
                source: Box::new(source),
            })
        })?;
        // Without `with_fsync` a power loss may leave an empty file under a
        // full name.
        let store = LocalFileSystem::new_with_prefix(dir).map_err(ObjectsError::Store)?;
        Ok(Self::new(Arc::new(store.with_fsync(true))))
    }

    /// Objects that are gone with the process.
    #[must_use]
    pub fn memory() -> Self {
        Self::new(Arc::new(InMemory::new()))
    }

    /// Stores `bytes` and returns their id. Storing the same bytes again is
    /// harmless, and repairs an object that was damaged.
    ///
    /// # Errors
    /// [`ObjectsError::Store`]; the object may then exist or not, but is never
    /// half there.
    pub fn put(&self, bytes: impl Into<Bytes>) -> Result<B256, ObjectsError> {
        let bytes = bytes.into();
        let id = keccak256(&bytes);
        block_on(self.store.put(&object_path(id), bytes.into())).map_err(ObjectsError::Store)?;
        Ok(id)
    }

    /// The bytes of object `id`, which hash to `id`.
    ///
    /// # Errors
    /// [`ObjectsError::TooLarge`] before anything is read if the object has more
    /// than `max_size_bytes`; [`ObjectsError::Tampered`] if the bytes do not
    /// hash to `id`; [`ObjectsError::NotFound`], [`ObjectsError::Store`].
    pub fn get(&self, id: B256, max_size_bytes: u64) -> Result<Bytes, ObjectsError> {
        let path = object_path(id);
        let bytes = block_on(async {
            let found = self
                .store
                .get_opts(&path, GetOptions::default())
                .await
                .map_err(|error| from_store(id, error))?;
            let size_bytes = found.meta.size;
            if size_bytes > max_size_bytes {
                return Err(ObjectsError::TooLarge {
                    id,
                    size_bytes,
                    max_size_bytes,
                });
            }
            found.bytes().await.map_err(|error| from_store(id, error))
        })?;
        let found = keccak256(&bytes);
        if found != id {
            return Err(ObjectsError::Tampered {
                expected: id,
                found,
            });
        }
        Ok(bytes)
    }

    /// Whether the store has an object under `id`. Does not read it: only
    /// [`Objects::get`] knows whether the bytes are right.
    ///
    /// # Errors
    /// [`ObjectsError::Store`].
    pub fn contains(&self, id: B256) -> Result<bool, ObjectsError> {
        match block_on(self.store.head(&object_path(id))) {
            Ok(_) => Ok(true),
            Err(object_store::Error::NotFound { .. }) => Ok(false),
            Err(error) => Err(ObjectsError::Store(error)),
        }
    }
}

/// Where object `id` lies in a store: `ab/cdef…`, in lower-case hex. The first
/// byte is a folder, so that no folder grows too long to list.
#[must_use]
pub fn object_path(id: B256) -> object_store::path::Path {
    let hex = format!("{id:x}");
    let hex = hex.trim_start_matches("0x");
    object_store::path::Path::from(format!("{}/{}", &hex[..2], &hex[2..]))
}

fn from_store(id: B256, error: object_store::Error) -> ObjectsError {
    match error {
        object_store::Error::NotFound { .. } => ObjectsError::NotFound { id },
        error => ObjectsError::Store(error),
    }
}

/// Wakes a parked thread.
struct Unpark(Thread);

impl Wake for Unpark {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }
}

/// Runs a store's future to its end on this thread.
///
/// Unlike the executors of tokio and futures it may be called anywhere, also
/// on a thread that already drives one of them.
pub fn block_on<F: Future>(future: F) -> F::Output {
    let mut future = pin!(future);
    let waker = Waker::from(Arc::new(Unpark(std::thread::current())));
    let mut context = Context::from_waker(&waker);
    loop {
        match future.as_mut().poll(&mut context) {
            Poll::Ready(output) => return output,
            Poll::Pending => std::thread::park(),
        }
    }
}

#[cfg(test)]
mod tests;
