//! Helpers of development chains.

use alloy_primitives::{Address, Bytes, TxKind, hex};
use serde_json::{Value, json};

use super::websocket::WebSocket;
use super::{Server, contract_code, init_code, signed, signer, word};

fn number(value: &Value) -> u64 {
    u64::from_str_radix(&value.as_str().unwrap()[2..], 16).unwrap()
}

#[test]
fn outside_of_development_there_are_no_helpers() {
    let server = Server::start();
    for method in ol_server::eth::methods() {
        let reply = server.reply(method, json!({}));
        let is_unknown = reply["error"]["code"] == -32_601;
        let is_helper = ["evm_", "anvil_", "hardhat_"]
            .iter()
            .any(|prefix| method.starts_with(prefix))
            || method == "eth_sendTransaction";
        let is_for_sockets = method == "eth_subscribe" || method == "eth_unsubscribe";
        assert!(
            is_unknown == is_helper || is_for_sockets,
            "{method}: {reply}"
        );
    }
    assert_eq!(server.ok("eth_accounts", json!([])), json!([]));
    let modules = server.ok("rpc_modules", json!([]));
    let mut names: Vec<_> = modules.as_object().unwrap().keys().collect();
    names.sort();
    assert_eq!(
        names,
        [
            "debug", "eth", "net", "ol", "rpc", "trace", "txpool", "web3"
        ]
    );
}

#[test]
fn blocks_and_time_by_hand() {
    let server = Server::start_dev();
    let newest = || server.ok("eth_getBlockByNumber", json!(["latest", false]));
    assert_eq!(server.ok("evm_mine", json!([])), "0x0");
    assert_eq!(newest()["number"], "0x1");
    server.ok("anvil_mine", json!(["0x3"]));
    server.ok("hardhat_mine", json!([2, 10]));
    let block = newest();
    assert_eq!(block["number"], "0x6");
    assert_eq!(number(&block["timestamp"]), 1_700_000_010);
    assert_eq!(server.ok("evm_increaseTime", json!(["0x64"])), 110);
    server.ok("evm_mine", json!([]));
    assert_eq!(number(&newest()["timestamp"]), 1_700_000_110);
    server.ok("evm_setNextBlockTimestamp", json!([1_800_000_000]));
    let pending = server.ok("eth_getBlockByNumber", json!(["pending", false]));
    assert_eq!(number(&pending["timestamp"]), 1_800_000_000);
    server.ok("evm_mine", json!([{"blocks": 2}]));
    assert_eq!(number(&newest()["timestamp"]), 1_800_000_000);
    server.ok("evm_mine", json!([1_900_000_000]));
    assert_eq!(number(&newest()["timestamp"]), 1_900_000_000);
    server.error(
        "evm_setNextBlockTimestamp",
        json!([1]),
        -32_602,
        "timestamp 1 is not after that of the newest block",
    );
    server.error("anvil_mine", json!([1_000_000]), -32_602, "too many blocks");
    for (method, params) in [
        ("evm_setNextBlockTimestamp", json!([253_402_300_800_u64])),
        ("evm_mine", json!([u64::MAX])),
        ("evm_increaseTime", json!(["0xffffffffffffffff"])),
        ("evm_increaseTime", json!([253_402_300_799_u64])),
        ("hardhat_mine", json!([2, "0xffffffffffffffff"])),
    ] {
        server.error(method, params, -32_602, "is too late");
    }
    assert_eq!(number(&newest()["timestamp"]), 1_900_000_000);
    server.ok("evm_mine", json!([253_402_300_799_u64]));
    assert_eq!(number(&newest()["timestamp"]), 253_402_300_799);
    server.ok("evm_mine", json!([]));
    let info = server.ok("anvil_nodeInfo", json!([]));
    assert_eq!(info["currentBlockHash"], newest()["hash"]);
}

