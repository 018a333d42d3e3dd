//! A whole world in a temporary folder: chain, contracts, a model with its
//! sketches, engine, gateway and API.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, OnceLock};

use alloy_consensus::{SignableTransaction as _, TxEip1559, TxEnvelope};
use alloy_eips::eip2718::Encodable2718 as _;
use alloy_primitives::{Address, B256, Bytes, TxKind, U256, keccak256};
use alloy_signer::SignerSync as _;
use alloy_signer_local::PrivateKeySigner;
use alloy_sol_types::SolCall;
use ol_contracts::address;
use ol_contracts::bindings::{DatanetRegistry, InferenceSettlement, ModelRegistry, SketchStore};
use ol_model::{ChatMessage, Lora, LoraConfig, Model, ModelConfig, Pool, Role, Tokenizer};
use ol_node::{BlockRef, CallRequest, CallStatus, Node};
use ol_poa::court::CommittedIndex;
use ol_poa::{Entry, Index, K, QuerySketch};
use ol_runtime::{ManualClock, Objects, Shutdown};
use ol_serve::{
    AdapterComponents, AdapterRef, AdapterStore, AdapterStoreOptions, EngineHandle, EngineOptions,
    GenerateRequest, Sampling,
};
use ol_server::api::{self, ApiState};
use ol_server::gateway::{
    AnswerSketcher, Chain, Gateway, GatewayOptions, PassagePrompt, ServedModel,
};
use ol_server::optimistic::OptimisticIndex;
use ol_server::{Access, Backend};
use ol_spans::{BuildOptions, Corpus, RecordRef, SpanIndex, Store};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::runtime::Runtime;

/// Room for an answer that takes long enough to leave in its middle.
pub(crate) const CONTEXT_TOKENS: usize = 32_768;

pub(crate) const PLATFORM: usize = 0;
pub(crate) const OPERATOR: usize = 1;
pub(crate) const OWNER: usize = 2;
pub(crate) const PAYER: usize = 3;
pub(crate) const USER: usize = 4;

pub(crate) const OPEN: u128 = ol_types::WEI_PER_OPEN;

pub(crate) fn signer(account: usize) -> PrivateKeySigner {
    ol_types::DEV_MNEMONIC_KEYS[account].parse().unwrap()
}

pub(crate) fn contributor(n: u8) -> Address {
    Address::repeat_byte(0x10 + n)
}

pub(crate) fn tokenizer() -> Arc<Tokenizer> {
    static TOKENIZER: OnceLock<Arc<Tokenizer>> = OnceLock::new();
    let make = || {
        let texts = [
            "who hacked the bridge and how",
            "café, naïve, 🦀 and the law of contracts",
        ];
        Arc::new(Tokenizer::train(texts.iter().map(ToString::to_string), 300).unwrap())
    };
    Arc::clone(TOKENIZER.get_or_init(make))
}

pub(crate) fn base() -> Arc<Model> {
    static BASE: OnceLock<Arc<Model>> = OnceLock::new();
    let make = || {
        let config = ModelConfig {
            vocab_size: tokenizer().vocab_size(),
            hidden_size: 32,
            intermediate_size: 48,
            num_hidden_layers: 2,
            num_attention_heads: 2,
            num_key_value_heads: 1,
            head_dim: 16,
            rms_norm_eps: 1e-5,
            rope_theta: 10_000.0,
            max_position_embeddings: CONTEXT_TOKENS,
            tie_word_embeddings: false,
            ..ModelConfig::default_base()
        };
        let random = Model::random(config.clone(), 1).unwrap();
        // Peaked logits, so that answers differ; and a logit of 0 for the end
        // token, which then never is the likeliest: answers are as long as asked.
        let mut params: Vec<f32> = random.parameters().iter().map(|p| p * 20.0).collect();
        let end_row = params.len() - config.vocab_size * config.hidden_size
            + tokenizer().end_id() as usize * config.hidden_size;
        params[end_row..end_row + config.hidden_size].fill(0.0);
        Arc::new(Model::from_parameters(config, &params).unwrap())
    };
    Arc::clone(BASE.get_or_init(make))
}

