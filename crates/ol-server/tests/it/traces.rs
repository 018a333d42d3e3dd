//! Goal: traces are what geth's callers expect, field by field, and nothing that
//! is asked of them can exhaust the node.
//! Method: the chain of `fixtures/traces` is made again, transaction by
//! transaction, and asked what anvil 1.7.1 was asked. Where anvil does not
//! answer as geth does, `as_geth` names the difference; what our rules add
//! (the vaults get the fees, nothing is burnt) is taken out by `without_vaults`.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};

use alloy_primitives::{address, hex, keccak256};
use ol_node::{Genesis, NodeConfig, TraceConfig};
use ol_server::eth::Limits;
use serde_json::{Map, Value, json};

use crate::eth::Server;

/// The accounts that only our rules touch.
const VAULTS: [&str; 4] = [
    "0x4200000000000000000000000000000000000019",
    "0x420000000000000000000000000000000000001a",
    "0x420000000000000000000000000000000000001b",
    "0x4200000000000000000000000000000000000015",
];

fn golden() -> &'static Value {
    static GOLDEN: OnceLock<Value> = OnceLock::new();
    GOLDEN.get_or_init(|| {
        let text = include_str!("../../../../fixtures/traces/golden.json");
        serde_json::from_str(text).unwrap()
    })
}

/// The chain of the fixture, all its blocks made.
fn replayed() -> Server {
    let mut genesis = golden()["genesis"].clone();
    // Our rules, not Ethereum's.
    genesis["config"] = json!({"chainId": 161_200});
    // anvil's block 1 has the base fee of block 0; ours falls by an eighth.
    genesis["baseFeePerGas"] = "0x441e9db6".into();
    let genesis: Genesis = serde_json::from_value(genesis).unwrap();
    let server = Server::start_on(&genesis, |_| {}, NodeConfig::default());
    for block in golden()["blocks"].as_array().unwrap() {
        let hash = server.ok("eth_sendRawTransaction", json!([block["raw"]]));
        assert_eq!(hash, block["hash"], "{}", block["name"]);
        let receipt = server.ok("eth_getTransactionReceipt", json!([hash]));
        assert_eq!(receipt["gasUsed"], block["gasUsed"], "{}", block["name"]);
        assert_eq!(receipt["status"], block["status"], "{}", block["name"]);
    }
    server
}

#[test]
fn traces_are_those_of_anvil_and_geth() {
    let server = replayed();
    let mut differences = Vec::new();
    for block in golden()["blocks"].as_array().unwrap() {
        let name = block["name"].as_str().unwrap();
        for (key, options) in golden()["tracers"].as_object().unwrap() {
            let found = server.ok("debug_traceTransaction", json!([block["hash"], options]));
            let found = without_vaults(key, found);
            let expected = as_geth(key, block, &block["traces"][key], &found);
            compare(
                &format!("{name}, {key}"),
                &found,
                &expected,
                &mut differences,
            );
        }
        let found = server.ok("trace_transaction", json!([block["hash"]]));
        let expected = as_parity(&block["traces"]["parity"], &found);
        compare(
            &format!("{name}, parity"),
            &found,
            &expected,
            &mut differences,
        );
        let number = format!("{:#x}", found[0]["blockNumber"].as_u64().unwrap());
        let by_block = server.ok("trace_block", json!([number]));
        assert_eq!(by_block, found, "{name}");

        let kinds = json!(["trace", "stateDiff"]);
        let found = server.ok("trace_replayBlockTransactions", json!([number, kinds]));
        let mut found = found[0].clone();
        found["stateDiff"] = without_vaults("stateDiff", found["stateDiff"].take());
        let mut expected = block["traces"]["replay"][0].clone();
        expected["trace"] = as_parity(&expected["trace"], &found["trace"]);
        expected["stateDiff"] = diff_as_parity(&expected["stateDiff"], &found["stateDiff"]);
        compare(
            &format!("{name}, replay"),
            &found,
            &expected,
            &mut differences,
        );
    }
    assert!(differences.is_empty(), "{}", differences.join("\n"));
}

/// Fails with every place where the two differ.
#[track_caller]
fn assert_same(what: &str, found: &Value, expected: &Value) {
    let mut differences = Vec::new();
    compare(what, found, expected, &mut differences);
    assert!(differences.is_empty(), "{}", differences.join("\n"));
}

