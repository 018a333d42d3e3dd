//! Adapters on quantised bases.

use std::path::Path;

use ol_model::{Format, Lora, LoraConfig, Model, ModelConfig, Pool, WeightFormat};
use ol_runtime::ManualClock;
use ol_train::{LoraObjective, Objective as _, Outcome, Silent, TrainOptions, train};

use crate::setting::{model, sequences, tiny};
use crate::trajectory::check_run;

/// `fixtures/make_qlora.py`: bitsandbytes' NF4 under transformers + PEFT.
#[test]
fn twenty_steps_on_nf4_are_those_of_the_reference() {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/qlora");
    let format = WeightFormat::Quantised(Format::Nf4);
    let base = Model::load_as(&Pool::new(1), &dir.join("base"), format).unwrap();
    let dense = Model::load(&dir.join("base")).unwrap();
    assert!(2 * base.size_bytes() < dense.size_bytes());
    check_run(&dir, &base);
}

fn run(base: &Model, options: &TrainOptions) -> (Outcome, Vec<f32>) {
    let pool = Pool::new(2);
    let lora = LoraConfig::all_linear(2);
    let mut objective = LoraObjective {
        model: base,
        adapter: Lora::init(base.config(), lora, 1).unwrap(),
        pool: &pool,
        learner: None,
    };
    let outcome = train(
        &mut objective,
        &sequences(12, 30, 1),
        &sequences(4, 30, 2),
        options,
        None,
        &ManualClock::new(0),
        &mut Silent,
    );
    (outcome.unwrap(), objective.parameters())
}

/// A quantised base is trained on as the base of its expanded weights is: the
/// backward product is the derivative of the forward one.
#[test]
fn every_format_trains_as_its_expanded_weights_do() {
    let config = ModelConfig {
        hidden_size: 256,
        intermediate_size: 256,
        num_attention_heads: 4,
        num_key_value_heads: 2,
        head_dim: 64,
        num_hidden_layers: 1,
        ..tiny()
    };
    let dir = tempfile::tempdir().unwrap();
    model(&config)
        .save(dir.path(), ol_model::Dtype::F32)
        .unwrap();
    let options = TrainOptions {
        steps: 12,
        batch_tokens: 60,
        learning_rate: 1e-2,
        warmup_steps: 2,
        ..TrainOptions::default()
    };
    for format in [
        Format::Nf4,
        Format::Nf4Double,
        Format::Q4K,
        Format::Q8_0,
        Format::Bf16,
    ] {
        let load = WeightFormat::Quantised(format);
        let base = Model::load_as(&Pool::new(2), dir.path(), load).unwrap();
        let expanded = Model::from_parameters(config.clone(), &base.parameters()).unwrap();
        let (got, params) = run(&base, &options);
        let (want, want_params) = run(&expanded, &options);
        let name = format.name();
        assert!(
            (got.held_out / want.held_out - 1.0).abs() < 1e-5,
            "{name}: {got:?} {want:?}"
        );
        let norm = |x: &mut dyn Iterator<Item = f64>| x.map(|v| v * v).sum::<f64>().sqrt();
        let pairs = params.iter().zip(&want_params);
        let error = norm(&mut pairs.map(|(a, b)| f64::from(a - b)));
        let length = norm(&mut want_params.iter().map(|p| f64::from(*p)));
        assert!(error < 1e-3 * length, "{name}: {error} of {length}");
        // Parts and recomputation give the same bits here, too.
        let smaller = TrainOptions {
            micro_batch_tokens: Some(20),
            recompute: true,
            ..options.clone()
        };
        let (again, again_params) = run(&base, &smaller);
        assert_eq!(again, got, "{name}");
        assert_eq!(again_params, params, "{name}");
    }
}
