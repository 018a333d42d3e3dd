//! The methods that are compared, each as scores of all records for all
//! queries.

use std::convert::Infallible;

use anyhow::Context as _;
use ol_attribution::fit::{FitOptions, fit};
use ol_attribution::kronecker::Kronecker;
use ol_attribution::reduce::{BlockShape, Reducer};
use ol_attribution::rows::Rows;

use crate::bank::{Bank, Gradients};
use crate::domain::Domain;
use crate::linalg::Matrix;
use crate::random::SplitMix;
use crate::retrain::Machine;
use crate::space::{Curvature, Scores, Space, add_gram};
use crate::stats::count;
use crate::text;
use crate::truth::Loss;

/// Damping of an empirical or sampled Fisher matrix, over its trace.
const OVER_TRACE: [f64; 6] = [1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0];

/// Damping of EK-FAC, over the mean eigenvalue of each factor.
const OVER_MEAN: [f64; 5] = [1e-2, 1e-1, 1.0, 10.0, 100.0];

/// Lengths of sketches.
const LENGTHS: [usize; 4] = [32, 64, 128, 256];

/// Length of the sketches whose bits, and which as an ensemble, are varied.
const LENGTH: usize = 128;

/// Seed of all random projections.
const SEED: u64 = 1;

/// A method with the settings that it is tuned over.
#[derive(Debug)]
pub(crate) struct Method {
    pub(crate) name: String,
    /// What is stored of a record.
    pub(crate) size_bytes: usize,
    /// Setting and scores.
    pub(crate) variants: Vec<(String, Scores)>,
}

impl Method {
    fn one(name: impl Into<String>, size_bytes: usize, scores: Scores) -> Self {
        Self {
            name: name.into(),
            size_bytes,
            variants: vec![(String::new(), scores)],
        }
    }
}

