//! Goal: tools that speak Ethereum JSON-RPC can deploy, call, send, wait and
//! read logs, and every mistake has the error they know.
//! Method: a node and its server on a free port, asked over HTTP.

mod anvil;
mod dev;
mod every_method;
mod filters;
mod hostile;
mod pending;
mod subscriptions;
pub(crate) mod websocket;

use std::io::{Read, Write};
use std::net::SocketAddr;
use std::sync::Arc;

use alloy_consensus::{SignableTransaction, TxEip1559};
use alloy_eips::eip2718::Encodable2718;
use alloy_primitives::{Address, Bytes, TxKind, U256, hex};
use alloy_signer::SignerSync;
use alloy_signer_local::PrivateKeySigner;
use ol_node::{Genesis, GenesisAccount, Node, NodeConfig};
use ol_runtime::{ManualClock, Shutdown};
use ol_server::Access;
use ol_server::eth::{self, Limits, ServeConfig, ServeError};
use op_alloy_consensus::OpTxEnvelope;
use serde_json::{Value, json};
use tempfile::TempDir;

const CHAIN_ID: u64 = 161_200;
const FUNDS_WEI: u128 = 1_000 * ol_types::WEI_PER_OPEN;

/// A node with its server, on a free port.
pub(crate) struct Server {
    addr: SocketAddr,
    clock: Arc<ManualClock>,
    shutdown: Shutdown,
    runtime: tokio::runtime::Runtime,
    _dir: TempDir,
}

impl Server {
    fn start() -> Self {
        Self::start_with(|_| {}, NodeConfig::default())
    }

    /// One that has the helpers of development chains.
    fn start_dev() -> Self {
        Self::start_with(|config| config.is_dev = true, NodeConfig::default())
    }

    fn start_with(change: impl FnOnce(&mut ServeConfig), node_config: NodeConfig) -> Self {
        let mut genesis = Genesis::default();
        genesis.config.chain_id = CHAIN_ID;
        let account = GenesisAccount {
            balance: U256::from(FUNDS_WEI),
            ..GenesisAccount::default()
        };
        for key in ol_types::DEV_MNEMONIC_KEYS {
            let signer: PrivateKeySigner = key.parse().unwrap();
            genesis.alloc.insert(signer.address(), account.clone());
        }
        Self::start_on(&genesis, change, node_config)
    }

    pub(crate) fn start_on(
        genesis: &Genesis,
        change: impl FnOnce(&mut ServeConfig),
        node_config: NodeConfig,
    ) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let clock = Arc::new(ManualClock::new(1_700_000_000));
        let node = Node::open_with(dir.path(), genesis, clock.clone(), node_config).unwrap();
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()
            .unwrap();
        let shutdown = Shutdown::new();
        let mut config = local_pages("127.0.0.1:0".parse().unwrap());
        change(&mut config);
        let running = runtime
            .block_on(eth::serve(node, config, shutdown.clone()))
            .unwrap();
        Self {
            addr: running.addr,
            clock,
            shutdown,
            runtime,
            _dir: dir,
        }
    }

    pub(crate) fn post(&self, body: &str) -> (u16, String) {
        let agent: ureq::Agent = ureq::Agent::config_builder()
            .http_status_as_error(false)
            .build()
            .into();
        let mut reply = agent
            .post(format!("http://{}", self.addr))
            .header("content-type", "application/json")
            .header("origin", "http://localhost:3000")
            .send(body)
            .unwrap();
        if reply.status() == 200 {
            let allowed = reply.headers().get("access-control-allow-origin");
            assert_eq!(allowed.unwrap(), "http://localhost:3000");
        }
        (
            reply.status().as_u16(),
            reply.body_mut().read_to_string().unwrap(),
        )
    }

    pub(crate) fn reply(&self, method: &str, params: Value) -> Value {
        let request = json!({"jsonrpc": "2.0", "id": 1, "method": method, "params": params});
        let (status, body) = self.post(&request.to_string());
        assert_eq!(status, 200, "{body}");
        serde_json::from_str(&body).unwrap()
    }

    #[track_caller]
    pub(crate) fn ok(&self, method: &str, params: Value) -> Value {
        let reply = self.reply(method, params);
        assert!(reply.get("error").is_none(), "{method}: {reply}");
        reply["result"].clone()
    }

    #[track_caller]
    pub(crate) fn error(&self, method: &str, params: Value, code: i64, message: &str) -> Value {
        let reply = self.reply(method, params);
        let error = &reply["error"];
        assert_eq!(error["code"], code, "{method}: {reply}");
        let found = error["message"].as_str().unwrap();
        assert!(found.contains(message), "{method}: {reply}");
        error.clone()
    }
}

