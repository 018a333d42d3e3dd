//! The cache on disk, as `huggingface_hub` lays it out.
//!
//! ```text
//! models--org--name/refs/main                      the commit
//! models--org--name/blobs/HASH                     content, by its hash
//! models--org--name/blobs/HASH.incomplete          what is there so far
//! models--org--name/snapshots/COMMIT/config.json   link to ../../blobs/HASH
//! .locks/models--org--name/HASH.lock               one process at a time
//! ```

use std::fs::{self, File, OpenOptions};
use std::io::{ErrorKind, Read, Write};
use std::path::{Path, PathBuf};

use crate::download::Hasher;
use crate::listing::{Digest, RemoteFile};
use crate::reference::is_commit;
use crate::{HubError, Reference};

/// Most files of a snapshot in the cache.
const MAX_FILES: usize = 100_000;

#[derive(Debug)]
pub(crate) struct Cache {
    root: PathBuf,
}

impl Cache {
    pub(crate) const fn new(root: PathBuf) -> Self {
        Self { root }
    }

    pub(crate) fn model(&self, reference: &Reference) -> ModelCache {
        let name = format!("models--{}", reference.id.replace('/', "--"));
        ModelCache {
            root: self.root.join(&name),
            locks: self.root.join(".locks").join(&name),
        }
    }
}

/// One model's part of the cache.
#[derive(Debug)]
pub(crate) struct ModelCache {
    root: PathBuf,
    locks: PathBuf,
}

pub(crate) fn io(path: &Path) -> impl Fn(std::io::Error) -> HubError {
    |source| HubError::Io {
        path: path.to_owned(),
        source,
    }
}

impl ModelCache {
    pub(crate) fn snapshot(&self, commit: &str) -> PathBuf {
        self.root.join("snapshots").join(commit)
    }

    pub(crate) fn blob(&self, digest: &Digest) -> PathBuf {
        self.root.join("blobs").join(digest.hex())
    }

    pub(crate) fn partial(&self, digest: &Digest) -> PathBuf {
        self.root
            .join("blobs")
            .join(format!("{}.incomplete", digest.hex()))
    }

    /// Bytes free where the cache is; `None` if the system does not say.
    pub(crate) fn free_bytes(&self) -> Option<u64> {
        let stat = rustix::fs::statvfs(&self.root).ok()?;
        stat.f_bavail.checked_mul(stat.f_frsize)
    }

    /// The commit a revision stood for when it was fetched.
    pub(crate) fn commit(&self, revision: &str) -> Result<Option<String>, HubError> {
        if is_commit(revision) {
            return Ok(Some(revision.to_owned()));
        }
        let path = self.root.join("refs").join(revision);
        let mut text = String::new();
        match File::open(&path).and_then(|file| file.take(64).read_to_string(&mut text)) {
            Ok(_) => Ok(Some(text.trim().to_owned()).filter(|c| is_commit(c))),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
            Err(error) => Err(io(&path)(error)),
        }
    }

    pub(crate) fn write_ref(&self, revision: &str, commit: &str) -> Result<(), HubError> {
        if is_commit(revision) {
            return Ok(());
        }
        let path = self.root.join("refs").join(revision);
        let dir = path.parent().unwrap_or(&self.root);
        fs::create_dir_all(dir).map_err(io(dir))?;
        let temporary = dir.join(format!(".{}.tmp", std::process::id()));
        fs::write(&temporary, commit).map_err(io(&temporary))?;
        fs::rename(&temporary, &path).map_err(io(&path))
    }

    /// Names of the files in a snapshot.
    pub(crate) fn files(&self, commit: &str) -> Result<Vec<String>, HubError> {
        let root = self.snapshot(commit);
        let mut names = Vec::new();
        let mut folders = vec![(root, String::new())];
        while let Some((dir, prefix)) = folders.pop() {
            let entries = match fs::read_dir(&dir) {
                Ok(entries) => entries,
                Err(error) if error.kind() == ErrorKind::NotFound => continue,
                Err(error) => return Err(io(&dir)(error)),
            };
            for entry in entries {
                let entry = entry.map_err(io(&dir))?;
                let Some(name) = entry.file_name().to_str().map(str::to_owned) else {
                    continue;
                };
                let kind = entry.file_type().map_err(io(&dir))?;
                if kind.is_dir() {
                    folders.push((entry.path(), format!("{prefix}{name}/")));
                } else if entry.path().is_file() {
                    // A link to a blob that is gone is no file.
                    names.push(format!("{prefix}{name}"));
                }
            }
            if names.len() > MAX_FILES {
                return Err(HubError::Files {
                    reference: self.root.display().to_string(),
                    reason: format!("more than {MAX_FILES} files"),
                });
            }
        }
        Ok(names)
    }

