use proptest::prelude::*;

use super::*;

#[test]
fn files_of_every_variant_read_back_and_can_stay_as_stored() {
    let pool = Pool::new(2);
    for config in variants() {
        let base = model_of(config.clone());
        let dir = tempfile::tempdir().unwrap();
        base.save(dir.path(), Dtype::Bf16).unwrap();
        let wide = Model::load(dir.path()).unwrap();
        assert_eq!(*wide.config(), config);
        let stored = Model::load_as(&pool, dir.path(), WeightFormat::Stored).unwrap();
        assert_ne!(stored.hash(), wide.hash());
        assert!(stored.size_bytes() < wide.size_bytes() * 3 / 4);
        assert_eq!(bits(&stored.parameters()), bits(&wide.parameters()));
        // The same numbers in the same order: the same bits.
        let prompt = tokens(40, 3);
        assert_eq!(
            bits(&alone(&stored, &pool, &prompt, None)),
            bits(&alone(&wide, &pool, &prompt, None))
        );
        let lora = adapter_of(&config, 2, 5, &Projection::ALL);
        let seqs = [sequence(30, 1)];
        let [a, b] = [&stored, &wide].map(|model| {
            let (_, gradient) = model
                .lora_gradient(&pool, &lora, &seqs, Labels::Given)
                .unwrap();
            bits(&gradient)
        });
        assert!(a == b, "gradients of {:?}", config.family);
        assert!(matches!(
            stored.full_gradient(&pool, &seqs),
            Err(ForwardError::Frozen(_))
        ));
        let again = tempfile::tempdir().unwrap();
        stored.save(again.path(), Dtype::Bf16).unwrap();
        let read =
            |dir: &tempfile::TempDir| std::fs::read(dir.path().join("model.safetensors")).unwrap();
        assert!(read(&again) == read(&dir), "written as it was read");
    }
}

#[test]
fn files_that_do_not_fit_are_refused_by_file_and_tensor() {
    let config = ModelConfig {
        family: Family::Qwen2,
        ..tiny(true)
    };
    let base = model_of(config);
    let dir = tempfile::tempdir().unwrap();
    base.save(dir.path(), Dtype::F32).unwrap();
    let file = |name: &str| dir.path().join(name);
    let config: serde_json::Value =
        serde_json::from_slice(&std::fs::read(file("config.json")).unwrap()).unwrap();
    let refused = |changes: &[(&str, serde_json::Value)]| {
        let mut changed = config.clone();
        for (name, value) in changes {
            changed[name] = value.clone();
        }
        std::fs::write(file("config.json"), changed.to_string()).unwrap();
        let error = Model::load(dir.path()).unwrap_err().to_string();
        std::fs::write(file("config.json"), config.to_string()).unwrap();
        error
    };
    let error = refused(&[("hidden_size", 28.into())]);
    assert!(
        error.contains("model.safetensors")
            && error.contains("embed_tokens.weight: has shape [61, 24], expected [61, 28]"),
        "{error}"
    );
    let error = refused(&[("model_type", "llama".into())]);
    assert!(error.contains("k_proj.bias: does not belong"), "{error}");
    let error = refused(&[
        ("model_type", "qwen3".into()),
        ("attention_bias", true.into()),
    ]);
    assert!(error.contains("q_norm.weight: is missing"), "{error}");
    let error = refused(&[("tie_word_embeddings", false.into())]);
    assert!(error.contains("lm_head.weight: is missing"), "{error}");
    let error = refused(&[("model_type", "gpt2".into())]);
    assert!(error.contains("gpt2"), "{error}");

    // Two files: each tensor in one of them, as the index says.
    let index = |map: serde_json::Value| {
        let text = serde_json::json!({ "weight_map": map }).to_string();
        std::fs::write(file("model.safetensors.index.json"), text).unwrap();
        Model::load(dir.path()).map(|_| ())
    };
    let all = |other: &str| {
        let names = base.layout().tensors().iter().map(|s| s.name.clone());
        let mut map: serde_json::Map<String, serde_json::Value> =
            names.map(|n| (n, "model.safetensors".into())).collect();
        map.insert("model.norm.weight".to_owned(), other.into());
        serde_json::Value::Object(map)
    };
    index(all("model.safetensors")).unwrap();
    std::fs::copy(file("model.safetensors"), file("other.safetensors")).unwrap();
    for (map, word) in [
        (all("other.safetensors"), "is also in"),
        (all("../model.safetensors"), "of the directory"),
        (all("missing.safetensors"), "missing.safetensors"),
        (serde_json::json!({}), "names 0 files"),
        (
            serde_json::json!({"x": "model.safetensors"}),
            "tensor x: is not in",
        ),
        (serde_json::json!(null), "no weight_map"),
    ] {
        let error = index(map).unwrap_err().to_string();
        assert!(error.contains(word), "{word}: {error}");
    }
}

