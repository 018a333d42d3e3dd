//! Models that unit and integration tests share.

use ol_model::{Lora, LoraConfig, Model, ModelConfig, Random};

/// Two small blocks and forty tokens.
pub(crate) fn tiny(context_tokens: usize) -> ModelConfig {
    ModelConfig {
        vocab_size: 40,
        hidden_size: 16,
        intermediate_size: 24,
        num_hidden_layers: 2,
        num_attention_heads: 2,
        num_key_value_heads: 1,
        head_dim: 8,
        max_position_embeddings: context_tokens,
        ..ModelConfig::default_base()
    }
}

/// Larger weights than a fresh model's: a tied, frozen embedding of tiny rows
/// could not express a confident answer, nor an adapter have an effect.
pub(crate) fn decisive(config: ModelConfig, seed: u64) -> Model {
    let small = Model::random(config.clone(), seed).unwrap();
    let params: Vec<f32> = small
        .parameters()
        .iter()
        .map(|p| if *p == 1.0 { 1.0 } else { 8.0 * p })
        .collect();
    Model::from_parameters(config, &params).unwrap()
}

/// An adapter of all linear layers with normal parameters times `size`.
pub(crate) fn adapter(config: &ModelConfig, rank: usize, size: f32, seed: u64) -> Lora {
    let lora = LoraConfig::all_linear(rank);
    let fresh = Lora::init(config, lora.clone(), 1).unwrap();
    let mut random = Random::new(seed);
    let params = (0..fresh.n_params())
        .map(|_| size * random.normal())
        .collect();
    Lora::from_parameters(config, lora, params).unwrap()
}
