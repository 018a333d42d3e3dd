//! What is not in a durable block: the pool, and the block that is being made.

use std::num::NonZeroU64;

use alloy_primitives::{Address, Bytes, TxKind, hex};
use ol_node::{BlockMode, NodeConfig};
use serde_json::{Value, json};

use super::websocket::WebSocket;
use super::{Server, contract_code, init_code, signed, signer, word};

/// A chain whose blocks are closed by a clock that stands still.
fn interval() -> Server {
    let config = NodeConfig {
        block_mode: BlockMode::Interval(NonZeroU64::new(1_000).unwrap()),
        ..NodeConfig::default()
    };
    Server::start_with(|config| config.is_dev = true, config)
}

#[test]
fn the_block_that_is_being_made_can_be_seen() {
    let server = interval();
    let mut socket = WebSocket::connect(server.addr);
    let hashes_of = socket.ok("eth_subscribe", json!(["newPendingTransactions"]));
    let full_of = socket.ok("eth_subscribe", json!(["newPendingTransactions", true]));
    let filter = server.ok("eth_newPendingTransactionFilter", json!([]));
    let me = signer().address();
    let raw = signed(0, TxKind::Create, 0, init_code(&contract_code()));
    // Answered at once, from the pending block: the clock stands still.
    let receipt = server.ok("eth_sendRawTransactionSync", json!([raw]));
    assert_eq!(receipt["status"], "0x1");
    assert_eq!(receipt["blockHash"], Value::Null);
    assert_eq!(receipt["blockNumber"], "0x1");
    let contract = &receipt["contractAddress"];
    let address: Address = contract.as_str().unwrap().parse().unwrap();
    let input: Bytes = hex::decode(word(5)).unwrap().into();
    let hash = server.ok(
        "eth_sendRawTransaction",
        json!([signed(1, address.into(), 0, input)]),
    );

    assert_eq!(server.ok("eth_blockNumber", json!([])), "0x0");
    let block = server.ok("eth_getBlockByNumber", json!(["pending", true]));
    assert_eq!(block["number"], "0x1");
    for unknown in ["hash", "nonce", "miner"] {
        assert_eq!(block[unknown], Value::Null, "{unknown}");
    }
    let transactions = block["transactions"].as_array().unwrap();
    assert_eq!(transactions.len(), 2);
    assert_eq!(transactions[1]["hash"], hash);
    assert_eq!(transactions[1]["blockHash"], Value::Null);
    let hashes = server.ok("eth_getBlockByNumber", json!(["pending", false]));
    assert_eq!(hashes["transactions"][1], hash);
    let header = server.ok("eth_getHeaderByNumber", json!(["pending"]));
    assert_eq!(header["gasUsed"], block["gasUsed"]);
    let by_hash = server.ok("eth_getTransactionByHash", json!([hash]));
    assert_eq!(by_hash["nonce"], "0x1");
    assert_eq!(by_hash["blockNumber"], Value::Null);
    let at = server.ok(
        "eth_getTransactionByBlockNumberAndIndex",
        json!(["pending", "0x1"]),
    );
    assert_eq!(at["hash"], hash);
    assert_eq!(
        server.ok("eth_getBlockTransactionCountByNumber", json!(["pending"])),
        "0x2"
    );
    let count = |at| server.ok("eth_getTransactionCount", json!([me, at]));
    assert_eq!(
        (count("latest"), count("pending")),
        (json!("0x0"), json!("0x2"))
    );
    let code = |at| server.ok("eth_getCode", json!([contract, at]));
    assert_eq!(code("latest"), "0x");
    assert_eq!(code("pending"), hex::encode_prefixed(contract_code()));
    let call = json!({"to": contract, "data": word(5)});
    assert_eq!(server.ok("eth_call", json!([call, "pending"])), word(42));
    assert_eq!(server.ok("eth_call", json!([call, "latest"])), "0x");
    // A receipt means a durable block, unless it is asked for otherwise.
    assert_eq!(
        server.ok("eth_getTransactionReceipt", json!([hash])),
        Value::Null
    );
    let preconfirmed = server.ok("eth_getTransactionReceipt", json!([hash, "pending"]));
    let receipts = server.ok("eth_getBlockReceipts", json!(["pending"]));
    assert_eq!(receipts[1], preconfirmed);
    let logs = |to| server.ok("eth_getLogs", json!([{"fromBlock": "0x0", "toBlock": to}]));
    assert_eq!(logs("latest"), json!([]));
    assert_eq!(logs("pending"), preconfirmed["logs"]);
    assert_eq!(preconfirmed["logs"][0]["blockHash"], Value::Null);

    let first = &transactions[0]["hash"];
    assert_eq!(socket.told(&hashes_of), *first);
    assert_eq!(socket.told(&hashes_of), hash);
    assert_eq!(socket.told(&full_of)["hash"], *first);
    assert_eq!(socket.told(&full_of)["hash"], hash);
    let changes = server.ok("eth_getFilterChanges", json!([filter]));
    assert_eq!(changes, json!([first, hash]));

    // What is promised is kept.
    server.ok("evm_mine", json!([]));
    let receipt = server.ok("eth_getTransactionReceipt", json!([hash]));
    assert_ne!(receipt["blockHash"], Value::Null);
    for same in [
        "transactionIndex",
        "gasUsed",
        "cumulativeGasUsed",
        "status",
        "blockNumber",
    ] {
        assert_eq!(receipt[same], preconfirmed[same], "{same}");
    }
    assert_eq!(logs("latest"), receipt["logs"]);
    assert_eq!(logs("pending"), receipt["logs"]);
}

