//! Goal: an answer of the optimistic tier is claimed once, whatever crashes, pays
//! what the exact tier would, and is answered for until its window is over.
//! Method: a model that commits to its index; the chain's clock set forward.

use std::path::PathBuf;

use alloy_primitives::U256;
use alloy_sol_types::SolCall as _;
use ol_contracts::address::ATTRIBUTION_COURT;
use ol_contracts::bindings::AttributionCourt;
use ol_contracts::court::posted;
use ol_poa::court::Node;
use ol_poa::{QuerySketch, shares};
use ol_server::gateway::{Chain, ClaimStatus, GatewayOptions};
use ol_types::{Address, B256, Receipt};
use serde_json::{Value, json};

use crate::money::wait_for;
use crate::support::{
    CLAIMED, Disk, OPEN, OPERATOR, PAYER, USER, World, ask, committed, engine, prepaid_wei,
    question, send, signer, wei,
};

const WINDOW_S: u64 = 12 * 3_600;
const NULL_THRESHOLD: u64 = 1_000;

fn files(disk: &Disk, folder: &str) -> Vec<PathBuf> {
    let files = std::fs::read_dir(disk.journal().join(folder)).unwrap();
    let files = files.map(|entry| entry.unwrap().path());
    files.filter(|path| path.is_file()).collect()
}

fn court_credit_wei(world: &World, account: Address) -> u128 {
    let call = AttributionCourt::creditCall { account };
    ask(&world.node, ATTRIBUTION_COURT, &call).to()
}

fn free_bond_wei(world: &World) -> u128 {
    let operator = signer(OPERATOR).address();
    let call = AttributionCourt::bondsCall { operator };
    ask(&world.node, ATTRIBUTION_COURT, &call).to()
}

fn shown(world: &World, id: &Value) -> Value {
    let id = id.as_str().unwrap();
    world.get(&format!("/v1/receipts/{id}")).json()
}

fn status_is(world: &World, id: &Value, status: &str) -> bool {
    shown(world, id)["status"] == status
}

/// Asks, and returns the payment of the answer, which must be claimed.
fn claimed(world: &World, seed: u64) -> Value {
    let reply = world.chat(&question(CLAIMED, "who hacked the bridge", seed));
    let payment = reply["openledger"].clone();
    assert_eq!(payment["status"], "claimed", "{payment}");
    payment
}

/// What the exact tier would pay, by address.
fn exact(world: &World, id: &Value) -> Vec<(Address, u128)> {
    let id: B256 = id.as_str().unwrap().parse().unwrap();
    let receipt = world.objects.get(id, 1_000).unwrap();
    let receipt = Receipt::decode(&receipt).unwrap();
    let query = world.objects.get(receipt.query_hash, 1_000).unwrap();
    let query = QuerySketch::from_bytes(&query).unwrap();
    let weights = committed().index().weights(NULL_THRESHOLD, &query);
    let values: Vec<u64> = weights.iter().map(|&(_, weight)| weight).collect();
    let [.., pot] = ol_poa::split_fee(receipt.fee_wei, ol_poa::DEFAULT_SPLIT_BPS).unwrap();
    let amounts = shares(pot, &values).unwrap();
    let mut paid: Vec<_> = weights.iter().map(|&(who, _)| who).zip(amounts).collect();
    paid.sort_unstable();
    paid
}

fn paid_by(receipt: &Value) -> Vec<(Address, u128)> {
    let shares = receipt["pots"]["training"]["contributors"]
        .as_array()
        .unwrap();
    let share = |share: &Value| {
        let address = share["address"].as_str().unwrap().parse().unwrap();
        (address, wei(&share["paid_wei"]))
    };
    let mut paid: Vec<_> = shares.iter().map(share).collect();
    paid.sort_unstable();
    paid
}

