//! Random histories of everything at once, against one request at a time.

use std::any::Any;
use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicUsize, Ordering};
use std::time::Duration;

use ol_model::Lora;
use ol_serve::{
    AdapterComponents, AdapterDevice, AdapterError, AdapterFiles, AdapterLoad, AdapterLoader,
    AdapterRef, AdapterSource, AdapterStore, AdapterStoreOptions, EngineOptions, EngineStats,
    FinishReason, GenerateError, GenerateRequest, Priority, RegisterOptions, Sampling, Sharing,
    SubmitError, Turn,
};

use crate::drive::{Driven, Reader};
use crate::random::Random;
use crate::support::{base, lora, tokenizer, weights};

/// Histories of each run; `OPENLEDGER_TEST_SCALE` multiplies them.
const N_HISTORIES: u64 = 1_500;

const NAMES: [&str; 3] = ["legal", "medical", "poetry"];

/// What became of the requests of all histories.
#[derive(Debug, Default)]
struct Seen {
    n_finished: u64,
    n_late: u64,
    n_late_with_tokens: u64,
    n_cached: u64,
    n_adapter_failures: u64,
    n_loads: u64,
    n_load_failures: u64,
    n_evictions: u64,
    n_device_evictions: u64,
    stats: EngineStats,
}

/// What a source gives when it is read again.
const WHOLE: u8 = 0;
const GONE: u8 = 1;
const CHANGED: u8 = 2;

/// Adapters that a source may lose, or exchange for others.
struct Source {
    files: AdapterFiles,
    others: AdapterFiles,
    state: Arc<AtomicU8>,
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a source of a test")
    }
}

impl AdapterSource for Source {
    fn read(&self, _: u64) -> Result<AdapterFiles, AdapterError> {
        match self.state.load(Ordering::Relaxed) {
            GONE => Err(AdapterError::Missing {
                location: self.to_string(),
            }),
            CHANGED => Ok(self.others.clone()),
            _ => Ok(self.files.clone()),
        }
    }
}

fn files(lora: &Lora) -> AdapterFiles {
    let (config, weights) = lora.to_bytes("base");
    AdapterFiles::Peft {
        config: config.into(),
        weights: weights.into(),
    }
}

/// Memory of a device: counts the copies that are there.
struct Device(Arc<AtomicUsize>);

struct Copy(Arc<AtomicUsize>);

impl Drop for Copy {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl AdapterDevice for Device {
    fn size_bytes(&self, lora: &Lora) -> u64 {
        lora.resident_size_bytes() as u64 / 2
    }

    fn upload(&self, _: &Lora) -> Result<Arc<dyn Any + Send + Sync>, String> {
        self.0.fetch_add(1, Ordering::Relaxed);
        Ok(Arc::new(Copy(Arc::clone(&self.0))))
    }
}

struct History {
    random: Random,
    driven: Driven,
    store: AdapterStore,
    loader: AdapterLoader,
    /// Loads under way.
    loads: Vec<AdapterLoad>,
    sources: BTreeMap<(usize, u32), Arc<AtomicU8>>,
    /// Whether a source ever lost or exchanged what it had.
    was_faulty: bool,
    /// Whether adapters were given in memory, which pins them there.
    was_pinned: bool,
    n_copies: Arc<AtomicUsize>,
    readers: Vec<Reader>,
    /// Versions that names were given so far.
    n_versions: u32,
}

impl History {
    fn new(seed: u64) -> Self {
        let mut random = Random(seed);
        let n_rows_max = 1 + random.below(5);
        let options = EngineOptions {
            n_rows_max,
            // From what one request needs up to room for all.
            n_kv_tokens_max: 112 + 16 * random.below(24),
            n_prefix_tokens_max: random.pick(&[0, 48, 160, usize::MAX]),
            n_step_tokens_max: n_rows_max + random.below(48),
            n_waiting_max: 3 + random.below(20),
            n_waiting_per_tenant_max: 2 + random.below(12),
            n_waiting_tokens_max: 100 + random.below(2_000),
            aging: Duration::from_secs(5),
        };
        let driven = Driven::new(options);
        // Room for the largest one, up to room for all.
        let largest_bytes = lora(9, 1).resident_size_bytes() as u64;
        let budget = |random: &mut Random| largest_bytes * (8 + random.below(24) as u64) / 8;
        let n_copies = Arc::new(AtomicUsize::new(0));
        let store_options = AdapterStoreOptions {
            host_budget_bytes: budget(&mut random),
            device_budget_bytes: budget(&mut random) / 2,
            failure_memory_s: 1.0,
            ..AdapterStoreOptions::default()
        };
        let mut components = AdapterComponents::new(Arc::clone(&driven.clock) as _);
        if random.chance(30) {
            components.device = Some(Arc::new(Device(Arc::clone(&n_copies))));
        }
        let (store, loader) =
            AdapterStore::without_threads(base().config(), store_options, components).unwrap();
        Self {
            random,
            driven,
            store,
            loader,
            loads: Vec::new(),
            sources: BTreeMap::new(),
            was_faulty: false,
            was_pinned: false,
            n_copies,
            readers: Vec::new(),
            n_versions: 0,
        }
    }

