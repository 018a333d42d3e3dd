//! Block execution with the attribution precompiles: a pure function.
//!
//! Owns the rules by which a state, a block context and transactions become
//! receipts and a new state. Nothing here has a clock, randomness, I/O, floats
//! or an order that depends on a hash map: the same input gives the same bytes
//! on every machine.
//!
//! # Rules
//! OP Stack execution at *Jovian* (the Prague EVM), active from genesis: the
//! newest stable fork of the pinned set, and one that runs without an
//! L1-attributes transaction (absent L1 parameters read as zero, so the L1,
//! operator and data-footprint fees are zero). Headers follow Ethereum: the
//! base fee is EIP-1559 with Ethereum's constants, and `extraData` is empty.
//!
//! The base fee and the tip go to the OP Stack's vault addresses. What EIP-6780
//! would burn (a contract that destroys itself in the transaction that made it,
//! while it holds coins) goes to the base-fee vault too, so the sum of all
//! balances never changes.
//!
//! # Map
//! - [`StateReader`] and [`StateDiff`]: the only view of a state database.
//! - [`BlockBuilder`]: a block that is made transaction by transaction;
//!   [`execute_block`], [`build_block`]: all at once, [`Execution`] out.
//! - [`call`], [`estimate_gas`], [`create_access_list`]: one message against a
//!   state, nothing kept.
//! - [`trace_block`], [`trace_call`]: what runs, recorded; [`TraceParts`] says what of it.
//! - [`simulate`]: blocks that are not real.
//! - [`header`]: base fee, sealing, the genesis header.
//! - [`precompiles`]: `POA_SCORE`, `POA_SHARES`, `OPEN_TRANSFER`.
//! - [`factory`]: the one place where an EVM is made, so that execution, calls
//!   and tracing cannot differ.
//!
//! The EVM crates stay behind this crate: nothing of revm is in its interface
//! except [`factory`], for tracers.

pub mod factory;
pub mod header;
pub mod precompiles;

mod access_list;
mod block;
mod call;
mod intrinsic;
mod overlay;
mod rules;
mod simulate;
mod state;
mod stateless;
mod trace;
mod transaction;
mod validate;

pub use access_list::{AccessListOutput, create_access_list};
pub use alloy_consensus::{BlockBody, Header, transaction::Recovered};
pub use alloy_hardforks::EthereumHardfork;
pub use block::{
    BlockBuilder, BlockContext, BuiltBlock, Closing, ExecuteError, Execution, LeftOut,
    TransactionOutcome, build_block, execute_block, execute_block_with,
};
pub use call::{CallError, CallOutput, CallRequest, CallStatus, call, estimate_gas};
pub use intrinsic::{INIT_CODE_MAX_SIZE_BYTES, intrinsic_gas};
pub use overlay::{AccountOverride, BlockOverrides, Overrides, StorageOverride};
pub use rules::{BlockBlobs, BlockRules, EthereumBlock, EthereumRules, Rules, RulesError};
pub use simulate::{
    BlockToSimulate, SIMULATED_BLOCKS_MAX, SimulateError, SimulateOptions, SimulatedBlock,
    SimulatedCall, simulate,
};
pub use state::{AccountChange, AccountState, MemoryState, StateDiff, StateReader};
pub use stateless::{StatelessError, check_transaction, recover_sender};
pub use trace::{
    Fault, Frame, FrameKind, FrameLog, FrameOptions, LimitPassed, Step, StepOptions,
    TouchedAccount, Trace, TraceError, TraceLimits, TraceParts, opcode_name, trace_block,
    trace_call,
};
pub use transaction::{Transaction, TransactionReceipt, TransactionType};
pub use validate::{
    Ancestor, BlockError, OMMER_GENERATIONS_MAX, validate_body, validate_execution,
    validate_header, validate_ommers, validate_terminal_difficulty,
};

use alloy_primitives::{Address, address};

/// Gas of one block, from genesis on.
pub const BLOCK_GAS_LIMIT: u64 = 60_000_000;

/// Where the base fee of every transaction goes.
pub const BASE_FEE_VAULT: Address = address!("0x4200000000000000000000000000000000000019");

/// Where the priority fee of every transaction goes; the beneficiary of every block.
pub const SEQUENCER_FEE_VAULT: Address = address!("0x4200000000000000000000000000000000000011");

/// The ERC-20 façade over the native balance, the only caller of `OPEN_TRANSFER`.
pub const OPEN_FACADE: Address = address!("0x4F50454E00000000000000000000000000000001");
