//! Goal: a node without models runs as an operator runs it: it says where it
//! listens, refuses what would be a mistake, stops in order and goes on where it
//! ended. Method: the binary, its output and its JSON-RPC.

use std::fs;

use alloy_consensus::{SignableTransaction as _, TxEip1559, TxEnvelope};
use alloy_eips::eip2718::Encodable2718 as _;
use alloy_primitives::{Address, TxKind, U256, hex};
use alloy_signer::SignerSync as _;
use alloy_signer_local::PrivateKeySigner;
use serde_json::{Value, json};

use crate::harness::{NodeAlone, get_with, http_with, refused, run, run_json};

#[test]
fn a_node_runs_stops_and_goes_on() {
    let folder = tempfile::tempdir().unwrap();
    let dir = folder.path().join("data");
    let node = NodeAlone::start(&dir, &["--dev"]);
    assert_eq!(node.ready["chain_id"], 161_200);
    assert_eq!(node.ready["block_number"], 0);
    assert_eq!(node.rpc("eth_chainId", json!([])), "0x275b0");

    let status = run_json(&dir, &["node", "status"]);
    assert_eq!(status["head"]["number"], 0);
    assert_eq!(status["chain_id"], 161_200);
    assert!(status["database_size_bytes"].as_u64().unwrap() > 0);
    let by_url = run_json(&dir, &["node", "status", "--url", &node.url]);
    assert_eq!(by_url["head"]["hash"], status["head"]["hash"]);
    let shown = run(&dir, &["node", "status"]);
    let shown = String::from_utf8(shown.stdout).unwrap();
    assert!(shown.contains("head       0"), "{shown}");

    refused(
        &dir,
        &["node", "run", "--dev", "--port", "0"],
        "already runs",
    );
    refused(
        &dir,
        &["ask", "--model", "legal", "--key", "k", "Q"],
        "a node without models",
    );
    node.stop();
    refused(&dir, &["node", "status"], "no instance runs");

    // Killed, and started again.
    NodeAlone::start(&dir, &["--dev"]).kill();
    NodeAlone::start(&dir, &["--dev"]).stop();
}

#[test]
fn a_genesis_is_kept_and_checked() {
    let folder = tempfile::tempdir().unwrap();
    let dir = folder.path().join("data");
    let file = folder.path().join("genesis.json");
    let genesis = |chain_id: u64| {
        json!({
            "config": {"chainId": chain_id},
            "gasLimit": "0x3938700",
            "difficulty": "0x0",
            "alloc": {"0x00000000000000000000000000000000000000aa": {"balance": "0x1"}},
        })
    };
    fs::write(&file, genesis(4_321).to_string()).unwrap();
    let given = ["--genesis", file.to_str().unwrap()];
    let node = NodeAlone::start(&dir, &given);
    assert_eq!(node.ready["chain_id"], 4_321);
    node.stop();
    let node = NodeAlone::start(&dir, &[]);
    assert_eq!(
        node.ready["chain_id"], 4_321,
        "the folder keeps its genesis"
    );
    node.stop();

    fs::write(&file, genesis(4_322).to_string()).unwrap();
    let start = ["node", "run", "--port", "0", given[0], given[1]];
    refused(&dir, &start, "chain id 4321, expected 4322");
    fs::write(&file, "{\"config\": ").unwrap();
    refused(&dir, &start, "is not a genesis");
    fs::remove_file(&file).unwrap();
    refused(&dir, &start, "could not read");
    let fresh = folder.path().join("fresh");
    refused(&fresh, &["node", "run", "--port", "0"], "which chain?");
}

#[test]
fn a_node_that_strangers_could_misuse_does_not_start() {
    let folder = tempfile::tempdir().unwrap();
    let dir = folder.path().join("data");
    let start = |more: &[&'static str]| {
        let mut args = vec!["node", "run", "--dev", "--port", "0"];
        args.extend(more);
        args
    };
    refused(
        &dir,
        &start(&["--http-addr", "0.0.0.0"]),
        "--allow-remote-dev",
    );
    refused(&dir, &start(&["--cors", "example.org"]), "is not an origin");
    refused(&dir, &start(&["--hosts", "http://a"]), "is not a host name");
    refused(&dir, &start(&["--log-level", "a=b=c"]), "no filter");
}

#[test]
fn pages_may_ask_only_where_they_are_allowed() {
    let folder = tempfile::tempdir().unwrap();
    let body = json!({"jsonrpc": "2.0", "id": 1, "method": "eth_chainId", "params": []});
    let ask = |url: &str, headers: &[(&str, &str)]| http_with(url, headers, &body.to_string());
    let local = ("origin", "http://localhost:3000");
    let foreign = ("origin", "https://evil.example");
    let rebound = ("host", "rebound.example:8545");

    let dev = NodeAlone::start(&folder.path().join("dev"), &["--dev"]);
    assert_eq!(ask(&dev.url, &[]), 200);
    assert_eq!(ask(&dev.url, &[local]), 200);
    assert_eq!(ask(&dev.url, &[foreign]), 403);
    assert_eq!(ask(&dev.url, &[rebound]), 403);
    dev.stop();

    let dir = folder.path().join("named");
    let flags = [
        "--dev",
        "--cors",
        "https://app.example",
        "--hosts",
        "rebound.example",
    ];
    let named = NodeAlone::start(&dir, &flags);
    assert_eq!(ask(&named.url, &[local]), 403, "only what was said");
    assert_eq!(
        ask(&named.url, &[rebound, ("origin", "https://app.example")]),
        200
    );
    assert_eq!(ask(&named.url, &[foreign]), 403);
    named.stop();
}