/// Pages of this machine may ask.
fn local_pages(addr: SocketAddr) -> ServeConfig {
    ServeConfig {
        access: Access::local(),
        ..ServeConfig::new(addr)
    }
}

fn signer() -> PrivateKeySigner {
    ol_types::DEV_MNEMONIC_KEYS[0].parse().unwrap()
}

fn signed(nonce: u64, to: TxKind, value_wei: u128, input: Bytes) -> String {
    let transaction = TxEip1559 {
        chain_id: CHAIN_ID,
        nonce,
        gas_limit: 500_000,
        max_fee_per_gas: 3_000_000_000,
        max_priority_fee_per_gas: 1_000_000,
        to,
        value: U256::from(value_wei),
        input,
        ..TxEip1559::default()
    };
    let signature = signer()
        .sign_hash_sync(&transaction.signature_hash())
        .unwrap();
    let envelope = OpTxEnvelope::from(transaction.into_signed(signature));
    hex::encode_prefixed(envelope.encoded_2718())
}

/// Init code that leaves `code`.
fn init_code(code: &[u8]) -> Bytes {
    let size = u8::try_from(code.len()).unwrap();
    let head = [0x60, size, 0x60, 0x0a, 0x5f, 0x39, 0x60, size, 0x5f, 0xf3];
    [&head[..], code].concat().into()
}

/// The contract of these tests: emits LOG1(calldata, topic = word 0), returns
/// 42; reverts with `Error("no")` if word 0 is 7.
fn contract_code() -> Vec<u8> {
    let revert_data = hex::decode(
        "08c379a0\
         0000000000000000000000000000000000000000000000000000000000000020\
         0000000000000000000000000000000000000000000000000000000000000002\
         6e6f000000000000000000000000000000000000000000000000000000000000",
    )
    .unwrap();
    let size = u8::try_from(revert_data.len()).unwrap();
    let mut code = vec![
        0x5f, 0x35, 0x60, 0x07, 0x14, 0x60, 25, 0x57, // word 0 is 7: jump to 25
        0x36, 0x5f, 0x5f, 0x37, // calldata to memory
        0x5f, 0x35, 0x36, 0x5f, 0xa1, // LOG1
        0x60, 0x2a, 0x5f, 0x52, 0x60, 0x20, 0x5f, 0xf3, // return 42
        0x5b, 0x60, size, 0x60, 36, 0x5f, 0x39, // the data at 36 to memory
        0x60, size, 0x5f, 0xfd, // revert
    ];
    assert_eq!(code.len(), 36);
    code.extend(revert_data);
    code
}

fn word(number: u64) -> String {
    hex::encode_prefixed(U256::from(number).to_be_bytes::<32>())
}

#[test]
fn a_wallet_finds_the_chain() {
    let server = Server::start();
    let address = json!(signer().address());
    let cases = [
        ("eth_chainId", json!([]), json!("0x275b0")),
        ("net_version", json!([]), json!("161200")),
        ("eth_blockNumber", json!([]), json!("0x0")),
        ("eth_accounts", json!([]), json!([])),
        ("eth_syncing", json!([]), json!(false)),
        ("net_listening", json!([]), json!(true)),
        (
            "eth_getBalance",
            json!([address, "latest"]),
            json!("0x3635c9adc5dea00000"),
        ),
        (
            "eth_getBalance",
            json!([address]),
            json!("0x3635c9adc5dea00000"),
        ),
        (
            "eth_getTransactionCount",
            json!([address, "pending"]),
            json!("0x0"),
        ),
        ("eth_getCode", json!([address, "0x0"]), json!("0x")),
        (
            "eth_getStorageAt",
            json!([address, "0x0", "latest"]),
            json!(word(0)),
        ),
        ("eth_maxPriorityFeePerGas", json!([]), json!("0xf4240")),
        // The higher of the base fees of the newest block and the next, and the tip.
        ("eth_gasPrice", json!([]), json!("0x3baa0c40")),
        ("eth_getTransactionReceipt", json!([word(1)]), Value::Null),
        ("eth_getTransactionByHash", json!([word(1)]), Value::Null),
        ("eth_getBlockByNumber", json!(["0x5", false]), Value::Null),
        ("eth_getBlockReceipts", json!(["0x5"]), Value::Null),
        (
            "eth_getBlockTransactionCountByNumber",
            json!(["latest"]),
            json!("0x0"),
        ),
        (
            "web3_sha3",
            json!(["0x"]),
            json!("0xc5d2460186f7233c927e7db2dcc703c0e500b653ca82273b7bfad8045d85a470"),
        ),
    ];
    for (method, params, expected) in cases {
        assert_eq!(server.ok(method, params), expected, "{method}");
    }
    let version = server.ok("web3_clientVersion", json!([]));
    assert!(version.as_str().unwrap().starts_with("openledger/v"));
    let genesis = server.ok("eth_getBlockByNumber", json!(["earliest", true]));
    assert_eq!(genesis["number"], "0x0");
    assert_eq!(genesis["gasLimit"], "0x3938700");
    assert_eq!(genesis["transactions"], json!([]));
}

