//! Models and data that runs of these tests share.

use std::path::Path;
use std::process::{Child, Command, Stdio};

use ol_model::{Lora, LoraConfig, Model, ModelConfig, Random, Sequence};

use crate::models::{self, decisive};

/// A small model whose weights are large enough to prefer some tokens.
pub(crate) fn model(config: &ModelConfig) -> Model {
    decisive(config.clone(), 3)
}

pub(crate) fn tiny() -> ModelConfig {
    models::tiny(32)
}

pub(crate) fn adapter(config: &ModelConfig) -> Lora {
    Lora::init(config, LoraConfig::all_linear(2), 1).unwrap()
}

/// Sequences that count upwards, of 3 to `longest` tokens.
pub(crate) fn sequences(n: usize, longest: usize, seed: u64) -> Vec<Sequence> {
    let mut random = Random::new(seed);
    (0..n)
        .map(|_| {
            let (start, len) = (random.below(30), 3 + random.below(longest - 2));
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

/// This test binary again, running one test with something to do in `dir`.
pub(crate) fn child(test: &str, variable: &str, value: &str, dir: &Path) -> Child {
    Command::new(std::env::current_exe().unwrap())
        .args(["--exact", test, "--nocapture", "--test-threads=1"])
        .env(variable, value)
        .env("OPENLEDGER_TEST_DIR", dir)
        .stdout(Stdio::piped())
        .stderr(Stdio::inherit())
        .spawn()
        .unwrap()
}

/// The directory that [`child`] was given.
pub(crate) fn child_dir() -> std::path::PathBuf {
    std::env::var_os("OPENLEDGER_TEST_DIR").unwrap().into()
}
