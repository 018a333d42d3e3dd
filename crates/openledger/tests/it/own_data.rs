//! Goal: a user's own records become a datanet, a model and payments, by the
//! command line alone. Method: forty records of the demo under a new name.

use std::fs;
use std::io::Read;

use serde_json::{Value, json};

use crate::harness::{Up, refused, run_json, wei};

/// The first records of the demo's legal datanet, as a file of a user's.
pub(crate) fn records() -> String {
    let packed = include_bytes!("../../../../assets/datanets/legal.jsonl.xz");
    let mut text = String::new();
    xz2::read::XzDecoder::new(packed.as_slice())
        .read_to_string(&mut text)
        .unwrap();
    text.lines()
        .take(40)
        .map(|line| format!("{line}\n"))
        .collect()
}

#[test]
fn a_users_own_datanet_becomes_a_model_that_pays() {
    let folder = tempfile::tempdir().unwrap();
    let dir = folder.path().join("data");
    let file = folder.path().join("records.jsonl");
    fs::write(&file, records() + "{\"question\":\"no answer\"}\n").unwrap();
    let file = file.to_str().unwrap();

    refused(&dir, &["datanet", "add", "clauses", file], "no datanet");
    run_json(&dir, &["datanet", "create", "clauses"]);
    refused(&dir, &["datanet", "create", "clauses"], "clauses");
    refused(&dir, &["datanet", "create", "Not A Name"], "Not A Name");
    refused(&dir, &["train", "--datanet", "clauses"], "has no records");
    let added = run_json(&dir, &["datanet", "add", "clauses", file]);
    assert_eq!(added["accepted"], 40);
    assert_eq!(added["rejected"][0]["line"], 41);
    let again = run_json(&dir, &["datanet", "add", "clauses", file]);
    assert!(
        again["version"].is_null(),
        "nothing new makes no version: {again}"
    );

    refused(
        &dir,
        &["train", "--data", file, "--pots", "80,20,0"],
        "payable model",
    );
    refused(
        &dir,
        &["train", "--data", file, "--checkpoints", "2"],
        "payable model",
    );
    let trained = run_json(
        &dir,
        &[
            "train",
            "--datanet",
            "clauses",
            "--epochs",
            "3",
            "--pots",
            "75,25,0",
            "--checkpoints",
            "2",
            "--gradients-at",
            "each",
        ],
    );
    let (before, after) = (&trained["held_out_before"], &trained["held_out_after"]);
    assert!(
        after.as_f64().unwrap() < before.as_f64().unwrap(),
        "{trained}"
    );

    let up = Up::start(&dir);
    let shown = run_json(&dir, &["datanet", "show", "clauses"]);
    let contributors: Vec<&str> = shown["contributors"]
        .as_array()
        .unwrap()
        .iter()
        .map(|c| c["contributor"].as_str().unwrap())
        .collect();
    let reply = up.ask(
        "clauses",
        "Does the clause limit what may be done with confidential information?",
    );
    let pots = &reply["openledger"]["pots"];
    let spans_wei = wei(&pots["spans"]["paid_wei"]);
    let part_wei = wei(&reply["openledger"]["split"]["contributors"]);
    let weights = pots["spans"]["contributors"].as_array().unwrap().iter();
    let weight: u128 = weights.map(|share| wei(&share["weight"])).sum();
    let total = wei(&pots["spans"]["total_weight"]).max(1);
    assert!(
        spans_wei.abs_diff(part_wei / 4 * weight / total) <= 1,
        "what is quoted of the answer is paid of a quarter: {pots}"
    );
    let share = &reply["openledger"]["pots"]["training"]["contributors"][0];
    assert!(
        contributors.contains(&share["contributor"].as_str().unwrap()),
        "{reply}"
    );
    let id = reply["openledger"]["receipt_id"].as_str().unwrap();
    assert_eq!(
        run_json(&dir, &["receipt", "verify", id])["verdict"],
        "match"
    );

    // What was credited can be claimed, once.
    let contributor = share["contributor"].as_str().unwrap();
    let claimed = run_json(&dir, &["earnings", "claim", contributor]);
    let earned: u128 = ["training", "spans", "context"]
        .iter()
        .flat_map(|pot| {
            reply["openledger"]["pots"][pot]["contributors"]
                .as_array()
                .unwrap()
        })
        .filter(|other| other["address"] == share["address"])
        .map(|share| wei(&share["paid_wei"]))
        .sum();
    assert_eq!(wei(&claimed["claimed_wei"]), earned);
    assert_eq!(claimed["balance_wei"], claimed["claimed_wei"]);
    refused(
        &dir,
        &["earnings", "claim", contributor],
        "nothing to claim",
    );
    refused(&dir, &["train", "--datanet", "clauses"], "in use");
    up.stop();

    // Without its checkpoint, or with another, the model is refused by its name.
    let manifest = fs::read(dir.join("models/clauses/manifest.json")).unwrap();
    let manifest: Value = serde_json::from_slice(&manifest).unwrap();
    let checkpoints = manifest["checkpoints"].as_array().unwrap();
    assert_eq!(checkpoints.len(), 1);
    let segment = dir.join("models/clauses/segments/1/adapter_model.safetensors");
    let good = fs::read(&segment).unwrap();
    let result = dir.join("models/clauses/adapter_model.safetensors");
    fs::copy(result, &segment).unwrap();
    refused(
        &dir,
        &["self-query", "--model", "clauses"],
        checkpoints[0].as_str().unwrap(),
    );
    fs::remove_file(&segment).unwrap();
    refused(
        &dir,
        &["self-query", "--model", "clauses"],
        checkpoints[0].as_str().unwrap(),
    );
    fs::write(&segment, good).unwrap();

    // The same model, paid otherwise from now on: what was settled stays right.
    let path = dir.join("models/clauses/model.json");
    let mut model: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    assert_eq!(model["pots_bps"], json!([7_500, 2_500, 0]));
    // Calibrated on placebos, and what the chain has.
    assert!(model["null_threshold"].as_u64().unwrap() > 0);
    model["pots_bps"] = json!([9_000, 500, 500]);
    fs::write(&path, model.to_string()).unwrap();
    let up = Up::start(&dir);
    let reply = up.ask("clauses", "Which law governs the agreement?");
    for id in [id, reply["openledger"]["receipt_id"].as_str().unwrap()] {
        assert_eq!(
            run_json(&dir, &["receipt", "verify", id])["verdict"],
            "match"
        );
    }
    up.stop();
}
