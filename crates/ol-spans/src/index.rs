//! A corpus that is open: its shards, and which of their documents count.

use std::collections::HashMap;
use std::ops::Range;
use std::path::Path;

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
use crate::{RecordRef, SpansError};

/// Most shards of a corpus.
pub const SHARDS_MAX: usize = 128;

/// Occurrences that are gathered before clusters found twice are dropped.
const GATHERED_MAX: usize = 16 * CLUSTERS_MAX;

/// A document that does not count: its record is not in the corpus, or another
/// shard has it too.
const NO_RECORD: u32 = u32::MAX;

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

/// A maximal span, and where it stands in the corpus.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Match {
    /// The span, and the clusters that hold it.
    pub span: Span,
    /// How often it stands in the records, several times in one included.
    pub occurrences: u64,
    /// For each holder, the first record of its cluster with the span, as its
    /// position in the corpus. Empty if there are too many holders.
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
        let mut views = Vec::with_capacity(shards.len());
        for shard in shards {
            let shard = Shard::open(dir, shard)?;
            if shard.tokenizer != corpus.tokenizer {
                return Err(SpansError::damaged(
                    shard.path(),
                    "it has the tokens of another tokenizer",
                ));
            }
            views.push(View::claim(shard, &mut numbers));
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

    /// All spans of `answer` in the corpus of at least `length_min` tokens that
    /// reach as far as they can and lie within no other, by position.
    ///
    /// Takes memory in proportion to the answer and the shards, not to the
    /// occurrences. Time grows with the occurrences of the spans that at most
    /// [`CLUSTERS_MAX`] clusters hold.
    ///
    /// # Errors
    /// [`SpansError::Spans`] if the answer is longer than
    /// [`ANSWER_TOKENS_MAX`].
    pub fn spans(&self, answer: &[u32], length_min: u32) -> Result<Vec<Match>, SpansError> {
        if answer.len() > ANSWER_TOKENS_MAX {
            let n_tokens = answer.len();
            return Err(SpanError::Answer { n_tokens }.into());
        }
        let mut query = Query::new(&self.views, answer);
        let found = query.maximal(length_min.max(1) as usize);
        let matches = found
            .into_iter()
            .map(|span| self.find_holders(&mut query, span));
        Ok(matches.collect())
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

    fn find_holders(&self, query: &mut Query<'_>, span: Range<usize>) -> Match {
        let mut occurrences = 0;
        let mut gathered = Gathered::default();
        for (number, view) in self.views.iter().enumerate() {
            let ranks = query.ranks(number, span.clone());
            occurrences += view.count(ranks.clone());
            let search = view.shard.search();
            let mut previous = NO_RECORD;
            for rank in ranks {
                if gathered.is_too_many {
                    break;
                }
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
                start: narrow(span.start),
                len: narrow(span.len()),
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
    pub(crate) fn claim(shard: Shard, numbers: &mut HashMap<B256, u32>) -> Self {
        let number = |hash| numbers.remove(&hash).unwrap_or(NO_RECORD);
        let numbers = shard.records().map(number).collect();
        Self::new(shard, numbers)
    }

    /// `numbers` has the record of each document of the shard.
    pub(crate) fn new(shard: Shard, numbers: Vec<u32>) -> Self {
        let is_masked = numbers.contains(&NO_RECORD);
        let live = is_masked.then(|| Ranks::live(&shard, &numbers));
        Self {
            shard,
            numbers,
            live,
        }
    }

    /// Number of the record of each document; `None` if it does not count.
    pub(crate) fn numbers(&self) -> impl Iterator<Item = Option<u32>> + '_ {
        let number = |&number: &u32| (number != NO_RECORD).then_some(number);
        self.numbers.iter().map(number)
    }

    pub(crate) fn mask(&self) -> Option<&dyn Mask> {
        self.live.as_ref().map(|live| live as &dyn Mask)
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
