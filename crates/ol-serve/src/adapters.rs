//! The adapter store: thousands of adapters by name, a few of them in memory.
//!
//! A name stands for one immutable version, known by the hash of its content
//! ([`ol_model::Lora::hash`]). [`AdapterStore::resolve`] fixes the version that a
//! request will use; it never loads. The engine then asks for a lease
//! ([`AdapterRef::poll_lease`]), which keeps the adapter in memory until it is
//! dropped. Replacing or unloading a name changes what is resolved from then on
//! and nothing else: who resolved the old version is served by it, and it is
//! dropped when nobody is left.
//!
//! # Tiers
//! Source (a directory, an object store, the registry) → the store's own folder,
//! content-addressed → host memory → device, each but the first within a budget.
//! Loading happens on a few threads of the store, one load a version at a time;
//! a lease and a pinned name keep a version where it is. The rules of eviction
//! and why nothing waits for ever are in `table.rs`.
//!
//! # Trust
//! Nothing a source holds is trusted. A file is checked as a whole when it is
//! registered; when it is read again it must be the same adapter, or the load is
//! refused: a name never answers with something that was not registered under
//! it.

use std::any::Any;
use std::collections::BTreeMap;
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;

use object_store::ObjectStore;
use ol_model::{Lora, MAX_RANK, ModelConfig, Projection};
use ol_runtime::Clock;
use ol_types::B256;

use self::disk::Disk;
pub use self::error::{AdapterError, MAX_ADAPTER_NAME_BYTES, MAX_WEIGHTED_PARTS};
pub use self::lease::{AdapterLease, AdapterRef};
pub use self::loader::{AdapterLoad, AdapterLoader};
pub use self::source::{AdapterFiles, AdapterSource, ObjectsSource};
use self::source::{LocalPath, StorePath};
pub use self::table::LOAD_SECONDS;
use self::table::{After, DEVICE, HOST, Job, Loaded, N_TIERS, Table};
use self::version::{Origin, Reader, Version};

mod disk;
mod error;
mod lease;
mod loader;
mod source;
mod sum;
mod table;
#[cfg(test)]
mod tests;
mod version;

/// Bounds of an [`AdapterStore`], and where it may read.
#[derive(Debug, Clone)]
pub struct AdapterStoreOptions {
    /// Most names. Default 16,384.
    pub n_names_max: usize,
    /// Largest rank of an adapter. Default [`MAX_RANK`].
    pub rank_max: usize,
    /// Longest file of weights. Default 256 MiB. While a file is read, it is in
    /// memory beside the budget: at most one for each loading thread.
    pub file_size_bytes_max: u64,
    /// Modules that may be adapted; `None`: all of the model's.
    pub target_modules: Option<Vec<Projection>>,
    /// Memory for adapters. Default 1 GiB.
    pub host_budget_bytes: u64,
    /// The same on the device, if there is one. Default 1 GiB.
    pub device_budget_bytes: u64,
    /// The store's own folder; `None`: what is not in memory is read from its
    /// source every time.
    pub dir: Option<PathBuf>,
    /// Most bytes in the folder. Default 16 GiB.
    pub disk_budget_bytes: u64,
    /// Folders below which adapters may be registered.
    pub roots: Vec<PathBuf>,
    /// Threads that load, and registrations at a time. Default 2.
    pub n_loaders: usize,
    /// How long a failure to load answers everybody who asks, in seconds.
    /// Default 5.
    pub failure_memory_s: f64,
}

impl Default for AdapterStoreOptions {
    fn default() -> Self {
        Self {
            n_names_max: 16_384,
            rank_max: MAX_RANK,
            file_size_bytes_max: 256 << 20,
            target_modules: None,
            host_budget_bytes: 1 << 30,
            device_budget_bytes: 1 << 30,
            dir: None,
            disk_budget_bytes: 16 << 30,
            roots: Vec::new(),
            n_loaders: 2,
            failure_memory_s: 5.0,
        }
    }
}

/// Memory of a device that keeps copies of adapters.
pub trait AdapterDevice: Send + Sync {
    /// Bytes a copy of `lora` takes there.
    fn size_bytes(&self, lora: &Lora) -> u64;

