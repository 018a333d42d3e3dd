//! A run killed at any moment ends with the bytes of one that was not.

use std::io::{BufRead as _, BufReader, Write as _};
use std::path::Path;

use ol_model::{CpuLearner, Pool, Random, Sequence};
use ol_runtime::ManualClock;
use ol_train::{
    LoraObjective, Objective, Observer, Optimizer, Outcome, Pair, PreferenceObjective, Progress,
    ScoredPair, Silent, TrainOptions, train,
};
use ol_types::keccak256;

use crate::setting::{adapter, child, child_dir, model, sequences, tiny};

const SCENARIO: &str = "OPENLEDGER_TEST_SCENARIO";

fn options(scenario: &str) -> TrainOptions {
    let plain = TrainOptions {
        steps: 40,
        batch_tokens: 120,
        learning_rate: 1e-2,
        warmup_steps: 3,
        weight_decay: 0.1,
        evaluate_every: 3,
        evaluate_tokens: 60,
        checkpoint_every: 1,
        ..TrainOptions::default()
    };
    match scenario {
        "full" => plain,
        "eight-bit" => TrainOptions {
            optimizer: Optimizer::AdamW8Bit,
            micro_batch_tokens: Some(50),
            recompute: true,
            checkpoints_keep: 3,
            ..plain
        },
        "early-stop" => TrainOptions {
            learning_rate: 0.1,
            keep_best: true,
            patience: Some(12),
            evaluate_every: 1,
            steps: 200,
            ..plain
        },
        "preference" => TrainOptions {
            batch_sequences: Some(3),
            checkpoint_every: 2,
            ..plain
        },
        other => panic!("no scenario {other}"),
    }
}

/// Runs a scenario to its end: hash of the parameters, and what was reported.
fn run_scenario(
    scenario: &str,
    dir: Option<&Path>,
    mut observer: impl for<'a> Observer<LoraObjective<'a>> + for<'a> Observer<PreferenceObjective<'a>>,
) -> String {
    fn finish(outcome: Outcome, params: &[f32]) -> String {
        assert!(outcome.finished);
        let bytes: Vec<u8> = params.iter().flat_map(|p| p.to_le_bytes()).collect();
        format!("{} {outcome:?}", keccak256(&bytes))
    }
    let config = tiny();
    let (base, pool) = (model(&config), Pool::new(1));
    let checkpoint = dir.map(|d| d.join("checkpoint"));
    let checkpoint = checkpoint.as_deref();
    let options = options(scenario);
    let clock = ManualClock::new(0);
    if scenario == "preference" {
        let all = sequences(24, 14, 5);
        let pairs: Vec<Pair> = all
            .as_chunks::<2>()
            .0
            .iter()
            .map(|[chosen, other]| Pair {
                chosen: chosen.clone(),
                rejected: Sequence {
                    tokens: other.tokens.iter().rev().copied().collect(),
                    ..other.clone()
                },
            })
            .collect();
        let pairs = ScoredPair::score(&CpuLearner::new(&base, &pool), &pairs).unwrap();
        let mut objective = PreferenceObjective::new(&base, adapter(&config), &pool, &options);
        let (train_on, held_out) = pairs.split_at(9);
        let outcome = train(
            &mut objective,
            train_on,
            held_out,
            &options,
            checkpoint,
            &clock,
            &mut observer,
        );
        return finish(outcome.unwrap(), &objective.parameters());
    }
    let mut objective = LoraObjective {
        model: &base,
        adapter: adapter(&config),
        pool: &pool,
        learner: None,
    };
    let (train_on, held_out) = (sequences(40, 30, 1), sequences(8, 30, 2));
    let outcome = train(
        &mut objective,
        &train_on,
        &held_out,
        &options,
        checkpoint,
        &clock,
        &mut observer,
    );
    finish(outcome.unwrap(), &objective.parameters())
}

/// Says after every step that it is done.
struct Tell;

impl<O> Observer<O> for Tell {
    fn on_step(&mut self, progress: &Progress) {
        let mut out = std::io::stdout().lock();
        writeln!(out, "\nstep {}", progress.step).unwrap();
        out.flush().unwrap();
    }
}

/// What the killed processes run. On its own it checks that a scenario gives
/// the same twice.
#[test]
fn one_process() {
    match std::env::var(SCENARIO) {
        Ok(scenario) => {
            let dir = child_dir();
            let result = run_scenario(&scenario, Some(&dir), Tell);
            std::fs::write(dir.join("result"), result).unwrap();
        }
        Err(_) => assert_eq!(
            run_scenario("full", None, Silent),
            run_scenario("full", None, Silent)
        ),
    }
}

/// Kills the scenario again and again, some steps after each start, until it
/// comes to its end; returns the number of kills.
fn killed_until_done(scenario: &str, dir: &Path, random: &mut Random) -> usize {
    let mut kills = 0;
    loop {
        let mut process = child("resume::one_process", SCENARIO, scenario, dir);
        let mut out = BufReader::new(process.stdout.take().unwrap());
        let mut steps = 1 + random.below(9);
        let mut line = String::new();
        while steps > 0 && out.read_line(&mut line).unwrap() > 0 {
            steps -= usize::from(line.starts_with("step "));
            line.clear();
        }
        if steps > 0 {
            assert!(process.wait().unwrap().success(), "{scenario}");
            return kills;
        }
        // SIGKILL, wherever the process now is.
        process.kill().unwrap();
        let status = process.wait().unwrap();
        kills += usize::from(!status.success());
        if status.success() {
            return kills;
        }
    }
}

fn check(scenario: &str) {
    let want = run_scenario(scenario, None, Silent);
    let mut random = Random::new(want.len() as u64);
    let dir = tempfile::tempdir().unwrap();
    let kills = killed_until_done(scenario, dir.path(), &mut random);
    assert!(kills >= 2, "{scenario}: {kills} kills");
    let got = std::fs::read_to_string(dir.path().join("result")).unwrap();
    assert_eq!(got, want, "{scenario}");
}

#[test]
fn a_killed_run_in_full_precision() {
    check("full");
}

#[test]
fn a_killed_run_with_eight_bit_moments_and_parts() {
    check("eight-bit");
}

#[test]
fn a_killed_run_that_stops_early() {
    check("early-stop");
}

#[test]
fn a_killed_run_of_preferences() {
    check("preference");
}
