use serde_json::{Value, json};

use super::*;

fn read(value: &Value) -> Result<ModelConfig, ConfigError> {
    ModelConfig::from_json(value.to_string().as_bytes())
}

/// `base` with the fields of `changes`.
fn with(base: &Value, changes: &Value) -> Value {
    let mut all = base.clone();
    for (name, value) in changes.as_object().unwrap() {
        all[name] = value.clone();
    }
    all
}

fn llama() -> Value {
    serde_json::from_str(&ModelConfig::default_base().to_json()).unwrap()
}

fn small(model_type: &str) -> Value {
    let base = json!({
        "model_type": model_type, "vocab_size": 32, "hidden_size": 16, "intermediate_size": 24,
        "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 4,
    });
    let experts = json!({
        "num_experts_per_tok": 2, "n_routed_experts": 8, "n_group": 4, "topk_group": 2,
        "first_k_dense_replace": 1,
    });
    if model_type.starts_with("deepseek") {
        with(&base, &experts)
    } else {
        base
    }
}

#[test]
fn json_round_trips_and_reads_both_rope_styles() {
    let config = ModelConfig::default_base();
    assert_eq!(
        ModelConfig::from_json(config.to_json().as_bytes()).unwrap(),
        config
    );
    assert_eq!(config.n_params(), 3_148_224);
    let old = json!({
        "vocab_size": 10, "hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 1,
        "num_attention_heads": 2, "rope_theta": 500.0,
    });
    let config = read(&old).unwrap();
    assert_eq!(
        (
            config.rope_theta,
            config.head_dim,
            config.num_key_value_heads
        ),
        (500.0, 4, 2)
    );
}

#[test]
fn every_family_survives_its_own_file() {
    let changes = json!({
        "rope_parameters": {
            "rope_type": "yarn", "rope_theta": 5e5, "factor": 4.0, "mscale": 0.7,
            "mscale_all_dim": 0.9, "original_max_position_embeddings": 64, "truncate": false,
        },
        "sliding_window": 7, "use_sliding_window": true, "max_window_layers": 1,
        "attention_bias": true, "mlp_bias": true, "topk_method": null,
    });
    for family in Family::ALL {
        for changes in [&json!({}), &changes] {
            let mut file = with(&small(family.model_type()), changes);
            if matches!(family, Family::DeepSeekV2) {
                file["topk_method"] = json!("group_limited_greedy");
            }
            let config = read(&file).unwrap();
            assert_eq!(config.family, family);
            let again = ModelConfig::from_json(config.to_json().as_bytes()).unwrap();
            assert_eq!(again, config);
            let (mut a, mut b) = (Vec::new(), Vec::new());
            config.encode_any(&mut a);
            again.encode_any(&mut b);
            assert_eq!(a, b);
        }
    }
}

#[test]
fn what_a_file_leaves_out_is_what_transformers_assumes() {
    let bare = |kind: &str| {
        let mut file = small(kind);
        let object = file.as_object_mut().unwrap();
        object.remove("num_key_value_heads");
        object.insert("num_attention_heads".into(), json!(64));
        object.insert("hidden_size".into(), json!(128));
        file
    };
    let mistral = read(&bare("mistral")).unwrap();
    assert_eq!(mistral.num_key_value_heads, 8);
    assert_eq!(mistral.max_position_embeddings, 131_072);
    assert_eq!(mistral.sliding_window.unwrap().window_tokens, 4096);
    let qwen3 = read(&bare("qwen3")).unwrap();
    assert_eq!((qwen3.head_dim, qwen3.num_key_value_heads), (128, 32));
    assert!(qwen3.has_qk_norm() && !qwen3.has_qkv_bias());
    let qwen2 = read(&bare("qwen2")).unwrap();
    assert!(qwen2.has_qkv_bias() && !qwen2.has_output_bias());
    assert_eq!(qwen2.sliding_window, None);
    let v3 = read(&small("deepseek_v3")).unwrap();
    assert_eq!(v3.mla.unwrap().q_lora_rank, Some(1536));
    assert!(v3.has_experts(1) && !v3.has_experts(0));
}

#[test]
fn windows_follow_the_layer_types() {
    let qwen = with(
        &small("qwen2"),
        &json!({"use_sliding_window": true, "sliding_window": 5, "max_window_layers": 2}),
    );
    let windows = |file: &Value| {
        let window = read(file).unwrap().sliding_window;
        (0..3)
            .map(|i| {
                window
                    .as_ref()
                    .filter(|w| w.layers[i])
                    .map(|w| w.window_tokens)
            })
            .collect::<Vec<_>>()
    };
    assert_eq!(windows(&qwen), [None, None, Some(5)]);
    let types = json!({"layer_types": ["sliding_attention", "full_attention", "full_attention"]});
    assert_eq!(windows(&with(&qwen, &types)), [Some(5), None, None]);
    let mistral = with(&small("mistral"), &json!({"sliding_window": 3}));
    assert_eq!(windows(&mistral), [Some(3); 3]);
    let none = with(&mistral, &json!({"sliding_window": null}));
    assert_eq!(windows(&none), [None; 3]);
}

