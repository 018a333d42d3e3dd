//! Goal: a real vLLM works behind the gateway: adapters, tokens, streams, forms,
//! log-probabilities, clients that leave, draining, and its death.
//! Method: vLLM's CPU backend serves the shipped base on loopback, beside one
//! worker of our own; every answer that comes through the gateway is compared
//! with what vLLM says when it is asked directly.
//!
//! Needs `OPENLEDGER_VLLM_PYTHON`, a Python in which `vllm` can be imported.
//! `cargo xtask test --vllm` runs it; it is no part of `cargo test`.
#![expect(
    clippy::unwrap_used,
    reason = "helpers of tests: a broken fixture should fail them"
)]

use std::fs::{self, File};
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use ol_model::{Model, Tokenizer};
use ol_runtime::{Clock as _, Shutdown, SystemClock};
use ol_serve::{AdapterComponents, AdapterStore, AdapterStoreOptions, EngineHandle, EngineOptions};
use ol_server::api::{self, ApiState};
use ol_server::fleet::{
    Fleet, FleetOptions, WorkerHealth, WorkerKind, WorkerOptions, WorkerStatus,
};
use ol_server::keys::{KeyLimits, NewKey, Scope};
use ol_server::plain::{Plain, PlainOptions};
use ol_server::{Access, Backend};
use serde_json::{Map, Value, json};
use tempfile::TempDir;
use tokio::runtime::Runtime;

/// Adapters that vLLM holds: fewer than there are.
const ADAPTERS_MAX: usize = 2;
const ADAPTERS: [&str; 3] = ["legal", "healthcare", "defi-exploits"];

/// How long vLLM may take to start: it imports torch in three processes.
const START_MAX_S: f64 = 280.0;

fn assets(of: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../../assets")
        .join(of)
}

/// Waits until something is so.
#[track_caller]
fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    let clock = SystemClock::new();
    let started_s = clock.monotonic_s();
    while !is_so() {
        assert!(
            clock.monotonic_s() - started_s < 60.0,
            "not in a minute: {what}"
        );
        thread::park_timeout(Duration::from_millis(20));
    }
}

/// vLLM's server and its children.
struct Vllm {
    child: Child,
    address: SocketAddr,
}

