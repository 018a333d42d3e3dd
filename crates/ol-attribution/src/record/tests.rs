//! Goal: on a language model, an answer pays the contributor whose record it
//! repeats; the sketches do not depend on threads; nothing foreign is accepted.
//! Method: a small random model and adapter; the record's own answer as query.

use ol_model::{Lora, LoraConfig, Model, ModelConfig, Pool, Random};
use ol_poa::QuerySketch;
use ol_types::{Address, B256};

use super::{
    RecordInput, SketchOptions, SketchProgress, SketchRecordsError, Sketches, sketch_records,
};
use crate::fit::FitError;
use crate::map::SketchMap;
use crate::query::{QueryError, QuerySketcher, SketcherError};
use crate::self_query::{SelfQueryOptions, evaluate_self_query, greedy_answer};

const VOCAB: usize = 96;

fn config() -> ModelConfig {
    ModelConfig {
        vocab_size: VOCAB,
        hidden_size: 32,
        intermediate_size: 48,
        num_hidden_layers: 2,
        num_attention_heads: 2,
        num_key_value_heads: 1,
        head_dim: 16,
        max_position_embeddings: 40,
        ..ModelConfig::default_base()
    }
}

/// A model, and an adapter both of whose factors are random: as if trained.
fn model_and_adapter(seed: u64) -> (Model, Lora) {
    let model = Model::random(config(), seed).unwrap();
    let mut adapter = Lora::init(&config(), LoraConfig::all_linear(2), seed).unwrap();
    let mut random = Random::new(seed);
    let params: Vec<f32> = adapter
        .parameters()
        .iter()
        .map(|p| p + 0.1 * random.normal())
        .collect();
    adapter.set_parameters(&params).unwrap();
    (model, adapter)
}

fn records(n: usize, n_contributors: usize) -> Vec<RecordInput> {
    let mut random = Random::new(4);
    (0..n)
        .map(|i| {
            let length = 12 + random.below(8);
            let token = |_| u32::try_from(random.below(VOCAB)).unwrap();
            RecordInput {
                tokens: (0..length).map(token).collect(),
                answer_start: 5,
                hash: B256::left_padding_from(&i.to_be_bytes()),
                contributor: Address::left_padding_from(&(i % n_contributors + 1).to_be_bytes()),
                cluster: u32::try_from(i).unwrap(),
            }
        })
        .collect()
}

fn options() -> SketchOptions {
    SketchOptions {
        side: 8,
        ..SketchOptions::default()
    }
}

fn sketch(threads: usize, records: &[RecordInput]) -> Sketches {
    let (model, adapter) = model_and_adapter(1);
    let pool = Pool::new(threads);
    sketch_records(&model, &pool, &adapter, records, &options(), &mut |_| ()).unwrap()
}

/// The sketch of each record's own answer.
fn own_answers(sketches: &Sketches, records: &[RecordInput]) -> Vec<QuerySketch> {
    let (model, adapter) = model_and_adapter(1);
    let pool = Pool::new(1);
    let sketcher = QuerySketcher::new(sketches.map.clone(), &model, &adapter).unwrap();
    let query = |record: &RecordInput| {
        let (prompt, answer) = record.tokens.split_at(record.answer_start);
        sketcher
            .sketch(&model, &pool, &adapter, prompt, answer)
            .unwrap()
    };
    records.iter().map(query).collect()
}

