//! What the store knows: names, versions, who wants them, and what memory holds.
//!
//! No threads, files or clock here; everything happens under the store's lock,
//! and what is to be dropped or woken is handed out to be so without it.
//!
//! # Memory
//! Each tier (host, device) has a budget in bytes. A load reserves its bytes
//! before it starts. Room is made by evicting versions that nobody uses, least
//! valuable first by GreedyDual-Size with frequency (Cherkasova, 1998): the
//! value is the tier's age plus uses per byte, and the age becomes the value of
//! what was evicted last, so that old fame fades. On Zipf traces with ranks 8
//! to 64 it loads a sixth fewer bytes than least-recently-used, with a third
//! fewer misses where a tenth fits (`tests::policy`).
//!
//! # Progress
//! Loads are served in the order in which they were first asked for. What was
//! loaded is kept for those who asked until they take it, except from an older
//! request: so the oldest waits for leases only, and leases are held by requests
//! that run. Younger loads do not overtake one that waits for room, or small
//! adapters could keep a large one out for ever; but what only memory holds goes
//! to its device at any time, for nothing else can free that memory.

use std::any::Any;
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::task::Waker;

use ol_model::Lora;
use ol_types::B256;

use super::version::Version;
use super::{AdapterError, AdapterRef};

/// Memory of the host, and of a device if there is one.
pub(super) const HOST: usize = 0;
pub(super) const DEVICE: usize = 1;
pub(super) const N_TIERS: usize = 2;

/// Upper ends of the buckets in which load times are counted.
pub const LOAD_SECONDS: [f64; 10] = [
    0.000_5, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 1.0, 10.0,
];

/// An adapter in memory.
#[derive(Clone)]
pub(super) struct Loaded {
    pub(super) lora: Arc<Lora>,
    /// Its copy on the device, if there is a device.
    pub(super) device: Option<Arc<dyn Any + Send + Sync>>,
}

pub(super) struct Slot {
    pub(super) version: Arc<Version>,
    lora: Option<Arc<Lora>>,
    device: Option<Arc<dyn Any + Send + Sync>>,
    /// Bytes in each tier: of what is there, or what it will take.
    size_bytes: [u64; N_TIERS],
    is_loading: bool,
    /// Names that stand for it, and those of them that pin it.
    n_names: usize,
    n_pins: usize,
    /// References and leases that exist.
    n_refs: usize,
    n_leases: usize,
    /// Who waits for it, oldest first.
    demands: BTreeMap<u64, Waker>,
    /// Uses so far.
    n_uses: u64,
    /// Where it is in the order of eviction, if it may be evicted.
    value: [Option<(u64, u64)>; N_TIERS],
    failed: Option<(AdapterError, f64)>,
}

impl Slot {
    fn holds(&self, tier: usize) -> bool {
        match tier {
            HOST => self.lora.is_some(),
            _ => self.device.is_some(),
        }
    }
}

pub(super) struct Name {
    pub(super) hash: B256,
    pub(super) is_pinned: bool,
}

#[derive(Default)]
pub(super) struct Tier {
    pub(super) budget_bytes: u64,
    /// Of versions that are there, and of loads under way.
    pub(super) used_bytes: u64,
    /// Of versions pinned by name, there or not.
    pinned_bytes: u64,
    pub(super) n_resident: usize,
    pub(super) n_evictions: u64,
    age: u64,
    /// What may be evicted, least valuable first.
    order: BTreeMap<(u64, u64), B256>,
}

/// What was counted since the start.
#[derive(Default)]
pub(super) struct Counts {
    pub(super) n_hits: u64,
    pub(super) n_misses: u64,
    pub(super) n_loads: u64,
    pub(super) n_failures: u64,
    pub(super) loaded_bytes: u64,
    pub(super) load_s_sum: f64,
    pub(super) loads_by_s: [u64; LOAD_SECONDS.len() + 1],
}

#[derive(Default)]
pub(super) struct Table {
    pub(super) names: BTreeMap<Arc<str>, Name>,
    pub(super) slots: HashMap<B256, Slot>,
    pub(super) tiers: [Tier; N_TIERS],
    pub(super) has_device: bool,
    /// Version wanted by each demand, oldest first.
    wanted: BTreeMap<u64, B256>,
    next_ticket: u64,
    next_use: u64,
    pub(super) counts: Counts,
    pub(super) is_closed: bool,
}

