//! Errors as geth numbers and words them.

use alloy_primitives::{B256, Bytes};
use alloy_sol_types::{Panic, Revert, SolError};
use jsonrpsee::types::ErrorObjectOwned;
use jsonrpsee::types::error::{INTERNAL_ERROR_CODE, INVALID_PARAMS_CODE};
use ol_node::{CallError, ExecuteError, QueryError, StoreError, SubmitError, TraceError};

/// The chain refuses what was asked.
const SERVER_ERROR_CODE: i32 = -32_000;

/// A limit was passed (EIP-1474).
const LIMIT_EXCEEDED_CODE: i32 = -32_005;

/// The resource is there but not now (EIP-1474); geth's code for a time-out.
const UNAVAILABLE_CODE: i32 = -32_002;

/// The transaction was not executed in time (EIP-7966).
const NOT_EXECUTED_CODE: i32 = 4;

/// A call reverted; the data says how.
const REVERTED_CODE: i32 = 3;

pub(super) fn invalid_params(message: impl Into<String>) -> ErrorObjectOwned {
    ErrorObjectOwned::owned(INVALID_PARAMS_CODE, message, None::<()>)
}

pub(super) fn refused(message: impl Into<String>) -> ErrorObjectOwned {
    ErrorObjectOwned::owned(SERVER_ERROR_CODE, message, None::<()>)
}

/// Too many requests at one time.
pub(super) fn busy() -> ErrorObjectOwned {
    limit_exceeded("too many requests are waiting, try again")
}

/// The answer took longer than a request may.
pub(super) fn timed_out() -> ErrorObjectOwned {
    ErrorObjectOwned::owned(UNAVAILABLE_CODE, "request timed out", None::<()>)
}

/// EIP-7966: the transaction was taken and has no receipt yet.
pub(super) fn not_executed_yet(hash: B256, waited_ms: u64) -> ErrorObjectOwned {
    let message =
        format!("The transaction was added to the mempool but wasn't processed in {waited_ms} ms.");
    ErrorObjectOwned::owned(NOT_EXECUTED_CODE, message, Some(hash))
}

pub(super) fn limit_exceeded(message: impl Into<String>) -> ErrorObjectOwned {
    ErrorObjectOwned::owned(LIMIT_EXCEEDED_CODE, message, None::<()>)
}

/// The node itself failed: the caller is told so, the log is told why.
pub(super) fn internal(error: &(dyn std::error::Error + 'static)) -> ErrorObjectOwned {
    tracing::error!(error = %chain(error), "a JSON-RPC call failed");
    ErrorObjectOwned::owned(INTERNAL_ERROR_CODE, error.to_string(), None::<()>)
}

/// An error and its causes.
fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    let mut chain = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        chain = format!("{chain}: {cause}");
        source = cause.source();
    }
    chain
}

/// A call that was undone, with what it said.
pub(super) fn reverted(output: &Bytes) -> ErrorObjectOwned {
    let reason = if let Ok(revert) = Revert::abi_decode(output) {
        format!("execution reverted: {}", revert.reason)
    } else if let Ok(panic) = Panic::abi_decode(output) {
        format!("execution reverted: {panic}")
    } else {
        "execution reverted".to_owned()
    };
    ErrorObjectOwned::owned(REVERTED_CODE, reason, Some(output))
}

pub(super) fn query(error: QueryError) -> ErrorObjectOwned {
    match error {
        QueryError::UnknownBlock => refused("header not found"),
        QueryError::StatePruned { .. }
        | QueryError::ProofTooOld { .. }
        | QueryError::TooManySlots => refused(error.to_string()),
        QueryError::Range { .. } => invalid_params(error.to_string()),
        QueryError::TooManyBlocks { .. }
        | QueryError::TooManyLogs { .. }
        | QueryError::Store(StoreError::Overloaded) => limit_exceeded(error.to_string()),
        QueryError::TraceLimit(_) => limit_exceeded(error.to_string()),
        QueryError::Simulate(error) => super::simulate::error(&error),
        QueryError::GenesisTrace => refused(error.to_string()),
        QueryError::Trace(TraceError::Execute(ExecuteError::Invalid { .. })) => {
            refused(chain(&error))
        }
        QueryError::Call(CallError::Reverted { output }) => reverted(&output),
        QueryError::Call(
            CallError::Invalid { .. } | CallError::Halted { .. } | CallError::OutOfReach { .. },
        ) => refused(error.to_string()),
        other => internal(&other),
    }
}

pub(super) fn submit(error: SubmitError) -> ErrorObjectOwned {
    match error {
        SubmitError::Malformed { .. } => invalid_params(error.to_string()),
        SubmitError::Overloaded => limit_exceeded(error.to_string()),
        SubmitError::Storage(_) => internal(&error),
        other => refused(other.to_string()),
    }
}