#[test]
fn transfer_deploy_call_and_logs() {
    let server = Server::start();
    let to = Address::repeat_byte(0x11);

    let hash = server.ok(
        "eth_sendRawTransaction",
        json!([signed(0, to.into(), 1_000, Bytes::new())]),
    );
    let receipt = server.ok("eth_getTransactionReceipt", json!([hash]));
    assert_eq!(receipt["status"], "0x1");
    assert_eq!(receipt["type"], "0x2");
    assert_eq!(receipt["gasUsed"], "0x5208");
    assert_eq!(receipt["blockNumber"], "0x1");
    assert_eq!(receipt["from"], json!(signer().address()));
    assert_eq!(receipt["contractAddress"], Value::Null);
    assert_eq!(server.ok("eth_getBalance", json!([to])), "0x3e8");
    let transaction = server.ok("eth_getTransactionByHash", json!([hash]));
    assert_eq!(transaction["hash"], hash);
    assert_eq!(transaction["from"], json!(signer().address()));
    assert_eq!(transaction["value"], "0x3e8");
    assert_eq!(transaction["blockHash"], receipt["blockHash"]);
    let block = server.ok("eth_getBlockByHash", json!([receipt["blockHash"], true]));
    assert_eq!(block["transactions"], json!([transaction]));
    let block = server.ok("eth_getBlockByNumber", json!(["latest", false]));
    assert_eq!(block["transactions"], json!([hash]));
    assert_eq!(block["hash"], receipt["blockHash"]);

    let deployed = server.ok(
        "eth_sendRawTransactionSync",
        json!([signed(1, TxKind::Create, 0, init_code(&contract_code()))]),
    );
    assert_eq!(deployed["status"], "0x1");
    let contract = &deployed["contractAddress"];
    let code = server.ok("eth_getCode", json!([contract, "latest"]));
    assert_eq!(code, hex::encode_prefixed(contract_code()));

    let message = json!({"to": contract, "data": word(5)});
    assert_eq!(server.ok("eth_call", json!([message, "latest"])), word(42));
    assert_eq!(server.ok("eth_call", json!([message])), word(42));
    let gas = server.ok("eth_estimateGas", json!([message]));
    let gas = u64::from_str_radix(&gas.as_str().unwrap()[2..], 16).unwrap();
    assert!((21_000..30_000).contains(&gas), "{gas}");

    let address = contract.as_str().unwrap().parse::<Address>().unwrap();
    for (nonce, number) in [(2, 5), (3, 6), (4, 5)] {
        let input = hex::decode(word(number)).unwrap();
        let raw = signed(nonce, address.into(), 0, input.into());
        server.ok("eth_sendRawTransaction", json!([raw]));
    }
    let all = json!({"address": contract, "fromBlock": "0x0", "toBlock": "latest"});
    assert_eq!(
        server
            .ok("eth_getLogs", json!([all]))
            .as_array()
            .unwrap()
            .len(),
        3
    );
    let some = json!({"fromBlock": "earliest", "topics": [[word(5), word(8)]]});
    let logs = server.ok("eth_getLogs", json!([some]));
    assert_eq!(logs.as_array().unwrap().len(), 2);
    assert_eq!(logs[0]["blockNumber"], "0x3");
    assert_eq!(logs[1]["blockNumber"], "0x5");
    assert_eq!(logs[1]["data"], word(5));
    assert_eq!(logs[1]["logIndex"], "0x0");
    assert_eq!(logs[1]["removed"], false);
    let by_hash = json!({"blockHash": logs[0]["blockHash"]});
    assert_eq!(server.ok("eth_getLogs", json!([by_hash])), json!([logs[0]]));
    let receipts = server.ok("eth_getBlockReceipts", json!(["latest"]));
    assert_eq!(receipts[0]["logs"], json!([logs[1]]));

    let history = server.ok("eth_feeHistory", json!(["0x2", "latest", [20.0, 50.0]]));
    assert_eq!(history["oldestBlock"], "0x4");
    assert_eq!(history["baseFeePerGas"].as_array().unwrap().len(), 3);
    assert_eq!(history["reward"][1], json!(["0xf4240", "0xf4240"]));

    let reverts = json!({"to": contract, "data": word(7)});
    for method in ["eth_call", "eth_estimateGas"] {
        let error = server.error(method, json!([reverts]), 3, "execution reverted: no");
        assert!(error["data"].as_str().unwrap().starts_with("0x08c379a0"));
    }
    // Blocks that were before the contract know nothing of it.
    for (at, expected) in [("0x1", "0x"), ("0x2", code.as_str().unwrap())] {
        assert_eq!(server.ok("eth_getCode", json!([contract, at])), expected);
    }
    assert_eq!(server.ok("eth_call", json!([message, "0x1"])), "0x");
}