/// What a load has to do.
pub(super) struct Job {
    pub(super) version: Arc<Version>,
    /// What is in the host's memory already.
    pub(super) lora: Option<Arc<Lora>>,
    pub(super) needs_device: bool,
    /// Bytes set aside in each tier.
    reserved_bytes: [u64; N_TIERS],
}

/// What to do once the lock is released.
#[derive(Default)]
pub(super) struct After {
    pub(super) wake: Vec<Waker>,
    /// Dropped late: freeing megabytes takes time, and a source may be anything.
    pub(super) garbage: Vec<Garbage>,
}

#[expect(dead_code, reason = "held only to be dropped")]
pub(super) enum Garbage {
    Slot(Box<Slot>),
    Lora(Arc<Lora>),
    Device(Arc<dyn Any + Send + Sync>),
    Ref(AdapterRef),
}

impl After {
    /// Not under the lock.
    pub(super) fn finish(self) {
        self.wake.into_iter().for_each(Waker::wake);
        drop(self.garbage);
    }
}

/// What a request that asks for a lease gets.
pub(super) enum Answer {
    Leased(Loaded),
    Pending,
    Failed(AdapterError),
}

impl Table {
    fn n_tiers(&self) -> usize {
        if self.has_device { N_TIERS } else { 1 }
    }

    fn is_ready(&self, slot: &Slot) -> bool {
        (0..self.n_tiers()).all(|tier| slot.holds(tier))
    }

    /// The slot of a version, made if there is none.
    pub(super) fn slot(&mut self, version: &Arc<Version>) -> &mut Slot {
        self.slots.entry(version.hash).or_insert_with(|| Slot {
            version: Arc::clone(version),
            lora: None,
            device: None,
            size_bytes: version.size_bytes,
            is_loading: false,
            n_names: 0,
            n_pins: 0,
            n_refs: 0,
            n_leases: 0,
            demands: BTreeMap::new(),
            n_uses: 0,
            value: [None; N_TIERS],
            failed: None,
        })
    }

    /// The adapter itself, if the host's memory holds it.
    pub(super) fn lora(&self, hash: B256) -> Option<Arc<Lora>> {
        self.slots.get(&hash)?.lora.clone()
    }

    // References and leases.

    pub(super) fn add_ref(&mut self, version: &Arc<Version>) {
        self.slot(version).n_refs += 1;
    }

    /// A reference is gone, and its demand with it.
    pub(super) fn drop_ref(&mut self, hash: B256, ticket: u64, after: &mut After) {
        self.withdraw(hash, ticket);
        if let Some(slot) = self.slots.get_mut(&hash) {
            slot.n_refs -= 1;
        }
        self.settle(hash, after);
    }

    fn withdraw(&mut self, hash: B256, ticket: u64) {
        if self.wanted.remove(&ticket).is_some()
            && let Some(slot) = self.slots.get_mut(&hash)
        {
            slot.demands.remove(&ticket);
        }
    }

    /// A lease on a version, for the demand `ticket`; 0 asks for the first time.
    /// `now_s` decides whether an earlier failure still counts.
    pub(super) fn poll(
        &mut self,
        version: &Arc<Version>,
        ticket: &mut u64,
        waker: &Waker,
        now_s: f64,
    ) -> Answer {
        let hash = version.hash;
        let is_ready = self
            .slots
            .get(&hash)
            .is_some_and(|slot| self.is_ready(slot));
        let is_first = *ticket == 0;
        if is_ready {
            self.withdraw(hash, std::mem::take(ticket));
            self.counts.n_hits += u64::from(is_first);
            let slot = self.slot(version);
            slot.n_leases += 1;
            slot.n_uses += 1;
            let loaded = slot.lora.clone().map(|lora| Loaded {
                lora,
                device: slot.device.clone(),
            });
            self.revalue(hash);
            return match loaded {
                Some(loaded) => Answer::Leased(loaded),
                None => Answer::Failed(AdapterError::Defect),
            };
        }
        let failed = self
            .slots
            .get(&hash)
            .and_then(|slot| slot.failed.as_ref())
            .filter(|(_, until_s)| now_s < *until_s);
        let refused = match failed {
            Some((error, _)) => Some(error.clone()),
            None if self.is_closed => Some(AdapterError::Closed),
            None => self.never_fits(version),
        };
        if let Some(error) = refused {
            self.withdraw(hash, std::mem::take(ticket));
            return Answer::Failed(error);
        }
        if is_first {
            self.counts.n_misses += 1;
            self.next_ticket += 1;
            *ticket = self.next_ticket;
            self.wanted.insert(*ticket, hash);
        }
        let slot = self.slot(version);
        slot.failed = None;
        slot.demands.insert(*ticket, waker.clone());
        self.revalue(hash);
        Answer::Pending
    }

