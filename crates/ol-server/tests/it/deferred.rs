//! Goal: when there is no time to sketch an answer, nobody waits for it, and it
//! is still paid for exactly once, whatever happens in between.
//! Method: a model whose sketches wait at a gate, and a queue of no places.

use std::path::PathBuf;

use ol_contracts::address;
use ol_contracts::bindings::InferenceSettlement;
use ol_server::gateway::GatewayOptions;
use serde_json::{Value, json};

use crate::money::wait_for;
use crate::support::{
    BROKEN, Disk, OPEN, OPERATOR, PAYER, Reply, SLOW, USER, World, engine, prepaid_wei, question,
    send, wei,
};

/// Starts a gateway where nobody waits for the sketch of another.
fn start(disk: &Disk) -> World {
    let options = GatewayOptions {
        n_sketches_waiting_max: 0,
        ..disk.options()
    };
    disk.start_as(OPERATOR, options, |_| engine().into())
}

fn answers(disk: &Disk) -> Vec<PathBuf> {
    let files = std::fs::read_dir(disk.journal()).unwrap();
    let files = files.map(|entry| entry.unwrap().path());
    files
        .filter(|path| path.extension().is_some_and(|ext| ext == "answer"))
        .collect()
}

/// Asks one question whose sketch waits at the gate, and while it does what
/// `while_busy` asks; gives the fee of the first and what the other gave.
fn while_busy<T>(disk: &Disk, world: &World, while_busy: impl FnOnce() -> T) -> (u128, T) {
    disk.gate.set_closed(true);
    std::thread::scope(|scope| {
        let first = scope.spawn(|| world.chat(&question(SLOW, "who", 1)));
        wait_for(|| disk.gate.n_waiting() > 0);
        let given = while_busy();
        disk.gate.set_closed(false);
        let first = first.join().unwrap();
        assert_eq!(first["openledger"]["status"], "settled");
        (wei(&first["openledger"]["fee_wei"]), given)
    })
}

fn id_of(reply: &Value) -> String {
    let payment = &reply["openledger"];
    assert_eq!(payment["status"], "pending", "{reply}");
    assert!(payment["receipt_id"].is_null(), "{reply}");
    payment["request_id"].as_str().unwrap().to_owned()
}

fn shown(world: &World, id: &str) -> Value {
    world.get(&format!("/v1/receipts/{id}")).json()
}

fn all_is_settled(disk: &Disk, world: &World) {
    wait_for(|| world.gateway.n_deferred() == 0 && answers(disk).is_empty());
    wait_for(|| disk.owed().is_empty());
}

#[test]
fn an_answer_without_time_for_its_sketch_is_settled_later() {
    let disk = Disk::new();
    let world = start(&disk);
    let asked = || {
        let reply = world.chat(&question("legal", "the law", 2));
        let text = &reply["choices"][0]["message"]["content"];
        assert!(!text.as_str().unwrap().is_empty());
        let id = id_of(&reply);
        let owed = shown(&world, &id);
        assert_eq!(owed["status"], "pending");
        assert_eq!(owed["model"], "legal");
        assert!(owed["id"].is_null() && owed["query_hash"].is_null());
        assert_eq!(answers(&disk).len(), 1);
        assert_eq!(prepaid_wei(&world.node, PAYER), 100 * OPEN);
        (id, wei(&reply["openledger"]["fee_wei"]))
    };
    let (first_wei, (id, fee_wei)) = while_busy(&disk, &world, asked);
    all_is_settled(&disk, &world);
    let settled = shown(&world, &id);
    assert_eq!(settled["status"], "settled", "{settled}");
    assert_eq!(settled["request_id"], json!(id));
    let receipt = settled["id"].as_str().unwrap();
    assert_eq!(shown(&world, receipt), settled, "both ids find it");
    assert_eq!(
        prepaid_wei(&world.node, PAYER),
        100 * OPEN - first_wei - fee_wei
    );
    world.stop();
}

#[test]
fn a_crash_at_any_point_charges_once() {
    let disk = Disk::new();
    let world = start(&disk);
    let asked = || {
        let reply = world.chat(&question("legal", "the law", 2));
        let file = answers(&disk).remove(0);
        let bytes = std::fs::read(&file).unwrap();
        (
            id_of(&reply),
            wei(&reply["openledger"]["fee_wei"]),
            file,
            bytes,
        )
    };
    let (first_wei, (id, fee_wei, file, bytes)) = while_busy(&disk, &world, asked);
    world.stop();

    // Before its sketch: what waits is taken up by the next start. After it,
    // settled or not: the next start finds the answer again.
    for _ in 0..2 {
        std::fs::write(&file, &bytes).unwrap();
        let world = start(&disk);
        all_is_settled(&disk, &world);
        assert_eq!(shown(&world, &id)["status"], "settled");
        assert_eq!(
            prepaid_wei(&world.node, PAYER),
            100 * OPEN - first_wei - fee_wei,
            "never charged twice"
        );
        world.stop();
    }

    // A file that is not whole is named, and nothing starts on top of it.
    std::fs::write(&file, &bytes[..bytes.len() - 1]).unwrap();
    let journal = ol_server::gateway::Journal::open(&disk.journal()).unwrap();
    assert!(journal.all().is_ok(), "receipts are not touched");
    std::fs::remove_file(&file).unwrap();
}