fn compare(what: &str, found: &Value, expected: &Value, differences: &mut Vec<String>) {
    if found == expected {
        return;
    }
    if let (Some(found), Some(expected)) = (found.as_object(), expected.as_object()) {
        let keys: BTreeSet<_> = found.keys().chain(expected.keys()).collect();
        for key in keys {
            let none = Value::String("(not there)".into());
            let found = found.get(key).unwrap_or(&none);
            let expected = expected.get(key).unwrap_or(&none);
            compare(&format!("{what}, {key}"), found, expected, differences);
        }
        return;
    }
    if let (Some(found), Some(expected)) = (found.as_array(), expected.as_array())
        && found.len() == expected.len()
    {
        for (position, (found, expected)) in found.iter().zip(expected).enumerate() {
            compare(&format!("{what}, {position}"), found, expected, differences);
        }
        return;
    }
    differences.push(format!(
        "{what}\n    found    {found}\n    expected {expected}"
    ));
}

/// What geth answers, from what anvil does.
fn as_geth(key: &str, block: &Value, anvils: &Value, ours: &Value) -> Value {
    let mut expected = anvils.clone();
    match key {
        "structLogs" | "structLogsFull" | "structLogsBare" => {
            steps_as_geth(&mut expected["structLogs"]);
        }
        "callTop" => expected = as_geth_top(block),
        "call" | "callLogs" => expected = as_geth_call(block, anvils),
        // anvil answers these two with nothing.
        "flatCall" => expected = flat_as_geth(block, ours),
        "mux" => {
            let top = as_geth_top(block);
            expected = json!({"4byteTracer": block["traces"]["fourByte"], "callTracer": top});
        }
        "prestate" => drop_empty(&mut expected),
        "prestateDiff" => drop_empty(&mut expected["pre"]),
        _ => {}
    }
    without_vaults(key, expected)
}

/// geth's refund counter is the transaction's; anvil's is each frame's own.
fn steps_as_geth(steps: &mut Value) {
    let mut refunds = Vec::new();
    for step in steps.as_array_mut().unwrap() {
        let depth = usize::try_from(step["depth"].as_u64().unwrap()).unwrap();
        refunds.resize(depth, 0);
        refunds[depth - 1] = step["refund"].as_u64().unwrap();
        step["refund"] = json!(refunds.iter().sum::<u64>());
        step_as_geth(step.as_object_mut().unwrap());
    }
}

/// geth leaves out what is empty, and shows a fault at the instruction only if
/// the instruction was not begun: too little gas, a stack too low or too high.
fn step_as_geth(step: &mut Map<String, Value>) {
    if step.get("refund") == Some(&json!(0)) {
        step.remove("refund");
    }
    if step.get("returnData") == Some(&json!("0x")) {
        step.remove("returnData");
    }
    if step.get("memory") == Some(&json!([])) {
        step.remove("memory");
    }
    let fault = step.remove("error");
    let words = match fault.as_ref().and_then(Value::as_str) {
        Some("Some(OutOfGas)") => "out of gas",
        Some("Some(StackUnderflow)") => "stack underflow (1 <=> 2)",
        // geth shows what was to be written.
        Some("Some(StateChangeDuringStaticCall)") if step.contains_key("stack") => {
            let one = format!("{:#066x}", 1);
            step.insert("storage".into(), json!({ one.clone(): one }));
            return;
        }
        _ => return,
    };
    step.insert("error".into(), words.into());
}

/// geth shows the gas of the whole transaction at its frame, and has other
/// words for some faults.
fn as_geth_call(block: &Value, anvils: &Value) -> Value {
    let mut expected = anvils.clone();
    expected["gas"] = gas_limit(block).into();
    call_as_geth(&mut expected);
    // anvil counts a log before it that was undone.
    if let Some(index) = expected.pointer_mut("/logs/2/index") {
        assert_eq!(*index, "0x4");
        *index = "0x3".into();
    }
    expected
}

/// geth shows nothing below the top frame if so asked, no self-destruction
/// either.
fn as_geth_top(block: &Value) -> Value {
    let mut expected = as_geth_call(block, &block["traces"]["callTop"]);
    expected.as_object_mut().unwrap().remove("calls");
    expected
}

