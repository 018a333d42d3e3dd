//! Goal: llama.cpp answers with our GGUF files as we do: a base, an adapter of
//! it, and both merged.
//! Method: `crates/ol-model/fixtures/gguf/llama_cpp.py` on a random model with a
//! trained tokenizer; greedy tokens are equal.
//!
//! Needs `OPENLEDGER_PEFT_PYTHON`, a Python with numpy, gguf and xllamacpp.
//! `cargo xtask test --nightly` runs it; it is no part of `cargo test`.
#![expect(
    clippy::unwrap_used,
    reason = "helpers of tests: a broken fixture should fail them"
)]

#[expect(dead_code, reason = "the other tests use the rest")]
#[path = "it/models.rs"]
mod models;

use std::path::Path;
use std::process::Command;

use ol_model::{
    Dtype, Format, GgufTokenizer, KvCache, Lora, Model, ModelConfig, Pool, Segment, Tokenizer,
    WeightFormat,
};
use ol_train::peft::{convert_for, merge_gguf};
use serde::Deserialize;

use models::{adapter, decisive};

const N: usize = 12;

#[derive(Deserialize)]
struct Answer {
    greedy: Vec<u32>,
    margin: f64,
}

fn theirs(tokens: &[u32], files: &[&Path]) -> Answer {
    let python = std::env::var("OPENLEDGER_PEFT_PYTHON")
        .expect("OPENLEDGER_PEFT_PYTHON names a Python with numpy, gguf and xllamacpp");
    let script =
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../ol-model/fixtures/gguf/llama_cpp.py");
    let tokens: Vec<String> = tokens.iter().map(u32::to_string).collect();
    let output = Command::new(python)
        .arg(script)
        .args([N.to_string(), tokens.join(",")])
        .args(files)
        .output()
        .unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{errors}");
    serde_json::from_slice(&output.stdout).unwrap()
}

fn ours(model: &Model, adapter: Option<&Lora>, tokens: &[u32]) -> Vec<u32> {
    let pool = Pool::new(2);
    let mut cache = KvCache::new(model.config(), 64);
    let mut next = tokens.to_vec();
    let mut greedy = Vec::new();
    for _ in 0..N {
        let segment = Segment {
            tokens: &next,
            cache: &mut cache,
            adapter,
        };
        let logits = model.forward(&pool, &mut [segment]).unwrap();
        let best = (0..logits.len()).max_by(|a, b| logits[*a].total_cmp(&logits[*b]));
        next = vec![u32::try_from(best.unwrap()).unwrap()];
        greedy.extend(&next);
    }
    greedy
}

/// A base with a tokenizer in `base/`, an adapter in `adapter/`.
fn setting(dir: &Path) -> (Model, Lora) {
    let texts = (0..50).map(|i| format!("number {i} is red, and {i} is blue"));
    let tokenizer = Tokenizer::train(texts, 300).unwrap();
    let config = ModelConfig {
        // A few rows more than tokens, as models have.
        vocab_size: tokenizer.vocab_size() + 4,
        hidden_size: 64,
        intermediate_size: 96,
        num_hidden_layers: 2,
        num_attention_heads: 4,
        num_key_value_heads: 2,
        head_dim: 16,
        max_position_embeddings: 64,
        ..ModelConfig::default_base()
    };
    let model = decisive(config, 5);
    std::fs::create_dir_all(dir.join("base")).unwrap();
    model.save(&dir.join("base"), Dtype::F32).unwrap();
    tokenizer.save(&dir.join("base"), 64).unwrap();
    let adapter = adapter(model.config(), 4, 0.2, 3);
    adapter.save(&dir.join("adapter"), "base").unwrap();
    (model, adapter)
}

#[test]
fn llama_cpp_answers_as_we_do() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    let (model, adapter) = setting(dir.path());
    let tokens: Vec<u32> = (0..10).map(|i| (i * 37 + 11) % 290).collect();
    let want = ours(&model, Some(&adapter), &tokens);
    assert_ne!(want, ours(&model, None, &tokens));

    let (base, file) = (at("base.gguf"), at("adapter.gguf"));
    let tokenizer = GgufTokenizer::load(&at("base"), model.config().vocab_size).unwrap();
    model
        .save_gguf(&base, Format::F16, Some(&tokenizer))
        .unwrap();
    convert_for(&at("base"), &at("adapter"), &file, Dtype::F32).unwrap();
    let answer = theirs(&tokens, &[&base, &file]);
    assert_eq!(answer.greedy, want, "won by {}", answer.margin);

    for format in [Format::F16, Format::Q8_0, Format::Q4K] {
        let out = at(&format!("{}.gguf", format.name()));
        let merged = merge_gguf(&Pool::new(2), &at("base"), &at("adapter"), &out, format).unwrap();
        assert!(merged.has_tokenizer);
        // As the file says it, in f32: llama.cpp rounds activations as well.
        let read = Model::load_as(&Pool::new(2), &out, WeightFormat::F32).unwrap();
        let want = ours(&read, None, &tokens);
        let answer = theirs(&tokens, &[&out]);
        assert_eq!(
            answer.greedy,
            want,
            "{}: won by {}",
            format.name(),
            answer.margin
        );
    }
}
