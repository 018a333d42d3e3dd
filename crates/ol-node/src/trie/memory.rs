//! A trie in memory, changed by the same code as the one in the database.

use std::collections::BTreeMap;

use alloy_primitives::{B256, Bytes};
use alloy_trie::{EMPTY_ROOT_HASH, Nibbles};

use super::proof::prove_at;
use super::{Branch, Change, Empty, TrieReader, update};
use crate::store::StoreError;

/// Longest key. All keys of a state have this length.
const KEY_MAX_SIZE_BYTES: usize = 32;

/// A value, if there is one, and the nodes on the way to it.
pub type Proof = (Option<Vec<u8>>, Vec<Bytes>);

/// A trie over keys of any length up to 32 bytes, none of which begins another
/// one. For tests: the tries of a chain are in its database.
#[derive(Debug, Clone)]
pub struct MemoryTrie {
    root: B256,
    /// As they are stored, by path with a byte for each nibble.
    branches: BTreeMap<Vec<u8>, Vec<u8>>,
    /// By key with a byte for each nibble.
    leaves: BTreeMap<Vec<u8>, Vec<u8>>,
}

impl Default for MemoryTrie {
    fn default() -> Self {
        Self {
            root: EMPTY_ROOT_HASH,
            branches: BTreeMap::new(),
            leaves: BTreeMap::new(),
        }
    }
}

impl TrieReader for MemoryTrie {
    fn branch_below(&self, prefix: &Nibbles) -> Result<Option<(Nibbles, Branch)>, StoreError> {
        let prefix = prefix.to_vec();
        let found = self.branches.range(prefix.clone()..).next();
        found
            .filter(|(path, _)| path.starts_with(&prefix))
            .map(|(path, branch)| Ok((Nibbles::from_nibbles(path), Branch::decode(branch)?)))
            .transpose()
    }

    fn leaf_below(&self, prefix: &Nibbles) -> Result<Option<(Nibbles, Vec<u8>)>, StoreError> {
        let prefix = prefix.to_vec();
        let found = self.leaves.range(prefix.clone()..).next();
        let found = found.filter(|(key, _)| key.starts_with(&prefix));
        Ok(found.map(|(key, value)| (Nibbles::from_nibbles(key), value.clone())))
    }
}

impl MemoryTrie {
    /// Changes values by key, `None` takes one out. All at one time, as a block
    /// does. Returns the root afterwards; `None`, and the trie stays as it was,
    /// if a key is longer than 32 bytes, begins another one, or a value is empty.
    ///
    /// # Errors
    /// [`StoreError`] if what is stored does not fit together.
    pub fn apply(
        &mut self,
        changes: &BTreeMap<Vec<u8>, Option<Vec<u8>>>,
    ) -> Result<Option<B256>, StoreError> {
        if !self.fits(changes) {
            return Ok(None);
        }
        let list = changes
            .iter()
            .map(|(key, value)| Change::at(Nibbles::unpack(key), value.clone()))
            .collect();
        let updated = update(self, list)?;
        for (path, branch) in updated.branches {
            match branch {
                Some(branch) => self.branches.insert(path.to_vec(), branch.encode()),
                None => self.branches.remove(&path.to_vec()),
            };
        }
        for (key, value) in changes {
            let key = Nibbles::unpack(key).to_vec();
            match value {
                Some(value) => self.leaves.insert(key, value.clone()),
                None => self.leaves.remove(&key),
            };
        }
        self.root = updated.root;
        Ok(Some(self.root))
    }

    /// The root.
    #[must_use]
    pub const fn root(&self) -> B256 {
        self.root
    }

    /// Whether the branches that are stored, and the root, are those that all
    /// leaves at one time would have made.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn is_as_rebuilt(&self) -> Result<bool, StoreError> {
        let leaves = self.leaves.iter();
        let all = leaves
            .map(|(key, value)| Change::at(Nibbles::from_nibbles(key), Some(value.clone())))
            .collect();
        let made = update(&Empty, all)?;
        let branches: BTreeMap<_, _> = made
            .branches
            .into_iter()
            .filter_map(|(path, branch)| Some((path.to_vec(), branch?.encode())))
            .collect();
        Ok(made.root == self.root && branches == self.branches)
    }

    /// The value under a key, and the nodes that prove it; `None` if the key
    /// begins another one or is longer than any.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn prove(&self, key: &[u8]) -> Result<Option<Proof>, StoreError> {
        if !self.fits(&BTreeMap::from([(key.to_vec(), None)])) {
            return Ok(None);
        }
        let proven = prove_at(self, Nibbles::unpack(key))?;
        Ok(Some((proven.value, proven.nodes)))
    }

    /// The leaves in order, by key with a byte for each nibble.
    pub fn leaves(&self) -> impl Iterator<Item = (&[u8], &[u8])> {
        let leaves = self.leaves.iter();
        leaves.map(|(key, value)| (key.as_slice(), value.as_slice()))
    }

    /// Whether the changes are of keys that a trie without values in its
    /// branches can have.
    fn fits(&self, changes: &BTreeMap<Vec<u8>, Option<Vec<u8>>>) -> bool {
        let is_sound = changes.iter().all(|(key, value)| {
            key.len() <= KEY_MAX_SIZE_BYTES && value.as_ref().is_none_or(|value| !value.is_empty())
        });
        let mut keys: Vec<Vec<u8>> = self.leaves.keys().cloned().collect();
        keys.extend(changes.keys().map(|key| Nibbles::unpack(key).to_vec()));
        keys.sort_unstable();
        keys.dedup();
        // One that begins others stands right before the first of them.
        is_sound
            && keys
                .array_windows()
                .all(|[one, next]| !next.starts_with(one))
    }
}
