//! Words that others wrote, in one's own records.

use anyhow::Context as _;
use ol_model::Random;
use ol_poa::spans::{CLUSTERS_MAX, SpanRule};
use ol_spans::{BuildOptions, Corpus, RecordRef, SpanIndex, Store};
use ol_types::keccak256;

use crate::copies::GAIN_MAX;
use crate::market::{Market, Post, address, count};
use crate::report::{Measure, Row};

/// Words of the quoted record before the passage.
const FIRST: usize = 5;

/// Words of the passage that is quoted.
const PASSAGE: usize = 40;

/// Times that one record repeats it; a record has at most 256 KiB.
const REPEATS: usize = 500;

/// Words that a quoting record adds to a passage, so that it is no duplicate.
const OWN_WORDS: usize = 60;

/// What stands in an answer, and who holds it.
struct Library<'a> {
    market: &'a Market,
    words: Vec<&'a str>,
    random: Random,
    who: usize,
}

/// All attacks on the pot for spans.
pub(crate) fn passages(market: &Market) -> anyhow::Result<Vec<Row>> {
    let answers = market.honest.iter().map(|post| post.answer.as_str());
    let longest = answers.clone().max_by_key(|answer| answer.len());
    let longest = longest.context("a datanet has records")?;
    // With the space before it, so that it is cut into the same tokens wherever
    // it stands.
    let mut spaces = longest.match_indices(' ').map(|(at, _)| at).skip(FIRST);
    let start = spaces.next().context("a long answer")?;
    let end = spaces.nth(PASSAGE).context("a long answer")?;
    let passage = &longest[start..end];
    let mut library = Library {
        market,
        words: answers.flat_map(str::split_whitespace).collect(),
        random: Random::new(9),
        who: market.newcomer(),
    };
    let once = library.quote(passage, 1);
    let honest = library.share(std::slice::from_ref(&once), true, passage)?;
    let row = |attack: &str, limit: f64, counter, with, without| Row {
        attack: attack.to_owned(),
        measure: Measure::Gain,
        limit,
        counter,
        with,
        without,
    };
    let mut rows = Vec::new();

    let repeated = library.quote(passage, REPEATS);
    let with = library.share(std::slice::from_ref(&repeated), true, passage)? / honest;
    // Divided by occurrences: all but the author's.
    let without = count(REPEATS) / count(REPEATS + 1) / honest;
    rows.push(row(
        "a quoted passage 500 times in a record",
        GAIN_MAX,
        "division by clusters, not occurrences",
        with,
        without,
    ));

    let copies: Vec<Post> = (0..30)
        .map(|n| Post {
            answer: format!("{}{}", once.answer, " ".repeat(n)),
            ..once.clone()
        })
        .collect();
    rows.push(row(
        "30 copies of a record that quotes a passage",
        GAIN_MAX,
        "clusters of exact duplicates",
        library.share(&copies, true, passage)? / honest,
        library.share(&copies, false, passage)? / honest,
    ));

    let many: Vec<Post> = (0..=CLUSTERS_MAX)
        .map(|_| library.quote(passage, 1))
        .collect();
    let holders = count(many.len());
    rows.push(Row {
        attack: format!(
            "boiler-plate of {} different records in answers",
            many.len()
        ),
        measure: Measure::Share,
        limit: 0.01,
        counter: "no pay above 256 clusters",
        with: library.share(&many, true, passage)?,
        without: holders / (holders + 1.0),
    });

    let some = library.share(&many[..99], true, passage)? / honest;
    rows.push(row(
        "a passage quoted in 99 different records",
        GAIN_MAX,
        "none",
        some,
        some,
    ));
    Ok(rows)
}

impl Library<'_> {
    /// A record of the attacker with a passage, and words of its own.
    fn quote(&mut self, passage: &str, times: usize) -> Post {
        let mut own = |n: usize| {
            let words = (0..n).map(|_| self.words[self.random.below(self.words.len())]);
            words.collect::<Vec<_>>().join(" ")
        };
        Post {
            question: own(8),
            answer: format!("{}{} {}", own(OWN_WORDS), passage.repeat(times), own(1)),
            by: self.who,
        }
    }

    /// The attacker's part of the pot for an answer that is the passage, with
    /// or without clusters.
    fn share(&self, added: &[Post], has_clusters: bool, passage: &str) -> anyhow::Result<f64> {
        let posts = [self.market.honest.as_slice(), added].concat();
        let folder = tempfile::tempdir()?;
        let index = self.index(folder.path(), &posts, has_clusters)?;
        let answer = self.market.tokenizer.encode(passage)?;
        let units = index.units(&answer, &SpanRule::default())?.weights;
        let all: u64 = units.iter().map(|(_, units)| units).sum();
        let own = units.iter().find(|(who, _)| *who == address(self.who));
        let [own, all] = [own.map_or(0, |(_, units)| *units), all].map(u128::from);
        Ok(crate::market::part_of(own, all.max(1)))
    }

    fn index(
        &self,
        folder: &std::path::Path,
        posts: &[Post],
        has_clusters: bool,
    ) -> anyhow::Result<SpanIndex> {
        let committed = Market::commit(posts, None)?;
        let mut records = Vec::with_capacity(committed.len());
        for (number, record) in (0..).zip(&committed) {
            records.push(RecordRef {
                hash: record.record_hash,
                contributor: record.contributor_address,
                cluster: if has_clusters { record.cluster } else { number },
            });
        }
        let corpus = Corpus {
            manifest: keccak256("a datanet"),
            tokenizer: keccak256("the base's"),
            vocabulary_size: self.market.tokenizer.vocab_size(),
            records,
        };
        let mut next = committed.iter();
        let mut tokens = |_: &RecordRef| {
            let record = next.next().ok_or("a record that was not committed")?;
            let texts = [&record.record.question, &record.record.answer];
            let tokens = texts.map(|text| self.market.tokenizer.encode(text));
            Ok(tokens.into_iter().collect::<Result<Vec<_>, _>>()?)
        };
        let store = Store::open(folder)?;
        let id = store.update(&corpus, &BuildOptions::default(), &mut tokens, &mut |_| ())?;
        Ok(store.load(id)?)
    }
}