impl Vllm {
    fn start(log: &Path) -> Self {
        let python = std::env::var("OPENLEDGER_VLLM_PYTHON")
            .expect("OPENLEDGER_VLLM_PYTHON names a Python with vllm");
        let free = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = free.local_addr().unwrap();
        drop(free);
        let file = File::create(log).unwrap();
        let child = Command::new(python)
            .args(["-m", "vllm.entrypoints.openai.api_server", "--model"])
            .arg(assets("base"))
            .args([
                "--served-model-name",
                "base",
                "--host",
                "127.0.0.1",
                "--port",
            ])
            .arg(address.port().to_string())
            .args([
                "--dtype",
                "float32",
                "--enforce-eager",
                "--enable-lora",
                "--max-loras",
                "2",
            ])
            .args([
                "--max-cpu-loras",
                &ADAPTERS_MAX.to_string(),
                "--max-lora-rank",
                "16",
            ])
            .args(["--max-model-len", "512", "--max-num-seqs", "16"])
            // A model this small fills the space between the parts of JSON.
            .arg("--structured-outputs-config")
            .arg(r#"{"backend": "xgrammar", "disable_any_whitespace": true}"#)
            .env("VLLM_ALLOW_RUNTIME_LORA_UPDATING", "True")
            .env("VLLM_CPU_KVCACHE_SPACE", "1")
            .env("VLLM_CPU_OMP_THREADS_BIND", "nobind")
            .env("VLLM_NO_USAGE_STATS", "1")
            .env("HF_HUB_OFFLINE", "1")
            .env("OMP_NUM_THREADS", "2")
            // The first log-probabilities wait for a compiler otherwise.
            .env("TORCH_COMPILE_DISABLE", "1")
            // Without bytecode each of its processes compiles all of torch.
            .env_remove("PYTHONDONTWRITEBYTECODE")
            .stdin(Stdio::null())
            .stdout(file.try_clone().unwrap())
            .stderr(file)
            .process_group(0)
            .spawn()
            .unwrap();
        let mut vllm = Self { child, address };
        let clock = SystemClock::new();
        let started_s = clock.monotonic_s();
        while get(address, "/health").is_none_or(|(status, _)| status != 200) {
            let ended = vllm.child.try_wait().unwrap();
            let is_late = clock.monotonic_s() - started_s > START_MAX_S;
            if ended.is_some() || is_late {
                let said = fs::read(log).unwrap();
                let tail = String::from_utf8_lossy(&said[said.len().saturating_sub(4_000)..]);
                panic!("vLLM did not start ({ended:?}):\n{tail}");
            }
            thread::park_timeout(Duration::from_millis(200));
        }
        println!("vLLM started in {:.0} s", clock.monotonic_s() - started_s);
        vllm
    }

    /// All its processes, without a word.
    fn kill(&mut self) {
        let group = format!("-{}", self.child.id());
        let killed = Command::new("kill").args(["-KILL", "--", &group]).status();
        assert!(killed.unwrap().success());
        self.child.wait().unwrap();
    }

    fn ask(&self, body: &Value) -> Value {
        let (status, text) = post(self.address, "/v1/completions", None, body);
        assert_eq!(status, 200, "{text}");
        serde_json::from_str(&text).unwrap()
    }

    fn n_running(&self) -> f64 {
        let (_, text) = get(self.address, "/metrics").unwrap();
        let line = text
            .lines()
            .find(|line| line.starts_with("vllm:num_requests_running"));
        line.unwrap().rsplit(' ').next().unwrap().parse().unwrap()
    }
}

impl Drop for Vllm {
    fn drop(&mut self) {
        if self.child.try_wait().is_ok_and(|ended| ended.is_none()) {
            self.kill();
        }
    }
}

fn agent() -> ureq::Agent {
    ureq::Agent::config_builder()
        .http_status_as_error(false)
        .build()
        .into()
}

fn read(mut response: ureq::http::Response<ureq::Body>) -> (u16, String) {
    let text = response.body_mut().read_to_string().unwrap();
    (response.status().as_u16(), text)
}

fn get(address: SocketAddr, path: &str) -> Option<(u16, String)> {
    agent()
        .get(format!("http://{address}{path}"))
        .call()
        .ok()
        .map(read)
}

fn post(address: SocketAddr, path: &str, key: Option<&str>, body: &Value) -> (u16, String) {
    let mut request = agent().post(format!("http://{address}{path}"));
    request = request.header("Content-Type", "application/json");
    if let Some(key) = key {
        request = request.header("Authorization", format!("Bearer {key}"));
    }
    read(request.send(body.to_string().as_bytes()).unwrap())
}

struct Served {
    address: SocketAddr,
    plain: Plain,
    admin_key: String,
    stop: Shutdown,
}

fn serve(runtime: &Runtime, dir: &Path, backend: Backend, roots: PathBuf) -> Served {
    let clock: Arc<SystemClock> = Arc::new(SystemClock::new());
    let base = Model::load(&assets("base")).unwrap();
    let options = AdapterStoreOptions {
        roots: vec![roots],
        ..AdapterStoreOptions::default()
    };
    let components = AdapterComponents::new(Arc::clone(&clock) as _);
    let store = AdapterStore::open(base.config(), options, components).unwrap();
    let options = PlainOptions {
        is_open: true,
        ..PlainOptions::new(dir.to_owned(), "base")
    };
    let plain = Plain::new(options, backend, store, clock).unwrap();
    let new = NewKey {
        account: None,
        label: "admin".to_owned(),
        scopes: vec![Scope::Admin, Scope::Infer],
        limits: KeyLimits::default(),
    };
    let admin_key = plain.keys().add(new).unwrap().expose().to_owned();
    let listener = runtime
        .block_on(tokio::net::TcpListener::bind("127.0.0.1:0"))
        .unwrap();
    let address = listener.local_addr().unwrap();
    let (state, stop) = (ApiState::new(), Shutdown::new());
    state.set_ready(plain.clone());
    runtime.spawn(api::serve_on(
        state,
        Access::default(),
        None,
        listener,
        stop.clone(),
    ));
    Served {
        address,
        plain,
        admin_key,
        stop,
    }
}

struct World {
    vllm: Vllm,
    gateway: Served,
    own: Served,
    fleet: Fleet,
    tokenizer: Arc<Tokenizer>,
    runtime: Runtime,
    _dir: TempDir,
}

impl World {
    fn new() -> Self {
        let dir = TempDir::new().unwrap();
        let vllm = Vllm::start(&dir.path().join("vllm.log"));
        let runtime = Runtime::new().unwrap();
        let tokenizer = Arc::new(Tokenizer::load(&assets("base")).unwrap());
        let base = Arc::new(Model::load(&assets("base")).unwrap());
        let adapters = dir.path().join("fleet-adapters");
        fs::create_dir(&adapters).unwrap();
        let engine = EngineHandle::start(
            Arc::clone(&base),
            Arc::clone(&tokenizer),
            1,
            EngineOptions::default(),
        );
        let own_keys = dir.path().join("own");
        let own = serve(
            &runtime,
            &own_keys,
            engine.unwrap().into(),
            adapters.clone(),
        );
        let workers = vec![
            WorkerOptions {
                name: "vllm".to_owned(),
                kind: WorkerKind::Vllm,
                adapters_max: ADAPTERS_MAX,
                ..WorkerOptions::new(&format!("http://{}", vllm.address))
            },
            WorkerOptions {
                name: "own".to_owned(),
                admin_key: Some(own.admin_key.clone()),
                ..WorkerOptions::new(&format!("http://{}", own.address))
            },
        ];
        let shape = (base.config().vocab_size, 512);
        let options = FleetOptions {
            probe_interval: Duration::from_millis(500),
            ..FleetOptions::new(
                workers,
                base.hash(),
                Arc::clone(&tokenizer),
                shape,
                adapters,
            )
        };
        let clock = Arc::new(SystemClock::new());
        let fleet = runtime.block_on(Fleet::start(options, clock)).unwrap();
        let keys = dir.path().join("gateway");
        let gateway = serve(&runtime, &keys, fleet.clone().into(), assets("models"));
        Self {
            vllm,
            gateway,
            own,
            fleet,
            tokenizer,
            runtime,
            _dir: dir,
        }
    }

