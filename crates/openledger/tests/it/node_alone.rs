//! Goal: a node without models runs as an operator runs it: it says where it
//! listens, refuses what would be a mistake, stops in order and goes on where it
//! ended. Method: the binary, its output and its JSON-RPC.

use std::fs;

use serde_json::{Value, json};

use crate::harness::{NodeAlone, http_with, refused, run, run_json};

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
    assert_eq!(by_url["head"], status["head"]);
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