    /// Why waiting for a version is in vain while the names are pinned that are.
    fn never_fits(&self, version: &Version) -> Option<AdapterError> {
        let slot = self.slots.get(&version.hash);
        (0..self.n_tiers()).find_map(|tier| {
            let tiers = &self.tiers[tier];
            let size_bytes = slot.map_or(version.size_bytes[tier], |slot| slot.size_bytes[tier]);
            let is_pinned = slot.is_some_and(|slot| slot.n_pins > 0);
            let own_bytes = if is_pinned { size_bytes } else { 0 };
            let others_bytes = tiers.pinned_bytes - own_bytes;
            (others_bytes + size_bytes > tiers.budget_bytes)
                .then_some(AdapterError::Overloaded { size_bytes })
        })
    }

    /// Wakes who waits for what does not fit beside the pins, to be told so: no load
    /// will ever end for them.
    fn wake_hopeless(&self, after: &mut After) {
        let waited_for = self.slots.values().filter(|slot| !slot.demands.is_empty());
        for slot in waited_for.filter(|slot| self.never_fits(&slot.version).is_some()) {
            after.wake.extend(slot.demands.values().cloned());
        }
    }

    pub(super) fn drop_lease(&mut self, hash: B256, after: &mut After) {
        if let Some(slot) = self.slots.get_mut(&hash) {
            slot.n_leases -= 1;
        }
        self.settle(hash, after);
    }

    // Names.

    /// Puts `name` on a version. The caller has checked that there may be one
    /// more.
    pub(super) fn set_name(
        &mut self,
        name: &Arc<str>,
        version: &Arc<Version>,
        is_pinned: bool,
        after: &mut After,
    ) {
        let slot = self.slot(version);
        slot.n_names += 1;
        slot.failed = None;
        // The newest source is the likeliest to be there.
        if !version.is_in_memory_only() {
            slot.version = Arc::clone(version);
        }
        self.pin(version.hash, is_pinned, true);
        let new = Name {
            hash: version.hash,
            is_pinned,
        };
        let old = self.names.insert(Arc::clone(name), new);
        self.release(old, after);
        self.revalue(version.hash);
        if is_pinned {
            self.wake_hopeless(after);
        }
    }

    /// Takes a name away; false if there is none.
    pub(super) fn drop_name(&mut self, name: &str, after: &mut After) -> bool {
        let old = self.names.remove(name);
        let was_there = old.is_some();
        self.release(old, after);
        was_there
    }

    fn release(&mut self, old: Option<Name>, after: &mut After) {
        let Some(old) = old else { return };
        if let Some(slot) = self.slots.get_mut(&old.hash) {
            slot.n_names -= 1;
        }
        self.pin(old.hash, old.is_pinned, false);
        self.settle(old.hash, after);
    }

    fn pin(&mut self, hash: B256, is_pinned: bool, is_more: bool) {
        let Some(slot) = self.slots.get_mut(&hash).filter(|_| is_pinned) else {
            return;
        };
        let had = slot.n_pins > 0;
        slot.n_pins = if is_more {
            slot.n_pins + 1
        } else {
            slot.n_pins - 1
        };
        let has = slot.n_pins > 0;
        let size_bytes = slot.size_bytes;
        for (tier, size_bytes) in self.tiers.iter_mut().zip(size_bytes) {
            match (had, has) {
                (false, true) => tier.pinned_bytes += size_bytes,
                (true, false) => tier.pinned_bytes -= size_bytes,
                _ => {}
            }
        }
    }

