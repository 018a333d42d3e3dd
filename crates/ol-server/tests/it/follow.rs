//! Goal: a second node follows the first over real sockets, from block 0 and
//! live, across restarts of either, and a source that sends rubbish harms
//! nobody.
//! Method: nodes with their servers on free ports; a test waits for events of
//! the node, never for time.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::time::Duration;

use alloy_consensus::{SignableTransaction, TxEip1559, TxEnvelope};
use alloy_eips::eip2718::Encodable2718;
use alloy_primitives::{Address, U256};
use alloy_signer::SignerSync;
use alloy_signer_local::PrivateKeySigner;
use ol_node::{
    BlockRef, BlockSigner, FollowConfig, FollowPhase, Genesis, GenesisAccount, Node, NodeConfig,
    Role,
};
use ol_runtime::{ManualClock, Shutdown};
use ol_server::eth::{self, RunningServer, ServeConfig};
use ol_server::follow::{self, FollowError, FollowOptions, RunningFollower};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::runtime::Runtime;

use crate::eth::websocket::WebSocket;

const CHAIN_ID: u64 = 161_200;
const TARGET: Address = Address::repeat_byte(0x77);

/// Nobody waits longer than this for what must happen.
const PATIENCE: Duration = Duration::from_secs(60);

fn signer() -> PrivateKeySigner {
    ol_types::DEV_MNEMONIC_KEYS[0].parse().unwrap()
}

fn signed_transfer(nonce: u64, value_wei: u64) -> Vec<u8> {
    let transaction = TxEip1559 {
        chain_id: CHAIN_ID,
        nonce,
        gas_limit: 21_000,
        max_fee_per_gas: 5_000_000_000,
        max_priority_fee_per_gas: 1_000_000,
        to: TARGET.into(),
        value: U256::from(value_wei),
        ..TxEip1559::default()
    };
    let signature = signer()
        .sign_hash_sync(&transaction.signature_hash())
        .unwrap();
    TxEnvelope::from(transaction.into_signed(signature)).encoded_2718()
}

fn runtime() -> Runtime {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .unwrap()
}

fn genesis() -> Genesis {
    let mut genesis = Genesis::default();
    genesis.config.chain_id = CHAIN_ID;
    let account = GenesisAccount {
        balance: U256::from(1_000 * ol_types::WEI_PER_OPEN),
        ..GenesisAccount::default()
    };
    genesis.alloc.insert(signer().address(), account);
    genesis
}

/// A node in a folder, with its server.
struct Served {
    node: Node,
    server: RunningServer,
    shutdown: Shutdown,
    follower: Option<RunningFollower>,
}

impl Served {
    fn sequencer(runtime: &Runtime, dir: &TempDir, addr: SocketAddr, clock_s: u64) -> Self {
        let config = NodeConfig {
            block_signer: Some(BlockSigner::dev()),
            ..NodeConfig::default()
        };
        let clock = Arc::new(ManualClock::new(1_700_000_000 + clock_s));
        let node = Node::open_with(dir.path(), &genesis(), clock, config).unwrap();
        let shutdown = Shutdown::new();
        let serving = eth::serve(node.clone(), ServeConfig::new(addr), shutdown.clone());
        let server = runtime.block_on(serving).unwrap();
        Self {
            node,
            server,
            shutdown,
            follower: None,
        }
    }

    fn follower(runtime: &Runtime, dir: &TempDir, url: String) -> Self {
        let config = NodeConfig {
            role: Role::Follower,
            sequencer: Some(BlockSigner::dev().address()),
            ..NodeConfig::default()
        };
        let clock = Arc::new(ManualClock::new(0));
        let node = Node::open_with(dir.path(), &genesis(), clock, config).unwrap();
        let shutdown = Shutdown::new();
        let options = FollowOptions {
            config: FollowConfig {
                retry_min: Duration::from_millis(20),
                retry_max: Duration::from_millis(200),
                ..FollowConfig::default()
            },
            ..FollowOptions::new(url)
        };
        let follower = {
            let _context = runtime.enter();
            follow::spawn(node.clone(), options, shutdown.clone()).unwrap()
        };
        let config = ServeConfig {
            upstream: Some(follower.upstream.clone()),
            ..ServeConfig::new(any_port())
        };
        let server = runtime
            .block_on(eth::serve(node.clone(), config, shutdown.clone()))
            .unwrap();
        Self {
            node,
            server,
            shutdown,
            follower: Some(follower),
        }
    }