#[test]
fn files_round_trip_in_three_types() {
    let base = model(false);
    for (dtype, worst) in [(Dtype::F32, 0.0), (Dtype::F16, 1e-3), (Dtype::Bf16, 8e-3)] {
        let dir = tempfile::tempdir().unwrap();
        base.save(dir.path(), dtype).unwrap();
        let read = Model::load(dir.path()).unwrap();
        for (a, b) in base.parameters().iter().zip(read.parameters()) {
            assert!((a - b).abs() <= worst * a.abs().max(0.01));
        }
        // What was rounded once is exact from then on.
        let again = tempfile::tempdir().unwrap();
        read.save(again.path(), dtype).unwrap();
        assert_eq!(Model::load(again.path()).unwrap().hash(), read.hash());
    }
}

/// That part of `n`.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "a fraction of a length"
)]
fn part(fraction: f64, n: usize) -> usize {
    (fraction * n as f64) as usize
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn hostile_model_files_are_errors(cut in 0.0_f64..1.0, at in 0.0_f64..1.0, byte: u8, grow in 0_usize..40) {
        static FILES: OnceLock<[Vec<u8>; 2]> = OnceLock::new();
        let [config, bytes] = FILES.get_or_init(|| {
            let base = Model::random(ModelConfig { num_hidden_layers: 1, ..tiny(true) }, 1).unwrap();
            let dir = tempfile::tempdir().unwrap();
            base.save(dir.path(), Dtype::F16).unwrap();
            ["config.json", "model.safetensors"].map(|f| std::fs::read(dir.path().join(f)).unwrap())
        });
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("config.json"), config).unwrap();
        let path = dir.path().join("model.safetensors");
        let mut cut_off = bytes[..part(cut, bytes.len())].to_vec();
        std::fs::write(&path, &cut_off).unwrap();
        prop_assert!(Model::load(dir.path()).is_err());
        cut_off.resize(cut_off.len() + grow, byte);
        std::fs::write(&path, &cut_off).unwrap();
        let _ = Model::load(dir.path());
        let mut changed = bytes.clone();
        // Mostly the header, where structure lives.
        let i = part(at * at * at, bytes.len() - 1);
        changed[i] = byte;
        std::fs::write(&path, &changed).unwrap();
        let _ = Model::load(dir.path());
        std::fs::write(&path, bytes).unwrap();
        let mut changed = config.clone();
        changed[part(at, config.len() - 1)] = byte;
        std::fs::write(dir.path().join("config.json"), &changed).unwrap();
        let _ = Model::load(dir.path());
        std::fs::write(dir.path().join("config.json"), config).unwrap();
        let mut index = br#"{"weight_map": {"model.norm.weight": "model.safetensors"}}"#.to_vec();
        let i = part(at, index.len() - 1);
        index[i] = byte;
        std::fs::write(dir.path().join("model.safetensors.index.json"), &index).unwrap();
        let _ = Model::load(dir.path());
    }

    #[test]
    fn hostile_adapters_are_errors(cut in 0.0_f64..1.0, at in 0.0_f64..1.0, byte: u8) {
        let lora = adapter(2, 1, &[Projection::Q, Projection::Down]);
        let (config, weights) = lora.to_bytes("base");
        let n = part(cut, weights.len());
        prop_assert!(Lora::from_bytes(&config, &weights[..n], &tiny(true)).is_err());
        let n = part(cut, config.len());
        prop_assert!(Lora::from_bytes(&config[..n.min(config.len() - 3)], &weights, &tiny(true)).is_err());
        let mut changed = weights.clone();
        let i = part(at * at * at, weights.len() - 1);
        changed[i] = byte;
        let _ = Lora::from_bytes(&config, &changed, &tiny(true));
        let mut changed = config.clone();
        let i = part(at, config.len() - 1);
        changed[i] = byte;
        let _ = Lora::from_bytes(&changed, &weights, &tiny(true));
    }
}