fn call_as_geth(frame: &mut Value) {
    let words = match frame["error"].as_str() {
        Some("CreateCollision") => "contract address collision",
        Some("StackUnderflow") => "stack underflow (1 <=> 2)",
        Some("StateChangeDuringStaticCall") => "write protection",
        Some(other) => other,
        None => "",
    }
    .to_owned();
    let frame = frame.as_object_mut().unwrap();
    if !words.is_empty() {
        frame.insert("error".into(), words.into());
        // What failed has logged nothing.
        frame.remove("logs");
    }
    if let Some(calls) = frame.get_mut("calls") {
        calls
            .as_array_mut()
            .unwrap()
            .iter_mut()
            .for_each(call_as_geth);
    }
}

fn gas_limit(block: &Value) -> String {
    let limit = match block["name"].as_str().unwrap() {
        "out of gas" => 21_300,
        "factory" => 20_000_000,
        _ => 1_000_000,
    };
    format!("{limit:#x}")
}

/// geth leaves out accounts with nothing in them.
fn drop_empty(accounts: &mut Value) {
    let accounts = accounts.as_object_mut().unwrap();
    accounts.retain(|_, account| {
        let is_bare = account.get("nonce").is_none() && account.get("code").is_none();
        !is_bare || account["balance"] != "0x0"
    });
}

fn without_vaults(key: &str, mut trace: Value) -> Value {
    let lists: &[&str] = match key {
        "prestate" | "stateDiff" => &[""],
        "prestateDiff" => &["/pre", "/post"],
        _ => &[],
    };
    for list in lists {
        let accounts = trace.pointer_mut(list).unwrap().as_object_mut().unwrap();
        for vault in VAULTS {
            accounts.remove(vault);
        }
    }
    trace
}

/// What Parity answers, from what anvil does: our hashes of blocks, no calls of
/// precompiles that send nothing, and Parity's words.
fn as_parity(anvils: &Value, ours: &Value) -> Value {
    let mut frames = anvils.as_array().unwrap().clone();
    let is_quiet = |frame: &Value| {
        let to = frame["action"]["to"].as_str().unwrap_or_default();
        let is_precompile = to.starts_with(&format!("0x{}", "0".repeat(38)));
        is_precompile && frame["action"]["value"] == "0x0" && frame["traceAddress"] != json!([])
    };
    // Old places to new ones, and how many frames are left below each.
    let mut n_below = BTreeMap::<String, u64>::new();
    let mut places = BTreeMap::from([("[]".to_owned(), json!([]))]);
    frames.retain_mut(|frame| {
        frame_as_parity(frame);
        let Some((_, parent)) = frame["traceAddress"].as_array().unwrap().split_last() else {
            return true;
        };
        if is_quiet(frame) {
            return false;
        }
        let mut place = places[&json!(parent).to_string()].clone();
        let position = n_below.entry(place.to_string()).or_default();
        place.as_array_mut().unwrap().push(json!(*position));
        *position += 1;
        places.insert(frame["traceAddress"].to_string(), place.clone());
        frame["traceAddress"] = place;
        true
    });
    for frame in &mut frames {
        let place = frame["traceAddress"].to_string();
        frame["subtraces"] = json!(n_below.get(&place).copied().unwrap_or_default());
        if frame.get("blockHash").is_some() {
            frame["blockHash"] = ours[0]["blockHash"].clone();
        }
    }
    frames.into()
}

/// geth's flat frames are Parity's in geth's words, and the first shows the gas
/// of the whole transaction.
fn flat_as_geth(block: &Value, ours: &Value) -> Value {
    let mut frames = as_parity(&block["traces"]["parity"], ours);
    for (position, frame) in frames.as_array_mut().unwrap().iter_mut().enumerate() {
        let words = match frame["error"].as_str() {
            Some("Reverted") => "execution reverted",
            Some("Out of gas") => "out of gas",
            Some("Bad instruction") => "invalid opcode: INVALID",
            Some("Bad jump destination") => "invalid jump destination",
            Some("Stack underflow") => "stack underflow (1 <=> 2)",
            Some("Mutable Call In Static Context") => "write protection",
            Some("Insufficient balance for transfer") => "insufficient balance for transfer",
            Some(other) => other,
            None => "",
        };
        if !words.is_empty() {
            frame["error"] = words.into();
        }
        if position == 0 {
            frame["action"]["gas"] = gas_limit(block).into();
            if !frame["result"].is_null() {
                frame["result"]["gasUsed"] = block["gasUsed"].clone();
            }
        }
    }
    frames
}