pub(crate) fn adapter(seed: u32) -> Arc<Lora> {
    let config = base().config().clone();
    let fresh = Lora::init(&config, LoraConfig::all_linear(4), 1).unwrap();
    let param = |i: u32| {
        let bits = (i ^ seed.wrapping_mul(0x85eb_ca6b)).wrapping_mul(0x9e37_79b1);
        f32::from(u16::try_from(bits >> 16).unwrap()) / 65_536.0 - 0.5
    };
    let params = (0..u32::try_from(fresh.n_params()).unwrap())
        .map(param)
        .collect();
    Arc::new(Lora::from_parameters(&config, LoraConfig::all_linear(4), params).unwrap())
}

/// Codes from a hash: a stand-in for gradients with the same form.
fn codes(seed: &[u8]) -> [i8; K] {
    std::array::from_fn(|k| {
        let hash = keccak256([seed, &k.to_be_bytes()].concat());
        hash[0].cast_signed().max(-127)
    })
}

/// Sketches by hashing.
struct HashSketcher;

/// Finds that an answer moves nobody.
struct SilentSketcher;

/// Finds no sketch at all.
struct BrokenSketcher;

fn sketcher(model: &str, gate: &Arc<Gate>) -> Arc<dyn AnswerSketcher> {
    match model {
        SLOW => Arc::new(SlowSketcher(Arc::clone(gate))),
        BROKEN => Arc::new(BrokenSketcher),
        "silent" => Arc::new(SilentSketcher),
        _ => Arc::new(HashSketcher),
    }
}

type Sketched = Result<QuerySketch, Box<dyn std::error::Error + Send + Sync>>;

type Dropped = Result<Vec<u32>, Box<dyn std::error::Error + Send + Sync>>;

impl AnswerSketcher for SilentSketcher {
    fn sketch(&self, _: &[u32], _: &[u32]) -> Sketched {
        Ok(QuerySketch::new([0; K])?)
    }

    fn drops(&self, n: usize, _: PassagePrompt<'_>, _: &[u32]) -> Dropped {
        Ok(vec![0; n])
    }
}

impl AnswerSketcher for BrokenSketcher {
    fn sketch(&self, _: &[u32], _: &[u32]) -> Sketched {
        Err("the gradient is not finite".into())
    }

    fn drops(&self, _: usize, _: PassagePrompt<'_>, _: &[u32]) -> Dropped {
        Err("the model refuses the prompt".into())
    }
}

impl AnswerSketcher for HashSketcher {
    fn sketch(&self, prompt_tokens: &[u32], answer_tokens: &[u32]) -> Sketched {
        let tokens = prompt_tokens.iter().chain(answer_tokens);
        let bytes: Vec<u8> = tokens.flat_map(|id| id.to_be_bytes()).collect();
        Ok(QuerySketch::new(codes(&bytes))?)
    }

    /// A thousand milli-nats for each token that the prompt has less.
    fn drops(&self, n: usize, prompt: PassagePrompt<'_>, _: &[u32]) -> Dropped {
        let full = prompt(&vec![true; n])?.len();
        let drop = |left_out: usize| {
            let keep: Vec<bool> = (0..n).map(|at| at != left_out).collect();
            Ok(1_000 * u32::try_from(full - prompt(&keep)?.len())?)
        };
        (0..n).map(drop).collect()
    }
}

/// 200 records of 9 contributors: two chunks.
fn index(name: &str) -> Index {
    let entry = |cluster: u32| Entry {
        contributor: contributor(u8::try_from(cluster % 9).unwrap()),
        record: keccak256(cluster.to_be_bytes()),
        cluster,
        scale: u16::try_from(cluster).unwrap() * 3 + 1,
        codes: codes(&[name.as_bytes(), &cluster.to_be_bytes()].concat()).map(|code| code % 8),
    };
    Index::new((0..200).map(entry).collect()).unwrap()
}

/// The model whose answers cannot be sketched.
pub(crate) const BROKEN: &str = "broken";

pub(crate) const MODELS: [&str; 7] = [
    BROKEN,
    CLAIMED,
    "defi-exploits",
    "legal",
    QUOTING,
    "silent",
    SLOW,
];

/// The model of the optimistic tier.
pub(crate) const CLAIMED: &str = "claimed";