    /// Makes a copy, which is freed by dropping it. Blocks.
    ///
    /// # Errors
    /// What the device said.
    fn upload(&self, lora: &Lora) -> Result<Arc<dyn Any + Send + Sync>, String>;
}

/// What a store is made of beside its options.
#[derive(Clone)]
pub struct AdapterComponents {
    /// For the memory of failures and the times of loads.
    pub clock: Arc<dyn Clock>,
    /// Object stores by the URL under which their contents are asked for, as in
    /// `s3://bucket/adapters/`.
    pub stores: BTreeMap<String, Arc<dyn ObjectStore>>,
    /// The device, if the model runs on one.
    pub device: Option<Arc<dyn AdapterDevice>>,
}

impl AdapterComponents {
    /// No object stores and no device.
    #[must_use]
    pub fn new(clock: Arc<dyn Clock>) -> Self {
        Self {
            clock,
            stores: BTreeMap::new(),
            device: None,
        }
    }
}

impl fmt::Debug for AdapterComponents {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AdapterComponents")
            .field("stores", &self.stores.keys())
            .field("has_device", &self.device.is_some())
            .finish_non_exhaustive()
    }
}

/// How a name is registered.
#[derive(Debug, Clone, Copy, Default)]
pub struct RegisterOptions {
    /// Keep it in memory once it is there.
    pub is_pinned: bool,
    /// Replace what the name stands for.
    pub may_replace: bool,
}

/// What is known of a registered adapter.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AdapterInfo {
    /// Its name.
    pub name: String,
    /// Hash of its content.
    pub hash: B256,
    /// Largest rank of its factors.
    pub rank_max: usize,
    /// Where it came from; `None`: it was given in memory.
    pub location: Option<String>,
    /// Whether the name keeps it in memory.
    pub is_pinned: bool,
    /// Whether the host's memory holds it now.
    pub is_resident: bool,
}

/// A tier of memory.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct TierStats {
    /// Versions there.
    pub n_versions: usize,
    /// Bytes they take, with loads under way.
    pub used_bytes: u64,
    /// Most bytes.
    pub budget_bytes: u64,
    /// Versions evicted since the start.
    pub n_evictions: u64,
}

/// What a store holds, and what happened since its start.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct AdapterStats {
    /// Names.
    pub n_names: usize,
    /// Versions that something refers to.
    pub n_versions: usize,
    /// Requests that wait for a version.
    pub n_waiting: usize,
    /// Host memory.
    pub host: TierStats,
    /// Memory of the device; all zero without one.
    pub device: TierStats,
    /// The store's folder; all zero without one.
    pub disk: TierStats,
    /// Versions that could not be written to the folder.
    pub n_disk_failures: u64,
    /// Leases given at the first asking.
    pub n_hits: u64,
    /// Leases that had to wait.
    pub n_misses: u64,
    /// Loads that ended well.
    pub n_loads: u64,
    /// Loads that failed.
    pub n_load_failures: u64,
    /// Bytes of files loaded.
    pub loaded_bytes: u64,
    /// Seconds spent loading.
    pub load_s_sum: f64,
    /// Loads by the time they took: up to each of [`LOAD_SECONDS`], and longer.
    pub loads_by_s: [u64; LOAD_SECONDS.len() + 1],
}

/// Adapters by name, and the memory they share. Clones are the same store;
/// dropping the last one closes it.
#[derive(Clone)]
pub struct AdapterStore {
    shared: Arc<Shared>,
    _close: Arc<CloseOnDrop>,
}

struct Shared {
    reader: Reader,
    roots: Arc<[PathBuf]>,
    components: AdapterComponents,
    state: Mutex<State>,
    /// Signalled when there may be something to load, and at the end.
    work: Condvar,
}

#[derive(Default)]
struct State {
    table: Table,
    n_registering: usize,
}

