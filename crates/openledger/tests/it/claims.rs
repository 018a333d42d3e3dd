//! Goal: a model of the optimistic tier is trained, served and paid like any
//! other, to the same wei; a liar loses its bond to whoever watches.
//! Method: one model twice, once in each tier, asked the same question; the
//! chain's clock set forward over the window; a claim of the operator's own key
//! that the gateway did not make.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use alloy_primitives::hex;
use alloy_sol_types::SolCall;
use ol_contracts::address::{ATTRIBUTION_COURT, INFERENCE_SETTLEMENT};
use ol_contracts::bindings::{AttributionCourt, InferenceSettlement};
use ol_contracts::court::posted_call;
use ol_poa::court::{Claim, CommittedIndex};
use ol_poa::{DEFAULT_SPLIT_BPS, Evidence, Index, QuerySketch, split_fee};
use ol_runtime::DataDir;
use ol_types::{
    Address, B256, DEV_CHAIN_ID, DEV_MNEMONIC_KEYS, Receipt, WEI_PER_OPEN, keccak256, name_id,
};
use serde_json::{Value, json};

use crate::harness::{Up, refused, run_json, wei};
use crate::own_data::records;
use crate::watch::{OPERATOR, PAYER, WATCHER, send_by, signer, watch};

const WINDOW_S: u64 = 12 * 3_600;
const QUESTION: &str = "Which law governs the agreement?";

fn paid_by(payment: &Value) -> Vec<(Address, u128)> {
    let shares = payment["pots"]["training"]["contributors"]
        .as_array()
        .unwrap();
    let share = |share: &Value| {
        let address = share["address"].as_str().unwrap().parse().unwrap();
        (address, wei(&share["paid_wei"]))
    };
    shares.iter().map(share).collect()
}

fn receipt(dir: &Path, id: &str) -> Value {
    run_json(dir, &["receipt", "show", id])
}

fn pass_window(up: &Up) {
    up.rpc("evm_increaseTime", json!([WINDOW_S]));
}

fn wait_for_status(dir: &Path, id: &str, status: &str) {
    while receipt(dir, id)["status"] != status {
        std::thread::yield_now();
    }
}

fn copy_folder(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let path = entry.unwrap().path();
        let to = to.join(path.file_name().unwrap());
        if path.is_dir() {
            copy_folder(&path, &to);
        } else {
            fs::copy(&path, to).unwrap();
        }
    }
}

/// Makes a copy of the model of the other tier.
fn copy_as_exact(dir: &Path) {
    let to = dir.join("models/exact");
    copy_folder(&dir.join("models/claimed"), &to);
    let index = Index::from_bytes(fs::read(to.join("sketches.bin")).unwrap()).unwrap();
    let path = to.join("model.json");
    let mut model: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    assert_eq!(model["tier"], "optimistic");
    let committed = CommittedIndex::new(index.clone()).unwrap();
    assert_eq!(model["sketch_root"], json!(committed.id()));
    model["name"] = json!("exact");
    model["tier"] = json!("exact");
    model["sketch_root"] = json!(index.root());
    fs::write(&path, model.to_string()).unwrap();
}

