//! Bad requests: a clear error each, nothing charged, nothing written.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;

use serde_json::{Value, json};

use crate::support::{
    CONTEXT_TOKENS, Disk, OPEN, PAYER, USER, World, deposit, prepaid_wei, question,
};

const CHAT: &str = "/v1/chat/completions";
const COMPLETIONS: &str = "/v1/completions";

#[track_caller]
fn refused(
    world: &World,
    path: &str,
    key: Option<&str>,
    body: &[u8],
    status: u16,
    code: &str,
) -> Value {
    let reply = world.post(path, key, body);
    assert_eq!(reply.status, status, "{}", reply.text);
    let error = reply.json()["error"].clone();
    assert_eq!(error["code"], code, "{error}");
    assert!(
        error["message"]
            .as_str()
            .is_some_and(|message| !message.is_empty()),
        "{error}"
    );
    assert!(error["type"].is_string(), "{error}");
    error
}

#[test]
fn every_bad_request_gets_a_clear_error_and_costs_nothing() {
    let disk = Disk::new();
    let world = disk.start();
    let key = Some(world.key.as_str());
    let before = (
        prepaid_wei(&world.node, PAYER),
        world.node.head().header.number,
    );

    let with = |name: &str, value: Value| {
        let mut body = question("legal", "hi", 1);
        body[name] = value;
        body.to_string().into_bytes()
    };
    let good = question("legal", "hi", 1).to_string().into_bytes();
    let completion = |prompt: Value| {
        json!({"model": "legal", "prompt": prompt})
            .to_string()
            .into_bytes()
    };
    let large = with(
        "messages",
        json!([{"role": "user", "content": "x".repeat(2 << 20)}]),
    );

    refused(&world, CHAT, None, &good, 401, "missing_api_key");
    refused(
        &world,
        CHAT,
        Some("ol-wrong"),
        &good,
        401,
        "invalid_api_key",
    );
    refused(&world, CHAT, Some(""), &good, 401, "missing_api_key");
    refused(
        &world,
        CHAT,
        key,
        b"{\"model\": \"legal\", ",
        400,
        "malformed_json",
    );
    refused(&world, CHAT, key, b"", 400, "malformed_json");
    refused(&world, CHAT, key, b"\"text\"", 400, "malformed_json");
    refused(
        &world,
        CHAT,
        key,
        &[&good[..good.len() - 2], b"\xff\xfe\"}"].concat(),
        400,
        "invalid_utf8",
    );
    refused(&world, COMPLETIONS, key, b"\xc3\x28", 400, "invalid_utf8");
    refused(&world, CHAT, key, &large, 413, "body_too_large");
    let error = refused(
        &world,
        CHAT,
        key,
        &with("model", json!("gpt-17")),
        404,
        "model_not_found",
    );
    assert_eq!(error["param"], "model");
    refused(
        &world,
        CHAT,
        key,
        &with("model", json!("x".repeat(5_000))),
        404,
        "model_not_found",
    );
    refused(
        &world,
        CHAT,
        key,
        &with("max_tokens", json!(CONTEXT_TOKENS)),
        400,
        "context_length_exceeded",
    );
    refused(
        &world,
        CHAT,
        key,
        &with("max_tokens", json!(u64::MAX)),
        400,
        "context_length_exceeded",
    );
    let long = with(
        "messages",
        json!([{"role": "user", "content": "who and how ".repeat(20_000)}]),
    );
    refused(&world, CHAT, key, &long, 400, "context_length_exceeded");
    refused(
        &world,
        COMPLETIONS,
        key,
        &completion(json!("")),
        400,
        "invalid_value",
    );
    refused(
        &world,
        COMPLETIONS,
        key,
        &completion(json!([])),
        400,
        "invalid_value",
    );
    refused(
        &world,
        COMPLETIONS,
        key,
        &completion(json!([999_999])),
        400,
        "invalid_value",
    );
    let error = refused(
        &world,
        CHAT,
        key,
        &with("n", json!(0)),
        400,
        "invalid_value",
    );
    assert_eq!(error["param"], "n");
    // What would need another receipt, or none.
    let error = refused(
        &world,
        CHAT,
        key,
        &with("adapters", json!([{"name": "legal", "weight": 0.5}])),
        400,
        "unsupported_parameter",
    );
    assert_eq!(error["param"], "adapters");
    let embed = json!({"model": "legal", "input": "hi"}).to_string();
    let path = "/v1/embeddings";
    refused(
        &world,
        path,
        key,
        embed.as_bytes(),
        400,
        "unsupported_parameter",
    );
    refused(
        &world,
        CHAT,
        key,
        &with("temperature", json!(-1)),
        400,
        "invalid_value",
    );
    refused(
        &world,
        CHAT,
        key,
        &with("stop", json!(7)),
        400,
        "invalid_type",
    );
    // A stream is refused before it begins, by its status.
    refused(
        &world,
        CHAT,
        key,
        &{
            let mut body = question("none", "hi", 1);
            body["stream"] = json!(true);
            body.to_string().into_bytes()
        },
        404,
        "model_not_found",
    );

    let after = (
        prepaid_wei(&world.node, PAYER),
        world.node.head().header.number,
    );
    assert_eq!(after, before, "nothing was charged and no block was made");
    assert_eq!(
        world.gateway.backend().stats().n_steps,
        0,
        "nothing was computed"
    );
    assert!(disk.owed().is_empty());
    world.stop();
}