#[test]
fn accounts_are_signed_for_and_balances_raised() {
    let server = Server::start_dev();
    let accounts = server.ok("eth_accounts", json!([]));
    let accounts = accounts.as_array().unwrap();
    assert_eq!(accounts.len(), ol_types::DEV_MNEMONIC_KEYS.len());
    assert_eq!(accounts[0], json!(signer().address()));
    let to = Address::repeat_byte(0x22);
    for nonce in 0..3 {
        let hash = server.ok(
            "eth_sendTransaction",
            json!([{"from": accounts[1], "to": to, "value": "0x5"}]),
        );
        let sent = server.ok("eth_getTransactionByHash", json!([hash]));
        assert_eq!(sent["nonce"], json!(format!("{nonce:#x}")));
        assert_eq!(sent["from"], accounts[1]);
        assert_eq!(sent["type"], "0x2");
    }
    let code = init_code(&contract_code());
    let hash = server.ok(
        "eth_sendTransaction",
        json!([{"from": accounts[1], "data": code, "gasPrice": "0x77359400"}]),
    );
    let receipt = server.ok("eth_getTransactionReceipt", json!([hash]));
    assert_eq!(receipt["status"], "0x1");
    assert_eq!(receipt["type"], "0x0");
    server.error(
        "eth_sendTransaction",
        json!([{"from": to, "to": to}]),
        -32_000,
        "unknown account",
    );
    server.error(
        "eth_sendTransaction",
        json!([{"from": accounts[1], "to": receipt["contractAddress"], "data": word(7)}]),
        3,
        "execution reverted: no",
    );

    server.ok("anvil_setBalance", json!([to, "0xde0b6b3a7640000"]));
    assert_eq!(
        server.ok("eth_getBalance", json!([to])),
        "0xde0b6b3a7640000"
    );
    server.ok("hardhat_setBalance", json!([to, "0xde0b6b3a7640000"]));
    server.error(
        "anvil_setBalance",
        json!([to, "0x1"]),
        -32_000,
        "a balance cannot be lowered, because coins are never lost",
    );
    let [.., treasury] = accounts.as_slice() else {
        panic!("no accounts");
    };
    server.error(
        "anvil_setBalance",
        json!([treasury, format!("0x{}", "f".repeat(20))]),
        -32_000,
        "whose own cannot be",
    );
    server.error(
        "anvil_setBalance",
        json!([to, format!("0x{}", "f".repeat(20))]),
        -32_000,
        "insufficient funds",
    );
}

#[test]
fn going_back_to_a_snapshot_takes_logs_away() {
    let server = Server::start_dev();
    let mut socket = WebSocket::connect(server.addr);
    let deployed = server.ok(
        "eth_sendRawTransactionSync",
        json!([signed(0, TxKind::Create, 0, init_code(&contract_code()))]),
    );
    let contract = &deployed["contractAddress"];
    let address: Address = contract.as_str().unwrap().parse().unwrap();
    let emit = |nonce, number| {
        let input: Bytes = hex::decode(word(number)).unwrap().into();
        let raw = signed(nonce, address.into(), 0, input);
        server.ok("eth_sendRawTransaction", json!([raw]))
    };
    emit(1, 5);
    let snapshot = server.ok("evm_snapshot", json!([]));
    let later = server.ok("evm_snapshot", json!([]));
    assert_ne!(snapshot, later);
    let before = server.ok("eth_getBlockByNumber", json!(["latest", true]));
    let logs = socket.ok("eth_subscribe", json!(["logs", {"address": contract}]));
    let all = server.ok("eth_newFilter", json!([{"address": contract}]));
    let blocks = server.ok("eth_newBlockFilter", json!([]));
    let hash = emit(2, 6);
    let added = socket.told(&logs);
    assert_eq!(added["removed"], false);
    assert_eq!(
        server.ok("eth_getFilterChanges", json!([all])),
        json!([added])
    );

    assert_eq!(server.ok("evm_revert", json!([snapshot])), true);
    let removed = socket.told(&logs);
    let mut expected = added.clone();
    expected["removed"] = json!(true);
    assert_eq!(removed, expected);
    // The journal is written before subscribers are told.
    assert_eq!(
        server.ok("eth_getFilterChanges", json!([all])),
        json!([removed])
    );
    assert_eq!(
        server.ok("eth_getFilterChanges", json!([blocks])),
        json!([])
    );
    let after = server.ok("eth_getBlockByNumber", json!(["latest", true]));
    assert_eq!(after, before);
    for (method, params) in [
        ("eth_getTransactionByHash", json!([hash])),
        ("eth_getTransactionReceipt", json!([hash])),
        ("eth_getBlockByHash", json!([added["blockHash"], false])),
    ] {
        assert_eq!(server.ok(method, params), Value::Null, "{method}");
    }
    let found = server.ok(
        "eth_getLogs",
        json!([{"address": contract, "fromBlock": "0x0"}]),
    );
    assert_eq!(found.as_array().unwrap().len(), 1);
    // Used up, with all later ones.
    for id in [&snapshot, &later, &json!("0x77")] {
        assert_eq!(server.ok("evm_revert", json!([id])), false);
    }
    // The chain goes on, with the same nonce in another block.
    emit(2, 8);
    let again = socket.told(&logs);
    assert_eq!(again["blockNumber"], added["blockNumber"]);
    assert_ne!(again["blockHash"], added["blockHash"]);
}

