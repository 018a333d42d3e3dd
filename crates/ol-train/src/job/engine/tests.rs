//! Goal: the queue is durable, bounded and works in order, and no state is
//! lost whatever dies. Method: a runner made of a closure; other processes are
//! played by a second engine on the same folder.

use std::sync::Mutex;

use ol_runtime::ManualClock;

use super::super::manifest::JobManifest;
use super::super::runner::Stop;
use super::super::spec::{BaseSource, DataSource, SpecError};
use super::*;

type Run = dyn Fn(&JobSpec, &RunFolder, Stop<'_>) -> Result<RunEnd, RunError> + Send + Sync;

/// Runs a job as a closure says.
struct Closure(Box<Run>);

impl Runner for Closure {
    fn run(&self, spec: &JobSpec, folder: &RunFolder, stop: Stop<'_>) -> Result<RunEnd, RunError> {
        (self.0)(spec, folder, stop)
    }
}

fn runner(
    run: impl Fn(&JobSpec, &RunFolder, Stop<'_>) -> Result<RunEnd, RunError> + Send + Sync + 'static,
) -> Closure {
    Closure(Box::new(run))
}

/// Leaves what a finished run leaves.
fn finish(folder: &RunFolder) -> Result<RunEnd, RunError> {
    fs::create_dir_all(folder.adapter()).unwrap();
    fs::write(folder.adapter().join(JobManifest::FILE), "{}").unwrap();
    fs::write(folder.adapter().join("adapter_config.json"), "{}").unwrap();
    Ok(RunEnd::Done)
}

struct Setting {
    dir: tempfile::TempDir,
    engine: JobEngine,
}

fn open(dir: &Path) -> JobEngine {
    let limits = EngineLimits {
        queued_max: 3,
        jobs_max: 5,
        attempts_max: 2,
    };
    JobEngine::open(&dir.join("jobs"), limits, Arc::new(ManualClock::new(100))).unwrap()
}

fn setting() -> Setting {
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir(dir.path().join("base")).unwrap();
    fs::write(dir.path().join("base/config.json"), "{}").unwrap();
    fs::write(dir.path().join("data.jsonl"), "").unwrap();
    let engine = open(dir.path());
    Setting { dir, engine }
}

impl Setting {
    fn spec(&self, name: &str) -> JobSpec {
        let base = BaseSource {
            path: Some(self.dir.path().join("base")),
            ..BaseSource::default()
        };
        let data = DataSource {
            files: vec![self.dir.path().join("data.jsonl")],
            ..DataSource::default()
        };
        JobSpec::new(name, base, data)
    }

    fn submit(&self, name: &str) -> JobId {
        self.engine.submit(&self.spec(name)).unwrap().id
    }

    #[track_caller]
    fn is(&self, id: JobId, state: JobState) {
        let job = self.engine.get(id).unwrap();
        assert_eq!(job.state, state, "{}", job.message);
    }
}

#[test]
fn jobs_run_in_order_and_survive_a_reopening() {
    let s = setting();
    let (a, b) = (s.submit("a"), s.submit("b"));
    assert_eq!((a, b), (JobId(1), JobId(2)));
    assert_eq!(open(s.dir.path()).list().unwrap(), s.engine.list().unwrap());
    let seen = Arc::new(Mutex::new(Vec::new()));
    let log = Arc::clone(&seen);
    let run = runner(move |spec, folder, _| {
        log.lock().unwrap().push(spec.name.clone());
        if spec.name == "a" {
            return Err(RunError::Failed("the disk is full".to_owned()));
        }
        finish(folder)
    });
    let worked = s
        .engine
        .work(&run, &Shutdown::new(), &mut |job| {
            assert_eq!(job.state, JobState::Queued);
        })
        .unwrap();
    assert_eq!(worked.ended, [(a, JobState::Failed), (b, JobState::Done)]);
    let failed = open(s.dir.path()).get(a).unwrap();
    assert_eq!(
        (failed.message.as_str(), failed.attempts),
        ("the disk is full", 1)
    );
    assert_eq!((failed.started_s, failed.ended_s), (Some(100), Some(100)));
    // A failed job is tried again when somebody says so.
    s.engine.resume(a).unwrap();
    let done = s
        .engine
        .run(a, &runner(|_, folder, _| finish(folder)), &Shutdown::new())
        .unwrap();
    assert_eq!(done.state, JobState::Done);
    assert_eq!(*seen.lock().unwrap(), ["a", "b"]);
    assert!(matches!(
        s.engine.resume(a).unwrap_err(),
        JobError::State {
            state: JobState::Done,
            ..
        }
    ));
}

#[test]
fn a_wrong_job_is_refused_with_all_that_is_wrong() {
    let s = setting();
    let mut spec = s.spec("");
    spec.lora.rank = 0;
    spec.data.files = vec!["nowhere".into()];
    let JobError::Spec(SpecError::Invalid(problems)) = s.engine.submit(&spec).unwrap_err() else {
        panic!("refused for another reason");
    };
    let at: Vec<&str> = problems.iter().map(|p| p.at.as_str()).collect();
    assert_eq!(at, ["name", "data.files", "lora.rank"]);
    assert!(s.engine.list().unwrap().is_empty());
}

#[test]
fn the_queue_has_an_end() {
    let s = setting();
    for name in ["a", "b", "c"] {
        s.submit(name);
    }
    assert!(matches!(
        s.engine.submit(&s.spec("d")).unwrap_err(),
        JobError::QueueFull { queued_max: 3 }
    ));
    let run = runner(|_, folder, _| finish(folder));
    s.engine.work(&run, &Shutdown::new(), &mut |_| ()).unwrap();
    s.submit("d");
    s.submit("e");
    assert!(matches!(
        s.engine.submit(&s.spec("f")).unwrap_err(),
        JobError::TooMany { jobs_max: 5, .. }
    ));
}

#[test]
fn a_running_job_is_cancelled_from_another_process_and_goes_on_later() {
    let s = setting();
    let id = s.submit("a");
    let dir = s.dir.path().to_owned();
    let run = runner(move |_, _, stop| {
        let other = open(&dir);
        assert_eq!(other.get(id).unwrap().state, JobState::Running);
        assert!(!stop());
        other.cancel(id).unwrap();
        assert!(stop());
        // One worker at a time.
        let busy = other.work(
            &runner(|_, _, _| Ok(RunEnd::Done)),
            &Shutdown::new(),
            &mut |_| (),
        );
        assert!(matches!(busy.unwrap_err(), JobError::Busy { .. }));
        Ok(RunEnd::Stopped)
    });
    let job = s.engine.run(id, &run, &Shutdown::new()).unwrap();
    assert_eq!(job.state, JobState::Cancelled);
    assert!(matches!(
        s.engine.cancel(id).unwrap_err(),
        JobError::State { .. }
    ));
    s.engine.resume(id).unwrap();
    let run = runner(|_, folder, stop| {
        assert!(!stop());
        finish(folder)
    });
    assert_eq!(
        s.engine.run(id, &run, &Shutdown::new()).unwrap().state,
        JobState::Done
    );
    // A waiting job is cancelled at once.
    let waiting = s.submit("b");
    assert_eq!(s.engine.cancel(waiting).unwrap().state, JobState::Cancelled);
    assert!(matches!(
        s.engine.run(waiting, &run, &Shutdown::new()).unwrap_err(),
        JobError::State { .. }
    ));
}

#[test]
fn a_shutdown_leaves_the_job_queued() {
    let s = setting();
    let (a, b) = (s.submit("a"), s.submit("b"));
    let shutdown = Shutdown::new();
    let trigger = shutdown.clone();
    let run = runner(move |_, _, stop| {
        trigger.trigger();
        assert!(stop());
        Ok(RunEnd::Stopped)
    });
    let worked = s.engine.work(&run, &shutdown, &mut |_| ()).unwrap();
    assert!(worked.ended.is_empty());
    s.is(a, JobState::Queued);
    s.is(b, JobState::Queued);
    assert_eq!(s.engine.get(a).unwrap().attempts, 0);
}

/// The engine panics in the middle of a run, as a killed process ends there.
fn die(s: &Setting, id: JobId) {
    let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        let run = runner(|_, _, _| panic!("killed"));
        let _ = s.engine.run(id, &run, &Shutdown::new());
    }));
    assert!(result.is_err());
}

