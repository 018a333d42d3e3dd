use super::*;

fn of(text: &str) -> Result<TrainOptions, serde_json::Error> {
    serde_json::from_str(text)
}

#[test]
fn what_is_not_said_has_its_default_and_what_is_unknown_is_named() {
    assert_eq!(of("{}").unwrap(), TrainOptions::default());
    let options = of(
        r#"{"steps":7,"schedule":"linear","optimizer":"adamw_8bit","warmup_ratio":0.25,
            "micro_batch_tokens":512,"recompute":true,"keep_best":true,"patience":3}"#,
    )
    .unwrap();
    assert_eq!(
        options,
        TrainOptions {
            steps: 7,
            schedule: Schedule::Linear,
            optimizer: Optimizer::AdamW8Bit,
            warmup_ratio: Some(0.25),
            micro_batch_tokens: Some(512),
            recompute: true,
            keep_best: true,
            patience: Some(3),
            ..TrainOptions::default()
        }
    );
    for (text, name) in [
        (r#"{"lerning_rate":1}"#, "lerning_rate"),
        (r#"{"schedule":"sudden"}"#, "sudden"),
        (r#"{"optimizer":"sgd"}"#, "sgd"),
    ] {
        let error = of(text).unwrap_err().to_string();
        assert!(error.contains(name), "{error}");
    }
}

#[test]
fn the_first_manifests_keep_their_bytes() {
    let text = r#"{"batch_tokens":2048,"beta1":0.9,"beta2":0.95,"checkpoint_every":50,"clip_norm":1.0,"evaluate_every":50,"evaluate_tokens":16384,"final_fraction":0.1,"learning_rate":0.003,"patience":null,"seed":1,"steps":199,"warmup_steps":20,"weight_decay":0.0}"#;
    assert_eq!(serde_json::to_string(&of(text).unwrap()).unwrap(), text);
}

#[test]
fn each_option_outside_its_limits_is_named() {
    let cases = [
        (r#"{"steps":0}"#, "steps"),
        (r#"{"batch_tokens":0}"#, "batch_tokens"),
        (r#"{"batch_tokens":1073741824}"#, "batch_tokens"),
        (r#"{"batch_sequences":0}"#, "batch_sequences"),
        (r#"{"micro_batch_tokens":0}"#, "micro_batch_tokens"),
        (r#"{"evaluate_every":0}"#, "evaluate_every"),
        (r#"{"checkpoints_keep":0}"#, "checkpoints_keep"),
        (r#"{"checkpoints_keep":1001}"#, "checkpoints_keep"),
        (r#"{"patience":0}"#, "patience"),
        (r#"{"learning_rate":0}"#, "learning_rate"),
        (r#"{"learning_rate":1e99}"#, "learning_rate"),
        (r#"{"clip_norm":-1}"#, "clip_norm"),
        (r#"{"beta1":1}"#, "beta1"),
        (r#"{"beta2":-0.1}"#, "beta2"),
        (r#"{"final_fraction":1.5}"#, "final_fraction"),
        (r#"{"weight_decay":2}"#, "weight_decay"),
        (r#"{"warmup_ratio":1.1}"#, "warmup_ratio"),
        (r#"{"dpo_beta":0}"#, "dpo_beta"),
        (r#"{"dpo_label_smoothing":0.5}"#, "dpo_label_smoothing"),
        (r#"{"dpo_label_smoothing":-0.1}"#, "dpo_label_smoothing"),
        (r#"{"epochs":0}"#, "epochs"),
        (r#"{"epochs":1001}"#, "epochs"),
    ];
    for (text, field) in cases {
        assert_eq!(
            of(text).unwrap().check().unwrap_err().field,
            field,
            "{text}"
        );
    }
    let nan = TrainOptions {
        learning_rate: f32::NAN,
        ..TrainOptions::default()
    };
    assert_eq!(nan.check().unwrap_err().field, "learning_rate");
    assert_eq!(TrainOptions::default().check(), Ok(()));
}

#[test]
fn the_rate_rises_then_falls_as_its_schedule_says() {
    let cosine = TrainOptions {
        steps: 110,
        warmup_steps: 10,
        learning_rate: 1.0,
        final_fraction: 0.1,
        ..TrainOptions::default()
    };
    let linear = TrainOptions {
        schedule: Schedule::Linear,
        ..cosine
    };
    let constant = TrainOptions {
        schedule: Schedule::Constant,
        ..cosine
    };
    let near = |got: f32, want: f32| assert!((got - want).abs() < 1e-6, "{got} {want}");
    for o in [&cosine, &linear, &constant] {
        near(o.rate(0), 0.1);
        near(o.rate(9), 1.0);
        near(o.rate(10), 1.0);
        assert!((10..110).all(|s| o.rate(s + 1) <= o.rate(s)));
    }
    near(cosine.rate(35), 0.1 + 0.9 * 0.5 * (1.0 + 0.5_f32.sqrt()));
    near(linear.rate(35), 0.1 + 0.9 * 0.75);
    for o in [&cosine, &linear] {
        near(o.rate(60), 0.55);
        near(o.rate(110), 0.1);
    }
    near(constant.rate(110), 1.0);
}

#[test]
fn epochs_and_ratios_become_steps() {
    let options = TrainOptions {
        batch_tokens: 100,
        epochs: Some(2.0),
        ..TrainOptions::default()
    };
    let got = options.resolve(10, 1000).unwrap();
    assert_eq!((got.steps, got.warmup_steps, got.epochs), (20, 4, None));
    let by_count = TrainOptions {
        batch_sequences: Some(4),
        warmup_ratio: Some(0.1),
        ..options
    };
    let got = by_count.resolve(10, 1000).unwrap();
    assert_eq!(
        (got.steps, got.warmup_steps, got.warmup_ratio),
        (5, 1, None)
    );
    assert_eq!(options.steps_for(1000, 2.0), 20);
    assert_eq!(options.steps_for(1, 0.5), 1);
    let bad = TrainOptions {
        epochs: Some(f64::INFINITY),
        ..options
    };
    assert_eq!(bad.resolve(1, 1).unwrap_err().field, "epochs");
}

#[test]
fn memory_savers_do_not_matter_to_the_result() {
    let options = TrainOptions::default();
    let other = TrainOptions {
        checkpoint_every: 9,
        checkpoints_keep: 3,
        micro_batch_tokens: Some(64),
        recompute: true,
        ..options
    };
    assert_eq!(options.that_matter(), other.that_matter());
    let seed = TrainOptions { seed: 8, ..options };
    assert_ne!(options.that_matter(), seed.that_matter());
}
