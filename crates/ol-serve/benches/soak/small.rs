//! What the soaks serve, and the memory that it may not lose.

use std::fs;

use ol_model::{Lora, LoraConfig, Model, ModelConfig, Random, Tokenizer};

/// A model whose answers are quick and differ.
pub(crate) fn model(tokenizer: &Tokenizer) -> Model {
    let config = ModelConfig {
        vocab_size: tokenizer.vocab_size(),
        hidden_size: 32,
        intermediate_size: 48,
        num_hidden_layers: 2,
        num_attention_heads: 2,
        num_key_value_heads: 1,
        head_dim: 16,
        max_position_embeddings: 512,
        tie_word_embeddings: false,
        ..ModelConfig::default_base()
    };
    let random = Model::random(config.clone(), 1).unwrap();
    // Peaked logits, so that answers differ.
    let params: Vec<f32> = random.parameters().iter().map(|p| p * 20.0).collect();
    Model::from_parameters(config, &params).unwrap()
}

/// A random adapter of it.
pub(crate) fn lora(base: &Model, rank: usize, seed: u64) -> Lora {
    let config = LoraConfig::all_linear(rank);
    let n = config.n_params(base.config()).unwrap();
    let mut random = Random::new(seed);
    #[expect(clippy::cast_possible_truncation, reason = "any numbers will do")]
    let params = (0..n).map(|_| random.uniform() as f32 - 0.5).collect();
    Lora::from_parameters(base.config(), config, params).unwrap()
}

/// Memory of the process that is in RAM, in bytes.
pub(crate) fn resident_bytes() -> u64 {
    let statm = fs::read_to_string("/proc/self/statm").unwrap();
    let pages: u64 = statm.split(' ').nth(1).unwrap().parse().unwrap();
    pages * 4096
}
