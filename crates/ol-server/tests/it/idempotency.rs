//! Goal: a repeated request is answered again and charged once.
//! Method: the same idempotency key with the same request, whole and streamed,
//! settled and owed; then with everything about it that may not change.

use serde_json::{Value, json};

use crate::support::{Disk, OPEN, PAYER, USER, prepaid_wei, question, wei};

/// What a reply says and which receipt it comes with.
fn answer(reply: &Value) -> (&str, &str) {
    let text = reply["choices"][0]["message"]["content"].as_str().unwrap();
    (text, reply["openledger"]["receipt_id"].as_str().unwrap())
}

#[test]
fn a_repeated_request_is_answered_again_and_charged_once() {
    let disk = Disk::new();
    let world = disk.start();
    let mut body = question("legal", "the law", 3);
    // Without a seed of its own a named request gets the same one each time.
    body.as_object_mut().unwrap().remove("seed");

    let first = world.ask_as("order 17", &body);
    assert_eq!(first.status, 200, "{}", first.text);
    let first = first.json();
    let fee_wei = wei(&first["openledger"]["fee_wei"]);
    let height = world.node.head().header.number;
    for _ in 0..2 {
        let again = world.ask_as("order 17", &body).json();
        assert_eq!(answer(&again), answer(&first));
        assert_eq!(again["openledger"], first["openledger"]);
        assert_eq!(again["usage"], first["usage"]);
    }
    let mut streamed = body.clone();
    streamed["stream"] = true.into();
    let streamed = world.ask_as("order 17", &streamed);
    assert!(
        streamed.text.contains(answer(&first).1),
        "{}",
        streamed.text
    );
    assert_eq!(prepaid_wei(&world.node, PAYER), 100 * OPEN - fee_wei);
    assert_eq!(
        world.node.head().header.number,
        height,
        "nothing was settled again"
    );

    // Another name is another request.
    let other = world.ask_as("order 18", &body).json();
    assert_ne!(answer(&other).1, answer(&first).1);
    world.stop();
}

#[test]
fn a_key_gives_nothing_that_was_not_paid_for() {
    let disk = Disk::new();
    let world = disk.start();
    let body = question("legal", "the law", 3);
    let first = world.ask_as("key", &body).json();
    let paid_wei = prepaid_wei(&world.node, PAYER);

    let mut other = body.clone();
    other["messages"] = json!([{"role": "user", "content": "another question"}]);
    let reply = world.ask_as("key", &other);
    assert_eq!(reply.status, 409, "{}", reply.text);
    assert_eq!(reply.json()["error"]["code"], "idempotency_key_reused");

    // Another seed: refused, unless it happens to give the answer that was paid for.
    let mut n_refused = 0;
    for seed in 4..20 {
        let reply = world.ask_as("key", &question("legal", "the law", seed));
        match reply.status {
            409 => n_refused += 1,
            _ => assert_eq!(answer(&reply.json()), answer(&first)),
        }
    }
    assert!(n_refused > 0, "every seed gave the same answer");

    // A longer answer is cut to what was paid for.
    let mut longer = body.clone();
    longer["max_tokens"] = 60.into();
    assert_eq!(answer(&world.ask_as("key", &longer).json()), answer(&first));

    for bad in ["", &"k".repeat(256)] {
        assert_eq!(world.ask_as(bad, &body).status, 400);
    }
    assert_eq!(
        prepaid_wei(&world.node, PAYER),
        paid_wei,
        "nothing was charged"
    );
    world.stop();
}

/// With an operator that may not settle, the receipt stays owed.
#[test]
fn a_repeated_request_finds_a_receipt_that_is_still_owed() {
    let disk = Disk::new();
    let world = disk.start_with(USER);
    let body = question("legal", "who", 5);
    let first = world.ask_as("key", &body).json();
    assert_eq!(first["openledger"]["status"], "pending");
    let again = world.ask_as("key", &body).json();
    assert_eq!(answer(&again), answer(&first));
    assert_eq!(disk.owed().len(), 1);
    world.stop();
}
