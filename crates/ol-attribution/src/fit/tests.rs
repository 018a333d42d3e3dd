//! Goal: sketches reproduce the damped influence scores they stand for, and how
//! gradients are read changes no bit.
//! Method: scores by the definition, rotated and weighted gradients multiplied,
//! on problems small enough that 256 dimensions hold everything.

use std::convert::Infallible;
use std::io;

use ol_poa::K;

use super::{Fit, FitError, FitOptions, fit};
use crate::kronecker::Kronecker;
use crate::map::{CONTEXT_SIZE_BYTES_MAX, RecordSketch};
use crate::random::SplitMix;
use crate::reduce::BlockShape;
use crate::rows::{RowSource, Rows};

const BLOCKS: [BlockShape; 2] = [
    BlockShape {
        rank: 4,
        d_in: 150,
        d_out: 200,
    },
    BlockShape {
        rank: 3,
        d_in: 90,
        d_out: 110,
    },
];
const DIM: usize = 4 * 350 + 3 * 200;

fn random(n: usize, seed: u64) -> Rows {
    let mut generator = SplitMix::new(seed);
    let mut rows = Rows::new(DIM);
    for _ in 0..n {
        let row: Vec<f32> = (0..DIM)
            .map(|j| {
                let x = f32::from(u16::try_from(generator.next() >> 48).unwrap()) / 32_768.0 - 1.0;
                // A falling spectrum, as gradients have.
                x / (1.0 + 0.05 * (j % 97) as f32)
            })
            .collect();
        rows.push(&row);
    }
    rows
}

fn curvature(rows: &Rows) -> Kronecker {
    let mut samples = |visit: &mut dyn FnMut(&[f32])| {
        rows.iter().for_each(visit);
        Ok::<_, Infallible>(())
    };
    Kronecker::fit(&BLOCKS, &mut samples, usize::MAX, &mut |_| ()).unwrap()
}

fn options(damping: f64) -> FitOptions {
    FitOptions {
        damping,
        seed: 11,
        context: b"c".to_vec(),
        budget_bytes: 1 << 30,
    }
}

/// Every record its own contributor.
fn alone(n: usize) -> Vec<usize> {
    (0..n).collect()
}

fn fitted(records: &Rows, curvature: &Kronecker, groups: &[usize], options: &FitOptions) -> Fit {
    fit(
        curvature,
        &mut records.clone(),
        groups,
        options,
        &mut |_| (),
    )
    .unwrap()
}

/// Scores of a query by the definition.
fn exact(curvature: &Kronecker, records: &Rows, query: &[f32], damping: f64) -> Vec<f64> {
    let weights = curvature.weights(damping);
    let query = curvature.rotate(query);
    let score = |record: &[f32]| {
        let record = curvature.rotate(record);
        let pairs = query.iter().zip(&record).zip(&weights);
        pairs
            .map(|((q, g), w)| f64::from(*q) * f64::from(*g) * w * w)
            .sum()
    };
    records.iter().map(score).collect()
}

fn sketched(fit: &Fit, query: &[f32]) -> Vec<f64> {
    let sketch = fit.map.sketch(query).unwrap();
    let score = |record: &RecordSketch| {
        let products = record.codes.iter().zip(sketch.codes());
        let dot: i32 = products.map(|(&a, &b)| i32::from(a) * i32::from(b)).sum();
        f64::from(dot) * f64::from(record.scale)
    };
    fit.records.iter().map(score).collect()
}

fn correlation(a: &[f64], b: &[f64]) -> f64 {
    let mean = |x: &[f64]| x.iter().sum::<f64>() / x.len() as f64;
    let (ma, mb) = (mean(a), mean(b));
    let sum = |f: &dyn Fn(usize) -> f64| (0..a.len()).map(f).sum::<f64>();
    let cov = sum(&|i| (a[i] - ma) * (b[i] - mb));
    cov / (sum(&|i| (a[i] - ma).powi(2)) * sum(&|i| (b[i] - mb).powi(2))).sqrt()
}

/// Queries near the records, as answers are: one record and half of another.
fn queries(records: &Rows) -> Vec<Vec<f32>> {
    let mix = |i: usize| {
        let pairs = records.row(i).iter().zip(records.row(i + 1));
        pairs.map(|(a, b)| a + 0.5 * b).collect()
    };
    (0..20).map(mix).collect()
}

#[test]
fn the_definition_is_reproduced() {
    let records = random(60, 1);
    let curvature = curvature(&random(80, 2));
    for damping in [1e-2, 1.0] {
        let fit = fitted(&records, &curvature, &alone(60), &options(damping));
        assert!(fit.energy_kept > 0.999, "{}", fit.energy_kept);
        for query in queries(&records) {
            let exact = exact(&curvature, &records, &query, damping);
            let found = correlation(&sketched(&fit, &query), &exact);
            assert!(found > 0.985, "damping {damping}: {found}");
        }
    }
}

#[test]
fn more_records_than_dimensions_keep_most() {
    let records = random(500, 1);
    let curvature = curvature(&random(300, 2));
    let fit = fitted(&records, &curvature, &alone(500), &options(0.1));
    assert!(fit.energy_kept > 0.5 && fit.energy_kept < 0.95);
    for query in queries(&records) {
        let exact = exact(&curvature, &records, &query, 0.1);
        let found = correlation(&sketched(&fit, &query), &exact);
        assert!(found > 0.7, "{found}");
    }
}

/// Sums of the scores by group.
fn nets(scores: &[f64], groups: &[usize]) -> Vec<f64> {
    let mut nets = vec![0.0; groups.iter().max().unwrap() + 1];
    for (score, &group) in scores.iter().zip(groups) {
        nets[group] += score;
    }
    nets
}

