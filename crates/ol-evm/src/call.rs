//! One message against a state, of which nothing is kept.

use alloy_eips::eip2930::AccessList;
use alloy_eips::eip7702::SignedAuthorization;
use alloy_evm::{Evm, EvmFactory, InvalidTxError};
use alloy_op_evm::OpTx;
use alloy_primitives::{Address, Bytes, KECCAK256_EMPTY, TxKind, U256};
use op_revm::OpTransaction;
use revm::context::TxEnv;
use revm::context_interface::either::Either;
use revm::context_interface::result::{EVMError, ExecutionResult, HaltReason};
use revm::database::State;

use crate::factory::OpenEvmFactory;
use crate::state::Reader;
use crate::{BlockContext, StateReader};

/// Gas of a transfer to an account without code.
const TRANSFER_GAS: u64 = 21_000;

/// What a value transfer leaves the callee at least (the call stipend).
const CALL_STIPEND_GAS: u64 = 2_300;

/// A message to try.
#[derive(Debug, Clone, Default)]
pub struct CallRequest {
    /// Sender; need not have a key, and may be a contract.
    pub from: Address,
    /// Receiver; `None` makes a contract.
    pub to: Option<Address>,
    /// Most gas to use; the block's limit if it is `None` or above that.
    pub gas_limit: Option<u64>,
    /// Most to pay for one unit of gas. `None` or 0 costs nothing and waives
    /// the base fee.
    pub max_fee_wei: Option<u128>,
    /// Tip for one unit of gas, at most.
    pub max_priority_fee_wei: Option<u128>,
    /// Native balance sent along.
    pub value_wei: U256,
    /// Calldata, or code that makes the contract.
    pub input: Bytes,
    /// Accounts and slots that are warm.
    pub access_list: AccessList,
    /// Code delegations to set first (EIP-7702).
    pub authorization_list: Vec<SignedAuthorization>,
}

/// How a message ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CallStatus {
    /// It ran to its end.
    Success,
    /// It was undone by `REVERT`, or by a precompile.
    Revert,
    /// It was undone and took all gas, for this reason.
    Halt {
        /// What the EVM says.
        reason: String,
        /// Whether more gas might help.
        is_out_of_gas: bool,
    },
}

/// What a message did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CallOutput {
    /// How it ended.
    pub status: CallStatus,
    /// Return data, revert data, or the code of the new contract.
    pub output: Bytes,
    /// Gas used after refunds.
    pub gas_used: u64,
    /// Gas needed on the way, before refunds.
    pub gas_spent: u64,
}

/// Why a message was not tried, or gas not estimated.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CallError {
    /// The message cannot be sent as it is.
    #[error("{reason}")]
    Invalid {
        /// Why.
        reason: String,
    },
    /// The message reverts with any gas.
    #[error("execution reverted")]
    Reverted {
        /// Revert data.
        output: Bytes,
    },
    /// The message fails even with the most gas it may have.
    #[error("gas required exceeds allowance ({gas_limit}): {reason}")]
    OutOfReach {
        /// The most gas that was tried.
        gas_limit: u64,
        /// What the EVM says.
        reason: String,
    },
    /// The state could not be read.
    #[error("the call could not be executed")]
    Internal(#[source] Box<dyn std::error::Error + Send + Sync>),
}

/// Tries a message at the start of the block that `context` describes.
///
/// # Errors
/// [`CallError::Invalid`] if it cannot be sent (not enough balance, fee below
/// the base fee), [`CallError::Internal`] if the state cannot be read. A
/// message that reverts or halts is no error.
pub fn call<S: StateReader>(
    state: &S,
    context: &BlockContext,
    request: &CallRequest,
) -> Result<CallOutput, CallError> {
    let mut database = State::builder().with_database_ref(Reader(state)).build();
    let gas_limit = request
        .gas_limit
        .map_or(context.gas_limit, |limit| limit.min(context.gas_limit));
    try_once(&mut database, context, request, gas_limit)
}

/// The least gas limit, within 1/64, with which a message succeeds at the
/// start of the block that `context` describes.
///
/// # Errors
/// As [`call`]; [`CallError::Reverted`] and [`CallError::OutOfReach`] if it
/// fails with the most gas it may have.
pub fn estimate_gas<S: StateReader>(
    state: &S,
    context: &BlockContext,
    request: &CallRequest,
) -> Result<u64, CallError> {
    let mut database = State::builder().with_database_ref(Reader(state)).build();
    let cap = gas_cap(state, context, request)?;

    let is_plain_transfer = request.input.is_empty()
        && request.access_list.is_empty()
        && request.authorization_list.is_empty();
    if let Some(to) = request.to
        && is_plain_transfer
        && cap >= TRANSFER_GAS
        && !has_code(state, to)?
    {
        let output = try_once(&mut database, context, request, TRANSFER_GAS)?;
        if output.status == CallStatus::Success {
            return Ok(TRANSFER_GAS);
        }
    }

    let most = try_once(&mut database, context, request, cap)?;
    match most.status {
        CallStatus::Success => {}
        CallStatus::Revert => {
            return Err(CallError::Reverted {
                output: most.output,
            });
        }
        CallStatus::Halt { reason, .. } => {
            return Err(CallError::OutOfReach {
                gas_limit: cap,
                reason,
            });
        }
    }

    // The gas used is a lower bound. What usually suffices is the gas spent
    // before refunds, plus the 1/64 that a call keeps back at every depth.
    let mut too_little = most.gas_used.saturating_sub(1);
    let mut enough = cap;
    let likely = (most.gas_spent + CALL_STIPEND_GAS)
        .saturating_mul(64)
        .div_ceil(63);
    if likely < enough {
        if succeeds(&mut database, context, request, likely)? {
            enough = likely;
        } else {
            too_little = likely;
        }
    }
    while enough - too_little > (enough / 64).max(1) {
        let middle = too_little + (enough - too_little) / 2;
        if succeeds(&mut database, context, request, middle)? {
            enough = middle;
        } else {
            too_little = middle;
        }
    }
    Ok(enough)
}