    /// Whether pinning a version of these sizes leaves the pins within the
    /// budgets. `replaced` is the version that the name pins now.
    pub(super) fn can_pin(&self, version: &Version, replaced: Option<B256>) -> bool {
        if self
            .slots
            .get(&version.hash)
            .is_some_and(|slot| slot.n_pins > 0)
        {
            return true;
        }
        (0..self.n_tiers()).all(|tier| {
            let freed = replaced
                .and_then(|hash| self.slots.get(&hash))
                .filter(|slot| slot.n_pins == 1)
                .map_or(0, |slot| slot.size_bytes[tier]);
            let pinned_bytes = self.tiers[tier].pinned_bytes - freed;
            pinned_bytes + version.size_bytes[tier] <= self.tiers[tier].budget_bytes
        })
    }

    // Loads.

    /// The oldest load that is wanted and not under way, with its bytes
    /// reserved; `None` if there is none, or no room for it yet.
    pub(super) fn next_job(&mut self, after: &mut After) -> Option<Job> {
        let to_do = self.wanted.iter().filter_map(|(ticket, hash)| {
            let slot = self.slots.get(hash)?;
            let is_to_do = !slot.is_loading && slot.failed.is_none() && !self.is_ready(slot);
            is_to_do.then_some((*ticket, *hash, slot.version.is_in_memory_only()))
        });
        // What only memory holds cannot be evicted, and stays until who wants it has
        // had it: its copy for the device does not wait behind a load that may be
        // waiting for that very memory.
        let to_do: Vec<(u64, B256, bool)> = to_do.collect();
        let first = to_do.iter().take(1);
        let in_memory = to_do
            .iter()
            .skip(1)
            .filter(|(.., is_in_memory)| *is_in_memory);
        let (hash, reserved_bytes) = first.chain(in_memory).find_map(|&(ticket, hash, _)| {
            let reserved = self.reserve(hash, [true; N_TIERS], Some(ticket), after)?;
            Some((hash, reserved))
        })?;
        let has_device = self.has_device;
        let slot = self.slots.get_mut(&hash)?;
        slot.is_loading = true;
        let job = Job {
            version: Arc::clone(&slot.version),
            lora: slot.lora.clone(),
            needs_device: has_device && slot.device.is_none(),
            reserved_bytes,
        };
        self.revalue(hash);
        Some(job)
    }

    /// Reserves what a version needs in those tiers of `tiers` that do not hold
    /// it.
    fn reserve(
        &mut self,
        hash: B256,
        tiers: [bool; N_TIERS],
        ticket: Option<u64>,
        after: &mut After,
    ) -> Option<[u64; N_TIERS]> {
        let slot = self.slots.get(&hash)?;
        let needed: [u64; N_TIERS] = std::array::from_fn(|tier| {
            let is_needed = tiers[tier] && tier < self.n_tiers() && !slot.holds(tier);
            if is_needed { slot.size_bytes[tier] } else { 0 }
        });
        // What it holds must not be evicted for what it lacks.
        self.unvalue(hash);
        let victims: Option<Vec<_>> = (0..N_TIERS)
            .map(|tier| self.victims(tier, needed[tier], ticket))
            .collect();
        let fits = victims.is_some();
        for (tier, victims) in victims.into_iter().flatten().enumerate() {
            for victim in victims {
                self.evict(victim, tier, after);
            }
            self.tiers[tier].used_bytes += needed[tier];
        }
        self.revalue(hash);
        fits.then_some(needed)
    }

    /// What to evict so that `size_bytes` fit; `None` if what may be evicted for a
    /// demand as old as `ticket` is not enough.
    fn victims(&self, tier: usize, size_bytes: u64, ticket: Option<u64>) -> Option<Vec<B256>> {
        let this = &self.tiers[tier];
        let mut free = this.budget_bytes.saturating_sub(this.used_bytes);
        let oldest = |slot: &Slot| slot.demands.first_key_value().map(|(ticket, _)| *ticket);
        let mut victims = Vec::new();
        let mut wanted = Vec::new();
        for hash in this.order.values() {
            if free >= size_bytes {
                break;
            }
            let Some(slot) = self.slots.get(hash) else {
                continue;
            };
            match oldest(slot) {
                None => {
                    free += slot.size_bytes[tier];
                    victims.push(*hash);
                }
                Some(other) if ticket.is_some_and(|ticket| ticket < other) => {
                    wanted.push((other, *hash, slot.size_bytes[tier]));
                }
                Some(_) => {}
            }
        }
        // Only then what others wait for, the youngest first.
        wanted.sort_unstable_by_key(|(other, ..)| std::cmp::Reverse(*other));
        for (_, hash, size) in wanted {
            if free >= size_bytes {
                break;
            }
            free += size;
            victims.push(hash);
        }
        (free >= size_bytes).then_some(victims)
    }

