//! A server without payment, its clients of every kind, and its enemies.
//!
//! Clients read, read slowly, leave, stop in the middle of a request, send what
//! is too large or makes no sense; adapters are replaced by name and unloaded
//! through the API, in a store whose memory holds a third of them; the files of
//! some are broken after they were registered; and the folder of the store
//! cannot be written to for a while, as on a full disk. Every token is compared
//! with what the request gets alone under one of the versions that its name stood
//! for meanwhile.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use ol_model::{KvCache, Lora, Model, Pool, Random, Segment, Tokenizer};
use ol_runtime::{Clock, Shutdown, SystemClock};
use ol_serve::{
    AdapterComponents, AdapterStore, AdapterStoreOptions, EngineHandle, EngineOptions, Sampler,
    Sampling,
};
use ol_server::Access;
use ol_server::api::{self, ApiState, BODY_SIZE_BYTES_MAX};
use ol_server::keys::{KeyLimits, NewKey, Scope};
use ol_server::plain::{Plain, PlainOptions};
use serde_json::{Value, json};
use tokio::runtime::Runtime;

use self::small::{lora, model, resident_bytes};

#[path = "../../../../ol-serve/benches/soak/small.rs"]
mod small;

const N_ADAPTERS: usize = 24;
/// Adapters whose files are broken once they are registered.
const N_BROKEN: usize = 3;
const N_CLIENTS: usize = 6;
const N_PROMPTS: usize = 10;
const MAX_TOKENS: usize = 20;
/// Requests that the server takes at once: fewer than clients can send.
const N_REQUESTS_MAX: usize = 8;
const PATH: &str = "/v1/completions";

/// An answer that takes longer does not come.
const PATIENCE: Duration = Duration::from_secs(60);

/// How long it goes on: until both are reached.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Length {
    pub(crate) n_exchanges: u64,
    pub(crate) seconds: f64,
}

/// What happened, and how large the process was meanwhile.
#[derive(Debug, Default)]
pub(crate) struct Counts {
    pub(crate) exchanges: AtomicU64,
    pub(crate) answered: AtomicU64,
    pub(crate) streamed: AtomicU64,
    pub(crate) slow: AtomicU64,
    pub(crate) left: AtomicU64,
    pub(crate) half_sent: AtomicU64,
    pub(crate) oversize: AtomicU64,
    pub(crate) senseless: AtomicU64,
    pub(crate) late: AtomicU64,
    pub(crate) overloaded: AtomicU64,
    pub(crate) broken: AtomicU64,
    pub(crate) unloaded: AtomicU64,
    pub(crate) replaced: AtomicU64,
    pub(crate) sabotaged: AtomicU64,
    pub(crate) memory_bytes: Mutex<Vec<u64>>,
}

fn count(what: &AtomicU64) {
    what.fetch_add(1, Ordering::Relaxed);
}

/// Adapter, prompt, seed: a question whose answer is known.
type Question = (Option<usize>, usize, u64);

/// What the names stood for, in order; `None` for nothing.
struct Name {
    versions: Vec<Option<usize>>,
    /// The last one that the server is known to have taken.
    n_confirmed: usize,
}

struct World {
    base: Arc<Model>,
    tokenizer: Arc<Tokenizer>,
    loras: Vec<Lora>,
    prompts: Vec<Vec<u32>>,
    names: Vec<Mutex<Name>>,
    alone: Mutex<BTreeMap<Question, Vec<u32>>>,
    address: SocketAddr,
    admin_key: String,
    /// One for each client, good for one request at a time.
    keys: Vec<String>,
    counts: Counts,
    length: Length,
    clock: Arc<SystemClock>,
    started_s: f64,
    is_over: AtomicBool,
}

/// How a client treats an exchange.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Manner {
    Plain,
    /// Sends and reads in small parts, with pauses.
    Slow,
    /// Goes away after so many bytes of the reply.
    Leaves(usize),
    /// Goes away after half of the request.
    HalfSent,
}

/// A reply, as far as it was read.
struct Reply {
    status: u16,
    text: String,
    retry_after: Option<u32>,
}

