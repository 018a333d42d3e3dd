//! Remote files: models from a Hugging Face hub, checked and resumable, into the
//! cache that other tools share; object stores by URL ([`open_store`]).
//!
//! Owns: [`Reference`] (what a model is called), [`Hub::fetch`], the layout of
//! the cache. The protocol is that of `huggingface_hub` (Python): the files of a
//! revision from `/api/models/…/revision/…?blobs=true`, their content from
//! `/…/resolve/…`, redirects to a content network included.
//!
//! Invariants:
//! * No byte reaches the cache's `blobs` under its name before its hash was
//!   checked: SHA-256 for large files, git's blob hash for the others.
//! * A path from the server never leaves the snapshot's folder.
//! * The token goes to the hub's own host and scheme, to nobody else, and into
//!   no message.
//! * A download that was stopped goes on where it stopped.
//!
//! # Example
//! ```no_run
//! use std::ops::ControlFlow;
//! use ol_hub::{Hub, HubOptions, Reference};
//! let hub = Hub::new(HubOptions::from_env(|name| std::env::var(name).ok())?)?;
//! let reference: Reference = "org/model@main".parse()?;
//! let snapshot = hub.fetch(&reference, &mut |_| ControlFlow::Continue(()))?;
//! println!("{}", snapshot.dir.display());
//! # Ok::<(), ol_hub::HubError>(())
//! ```

mod cache;
mod client;
mod download;
mod listing;
mod reference;
mod store;
mod tls;

use std::fmt;
use std::ops::ControlFlow;
use std::path::PathBuf;
use std::time::Duration;

use thiserror::Error;

use cache::Cache;
use client::Client;
pub use reference::Reference;
pub use store::{StoreError, open_store};
pub use tls::tls_config;

/// Where models come from when nothing else is said.
pub const DEFAULT_ENDPOINT: &str = "https://huggingface.co";

/// How models are fetched.
#[derive(Clone)]
pub struct HubOptions {
    /// The hub, without a slash at the end.
    pub endpoint: String,
    /// Says who asks, for models that are not for everybody.
    pub token: Option<String>,
    /// The cache: `models--org--name` folders are in it.
    pub cache_dir: PathBuf,
    /// Only what the cache holds.
    pub is_offline: bool,
    /// Hash files of the cache again before they are used.
    pub rechecks_cache: bool,
    /// Largest file.
    pub max_file_size_bytes: u64,
    /// Most bytes of a model.
    pub max_model_size_bytes: u64,
    /// How often a request that failed in passing is made again, without a byte
    /// gained.
    pub max_retries: u32,
    /// Waits before a request is made again.
    pub wait: fn(Duration),
    /// Whether `HTTPS_PROXY` and its like are heeded.
    pub uses_proxy: bool,
}

impl HubOptions {
    /// Options as `huggingface_hub` takes them from the environment: `HF_ENDPOINT`,
    /// `HF_TOKEN`, `HF_HUB_CACHE`, `HF_HOME`, `XDG_CACHE_HOME`, `HF_HUB_OFFLINE`.
    ///
    /// # Errors
    /// [`HubError::NoCache`] when none of the variables, nor `HOME`, says where
    /// the cache is.
    pub fn from_env(variable: impl Fn(&str) -> Option<String>) -> Result<Self, HubError> {
        let variable = |name: &str| variable(name).filter(|value| !value.is_empty());
        let path = |name: &str| variable(name).map(PathBuf::from);
        let cache_dir = path("HF_HUB_CACHE")
            .or_else(|| path("HF_HOME").map(|home| home.join("hub")))
            .or_else(|| path("XDG_CACHE_HOME").map(|cache| cache.join("huggingface/hub")))
            .or_else(|| path("HOME").map(|home| home.join(".cache/huggingface/hub")))
            .ok_or(HubError::NoCache)?;
        let is_true = |value: String| {
            matches!(
                value.to_ascii_uppercase().as_str(),
                "1" | "ON" | "YES" | "TRUE"
            )
        };
        let endpoint = variable("HF_ENDPOINT").unwrap_or_else(|| DEFAULT_ENDPOINT.to_owned());
        Ok(Self {
            endpoint: endpoint.trim_end_matches('/').to_owned(),
            token: variable("HF_TOKEN").map(|token| token.trim().to_owned()),
            cache_dir,
            is_offline: variable("HF_HUB_OFFLINE").is_some_and(is_true),
            rechecks_cache: false,
            max_file_size_bytes: 200 << 30,
            max_model_size_bytes: 2 << 40,
            max_retries: 5,
            wait: std::thread::sleep,
            uses_proxy: true,
        })
    }
}

