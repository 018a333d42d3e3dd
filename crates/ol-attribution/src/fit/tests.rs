//! Goal: sketches reproduce the damped influence scores they stand for.
//! Method: scores by the definition, `qᵀ (F + λI)⁻¹ g`, with dense algebra, on
//! problems small enough that 128 dimensions hold everything.

use ol_poa::K;

use super::{FitError, FitOptions, fit};
use crate::linalg::{Matrix, cholesky, cholesky_solve, multiply};
use crate::map::CONTEXT_SIZE_BYTES_MAX;
use crate::random::SplitMix;
use crate::rows::Rows;

fn random(n: usize, d: usize, seed: u64) -> Rows {
    let mut generator = SplitMix::new(seed);
    let mut rows = Rows::new(d);
    for _ in 0..n {
        let row: Vec<f32> = (0..d)
            .map(|j| {
                let x = f32::from(u16::try_from(generator.next() >> 48).unwrap()) / 32_768.0 - 1.0;
                // A falling spectrum, as gradients have.
                x / (1.0 + 0.05 * j as f32)
            })
            .collect();
        rows.push(&row);
    }
    rows
}

fn options(damping: f64) -> FitOptions {
    FitOptions {
        damping,
        seed: 11,
        context: b"c".to_vec(),
    }
}

/// Every record its own contributor.
fn alone(n: usize) -> Vec<usize> {
    (0..n).collect()
}

fn wide(rows: &Rows) -> Matrix {
    Matrix::from_fn(rows.len(), rows.dim(), |i, j| f64::from(rows.row(i)[j]))
}

/// Scores of `queries` against `records` by the definition: `[Q, N]`.
fn oracle(records: &Rows, fisher: &Rows, queries: &Rows, damping: f64) -> Matrix {
    let f = wide(fisher);
    let mut information = multiply(f.view().t(), f.view());
    information.scale(1.0 / fisher.len() as f64);
    let trace: f64 = (0..information.rows()).map(|i| information.at(i, i)).sum();
    information.add_to_diagonal(damping * trace);
    let g = wide(records);
    let transposed = Matrix::from_fn(g.cols(), g.rows(), |i, j| g.at(j, i));
    let x = cholesky_solve(&cholesky(information).unwrap(), transposed);
    multiply(wide(queries).view(), x.view())
}

fn correlation(a: &[f64], b: &[f64]) -> f64 {
    let mean = |x: &[f64]| x.iter().sum::<f64>() / x.len() as f64;
    let (ma, mb) = (mean(a), mean(b));
    let sum = |f: &dyn Fn(usize) -> f64| (0..a.len()).map(f).sum::<f64>();
    let cov = sum(&|i| (a[i] - ma) * (b[i] - mb));
    cov / (sum(&|i| (a[i] - ma).powi(2)) * sum(&|i| (b[i] - mb).powi(2))).sqrt()
}

/// The lowest correlation over queries between sketch scores and the oracle's.
fn worst_correlation(n: usize, s: usize, d: usize) -> f64 {
    let (records, fisher, queries) = (random(n, d, 1), random(s, d, 2), random(20, d, 3));
    let fit = fit(&records, &fisher, &alone(n), &options(0.01)).unwrap();
    let exact = oracle(&records, &fisher, &queries, 0.01);
    queries
        .iter()
        .enumerate()
        .map(|(q, query)| {
            let sketch = fit.map.sketch(query).unwrap();
            let scores: Vec<f64> = fit
                .records
                .iter()
                .map(|record| {
                    let dot: i32 = (record.codes.iter())
                        .zip(sketch.codes())
                        .map(|(&a, &b)| i32::from(a) * i32::from(b))
                        .sum();
                    f64::from(dot) * f64::from(record.scale)
                })
                .collect();
            correlation(&scores, exact.row(q))
        })
        .fold(1.0, f64::min)
}

#[test]
fn both_forms_reproduce_the_definition() {
    // n <= 128: nothing is lost but by rounding.
    let cases = [("dual", 60, 50, 300), ("primal", 100, 200, 90)];
    for (form, n, s, d) in cases {
        let worst = worst_correlation(n, s, d);
        assert!(worst > 0.999, "{form}: {worst}");
    }
}

#[test]
fn more_records_than_dimensions_keep_most() {
    let worst = worst_correlation(400, 300, 350);
    assert!(worst > 0.8, "{worst}");
}

