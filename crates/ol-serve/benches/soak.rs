//! Mixed traffic with faults for a bounded time: `cargo bench -p ol-serve --bench
//! soak -- --seconds 300`.
//!
//! Clients that read, read slowly, leave, or give little time; adapters that are
//! loaded, replaced and unloaded in a store whose memory holds a third of them;
//! adapters whose files are broken after they were registered; and a folder of
//! the store that cannot be written to for a while, as on a full disk. Every
//! token is compared with what the request gets alone. At the end nothing may be
//! left running, waiting or in use, and the process may not have grown since the
//! second quarter of the time.

#![expect(
    clippy::print_stdout,
    clippy::print_stderr,
    clippy::unwrap_used,
    clippy::disallowed_methods,
    reason = "a program that fails loudly, and measures time"
)]

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use ol_model::{KvCache, Lora, Model, Pool, Segment, Tokenizer};
use ol_runtime::SystemClock;
use ol_serve::{
    AdapterComponents, AdapterStore, AdapterStoreOptions, Answer, EngineHandle, EngineOptions,
    Event, FinishReason, GenerateError, GenerateRequest, Priority, RegisterOptions, Sampler,
    Sharing, SubmitError,
};
use ol_types::B256;

use self::random::Random;
use self::small::{lora, model, resident_bytes};

#[path = "../tests/it/random.rs"]
mod random;
#[path = "soak/report.rs"]
mod report;
#[path = "soak/small.rs"]
mod small;

const N_ADAPTERS: usize = 48;
/// Adapters whose files are broken once they are registered.
const N_BROKEN: usize = 4;
const N_CLIENTS: usize = 6;
const N_PROMPTS: usize = 12;

#[derive(Debug, Default)]
struct Counts {
    answered: AtomicU64,
    tokens: AtomicU64,
    left: AtomicU64,
    late: AtomicU64,
    refused: AtomicU64,
    broken: AtomicU64,
    replaced: AtomicU64,
    sabotaged: AtomicU64,
}

fn count(what: &AtomicU64) {
    what.fetch_add(1, Ordering::Relaxed);
}

/// Adapter, number of the prompt, seed.
type Question = (Option<B256>, usize, u64);

/// What is served, and what each request gets alone.
struct World {
    base: Arc<Model>,
    tokenizer: Arc<Tokenizer>,
    engine: EngineHandle,
    store: AdapterStore,
    /// By content: names move from one to another.
    loras: BTreeMap<B256, Arc<Lora>>,
    dirs: Vec<PathBuf>,
    prompts: Vec<Vec<u32>>,
    /// Answers computed alone.
    alone: Mutex<BTreeMap<Question, Vec<u32>>>,
    counts: Counts,
    is_over: AtomicBool,
}

const MAX_TOKENS: usize = 24;

impl World {
    fn new(folder: &Path) -> Self {
        let texts = ["the quick brown fox jumps over the lazy dog", "café 🦀"];
        let texts = texts.iter().map(ToString::to_string);
        let tokenizer = Arc::new(Tokenizer::train(texts, 280).unwrap());
        let base = Arc::new(model(&tokenizer));
        let (mut loras, mut dirs) = (BTreeMap::new(), Vec::new());
        let mut size_bytes = 0;
        for i in 0..N_ADAPTERS {
            let lora = lora(&base, [8, 16, 32, 64][i % 4], i as u64);
            let dir = folder.join(format!("adapters/{i}"));
            lora.save(&dir, "soak").unwrap();
            size_bytes += lora.resident_size_bytes() as u64;
            loras.insert(lora.hash(), Arc::new(lora));
            dirs.push(dir);
        }
        let options = AdapterStoreOptions {
            host_budget_bytes: size_bytes / 3,
            dir: Some(folder.join("cache")),
            disk_budget_bytes: size_bytes / 2,
            roots: vec![folder.join("adapters")],
            failure_memory_s: 0.1,
            ..AdapterStoreOptions::default()
        };
        let components = AdapterComponents::new(Arc::new(SystemClock::new()));
        let store = AdapterStore::open(base.config(), options, components).unwrap();
        let options = EngineOptions {
            n_rows_max: 8,
            n_kv_tokens_max: 640,
            n_step_tokens_max: 64,
            n_waiting_max: 10,
            n_waiting_per_tenant_max: 6,
            aging: Duration::from_millis(200),
            ..EngineOptions::default()
        };
        let n_threads = thread::available_parallelism().map_or(1, usize::from);
        let engine = EngineHandle::start(
            Arc::clone(&base),
            Arc::clone(&tokenizer),
            n_threads,
            options,
        );
        let mut random = Random(77);
        let n_vocab = tokenizer.vocab_size();
        let prompts = (0..N_PROMPTS).map(|i| {
            // Every third begins like the one before it.
            let n = 20 + 15 * (i % 7);
            (0..n)
                .map(|at| {
                    let id = if at < 40 {
                        3 + at * (i / 3 + 1)
                    } else {
                        random.below(n_vocab)
                    };
                    u32::try_from(id % n_vocab).unwrap()
                })
                .collect()
        });
        let world = Self {
            prompts: prompts.collect(),
            base,
            tokenizer,
            engine: engine.unwrap(),
            store,
            loras,
            dirs,
            alone: Mutex::default(),
            counts: Counts::default(),
            is_over: AtomicBool::new(false),
        };
        for i in 0..N_ADAPTERS {
            world.register(i, i);
        }
        for dir in &world.dirs[..N_BROKEN] {
            let weights = dir.join("adapter_model.safetensors");
            let bytes = fs::read(&weights).unwrap();
            fs::write(weights, &bytes[..bytes.len() / 2]).unwrap();
        }
        world
    }