#[test]
fn a_claim_pays_what_the_exact_tier_would_when_its_window_is_over() {
    let disk = Disk::new();
    let world = disk.start();
    let payment = claimed(&world, 7);
    let id = &payment["receipt_id"];
    let fee_wei = wei(&payment["fee_wei"]);
    assert_eq!(prepaid_wei(&world.node, PAYER), 100 * OPEN - fee_wei);
    let receipt = shown(&world, id);
    assert_eq!(receipt["claim"]["n_open_reveals"], 0);
    let bond_wei = wei(&receipt["claim"]["bond_wei"]);
    assert_eq!(bond_wei, fee_wei + OPEN / 10);
    assert!(receipt["block"].is_u64() && receipt["tx_hash"].is_string());
    assert!(!paid_by(&receipt).is_empty());
    assert_eq!(paid_by(&receipt), exact(&world, id));
    let shares = receipt["pots"]["training"]["contributors"].as_array();
    let names_records = |share: &Value| !share["records"].as_array().unwrap().is_empty();
    assert!(shares.unwrap().iter().all(names_records), "{receipt}");
    assert_eq!((files(&disk, "claimed").len(), disk.owed().len()), (1, 0));

    // What is on chain is what anybody computes.
    let chain = Chain::new(world.node.clone(), signer(USER));
    let id_bytes: B256 = id.as_str().unwrap().parse().unwrap();
    let event = chain.claimed(id_bytes).unwrap().unwrap().event;
    let query = QuerySketch::from_bytes(&event.query).unwrap();
    let index = committed();
    let ours = ol_poa::court::Claim::compute(&index, &query, NULL_THRESHOLD, event.pot);
    assert_eq!(posted(&event.posted, event.pot), ours.posted());

    let bonded_wei = free_bond_wei(&world) + bond_wei;
    world.node.increase_time(WINDOW_S).unwrap();
    wait_for(|| status_is(&world, id, "final"));
    assert_eq!(free_bond_wei(&world), bonded_wei);
    wait_for(|| files(&disk, "claimed").is_empty());
    let final_receipt = shown(&world, id);
    assert_eq!(paid_by(&final_receipt), paid_by(&receipt));

    // Contributors collect by the path of their share.
    for (contributor, share_wei) in paid_by(&receipt) {
        let at = index
            .ranges()
            .iter()
            .position(|(who, _)| *who == contributor);
        let position = u32::try_from(at.unwrap()).unwrap();
        let path = ours.shares.path(0, position);
        let collect = AttributionCourt::collectCall {
            id: id_bytes,
            position,
            contributor,
            share: share_wei,
            path: path
                .iter()
                .flat_map(Node::encode)
                .collect::<Vec<u8>>()
                .into(),
        };
        send(
            &world.node,
            USER,
            ATTRIBUTION_COURT,
            0,
            collect.abi_encode(),
        );
        assert_eq!(court_credit_wei(&world, contributor), share_wei);
    }
    world.stop();
}

#[test]
fn a_crash_at_any_point_claims_once() {
    let disk = Disk::new();
    // Signed by somebody who may not: in the journal, and not on chain.
    let world = disk.start_with(USER);
    let reply = world.chat(&question(CLAIMED, "who", 5));
    let payment = &reply["openledger"];
    assert_eq!(payment["status"], "pending");
    let id = payment["receipt_id"].clone();
    let fee_wei = wei(&payment["fee_wei"]);
    assert!(!paid_by(&shown(&world, &id)).is_empty(), "known already");
    world.stop();
    let file = disk.owed().remove(0);
    let bytes = std::fs::read(&file).unwrap();

    disk.start().stop();
    assert!(disk.owed().is_empty());
    let open = files(&disk, "claimed").remove(0);
    let world = disk.start();
    assert!(status_is(&world, &id, "claimed"));
    assert_eq!(prepaid_wei(&world.node, PAYER), 100 * OPEN - fee_wei);
    let n_blocks = world.node.head().header.number;
    world.stop();

    // After the claim and before the journal knew; with and without its other file.
    for is_moved in [true, false] {
        std::fs::write(&file, &bytes).unwrap();
        if !is_moved {
            std::fs::remove_file(&open).unwrap();
        }
        disk.start().stop();
        assert!(disk.owed().is_empty());
        assert_eq!(files(&disk, "claimed"), std::slice::from_ref(&open));
    }
    let world = disk.start();
    assert_eq!(world.node.head().header.number, n_blocks, "claimed once");
    assert_eq!(prepaid_wei(&world.node, PAYER), 100 * OPEN - fee_wei);

    // After it was closed.
    world.node.increase_time(WINDOW_S).unwrap();
    wait_for(|| status_is(&world, &id, "final"));
    wait_for(|| files(&disk, "claimed").is_empty());
    let n_blocks = world.node.head().header.number;
    world.stop();
    std::fs::write(&file, &bytes).unwrap();
    std::fs::write(&open, &bytes).unwrap();
    let world = disk.start();
    wait_for(|| files(&disk, "claimed").is_empty() && disk.owed().is_empty());
    assert_eq!(world.node.head().header.number, n_blocks);
    assert_eq!(prepaid_wei(&world.node, PAYER), 100 * OPEN - fee_wei);
    world.stop();
}