    fn evict(&mut self, hash: B256, tier: usize, after: &mut After) {
        let Some(slot) = self.slots.get_mut(&hash) else {
            return;
        };
        if let Some(value) = slot.value[tier] {
            self.tiers[tier].age = self.tiers[tier].age.max(value.0);
        }
        let garbage = match tier {
            HOST => slot.lora.take().map(Garbage::Lora),
            _ => slot.device.take().map(Garbage::Device),
        };
        after.garbage.extend(garbage);
        let this = &mut self.tiers[tier];
        this.used_bytes -= slot.size_bytes[tier];
        this.n_resident -= 1;
        this.n_evictions += 1;
        self.settle(hash, after);
    }

    /// A load has ended, after `Table::next_job`. `retry_at_s`: until when a
    /// failure answers everybody who asks.
    pub(super) fn finish(
        &mut self,
        job: &Job,
        outcome: Result<(Loaded, [u64; N_TIERS]), AdapterError>,
        took_s: f64,
        retry_at_s: f64,
        after: &mut After,
    ) {
        let hash = job.version.hash;
        let Some(slot) = self.slots.get_mut(&hash) else {
            return;
        };
        slot.is_loading = false;
        for (tier, reserved_bytes) in self.tiers.iter_mut().zip(job.reserved_bytes) {
            tier.used_bytes -= reserved_bytes;
        }
        match outcome {
            Ok((loaded, size_bytes)) => {
                self.counts.n_loads += 1;
                self.counts.load_s_sum += took_s;
                let bucket = LOAD_SECONDS.partition_point(|end| *end < took_s);
                self.counts.loads_by_s[bucket] += 1;
                self.counts.loaded_bytes += job.version.file_size_bytes;
                self.resize(hash, size_bytes);
                if !self.place(&job.version, loaded, after) {
                    // More than was reserved, which does not fit: it is tried
                    // again with what it really takes.
                    self.wake(hash, after);
                }
            }
            Err(error) => {
                self.counts.n_failures += 1;
                slot.failed = Some((error, retry_at_s));
                self.wake(hash, after);
            }
        }
        self.settle(hash, after);
    }

    fn wake(&self, hash: B256, after: &mut After) {
        if let Some(slot) = self.slots.get(&hash) {
            after.wake.extend(slot.demands.values().cloned());
        }
    }

    /// What a version takes, now that it is known. The pins follow.
    fn resize(&mut self, hash: B256, size_bytes: [u64; N_TIERS]) {
        let Some(slot) = self.slots.get_mut(&hash) else {
            return;
        };
        for (tier, size_bytes) in size_bytes.into_iter().enumerate() {
            if slot.holds(tier) {
                continue;
            }
            if slot.n_pins > 0 {
                let pinned_bytes = &mut self.tiers[tier].pinned_bytes;
                *pinned_bytes = *pinned_bytes - slot.size_bytes[tier] + size_bytes;
            }
            slot.size_bytes[tier] = size_bytes;
        }
    }

    /// Puts what is loaded into the tiers that lack it; false if there is no
    /// room that nobody waits for.
    pub(super) fn place(
        &mut self,
        version: &Arc<Version>,
        loaded: Loaded,
        after: &mut After,
    ) -> bool {
        let hash = version.hash;
        // Whoever loads it places it.
        if self.slot(version).is_loading {
            return true;
        }
        let tiers = [true, loaded.device.is_some()];
        if self.reserve(hash, tiers, None, after).is_none() {
            after.garbage.push(Garbage::Lora(loaded.lora));
            after.garbage.extend(loaded.device.map(Garbage::Device));
            return false;
        }
        if let Some(slot) = self.slots.get_mut(&hash) {
            if slot.lora.is_none() {
                slot.lora = Some(loaded.lora);
                self.tiers[HOST].n_resident += 1;
            }
            if loaded.device.is_some() && slot.device.is_none() {
                slot.device = loaded.device;
                self.tiers[DEVICE].n_resident += 1;
            }
        }
        self.wake(hash, after);
        self.revalue(hash);
        true
    }

