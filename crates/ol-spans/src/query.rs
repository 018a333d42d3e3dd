//! The maximal spans of one answer, with as few searches as possible.

use std::ops::Range;

use crate::index::{Before, View};
use crate::search::Hit;
use crate::shard::SEPARATOR;

/// One answer against all shards of a corpus, as they were before a version.
#[derive(Debug)]
pub(crate) struct Query<'a> {
    shards: Vec<Lane<'a>>,
    /// Longest match at each position, over all shards; `UNKNOWN` until asked.
    longest: Vec<u32>,
    /// Whether something was left out because it stands since later.
    is_limited: bool,
}

/// One answer against one shard.
#[derive(Debug)]
struct Lane<'a> {
    view: &'a View,
    /// What may be found of it.
    before: Option<Before<'a>>,
    /// The answer in the shard's codes.
    codes: Vec<u32>,
    /// Where the run of codes that occur ends, for each position.
    run_ends: Vec<u32>,
    /// What was found at each position.
    hits: Vec<Hit>,
}

const UNKNOWN: u32 = u32::MAX;

impl<'a> Query<'a> {
    /// What stood before `version`; `u32::MAX` for all there is.
    pub(crate) fn new(views: &'a [View], answer: &[u32], version: u32) -> Self {
        let lane = |view| Lane::new(view, answer, version);
        Self {
            shards: views.iter().map(lane).collect(),
            longest: vec![UNKNOWN; answer.len()],
            is_limited: version != u32::MAX,
        }
    }

    /// All spans of at least `length_min` tokens that reach as far right as
    /// they can and lie within no other, in order.
    ///
    /// Such a span is the longest match at its start, and reaches beyond all
    /// before it. So the next one begins at the smallest start whose longest
    /// match has the length and reaches beyond the last end. Two facts save
    /// searches:
    /// - if `answer[j..e]` occurs, so does `answer[j + 1..e]`: among the starts
    ///   that must reach a given end, bisection finds the smallest;
    /// - if `answer[m..e]` does not occur, neither does anything around it: a
    ///   search in the middle of a window rules out all windows that hold the
    ///   mismatch, as in Boyer and Moore's string search.
    pub(crate) fn maximal(&mut self, length_min: usize) -> Vec<Range<usize>> {
        let n_tokens = self.longest.len();
        let mut found: Vec<Range<usize>> = Vec::new();
        // Every span that begins before `next` is found; the last ends at `end`.
        let (mut next, mut end) = (0, 0);
        // About how far a match reaches where there is no span.
        let mut usual = 0;
        while end < n_tokens && next + length_min <= n_tokens {
            // Up to here, reaching beyond `end` asks for more than the length.
            let crossing = (end + 1).saturating_sub(length_min);
            let start = if next < crossing {
                if self.reach(crossing) <= end {
                    next = crossing + 1;
                    continue;
                }
                Some(self.first_reaching(next..crossing, end))
            } else {
                self.skip(&mut next, length_min, &mut usual)
            };
            if let Some(start) = start {
                end = self.reach(start);
                found.push(start..end);
                next = start + 1;
            }
        }
        found
    }

    /// The smallest start in `starts`, or else its end, that reaches beyond
    /// `end`; its end does.
    fn first_reaching(&mut self, mut starts: Range<usize>, end: usize) -> usize {
        while !starts.is_empty() {
            let middle = starts.start + starts.len() / 2;
            if self.reach(middle) > end {
                starts.end = middle;
            } else {
                starts.start = middle + 1;
            }
        }
        starts.end
    }

    /// Looks at the window of `length_min` tokens at `next`. Either it occurs,
    /// and its start is returned, or `next` moves beyond all windows that hold
    /// what does not occur in it.
    fn skip(&mut self, next: &mut usize, length_min: usize, usual: &mut usize) -> Option<usize> {
        // The further back in the window the search is, the more it rules out.
        let mut at = *next + (length_min - 1).saturating_sub(*usual);
        loop {
            let reach = self.reach(at);
            *usual = reach - at;
            if reach < *next + length_min {
                *next = at + 1;
                return None;
            }
            if at == *next {
                return Some(at);
            }
            // It reaches beyond the window: look further to the front.
            at = *next + (length_min - 1).saturating_sub(*usual).min(at - 1 - *next);
        }
    }

    /// Where the longest match at a position ends.
    fn reach(&mut self, at: usize) -> usize {
        if self.longest[at] == UNKNOWN {
            let lens = self.shards.iter_mut().map(|lane| lane.search(at));
            self.longest[at] = lens.max().unwrap_or(0);
        }
        at + self.longest[at] as usize
    }

    /// The ranks of a shard's suffixes that begin with a span found before, later
    /// versions included.
    pub(crate) fn ranks(&mut self, shard: usize, span: Range<usize>) -> Range<usize> {
        // It was searched for in every shard, so the hits are there.
        let lane = &self.shards[shard];
        let mut hit = lane.hits[span.start];
        let search = lane.view.shard.search();
        if (hit.len as usize) < span.len() {
            let is_possible = lane.run_ends[span.start] as usize >= span.end;
            if self.is_limited && is_possible {
                hit = search.longest(&lane.codes[span.clone()], None);
            }
            if (hit.len as usize) < span.len() {
                return 0..0;
            }
        }
        search.ranks_of(&lane.codes[span], hit.rank)
    }
}

impl<'a> Lane<'a> {
    fn new(view: &'a View, answer: &[u32], version: u32) -> Self {
        let codes: Vec<u32> = answer.iter().map(|&token| view.shard.code(token)).collect();
        let mut run_ends = vec![0; codes.len()];
        let mut end = codes.len();
        for (at, &code) in codes.iter().enumerate().rev() {
            if code == SEPARATOR {
                end = at;
            }
            run_ends[at] = u32::try_from(end).expect("an answer has at most 2¹⁶ tokens");
        }
        Self {
            view,
            before: view.before(version),
            hits: vec![Hit::default(); codes.len()],
            codes,
            run_ends,
        }
    }

    fn search(&mut self, at: usize) -> u32 {
        let Some(before) = &self.before else {
            return 0;
        };
        let pattern = &self.codes[at..self.run_ends[at] as usize];
        let search = self.view.shard.search();
        let hit = search.longest(pattern, before.mask());
        self.hits[at] = hit;
        hit.len
    }
}