/// Where anvil has revm's words for a fault, and an address for a contract
/// that was not made.
fn frame_as_parity(frame: &mut Value) {
    if frame["type"] == "create" && frame["error"] == "Reverted" {
        frame["result"].as_object_mut().unwrap().remove("address");
    }
    let words = match frame["error"].as_str() {
        Some("CreateCollision") => "contract address collision",
        Some("StackUnderflow") => "Stack underflow",
        Some("StateChangeDuringStaticCall") => "Mutable Call In Static Context",
        _ => return,
    };
    frame["error"] = words.into();
}

/// anvil shows an account that appears without a contract as one that changed
/// from nothing, a new contract without its code, and new storage as changed.
fn diff_as_parity(anvils: &Value, ours: &Value) -> Value {
    let mut expected = anvils.as_object().unwrap().clone();
    for (address, account) in &mut expected {
        // anvil does not see that an account delegates its code.
        let code = &ours[address]["code"];
        let new_code = code["*"]["to"].as_str().unwrap_or_default();
        if new_code.starts_with("0xef0100") {
            account["code"] = code.clone();
        }
        let is_new = ours[address]["balance"].get("+").is_some();
        if !is_new {
            continue;
        }
        for field in ["balance", "nonce"] {
            let value = match &account[field] {
                Value::String(_) => "0x0".into(),
                delta => delta.get("+").unwrap_or(&delta["*"]["to"]).clone(),
            };
            account[field] = json!({"+": value});
        }
        account["code"] = ours[address]["code"].clone();
    }
    expected.into()
}

#[test]
fn calls_with_overrides_are_those_of_anvil() {
    let server = replayed();
    let calls = golden()["calls"].as_object().unwrap();
    let ask = |name: &str| {
        let call = &calls[name];
        let method = call["method"].as_str().unwrap();
        (server.ok(method, call["params"].clone()), &call["result"])
    };
    for name in [
        "call_state_override",
        "call_balance_override",
        "call_storage_replaced",
        "call_storage_patched",
        "estimate_transfer",
    ] {
        let (found, expected) = ask(name);
        assert_eq!(found, *expected, "{name}");
    }
    for name in [
        "trace_call_struct",
        "trace_call_call",
        "trace_call_override",
    ] {
        let (found, expected) = ask(name);
        let mut expected = expected.clone();
        if let Some(steps) = expected.get_mut("structLogs") {
            steps_as_geth(steps);
        } else {
            call_as_geth(&mut expected);
            expected["gas"] = "0xf4240".into();
        }
        assert_same(name, &found, &expected);
    }
    for name in ["access_list_route", "access_list_memory"] {
        let (found, expected) = ask(name);
        assert_eq!(sorted(&found), sorted(expected), "{name}");
    }
}

#[test]
fn simulated_blocks_do_what_anvils_do() {
    let server = replayed();
    let call = &golden()["calls"]["simulate"];
    let found = server.ok("eth_simulateV1", call["params"].clone());
    let expected = call["result"].as_array().unwrap();
    let found = found.as_array().unwrap();
    assert_eq!(found.len(), expected.len());
    let parent = server.ok("eth_getBlockByNumber", json!(["latest", false]));
    let mut parent_hash = &parent["hash"];
    for (found, expected) in found.iter().zip(expected) {
        // anvil begins at the number of the last block and keeps its base fee,
        // knows no parent here, and has the logs that stand for transfers in its
        // bloom.
        for key in ["gasUsed", "gasLimit", "miner"] {
            assert_eq!(found[key], expected[key], "{key}");
        }
        assert_eq!(found["parentHash"], *parent_hash);
        assert_eq!(found["baseFeePerGas"], "0x0");
        parent_hash = &found["hash"];
        let pairs = found["calls"].as_array().unwrap().iter();
        for (found, expected) in pairs.zip(expected["calls"].as_array().unwrap()) {
            for key in ["returnData", "gasUsed", "status"] {
                assert_eq!(found[key], expected[key], "{key}");
            }
            let logs = found["logs"].as_array().unwrap().iter();
            let expected_logs = expected["logs"].as_array().unwrap();
            assert_eq!(logs.len(), expected_logs.len());
            for (found, expected) in logs.zip(expected_logs) {
                for key in ["address", "topics", "data", "logIndex", "transactionIndex"] {
                    assert_eq!(found[key], expected[key], "{key}");
                }
            }
        }
    }
    let reverted = &found[1]["calls"][1]["error"];
    assert_eq!(reverted["code"], 3);
    assert_eq!(reverted["message"], "execution reverted: not today");
}