    fn request(&mut self) -> GenerateRequest {
        let random = &mut self.random;
        // Few beginnings, so that many begin alike, at page bounds and between.
        let n_vocab = tokenizer().vocab_size();
        let (beginning, n_shared, n_own) = (random.below(3), random.below(56), random.below(24));
        let token = |i: usize| u32::try_from(i % n_vocab).unwrap();
        let mut prompt_tokens: Vec<u32> = (0..n_shared)
            .map(|i| token(7 + i * (beginning + 3)))
            .collect();
        prompt_tokens.extend((0..=n_own).map(|_| token(random.below(n_vocab))));
        let mut sampling = Sampling::GREEDY;
        if random.chance(50) {
            sampling.temperature = 1.2;
            sampling.top_p = 0.9;
            sampling.seed = random.below(1_000) as u64;
        }
        // What a sampler remembers has to survive a preemption.
        if random.chance(30) {
            sampling.frequency_penalty = 0.7;
            sampling.repetition_penalty = 1.3;
            sampling.min_tokens = 4;
        }
        let name = random.pick(&NAMES);
        GenerateRequest {
            adapter: self.store.resolve(name).ok().filter(|_| random.chance(75)),
            sampling,
            stop: if random.chance(20) {
                vec!["e".to_owned()]
            } else {
                Vec::new()
            },
            tenant: random.pick(&["a", "b", "c"]).into(),
            priority: random.pick(&[Priority::Interactive, Priority::Normal, Priority::Batch]),
            timeout: random
                .chance(25)
                .then(|| Duration::from_millis(random.below(9_000) as u64)),
            sharing: random.pick(&[Sharing::Tenant, Sharing::Everyone, Sharing::Nobody]),
            ..GenerateRequest::new(prompt_tokens, 1 + random.below(28))
        }
    }

    fn step(&mut self) {
        match self.random.below(100) {
            0..30 => {
                let request = self.request();
                match self.driven.submit(&request) {
                    Ok(mut reader) => {
                        // What is compared later keeps nothing in the store.
                        let adapter = request.adapter.as_ref();
                        reader.request.adapter =
                            adapter.map(|adapter| AdapterRef::resident(weights(adapter)));
                        self.readers.push(reader);
                    }
                    Err(error) => assert!(
                        matches!(error, SubmitError::Overloaded { .. }),
                        "{error:?} of {request:?}"
                    ),
                }
            }
            30..36 => {
                let at = self.random.below(self.readers.len().max(1));
                if let Some(reader) = self.readers.get_mut(at) {
                    reader.cancel();
                }
            }
            // A name gets another version, or its first.
            36..44 => {
                self.n_versions += 1;
                let rank = self.random.pick(&[1, 4, 9]);
                let name = self.random.pick(&NAMES);
                self.load(name, rank, 1 + self.n_versions % 5);
            }
            44..47 => {
                // It may have none.
                let _ = self.store.unload(self.random.pick(&NAMES));
            }
            47..53 => self.driven.clock.advance(Duration::from_millis(700)),
            // A source changes its mind.
            53..55 => {
                let at = self.random.below(self.sources.len().max(1));
                let state = self.random.pick(&[WHOLE, WHOLE, GONE, CHANGED]);
                if let Some(source) = self.sources.values().nth(at) {
                    source.store(state, Ordering::Relaxed);
                    self.was_faulty |= state != WHOLE;
                }
            }
            // Loads begin and end, at most two at a time, in any order.
            55..62 => {
                if self.loads.len() < 2 {
                    self.loads.extend(self.loader.begin());
                }
            }
            62..70 => {
                if !self.loads.is_empty() {
                    let at = self.random.below(self.loads.len());
                    drop(self.loads.swap_remove(at));
                }
            }
            _ => {
                self.driven.scheduler.turn();
            }
        }
        let stats = self.driven.engine.stats();
        assert!(stats.n_pages_used + stats.n_pages_idle <= stats.n_pages);
    }

    /// A name gets a version: given in memory, or one that can be read again.
    fn load(&mut self, name: &str, rank: usize, seed: u32) {
        let given = lora(rank, seed);
        let options = RegisterOptions {
            is_pinned: self.random.chance(5),
            may_replace: true,
        };
        let done = if self.random.chance(15) {
            self.was_pinned = true;
            self.store.insert(name, given)
        } else {
            self.was_pinned |= options.is_pinned;
            let state = self.sources.entry((rank, seed)).or_default();
            let source = Source {
                files: files(&given),
                others: files(&lora(rank, 99)),
                state: Arc::clone(state),
            };
            let is_whole = state.swap(WHOLE, Ordering::Relaxed);
            let done = self.store.register_from(name, Arc::new(source), options);
            state.store(is_whole, Ordering::Relaxed);
            done
        };
        match done {
            Ok(version) => assert_eq!(version.hash(), lora(rank, seed).hash()),
            // Pins leave no room.
            Err(error) => assert!(
                self.was_pinned && matches!(error, AdapterError::Overloaded { .. }),
                "{error}"
            ),
        }
    }