impl World {
    fn is_over(&self) -> bool {
        let Length {
            n_exchanges,
            seconds,
        } = self.length;
        let is_done = self.counts.exchanges.load(Ordering::Relaxed) >= n_exchanges
            && self.clock.monotonic_s() - self.started_s >= seconds;
        if is_done {
            self.is_over.store(true, Ordering::Release);
        }
        self.is_over.load(Ordering::Acquire)
    }

    /// One request on a connection of its own; `None` if the client left.
    fn exchange(&self, path: &str, key: &str, body: &[u8], manner: Manner) -> Option<Reply> {
        count(&self.counts.exchanges);
        let mut stream = TcpStream::connect(self.address).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let head = format!(
            "POST {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Length: {}\r\n\
             Content-Type: application/json\r\nAuthorization: Bearer {key}\r\n\r\n",
            body.len()
        );
        let request = [head.as_bytes(), body].concat();
        let sent = match manner {
            Manner::HalfSent => {
                // Whatever becomes of it: this client is gone.
                let _ = stream.write_all(&request[..request.len() / 2]);
                return None;
            }
            Manner::Slow => request.chunks(request.len() / 4 + 1).try_for_each(|part| {
                thread::park_timeout(Duration::from_millis(2));
                stream.write_all(part)
            }),
            Manner::Plain | Manner::Leaves(_) => stream.write_all(&request),
        };
        // A server that refuses early may close before it has read all.
        let was_sent = sent.is_ok();
        let mut bytes = Vec::new();
        let read = match manner {
            Manner::Leaves(n) => {
                stream.take(n as u64).read_to_end(&mut bytes).unwrap();
                return None;
            }
            Manner::Slow => read_slowly(&mut stream, &mut bytes),
            Manner::Plain | Manner::HalfSent => stream.read_to_end(&mut bytes).map(drop),
        };
        assert!(read.is_ok() || !was_sent || !bytes.is_empty(), "{read:?}");
        Some(parse(&bytes))
    }

    /// The versions that a name stood for since `from`.
    fn versions(&self, name: usize, from: usize) -> Vec<Option<usize>> {
        self.names[name].lock().unwrap().versions[from..].to_vec()
    }

    /// The tokens of a request that is computed alone.
    fn alone(&self, pool: &Pool, question: Question) -> Vec<u32> {
        if let Some(known) = self.alone.lock().unwrap().get(&question) {
            return known.clone();
        }
        let (adapter, prompt, seed) = question;
        let mut tokens = self.prompts[prompt].clone();
        let n_prompt = tokens.len();
        let mut cache = KvCache::new(self.base.config(), n_prompt + MAX_TOKENS);
        let sampling = Sampling {
            temperature: if seed > 0 { 1.1 } else { 0.0 },
            top_p: 0.9,
            seed,
            ..Sampling::GREEDY
        };
        let mut sampler = Sampler::for_prompt(sampling, &tokens, self.tokenizer.end_ids());
        while tokens.len() < n_prompt + MAX_TOKENS {
            let mut segments = [Segment {
                tokens: &tokens[cache.len()..],
                cache: &mut cache,
                adapter: adapter.map(|adapter| &self.loras[adapter]),
            }];
            let logits = self.base.forward(pool, &mut segments).unwrap();
            let id = sampler.next(&logits).unwrap();
            if sampler.is_end(id) {
                break;
            }
            tokens.push(id);
        }
        let answer = tokens.split_off(n_prompt);
        self.alone.lock().unwrap().insert(question, answer.clone());
        answer
    }

    /// One client: exchanges one after the other, of every kind.
    fn client(&self, client: usize) {
        let pool = Pool::new(1);
        let mut random = Random::new(1_000 + client as u64);
        while !self.is_over() {
            match random.below(100) {
                0..82 => self.ask(client, &pool, &mut random),
                82..88 => {
                    let body = vec![b' '; BODY_SIZE_BYTES_MAX + 1 + random.below(1 << 20)];
                    let reply = self.exchange(PATH, &self.keys[client], &body, Manner::Plain);
                    assert_eq!(reply.unwrap().status, 413);
                    count(&self.counts.oversize);
                }
                88..94 => self.make_no_sense(client, &mut random),
                _ => {
                    let body = json!({"prompt": "how and why", "model": "base"}).to_string();
                    let key = &self.keys[client];
                    let reply = self.exchange("/tokenize", key, body.as_bytes(), Manner::Slow);
                    assert_eq!(reply.unwrap().status, 200);
                }
            }
        }
    }

