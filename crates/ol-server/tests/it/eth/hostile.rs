//! Goal: whatever is sent, the answer is a clear error within limits, memory
//! stays bounded, and the node goes on serving.
//! Method: each kind of malice against a server of its own.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::time::Duration;

use alloy_consensus::{Signed, TxEip1559, TxEip4844, TxLegacy};
use alloy_eips::eip2718::Encodable2718 as _;
use alloy_primitives::{Address, B256, Bytes, Signature, TxKind, U256, hex, uint};
use ol_node::NodeConfig;
use ol_server::eth::{Limits, ServeConfig};
use serde_json::{Value, json};

use super::{CHAIN_ID, Server, signer};
use alloy_consensus::SignableTransaction as _;
use alloy_signer::SignerSync as _;

/// Order of the curve (SEC 2, secp256k1).
const ORDER: U256 = uint!(0xfffffffffffffffffffffffffffffffebaaedce6af48a03bbfd25e8cd0364141_U256);

/// What the process may grow by under one attack.
const GROWTH_MAX_SIZE_BYTES: u64 = 768 << 20;

/// The reply to a body, whatever it is.
fn raw_reply(server: &Server, body: &str) -> Value {
    let (status, text) = server.post(body);
    assert!(status < 500, "{status}: {text}");
    serde_json::from_str(&text).unwrap_or(Value::Null)
}

#[track_caller]
fn is_alive(server: &Server) {
    assert_eq!(server.ok("eth_chainId", json!([])), "0x275b0");
}

/// Resident memory of this process, which the server is part of.
fn resident_size_bytes() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kib: u64 = line
        .unwrap()
        .split_whitespace()
        .next()
        .unwrap()
        .parse()
        .unwrap();
    kib * 1_024
}

fn transfer() -> TxEip1559 {
    TxEip1559 {
        chain_id: CHAIN_ID,
        gas_limit: 21_000,
        max_fee_per_gas: 3_000_000_000,
        to: TxKind::Call(Address::repeat_byte(1)),
        ..TxEip1559::default()
    }
}

fn sign(transaction: TxEip1559) -> Signed<TxEip1559> {
    let signature = signer().sign_hash_sync(&transaction.signature_hash());
    transaction.into_signed(signature.unwrap())
}

fn with_signature(r: U256, s: U256, parity: bool) -> Vec<u8> {
    let signature = Signature::new(r, s, parity);
    transfer().into_signed(signature).encoded_2718()
}

#[test]
fn transactions_that_are_none_are_refused_by_name() {
    let server = Server::start();
    let good = sign(transfer());
    let (r, s, parity) = (
        good.signature().r(),
        good.signature().s(),
        good.signature().v(),
    );
    let good = good.encoded_2718();
    let before_155 = TxLegacy {
        chain_id: None,
        gas_price: 3_000_000_000,
        gas_limit: 21_000,
        to: TxKind::Call(Address::repeat_byte(1)),
        ..TxLegacy::default()
    };
    let signature = signer()
        .sign_hash_sync(&before_155.signature_hash())
        .unwrap();
    let before_155 = before_155.into_signed(signature).encoded_2718();
    let blob = TxEip4844 {
        chain_id: CHAIN_ID,
        gas_limit: 21_000,
        max_fee_per_gas: 3_000_000_000,
        max_fee_per_blob_gas: 1,
        blob_versioned_hashes: vec![B256::with_last_byte(1)],
        ..TxEip4844::default()
    };
    let signature = signer().sign_hash_sync(&blob.signature_hash()).unwrap();
    let blob = blob.into_signed(signature).encoded_2718();
    let foreign = sign(TxEip1559 {
        chain_id: 1,
        ..transfer()
    });
    let thirsty = sign(TxEip1559 {
        gas_limit: u64::MAX,
        ..transfer()
    });
    let cut = good[..good.len() - 1].to_vec();
    let longer = [good.as_slice(), &[0]].concat();
    let cases: [(&str, Vec<u8>); 18] = [
        ("empty", vec![]),
        ("cut", cut),
        ("longer", longer),
        ("a length that lies", vec![0x02, 0xf8, 0xff]),
        (
            "a length of 2^64",
            vec![0x02, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff],
        ),
        ("nested lists", [&[0xc1; 4_096][..], &[0xc0]].concat()),
        ("type 0x7d", vec![0x7d, 0xc0]),
        ("type 0x7e", vec![0x7e, 0xc0]),
        ("type 0x05", vec![0x05, 0xc0]),
        ("another chain", foreign.encoded_2718()),
        ("before EIP-155", before_155),
        ("blobs", blob),
        ("too much gas", thirsty.encoded_2718()),
        ("the upper s", with_signature(r, ORDER - s, !parity)),
        ("zero r", with_signature(U256::ZERO, s, parity)),
        ("zero s", with_signature(r, U256::ZERO, parity)),
        ("r of the order", with_signature(ORDER, s, parity)),
        // Gives another sender, who has nothing.
        ("the other parity", with_signature(r, s, !parity)),
    ];
    for (name, raw) in cases {
        let raw = hex::encode_prefixed(raw);
        for method in ["eth_sendRawTransaction", "eth_sendRawTransactionSync"] {
            let reply = server.reply(method, json!([raw]));
            let code = reply["error"]["code"].as_i64();
            assert!(matches!(code, Some(-32_000 | -32_602)), "{name}: {reply}");
            let message = reply["error"]["message"].as_str().unwrap();
            assert!(message.len() > 5, "{name}: {reply}");
        }
    }
    let huge = hex::encode_prefixed(vec![0x02; 200_000]);
    server.error(
        "eth_sendRawTransaction",
        json!([huge]),
        -32_000,
        "oversized",
    );
    assert_eq!(server.ok("eth_blockNumber", json!([])), "0x0");
    let sent = server.ok(
        "eth_sendRawTransaction",
        json!([hex::encode_prefixed(&good)]),
    );
    assert!(sent.is_string());
    // Sent again it is no second one.
    let again = server.reply(
        "eth_sendRawTransaction",
        json!([hex::encode_prefixed(&good)]),
    );
    assert!(again["error"].is_object(), "{again}");
}

