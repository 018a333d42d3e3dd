//! The folder of the store: one directory for each version, named by its hash.
//!
//! A version is written when it was read from its source and its hash is known,
//! beside its place and then renamed, so that it is there whole or not at all.
//! It is only a cache: nothing is synced, and what a crash left is compared
//! with the source before it is used. A checksum from memory guards later
//! reads; it is a hundred times as fast as keccak256, and enough against
//! damage. Who may write in the folder is trusted like the program.

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use ol_runtime::DirLock;
use ol_types::B256;
use twox_hash::XxHash3_64;

use super::AdapterError;
use super::source::{
    AdapterFiles, CONFIG_FILE, GGUF_FILE, MAX_CONFIG_SIZE_BYTES, ReadError, WEIGHTS_FILE, read_file,
};

/// Versions on disk, within a budget; the least recently used goes first.
pub(super) struct Disk {
    dir: PathBuf,
    budget_bytes: u64,
    state: Mutex<State>,
    /// Two stores in one folder would evict each other's versions.
    _lock: DirLock,
}

/// What the folder holds, and what happened to it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct DiskStats {
    pub(super) n_versions: usize,
    pub(super) used_bytes: u64,
    pub(super) n_evictions: u64,
    pub(super) n_failures: u64,
}

#[derive(Default)]
struct State {
    entries: HashMap<B256, Entry>,
    /// Entries by when they were used last.
    by_use: BTreeMap<u64, B256>,
    next_use: u64,
    next_temporary: u64,
    stats: DiskStats,
}

struct Entry {
    size_bytes: u64,
    used: u64,
    /// Of the files; unknown for what an earlier process left.
    checksum: Option<u64>,
}

impl State {
    fn touch(&mut self, hash: B256) {
        let now = self.next_use;
        if let Some(entry) = self.entries.get_mut(&hash) {
            self.by_use.remove(&entry.used);
            entry.used = now;
            self.by_use.insert(now, hash);
            self.next_use += 1;
        }
    }

    fn insert(&mut self, hash: B256, size_bytes: u64, checksum: Option<u64>) {
        self.remove(hash);
        let used = self.next_use;
        self.next_use += 1;
        let entry = Entry {
            size_bytes,
            used,
            checksum,
        };
        self.entries.insert(hash, entry);
        self.by_use.insert(used, hash);
        self.stats.used_bytes += size_bytes;
        self.stats.n_versions += 1;
    }

    fn remove(&mut self, hash: B256) {
        if let Some(entry) = self.entries.remove(&hash) {
            self.by_use.remove(&entry.used);
            self.stats.used_bytes -= entry.size_bytes;
            self.stats.n_versions -= 1;
        }
    }
}

fn checksum(files: &AdapterFiles) -> u64 {
    let parts = files.by_name().into_iter();
    parts.fold(0, |sum, (_, bytes)| {
        XxHash3_64::oneshot_with_seed(sum, bytes)
    })
}