    fn ask(&self, client: usize, pool: &Pool, random: &mut Random) {
        // Few names are asked for often, most of them seldom.
        let name = random.below(N_ADAPTERS).min(random.below(N_ADAPTERS));
        let name = (random.below(8) > 0).then_some(name);
        let from = name.map_or(0, |name| self.names[name].lock().unwrap().n_confirmed);
        let (prompt, seed) = (random.below(N_PROMPTS), random.below(3) as u64);
        let is_stream = random.below(2) == 0;
        let has_little_time = random.below(12) == 0;
        let mut body = json!({
            "model": name.map_or_else(|| "base".to_owned(), |name| format!("a{name}")),
            "prompt": self.prompts[prompt], "max_tokens": MAX_TOKENS, "seed": seed,
            "temperature": if seed > 0 { 1.1 } else { 0.0 }, "top_p": 0.9,
            "return_token_ids": true, "stream": is_stream,
        });
        if has_little_time {
            body["timeout"] = json!(0.001 * (1 + random.below(30)) as f64);
        }
        let manner = match random.below(20) {
            0..3 => Manner::Leaves(random.below(3_000)),
            3 => Manner::HalfSent,
            4..7 => Manner::Slow,
            _ => Manner::Plain,
        };
        let body = body.to_string();
        let reply = self.exchange(PATH, &self.keys[client], body.as_bytes(), manner);
        let Some(reply) = reply else {
            let was_sent = manner != Manner::HalfSent;
            return count(if was_sent {
                &self.counts.left
            } else {
                &self.counts.half_sent
            });
        };
        // Nothing else can have been meant by the name.
        let versions = name.map_or_else(|| vec![None], |name| self.versions(name, from));
        let is_unloaded = name.is_some() && versions.contains(&None);
        let is_broken = versions.iter().flatten().any(|version| *version < N_BROKEN);
        match reply.status {
            200 => {}
            404 if is_unloaded => return count(&self.counts.unloaded),
            408 if has_little_time => return count(&self.counts.late),
            429 => {
                assert!(reply.retry_after.is_some_and(|s| s > 0), "{}", reply.text);
                return count(&self.counts.overloaded);
            }
            503 if is_broken => {
                assert!(reply.text.contains("its files"), "{}", reply.text);
                return count(&self.counts.broken);
            }
            status => panic!("{status}: {}", reply.text),
        }
        let (ids, end) = if is_stream {
            streamed(&reply.text)
        } else {
            whole(&reply.text)
        };
        let expected = versions
            .iter()
            .filter(|version| name.is_none() || version.is_some());
        let expected: Vec<Vec<u32>> = expected
            .map(|version| self.alone(pool, (*version, prompt, seed)))
            .collect();
        match end {
            End::Failed(said) if has_little_time && said.contains("time") => {
                return count(&self.counts.late);
            }
            End::Failed(said) if is_broken && said.contains("its files") => {
                return count(&self.counts.broken);
            }
            End::Failed(said) => panic!("{said}"),
            End::Done if expected.contains(&ids) => {}
            End::Done => {
                let is_beginning = expected.iter().any(|all| all.starts_with(&ids));
                assert!(
                    has_little_time && is_beginning,
                    "a wrong token: {ids:?} of {expected:?}"
                );
                return count(&self.counts.late);
            }
        }
        count(&self.counts.answered);
        if is_stream {
            count(&self.counts.streamed);
        }
        if manner == Manner::Slow {
            count(&self.counts.slow);
        }
    }