/// All methods on one domain. `banks` are the checkpoints of one training, the
/// last one its result.
pub(crate) fn all(
    machine: &Machine,
    domain: &Domain,
    blocks: &[BlockShape],
    banks: &[Bank],
    report: &mut dyn FnMut(&str),
) -> anyhow::Result<Vec<Method>> {
    let mut methods = Vec::new();
    let ones = Matrix::from_fn(domain.n_queries(), domain.pool.len(), |_, _| 1.0);
    methods.push(Method::one("number of records", 0, [ones.clone(), ones]));
    let bm25 = text::bm25(domain);
    methods.push(Method::one("BM25", 0, [bm25.clone(), bm25]));
    let (embedding, dim) = text::embedding(machine, domain)?;
    methods.push(Method::one(
        "embedding, cosine",
        4 * dim,
        [embedding.clone(), embedding],
    ));
    report("text");

    let bank = banks.last().context("a checkpoint")?;
    let records = bank.records(domain);
    let queries = Loss::ALL.map(|loss| bank.queries(domain, loss));
    let plain = Space::of(&records, &queries, None);
    let full_bytes = 4 * records.dim;
    methods.push(Method::one("grad-dot", full_bytes, plain.queries.clone()));
    methods.push(Method::one("grad-cos", full_bytes, plain.cosine().queries));
    methods.push(tracin(domain, banks));
    report("gradients");
    methods.push(data_inf(&records, &queries, blocks));
    report("DataInf");

    for length in [512, 2048] {
        let project = |rows: &Gradients| rows.map(length, |row| sparse_signs(row, length));
        methods.push(projected(
            &format!("random projection to {length} (TRAK)"),
            &project(&records),
            &queries.each_ref().map(project),
        ));
    }
    for side in [1, 4, 16] {
        let reducer = Reducer::new(blocks, side, SEED);
        let project = |rows: &Gradients| rows.map(reducer.output_len(), |row| reducer.reduce(row));
        methods.push(projected(
            &format!("projection of each factor, side {side} (LoGra)"),
            &project(&records),
            &queries.each_ref().map(project),
        ));
    }
    methods.push(whitened(
        "empirical Fisher, uncompressed",
        full_bytes,
        plain.trace(),
        |lambda| plain.whiten_by_records(lambda),
    ));
    report("projections");

    let curvature = Curvature::of(&bank.fisher, &records, &queries);
    methods.push(whitened(
        "sampled Fisher, uncompressed",
        full_bytes,
        curvature.trace(),
        |lambda| plain.whiten_by(&curvature, lambda),
    ));
    let mut joint = bank.fisher.clone();
    joint.extend(&records);
    let joint = Curvature::of(&joint, &records, &queries);
    methods.push(whitened(
        "sampled Fisher and records, uncompressed",
        full_bytes,
        joint.trace(),
        |lambda| plain.whiten_by(&joint, lambda),
    ));
    drop(plain);
    report("Fisher");
    methods.push(shipped(domain, bank, blocks)?);
    report("shipped");

    let mut diagonal = vec![0.0_f32; records.dim];
    for row in bank.fisher.rows() {
        diagonal.iter_mut().zip(row).for_each(|(d, x)| *d += x * x);
    }
    methods.push(diagonal_metric(
        "diagonal Fisher",
        &records,
        &queries,
        &diagonal,
        |x| x,
    ));
    methods.push(diagonal_metric(
        "Adam's metric",
        &records,
        &queries,
        &diagonal,
        f32::sqrt,
    ));
    report("diagonals");

    let mut spaces: Vec<Vec<Space>> = Vec::new();
    for bank in banks {
        spaces.push(ek_fac(domain, bank, blocks)?);
        report("EK-FAC of a checkpoint");
    }
    let last = spaces.last().context("a checkpoint")?;
    methods.push(variants(
        "EK-FAC, uncompressed",
        full_bytes,
        last,
        |space| Some(space.queries.clone()),
    ));
    for k in LENGTHS {
        methods.push(variants(
            &format!("ours on EK-FAC, k = {k}, int8"),
            k + 2,
            last,
            |space| space.sketched(k, 8),
        ));
    }
    methods.push(variants(
        &format!("ours on EK-FAC, k = {LENGTH}, int4"),
        LENGTH / 2 + 2,
        last,
        |space| space.sketched(LENGTH, 4),
    ));
    let ensembles: Vec<Space> = (0..OVER_MEAN.len())
        .map(|at| {
            let parts: Vec<Space> = spaces.iter().map(|of_one| of_one[at].clone()).collect();
            Space::sum(&parts)
        })
        .collect();
    let n = banks.len();
    methods.push(variants(
        &format!("EK-FAC, uncompressed, {n} checkpoints"),
        n * full_bytes,
        &ensembles,
        |space| Some(space.queries.clone()),
    ));
    for k in LENGTHS {
        methods.push(variants(
            &format!("ours on EK-FAC, {n} checkpoints in one, k = {k}, int8"),
            k + 2,
            &ensembles,
            |space| space.sketched(k, 8),
        ));
    }
    report("sketches");
    Ok(methods)
}

fn variants(
    name: &str,
    size_bytes: usize,
    spaces: &[Space],
    scores: impl Fn(&Space) -> Option<Scores>,
) -> Method {
    let variants = OVER_MEAN
        .iter()
        .zip(spaces)
        .filter_map(|(damping, space)| Some((format!("{damping:e}"), scores(space)?)));
    Method {
        name: name.to_owned(),
        size_bytes,
        variants: variants.collect(),
    }
}

/// A Fisher matrix over a range of damping.
fn whitened(
    name: &str,
    size_bytes: usize,
    trace: f64,
    whiten: impl Fn(f64) -> Option<Space>,
) -> Method {
    let variants = OVER_TRACE.iter().filter_map(|damping| {
        let space = whiten(damping * trace)?;
        Some((format!("{damping:e}"), space.queries))
    });
    Method {
        name: name.to_owned(),
        size_bytes,
        variants: variants.collect(),
    }
}

/// Projected gradients with their own second moment as curvature.
fn projected(name: &str, records: &Gradients, queries: &[Gradients; 2]) -> Method {
    let space = Space::of(records, queries, None);
    whitened(name, 4 * records.dim, space.trace(), |lambda| {
        space.whiten_by_records(lambda)
    })
}