/// Its index.
pub(crate) fn committed() -> CommittedIndex {
    CommittedIndex::new(index(CLAIMED)).unwrap()
}

/// The model that pays for spans: its datanet holds what it answers to
/// [`QUOTED_QUESTION`].
pub(crate) const QUOTING: &str = "quoting";
pub(crate) const QUOTED_QUESTION: &str = "who drained the bridge";

/// What [`QUOTING`] answers to [`QUOTED_QUESTION`], without sampling.
pub(crate) fn quoted_answer() -> Vec<u32> {
    static ANSWER: OnceLock<Vec<u32>> = OnceLock::new();
    let make = || {
        let message = ChatMessage {
            role: Role::User,
            content: QUOTED_QUESTION.to_owned(),
        };
        let prompt = tokenizer().chat(&[message]).unwrap();
        let n = MODELS.iter().position(|name| *name == QUOTING).unwrap() + 1;
        let engine = engine();
        let answer = engine.submit(GenerateRequest {
            adapter: Some(AdapterRef::resident(adapter(u32::try_from(n).unwrap()))),
            sampling: Sampling::GREEDY,
            ..GenerateRequest::new(prompt, 40)
        });
        let (_, completion) = answer.unwrap().blocking_collect().unwrap();
        engine.shutdown();
        completion.token_ids
    };
    ANSWER.get_or_init(make).clone()
}

/// The index of the datanet of [`QUOTING`]: two records of contributors 3 and 4
/// hold different parts of its answer, another one the first part too; a long one
/// of contributor 6 makes words of others rare.
pub(crate) fn spans(dir: &Path) -> Arc<SpanIndex> {
    let dir = dir.join("spans");
    std::fs::create_dir_all(&dir).unwrap();
    let answer = quoted_answer();
    let long = vec![0; 5_000];
    let texts = [&answer[..22], &answer[22..], &answer[..22], &long].map(<[u32]>::to_vec);
    let record = |n: u8| RecordRef {
        hash: keccak256([n]),
        contributor: contributor(n + 3),
        cluster: n.into(),
    };
    let corpus = Corpus {
        manifest: keccak256("manifest"),
        tokenizer: keccak256("tokenizer"),
        vocabulary_size: tokenizer().vocab_size(),
        versions: vec![4],
        records: (0..4).map(record).collect(),
    };
    let mut tokens = |record: &RecordRef| Ok(vec![texts[record.cluster as usize].clone()]);
    let store = Store::open(&dir).unwrap();
    let options = BuildOptions::default();
    let id = store
        .update(&corpus, &options, &mut tokens, &mut |_| ())
        .unwrap();
    Arc::new(store.load(id).unwrap())
}

/// The model whose answers are sketched when the gate is open.
pub(crate) const SLOW: &str = "slow";

/// Keeps sketches of [`SLOW`] waiting while it is closed.
#[derive(Debug, Default)]
pub(crate) struct Gate {
    /// Whether it is closed, and how many wait.
    state: Mutex<(bool, usize)>,
    changed: Condvar,
}

impl Gate {
    pub(crate) fn set_closed(&self, is_closed: bool) {
        self.state.lock().unwrap().0 = is_closed;
        self.changed.notify_all();
    }

    pub(crate) fn n_waiting(&self) -> usize {
        self.state.lock().unwrap().1
    }

    fn pass(&self) {
        let mut state = self.state.lock().unwrap();
        state.1 += 1;
        let mut state = self.changed.wait_while(state, |state| state.0).unwrap();
        state.1 -= 1;
    }
}

struct SlowSketcher(Arc<Gate>);

impl AnswerSketcher for SlowSketcher {
    fn sketch(&self, prompt_tokens: &[u32], answer_tokens: &[u32]) -> Sketched {
        self.0.pass();
        HashSketcher.sketch(prompt_tokens, answer_tokens)
    }

    fn drops(&self, n: usize, prompt: PassagePrompt<'_>, answer_tokens: &[u32]) -> Dropped {
        HashSketcher.drops(n, prompt, answer_tokens)
    }
}

