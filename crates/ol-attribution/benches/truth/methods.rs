//! The methods that are compared, each as scores of all records for all
//! queries.

use std::convert::Infallible;

use anyhow::Context as _;
use ol_attribution::fit::{FitOptions, fit};
use ol_attribution::kronecker::Kronecker;
use ol_attribution::reduce::{BlockShape, Reducer};
use ol_attribution::rows::Rows;

use crate::bank::{Bank, Elsewhere, Gradients};
use crate::domain::Domain;
use crate::ek_fac::{DAMPINGS, Rotated};
use crate::linalg::Matrix;
use crate::random::SplitMix;
use crate::retrain::Machine;
use crate::segments::segments;
use crate::solve::Dense as _;
use crate::space::{Curvature, Scores, Space, add_gram};
use crate::stats::count;
use crate::text;
use crate::truth::Loss;

/// Damping of an empirical or sampled Fisher matrix, over its trace.
const OVER_TRACE: [f64; 6] = [1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0];

/// Damping of the sketches that ship, one of [`DAMPINGS`].
const SHIPPED_DAMPING: f64 = 1e-1;

/// Damping of what is fitted after a reduction, over the trace.
const REDUCED: f64 = 1e-2;

/// Lengths and bits of sketches.
const SKETCHES: [(usize, u32); 6] = [(32, 8), (64, 8), (128, 8), (128, 4), (256, 8), (256, 4)];

/// The method that others are compared to.
pub(crate) const REFERENCE: &str = "EK-FAC, uncompressed";

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

/// The methods on one domain. `banks` are the checkpoints of one training, the
/// last one its result; `wanted` are the groups asked for, with commas between
/// them: `text`, `gradients`, `shipped`, `reductions`, `joint`, `sketches`,
/// `segments`. The method that others are compared to is always there. `elsewhere`
/// makes the banks at other places, which the last group needs.
pub(crate) fn all(
    machine: &Machine,
    domain: &Domain,
    blocks: &[BlockShape],
    banks: &[Bank],
    elsewhere: &mut dyn Iterator<Item = anyhow::Result<(Elsewhere, Bank)>>,
    wanted: Option<&str>,
    report: &mut dyn FnMut(&str),
) -> anyhow::Result<Vec<Method>> {
    let wants = |group| wanted.is_none_or(|wanted| wanted.split(',').any(|name| name == group));
    let bank = banks.last().context("a checkpoint")?;
    let mut methods = Vec::new();
    if wants("text") {
        methods.extend(of_text(machine, domain)?);
        report("text");
    }
    if wants("gradients") {
        methods.extend(of_gradients(domain, banks, bank, blocks, report));
    }
    if wants("shipped") {
        let first = banks.first().context("a checkpoint")?;
        methods.extend(shipped(domain, first, blocks)?);
        report("shipped");
    }
    methods.extend(on_curvature(domain, blocks, banks, &wants, report)?);
    if wants("segments") {
        methods.extend(segments(domain, blocks, banks, elsewhere, report)?);
    }
    Ok(methods)
}

/// Those that look at words alone.
fn of_text(machine: &Machine, domain: &Domain) -> anyhow::Result<Vec<Method>> {
    let mut methods = Vec::new();
    let ones = Matrix::from_fn(domain.n_queries(), domain.pool.len(), |_, _| 1.0);
    methods.push(Method::one("number of records", 0, [ones.clone(), ones]));
    let bm25 = text::bm25(domain)?;
    methods.push(Method::one("BM25", 0, [bm25.clone(), bm25]));
    let (embedding, dim) = text::embedding(machine, domain)?;
    methods.push(Method::one(
        "embedding, cosine",
        4 * dim,
        [embedding.clone(), embedding],
    ));
    Ok(methods)
}

/// Those on gradients as they are, and on other curvatures.
fn of_gradients(
    domain: &Domain,
    banks: &[Bank],
    bank: &Bank,
    blocks: &[BlockShape],
    report: &mut dyn FnMut(&str),
) -> Vec<Method> {
    let mut methods = Vec::new();
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
    methods
}

