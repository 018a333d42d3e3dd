//! Goal: whenever a process is killed, the job goes on to the same bytes.
//! Method: the runner as a program, killed hard after a random number of steps
//! (seen in its measurements), again and again, until it ends by itself.

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::thread;

use ol_model::Random;
use ol_runtime::{Shutdown, SystemClock};
use ol_train::job::{
    EngineLimits, JobEngine, JobSpec, JobState, MetricsFollower, ProgramRunner, RunFolder, RunPhase,
};

use crate::support::{result, setting};

const RUNNER: &str = env!("CARGO_BIN_EXE_ol-train-run");

fn start(spec: &Path, folder: &RunFolder) -> Child {
    Command::new(RUNNER)
        .arg(spec)
        .arg(folder.root())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap()
}

/// Waits until the run has done `step` steps; false if it ended before.
fn reaches(child: &mut Child, folder: &RunFolder, step: u32) -> bool {
    let mut follower = MetricsFollower::new(folder.metrics());
    let mut at = 0;
    loop {
        let ended = child.try_wait().unwrap().is_some();
        at = follower.poll().unwrap().last().map_or(at, |line| line.step);
        if at >= step && !ended {
            return true;
        }
        if ended {
            return false;
        }
        thread::yield_now();
    }
}

fn write(spec: &JobSpec, dir: &Path) -> std::path::PathBuf {
    let path = dir.join("job.json");
    std::fs::write(&path, spec.to_bytes()).unwrap();
    path
}

#[test]
fn a_killed_run_goes_on_to_the_same_bytes() {
    let dir = tempfile::tempdir().unwrap();
    let spec = setting(dir.path());
    let path = write(&spec, dir.path());
    let whole = RunFolder::new(dir.path().join("whole"));
    let ended = start(&path, &whole).wait_with_output().unwrap();
    assert!(ended.status.success(), "{ended:?}");

    let folder = RunFolder::new(dir.path().join("killed"));
    let mut random = Random::new(11);
    let mut n_killed = 0;
    let mut at = 0;
    loop {
        let mut child = start(&path, &folder);
        at += 1 + u32::try_from(random.below(30)).unwrap();
        if !reaches(&mut child, &folder, at) {
            let ended = child.wait_with_output().unwrap();
            assert!(ended.status.success(), "{ended:?}");
            break;
        }
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(!folder.adapter().exists() || folder.adapter().join("training.json").exists());
        n_killed += 1;
    }
    assert!(n_killed >= 5, "killed only {n_killed} times");
    assert_eq!(result(&folder), result(&whole));
}

#[test]
fn sigterm_leaves_a_checkpoint_and_says_so() {
    let dir = tempfile::tempdir().unwrap();
    let spec = setting(dir.path());
    let path = write(&spec, dir.path());
    let folder = RunFolder::new(dir.path().join("run"));
    let mut child = start(&path, &folder);
    assert!(reaches(&mut child, &folder, 3));
    let pid = child.id().to_string();
    assert!(
        Command::new("kill")
            .args(["-TERM", &pid])
            .status()
            .unwrap()
            .success()
    );
    let ended = child.wait_with_output().unwrap();
    assert_eq!(ended.status.code(), Some(75), "{ended:?}");
    let state = folder.read_state().unwrap();
    assert_eq!(state.phase, RunPhase::Stopped);
    assert!(state.step >= 3 && state.step < 150);
    // A wrong job is refused in the way of the contract.
    let mut wrong = spec;
    wrong.lora.rank = 0;
    let path = write(&wrong, dir.path());
    let refused = start(&path, &RunFolder::new(dir.path().join("wrong")));
    let refused = refused.wait_with_output().unwrap();
    assert_eq!(refused.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&refused.stderr).contains("lora.rank"));
}

#[test]
fn the_engine_runs_a_program_and_cancels_it() {
    let dir = tempfile::tempdir().unwrap();
    let spec = setting(dir.path());
    let clock = Arc::new(SystemClock::new());
    let root = dir.path().join("jobs");
    let engine = JobEngine::open(&root, EngineLimits::default(), clock.clone()).unwrap();
    let runner = ProgramRunner::new(RUNNER, [""; 0], clock);
    let job = engine.submit(&spec).unwrap();
    let other = engine.submit(&spec).unwrap();
    let stop = Shutdown::new();
    thread::scope(|scope| {
        let work = scope.spawn(|| engine.work(&runner, &stop, &mut |_| ()).unwrap());
        let mut follower = engine.follow(job.id).unwrap();
        while follower.poll().unwrap().is_empty() {
            thread::yield_now();
        }
        engine.cancel(job.id).unwrap();
        let worked = work.join().unwrap();
        assert_eq!(
            worked.ended,
            [(job.id, JobState::Cancelled), (other.id, JobState::Done)]
        );
    });
    engine.resume(job.id).unwrap();
    let job = engine.run(job.id, &runner, &stop).unwrap();
    assert_eq!(job.state, JobState::Done, "{}", job.message);
    // Cancelled and resumed or not: the same adapter.
    assert_eq!(result(&job.run), result(&engine.get(other.id).unwrap().run));
}
