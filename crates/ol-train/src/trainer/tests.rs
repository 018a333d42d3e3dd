use std::cell::Cell;
use std::io;
use std::path::PathBuf;

use ol_model::{Lora, LoraConfig, ModelConfig, Pool};
use ol_runtime::ManualClock;

use super::*;
use crate::adapter::LoraObjective;
use crate::base::BaseObjective;
use crate::checkpoint::{Disk, clear_checkpoints};
use crate::fixture::tiny;
use crate::options::{Optimizer, Schedule};

fn config() -> ModelConfig {
    tiny(32)
}

/// Sequences that count upwards, so that there is something to learn.
fn sequences(n: usize, seed: u64) -> Vec<Sequence> {
    let mut random = Random::new(seed);
    (0..n)
        .map(|_| {
            let (start, len) = (random.below(30), 3 + random.below(25));
            let tokens: Vec<u32> = (0..len)
                .map(|i| u32::try_from((start + i) % 37).unwrap())
                .collect();
            Sequence {
                weights: vec![1.0; tokens.len()],
                tokens,
            }
        })
        .collect()
}

fn options() -> TrainOptions {
    TrainOptions {
        steps: 30,
        batch_tokens: 100,
        learning_rate: 1e-2,
        warmup_steps: 3,
        weight_decay: 0.1,
        evaluate_every: 7,
        evaluate_tokens: 60,
        checkpoint_every: 4,
        ..TrainOptions::default()
    }
}

/// Stops after a number of steps, as a crash would.
struct Crash(u32);

impl<O> Observer<O> for Crash {
    fn on_step(&mut self, _: &Progress) {
        self.0 = self.0.saturating_sub(1);
    }
    fn stop(&self) -> bool {
        self.0 == 0
    }
}

fn clock() -> ManualClock {
    ManualClock::new(0)
}

/// Equal for equal bits, and short.
fn bits(x: &[f32]) -> String {
    let bytes: Vec<u8> = x.iter().flat_map(|v| v.to_le_bytes()).collect();
    keccak256(&bytes).to_string()
}

#[test]
fn a_resumed_run_ends_with_the_same_bytes() {
    let (data, held_out) = (sequences(40, 1), sequences(8, 2));
    let straight_pool = Pool::new(1);
    let mut straight = BaseObjective {
        model: Model::random(config(), 3).unwrap(),
        pool: &straight_pool,
    };
    let want = train(
        &mut straight,
        &data,
        &held_out,
        &options(),
        None,
        &clock(),
        &mut Silent,
    )
    .unwrap();
    assert!(
        want.finished && want.held_out < 0.75 * want.curve[0].held_out,
        "{:?}",
        want.curve
    );

    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("checkpoint");
    let pool = Pool::new(3);
    for (i, steps) in [1, 6, 13, u32::MAX].into_iter().enumerate() {
        // A new objective each time: nothing survives but the file.
        let mut broken = BaseObjective {
            model: Model::random(config(), 3).unwrap(),
            pool: &pool,
        };
        let got = train(
            &mut broken,
            &data,
            &held_out,
            &options(),
            Some(&path),
            &clock(),
            &mut Crash(steps),
        )
        .unwrap();
        assert_eq!(got.finished, i == 3);
        if got.finished {
            assert_eq!(bits(&broken.parameters()), bits(&straight.parameters()));
            assert_eq!(got, want);
        }
    }
}

