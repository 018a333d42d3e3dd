//! Filters that are polled.

use std::time::Duration;

use alloy_primitives::{Address, TxKind, hex};
use ol_node::NodeConfig;
use ol_server::eth::Limits;
use serde_json::{Value, json};

use super::{Server, contract_code, init_code, signed, word};

#[test]
fn filters_tell_what_happened_since_they_were_asked() {
    let server = Server::start();
    let deployed = server.ok(
        "eth_sendRawTransactionSync",
        json!([signed(0, TxKind::Create, 0, init_code(&contract_code()))]),
    );
    let contract = &deployed["contractAddress"];
    let address: Address = contract.as_str().unwrap().parse().unwrap();
    let blocks = server.ok("eth_newBlockFilter", json!([]));
    let all = server.ok("eth_newFilter", json!([{"address": contract}]));
    let some = json!({"topics": [word(6)], "fromBlock": "earliest"});
    let some = server.ok("eth_newFilter", json!([some]));
    let late = server.ok("eth_newFilter", json!([{"fromBlock": "0x3"}]));
    let changes = |id: &Value| server.ok("eth_getFilterChanges", json!([id]));
    for id in [&blocks, &all, &some, &late] {
        assert_eq!(changes(id), json!([]));
    }
    let mut hashes = Vec::new();
    for (nonce, number) in [(1, 5), (2, 6)] {
        let input = hex::decode(word(number)).unwrap();
        let raw = signed(nonce, address.into(), 0, input.into());
        server.ok("eth_sendRawTransaction", json!([raw]));
        hashes.push(server.ok("eth_getBlockByNumber", json!(["latest", false]))["hash"].clone());
    }
    // The journal is written by a thread of its own, and answers come before.
    let changes_soon = |id: &Value, n: usize| loop {
        let found = changes(id);
        if found != json!([]) {
            assert_eq!(found.as_array().unwrap().len(), n, "{found}");
            return found;
        }
    };
    let logs = server.ok("eth_getLogs", json!([{"fromBlock": "earliest"}]));
    assert_eq!(changes_soon(&blocks, 2), json!(hashes));
    assert_eq!(changes_soon(&all, 2), logs);
    assert_eq!(changes_soon(&some, 1), json!([logs[1]]));
    assert_eq!(changes_soon(&late, 1), json!([logs[1]]));
    for id in [&blocks, &all, &some, &late] {
        assert_eq!(changes(id), json!([]));
    }
    assert_eq!(
        server.ok("eth_getFilterLogs", json!([some])),
        json!([logs[1]])
    );
    server.error(
        "eth_getFilterLogs",
        json!([blocks]),
        -32_000,
        "filter not found",
    );
    assert_eq!(server.ok("eth_uninstallFilter", json!([all])), true);
    assert_eq!(server.ok("eth_uninstallFilter", json!([all])), false);
    server.error(
        "eth_getFilterChanges",
        json!([all]),
        -32_000,
        "filter not found",
    );
}

#[test]
fn filters_are_bounded_in_number_and_in_time() {
    let limits = Limits {
        filters_max: 3,
        filter_expiry_s: 100,
        ..Limits::default()
    };
    let server = Server::start_with(|config| config.limits = limits, NodeConfig::default());
    let ids: Vec<Value> = (0..3)
        .map(|_| server.ok("eth_newBlockFilter", json!([])))
        .collect();
    server.error("eth_newBlockFilter", json!([]), -32_005, "too many filters");
    server.clock.advance(Duration::from_secs(60));
    assert_eq!(
        server.ok("eth_getFilterChanges", json!([ids[0]])),
        json!([])
    );
    server.clock.advance(Duration::from_secs(60));
    // Only the one that was asked for is still there.
    assert_eq!(
        server.ok("eth_getFilterChanges", json!([ids[0]])),
        json!([])
    );
    for id in &ids[1..] {
        server.error(
            "eth_getFilterChanges",
            json!([id]),
            -32_000,
            "filter not found",
        );
    }
    server.ok("eth_newFilter", json!([{}]));
    server.ok("eth_newPendingTransactionFilter", json!([]));
    server.error("eth_newFilter", json!([{}]), -32_005, "too many filters");
}

#[test]
fn a_filter_with_too_many_topics_is_refused() {
    let server = Server::start();
    let topics: Vec<String> = (0..1_001).map(word).collect();
    for method in ["eth_getLogs", "eth_newFilter"] {
        server.error(
            method,
            json!([{"topics": [topics]}]),
            -32_602,
            "exceed max topics",
        );
        let addresses: Vec<Address> = (0..1_001_u64)
            .map(|n| Address::left_padding_from(&n.to_be_bytes()))
            .collect();
        server.error(
            method,
            json!([{"address": addresses}]),
            -32_602,
            "exceed max addresses",
        );
    }
    // As many as fit into a request; a million do not (its size is refused first).
    let most = (0..60_000).map(word).collect::<Vec<_>>();
    server.error(
        "eth_getLogs",
        json!([{"topics": [most]}]),
        -32_602,
        "exceed max topics",
    );
}
