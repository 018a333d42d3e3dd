//! A corpus that is open: its shards, and which of their documents count.

use std::cmp::Reverse;
use std::collections::HashMap;
use std::ops::Range;
use std::path::Path;
use std::sync::OnceLock;

use ol_poa::Earned;
use ol_poa::spans::{
    ANSWER_TOKENS_MAX, CLUSTERS_MAX, Holder, Holders, Span, SpanError, SpanRule, Unigrams,
    span_units,
};
use ol_types::B256;

use crate::corpus::CorpusFile;
use crate::query::Query;
use crate::search::Mask;
use crate::shard::Shard;
use crate::versions::Minima;
use crate::{Corpus, RecordRef, SpansError};

/// Most shards of a corpus.
pub const SHARDS_MAX: usize = 128;

/// Most spans of an answer, all versions together. Without versions there are no
/// more than tokens; records of many versions may be made so that there are.
pub(crate) const SPANS_MAX: usize = 2 * ANSWER_TOKENS_MAX;

/// Occurrences that are gathered before clusters found twice are dropped.
const GATHERED_MAX: usize = 16 * CLUSTERS_MAX;

/// A document that does not count: its record is not in the corpus, or another
/// shard has it too.
const NO_RECORD: u32 = u32::MAX;

/// The version of a document that does not count: none is earlier than it.
const NO_VERSION: u32 = u32::MAX;

/// A corpus whose spans can be asked for. Reading it blocks on the disk for
/// what is not in memory. May be asked from several threads at once.
#[derive(Debug)]
pub struct SpanIndex {
    id: B256,
    records: Vec<RecordRef>,
    manifest: B256,
    table: Unigrams,
    views: Vec<View>,
    /// The number of the record that owns each cluster.
    owners: HashMap<u32, u32>,
}

/// A span, and where it stands in the corpus.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Match {
    /// The span, and the clusters that hold it.
    pub span: Span,
    /// How often it stands in the records of all versions, several times in one
    /// included.
    pub occurrences: u64,
    /// For each holder, the first record of its cluster with the span that came
    /// with the version, as its position in the corpus. Empty if there are too many
    /// holders.
    pub records: Vec<u32>,
}

/// A shard as a corpus sees it.
#[derive(Debug)]
pub(crate) struct View {
    pub(crate) shard: Shard,
    /// Number of the record that each document is, or [`NO_RECORD`].
    numbers: Vec<u32>,
    /// The ranks that count; `None` if all do.
    live: Option<Ranks>,
    versions: Versions,
}

/// The versions that the documents of a shard came with.
#[derive(Debug)]
enum Versions {
    /// One for all, and all count.
    One(u32),
    /// That of each document; [`NO_VERSION`] if it does not count.
    Many {
        of: Vec<u32>,
        /// Made when it is first asked for: while an index is built, nobody does.
        minima: OnceLock<Minima>,
    },
}

impl SpanIndex {
    pub(crate) fn open(dir: &Path, id: B256) -> Result<Self, SpansError> {
        let CorpusFile {
            corpus,
            table,
            shards,
        } = CorpusFile::read(dir, id)?;
        let corpus_error = |what| SpansError::Corpus { what };
        let mut numbers = corpus.numbers().map_err(corpus_error)?;
        let owners = corpus.owners();
        let versions = corpus.versions.as_slice();
        let mut views = Vec::with_capacity(shards.len());
        for shard in shards {
            let shard = Shard::open(dir, shard)?;
            if shard.tokenizer != corpus.tokenizer {
                return Err(SpansError::damaged(
                    shard.path(),
                    "it has the tokens of another tokenizer",
                ));
            }
            views.push(View::claim(shard, &mut numbers, versions));
        }
        if let Some((hash, _)) = numbers.iter().next() {
            return Err(corpus_error(format!(
                "no shard has record {hash}; update the index"
            )));
        }
        Ok(Self {
            id,
            records: corpus.records,
            manifest: corpus.manifest,
            table,
            views,
            owners,
        })
    }

    /// What commits to the corpus: manifest, tokenizer, records with their
    /// clusters and contributors, and the table.
    #[must_use]
    pub const fn id(&self) -> B256 {
        self.id
    }

    /// Id of the datanet's manifest.
    #[must_use]
    pub const fn manifest(&self) -> B256 {
        self.manifest
    }

    /// The records, in commit order.
    #[must_use]
    pub fn records(&self) -> &[RecordRef] {
        &self.records
    }

    /// The committed table.
    #[must_use]
    pub const fn unigrams(&self) -> &Unigrams {
        &self.table
    }

    /// Positions of the shards' texts, all together, those that do not count
    /// included.
    #[must_use]
    pub fn n_tokens(&self) -> u64 {
        let n = |view: &View| view.shard.n_tokens() as u64;
        self.views.iter().map(n).sum()
    }