#[test]
fn the_pool_can_be_looked_into() {
    let server = interval();
    let me = signer().address();
    let to = Address::repeat_byte(0x33);
    let send = |nonce| {
        server.ok(
            "eth_sendRawTransaction",
            json!([signed(nonce, to.into(), 7, Bytes::new())]),
        )
    };
    let (first, gap) = (send(0), send(5));
    assert_eq!(
        server.ok("txpool_status", json!([])),
        json!({"pending": "0x1", "queued": "0x1"})
    );
    let content = server.ok("txpool_content", json!([]));
    let key = me.to_checksum(None);
    assert_eq!(content["pending"][&key]["0"]["hash"], first);
    assert_eq!(content["queued"][&key]["5"]["hash"], gap);
    assert_eq!(content["queued"][&key]["5"]["blockHash"], Value::Null);
    let mine = server.ok("txpool_contentFrom", json!([me]));
    assert_eq!(
        mine,
        json!({"pending": content["pending"][&key], "queued": content["queued"][&key]})
    );
    let others = server.ok("txpool_contentFrom", json!([to]));
    assert_eq!(others, json!({"pending": {}, "queued": {}}));
    let inspected = server.ok("txpool_inspect", json!([]));
    assert_eq!(
        inspected["queued"][&key]["5"],
        format!(
            "{}: 7 wei + 500000 gas × 3000000000 wei",
            hex::encode_prefixed(to)
        )
    );
    let waiting = server.ok("eth_getTransactionByHash", json!([gap]));
    assert_eq!(waiting["hash"], gap);
    let raw = server.ok("eth_getRawTransactionByHash", json!([gap]));
    assert_eq!(raw, signed(5, to.into(), 7, Bytes::new()));
    // One that only waits has no receipt in time (EIP-7966).
    let late = signed(7, to.into(), 7, Bytes::new());
    let error = server.error(
        "eth_sendRawTransactionSync",
        json!([late, "0x1"]),
        4,
        "wasn't processed in 1 ms",
    );
    assert_eq!(error["data"].as_str().unwrap().len(), 66);
    server.error(
        "eth_sendRawTransaction",
        json!([late]),
        -32_000,
        "already known",
    );
    server.ok("evm_mine", json!([]));
    assert_eq!(server.ok("eth_blockNumber", json!([])), "0x1");
}

#[test]
fn accounts_are_proven() {
    let server = Server::start();
    let me = signer().address();
    let proof = server.ok("eth_getProof", json!([me, ["0x0", word(1)], "latest"]));
    assert_eq!(proof["address"], json!(me));
    assert_eq!(proof["balance"], "0x3635c9adc5dea00000");
    assert!(!proof["accountProof"].as_array().unwrap().is_empty());
    // Keys come back as they were asked for.
    assert_eq!(proof["storageProof"][0]["key"], "0x0");
    assert_eq!(proof["storageProof"][1]["key"], word(1));
    assert_eq!(proof["storageProof"][1]["value"], "0x0");
    let values = server.ok(
        "eth_getStorageValues",
        json!([{me.to_string(): ["0x0", word(1)]}, "latest"]),
    );
    let (_, found) = values.as_object().unwrap().iter().next().unwrap();
    assert_eq!(*found, json!([word(0), word(0)]));
    server.error(
        "eth_getStorageValues",
        json!([{}]),
        -32_602,
        "empty request",
    );
}
