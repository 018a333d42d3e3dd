//! Every wei: balances on chain, crashes between the steps, clients that leave.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;

use alloy_sol_types::SolCall as _;
use ol_contracts::address;
use ol_contracts::bindings::InferenceSettlement;
use serde_json::json;

use crate::support::{
    BROKEN, Disk, OPEN, OPERATOR, OWNER, PAYER, PLATFORM, USER, World, contributor, credit_wei,
    events, prepaid_wei, question, send, signer, wei,
};

/// All credit that receipts have given.
pub(crate) fn credits_wei(world: &World) -> u128 {
    let accounts = [
        signer(PLATFORM).address(),
        signer(OWNER).address(),
        address::STAKERS_POOL,
    ];
    let accounts = accounts.into_iter().chain((0..9).map(contributor));
    accounts
        .map(|account| credit_wei(&world.node, account))
        .sum()
}

#[test]
fn what_the_payer_pays_is_what_the_others_get() {
    let disk = Disk::new();
    let world = disk.start();
    let mut fees_wei = 0;
    for seed in 0..4 {
        let reply = world.chat(&question("legal", "the law", seed));
        fees_wei += wei(&reply["openledger"]["fee_wei"]);
        assert_eq!(prepaid_wei(&world.node, PAYER), 100 * OPEN - fees_wei);
        assert_eq!(credits_wei(&world), fees_wei);
    }
    assert!(disk.owed().is_empty());
    world.stop();
}

/// Signed by an account that is not the operator a settlement cannot happen:
/// what a crash between journal and submission leaves behind.
fn pending_answer(disk: &Disk) -> (String, u128) {
    let world = disk.start_with(USER);
    let reply = world.chat(&question("legal", "who", 5));
    let payment = &reply["openledger"];
    assert_eq!(payment["status"], "pending");
    assert!(payment["tx_hash"].is_null());
    assert!(
        !reply["choices"][0]["message"]["content"]
            .as_str()
            .unwrap()
            .is_empty()
    );
    assert_eq!(prepaid_wei(&world.node, PAYER), 100 * OPEN);
    let id = payment["receipt_id"].as_str().unwrap().to_owned();
    let shown = world.get(&format!("/v1/receipts/{id}")).json();
    assert_eq!(shown["status"], "pending");
    assert!(
        shown["pots"]["training"]["n_contributors"]
            .as_u64()
            .unwrap()
            > 0,
        "what it will pay is known already"
    );
    let fee_wei = wei(&payment["fee_wei"]);
    world.stop();
    assert_eq!(disk.owed().len(), 1);
    (id, fee_wei)
}

#[test]
fn a_receipt_in_the_journal_is_settled_after_a_restart_and_only_once() {
    let disk = Disk::new();
    let (id, fee_wei) = pending_answer(&disk);
    let file = disk.owed().remove(0);
    let bytes = std::fs::read(&file).unwrap();

    // Stopping waits for the settlement thread, which begins with what is owed.
    disk.start().stop();
    assert!(disk.owed().is_empty());
    let world = disk.start();
    assert_eq!(prepaid_wei(&world.node, PAYER), 100 * OPEN - fee_wei);
    let shown = world.get(&format!("/v1/receipts/{id}")).json();
    assert_eq!(
        (&shown["status"], &shown["fee_wei"]),
        (&json!("settled"), &json!(fee_wei.to_string()))
    );
    let n_blocks = world.node.head().header.number;
    world.stop();

    // A crash after the block and before the journal forgot it.
    std::fs::write(&file, bytes).unwrap();
    disk.start().stop();
    assert!(disk.owed().is_empty());
    let world = disk.start();
    assert_eq!(
        prepaid_wei(&world.node, PAYER),
        100 * OPEN - fee_wei,
        "never charged twice"
    );
    assert_eq!(world.node.head().header.number, n_blocks);
    assert_eq!(
        world.get(&format!("/v1/receipts/{id}")).json()["status"],
        "settled"
    );
    world.stop();
}

#[test]
fn a_receipt_that_nobody_can_pay_any_more_is_refused() {
    let disk = Disk::new();
    let (id, _) = pending_answer(&disk);
    let world = disk.start_with(USER);
    let withdraw = InferenceSettlement::withdrawCall {
        amount: alloy_primitives::U256::from(100 * OPEN),
    };
    send(
        &world.node,
        PAYER,
        address::INFERENCE_SETTLEMENT,
        0,
        withdraw.abi_encode(),
    );
    world.stop();
    disk.start().stop();
    let world = disk.start();
    assert!(disk.owed().is_empty());
    assert_eq!(
        world.get(&format!("/v1/receipts/{id}")).json()["status"],
        "refused"
    );
    assert_eq!(
        (prepaid_wei(&world.node, PAYER), credits_wei(&world)),
        (0, 0)
    );
    world.stop();
}

/// A fee that is owed is not available for the next request.
#[test]
fn what_is_owed_stays_set_aside() {
    let disk = Disk::new();
    let (_, fee_wei) = pending_answer(&disk);
    let world = disk.start_with(USER);
    // All but what is owed and one wei less than the smallest request needs.
    let keep = InferenceSettlement::withdrawCall {
        amount: alloy_primitives::U256::from(100 * OPEN - fee_wei - OPEN / 1_000_000),
    };
    send(
        &world.node,
        PAYER,
        address::INFERENCE_SETTLEMENT,
        0,
        keep.abi_encode(),
    );
    let body = question("legal", "who", 5).to_string();
    let reply = world.post("/v1/chat/completions", Some(&world.key), body.as_bytes());
    assert_eq!(reply.status, 402, "{}", reply.text);
    world.stop();
}

