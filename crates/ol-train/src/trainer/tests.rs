use ol_model::{Lora, LoraConfig, ModelConfig, Pool};
use ol_runtime::ManualClock;

use super::*;
use crate::adapter::LoraObjective;
use crate::base::BaseObjective;

fn config() -> ModelConfig {
    ModelConfig {
        vocab_size: 40,
        hidden_size: 16,
        intermediate_size: 24,
        num_hidden_layers: 2,
        num_attention_heads: 2,
        num_key_value_heads: 1,
        head_dim: 8,
        rms_norm_eps: 1e-5,
        rope_theta: 10_000.0,
        max_position_embeddings: 32,
        tie_word_embeddings: true,
        ..ModelConfig::default_base()
    }
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

fn bits(x: &[f32]) -> Vec<u32> {
    x.iter().map(|v| v.to_bits()).collect()
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
    let path = dir.path().join("checkpoint.bin");
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
    let path = dir.path().join("checkpoint.bin");
    let go = |data: &[Sequence], options: &TrainOptions| {
        let mut o = BaseObjective {
            model: Model::random(config(), 3).unwrap(),
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
    go(&data, &options()).unwrap();
    let other = TrainOptions {
        seed: 9,
        ..options()
    };
    let is_other = |r: Result<(), TrainError>, what| matches!(r, Err(TrainError::Checkpoint(CheckpointError::OtherRun { what: w, .. })) if w == what);
    assert!(is_other(go(&data, &other), "options"));
    assert!(is_other(go(&data[1..], &options()), "data"));
    let bytes = std::fs::read(&path).unwrap();
    for at in [0, 9, 17, 40, bytes.len() / 2, bytes.len() - 1] {
        let mut changed = bytes.clone();
        changed[at] ^= 1;
        std::fs::write(&path, &changed).unwrap();
        assert!(
            matches!(
                go(&data, &options()),
                Err(TrainError::Checkpoint(CheckpointError::Damaged { .. }))
            ),
            "{at}"
        );
    }
    for len in [0, 5, 31, 32, 60, bytes.len() - 1] {
        std::fs::write(&path, &bytes[..len]).unwrap();
        assert!(
            matches!(
                go(&data, &options()),
                Err(TrainError::Checkpoint(CheckpointError::Damaged { .. }))
            ),
            "{len}"
        );
    }
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

#[test]
fn the_rate_rises_then_falls() {
    let o = TrainOptions {
        steps: 110,
        warmup_steps: 10,
        learning_rate: 1.0,
        final_fraction: 0.1,
        ..options()
    };
    assert!((o.rate(0) - 0.1).abs() < 1e-6 && (o.rate(10) - 1.0).abs() < 1e-6);
    assert!((o.rate(60) - 0.55).abs() < 1e-6 && (o.rate(110) - 0.1).abs() < 1e-6);
    assert!((10..110).all(|s| o.rate(s + 1) <= o.rate(s)));
    assert_eq!(o.steps_for(1000, 2.0), 20);
}
