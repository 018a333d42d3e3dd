//! Goal: a job means the same to transformers + PEFT as to our trainer, and
//! that runner keeps the contract of `specs/runner.md`.
//! Method: `runners/peft/run_job.py` as a subprocess, on the same tiny base and
//! data, from the same initial adapter; losses are compared step by step.
//!
//! Needs `OPENLEDGER_PEFT_PYTHON`, a Python with `runners/peft/requirements.txt`.
//! `cargo xtask test --nightly` runs it; it is no part of `cargo test`.
#![expect(
    clippy::unwrap_used,
    reason = "helpers of tests: a broken fixture should fail them"
)]

#[expect(dead_code, reason = "the other tests use the rest")]
#[path = "it/support.rs"]
mod support;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use arrow_array::{ArrayRef, RecordBatch, StringArray};
use ol_model::{Lora, Model};
use ol_runtime::SystemClock;
use ol_train::job::{
    JobManifest, JobSpec, LocalRunner, Method, MetricsFollower, MetricsLine, NoSources,
    ProgramRunner, RunEnd, RunError, RunFolder, Runner as _,
};

fn python() -> String {
    std::env::var("OPENLEDGER_PEFT_PYTHON")
        .expect("OPENLEDGER_PEFT_PYTHON names a Python with runners/peft/requirements.txt")
}

fn runners() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../runners/peft")
}

fn peft() -> ProgramRunner {
    let script = runners().join("run_job.py");
    ProgramRunner::new(python(), [script], Arc::new(SystemClock::new()))
}

fn spec(dir: &Path) -> JobSpec {
    let mut spec = support::setting(dir);
    spec.options.steps = 20;
    spec.options.evaluate_every = 5;
    spec.options.checkpoint_every = 4;
    // The same held-out examples for both.
    spec.evaluation.files.clone_from(&spec.data.files);
    spec.evaluation.generate = 0;
    spec
}

fn metrics(folder: &RunFolder) -> Vec<MetricsLine> {
    MetricsFollower::new(folder.metrics()).poll().unwrap()
}

fn manifest(folder: &RunFolder) -> JobManifest {
    let bytes = fs::read(folder.adapter().join(JobManifest::FILE)).unwrap();
    JobManifest::from_bytes(&bytes).unwrap()
}

#[track_caller]
fn close(ours: f64, theirs: f64, what: &str) {
    let error = (ours - theirs).abs() / ours.abs().max(1e-6);
    assert!(error < 1e-3, "{what}: ours {ours}, PEFT's {theirs}");
}

/// The same job by both, PEFT's stopped on the way; both walk the same path.
fn check(dir: &Path, spec: &JobSpec) {
    let clock = Arc::new(SystemClock::new());
    let ours = RunFolder::new(dir.join("ours"));
    let local = LocalRunner::new(2, Box::new(NoSources), clock);
    assert_eq!(local.run(spec, &ours, &|| false).unwrap(), RunEnd::Done);

    let theirs = RunFolder::new(dir.join("theirs"));
    let stop = || metrics(&theirs).len() >= 6;
    let log = || fs::read_to_string(theirs.log()).unwrap_or_default();
    match peft().run(spec, &theirs, &stop) {
        Ok(RunEnd::Stopped) => {
            assert_eq!(peft().run(spec, &theirs, &|| false).unwrap(), RunEnd::Done);
        }
        // A machine so fast that it was done before it was asked.
        Ok(RunEnd::Done) => {}
        Err(error) => panic!("{error}\n{}", log()),
    }

    let (a, b) = (metrics(&ours), metrics(&theirs));
    assert_eq!((a.len(), b.len()), (20, 20));
    for (a, b) in a.iter().zip(&b) {
        let step = a.step;
        assert_eq!((a.step, a.tokens, a.epoch), (b.step, b.tokens, b.epoch));
        close(
            a.learning_rate,
            b.learning_rate,
            &format!("rate of step {step}"),
        );
        close(a.loss, b.loss, &format!("loss of step {step}"));
        close(
            a.gradient_norm,
            b.gradient_norm,
            &format!("gradient of step {step}"),
        );
        if let (Some(a), Some(b)) = (a.held_out, b.held_out) {
            close(a, b, &format!("held-out loss of step {step}"));
        }
        assert_eq!(a.reward_accuracy, b.reward_accuracy, "step {step}");
        assert_eq!(a.reward_margin.is_some(), b.reward_margin.is_some());
        if let (Some(a), Some(b)) = (a.reward_margin, b.reward_margin) {
            close(a, b, &format!("reward margin of step {step}"));
        }
    }
    let (a, b) = (manifest(&ours), manifest(&theirs));
    close(a.held_out_before, b.held_out_before, "loss of the base");
    close(a.held_out_after, b.held_out_after, "loss with the adapter");
    assert_eq!(
        (a.job, a.data, a.options, a.tokens),
        (b.job, b.data, b.options, b.tokens)
    );
    assert!(b.runner.starts_with("peft "));

    let base = Model::load(spec.base.path.as_ref().unwrap()).unwrap();
    let (a, b) = (
        Lora::load(&ours.adapter(), base.config()).unwrap(),
        Lora::load(&theirs.adapter(), base.config()).unwrap(),
    );
    let pairs = || a.parameters().iter().zip(b.parameters());
    let distance: f64 = pairs().map(|(a, b)| f64::from(a - b).powi(2)).sum();
    let length: f64 = pairs().map(|(a, _)| f64::from(*a).powi(2)).sum();
    assert!(
        (distance / length).sqrt() < 0.01,
        "the adapters differ by {}",
        (distance / length).sqrt()
    );
}

#[test]
fn peft_walks_the_same_path_and_can_be_stopped() {
    let dir = tempfile::tempdir().unwrap();
    check(dir.path(), &spec(dir.path()));
}