#[test]
fn what_cannot_be_run_is_refused_by_name() {
    let base = llama();
    for (changes, word) in [
        (json!({"model_type": "gpt2"}), "gpt2"),
        (json!({"hidden_act": "gelu"}), "gelu"),
        (
            json!({"quantization_config": {"quant_method": "fp8"}}),
            "fp8",
        ),
        (
            json!({"rope_parameters": {"rope_type": "longrope"}}),
            "longrope",
        ),
        (
            json!({"rope_scaling": {"type": "linear"}}),
            "rope_scaling.factor",
        ),
        (
            json!({"rope_scaling": {"type": "linear", "factor": 0.5}}),
            "factor is 0.5",
        ),
        (
            json!({"rope_scaling": {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 4.0,
                "high_freq_factor": 1.0}}),
            "high_freq_factor",
        ),
        (
            json!({"rope_parameters": {"rope_type": "default", "partial_rotary_factor": 0.5}}),
            "partial_rotary_factor",
        ),
        (json!({"num_key_value_heads": 4}), "divide"),
        (json!({"head_dim": 31}), "odd"),
        (json!({"vocab_size": 0}), "vocab_size"),
        (json!({"hidden_size": 1_u64 << 40}), "hidden_size"),
        (json!({"rms_norm_eps": -1.0}), "eps"),
        (json!({"vocab_size": "many"}), "cannot be read"),
        (json!({"vocab_size": null}), "vocab_size is missing"),
        (json!({"num_local_experts": 8}), "num_local_experts"),
        (
            json!({"model_type": "qwen2", "use_sliding_window": true, "sliding_window": 4,
                "layer_types": ["sliding_attention"]}),
            "layer_types",
        ),
        (
            json!({"layer_types": ["sliding_attention"]}),
            "sliding_attention",
        ),
        (
            json!({"num_hidden_layers": null, "text_config": {}}),
            "multimodal",
        ),
    ] {
        let error = read(&with(&base, &changes)).unwrap_err().to_string();
        assert!(error.contains(word), "{changes}: {error}");
    }
    for (changes, word) in [
        (json!({"n_group": 3}), "n_group"),
        (json!({"num_experts_per_tok": 9}), "num_experts_per_tok"),
        (json!({"topk_method": "greedy"}), "greedy"),
        (json!({"scoring_func": "softmax"}), "softmax"),
        (json!({"moe_layer_freq": 2}), "moe_layer_freq"),
        (json!({"num_key_value_heads": 2}), "num_key_value_heads"),
    ] {
        let error = read(&with(&small("deepseek_v3"), &changes))
            .unwrap_err()
            .to_string();
        assert!(error.contains(word), "{changes}: {error}");
    }
    assert!(ModelConfig::from_json(b"[]").is_err());
}

/// Rates printed by transformers 5.23's `ROPE_INIT_FUNCTIONS` for a head of
/// eight, theta 10000 and a context of 4096.
#[test]
fn scaled_rates_are_those_of_transformers() {
    let llama3 = Rope::Llama3 {
        factor: 8.0,
        low_freq_factor: 1.0,
        high_freq_factor: 4.0,
        original_max_position_embeddings: 1024,
    };
    let yarn = |truncate| Rope::Yarn {
        factor: 4.0,
        original_max_position_embeddings: 512,
        attention_factor: None,
        beta_fast: 32.0,
        beta_slow: 1.0,
        mscale: None,
        mscale_all_dim: None,
        truncate,
    };
    for (rope, want, factor) in [
        (Rope::Default, [1.0, 0.1, 0.01, 0.001], 1.0),
        (
            Rope::Linear { factor: 4.0 },
            [0.25, 0.025, 0.0025, 0.000_25],
            1.0,
        ),
        (llama3, [1.0, 0.1, 0.003_086_760_6, 0.000_125], 1.0),
        (
            yarn(true),
            [1.0, 0.0625, 0.0025, 0.000_25],
            1.138_629_436_111_989,
        ),
        (
            yarn(false),
            [1.0, 0.070_398_636, 0.0025, 0.000_25],
            1.138_629_436_111_989,
        ),
    ] {
        assert_eq!(rope.attention_factor(), factor);
        for (got, want) in rope.rates(10_000.0, 8).iter().zip(want) {
            assert!((got - want).abs() < 1e-6 * want, "{rope:?}: {got}, {want}");
        }
    }
}

