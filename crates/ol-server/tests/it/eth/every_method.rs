//! What holds for every method, whatever it is.

use serde_json::{Value, json};

use super::Server;
use super::websocket::WebSocket;

/// Parameters that some method may trip over.
fn hostile() -> Vec<Value> {
    let deep = (0..100).fold(json!(1), |inner, _| json!([inner]));
    let deep_object = (0..100).fold(json!({}), |inner, _| json!({"tracerConfig": inner}));
    let address = "0x1111111111111111111111111111111111111111";
    let hash = format!("0x{}", "22".repeat(32));
    let kinds = [
        json!(null),
        json!(true),
        json!(0),
        json!(-1),
        json!(1.5),
        json!(u64::MAX),
        json!(""),
        json!("0x"),
        json!("0x0"),
        json!("0xg"),
        json!("latest"),
        json!("pending"),
        json!("\u{0}\u{1F980}"),
        json!(address),
        json!(hash),
        json!(format!("0x{}", "f".repeat(64))),
        json!(format!("0x{}", "f".repeat(65))),
        json!("0xffffffffffffffff"),
        json!("9".repeat(10_000)),
        json!([]),
        json!({}),
        json!([null]),
        json!([[[]]]),
        json!({"blockHash": hash, "requireCanonical": true}),
        json!({"blockNumber": "0x0", "blockHash": hash}),
        json!({"fromBlock": "0xffffffffffffffff", "toBlock": "0x0"}),
        json!({"to": address, "gas": "0xffffffffffffffff", "data": "0x00", "input": "0x01"}),
        json!({"to": address, "value": format!("0x{}", "f".repeat(64))}),
        json!({address: ["0x0"]}),
        deep,
        deep_object,
    ];
    let mut params = vec![
        json!({}),
        json!({"a": 1}),
        json!("text"),
        json!(7),
        json!([]),
    ];
    for first in &kinds {
        params.push(json!([first]));
        for second in &kinds {
            params.push(json!([first, second]));
        }
        params.push(json!([first, "0x1", first]));
        params.push(json!([first, first, first, first, first, first, first]));
    }
    params
}

#[test]
fn the_page_of_methods_has_each_of_them_once() {
    let page = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/rpc.md");
    let page = std::fs::read_to_string(page).unwrap();
    let (by_hand, _) = page.split_once("<!-- clients: begin -->").unwrap();
    let mut described: Vec<&str> = by_hand
        .lines()
        .filter_map(|line| line.strip_prefix("| `")?.split('`').next())
        .collect();
    let mut served: Vec<&str> = ol_server::eth::methods().collect();
    described.sort_unstable();
    served.sort_unstable();
    assert_eq!(described, served);
}

#[test]
fn no_parameters_break_a_method() {
    let server = Server::start_dev();
    let mut socket = WebSocket::connect(server.addr);
    let params = hostile();
    for method in ol_server::eth::methods() {
        for params in &params {
            let reply = socket.ask(method, params.clone());
            let Some(error) = reply.get("error") else {
                assert!(reply.get("result").is_some(), "{method}: {reply}");
                continue;
            };
            let code = error["code"].as_i64().unwrap();
            let known = [3, 4, -32_000, -32_002, -32_005, -32_600, -32_601, -32_602];
            // `eth_simulateV1` has a range of its own.
            let is_known = known.contains(&code) || (-38_026..=-38_010).contains(&code);
            assert!(is_known, "{method} {params}: {reply}");
            assert!(!error["message"].as_str().unwrap().is_empty(), "{method}");
        }
        // Whoever subscribed does not keep later ones from it.
        socket = WebSocket::connect(server.addr);
    }
}

#[test]
fn bytes_that_are_no_request_are_answered_and_the_connection_lives() {
    let server = Server::start();
    let mut socket = WebSocket::connect(server.addr);
    let nested =
        |open: &str, close: &str| format!("{}{}", open.repeat(100_000), close.repeat(100_000));
    let bodies = [
        String::new(),
        "{".to_owned(),
        "null".to_owned(),
        "[]".to_owned(),
        "[[]]".to_owned(),
        nested("[", "]"),
        nested("{\"a\":", "}"),
        format!(
            "{{\"jsonrpc\":\"2.0\",\"id\":1,\"method\":\"eth_call\",\"params\":{}}}",
            nested("[", "]")
        ),
        format!(
            "{{\"jsonrpc\":\"2.0\",\"id\":1,\"method\":\"eth_chainId\",\"params\":[1e{}]}}",
            "9".repeat(100_000)
        ),
        format!(
            "{{\"jsonrpc\":\"2.0\",\"id\":1,\"method\":\"eth_getBalance\",\"params\":[{}]}}",
            "9".repeat(1_000_000)
        ),
        format!(
            "{{\"jsonrpc\":\"2.0\",\"id\":{},\"method\":\"eth_chainId\"}}",
            "9".repeat(1_000)
        ),
        format!(
            "{{\"jsonrpc\":\"2.0\",\"id\":1,\"method\":\"{}\"}}",
            "x".repeat(1_000_000)
        ),
        "{\"jsonrpc\":\"1.0\",\"id\":1,\"method\":\"eth_chainId\"}".to_owned(),
        "{\"jsonrpc\":\"2.0\",\"method\":\"eth_chainId\",\"id\":{}}".to_owned(),
        "\u{FEFF}{}".to_owned(),
    ];
    for body in &bodies {
        let (status, text) = server.post(body);
        assert!((200..500).contains(&status), "{status}: {text}");
        if status == 200 {
            let reply: Value = serde_json::from_str(&text).unwrap();
            let error = reply
                .get("error")
                .or(reply.get(0).and_then(|first| first.get("error")));
            // What looks like a notification is answered with nothing.
            assert!(error.is_some() || reply.is_null(), "{text}");
        }
        socket.send(body);
    }
    while socket.next()["id"] != 77 {
        socket.send("{\"jsonrpc\":\"2.0\",\"id\":77,\"method\":\"eth_chainId\"}");
    }
}
