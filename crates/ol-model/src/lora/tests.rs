use super::*;
use crate::weights::{Dtype, serialize};

fn model() -> ModelConfig {
    ModelConfig {
        vocab_size: 20,
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

fn lora() -> Lora {
    let config = LoraConfig {
        rank: 2,
        alpha: 4.0,
        target_modules: vec![Projection::Down, Projection::K],
        ..LoraConfig::default()
    };
    Lora::init(&model(), config, 7).unwrap()
}

#[test]
fn blocks_cover_the_parameters_in_order() {
    let lora = lora();
    let mut at = 0;
    for block in lora.blocks() {
        assert_eq!(block.offset, at);
        assert_eq!(
            (block.range_a().start, block.range_a().end),
            (at, block.range_b().start)
        );
        at = block.range_b().end;
    }
    assert_eq!(at, lora.n_params());
    let order: Vec<(usize, Projection)> = lora
        .blocks()
        .iter()
        .map(|b| (b.layer, b.projection))
        .collect();
    let (k, down) = (Projection::K, Projection::Down);
    assert_eq!(order, [(0, k), (0, down), (1, k), (1, down)]);
    assert_eq!(lora.blocks()[0].rows_a, (2, 8));
    assert_eq!(lora.blocks()[0].rows_b, (4, 2));
    assert!(
        lora.parameters()[lora.blocks()[0].range_a()]
            .iter()
            .all(|a| *a != 0.0)
    );
    assert!(
        lora.parameters()[lora.blocks()[0].range_b()]
            .iter()
            .all(|b| *b == 0.0)
    );
}

#[test]
fn the_hash_is_that_of_the_content() {
    let lora = lora();
    let (config, weights) = lora.to_bytes("some base");
    let read = Lora::from_bytes(&config, &weights, &model()).unwrap();
    assert_eq!(read.hash(), lora.hash());
    assert_eq!(
        Lora::from_bytes(&lora.to_bytes("other").0, &weights, &model())
            .unwrap()
            .hash(),
        lora.hash()
    );
    let mut changed = lora.clone();
    let mut params = lora.parameters().to_vec();
    params[0] += 1.0;
    changed.set_parameters(&params).unwrap();
    assert_ne!(changed.hash(), lora.hash());
    let config = LoraConfig {
        alpha: 5.0,
        ..lora.config().clone()
    };
    let scaled = Lora::from_parameters(&model(), config, lora.parameters().to_vec()).unwrap();
    assert_ne!(scaled.hash(), lora.hash());
}

#[test]
fn configurations_out_of_limits_are_refused_by_name() {
    let (config, weights) = lora().to_bytes("b");
    let config: serde_json::Value = serde_json::from_slice(&config).unwrap();
    for (field, value, word) in [
        ("r", serde_json::json!(257), "257"),
        ("r", serde_json::json!(0), "rank 0"),
        ("r", serde_json::json!(3), "expected [3, 8]"),
        ("lora_alpha", serde_json::json!(0.0), "alpha"),
        (
            "target_modules",
            serde_json::json!(["embed_tokens"]),
            "embed_tokens",
        ),
        ("target_modules", serde_json::json!([]), "target"),
        ("target_modules", serde_json::json!("(proj"), "pattern"),
        ("target_modules", serde_json::json!(".*"), "lm_head"),
        (
            "target_modules",
            serde_json::json!(["k_proj"]),
            "does not belong",
        ),
        (
            "target_modules",
            serde_json::json!("all-linear"),
            "is missing",
        ),
        ("peft_type", serde_json::json!("IA3"), "IA3"),
        (
            "use_dora",
            serde_json::json!(true),
            "lora_magnitude_vector: is missing",
        ),
        (
            "layers_to_transform",
            serde_json::json!([0]),
            "layers_to_transform",
        ),
        (
            "init_lora_weights",
            serde_json::json!("pissa_niter_4"),
            "pissa",
        ),
        ("lora_bias", serde_json::json!(true), "lora_bias"),
        ("bias", serde_json::json!("all"), "bias"),
        (
            "modules_to_save",
            serde_json::json!(["lm_head"]),
            "modules_to_save",
        ),
        (
            "rank_pattern",
            serde_json::json!({"k_proj": 4}),
            "expected [4, 8]",
        ),
        (
            "alpha_pattern",
            serde_json::json!({"k_proj": 4.0, "layers.0.self_attn.k_proj": 5.0}),
            "different values",
        ),
        ("rank_pattern", serde_json::json!({"[": 4}), "pattern"),
    ] {
        let mut bad = config.clone();
        bad[field] = value;
        let error = Lora::from_bytes(bad.to_string().as_bytes(), &weights, &model())
            .unwrap_err()
            .to_string();
        assert!(error.contains(word), "{field}: {error}");
    }
}

#[test]
fn tensors_that_do_not_fit_are_refused_by_name() {
    let lora = lora();
    let (config, weights) = lora.to_bytes("b");
    let wide = ModelConfig {
        hidden_size: 10,
        ..model()
    };
    let error = Lora::from_bytes(&config, &weights, &wide)
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("adapter_model.safetensors: tensor") && error.contains("lora_A"),
        "{error}"
    );
    let deep = ModelConfig {
        num_hidden_layers: 3,
        ..model()
    };
    let error = Lora::from_bytes(&config, &weights, &deep)
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("layers.2.self_attn.k_proj.lora_A.weight: is missing"),
        "{error}"
    );
    // One value that is not a number.
    let one = LoraConfig {
        rank: 1,
        alpha: 1.0,
        target_modules: vec![Projection::V],
        ..LoraConfig::default()
    };
    let shallow = ModelConfig {
        num_hidden_layers: 1,
        ..model()
    };
    let (config, _) = Lora::init(&shallow, one, 1).unwrap().to_bytes("b");
    let name = |f| format!("base_model.model.model.layers.0.self_attn.v_proj.lora_{f}.weight");
    let (a, b) = (name("A"), name("B"));
    let tensors: [(&str, &[usize], &[f32]); 2] =
        [(&a, &[1, 8], &[1.0; 8]), (&b, &[4, 1], &[0.0; 4])];
    for bad in [half::f16::NAN, half::f16::INFINITY] {
        let mut weights = serialize(&tensors, Dtype::F16).unwrap();
        let at = weights.len() - 6;
        weights[at..at + 2].copy_from_slice(&bad.to_le_bytes());
        let error = Lora::from_bytes(&config, &weights, &shallow)
            .unwrap_err()
            .to_string();
        assert!(error.contains("lora_B.weight: element 1"), "{error}");
    }
    assert!(matches!(
        lora.clone()
            .set_parameters(&vec![f32::NAN; lora.n_params()]),
        Err(LoraError::Parameters { .. })
    ));
}