#[test]
fn no_or_too_little_balance_is_refused_before_anything_is_computed() {
    let disk = Disk::new();
    let world = disk.start();
    let key = Some(world.empty_key.as_str());
    let body = |max_tokens: u32| {
        let mut body = question("legal", "hi", 1);
        body["max_tokens"] = json!(max_tokens);
        body.to_string().into_bytes()
    };
    let error = refused(&world, CHAT, key, &body(1), 402, "insufficient_balance");
    assert!(
        error["message"].as_str().unwrap().contains("deposit"),
        "{error}"
    );
    deposit(&world.node, USER, OPEN / 100);
    refused(&world, CHAT, key, &body(1_000), 402, "insufficient_balance");
    assert_eq!(world.gateway.backend().stats().n_steps, 0);
    assert_eq!(prepaid_wei(&world.node, USER), OPEN / 100);
    // The same key with a request it can pay for.
    let reply = world.post(CHAT, key, &body(5));
    assert_eq!(reply.status, 200, "{}", reply.text);
    assert!(prepaid_wei(&world.node, USER) < OPEN / 100);
    world.stop();
}

#[test]
fn unknown_paths_methods_and_receipts_get_errors_of_the_same_form() {
    let disk = Disk::new();
    let world = disk.start();
    for (path, status, code) in [
        ("/v1/nothing", 404, "unknown_path"),
        ("/v1/chat/completions", 405, "method_not_allowed"),
        ("/v1/models/none", 404, "model_not_found"),
        ("/v1/receipts/xyz", 400, "invalid_value"),
        (
            "/v1/receipts/0x1111111111111111111111111111111111111111111111111111111111111111",
            404,
            "receipt_not_found",
        ),
    ] {
        let reply = world.get(path);
        assert_eq!(
            (reply.status, reply.json()["error"]["code"].as_str()),
            (status, Some(code)),
            "{path}"
        );
    }
    world.stop();
}

/// What is no HTTP at all ends the connection, and the server goes on.
#[test]
fn garbage_on_the_wire_does_no_harm() {
    let disk = Disk::new();
    let world = disk.start();
    for garbage in [
        &b"\x16\x03\x01\x00\xff\x00"[..],
        b"GET",
        b"POST / HTTP/1.1\r\nContent-Length: -5\r\n\r\n",
    ] {
        let mut stream = TcpStream::connect(world.address).unwrap();
        stream.write_all(garbage).unwrap();
        stream.shutdown(std::net::Shutdown::Write).unwrap();
        let mut answer = Vec::new();
        // A reset is as good an end as a 400.
        let _ = stream.read_to_end(&mut answer);
    }
    assert_eq!(world.get("/health").status, 200);
    world.stop();
}
