//! Checkpoints of the way and other trainings: where gradients are taken, and
//! what an answer then costs.
//!
//! Unrolled differentiation of training (Bae et al., "SOURCE",
//! arXiv:2405.12186) takes the gradients of records at every checkpoint and
//! that of the answer at the last one alone. The others here take both at the
//! same place: at one checkpoint, at the mean of all, at each of several.

use std::convert::Infallible;

use anyhow::Context as _;
use ol_attribution::kronecker::Kronecker;
use ol_attribution::reduce::BlockShape;

use crate::bank::{Bank, Elsewhere, Gradients};
use crate::domain::Domain;
use crate::ek_fac::DAMPINGS;
use crate::methods::{Method, size_bytes, sum};
use crate::space::{Scores, Space, gram};
use crate::stats::count;
use crate::truth::Loss;

/// Damping over the mean eigenvalue of each factor: that of the sketches that
/// ship.
const DAMPING: f64 = 1e-1;

/// One over the steps that a segment takes along the mean eigenvalue: tuned.
const SOURCE: [f64; 3] = [1e-1, 1.0, 1e1];

/// Records, and questions of both losses, at one place.
struct Place {
    records: Gradients,
    queries: [Gradients; Loss::ALL.len()],
}

impl Place {
    fn of(domain: &Domain, bank: &Bank) -> Self {
        Self {
            records: bank.records(domain),
            queries: Loss::ALL.map(|loss| bank.queries(domain, loss)),
        }
    }

    fn rotated(&self, curvature: &Kronecker) -> Self {
        let rotate = |rows: &Gradients| rows.map(rows.dim, |row| curvature.rotate(row));
        Self {
            records: rotate(&self.records),
            queries: self.queries.each_ref().map(rotate),
        }
    }

    /// Scores of the records of `of` for the queries of this place, and for its
    /// records as queries.
    fn asks(&self, of: &Self, weights: &[f32]) -> Space {
        let ask = |queries| gram(queries, &of.records, Some(weights));
        Space {
            records: ask(&self.records),
            queries: self.queries.each_ref().map(ask),
        }
    }
}

/// Spaces by name, and what their scores are in full and in few bytes.
struct Spaces {
    full_bytes: usize,
    named: Vec<(String, Space)>,
}

impl Spaces {
    fn push(&mut self, name: impl Into<String>, space: Space) {
        self.named.push((name.into(), space));
    }

    fn parts(&self, names: &[String]) -> Vec<&Space> {
        let parts = self.named.iter().filter(|(name, _)| names.contains(name));
        parts.map(|(_, space)| space).collect()
    }

    fn methods(&self) -> Vec<Method> {
        let of = |(name, space): &(String, Space)| {
            let name = name.clone();
            in_full_and_sketched(name, self.full_bytes, &[(String::new(), space)])
        };
        self.named.iter().flat_map(of).collect()
    }

    /// Several added up: their scores in full, as one sketch, and as one each.
    fn ensemble(&self, name: &str, names: &[String]) -> Vec<Method> {
        let parts = self.parts(names);
        let added = Space::sum(&parts);
        let full_bytes = parts.len() * self.full_bytes;
        let mut methods = in_full_and_sketched(
            format!("{name} as one"),
            full_bytes,
            &[(String::new(), &added)],
        );
        let sketched = parts
            .iter()
            .map(|part| part.relative().sketched(256, 4, true));
        methods.extend(
            sketched
                .collect::<Option<Vec<Scores>>>()
                .map(|sketched| Method {
                    name: format!("{name} side by side, k = 256, int4"),
                    size_bytes: parts.len() * size_bytes(256, 4),
                    variants: vec![(String::new(), sum(&sketched))],
                }),
        );
        methods
    }
}

/// A method over its variants, uncompressed and in 256 numbers.
fn in_full_and_sketched(
    name: String,
    full_bytes: usize,
    variants: &[(String, &Space)],
) -> Vec<Method> {
    let all = |scores: &dyn Fn(&Space) -> Option<Scores>| {
        let of = variants.iter();
        of.filter_map(|(setting, space)| Some((setting.clone(), scores(space)?)))
            .collect()
    };
    let mut methods = vec![Method {
        name: format!("{name}, uncompressed"),
        size_bytes: full_bytes,
        variants: all(&|space| Some(space.queries.clone())),
    }];
    for bits in [4, 8] {
        methods.push(Method {
            name: format!("{name}, k = 256, int{bits}"),
            size_bytes: size_bytes(256, bits),
            variants: all(&|space| space.sketched(256, bits, true)),
        });
    }
    methods
}

