//! Committing what others, or oneself, committed before.

use ol_attribution::record::SketchOptions;
use ol_model::Random;

use crate::market::{Clusters, Market, Post, Rule};
use crate::report::{Measure, Row};

/// The largest acceptable gain of an identity that is nobody's.
pub(crate) const GAIN_MAX: f64 = 1.05;

/// Records that are copied.
const COPIED: usize = 12;

/// Who copies: one of the middling contributors.
pub(crate) fn attacker(market: &Market) -> usize {
    market.largest()[6]
}

/// The honest records, then the ones that an attacker adds.
fn with(market: &Market, added: &[Post]) -> Vec<Post> {
    [market.honest.as_slice(), added].concat()
}

/// The gain of `who` by records added to the honest ones, under each of the
/// rules for clusters.
fn gains(
    market: &Market,
    who: usize,
    added: &[Post],
    clusters: [Clusters; 2],
) -> anyhow::Result<[f64; 2]> {
    let posts = with(market, added);
    let mut is_honest = Market::owners(&market.honest, clusters[0])?;
    is_honest.resize(posts.len(), false);
    let honest = market.sketch(&posts, &is_honest, &SketchOptions::default())?;
    let honest = honest.share_of(&[who], Rule::Calibrated)?;
    let mut gains = [0.0; 2];
    for (gain, clusters) in gains.iter_mut().zip(clusters) {
        let is_kept = Market::owners(&posts, clusters)?;
        // Where no copy is trained on, the model is the honest one.
        *gain = if is_kept == is_honest {
            1.0
        } else {
            let attacked = market.sketch(&posts, &is_kept, &SketchOptions::default())?;
            attacked.share_of(&[who], Rule::Calibrated)? / honest
        };
    }
    Ok(gains)
}

/// The records of the largest contributor, and of `who`.
fn victims(market: &Market, who: usize) -> [Vec<Post>; 2] {
    [market.largest()[0], who].map(|of| {
        let records = market.records_of(of);
        let posts = records.into_iter().map(|at| market.honest[at].clone());
        posts.take(COPIED).collect()
    })
}

/// Exact copies of another's records, and ten of each of one's own.
pub(crate) fn exact(market: &Market) -> anyhow::Result<Vec<Row>> {
    let who = attacker(market);
    let [others, own] = victims(market, who);
    let spaced = |post: &Post, n: usize| Post {
        // Other white space: not the same record.
        answer: format!("{}{}", post.answer, " ".repeat(n)),
        by: who,
        ..post.clone()
    };
    let copied: Vec<Post> = others.iter().map(|post| spaced(post, 1)).collect();
    let repeated: Vec<Post> = (1..=10)
        .flat_map(|n| own.iter().map(move |post| spaced(post, n)))
        .collect();
    let clusters = [Clusters::EXACT, Clusters::Off];
    let mut rows = Vec::new();
    for (attack, added) in [
        (
            format!("copy of {} records of another", copied.len()),
            copied,
        ),
        (
            format!("10 copies of each of {} own records", own.len()),
            repeated,
        ),
    ] {
        let [with, without] = gains(market, who, &added, clusters)?;
        rows.push(Row {
            attack,
            measure: Measure::Gain,
            limit: GAIN_MAX,
            counter: "clusters of exact duplicates",
            with,
            without,
        });
    }
    Ok(rows)
}

/// Copies in which some of the words are others.
pub(crate) fn paraphrased(market: &Market, per_cent: &[usize]) -> anyhow::Result<Vec<Row>> {
    let who = attacker(market);
    let [others, own] = victims(market, who);
    let mut rows = Vec::new();
    for &part in per_cent {
        let added = |posts: &[Post], n: u64| -> Vec<Post> {
            let copies = (0..n).flat_map(|seed| posts.iter().zip(seed * 1_000..));
            copies
                .map(|(post, seed)| Post {
                    by: who,
                    ..paraphrase(market, post, part, seed)
                })
                .collect()
        };
        for (attack, added) in [
            (
                format!("copy of another's records, {part} % of the words changed"),
                added(&others, 1),
            ),
            (
                format!("3 copies of own records, {part} % of the words changed"),
                added(&own, 3),
            ),
        ] {
            let clusters = [Clusters::NEAR, Clusters::EXACT];
            let [with, without] = gains(market, who, &added, clusters)?;
            rows.push(Row {
                attack,
                measure: Measure::Gain,
                limit: GAIN_MAX,
                counter: "clusters of near duplicates",
                with,
                without,
            });
        }
    }
    Ok(rows)
}

/// Replaces some of the words by other words of the datanet, of the same length
/// as far as there are any.
pub(crate) fn paraphrase(market: &Market, post: &Post, per_cent: usize, seed: u64) -> Post {
    let mut random = Random::new(seed + 1);
    let words: Vec<&str> = market
        .honest
        .iter()
        .flat_map(|post| post.answer.split_whitespace())
        .collect();
    let mut change = |text: &str| {
        let changed = text.split_whitespace().map(|word| {
            if random.below(100) >= per_cent {
                return word;
            }
            let start = random.below(words.len());
            let all = words[start..].iter().chain(&words[..start]);
            let mut fitting = all.filter(|other| other.len() == word.len() && **other != word);
            fitting.next().copied().unwrap_or("other")
        });
        changed.collect::<Vec<_>>().join(" ")
    };
    Post {
        question: change(&post.question),
        answer: change(&post.answer),
        by: post.by,
    }
}