impl Shared {
    /// Changes the table; then wakes and drops what that left, without the lock.
    fn change<T>(&self, change: impl FnOnce(&mut State, &mut After) -> T) -> T {
        let mut after = After::default();
        let mut state = self.lock();
        let result = change(&mut state, &mut after);
        let is_wanted = state.table.n_waiting() > 0;
        drop(state);
        if is_wanted {
            self.work.notify_one();
        }
        after.finish();
        result
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Nothing under the lock panics but for a defect in the table.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Bytes `lora` takes in each tier.
    fn size_bytes(&self, lora: &Lora) -> [u64; N_TIERS] {
        let device = self.components.device.as_ref();
        [
            lora.resident_size_bytes() as u64,
            device.map_or(0, |device| device.size_bytes(lora)),
        ]
    }

    /// Loads what is asked for until the store is closed.
    fn run_loader(&self) {
        while let Some(job) = self.wait_for_job() {
            self.run_job(&job);
        }
    }

    fn run_job(&self, job: &Job) {
        let started_s = self.components.clock.monotonic_s();
        // Sources are passed in, and a loader that is gone would be missed.
        let outcome =
            catch_unwind(AssertUnwindSafe(|| self.load(job))).unwrap_or(Err(AdapterError::Defect));
        let now_s = self.components.clock.monotonic_s();
        if let Err(error) = &outcome {
            tracing::warn!(hash = %job.version.hash, %error, "an adapter could not be loaded");
        }
        let retry_at_s = now_s + self.reader.options.failure_memory_s;
        self.change(|state, after| {
            let took_s = now_s - started_s;
            state.table.finish(job, outcome, took_s, retry_at_s, after);
        });
    }

    fn wait_for_job(&self) -> Option<Job> {
        let mut after = After::default();
        let mut state = self.lock();
        let job = loop {
            if state.table.is_closed {
                break None;
            }
            // It evicts only for a job that it gives.
            if let Some(job) = state.table.next_job(&mut after) {
                break Some(job);
            }
            state = self
                .work
                .wait(state)
                .unwrap_or_else(PoisonError::into_inner);
        };
        drop(state);
        after.finish();
        job
    }

    fn load(&self, job: &Job) -> Result<(Loaded, [u64; N_TIERS]), AdapterError> {
        let resident = |hash| self.lock().table.lora(hash);
        let lora = match &job.lora {
            Some(lora) => Arc::clone(lora),
            None => self.reader.load(&job.version, &resident)?,
        };
        let device = match &self.components.device {
            Some(device) if job.needs_device => Some(self.upload(device.as_ref(), &lora)?),
            _ => None,
        };
        let size_bytes = self.size_bytes(&lora);
        Ok((Loaded { lora, device }, size_bytes))
    }

    fn upload(
        &self,
        device: &dyn AdapterDevice,
        lora: &Lora,
    ) -> Result<Arc<dyn Any + Send + Sync>, AdapterError> {
        device
            .upload(lora)
            .map_err(|reason| AdapterError::Unreadable {
                location: "device".to_owned(),
                reason,
            })
    }

    fn close(&self) {
        self.change(|state, after| state.table.close(after));
        self.work.notify_all();
    }
}

struct CloseOnDrop(Arc<Shared>);

impl Drop for CloseOnDrop {
    fn drop(&mut self) {
        self.0.close();
    }
}

impl fmt::Debug for AdapterStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AdapterStore")
            .field("stats", &self.stats())
            .finish_non_exhaustive()
    }
}

impl AdapterStore {
    /// A store of adapters for models shaped like `model`, without names yet,
    /// and its loading threads.
    ///
    /// # Errors
    /// [`AdapterError::Start`] if a root is missing, the folder is in use or
    /// cannot be made, or no thread is to be had.
    pub fn open(
        model: &ModelConfig,
        options: AdapterStoreOptions,
        components: AdapterComponents,
    ) -> Result<Self, AdapterError> {
        let n_loaders = options.n_loaders.max(1);
        // Made first: it ends the threads that did start.
        let (store, AdapterLoader { shared }) = Self::without_threads(model, options, components)?;
        for _ in 0..n_loaders {
            let shared = Arc::clone(&shared);
            // Not joined: it may be in a slow source when the store is closed.
            thread::Builder::new()
                .name("ol-adapters".to_owned())
                .spawn(move || shared.run_loader())
                .map_err(|error| AdapterError::Start {
                    path: PathBuf::new(),
                    reason: error.to_string(),
                })?;
        }
        Ok(store)
    }

