//! Questions to one suffix array. Every read is checked: whatever the bytes
//! are, an answer comes, if only a wrong one.

use std::cmp::Ordering;
use std::ops::Range;

/// A code as it is stored.
pub(crate) trait Code: Copy {
    fn value(&self) -> u32;
}

impl Code for [u8; 2] {
    #[inline]
    fn value(&self) -> u32 {
        u16::from_le_bytes(*self).into()
    }
}

impl Code for [u8; 4] {
    #[inline]
    fn value(&self) -> u32 {
        u32::from_le_bytes(*self)
    }
}

/// The text of a shard.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Text<'a> {
    Narrow(&'a [[u8; 2]]),
    Wide(&'a [[u8; 4]]),
}

/// Text and suffix array of a shard.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Search<'a> {
    pub(crate) text: Text<'a>,
    pub(crate) suffixes: &'a [[u8; 4]],
    /// First rank of each code, and the end.
    pub(crate) buckets: &'a [u32],
}

/// Ranks whose documents count.
pub(crate) trait Mask {
    /// The last such rank in a range.
    fn last(&self, ranks: Range<usize>) -> Option<usize>;
    /// The first such rank in a range.
    fn first(&self, ranks: Range<usize>) -> Option<usize>;
}

/// A suffix that shares codes with a pattern.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Hit {
    /// How many.
    pub(crate) len: u32,
    /// Its rank.
    pub(crate) rank: u32,
}

impl Search<'_> {
    /// The longest prefix of `pattern` that occurs, and a rank where it does.
    /// No code of the pattern is 0.
    pub(crate) fn longest(&self, pattern: &[u32], mask: Option<&dyn Mask>) -> Hit {
        match self.text {
            Text::Narrow(text) => self.longest_in(text, pattern, mask),
            Text::Wide(text) => self.longest_in(text, pattern, mask),
        }
    }

    /// The ranks of all suffixes that begin with `pattern`, given one.
    pub(crate) fn ranks_of(&self, pattern: &[u32], rank: u32) -> Range<usize> {
        match self.text {
            Text::Narrow(text) => self.ranks_in(text, pattern, rank as usize),
            Text::Wide(text) => self.ranks_in(text, pattern, rank as usize),
        }
    }

    /// Where the suffix of a rank begins.
    pub(crate) fn position(&self, rank: usize) -> Option<u32> {
        self.suffixes.get(rank).map(Code::value)
    }

    fn bucket(&self, pattern: &[u32]) -> Option<Range<usize>> {
        let code = *pattern.first()? as usize;
        let (start, end) = (self.buckets.get(code)?, self.buckets.get(code + 1)?);
        Some(*start as usize..(*end as usize).min(self.suffixes.len()))
    }

    fn longest_in<C: Code>(&self, text: &[C], pattern: &[u32], mask: Option<&dyn Mask>) -> Hit {
        let Some(bucket) = self.bucket(pattern) else {
            return Hit::default();
        };
        // Suffixes before `ranks` are below the pattern, those after are not.
        // Each shares with it what its neighbours at both ends do, at least.
        let mut ranks = bucket.clone();
        let (mut common_low, mut common_high) = (1, 1);
        let mut best = Hit::default();
        while !ranks.is_empty() {
            let middle = ranks.start + ranks.len() / 2;
            let known = common_low.min(common_high);
            let (common, order) = self.compare(text, pattern, middle, known);
            if common > best.len as usize {
                best = hit(common, middle);
                // No longer one exists; with a mask, this one may not count.
                if common == pattern.len() && mask.is_none() {
                    return best;
                }
            }
            if order == Ordering::Less {
                ranks.start = middle + 1;
                common_low = common;
            } else {
                ranks.end = middle;
                common_high = common;
            }
        }
        let Some(mask) = mask else {
            return best;
        };
        // The nearest that count on both sides of the pattern's place.
        let below = mask.last(bucket.start..ranks.start);
        let above = mask.first(ranks.start..bucket.end);
        let hits = [below, above].into_iter().flatten().map(|rank| {
            let (common, _) = self.compare(text, pattern, rank, 0);
            hit(common, rank)
        });
        hits.max_by_key(|hit| hit.len).unwrap_or_default()
    }

    fn ranks_in<C: Code>(&self, text: &[C], pattern: &[u32], rank: usize) -> Range<usize> {
        let bucket = self.bucket(pattern).unwrap_or_default();
        let is_in = |rank: usize| self.compare(text, pattern, rank, 0).0 == pattern.len();
        if !bucket.contains(&rank) || !is_in(rank) {
            return 0..0;
        }
        // Doubling steps, then bisection: a span has few occurrences.
        let mut step = 1;
        let (mut outside, mut start) = (bucket.start, rank);
        while start > bucket.start {
            let probe = start.saturating_sub(step).max(bucket.start);
            if !is_in(probe) {
                outside = probe + 1;
                break;
            }
            start = probe;
            step *= 2;
        }
        while outside < start {
            let middle = outside + (start - outside) / 2;
            if is_in(middle) {
                start = middle;
            } else {
                outside = middle + 1;
            }
        }
        step = 1;
        let (mut end, mut beyond) = (rank + 1, bucket.end);
        while end < bucket.end {
            let probe = (end + step - 1).min(bucket.end - 1);
            if !is_in(probe) {
                beyond = probe;
                break;
            }
            end = probe + 1;
            step *= 2;
        }
        while end < beyond {
            let middle = end + (beyond - end) / 2;
            if is_in(middle) {
                end = middle + 1;
            } else {
                beyond = middle;
            }
        }
        start..end
    }

    /// How many codes the suffix of a rank shares with the pattern, the first
    /// `known` of which are known to be, and how it compares. A suffix that
    /// begins with the whole pattern is not below it.
    #[inline]
    fn compare<C: Code>(
        &self,
        text: &[C],
        pattern: &[u32],
        rank: usize,
        known: usize,
    ) -> (usize, Ordering) {
        let position = self.position(rank).map_or(text.len(), |p| p as usize);
        let suffix = text.get(position + known..).unwrap_or_default();
        let rest = pattern.get(known..).unwrap_or_default();
        let mut common = known;
        for (code, wanted) in suffix.iter().zip(rest) {
            let order = code.value().cmp(wanted);
            if order != Ordering::Equal {
                return (common, order);
            }
            common += 1;
        }
        let is_whole = common >= pattern.len();
        let order = if is_whole {
            Ordering::Greater
        } else {
            Ordering::Less
        };
        (common, order)
    }
}

fn hit(len: usize, rank: usize) -> Hit {
    Hit {
        len: u32::try_from(len).expect("an answer has at most 2¹⁶ tokens"),
        rank: u32::try_from(rank).expect("ranks are stored in 32 bits"),
    }
}