#[test]
fn nodes_that_are_asked_for_are_revealed_also_after_a_restart() {
    let disk = Disk::new();
    let world = disk.start();
    let payment = claimed(&world, 1);
    let id: B256 = payment["receipt_id"].as_str().unwrap().parse().unwrap();
    let chain = Chain::new(world.node.clone(), signer(USER));
    let event = chain.claimed(id).unwrap().unwrap().event;
    let root = posted(&event.posted, event.pot).scores;
    let level = u8::try_from(ol_poa::merkle::depth(committed().n_entries() as usize)).unwrap();
    let request = AttributionCourt::requestRevealCall {
        id,
        tree: 0,
        level,
        position: 0,
        path: root.encode().into(),
    };
    let stake_wei = OPEN / 100;
    let is_open = |world: &World| {
        let challenger = signer(USER).address();
        let call = AttributionCourt::revealOfCall { id, challenger };
        ask(&world.node, ATTRIBUTION_COURT, &call).isOpen
    };
    let input = request.abi_encode();
    send(
        &world.node,
        USER,
        ATTRIBUTION_COURT,
        stake_wei,
        input.clone(),
    );
    wait_for(|| !is_open(&world));
    let earned_wei = court_credit_wei(&world, signer(OPERATOR).address());
    assert_eq!(earned_wei, stake_wei, "who asks pays for it");
    drop(chain);
    world.stop();

    // Asked while nobody looked.
    send(&disk.node(), USER, ATTRIBUTION_COURT, stake_wei, input);
    let other = disk.start();
    wait_for(|| !is_open(&other));
    let shown_id = json!(id);
    other.node.increase_time(WINDOW_S).unwrap();
    wait_for(|| status_is(&other, &shown_id, "final"));
    other.stop();
}

#[test]
fn past_the_bond_the_model_is_refused_by_name_and_others_are_answered() {
    let disk = Disk::new();
    let options = |bond_max_wei| GatewayOptions {
        bond_max_wei,
        ..disk.options()
    };
    let world = disk.start_as(OPERATOR, options(OPEN / 20), |_| engine().into());
    let body = question(CLAIMED, "who", 1).to_string();
    let refused = |world: &World| {
        let reply = world.post("/v1/chat/completions", Some(&world.key), body.as_bytes());
        assert_eq!(reply.status, 503, "{}", reply.text);
        let message = reply.json()["error"]["message"].clone();
        let message = message.as_str().unwrap();
        assert!(
            message.contains("\"claimed\"") && message.contains("bond"),
            "{message}"
        );
    };
    refused(&world);
    assert_eq!(prepaid_wei(&world.node, PAYER), 100 * OPEN);
    world.chat(&question("legal", "the law", 2));
    world.stop();

    // Room for one claim, which comes back with its window.
    let world = disk.start_as(OPERATOR, options(20 * OPEN), |_| engine().into());
    let first = claimed(&world, 1);
    let bond_wei = wei(&shown(&world, &first["receipt_id"])["claim"]["bond_wei"]);
    world.stop();
    let world = disk.start_as(OPERATOR, options(bond_wei + OPEN / 10), |_| engine().into());
    refused(&world);
    world.node.increase_time(WINDOW_S).unwrap();
    wait_for(|| status_is(&world, &first["receipt_id"], "final"));
    wait_for(|| files(&disk, "claimed").is_empty());
    world.stop();
}

/// The court goes by the newest terms: a claim for other ones would be a lie.
#[test]
fn a_claim_is_computed_for_the_version_that_judges_it() {
    let disk = Disk::new();
    let world = disk.start_with(USER);
    let reply = world.chat(&question(CLAIMED, "who", 5));
    let id = reply["openledger"]["receipt_id"].clone();
    let model = ol_types::name_id(CLAIMED);
    let chain = Chain::new(world.node.clone(), signer(USER));
    let mut params = chain.model(model).unwrap().unwrap().params;
    params.nullThreshold *= 1_000;
    let update = ol_contracts::bindings::ModelRegistry::updateCall { id: model, params };
    let registry = ol_contracts::address::MODEL_REGISTRY;
    send(
        &world.node,
        crate::support::OWNER,
        registry,
        0,
        update.abi_encode(),
    );
    drop(chain);
    world.stop();
    disk.start().stop();
    let world = disk.start();
    let id: B256 = id.as_str().unwrap().parse().unwrap();
    let chain = Chain::new(world.node.clone(), signer(USER));
    let state = chain.claim_state(id).unwrap().unwrap();
    assert_eq!((state.status, state.version), (ClaimStatus::Pending, 2));
    let event = chain.claimed(id).unwrap().unwrap().event;
    let query = QuerySketch::from_bytes(&event.query).unwrap();
    let threshold = 1_000 * NULL_THRESHOLD;
    let ours = ol_poa::court::Claim::compute(&committed(), &query, threshold, event.pot);
    assert_eq!(posted(&event.posted, event.pot), ours.posted());
    let credit = court_credit_wei(&world, signer(OPERATOR).address());
    assert_eq!(U256::from(credit), U256::ZERO);
    world.stop();
}