#[test]
fn peft_learns_preferences_on_the_same_path() {
    let dir = tempfile::tempdir().unwrap();
    let mut spec = spec(dir.path());
    let pairs = dir.path().join("pairs.jsonl");
    let lines = (0..24).map(|i| {
        let row = serde_json::json!({
            "prompt": format!("which color is number {}?", i % 10),
            "chosen": format!("number {} is red", i % 10),
            "rejected": format!("number {} is blue", i % 7),
        });
        row.to_string() + "\n"
    });
    fs::write(&pairs, lines.collect::<String>()).unwrap();
    spec.method = Method::Dpo;
    spec.data.files = vec![pairs];
    spec.evaluation.files.clone_from(&spec.data.files);
    spec.options.dpo_label_smoothing = 0.1;
    check(dir.path(), &spec);
}

fn parquet_file(columns: [(&str, Vec<Option<String>>); 3]) -> Vec<u8> {
    let arrays = columns.map(|(name, values)| {
        let array: ArrayRef = Arc::new(StringArray::from(values));
        (name, array, true)
    });
    let batch = RecordBatch::try_from_iter_with_nullable(arrays).unwrap();
    let mut bytes = Vec::new();
    let mut writer =
        parquet::arrow::ArrowWriter::try_new(&mut bytes, batch.schema(), None).unwrap();
    writer.write(&batch).unwrap();
    writer.close().unwrap();
    bytes
}

#[test]
fn peft_reads_every_kind_of_file_and_example_as_we_do() {
    let dir = tempfile::tempdir().unwrap();
    let mut spec = spec(dir.path());
    let question = |i: usize| format!("which color is number {}?", i % 10);
    let answer = |i: usize| format!("number {} is red", i % 7);
    let five = || 0..5;
    let write = |name: &str, bytes: &[u8]| {
        let path = dir.path().join("data").join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, bytes).unwrap();
    };
    let chats = five().map(|i| {
        let row = serde_json::json!({
            "system": "colors",
            "conversations": [
                {"from": "human", "value": question(i)},
                {"from": "gpt", "value": answer(i)},
            ],
        });
        row.to_string() + "\n\n"
    });
    // One bad line may be passed over.
    write(
        "a.jsonl",
        format!("\u{feff}{}{{\n", chats.collect::<String>()).as_bytes(),
    );
    let list: Vec<_> = five()
        .map(|i| {
            serde_json::json!({
                "instruction": question(i), "input": "blue, red", "output": answer(i),
            })
        })
        .collect();
    let list = serde_json::json!({ "train": list });
    write("b.json", list.to_string().as_bytes());
    let table = five().map(|i| format!("\"{}\",\"{}\n{i}\"\n", question(i), answer(i)));
    let table = format!("prompt,completion\n{}", table.collect::<String>());
    write("c.csv", table.as_bytes());
    let table = five().map(|i| format!("{}\t{}\n", answer(i), question(i)));
    let table = format!("answer\tquestion\n{}", table.collect::<String>());
    write("d.tsv", table.as_bytes());
    let columns = [
        (
            "instruction",
            five().map(|i| Some(question(i))).collect::<Vec<_>>(),
        ),
        (
            "input",
            five()
                .map(|i| (i % 2 == 0).then(|| answer(i + 1)))
                .collect(),
        ),
        ("output", five().map(|i| Some(answer(i))).collect()),
    ];
    write("e.parquet", &parquet_file(columns));
    // Longer than the context: it is cut into pieces.
    let long: Vec<String> = (0..30).map(answer).collect();
    write("f.md", long.join("\n\n").as_bytes());

    spec.data.files = vec![dir.path().join("data")];
    spec.data.skip_bad = 1;
    spec.evaluation.files.clone_from(&spec.data.files);
    spec.evaluation.files[0].push("e.parquet");
    check(dir.path(), &spec);
}

#[test]
fn what_peft_cannot_do_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let mut spec = spec(dir.path());
    spec.options.optimizer = ol_train::Optimizer::AdamW8Bit;
    let folder = RunFolder::new(dir.path().join("run"));
    let error = peft().run(&spec, &folder, &|| false).unwrap_err();
    assert!(
        matches!(&error, RunError::Refused(_)) && error.to_string().contains("adamw only"),
        "{error}"
    );
}

#[test]
fn the_kubernetes_manifest_is_a_job_that_calls_the_runner() {
    let check = "
import sys, yaml
documents = [d for d in yaml.safe_load_all(open(sys.argv[1])) if d]
kinds = [d['kind'] for d in documents]
assert kinds == ['ConfigMap', 'Job'], kinds
job = documents[1]['spec']
pod = job['template']['spec']
assert pod['restartPolicy'] == 'Never' and pod['terminationGracePeriodSeconds'] >= 60
rules = job['podFailurePolicy']['rules']
assert rules[0] == {'action': 'FailJob', 'onExitCodes': {'operator': 'In', 'values': [2]}}, rules
container = pod['containers'][0]
assert container['command'][-3:] == ['/runner/run_job.py', '/job/job.json', '/run/job'], container
mounts = {m['mountPath'] for m in container['volumeMounts']}
assert {'/job', '/run/job', '/data'} <= mounts, mounts
assert {m['name'] for m in container['volumeMounts']} == {v['name'] for v in pod['volumes']}
import json
spec = json.loads(documents[0]['data']['job.json'])
assert spec['format'] == 'openledger-job/1'
print(json.dumps(spec))
";
    let output = Command::new(python())
        .args(["-c", check])
        .arg(runners().join("kubernetes.yaml"))
        .output()
        .unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{errors}");
    JobSpec::from_json(std::str::from_utf8(&output.stdout).unwrap()).unwrap();
}