#[test]
fn a_job_whose_process_died_is_queued_again_but_not_for_ever() {
    let s = setting();
    let id = s.submit("a");
    die(&s, id);
    s.is(id, JobState::Queued);
    assert!(s.engine.get(id).unwrap().message.contains("died"));
    die(&s, id);
    s.is(id, JobState::Failed);
    s.engine.resume(id).unwrap();
    die(&s, id);
    // Cancelled when it was dead already, and nobody had looked.
    assert_eq!(
        open(s.dir.path()).cancel(id).unwrap().state,
        JobState::Cancelled
    );
}

#[test]
fn the_result_is_copied_to_where_it_was_wanted_whole() {
    let s = setting();
    let output = s.dir.path().join("results").join("mine");
    let mut spec = s.spec("a");
    spec.output = Some(output.clone());
    let id = s.engine.submit(&spec).unwrap().id;
    let run = runner(|_, folder, _| finish(folder));
    s.engine.run(id, &run, &Shutdown::new()).unwrap();
    s.is(id, JobState::Done);
    assert!(output.join("adapter_config.json").is_file());
    // Somebody else's files are never overwritten.
    let taken = s.dir.path().join("taken");
    spec.output = Some(taken.clone());
    let id = s.engine.submit(&spec).unwrap().id;
    fs::create_dir(&taken).unwrap();
    fs::write(taken.join("mine.txt"), "precious").unwrap();
    s.engine.run(id, &run, &Shutdown::new()).unwrap();
    s.is(id, JobState::Failed);
    assert_eq!(fs::read(taken.join("mine.txt")).unwrap(), b"precious");
}

#[test]
fn damaged_and_unknown_jobs_are_named() {
    let s = setting();
    let id = s.submit("a");
    assert!(matches!(
        s.engine.get(JobId(9)).unwrap_err(),
        JobError::Unknown(JobId(9))
    ));
    let state = s.dir.path().join("jobs/job-000001/state.json");
    for text in ["", "{}", "{\"format\":\"openledger-job-state/2\"}"] {
        fs::write(&state, text).unwrap();
        let error = s.engine.get(id).unwrap_err().to_string();
        assert!(error.contains("state.json is damaged"), "{error}");
    }
    // What a submit that was killed left is cleared by the next.
    fs::remove_dir_all(s.dir.path().join("jobs/job-000001")).unwrap();
    let left = s.dir.path().join("jobs/.new-000001");
    fs::create_dir(&left).unwrap();
    assert!(s.engine.list().unwrap().is_empty());
    s.submit("b");
    assert!(!left.exists());
}