#[test]
fn a_checkpoint_of_another_run_or_a_damaged_one_is_refused() {
    let (data, held_out) = (sequences(10, 1), sequences(3, 2));
    let pool = Pool::new(1);
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("checkpoint");
    let go_from = |seed: u64, data: &[Sequence], options: &TrainOptions| {
        let mut o = BaseObjective {
            model: Model::random(config(), seed).unwrap(),
            pool: &pool,
        };
        train(
            &mut o,
            data,
            &held_out,
            options,
            Some(&path),
            &clock(),
            &mut Crash(2),
        )
        .map(|_| ())
    };
    let go = |data: &[Sequence], options: &TrainOptions| go_from(3, data, options);
    go(&data, &options()).unwrap();
    let other = TrainOptions {
        seed: 9,
        ..options()
    };
    let is_other = |r: Result<(), TrainError>, what| matches!(r, Err(TrainError::Checkpoint(CheckpointError::OtherRun { what: w, .. })) if w == what);
    assert!(is_other(go(&data, &other), "options"));
    assert!(is_other(go(&data[1..], &options()), "data"));
    assert!(is_other(
        go_from(4, &data, &options()),
        "base or initial adapter"
    ));
    let (path, bytes) = only_file(dir.path());
    let damaged = |bytes: &[u8]| {
        std::fs::write(&path, bytes).unwrap();
        let result = go(&data, &options());
        assert!(
            matches!(
                result,
                Err(TrainError::Checkpoint(CheckpointError::Damaged { .. }))
            ),
            "{result:?}"
        );
    };
    for at in [0, 9, 17, 40, bytes.len() / 2, bytes.len() - 1] {
        let mut changed = bytes.clone();
        changed[at] ^= 1;
        damaged(&changed);
    }
    for len in [0, 5, 31, 32, 60, bytes.len() - 1] {
        damaged(&bytes[..len]);
    }
    let mut older = bytes;
    older[7] = b'1';
    for path in [&path, &dir.path().join("checkpoint")] {
        std::fs::write(path, &older).unwrap();
        let error = go(&data, &options()).unwrap_err().to_string();
        assert!(
            error.contains("format 1") && error.contains("reads format 2"),
            "{error}"
        );
        std::fs::remove_file(path).unwrap();
    }
}

/// The one file of a directory.
fn only_file(dir: &Path) -> (PathBuf, Vec<u8>) {
    let files: Vec<PathBuf> = std::fs::read_dir(dir)
        .unwrap()
        .map(|e| e.unwrap().path())
        .collect();
    assert_eq!(files.len(), 1, "{files:?}");
    (files[0].clone(), std::fs::read(&files[0]).unwrap())
}

/// A run of an adapter over the sequences, on a base of its own.
fn adapter_run(
    options: &TrainOptions,
    checkpoints: Option<Checkpoints<'_>>,
    observer: &mut impl for<'a> Observer<LoraObjective<'a>>,
) -> Result<(Outcome, String), TrainError> {
    let pool = Pool::new(2);
    let base = Model::random(config(), 3).unwrap();
    let mut objective = LoraObjective {
        model: &base,
        adapter: Lora::init(&config(), LoraConfig::all_linear(2), 1).unwrap(),
        pool: &pool,
        learner: None,
    };
    let outcome = run(
        &mut objective,
        &sequences(40, 1),
        &sequences(8, 2),
        options,
        checkpoints,
        &clock(),
        observer,
    )?;
    Ok((outcome, bits(&objective.parameters())))
}

/// Every setting that has state of its own.
fn settings() -> Vec<TrainOptions> {
    let plain = TrainOptions {
        learning_rate: 0.03,
        ..options()
    };
    vec![
        TrainOptions {
            optimizer: Optimizer::AdamW8Bit,
            micro_batch_tokens: Some(40),
            checkpoints_keep: 3,
            ..plain
        },
        TrainOptions {
            // A rate this high makes the held-out loss rise at times.
            learning_rate: 0.5,
            keep_best: true,
            patience: Some(3),
            evaluate_every: 1,
            schedule: Schedule::Constant,
            ..plain
        },
        TrainOptions {
            batch_sequences: Some(3),
            shuffle: false,
            schedule: Schedule::Linear,
            ..plain
        },
    ]
}

#[test]
fn every_setting_is_resumed_to_the_same_bytes() {
    for options in settings() {
        let (want, want_bits) = adapter_run(&options, None, &mut Silent).unwrap();
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("checkpoint");
        let mut runs = 0;
        let (got, got_bits) = loop {
            let checkpoints = Some(Checkpoints::new(&path, &LocalDisk));
            let done = adapter_run(&options, checkpoints, &mut Crash(2)).unwrap();
            runs += 1;
            if done.0.finished {
                break done;
            }
        };
        assert!(runs > 1, "{options:?}");
        assert_eq!(got, want, "{options:?}");
        assert_eq!(got_bits, want_bits, "{options:?}");
    }
}