#[test]
fn targets_are_chosen_as_peft_chooses_them() {
    let model = model();
    let (q, k, down) = (Projection::Q, Projection::K, Projection::Down);
    let all: Vec<(usize, Projection)> = (0..2)
        .flat_map(|layer| Projection::of(&model).into_iter().map(move |p| (layer, p)))
        .collect();
    let paths: Vec<String> = all.iter().map(|(l, p)| p.module_path(&model, *l)).collect();
    for (targets, want) in [
        (
            serde_json::json!(["q_proj", "k_proj"]),
            vec![(0, q), (0, k), (1, q), (1, k)],
        ),
        (
            serde_json::json!(["self_attn.q_proj"]),
            vec![(0, q), (1, q)],
        ),
        (
            serde_json::json!(["layers.1.mlp.down_proj"]),
            vec![(1, down)],
        ),
        (
            serde_json::json!(["1.mlp.down_proj", "q_proj"]),
            vec![(0, q), (1, q), (1, down)],
        ),
        (
            serde_json::json!(r".*\.0\..*(q|k)_proj"),
            vec![(0, q), (0, k)],
        ),
        (serde_json::json!("all-linear"), all.clone()),
        (serde_json::json!(paths), all),
    ] {
        let text = serde_json::json!({
            "peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": targets,
        });
        let config = peft::parse_config(text.to_string().as_bytes(), &model).unwrap();
        let lora = Lora::init(&model, config, 3).unwrap();
        let got: Vec<_> = lora
            .blocks()
            .iter()
            .map(|b| (b.layer, b.projection))
            .collect();
        assert_eq!(got, want, "{targets}");
        // What is written chooses the same.
        let (config, weights) = lora.to_bytes("b");
        let read = Lora::from_bytes(&config, &weights, &model).unwrap();
        assert_eq!(read.hash(), lora.hash(), "{targets}");
        assert_eq!(read.blocks(), lora.blocks());
    }
}