    fn url(&self) -> String {
        format!("ws://{}", self.server.addr)
    }

    /// Stops the server, the follower and the node; the folder can be opened again.
    fn stop(self, runtime: &Runtime) {
        self.shutdown.trigger();
        runtime.block_on(self.server.stopped());
        if let Some(follower) = self.follower {
            follower.stopped();
        }
    }

    fn transfer(&self, value_wei: u64) {
        let nonce = self
            .node
            .nonce(signer().address(), BlockRef::Latest)
            .unwrap();
        let raw = signed_transfer(nonce, value_wei);
        self.node.submit_and_wait(&raw).unwrap();
    }

    fn reply(&self, method: &str, params: Value) -> Value {
        let request = json!({"jsonrpc": "2.0", "id": 1, "method": method, "params": params});
        let agent: ureq::Agent = ureq::Agent::config_builder()
            .http_status_as_error(false)
            .build()
            .into();
        let mut reply = agent
            .post(format!("http://{}", self.server.addr))
            .header("content-type", "application/json")
            .send(request.to_string())
            .unwrap();
        serde_json::from_str(&reply.body_mut().read_to_string().unwrap()).unwrap()
    }

    /// Waits until this node has the head of another.
    fn wait_for(&self, other: &Node) {
        let events = self.node.subscribe();
        while self.node.head() != other.head() {
            events
                .recv_timeout(PATIENCE)
                .unwrap_or_else(|_| panic!("{:?}", self.status()));
        }
        self.node.verify().unwrap();
    }

    fn status(&self) -> ol_node::FollowStatus {
        self.follower.as_ref().unwrap().upstream.status()
    }
}

fn any_port() -> SocketAddr {
    "127.0.0.1:0".parse().unwrap()
}

#[test]
fn a_second_node_follows_from_genesis_and_live() {
    let runtime = runtime();
    let dirs = [(); 3].map(|()| tempfile::tempdir().unwrap());
    let source = Served::sequencer(&runtime, &dirs[0], any_port(), 0);
    // More than one answer holds.
    for value_wei in 1..=150 {
        source.transfer(value_wei);
    }
    let follower = Served::follower(&runtime, &dirs[1], source.url());
    follower.wait_for(&source.node);
    for value_wei in 1..=5 {
        source.transfer(value_wei);
        follower.wait_for(&source.node);
    }
    for method in ["eth_blockNumber", "ol_head"] {
        assert_eq!(
            follower.reply(method, json!([])),
            source.reply(method, json!([]))
        );
    }
    for params in [json!(["0x1", true]), json!(["latest", true])] {
        let method = "eth_getBlockByNumber";
        assert_eq!(
            follower.reply(method, params.clone()),
            source.reply(method, params)
        );
    }
    let at_42 = json!([TARGET, "0x2a"]);
    assert_eq!(
        follower.reply("eth_getBalance", at_42.clone())["result"],
        source.reply("eth_getBalance", at_42)["result"]
    );

    // A follower can be followed.
    let third = Served::follower(&runtime, &dirs[2], follower.url());
    third.wait_for(&source.node);
    source.transfer(9);
    third.wait_for(&source.node);
    for served in [third, follower, source] {
        served.stop(&runtime);
    }
}