impl Disk {
    /// Opens a folder, which is made if it is missing, and takes over what an
    /// earlier process left in it.
    pub(super) fn open(dir: &Path, budget_bytes: u64) -> Result<Self, AdapterError> {
        let failed = |reason: String| AdapterError::Start {
            path: dir.to_owned(),
            reason,
        };
        fs::create_dir_all(dir).map_err(|error| failed(error.to_string()))?;
        let lock = DirLock::acquire(dir).map_err(|error| failed(error.to_string()))?;
        let mut state = State::default();
        let mut found = Vec::new();
        scan(dir, &mut found).map_err(|error| failed(error.to_string()))?;
        found.sort_unstable_by_key(|(_, _, changed)| *changed);
        for (hash, size_bytes, _) in found {
            state.insert(hash, size_bytes, None);
        }
        let disk = Self {
            dir: dir.to_owned(),
            budget_bytes,
            state: Mutex::new(state),
            _lock: lock,
        };
        disk.make_room(0);
        Ok(disk)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Every change is complete before anything can panic.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn stats(&self) -> DiskStats {
        self.lock().stats
    }

    fn place(&self, hash: B256) -> PathBuf {
        let hex = format!("{hash:x}");
        let hex = hex.trim_start_matches("0x");
        self.dir.join(&hex[..2]).join(&hex[2..])
    }

    /// The files of a version, if they are there and undamaged. What an earlier
    /// process left is not: its checksum is not known.
    pub(super) fn get(&self, hash: B256, max_size_bytes: u64) -> Option<AdapterFiles> {
        let expected = {
            let mut state = self.lock();
            let checksum = state.entries.get(&hash)?.checksum?;
            state.touch(hash);
            checksum
        };
        match self.read(hash, max_size_bytes) {
            Ok(files) if checksum(&files) == expected => Some(files),
            Ok(_) => {
                tracing::warn!(%hash, "a stored adapter was damaged; it is read from its source");
                self.forget(hash);
                None
            }
            // Evicted meanwhile, or taken away by somebody.
            Err(_) => {
                self.forget(hash);
                None
            }
        }
    }

    fn read(&self, hash: B256, max_size_bytes: u64) -> Result<AdapterFiles, ReadError> {
        let place = self.place(hash);
        let gguf = place.join(GGUF_FILE);
        if gguf.is_file() {
            return read_file(&gguf, max_size_bytes).map(AdapterFiles::Gguf);
        }
        Ok(AdapterFiles::Peft {
            config: read_file(&place.join(CONFIG_FILE), MAX_CONFIG_SIZE_BYTES)?,
            weights: read_file(&place.join(WEIGHTS_FILE), max_size_bytes)?,
        })
    }

    /// Drops a version whose files are not what they should be.
    fn forget(&self, hash: B256) {
        self.lock().remove(hash);
        self.delete(hash);
    }

    fn delete(&self, hash: B256) {
        // What cannot be deleted is found again at the next start.
        let _ = fs::remove_dir_all(self.place(hash));
    }

    /// Keeps the files of version `hash`. Failing to is no error to the caller:
    /// the source still has them.
    pub(super) fn put(&self, hash: B256, files: &AdapterFiles) {
        let size_bytes = files.size_bytes();
        if size_bytes > self.budget_bytes {
            return;
        }
        let sum = checksum(files);
        let old = self.lock().entries.get(&hash).map(|entry| entry.checksum);
        match old {
            Some(Some(_)) => return self.lock().touch(hash),
            // An earlier process may have been stopped half way.
            Some(None) => {
                if self.read(hash, size_bytes).is_ok_and(|left| left == *files) {
                    return self.lock().insert(hash, size_bytes, Some(sum));
                }
                self.forget(hash);
            }
            None => {}
        }
        self.make_room(size_bytes);
        match self.write(hash, files) {
            Ok(()) => self.lock().insert(hash, size_bytes, Some(sum)),
            Err(error) => {
                self.lock().stats.n_failures += 1;
                tracing::warn!(%hash, %error, "an adapter could not be kept on disk");
            }
        }
        // Several may have been written at once.
        self.make_room(0);
    }

    fn write(&self, hash: B256, files: &AdapterFiles) -> io::Result<()> {
        let temporary = {
            let mut state = self.lock();
            state.next_temporary += 1;
            self.dir.join(format!("{}.tmp", state.next_temporary))
        };
        let place = self.place(hash);
        let written = (|| {
            fs::create_dir_all(&temporary)?;
            for (name, bytes) in files.by_name() {
                fs::write(temporary.join(name), bytes)?;
            }
            if let Some(parent) = place.parent() {
                fs::create_dir_all(parent)?;
            }
            fs::rename(&temporary, &place)
        })();
        if written.is_err() {
            // Left there it would be found at the next start.
            let _ = fs::remove_dir_all(&temporary);
            // Another thread was faster with the same bytes.
            if self.lock().entries.contains_key(&hash) {
                return Ok(());
            }
        }
        written
    }

    /// Evicts until `size_bytes` more fit.
    fn make_room(&self, size_bytes: u64) {
        loop {
            let mut state = self.lock();
            if state.stats.used_bytes + size_bytes <= self.budget_bytes {
                return;
            }
            let Some((_, &hash)) = state.by_use.first_key_value() else {
                return;
            };
            state.remove(hash);
            state.stats.n_evictions += 1;
            drop(state);
            self.delete(hash);
        }
    }
}

/// Versions in a folder, with size and time of change; what is half written is
/// deleted.
fn scan(dir: &Path, found: &mut Vec<(B256, u64, Option<std::time::SystemTime>)>) -> io::Result<()> {
    for outer in fs::read_dir(dir)? {
        let outer = outer?;
        let first = outer.file_name().to_string_lossy().into_owned();
        if !outer.file_type()?.is_dir() {
            continue;
        }
        if first.ends_with(".tmp") {
            fs::remove_dir_all(outer.path())?;
            continue;
        }
        for inner in fs::read_dir(outer.path())? {
            let inner = inner?;
            let rest = inner.file_name().to_string_lossy().into_owned();
            // Whatever else is there is not ours.
            let Ok(hash) = format!("{first}{rest}").parse::<B256>() else {
                continue;
            };
            let mut size_bytes = 0;
            for name in [CONFIG_FILE, WEIGHTS_FILE, GGUF_FILE] {
                size_bytes += fs::metadata(inner.path().join(name)).map_or(0, |m| m.len());
            }
            let changed = inner.metadata()?.modified().ok();
            found.push((hash, size_bytes, changed));
        }
    }
    Ok(())
}
