//! Transactions and messages run once more, with a record of what they do.
//!
//! A transaction is replayed on the way that it was executed on: the parent's
//! state, the changes that open its block, the transactions before it. A
//! recorder only looks, so what a replay leaves is what its receipt says. One
//! recorder serves every kind of trace, each a part of it that is on or off;
//! the shapes that JSON-RPC gives them are made elsewhere.
//!
//! What is recorded has limits ([`TraceLimits`]): past one the EVM is stopped
//! and there is an error, never half a trace. All work is linear in the gas
//! that the transaction used.

mod access;
mod budget;
mod fault;
mod frame;
mod recorder;
mod step;
mod touched;
mod transfer;

use std::collections::BTreeMap;
use std::ops::Range;

use alloy_consensus::transaction::Recovered;
use alloy_primitives::{Address, Bytes, Log, Selector, U256};
use op_revm::OpHaltReason;
use revm::Database;
use revm::context_interface::result::ResultAndState;

use crate::call::{Attempt, CallError, CallRequest, CallStatus};
use crate::{BASE_FEE_VAULT, BlockBuilder, BlockContext, ExecuteError, StateReader, Transaction};

pub use budget::{LimitPassed, TraceLimits};
pub use fault::{Fault, opcode_name};
pub use frame::{Frame, FrameKind, FrameLog};
pub use step::{Step, StepOptions};
pub use touched::TouchedAccount;

pub(crate) use access::Accesses;
pub(crate) use budget::Budget;
pub(crate) use recorder::Recorder;

use frame::Frames;
use step::Steps;
use transfer::TransferLogs;

/// What to record.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct TraceParts {
    /// Calls, creations and self-destructions.
    pub frames: Option<FrameOptions>,
    /// Single instructions.
    pub steps: Option<StepOptions>,
    /// How often each function selector was called.
    pub selectors: bool,
    /// The accounts and slots that were touched, before and after.
    pub touched: bool,
    /// The logs, with every transfer of native balance as one among them.
    pub transfers: bool,
}

/// What of the frames is recorded.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct FrameOptions {
    /// The transaction's own frame alone.
    pub only_top: bool,
    /// Logs too.
    pub with_logs: bool,
}

/// What a transaction or message did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Trace {
    /// How it ended.
    pub status: CallStatus,
    /// Return data, revert data, or the code of the new contract.
    pub output: Bytes,
    /// Gas used after refunds; what the receipt says.
    pub gas_used: u64,
    /// The gas limit.
    pub gas_limit: u64,
    /// Frames in the order in which they began; the first is the transaction's.
    pub frames: Vec<Frame>,
    /// Instructions in order.
    pub steps: Vec<Step>,
    /// Calls by selector and by length of the arguments in bytes.
    pub selectors: BTreeMap<(Selector, usize), u64>,
    /// Accounts that were touched.
    pub touched: BTreeMap<Address, TouchedAccount>,
    /// Logs, with those that stand for transfers.
    pub transfers: Vec<Log>,
}

