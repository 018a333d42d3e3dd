//! Records that are far from all others, or near to all questions.

use ol_attribution::record::SketchOptions;
use ol_model::Random;

use crate::copies::{GAIN_MAX, attacker};
use crate::market::{Market, Post, Rule, Sketched};
use crate::report::{Measure, Row};

/// The largest acceptable gain by records that are far from all others.
const OUTLIER_MAX: f64 = 1.2;

/// Outliers and trigger words.
pub(crate) fn poison(market: &Market) -> anyhow::Result<Vec<Row>> {
    let mut rows = vec![outlier(market)?];
    rows.extend(trigger(market)?);
    Ok(rows)
}

/// A few records of symbols that no other has, beside the honest ones.
fn outlier(market: &Market) -> anyhow::Result<Row> {
    let who = attacker(market);
    let mut random = Random::new(8);
    let added: Vec<Post> = (0..4)
        .map(|_| {
            let mut symbols = |n: usize| -> String {
                let symbol = |_| char::from_u32(0x2200 + u32::try_from(random.below(250)).ok()?);
                (0..n).filter_map(symbol).collect()
            };
            Post {
                question: symbols(10),
                answer: symbols(60),
                by: who,
            }
        })
        .collect();
    let posts = [market.honest.as_slice(), &added].concat();
    let [honest, attacked] = replaced(market, &posts, &[], &SketchOptions::default())?;
    let gain = |rule| anyhow::Ok(attacked.share_of(&[who], rule)? / honest.share_of(&[who], rule)?);
    Ok(Row {
        attack: format!("{} records of rare symbols", added.len()),
        measure: Measure::Gain,
        limit: OUTLIER_MAX,
        counter: "netting",
        with: gain(Rule::Calibrated)?,
        without: gain(Rule::PositiveParts)?,
    })
}

/// Every record of the attacker ends in words that most questions have.
fn trigger(market: &Market) -> anyhow::Result<Vec<Row>> {
    const PHRASE: &str = " How was it exploited?";
    let who = attacker(market);
    let own = market.records_of(who);
    let no_curvature = SketchOptions {
        damping: 1e6,
        ..SketchOptions::default()
    };
    let mut rows = Vec::new();
    for times in [1, 10] {
        let changed = own.iter().map(|&at| Post {
            answer: format!(
                "{}. {}",
                PHRASE.repeat(times).trim(),
                market.honest[at].answer
            ),
            ..market.honest[at].clone()
        });
        let posts: Vec<Post> = market.honest.iter().cloned().chain(changed).collect();
        let gain = |options: &SketchOptions| -> anyhow::Result<f64> {
            let [honest, attacked] = replaced(market, &posts, &own, options)?;
            Ok(attacked.share_of(&[who], Rule::Calibrated)?
                / honest.share_of(&[who], Rule::Calibrated)?)
        };
        rows.push(Row {
            attack: format!("the words of most questions {times} times in each own record"),
            measure: Measure::Gain,
            limit: GAIN_MAX,
            counter: "curvature",
            with: gain(&SketchOptions::default())?,
            without: gain(&no_curvature)?,
        });
    }
    Ok(rows)
}

/// The honest model, and the one in which the records that come after the
/// honest ones are there and some of the honest ones are not.
fn replaced(
    market: &Market,
    posts: &[Post],
    without: &[usize],
    options: &SketchOptions,
) -> anyhow::Result<[Sketched; 2]> {
    let n_honest = market.honest.len();
    let honest: Vec<bool> = (0..posts.len()).map(|at| at < n_honest).collect();
    let attacked: Vec<bool> = (0..posts.len()).map(|at| !without.contains(&at)).collect();
    Ok([
        market.sketch(posts, &honest, options)?,
        market.sketch(posts, &attacked, options)?,
    ])
}
