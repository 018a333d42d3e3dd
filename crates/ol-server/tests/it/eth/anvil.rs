//! The shapes of answers are those of anvil 1.7.1 (`fixtures/rpc/make.mjs`
//! asked it), after the same transactions: the same fields, each of the same
//! kind, `null` and errors at the same places.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::{Server, signer, word};

/// What kind of value something is; of hexadecimal strings, how long.
fn shape(value: &Value) -> Value {
    match value {
        Value::Object(fields) => {
            let shapes: BTreeMap<_, _> = fields.iter().map(|(k, v)| (k, shape(v))).collect();
            json!(shapes)
        }
        Value::Array(items) => json!(items.iter().map(shape).collect::<Vec<_>>()),
        Value::String(text) => match text.len() {
            _ if !text.starts_with("0x") => json!("text"),
            42 => json!("address"),
            66 => json!("hash"),
            514 => json!("bloom"),
            _ => json!("hexadecimal"),
        },
        Value::Number(_) => json!("number"),
        Value::Bool(_) => json!("bool"),
        Value::Null => Value::Null,
    }
}

/// The parts of two shapes that differ, by path.
fn differences(path: &str, theirs: &Value, ours: &Value, found: &mut Vec<String>) {
    match (theirs, ours) {
        (Value::Object(theirs), Value::Object(ours)) => {
            for key in theirs
                .keys()
                .chain(ours.keys().filter(|key| !theirs.contains_key(*key)))
            {
                let none = json!("absent");
                let of = |fields: &serde_json::Map<String, Value>| {
                    fields.get(key).unwrap_or(&none).clone()
                };
                differences(&format!("{path}.{key}"), &of(theirs), &of(ours), found);
            }
        }
        (Value::Array(theirs), Value::Array(ours)) if !theirs.is_empty() && !ours.is_empty() => {
            differences(&format!("{path}[]"), &theirs[0], &ours[0], found);
        }
        (theirs, ours) if theirs == ours => {}
        (theirs, ours) => found.push(format!("{path}: anvil {theirs}, here {ours}")),
    }
}

#[test]
fn answers_have_the_shapes_of_anvils() {
    let fixture = include_str!("../../../fixtures/rpc/anvil.json");
    let fixture: Value = serde_json::from_str(fixture).unwrap();
    let server = Server::start_dev();
    let from = signer().address();
    let send = |mut request: Value| {
        request["from"] = json!(from);
        server.ok("eth_sendTransaction", json!([request]))
    };
    let code = format!(
        "0x602a600a5f39602a5ff3{:0<84}",
        "5f35600714601957365f5f375f35365fa1602a5f5260205ff35b5f5ffd"
    );
    let mut sent = vec![
        send(json!({"to": "0x1111111111111111111111111111111111111111", "value": "0x1"})),
        send(json!({"data": code, "gas": "0x7a120"})),
    ];
    let made = server.ok("eth_getTransactionReceipt", json!([sent[1]]));
    let logger = made["contractAddress"].clone();
    sent.push(send(
        json!({"to": logger, "data": word(5), "gas": "0x7a120"}),
    ));

    // What names something of their chain names the same thing of ours.
    let mut names: Vec<(&Value, &Value)> = vec![(&fixture["logger"], &logger)];
    names.extend(fixture["sent"].as_array().unwrap().iter().zip(&sent));
    let mut found = Vec::new();
    for answer in fixture["answers"].as_array().unwrap() {
        let mut params = answer["params"].to_string();
        for (theirs, ours) in &names {
            params = params.replace(&theirs.to_string(), &ours.to_string());
        }
        let method = answer["method"].as_str().unwrap();
        let reply = server.reply(method, serde_json::from_str(&params).unwrap());
        let path = format!("{method}{params}");
        differences(&path, &shape(&answer["reply"]), &shape(&reply), &mut found);
    }
    let found: Vec<_> = found.iter().filter(|line| !is_known(line)).collect();
    assert!(found.is_empty(), "{found:#?}");
}

/// Differences that are meant. Parts of a signature are as long as they happen
/// to be. The rest is what anvil says and geth does not: blob prices and times
/// in receipts without blobs, and a proof of nothing that has one node.
fn is_known(line: &str) -> bool {
    [
        ".r: anvil",
        ".s: anvil",
        ".blobGasPrice: anvil \"hexadecimal\", here \"absent\"",
        ".blockTimestamp: anvil \"number\", here \"absent\"",
        ".storageProof[].proof: anvil [\"hexadecimal\"], here []",
    ]
    .iter()
    .any(|known| line.contains(known))
}
