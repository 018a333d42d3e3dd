//! Subscriptions over a real WebSocket.

use std::time::Duration;

use alloy_primitives::{Address, TxKind, hex};
use ol_node::NodeConfig;
use ol_server::eth::ServeConfig;
use serde_json::json;

use super::websocket::{PING, PONG, WebSocket};
use super::{Server, contract_code, init_code, signed, word};

#[test]
fn heads_logs_and_pending_transactions_are_told() {
    let server = Server::start();
    let mut socket = WebSocket::connect(server.addr);
    let deployed = socket.ok(
        "eth_sendRawTransactionSync",
        json!([signed(0, TxKind::Create, 0, init_code(&contract_code()))]),
    );
    let contract = deployed["contractAddress"].clone();
    let heads = socket.ok("eth_subscribe", json!(["newHeads"]));
    assert_eq!(heads.as_str().unwrap().len(), 34);
    let all = socket.ok("eth_subscribe", json!(["logs", {"address": contract}]));
    let some = json!({"address": [contract], "topics": [[word(6), word(8)]]});
    let some = socket.ok("eth_subscribe", json!(["logs", some]));
    let quiet = socket.ok("eth_subscribe", json!(["syncing"]));
    assert_ne!(quiet, heads);

    let address: Address = contract.as_str().unwrap().parse().unwrap();
    let emit = |nonce, number| {
        let input = hex::decode(word(number)).unwrap();
        signed(nonce, address.into(), 0, input.into())
    };
    for (nonce, number) in [(1, 5), (2, 6)] {
        let hash = server.ok("eth_sendRawTransaction", json!([emit(nonce, number)]));
        let head = socket.told(&heads);
        let mut block = server.ok("eth_getBlockByNumber", json!(["latest", false]));
        assert_eq!(head["hash"], block["hash"]);
        // A header is a block without its body.
        let fields = block.as_object_mut().unwrap();
        for of_body in ["transactions", "uncles", "withdrawals", "size"] {
            fields.remove(of_body).unwrap();
        }
        assert_eq!(head, block);
        let log = socket.told(&all);
        assert_eq!(log["transactionHash"], hash);
        assert_eq!(log["topics"], json!([word(number)]));
        assert_eq!(log["removed"], false);
        let receipt = server.ok("eth_getTransactionReceipt", json!([hash]));
        assert_eq!(receipt["logs"], json!([log]));
    }
    let log = socket.told(&some);
    assert_eq!(log["topics"], json!([word(6)]));

    assert_eq!(socket.ok("eth_unsubscribe", json!([heads])), true);
    assert_eq!(socket.ok("eth_unsubscribe", json!([heads])), false);
    assert_eq!(socket.ok("eth_unsubscribe", json!([some])), true);
    server.ok("eth_sendRawTransaction", json!([emit(3, 6)]));
    assert_eq!(socket.told(&all)["topics"], json!([word(6)]));
}

#[test]
fn what_cannot_be_subscribed_to_has_geths_errors() {
    let server = Server::start();
    let mut socket = WebSocket::connect(server.addr);
    let cases = [
        (
            json!(["news"]),
            -32_601,
            "no \"news\" subscription in eth namespace",
        ),
        (json!([]), -32_602, "missing value for required argument 0"),
        (json!([7]), -32_602, "invalid argument 0"),
        (json!(["logs", 7]), -32_602, "invalid argument 1"),
        (json!(["logs", {}, 1]), -32_602, "too many arguments"),
    ];
    for (params, code, message) in cases {
        let reply = socket.ask("eth_subscribe", params);
        let error = &reply["error"];
        assert_eq!(error["code"], code, "{reply}");
        assert!(
            error["message"].as_str().unwrap().contains(message),
            "{reply}"
        );
    }
    // Another connection: a refused subscription gives its place back only after
    // its refusal was sent.
    let mut socket = WebSocket::connect(server.addr);
    for n in 0..64 {
        let reply = socket.ask("eth_subscribe", json!(["newHeads"]));
        assert!(reply.get("error").is_none(), "{n}: {reply}");
    }
    let reply = socket.ask("eth_subscribe", json!(["newHeads"]));
    assert!(reply.get("error").is_some(), "{reply}");
    // The connection lives on, and so does every other.
    assert_eq!(socket.ok("eth_blockNumber", json!([])), "0x0");
    WebSocket::connect(server.addr).ok("eth_subscribe", json!(["newHeads"]));
    // Over HTTP there is nobody to tell anything.
    let reply = server.reply("eth_subscribe", json!(["newHeads"]));
    assert!(reply.get("error").is_some(), "{reply}");
}

#[test]
fn one_that_reads_nothing_is_cut_off_with_words() {
    let server = Server::start();
    let mut deaf = WebSocket::connect(server.addr);
    let deployed = deaf.ok(
        "eth_sendRawTransactionSync",
        json!([signed(0, TxKind::Create, 0, init_code(&contract_code()))]),
    );
    let contract: Address = deployed["contractAddress"]
        .as_str()
        .unwrap()
        .parse()
        .unwrap();
    let logs = deaf.ok("eth_subscribe", json!(["logs"]));
    // More than the buffers of the socket, the messages that wait for the
    // connection and the events that wait for the subscription hold together.
    let large = vec![0; 30_000];
    for nonce in 1..=900 {
        let raw = signed(nonce, contract.into(), 0, large.clone().into());
        server.ok("eth_sendRawTransaction", json!([raw]));
    }
    loop {
        let told = deaf.told(&logs);
        if let Some(words) = told.as_str() {
            assert!(words.starts_with("cut off:"), "{words}");
            break;
        }
        assert_eq!(told["removed"], false);
    }
    assert_eq!(deaf.ok("eth_unsubscribe", json!([logs])), false);
}

#[test]
fn who_does_not_answer_pings_is_hung_up_on() {
    let impatient = |config: &mut ServeConfig| {
        config.limits.ping_interval = Duration::from_millis(10);
        config.limits.silence_max = Duration::from_millis(50);
    };
    let server = Server::start_with(impatient, NodeConfig::default());
    let mut socket = WebSocket::connect(server.addr);
    let mut n_pings = 0;
    // Until the server closes, by a frame or without.
    while let Ok((PING, _)) = socket.next_frame() {
        n_pings += 1;
    }
    assert!(n_pings > 0);
}

#[test]
fn who_answers_pings_is_not() {
    let curious = |config: &mut ServeConfig| {
        config.limits.ping_interval = Duration::from_millis(10);
    };
    let server = Server::start_with(curious, NodeConfig::default());
    let mut socket = WebSocket::connect(server.addr);
    for _ in 0..5 {
        let (kind, payload) = socket.next_frame().unwrap();
        assert_eq!(kind, PING);
        socket.send_frame(PONG, &payload);
    }
    assert_eq!(socket.ok("eth_chainId", json!([])), "0x275b0");
}