#[test]
fn mistakes_have_geths_errors() {
    let server = Server::start();
    let to = Address::repeat_byte(0x11);
    let raw = |nonce| signed(nonce, to.into(), 1, Bytes::new());
    server.ok("eth_sendRawTransaction", json!([raw(0)]));
    let poor = json!({"from": to, "to": to, "value": "0xffffffff"});
    let cases: Vec<(&str, Value, i64, &str)> = vec![
        (
            "eth_sendRawTransaction",
            json!([raw(0)]),
            -32_000,
            "nonce too low",
        ),
        (
            "eth_sendRawTransaction",
            json!([signed(1, to.into(), u128::MAX, Bytes::new())]),
            -32_000,
            "insufficient funds",
        ),
        (
            "eth_sendRawTransaction",
            json!(["0x7dc0"]),
            -32_000,
            "type 0x7d is not supported",
        ),
        (
            "eth_sendRawTransaction",
            json!(["0x02c0"]),
            -32_602,
            "cannot be decoded",
        ),
        ("eth_sendRawTransaction", json!(["hello"]), -32_602, ""),
        ("eth_sendRawTransaction", json!([]), -32_602, ""),
        ("eth_getBalance", json!(["0x12"]), -32_602, ""),
        (
            "eth_getBalance",
            json!([to, "0x99"]),
            -32_000,
            "header not found",
        ),
        ("eth_getBalance", json!([to, "yesterday"]), -32_602, ""),
        ("eth_call", json!([poor]), -32_000, "insufficient funds"),
        (
            "eth_estimateGas",
            json!([poor]),
            -32_000,
            "insufficient funds",
        ),
        (
            "eth_call",
            json!([{"to": to, "gasPrice": "0x1", "maxFeePerGas": "0x1"}]),
            -32_602,
            "both gasPrice and",
        ),
        (
            "eth_getLogs",
            json!([{"fromBlock": "0x5", "toBlock": "0x1"}]),
            -32_602,
            "invalid block range",
        ),
        (
            "eth_getLogs",
            json!([{"blockHash": word(1)}]),
            -32_000,
            "unknown block",
        ),
        (
            "eth_feeHistory",
            json!(["0x1", "latest", [50.0, 20.0]]),
            -32_000,
            "invalid reward percentile: #0:50 >= #1:20",
        ),
        (
            "eth_feeHistory",
            json!(["0x1", "0x77", []]),
            -32_000,
            "request beyond head block: requested 119, head 1",
        ),
        (
            "eth_sign",
            json!([to, "0x"]),
            -32_601,
            "the method eth_sign does not exist/is not available",
        ),
    ];
    for (method, params, code, message) in cases {
        server.error(method, params, code, message);
    }
    assert_eq!(server.ok("eth_blockNumber", json!([])), "0x1");
}