#[test]
fn a_key_is_made_once() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("key");
    let file = path.to_str().unwrap();
    let made: Value = run_json(folder.path(), &["node", "keygen", file]);
    assert_eq!(made["address"].as_str().unwrap().len(), 42);
    let text = fs::read_to_string(&path).unwrap();
    refused(folder.path(), &["node", "keygen", file], "could not make");
    assert_eq!(fs::read_to_string(&path).unwrap(), text);
}

/// The outcome of one check of `doctor`.
fn outcome(report: &Value, check: &str) -> (String, String) {
    let findings = report["findings"].as_array().unwrap();
    let finding = findings.iter().find(|finding| finding["check"] == check);
    let finding = finding.unwrap_or_else(|| panic!("no check of {check}: {report}"));
    let text = |name: &str| finding[name].as_str().unwrap_or_default().to_owned();
    let is_ok = finding["outcome"] == "ok";
    assert!(is_ok || !text("advice").is_empty(), "{finding}");
    (text("outcome"), text("found"))
}

#[test]
fn doctor_says_what_is_wrong_and_what_to_do() {
    let folder = tempfile::tempdir().unwrap();
    let dir = folder.path().join("data");
    let report = |args: &[&str]| -> Value {
        let mut all = vec!["doctor", "--json"];
        all.extend(args);
        if !args.contains(&"--port") {
            all.extend(["--port", "0"]);
        }
        let output = run(&dir, &all);
        let report: Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!(report["ok"], output.status.success(), "{report}");
        report
    };
    let fresh = report(&[]);
    assert_eq!(outcome(&fresh, "folder").0, "warn");
    assert!(!dir.exists(), "nothing is changed");

    let node = NodeAlone::start(&dir, &["--dev"]);
    let running = report(&[]);
    assert_eq!(running["ok"], true, "{running}");
    assert!(outcome(&running, "node").1.contains("newest block 0"));
    node.stop();

    for args in [&[][..], &["--full"]] {
        let stopped = report(args);
        assert_eq!(stopped["ok"], true, "{stopped}");
        let (outcome, found) = outcome(&stopped, "database");
        assert_eq!(outcome, "ok");
        assert!(
            found.contains("chain 161200") && found.contains("verified"),
            "{found}"
        );
    }
    let text = String::from_utf8(run(&dir, &["doctor", "--port", "0"]).stdout).unwrap();
    assert!(text.contains("ok    database"), "{text}");

    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port().to_string();
    assert_eq!(outcome(&report(&["--port", &port]), "port").0, "fail");

    let key = folder.path().join("key");
    let key = key.to_str().unwrap();
    assert!(run(&dir, &["node", "keygen", key]).status.success());
    assert_eq!(outcome(&report(&["--key-file", key]), "key files").0, "ok");
    let open = std::process::Command::new("chmod")
        .args(["644", key])
        .status();
    assert!(open.unwrap().success());
    let (result, found) = outcome(&report(&["--key-file", key]), "key files");
    assert_eq!(result, "fail");
    assert!(found.contains("chmod 600"), "{found}");

    fs::write(dir.join("chain/mdbx.dat"), vec![0xa5; 1 << 16]).unwrap();
    assert_eq!(outcome(&report(&[]), "database").0, "fail");
    fs::write(dir.join("format"), "openledger-data 99\n").unwrap();
    assert_eq!(outcome(&report(&[]), "folder").0, "fail");
}

#[test]
fn metrics_are_served_where_they_are_asked_for() {
    let folder = tempfile::tempdir().unwrap();
    let dir = folder.path().join("data");
    let node = NodeAlone::start(&dir, &["--dev", "--metrics-addr", "127.0.0.1:0"]);
    let url = node.ready["metrics"].as_str().unwrap().to_owned();
    node.rpc("eth_chainId", json!([]));
    let text = get_with(&url, &[]).1;
    let value = |series: &str| -> f64 {
        let line = text.lines().find_map(|line| line.strip_prefix(series));
        line.unwrap_or_else(|| panic!("no {series}: {text}"))
            .trim()
            .parse()
            .unwrap()
    };
    assert_eq!(value("openledger_chain_head_number "), 0.0);
    let calls = "openledger_rpc_requests_total{method=\"eth_chainId\",outcome=\"ok\"} ";
    assert_eq!(value(calls), 1.0);
    assert!(value("process_open_fds ") > 3.0);
    assert_eq!(get_with(&url, &[("host", "rebound.example")]).0, 403);
    assert_eq!(get_with(&url.replace("/metrics", "/"), &[]).0, 404);
    node.stop();
}