    /// A store that loads only what its [`AdapterLoader`] is told to: for tests and
    /// simulations, beside [`EngineHandle::without_thread`](crate::EngineHandle::without_thread).
    ///
    /// # Errors
    /// [`AdapterError::Start`] if a root is missing, or the folder is in use or
    /// cannot be made.
    pub fn without_threads(
        model: &ModelConfig,
        options: AdapterStoreOptions,
        components: AdapterComponents,
    ) -> Result<(Self, AdapterLoader), AdapterError> {
        let canonical = |root: &PathBuf| {
            root.canonicalize().map_err(|error| AdapterError::Start {
                path: root.clone(),
                reason: error.to_string(),
            })
        };
        let roots: Vec<PathBuf> = options
            .roots
            .iter()
            .map(canonical)
            .collect::<Result<_, _>>()?;
        let open = |dir| Disk::open(dir, options.disk_budget_bytes);
        let disk = options.dir.as_deref().map(open).transpose()?;
        let mut state = State::default();
        state.table.has_device = components.device.is_some();
        state.table.tiers[HOST].budget_bytes = options.host_budget_bytes;
        state.table.tiers[DEVICE].budget_bytes = options.device_budget_bytes;
        let shared = Arc::new(Shared {
            reader: Reader {
                model: model.clone(),
                options,
                disk,
            },
            roots: roots.into(),
            components,
            state: Mutex::new(state),
            work: Condvar::new(),
        });
        let store = Self {
            shared: Arc::clone(&shared),
            _close: Arc::new(CloseOnDrop(Arc::clone(&shared))),
        };
        Ok((store, AdapterLoader { shared }))
    }

    /// Registers the adapter at `location` under a name: a PEFT directory or a
    /// GGUF file below a root, absolute or relative to it, or the URL of one below
    /// one of the object stores (a GGUF file's ends in `.gguf`).
    /// Reads and checks all of it on this thread, and leaves it in memory if
    /// there is room.
    ///
    /// # Errors
    /// [`AdapterError`]; the name then stands for what it stood for before.
    pub fn register(
        &self,
        name: &str,
        location: &str,
        options: RegisterOptions,
    ) -> Result<AdapterRef, AdapterError> {
        self.register_from(name, self.locate(location)?, options)
    }

    fn locate(&self, location: &str) -> Result<Arc<dyn AdapterSource>, AdapterError> {
        let stores = self.shared.components.stores.iter();
        let found = stores.into_iter().find_map(|(prefix, store)| {
            // A prefix ends where a part of the path does.
            let rest = location.strip_prefix(prefix.trim_end_matches('/'))?;
            let path = rest.strip_prefix('/')?.trim_end_matches('/');
            let path = object_store::path::Path::parse(path).ok()?;
            Some((path, Arc::clone(store)))
        });
        Ok(match found {
            Some((path, store)) => Arc::new(StorePath {
                store,
                path,
                url: location.trim_end_matches('/').to_owned(),
            }),
            None => Arc::new(LocalPath::locate(location, &self.shared.roots)?),
        })
    }

    /// As [`Self::register`], from any source.
    ///
    /// # Errors
    /// As [`Self::register`].
    pub fn register_from(
        &self,
        name: &str,
        source: Arc<dyn AdapterSource>,
        options: RegisterOptions,
    ) -> Result<AdapterRef, AdapterError> {
        check_name(name)?;
        let shared = &self.shared;
        let _turn = Turn::take(shared)?;
        // Before it is read, and again after: others register meanwhile.
        self.check_free(&shared.lock().table, name, options)?;
        let (lora, files) = shared.reader.fetch(source.as_ref())?;
        let size_bytes = shared.size_bytes(&lora);
        let file_size_bytes = files.size_bytes();
        let version = Version::of(&lora, size_bytes, file_size_bytes, Origin::Source(source));
        if let Some(disk) = &shared.reader.disk {
            disk.put(version.hash, &files);
        }
        drop(files);
        self.set_name(name, Arc::new(version), Arc::new(lora), options)
    }