    /// Hashes a file of a snapshot again, if the blob's name says to what.
    pub(crate) fn recheck(&self, commit: &str, file: &str) -> Result<(), HubError> {
        let path = self.snapshot(commit).join(file);
        let Ok(target) = fs::canonicalize(&path) else {
            return Ok(());
        };
        let name = target.file_name().unwrap_or_default().to_string_lossy();
        let digest = match name.len() {
            64 => Digest::Sha256(name.into_owned()),
            40 => Digest::GitBlob(name.into_owned()),
            // A copy of a file, where links are not to be had: no hash is known.
            _ => return Ok(()),
        };
        let size_bytes = fs::metadata(&target).map_err(io(&target))?.len();
        let remote = RemoteFile {
            path: file.to_owned(),
            size_bytes,
            digest,
        };
        let mut hasher = Hasher::new(&remote);
        hasher.read(&target)?;
        hasher.check(&remote)
    }

    /// Held while a blob is fetched; other processes wait.
    pub(crate) fn lock(&self, digest: &Digest) -> Result<File, HubError> {
        fs::create_dir_all(&self.locks).map_err(io(&self.locks))?;
        let path = self.locks.join(format!("{}.lock", digest.hex()));
        let file = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .open(&path)
            .map_err(io(&path))?;
        file.lock().map_err(io(&path))?;
        Ok(file)
    }

    /// Makes the folders that a download goes to.
    pub(crate) fn prepare(&self) -> Result<(), HubError> {
        let blobs = self.root.join("blobs");
        fs::create_dir_all(&blobs).map_err(io(&blobs))
    }

    /// Puts a checked file in its place.
    pub(crate) fn keep(&self, digest: &Digest) -> Result<(), HubError> {
        let (partial, blob) = (self.partial(digest), self.blob(digest));
        File::open(&partial)
            .and_then(|file| file.sync_all())
            .map_err(io(&partial))?;
        fs::rename(&partial, &blob).map_err(io(&blob))
    }

    /// Makes `file` of a snapshot lead to its blob.
    pub(crate) fn link(&self, commit: &str, file: &RemoteFile) -> Result<(), HubError> {
        let path = self.snapshot(commit).join(&file.path);
        let dir = path.parent().unwrap_or(&self.root);
        fs::create_dir_all(dir).map_err(io(dir))?;
        let up = "../".repeat(2 + file.path.matches('/').count());
        let target = PathBuf::from(format!("{up}blobs/{}", file.digest.hex()));
        match fs::read_link(&path) {
            Ok(found) if found == target => return Ok(()),
            Ok(_) => fs::remove_file(&path).map_err(io(&path))?,
            // A plain file: a copy made where links are not to be had.
            Err(error) if error.kind() == ErrorKind::InvalidInput => {
                fs::remove_file(&path).map_err(io(&path))?;
            }
            Err(_) => {}
        }
        self.place(&target, &file.digest, &path)
    }

    #[cfg(unix)]
    fn place(&self, target: &Path, digest: &Digest, path: &Path) -> Result<(), HubError> {
        match std::os::unix::fs::symlink(target, path) {
            Ok(()) => Ok(()),
            // Another process was faster.
            Err(error) if error.kind() == ErrorKind::AlreadyExists => Ok(()),
            // A file system without links.
            Err(_) => self.copy(digest, path),
        }
    }

    #[cfg(not(unix))]
    fn place(&self, _target: &Path, digest: &Digest, path: &Path) -> Result<(), HubError> {
        self.copy(digest, path)
    }

    fn copy(&self, digest: &Digest, path: &Path) -> Result<(), HubError> {
        fs::copy(self.blob(digest), path)
            .map(drop)
            .map_err(io(path))
    }
}

/// A file that is added to.
pub(crate) struct Partial {
    file: File,
    path: PathBuf,
}

impl Partial {
    /// Opens what is there so far, cut to `size_bytes`.
    pub(crate) fn open(path: PathBuf, size_bytes: u64) -> Result<Self, HubError> {
        let file = OpenOptions::new()
            .create(true)
            .truncate(false)
            .append(true)
            .open(&path)
            .map_err(io(&path))?;
        if file.metadata().map_err(io(&path))?.len() != size_bytes {
            file.set_len(size_bytes).map_err(io(&path))?;
        }
        Ok(Self { file, path })
    }

    pub(crate) fn write(&mut self, bytes: &[u8]) -> Result<(), HubError> {
        self.file.write_all(bytes).map_err(io(&self.path))
    }
}