/// Why there is no trace.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TraceError {
    /// The message cannot be sent as it is.
    #[error(transparent)]
    Call(#[from] CallError),
    /// A limit of [`TraceLimits`] was passed.
    #[error(transparent)]
    Limit(#[from] LimitPassed),
    /// The block could not be replayed.
    #[error(transparent)]
    Execute(#[from] ExecuteError),
}

/// Tries a message as [`crate::call`] does, and records it.
///
/// # Errors
/// As [`crate::call`], and [`TraceError::Limit`].
pub fn trace_call<S: StateReader>(
    state: &S,
    context: &BlockContext,
    request: &CallRequest,
    parts: &TraceParts,
    limits: &TraceLimits,
) -> Result<Trace, TraceError> {
    let mut recorder = parts.recorder(Budget::new(limits.clone()), 0);
    let mut attempt = Attempt::new(state, context, request)?;
    let gas_limit = attempt.gas_limit();
    let executed = attempt.run(gas_limit, Some(&mut recorder));
    // A limit that was passed makes the run fail: it is the reason, not the failure.
    if let Some(limit) = recorder.budget.passed() {
        return Err(limit.into());
    }
    let executed = executed?;
    let trace = parts
        .finish(recorder, attempt.database(), &executed, gas_limit)
        .map_err(CallError::internal)?;
    Ok(trace.0?)
}

/// Replays a block and records those of its transactions that `positions` has.
/// The ones before are only executed, the ones behind not at all.
///
/// # Errors
/// [`TraceError::Limit`]; [`TraceError::Execute`] if the block cannot be
/// executed on this state.
pub fn trace_block<S: StateReader>(
    state: S,
    context: &BlockContext,
    transactions: &[Recovered<Transaction>],
    positions: Range<usize>,
    parts: &TraceParts,
    limits: &TraceLimits,
) -> Result<Vec<Trace>, TraceError> {
    let mut builder = BlockBuilder::new(state, context)?;
    let mut budget = Budget::new(limits.clone());
    let mut traces = Vec::new();
    let mut n_logs_before = 0;
    let wanted = transactions.iter().enumerate().take(positions.end);
    for (position, transaction) in wanted {
        budget.check_time();
        if let Some(limit) = budget.passed() {
            return Err(limit.into());
        }
        let outcome = if positions.contains(&position) {
            let place = (position, n_logs_before);
            let (outcome, trace, left) = builder.trace(transaction, parts, place, budget)?;
            budget = left;
            traces.push(trace);
            outcome
        } else {
            builder
                .execute(transaction)?
                .map_err(|left_out| left_out.at(position))?
        };
        n_logs_before += outcome.receipt.logs().len() as u64;
    }
    Ok(traces)
}

impl Trace {
    /// Adds what the block gives to the base-fee vault because the transaction
    /// destroyed it.
    pub(crate) fn add_burnt(&mut self, burnt_wei: u128) {
        let vault = self.touched.get_mut(&BASE_FEE_VAULT);
        if let Some(account) = vault.and_then(|vault| vault.after.as_mut()) {
            account.balance_wei += U256::from(burnt_wei);
        }
    }
}

impl TraceParts {
    /// A recorder of these parts, for a transaction of a block that has
    /// `n_logs_before` logs already.
    pub(crate) fn recorder(&self, budget: Budget, n_logs_before: u64) -> Recorder {
        let mut recorder = Recorder::new(budget);
        recorder.frames = self
            .frames
            .map(|options| Frames::new(options.only_top, options.with_logs, n_logs_before));
        recorder.steps = self.steps.map(Steps::new);
        recorder.selectors = self.selectors.then(BTreeMap::new);
        recorder.transfers = self.transfers.then(TransferLogs::default);
        recorder
    }

    /// The trace of what was executed. `before` is the state before it.
    /// Returns the budget for the next transaction too.
    pub(crate) fn finish<D: Database, H: Clone + Into<OpHaltReason>>(
        &self,
        recorder: Recorder,
        before: &mut D,
        executed: &ResultAndState<H>,
        gas_limit: u64,
    ) -> Result<(Result<Trace, LimitPassed>, Budget), D::Error> {
        let Recorder {
            mut budget,
            frames,
            steps,
            selectors,
            transfers,
            ..
        } = recorder;
        let touched = if self.touched {
            touched::compare(before, &executed.state, &mut budget)?
        } else {
            BTreeMap::new()
        };
        if let Some(limit) = budget.passed() {
            return Ok((Err(limit), budget));
        }
        let (status, output) =
            crate::call::ending(executed.result.clone().map_haltreason(Into::into));
        let trace = Trace {
            status,
            output,
            gas_used: executed.result.tx_gas_used(),
            gas_limit,
            frames: frames.map(Frames::finish).unwrap_or_default(),
            steps: steps.map(|steps| steps.done).unwrap_or_default(),
            selectors: selectors.unwrap_or_default(),
            touched,
            transfers: transfers.map(TransferLogs::into_logs).unwrap_or_default(),
        };
        Ok((Ok(trace), budget))
    }
}

#[cfg(test)]
mod tests;