#[test]
fn what_cannot_be_simulated_is_refused_with_its_number() {
    let server = replayed();
    let poor = json!({"from": "0x0000000000000000000000000000000000001234", "value": "0x1"});
    let block = |overrides: Value, calls: Value| json!([{"blockStateCalls": [{"blockOverrides": overrides, "calls": calls}]}, "latest"]);
    let refused = |params: Value, code: i64, words: &str| {
        server.error("eth_simulateV1", params, code, words);
    };
    refused(json!([{"blockStateCalls": []}]), -32_602, "empty input");
    refused(
        block(json!({"number": "0x1"}), json!([])),
        -38_020,
        "in order",
    );
    refused(
        block(json!({"time": "0x1"}), json!([])),
        -38_021,
        "in order",
    );
    refused(
        block(json!({"number": "0xffff"}), json!([])),
        -38_026,
        "too many blocks",
    );
    refused(
        block(json!({}), json!([poor])),
        -38_014,
        "insufficient funds",
    );
    refused(
        block(json!({}), json!([{"gas": "0xffffffff"}])),
        -38_015,
        "gas limit reached",
    );
    refused(
        block(json!({}), json!([{"gas": "0x5207"}])),
        -38_013,
        "intrinsic gas too low",
    );
    let many = vec![json!({}); 1_001];
    refused(block(json!({}), json!(many)), -32_005, "at most 1000 calls");
}

/// anvil lists accounts in the order of a hash map. It also has the message's
/// receiver on the list for gas alone; its gas is that of another list.
fn sorted(answer: &Value) -> Vec<String> {
    let list = answer["accessList"].as_array().unwrap();
    let mut items: Vec<String> = list.iter().map(Value::to_string).collect();
    items.sort_unstable();
    items
}

#[test]
fn what_cannot_be_traced_is_refused_with_the_reason() {
    let server = replayed();
    let hash = &golden()["blocks"][4]["hash"];
    let nowhere = json!(keccak256(b"nowhere"));
    let traced = "debug_traceTransaction";
    server.error(traced, json!([nowhere]), -32_000, "transaction not found");
    server.error(
        "debug_traceBlockByNumber",
        json!(["0x0"]),
        -32_000,
        "genesis is not traceable",
    );
    server.error(
        "debug_traceBlockByHash",
        json!([nowhere]),
        -32_000,
        "block not found",
    );
    assert_eq!(
        server.ok("trace_transaction", json!([nowhere])),
        Value::Null
    );
    assert_eq!(server.ok("trace_block", json!(["0x0"])), json!([]));
    for (options, words) in [
        (
            json!({"tracer": "{step: function() {}}"}),
            "JavaScript tracers are not supported",
        ),
        (
            json!({"tracer": "callTracer", "tracerConfig": {"onlyTopCall": 3}}),
            "tracerConfig of callTracer",
        ),
        (
            json!({"tracer": "muxTracer", "tracerConfig": {"muxTracer": {}}}),
            "holds no other",
        ),
        (json!({"timeout": "soon"}), "timeout"),
        (json!({"enableMemory": "yes"}), "invalid argument 1"),
    ] {
        server.error(traced, json!([hash, options]), -32_602, words);
    }
    let call = json!({"to": "0x0000000000000000000000000000000000c0de00"});
    for (overrides, words) in [
        (json!({"0x01": {}}), "invalid argument 2"),
        (
            json!({"0x0000000000000000000000000000000000000004": {"movePrecompileToAddress": "0x0000000000000000000000000000000000000005"}}),
            "movePrecompileToAddress",
        ),
        (
            json!({"0x0000000000000000000000000000000000000004": {"state": {}, "stateDiff": {}}}),
            "both 'state' and 'stateDiff'",
        ),
    ] {
        server.error(
            "eth_call",
            json!([call, "latest", overrides]),
            -32_602,
            words,
        );
    }
    let malformed = json!({"0x0000000000000000000000000000000000000004": {"code": "0xef0100"}});
    server.error(
        "eth_call",
        json!([call, "latest", malformed]),
        -32_000,
        "malformed",
    );
    server.error("trace_call", json!([call, ["vmTrace"]]), -32_602, "vmTrace");
    server.error(
        "trace_filter",
        json!([{"fromBlock": "0x2", "toBlock": "0x1"}]),
        -32_602,
        "range",
    );
    server.error(
        "debug_traceBlock",
        json!(["0xc0"]),
        -32_602,
        "could not decode block",
    );
}

