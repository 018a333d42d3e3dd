//! The Merkle root of leaves that arrive one by one, in logarithmic memory.

use ol_poa::merkle;
use ol_types::B256;

/// The right edge of a Merkle tree that grows.
///
/// Holds the roots of the perfect subtrees that the leaves so far fill: one
/// for each bit set in their number. Gives [`merkle::root`] of every prefix
/// without keeping the leaves.
#[derive(Debug, Clone, Default)]
pub(crate) struct Frontier {
    /// `peaks[level]` is the root of `2^level` leaves; valid if that bit of
    /// `n_leaves` is set.
    peaks: Vec<B256>,
    n_leaves: usize,
}

impl Frontier {
    pub(crate) fn push(&mut self, leaf: B256) {
        let mut hash = leaf;
        let mut level = 0;
        // As adding one carries through the bits that are set.
        while self.n_leaves >> level & 1 == 1 {
            hash = merkle::node(&self.peaks[level], &hash);
            level += 1;
        }
        if level == self.peaks.len() {
            self.peaks.push(hash);
        } else {
            self.peaks[level] = hash;
        }
        self.n_leaves += 1;
    }

    /// The root of the leaves so far, padded with zero hashes.
    pub(crate) fn root(&self) -> B256 {
        let depth = merkle::depth(self.n_leaves) as usize;
        // The last subtree that has leaves at this level, if it is not a peak.
        let mut partial: Option<B256> = None;
        let mut padding = B256::ZERO;
        for level in 0..depth {
            let is_peak = self.n_leaves >> level & 1 == 1;
            partial = match (is_peak, partial) {
                (true, right) => Some(merkle::node(&self.peaks[level], &right.unwrap_or(padding))),
                (false, Some(left)) => Some(merkle::node(&left, &padding)),
                (false, None) => None,
            };
            padding = merkle::node(&padding, &padding);
        }
        partial
            .or_else(|| self.peaks.get(depth).copied())
            .unwrap_or_default()
    }
}

#[cfg(test)]
mod tests;