/// Inner products at checkpoints, weighted by their learning rates (Pruthi et
/// al., arXiv:2002.08484).
fn tracin(domain: &Domain, banks: &[Bank]) -> Method {
    let mut total: Option<Scores> = None;
    let mut dim = 0;
    for bank in banks {
        let records = bank.records(domain);
        dim = records.dim;
        let rates = [0, 1].map(|loss| {
            let queries = bank.queries(domain, Loss::ALL[loss]);
            let mut scores = crate::space::gram(&queries, &records, None);
            scores.scale(bank.learning_rate);
            scores
        });
        total = Some(match total {
            None => rates,
            Some(total) => [0, 1].map(|loss| {
                Matrix::from_fn(rates[loss].rows(), rates[loss].cols(), |i, j| {
                    total[loss].at(i, j) + rates[loss].at(i, j)
                })
            }),
        });
    }
    let scores = total.unwrap_or_else(|| [0, 1].map(|_| Matrix::zeros(0, 0)));
    Method::one(
        format!("TracIn, {} checkpoints", banks.len()),
        4 * dim * banks.len(),
        scores,
    )
}

/// The closed form of Kwon et al., arXiv:2310.00902: for each factor, the mean
/// of the inverses of `λ + g gᵀ`.
fn data_inf(records: &Gradients, queries: &[Gradients; 2], blocks: &[BlockShape]) -> Method {
    const DAMPINGS: [f64; 3] = [1e-2, 1e-1, 1.0];
    let n = records.len();
    let zeros = || [0, 1].map(|loss: usize| Matrix::zeros(queries[loss].len(), n));
    let mut totals = DAMPINGS.map(|_| zeros());
    let mut start = 0;
    let lengths = blocks
        .iter()
        .flat_map(|block| [block.rank * block.d_in, block.d_out * block.rank]);
    for length in lengths {
        let columns = start..start + length;
        start = columns.end;
        let mut inner = Matrix::zeros(n, n);
        add_gram(&mut inner, records, records, None, columns.clone());
        let trace = (0..n).map(|i| inner.at(i, i)).sum::<f64>() / count(n);
        for loss in 0..Loss::ALL.len() {
            let mut cross = Matrix::zeros(queries[loss].len(), n);
            add_gram(&mut cross, &queries[loss], records, None, columns.clone());
            for (total, damping) in totals.iter_mut().zip(DAMPINGS) {
                // The paper's λ is a tenth of the mean square of an element.
                let lambda = damping * trace / count(length);
                let scaled = Matrix::from_fn(cross.rows(), n, |query, record| {
                    cross.at(query, record) / (lambda + inner.at(record, record)) / count(n)
                });
                let total = &mut total[loss];
                for query in 0..cross.rows() {
                    let row = total.row_mut(query);
                    row.iter_mut()
                        .zip(cross.row(query))
                        .for_each(|(sum, x)| *sum += x / lambda);
                }
                add_product(total, 0, 0, -1.0 / lambda, &scaled, &inner);
            }
        }
    }
    let variants = DAMPINGS
        .iter()
        .zip(totals)
        .map(|(damping, scores)| (format!("{damping:e}"), scores));
    Method {
        name: "DataInf".to_owned(),
        size_bytes: 4 * records.dim,
        variants: variants.collect(),
    }
}

fn add_product(into: &mut Matrix, row: usize, col: usize, factor: f64, a: &Matrix, b: &Matrix) {
    crate::linalg::add_product(into, row, col, factor, a.view(), b.view());
}

/// Eight signed buckets for each number (Kane and Nelson, 2014).
fn sparse_signs(row: &[f32], length: usize) -> Vec<f32> {
    let mut sums = vec![0.0_f32; length];
    let mut random = SplitMix::new(SEED);
    for &x in row {
        // Eight draws of a bucket and a sign, two from each word.
        for _ in 0..4 {
            let word = random.next();
            for half in [word >> 32, word & 0xffff_ffff] {
                let bucket = usize::try_from(half >> 1).unwrap_or(0) % length;
                sums[bucket] += if half & 1 == 0 { x } else { -x };
            }
        }
    }
    sums
}