/// `banks` are the checkpoints of one training; `elsewhere` makes gradients at
/// other places: a name, a seed and a bank for each.
pub(crate) fn segments(
    domain: &Domain,
    blocks: &[BlockShape],
    banks: &[Bank],
    elsewhere: &mut dyn Iterator<Item = anyhow::Result<(Elsewhere, Bank)>>,
    report: &mut dyn FnMut(&str),
) -> anyhow::Result<Vec<Method>> {
    let last = Place::of(domain, banks.last().context("a checkpoint")?);
    let mut spaces = Spaces {
        full_bytes: 4 * last.records.dim,
        named: Vec::new(),
    };
    let (mut own, mut asked) = (Vec::new(), Vec::new());
    for (at, bank) in banks.iter().enumerate() {
        let curvature = curvature(blocks, &[bank])?;
        let weights = inverse(&curvature, DAMPING);
        let here = Place::of(domain, bank).rotated(&curvature);
        own.push(format!("checkpoint {}", at + 1));
        spaces.push(&own[at], here.asks(&here, &weights));
        asked.push(format!("{} asked at the last", own[at]));
        spaces.push(&asked[at], last.rotated(&curvature).asks(&here, &weights));
        report("a checkpoint");
    }
    let mut methods = source(domain, blocks, banks, &last)?;
    report("SOURCE");
    methods.extend(spaces.ensemble("checkpoints", &own));
    methods.extend(spaces.ensemble("all asked at the last", &asked));

    let mut means = Vec::new();
    let mut firsts = vec![own[0].clone()];
    for place in elsewhere {
        let (at, bank) = place?;
        let curvature = curvature(blocks, &[&bank])?;
        let here = Place::of(domain, &bank).rotated(&curvature);
        spaces.push(at.name(), here.asks(&here, &inverse(&curvature, DAMPING)));
        if matches!(at, Elsewhere::Mean { .. }) {
            if means.is_empty() {
                methods.extend(dampings(&at.name(), spaces.full_bytes, &|damping| {
                    here.asks(&here, &inverse(&curvature, damping))
                }));
            }
            means.push(at.name());
        }
        if at.is_first() {
            firsts.push(at.name());
        }
        report(&at.name());
    }
    for (kind, names) in [("means", means), ("firsts", firsts)] {
        for n in 2..=names.len() {
            let name = format!("{kind} of {n} seeds");
            methods.extend(spaces.ensemble(&name, &names[..n]));
        }
    }
    methods.extend(spaces.methods());
    Ok(methods)
}

/// Each damping of a place, and the one that is best on the queries for tuning.
fn dampings(name: &str, full_bytes: usize, at: &dyn Fn(f64) -> Space) -> Vec<Method> {
    let spaces = DAMPINGS.map(|damping| (format!("{damping:e}"), at(damping)));
    let of = |name: String, spaces: &[(String, Space)]| {
        let variants = spaces
            .iter()
            .map(|(damping, space)| (damping.clone(), space));
        in_full_and_sketched(name, full_bytes, &variants.collect::<Vec<_>>())
    };
    let mut methods = of(format!("{name}, damping tuned"), &spaces);
    for (at, (damping, _)) in spaces.iter().enumerate() {
        methods.extend(of(format!("{name}, damping {damping}"), &spaces[at..=at]));
    }
    methods
}

/// With one curvature for the whole way: the mean, and SOURCE's formula, in
/// which what a segment taught decays in those after it. All asked at the last.
fn source(
    domain: &Domain,
    blocks: &[BlockShape],
    banks: &[Bank],
    last: &Place,
) -> anyhow::Result<Vec<Method>> {
    let curvature = curvature(blocks, &banks.iter().collect::<Vec<_>>())?;
    let last = last.rotated(&curvature);
    let full_bytes = 4 * last.records.dim;
    let ways: Vec<Place> = banks
        .iter()
        .map(|bank| Place::of(domain, bank).rotated(&curvature))
        .collect();
    let asked = |weights: &dyn Fn(usize) -> Vec<f32>| {
        let parts = ways.iter().enumerate();
        let parts = parts.map(|(at, place)| last.asks(place, &weights(ways.len() - 1 - at)));
        let parts: Vec<Space> = parts.collect();
        Space::weighted(&parts.iter().map(|part| (1.0, part)).collect::<Vec<_>>())
    };
    let mean = asked(&|_| inverse(&curvature, DAMPING));
    let name = "all asked at the last, one curvature".to_owned();
    let mut methods = in_full_and_sketched(name, full_bytes, &[(String::new(), &mean)]);
    let unrolled = SOURCE.map(|over| asked(&|n_after| unrolled(&curvature, over, n_after)));
    let settings = SOURCE.iter().map(|over| format!("{over:e}"));
    let variants: Vec<(String, &Space)> = settings.zip(&unrolled).collect();
    methods.extend(in_full_and_sketched(
        "SOURCE".to_owned(),
        full_bytes,
        &variants,
    ));
    Ok(methods)
}

/// Of the Fisher samples of all of `banks`.
fn curvature(blocks: &[BlockShape], banks: &[&Bank]) -> anyhow::Result<Kronecker> {
    let mut samples = |visit: &mut dyn FnMut(&[f32])| {
        for bank in banks {
            bank.fisher.rows().for_each(&mut *visit);
        }
        Ok::<(), Infallible>(())
    };
    Ok(Kronecker::fit(blocks, &mut samples, 1 << 30, &mut |_| {})?)
}

/// `1 / (eigenvalue + λ)`.
fn inverse(curvature: &Kronecker, damping: f64) -> Vec<f32> {
    #[expect(clippy::cast_possible_truncation, reason = "weights are f32")]
    let square = |root: &f64| (root * root) as f32;
    curvature.weights(damping).iter().map(square).collect()
}

/// `(1 - e^(-σ/λ)) / σ · e^(-n σ/λ)`: the step of a segment, and what `n` later
/// ones leave of it.
#[expect(clippy::cast_possible_truncation, reason = "weights are f32")]
fn unrolled(curvature: &Kronecker, over: f64, n_after: usize) -> Vec<f32> {
    let mut weights = Vec::with_capacity(curvature.dim());
    for range in curvature.factors() {
        let values = &curvature.eigenvalues()[range];
        let mean = values.iter().map(|x| f64::from(*x)).sum::<f64>() / count(values.len());
        let lambda = (over * mean).max(f64::MIN_POSITIVE);
        weights.extend(values.iter().map(|x| {
            let steps = f64::from(*x) / lambda;
            let step = if steps > 0.0 {
                -(-steps).exp_m1() / steps
            } else {
                1.0
            };
            (step * (-count(n_after) * steps).exp()) as f32
        }));
    }
    weights
}
