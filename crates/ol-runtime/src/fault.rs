//! Storage that fails at a chosen write, for tests and simulations.
//!
//! A crash is a write that fails and takes every later one with it. Give one
//! [`WriteFaults`] to the objects and the heads of a component, run it for
//! every N until a run has no fault left, open the storage again without
//! faults, and check that what is there is the old state or the new one.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use futures::stream::BoxStream;
use object_store::path::Path;
use object_store::{
    CopyOptions, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta, ObjectStore,
    PutMultipartOptions, PutOptions, PutPayload, PutResult, Result as StoreResult,
};
use ol_types::B256;

use crate::{Heads, HeadsError};

/// Whether the write that fails had an effect.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FaultMoment {
    /// The write never happened.
    Before,
    /// The write happened, and the answer was lost.
    After,
}

/// Counts the writes of everything that shares it, and fails the N-th and all
/// that follow.
#[derive(Debug, Clone)]
pub struct WriteFaults {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    /// Writes that still succeed.
    left: AtomicU64,
    /// Writes that failed.
    n_failed: AtomicU64,
    moment: FaultMoment,
}

impl WriteFaults {
    /// Lets `n_good` writes succeed; the next one fails at `moment`, and all
    /// after it without effect.
    #[must_use]
    pub fn after(n_good: u64, moment: FaultMoment) -> Self {
        let (left, n_failed) = (AtomicU64::new(n_good), AtomicU64::new(0));
        Self {
            shared: Arc::new(Shared {
                left,
                n_failed,
                moment,
            }),
        }
    }

    /// Whether a write has failed.
    #[must_use]
    pub fn has_struck(&self) -> bool {
        self.shared.n_failed.load(Ordering::SeqCst) > 0
    }

    /// What the next write does: `None`, succeed.
    fn next(&self) -> Option<FaultMoment> {
        let less_one = |left: u64| left.checked_sub(1);
        let counted = self
            .shared
            .left
            .fetch_update(Ordering::SeqCst, Ordering::SeqCst, less_one);
        if counted.is_ok() {
            return None;
        }
        let is_first = self.shared.n_failed.fetch_add(1, Ordering::SeqCst) == 0;
        Some(if is_first {
            self.shared.moment
        } else {
            FaultMoment::Before
        })
    }
}

fn injected() -> std::io::Error {
    std::io::Error::other("injected fault")
}

/// An object store whose writes fail as its [`WriteFaults`] say.
#[derive(Debug)]
pub struct FaultyStore {
    inner: Arc<dyn ObjectStore>,
    faults: WriteFaults,
}

impl FaultyStore {
    /// Puts `faults` before `inner`.
    #[must_use]
    pub fn new(inner: Arc<dyn ObjectStore>, faults: WriteFaults) -> Self {
        Self { inner, faults }
    }

    fn fault() -> object_store::Error {
        object_store::Error::Generic {
            store: "faulty",
            source: Box::new(injected()),
        }
    }
}

impl fmt::Display for FaultyStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "FaultyStore({})", self.inner)
    }
}

#[async_trait::async_trait]
impl ObjectStore for FaultyStore {
    async fn put_opts(
        &self,
        location: &Path,
        payload: PutPayload,
        opts: PutOptions,
    ) -> StoreResult<PutResult> {
        match self.faults.next() {
            None => self.inner.put_opts(location, payload, opts).await,
            Some(FaultMoment::Before) => Err(Self::fault()),
            Some(FaultMoment::After) => {
                self.inner.put_opts(location, payload, opts).await?;
                Err(Self::fault())
            }
        }
    }

    async fn put_multipart_opts(
        &self,
        location: &Path,
        opts: PutMultipartOptions,
    ) -> StoreResult<Box<dyn MultipartUpload>> {
        // An upload that never began left nothing behind: both moments are one.
        match self.faults.next() {
            None => self.inner.put_multipart_opts(location, opts).await,
            Some(_) => Err(Self::fault()),
        }
    }

    async fn get_opts(&self, location: &Path, options: GetOptions) -> StoreResult<GetResult> {
        self.inner.get_opts(location, options).await
    }

    fn delete_stream(
        &self,
        locations: BoxStream<'static, StoreResult<Path>>,
    ) -> BoxStream<'static, StoreResult<Path>> {
        match self.faults.next() {
            None => self.inner.delete_stream(locations),
            Some(_) => Box::pin(futures::stream::once(async { Err(Self::fault()) })),
        }
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, StoreResult<ObjectMeta>> {
        self.inner.list(prefix)
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> StoreResult<ListResult> {
        self.inner.list_with_delimiter(prefix).await
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> StoreResult<()> {
        match self.faults.next() {
            None => self.inner.copy_opts(from, to, options).await,
            Some(FaultMoment::Before) => Err(Self::fault()),
            Some(FaultMoment::After) => {
                self.inner.copy_opts(from, to, options).await?;
                Err(Self::fault())
            }
        }
    }
}

/// Heads whose moves fail as their [`WriteFaults`] say.
#[derive(Debug)]
pub struct FaultyHeads {
    inner: Arc<dyn Heads>,
    faults: WriteFaults,
}

impl FaultyHeads {
    /// Puts `faults` before `inner`.
    #[must_use]
    pub fn new(inner: Arc<dyn Heads>, faults: WriteFaults) -> Self {
        Self { inner, faults }
    }
}

impl Heads for FaultyHeads {
    fn get(&self, name: &str) -> Result<Option<B256>, HeadsError> {
        self.inner.get(name)
    }

    fn compare_and_swap(
        &self,
        name: &str,
        expected: Option<B256>,
        new: B256,
    ) -> Result<(), HeadsError> {
        let fault = || HeadsError::Io {
            path: name.into(),
            source: injected(),
        };
        match self.faults.next() {
            None => self.inner.compare_and_swap(name, expected, new),
            Some(FaultMoment::Before) => Err(fault()),
            Some(FaultMoment::After) => {
                self.inner.compare_and_swap(name, expected, new)?;
                Err(fault())
            }
        }
    }

    fn list(&self) -> Result<Vec<String>, HeadsError> {
        self.inner.list()
    }
}

#[cfg(test)]
mod tests;