    fn make_no_sense(&self, client: usize, random: &mut Random) {
        let key = &self.keys[client];
        let (path, key, body, status): (_, _, &[u8], _) = match random.below(6) {
            0 => (PATH, key.as_str(), b"{\"model\": \"base\"", 400),
            1 => (
                PATH,
                key,
                b"{\"model\": \"nobody\", \"prompt\": \"x\"}",
                404,
            ),
            2 => (
                PATH,
                key,
                b"{\"model\": \"base\", \"prompt\": [99999999]}",
                400,
            ),
            3 => (
                PATH,
                "made up",
                b"{\"model\": \"base\", \"prompt\": \"x\"}",
                401,
            ),
            4 => (
                "/v1/load_lora_adapter",
                key,
                b"{\"lora_name\": \"x\", \"lora_path\": \"0\"}",
                403,
            ),
            _ => ("/nowhere", key, b"", 404),
        };
        let reply = self.exchange(path, key, body, Manner::Plain).unwrap();
        // A key that is in use may not be used twice.
        assert!(
            reply.status == status || reply.status == 429,
            "{}: {}",
            reply.status,
            reply.text
        );
        count(&self.counts.senseless);
    }

    /// Replaces and unloads adapters all the time.
    fn operator(&self) {
        let mut random = Random::new(5);
        while !self.is_over() {
            let (name, dir) = (random.below(N_ADAPTERS), random.below(N_ADAPTERS));
            let is_unload = random.below(6) == 0;
            self.rename(name, (!is_unload).then_some(dir));
            thread::park_timeout(Duration::from_millis(4));
        }
    }

    /// Puts an adapter, or none, under a name.
    fn rename(&self, name: usize, version: Option<usize>) {
        self.names[name].lock().unwrap().versions.push(version);
        let lora_name = format!("a{name}");
        let (path, body) = match version {
            Some(dir) => {
                let body = json!({"lora_name": lora_name, "lora_path": dir.to_string(), "load_inplace": true});
                ("/v1/load_lora_adapter", body)
            }
            None => ("/v1/unload_lora_adapter", json!({"lora_name": lora_name})),
        };
        let body = body.to_string();
        let reply = self
            .exchange(path, &self.admin_key, body.as_bytes(), Manner::Plain)
            .unwrap();
        let is_broken = version.is_some_and(|dir| dir < N_BROKEN);
        match reply.status {
            200 => {}
            // It had no adapter before, which is the same.
            404 if version.is_none() => {}
            // Refused: the name stands for what it stood for.
            400 if is_broken => return count(&self.counts.broken),
            status => panic!("{status}: {}", reply.text),
        }
        let mut known = self.names[name].lock().unwrap();
        known.n_confirmed = known.versions.len() - 1;
        count(&self.counts.replaced);
    }

    /// The store's folder cannot be written to for a while, again and again, and
    /// sometimes loses all it had.
    fn saboteur(&self, folder: &Path) {
        let (cache, aside) = (folder.join("cache"), folder.join("aside"));
        while !self.is_over() {
            thread::park_timeout(Duration::from_millis(200));
            fs::rename(&cache, &aside).unwrap();
            // The store may have made a new one in between.
            if fs::write(&cache, "in the way").is_ok() {
                count(&self.counts.sabotaged);
                thread::park_timeout(Duration::from_millis(200));
                fs::remove_file(&cache).unwrap();
            }
            if fs::rename(&aside, &cache).is_err() {
                fs::remove_dir_all(&aside).unwrap();
                fs::create_dir_all(&cache).unwrap();
            }
        }
    }
}

fn read_slowly(stream: &mut TcpStream, bytes: &mut Vec<u8>) -> io::Result<()> {
    let mut part = [0; 96];
    loop {
        let n = stream.read(&mut part)?;
        if n == 0 {
            return Ok(());
        }
        bytes.extend_from_slice(&part[..n]);
        thread::park_timeout(Duration::from_micros(200));
    }
}

fn parse(bytes: &[u8]) -> Reply {
    let text = std::str::from_utf8(bytes).unwrap();
    let (head, body) = text.split_once("\r\n\r\n").expect("a whole head");
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    let head = head.to_ascii_lowercase();
    let field = |name: &str| {
        let mut lines = head.lines();
        lines.find_map(|line| Some(line.strip_prefix(name)?.trim().to_owned()))
    };
    let is_chunked = field("transfer-encoding:").is_some_and(|coding| coding == "chunked");
    Reply {
        status,
        text: if is_chunked {
            unchunk(body)
        } else {
            body.to_owned()
        },
        retry_after: field("retry-after:").and_then(|s| s.parse().ok()),
    }
}

