//! The committed default base is the one its model card describes.

use std::path::Path;

use ol_model::{
    ChatMessage, KvCache, Model, ModelConfig, Pool, Role, Segment, Sequence, Tokenizer,
};

#[test]
fn the_default_base_loads_has_the_published_hash_and_knows_its_text() {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../assets/base");
    let model = Model::load(&dir).unwrap();
    assert_eq!(*model.config(), ModelConfig::default_base());
    let card = std::fs::read_to_string(dir.join("README.md")).unwrap();
    assert!(
        card.contains(&model.hash().to_string()),
        "the card names another hash than {}",
        model.hash()
    );

    let tokenizer = Tokenizer::load(&dir).unwrap();
    assert_eq!(tokenizer.vocab_size(), model.config().vocab_size);
    let pool = Pool::new(2);
    let question = "What are the symptoms of Cystic fibrosis ?";
    let prompt = tokenizer
        .chat(&[ChatMessage {
            role: Role::User,
            content: question.to_owned(),
        }])
        .unwrap();
    let mut cache = KvCache::new(model.config(), 64);
    let logits = model
        .forward(
            &pool,
            &mut [Segment {
                tokens: &prompt,
                cache: &mut cache,
                adapter: None,
            }],
        )
        .unwrap();
    assert!(logits.len() == 4096 && logits.iter().all(|l| l.is_finite()));

    // Far below the 8.3 nats of a guess among 4,096 tokens.
    let (tokens, _) = tokenizer
        .record(
            question,
            "What are the signs and symptoms of Cystic fibrosis?",
        )
        .unwrap();
    let n = tokens.len() - 1;
    let sequence = Sequence {
        weights: vec![1.0; tokens.len()],
        tokens,
    };
    let loss = model.losses(&pool, None, &[sequence]).unwrap()[0] / n as f64;
    assert!(loss < 2.5, "{loss} nats a token");
}
