//! Words that others wrote, in one's own records.

use anyhow::Context as _;
use ol_datanet::DuplicateRules;
use ol_model::Random;
use ol_poa::Earned;
use ol_poa::spans::{CLUSTERS_MAX, SpanRule};
use ol_spans::{BuildOptions, Corpus, RecordRef, SpanIndex, Store};
use ol_types::{Address, keccak256};

use crate::copies::GAIN_MAX;
use crate::market::{Market, Post, count};
use crate::report::{Measure, Row};

/// Words of the quoted record before the passage.
const FIRST: usize = 5;

/// Words of the passage that is quoted.
const PASSAGE: usize = 40;

/// Times that one record repeats it; a record has at most 256 KiB.
const REPEATS: usize = 500;

/// Words that a quoting record adds to a passage, so that it is no duplicate.
const OWN_WORDS: usize = 60;

/// Words that an answer goes on with after a passage.
const NEXT_WORDS: usize = 20;

/// The largest acceptable part of what the words of others earn.
const TAKEN_MAX: f64 = 0.01;

/// The largest acceptable part of an author's pay that others can take away by
/// making its words common.
const LOST_MAX: f64 = 0.05;

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
    let honest = library.share(std::slice::from_ref(&once), SAME, passage)?;
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
    let with = library.share(std::slice::from_ref(&repeated), SAME, passage)? / honest;
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
        library.share(&copies, SAME, passage)? / honest,
        library.share(&copies, NO_CLUSTERS, passage)? / honest,
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
        limit: TAKEN_MAX,
        counter: "no pay above 256 clusters",
        with: library.share(&many, SAME, passage)?,
        without: holders / (holders + 1.0),
    });

    rows.push(Row {
        attack: "a published passage quoted in 99 different records".to_owned(),
        measure: Measure::Share,
        limit: TAKEN_MAX,
        counter: EARLIEST,
        with: library.share(&many[..99], LATER, passage)?,
        without: library.share(&many[..99], SAME, passage)?,
    });

    let author = library.author(passage).context("an author")?;
    let before = library.paid(&[], SAME, passage, author)?;
    let lost = |committed| -> anyhow::Result<f64> {
        Ok(1.0 - library.paid(&many, committed, passage, author)? / before)
    };
    rows.push(Row {
        attack: "what the author of a passage loses by 257 records that quote it".to_owned(),
        measure: Measure::Share,
        limit: LOST_MAX,
        counter: EARLIEST,
        with: lost(LATER)?,
        without: lost(SAME)?,
    });

    // An answer that goes on after the passage: whoever wrote how has earned that.
    let next = format!(" {}", library.own_words(NEXT_WORDS));
    let answer = format!("{passage}{next}");
    let [wrote, quoted] = [&next, &answer].map(|words| library.quote(words, 1));
    let gain = |committed| -> anyhow::Result<f64> {
        let wrote = library.share(std::slice::from_ref(&wrote), LATER, &answer)?;
        let quoted = library.share(std::slice::from_ref(&quoted), committed, &answer)?;
        Ok(quoted / wrote)
    };
    rows.push(row(
        "a published passage, quoted with the words that answers go on with",
        GAIN_MAX,
        EARLIEST,
        gain(LATER)?,
        gain(SAME)?,
    ));
    Ok(rows)
}

/// Why what comes later takes nothing.
const EARLIEST: &str = "the earliest version is paid";

/// How the attacker's records come to the honest ones.
#[derive(Debug, Clone, Copy)]
struct Committed {
    /// Exact duplicates share a cluster.
    has_clusters: bool,
    /// In a version of their own, after the honest ones were published.
    is_later: bool,
}

const SAME: Committed = Committed {
    has_clusters: true,
    is_later: false,
};
const NO_CLUSTERS: Committed = Committed {
    has_clusters: false,
    is_later: false,
};
const LATER: Committed = Committed {
    has_clusters: true,
    is_later: true,
};

impl Library<'_> {
    fn own_words(&mut self, n: usize) -> String {
        let words = (0..n).map(|_| self.words[self.random.below(self.words.len())]);
        words.collect::<Vec<_>>().join(" ")
    }

    /// A record of the attacker with a passage, and words of its own.
    fn quote(&mut self, passage: &str, times: usize) -> Post {
        Post {
            question: self.own_words(8),
            answer: format!(
                "{}{} {}",
                self.own_words(OWN_WORDS),
                passage.repeat(times),
                self.own_words(1)
            ),
            by: self.who,
        }
    }

    /// Who wrote a passage.
    fn author(&self, passage: &str) -> Option<usize> {
        let mut honest = self.market.honest.iter();
        honest
            .find(|post| post.answer.contains(passage))
            .map(|post| post.by)
    }

    /// The attacker's part of the units of an answer.
    fn share(&self, added: &[Post], committed: Committed, answer: &str) -> anyhow::Result<f64> {
        let earned = self.earned(added, committed, answer)?.weights;
        let all: u64 = earned.iter().map(|(_, units)| units).sum();
        let own = units_of(&earned, self.who);
        Ok(crate::market::part_of(own.into(), u128::from(all.max(1))))
    }

    /// Somebody's part of the pot.
    fn paid(
        &self,
        added: &[Post],
        committed: Committed,
        answer: &str,
        who: usize,
    ) -> anyhow::Result<f64> {
        let Earned { weights, total } = self.earned(added, committed, answer)?;
        let own = units_of(&weights, who);
        Ok(crate::market::part_of(own.into(), total.max(1).into()))
    }

    fn earned(&self, added: &[Post], committed: Committed, answer: &str) -> anyhow::Result<Earned> {
        let posts = [self.market.honest.as_slice(), added].concat();
        let folder = tempfile::tempdir()?;
        let index = self.index(folder.path(), &posts, committed)?;
        let answer = self.market.tokenizer.encode(answer)?;
        Ok(index.units(&answer, &SpanRule::default())?)
    }

    fn index(
        &self,
        folder: &std::path::Path,
        posts: &[Post],
        committed: Committed,
    ) -> anyhow::Result<SpanIndex> {
        let Committed {
            has_clusters,
            is_later,
        } = committed;
        let committed = Market::commit(posts, DuplicateRules::EXACT)?;
        let mut records = Vec::with_capacity(committed.len());
        for (number, record) in (0..).zip(&committed) {
            records.push(RecordRef {
                hash: record.record_hash,
                contributor: record.contributor_address,
                cluster: if has_clusters { record.cluster } else { number },
            });
        }
        let n_honest = self.market.honest.len();
        let first = (is_later && n_honest < records.len()).then_some(n_honest);
        let versions = first.into_iter().chain([records.len()]);
        let corpus = Corpus {
            manifest: keccak256("a datanet"),
            tokenizer: keccak256("the base's"),
            vocabulary_size: self.market.tokenizer.vocab_size(),
            versions: versions.map(u32::try_from).collect::<Result<_, _>>()?,
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

fn units_of(earned: &[(Address, u64)], who: usize) -> u64 {
    let own = earned
        .iter()
        .find(|(address, _)| *address == crate::market::address(who));
    own.map_or(0, |(_, units)| *units)
}
