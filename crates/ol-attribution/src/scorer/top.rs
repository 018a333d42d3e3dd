//! The records that count most, found without scoring all of them.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::ops::Range;
use std::sync::atomic::{AtomicI64, Ordering::Relaxed};
use std::sync::{Mutex, PoisonError};

use ol_model::Pool;
use ol_poa::QuerySketch;

use super::blocks::{LANES, Query};
use super::{BLOCKS_PER_TASK, Scorer};

/// The most records that are named at once.
pub const TOP_MAX: usize = 1_024;

/// A record and its score.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Hit {
    /// Where the record was when the scorer was built, from 0.
    pub position: usize,
    /// Its score, above 0.
    pub score: i64,
}

impl Scorer {
    /// The (at most `n`, at most [`TOP_MAX`]) records with the highest scores
    /// above 0, the highest first, equal ones by position.
    ///
    /// Exact: the same list as from sorting all scores.
    #[must_use]
    pub fn top(&self, pool: &Pool, query: &QuerySketch, n: usize) -> Vec<Hit> {
        self.top_within(pool, query, 0..self.len(), n)
    }

    /// The same among the records of one contributor.
    ///
    /// # Panics
    /// If there is no such contributor.
    #[must_use]
    pub fn top_of(
        &self,
        pool: &Pool,
        query: &QuerySketch,
        contributor: usize,
        n: usize,
    ) -> Vec<Hit> {
        let starts = &self.records.starts;
        let rows = starts[contributor] as usize..starts[contributor + 1] as usize;
        self.top_within(pool, query, rows, n)
    }

    fn top_within(
        &self,
        pool: &Pool,
        query: &QuerySketch,
        rows: Range<usize>,
        n: usize,
    ) -> Vec<Hit> {
        let search = Search {
            scorer: self,
            query: self.query(query),
            query_length: query_length(query),
            rows,
            best: Best::new(n.min(TOP_MAX)),
        };
        let blocks = search.rows.start / LANES..search.rows.end.div_ceil(LANES);
        if n > 0 {
            pool.run(blocks.len().div_ceil(BLOCKS_PER_TASK), &|task| {
                let start = blocks.start + task * BLOCKS_PER_TASK;
                for block in start..blocks.end.min(start + BLOCKS_PER_TASK) {
                    search.look_at(block);
                }
            });
        }
        search.best.into_sorted()
    }
}

struct Search<'a> {
    scorer: &'a Scorer,
    query: Query,
    query_length: u32,
    rows: Range<usize>,
    best: Best,
}

impl Search<'_> {
    fn look_at(&self, block: usize) {
        let Scorer {
            records,
            positions,
            lengths,
            ..
        } = self.scorer;
        // Nothing below it can be among the best any more.
        let least = self.best.least.load(Relaxed);
        // Below 2^23 · 2^11.
        if i64::from(lengths[block]) * i64::from(self.query_length) < least {
            return;
        }
        let scores = records
            .codes
            .scores(&self.query, block, &records.weights[block]);
        for (row, score) in (block * LANES..).zip(scores) {
            if score >= self.best.least.load(Relaxed) && self.rows.contains(&row) {
                self.best.offer(score, positions[row]);
            }
        }
    }
}

/// A record by score, of equal ones by position, the worst first in a heap.
type Worst = Reverse<(i64, Reverse<u32>)>;

/// The best so far, of all threads.
struct Best {
    n: usize,
    /// The least score that still counts.
    least: AtomicI64,
    kept: Mutex<BinaryHeap<Worst>>,
}

impl Best {
    fn new(n: usize) -> Self {
        Self {
            n,
            least: AtomicI64::new(1),
            kept: Mutex::new(BinaryHeap::with_capacity(n + 1)),
        }
    }

    fn offer(&self, score: i64, position: u32) {
        // A panic in another thread leaves a heap that is whole.
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        kept.push(Reverse((score, Reverse(position))));
        if kept.len() > self.n {
            kept.pop();
        }
        if kept.len() == self.n
            && let Some(Reverse((worst, _))) = kept.peek()
        {
            self.least.store(*worst, Relaxed);
        }
    }

    fn into_sorted(self) -> Vec<Hit> {
        let kept = self.kept.into_inner();
        let kept = kept
            .unwrap_or_else(PoisonError::into_inner)
            .into_sorted_vec();
        let hit = |Reverse((score, Reverse(position))): Worst| Hit {
            position: position as usize,
            score,
        };
        kept.into_iter().map(hit).collect()
    }
}

/// `ceil(|q|)`, at most 2032.
fn query_length(query: &QuerySketch) -> u32 {
    super::length(1, query.codes())
}