    fn is_over(&self) -> bool {
        self.is_over.load(Ordering::Acquire)
    }

    /// Puts the adapter of a folder under the name of another.
    fn register(&self, name: usize, dir: usize) {
        let options = RegisterOptions {
            may_replace: true,
            ..RegisterOptions::default()
        };
        let location = self.dirs[dir].to_string_lossy().into_owned();
        let done = self.store.register(&format!("a{name}"), &location, options);
        assert!(done.is_ok() || dir < N_BROKEN, "{done:?}");
    }

    /// The tokens of a request that is computed alone.
    fn alone(&self, pool: &Pool, adapter: Option<B256>, prompt: usize, seed: u64) -> Vec<u32> {
        let key = (adapter, prompt, seed);
        if let Some(known) = self.alone.lock().unwrap().get(&key) {
            return known.clone();
        }
        let request = self.request(None, prompt, seed);
        let mut tokens = request.prompt_tokens;
        let n_prompt = tokens.len();
        let mut cache = KvCache::new(self.base.config(), n_prompt + MAX_TOKENS);
        let mut sampler = Sampler::for_prompt(request.sampling, &tokens, self.tokenizer.end_ids());
        while tokens.len() < n_prompt + MAX_TOKENS {
            let mut segments = [Segment {
                tokens: &tokens[cache.len()..],
                cache: &mut cache,
                adapter: adapter.map(|hash| &*self.loras[&hash]),
            }];
            let logits = self.base.forward(pool, &mut segments).unwrap();
            let id = sampler.next(&logits).unwrap();
            if sampler.is_end(id) {
                break;
            }
            tokens.push(id);
        }
        let answer = tokens.split_off(n_prompt);
        self.alone.lock().unwrap().insert(key, answer.clone());
        answer
    }

    fn request(
        &self,
        adapter: Option<ol_serve::AdapterRef>,
        prompt: usize,
        seed: u64,
    ) -> GenerateRequest {
        let mut request = GenerateRequest::new(self.prompts[prompt].clone(), MAX_TOKENS);
        if seed > 0 {
            request.sampling.temperature = 1.1;
            request.sampling.top_p = 0.9;
            request.sampling.seed = seed;
        }
        request.adapter = adapter;
        request
    }

    /// One client: requests one after the other, of every kind.
    fn client(&self, number: usize) {
        let pool = Pool::new(1);
        let mut random = Random(1_000 + number as u64);
        while !self.is_over() {
            // Few names are asked for often, most of them seldom.
            let name = random.below(N_ADAPTERS).min(random.below(N_ADAPTERS));
            let adapter = self.store.resolve(&format!("a{name}")).ok();
            let adapter = adapter.filter(|_| random.below(8) > 0);
            let hash = adapter.as_ref().map(ol_serve::AdapterRef::hash);
            let (prompt, seed) = (random.below(N_PROMPTS), random.below(3) as u64);
            let request = GenerateRequest {
                tenant: format!("tenant {}", random.below(4)).into(),
                priority: random.pick(&[Priority::Interactive, Priority::Normal, Priority::Batch]),
                timeout: random
                    .chance(10)
                    .then(|| Duration::from_micros(random.below(20_000) as u64)),
                sharing: random.pick(&[Sharing::Tenant, Sharing::Everyone, Sharing::Nobody]),
                ..self.request(adapter, prompt, seed)
            };
            let expected = self.alone(&pool, hash, prompt, seed);
            // Several at once, so that the queue fills too.
            let n = 1 + random.below(4);
            match self.engine.submit_all(vec![request; n]) {
                Ok(answers) => {
                    for answer in answers {
                        self.read(answer, &expected, &mut random);
                    }
                }
                Err(SubmitError::Overloaded { retry_after, .. }) => {
                    assert!(retry_after >= Duration::from_secs(1));
                    count(&self.counts.refused);
                    thread::yield_now();
                }
                Err(error) => panic!("{error}"),
            }
        }
    }