/// A metric that is diagonal, over a range of damping.
fn diagonal_metric(
    name: &str,
    records: &Gradients,
    queries: &[Gradients; 2],
    squares: &[f32],
    of: impl Fn(f32) -> f32,
) -> Method {
    let values: Vec<f32> = squares.iter().map(|x| of(*x)).collect();
    let mean = values.iter().map(|x| f64::from(*x)).sum::<f64>() / count(values.len());
    let variants = [1e-2, 1e-1, 1.0].map(|damping| {
        #[expect(clippy::cast_possible_truncation, reason = "a weight")]
        let lambda = (damping * mean) as f32;
        let weights: Vec<f32> = values.iter().map(|x| 1.0 / (x + lambda)).collect();
        let scores = [0, 1].map(|loss| crate::space::gram(&queries[loss], records, Some(&weights)));
        (format!("{damping:e}"), scores)
    });
    Method {
        name: name.to_owned(),
        size_bytes: 4 * records.dim,
        variants: variants.into(),
    }
}

/// EK-FAC: one space for each damping.
fn ek_fac(domain: &Domain, bank: &Bank, blocks: &[BlockShape]) -> anyhow::Result<Vec<Space>> {
    let mut samples = |visit: &mut dyn FnMut(&[f32])| {
        bank.fisher.rows().for_each(visit);
        Ok::<(), Infallible>(())
    };
    let curvature = Kronecker::fit(blocks, &mut samples, 1 << 30, &mut |_| {})?;
    let rotate = |rows: &Gradients| rows.map(rows.dim, |row| curvature.rotate(row));
    let records = rotate(&bank.records(domain));
    let queries = Loss::ALL.map(|loss| rotate(&bank.queries(domain, loss)));
    let space = |damping: &f64| {
        let mut weights = Vec::with_capacity(curvature.dim());
        for range in curvature.factors() {
            let values = &curvature.eigenvalues()[range];
            let mean = values.iter().map(|x| f64::from(*x)).sum::<f64>() / count(values.len());
            #[expect(clippy::cast_possible_truncation, reason = "a weight")]
            let lambda = (damping * mean) as f32;
            weights.extend(values.iter().map(|x| 1.0 / (x + lambda)));
        }
        Space::of(&records, &queries, Some(&weights))
    };
    Ok(OVER_MEAN.iter().map(space).collect())
}

/// The sketches that ship: their own code from gradients to integers.
fn shipped(domain: &Domain, bank: &Bank, blocks: &[BlockShape]) -> anyhow::Result<Method> {
    let options = ol_attribution::record::SketchOptions::default();
    let reducer = Reducer::new(blocks, options.side, options.seed);
    let rows = |gradients: &Gradients| {
        let mut rows = Rows::new(reducer.output_len());
        gradients
            .rows()
            .for_each(|row| rows.push(&reducer.reduce(row)));
        rows
    };
    let records = rows(&bank.mean_records(domain));
    let mut fisher = rows(&bank.fisher);
    records.iter().for_each(|row| fisher.push(row));
    // Contributors in the order of first appearance.
    let mut numbers = std::collections::BTreeMap::new();
    let groups: Vec<usize> = domain
        .pool
        .iter()
        .map(|text| {
            let next = numbers.len();
            *numbers.entry(text.contributor).or_insert(next)
        })
        .collect();
    let fit_options = FitOptions {
        damping: options.damping,
        seed: options.seed,
        context: Vec::new(),
    };
    let fitted = fit(&records, &fisher, &groups, &fit_options)?;
    let scores = Loss::ALL.map(|loss| -> anyhow::Result<Matrix> {
        let queries = bank.queries(domain, loss);
        let mut scores = Matrix::zeros(queries.len(), domain.pool.len());
        for (at, query) in queries.rows().enumerate() {
            let sketch = fitted.map.sketch(&reducer.reduce(query))?;
            for (score, record) in scores.row_mut(at).iter_mut().zip(&fitted.records) {
                let pairs = sketch.codes().iter().zip(&record.codes);
                let dot: i32 = pairs.map(|(a, b)| i32::from(*a) * i32::from(*b)).sum();
                *score = f64::from(dot) * f64::from(record.scale);
            }
        }
        Ok(scores)
    });
    let [answer, both] = scores;
    Ok(Method::one(
        "ours as shipped, k = 128, int8",
        130,
        [answer?, both?],
    ))
}
