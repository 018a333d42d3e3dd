//! The folder that holds everything a node keeps, and the lock on it.

use std::fs::{self, File, TryLockError};
use std::io::{self, Read as _, Write as _};
use std::path::{Path, PathBuf};

use crate::{HeadsError, LocalHeads, Objects, ObjectsError};

/// What the file `format` holds, in this version.
const FORMAT: &str = "openledger-data 1\n";

/// Most bytes of a `format` file that are looked at.
const FORMAT_MAX_SIZE_BYTES: u64 = 64;

/// The file that says which format a data folder has.
const FORMAT_FILE: &str = "format";

/// The file that a running node holds locked.
const LOCK_FILE: &str = "lock";

/// Begins the name of a `format` file that is not finished.
const TEMPORARY_PREFIX: &str = ".format.";

/// A folder whose format is known to be ours.
#[derive(Debug, Clone)]
pub struct DataDir {
    dir: PathBuf,
}

/// Why a folder cannot hold our data.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DataDirError {
    /// The folder has other people's files in it.
    #[error("{} is not an OpenLedger data folder, and not empty: it has {found:?}", dir.display())]
    Foreign {
        /// The folder.
        dir: PathBuf,
        /// One of the files in it.
        found: String,
    },
    /// The data was written by a version that this one does not know.
    #[error("{} has the data format {found:?}, this version reads {:?}", dir.display(), FORMAT.trim())]
    Version {
        /// The folder.
        dir: PathBuf,
        /// What its `format` file holds.
        found: String,
    },
    /// The folder cannot be made, read or written.
    #[error("could not use the data folder {}", dir.display())]
    Io {
        /// The folder.
        dir: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}

impl DataDir {
    /// Opens `dir`; makes it, and its `format` file, if it is missing or empty.
    ///
    /// # Errors
    /// [`DataDirError::Foreign`] for a folder that holds something else,
    /// [`DataDirError::Version`] for data of another version, and
    /// [`DataDirError::Io`] if it cannot be read or written.
    pub fn open_or_create(dir: &Path) -> Result<Self, DataDirError> {
        let io_error = |source| DataDirError::Io {
            dir: dir.to_owned(),
            source,
        };
        create_dir_durably(dir).map_err(io_error)?;
        if let Some(found) = read_format(dir).map_err(io_error)? {
            if found != FORMAT.as_bytes() {
                let found = String::from_utf8_lossy(&found).trim().to_owned();
                return Err(DataDirError::Version {
                    dir: dir.to_owned(),
                    found,
                });
            }
            check_writable(dir).map_err(io_error)?;
            return Ok(Self {
                dir: dir.to_owned(),
            });
        }
        if let Some(found) = foreign_entry(dir).map_err(io_error)? {
            return Err(DataDirError::Foreign {
                dir: dir.to_owned(),
                found,
            });
        }
        write_format(dir).map_err(io_error)?;
        Ok(Self {
            dir: dir.to_owned(),
        })
    }

    /// The folder.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.dir
    }

    /// The objects in it: `objects/ab/cdef…`.
    ///
    /// # Errors
    /// [`ObjectsError::Store`].
    pub fn objects(&self) -> Result<Objects, ObjectsError> {
        Objects::local(&self.dir.join("objects"))
    }

    /// The heads of one kind (`datanets`, `models`): `heads/KIND/NAME`.
    ///
    /// # Errors
    /// [`HeadsError::Name`] if `kind` is not a name; [`HeadsError::Io`].
    pub fn heads(&self, kind: &str) -> Result<LocalHeads, HeadsError> {
        if !crate::is_name(kind) {
            return Err(HeadsError::Name {
                name: kind.chars().take(80).collect(),
            });
        }
        LocalHeads::open(&self.dir.join("heads").join(kind))
    }
}

fn read_format(dir: &Path) -> io::Result<Option<Vec<u8>>> {
    let file = match File::open(dir.join(FORMAT_FILE)) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    let mut bytes = Vec::new();
    file.take(FORMAT_MAX_SIZE_BYTES).read_to_end(&mut bytes)?;
    Ok(Some(bytes))
}