    /// How many shards there are.
    #[must_use]
    pub const fn n_shards(&self) -> usize {
        self.views.len()
    }

    pub(crate) fn views(&self) -> &[View] {
        &self.views
    }

    /// All spans of `answer` in the corpus of at least `length_min` tokens, by
    /// position: runs that stand in a version and lie within no longer run that
    /// stood as early.
    ///
    /// Takes memory in proportion to the answer and the shards, not to the
    /// occurrences. Time grows with the occurrences of the spans that at most
    /// [`CLUSTERS_MAX`] clusters hold.
    ///
    /// # Errors
    /// [`SpansError::Spans`] if the answer is longer than
    /// [`ANSWER_TOKENS_MAX`], [`SpansError::TooMany`].
    pub fn spans(&self, answer: &[u32], length_min: u32) -> Result<Vec<Match>, SpansError> {
        if answer.len() > ANSWER_TOKENS_MAX {
            let n_tokens = answer.len();
            return Err(SpanError::Answer { n_tokens }.into());
        }
        let length_min = length_min.max(1) as usize;
        let mut found = Vec::new();
        // A run that a late version brought may have parts that stood before it.
        // Whatever stands in any version lies within a run that stands in all of
        // them together, so its parts are all that is left to look for.
        let mut ranges = vec![(0..answer.len(), NO_VERSION)];
        while let Some((range, before)) = ranges.pop() {
            let mut query = Query::new(&self.views, &answer[range.clone()], before);
            for span in query.maximal(length_min) {
                let matched = self.find_holders(&mut query, span.clone(), range.start);
                let since = matched.span.since;
                // Below `before`, unless a file lies.
                if (2..before).contains(&since) && span.len() > length_min {
                    let part = range.start + span.start..range.start + span.end;
                    ranges.push((part, since));
                }
                found.push(matched);
            }
            if found.len() > SPANS_MAX {
                return Err(SpansError::TooMany);
            }
        }
        Ok(undominated(found, answer.len()))
    }

    /// What each contributor has earned by `answer`; see [`span_units`].
    ///
    /// # Errors
    /// As [`SpanIndex::spans`], and [`SpanError::Token`] if the vocabulary
    /// lacks a token of the answer.
    pub fn units(&self, answer: &[u32], rule: &SpanRule) -> Result<Earned, SpansError> {
        let matches = self.spans(answer, rule.length_min)?;
        let spans: Vec<Span> = matches.into_iter().map(|found| found.span).collect();
        Ok(span_units(answer, &spans, &self.table, rule)?)
    }

    /// Who holds a span of the query, which begins at `offset` of the answer.
    fn find_holders(&self, query: &mut Query<'_>, span: Range<usize>, offset: usize) -> Match {
        let mut occurrences = 0;
        let mut since = NO_VERSION;
        let mut all_ranks = Vec::with_capacity(self.views.len());
        for (number, view) in self.views.iter().enumerate() {
            let ranks = query.ranks(number, span.clone());
            occurrences += view.count(ranks.clone());
            since = view.earliest(ranks.clone(), since);
            all_ranks.push(ranks);
        }
        let mut gathered = Gathered::default();
        for (view, mut ranks) in self.views.iter().zip(all_ranks) {
            let search = view.shard.search();
            let mut previous = NO_RECORD;
            while let Some(rank) = view.first_before(ranks.clone(), since.saturating_add(1)) {
                if gathered.is_too_many {
                    break;
                }
                ranks.start = rank + 1;
                let record = search.position(rank).and_then(|at| view.record_at(at));
                let Some(record) = record.filter(|record| *record != previous) else {
                    continue;
                };
                previous = record;
                if let Some(found) = self.records.get(record as usize) {
                    gathered.push(found.cluster, record);
                }
            }
        }
        let (holders, records) = gathered.finish(|cluster| self.owner(cluster));
        let narrow = |n: usize| u32::try_from(n).expect("an answer has at most 2¹⁶ tokens");
        Match {
            span: Span {
                start: narrow(offset + span.start),
                len: narrow(span.len()),
                since,
                holders,
            },
            occurrences,
            records,
        }
    }

    fn owner(&self, cluster: u32) -> Holder {
        let owner = self.owners.get(&cluster);
        let record = owner.and_then(|&number| self.records.get(number as usize));
        Holder {
            cluster,
            contributor: record
                .expect("every record's cluster has a first record")
                .contributor,
        }
    }
}