/// Sums of the scores by group, per query: `[Q, groups]`.
fn nets(scores: impl Iterator<Item = f64>, groups: &[usize]) -> Vec<f64> {
    let mut nets = vec![0.0; groups.iter().max().unwrap() + 1];
    for (score, &group) in scores.zip(groups) {
        nets[group] += score;
    }
    nets
}

#[test]
fn nets_by_contributor_survive_where_single_scores_do_not() {
    let (n, d, damping) = (600, 700, 1e-4);
    let (records, queries) = (random(n, d, 1), random(20, d, 3));
    let groups: Vec<usize> = (0..n).map(|i| i % 40).collect();
    let exact = oracle(&records, &records, &queries, damping);
    // How well the nets of the queries survive a fit under the given groups.
    let worst = |fitted_for: &[usize]| {
        let fit = fit(&records, &records, fitted_for, &options(damping)).unwrap();
        let of_query = |(q, query): (usize, &[f32])| {
            let sketch = fit.map.sketch(query).unwrap();
            let score = |record: &super::RecordSketch| {
                let products = record.codes.iter().zip(sketch.codes());
                let dot: i32 = products.map(|(&a, &b)| i32::from(a) * i32::from(b)).sum();
                f64::from(dot) * f64::from(record.scale)
            };
            let sketched = nets(fit.records.iter().map(score), &groups);
            correlation(&sketched, &nets(exact.row(q).iter().copied(), &groups))
        };
        queries.iter().enumerate().map(of_query).fold(1.0, f64::min)
    };
    let (with, without) = (worst(&groups), worst(&alone(n)));
    assert!(with > 0.98, "{with}");
    assert!(without < with, "{without}");
}

#[test]
fn groups_are_checked() {
    let (records, fisher) = (random(5, 30, 1), random(6, 30, 2));
    for groups in [vec![0; 4], vec![0; 6], vec![0, 1, 2, 3, 5]] {
        let refused = fit(&records, &fisher, &groups, &options(0.1)).unwrap_err();
        assert_eq!(refused, FitError::Groups);
    }
}

#[test]
fn the_largest_record_uses_the_whole_range() {
    let fit = fit(
        &random(40, 30, 1),
        &random(50, 30, 2),
        &alone(40),
        &options(0.1),
    )
    .unwrap();
    assert_eq!(fit.records.len(), 40);
    assert_eq!(fit.map.context(), b"c");
    assert!(fit.energy_kept > 0.999);
    let largest = fit.records.iter().max_by_key(|r| r.scale).unwrap();
    assert_eq!(largest.scale, u16::MAX);
    for record in &fit.records {
        assert!(record.scale >= 1);
        let size = record.codes.iter().map(|c| c.unsigned_abs()).max().unwrap();
        assert!((120..=127).contains(&size), "{size}");
    }
}

#[test]
fn a_record_without_gradient_scores_nothing() {
    let mut records = random(5, 30, 1);
    records.push(&[0.0; 30]);
    let fit = fit(&records, &random(50, 30, 2), &alone(6), &options(0.1)).unwrap();
    assert_eq!(fit.records[5].codes, [0; K]);
}

#[test]
fn bad_input_is_refused() {
    let (records, fisher) = (random(5, 30, 1), random(6, 30, 2));
    let check = |records: &Rows, fisher: &Rows, options: &FitOptions, expected: FitError| {
        let groups = alone(records.len());
        assert_eq!(
            fit(records, fisher, &groups, options).unwrap_err(),
            expected
        );
    };
    let o = options(0.1);
    check(&Rows::new(30), &fisher, &o, FitError::Size { n_rows: 0 });
    check(&records, &Rows::new(30), &o, FitError::Size { n_rows: 0 });
    let shape = FitError::Shape {
        d: 30,
        d_fisher: 31,
    };
    check(&records, &random(6, 31, 2), &o, shape);
    let long = FitOptions {
        context: vec![0; CONTEXT_SIZE_BYTES_MAX + 1],
        ..options(0.1)
    };
    let shape = FitError::Shape {
        d: 30,
        d_fisher: 30,
    };
    check(&records, &fisher, &long, shape);

    let mut broken = records.clone();
    broken.push(&[f32::NAN; 30]);
    check(&broken, &fisher, &o, FitError::NotFinite { row: 5 });

    let mut zeros = Rows::new(30);
    zeros.push(&[0.0; 30]);
    check(&records, &zeros, &o, FitError::Degenerate);
    check(&zeros, &fisher, &o, FitError::Degenerate);
    for damping in [0.0, -1.0, f64::NAN, f64::INFINITY] {
        check(&records, &fisher, &options(damping), FitError::Degenerate);
    }
}