// The token stays out of logs, whoever prints the options.
impl fmt::Debug for HubOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HubOptions")
            .field("endpoint", &self.endpoint)
            .field("has_token", &self.token.is_some())
            .field("cache_dir", &self.cache_dir)
            .field("is_offline", &self.is_offline)
            .finish_non_exhaustive()
    }
}

/// How far a fetch is. The shards of a large model are counted apart from the
/// files before them: only their index says which they are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Progress {
    /// File being fetched.
    pub file: String,
    /// Its number, from 0.
    pub file_index: usize,
    /// Files in all.
    pub n_files: usize,
    /// Bytes there of all files, those of the cache included.
    pub done_bytes: u64,
    /// Bytes of all files.
    pub total_bytes: u64,
}

/// Called as a fetch goes on; `Break` ends it, and what was fetched is kept.
pub type OnProgress<'a> = &'a mut dyn FnMut(&Progress) -> ControlFlow<()>;

/// A model on this machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Snapshot {
    /// Folder with the model's files.
    pub dir: PathBuf,
    /// The revision's commit.
    pub commit: String,
    /// Files fetched, by name, ascending.
    pub files: Vec<String>,
    /// The weights, where they are one GGUF file.
    pub gguf: Option<PathBuf>,
    /// Whether the hub was not asked: it is offline, or could not be reached.
    pub is_from_cache: bool,
}

/// Why a model cannot be fetched.
#[derive(Debug, Error)]
pub enum HubError {
    /// What was given is no name of a model.
    #[error("{given}: not a model of a hub: {reason}")]
    Reference {
        /// What was given.
        given: String,
        /// What is wrong.
        reason: &'static str,
    },
    /// Nothing says where the cache is.
    #[error("where is the cache? set HF_HOME")]
    NoCache,
    /// The endpoint is no URL of a hub.
    #[error("endpoint {0}: not a URL that starts with https:// or http://")]
    Endpoint(String),
    /// The machine trusts no certificate authority.
    #[error("no certificate authorities found on this machine; set SSL_CERT_FILE")]
    NoRoots,
    /// The cache does not hold the model, and the hub is not asked.
    #[error("{reference} is not in the cache at {cache_dir}, and the hub is not asked (offline)")]
    NotCached {
        /// The model.
        reference: String,
        /// The cache.
        cache_dir: PathBuf,
    },
    /// The hub knows no such model, revision or file, or does not show it to us.
    #[error("{reference}: {reason}")]
    NotFound {
        /// The model.
        reference: String,
        /// What the hub says, and what to do.
        reason: String,
    },
    /// The hub does not give the model to us.
    #[error("{reference}: access is refused ({status}): {reason}")]
    Refused {
        /// The model.
        reference: String,
        /// HTTP status.
        status: u16,
        /// What the hub says, and what to do.
        reason: String,
    },
    /// The hub cannot be reached, or fails again and again.
    #[error("{url}: {reason}")]
    Network {
        /// What was asked, without a query.
        url: String,
        /// What went wrong the last time.
        reason: String,
    },
    /// The hub says what cannot be.
    #[error("{url}: the hub's answer cannot be used: {reason}")]
    Protocol {
        /// What was asked, without a query.
        url: String,
        /// What is wrong.
        reason: String,
    },
    /// The model has no weights that can be read, or too many.
    #[error("{reference}: {reason}")]
    Files {
        /// The model.
        reference: String,
        /// What is wrong.
        reason: String,
    },
    /// The model is larger than allowed.
    #[error("{what}: {size_bytes} bytes, allowed are {limit_bytes}")]
    TooLarge {
        /// A file, or the model.
        what: String,
        /// Its size.
        size_bytes: u64,
        /// The limit.
        limit_bytes: u64,
    },
    /// There is no room for it.
    #[error("{dir}: {needed_bytes} bytes are needed, {free_bytes} are free")]
    NoRoom {
        /// Where it would go.
        dir: PathBuf,
        /// Bytes still to fetch.
        needed_bytes: u64,
        /// Bytes free.
        free_bytes: u64,
    },
    /// The content is not what the hub announced.
    #[error("{file}: {kind} is {found}, the hub announced {expected}; nothing of it is kept")]
    Hash {
        /// File concerned.
        file: String,
        /// SHA-256 or git's blob hash.
        kind: &'static str,
        /// Announced.
        expected: String,
        /// Found.
        found: String,
    },
    /// The caller ended the fetch.
    #[error("the download was stopped; it goes on from here the next time")]
    Stopped,
    /// The cache cannot be read or written.
    #[error("{path}: {source}")]
    Io {
        /// File concerned.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
}

/// A hub and its cache.
#[derive(Debug)]
pub struct Hub {
    options: HubOptions,
    cache: Cache,
    client: Client,
}

impl Hub {
    /// # Errors
    /// [`HubError::Endpoint`], [`HubError::NoRoots`].
    pub fn new(options: HubOptions) -> Result<Self, HubError> {
        Ok(Self {
            cache: Cache::new(options.cache_dir.clone()),
            client: Client::new(&options)?,
            options,
        })
    }