#[test]
fn transactions_go_to_the_node_that_makes_the_blocks() {
    let runtime = runtime();
    let dirs = [(); 2].map(|()| tempfile::tempdir().unwrap());
    let source = Served::sequencer(&runtime, &dirs[0], any_port(), 0);
    let follower = Served::follower(&runtime, &dirs[1], source.url());
    let raw = alloy_primitives::Bytes::from(signed_transfer(0, 5));
    let sent = follower.reply("eth_sendRawTransaction", json!([raw]));
    let hash = sent["result"]
        .as_str()
        .unwrap_or_else(|| panic!("{sent}"))
        .to_owned();
    follower.wait_for(&source.node);
    let receipt = follower.reply("eth_getTransactionReceipt", json!([hash]));
    assert_eq!(receipt["result"]["status"], "0x1", "{receipt}");
    // The source's own words.
    let again = follower.reply("eth_sendRawTransaction", json!([raw]));
    let direct = source.reply("eth_sendRawTransaction", json!([raw]));
    assert_eq!(again["error"], direct["error"]);
    assert!(again["error"].is_object(), "{again}");
    source.stop(&runtime);
    let raw = alloy_primitives::Bytes::from(signed_transfer(1, 5));
    let lost = follower.reply("eth_sendRawTransaction", json!([raw]));
    let words = lost["error"]["message"].as_str().unwrap();
    assert!(words.contains("cannot be reached"), "{lost}");
    // It serves what it has.
    assert_eq!(
        follower.reply("eth_blockNumber", json!([]))["result"],
        "0x1"
    );
    follower.stop(&runtime);
}

#[test]
fn restarts_of_either_side_are_survived() {
    let runtime = runtime();
    let dirs = [(); 2].map(|()| tempfile::tempdir().unwrap());
    let source = Served::sequencer(&runtime, &dirs[0], any_port(), 0);
    let addr = source.server.addr;
    for value_wei in 1..=10 {
        source.transfer(value_wei);
    }
    let follower = Served::follower(&runtime, &dirs[1], source.url());
    // In the middle of the sync, wherever that is.
    let events = follower.node.subscribe();
    if follower.node.head().header.number == 0 {
        events.recv_timeout(PATIENCE).unwrap();
    }
    follower.stop(&runtime);
    drop(events);
    let follower = Served::follower(&runtime, &dirs[1], source.url());
    follower.wait_for(&source.node);

    source.stop(&runtime);
    let source = Served::sequencer(&runtime, &dirs[0], addr, 5);
    source.transfer(11);
    follower.wait_for(&source.node);
    // The source comes back with another branch: it has lost its disk.
    source.stop(&runtime);
    let empty = tempfile::tempdir().unwrap();
    let source = Served::sequencer(&runtime, &empty, addr, 10);
    for value_wei in 1..=12 {
        source.transfer(100 + value_wei);
    }
    follower.wait_for(&source.node);
    // The head moves before the follower counts what it did.
    while follower.status().n_reorgs == 0 {
        std::thread::yield_now();
    }
    assert_eq!(follower.status().n_reorgs, 1);
    follower.stop(&runtime);
    source.stop(&runtime);
}

#[test]
fn subscribers_hear_when_a_follower_catches_up_and_falls_behind() {
    let runtime = runtime();
    let dirs = [(); 2].map(|()| tempfile::tempdir().unwrap());
    let source = Served::sequencer(&runtime, &dirs[0], any_port(), 0);
    let addr = source.server.addr;
    let mut of_source = WebSocket::connect(addr);
    for value_wei in 1..=10 {
        source.transfer(value_wei);
    }
    let url = source.url();
    let follower = Served::follower(&runtime, &dirs[1], url);
    follower.wait_for(&source.node);
    let mut socket = WebSocket::connect(follower.server.addr);
    let syncing = socket.ok("eth_subscribe", json!(["syncing"]));
    // Nothing if it has caught up by now, else that it has.
    while follower.status().is_syncing {
        std::thread::yield_now();
    }
    assert_eq!(socket.ok("eth_syncing", json!([])), false);
    // A sequencer has nothing to tell.
    of_source.ok("eth_subscribe", json!(["syncing"]));
    drop(of_source);
    source.stop(&runtime);
    let lost = loop {
        let told = socket.told(&syncing);
        if told != false && told["status"]["currentBlock"] == "0xa" {
            break told;
        }
    };
    assert_eq!(lost["syncing"], true, "{lost}");
    assert_eq!(lost["status"]["highestBlock"], "0xa", "{lost}");
    let source = Served::sequencer(&runtime, &dirs[0], addr, 5);
    assert_eq!(socket.told(&syncing), false);
    follower.stop(&runtime);
    source.stop(&runtime);
}

