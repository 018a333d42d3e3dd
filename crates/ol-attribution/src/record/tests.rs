//! Goal: on a language model, an answer pays the contributor whose record it
//! repeats; the sketches do not depend on threads; nothing foreign is accepted.
//! Method: a small random model and adapter; the record's own answer as query.

use ol_model::{Lora, LoraConfig, Model, ModelConfig, Pool, Random};
use ol_poa::QuerySketch;
use ol_types::{Address, B256};

use super::{
    RecordInput, SketchOptions, SketchProgress, SketchRecordsError, SketchStage, Sketches,
    sketch_records,
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
pub(crate) fn model_and_adapter(seed: u64) -> (Model, Lora) {
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

pub(crate) fn records(n: usize, n_contributors: usize) -> Vec<RecordInput> {
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

pub(crate) fn options() -> SketchOptions {
    SketchOptions {
        side: 8,
        ..SketchOptions::default()
    }
}

fn sketch(threads: usize, records: &[RecordInput]) -> Sketches {
    let (model, adapter) = model_and_adapter(1);
    let pool = Pool::new(threads);
    sketch_records(
        &model,
        &pool,
        &adapter,
        records,
        &options(),
        None,
        &mut |_| (),
    )
    .unwrap()
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
    sketch_records(
        &model,
        &pool,
        &adapter,
        &records,
        &options(),
        None,
        &mut |p| seen.push(p),
    )
    .unwrap();
    let n_tokens: usize = records.iter().map(|r| r.tokens.len()).sum();
    let stages = [
        SketchStage::Gradients,
        SketchStage::Curvature,
        SketchStage::Subspace,
    ];
    for stage in stages {
        let seen: Vec<_> = seen.iter().filter(|p| p.stage == stage).collect();
        let last = seen.last().unwrap();
        assert!(last.done <= last.total && last.resumed == 0);
        if stage == SketchStage::Gradients {
            assert_eq!(last.done, 2 * u64::try_from(n_tokens).unwrap());
            assert_eq!(last.done, last.total);
        }
        assert!(seen.windows(2).all(|pair| pair[0].done < pair[1].done));
    }
}

#[test]
fn a_job_goes_on_where_it_was_stopped() {
    let records = records(300, 7);
    let (model, adapter) = model_and_adapter(1);
    let (pool, dir) = (Pool::new(1), tempfile::tempdir().unwrap());
    let run = || {
        let mut resumed = 0;
        let sketches = sketch_records(
            &model,
            &pool,
            &adapter,
            &records,
            &options(),
            Some(dir.path()),
            &mut |p| resumed = resumed.max(p.resumed),
        );
        (sketches.unwrap(), resumed)
    };
    let in_memory = sketch(1, &records);
    let (first, resumed) = run();
    assert_eq!(
        (&first.index, &first.map),
        (&in_memory.index, &in_memory.map)
    );
    assert_eq!(resumed, 0);
    // Killed before the last files were written, and one of the others torn.
    let mut files: Vec<_> = std::fs::read_dir(dir.path())
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect();
    files.sort();
    assert!(files.len() >= 6, "{files:?}");
    std::fs::remove_file(files.last().unwrap()).unwrap();
    std::fs::write(&files[0], b"torn").unwrap();
    let (second, resumed) = run();
    assert_eq!((&second.index, &second.map), (&first.index, &first.map));
    let n_tokens: usize = records.iter().map(|r| r.tokens.len()).sum();
    let n_tokens = 2 * u64::try_from(n_tokens).unwrap();
    assert!(resumed > n_tokens / 3 && resumed < n_tokens, "{resumed}");
}

#[test]
fn a_later_record_is_sketched_under_the_same_map() {
    let all = records(60, 6);
    let sketches = sketch(1, &all);
    let (model, adapter) = model_and_adapter(1);
    let pool = Pool::new(1);
    let sketcher = QuerySketcher::new(sketches.map.clone(), &model, &adapter).unwrap();
    for (view, record) in sketches.index.entries().zip(sorted(&all)) {
        let entry = sketcher.sketch_record(&model, &pool, &adapter, record);
        assert_eq!(entry.unwrap(), view.to_entry());
    }
    let (_, other) = model_and_adapter(2);
    let refused = sketcher.sketch_record(&model, &pool, &other, &all[0]);
    assert_eq!(refused, Err(QueryError::OtherModel));
}

/// In the order of an index.
fn sorted(records: &[RecordInput]) -> Vec<&RecordInput> {
    let mut sorted: Vec<&RecordInput> = records.iter().collect();
    sorted.sort_by_key(|record| (record.contributor, record.cluster));
    sorted
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
    let sketches = sketch_records(
        &model,
        &pool,
        &adapter,
        &records,
        &options,
        None,
        &mut |_| (),
    )
    .unwrap();
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
    let of_three_rows = |context: Vec<u8>| {
        let mut map = SketchMap::new(context, 3);
        (0..3).for_each(|_| map.push(&[1.0; ol_poa::K]));
        map
    };
    let map = of_three_rows(b"{}".to_vec());
    let refused = QuerySketcher::new(map, &model, &adapter).map(|_| ());
    assert_eq!(refused, Err(SketcherError::Method));
    // The right context on a map of the wrong size.
    let context = sketch(1, &records(10, 4)).map.context().to_vec();
    let map = of_three_rows(context);
    let refused = QuerySketcher::new(map, &model, &adapter).map(|_| ());
    assert_eq!(refused, Err(SketcherError::Method));
}

#[test]
fn bad_input_is_refused() {
    let (model, adapter) = model_and_adapter(1);
    let pool = Pool::new(1);
    let run = |records: &[RecordInput], options: &SketchOptions| {
        sketch_records(&model, &pool, &adapter, records, options, None, &mut |_| ()).unwrap_err()
    };
    let none = run(&[], &options());
    assert!(matches!(
        none,
        SketchRecordsError::Fit(FitError::Size { n_rows: 0 })
    ));
    for side in [0, 4_097] {
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
    let sketches = sketch_records(
        &model,
        &pool,
        &adapter,
        &records,
        &options(),
        None,
        &mut |_| (),
    )
    .unwrap();
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