/// EK-FAC, and what is left of it in fewer bytes.
fn on_curvature(
    domain: &Domain,
    blocks: &[BlockShape],
    banks: &[Bank],
    wants: &dyn Fn(&'static str) -> bool,
    report: &mut dyn FnMut(&str),
) -> anyhow::Result<Vec<Method>> {
    let mut methods = Vec::new();
    let mut spaces: Vec<Vec<Space>> = Vec::new();
    // Checkpoints on the way matter to some of the sketches only.
    let n_before = if wants("sketches") {
        0
    } else {
        banks.len().saturating_sub(1)
    };
    let mut full_bytes = 0;
    for (at, bank) in banks.iter().enumerate().skip(n_before) {
        let rotated = Rotated::new(domain, bank, blocks)?;
        full_bytes = 4 * rotated.dim();
        spaces.push(rotated.spaces());
        report("EK-FAC of a checkpoint");
        if at + 1 < banks.len() || !wants("reductions") {
            continue;
        }
        for side in [16, 64] {
            let (length, space) = rotated.reduced(side);
            let name = format!("EK-FAC, then side {side}");
            methods.push(Method::one(name, 4 * length, space.queries));
            let (length, space, curvature) = rotated.refitted(bank, side);
            let name = format!("K-FAC, then side {side}, then sampled Fisher");
            methods.push(whitened(&name, 4 * length, curvature.trace(), |lambda| {
                space.whiten_by(&curvature, lambda)
            }));
            let space = space.whiten_by(&curvature, REDUCED * curvature.trace());
            let name = format!("ours on that, k = 256, int4, side {side}");
            let sketched = space.and_then(|space| space.sketched(256, 4, true));
            methods.extend(sketched.map(|scores| Method::one(name, size_bytes(256, 4), scores)));
        }
        report("reductions");
    }
    let last = spaces.last().context("a checkpoint")?;
    methods.push(variants(REFERENCE, full_bytes, last, |space| {
        Some(space.queries.clone())
    }));
    if wants("joint") {
        methods.extend(joint(last, full_bytes));
        report("joint");
    }
    if !wants("sketches") {
        return Ok(methods);
    }
    for (k, bits) in SKETCHES {
        let name = format!("ours on EK-FAC, k = {k}, int{bits}");
        methods.push(variants(&name, size_bytes(k, bits), last, |space| {
            space.sketched(k, bits, true)
        }));
    }
    for (k, bits) in [(64, 8), (128, 8)] {
        let name = format!("ours on EK-FAC, fitted without own scores, k = {k}, int{bits}");
        methods.push(variants(&name, size_bytes(k, bits), last, |space| {
            space.sketched(k, bits, false)
        }));
    }
    let n = banks.len();
    let parts: Vec<Vec<&Space>> = (0..DAMPINGS.len())
        .map(|at| spaces.iter().map(|of_one| &of_one[at]).collect())
        .collect();
    let sums: Vec<Space> = parts.iter().map(|parts| Space::sum(parts)).collect();
    let name = format!("EK-FAC, uncompressed, {n} checkpoints");
    methods.push(variants(&name, n * full_bytes, &sums, |space| {
        Some(space.queries.clone())
    }));
    for (k, bits) in SKETCHES {
        let name = format!("ours on EK-FAC, {n} checkpoints as one, k = {k}, int{bits}");
        methods.push(variants(&name, size_bytes(k, bits), &sums, |space| {
            space.sketched(k, bits, true)
        }));
    }
    for (k, bits) in [(128, 8), (256, 4)] {
        let name = format!("ours on EK-FAC, {n} checkpoints side by side, k = {k}, int{bits}");
        methods.push(variants(&name, n * size_bytes(k, bits), &parts, |parts| {
            let sketched = parts
                .iter()
                .map(|part| part.relative().sketched(k, bits, true));
            Some(sum(&sketched.collect::<Option<Vec<_>>>()?))
        }));
    }
    report("sketches");
    Ok(methods)
}

/// Codes and the scale of a record.
pub(crate) const fn size_bytes(k: usize, bits: u32) -> usize {
    k * bits as usize / 8 + 2
}

pub(crate) fn sum(parts: &[Scores]) -> Scores {
    [0, 1].map(|loss| {
        let first = &parts[0][loss];
        Matrix::from_fn(first.rows(), first.cols(), |i, j| {
            parts.iter().map(|part| part[loss].at(i, j)).sum()
        })
    })
}

/// EK-FAC with the records' own whitened gradients as further curvature, at each
/// weight of them: what all records share is then credited to fewer of them.
fn joint(spaces: &[Space], full_bytes: usize) -> Vec<Method> {
    let at = DAMPINGS
        .iter()
        .position(|damping| *damping == SHIPPED_DAMPING);
    let Some(space) = at.and_then(|at| spaces.get(at)) else {
        return Vec::new();
    };
    let trace = space.trace();
    let mut methods = Vec::new();
    for weight in OVER_TRACE {
        let Some(joint) = space.whiten_by_records(weight * trace) else {
            continue;
        };
        if let Some(scores) = joint.sketched(256, 4, true) {
            let name = format!("EK-FAC and records, {weight:e}, k = 256, int4");
            methods.push(Method::one(name, size_bytes(256, 4), scores));
        }
        let name = format!("EK-FAC and records, {weight:e}, uncompressed");
        methods.push(Method::one(name, full_bytes, joint.queries));
    }
    methods
}

/// EK-FAC over its range of damping.
fn variants<T>(
    name: &str,
    size_bytes: usize,
    spaces: &[T],
    scores: impl Fn(&T) -> Option<Scores>,
) -> Method {
    let variants = DAMPINGS
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
    let mut parts: Vec<Scores> = Vec::new();
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
        parts.push(rates);
    }
    Method::one(
        format!("TracIn, {} checkpoints", banks.len()),
        4 * dim * banks.len(),
        sum(&parts),
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

/// The sketches that ship: their own code from gradients, which `bank` has of the
/// first checkpoint, to integers, with other dampings beside their own.
fn shipped(domain: &Domain, bank: &Bank, blocks: &[BlockShape]) -> anyhow::Result<Vec<Method>> {
    let options = ol_attribution::record::SketchOptions::default();
    let reducer = Reducer::new(blocks, options.side, options.seed);
    let rows = |gradients: &Gradients| {
        let mut rows = Rows::new(reducer.output_len());
        gradients
            .rows()
            .for_each(|row| rows.push(&reducer.reduce(row)));
        rows
    };
    // As the options say: of a record the sum over its tokens counts.
    let mut records = rows(&bank.records(domain));
    let fisher = rows(&bank.fisher);
    let curvature = Kronecker::fit(
        &reducer.reduced_blocks(),
        &mut |visit| {
            fisher.iter().for_each(visit);
            Ok::<_, Infallible>(())
        },
        options.budget_bytes,
        &mut |_| {},
    )?;
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
    let alone: Vec<usize> = (0..groups.len()).collect();
    let mut of = |name: &str, damping: f64, groups: &[usize]| -> anyhow::Result<Method> {
        let fit_options = FitOptions {
            damping,
            seed: options.seed,
            context: Vec::new(),
            budget_bytes: options.budget_bytes,
        };
        let fitted = fit(&curvature, &mut records, groups, &fit_options, &mut |_| {})?;
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
            name,
            size_bytes(ol_poa::K, 4),
            [answer?, both?],
        ))
    };
    Ok(vec![
        of("ours as shipped", options.damping, &groups)?,
        of(
            "ours, a tenth of the damping",
            options.damping / 10.0,
            &groups,
        )?,
        of(
            "ours, ten times the damping",
            options.damping * 10.0,
            &groups,
        )?,
        of("ours, contributors' sums not kept", options.damping, &alone)?,
    ])
}