/// The spans that lie within no other that stood as early, by position. Parts of
/// overlapping runs may have been found twice, or cut where a run ended.
fn undominated(mut found: Vec<Match>, n_tokens: usize) -> Vec<Match> {
    if found.iter().all(|matched| matched.span.since == 1) {
        // Found in order, all at once.
        return found;
    }
    let range = |matched: &Match| {
        let Span { start, len, .. } = matched.span;
        (start as usize, start + len)
    };
    // Whatever may hold a span comes before it.
    found.sort_by_key(|matched| {
        let (start, end) = range(matched);
        (matched.span.since, start, Reverse(end))
    });
    // A tree of P. M. Fenwick (1994): how far the spans reach that begin up to a
    // position.
    let mut reaches = vec![0; n_tokens + 1];
    found.retain(|matched| {
        let (start, end) = range(matched);
        let (mut at, mut reach) = (start + 1, 0);
        while at > 0 {
            reach = reach.max(reaches[at]);
            at &= at - 1;
        }
        let mut at = start + 1;
        while at <= n_tokens {
            reaches[at] = end.max(reaches[at]);
            at += at & at.wrapping_neg();
        }
        end > reach
    });
    found.sort_by_key(range);
    found
}

/// Clusters and, for each, the first record.
#[derive(Debug, Default)]
struct Gathered {
    pairs: Vec<(u32, u32)>,
    is_too_many: bool,
}

impl Gathered {
    fn push(&mut self, cluster: u32, record: u32) {
        self.pairs.push((cluster, record));
        if self.pairs.len() >= GATHERED_MAX {
            self.compact();
        }
    }

    fn compact(&mut self) {
        self.pairs.sort_unstable();
        self.pairs.dedup_by_key(|pair| pair.0);
        self.is_too_many = self.pairs.len() > CLUSTERS_MAX;
    }

    fn finish(mut self, owner: impl Fn(u32) -> Holder) -> (Holders, Vec<u32>) {
        if !self.is_too_many {
            self.compact();
        }
        if self.is_too_many {
            return (Holders::TooMany, Vec::new());
        }
        let holders = self.pairs.iter().map(|pair| owner(pair.0)).collect();
        let records = self.pairs.iter().map(|pair| pair.1).collect();
        (Holders::Listed(holders), records)
    }
}

impl View {
    /// Takes the shard's records out of `numbers`; those that are not there do
    /// not count.
    pub(crate) fn claim(shard: Shard, numbers: &mut HashMap<B256, u32>, versions: &[u32]) -> Self {
        let number = |hash| numbers.remove(&hash).unwrap_or(NO_RECORD);
        let numbers = shard.records().map(number).collect();
        Self::new(shard, numbers, versions)
    }

    /// `numbers` has the record of each document of the shard, `versions` those of
    /// the corpus.
    pub(crate) fn new(shard: Shard, numbers: Vec<u32>, versions: &[u32]) -> Self {
        let is_masked = numbers.contains(&NO_RECORD);
        let live = is_masked.then(|| Ranks::live(&shard, &numbers));
        let versions = Versions::new(&numbers, versions);
        Self {
            shard,
            numbers,
            live,
            versions,
        }
    }

    /// The ranks that a search for what stood before a version may find; `None` if
    /// none do.
    pub(crate) fn before(&self, version: u32) -> Option<Before<'_>> {
        match self.versions {
            Versions::One(own) if own >= version => None,
            _ => Some(Before {
                view: self,
                version,
            }),
        }
    }

    /// The first of the ranks that stood before a version.
    fn first_before(&self, ranks: Range<usize>, version: u32) -> Option<usize> {
        match &self.versions {
            Versions::One(own) => (*own < version && !ranks.is_empty()).then_some(ranks.start),
            Versions::Many { of, minima } => {
                let version_of = |rank: usize| version_of(&self.shard, of, rank);
                minima
                    .get_or_init(|| Minima::new(self.shard.n_tokens(), &version_of))
                    .first(ranks, version, &version_of)
            }
        }
    }

    /// The earliest version of the ranks that is below `version`, else that.
    fn earliest(&self, mut ranks: Range<usize>, mut version: u32) -> u32 {
        // Each step finds an earlier one.
        while let Some(rank) = self.first_before(ranks.clone(), version) {
            ranks.start = rank + 1;
            match &self.versions {
                Versions::One(own) => return *own,
                Versions::Many { of, .. } => version = version_of(&self.shard, of, rank),
            }
        }
        version
    }

    /// Number of the record of each document; `None` if it does not count.
    pub(crate) fn numbers(&self) -> impl Iterator<Item = Option<u32>> + '_ {
        let number = |&number: &u32| (number != NO_RECORD).then_some(number);
        self.numbers.iter().map(number)
    }

    fn record_at(&self, position: u32) -> Option<u32> {
        let number = *self.numbers.get(self.shard.document_at(position)?)?;
        (number != NO_RECORD).then_some(number)
    }

    fn count(&self, ranks: Range<usize>) -> u64 {
        match &self.live {
            None => ranks.len() as u64,
            Some(live) => live.count(ranks),
        }
    }
}

