//! The access list that a message would profit from (EIP-2930).

use std::collections::BTreeSet;

use alloy_eips::eip2930::AccessList;

use crate::call::{Attempt, CallError, CallRequest, CallStatus};
use crate::trace::{Accesses, Budget, Recorder, TraceError, TraceLimits};
use crate::{BlockContext, StateReader};

/// Most runs until the list must be at rest. Each run that changes the list
/// makes it longer, so a message needs many only if it means to.
const RUNS_MAX: usize = 64;

/// What a message touches, and what it takes with that as its access list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AccessListOutput {
    /// Accounts and slots, ascending; without those that are warm anyway.
    pub access_list: AccessList,
    /// Gas used with this list.
    pub gas_used: u64,
    /// Why the message fails, if it does.
    pub error: Option<String>,
}

/// Tries a message until its access list is what it touches.
///
/// The sender, the receiver, the precompiles and the accounts that delegate in
/// the message are warm without a list, and are on it only with slots. What
/// the request lists stays on it.
///
/// # Errors
/// As [`crate::trace_call`]; [`CallError::Invalid`] if the list does not come to
/// rest.
///
/// # Source
/// `eth_createAccessList` as geth answers it.
pub fn create_access_list<S: StateReader>(
    state: &S,
    context: &BlockContext,
    request: &CallRequest,
    limits: &TraceLimits,
) -> Result<AccessListOutput, TraceError> {
    let excluded = excluded(state, context, request)?;
    let mut request = request.clone();
    for _ in 0..RUNS_MAX {
        let mut recorder = Recorder::new(Budget::new(limits.clone()));
        recorder.budget.check_time();
        recorder.accesses = Some(Accesses::new(excluded.clone(), &request.access_list));
        let mut attempt = Attempt::new(state, context, &request)?;
        let executed = attempt.run(attempt.gas_limit(), Some(&mut recorder));
        if let Some(limit) = recorder.budget.passed() {
            return Err(limit.into());
        }
        let executed = executed?;
        let found = recorder.accesses.take().map(Accesses::into_list);
        let found = found.unwrap_or_default();
        if found == request.access_list {
            let gas_used = executed.result.tx_gas_used();
            let error = match crate::call::ending(executed.result).0 {
                CallStatus::Success => None,
                CallStatus::Revert => Some("execution reverted".to_owned()),
                CallStatus::Halt { reason, .. } => Some(reason),
            };
            return Ok(AccessListOutput {
                access_list: found,
                gas_used,
                error,
            });
        }
        request.access_list = found;
    }
    Err(CallError::Invalid {
        reason: format!("the access list changes with every one of {RUNS_MAX} runs"),
    }
    .into())
}

fn excluded<S: StateReader>(
    state: &S,
    context: &BlockContext,
    request: &CallRequest,
) -> Result<BTreeSet<alloy_primitives::Address>, CallError> {
    let mut attempt = Attempt::new(state, context, request)?;
    let mut excluded = attempt.precompiles();
    excluded.insert(request.from);
    excluded.insert(match request.to {
        Some(to) => to,
        None => request.from.create(attempt.account(request.from)?.nonce),
    });
    let authorities = request.authorization_list.iter();
    excluded.extend(authorities.filter_map(|signed| signed.recover_authority().ok()));
    Ok(excluded)
}