#[test]
fn patterns_and_scalings_reach_the_blocks() {
    let config = LoraConfig {
        rank: 4,
        alpha: 8.0,
        rank_pattern: [(r"1\.self_attn\.q_proj".to_owned(), 1)].into(),
        alpha_pattern: [("down_proj".to_owned(), 2.0)].into(),
        use_rslora: true,
        target_modules: vec![Projection::Q, Projection::Down],
        ..LoraConfig::default()
    };
    let lora = Lora::init(&model(), config, 1).unwrap();
    let got: Vec<_> = lora.blocks().iter().map(|b| (b.rank(), b.scale)).collect();
    assert_eq!(got, [(4, 4.0), (4, 1.0), (1, 8.0), (4, 1.0)]);
    let (config, weights) = lora.to_bytes("b");
    let read = Lora::from_bytes(&config, &weights, &model()).unwrap();
    assert_eq!((read.hash(), read.config()), (lora.hash(), lora.config()));
    let json = serde_json::to_string(&LoraConfig::all_linear(2)).unwrap();
    assert!(
        !json.contains("pattern") && !json.contains("use_"),
        "{json}"
    );
}

#[test]
fn an_adapter_is_held_once_in_the_type_of_its_file() {
    let model = ModelConfig {
        hidden_size: 192,
        intermediate_size: 512,
        num_attention_heads: 6,
        num_key_value_heads: 3,
        head_dim: 32,
        ..model()
    };
    let fresh = Lora::init(&model, LoraConfig::all_linear(24), 5).unwrap();
    let (config, _) = fresh.to_bytes("b");
    let named: Vec<_> = fresh.blocks().iter().flat_map(peft::tensors_of).collect();
    let tensors: Vec<(&str, &[usize], &[f32])> = named
        .iter()
        .map(|(name, shape, range)| {
            let values = &fresh.parameters()[range.clone()];
            (name.as_str(), shape.as_slice(), values)
        })
        .collect();
    for dtype in [Dtype::F32, Dtype::F16, Dtype::Bf16] {
        let file = serialize(&tensors, dtype).unwrap();
        let read = Lora::from_bytes(&config, &file, &model).unwrap();
        let (held, stored) = (read.resident_size_bytes(), file.len());
        assert!(
            held * 10 < stored * 11,
            "{dtype:?}: {held} bytes held of a file of {stored}"
        );
        // Reading and hashing keep nothing; the flat parameters are kept.
        let params = read.to_parameters();
        let again = Lora::from_parameters(&model, read.config().clone(), params).unwrap();
        assert_eq!(read.hash(), again.hash(), "{dtype:?}");
        assert_eq!(read.resident_size_bytes(), held);
        assert_eq!(read.parameters(), again.parameters());
        assert!(read.resident_size_bytes() > held);
        assert_eq!(read.hash() == fresh.hash(), dtype == Dtype::F32);
    }
}