#[test]
fn a_damaged_journal_is_named_at_the_start() {
    let disk = Disk::new();
    pending_answer(&disk);
    let file = disk.owed().remove(0);
    let mut bytes = std::fs::read(&file).unwrap();
    bytes[100] ^= 1;
    std::fs::write(&file, bytes).unwrap();
    let opened = ol_server::gateway::Journal::open(&disk.journal()).unwrap();
    let error = opened.all().unwrap_err().to_string();
    assert!(
        error.contains("damaged") && error.contains(".receipt"),
        "{error}"
    );
}

/// Sends a long request over a plain connection.
fn open_long(world: &World, is_stream: bool) -> TcpStream {
    let mut body = question("legal", "who and how", 9);
    body["max_tokens"] = json!(30_000);
    body["temperature"] = json!(0);
    body["stream"] = json!(is_stream);
    let body = body.to_string();
    let mut stream = TcpStream::connect(world.address).unwrap();
    let head = format!(
        "POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {}\r\nContent-Length: {}\r\n\r\n",
        world.key,
        body.len()
    );
    stream.write_all(head.as_bytes()).unwrap();
    stream.write_all(body.as_bytes()).unwrap();
    stream
}

pub(crate) fn wait_for(what: impl Fn() -> bool) {
    while !what() {
        std::thread::yield_now();
    }
}

#[test]
fn leaving_before_anything_was_delivered_costs_nothing() {
    let disk = Disk::new();
    let world = disk.start();
    let stream = open_long(&world, false);
    let engine = world.gateway.backend().clone();
    wait_for(|| engine.stats().n_tokens_out > 0);
    drop(stream);
    wait_for(|| engine.stats().n_running == 0);
    assert!(
        engine.stats().n_tokens_out < 30_000,
        "the request was cancelled"
    );
    world.stop();
    let world = disk.start();
    assert!(disk.owed().is_empty());
    assert_eq!(prepaid_wei(&world.node, PAYER), 100 * OPEN);
    world.stop();
}

#[test]
fn leaving_a_stream_costs_what_was_generated_until_then() {
    let disk = Disk::new();
    let world = disk.start();
    let mut stream = open_long(&world, true);
    let mut seen = Vec::new();
    // The role comes first; the second "content" is text.
    while String::from_utf8_lossy(&seen)
        .matches("\"content\"")
        .count()
        < 2
    {
        let mut buffer = [0; 512];
        let n = stream.read(&mut buffer).unwrap();
        assert!(n > 0, "{}", String::from_utf8_lossy(&seen));
        seen.extend_from_slice(&buffer[..n]);
    }
    drop(stream);
    let engine = world.gateway.backend().clone();
    wait_for(|| engine.stats().n_running == 0);
    assert!(
        engine.stats().n_tokens_out < 30_000,
        "the request was cancelled"
    );
    world.stop();
    let world = disk.start();
    assert!(disk.owed().is_empty());
    let paid_wei = 100 * OPEN - prepaid_wei(&world.node, PAYER);
    assert!(paid_wei > 0 && paid_wei < OPEN / 3 * 30, "{paid_wei}");
    assert_eq!(credits_wei(&world), paid_wei);
    world.stop();
}

#[test]
fn past_the_limit_a_request_is_told_to_come_back() {
    let disk = Disk::new();
    let world = disk.start_limited(OPERATOR, 1);
    let stream = open_long(&world, true);
    let engine = world.gateway.backend().clone();
    wait_for(|| engine.stats().n_tokens_out > 0);
    let body = question("legal", "who", 1).to_string();
    let reply = world.post("/v1/chat/completions", Some(&world.key), body.as_bytes());
    assert_eq!(reply.status, 429, "{}", reply.text);
    assert_eq!(reply.json()["error"]["code"], "overloaded");
    assert_eq!(reply.headers["retry-after"], "1");
    drop(stream);
    world.stop();
}

/// Without a sketch nobody could be paid, so nobody pays.
#[test]
fn an_answer_that_cannot_be_sketched_costs_nothing() {
    let disk = Disk::new();
    let world = disk.start();
    let mut body = question(BROKEN, "who", 1);
    let ask = |body: &serde_json::Value| {
        let key = Some(world.key.as_str());
        world.post("/v1/chat/completions", key, body.to_string().as_bytes())
    };
    let reply = ask(&body);
    assert_eq!(reply.status, 500, "{}", reply.text);
    assert_eq!(reply.json()["error"]["code"], "internal_error");
    body["stream"] = json!(true);
    let events = events(&ask(&body).text);
    let last: serde_json::Value = serde_json::from_str(events.last().unwrap()).unwrap();
    assert_eq!(
        last["error"]["code"], "internal_error",
        "an error and no [DONE] ends the stream"
    );
    world.stop();
    assert!(disk.owed().is_empty());
    let world = disk.start();
    assert_eq!(prepaid_wei(&world.node, PAYER), 100 * OPEN);
    world.stop();
}
