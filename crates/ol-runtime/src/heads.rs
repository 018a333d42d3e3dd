//! Heads: the only things that change. A name, and the id it points to.

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::fs::{self, File};
use std::io::{self, Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use ol_types::B256;

/// Most characters in the name of a head.
pub const HEAD_NAME_MAX: usize = 64;

/// Most heads that [`Heads::list`] gives.
const LIST_MAX: usize = 100_000;

/// A head's file: 64 hex digits and a line feed.
const HEAD_FILE_SIZE_BYTES: usize = 65;

/// Named pointers to objects, moved by compare-and-swap only.
///
/// All calls block the thread.
pub trait Heads: Send + Sync + Debug {
    /// Where `name` points, or `None` if it was never set.
    ///
    /// # Errors
    /// [`HeadsError`].
    fn get(&self, name: &str) -> Result<Option<B256>, HeadsError>;

    /// Points `name` to `new`, if it points to `expected` now (`None`: if it
    /// was never set). Safe against other threads and processes; durable once
    /// it has returned.
    ///
    /// # Errors
    /// [`HeadsError::Conflict`] if it points elsewhere: read again, and redo
    /// the work on top of that. After [`HeadsError::Io`] the head is either the
    /// old one or the new one.
    fn compare_and_swap(
        &self,
        name: &str,
        expected: Option<B256>,
        new: B256,
    ) -> Result<(), HeadsError>;

    /// All names, ascending.
    ///
    /// # Errors
    /// [`HeadsError`].
    fn list(&self) -> Result<Vec<String>, HeadsError>;
}

/// Why a head could not be read or moved.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum HeadsError {
    /// Not a name: a name has 1 to 64 characters of `a-z`, `0-9` and `-`.
    #[error("{name:?} is not a name: use 1 to {HEAD_NAME_MAX} of a-z, 0-9 and -")]
    Name {
        /// What was given, cut to 80 characters.
        name: String,
    },
    /// Somebody else moved the head first.
    #[error("{name} has moved: expected {}, found {}", or_none(*expected), or_none(*found))]
    Conflict {
        /// The head.
        name: String,
        /// Where the caller thought it pointed.
        expected: Option<B256>,
        /// Where it points.
        found: Option<B256>,
    },
    /// The head's file does not hold an id.
    #[error("head file {} is damaged", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
    },
    /// There are more heads than anybody should list.
    #[error("more than {LIST_MAX} heads in {}", dir.display())]
    TooMany {
        /// The folder.
        dir: PathBuf,
    },
    /// The disk failed, is full, or refuses.
    #[error("could not use {}", path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}

fn or_none(id: Option<B256>) -> String {
    id.map_or_else(|| "none".to_owned(), |id| id.to_string())
}

/// Whether `name` is 1 to 64 characters of `a-z`, `0-9` and `-`. Such a name is
/// safe as a file name on every system and in a URL.
#[must_use]
pub fn is_name(name: &str) -> bool {
    (1..=HEAD_NAME_MAX).contains(&name.len())
        && name
            .bytes()
            .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
}

fn check_name(name: &str) -> Result<(), HeadsError> {
    if is_name(name) {
        return Ok(());
    }
    Err(HeadsError::Name {
        name: name.chars().take(80).collect(),
    })
}

/// Heads in a local folder: one file each.
///
/// Writers hold an exclusive lock on the file `.lock`; a new value is written
/// beside the old one, fsynced, renamed over it, and the folder is fsynced.
/// Readers need no lock.
#[derive(Debug, Clone)]
pub struct LocalHeads {
    dir: PathBuf,
}

impl LocalHeads {
    /// Heads in `dir`, which is made if it is missing.
    ///
    /// # Errors
    /// [`HeadsError::Io`] if the folder cannot be made.
    pub fn open(dir: &Path) -> Result<Self, HeadsError> {
        crate::data_dir::create_dir_durably(dir).map_err(|source| HeadsError::Io {
            path: dir.to_owned(),
            source,
        })?;
        Ok(Self {
            dir: dir.to_owned(),
        })
    }