    /// Puts an adapter that is in memory under a name, instead of what was there.
    /// It stays in memory, within the budget.
    ///
    /// # Errors
    /// [`AdapterError::Misfit`], [`AdapterError::Name`],
    /// [`AdapterError::TooMany`], [`AdapterError::TooLarge`],
    /// [`AdapterError::Overloaded`].
    pub fn insert(&self, name: &str, lora: Arc<Lora>) -> Result<AdapterRef, AdapterError> {
        if !lora.fits(&self.shared.reader.model) {
            return Err(AdapterError::Misfit);
        }
        check_name(name)?;
        let size_bytes = self.shared.size_bytes(&lora);
        let version = Version::of(&lora, size_bytes, 0, Origin::Memory);
        let options = RegisterOptions {
            is_pinned: true,
            may_replace: true,
        };
        self.set_name(name, Arc::new(version), lora, options)
    }

    fn check_free(
        &self,
        table: &Table,
        name: &str,
        options: RegisterOptions,
    ) -> Result<(), AdapterError> {
        let n_max = self.shared.reader.options.n_names_max;
        if table.is_closed {
            return Err(AdapterError::Closed);
        }
        if table.names.contains_key(name) {
            if !options.may_replace {
                return Err(AdapterError::Taken { name: name.into() });
            }
        } else if table.names.len() >= n_max {
            return Err(AdapterError::TooMany { n_max });
        }
        Ok(())
    }

    fn set_name(
        &self,
        name: &str,
        version: Arc<Version>,
        lora: Arc<Lora>,
        options: RegisterOptions,
    ) -> Result<AdapterRef, AdapterError> {
        let shared = &self.shared;
        let budgets = [
            shared.reader.options.host_budget_bytes,
            shared.reader.options.device_budget_bytes,
        ];
        for (tier, limit_bytes) in budgets.into_iter().enumerate() {
            let size_bytes = version.size_bytes[tier];
            if size_bytes > limit_bytes {
                return Err(AdapterError::TooLarge {
                    what: "in memory",
                    size_bytes,
                    limit_bytes,
                });
            }
        }
        shared.change(|state, after| {
            let table = &mut state.table;
            self.check_free(table, name, options)?;
            let name: Arc<str> = name.into();
            let overloaded = AdapterError::Overloaded {
                size_bytes: version.size_bytes[HOST],
            };
            let replaced = table.names.get(&name);
            let replaced = replaced.filter(|old| old.is_pinned).map(|old| old.hash);
            if options.is_pinned && !table.can_pin(&version, replaced) {
                return Err(overloaded);
            }
            // The reference first: what nothing refers to is dropped.
            table.add_ref(&version);
            let reference = AdapterRef::stored(shared, &version);
            // On a device it is when it is used first.
            if version.is_in_memory_only() || table.has_free(&version) {
                let loaded = Loaded { lora, device: None };
                let is_placed = table.place(&version, loaded, after);
                if !is_placed && version.is_in_memory_only() {
                    after.garbage.push(table::Garbage::Ref(reference));
                    return Err(overloaded);
                }
            }
            table.set_name(&name, &version, options.is_pinned, after);
            Ok(reference)
        })
    }

    /// The version that `name` stands for now. Loads nothing.
    ///
    /// # Errors
    /// [`AdapterError::Unknown`].
    pub fn resolve(&self, name: &str) -> Result<AdapterRef, AdapterError> {
        self.shared.change(|state, _| {
            let version = find(&state.table, name)?;
            state.table.add_ref(&version);
            Ok(AdapterRef::stored(&self.shared, &version))
        })
    }

    /// The sum of adapters, each times its weight, as one version: its output is
    /// the weighted sum of theirs. Loads nothing; it is made when it is used, and
    /// kept while there is room.
    ///
    /// # Errors
    /// [`AdapterError::Unknown`]; [`AdapterError::Merge`] for DoRA adapters, more
    /// than [`MAX_WEIGHTED_PARTS`], ranks that add up to more than [`MAX_RANK`], or
    /// a weight that is not a number from -100 to 100.
    pub fn resolve_weighted(&self, parts: &[(&str, f32)]) -> Result<AdapterRef, AdapterError> {
        let found: Vec<(Arc<Version>, f32)> = {
            let state = self.shared.lock();
            let parts = parts.iter().take(MAX_WEIGHTED_PARTS + 1);
            parts
                .map(|(name, weight)| Ok((find(&state.table, name)?, *weight)))
                .collect::<Result<_, AdapterError>>()?
        };
        let version = sum::sum_of(found)?;
        self.shared.change(|state, _| state.table.add_ref(&version));
        Ok(AdapterRef::stored(&self.shared, &version))
    }

