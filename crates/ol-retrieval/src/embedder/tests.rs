use ol_model::{Dtype, ModelConfig};

use super::*;

/// A small random model with a tokenizer, in a folder.
pub(crate) fn folder() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    let texts = ["who drained the bridge and how", "symptoms and treatment"];
    let tokenizer = Tokenizer::train(texts.iter().map(ToString::to_string), 300).unwrap();
    let config = ModelConfig {
        vocab_size: tokenizer.vocab_size(),
        hidden_size: 32,
        intermediate_size: 48,
        num_hidden_layers: 2,
        num_attention_heads: 2,
        num_key_value_heads: 1,
        head_dim: 16,
        max_position_embeddings: 64,
        ..ModelConfig::default_base()
    };
    let model = Model::random(config, 1).unwrap();
    model.save(dir.path(), Dtype::F32).unwrap();
    tokenizer.save(dir.path(), 64).unwrap();
    dir
}

fn write(dir: &Path, file: &str, text: &str) {
    let path = dir.join(file);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, text).unwrap();
}

#[test]
fn texts_are_embedded_alike_alone_and_together() {
    let dir = folder();
    let embedder = Embedder::load(dir.path(), 2).unwrap();
    let long = "bridge ".repeat(200);
    let texts: Vec<&str> = ["who?", "", "the bridge", &long]
        .into_iter()
        .cycle()
        .take(20)
        .collect();
    let all = embedder.embed(EmbedKind::Passage, &texts).unwrap();
    assert!(all.iter().all(|e| e.len() == embedder.n_dimensions()));
    for (text, embedding) in texts.iter().zip(&all) {
        let alone = embedder.embed(EmbedKind::Query, &[*text]).unwrap();
        assert_eq!(alone[0], *embedding, "{text:?}");
    }
    assert_ne!(all[0], all[2]);
}

#[test]
fn the_settings_of_a_folder_say_what_an_embedding_is() {
    let dir = folder();
    let plain = Embedder::load(dir.path(), 1).unwrap();
    assert!(plain.needs_centring());
    write(
        dir.path(),
        "1_Pooling/config.json",
        r#"{"pooling_mode_lasttoken": true}"#,
    );
    write(
        dir.path(),
        "config_sentence_transformers.json",
        r#"{"prompts": {"query": "how "}}"#,
    );
    let last = Embedder::load(dir.path(), 1).unwrap();
    assert!(!last.needs_centring());
    assert_ne!(plain.id(), last.id());
    let passage = last.embed(EmbedKind::Passage, &["how the bridge"]).unwrap();
    let query = last.embed(EmbedKind::Query, &["the bridge"]).unwrap();
    assert_eq!(passage, query);
    let mean = plain.embed(EmbedKind::Query, &["how the bridge"]).unwrap();
    assert_ne!(passage, mean);
}

#[test]
fn settings_that_are_not_known_are_refused_by_their_file() {
    let dir = folder();
    let cases = [
        (
            "1_Pooling/config.json",
            r#"{"pooling_mode_cls_token": true}"#,
        ),
        ("1_Pooling/config.json", "{"),
        (
            "config_sentence_transformers.json",
            r#"{"prompts": {"query": 3}}"#,
        ),
    ];
    for (file, text) in cases {
        write(dir.path(), file, text);
        let error = Embedder::load(dir.path(), 1).unwrap_err();
        assert!(error.to_string().starts_with(file), "{error}");
        fs::remove_file(dir.path().join(file)).unwrap();
    }
    assert!(matches!(
        Embedder::load(&dir.path().join("none"), 1),
        Err(EmbedError::Load(_))
    ));
}
