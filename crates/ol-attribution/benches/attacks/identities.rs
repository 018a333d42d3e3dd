//! Being many.

use std::collections::BTreeSet;

use ol_attribution::record::SketchOptions;

use crate::copies::GAIN_MAX;
use crate::market::{Clusters, Market, Rule, Sketched, part_of};
use crate::report::{Measure, Row};

/// Contributors with fewer records have little to split.
const RECORDS_MIN: usize = 3;

/// Contributors of [`chance`], and records of each.
const CHANCE: [usize; 2] = [24, 8];

/// Answers of it.
const CHANCE_QUERIES: usize = 48;

/// Every contributor in turn becomes as many as its records, the others stay;
/// the gain of all of them together. `owners` has the contributor of each record.
fn splitting_gain(owners: &[usize], sketched: &Sketched, rule: Rule) -> anyhow::Result<f64> {
    let contributors: BTreeSet<usize> = owners.iter().copied().collect();
    let newcomer = contributors.last().map_or(0, |last| last + 1);
    let (mut honest, mut split) = (0.0, 0.0);
    for who in contributors {
        let all = owners.iter().enumerate();
        let own = all.filter(|(_, owner)| **owner == who);
        let records: Vec<usize> = own.map(|(at, _)| at).collect();
        if records.len() < RECORDS_MIN {
            continue;
        }
        honest += sketched.share_of(&[who], rule)?;
        let identity = |at: usize| match records.iter().position(|&own| own == at) {
            Some(number) => newcomer + number,
            None => owners[at],
        };
        let identities: Vec<usize> = records.iter().map(|&at| identity(at)).collect();
        split += sketched.owned_by(identity)?.share_of(&identities, rule)?;
    }
    Ok(split / honest)
}

/// A contributor with an identity for each record, and one who chose its
/// address.
pub(crate) fn identities(market: &Market) -> anyhow::Result<Vec<Row>> {
    let is_kept = Market::owners(&market.honest, Clusters::EXACT)?;
    let sketched = market.sketch(&market.honest, &is_kept, &SketchOptions::default())?;
    let owners: Vec<usize> = market.honest.iter().map(|post| post.by).collect();
    let attack = "a contributor becomes one for each record";
    let measured = splitting(attack, &owners, &sketched)?;
    Ok(vec![measured, chance()?, grinding()?])
}

/// The worst that splitting can meet: nobody's records are worth anything, and
/// all that is paid is paid by chance.
fn chance() -> anyhow::Result<Row> {
    let [n_contributors, n_records] = CHANCE;
    let owners: Vec<usize> = (0..n_contributors * n_records)
        .map(|at| at % n_contributors)
        .collect();
    let sketched = Sketched::of_chance(&owners, CHANCE_QUERIES)?;
    splitting("the same, where all scores are chance", &owners, &sketched)
}

fn splitting(attack: &str, owners: &[usize], sketched: &Sketched) -> anyhow::Result<Row> {
    Ok(Row {
        attack: attack.to_owned(),
        measure: Measure::Gain,
        limit: GAIN_MAX,
        counter: "null threshold",
        with: splitting_gain(owners, sketched, Rule::Calibrated)?,
        without: splitting_gain(owners, sketched, Rule::Net)?,
    })
}

/// An address that is chosen for where it stands among the others: what the
/// division pays above the exact fraction, in units.
fn grinding() -> anyhow::Result<Row> {
    let mut random = ol_model::Random::new(7);
    let (mut with, mut without) = (0.0_f64, 0.0_f64);
    for _ in 0..2_000 {
        let weights: Vec<u64> = (0..40).map(|_| 1 + random.next_u64() % 1_000).collect();
        let pot = u128::from(random.next_u64() % 1_000_000);
        let sum: u128 = weights.iter().map(|&weight| u128::from(weight)).sum();
        let shares = ol_poa::shares(pot, &weights)?;
        anyhow::ensure!(shares.iter().sum::<u128>() == pot, "a unit was lost");
        for (share, &weight) in shares.iter().zip(&weights) {
            let exact = part_of(pot * u128::from(weight), sum);
            with = with.max(part_of(*share, 1) - exact);
        }
        // What is left over given to the first address.
        let floors: u128 = weights.iter().map(|&w| pot * u128::from(w) / sum).sum();
        without = without.max(part_of(pot - floors, 1));
    }
    Ok(Row {
        attack: "an address ground for its place".to_owned(),
        measure: Measure::Units,
        limit: 1.0,
        counter: "largest remainders",
        with,
        without,
    })
}