#[test]
fn logs_are_json_where_they_are_asked_for() {
    let folder = tempfile::tempdir().unwrap();
    let dir = folder.path().join("data");
    let node = NodeAlone::start(&dir, &["--dev", "--log-format", "json"]);
    let log = node.stop();
    let lines: Vec<Value> = log
        .lines()
        .map(|line| serde_json::from_str(line).unwrap_or_else(|_| panic!("no JSON: {line}")))
        .collect();
    let opened = lines.iter().find(|line| line["message"] == "chain opened");
    assert_eq!(opened.unwrap()["number"], 0, "{log}");
    assert_eq!(lines.last().unwrap()["message"], "stopped");
}

#[test]
fn a_second_node_follows_the_first() {
    let folder = tempfile::tempdir().unwrap();
    let first = NodeAlone::start(
        &folder.path().join("first"),
        &["--dev", "--block-time", "on-demand"],
    );
    let send = |node: &NodeAlone, nonce: u64| {
        let raw = transfer(nonce);
        node.rpc("eth_sendRawTransaction", json!([raw]))
    };
    send(&first, 0);

    let follow = [
        "--dev",
        "--follow",
        &first.url,
        "--metrics-addr",
        "127.0.0.1:0",
    ];
    let second = NodeAlone::start(&folder.path().join("second"), &follow);
    // Heads of the second, from its own socket: no waiting by the clock.
    let until = |number: u64| {
        while second.rpc("eth_blockNumber", json!([])) != format!("{number:#x}") {
            std::thread::yield_now();
        }
    };
    until(1);
    send(&first, 1);
    until(2);
    // Sent to the second, made into a block by the first.
    send(&second, 2);
    until(3);
    for node in [&first, &second] {
        let head = node.rpc("eth_getBlockByNumber", json!(["0x3", false]));
        assert_eq!(head["transactions"].as_array().unwrap().len(), 1);
    }
    let metrics = get_with(second.ready["metrics"].as_str().unwrap(), &[]).1;
    assert!(
        metrics.contains("openledger_follow_lag_blocks 0"),
        "{metrics}"
    );
    assert!(metrics.contains("openledger_follow_is_live 1"), "{metrics}");
    let status = run_json(&folder.path().join("second"), &["node", "status"]);
    assert_eq!(status["head"]["number"], 3);
    second.stop();
    first.stop();
}

/// One wei from the fifth development account, signed.
fn transfer(nonce: u64) -> String {
    let signer: PrivateKeySigner = ol_types::DEV_MNEMONIC_KEYS[4].parse().unwrap();
    let transaction = TxEip1559 {
        chain_id: ol_types::DEV_CHAIN_ID,
        nonce,
        gas_limit: 21_000,
        max_fee_per_gas: 3_000_000_000,
        max_priority_fee_per_gas: 1,
        to: TxKind::Call(Address::repeat_byte(0x11)),
        value: U256::from(1),
        ..TxEip1559::default()
    };
    let signature = signer
        .sign_hash_sync(&transaction.signature_hash())
        .unwrap();
    let envelope = TxEnvelope::from(transaction.into_signed(signature));
    hex::encode_prefixed(envelope.encoded_2718())
}

#[test]
fn only_a_secret_key_signs_blocks_outside_of_development() {
    let folder = tempfile::tempdir().unwrap();
    let dir = folder.path().join("data");
    let genesis = folder.path().join("genesis.json");
    let text = json!({"config": {"chainId": 77}, "gasLimit": "0x3938700", "difficulty": "0x0", "alloc": {}});
    fs::write(&genesis, text.to_string()).unwrap();
    let genesis = genesis.to_str().unwrap();
    let key = folder.path().join("key");
    let key_file = key.to_str().unwrap();
    let start = [
        "node",
        "run",
        "--port",
        "0",
        "--genesis",
        genesis,
        "--signer-key",
        key_file,
    ];
    refused(&dir, &start, "cannot be read");

    run_json(folder.path(), &["node", "keygen", key_file]);
    let secret = fs::read_to_string(&key).unwrap();
    let flags = [
        "--genesis",
        genesis,
        "--signer-key",
        key_file,
        "--log-level",
        "trace",
    ];
    let node = NodeAlone::start(&dir, &flags);
    let log = node.stop();
    assert!(log.contains("blocks are signed"), "{log}");
    assert!(!log.contains(secret.trim()), "the key is in the log");

    let chmod = |mode: &str| {
        let status = std::process::Command::new("chmod")
            .args([mode, key_file])
            .status();
        assert!(status.unwrap().success());
    };
    chmod("644");
    refused(&dir, &start, "chmod 600");
    fs::write(&key, ol_types::DEV_MNEMONIC_KEYS[1]).unwrap();
    chmod("600");
    refused(&dir, &start, "everybody knows");
}