/// A name in `dir` that we did not put there. A lock file and what a crash
/// left of a `format` file are ours; an empty folder holds nobody's data, and was
/// perhaps made for us, as a mount point or for the workers of a fleet.
fn foreign_entry(dir: &Path) -> io::Result<Option<String>> {
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        // `format` itself appears when another process opens the folder too.
        let is_ours = [LOCK_FILE, FORMAT_FILE].contains(&name.as_str());
        let is_empty = || {
            let is_dir = entry.file_type()?.is_dir();
            Ok::<_, io::Error>(is_dir && fs::read_dir(entry.path())?.next().is_none())
        };
        if !is_ours && !name.starts_with(TEMPORARY_PREFIX) && !is_empty()? {
            return Ok(Some(name));
        }
    }
    Ok(None)
}

fn write_format(dir: &Path) -> io::Result<()> {
    let temporary = temporary_file(dir);
    let mut file = File::create(&temporary)?;
    file.write_all(FORMAT.as_bytes())?;
    file.sync_all()?;
    drop(file);
    fs::rename(&temporary, dir.join(FORMAT_FILE))?;
    sync_dir(dir)
}

/// Fails now, with the folder's name, rather than at the first block.
fn check_writable(dir: &Path) -> io::Result<()> {
    let temporary = temporary_file(dir);
    File::create(&temporary)?;
    match fs::remove_file(&temporary) {
        // Another thread of this process checked at the same time.
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        result => result,
    }
}

fn temporary_file(dir: &Path) -> PathBuf {
    // Processes and threads must not share the file: one may rename it away
    // while the other still writes.
    let thread = format!("{:?}", std::thread::current().id());
    let thread: String = thread.chars().filter(char::is_ascii_digit).collect();
    dir.join(format!("{TEMPORARY_PREFIX}{}.{thread}", std::process::id()))
}

/// Makes `dir` and the folders above it, and fsyncs the parent of each new one.
pub(crate) fn create_dir_durably(dir: &Path) -> io::Result<()> {
    if dir.is_dir() {
        return Ok(());
    }
    let parent = match dir.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => {
            create_dir_durably(parent)?;
            parent
        }
        _ => Path::new("."),
    };
    match fs::create_dir(dir) {
        // Another process was faster; a file of that name is an error.
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists && dir.is_dir() => {}
        result => result?,
    }
    sync_dir(parent)
}

/// Makes renames in `dir` survive a power loss. Only Unix can fsync a folder.
pub(crate) fn sync_dir(dir: &Path) -> io::Result<()> {
    if cfg!(unix) {
        File::open(dir)?.sync_all()
    } else {
        Ok(())
    }
}

/// Holds a data folder for one process, until it is dropped or the process ends.
#[derive(Debug)]
pub struct DirLock {
    /// Closing the file releases the lock.
    _file: File,
}

/// Why a folder could not be locked.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LockError {
    /// Another process, or another part of this one, holds it.
    #[error("{} is in use by another OpenLedger process", dir.display())]
    InUse {
        /// The folder.
        dir: PathBuf,
    },
    /// The lock file cannot be made.
    #[error("could not lock {}", dir.display())]
    Io {
        /// The folder.
        dir: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}

impl DirLock {
    /// Locks `dir`, without waiting.
    ///
    /// # Errors
    /// [`LockError::InUse`] if somebody holds the lock; [`LockError::Io`].
    pub fn acquire(dir: &Path) -> Result<Self, LockError> {
        let io_error = |source| LockError::Io {
            dir: dir.to_owned(),
            source,
        };
        let path = dir.join(LOCK_FILE);
        let file = File::options()
            .create(true)
            .truncate(false)
            .write(true)
            .open(path);
        let file = file.map_err(io_error)?;
        match file.try_lock() {
            Ok(()) => Ok(Self { _file: file }),
            Err(TryLockError::WouldBlock) => Err(LockError::InUse {
                dir: dir.to_owned(),
            }),
            Err(TryLockError::Error(source)) => Err(io_error(source)),
        }
    }
}

#[cfg(test)]
mod tests;
