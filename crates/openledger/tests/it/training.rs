//! Goal: the commands of `docs/train.md` work, on the shipped base. Method: the
//! binary in a folder of its own, with examples of the demo's legal records.

use std::fs;
use std::io::Read;
use std::path::Path;

use serde_json::Value;

use crate::harness::{openledger, refused, run, run_json};

/// Questions with short answers, as JSONL.
fn examples(file: &Path) {
    let packed = include_bytes!("../../../../assets/datanets/legal.jsonl.xz");
    let mut text = String::new();
    xz2::read::XzDecoder::new(packed.as_slice())
        .read_to_string(&mut text)
        .unwrap();
    let rows = text.lines().filter_map(|line| {
        let row: Value = serde_json::from_str(line).unwrap();
        let short = row["question"].as_str().unwrap().len() < 400;
        short.then(|| {
            let row = serde_json::json!({"question": row["question"], "answer": row["answer"]});
            row.to_string() + "\n"
        })
    });
    fs::write(file, rows.take(40).collect::<String>()).unwrap();
}

#[test]
fn a_job_is_looked_at_trained_shown_merged_and_stopped() {
    let folder = tempfile::tempdir().unwrap();
    let dir = folder.path().join("data");
    let data = folder.path().join("legal.jsonl");
    examples(&data);
    let data = data.to_str().unwrap();
    let out = folder.path().join("my-adapter");
    let flags = [
        "--data",
        data,
        "--rank",
        "4",
        "--set",
        "evaluation.generate=2",
    ];
    let train = |more: &[&str]| {
        let args: Vec<&str> = ["train"]
            .iter()
            .chain(&flags)
            .chain(more)
            .copied()
            .collect();
        run_json(&dir, &args)
    };

    // What would be done, and what is wrong.
    let plan = train(&["--epochs", "1", "--dry-run"]);
    let count = |name: &str| plan[name].as_u64().unwrap();
    assert_eq!(count("n_examples") + count("n_held_out"), 40);
    assert!(
        count("trainable_parameters") > 10_000 && plan["advice"].is_null(),
        "{plan}"
    );
    refused(&dir, &["train"], "there is nothing to learn from");
    refused(
        &dir,
        &["train", "--data", "nowhere.jsonl"],
        "there is no file",
    );
    refused(
        &dir,
        &["train", "--data", data, "--set", "lora.rnk=3"],
        "did you mean `rank`?",
    );
    refused(&dir, &["train", "show", "7"], "there is no job 7");

    // From flags to a file, from the file to an adapter.
    let spec = folder.path().join("job.toml");
    let args = [&["train"], &flags[..], &["--steps", "6", "--print-spec"]].concat();
    let printed = openledger(&dir, &args).output().unwrap();
    assert!(printed.status.success(), "{printed:?}");
    fs::write(&spec, &printed.stdout).unwrap();
    let spec = spec.to_str().unwrap();
    let args = [
        "train",
        "--spec",
        spec,
        "--out",
        out.to_str().unwrap(),
        "--json",
    ];
    let trained = openledger(&dir, &args).output().unwrap();
    assert!(trained.status.success(), "{trained:?}");
    let lines = String::from_utf8(trained.stdout).unwrap();
    let lines: Vec<Value> = lines
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    assert_eq!(lines.len(), 7, "six steps and the result");
    assert_eq!(lines[5]["step"], 6);
    let result = &lines[6];
    assert_eq!(
        (&result["state"], &result["job"]),
        (&"done".into(), &1.into())
    );
    assert_eq!(result["adapter"].as_str(), out.to_str());
    for name in [
        "adapter_config.json",
        "training.json",
        "report.md",
        "loss.svg",
    ] {
        assert!(out.join(name).is_file(), "{name} is missing");
    }
    let evaluation = &result["report"]["evaluation"];
    assert_eq!(evaluation["answers"].as_array().unwrap().len(), 2);

    // Looked into, merged, converted.
    let adapter = out.to_str().unwrap();
    let found = run_json(&dir, &["adapter", "inspect", adapter]);
    assert_eq!(found["rank"], 4);
    assert_eq!(found["manifest"]["steps"], 6);
    let base = dir.join("base");
    let merged = folder.path().join("merged");
    let merged = run_json(
        &dir,
        &[
            "adapter",
            "merge",
            base.to_str().unwrap(),
            adapter,
            merged.to_str().unwrap(),
        ],
    );
    assert_eq!(merged["modules"], found["n_modules"]);
    let half = folder.path().join("half");
    let half = [
        "adapter",
        "convert",
        adapter,
        half.to_str().unwrap(),
        "--dtype",
        "f16",
    ];
    assert_eq!(run_json(&dir, &half)["dtype"], "F16");

    // A queue: submitted, cancelled, resumed, worked off.
    let queued = train(&["--steps", "3", "--queue"]);
    assert_eq!(
        (&queued["state"], &queued["job"]),
        (&"queued".into(), &2.into())
    );
    assert_eq!(
        run_json(&dir, &["train", "cancel", "2"])["state"],
        "cancelled"
    );
    refused(&dir, &["train", "cancel", "2"], "cannot be cancelled");
    run_json(&dir, &["train", "resume", "2", "--queue"]);
    let worked = run(&dir, &["train", "work"]);
    assert!(worked.status.success(), "{worked:?}");
    let jobs = run_json(&dir, &["train", "jobs"]);
    let states: Vec<&str> = jobs
        .as_array()
        .unwrap()
        .iter()
        .map(|job| job["state"].as_str().unwrap())
        .collect();
    assert_eq!(states, ["done", "done"]);
    let shown = openledger(&dir, &["train", "show", "2"]).output().unwrap();
    let shown = String::from_utf8(shown.stdout).unwrap();
    assert!(
        shown.contains("held-out loss") && shown.contains('●'),
        "{shown}"
    );
}