/// Claims for the operator what is not so: the first score is one too high, the
/// second one too low. Nobody is paid less by it, yet it is a lie.
fn lie(dir: &Path, up: &Up, answer: &Value) -> B256 {
    let rpc = |method: &str, params: Value| up.rpc(method, params);
    let view = |field: &str| -> B256 { answer[field].as_str().unwrap().parse().unwrap() };
    let index = fs::read(dir.join("models/claimed/sketches.bin")).unwrap();
    let index = CommittedIndex::from_bytes(index).unwrap();
    let codes = hex::decode(answer["query_sketch"].as_str().unwrap()).unwrap();
    let query = QuerySketch::from_bytes(&codes).unwrap();
    let quote = InferenceSettlement::quoteCall {
        modelId: name_id("claimed"),
        tokensIn: 10,
        tokensOut: 10,
    };
    let quote = json!([{"to": INFERENCE_SETTLEMENT, "data": hex::encode_prefixed(quote.abi_encode())}, "latest"]);
    let fee = rpc("eth_call", quote);
    let fee_wei = u128::from_str_radix(&fee.as_str().unwrap()[34..], 16).unwrap();
    let receipt = Receipt {
        chain_id: DEV_CHAIN_ID,
        settlement: INFERENCE_SETTLEMENT,
        payer: signer(PAYER).address(),
        request_id: keccak256("a request of nobody"),
        model_id: name_id("claimed"),
        base_hash: view("base_hash"),
        adapter_hash: view("adapter_hash"),
        manifest_hash: view("manifest_hash"),
        sketch_root: index.id(),
        prompt_hash: keccak256("prompt"),
        response_hash: keccak256("response"),
        query_hash: query.hash(),
        evidence_hash: Evidence::default().hash(),
        tokens_in: 10,
        tokens_out: 10,
        fee_wei,
        answered_at_s: 1,
    };
    let [.., pot] = split_fee(fee_wei, DEFAULT_SPLIT_BPS).unwrap();
    let null_threshold = answer["null_threshold"].as_str().unwrap().parse().unwrap();
    let honest = Claim::compute(&index, &query, null_threshold, pot);
    let mut numbers = honest.to_bytes(&index);
    for (at, change) in [(0, 1), (1, -1)] {
        let score = honest.scores.node(0, at).unwrap().value + change;
        let at = at as usize * 8;
        numbers[at..at + 8].copy_from_slice(&score.to_be_bytes());
    }
    let lying = Claim::from_bytes(&index, null_threshold, honest.cutoff, &numbers).unwrap();
    let objects = DataDir::open_or_create(dir).unwrap().objects().unwrap();
    let put = |bytes: Vec<u8>| objects.put(bytes).unwrap();
    put(receipt.encode().to_vec());
    put(codes.clone());
    put(Evidence::default().to_bytes());
    let call = AttributionCourt::claimCall {
        receipt: (&receipt).into(),
        query: codes.into(),
        posted: posted_call(&lying.posted()),
        version: 1,
        data: put(numbers),
    };
    send_by(&rpc, OPERATOR, ATTRIBUTION_COURT, 0, &call);
    receipt.id()
}