    /// Sends requests to one worker only.
    fn only(&self, name: &str) {
        for worker in self.fleet.status() {
            self.fleet
                .set_drained(&worker.name, worker.name != name)
                .unwrap();
        }
    }

    fn all(&self) {
        for worker in self.fleet.status() {
            self.fleet.set_drained(&worker.name, false).unwrap();
        }
    }

    fn status(&self, name: &str) -> WorkerStatus {
        let status = self.fleet.status();
        status
            .into_iter()
            .find(|worker| worker.name == name)
            .unwrap()
    }

    fn ask(&self, body: &Value) -> Value {
        let (status, text) = post(self.gateway.address, "/v1/completions", None, body);
        assert_eq!(status, 200, "{text}\n{:?}", self.fleet.status());
        serde_json::from_str(&text).unwrap()
    }

    fn prompt(&self, question: &str) -> Vec<u32> {
        let text = format!("<|user|>{question}<|assistant|>");
        self.tokenizer.encode_prompt(&text).unwrap()
    }

    fn body(&self, adapter: &str, question: &str) -> Value {
        json!({
            "model": adapter, "prompt": self.prompt(question), "max_tokens": 24,
            "temperature": 0, "return_token_ids": true,
        })
    }

    /// The name under which workers know an adapter of the gateway.
    fn worker_name(&self, adapter: &str) -> String {
        let infos = self.gateway.plain.adapters().list();
        let info = infos.into_iter().find(|info| info.name == adapter).unwrap();
        format!("adapter@{}", &info.hash.to_string()[2..18])
    }

