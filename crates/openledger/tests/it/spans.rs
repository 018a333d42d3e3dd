//! Goal: an index whose building is killed is whole after the next call, and
//! the same; text is found with those who wrote it.
//! Method: the real command, killed by the system in the middle of its work,
//! when it says that a file is finished.

use std::fmt::Write as _;
use std::fs;
use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::Stdio;

use serde_json::Value;

use crate::harness::{openledger, refused, run_json};

const N_RECORDS: usize = 3_000;

/// What record `n` answers: words that no other record has in this order.
fn answer(n: usize) -> String {
    (0..60)
        .map(|i| format!("w{} ", (n * 7_919 + i * i * 31 + n * i) % 4_001))
        .collect()
}

/// Records of eleven contributors, 3,000 of 60 words.
fn add_records(dir: &Path, file: &Path) {
    let mut lines = String::new();
    for n in 0..N_RECORDS {
        let (answer, who) = (answer(n), n % 11);
        writeln!(
            lines,
            r#"{{"question":"question {n}?","answer":"{answer}","contributor":"writer-{who}","license":"CC0-1.0"}}"#
        )
        .unwrap();
    }
    fs::write(file, lines).unwrap();
    run_json(dir, &["datanet", "create", "words"]);
    let added = run_json(dir, &["datanet", "add", "words", file.to_str().unwrap()]);
    assert_eq!(added["accepted"], N_RECORDS);
}

const BUILD: [&str; 6] = ["datanet", "spans", "build", "words", "--memory-mib", "1"];

/// Files of finished shards.
fn shards(dir: &Path) -> usize {
    let files = fs::read_dir(dir.join("spans")).unwrap();
    let names = files.map(|file| file.unwrap().path());
    names
        .filter(|path| path.extension().is_some_and(|e| e == "shard"))
        .count()
}

fn query(dir: &Path, text: &str) -> Value {
    run_json(dir, &["datanet", "spans", "query", "words", text])
}

#[test]
fn a_build_that_is_killed_goes_on_and_gives_the_same_index() {
    let folder = tempfile::tempdir().unwrap();
    let (dir, other) = (folder.path().join("data"), folder.path().join("other"));
    let file = folder.path().join("records.jsonl");
    add_records(&dir, &file);
    refused(
        &dir,
        &["datanet", "spans", "query", "words", "any text"],
        "spans build",
    );

    let mut build = openledger(&dir, &BUILD)
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let lines = BufReader::new(build.stderr.take().unwrap()).lines();
    let mut lines = lines.map(Result::unwrap);
    let first = lines.find(|line| line.contains("file 1 written"));
    build.kill().unwrap();
    assert!(
        !build.wait().unwrap().success(),
        "it ended before it was killed: {first:?}"
    );
    assert!(shards(&dir) >= 1, "what was finished is there");
    refused(
        &dir,
        &["datanet", "spans", "query", "words", "any text"],
        "spans build",
    );

    let went_on = openledger(&dir, &BUILD).arg("--json").output().unwrap();
    assert!(went_on.status.success());
    let resumed: Value = serde_json::from_slice(&went_on.stdout).unwrap();
    assert!(resumed["n_shards"].as_u64().unwrap() > 1, "{resumed}");
    // The finished file's records were not read again: the first line of this
    // run has more than a file's worth.
    let log = String::from_utf8(went_on.stderr).unwrap();
    let records = |line: &str| -> usize {
        let words = line.split_once(": ").unwrap().1;
        words.split(' ').next().unwrap().parse().unwrap()
    };
    let line = log
        .lines()
        .find(|line| line.contains("file 1 written"))
        .unwrap();
    let before = first.unwrap();
    assert!(records(line) > records(&before), "{before} then {line}");

    // Without interruption, in one file: the same index.
    add_records(&other, &file);
    let whole = run_json(&other, &["datanet", "spans", "build", "words"]);
    assert_eq!(
        (&whole["id"], &whole["n_shards"]),
        (&resumed["id"], &serde_json::json!(1))
    );
    for dir in [&dir, &other] {
        let verified = run_json(dir, &["datanet", "spans", "verify", "words"]);
        assert_eq!(verified["verdict"], "match");
    }
    for n in [0, 1_234, N_RECORDS - 1] {
        let text = format!("Nobody said this. {} Nor this.", answer(n).trim());
        let found = query(&dir, &text);
        assert_eq!(found, query(&other, &text));
        let who = format!("writer-{}", n % 11);
        let holders = found["found"][0]["holders"].as_array().unwrap();
        assert!(
            holders.iter().any(|holder| holder["contributor"] == who),
            "{found}"
        );
    }
    assert_eq!(
        query(&dir, "nothing of this")["found"],
        serde_json::json!([])
    );
}
