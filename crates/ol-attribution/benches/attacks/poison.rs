//! Records that teach nothing, or too much.

use ol_attribution::record::SketchOptions;
use ol_model::Random;

use crate::copies::{GAIN_MAX, attacker};
use crate::market::{Clusters, Market, Post, Rule, Sketched};
use crate::report::{Measure, Row};

/// The largest acceptable part of the pots for records that are wrong.
const SPAM_MAX: f64 = 0.01;

/// The largest acceptable gain by records that are far from all others.
const OUTLIER_MAX: f64 = 1.2;

/// One record in so many is spam.
const SPAM_PART: usize = 9;

/// Spam, outliers and trigger words.
pub(crate) fn poison(market: &Market) -> anyhow::Result<Vec<Row>> {
    let mut rows = spam(market)?;
    rows.push(outlier(market)?);
    rows.extend(trigger(market)?);
    Ok(rows)
}

/// A newcomer's records, one in ten of all: questions with the answers of
/// others, or with words at random.
fn spam(market: &Market) -> anyhow::Result<Vec<Row>> {
    let who = market.newcomer();
    let mut order: Vec<usize> = (0..market.honest.len()).collect();
    Random::new(5).shuffle(&mut order);
    order.truncate(market.honest.len() / SPAM_PART);
    let mislabelled = order.iter().zip(order.iter().cycle().skip(1));
    let mislabelled: Vec<Post> = mislabelled
        .map(|(&question, &answer)| Post {
            question: market.honest[question].question.clone(),
            answer: market.honest[answer].answer.clone(),
            by: who,
        })
        .collect();
    let words = words(market);
    let mut random = Random::new(6);
    let mut gibberish = |n: usize| {
        let chosen: Vec<&str> = (0..n).map(|_| words[random.below(words.len())]).collect();
        chosen.join(" ")
    };
    let noise: Vec<Post> = order
        .iter()
        .map(|_| Post {
            question: gibberish(8),
            answer: gibberish(40),
            by: who,
        })
        .collect();
    let mut rows = Vec::new();
    for (attack, added) in [
        (
            "one record in ten has the answer of another question",
            mislabelled,
        ),
        ("one record in ten is words at random", noise),
    ] {
        let posts = [market.honest.as_slice(), &added].concat();
        let sketched = market.sketch_owners(&posts, Clusters::Exact)?;
        rows.push(Row {
            attack: attack.to_owned(),
            measure: Measure::Share,
            limit: SPAM_MAX,
            counter: "netting, null threshold",
            with: sketched.share_of(&[who], Rule::Calibrated)?,
            without: sketched.share_of(&[who], Rule::PositiveParts)?,
        });
    }
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

fn words(market: &Market) -> Vec<&str> {
    let answers = market.honest.iter().map(|post| post.answer.as_str());
    answers.flat_map(str::split_whitespace).collect()
}
