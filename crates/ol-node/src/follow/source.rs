//! Where blocks come from.

use std::fmt::Debug;
use std::time::Duration;

use alloy_primitives::B256;

use crate::wire::WireBlock;

/// The newest block of a source, and which chain it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SourceHead {
    /// The chain's id.
    pub chain_id: u64,
    /// Hash of block 0.
    pub genesis_hash: B256,
    /// Number of the newest block.
    pub number: u64,
    /// Its hash.
    pub hash: B256,
}

/// Why a source gave no answer.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum SourceError {
    /// It cannot be reached, or broke off; it may be back later.
    #[error("the source cannot be reached: {reason}")]
    Away {
        /// Why.
        reason: String,
    },
    /// What it sent cannot be understood.
    #[error("the source sent what cannot be understood: {reason}")]
    Garbled {
        /// Why.
        reason: String,
    },
    /// This program is stopping.
    #[error("stopping")]
    Stopped,
}

/// Something that has blocks. Nothing it says is believed.
///
/// Every call ends within a bounded time, whatever the other side does.
pub trait BlockSource: Debug {
    /// Its newest block.
    ///
    /// # Errors
    /// [`SourceError`].
    fn head(&mut self) -> Result<SourceHead, SourceError>;

    /// Blocks from number `first` on, in order, at most `n_max`; fewer if they
    /// are large.
    ///
    /// # Errors
    /// [`SourceError`].
    fn blocks(&mut self, first: u64, n_max: usize) -> Result<Vec<WireBlock>, SourceError>;

    /// Returns when there is a new block, and after `at_most` if there is none.
    ///
    /// # Errors
    /// [`SourceError`].
    fn wait(&mut self, at_most: Duration) -> Result<(), SourceError>;
}
