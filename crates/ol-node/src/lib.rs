//! The L2 node: state, blocks on demand, receipts and logs, kept across any crash.
//!
//! A [`Node`] owns one chain in one directory. Transactions go in by
//! [`Node::submit`]: their senders are recovered in parallel, they wait in a
//! pool, and one thread, which alone changes the chain, executes them one by
//! one in the open block. It closes the block on demand or at an interval
//! ([`BlockMode`]), in one MDBX transaction.
//!
//! # Invariants
//! - A block is on disk as a whole or not at all: state, header, body, receipts
//!   and indices are one durable write. An acknowledged block survives `kill -9`.
//! - The state root is Ethereum's, over all accounts and their storage. It is kept
//!   up to date: a block costs what it changes, whatever the size of the state.
//! - The state after each of the last [`NodeConfig::history_max_blocks`] blocks
//!   can be asked for.
//! - A directory holds one chain (its genesis hash is checked) in one known
//!   format, opened by one process.
//! - Every queue and every answer has a limit; past it comes an error.
//!
//! # Example
//! ```
//! use std::sync::Arc;
//! use ol_node::{Genesis, Node};
//!
//! # let dir = tempfile::tempdir()?;
//! let mut genesis = Genesis::default();
//! genesis.config.chain_id = 161_200;
//! let clock = Arc::new(ol_runtime::ManualClock::new(1_700_000_000));
//! let node = Node::open(dir.path(), &genesis, clock)?;
//! assert_eq!(node.head().header.number, 0);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod admission;
mod chain;
mod event;
mod follow;
mod genesis;
mod import;
pub mod inspect;
mod intake;
mod mempool;
pub mod metrics;
mod node;
mod pending;
mod query;
mod signature;
mod store;
#[doc(hidden)]
pub mod testing;
mod trie;
mod view;
mod wire;

pub use admission::{Inclusion, RAW_TRANSACTION_MAX_SIZE_BYTES, SubmitError, SubmitOutcome};
pub use alloy_genesis::{Genesis, GenesisAccount};
pub use chain::{ControlError, MINE_BLOCKS_MAX, TIMESTAMP_MAX_S, UnwindError};
pub use event::{ChainEvent, NewBlock};
pub use follow::{
    BlockSource, FollowConfig, FollowPhase, FollowStatus, Follower, Next, SourceError, SourceHead,
    StatusHandle, spawn_follower,
};
pub use import::{BlockFault, IMPORT_MAX_BLOCKS, IMPORT_MAX_SIZE_BYTES, ImportError, Imported};
pub use mempool::{
    BySender, PoolConfig, PoolContent, PoolError, PoolStatus, PooledTransaction, Shortfall,
};
pub use node::{BlockMode, Head, Node, NodeConfig, OpenError, Role};
pub use ol_evm::{
    AccessListOutput, AccountOverride, BlockContext, BlockOverrides, BlockToSimulate, CallError,
    CallOutput, CallRequest, CallStatus, ExecuteError, Fault, Frame, FrameKind, FrameLog,
    FrameOptions, Header, LimitPassed, Overrides, Recovered, SimulateError, SimulatedBlock,
    SimulatedCall, StateReader, Step, StepOptions, StorageOverride, TouchedAccount, Trace,
    TraceError, TraceLimits, TraceParts, Transaction, TransactionReceipt, opcode_name,
};
pub use pending::{PendingBlock, PendingTransaction};
pub use query::{
    AccountProof, Block, BlockRef, FEE_HISTORY_MAX_BLOCKS, FeeHistory, LOG_BLOCKS_READ_MAX,
    LOG_RANGE_MAX_BLOCKS, LOGS_MAX, LogFilter, LogInBlock, PRIORITY_FEE_WEI, PROOF_SLOTS_MAX,
    QueryError, ReceiptInBlock, StorageProof, TraceConfig, TracedBlock, TracedTransaction,
    TransactionInBlock,
};
pub use signature::{BlockSigner, KeyError, block_signed_by, sequencer_of};
pub use store::StoreError;
pub use view::StateView;
pub use wire::{BLOCK_MAX_SIZE_BYTES, WireBlock};

// So that unit tests and integration tests can share helpers.
#[cfg(test)]
extern crate self as ol_node;

/// By how much the random tests do more than a quick run, from the environment
/// variable `OPENLEDGER_TEST_SCALE`.
#[cfg(test)]
fn test_scale() -> usize {
    match std::env::var("OPENLEDGER_TEST_SCALE") {
        Ok(scale) => scale.parse().expect("OPENLEDGER_TEST_SCALE is a number"),
        Err(_) => 1,
    }
}