fn unchunk(mut body: &str) -> String {
    let mut text = String::new();
    while let Some((size, rest)) = body.split_once("\r\n") {
        let size = usize::from_str_radix(size, 16).unwrap();
        if size == 0 {
            break;
        }
        text.push_str(&rest[..size]);
        body = rest[size..].strip_prefix("\r\n").unwrap();
    }
    text
}

enum End {
    Done,
    Failed(String),
}

fn ids_of(choice: &Value) -> Vec<u32> {
    serde_json::from_value(choice["token_ids"].clone()).unwrap_or_default()
}

fn whole(text: &str) -> (Vec<u32>, End) {
    let reply: Value = serde_json::from_str(text).unwrap();
    (ids_of(&reply["choices"][0]), End::Done)
}

fn streamed(text: &str) -> (Vec<u32>, End) {
    let mut ids = Vec::new();
    for event in text.split("\n\n") {
        let Some(data) = event.strip_prefix("data: ") else {
            continue;
        };
        if data == "[DONE]" {
            return (ids, End::Done);
        }
        let chunk: Value = serde_json::from_str(data).unwrap();
        if let Some(error) = chunk.get("error") {
            return (
                ids,
                End::Failed(error["message"].as_str().unwrap().to_owned()),
            );
        }
        ids.extend(ids_of(&chunk["choices"][0]));
    }
    panic!("a stream without an end: {text}");
}

fn n_files_open() -> usize {
    fs::read_dir("/proc/self/fd").unwrap().count()
}

fn prompts(n_vocab: usize) -> Vec<Vec<u32>> {
    let mut random = Random::new(77);
    let prompt = |i: usize| -> Vec<u32> {
        // Every third begins like the one before it.
        let n = 20 + 15 * (i % 7);
        let ids = (0..n).map(|at| {
            let id = if at < 40 {
                3 + at * (i / 3 + 1)
            } else {
                random.below(n_vocab)
            };
            u32::try_from(id % n_vocab).unwrap()
        });
        ids.collect()
    };
    (0..N_PROMPTS).map(prompt).collect()
}

fn key(plain: &Plain, scopes: &[Scope], concurrent: Option<u32>) -> String {
    let new = NewKey {
        account: None,
        label: "soak".to_owned(),
        scopes: scopes.to_vec(),
        limits: KeyLimits {
            concurrent,
            ..KeyLimits::default()
        },
    };
    plain.keys().add(new).unwrap().expose().to_owned()
}