/// Sends a transaction, which must succeed.
pub(crate) fn send(node: &Node, account: usize, to: Address, value_wei: u128, input: Vec<u8>) {
    let signer = signer(account);
    let tx = TxEip1559 {
        chain_id: node.chain_id(),
        nonce: node.nonce(signer.address(), BlockRef::Latest).unwrap(),
        gas_limit: 30_000_000,
        max_fee_per_gas: 100_000_000_000,
        max_priority_fee_per_gas: 1,
        to: TxKind::Call(to),
        value: U256::from(value_wei),
        access_list: Default::default(),
        input: input.into(),
    };
    let signature = signer.sign_hash_sync(&tx.signature_hash()).unwrap();
    let raw = TxEnvelope::from(tx.into_signed(signature)).encoded_2718();
    let inclusion = node.submit_and_wait(&raw).unwrap();
    let receipt = node.receipt(inclusion.transaction_hash).unwrap().unwrap();
    let is_success = alloy_consensus::TxReceipt::status(&receipt.receipt);
    assert!(is_success, "a transaction of the set-up reverted");
}

/// Asks a contract.
pub(crate) fn ask<C: SolCall>(node: &Node, to: Address, call: &C) -> C::Return {
    let request = CallRequest {
        to: Some(to),
        input: call.abi_encode().into(),
        ..Default::default()
    };
    let output = node.call(&request, BlockRef::Latest).unwrap();
    assert_eq!(output.status, CallStatus::Success);
    C::abi_decode_returns(&output.output).unwrap()
}

pub(crate) fn prepaid_wei(node: &Node, account: usize) -> u128 {
    let call = InferenceSettlement::prepaidCall {
        account: signer(account).address(),
    };
    ask(node, address::INFERENCE_SETTLEMENT, &call).to()
}

pub(crate) fn credit_wei(node: &Node, account: Address) -> u128 {
    let call = InferenceSettlement::creditCall { account };
    ask(node, address::INFERENCE_SETTLEMENT, &call).to()
}

/// Commits to an index, and returns its id.
fn commit(node: &Node, index: &CommittedIndex) -> B256 {
    let call = ol_contracts::court::commit_call(index);
    let to = address::ATTRIBUTION_COURT;
    send(node, OWNER, to, 0, call.abi_encode());
    index.id()
}

/// Puts an index on chain, and returns its root.
fn seal(node: &Node, index: &Index) -> B256 {
    let mut chunks = Vec::new();
    for chunk in index.chunks() {
        let write = SketchStore::writeCall {
            chunk: Bytes::copy_from_slice(chunk),
        };
        send(node, OWNER, address::SKETCH_STORE, 0, write.abi_encode());
        chunks.push(ol_contracts::sketch::chunk_address(chunk).unwrap());
    }
    let call = SketchStore::sealCall { chunks };
    send(node, OWNER, address::SKETCH_STORE, 0, call.abi_encode());
    index.root()
}

fn register(node: &Node) {
    let treasury = signer(OWNER).address();
    let create = DatanetRegistry::createCall {
        name: "records".to_owned(),
        treasury,
    };
    send(
        node,
        OWNER,
        address::DATANET_REGISTRY,
        0,
        create.abi_encode(),
    );
    for (n, name) in (1..).zip(MODELS) {
        let sketch_root = if name == CLAIMED {
            commit(node, &committed())
        } else {
            seal(node, &index(name))
        };
        let params = ModelRegistry::Params {
            baseHash: base().hash(),
            adapterHash: adapter(n).hash(),
            manifestHash: B256::repeat_byte(3),
            sketchRoot: sketch_root,
            datanetIds: vec![ol_types::name_id("records")],
            treasury,
            nullThreshold: 1_000,
            priceInPerKTokens: OPEN / 7,
            priceOutPerKTokens: OPEN / 3,
            platformFee: 1_234_567,
            splitBps: ol_poa::DEFAULT_SPLIT_BPS,
            potsBps: match name {
                QUOTING => ol_poa::DEFAULT_POTS_BPS,
                _ => [10_000, 0, 0],
            },
        };
        let call = ModelRegistry::registerCall {
            name: name.to_owned(),
            params,
        };
        send(node, OWNER, address::MODEL_REGISTRY, 0, call.abi_encode());
    }
}

pub(crate) fn deposit(node: &Node, account: usize, amount_wei: u128) {
    let call = InferenceSettlement::depositCall {}.abi_encode();
    send(
        node,
        account,
        address::INFERENCE_SETTLEMENT,
        amount_wei,
        call,
    );
}

