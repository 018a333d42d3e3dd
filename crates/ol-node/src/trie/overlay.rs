//! A trie as it is after changes that are not written.

use std::collections::BTreeMap;

use alloy_primitives::{B256, U256};
use alloy_trie::Nibbles;

use super::{Branch, SortedTrie};
use crate::store::StoreError;

/// A trie with changed branches and leaves laid over it.
pub(crate) struct Overlay<R> {
    base: R,
    branches: BTreeMap<Vec<u8>, Option<Branch>>,
    leaves: BTreeMap<B256, Option<Vec<u8>>>,
}

impl<R: SortedTrie> Overlay<R> {
    /// Lays over a trie what [`update`](super::update) says of `leaves`.
    pub(crate) fn new(
        base: R,
        branches: &[(Nibbles, Option<Branch>)],
        leaves: impl IntoIterator<Item = (B256, Option<Vec<u8>>)>,
    ) -> Self {
        let branches = branches.iter();
        Self {
            base,
            branches: branches
                .map(|(path, branch)| (path.to_vec(), branch.clone()))
                .collect(),
            leaves: leaves.into_iter().collect(),
        }
    }
}

impl<R: SortedTrie> SortedTrie for Overlay<R> {
    fn branch_from(&self, from: &[u8]) -> Result<Option<(Nibbles, Branch)>, StoreError> {
        let laid_over = self.branches.range(from.to_vec()..);
        let laid_over = laid_over
            .filter_map(|(path, branch)| Some((Nibbles::from_nibbles(path), branch.clone()?)))
            .next();
        let mut from = from.to_vec();
        let below = loop {
            let Some((path, branch)) = self.base.branch_from(&from)? else {
                break None;
            };
            let key = path.to_vec();
            if !self.branches.contains_key(&key) {
                break Some((path, branch));
            }
            // The next byte string in order.
            from = key;
            from.push(0);
        };
        Ok(first(laid_over, below))
    }

    fn leaf_from(&self, from: B256) -> Result<Option<(B256, Vec<u8>)>, StoreError> {
        let laid_over = self.leaves.range(from..);
        let laid_over = laid_over
            .filter_map(|(key, value)| Some((*key, value.clone()?)))
            .next();
        let mut from = from;
        let below = loop {
            let Some((key, value)) = self.base.leaf_from(from)? else {
                break None;
            };
            if !self.leaves.contains_key(&key) {
                break Some((key, value));
            }
            match U256::from_be_bytes(key.0).checked_add(U256::ONE) {
                Some(next) => from = next.into(),
                None => break None,
            }
        };
        Ok(first(laid_over, below))
    }
}

fn first<K: Ord, V>(a: Option<(K, V)>, b: Option<(K, V)>) -> Option<(K, V)> {
    match (a, b) {
        (Some(a), Some(b)) => Some(if a.0 < b.0 { a } else { b }),
        (a, b) => a.or(b),
    }
}