impl Versions {
    fn new(numbers: &[u32], versions: &[u32]) -> Self {
        let version = |&number: &u32| match number {
            NO_RECORD => NO_VERSION,
            number => Corpus::version_of(versions, number),
        };
        let of: Vec<u32> = numbers.iter().map(version).collect();
        let first = of.first().copied().unwrap_or(NO_VERSION);
        if first != NO_VERSION && of.iter().all(|&version| version == first) {
            return Self::One(first);
        }
        Self::Many {
            of,
            minima: OnceLock::new(),
        }
    }
}

/// The version of a rank, given those of the documents.
fn version_of(shard: &Shard, of: &[u32], rank: usize) -> u32 {
    let position = shard.search().position(rank);
    let document = position.and_then(|position| shard.document_at(position));
    let version = document.and_then(|document| of.get(document));
    version.copied().unwrap_or(NO_VERSION)
}

/// The ranks of a shard that stood before a version.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Before<'a> {
    view: &'a View,
    version: u32,
}

impl Before<'_> {
    /// As a search takes it; `None` if all ranks are meant.
    pub(crate) fn mask(&self) -> Option<&dyn Mask> {
        match (&self.view.versions, self.version, &self.view.live) {
            (Versions::One(_), ..) | (_, NO_VERSION, None) => None,
            // All that count: one bit says it.
            (_, NO_VERSION, Some(live)) => Some(live),
            _ => Some(self),
        }
    }
}

impl Mask for Before<'_> {
    fn last(&self, ranks: Range<usize>) -> Option<usize> {
        let View {
            shard, versions, ..
        } = self.view;
        match versions {
            Versions::One(_) => ranks.last(),
            Versions::Many { of, minima } => {
                let version_of = |rank: usize| version_of(shard, of, rank);
                minima
                    .get_or_init(|| Minima::new(shard.n_tokens(), &version_of))
                    .last(ranks, self.version, &version_of)
            }
        }
    }

    fn first(&self, ranks: Range<usize>) -> Option<usize> {
        self.view.first_before(ranks, self.version)
    }
}

/// A set of ranks, one bit each.
#[derive(Debug)]
struct Ranks(Vec<u64>);

impl Ranks {
    /// The ranks of the suffixes that begin in documents with a number.
    fn live(shard: &Shard, numbers: &[u32]) -> Self {
        let mut positions = Self(vec![0; shard.n_tokens().div_ceil(64)]);
        for (document, &number) in numbers.iter().enumerate() {
            if number != NO_RECORD {
                for position in shard.document_range(document) {
                    positions.insert(position);
                }
            }
        }
        let mut ranks = Self(vec![0; positions.0.len()]);
        let search = shard.search();
        for rank in 0..shard.n_tokens() {
            if search
                .position(rank)
                .is_some_and(|at| positions.contains(at as usize))
            {
                ranks.insert(rank);
            }
        }
        ranks
    }

    fn insert(&mut self, bit: usize) {
        self.0[bit / 64] |= 1 << (bit % 64);
    }

    fn contains(&self, bit: usize) -> bool {
        let word = self.0.get(bit / 64);
        word.is_some_and(|word| word >> (bit % 64) & 1 == 1)
    }

    /// The words that a range touches, with only its bits.
    fn words(&self, range: &Range<usize>) -> impl DoubleEndedIterator<Item = (usize, u64)> + '_ {
        let (start, end) = (range.start, range.end.min(self.0.len() * 64));
        let touched = if start < end {
            start / 64..end.div_ceil(64)
        } else {
            0..0
        };
        touched.map(move |at| {
            let mut word = self.0[at];
            if at == start / 64 {
                word &= u64::MAX << (start % 64);
            }
            if end < (at + 1) * 64 {
                word &= (1 << (end % 64)) - 1;
            }
            (at, word)
        })
    }

    fn count(&self, range: Range<usize>) -> u64 {
        let ones = |(_, word): (usize, u64)| u64::from(word.count_ones());
        self.words(&range).map(ones).sum()
    }
}

impl Mask for Ranks {
    fn last(&self, ranks: Range<usize>) -> Option<usize> {
        let mut words = self.words(&ranks).rev();
        let (at, word) = words.find(|(_, word)| *word != 0)?;
        Some(at * 64 + word.ilog2() as usize)
    }

    fn first(&self, ranks: Range<usize>) -> Option<usize> {
        let mut words = self.words(&ranks);
        let (at, word) = words.find(|(_, word)| *word != 0)?;
        Some(at * 64 + word.trailing_zeros() as usize)
    }
}

#[cfg(test)]
mod tests;