#[test]
fn going_back_to_a_snapshot_brings_back_what_waited_then() {
    let server = Server::start_dev();
    server.ok("evm_setAutomine", json!([false]));
    let to = Address::repeat_byte(0x22);
    let send = |nonce| {
        let raw = signed(nonce, TxKind::Call(to), 1, Bytes::new());
        server.ok("eth_sendRawTransaction", json!([raw]))
    };
    let waiting = [send(0), send(1), send(3)];
    let snapshot = server.ok("evm_snapshot", json!([]));
    let pool = server.ok("txpool_content", json!([]));
    let later = send(2);
    server.ok("evm_mine", json!([]));
    assert_eq!(server.ok("eth_getBalance", json!([to])), "0x4");
    assert_eq!(server.ok("evm_revert", json!([snapshot])), true);
    assert_eq!(server.ok("eth_getBalance", json!([to])), "0x0");
    assert_eq!(server.ok("txpool_content", json!([])), pool);
    let found = |hash| server.ok("eth_getTransactionByHash", json!([hash]));
    assert_eq!(found(&later), Value::Null);
    for hash in &waiting {
        assert_eq!(found(hash)["hash"], *hash);
    }
    server.ok("evm_mine", json!([]));
    assert_eq!(server.ok("eth_getBalance", json!([to])), "0x2");
}

#[test]
fn a_transaction_is_filled_in_and_an_account_shown_whole() {
    let server = Server::start_dev();
    let (from, to) = (signer().address(), Address::repeat_byte(0x22));
    let filled = server.ok(
        "eth_fillTransaction",
        json!([{"from": from, "to": to, "value": "0x5"}]),
    );
    let transaction = &filled["tx"];
    for (field, expected) in [
        ("type", json!("0x2")),
        ("chainId", json!("0x275b0")),
        ("nonce", json!("0x0")),
        ("gas", json!("0x5208")),
        ("maxPriorityFeePerGas", json!("0xf4240")),
        ("value", json!("0x5")),
        ("to", json!(to)),
        ("input", json!("0x")),
        ("r", json!("0x0")),
        ("s", json!("0x0")),
    ] {
        assert_eq!(transaction[field], expected, "{field}: {transaction}");
    }
    assert!(filled["raw"].as_str().unwrap().starts_with("0x02"));
    // What it says stays; what waits counts.
    server.ok("evm_setAutomine", json!([false]));
    server.ok("eth_sendTransaction", json!([{"from": from, "to": to}]));
    let filled = server.ok(
        "eth_fillTransaction",
        json!([{"from": from, "to": to, "gas": "0x7530", "gasPrice": "0x77359400"}]),
    );
    assert_eq!(filled["tx"]["type"], "0x0");
    assert_eq!(filled["tx"]["nonce"], "0x1");
    assert_eq!(filled["tx"]["gas"], "0x7530");
    assert_eq!(filled["tx"]["gasPrice"], "0x77359400");
    server.error(
        "eth_fillTransaction",
        json!([{"from": from, "to": to, "chainId": "0x1"}]),
        -32_602,
        "chainId does not match",
    );

    let code = Bytes::from(contract_code());
    let raw = json!([{"from": from, "data": init_code(&code), "gas": "0x7a120"}]);
    let hash = server.ok("eth_sendTransaction", raw);
    server.ok("evm_mine", json!([]));
    let receipt = server.ok("eth_getTransactionReceipt", json!([hash]));
    let contract = &receipt["contractAddress"];
    assert_eq!(
        server.ok("eth_getAccountInfo", json!([contract])),
        json!({"balance": "0x0", "nonce": "0x1", "code": code})
    );
    assert_eq!(
        server.ok("eth_getAccountInfo", json!([contract, "earliest"])),
        json!({"balance": "0x0", "nonce": "0x0", "code": "0x"})
    );
    let balance = server.ok("eth_getBalance", json!([from, "latest"]));
    let info = server.ok("eth_getAccountInfo", json!([from, "latest"]));
    assert_eq!(
        info,
        json!({"balance": balance, "nonce": "0x2", "code": "0x"})
    );
}