#[test]
fn a_model_of_the_optimistic_tier_pays_to_the_wei_and_a_liar_is_slashed() {
    let folder = tempfile::tempdir().unwrap();
    let dir = folder.path().join("data");
    let file = folder.path().join("records.jsonl");
    fs::write(&file, records()).unwrap();
    run_json(&dir, &["datanet", "create", "clauses"]);
    let file = file.to_str().unwrap();
    run_json(&dir, &["datanet", "add", "clauses", file]);
    let train = ["train", "--datanet", "clauses", "--name", "claimed"];
    let train = [&train[..], &["--epochs", "1", "--tier", "optimistic"]].concat();
    let with_pots = [&train[..], &["--pots", "60,20,20"]].concat();
    refused(&dir, &with_pots, "pays by training alone");
    refused(
        &dir,
        &["train", "--data", file, "--tier", "exact"],
        "payable model",
    );
    run_json(&dir, &train);
    copy_as_exact(&dir);

    // The same answer in both tiers.
    let up = Up::start(&dir);
    let claimed = up.ask("claimed", QUESTION)["openledger"].clone();
    let settled = up.ask("exact", QUESTION)["openledger"].clone();
    assert_eq!(claimed["status"], "claimed", "{claimed}");
    assert_eq!(settled["status"], "settled", "{settled}");
    assert_eq!(claimed["fee_wei"], settled["fee_wei"]);
    assert_eq!(claimed["split"], settled["split"]);
    assert_eq!(claimed["treasury_wei"], settled["treasury_wei"]);
    assert!(!paid_by(&claimed).is_empty(), "{claimed}");
    assert_eq!(paid_by(&claimed), paid_by(&settled));

    // Anybody can check it, and a watcher does.
    let id = claimed["receipt_id"].as_str().unwrap();
    let verified = run_json(&dir, &["receipt", "verify", id, "--question", QUESTION]);
    assert_eq!(verified["verdict"], "match", "{verified}");
    assert_eq!(verified["claim"]["status"], "claimed", "{verified}");
    let (lines, code) = watch(&dir, &[]);
    assert_eq!(code, Some(0), "{lines:?}");
    let found = lines.iter().find(|line| line["claim"] == id);
    assert_eq!(found.unwrap()["verdict"], "right");

    // Somebody with the operator's key claims something else, and pays for it.
    let shown = receipt(&dir, id);
    let lie = lie(&dir, &up, &shown).to_string();
    refused(
        &dir,
        &["receipt", "verify", &lie],
        "does not match: scores: root",
    );
    let key = folder.path().join("key");
    fs::write(&key, DEV_MNEMONIC_KEYS[WATCHER]).unwrap();
    fs::set_permissions(&key, fs::Permissions::from_mode(0o600)).unwrap();
    let (lines, code) = watch(&dir, &["--key", key.to_str().unwrap()]);
    assert_eq!(code, Some(3), "{lines:?}");
    assert_eq!(receipt(&dir, &lie)["status"], "slashed");

    // The bond of the honest claim is held, that of the lie is lost.
    let bond = run_json(&dir, &["bond"]);
    assert_eq!(bond["n_open_claims"], 1, "{bond}");
    let held_wei = wei(&claimed["fee_wei"]) + WEI_PER_OPEN / 10;
    assert_eq!(wei(&bond["held_wei"]), held_wei, "{bond}");
    refused(&dir, &["bond", "--take", "1000000"], "were asked for");
    refused(&dir, &["bond", "--take", "1e3"], "no amount of OPEN");

    // Before the window is over nobody is paid, afterwards whoever was claimed to be.
    let (contributor, share_wei) = paid_by(&claimed)[0];
    let contributor = contributor.to_string();
    let first = run_json(&dir, &["earnings", "claim", &contributor]);
    assert_eq!(
        wei(&first["claimed_wei"]),
        share_wei,
        "of the exact tier alone"
    );
    refused(
        &dir,
        &["earnings", "claim", &contributor],
        "nothing to claim",
    );
    // A crash does not lose the claim.
    up.kill();
    let up = Up::start(&dir);
    pass_window(&up);
    wait_for_status(&dir, id, "final");
    let bond = run_json(&dir, &["bond"]);
    assert_eq!(bond["n_open_claims"], 0, "{bond}");
    let free_wei = wei(&bond["free_wei"]);
    assert!(free_wei >= held_wei, "{bond}");
    let bond = run_json(&dir, &["bond", "--take", "all"]);
    assert_eq!(wei(&bond["taken_wei"]), free_wei);
    assert_eq!(wei(&bond["free_wei"]), 0);
    let again = up.ask("claimed", QUESTION)["openledger"].clone();
    assert_eq!(
        again["status"], "claimed",
        "the gateway bonds again: {again}"
    );
    let listed = run_json(&dir, &["earnings", "list", "clauses"]);
    let row = |row: &&Value| {
        row["address"]
            .as_str()
            .unwrap()
            .eq_ignore_ascii_case(&contributor)
    };
    let row = listed.as_array().unwrap().iter().find(row).unwrap();
    assert_eq!(wei(&row["credit_wei"]), share_wei);
    let second = run_json(&dir, &["earnings", "claim", &contributor]);
    assert_eq!(wei(&second["claimed_wei"]), share_wei);
    assert_eq!(wei(&second["balance_wei"]), 2 * share_wei);
    let verified = run_json(&dir, &["receipt", "verify", id]);
    assert_eq!(verified["claim"]["status"], "final");
    up.stop();
    // Also without an instance.
    assert_eq!(receipt(&dir, id)["status"], "final");
}