#[test]
fn a_receipt_and_its_answer_are_owed_once() {
    let disk = Disk::new();
    let world = disk.start_as(
        // May not settle: the receipt stays in the journal.
        USER,
        GatewayOptions {
            n_sketches_waiting_max: 0,
            ..disk.options()
        },
        |_| engine().into(),
    );
    let asked = || {
        let reply = world.chat(&question("legal", "the law", 2));
        let file = answers(&disk).remove(0);
        let bytes = std::fs::read(&file).unwrap();
        (wei(&reply["openledger"]["fee_wei"]), file, bytes)
    };
    disk.gate.set_closed(true);
    let (first, (fee_wei, file, bytes)) = std::thread::scope(|scope| {
        let first = scope.spawn(|| world.chat(&question(SLOW, "who", 1)));
        wait_for(|| disk.gate.n_waiting() > 0);
        let given = asked();
        disk.gate.set_closed(false);
        (first.join().unwrap(), given)
    });
    let first_wei = wei(&first["openledger"]["fee_wei"]);
    wait_for(|| answers(&disk).is_empty());
    wait_for(|| disk.owed().len() == 2);
    world.stop();
    // A crash after the receipt was written and before the answer was forgotten.
    std::fs::write(&file, &bytes).unwrap();
    let world = disk.start();
    all_is_settled(&disk, &world);
    assert_eq!(
        prepaid_wei(&world.node, PAYER),
        100 * OPEN - first_wei - fee_wei
    );
    world.stop();
}

#[test]
fn an_answer_that_turns_out_to_have_no_sketch_costs_nothing() {
    let disk = Disk::new();
    let world = start(&disk);
    let asked = || id_of(&world.chat(&question(BROKEN, "who", 1)));
    let (first_wei, id) = while_busy(&disk, &world, asked);
    all_is_settled(&disk, &world);
    let refused = shown(&world, &id);
    assert_eq!(refused["status"], "refused", "{refused}");
    assert!(refused["id"].is_null());
    assert_eq!(prepaid_wei(&world.node, PAYER), 100 * OPEN - first_wei);
    world.stop();
}

#[test]
fn asked_again_while_it_waits_it_is_answered_and_owed_once() {
    let disk = Disk::new();
    let world = start(&disk);
    let body = question("legal", "the law", 3);
    let asked = || {
        let answers_of = |reply: Reply| {
            let reply = reply.json();
            (reply["choices"].clone(), id_of(&reply))
        };
        let first = answers_of(world.ask_as("order", &body));
        assert_eq!(answers_of(world.ask_as("order", &body)), first);
        assert_eq!(answers(&disk).len(), 1);
        first
    };
    let (_, (choices, id)) = while_busy(&disk, &world, asked);
    all_is_settled(&disk, &world);
    let paid_wei = prepaid_wei(&world.node, PAYER);
    let again = world.ask_as("order", &body).json();
    assert_eq!(again["choices"], choices);
    assert_eq!(again["openledger"]["status"], "settled");
    assert_eq!(again["openledger"]["request_id"], json!(id));
    assert_eq!(prepaid_wei(&world.node, PAYER), paid_wei);
    world.stop();
}

#[test]
fn without_room_for_its_answer_no_request_begins() {
    let disk = Disk::new();
    let options = GatewayOptions {
        deferred_max_size_bytes: 1_000,
        ..disk.options()
    };
    let world = disk.start_as(OPERATOR, options, |_| engine().into());
    let mut body = question("legal", "who", 1);
    world.chat(&body);
    body["max_tokens"] = json!(200);
    let body = body.to_string();
    let reply = world.post("/v1/chat/completions", Some(&world.key), body.as_bytes());
    assert_eq!(reply.status, 429, "{}", reply.text);
    assert_eq!(world.gateway.backend().stats().n_running, 0);
    world.stop();
}

/// One receipt of a batch cannot be paid any more: the others are.
#[test]
fn one_receipt_that_is_refused_does_not_touch_the_others() {
    let disk = Disk::new();
    let world = disk.start_with(USER);
    let mut fees_wei = Vec::new();
    for seed in 0..5 {
        let reply = world.chat(&question("legal", "the law", seed));
        assert_eq!(reply["openledger"]["status"], "pending");
        fees_wei.push(wei(&reply["openledger"]["fee_wei"]));
    }
    // Enough for all of them but one wei.
    let withdraw = InferenceSettlement::withdrawCall {
        amount: alloy_primitives::U256::from(100 * OPEN - fees_wei.iter().sum::<u128>() + 1),
    };
    let input = alloy_sol_types::SolCall::abi_encode(&withdraw);
    send(&world.node, PAYER, address::INFERENCE_SETTLEMENT, 0, input);
    world.stop();
    assert_eq!(disk.owed().len(), 5);
    let world = disk.start();
    wait_for(|| disk.owed().is_empty());
    let n_refused = std::fs::read_dir(disk.journal().join("refused")).unwrap();
    assert_eq!(n_refused.count(), 1);
    let left_wei = prepaid_wei(&world.node, PAYER);
    assert!(
        fees_wei.iter().any(|fee_wei| left_wei == fee_wei - 1),
        "{left_wei} of {fees_wei:?}"
    );
    world.stop();
}