#[test]
fn a_source_that_is_no_node_is_reported() {
    let runtime = runtime();
    let dir = tempfile::tempdir().unwrap();
    // Accepts, reads a little, and answers with rubbish.
    let listener = TcpListener::bind(any_port()).unwrap();
    let addr = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for stream in listener.incoming().map_while(Result::ok) {
            let mut stream = stream;
            let mut bytes = [0; 256];
            if stream.read(&mut bytes).is_ok() {
                // The other side may have hung up.
                let _ = stream.write_all(b"\xff\xfe rubbish \r\n\r\n");
            }
        }
    });
    let follower = Served::follower(&runtime, &dir, format!("http://{addr}"));
    let mut status = follower.status();
    while status.reason.is_none() {
        std::thread::yield_now();
        status = follower.status();
    }
    assert_eq!(status.phase, FollowPhase::Connecting);
    assert!(status.reason.unwrap().contains("cannot be reached"));
    assert_eq!(
        follower.reply("eth_blockNumber", json!([]))["result"],
        "0x0"
    );
    let syncing = follower.reply("eth_syncing", json!([]));
    assert_eq!(syncing["result"]["currentBlock"], "0x0", "{syncing}");
    follower.stop(&runtime);
}

#[test]
fn an_address_that_cannot_be_followed_is_refused() {
    let runtime = runtime();
    let _context = runtime.enter();
    let dir = tempfile::tempdir().unwrap();
    let clock = Arc::new(ManualClock::new(0));
    let node = Node::open(dir.path(), &genesis(), clock).unwrap();
    for (url, words) in [
        ("localhost:1", "must begin with ws://"),
        ("ftp://localhost:1", "must begin with ws://"),
        ("wss://localhost:1", "no TLS"),
        ("https://localhost:1", "no TLS"),
        ("ws://", "no host"),
        ("ws://a b", "no host"),
        ("ws://localhost:99999", "no host"),
    ] {
        let options = FollowOptions::new(url);
        let error = follow::spawn(node.clone(), options, Shutdown::new()).unwrap_err();
        assert!(matches!(error, FollowError::Url { .. }));
        assert!(error.to_string().contains(words), "{url}: {error}");
    }
}

#[test]
fn signed_blocks_are_given_within_limits() {
    let runtime = runtime();
    let dir = tempfile::tempdir().unwrap();
    let source = Served::sequencer(&runtime, &dir, any_port(), 0);
    for value_wei in 1..=130 {
        source.transfer(value_wei);
    }
    let count = |first: &str, n_max: &str| {
        let reply = source.reply("ol_signedBlocks", json!([first, n_max]));
        reply["result"]
            .as_array()
            .unwrap_or_else(|| panic!("{reply}"))
            .len()
    };
    assert_eq!(count("0x1", "0x5"), 5);
    assert_eq!(count("0x1", "0xffffffffffffffff"), 128);
    assert_eq!(count("0x81", "0x80"), 2);
    assert_eq!(count("0x83", "0x80"), 0);
    assert_eq!(count("0xffffffffffffffff", "0x80"), 0);
    assert_eq!(count("0x1", "0x0"), 0);
    let genesis = source.reply("ol_signedBlocks", json!(["0x0", "0x1"]));
    assert_eq!(genesis["result"][0]["signature"], Value::Null);
    for params in [
        json!([]),
        json!(["0x1"]),
        json!(["1", "x"]),
        json!([-1, 1]),
        json!(["0x1", "0x1", 1]),
    ] {
        let reply = source.reply("ol_signedBlocks", params);
        assert_eq!(reply["error"]["code"], -32602, "{reply}");
    }
    source.stop(&runtime);
}
