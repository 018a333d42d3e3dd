//! The transactions of one sender, by nonce.

use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::Arc;

use alloy_primitives::U256;

use super::PooledTransaction;

/// A transaction with the number of its arrival.
#[derive(Debug, Clone)]
pub(super) struct Entry {
    pub(super) pooled: Arc<PooledTransaction>,
    pub(super) arrival: u64,
}

/// The transactions of one sender, and where the first gap is.
#[derive(Debug, Default)]
pub(super) struct Queue {
    entries: BTreeMap<u64, Entry>,
    /// The sender's next nonce.
    next_nonce: u64,
    /// The first nonce from `next_nonce` on that is missing.
    gap: u64,
    /// What all entries may cost together.
    cost_wei: U256,
}

impl Queue {
    pub(super) fn new(next_nonce: u64) -> Self {
        Self {
            next_nonce,
            gap: next_nonce,
            ..Self::default()
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    pub(super) fn len(&self) -> usize {
        self.entries.len()
    }

    pub(super) const fn next_nonce(&self) -> u64 {
        self.next_nonce
    }

    pub(super) const fn gap(&self) -> u64 {
        self.gap
    }

    pub(super) const fn cost_wei(&self) -> U256 {
        self.cost_wei
    }

    /// How many follow the sender's nonce without a gap.
    pub(super) fn n_pending(&self) -> usize {
        // At most as many as there are entries.
        usize::try_from(self.gap - self.next_nonce).unwrap_or(usize::MAX)
    }

    pub(super) fn n_queued(&self) -> usize {
        self.len() - self.n_pending()
    }

    pub(super) fn get(&self, nonce: u64) -> Option<&Entry> {
        self.entries.get(&nonce)
    }

    /// The entry that can be executed next.
    pub(super) fn first(&self) -> Option<&Entry> {
        self.entries.get(&self.next_nonce)
    }

    /// The entry with the highest nonce.
    pub(super) fn last(&self) -> Option<&Entry> {
        self.entries.last_key_value().map(|(_, entry)| entry)
    }

    pub(super) fn entries(&self) -> impl Iterator<Item = &Entry> {
        self.entries.values()
    }

    /// Puts an entry, and returns the one with its nonce that was there.
    pub(super) fn put(&mut self, entry: Entry) -> Option<Entry> {
        let nonce = entry.pooled.nonce();
        self.cost_wei = self.cost_wei.saturating_add(entry.pooled.cost_wei);
        let replaced = self.entries.insert(nonce, entry);
        if let Some(replaced) = &replaced {
            self.cost_wei = self.cost_wei.saturating_sub(replaced.pooled.cost_wei);
        }
        if nonce == self.gap {
            self.close_gap();
        }
        replaced
    }

    pub(super) fn remove(&mut self, nonce: u64) -> Option<Entry> {
        let entry = self.entries.remove(&nonce)?;
        self.cost_wei = self.cost_wei.saturating_sub(entry.pooled.cost_wei);
        if (self.next_nonce..self.gap).contains(&nonce) {
            self.gap = nonce;
        }
        Some(entry)
    }

    /// Moves the sender's nonce, and returns the entries below it.
    pub(super) fn set_next_nonce(&mut self, next_nonce: u64) -> Vec<Entry> {
        if next_nonce == self.next_nonce {
            return Vec::new();
        }
        let rest = self.entries.split_off(&next_nonce);
        let below = std::mem::replace(&mut self.entries, rest);
        for entry in below.values() {
            self.cost_wei = self.cost_wei.saturating_sub(entry.pooled.cost_wei);
        }
        self.next_nonce = next_nonce;
        self.gap = next_nonce;
        self.close_gap();
        below.into_values().collect()
    }

    /// The nonces behind the gap.
    pub(super) fn queued(&self) -> impl Iterator<Item = &Entry> {
        let behind = (Bound::Excluded(self.gap), Bound::Unbounded);
        self.entries.range(behind).map(|(_, entry)| entry)
    }

    fn close_gap(&mut self) {
        let consecutive = self
            .entries
            .range(self.gap..)
            .zip(self.gap..)
            .take_while(|((nonce, _), expected)| *nonce == expected)
            .count();
        self.gap += consecutive as u64;
    }
}
