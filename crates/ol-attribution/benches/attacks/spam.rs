//! A newcomer's records that are wrong: one in ten of all.

use ol_attribution::record::SketchOptions;
use ol_model::Random;

use crate::copies::paraphrase;
use crate::market::{Clusters, Market, Post, Rule};
use crate::report::{Measure, Row};

/// The largest acceptable part of the pots.
const SHARE_MAX: f64 = 0.01;

/// One record in so many of the honest ones has spam beside it.
const PART: usize = 9;

/// What is against the attack: which records are left out, and how scores are
/// paid.
type Against = (Clusters, Rule);

/// What spam gets with a counter-measure and without it.
fn row(
    market: &Market,
    attack: &str,
    added: &[Post],
    counter: &'static str,
    [with, without]: [Against; 2],
) -> anyhow::Result<Row> {
    let posts = [market.honest.as_slice(), added].concat();
    let mut played = None;
    let mut share = |(clusters, rule): Against| {
        let is_kept = Market::owners(&posts, clusters)?;
        // Who has nothing in the model has no part in what it is paid.
        if !is_kept[market.honest.len()..].contains(&true) {
            return Ok(0.0);
        }
        let sketched = match played.take() {
            Some((of, sketched)) if of == is_kept => sketched,
            _ => market.sketch(&posts, &is_kept, &SketchOptions::default())?,
        };
        let share = sketched.share_of(&[market.newcomer()], rule);
        played = Some((is_kept, sketched));
        share
    };
    Ok(Row {
        attack: attack.to_owned(),
        measure: Measure::Share,
        limit: SHARE_MAX,
        counter,
        with: share(with)?,
        without: share(without)?,
    })
}

/// Honest records at random, to make spam of.
fn chosen(market: &Market) -> Vec<&Post> {
    let mut order: Vec<usize> = (0..market.honest.len()).collect();
    Random::new(5).shuffle(&mut order);
    let n = market.honest.len() / PART;
    order[..n].iter().map(|&at| &market.honest[at]).collect()
}

/// Two texts of others as question and answer, as they are and with some of the
/// words changed.
pub(crate) fn recombined(market: &Market) -> anyhow::Result<Vec<Row>> {
    let chosen = chosen(market);
    let others = || chosen.iter().cycle().skip(1);
    let post = |question: &String, answer: &String| Post {
        question: question.clone(),
        answer: answer.clone(),
        by: market.newcomer(),
    };
    let of_each = |text: fn(&Post) -> &String| -> Vec<Post> {
        let pairs = chosen.iter().zip(others());
        pairs.map(|(a, b)| post(text(a), &b.answer)).collect()
    };
    let changed = |posts: &[Post]| -> Vec<Post> {
        let posts = posts.iter().zip(0..);
        posts
            .map(|(post, seed)| paraphrase(market, post, 5, seed))
            .collect()
    };
    let mislabelled = of_each(|post| &post.question);
    let two_answers = of_each(|post| &post.answer);
    let attack = "one record in ten has the answer of another question";
    let played = [
        (
            attack.to_owned(),
            mislabelled.clone(),
            "recombined duplicates",
            [Clusters::RECOMBINED, Clusters::EXACT],
        ),
        (
            format!("{attack}, 5 % of the words changed"),
            changed(&mislabelled),
            "near duplicates beside recombined",
            [Clusters::ALL, Clusters::RECOMBINED],
        ),
        (
            "one record in ten is two answers, 5 % of the words changed".to_owned(),
            changed(&two_answers),
            "near duplicates beside recombined",
            [Clusters::ALL, Clusters::RECOMBINED],
        ),
    ];
    let played = played.into_iter().map(|(attack, added, counter, by)| {
        let against = by.map(|clusters| (clusters, Rule::Calibrated));
        row(market, &attack, &added, counter, against)
    });
    played.collect()
}

/// Words at random, and wrong facts in the form of the right ones.
pub(crate) fn noise(market: &Market) -> anyhow::Result<Vec<Row>> {
    let chosen = chosen(market);
    let answers = market.honest.iter().map(|post| post.answer.as_str());
    let words: Vec<&str> = answers.flat_map(str::split_whitespace).collect();
    let mut random = Random::new(6);
    let mut gibberish = |n: usize| {
        let chosen: Vec<&str> = (0..n).map(|_| words[random.below(words.len())]).collect();
        chosen.join(" ")
    };
    let noise: Vec<Post> = chosen
        .iter()
        .map(|_| Post {
            question: gibberish(8),
            answer: gibberish(40),
            by: market.newcomer(),
        })
        .collect();
    Ok(vec![
        row(
            market,
            "one record in ten is words at random",
            &noise,
            "netting, null threshold",
            [Rule::Calibrated, Rule::PositiveParts].map(|rule| (Clusters::EXACT, rule)),
        )?,
        row(
            market,
            "one record in ten has the facts of four others",
            &wrong_facts(market),
            "recombined and near duplicates",
            [Clusters::ALL, Clusters::EXACT].map(|clusters| (clusters, Rule::Calibrated)),
        )?,
    ])
}

/// The form of the datanet's answers, each fact of another record.
fn wrong_facts(market: &Market) -> Vec<Post> {
    let between = |text: &str, begin: &str, end: &str| {
        let (_, rest) = text.split_once(begin)?;
        Some(rest.split_once(end)?.0.to_owned())
    };
    let fact = |begin: &str, end: &str, skip: usize| {
        let all = market.honest.iter().cycle().skip(skip);
        let begin = begin.to_owned();
        let end = end.to_owned();
        all.filter_map(move |post| between(&post.answer, &begin, &end))
    };
    let names = fact(" ", " was exploited", 0).map(|date_and_name| {
        let name = date_and_name.split_once(' ');
        name.map_or(date_and_name.clone(), |(_, name)| name.to_owned())
    });
    let dates = fact("On ", " ", 40);
    let ways = fact("exploited through ", ". ", 80);
    let sums = fact("Amount lost: ", ". ", 120);
    let facts = names.zip(dates).zip(ways.zip(sums));
    facts
        .take(market.honest.len() / PART)
        .map(|((name, date), (way, sum))| Post {
            question: format!("How was {name} exploited?"),
            answer: format!("On {date} {name} was exploited through {way}. Amount lost: {sum}."),
            by: market.newcomer(),
        })
        .collect()
}