    /// Turns and loads until there is nothing to do.
    fn drain(&mut self) {
        loop {
            self.driven.finish();
            self.loads.extend(self.loader.begin());
            if self.loads.pop().is_none() {
                return;
            }
        }
    }

    fn finish(mut self, seen: &mut Seen) {
        self.drain();
        for reader in &mut self.readers {
            reader.check();
            match &reader.end {
                Some(Ok(end)) => {
                    seen.n_finished += 1;
                    seen.n_cached += end.tokens_cached as u64;
                    seen.n_late_with_tokens +=
                        u64::from(end.finish_reason == FinishReason::Deadline);
                }
                Some(Err(GenerateError::Deadline)) => seen.n_late += 1,
                Some(Err(GenerateError::Adapter(error))) => {
                    seen.n_adapter_failures += 1;
                    let is_due = match error {
                        AdapterError::Missing { .. } | AdapterError::Changed { .. } => {
                            self.was_faulty
                        }
                        AdapterError::Overloaded { .. } => self.was_pinned,
                        _ => false,
                    };
                    assert!(is_due, "{error}");
                }
                _ => {}
            }
        }
        // A client that went away at the end is noticed by the next turn.
        self.drain();
        let waits = self.driven.engine.stats().n_waiting;
        assert_eq!(waits, 0, "{:?}", self.store.stats());
        self.driven.check_empty();
        let stats = self.store.stats();
        seen.n_loads += stats.n_loads;
        seen.n_load_failures += stats.n_load_failures;
        seen.n_evictions += stats.host.n_evictions;
        seen.n_device_evictions += stats.device.n_evictions;
        // Nothing refers to what the names do not.
        for name in self.store.names() {
            self.store.unload(&name).unwrap();
        }
        self.readers.clear();
        let stats = self.store.stats();
        let left = (stats.n_versions, stats.n_waiting, stats.host.used_bytes);
        assert_eq!((left, stats.device.used_bytes), ((0, 0, 0), 0));
        assert_eq!(self.n_copies.load(Ordering::Relaxed), 0);
        let stats = self.driven.engine.stats();
        seen.stats.n_preempted += stats.n_preempted;
        seen.stats.n_tokens_again += stats.n_tokens_again;
        seen.stats.n_refused += stats.n_refused;
        seen.stats.n_cancelled += stats.n_cancelled;
        seen.stats.n_prefix_tokens_found += stats.n_prefix_tokens_found;
        self.driven.engine.shutdown();
        assert_eq!(self.driven.scheduler.turn(), Turn::Closed);
    }
}

/// Loading, evicting, replacing and unloading adapters in memory that is too
/// small for them, sources that lose or exchange what they had, cancelling,
/// deadlines, preemption in small pools, shared pages, priorities and limits, in
/// any order: every answer is what its request gets alone with the version it
/// resolved, or the beginning of it, or fails for want of the adapter; and at the
/// end no page, no row and no byte of an adapter is lost.
#[test]
fn any_history_gives_what_each_request_gets_alone() {
    let scale = std::env::var("OPENLEDGER_TEST_SCALE").map_or(1, |scale| scale.parse().unwrap());
    let mut seen = Seen::default();
    for seed in 0..N_HISTORIES * scale {
        let run = std::panic::catch_unwind(|| {
            let mut history = History::new(seed);
            for _ in 0..80 {
                history.step();
            }
            let mut seen = Seen::default();
            history.finish(&mut seen);
            seen
        });
        let run = run.unwrap_or_else(|_| panic!("history {seed}"));
        seen.n_finished += run.n_finished;
        seen.n_late += run.n_late;
        seen.n_late_with_tokens += run.n_late_with_tokens;
        seen.n_cached += run.n_cached;
        seen.n_adapter_failures += run.n_adapter_failures;
        seen.n_loads += run.n_loads;
        seen.n_load_failures += run.n_load_failures;
        seen.n_evictions += run.n_evictions;
        seen.n_device_evictions += run.n_device_evictions;
        seen.stats.n_preempted += run.stats.n_preempted;
        seen.stats.n_tokens_again += run.stats.n_tokens_again;
        seen.stats.n_refused += run.stats.n_refused;
        seen.stats.n_cancelled += run.stats.n_cancelled;
        seen.stats.n_prefix_tokens_found += run.stats.n_prefix_tokens_found;
    }
    // The histories are about what they say they are about.
    let counts = [
        seen.n_finished,
        seen.n_late,
        seen.n_late_with_tokens,
        seen.n_cached,
        seen.n_adapter_failures,
        seen.n_loads,
        seen.n_load_failures,
        seen.n_evictions,
        seen.n_device_evictions,
        seen.stats.n_preempted,
        seen.stats.n_tokens_again,
        seen.stats.n_refused,
        seen.stats.n_cancelled,
        seen.stats.n_prefix_tokens_found,
    ];
    assert!(counts.iter().all(|&n| n > 10), "{seen:?}");
}