/// Runs it, and checks that nothing is left behind: no request, page, lease or
/// byte of an adapter, no place of a key, no connection.
pub(crate) fn run(length: Length) -> Counts {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let texts = ["how and why and how", "café 🦀"];
    let tokenizer = Arc::new(Tokenizer::train(texts.into_iter().map(str::to_owned), 280).unwrap());
    let base = Arc::new(model(&tokenizer));
    let (mut loras, mut dirs, mut size_bytes) = (Vec::new(), Vec::new(), 0);
    for i in 0..N_ADAPTERS {
        let lora = lora(&base, [4, 8, 16, 32][i % 4], i as u64);
        let dir = folder.join(format!("adapters/{i}"));
        lora.save(&dir, "soak").unwrap();
        size_bytes += lora.resident_size_bytes() as u64;
        loras.push(lora);
        dirs.push(dir);
    }
    let clock = Arc::new(SystemClock::new());
    let options = AdapterStoreOptions {
        host_budget_bytes: size_bytes / 3,
        dir: Some(folder.join("cache")),
        disk_budget_bytes: size_bytes / 2,
        roots: vec![folder.join("adapters")],
        failure_memory_s: 0.1,
        ..AdapterStoreOptions::default()
    };
    let components = AdapterComponents::new(Arc::clone(&clock) as _);
    let store = AdapterStore::open(base.config(), options, components).unwrap();
    let options = EngineOptions {
        n_rows_max: 4,
        n_kv_tokens_max: 640,
        n_step_tokens_max: 64,
        n_waiting_max: 5,
        n_waiting_per_tenant_max: 4,
        ..EngineOptions::default()
    };
    let engine =
        EngineHandle::start(Arc::clone(&base), Arc::clone(&tokenizer), 1, options).unwrap();
    let options = PlainOptions {
        n_requests_max: N_REQUESTS_MAX,
        ..PlainOptions::new(folder.join("keys"), "base")
    };
    let plain = Plain::new(
        options,
        engine.clone(),
        store.clone(),
        Arc::clone(&clock) as _,
    )
    .unwrap();
    let admin_key = key(&plain, &[Scope::Admin], None);
    let keys = (0..N_CLIENTS).map(|_| key(&plain, &[Scope::Infer], Some(1)));
    let keys = keys.collect();
    let runtime = Runtime::new().unwrap();
    let n_files_before = n_files_open();
    let listener = runtime
        .block_on(tokio::net::TcpListener::bind("127.0.0.1:0"))
        .unwrap();
    let address = listener.local_addr().unwrap();
    let (state, stop) = (ApiState::new(), Shutdown::new());
    state.set_ready(plain.clone());
    let served = api::serve_on(state, Access::default(), None, listener, stop.clone());
    let served = runtime.spawn(served);
    let world = World {
        prompts: prompts(tokenizer.vocab_size()),
        names: (0..N_ADAPTERS)
            .map(|_| {
                Mutex::new(Name {
                    versions: vec![None],
                    n_confirmed: 0,
                })
            })
            .collect(),
        base,
        tokenizer,
        loras,
        alone: Mutex::default(),
        address,
        admin_key,
        keys,
        counts: Counts::default(),
        length,
        started_s: clock.monotonic_s(),
        clock,
        is_over: AtomicBool::new(false),
    };
    for i in 0..N_ADAPTERS {
        world.rename(i, Some(i));
    }
    for dir in &dirs[..N_BROKEN] {
        let weights = dir.join("adapter_model.safetensors");
        let bytes = fs::read(&weights).unwrap();
        fs::write(weights, &bytes[..bytes.len() / 2]).unwrap();
    }
    thread::scope(|scope| {
        let world = &world;
        for client in 0..N_CLIENTS {
            scope.spawn(move || world.client(client));
        }
        scope.spawn(|| world.operator());
        scope.spawn(|| world.saboteur(folder));
        while !world.is_over() {
            thread::park_timeout(Duration::from_millis(100));
            world
                .counts
                .memory_bytes
                .lock()
                .unwrap()
                .push(resident_bytes());
        }
    });

    // Those whose clients left are noticed by the next pass.
    let is_idle = || {
        let stats = engine.stats();
        stats.n_running + stats.n_waiting == 0 && plain.n_requests() == 0
    };
    while !is_idle() {
        assert!(
            world.clock.monotonic_s() - world.started_s < 3_600.0,
            "{:?}",
            engine.stats()
        );
        thread::yield_now();
    }
    assert_eq!(engine.stats().n_pages_used, 0, "pages were lost");
    // A key that is good for one request at a time has its place again.
    for key in &world.keys {
        let body = br#"{"model": "base", "prompt": "x", "max_tokens": 1}"#;
        let reply = world.exchange(PATH, key, body, Manner::Plain).unwrap();
        assert_eq!(reply.status, 200, "{}", reply.text);
    }
    for name in store.names() {
        store.unload(&name).unwrap();
    }
    let stats = store.stats();
    assert_eq!(
        (stats.n_versions, stats.n_waiting, stats.host.used_bytes),
        (0, 0, 0)
    );
    stop.trigger();
    runtime.block_on(async {
        tokio::time::timeout(PATIENCE, served)
            .await
            .expect("every connection ends")
            .unwrap();
        plain.shutdown().await;
    });
    let n_files_after = n_files_open();
    assert!(
        n_files_after <= n_files_before,
        "{n_files_before} files were open, {n_files_after} are"
    );
    world.counts
}
