//! Goal: each way a program can end becomes the right result. Method: small
//! shell scripts as runners.

use ol_runtime::SystemClock;

use super::super::spec::{BaseSource, DataSource};
use super::*;

/// Runs a script; `$1` is the specification, `$2` the folder.
fn run(script: &str, stop: Stop<'_>) -> (Result<RunEnd, RunError>, String) {
    let dir = tempfile::tempdir().unwrap();
    let folder = RunFolder::new(dir.path().join("run"));
    let spec = JobSpec::new("a", BaseSource::default(), DataSource::default());
    let clock = Arc::new(SystemClock::new());
    let runner = ProgramRunner::new("sh", ["-c", script, "runner"], clock).with_grace_s(0.2);
    let result = runner.run(&spec, &folder, stop);
    let written = fs::read_to_string(folder.root().join("spec.json")).unwrap();
    assert_eq!(JobSpec::from_json(&written).unwrap(), spec);
    (result, fs::read_to_string(folder.log()).unwrap())
}

fn said(result: Result<RunEnd, RunError>) -> String {
    result.unwrap_err().to_string()
}

#[test]
fn exit_codes_mean_what_the_contract_says() {
    let never = || false;
    let (result, log) = run("echo out; echo err >&2; exit 75", &never);
    assert_eq!(result.unwrap(), RunEnd::Stopped);
    assert_eq!(log, "out\nerr\n");
    assert!(said(run("exit 0", &never).0).contains("left no adapter"));
    assert!(said(run("exit 3", &never).0).contains("exit status: 3"));
    assert_eq!(run("exit 75", &never).0.unwrap(), RunEnd::Stopped);
    assert!(matches!(
        run("exit 2", &never).0.unwrap_err(),
        RunError::Refused(_)
    ));
    let state =
        r#"{"format":"openledger-run/1","message":"no disk","phase":"failed","step":1,"steps":2}"#;
    let script = format!("echo '{state}' > $2/state.json; exit 1");
    assert_eq!(said(run(&script, &never).0), "no disk");
}

#[test]
fn a_result_is_accepted_only_if_it_is_that_of_the_job() {
    let manifest = JobManifest {
        adapter: None,
        base: None,
        base_name: "tiny".to_owned(),
        data: Vec::new(),
        // Of an empty file.
        files: ADAPTER_FILES
            .map(|name| {
                let empty = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
                (name.to_owned(), empty.to_owned())
            })
            .into(),
        format: JobManifest::FORMAT.to_owned(),
        held_out_after: 1.0,
        held_out_before: 2.0,
        job: None,
        lora: super::super::spec::LoraSpec::default(),
        method: super::super::spec::Method::Lora,
        n_held_out: 1,
        n_trained: 2,
        options: crate::TrainOptions::default(),
        prompt_weight: 0.0,
        runner: "test".to_owned(),
        steps: 1,
        tokens: 2,
    };
    let check = |manifest: &JobManifest, more: &str| {
        let text = String::from_utf8(manifest.to_bytes()).unwrap();
        let files = ADAPTER_FILES
            .map(|name| format!("$2/adapter/{name}"))
            .join(" ");
        let script = format!(
            "mkdir $2/adapter; touch {files}; echo '{text}' > $2/adapter/training.json; {more}"
        );
        run(&script, &|| false).0
    };
    assert_eq!(check(&manifest, "true").unwrap(), RunEnd::Done);
    let changed = "echo 1 > $2/adapter/adapter_config.json";
    assert!(said(check(&manifest, changed)).contains("adapter_config.json is not the file"));
    let lost = "rm $2/adapter/adapter_model.safetensors";
    assert!(said(check(&manifest, lost)).contains("left no adapter_model"));
    let mut of_another = manifest;
    of_another.job = Some("0x00".to_owned());
    assert!(said(check(&of_another, "true")).contains("of another job"));
    of_another.format = "openledger-training/9".to_owned();
    assert!(said(check(&of_another, "true")).contains("is wrong"));
}

#[test]
fn a_program_is_asked_to_stop_and_then_made_to() {
    let always = || true;
    let polite = "trap 'exit 75' TERM; touch $2/ready; while :; do sleep 0.01; done";
    assert_eq!(run(polite, &always).0.unwrap(), RunEnd::Stopped);
    let deaf = "trap '' TERM; while :; do sleep 0.01; done";
    assert_eq!(run(deaf, &always).0.unwrap(), RunEnd::Stopped);
}

#[test]
fn a_program_that_does_not_exist_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let runner = ProgramRunner::new("/no/such/runner", [""; 0], Arc::new(SystemClock::new()));
    let spec = JobSpec::new("a", BaseSource::default(), DataSource::default());
    let result = runner.run(&spec, &RunFolder::new(dir.path()), &|| false);
    assert!(said(result).contains("/no/such/runner"));
}
