//! Goal: a job trains, writes all that belongs to its adapter, and can be
//! stopped anywhere without another result. The crash tests with whole
//! processes are in `tests/it`.

use std::sync::atomic::{AtomicU32, Ordering};

use ol_model::{Lora, Model};
use ol_runtime::ManualClock;

use super::super::manifest::sha256_of;
use super::super::metrics::MetricsFollower;
use super::*;

#[path = "../../../tests/it/support.rs"]
mod support;

use support::result;

/// A base and forty examples on disk, and a shorter job on them than the
/// integration tests have.
fn setting(dir: &Path) -> JobSpec {
    let mut spec = support::setting(dir);
    spec.options.batch_tokens = 200;
    spec.options.steps = 12;
    spec.options.warmup_steps = 2;
    spec.options.evaluate_every = 4;
    spec.options.checkpoint_every = 3;
    spec
}

fn runner() -> LocalRunner {
    LocalRunner::new(2, Box::new(NoSources), Arc::new(ManualClock::new(7)))
}

#[test]
fn a_job_leaves_an_adapter_with_manifest_report_and_measurements() {
    let dir = tempfile::tempdir().unwrap();
    let spec = setting(dir.path());
    let folder = RunFolder::new(dir.path().join("run"));
    assert_eq!(
        runner().run(&spec, &folder, &|| false).unwrap(),
        RunEnd::Done
    );
    let manifest = fs::read(folder.adapter().join(JobManifest::FILE)).unwrap();
    let manifest = JobManifest::from_bytes(&manifest).unwrap();
    assert_eq!(manifest.job, Some(spec.hash().to_string()));
    assert!(manifest.held_out_after < manifest.held_out_before);
    assert_eq!(manifest.data[0].n_examples, 40);
    assert_eq!(manifest.n_trained + manifest.n_held_out, 40);
    assert!(manifest.n_held_out > 0);
    let weights = folder.adapter().join("adapter_model.safetensors");
    assert_eq!(
        manifest.files["adapter_model.safetensors"],
        sha256_of(&weights).unwrap()
    );
    let lines = MetricsFollower::new(folder.metrics()).poll().unwrap();
    assert_eq!(
        lines.iter().map(|l| l.step).collect::<Vec<_>>(),
        (1..=12).collect::<Vec<_>>()
    );
    assert_eq!(lines.iter().filter(|l| l.held_out.is_some()).count(), 3);
    assert_eq!(folder.read_state().unwrap().phase, RunPhase::Done);
    assert!(!folder.checkpoint().exists() && !folder.partial().exists());
    let report = fs::read_to_string(folder.adapter().join("report.md")).unwrap();
    assert!(report.contains("| perplexity |"), "{report}");
    // Run again, it is found done; another job does not take its folder.
    assert_eq!(
        runner().run(&spec, &folder, &|| true).unwrap(),
        RunEnd::Done
    );
    let mut other = spec;
    other.options.seed = 9;
    assert!(matches!(
        runner().run(&other, &folder, &|| false).unwrap_err(),
        RunError::Refused(_)
    ));
}

#[test]
fn a_run_stopped_at_any_step_goes_on_to_the_same_bytes() {
    let dir = tempfile::tempdir().unwrap();
    let spec = setting(dir.path());
    let whole = RunFolder::new(dir.path().join("whole"));
    runner().run(&spec, &whole, &|| false).unwrap();
    for stop_at in [0, 1, 4, 7, 11] {
        let folder = RunFolder::new(dir.path().join(format!("stopped-{stop_at}")));
        let asked = AtomicU32::new(0);
        let stop = || asked.fetch_add(1, Ordering::Relaxed) >= stop_at;
        assert_eq!(
            runner().run(&spec, &folder, &stop).unwrap(),
            RunEnd::Stopped
        );
        let state = folder.read_state().unwrap();
        assert_eq!((state.phase, state.step), (RunPhase::Stopped, stop_at));
        assert!(!folder.adapter().exists());
        assert_eq!(
            runner().run(&spec, &folder, &|| false).unwrap(),
            RunEnd::Done
        );
        assert_eq!(result(&folder), result(&whole), "stopped at {stop_at}");
        let lines = MetricsFollower::new(folder.metrics()).poll().unwrap();
        assert_eq!(lines.len(), 12);
    }
}

#[test]
fn a_plan_counts_without_training() {
    let dir = tempfile::tempdir().unwrap();
    let mut spec = setting(dir.path());
    spec.options.epochs = Some(2.0);
    let plan = runner().plan(&spec).unwrap();
    assert_eq!(plan.n_examples + plan.n_held_out, 40);
    assert!(plan.memory.total_bytes() > 0 && plan.advice.is_none());
    let steps = (plan.tokens_per_epoch * 2).div_ceil(200);
    assert_eq!(u64::from(plan.steps), steps);
    let adapter = Lora::init(
        Model::load(&dir.path().join("base")).unwrap().config(),
        ol_model::LoraConfig::all_linear(4),
        0,
    );
    assert_eq!(
        plan.trainable_parameters,
        adapter.unwrap().n_params() as u64
    );
    assert!(!dir.path().join("run").exists());
}

#[test]
fn what_is_wrong_with_the_data_is_said_with_its_place() {
    let dir = tempfile::tempdir().unwrap();
    let spec = setting(dir.path());
    let folder = RunFolder::new(dir.path().join("run"));
    let check = |text: &str, expected: &str| {
        fs::write(dir.path().join("data.jsonl"), text).unwrap();
        let error = runner()
            .run(&spec, &folder, &|| false)
            .unwrap_err()
            .to_string();
        assert!(error.contains(expected), "{error:?} lacks {expected:?}");
        let state = folder.read_state().unwrap();
        assert_eq!((state.phase, state.message), (RunPhase::Failed, error));
    };
    check("", "too few examples: 0");
    check("{\"question\":\"q\",\"answer\":\"a\"}\n{\n", "line 2");
    check("{\"question\":\"q\"}\n", "line 1");
}