#[test]
fn an_answer_pays_the_record_it_repeats() {
    let records = records(90, 30);
    let sketches = sketch(2, &records);
    assert_eq!(sketches.index.len(), 90);
    let (mut n_own, mut n_best) = (0, 0);
    for (record, query) in records.iter().zip(own_answers(&sketches, &records)) {
        let scores = sketches.index.scores(&query);
        let best = sketches
            .index
            .entries()
            .zip(&scores)
            .max_by_key(|(_, score)| **score);
        n_best += usize::from(best.unwrap().0.record() == record.hash);
        let weights = sketches.index.weights(0, &query);
        let richest = weights.iter().max_by_key(|(_, weight)| *weight).unwrap().0;
        n_own += usize::from(richest == record.contributor);
    }
    println!("own contributor {n_own}, own record {n_best} of 90");
    assert!(n_best >= 80, "{n_best} of 90");
    assert!(n_own >= 75, "{n_own} of 90");
}
#[test]
fn threads_and_batches_do_not_matter() {
    let records = records(40, 4);
    let (one, three) = (sketch(1, &records), sketch(3, &records));
    assert_eq!(one.index, three.index);
    assert_eq!(one.map, three.map);
    // A query's sketch is the same under every number of threads.
    let (model, adapter) = model_and_adapter(1);
    let sketcher = QuerySketcher::new(one.map, &model, &adapter).unwrap();
    let of = |threads| {
        let pool = Pool::new(threads);
        sketcher
            .sketch(&model, &pool, &adapter, &[1, 2, 3], &[4, 5])
            .unwrap()
    };
    assert_eq!(of(1), of(3));
}

#[test]
fn progress_reaches_the_total() {
    let records = records(40, 4);
    let (model, adapter) = model_and_adapter(1);
    let mut seen: Vec<SketchProgress> = Vec::new();
    let pool = Pool::new(1);
    sketch_records(&model, &pool, &adapter, &records, &options(), &mut |p| {
        seen.push(p)
    })
    .unwrap();
    let n_tokens: usize = records.iter().map(|r| r.tokens.len()).sum();
    let last = seen.last().unwrap();
    assert_eq!(last.tokens, 2 * u64::try_from(n_tokens).unwrap());
    assert_eq!(last.tokens, last.tokens_total);
    assert!(seen.windows(2).all(|pair| pair[0].tokens < pair[1].tokens));
}

#[test]
fn long_records_are_cut_to_the_context() {
    let mut records = records(10, 4);
    records[0].tokens = vec![7; 100];
    // The whole answer lies behind the cut.
    records[1].tokens = vec![8; 100];
    records[1].answer_start = 60;
    let (model, adapter) = model_and_adapter(1);
    let mut options = options();
    options.record_loss.question_weight = 0.0;
    let pool = Pool::new(1);
    let sketches =
        sketch_records(&model, &pool, &adapter, &records, &options, &mut |_| ()).unwrap();
    let entry = |i: usize| {
        let mut entries = sketches.index.entries();
        entries.find(|e| e.record() == records[i].hash).unwrap()
    };
    assert!(entry(0).code_bytes().iter().any(|&code| code != 0));
    assert!(entry(1).code_bytes().iter().all(|&code| code == 0));
}

#[test]
fn a_sketcher_serves_its_own_model_only() {
    let records = records(10, 4);
    let sketches = sketch(1, &records);
    let (model, adapter) = model_and_adapter(1);
    let (other_model, other_adapter) = model_and_adapter(2);
    let new = |model, adapter| QuerySketcher::new(sketches.map.clone(), model, adapter).map(|_| ());
    assert_eq!(new(&model, &adapter), Ok(()));
    assert_eq!(new(&other_model, &adapter), Err(SketcherError::OtherModel));
    assert_eq!(new(&model, &other_adapter), Err(SketcherError::OtherModel));

    let sketcher = QuerySketcher::new(sketches.map.clone(), &model, &adapter).unwrap();
    let pool = Pool::new(1);
    let ask = |model, adapter, prompt: &[u32], answer: &[u32]| {
        sketcher.sketch(model, &pool, adapter, prompt, answer)
    };
    let refused = ask(&other_model, &adapter, &[1], &[2]);
    assert_eq!(refused, Err(QueryError::OtherModel));
    let refused = ask(&model, &other_adapter, &[1], &[2]);
    assert_eq!(refused, Err(QueryError::OtherModel));
    for (prompt, answer) in [(vec![1], vec![1000]), (vec![1; 30], vec![2; 30])] {
        let refused = ask(&model, &adapter, &prompt, &answer);
        assert!(
            matches!(refused, Err(QueryError::Forward(_))),
            "{refused:?}"
        );
    }
    // Nothing is predicted, nothing is paid.
    let nothing = ask(&model, &adapter, &[1], &[]).unwrap();
    assert_eq!(nothing, QuerySketch::new([0; ol_poa::K]).unwrap());
}

