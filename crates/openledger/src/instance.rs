//! Where an instance keeps its things, and how a command finds a running one.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use ol_runtime::{DirLock, LockError};
use serde::{Deserialize, Serialize};

use crate::cli::Global;

/// The folders and files below `--dir`.
#[derive(Debug, Clone)]
pub(crate) struct Layout {
    root: PathBuf,
}

impl Layout {
    /// The layout below `--dir`, or below `~/.openledger`.
    pub(crate) fn of(global: &Global) -> anyhow::Result<Self> {
        let root = match &global.dir {
            Some(dir) => dir.clone(),
            None => std::env::home_dir()
                .context("no home folder is known; name a folder with --dir")?
                .join(".openledger"),
        };
        Ok(Self {
            root: std::path::absolute(&root).with_context(|| root.display().to_string())?,
        })
    }

    pub(crate) fn root(&self) -> &Path {
        &self.root
    }

    pub(crate) fn chain(&self) -> PathBuf {
        self.root.join("chain")
    }

    pub(crate) fn base(&self) -> PathBuf {
        self.root.join("base")
    }

    /// One folder a model: the PEFT adapter, its manifest, sketches and report.
    pub(crate) fn models(&self) -> PathBuf {
        self.root.join("models")
    }

    pub(crate) fn model(&self, name: &str) -> PathBuf {
        self.models().join(name)
    }

    /// Training jobs: a queue, and a folder each.
    pub(crate) fn jobs(&self) -> PathBuf {
        self.root.join("jobs")
    }

    /// Indexes of the spans of datanets.
    pub(crate) fn spans(&self) -> PathBuf {
        self.root.join("spans")
    }

    /// How far the watch of this chain has come.
    pub(crate) fn watch(&self) -> PathBuf {
        self.root.join("watch")
    }

    pub(crate) fn gateway(&self) -> PathBuf {
        self.root.join("gateway")
    }

    /// Keys of a server without chain.
    pub(crate) fn serve(&self) -> PathBuf {
        self.root.join("serve")
    }

    /// The operator's key of a server without chain.
    pub(crate) fn serve_admin_key(&self) -> PathBuf {
        self.serve().join("admin-key")
    }

    /// Adapters for workers to read, each under the hash of its content.
    pub(crate) fn published_adapters(&self) -> PathBuf {
        self.root.join("fleet-adapters")
    }

    /// The genesis of a chain that is not the development chain.
    pub(crate) fn genesis(&self) -> PathBuf {
        self.root.join("genesis.json")
    }

    pub(crate) fn dev_api_key(&self) -> PathBuf {
        self.root.join("dev-api-key")
    }

    fn instance(&self) -> PathBuf {
        self.root.join("instance.json")
    }
}

/// Where a running instance listens.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Instance {
    /// Base address of the API, without a slash at the end; none for a node
    /// without models.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) api: Option<String>,
    /// Address of the JSON-RPC.
    pub(crate) rpc: String,
    /// Process that serves.
    pub(crate) pid: u32,
}

impl Instance {
    /// Says where this process listens, until the guard is dropped.
    pub(crate) fn announce(self, layout: &Layout) -> anyhow::Result<Announced> {
        let path = layout.instance();
        let text = serde_json::to_string_pretty(&self)?;
        fs::write(&path, text).with_context(|| path.display().to_string())?;
        Ok(Announced { path })
    }

    /// Base address of the API.
    ///
    /// # Errors
    /// If it is a node without models.
    pub(crate) fn api(&self) -> anyhow::Result<&str> {
        self.api
            .as_deref()
            .context("a node without models runs on this folder; `openledger up` serves models")
    }

    /// The instance that runs on this folder.
    ///
    /// # Errors
    /// If none does: its file is missing, or left over from one that was killed.
    pub(crate) fn find(layout: &Layout) -> anyhow::Result<Self> {
        let path = layout.instance();
        let found = fs::read_to_string(&path).ok();
        let Some(text) = found.filter(|_| is_locked(layout.root())) else {
            let dir = layout.root().display();
            bail!("no instance runs on {dir}; start one with `openledger up --dir {dir}`");
        };
        serde_json::from_str(&text).with_context(|| format!("{} is damaged", path.display()))
    }
}

/// Takes the folder for this process.
///
/// # Errors
/// If another process has it.
pub(crate) fn lock(layout: &Layout) -> anyhow::Result<DirLock> {
    match DirLock::acquire(layout.root()) {
        Err(LockError::InUse { dir }) => bail!("an instance already runs on {}", dir.display()),
        lock => Ok(lock?),
    }
}

/// Whether a process holds the folder. A killed one's lock is gone with it.
fn is_locked(dir: &Path) -> bool {
    matches!(DirLock::acquire(dir), Err(LockError::InUse { .. }))
}

/// Removes the announcement when dropped.
#[derive(Debug)]
pub(crate) struct Announced {
    path: PathBuf,
}

impl Drop for Announced {
    fn drop(&mut self) {
        // Nothing can be done about a failure, and the lock tells the truth.
        let _ = fs::remove_file(&self.path);
    }
}
