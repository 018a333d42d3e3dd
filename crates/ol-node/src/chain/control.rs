//! Blocks and time by hand, for development chains. Everything here makes real
//! blocks by the rules, so followers can check them.

use std::sync::Arc;

use super::{Chain, shared_error};
use crate::Node;
use crate::admission::SubmitError;
use crate::node::Role;

/// Most blocks that are made at one time.
pub const MINE_BLOCKS_MAX: u64 = 10_000;

/// The latest time that a block may be given by hand: the end of the year 9999,
/// beyond which tools have no dates.
pub const TIMESTAMP_MAX_S: u64 = 253_402_300_799;

/// Why blocks were not made, or time not moved, by hand.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum ControlError {
    /// This node does not make blocks.
    #[error("this node follows another one and makes no blocks")]
    Follower,
    /// More than [`MINE_BLOCKS_MAX`] blocks.
    #[error("too many blocks at one time: {asked}, at most {MINE_BLOCKS_MAX}")]
    TooManyBlocks {
        /// How many were asked for.
        asked: u64,
    },
    /// Time does not run backwards.
    #[error("timestamp {asked_s} is not after that of the newest block, {newest_s}")]
    Timestamp {
        /// The time asked for.
        asked_s: u64,
        /// The time of the newest block.
        newest_s: u64,
    },
    /// It would be after [`TIMESTAMP_MAX_S`].
    #[error(
        "timestamp {asked_s} is too late: the latest is {TIMESTAMP_MAX_S}, the end of the year 9999"
    )]
    TooLate {
        /// The time asked for.
        asked_s: u64,
    },
    /// The node is stopping.
    #[error("the node is stopping")]
    Stopped,
    /// A block could not be made or written.
    #[error("the block could not be written")]
    Storage(#[source] Arc<dyn std::error::Error + Send + Sync>),
}

impl From<SubmitError> for ControlError {
    fn from(error: SubmitError) -> Self {
        match error {
            SubmitError::Storage(error) => Self::Storage(error),
            _ => Self::Stopped,
        }
    }
}

impl Node {
    /// Makes this many blocks now, with what can be executed in the first ones
    /// and empty ones after that, and returns when they are on disk.
    ///
    /// # Errors
    /// [`ControlError`]; blocks that were made before it stay.
    pub fn mine(&self, n_blocks: u64) -> Result<(), ControlError> {
        if n_blocks > MINE_BLOCKS_MAX {
            return Err(ControlError::TooManyBlocks { asked: n_blocks });
        }
        self.control(move |chain| {
            (0..n_blocks).try_for_each(|_| {
                chain.open_block().map_err(shared_error)?;
                chain.fill();
                chain.close()?;
                Ok(())
            })
        })
    }

    /// Gives the next block exactly this time, in Unix seconds; the blocks
    /// after it follow from there.
    ///
    /// # Errors
    /// [`ControlError::Timestamp`] if it is not after the newest block,
    /// [`ControlError::TooLate`] if it is after [`TIMESTAMP_MAX_S`].
    pub fn set_next_timestamp(&self, unix_s: u64) -> Result<(), ControlError> {
        self.control(move |chain| {
            let newest_s = chain.shared.head().header.timestamp;
            if unix_s <= newest_s {
                return Err(ControlError::Timestamp {
                    asked_s: unix_s,
                    newest_s,
                });
            }
            if unix_s > TIMESTAMP_MAX_S {
                return Err(ControlError::TooLate { asked_s: unix_s });
            }
            chain.shared.time().set_next(unix_s);
            chain.abandon_open();
            Ok(())
        })
    }

    /// Moves the time of all blocks to come, in seconds, and returns by how
    /// much it is ahead of the clock now.
    ///
    /// # Errors
    /// [`ControlError::TooLate`] if that is after [`TIMESTAMP_MAX_S`].
    pub fn increase_time(&self, span_s: u64) -> Result<i64, ControlError> {
        self.control(move |chain| {
            let now_s = chain.shared.time().now_s(&*chain.shared.clock);
            let asked_s = now_s.saturating_add(span_s);
            if asked_s > TIMESTAMP_MAX_S {
                return Err(ControlError::TooLate { asked_s });
            }
            let offset_s = chain.shared.time().increase(span_s);
            chain.abandon_open();
            Ok(offset_s)
        })
    }

    /// Stops or resumes making blocks without being asked by [`Node::mine`].
    /// While it is stopped, transactions are executed in the pending block.
    ///
    /// # Errors
    /// [`ControlError`].
    pub fn set_mining_paused(&self, is_paused: bool) -> Result<(), ControlError> {
        self.control(move |chain| {
            chain.is_mining_paused = is_paused;
            chain.wind_up();
            Ok(())
        })
    }

    fn control<T: Send + 'static>(
        &self,
        job: impl FnOnce(&mut Chain) -> Result<T, ControlError> + Send + 'static,
    ) -> Result<T, ControlError> {
        if self.role() == Role::Follower {
            return Err(ControlError::Follower);
        }
        self.on_chain_thread(job)?
    }
}
