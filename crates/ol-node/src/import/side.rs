//! Valid blocks that are not on the chain.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use alloy_primitives::B256;

use super::Candidate;

/// Most blocks that are kept.
const BLOCKS_MAX: usize = 2_048;

/// Most bytes of blocks, as they travel, that are kept.
const SIZE_MAX_BYTES: usize = 128 << 20;

/// Valid blocks that are not on the chain, in memory. The oldest go first; a
/// branch that has lost its blocks is fetched again.
#[derive(Debug, Default)]
pub(crate) struct SideBlocks {
    by_hash: BTreeMap<B256, Arc<Candidate>>,
    oldest_first: VecDeque<B256>,
    size_bytes: usize,
}

impl SideBlocks {
    pub(super) fn get(&self, hash: B256) -> Option<Arc<Candidate>> {
        self.by_hash.get(&hash).cloned()
    }

    pub(super) fn insert(&mut self, block: Arc<Candidate>) {
        if self.by_hash.contains_key(&block.hash) {
            return;
        }
        self.size_bytes += block.size_bytes;
        self.oldest_first.push_back(block.hash);
        self.by_hash.insert(block.hash, block);
        while self.by_hash.len() > BLOCKS_MAX || self.size_bytes > SIZE_MAX_BYTES {
            let Some(oldest) = self.oldest_first.front().copied() else {
                break;
            };
            self.remove(oldest);
        }
    }

    pub(super) fn remove(&mut self, hash: B256) {
        if let Some(block) = self.by_hash.remove(&hash) {
            self.size_bytes -= block.size_bytes;
            self.oldest_first.retain(|&kept| kept != hash);
        }
    }
}