#[test]
fn a_block_as_bytes_is_the_block() {
    let server = replayed();
    for block in &golden()["blocks"].as_array().unwrap()[4..8] {
        let transaction = server.ok("eth_getTransactionByHash", json!([block["hash"]]));
        let at = transaction["blockHash"].clone();
        let raw = server.ok("debug_getRawTransaction", json!([block["hash"]]));
        assert_eq!(raw, block["raw"]);
        let header = server.ok("debug_getRawHeader", json!([at]));
        let bytes = hex::decode(header.as_str().unwrap()).unwrap();
        assert_eq!(json!(keccak256(bytes)), at);
        let receipts = server.ok("debug_getRawReceipts", json!([at]));
        assert_eq!(receipts.as_array().unwrap().len(), 1);
        let rlp = server.ok("debug_getRawBlock", json!([at]));
        let options = json!({"tracer": "callTracer"});
        let given = server.ok("debug_traceBlock", json!([rlp, options]));
        let by_hash = server.ok("debug_traceBlockByHash", json!([at, options]));
        assert_eq!(given, by_hash);
        let number = transaction["blockNumber"].clone();
        let by_number = server.ok("debug_traceBlockByNumber", json!([number, options]));
        assert_eq!(given, by_number);
        let alone = server.ok("debug_traceTransaction", json!([block["hash"], options]));
        assert_eq!(given, json!([{"txHash": block["hash"], "result": alone}]));
    }
}

#[test]
fn a_filter_finds_frames_by_their_ends() {
    let server = replayed();
    let counter = "0x0000000000000000000000000000000000c0de00";
    let filter = |wanted: Value| {
        let found = server.ok("trace_filter", json!([wanted]));
        found.as_array().unwrap().clone()
    };
    let range = |mut wanted: Value| {
        wanted["fromBlock"] = "0x1".into();
        wanted["toBlock"] = "latest".into();
        wanted
    };
    let all = filter(range(json!({})));
    assert!(all.len() > 20);
    let to_counter = filter(range(json!({"toAddress": [counter]})));
    assert!(!to_counter.is_empty());
    for frame in &to_counter {
        assert_eq!(frame["action"]["to"], counter);
    }
    let both = json!({"fromAddress": [counter], "toAddress": [counter], "mode": "intersection"});
    assert!(filter(range(both)).is_empty());
    let page = filter(range(json!({"after": 3, "count": 5})));
    assert_eq!(page, all[3..8]);
    let path = &all
        .iter()
        .find(|frame| frame["traceAddress"] == json!([1]))
        .unwrap();
    let one = server.ok("trace_get", json!([path["transactionHash"], ["0x1"]]));
    assert_eq!(one, **path);
}