#[test]
fn a_run_may_go_on_with_less_memory() {
    let (want, want_bits) = adapter_run(&options(), None, &mut Silent).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("checkpoint");
    let smaller = TrainOptions {
        micro_batch_tokens: Some(30),
        recompute: true,
        ..options()
    };
    for (options, steps) in [(options(), 7), (smaller, u32::MAX)] {
        let checkpoints = Some(Checkpoints::new(&path, &LocalDisk));
        let (got, got_bits) = adapter_run(&options, checkpoints, &mut Crash(steps)).unwrap();
        if got.finished {
            assert_eq!((&got, &got_bits), (&want, &want_bits));
        }
    }
}

/// A disk that fails at the n-th change, and at all after it.
struct FailingDisk {
    good: Cell<u32>,
    moment: Moment,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Moment {
    /// Nothing has changed.
    Before,
    /// A part of the file lies beside its place.
    Torn,
    /// The change is made, and the answer lost.
    After,
}

impl FailingDisk {
    fn change(
        &self,
        torn: impl FnOnce(),
        whole: impl FnOnce() -> io::Result<()>,
    ) -> io::Result<()> {
        match self.good.get().checked_sub(1) {
            Some(left) => {
                self.good.set(left);
                whole()
            }
            None => {
                match self.moment {
                    Moment::Before => {}
                    Moment::Torn => torn(),
                    Moment::After => whole()?,
                }
                Err(io::Error::other("injected"))
            }
        }
    }
}

impl Disk for FailingDisk {
    fn write(&self, path: &Path, bytes: &[u8]) -> io::Result<()> {
        let torn = || {
            let mut name = path.file_name().unwrap().to_owned();
            name.push(".tmp");
            std::fs::write(path.with_file_name(name), &bytes[..bytes.len() / 2]).unwrap();
        };
        self.change(torn, || LocalDisk.write(path, bytes))
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        self.change(|| (), || LocalDisk.remove(path))
    }
}

#[test]
fn a_disk_that_fails_at_any_change_costs_no_byte() {
    let options = TrainOptions {
        steps: 8,
        checkpoint_every: 2,
        checkpoints_keep: 2,
        optimizer: Optimizer::AdamW8Bit,
        ..options()
    };
    let (want, want_bits) = adapter_run(&options, None, &mut Silent).unwrap();
    let mut faults = 0;
    for moment in [Moment::Before, Moment::Torn, Moment::After] {
        for good in 0.. {
            let dir = tempfile::tempdir().unwrap();
            let path = dir.path().join("checkpoint");
            let disk = FailingDisk {
                good: Cell::new(good),
                moment,
            };
            let first = adapter_run(&options, Some(Checkpoints::new(&path, &disk)), &mut Silent);
            let Err(error) = first else { break };
            assert!(error.to_string().contains("injected"), "{error}");
            faults += 1;
            let checkpoints = Some(Checkpoints::new(&path, &LocalDisk));
            let (got, got_bits) = adapter_run(&options, checkpoints, &mut Silent).unwrap();
            assert_eq!((&got, &got_bits), (&want, &want_bits), "{moment:?} {good}");
        }
    }
    // Four writes and two removals, at three moments.
    assert_eq!(faults, 18);
}

#[test]
fn the_newest_checkpoints_are_kept_and_a_damaged_one_gives_way() {
    let options = TrainOptions {
        checkpoints_keep: 3,
        ..options()
    };
    let (want, want_bits) = adapter_run(&options, None, &mut Silent).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("checkpoint");
    let names = || {
        let mut names: Vec<String> = std::fs::read_dir(dir.path())
            .unwrap()
            .map(|e| e.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    };
    let go = |steps| {
        let checkpoints = Some(Checkpoints::new(&path, &LocalDisk));
        adapter_run(&options, checkpoints, &mut Crash(steps)).unwrap()
    };
    go(18);
    let kept = [
        "checkpoint.00000012",
        "checkpoint.00000016",
        "checkpoint.00000018",
    ];
    assert_eq!(names(), kept);
    for name in &kept[1..] {
        std::fs::write(dir.path().join(name), b"OLTRAIN2 and no more").unwrap();
    }
    std::fs::write(dir.path().join("checkpoint.notes"), b"mine").unwrap();
    let (got, got_bits) = go(u32::MAX);
    assert_eq!((got, got_bits), (want, want_bits));
    let kept = [
        "checkpoint.00000024",
        "checkpoint.00000028",
        "checkpoint.00000030",
    ];
    assert_eq!(names()[..3], kept);
    clear_checkpoints(&path).unwrap();
    assert_eq!(names(), ["checkpoint.notes"]);
}

#[test]
fn parts_of_a_batch_give_its_bits() {
    let (want, want_bits) = adapter_run(&options(), None, &mut Silent).unwrap();
    for tokens in [1, 25, 60, 99, 1000] {
        let options = TrainOptions {
            micro_batch_tokens: Some(tokens),
            ..options()
        };
        let (got, got_bits) = adapter_run(&options, None, &mut Silent).unwrap();
        assert_eq!(got_bits, want_bits, "{tokens}");
        assert_eq!(got, want, "{tokens}");
    }
}

#[test]
fn parts_hold_their_limit_and_every_example() {
    let batch = sequences(20, 4);
    for most in [1, 20, 50, 10_000] {
        let parts = parts(&batch, Some(most));
        assert_eq!(parts.concat(), batch);
        for part in parts {
            let tokens: usize = part.iter().map(Example::n_tokens).sum();
            assert!(part.len() == 1 || tokens <= most);
        }
    }
    assert_eq!(parts(&batch, None), [&batch[..]]);
}

#[test]
fn the_best_is_kept_where_that_is_wanted() {
    let [_, options, _] = &settings()[..] else {
        panic!("three settings");
    };
    let (kept, _) = adapter_run(options, None, &mut Silent).unwrap();
    let best = kept
        .curve
        .iter()
        .min_by(|a, b| a.held_out.total_cmp(&b.held_out))
        .unwrap();
    assert!(kept.steps < options.steps, "patience ends the run");
    assert_eq!(kept.kept_step, best.step);
    assert_eq!(kept.steps, best.step + 3);
    let last = TrainOptions {
        keep_best: false,
        ..options.clone()
    };
    let (last, _) = adapter_run(&last, None, &mut Silent).unwrap();
    assert_eq!(last.kept_step, last.steps);
    assert!(kept.held_out < last.held_out, "{kept:?}");
}

#[test]
fn eight_bits_learn_as_well() {
    let eight = TrainOptions {
        optimizer: Optimizer::AdamW8Bit,
        ..options()
    };
    let (full, _) = adapter_run(&options(), None, &mut Silent).unwrap();
    let (eight, _) = adapter_run(&eight, None, &mut Silent).unwrap();
    let gain = |o: &Outcome| o.curve[0].held_out - o.held_out;
    assert!(
        gain(&full) > 0.0 && (gain(&eight) / gain(&full) - 1.0).abs() < 0.1,
        "{full:?} {eight:?}"
    );
}

#[test]
fn an_adapter_learns_and_the_base_stays() {
    let pool = Pool::new(2);
    let base = Model::random(config(), 3).unwrap();
    let before = base.hash();
    let adapter = Lora::init(&config(), LoraConfig::all_linear(4), 1).unwrap();
    let mut objective = LoraObjective {
        model: &base,
        adapter,
        pool: &pool,
        learner: None,
    };
    let held_out = sequences(8, 2);
    let fresh = mean_loss(&objective, &held_out).unwrap();
    let plain = base
        .losses(&pool, None, &held_out)
        .unwrap()
        .iter()
        .sum::<f64>()
        / weight(&held_out);
    assert!((fresh - plain).abs() < 1e-6);
    let options = TrainOptions {
        steps: 80,
        ..options()
    };
    let got = train(
        &mut objective,
        &sequences(60, 1),
        &held_out,
        &options,
        None,
        &clock(),
        &mut Silent,
    )
    .unwrap();
    assert!(got.held_out < fresh - 0.1, "{fresh} to {}", got.held_out);
    assert_eq!(base.hash(), before);
}

#[test]
fn nonsense_is_refused() {
    let pool = Pool::new(1);
    let mut objective = BaseObjective {
        model: Model::random(config(), 3).unwrap(),
        pool: &pool,
    };
    let data = sequences(4, 1);
    let empty = [Sequence {
        tokens: vec![1],
        weights: vec![1.0],
    }];
    let mut go = |train_on: &[Sequence], held_out: &[Sequence], options: TrainOptions| {
        train(
            &mut objective,
            train_on,
            held_out,
            &options,
            None,
            &clock(),
            &mut Silent,
        )
        .map(|_| ())
    };
    assert!(matches!(
        go(&empty, &data, options()),
        Err(TrainError::Data(_))
    ));
    assert!(matches!(
        go(&data, &[], options()),
        Err(TrainError::Data(_))
    ));
    for bad in [
        TrainOptions {
            steps: 0,
            ..options()
        },
        TrainOptions {
            batch_tokens: 0,
            ..options()
        },
        TrainOptions {
            batch_tokens: 1 << 30,
            ..options()
        },
        TrainOptions {
            learning_rate: f32::NAN,
            ..options()
        },
        TrainOptions {
            beta2: 1.0,
            ..options()
        },
        TrainOptions {
            evaluate_every: 0,
            ..options()
        },
    ] {
        assert!(matches!(go(&data, &data, bad), Err(TrainError::Options(_))));
    }
    let wild = TrainOptions {
        learning_rate: 1e30,
        ..options()
    };
    assert!(matches!(
        go(&data, &data, wild),
        Err(TrainError::Diverged { .. })
    ));
}

#[test]
fn patience_ends_a_run_that_does_not_improve() {
    let pool = Pool::new(1);
    let mut objective = BaseObjective {
        model: Model::random(config(), 3).unwrap(),
        pool: &pool,
    };
    let options = TrainOptions {
        patience: Some(2),
        learning_rate: 1e-12,
        evaluate_every: 1,
        steps: 500,
        ..options()
    };
    let data = sequences(20, 1);
    let got = train(
        &mut objective,
        &data,
        &data,
        &options,
        None,
        &clock(),
        &mut Silent,
    )
    .unwrap();
    assert!(got.finished && got.steps < 500, "{}", got.steps);
}

/// What the loop gave before it knew more than one optimiser, schedule and
/// storage format: adapters in use were trained so, and payouts name their
/// hashes.
#[test]
fn a_plain_run_keeps_the_bits_it_always_had() {
    let pool = Pool::new(2);
    let model = Model::random(config(), 3).unwrap();
    let mut adapter = LoraObjective {
        model: &model,
        adapter: Lora::init(&config(), LoraConfig::all_linear(3), 1).unwrap(),
        pool: &pool,
        learner: None,
    };
    let mut base = BaseObjective {
        model: Model::random(config(), 3).unwrap(),
        pool: &pool,
    };
    fn go<O: Objective<Example = Sequence>>(objective: &mut O) -> u64 {
        let (data, held_out) = (sequences(40, 1), sequences(8, 2));
        let options = options();
        let outcome = train(
            objective,
            &data,
            &held_out,
            &options,
            None,
            &clock(),
            &mut Silent,
        );
        outcome.unwrap().held_out.to_bits()
    }
    assert_eq!(go(&mut adapter), 0x400c_3b19_1afc_a17d);
    assert_eq!(
        adapter.adapter.hash().to_string(),
        "0x77bc510daae197dc60e1cade6ef2ade2717cae29b94ea32dcbc5fccffd523970"
    );
    assert_eq!(go(&mut base), 0x3ffb_71e6_271e_81b7);
    assert_eq!(
        base.model.hash().to_string(),
        "0xe375615b3fa36df39ec9c228219fb6a0c0e717ee1bdaf8c0123be3effbe76a89"
    );
}
