use super::*;

/// About Llama 3.2 1B.
fn config() -> ModelConfig {
    ModelConfig {
        vocab_size: 128_256,
        hidden_size: 2048,
        intermediate_size: 8192,
        num_hidden_layers: 16,
        num_attention_heads: 32,
        num_key_value_heads: 8,
        head_dim: 64,
        max_position_embeddings: 8192,
        ..ModelConfig::default_base()
    }
}

const N_PARAMS: usize = 11_272_192;

fn plan<'a>(
    config: &'a ModelConfig,
    lora: &'a LoraConfig,
    options: &'a TrainOptions,
) -> MemoryPlan<'a> {
    MemoryPlan {
        config,
        base: BaseMemory::of(config, WeightFormat::F32),
        lora,
        n_params: N_PARAMS,
        options,
        longest_tokens: 512,
        data_tokens: 100_000,
        n_threads: 2,
    }
}

#[test]
fn each_saving_saves_its_part_and_nothing_else() {
    let (config, lora) = (config(), LoraConfig::all_linear(16));
    let plain = TrainOptions::default();
    let of = |options: &TrainOptions| plan(&config, &lora, options).estimate();
    let base = of(&plain);
    let micro = of(&TrainOptions {
        micro_batch_tokens: Some(512),
        ..plain
    });
    assert!(micro.activations_bytes * 3 < base.activations_bytes);
    let recompute = of(&TrainOptions {
        recompute: true,
        ..plain
    });
    assert!(recompute.activations_bytes * 4 < base.activations_bytes);
    let eight = of(&TrainOptions {
        optimizer: Optimizer::AdamW8Bit,
        ..plain
    });
    assert!(eight.optimizer_bytes * 3 < base.optimizer_bytes);
    let rest = |e: MemoryEstimate| (e.base_bytes, e.logits_bytes, e.gradient_bytes);
    for smaller in [micro, recompute, eight] {
        assert!(smaller.total_bytes() < base.total_bytes());
        assert_eq!(rest(smaller), rest(base));
    }
    let nf4 = BaseMemory::of(&config, WeightFormat::Quantised(Format::Nf4));
    assert!(nf4.size_bytes * 4 < BaseMemory::of(&config, WeightFormat::F32).size_bytes);
    // About 1.24 billion weights.
    assert!((4.8e9..5.2e9).contains(&(base.base_bytes as f64)), "{base}");
}

#[test]
fn one_long_sequence_is_a_pass_whatever_the_parts() {
    let (config, lora) = (config(), LoraConfig::all_linear(16));
    let options = TrainOptions {
        micro_batch_tokens: Some(64),
        ..TrainOptions::default()
    };
    let of = |tokens| {
        let plan = MemoryPlan {
            longest_tokens: tokens,
            ..plan(&config, &lora, &options)
        };
        plan.rows()
    };
    assert_eq!((of(1), of(64), of(500), of(8000)), (64, 64, 500, 8000));
}

#[test]
fn what_does_not_fit_is_refused_with_what_would() {
    let (config, lora) = (config(), LoraConfig::all_linear(16));
    let options = TrainOptions::default();
    let plan = plan(&config, &lora, &options);
    let estimate = plan.estimate();
    assert_eq!(plan.check(estimate.total_bytes()), Ok(estimate));
    let error = plan.check(estimate.total_bytes() - 1).unwrap_err();
    // A little too much: any one saving is enough, and none is combined.
    assert!(error.fits.len() >= 3, "{error}");
    assert!(error.fits.iter().all(|f| f.savings.len() == 1), "{error}");
    let text = error.to_string();
    for part in ["recompute = true", "adamw_8bit", "activations", "available"] {
        assert!(text.contains(part), "{text}");
    }
    for available_bytes in [6 << 30, 3 << 30, 2 << 30, 3 << 29] {
        let error = plan.check(available_bytes).unwrap_err();
        for fit in &error.fits {
            assert!(fit.total_bytes <= available_bytes, "{error}");
            assert_eq!(plan.total_with(&fit.savings), fit.total_bytes);
            // Nothing of it can be left out.
            for i in 0..fit.savings.len() {
                let mut fewer = fit.savings.clone();
                fewer.remove(i);
                assert!(plan.total_with(&fewer) > available_bytes, "{error}");
            }
        }
    }
    // An f32 base alone is 4.6 GiB: below it has to be quantised.
    let error = plan.check(3 << 30).unwrap_err();
    assert!(!error.fits.is_empty());
    assert!(
        error
            .fits
            .iter()
            .all(|f| f.savings.contains(&Saving::QuantisedBase)),
        "{error}"
    );
    let error = plan.check(100 << 20).unwrap_err();
    assert!(error.fits.is_empty());
    assert!(error.to_string().contains("smaller base"), "{error}");
}

#[test]
fn the_systems_own_words_are_read() {
    let text = "MemTotal:       24576000 kB\nMemFree:  1 kB\nMemAvailable:   2048 kB\n";
    assert_eq!(mem_available_bytes(text), Some(2 << 20));
    for bad in [
        "",
        "MemAvailable: x kB",
        "MemAvailable: 5 MB",
        "MemAvailable: 99999999999999999999 kB",
    ] {
        assert_eq!(mem_available_bytes(bad), None, "{bad}");
    }
    if cfg!(target_os = "linux") {
        assert!(available_memory_bytes().unwrap() > 1 << 20);
    }
    assert_eq!(Size(5 << 20).to_string(), "5 MiB");
    assert_eq!(Size(3 << 29).to_string(), "1.5 GiB");
}