    /// Reads an answer, or part of it, and compares every token.
    fn read(&self, mut answer: Answer, expected: &[u32], random: &mut Random) {
        let leaves_after = random.chance(20).then(|| random.below(8));
        let is_slow = random.chance(5);
        let mut ids = Vec::new();
        loop {
            if leaves_after == Some(ids.len()) {
                return count(&self.counts.left);
            }
            match answer.blocking_next() {
                Some(Event::Token { id, .. }) => {
                    ids.push(id);
                    assert!(expected.starts_with(&ids), "a wrong token");
                    count(&self.counts.tokens);
                    if is_slow {
                        thread::park_timeout(Duration::from_millis(5));
                    }
                }
                Some(Event::Done(completion)) => {
                    assert_eq!(completion.token_ids, ids);
                    if completion.finish_reason == FinishReason::Deadline {
                        return count(&self.counts.late);
                    }
                    assert_eq!(ids, expected, "an answer cut short");
                    return count(&self.counts.answered);
                }
                Some(Event::Failed(GenerateError::Deadline)) => return count(&self.counts.late),
                Some(Event::Failed(GenerateError::Adapter(_))) => {
                    return count(&self.counts.broken);
                }
                other => panic!("{other:?}"),
            }
        }
    }

    /// Replaces and unloads adapters all the time.
    fn operator(&self) {
        let mut random = Random(5);
        while !self.is_over() {
            let name = random.below(N_ADAPTERS);
            if random.below(6) == 0 {
                // It may have been unloaded before.
                let _ = self.store.unload(&format!("a{name}"));
            } else {
                self.register(name, random.below(N_ADAPTERS));
                count(&self.counts.replaced);
            }
            thread::park_timeout(Duration::from_millis(3));
        }
    }

    /// The store's folder cannot be written to for a while, again and again, and
    /// sometimes loses all it had.
    fn saboteur(&self, folder: &Path) {
        let (cache, aside) = (folder.join("cache"), folder.join("aside"));
        while !self.is_over() {
            thread::park_timeout(Duration::from_millis(700));
            fs::rename(&cache, &aside).unwrap();
            // The store may have made a new one in between.
            if fs::write(&cache, "in the way").is_ok() {
                count(&self.counts.sabotaged);
                thread::park_timeout(Duration::from_millis(300));
                fs::remove_file(&cache).unwrap();
            }
            if fs::rename(&aside, &cache).is_err() {
                fs::remove_dir_all(&aside).unwrap();
                fs::create_dir_all(&cache).unwrap();
            }
        }
    }
}

fn main() {
    let Some(seconds) = report::seconds() else {
        return;
    };
    let folder = tempfile::tempdir().unwrap();
    let world = World::new(folder.path());
    let mut samples = Vec::new();
    let started = Instant::now();
    thread::scope(|scope| {
        for number in 0..N_CLIENTS {
            let world = &world;
            scope.spawn(move || world.client(number));
        }
        scope.spawn(|| world.operator());
        scope.spawn(|| world.saboteur(folder.path()));
        while started.elapsed() < Duration::from_secs(seconds.into()) {
            thread::park_timeout(Duration::from_millis(250));
            samples.push(resident_bytes());
        }
        world.is_over.store(true, Ordering::Release);
    });
    // Those whose clients left are noticed by the next pass.
    while world.engine.stats().n_running + world.engine.stats().n_waiting > 0 {
        thread::yield_now();
    }
    let stats = world.engine.stats();
    assert_eq!(stats.n_pages_used, 0, "pages were lost");
    let quarters = report::quarters(&samples);
    eprintln!("{:?}\n{stats:?}\n{:?}", world.counts, world.store.stats());
    let command = format!("cargo bench -p ol-serve --bench soak -- --seconds {seconds}");
    let n = |count: &AtomicU64| count.load(Ordering::Relaxed);
    let rows = [
        (
            "answers that are what their requests get alone",
            "answers",
            n(&world.counts.answered),
        ),
        ("clients that left", "requests", n(&world.counts.left)),
        (
            "requests that ran out of time",
            "requests",
            n(&world.counts.late),
        ),
        (
            "requests refused as too many",
            "calls",
            n(&world.counts.refused),
        ),
        (
            "requests whose adapter was broken",
            "requests",
            n(&world.counts.broken),
        ),
        ("adapters replaced", "calls", n(&world.counts.replaced)),
        (
            "times that the store's folder refused writes",
            "times",
            n(&world.counts.sabotaged),
        ),
        (
            "running requests that made room",
            "requests",
            stats.n_preempted,
        ),
        (
            "prompt tokens found in shared pages",
            "tokens",
            stats.n_prefix_tokens_found,
        ),
    ];
    let title = format!("soak, {seconds} s");
    report::print(&title, &command, &rows, quarters);
    world.engine.shutdown();
}