/// Fields of published files as they are on the hub, and the parameters the hub
/// counts.
#[test]
fn published_models_have_their_published_size() {
    let llama3 = json!({
        "factor": 8.0, "high_freq_factor": 4.0, "low_freq_factor": 1.0,
        "original_max_position_embeddings": 8192, "rope_type": "llama3",
    });
    let yarn = json!({
        "beta_fast": 32, "beta_slow": 1, "factor": 40, "mscale": 0.707, "mscale_all_dim": 0.707,
        "original_max_position_embeddings": 4096, "type": "yarn",
    });
    for (name, file, n_params) in [
        (
            "Llama-3.1-8B",
            json!({
                "model_type": "llama", "hidden_size": 4096, "intermediate_size": 14336,
                "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8,
                "vocab_size": 128_256, "max_position_embeddings": 131_072, "rms_norm_eps": 1e-5,
                "rope_theta": 500_000.0, "rope_scaling": llama3, "tie_word_embeddings": false,
                "attention_bias": false, "mlp_bias": false, "pretraining_tp": 1,
            }),
            8_030_261_248,
        ),
        (
            "Llama-3.2-1B",
            json!({
                "model_type": "llama", "hidden_size": 2048, "intermediate_size": 8192,
                "num_hidden_layers": 16, "num_attention_heads": 32, "num_key_value_heads": 8,
                "head_dim": 64, "vocab_size": 128_256, "max_position_embeddings": 131_072,
                "rope_theta": 500_000.0, "rope_scaling": llama3, "tie_word_embeddings": true,
            }),
            1_235_814_400,
        ),
        (
            "Mistral-7B-v0.3",
            json!({
                "model_type": "mistral", "hidden_size": 4096, "intermediate_size": 14336,
                "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8,
                "vocab_size": 32_768, "max_position_embeddings": 32_768, "rms_norm_eps": 1e-5,
                "rope_theta": 1e6, "sliding_window": null, "tie_word_embeddings": false,
            }),
            7_248_023_552,
        ),
        (
            "Mistral-Nemo-Base-2407",
            json!({
                "model_type": "mistral", "hidden_size": 5120, "intermediate_size": 14336,
                "num_hidden_layers": 40, "num_attention_heads": 32, "num_key_value_heads": 8,
                "head_dim": 128, "vocab_size": 131_072, "max_position_embeddings": 1_024_000,
                "rope_theta": 1e6, "sliding_window": null, "tie_word_embeddings": false,
            }),
            12_247_782_400,
        ),
        (
            "Qwen2.5-7B",
            json!({
                "model_type": "qwen2", "hidden_size": 3584, "intermediate_size": 18944,
                "num_hidden_layers": 28, "num_attention_heads": 28, "num_key_value_heads": 4,
                "vocab_size": 152_064, "max_position_embeddings": 131_072, "rope_theta": 1e6,
                "max_window_layers": 28, "sliding_window": 131_072, "use_sliding_window": false,
                "use_mrope": false, "tie_word_embeddings": false,
            }),
            7_615_616_512,
        ),
        (
            "Qwen3-8B",
            json!({
                "model_type": "qwen3", "hidden_size": 4096, "intermediate_size": 12288,
                "num_hidden_layers": 36, "num_attention_heads": 32, "num_key_value_heads": 8,
                "head_dim": 128, "vocab_size": 151_936, "max_position_embeddings": 40_960,
                "max_window_layers": 36, "rope_scaling": null, "rope_theta": 1_000_000,
                "sliding_window": null, "use_sliding_window": false, "attention_bias": false,
            }),
            8_190_735_360,
        ),
        (
            "DeepSeek-V2-Lite",
            json!({
                "model_type": "deepseek_v2", "hidden_size": 2048, "intermediate_size": 10944,
                "num_hidden_layers": 27, "num_attention_heads": 16, "num_key_value_heads": 16,
                "vocab_size": 102_400, "max_position_embeddings": 163_840, "kv_lora_rank": 512,
                "q_lora_rank": null, "qk_nope_head_dim": 128, "qk_rope_head_dim": 64,
                "v_head_dim": 128, "first_k_dense_replace": 1, "moe_intermediate_size": 1408,
                "moe_layer_freq": 1, "n_group": 1, "topk_group": 1, "n_routed_experts": 64,
                "n_shared_experts": 2, "num_experts_per_tok": 6, "norm_topk_prob": false,
                "routed_scaling_factor": 1.0, "scoring_func": "softmax", "topk_method": "greedy",
                "rope_theta": 10_000, "rope_scaling": yarn, "tie_word_embeddings": false,
            }),
            15_706_484_224,
        ),
        (
            "DeepSeek-V3, without the layer that predicts further tokens",
            json!({
                "model_type": "deepseek_v3", "hidden_size": 7168, "intermediate_size": 18432,
                "num_hidden_layers": 61, "num_attention_heads": 128, "num_key_value_heads": 128,
                "vocab_size": 129_280, "max_position_embeddings": 163_840, "kv_lora_rank": 512,
                "q_lora_rank": 1536, "qk_nope_head_dim": 128, "qk_rope_head_dim": 64,
                "v_head_dim": 128, "first_k_dense_replace": 3, "moe_intermediate_size": 2048,
                "moe_layer_freq": 1, "n_group": 8, "topk_group": 4, "n_routed_experts": 256,
                "n_shared_experts": 1, "num_experts_per_tok": 8, "norm_topk_prob": true,
                "routed_scaling_factor": 2.5, "scoring_func": "sigmoid",
                "topk_method": "noaux_tc", "num_nextn_predict_layers": 1,
                "rope_theta": 10_000, "rope_scaling": yarn, "tie_word_embeddings": false,
            }),
            671_026_419_200,
        ),
    ] {
        let config = read(&file).unwrap_or_else(|e| panic!("{name}: {e}"));
        assert_eq!(config.n_params(), n_params, "{name}");
    }
}
