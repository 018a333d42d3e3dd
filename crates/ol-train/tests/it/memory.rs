//! The estimate against the memory that a process really takes.
#![cfg(target_os = "linux")]

use std::io::Read as _;

use ol_model::{ModelConfig, Pool, WeightFormat};
use ol_runtime::ManualClock;
use ol_train::{
    BaseMemory, LoraObjective, MemoryPlan, Objective as _, Optimizer, Silent, TrainOptions, train,
};

use crate::setting::{adapter, child, model, sequences};

const CASE: &str = "OPENLEDGER_TEST_MEMORY";

/// The estimate lies between the peak and this many times the peak.
const FACTOR: f64 = 1.5;

fn config() -> ModelConfig {
    ModelConfig {
        vocab_size: 3000,
        hidden_size: 128,
        intermediate_size: 352,
        num_hidden_layers: 8,
        num_attention_heads: 4,
        num_key_value_heads: 2,
        head_dim: 32,
        max_position_embeddings: 256,
        ..ModelConfig::default_base()
    }
}

fn options(case: &str) -> TrainOptions {
    let plain = TrainOptions {
        steps: 2,
        warmup_steps: 0,
        ..TrainOptions::default()
    };
    match case {
        "plain" => plain,
        "recompute" => TrainOptions {
            recompute: true,
            ..plain
        },
        "parts" => TrainOptions {
            micro_batch_tokens: Some(512),
            optimizer: Optimizer::AdamW8Bit,
            keep_best: true,
            ..plain
        },
        other => panic!("no case {other}"),
    }
}

/// `VmHWM` of this process in bytes: the most memory it ever had.
fn peak_bytes() -> usize {
    let text = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = text.lines().find_map(|l| l.strip_prefix("VmHWM:")).unwrap();
    let kib: usize = line
        .trim()
        .strip_suffix("kB")
        .unwrap()
        .trim()
        .parse()
        .unwrap();
    kib * 1024
}

/// Trains, and returns the estimate of it.
fn train_case(case: &str, config: &ModelConfig) -> usize {
    let options = options(case);
    let data = sequences(40, 250, 1);
    let (train_on, held_out) = data.split_at(30);
    let adapter = adapter(config);
    let plan = MemoryPlan {
        config,
        base: BaseMemory::of(config, WeightFormat::F32),
        lora: &adapter.config().clone(),
        n_params: adapter.n_params(),
        options: &options,
        longest_tokens: data.iter().map(|s| s.tokens.len()).max().unwrap(),
        data_tokens: data.iter().map(|s| s.tokens.len()).sum(),
        n_threads: 2,
    };
    let estimate = plan.estimate().total_bytes();
    let dir = tempfile::tempdir().unwrap();
    let (base, pool) = (model(config), Pool::new(2));
    let mut objective = LoraObjective {
        model: &base,
        adapter,
        pool: &pool,
        learner: None,
    };
    let outcome = train(
        &mut objective,
        train_on,
        held_out,
        &options,
        Some(&dir.path().join("checkpoint")),
        &ManualClock::new(0),
        &mut Silent,
    );
    assert_eq!(outcome.unwrap().steps, 2);
    assert!(objective.parameters().iter().all(|p| p.is_finite()));
    estimate
}

/// What the measured processes run; on its own, a run of a small model whose
/// estimate is small too.
#[test]
fn one_process() {
    match std::env::var(CASE) {
        Ok(case) => {
            let estimate = train_case(&case, &config());
            println!("\nmeasured {estimate} {}", peak_bytes());
        }
        Err(_) => {
            let tiny = ModelConfig {
                max_position_embeddings: 256,
                ..crate::setting::tiny()
            };
            assert!(train_case("plain", &tiny) < 64 << 20);
        }
    }
}

fn check(case: &str) {
    let dir = tempfile::tempdir().unwrap();
    let mut process = child("memory::one_process", CASE, case, dir.path());
    let mut text = String::new();
    process
        .stdout
        .take()
        .unwrap()
        .read_to_string(&mut text)
        .unwrap();
    assert!(process.wait().unwrap().success(), "{text}");
    let line = text
        .lines()
        .find_map(|l| l.strip_prefix("measured "))
        .unwrap();
    let numbers: Vec<f64> = line.split(' ').map(|n| n.parse().unwrap()).collect();
    let factor = numbers[0] / numbers[1];
    assert!(
        (1.0..FACTOR).contains(&factor),
        "{case}: {} MiB estimated, {} MiB taken",
        numbers[0] / 1_048_576.0,
        numbers[1] / 1_048_576.0
    );
}

#[test]
fn a_plain_run_takes_what_was_estimated() {
    check("plain");
}

#[test]
fn a_recomputing_run_takes_what_was_estimated() {
    check("recompute");
}

#[test]
fn a_run_in_parts_takes_what_was_estimated() {
    check("parts");
}
