//! Goal: sketches at several checkpoints are those of the sum of the influences
//! at each, records that come later get the same, a killed job goes on, and
//! other checkpoints are refused by name.
//! Method: small random models; the naive sum in `f64`, place by place.

use std::convert::Infallible;
use std::sync::Arc;

use ol_model::{Labels, Lora, Model, Pool, Random, Sequence};

use super::{CHECKPOINTS_MAX, Checkpoints, Place, mean_of};
use crate::kronecker::Kronecker;
use crate::query::{QuerySketcher, SketcherError};
use crate::record::tests::{model_and_adapter, options, records};
use crate::record::{
    RecordInput, SketchOptions, SketchRecordsError, Sketches, fisher_labels, sketch_records,
};

/// Adapters of one shape, as if on the way to the last one.
fn places(adapter: &Lora, n: u64) -> Checkpoints {
    let of_seed = |seed| {
        let mut random = Random::new(100 + seed);
        let params = adapter.parameters().iter();
        let params: Vec<f32> = params.map(|p| p + 0.05 * random.normal()).collect();
        let mut place = adapter.clone();
        place.set_parameters(&params).unwrap();
        Arc::new(place)
    };
    let mut all: Vec<Arc<Lora>> = (1..n).map(of_seed).collect();
    all.push(Arc::new(adapter.clone()));
    Checkpoints::new(all)
}

fn sketch(
    model: &Model,
    adapter: &Lora,
    records: &[RecordInput],
    checkpoints: &Checkpoints,
    place: Place,
) -> Sketches {
    let options = SketchOptions {
        checkpoints: checkpoints.clone(),
        place,
        side: 64,
        ..options()
    };
    let pool = Pool::new(1);
    sketch_records(model, &pool, adapter, records, &options, None, &mut |_| ()).unwrap()
}

#[test]
fn the_adapter_itself_is_what_none_stands_for() {
    let (model, adapter) = model_and_adapter(1);
    let records = records(30, 4);
    let none = sketch(
        &model,
        &adapter,
        &records,
        &Checkpoints::default(),
        Place::Mean,
    );
    let itself = sketch(
        &model,
        &adapter,
        &records,
        &places(&adapter, 1),
        Place::Mean,
    );
    assert_eq!((&none.index, &none.map), (&itself.index, &itself.map));
    // The mean of one is that one, bit by bit.
    let each = sketch(
        &model,
        &adapter,
        &records,
        &places(&adapter, 1),
        Place::Each,
    );
    assert_eq!(none.index, each.index);
    assert_ne!(none.map.context(), each.map.context());
}

#[test]
fn a_mean_is_of_one_shape() {
    let (model, adapter) = model_and_adapter(1);
    let checkpoints = places(&adapter, 3);
    let all: Vec<&Lora> = checkpoints.of(&adapter).collect();
    let mean = mean_of(&all).unwrap();
    for (at, x) in mean.parameters().iter().enumerate() {
        let of_all = all.iter().map(|one| f64::from(one.parameters()[at]));
        let naive = of_all.sum::<f64>() / 3.0;
        assert!((f64::from(*x) - naive).abs() <= 1e-6 * naive.abs());
    }
    assert_eq!(mean_of(&[&adapter]).unwrap().hash(), adapter.hash());
    let wider = Lora::init(model.config(), ol_model::LoraConfig::all_linear(3), 1).unwrap();
    assert!(mean_of(&[&adapter, &wider]).is_none());
    assert!(mean_of(&[]).is_none());
}

/// `Σ_t q_tᵀ (F_t + λ_t)⁻¹ g_t`: `[query][record]`.
fn naive(
    model: &Model,
    places: &[Lora],
    records: &[RecordInput],
    queries: &[RecordInput],
) -> Vec<Vec<f64>> {
    let options = options();
    let pool = Pool::new(1);
    let context = model.config().max_position_embeddings;
    let mut sums = vec![vec![0.0; records.len()]; queries.len()];
    for place in places {
        let gradients = |of: &[RecordInput], rule, labels| -> Vec<Vec<f32>> {
            let sequences = of.iter().map(|record| record.sequence(rule, context));
            let sequences: Vec<Sequence> = sequences.collect();
            let all = model.lora_gradients(&pool, place, &sequences, labels);
            all.unwrap()
                .into_iter()
                .map(|of_one| of_one.gradient)
                .collect()
        };
        let labels = fisher_labels(options.seed, 0);
        let samples = gradients(records, options.record_loss, labels);
        let blocks: Vec<_> = place.blocks().iter().map(crate::method::shape).collect();
        let mut visit_all = |visit: &mut dyn FnMut(&[f32])| {
            samples.iter().for_each(|row| visit(row));
            Ok::<_, Infallible>(())
        };
        let curvature = Kronecker::fit(&blocks, &mut visit_all, 1 << 30, &mut |_| ()).unwrap();
        let weights = curvature.weights(options.damping);
        let whiten = |row: Vec<f32>| -> Vec<f64> {
            let rotated = curvature.rotate(&row);
            let pairs = rotated.iter().zip(&weights);
            pairs.map(|(x, weight)| f64::from(*x) * weight).collect()
        };
        let whitened = |of, rule| gradients(of, rule, Labels::Given).into_iter().map(whiten);
        let rows: Vec<Vec<f64>> = whitened(records, options.record_loss).collect();
        for (sums, asked) in sums.iter_mut().zip(whitened(queries, options.query_loss)) {
            for (sum, row) in sums.iter_mut().zip(&rows) {
                *sum += row.iter().zip(&asked).map(|(a, b)| a * b).sum::<f64>();
            }
        }
    }
    sums
}

