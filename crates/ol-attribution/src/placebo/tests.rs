//! Goal: the threshold is the quantile it says, on any number of threads, and
//! of this model only.
//! Method: a small random model and adapter, as if trained.

use ol_model::{LoraConfig, ModelConfig};
use ol_types::{Address, B256};

use super::*;
use crate::record::{SketchOptions, Sketches, sketch_records};

fn setting(seed: u64) -> (Model, Lora, Vec<RecordInput>) {
    let config = ModelConfig {
        vocab_size: 64,
        hidden_size: 32,
        intermediate_size: 48,
        num_hidden_layers: 2,
        num_attention_heads: 2,
        num_key_value_heads: 1,
        head_dim: 16,
        max_position_embeddings: 24,
        ..ModelConfig::default_base()
    };
    let model = Model::random(config.clone(), seed).unwrap();
    let mut adapter = Lora::init(&config, LoraConfig::all_linear(2), seed).unwrap();
    let mut random = Random::new(seed);
    let shift = |p: &f32| p + 0.1 * random.normal();
    let params: Vec<f32> = adapter.parameters().iter().map(shift).collect();
    adapter.set_parameters(&params).unwrap();
    let record = |i: usize| RecordInput {
        tokens: (0..16)
            .map(|_| u32::try_from(random.below(64)).unwrap())
            .collect(),
        answer_start: 5,
        hash: B256::left_padding_from(&i.to_be_bytes()),
        contributor: Address::left_padding_from(&(i % 3 + 1).to_be_bytes()),
        cluster: u32::try_from(i).unwrap(),
    };
    (model, adapter, (0..12).map(record).collect())
}

#[test]
fn the_threshold_grows_with_the_quantile_and_not_with_threads() {
    let (model, adapter, records) = setting(1);
    let pool = Pool::new(1);
    let options = SketchOptions::default();
    let Sketches { index, map, .. } = sketch_records(
        &model,
        &pool,
        &adapter,
        &records,
        &options,
        None,
        &mut |_| (),
    )
    .unwrap();
    let sketcher = QuerySketcher::new(map, &model, &adapter).unwrap();
    let threshold = |threads, quantile| {
        let options = PlaceboOptions {
            n_placebos: 6,
            quantile,
            seed: 1,
        };
        let pool = Pool::new(threads);
        null_threshold(
            &model, &pool, &adapter, &sketcher, &index, &records, &options,
        )
        .unwrap()
    };
    let all: Vec<u64> = [0.0, 0.5, 0.9, 1.0].map(|q| threshold(1, q)).into();
    assert!(all.is_sorted(), "{all:?}");
    // Some records score below zero for some placebo, and some above.
    assert_eq!(all[0], 0);
    assert!(all[3] > 0);
    assert_eq!(threshold(3, 0.9), all[2]);

    let (other, other_adapter, _) = setting(2);
    let refused = null_threshold(
        &other,
        &pool,
        &other_adapter,
        &sketcher,
        &index,
        &records,
        &PlaceboOptions::default(),
    );
    assert_eq!(refused, Err(QueryError::OtherModel));
}

#[test]
fn a_quantile_is_the_least_value_that_so_many_are_not_above() {
    for (values, part, expected) in [
        (&[][..], 0.5, 0),
        (&[7], 0.0, 7),
        (&[1, 2, 3, 4, 5], 0.0, 1),
        (&[1, 2, 3, 4, 5], 0.5, 3),
        (&[1, 2, 3, 4, 5], 0.51, 4),
        (&[1, 2, 3, 4, 5], 1.0, 5),
        (&[1, 2, 3, 4, 5], 2.0, 5),
    ] {
        assert_eq!(quantile(values, part), expected, "{values:?} {part}");
    }
}