#[test]
fn foreign_contexts_are_refused() {
    let (model, adapter) = model_and_adapter(1);
    let map = SketchMap::quantise(b"{}".to_vec(), std::iter::repeat_n([1.0; ol_poa::K], 3));
    let refused = QuerySketcher::new(map, &model, &adapter).map(|_| ());
    assert_eq!(refused, Err(SketcherError::Method));
    // The right context on a map of the wrong size.
    let context = sketch(1, &records(10, 4)).map.context().to_vec();
    let map = SketchMap::quantise(context, std::iter::repeat_n([1.0; ol_poa::K], 3));
    let refused = QuerySketcher::new(map, &model, &adapter).map(|_| ());
    assert_eq!(refused, Err(SketcherError::Method));
}

#[test]
fn bad_input_is_refused() {
    let (model, adapter) = model_and_adapter(1);
    let pool = Pool::new(1);
    let run = |records: &[RecordInput], options: &SketchOptions| {
        sketch_records(&model, &pool, &adapter, records, options, &mut |_| ()).unwrap_err()
    };
    let none = run(&[], &options());
    assert!(matches!(
        none,
        SketchRecordsError::Fit(FitError::Size { n_rows: 0 })
    ));
    for side in [0, 65] {
        let refused = run(&records(5, 2), &SketchOptions { side, ..options() });
        assert!(matches!(refused, SketchRecordsError::Options));
    }
    for fisher_samples in [0, 17] {
        let refused = run(
            &records(5, 2),
            &SketchOptions {
                fisher_samples,
                ..options()
            },
        );
        assert!(matches!(refused, SketchRecordsError::Options));
    }
    let mut twice = records(5, 2);
    twice[4].cluster = 0;
    assert!(matches!(
        run(&twice, &options()),
        SketchRecordsError::Index(_)
    ));
    let mut foreign = records(5, 2);
    foreign[2].tokens[3] = 1000;
    assert!(matches!(
        run(&foreign, &options()),
        SketchRecordsError::Forward(_)
    ));
}

#[test]
fn the_acceptance_measure_counts() {
    let (model, adapter) = model_and_adapter(1);
    let pool = Pool::new(1);
    let mut options_of = SelfQueryOptions::with_end(0);
    options_of.answer_tokens_max = 6;
    options_of.n_samples = 100;
    // Records that are the model's own answers: each must pay itself.
    let mut records = records(30, 30);
    for record in &mut records {
        record.tokens.truncate(record.answer_start);
        let answer = greedy_answer(&model, &pool, &adapter, &record.tokens, &options_of).unwrap();
        assert!(answer.len() <= 6);
        record.tokens.extend(answer);
    }
    let sketches =
        sketch_records(&model, &pool, &adapter, &records, &options(), &mut |_| ()).unwrap();
    let sketcher = QuerySketcher::new(sketches.map, &model, &adapter).unwrap();
    // Too long to be asked: passed over.
    for record in &mut records[..3] {
        record.answer_start = 1000;
    }
    let report = evaluate_self_query(
        &model,
        &pool,
        &adapter,
        &sketcher,
        &sketches.index,
        &records,
        &options_of,
    )
    .unwrap();
    assert_eq!((report.n_samples, report.n_contributors), (27, 30));
    assert!(report.n_own_largest >= 24, "{report:?}");
    assert!(report.n_own_record_largest >= 24, "{report:?}");
    assert_eq!(report.n_unpaid, 0);
    assert!(
        report.own_share_mean > 0.2 && report.own_share_mean <= 1.0,
        "{report:?}"
    );
    assert!((report.own_share_by_count - 1.0 / 30.0).abs() < 1e-9);
}