#[test]
fn bodies_and_batches_have_limits() {
    let server = Server::start();
    let limits = Limits::default();
    let one = json!({"jsonrpc": "2.0", "id": 1, "method": "eth_chainId", "params": []});
    let batch = |n: u32| Value::from_iter((0..n).map(|_| one.clone())).to_string();
    let (status, body) = server.post(&batch(limits.batch_max));
    assert_eq!(status, 200);
    let replies: Value = serde_json::from_str(&body).unwrap();
    assert_eq!(replies.as_array().unwrap().len(), limits.batch_max as usize);
    let (_, body) = server.post(&batch(limits.batch_max + 1));
    assert!(body.contains("The batch request was too large"), "{body}");
    // Refused by its announced length, before any of the body is sent.
    let mut stream = std::net::TcpStream::connect(server.addr).unwrap();
    let head = "POST / HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n";
    let length = limits.request_max_size_bytes + 1;
    write!(stream, "{head}content-length: {length}\r\n\r\n").unwrap();
    let mut status = [0; 12];
    stream.read_exact(&mut status).unwrap();
    assert_eq!(&status, b"HTTP/1.1 413");
    let (_, body) = server.post("{not json");
    assert!(body.contains("-32700"), "{body}");
}

#[test]
fn transactions_of_a_batch_share_blocks_and_keep_their_order() {
    const N: u64 = 60;
    let server = Server::start();
    let to = Address::repeat_byte(0x11);
    let call = |id: u64, method: &str, params: Value| json!({"jsonrpc": "2.0", "id": id, "method": method, "params": params});
    let mut batch: Vec<Value> = (0..N)
        .map(|nonce| {
            let raw = signed(nonce, to.into(), 1, Bytes::new());
            call(nonce, "eth_sendRawTransaction", json!([raw]))
        })
        .collect();
    // In the middle of the transactions, and seeing those before it.
    let asked_after = N / 2;
    batch.insert(
        usize::try_from(asked_after).unwrap(),
        call(1_000, "eth_getBalance", json!([to])),
    );
    let (status, body) = server.post(&json!(batch).to_string());
    assert_eq!(status, 200);
    let replies: Vec<Value> = serde_json::from_str(&body).unwrap();
    let ids: Vec<_> = replies.iter().map(|reply| reply["id"].clone()).collect();
    let expected: Vec<_> = batch.iter().map(|call| call["id"].clone()).collect();
    assert_eq!(ids, expected);
    assert!(
        replies.iter().all(|reply| reply.get("error").is_none()),
        "{body}"
    );
    let balance = &replies[usize::try_from(asked_after).unwrap()]["result"];
    assert_eq!(*balance, json!(format!("{asked_after:#x}")));
    assert_eq!(
        server.ok("eth_getBalance", json!([to])),
        json!(format!("{N:#x}"))
    );
    let head = server.ok("eth_blockNumber", json!([]));
    let head = u64::from_str_radix(&head.as_str().unwrap()[2..], 16).unwrap();
    assert!(head < N, "{head} blocks for {N} transactions");
}

#[test]
fn browsers_may_ask_from_any_page() {
    let server = Server::start();
    let agent = ureq::Agent::new_with_defaults();
    let reply = agent
        .options(format!("http://{}", server.addr))
        .header("origin", "http://localhost:3000")
        .header("access-control-request-method", "POST")
        .header("access-control-request-headers", "content-type")
        .call()
        .unwrap();
    assert_eq!(reply.status(), 200);
    let header = |name: &str| {
        reply
            .headers()
            .get(name)
            .unwrap()
            .to_str()
            .unwrap()
            .to_owned()
    };
    let allowed = header("access-control-allow-origin");
    assert_eq!(allowed, "http://localhost:3000");
    assert_eq!(header("access-control-allow-headers"), "content-type");
}

#[test]
fn a_port_in_use_is_named() {
    let server = Server::start();
    let dir = tempfile::tempdir().unwrap();
    let mut genesis = Genesis::default();
    genesis.config.chain_id = CHAIN_ID;
    let node = Node::open(dir.path(), &genesis, Arc::new(ManualClock::new(0))).unwrap();
    let error = server
        .runtime
        .block_on(eth::serve(
            node,
            ServeConfig::new(server.addr),
            Shutdown::new(),
        ))
        .unwrap_err();
    let ServeError::Bind { addr, source } = error else {
        panic!("{error:?}");
    };
    assert_eq!(addr, server.addr);
    assert_eq!(source.kind(), std::io::ErrorKind::AddrInUse);
}

#[test]
fn shutdown_frees_the_port() {
    let server = Server::start();
    server.ok("eth_chainId", json!([]));
    let addr = server.addr;
    server.shutdown.trigger();
    server.runtime.block_on(async {
        // The listener closes when the server has stopped.
        while tokio::net::TcpListener::bind(addr).await.is_err() {
            tokio::task::yield_now().await;
        }
    });
}
