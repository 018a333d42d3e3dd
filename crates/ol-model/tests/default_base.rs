//! The committed default base is the one its model card describes.

use std::path::Path;

use ol_model::{
    ChatMessage, KvCache, Labels, Lora, Model, ModelConfig, Pool, Role, Segment, Sequence,
    Tokenizer,
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

/// FNV-1a over the bits.
fn digest(bits: impl Iterator<Item = u32>) -> u64 {
    bits.fold(0xCBF2_9CE4_8422_2325, |hash, bits| {
        bits.to_le_bytes().iter().fold(hash, |hash, byte| {
            (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01B3)
        })
    })
}

/// Payouts rest on these bits: a change of kernels or layers that moves one of
/// them makes every receipt of the shipped models wrong.
#[test]
fn the_shipped_models_compute_the_bits_they_always_have() {
    let assets = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../assets");
    let model = Model::load(&assets.join("base")).unwrap();
    let pool = Pool::new(2);
    let seqs: Vec<Sequence> = [40_u32, 1, 130, 77, 256]
        .iter()
        .zip(0..)
        .map(|(&n, j)| Sequence {
            tokens: (0..n)
                .map(|i| (i * i * 31 + i * 7 + j * 911) % 4096)
                .collect(),
            weights: (0..n)
                .map(|i| {
                    let part = f32::from(u8::try_from(i % 5).unwrap());
                    if i % 9 == 0 { 0.0 } else { 0.5 + part * 0.1 }
                })
                .collect(),
        })
        .collect();
    let (loss, gradient) = model.full_gradient(&pool, &seqs).unwrap();
    let bits = |values: &[f32]| digest(values.iter().map(|v| v.to_bits()));
    assert_eq!(loss.to_bits(), 4_660_241_913_736_772_890);
    assert_eq!(bits(&gradient), 0x9F49_D557_0F83_616F);
    for (name, gradients, logits) in [
        (
            "defi-exploits",
            [0xF1F8_9115_BC13_E792, 0x326C_36AA_9BA4_3167],
            0x0AB5_EE52_6810_A151,
        ),
        (
            "healthcare",
            [0x3F96_4405_1682_1306, 0x64AB_C607_932C_1AED],
            0xE1C5_7B49_441E_5772,
        ),
        (
            "legal",
            [0x2D41_0750_CE61_CAE0, 0x44AC_ED68_9622_2FF5],
            0xF682_4949_2852_4327,
        ),
    ] {
        let lora = Lora::load(&assets.join("models").join(name), model.config()).unwrap();
        let labels = [Labels::Given, Labels::Sampled { seed: 5 }];
        let got = labels.map(|labels| {
            let each = model.lora_gradients(&pool, &lora, &seqs, labels).unwrap();
            digest(
                each.iter()
                    .flat_map(|g| g.gradient.iter().map(|v| v.to_bits())),
            )
        });
        assert_eq!(got, gradients, "{name}");
        // Prompts in a batch, one without the adapter; then token by token.
        let mut caches: Vec<KvCache> = (0..4).map(|_| KvCache::new(model.config(), 300)).collect();
        let mut got = 0;
        for step in 0..9_u32 {
            let next = [step.saturating_sub(1) * 17];
            let mut segments: Vec<Segment<'_>> = caches
                .iter_mut()
                .zip([0, 2, 3, 4])
                .map(|(cache, i)| Segment {
                    tokens: if step == 0 { &seqs[i].tokens } else { &next },
                    cache,
                    adapter: (step > 0 || i != 3).then_some(&lora),
                })
                .collect();
            got ^= bits(&model.forward(&pool, &mut segments).unwrap());
        }
        assert_eq!(got, logits, "{name}");
    }
}
