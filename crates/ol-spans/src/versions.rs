//! Which version of a datanet the suffixes of a shard came with, so that the
//! earliest of a range, and the nearest that are early enough, are found without
//! reading them all.

use std::ops::Range;

/// Entries of one level that an entry of the next stands for.
const FAN_OUT: usize = 64;

/// The lowest version of each block of ranks, of each block of blocks, and so on:
/// a 64th of four bytes for each rank. Versions of single ranks are asked for.
#[derive(Debug)]
pub(crate) struct Minima(Vec<Vec<u32>>);

/// The version of a rank.
type VersionOf<'a> = &'a dyn Fn(usize) -> u32;

/// From which end a range is searched.
#[derive(Debug, Clone, Copy)]
enum From {
    Start,
    End,
}

impl Minima {
    pub(crate) fn new(n_ranks: usize, version_of: VersionOf<'_>) -> Self {
        let block = |start: usize| start..(start + FAN_OUT).min(n_ranks);
        let lowest = |start| block(start).map(version_of).min();
        let mut level: Vec<u32> = (0..n_ranks).step_by(FAN_OUT).filter_map(lowest).collect();
        let mut levels = Vec::new();
        while level.len() > FAN_OUT {
            let blocks = level.chunks(FAN_OUT);
            let next = blocks.filter_map(|block| block.iter().min().copied());
            let next = next.collect();
            levels.push(std::mem::replace(&mut level, next));
        }
        levels.push(level);
        Self(levels)
    }

    /// The first rank of a range with a version below `limit`.
    pub(crate) fn first(
        &self,
        ranks: Range<usize>,
        limit: u32,
        version_of: VersionOf<'_>,
    ) -> Option<usize> {
        self.find(0, ranks, limit, version_of, From::Start)
    }

    /// The last rank of a range with a version below `limit`.
    pub(crate) fn last(
        &self,
        ranks: Range<usize>,
        limit: u32,
        version_of: VersionOf<'_>,
    ) -> Option<usize> {
        self.find(0, ranks, limit, version_of, From::End)
    }

    /// Level 0 is ranks. Those that do not fill a block are looked at one by one,
    /// blocks on the level above.
    fn find(
        &self,
        level: usize,
        range: Range<usize>,
        limit: u32,
        version_of: VersionOf<'_>,
        from: From,
    ) -> Option<usize> {
        let value = |at: usize| match level.checked_sub(1) {
            None => version_of(at),
            Some(level) => self.0[level][at],
        };
        let scan = |mut range: Range<usize>| match from {
            From::Start => range.find(|&at| value(at) < limit),
            From::End => range.rfind(|&at| value(at) < limit),
        };
        let blocks = range.start.div_ceil(FAN_OUT)..range.end / FAN_OUT;
        if level == self.0.len() || blocks.is_empty() {
            return scan(range);
        }
        let head = range.start..blocks.start * FAN_OUT;
        let tail = blocks.end * FAN_OUT..range.end;
        let middle = || {
            let block = self.find(level + 1, blocks.clone(), limit, version_of, from)?;
            scan(block * FAN_OUT..(block + 1) * FAN_OUT)
        };
        match from {
            From::Start => scan(head).or_else(middle).or_else(|| scan(tail)),
            From::End => scan(tail).or_else(middle).or_else(|| scan(head)),
        }
    }
}

#[cfg(test)]
mod tests {
    //! Goal: what is found is what a look at every rank finds.

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn ranks_are_found_as_by_looking_at_all(
            (versions, a, b, limit) in (prop::collection::vec(0_u32..9, 1..9_000), 0..9_000_usize, 0..9_000_usize, 0_u32..10),
            rare in 0_usize..9_000,
        ) {
            // Mostly late ones, so that whole blocks are passed over.
            let version = |at: usize| if at % 1_000 == rare % 1_000 { versions[at] } else { 9 };
            let minima = Minima::new(versions.len(), &version);
            let (a, b) = (a.min(versions.len()), b.min(versions.len()));
            let range = a.min(b)..a.max(b);
            let mut all = range.clone().filter(|&at| version(at) < limit);
            prop_assert_eq!(minima.first(range.clone(), limit, &version), all.next());
            let mut all = range.clone().rev().filter(|&at| version(at) < limit);
            prop_assert_eq!(minima.last(range, limit, &version), all.next());
        }
    }
}
