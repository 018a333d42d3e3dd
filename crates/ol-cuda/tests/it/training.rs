//! A whole training run, and a server's engine, on a device against the CPU.

use std::sync::Arc;

use ol_cuda::{GpuLearner, GpuModel, GpuModelOptions, Precision, supports};
use ol_model::{Learner, Lora, LoraConfig, Model, Pool, Sequence};
use ol_runtime::ManualClock;
use ol_train::{LoraObjective, Silent, TrainOptions, train};

use crate::emulator::Emulator;
use crate::passes::{close, model, options, small, tokens};

fn examples(n: u64, seed: u64) -> Vec<Sequence> {
    (0..n)
        .map(|i| Sequence {
            tokens: tokens(12, small().vocab_size, seed + i),
            weights: vec![1.0; 12],
        })
        .collect()
}

/// Eight steps of AdamW: the same curve to what rounding leaves.
fn trained(base: &Model, learner: Option<&dyn Learner>) -> (Vec<f64>, Vec<f32>) {
    let pool = Pool::new(1);
    let mut objective = LoraObjective {
        model: base,
        adapter: Lora::init(&small(), LoraConfig::all_linear(3), 1).unwrap(),
        pool: &pool,
        learner,
    };
    let options = TrainOptions {
        steps: 8,
        batch_tokens: 48,
        evaluate_every: 2,
        ..TrainOptions::default()
    };
    let clock = ManualClock::new(0);
    let (learn, held_out) = (examples(9, 10), examples(3, 90));
    let outcome = train(
        &mut objective,
        &learn,
        &held_out,
        &options,
        None,
        &clock,
        &mut Silent,
    )
    .unwrap();
    let curve = outcome.curve.iter().map(|point| point.held_out).collect();
    (curve, objective.adapter.to_parameters())
}

#[test]
fn a_run_on_a_device_is_that_of_the_cpu() {
    let base = Arc::new(model(small(), 7));
    let limits = GpuModelOptions {
        kv_pages: 0,
        adapter_slots: 1,
        ..options(Precision::F32)
    };
    let learner = GpuLearner::new(GpuModel::new(Emulator, &base, limits).unwrap());
    let (expected, adapter) = trained(&base, None);
    let (got, on_device) = trained(&base, Some(&learner));
    assert_eq!(got.len(), expected.len());
    assert!(
        expected.first() > expected.last(),
        "it learns nothing: {expected:?}"
    );
    for (a, b) in got.iter().zip(&expected) {
        assert!((a - b).abs() < 1e-3 * b, "{got:?} against {expected:?}");
    }
    close(&on_device, &adapter, 0.05, "adapter");
}

#[test]
fn what_is_not_trained_there_is_named_before_the_start() {
    let config = small();
    let plain = LoraConfig::all_linear(2);
    assert_eq!(supports(&config, Some(&plain)), Ok(()));
    let dora = LoraConfig {
        use_dora: true,
        ..plain
    };
    let error = supports(&config, Some(&dora)).unwrap_err();
    assert!(error.to_string().contains("DoRA"), "{error}");
}