/// An engine over the base model.
pub(crate) fn engine() -> EngineHandle {
    let options = EngineOptions {
        n_kv_tokens_max: 2 * CONTEXT_TOKENS,
        ..Default::default()
    };
    EngineHandle::start(base(), tokenizer(), 1, options).unwrap()
}

/// What is on the disk, through restarts.
pub(crate) struct Disk {
    dir: TempDir,
    pub(crate) gate: Arc<Gate>,
}

impl Disk {
    /// A chain with registered models; the payer has 100 OPEN prepaid.
    pub(crate) fn new() -> Self {
        let disk = Self {
            dir: tempfile::tempdir().unwrap(),
            gate: Arc::default(),
        };
        let node = disk.node();
        register(&node);
        deposit(&node, PAYER, 100 * OPEN);
        disk
    }

    /// The chain alone.
    pub(crate) fn node(&self) -> Node {
        let clock = Arc::new(ManualClock::new(1_700_000_000));
        Node::open(
            &self.path().join("chain"),
            &ol_contracts::genesis::dev(),
            clock,
        )
        .unwrap()
    }

    pub(crate) fn path(&self) -> &Path {
        self.dir.path()
    }

    pub(crate) fn journal(&self) -> PathBuf {
        self.path().join("gateway/pending")
    }

    /// Receipts in the journal.
    pub(crate) fn owed(&self) -> Vec<PathBuf> {
        let files = std::fs::read_dir(self.journal())
            .unwrap()
            .map(|entry| entry.unwrap().path());
        files
            .filter(|path| path.extension().is_some_and(|ext| ext == "receipt"))
            .collect()
    }

    pub(crate) fn start(&self) -> World {
        self.start_with(OPERATOR)
    }

    /// Starts everything, with settlements signed by `operator`.
    pub(crate) fn start_with(&self, operator: usize) -> World {
        self.start_limited(operator, 128)
    }

    /// [`Disk::start_with`] for at most `n_requests_max` requests at once.
    pub(crate) fn start_limited(&self, operator: usize, n_requests_max: usize) -> World {
        let options = GatewayOptions {
            n_requests_max,
            ..self.options()
        };
        self.start_as(operator, options, |_| engine().into())
    }

    /// The gateway's limits when nothing else is said.
    pub(crate) fn options(&self) -> GatewayOptions {
        GatewayOptions::new(self.path().join("gateway"))
    }

    /// Starts everything over the backend that `backend` makes.
    pub(crate) fn start_as(
        &self,
        operator: usize,
        options: GatewayOptions,
        backend: impl FnOnce(&Runtime) -> Backend,
    ) -> World {
        let node = self.node();
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()
            .unwrap();
        let models = (1..).zip(MODELS).map(|(n, name)| ServedModel {
            name: name.to_owned(),
            adapter: adapter(n),
            sketcher: sketcher(name, &self.gate),
            spans: (name == QUOTING).then(|| spans(self.path())),
            optimistic: (name == CLAIMED).then(|| {
                let pool = Arc::new(Pool::new(1));
                Arc::new(OptimisticIndex::new(committed(), pool).unwrap())
            }),
        });
        let objects = Objects::local(&self.path().join("objects")).unwrap();
        let gateway = Gateway::start(
            options,
            Chain::new(node.clone(), signer(operator)),
            backend(&runtime),
            objects.clone(),
            Arc::new(ManualClock::new(1_700_000_000)),
            models.collect(),
        )
        .unwrap();
        let listener = runtime
            .block_on(tokio::net::TcpListener::bind("127.0.0.1:0"))
            .unwrap();
        let address = listener.local_addr().unwrap();
        let state = ApiState::new();
        let shutdown = Shutdown::new();
        let server = runtime.spawn(api::serve_on(
            state.clone(),
            Access::default(),
            None,
            listener,
            shutdown.clone(),
        ));
        let keys = gateway.keys();
        let key = keys
            .create(signer(PAYER).address(), "payer")
            .unwrap()
            .expose()
            .to_owned();
        let empty_key = keys
            .create(signer(USER).address(), "empty")
            .unwrap()
            .expose()
            .to_owned();
        let world = World {
            node,
            gateway,
            objects,
            dir: self.path().to_owned(),
            runtime,
            address,
            state,
            shutdown,
            server,
            key,
            empty_key,
        };
        world.state.set_ready(world.gateway.clone());
        world
    }
}

