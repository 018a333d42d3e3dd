//! What needs no gradients: words and hidden states.

use std::collections::{BTreeMap, BTreeSet};

use ol_model::Sequence;

use crate::domain::{Domain, Text};
use crate::linalg::Matrix;
use crate::retrain::Machine;
use crate::stats::{count, mean};

/// Okapi BM25 of each query's words, question and answer, against each
/// record's; `k1 = 1.2`, `b = 0.75` (Robertson and Zaragoza, 2009).
pub(crate) fn bm25(domain: &Domain) -> Matrix {
    const K1: f64 = 1.2;
    const B: f64 = 0.75;
    let bags: Vec<BTreeMap<String, f64>> = domain.pool.iter().map(bag).collect();
    let lengths: Vec<f64> = bags.iter().map(|bag| bag.values().sum()).collect();
    let mean_length = mean(&lengths);
    let mut seen: BTreeMap<&str, f64> = BTreeMap::new();
    for word in bags.iter().flat_map(BTreeMap::keys) {
        *seen.entry(word).or_default() += 1.0;
    }
    let n = count(bags.len());
    let queries: Vec<BTreeSet<String>> = domain
        .queries()
        .map(|text| bag(text).into_keys().collect())
        .collect();
    Matrix::from_fn(queries.len(), bags.len(), |query, record| {
        let of_word = |word: &String| {
            let frequency = bags[record].get(word).copied().unwrap_or(0.0);
            let with = seen.get(word.as_str()).copied().unwrap_or(0.0);
            let rarity = (1.0 + (n - with + 0.5) / (with + 0.5)).ln();
            let length = 1.0 - B + B * lengths[record] / mean_length;
            rarity * frequency * (K1 + 1.0) / (frequency + K1 * length)
        };
        queries[query].iter().map(of_word).sum()
    })
}

fn bag(text: &Text) -> BTreeMap<String, f64> {
    let words = format!("{} {}", text.question, text.answer).to_lowercase();
    let mut bag = BTreeMap::new();
    for word in words.split(|c: char| !c.is_alphanumeric()) {
        if !word.is_empty() {
            *bag.entry(word.to_owned()).or_default() += 1.0;
        }
    }
    bag
}

/// Cosine of the base's mean hidden states, the mean over the records taken
/// out; and how many numbers a state has.
pub(crate) fn embedding(machine: &Machine, domain: &Domain) -> anyhow::Result<(Matrix, usize)> {
    let states = |texts: Vec<Sequence>| machine.model.mean_hidden(&machine.pool, None, &texts);
    let mut records = states(domain.pool.iter().map(Text::whole).collect())?;
    let mut queries = states(domain.queries().map(Text::whole).collect())?;
    let dim = records.first().map_or(0, Vec::len);
    #[expect(clippy::cast_precision_loss, reason = "a number of records")]
    let part = 1.0 / records.len() as f32;
    let mut middle = vec![0.0_f32; dim];
    for record in &records {
        middle
            .iter_mut()
            .zip(record)
            .for_each(|(m, x)| *m += part * x);
    }
    for state in records.iter_mut().chain(&mut queries) {
        state.iter_mut().zip(&middle).for_each(|(x, m)| *x -= m);
        let length = state.iter().map(|x| x * x).sum::<f32>().sqrt();
        state.iter_mut().for_each(|x| *x /= length);
    }
    let dot = |query: usize, record: usize| -> f64 {
        let pairs = queries[query].iter().zip(&records[record]);
        pairs.map(|(a, b)| f64::from(*a) * f64::from(*b)).sum()
    };
    Ok((Matrix::from_fn(queries.len(), records.len(), dot), dim))
}