    /// Whether a version fits without evicting anything.
    pub(super) fn has_free(&self, version: &Version) -> bool {
        (0..self.n_tiers()).all(|tier| {
            let this = &self.tiers[tier];
            this.used_bytes + version.size_bytes[tier] <= this.budget_bytes
        })
    }

    // Upkeep.

    /// After something of a version was given back: it may now be evicted, or
    /// forgotten.
    fn settle(&mut self, hash: B256, after: &mut After) {
        let Some(slot) = self.slots.get(&hash) else {
            return;
        };
        let is_used = slot.n_names + slot.n_refs + slot.n_leases > 0 || slot.is_loading;
        // A sum stays while there is room, though nothing names it.
        let is_kept = slot.version.is_sum() && slot.lora.is_some();
        if is_used || is_kept {
            return self.revalue(hash);
        }
        self.unvalue(hash);
        if let Some(slot) = self.slots.remove(&hash) {
            for (tier, this) in self.tiers.iter_mut().enumerate() {
                if slot.holds(tier) {
                    this.used_bytes -= slot.size_bytes[tier];
                    this.n_resident -= 1;
                }
            }
            after.garbage.push(Garbage::Slot(Box::new(slot)));
        }
    }

    fn unvalue(&mut self, hash: B256) {
        if let Some(slot) = self.slots.get_mut(&hash) {
            for (tier, value) in slot.value.iter_mut().enumerate() {
                if let Some(value) = value.take() {
                    self.tiers[tier].order.remove(&value);
                }
            }
        }
    }

    /// Gives a version its place in the order of eviction, or takes it out.
    fn revalue(&mut self, hash: B256) {
        self.unvalue(hash);
        let Some(slot) = self.slots.get_mut(&hash) else {
            return;
        };
        if slot.n_pins + slot.n_leases > 0 || slot.is_loading || slot.version.is_in_memory_only() {
            return;
        }
        for tier in 0..N_TIERS {
            if !slot.holds(tier) {
                continue;
            }
            let this = &mut self.tiers[tier];
            let value = value(this.age, slot.n_uses, slot.size_bytes[tier]);
            // Ties go to the one valued last.
            self.next_use += 1;
            slot.value[tier] = Some((value, self.next_use));
            this.order.insert((value, self.next_use), hash);
        }
    }

    /// Ends everything that waits.
    pub(super) fn close(&mut self, after: &mut After) {
        self.is_closed = true;
        for slot in self.slots.values() {
            after.wake.extend(slot.demands.values().cloned());
        }
    }

    pub(super) fn n_waiting(&self) -> usize {
        self.wanted.len()
    }

    /// That what is counted is what is there.
    #[cfg(test)]
    pub(super) fn check(&self) {
        for tier in 0..N_TIERS {
            let this = &self.tiers[tier];
            let slots = || self.slots.values();
            let loading = |slot: &Slot| slot.is_loading && tier < self.n_tiers();
            let used: u64 = slots()
                .filter(|slot| slot.holds(tier) || loading(slot))
                .map(|slot| slot.size_bytes[tier])
                .sum();
            assert_eq!(used, this.used_bytes);
            assert!(used <= this.budget_bytes, "{used} > {}", this.budget_bytes);
            let pinned = slots().filter(|slot| slot.n_pins > 0);
            let pinned: u64 = pinned.map(|slot| slot.size_bytes[tier]).sum();
            assert_eq!(pinned, this.pinned_bytes);
            assert_eq!(this.n_resident, slots().filter(|s| s.holds(tier)).count());
            for (value, hash) in &this.order {
                let slot = &self.slots[hash];
                assert_eq!(slot.value[tier], Some(*value));
                assert!(slot.holds(tier) && slot.n_leases + slot.n_pins == 0);
            }
        }
        let n_demands: usize = self.slots.values().map(|slot| slot.demands.len()).sum();
        assert_eq!(n_demands, self.wanted.len());
    }
}

/// Uses per byte on top of the age, in units of 2^-40.
fn value(age: u64, n_uses: u64, size_bytes: u64) -> u64 {
    let per_byte = u128::from(n_uses) << 40;
    let per_byte = per_byte / u128::from(size_bytes.max(1));
    age.saturating_add(u64::try_from(per_byte).unwrap_or(u64::MAX))
}