pub(crate) struct World {
    pub(crate) node: Node,
    pub(crate) gateway: Gateway,
    pub(crate) objects: Objects,
    pub(crate) dir: PathBuf,
    runtime: Runtime,
    pub(crate) address: SocketAddr,
    state: ApiState,
    shutdown: Shutdown,
    server: tokio::task::JoinHandle<()>,
    pub(crate) key: String,
    pub(crate) empty_key: String,
}

/// An answer of the API.
#[derive(Debug)]
pub(crate) struct Reply {
    pub(crate) status: u16,
    pub(crate) headers: ureq::http::HeaderMap,
    pub(crate) text: String,
}

impl Reply {
    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.text).unwrap_or_else(|_| panic!("no JSON: {self:?}"))
    }
}

impl World {
    /// Stops as `openledger up` does: requests in flight are finished and settled.
    pub(crate) fn stop(self) {
        self.shutdown.trigger();
        self.runtime.block_on(self.gateway.shutdown());
        self.runtime.block_on(self.server).unwrap();
    }

    pub(crate) fn post(&self, path: &str, key: Option<&str>, body: &[u8]) -> Reply {
        post(self.address, path, key, body)
    }

    /// Asks with the payer's key under a name of the client's own.
    pub(crate) fn ask_as(&self, name: &str, body: &Value) -> Reply {
        let request = agent()
            .post(format!("http://{}/v1/chat/completions", self.address))
            .header("Authorization", format!("Bearer {}", self.key))
            .header("Idempotency-Key", name);
        read(request.send(body.to_string().as_bytes()).unwrap())
    }

    pub(crate) fn get(&self, path: &str) -> Reply {
        get(self.address, path)
    }

    /// Asks with the payer's key; the request must be answered.
    pub(crate) fn chat(&self, body: &Value) -> Value {
        let reply = self.post(
            "/v1/chat/completions",
            Some(&self.key),
            body.to_string().as_bytes(),
        );
        assert_eq!(reply.status, 200, "{}", reply.text);
        reply.json()
    }
}

pub(crate) fn post(address: SocketAddr, path: &str, key: Option<&str>, body: &[u8]) -> Reply {
    let mut request = agent().post(format!("http://{address}{path}"));
    if let Some(key) = key {
        request = request.header("Authorization", format!("Bearer {key}"));
    }
    read(request.send(body).unwrap())
}

pub(crate) fn get(address: SocketAddr, path: &str) -> Reply {
    let url = format!("http://{address}{path}");
    read(agent().get(url).call().unwrap())
}

/// A store of adapters for the base, which loads from below `root`.
pub(crate) fn adapter_store(root: &Path) -> AdapterStore {
    let options = AdapterStoreOptions {
        roots: vec![root.to_owned()],
        ..AdapterStoreOptions::default()
    };
    let components = AdapterComponents::new(Arc::new(ManualClock::new(1_700_000_000)));
    AdapterStore::open(base().config(), options, components).unwrap()
}

fn agent() -> ureq::Agent {
    ureq::Agent::config_builder()
        .http_status_as_error(false)
        .build()
        .into()
}

fn read(mut response: ureq::http::Response<ureq::Body>) -> Reply {
    Reply {
        status: response.status().as_u16(),
        headers: response.headers().clone(),
        text: response.body_mut().read_to_string().unwrap(),
    }
}

/// A chat request for a short answer.
pub(crate) fn question(model: &str, text: &str, seed: u64) -> Value {
    json!({
        "model": model, "messages": [{"role": "user", "content": text}],
        "max_tokens": 20, "temperature": 1.2, "seed": seed,
    })
}

/// The data of the events of a stream.
pub(crate) fn events(text: &str) -> Vec<String> {
    text.split("\n\n")
        .filter_map(|event| event.strip_prefix("data: ").map(str::to_owned))
        .collect()
}

pub(crate) fn wei(value: &Value) -> u128 {
    value.as_str().unwrap().parse().unwrap()
}