#[test]
fn nets_by_contributor_survive_where_single_scores_do_not() {
    let records = random(600, 1);
    let curvature = curvature(&random(300, 2));
    let groups: Vec<usize> = (0..600).map(|i| i % 40).collect();
    // How well nets survive a fit under the given groups.
    let worst = |fitted_for: &[usize]| {
        let fit = fitted(&records, &curvature, fitted_for, &options(0.1));
        let of_query = |query: Vec<f32>| {
            let exact = exact(&curvature, &records, &query, 0.1);
            correlation(
                &nets(&sketched(&fit, &query), &groups),
                &nets(&exact, &groups),
            )
        };
        queries(&records)
            .into_iter()
            .map(of_query)
            .fold(1.0, f64::min)
    };
    let (with, without) = (worst(&groups), worst(&alone(600)));
    assert!(with > 0.95, "{with}");
    assert!(without < with, "{without}");
}

#[test]
fn a_later_record_is_sketched_as_in_the_fit() {
    let records = random(50, 1);
    let curvature = curvature(&random(60, 2));
    let fit = fitted(&records, &curvature, &alone(50), &options(0.1));
    for (row, sketch) in records.iter().zip(&fit.records) {
        assert_eq!(fit.map.record(row).as_ref(), Ok(sketch));
    }
    // Ten times the gradient: cut at the largest scale, not wrapped around.
    let longer: Vec<f32> = records.row(0).iter().map(|x| 10.0 * x).collect();
    let sketch = fit.map.record(&longer).unwrap();
    assert_eq!(sketch.scale, u16::MAX);
}

#[test]
fn the_budget_changes_no_bit() {
    let records = random(70, 3);
    let curvature = curvature(&random(40, 4));
    let groups: Vec<usize> = (0..70).map(|i| i % 9).collect();
    let whole = fitted(&records, &curvature, &groups, &options(0.1));
    for budget_bytes in [0, 100_000] {
        let options = FitOptions {
            budget_bytes,
            ..options(0.1)
        };
        let mut passes = Vec::new();
        let fit = fit(
            &curvature,
            &mut records.clone(),
            &groups,
            &options,
            &mut |done| passes.push(done),
        )
        .unwrap();
        assert_eq!(fit.map, whole.map);
        assert_eq!(fit.records, whole.records);
        let last = passes.last().unwrap();
        assert!(last.passes <= last.passes_total);
    }
}

#[test]
fn scales_and_codes_use_their_range() {
    let records = random(40, 1);
    let curvature = curvature(&random(50, 2));
    let fit = fitted(&records, &curvature, &alone(40), &options(0.1));
    assert_eq!(fit.records.len(), 40);
    assert_eq!(fit.map.context(), b"c");
    // A quarter of the range, for longer records to come.
    let largest = fit.records.iter().map(|r| r.scale).max().unwrap();
    assert!((16_384..=16_385).contains(&largest), "{largest}");
    for record in &fit.records {
        let size = record.codes.iter().map(|c| c.unsigned_abs()).max().unwrap();
        assert_eq!(size, 7);
    }
}

#[test]
fn a_record_without_gradient_scores_nothing() {
    let mut records = random(5, 1);
    records.push(&[0.0; DIM]);
    let curvature = curvature(&random(50, 2));
    let fit = fitted(&records, &curvature, &alone(6), &options(0.1));
    assert_eq!(fit.records[5].codes, [0; K]);
}

/// Rows that cannot be read.
struct Broken;

impl RowSource for Broken {
    fn n_rows(&self) -> usize {
        3
    }

    fn n_columns(&self) -> usize {
        DIM
    }

    fn read(&mut self, _: usize, _: usize, _: &mut [f32]) -> io::Result<()> {
        Err(io::ErrorKind::UnexpectedEof.into())
    }
}

#[test]
fn bad_input_is_refused() {
    let records = random(5, 1);
    let curvature = curvature(&random(6, 2));
    let refused = |records: &mut dyn RowSource, n_groups: usize, options: &FitOptions| {
        let groups = alone(n_groups);
        fit(&curvature, records, &groups, options, &mut |_| ()).unwrap_err()
    };
    let o = options(0.1);
    let error = refused(&mut Rows::new(DIM), 0, &o);
    assert!(matches!(error, FitError::Size { n_rows: 0 }));
    for n_groups in [4, 6] {
        let error = refused(&mut records.clone(), n_groups, &o);
        assert!(matches!(error, FitError::Groups));
    }
    let error = fit(
        &curvature,
        &mut records.clone(),
        &[0, 1, 2, 3, 5],
        &o,
        &mut |_| (),
    );
    assert!(matches!(error, Err(FitError::Groups)));
    let mut short = Rows::new(DIM - 1);
    short.push(&[1.0; DIM - 1]);
    assert!(matches!(refused(&mut short, 1, &o), FitError::Shape { .. }));
    let long = FitOptions {
        context: vec![0; CONTEXT_SIZE_BYTES_MAX + 1],
        ..options(0.1)
    };
    let error = refused(&mut records.clone(), 5, &long);
    assert!(matches!(error, FitError::Shape { .. }));
    let mut broken = records.clone();
    broken.push(&[f32::NAN; DIM]);
    let error = refused(&mut broken, 6, &o);
    assert!(matches!(error, FitError::NotFinite { row: 5 }));
    let mut zeros = Rows::new(DIM);
    zeros.push(&[0.0; DIM]);
    assert!(matches!(refused(&mut zeros, 1, &o), FitError::Degenerate));
    for damping in [-1e9, f64::NAN, f64::INFINITY] {
        let error = refused(&mut records.clone(), 5, &options(damping));
        assert!(matches!(error, FitError::Degenerate), "{damping}");
    }
    assert!(matches!(refused(&mut Broken, 3, &o), FitError::Read(_)));
}
