//! Files of models and adapters: what is read is written as it was read.

use std::fs;
use std::path::Path;

use ol_model::{Dtype, Lora, Model, ModelConfig};

/// The parts of an input: the length of each but the last as four bytes
/// (little-endian), then the parts. A length too large takes what there is.
pub(crate) fn parts<const N: usize>(bytes: &[u8]) -> Option<[&[u8]; N]> {
    let (lengths, mut rest) = bytes.split_at_checked(4 * (N - 1))?;
    let mut parts = [rest; N];
    for (part, length) in parts.iter_mut().zip(lengths.as_chunks::<4>().0) {
        let length = usize::try_from(u32::from_le_bytes(*length)).ok()?;
        let (this, after) = rest.split_at(length.min(rest.len()));
        *part = this;
        rest = after;
    }
    parts[N - 1] = rest;
    Some(parts)
}

/// A model directory: `config.json`, `model.safetensors.index.json` (none if
/// empty) and `model.safetensors`.
///
/// # Panics
/// If a model that is read and written again is another one.
pub fn model(bytes: &[u8]) {
    let Some([config, index, weights]) = parts::<3>(bytes) else {
        return;
    };
    let dir = tempfile::tempdir().expect("a folder for temporary files");
    let put = |name: &str, bytes: &[u8]| {
        fs::write(dir.path().join(name), bytes).expect("room for temporary files");
    };
    put("config.json", config);
    put("model.safetensors", weights);
    if !index.is_empty() {
        put("model.safetensors.index.json", index);
    }
    let Ok(model) = Model::load(dir.path()) else {
        return;
    };
    let again = dir.path().join("again");
    model.save(&again, Dtype::F32).expect("finite weights");
    same(&model, &again);
}

fn same(model: &Model, dir: &Path) {
    let read = Model::load(dir).expect("what was written is read");
    assert_eq!(read.config(), model.config(), "another configuration");
    assert_eq!(read.hash(), model.hash(), "another model");
}

/// The shape that the seeds of [`adapter`] are for.
#[must_use]
pub fn adapter_base() -> ModelConfig {
    ModelConfig {
        vocab_size: 8,
        hidden_size: 8,
        intermediate_size: 12,
        num_hidden_layers: 2,
        num_attention_heads: 2,
        num_key_value_heads: 1,
        head_dim: 4,
        max_position_embeddings: 16,
        ..ModelConfig::default_base()
    }
}

/// An adapter: `adapter_config.json` and `adapter_model.safetensors`.
///
/// # Panics
/// If an adapter that is read and written again is another one.
pub fn adapter(bytes: &[u8]) {
    let Some([config, weights]) = parts::<2>(bytes) else {
        return;
    };
    let base = adapter_base();
    if let Ok(lora) = Lora::from_bytes(config, weights, &base) {
        same_adapter(&lora);
    }
}

/// # Panics
/// If the adapter is another one when it is written and read again.
pub(crate) fn same_adapter(lora: &Lora) {
    let (config, weights) = lora.to_bytes("base");
    let read = Lora::from_bytes(&config, &weights, &adapter_base());
    let read = read.expect("what was written is read");
    assert_eq!(read.hash(), lora.hash(), "another adapter");
}