    fn read(&self, name: &str) -> Result<Option<B256>, HeadsError> {
        let path = self.dir.join(name);
        let file = match File::open(&path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(source) => return Err(HeadsError::Io { path, source }),
        };
        let mut bytes = Vec::with_capacity(HEAD_FILE_SIZE_BYTES + 1);
        let limit = HEAD_FILE_SIZE_BYTES as u64 + 1;
        if let Err(source) = file.take(limit).read_to_end(&mut bytes) {
            return Err(HeadsError::Io { path, source });
        }
        decode(&bytes).map(Some).ok_or(HeadsError::Damaged { path })
    }

    fn write(&self, name: &str, id: B256) -> io::Result<()> {
        // Only the holder of the lock writes, so one temporary name per head
        // is enough, and what a crash left there is overwritten.
        let temporary = self.dir.join(format!(".{name}.new"));
        let mut file = File::create(&temporary)?;
        file.write_all(format!("{}\n", hex(id)).as_bytes())?;
        file.sync_all()?;
        drop(file);
        fs::rename(&temporary, self.dir.join(name))?;
        crate::data_dir::sync_dir(&self.dir)
    }
}

fn hex(id: B256) -> String {
    format!("{id:x}").trim_start_matches("0x").to_owned()
}

fn decode(bytes: &[u8]) -> Option<B256> {
    let text = std::str::from_utf8(bytes).ok()?.strip_suffix('\n')?;
    let id: B256 = text.parse().ok()?;
    // Only what `write` writes: no prefix, no upper case.
    (hex(id) == text).then_some(id)
}

impl Heads for LocalHeads {
    fn get(&self, name: &str) -> Result<Option<B256>, HeadsError> {
        check_name(name)?;
        self.read(name)
    }

    fn compare_and_swap(
        &self,
        name: &str,
        expected: Option<B256>,
        new: B256,
    ) -> Result<(), HeadsError> {
        check_name(name)?;
        let lock_path = self.dir.join(".lock");
        // The lock goes when the file is closed, also if this process dies.
        let _lock = File::options()
            .create(true)
            .truncate(false)
            .write(true)
            .open(&lock_path)
            .and_then(|file| file.lock().map(|()| file))
            .map_err(|source| HeadsError::Io {
                path: lock_path,
                source,
            })?;
        let found = self.read(name)?;
        if found != expected {
            return Err(HeadsError::Conflict {
                name: name.to_owned(),
                expected,
                found,
            });
        }
        self.write(name, new).map_err(|source| HeadsError::Io {
            path: self.dir.join(name),
            source,
        })
    }

    fn list(&self) -> Result<Vec<String>, HeadsError> {
        let io_error = |source| HeadsError::Io {
            path: self.dir.clone(),
            source,
        };
        let mut names = Vec::new();
        for entry in fs::read_dir(&self.dir).map_err(io_error)? {
            let file_name = entry.map_err(io_error)?.file_name();
            // Names cannot begin with a dot, so the lock and temporary files
            // are left out here.
            let Some(name) = file_name.to_str().filter(|name| is_name(name)) else {
                continue;
            };
            if names.len() == LIST_MAX {
                return Err(HeadsError::TooMany {
                    dir: self.dir.clone(),
                });
            }
            names.push(name.to_owned());
        }
        names.sort_unstable();
        Ok(names)
    }
}

/// Heads that are gone with the process.
#[derive(Debug, Default)]
pub struct MemoryHeads {
    heads: Mutex<BTreeMap<String, B256>>,
}

impl MemoryHeads {
    fn lock(&self) -> std::sync::MutexGuard<'_, BTreeMap<String, B256>> {
        self.heads.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Heads for MemoryHeads {
    fn get(&self, name: &str) -> Result<Option<B256>, HeadsError> {
        check_name(name)?;
        Ok(self.lock().get(name).copied())
    }

    fn compare_and_swap(
        &self,
        name: &str,
        expected: Option<B256>,
        new: B256,
    ) -> Result<(), HeadsError> {
        check_name(name)?;
        let mut heads = self.lock();
        let found = heads.get(name).copied();
        if found != expected {
            return Err(HeadsError::Conflict {
                name: name.to_owned(),
                expected,
                found,
            });
        }
        heads.insert(name.to_owned(), new);
        Ok(())
    }

    fn list(&self) -> Result<Vec<String>, HeadsError> {
        Ok(self.lock().keys().cloned().collect())
    }
}

#[cfg(test)]
mod tests;