#[test]
fn bodies_that_are_bombs_do_not_go_off() {
    let server = Server::start();
    let before = resident_size_bytes();
    let deep = "[".repeat(100_000);
    let call = |params: &str| {
        format!(r#"{{"jsonrpc":"2.0","id":1,"method":"eth_getBalance","params":{params}}}"#)
    };
    let bodies = [
        deep.clone(),
        call(&deep),
        call(&format!("{deep}{}", "]".repeat(100_000))),
        call(&format!("[{}]", "9".repeat(100_000))),
        call("[1e999999]"),
        call(&format!(r#"["0x{}"]"#, "f".repeat(1_000_000))),
        call(r#"["\ud800","latest"]"#),
        call(r#"{"__proto__":{}}"#),
        r#"{"jsonrpc":"2.0","id":1"#.to_owned(),
        "null".to_owned(),
        String::new(),
        "\0\0\0".to_owned(),
    ];
    for body in &bodies {
        let reply = raw_reply(&server, body);
        let shown: String = body.chars().take(60).collect();
        assert!(reply["result"].is_null(), "{shown}: {reply}");
    }
    // A batch of the most calls, each of them slow to refuse.
    let slow = call(&format!(r#"["0x{}"]"#, "f".repeat(10_000)));
    let batch = format!("[{}]", vec![slow; 256].join(","));
    assert!(raw_reply(&server, &batch).is_array());

    // 10^6 topics are too large a request; what fits is too many topics.
    let topics = |n: usize| {
        let topics: Vec<_> = (0..n).map(|topic| format!("\"0x{topic:064x}\"")).collect();
        format!("[{}]", topics.join(","))
    };
    let filter = |n: usize| {
        format!(
            r#"{{"jsonrpc":"2.0","id":1,"method":"eth_getLogs","params":[{{"topics":[{}]}}]}}"#,
            topics(n)
        )
    };
    let reply = raw_reply(&server, &filter(50_000));
    assert_eq!(reply["error"]["code"], -32_602, "{reply}");
    let (million, length) = (filter(1_000_000), 69_000_000);
    assert!(million.len() > length);
    assert_eq!(status_of_announced(&server, million.len()), 413);
    assert_eq!(status_of_announced(&server, 100 << 20), 413);
    is_alive(&server);
    let grown = resident_size_bytes().saturating_sub(before);
    // The million topics are made here too.
    assert!(grown < GROWTH_MAX_SIZE_BYTES, "{grown}");
}

/// Announces a body of some length, and reads the status.
fn status_of_announced(server: &Server, length: usize) -> u16 {
    let mut stream = connect(server);
    write!(
        stream,
        "POST / HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\ncontent-length: {length}\r\n\r\n"
    )
    .unwrap();
    status(&mut stream)
}

fn connect(server: &Server) -> TcpStream {
    let stream = TcpStream::connect(server.addr).unwrap();
    stream
        .set_read_timeout(Some(Duration::from_secs(60)))
        .unwrap();
    stream
}

fn status(stream: &mut TcpStream) -> u16 {
    let mut line = [0; 12];
    stream.read_exact(&mut line).unwrap();
    let line = std::str::from_utf8(&line).unwrap();
    line.strip_prefix("HTTP/1.1 ").unwrap().parse().unwrap()
}

#[test]
fn what_is_not_http_is_not_served() {
    let server = Server::start();
    let cases: [&[u8]; 6] = [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"GET / HTTP/9.9\r\n\r\n",
        b"POST / HTTP/1.1\r\nhost: localhost\r\ncontent-length: -1\r\n\r\n",
        b"POST / HTTP/1.1\r\nhost: localhost\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"\xff\xfe\xfd\xfc\r\n\r\n",
    ];
    for bytes in cases {
        let mut stream = connect(&server);
        stream.write_all(bytes).unwrap();
        stream.shutdown(std::net::Shutdown::Write).unwrap();
        let mut answer = Vec::new();
        // Closed, with or without a word.
        let _ = stream.read_to_end(&mut answer);
        assert!(!answer.starts_with(b"HTTP/1.1 200"), "{bytes:?}");
    }
    // Headers without end.
    let mut stream = connect(&server);
    stream
        .write_all(b"POST / HTTP/1.1\r\nhost: localhost\r\n")
        .unwrap();
    let line = format!("x-filler: {}\r\n", "a".repeat(1_000));
    while stream.write_all(line.as_bytes()).is_ok() {}
    let mut invalid = connect(&server);
    let body = b"{\"jsonrpc\":\"2.0\",\"id\":1,\"method\":\"eth_\xff\"}";
    write!(
        invalid,
        "POST / HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n",
        body.len()
    )
    .unwrap();
    invalid.write_all(body).unwrap();
    assert!(status(&mut invalid) < 500);
    is_alive(&server);
}

#[test]
fn past_the_limit_connections_are_told_so_and_room_comes_back() {
    const N: u32 = 4;
    let few = |config: &mut ServeConfig| config.limits.connections_max = N;
    let server = Server::start_with(few, NodeConfig::default());
    // Nothing is sent on them; one is half of a WebSocket's beginning.
    let mut held: Vec<_> = (0..N).map(|_| connect(&server)).collect();
    held[0]
        .write_all(b"GET / HTTP/1.1\r\nhost: localhost\r\nupgrade: websocket\r\n")
        .unwrap();
    // Which connections have a place is settled when one past them is refused.
    let mut refused = connect(&server);
    assert_eq!(status(&mut refused), 503);
    drop((held, refused));
    // The server notices in its own time.
    loop {
        let mut stream = connect(&server);
        let body = r#"{"jsonrpc":"2.0","id":1,"method":"eth_chainId"}"#;
        let sent = write!(
            stream,
            "POST / HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
            body.len()
        );
        let mut line = [0; 12];
        if sent.is_ok() && stream.read_exact(&mut line).is_ok() && line.ends_with(b"200") {
            break;
        }
        std::thread::yield_now();
    }
}

/// An answer of any size that a server may give.
fn large_answer(server: &Server, request: &Value) -> Vec<u8> {
    let limit = u64::from(Limits::default().response_max_size_bytes);
    let mut reply = ureq::post(format!("http://{}", server.addr))
        .header("content-type", "application/json")
        .send(request.to_string())
        .unwrap();
    let body = reply.body_mut().with_config().limit(limit).read_to_vec();
    body.expect("no answer is larger")
}

/// Calls that take all they can get. Each is code at an address of its own.
#[test]
fn calls_that_are_bombs_end_within_limits() {
    let server = Server::start();
    let before = resident_size_bytes();
    let at = "0x00000000000000000000000000000000000b0b0b";
    let bombs = [
        // An endless loop; itself again and again; memory without end.
        ("loop", "5b5f56"),
        ("recurse", "5f5f5f5f5f305af100"),
        ("memory", "5b5f59525f56"),
        ("one large word", "5f6401000000005200"),
        ("copies", "5b63000f42405f5f3763000f42405f5f3e5f56"),
        // Contracts that make contracts, and the most expensive precompile.
        ("create", "5b5f5f5ff0505f56"),
        ("return much", "630fffffff5ff3"),
        ("logs", "5b5f5f5f5f5f5fa45f56"),
    ];
    for (name, code) in bombs {
        let overrides = json!({at: {"code": format!("0x{code}")}});
        for gas in [Some("0xffffffffffffffff"), None] {
            let mut call = json!({"to": at});
            if let Some(gas) = gas {
                call["gas"] = json!(gas);
            }
            let reply = server.reply("eth_call", json!([call, "latest", overrides]));
            let code = reply["error"]["code"].as_i64();
            assert_ne!(code, Some(-32_603), "{name}: {reply}");
            assert!(code.is_some() || reply["result"].is_string(), "{name}");
            let reply = server.reply("eth_estimateGas", json!([call, "latest", overrides]));
            assert_ne!(reply["error"]["code"], -32_603, "{name}: {reply}");
        }
        let call = json!({"to": at, "gas": "0x5f5e100"});
        for tracer in [
            json!({}),
            json!({"tracer": "callTracer"}),
            json!({"enableMemory": true}),
        ] {
            let mut options = tracer;
            options["stateOverrides"] = overrides.clone();
            let request = json!({
                "jsonrpc": "2.0",
                "id": 1,
                "method": "debug_traceCall",
                "params": [call, "latest", options],
            });
            // Not parsed: calls are nested as deep as they were made.
            let answer = large_answer(&server, &request);
            let start = String::from_utf8_lossy(&answer[..answer.len().min(300)]);
            assert!(!start.contains("-32603"), "{name}: {start}");
        }
        is_alive(&server);
    }
    let grown = resident_size_bytes().saturating_sub(before);
    assert!(grown < GROWTH_MAX_SIZE_BYTES, "{grown}");
}

#[test]
fn an_initcode_bomb_is_refused() {
    let server = Server::start();
    let large = hex::encode_prefixed(Bytes::from(vec![0x5b; 60_000]));
    let reply = server.reply("eth_call", json!([{"data": large}, "latest"]));
    assert!(reply["error"]["code"].is_i64(), "{reply}");
    is_alive(&server);
}