    /// The same question to vLLM itself.
    fn directly(&self, body: &Value) -> Value {
        let mut body = body.clone();
        let model = body["model"].as_str().unwrap();
        if model != "base" {
            body["model"] = self.worker_name(model).into();
        }
        self.vllm.ask(&body)
    }
}

/// The token ids of the one answer, without the end token that vLLM counts.
fn ids(reply: &Value, tokenizer: &Tokenizer) -> Vec<u32> {
    let choice = &reply["choices"][0];
    let mut ids: Vec<u32> = serde_json::from_value(choice["token_ids"].clone()).unwrap();
    if choice["finish_reason"] == "stop" {
        let stop = choice["stop_reason"].as_u64();
        ids.pop_if(|id| tokenizer.is_end(*id) || stop == Some(u64::from(*id)));
    }
    ids
}

fn with(mut body: Value, more: Value) -> Value {
    let Value::Object(more) = more else {
        panic!("{more}")
    };
    body.as_object_mut().unwrap().extend(more);
    body
}

fn chunks(text: &str) -> Vec<Value> {
    let data = text
        .split("\n\n")
        .filter_map(|event| event.strip_prefix("data: "));
    data.filter(|data| *data != "[DONE]")
        .map(|data| serde_json::from_str(data).unwrap())
        .collect()
}

#[test]
fn a_real_vllm_serves_behind_the_gateway() {
    let mut world = World::new();
    adapters_are_loaded_and_evicted(&world);
    tokens_are_those_of_vllm(&world);
    forms_and_log_probabilities_are_passed_on(&world);
    streams_add_up(&world);
    a_client_that_leaves_frees_vllm(&world);
    a_drained_worker_gets_nothing(&world);
    another_worker_answers_when_vllm_dies(&mut world);
    world.gateway.stop.trigger();
    world.own.stop.trigger();
    world.runtime.block_on(world.fleet.shutdown());
}

fn adapters_are_loaded_and_evicted(world: &World) {
    world.only("vllm");
    for name in ADAPTERS {
        let body = json!({"lora_name": name, "lora_path": name});
        let key = Some(world.gateway.admin_key.as_str());
        let (status, text) = post(world.gateway.address, "/v1/load_lora_adapter", key, &body);
        assert_eq!(status, 200, "{text}");
    }
    // The third takes the place of the first, which comes back.
    for name in ["legal", "healthcare", "defi-exploits", "legal", "base"] {
        world.ask(&world.body(name, "What is a contract?"));
    }
    let (_, text) = get(world.vllm.address, "/v1/models").unwrap();
    let models: Value = serde_json::from_str(&text).unwrap();
    let mut held: Vec<&str> = models["data"]
        .as_array()
        .unwrap()
        .iter()
        .map(|card| card["id"].as_str().unwrap())
        .filter(|id| *id != "base")
        .collect();
    held.sort_unstable();
    let mut expected = [
        world.worker_name("legal"),
        world.worker_name("defi-exploits"),
    ];
    expected.sort_unstable();
    assert_eq!(held, expected);
    assert_eq!(world.status("vllm").n_adapters, ADAPTERS_MAX);
}

fn tokens_are_those_of_vllm(world: &World) {
    let (mut n_same, mut n_asked) = (0, 0);
    for name in ["legal", "base", "healthcare", "legal"] {
        for question in [
            "What is a contract?",
            "Who may sue?",
            "How was the bridge hacked?",
        ] {
            for more in [
                json!({}),
                json!({"temperature": 0.9, "top_p": 0.8, "seed": 11}),
                json!({"presence_penalty": 0.5, "repetition_penalty": 1.2, "min_tokens": 5}),
                json!({"logit_bias": {"17": -100}, "stop_token_ids": [202]}),
            ] {
                let body = with(world.body(name, question), more);
                let given = world.ask(&body);
                let direct = world.directly(&body);
                assert_eq!(
                    ids(&given, &world.tokenizer),
                    ids(&direct, &world.tokenizer),
                    "{body}"
                );
                for field in ["finish_reason", "stop_reason"] {
                    assert_eq!(
                        given["choices"][0][field], direct["choices"][0][field],
                        "{body}"
                    );
                }
            }
            // Another arithmetic: nearly always the same greedy tokens.
            let body = world.body(name, question);
            let theirs = ids(&world.ask(&body), &world.tokenizer);
            world.only("own");
            let ours = ids(&world.ask(&body), &world.tokenizer);
            world.only("vllm");
            n_asked += ours.len().max(theirs.len());
            n_same += ours.iter().zip(&theirs).take_while(|(a, b)| a == b).count();
        }
    }
    println!("greedy tokens up to the first that differs from our engine's: {n_same} of {n_asked}");
    assert!(n_same * 2 > n_asked);
}

fn forms_and_log_probabilities_are_passed_on(world: &World) {
    let schema = json!({
        "type": "object", "additionalProperties": false, "required": ["sure", "law"],
        "properties": {"sure": {"type": "boolean"}, "law": {"enum": ["civil", "criminal"]}},
    });
    let body = world.body("legal", "Is theft a crime?");
    let long = with(body.clone(), json!({"max_tokens": 200}));
    let format = json!({"type": "json_schema", "json_schema": {"name": "a", "schema": schema}});
    let given = world.ask(&with(long.clone(), json!({"response_format": format})));
    let text = given["choices"][0]["text"].as_str().unwrap();
    let object: Map<String, Value> = serde_json::from_str(text).unwrap();
    assert!(
        object["sure"].is_boolean() && object["law"].is_string(),
        "{text}"
    );
    for (form, expected) in [
        (json!({"choice": ["guilty", "free"]}), ["guilty", "free"]),
        (json!({"regex": "(yes|no)!"}), ["yes!", "no!"]),
    ] {
        let given = world.ask(&with(long.clone(), json!({"structured_outputs": form})));
        let text = given["choices"][0]["text"].as_str().unwrap();
        assert!(expected.contains(&text), "{text}");
    }

    let body = with(
        body,
        json!({"logprobs": 3, "return_tokens_as_token_ids": true}),
    );
    let given = world.ask(&body)["choices"][0]["logprobs"].clone();
    let direct = world.directly(&body)["choices"][0]["logprobs"].clone();
    world.only("own");
    let ours = world.ask(&body)["choices"][0]["logprobs"].clone();
    world.only("vllm");
    let n = given["tokens"].as_array().unwrap().len();
    assert!(n > 3, "{given}");
    for (at, token) in given["tokens"].as_array().unwrap().iter().enumerate() {
        assert_eq!(*token, direct["tokens"][at]);
        assert_eq!(given["token_logprobs"][at], direct["token_logprobs"][at]);
        assert_eq!(given["top_logprobs"][at].as_object().unwrap().len(), 3);
    }
    let (a, b) = (
        given["token_logprobs"][0].as_f64(),
        ours["token_logprobs"][0].as_f64(),
    );
    assert!((a.unwrap() - b.unwrap()).abs() < 1e-3, "{a:?} {b:?}");
}

fn streams_add_up(world: &World) {
    let body = world.body("legal", "What is a contract?");
    let whole = world.ask(&body);
    let body = with(body, json!({"stream": true}));
    let (status, text) = post(world.gateway.address, "/v1/completions", None, &body);
    assert_eq!(status, 200, "{text}");
    assert!(text.ends_with("data: [DONE]\n\n"));
    let chunks = chunks(&text);
    let sum: String = chunks
        .iter()
        .filter_map(|c| c["choices"][0]["text"].as_str())
        .collect();
    assert_eq!(whole["choices"][0]["text"], sum.as_str());
    assert!(chunks.len() > 4);
}

fn a_client_that_leaves_frees_vllm(world: &World) {
    let body = with(
        world.body("legal", "Tell me all."),
        json!({"stream": true, "max_tokens": 450, "ignore_eos": true}),
    );
    let body = body.to_string();
    let mut stream = TcpStream::connect(world.gateway.address).unwrap();
    let head =
        "POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n";
    write!(stream, "{head}Content-Length: {}\r\n\r\n{body}", body.len()).unwrap();
    let mut reader = BufReader::new(stream);
    let mut line = String::new();
    while !line.starts_with("data:") {
        line.clear();
        assert!(reader.read_line(&mut line).unwrap() > 0);
    }
    until("vLLM runs it", || world.vllm.n_running() > 0.0);
    drop(reader);
    until("vLLM stops it", || world.vllm.n_running() == 0.0);
    until("its place is free", || world.status("vllm").n_running == 0);
    assert_eq!(world.status("vllm").n_failed, 0);
}

fn a_drained_worker_gets_nothing(world: &World) {
    world.only("own");
    let before = world.status("vllm").n_answered;
    for name in ADAPTERS {
        world.ask(&world.body(name, "Who may sue?"));
    }
    assert_eq!(world.status("vllm").n_answered, before);
    world.all();
}

fn another_worker_answers_when_vllm_dies(world: &mut World) {
    // The adapter whose requests go to vLLM when both are there.
    let n_answered = |world: &World| world.status("vllm").n_answered;
    let at_vllm: Vec<&str> = ADAPTERS
        .into_iter()
        .filter(|name| {
            let before = n_answered(world);
            world.ask(&world.body(name, "Who may sue?"));
            n_answered(world) > before
        })
        .collect();
    let name = at_vllm
        .first()
        .expect("three adapters on two workers: one is at vLLM");
    let body = with(
        world.body(name, "Tell me all."),
        json!({"stream": true, "max_tokens": 450, "ignore_eos": true}),
    );
    // In the middle of an answer: the client is told, nothing is made up.
    let address = world.gateway.address;
    let reading = {
        let body = body.to_string();
        let mut stream = TcpStream::connect(address).unwrap();
        let head = "POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n";
        let close = "Connection: close\r\n";
        write!(
            stream,
            "{head}{close}Content-Length: {}\r\n\r\n{body}",
            body.len()
        )
        .unwrap();
        let mut reader = BufReader::new(stream);
        let mut line = String::new();
        // The first has the prompt's tokens, before any worker was asked.
        while !line.contains("\"text\"") || line.contains("\"text\":\"\"") {
            line.clear();
            assert!(reader.read_line(&mut line).unwrap() > 0);
        }
        reader
    };
    world.vllm.kill();
    let mut reading = reading;
    let mut rest = String::new();
    reading.read_to_string(&mut rest).unwrap();
    assert!(
        rest.contains("\"error\"") && !rest.contains("[DONE]"),
        "{rest}"
    );
    // At once, before anybody has noticed: it is tried there, and then elsewhere.
    let given = world.ask(&world.body(name, "Who may sue?"));
    assert_eq!(
        given["choices"][0]["finish_reason"].as_str().is_some(),
        true
    );
    assert!(world.status("vllm").n_failed > 0);
    until("vLLM is known to be gone", || {
        world.status("vllm").health == WorkerHealth::Down
    });
    for name in ADAPTERS {
        world.ask(&world.body(name, "What is a contract?"));
    }
}
