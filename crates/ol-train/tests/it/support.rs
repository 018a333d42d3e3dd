//! A tiny base, data and a job, on disk.

use std::fs;
use std::path::Path;

use ol_model::{Dtype, Model, ModelConfig, Tokenizer};
use ol_train::job::{BaseSource, DataSource, JobSpec, RunFolder};

/// Writes `base/` and `data.jsonl` below `dir`, and describes a job on them
/// that takes a second or two.
pub(crate) fn setting(dir: &Path) -> JobSpec {
    let colors = ["red", "blue", "green", "black"];
    let pairs: Vec<(String, String)> = (0..40)
        .map(|i| {
            (
                format!("which color is number {}?", i % 10),
                format!("number {} is {}", i % 10, colors[i % 4]),
            )
        })
        .collect();
    let texts: Vec<String> = pairs
        .iter()
        .flat_map(|(q, a)| [q.clone(), a.clone()])
        .collect();
    let tokenizer = Tokenizer::train(texts.into_iter(), 300).unwrap();
    let config = ModelConfig {
        vocab_size: tokenizer.vocab_size(),
        hidden_size: 32,
        intermediate_size: 48,
        num_hidden_layers: 2,
        num_attention_heads: 2,
        num_key_value_heads: 2,
        head_dim: 16,
        max_position_embeddings: 64,
        ..ModelConfig::default_base()
    };
    let base = dir.join("base");
    fs::create_dir_all(&base).unwrap();
    tokenizer.save(&base, 64).unwrap();
    Model::random(config, 1)
        .unwrap()
        .save(&base, Dtype::F32)
        .unwrap();
    let data = dir.join("data.jsonl");
    let lines = pairs.iter().map(|(question, answer)| {
        serde_json::json!({"question": question, "answer": answer}).to_string() + "\n"
    });
    fs::write(&data, lines.collect::<String>()).unwrap();
    let base = BaseSource {
        path: Some(base),
        ..BaseSource::default()
    };
    let data = DataSource {
        files: vec![data],
        ..DataSource::default()
    };
    let mut spec = JobSpec::new("colors", base, data);
    spec.lora.rank = 4;
    spec.options.batch_tokens = 300;
    spec.options.learning_rate = 1e-2;
    spec.options.steps = 150;
    spec.options.warmup_steps = 5;
    spec.options.evaluate_every = 10;
    spec.options.checkpoint_every = 7;
    spec.evaluation.held_out_fraction = 0.1;
    spec
}

/// The files that equal jobs write equally.
pub(crate) fn result(folder: &RunFolder) -> Vec<Vec<u8>> {
    [
        "adapter_model.safetensors",
        "adapter_config.json",
        "training.json",
        "loss.csv",
    ]
    .map(|name| fs::read(folder.adapter().join(name)).unwrap())
    .to_vec()
}