#[test]
fn bombs_end_within_the_limits() {
    let mut genesis = Genesis::default();
    genesis.config.chain_id = 161_200;
    let limits = Limits {
        response_max_size_bytes: 1 << 20,
        trace: TraceConfig {
            size_max_bytes: 8 << 20,
            steps_max: 10_000,
            time_max_s: 20.0,
        },
        ..Limits::default()
    };
    let server = Server::start_on(
        &genesis,
        |config| config.limits = limits,
        NodeConfig::default(),
    );
    let target = address!("0x00000000000000000000000000000000000b0b0b");
    let trace = |code: &str, options: Value| {
        let mut options = options;
        options["stateOverrides"] = json!({target.to_string(): {"code": code}});
        server.reply(
            "debug_traceCall",
            json!([{"to": target}, "latest", options]),
        )
    };
    let refused = |code: &str, options: Value, words: &str| {
        let reply = trace(code, options);
        assert_eq!(reply["error"]["code"], -32_005, "{words}: {reply}");
        let message = reply["error"]["message"].as_str().unwrap();
        assert!(message.contains(words), "{words}: {message}");
    };
    refused("0x5b5f56", json!({}), "more than 10000 steps");
    refused(
        "0x5b5f598052505f56",
        json!({"enableMemory": true}),
        "larger than 8388608 bytes",
    );
    // 60 calls of 64 KiB each fit what is recorded, but not an answer.
    let calls = "5f5f620100005f5f60045af150".repeat(60);
    let call_tracer = json!({"tracer": "callTracer"});
    refused(
        &format!("0x{calls}00"),
        call_tracer.clone(),
        "answer is larger",
    );
    // Nothing is recorded, and the gas of a call is bounded: this ends by itself.
    let noop = trace("0x5b5f56", json!({"tracer": "noopTracer"}));
    assert_eq!(noop["result"], json!({}));
    // Calls itself as deep as it may. The answer is nested too deep for the
    // parser of this test, so it is looked at as text.
    let deep = format!("0x5f5f5f5f5f73{}5af100", hex::encode(target));
    let mut options = call_tracer;
    options["stateOverrides"] = json!({target.to_string(): {"code": deep}});
    options["blockOverrides"] = json!({"gasLimit": "0xffffffffffff"});
    let request = json!({
        "jsonrpc": "2.0",
        "id": 1,
        "method": "debug_traceCall",
        "params": [{"to": target}, "latest", options],
    });
    let (status, body) = server.post(&request.to_string());
    assert_eq!(status, 200);
    let n_frames = body.matches("\"type\":\"CALL\"").count();
    assert!(n_frames > 300, "{n_frames}: {}", &body[..200]);
}

#[test]
fn traces_past_the_limits_are_told_to_come_back_and_reads_go_on() {
    let mut genesis = Genesis::default();
    genesis.config.chain_id = 161_200;
    let limits = Limits {
        traces_max: 1,
        traces_waiting_max: 1,
        trace: TraceConfig {
            steps_max: 200_000,
            ..TraceConfig::default()
        },
        ..Limits::default()
    };
    let server = Server::start_on(
        &genesis,
        |config| config.limits = limits,
        NodeConfig::default(),
    );
    let target = address!("0x00000000000000000000000000000000000b0b0b");
    let overrides = json!({target.to_string(): {"code": "0x5b5f56"}});
    let params = json!([{"to": target}, "latest", {"stateOverrides": overrides}]);
    let has_been_busy = AtomicBool::new(false);
    // More at one time than may run and wait, until one is told so.
    std::thread::scope(|scope| {
        for _ in 0..6 {
            scope.spawn(|| {
                while !has_been_busy.load(Ordering::Relaxed) {
                    let reply = server.reply("debug_traceCall", params.clone());
                    assert_eq!(reply["error"]["code"], -32_005, "{reply}");
                    let message = reply["error"]["message"].as_str().unwrap();
                    if message.contains("too many requests are waiting") {
                        has_been_busy.store(true, Ordering::Relaxed);
                    } else {
                        assert!(message.contains("more than 200000 steps"), "{message}");
                    }
                }
            });
        }
        scope.spawn(|| {
            while !has_been_busy.load(Ordering::Relaxed) {
                assert_eq!(server.ok("eth_getBalance", json!([target])), "0x0");
                let called = server.ok("eth_call", json!([{"to": target}]));
                assert_eq!(called, "0x");
            }
        });
    });
    // Nothing is kept from before: there is room again.
    let reply = server.reply("debug_traceCall", params);
    let message = reply["error"]["message"].as_str().unwrap();
    assert!(message.contains("more than 200000 steps"), "{message}");
}