    /// Fetches what is needed of a model: configuration, tokenizer, and its
    /// weights as safetensors or one GGUF file. What the cache holds is not
    /// fetched again; with the hub out of reach, the cache alone will do.
    ///
    /// # Errors
    /// [`HubError`].
    pub fn fetch(
        &self,
        reference: &Reference,
        on_progress: OnProgress<'_>,
    ) -> Result<Snapshot, HubError> {
        if self.options.is_offline {
            return self.cached(reference);
        }
        let listing = match self.client.listing(reference) {
            Ok(listing) => listing,
            Err(error @ HubError::Network { .. }) => {
                return self.cached(reference).map_err(|_| error);
            }
            Err(error) => return Err(error),
        };
        let model = self.cache.model(reference);
        let mut wanted = listing.select(reference)?;
        self.fetch_files(reference, &model, &listing.commit, &wanted, on_progress)?;
        if let Some(shards) = listing.shards(&model.snapshot(&listing.commit))? {
            self.fetch_files(reference, &model, &listing.commit, &shards, on_progress)?;
            wanted.extend(shards);
        }
        model.write_ref(&reference.revision, &listing.commit)?;
        let mut files: Vec<String> = wanted.into_iter().map(|f| f.path).collect();
        files.sort();
        Ok(snapshot(
            model.snapshot(&listing.commit),
            listing.commit,
            files,
            false,
        ))
    }

    fn cached(&self, reference: &Reference) -> Result<Snapshot, HubError> {
        let not_cached = || HubError::NotCached {
            reference: reference.to_string(),
            cache_dir: self.options.cache_dir.clone(),
        };
        let model = self.cache.model(reference);
        let commit = model.commit(&reference.revision)?.ok_or_else(not_cached)?;
        let dir = model.snapshot(&commit);
        let names = model.files(&commit)?;
        let files = listing::complete(reference, &dir, &names)?.ok_or_else(not_cached)?;
        if self.options.rechecks_cache {
            for file in &files {
                model.recheck(&commit, file)?;
            }
        }
        Ok(snapshot(dir, commit, files, true))
    }
}

fn snapshot(dir: PathBuf, commit: String, files: Vec<String>, is_from_cache: bool) -> Snapshot {
    let gguf = files.iter().find(|f| listing::is_gguf(f));
    Snapshot {
        gguf: gguf.map(|file| dir.join(file)),
        dir,
        commit,
        files,
        is_from_cache,
    }
}