#[test]
fn scores_are_the_sum_over_checkpoints() {
    let (model, adapter) = model_and_adapter(1);
    let pool = Pool::new(1);
    let all = records(48, 5);
    let (learned, asked) = all.split_at(40);
    for (n, place) in [
        (1, Place::Mean),
        (3, Place::First),
        (3, Place::Mean),
        (3, Place::Each),
    ] {
        let checkpoints = places(&adapter, n);
        let sketches = sketch(&model, &adapter, learned, &checkpoints, place);
        let at: Vec<usize> = learned
            .iter()
            .map(|record| {
                let mut entries = sketches.index.entries();
                entries
                    .position(|entry| entry.record() == record.hash)
                    .unwrap()
            })
            .collect();
        let of_all: Vec<Lora> = checkpoints.of(&adapter).cloned().collect();
        let at_places = match place {
            Place::Mean => vec![mean_of(&of_all.iter().collect::<Vec<_>>()).unwrap()],
            Place::First => of_all[..1].to_vec(),
            Place::Each => of_all,
        };
        let naive = naive(&model, &at_places, learned, asked);
        let sketcher =
            QuerySketcher::at(sketches.map.clone(), &model, &adapter, &checkpoints).unwrap();
        for (query, naive) in asked.iter().zip(naive) {
            let (prompt, answer) = query.tokens.split_at(query.answer_start);
            let sketch = sketcher.sketch(&model, &pool, &adapter, prompt, answer);
            let scores = sketches.index.scores(&sketch.unwrap());
            #[expect(clippy::cast_precision_loss, reason = "a score is below 2^34")]
            let scores: Vec<f64> = at.iter().map(|&at| scores[at] as f64).collect();
            let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
            let lengths = dot(&scores, &scores) * dot(&naive, &naive);
            let cosine = dot(&scores, &naive) / lengths.sqrt();
            // Forty records fit 256 directions; what is lost is rounding.
            assert!(cosine > 0.98, "{place:?} of {n} checkpoints: {cosine}");
        }
    }
}

#[test]
fn a_later_record_gets_what_the_fit_gives() {
    let (model, adapter) = model_and_adapter(1);
    let all = records(40, 4);
    let checkpoints = places(&adapter, 2);
    let pool = Pool::new(1);
    for place in [Place::First, Place::Mean, Place::Each] {
        let sketches = sketch(&model, &adapter, &all, &checkpoints, place);
        let sketcher = QuerySketcher::at(sketches.map, &model, &adapter, &checkpoints).unwrap();
        for record in &all {
            let entry = sketcher.sketch_record(&model, &pool, &adapter, record);
            let mut entries = sketches.index.entries();
            let found = entries.find(|e| e.record() == record.hash).unwrap();
            assert_eq!(entry.unwrap(), found.to_entry());
        }
    }
}

#[test]
fn a_job_goes_on_with_its_own_checkpoints_only() {
    let (model, adapter) = model_and_adapter(1);
    let records = records(60, 4);
    let (pool, dir) = (Pool::new(1), tempfile::tempdir().unwrap());
    let run = |checkpoints: Checkpoints| {
        let options = SketchOptions {
            checkpoints,
            ..options()
        };
        let mut resumed = 0;
        let place = Some(dir.path());
        let sketches = sketch_records(
            &model,
            &pool,
            &adapter,
            &records,
            &options,
            place,
            &mut |p| resumed = resumed.max(p.resumed),
        );
        (sketches.unwrap(), resumed)
    };
    let (first, resumed) = run(places(&adapter, 2));
    assert_eq!(resumed, 0);
    let (again, resumed) = run(places(&adapter, 2));
    assert_eq!((&again.index, &again.map), (&first.index, &first.map));
    assert!(resumed > 0);
    let (_, resumed) = run(places(&adapter, 3));
    assert_eq!(resumed, 0, "gradients of other checkpoints were taken");
}

#[test]
fn other_checkpoints_are_refused_by_name() {
    let (model, adapter) = model_and_adapter(1);
    let checkpoints = places(&adapter, 3);
    let sketches = sketch(&model, &adapter, &records(20, 4), &checkpoints, Place::Mean);
    let try_with = |checkpoints: &Checkpoints| {
        QuerySketcher::at(sketches.map.clone(), &model, &adapter, checkpoints).map(|_| ())
    };
    assert_eq!(try_with(&checkpoints), Ok(()));
    let mut turned = checkpoints.clone();
    turned.0.swap(0, 1);
    for wrong in [Checkpoints::default(), places(&adapter, 2), turned] {
        let refused = try_with(&wrong).unwrap_err();
        assert_eq!(
            refused,
            SketcherError::Checkpoints {
                expected: checkpoints.hashes(&adapter),
                found: wrong.hashes(&adapter),
            }
        );
        assert!(
            refused
                .to_string()
                .contains(&checkpoints.hashes(&adapter)[0])
        );
    }
    assert!(QuerySketcher::new(sketches.map, &model, &adapter).is_err());
}

#[test]
fn too_many_and_those_of_another_shape_are_refused() {
    let (model, adapter) = model_and_adapter(1);
    let config = ol_model::LoraConfig::all_linear(3);
    let wider = Lora::init(model.config(), config, 1).unwrap();
    let too_many = places(&adapter, CHECKPOINTS_MAX as u64 + 1);
    for checkpoints in [Checkpoints::new(vec![Arc::new(wider)]), too_many] {
        let options = SketchOptions {
            checkpoints,
            ..options()
        };
        let records = records(5, 2);
        let pool = Pool::new(1);
        let refused = sketch_records(
            &model,
            &pool,
            &adapter,
            &records,
            &options,
            None,
            &mut |_| (),
        );
        assert!(matches!(refused, Err(SketchRecordsError::Options)));
    }
}