    /// Takes a name away; requests that resolved it before are not touched.
    ///
    /// # Errors
    /// [`AdapterError::Unknown`].
    pub fn unload(&self, name: &str) -> Result<(), AdapterError> {
        let was_there = self
            .shared
            .change(|state, after| state.table.drop_name(name, after));
        if was_there {
            return Ok(());
        }
        Err(AdapterError::Unknown { name: name.into() })
    }

    /// All names, ascending.
    #[must_use]
    pub fn names(&self) -> Vec<String> {
        let state = self.shared.lock();
        state.table.names.keys().map(ToString::to_string).collect()
    }

    /// All that is registered, by name.
    #[must_use]
    pub fn list(&self) -> Vec<AdapterInfo> {
        let state = self.shared.lock();
        let table = &state.table;
        let info = |(name, entry): (&Arc<str>, &table::Name)| {
            let version = &table.slots.get(&entry.hash)?.version;
            Some(AdapterInfo {
                name: name.to_string(),
                hash: entry.hash,
                rank_max: version.rank_max,
                location: match &version.origin {
                    Origin::Source(source) => Some(source.to_string()),
                    Origin::Memory | Origin::Sum(_) => None,
                },
                is_pinned: entry.is_pinned,
                is_resident: table.lora(entry.hash).is_some(),
            })
        };
        table.names.iter().filter_map(info).collect()
    }

    /// What the store holds and did.
    #[must_use]
    pub fn stats(&self) -> AdapterStats {
        let (mut disk, mut n_disk_failures) = (TierStats::default(), 0);
        if let Some(folder) = &self.shared.reader.disk {
            let stats = folder.stats();
            n_disk_failures = stats.n_failures;
            disk = TierStats {
                n_versions: stats.n_versions,
                used_bytes: stats.used_bytes,
                budget_bytes: self.shared.reader.options.disk_budget_bytes,
                n_evictions: stats.n_evictions,
            };
        }
        let state = self.shared.lock();
        let table = &state.table;
        let tier = |tier: usize| TierStats {
            n_versions: table.tiers[tier].n_resident,
            used_bytes: table.tiers[tier].used_bytes,
            budget_bytes: table.tiers[tier].budget_bytes,
            n_evictions: table.tiers[tier].n_evictions,
        };
        let counts = &table.counts;
        AdapterStats {
            n_names: table.names.len(),
            n_versions: table.slots.len(),
            n_waiting: table.n_waiting(),
            host: tier(HOST),
            device: if table.has_device {
                tier(DEVICE)
            } else {
                TierStats::default()
            },
            disk,
            n_disk_failures,
            n_hits: counts.n_hits,
            n_misses: counts.n_misses,
            n_loads: counts.n_loads,
            n_load_failures: counts.n_failures,
            loaded_bytes: counts.loaded_bytes,
            load_s_sum: counts.load_s_sum,
            loads_by_s: counts.loads_by_s,
        }
    }
}

fn find(table: &Table, name: &str) -> Result<Arc<Version>, AdapterError> {
    let entry = table.names.get(name);
    let slot = entry.and_then(|entry| table.slots.get(&entry.hash));
    match slot {
        Some(slot) => Ok(Arc::clone(&slot.version)),
        None => Err(AdapterError::Unknown {
            name: name.chars().take(MAX_ADAPTER_NAME_BYTES).collect(),
        }),
    }
}

fn check_name(name: &str) -> Result<(), AdapterError> {
    if (1..=MAX_ADAPTER_NAME_BYTES).contains(&name.len()) && !name.contains(char::is_control) {
        return Ok(());
    }
    Err(AdapterError::Name)
}

/// Leave to register: as many at a time as there are loading threads, so that
/// what is in memory beside the budget stays bounded.
struct Turn<'a>(&'a Shared);

impl<'a> Turn<'a> {
    fn take(shared: &'a Shared) -> Result<Self, AdapterError> {
        let mut state = shared.lock();
        if state.n_registering >= shared.reader.options.n_loaders.max(1) {
            return Err(AdapterError::Busy);
        }
        state.n_registering += 1;
        Ok(Self(shared))
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        self.0.lock().n_registering -= 1;
    }
}