/// The most gas a message may have: the block's, the request's, and what the
/// sender can pay for at its price.
fn gas_cap<S: StateReader>(
    state: &S,
    context: &BlockContext,
    request: &CallRequest,
) -> Result<u64, CallError> {
    let cap = request
        .gas_limit
        .map_or(context.gas_limit, |limit| limit.min(context.gas_limit));
    let price_wei = request.max_fee_wei.unwrap_or_default();
    if price_wei == 0 {
        return Ok(cap);
    }
    let balance_wei = state
        .account(request.from)
        .map_err(|error| CallError::Internal(error.into()))?
        .unwrap_or_default()
        .balance_wei;
    let for_gas_wei =
        balance_wei
            .checked_sub(request.value_wei)
            .ok_or_else(|| CallError::Invalid {
                reason: "insufficient funds for transfer".to_owned(),
            })?;
    let affordable = for_gas_wei / U256::from(price_wei);
    Ok(u64::try_from(affordable).map_or(cap, |affordable| affordable.min(cap)))
}

fn has_code<S: StateReader>(state: &S, address: Address) -> Result<bool, CallError> {
    let account = state
        .account(address)
        .map_err(|error| CallError::Internal(error.into()))?;
    Ok(account.is_some_and(|account| account.code_hash != KECCAK256_EMPTY))
}

/// Whether a message succeeds with this gas. Below the intrinsic gas it cannot
/// even be sent; that is a no as well.
fn succeeds<D: revm::Database + std::fmt::Debug>(
    database: &mut State<D>,
    context: &BlockContext,
    request: &CallRequest,
    gas_limit: u64,
) -> Result<bool, CallError> {
    match try_once(database, context, request, gas_limit) {
        Ok(output) => Ok(output.status == CallStatus::Success),
        Err(CallError::Invalid { .. }) => Ok(false),
        Err(error) => Err(error),
    }
}

fn try_once<D: revm::Database + std::fmt::Debug>(
    database: &mut State<D>,
    context: &BlockContext,
    request: &CallRequest,
    gas_limit: u64,
) -> Result<CallOutput, CallError> {
    let mut env = context.evm_env();
    env.cfg_env.disable_nonce_check = true;
    // Contracts may be the sender of a call that is only tried.
    env.cfg_env.disable_eip3607 = true;
    if request.max_fee_wei.unwrap_or_default() == 0 {
        env.block_env.basefee = 0;
    }
    let transaction = transaction(context, request, gas_limit)?;
    let mut evm = OpenEvmFactory::default().create_evm(database, env);
    let executed = evm.transact_raw(transaction).map_err(|error| match error {
        EVMError::Transaction(error) => CallError::Invalid {
            reason: match error.as_invalid_tx_err() {
                Some(invalid) => crate::block::refusal(invalid),
                None => error.to_string(),
            },
        },
        other => CallError::Internal(Box::new(other)),
    })?;
    let gas_used = executed.result.tx_gas_used();
    let gas_spent = executed.result.gas().total_gas_spent();
    let (status, output) = match executed.result {
        ExecutionResult::Success { output, .. } => (CallStatus::Success, output.into_data()),
        ExecutionResult::Revert { output, .. } => (CallStatus::Revert, output),
        ExecutionResult::Halt { reason, .. } => {
            let is_out_of_gas =
                matches!(reason, op_revm::OpHaltReason::Base(HaltReason::OutOfGas(_)));
            let status = CallStatus::Halt {
                reason: format!("{reason:?}"),
                is_out_of_gas,
            };
            (status, Bytes::new())
        }
    };
    Ok(CallOutput {
        status,
        output,
        gas_used,
        gas_spent,
    })
}

fn transaction(
    context: &BlockContext,
    request: &CallRequest,
    gas_limit: u64,
) -> Result<OpTx, CallError> {
    let tx_type = if !request.authorization_list.is_empty() {
        4
    } else if request.max_priority_fee_wei.is_some() {
        2
    } else {
        u8::from(!request.access_list.is_empty())
    };
    let authorizations = request
        .authorization_list
        .iter()
        .cloned()
        .map(Either::Left)
        .collect();
    let base = TxEnv::builder()
        .tx_type(Some(tx_type))
        .caller(request.from)
        .gas_limit(gas_limit)
        .gas_price(request.max_fee_wei.unwrap_or_default())
        .gas_priority_fee(request.max_priority_fee_wei.or((tx_type >= 2).then_some(0)))
        .kind(request.to.map_or(TxKind::Create, TxKind::Call))
        .value(request.value_wei)
        .data(request.input.clone())
        .chain_id(Some(context.chain_id))
        .access_list(request.access_list.clone())
        .authorization_list(authorizations)
        .build()
        .map_err(|error| CallError::Invalid {
            reason: format!("{error:?}"),
        })?;
    // Nothing will be posted for a call that is only tried: no bytes, no fee for them.
    Ok(OpTx(OpTransaction {
        base,
        enveloped_tx: Some(Bytes::new()),
        deposit: Default::default(),
    }))
}

#[cfg(test)]
mod tests;
