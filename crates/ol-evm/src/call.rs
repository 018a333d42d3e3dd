//! One message against a state, of which nothing is kept.

use std::collections::BTreeSet;

use alloy_eips::eip2930::AccessList;
use alloy_eips::eip7702::SignedAuthorization;
use alloy_evm::{Evm, EvmEnv, EvmFactory, InvalidTxError};
use alloy_op_evm::OpTx;
use alloy_primitives::{Address, Bytes, KECCAK256_EMPTY, TxKind, U256};
use op_revm::{OpHaltReason, OpSpecId, OpTransaction};
use revm::bytecode::Bytecode;
use revm::context::TxEnv;
use revm::context_interface::either::Either;
use revm::context_interface::result::{EVMError, ExecutionResult, HaltReason, ResultAndState};
use revm::database::{State, WrapDatabaseRef};

use crate::factory::OpenEvmFactory;
use crate::overlay::{Overlay, Overrides};
use crate::state::Reader;
use crate::trace::Recorder;
use crate::{AccountState, BlockContext, StateReader};

/// Gas of a transfer to an account without code.
const TRANSFER_GAS: u64 = 21_000;

/// What a value transfer leaves the callee at least (the call stipend).
const CALL_STIPEND_GAS: u64 = 2_300;

/// How a refusal begins when the gas does not pay for the message's own bytes.
const INTRINSIC_GAS_TOO_LOW: &str = "intrinsic gas too low";

/// A message to try.
#[derive(Debug, Clone, Default)]
pub struct CallRequest {
    /// Sender; need not have a key, and may be a contract.
    pub from: Address,
    /// Receiver; `None` makes a contract.
    pub to: Option<Address>,
    /// Nonce; that of the account if it is `None`. A message that is only tried
    /// may have any.
    pub nonce: Option<u64>,
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
    /// What is to be different from the state and the block.
    pub overrides: Overrides,
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
    /// The message fails, and not for want of gas.
    #[error("{reason}")]
    Halted {
        /// What the EVM says.
        reason: String,
    },
    /// The message runs out of gas even with the most that it may have.
    #[error("gas required exceeds allowance ({gas_limit})")]
    OutOfReach {
        /// The most gas that was tried.
        gas_limit: u64,
    },
    /// The state could not be read.
    #[error("the call could not be executed")]
    Internal(#[source] Box<dyn std::error::Error + Send + Sync>),
}

impl CallError {
    pub(crate) fn internal(error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        Self::Internal(error.into())
    }

    fn invalid(reason: impl Into<String>) -> Self {
        Self::Invalid {
            reason: reason.into(),
        }
    }
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
    let mut attempt = Attempt::new(state, context, request)?;
    attempt.output(attempt.gas_limit())
}

/// The least gas limit, within 1/64, with which a message succeeds at the
/// start of the block that `context` describes.
///
/// # Errors
/// As [`call`]; [`CallError::Reverted`], [`CallError::Halted`] and
/// [`CallError::OutOfReach`] if it fails with the most gas it may have.
///
/// # Source
/// The search is geth's: a plain transfer is tried with 21,000 gas, then the
/// most gas there may be, then what the last try spent with the 1/64 that a
/// call keeps back at every depth, then a bisection that leans to the low side.
pub fn estimate_gas<S: StateReader>(
    state: &S,
    context: &BlockContext,
    request: &CallRequest,
) -> Result<u64, CallError> {
    let mut attempt = Attempt::new(state, context, request)?;
    let cap = attempt.affordable_gas()?;

    if attempt.is_plain_transfer()? && attempt.succeeds(TRANSFER_GAS.min(cap))? {
        return Ok(TRANSFER_GAS);
    }

    let most = match attempt.output(cap) {
        // The gas that can be paid for does not even begin the message.
        Err(CallError::Invalid { reason }) if reason.starts_with(INTRINSIC_GAS_TOO_LOW) => {
            return Err(CallError::OutOfReach { gas_limit: cap });
        }
        other => other?,
    };
    match most.status {
        CallStatus::Success => {}
        CallStatus::Revert => {
            return Err(CallError::Reverted {
                output: most.output,
            });
        }
        CallStatus::Halt {
            is_out_of_gas: true,
            ..
        } => return Err(CallError::OutOfReach { gas_limit: cap }),
        CallStatus::Halt { reason, .. } => return Err(CallError::Halted { reason }),
    }

    // The gas used is a lower bound.
    let mut too_little = most.gas_used.saturating_sub(1);
    let mut enough = cap;
    let likely = (most.gas_spent + CALL_STIPEND_GAS)
        .saturating_mul(64)
        .div_ceil(63);
    if likely < enough {
        if attempt.succeeds(likely)? {
            enough = likely;
        } else {
            too_little = likely;
        }
    }
    while enough - too_little > (enough / 64).max(1) {
        let middle = too_little + (enough - too_little) / 2;
        let middle = middle.min(too_little.saturating_mul(2).max(too_little + 1));
        if attempt.succeeds(middle)? {
            enough = middle;
        } else {
            too_little = middle;
        }
    }
    Ok(enough)
}

/// A message against a state, to be tried once or often. What it changes is
/// dropped each time.
pub(crate) struct Attempt<'a, S: StateReader> {
    database: AttemptState<'a, S>,
    context: &'a BlockContext,
    request: &'a CallRequest,
}

type AttemptState<'a, S> = State<WrapDatabaseRef<Reader<Overlay<&'a S>>>>;

impl<'a, S: StateReader> Attempt<'a, S> {
    pub(crate) fn new(
        state: &'a S,
        context: &'a BlockContext,
        request: &'a CallRequest,
    ) -> Result<Self, CallError> {
        check_codes(&request.overrides)?;
        let overlay =
            Overlay::with_overrides(state, &request.overrides).map_err(CallError::internal)?;
        let database = State::builder().with_database_ref(Reader(overlay)).build();
        Ok(Self {
            database,
            context,
            request,
        })
    }

    pub(crate) const fn database(&mut self) -> &mut AttemptState<'a, S> {
        &mut self.database
    }

    /// The most gas that the message may use: the request's, and no more than
    /// the block's.
    pub(crate) fn gas_limit(&self) -> u64 {
        let most = self.block_gas_limit();
        self.request.gas_limit.map_or(most, |limit| limit.min(most))
    }

    fn block_gas_limit(&self) -> u64 {
        let wanted = self.request.overrides.block.gas_limit;
        wanted.unwrap_or(self.context.gas_limit)
    }

    /// [`Attempt::gas_limit`], and no more than the sender can pay for. A
    /// limit below any message's is taken for none.
    fn affordable_gas(&self) -> Result<u64, CallError> {
        let cap = match self.request.gas_limit {
            Some(limit) if limit < TRANSFER_GAS => self.block_gas_limit(),
            _ => self.gas_limit(),
        };
        let price_wei = self.request.max_fee_wei.unwrap_or_default();
        if price_wei == 0 {
            return Ok(cap);
        }
        let account = self.account(self.request.from)?;
        let for_gas_wei = account
            .balance_wei
            .checked_sub(self.request.value_wei)
            .ok_or_else(|| CallError::invalid("insufficient funds for transfer"))?;
        let affordable = for_gas_wei / U256::from(price_wei);
        Ok(u64::try_from(affordable).map_or(cap, |affordable| affordable.min(cap)))
    }

    fn is_plain_transfer(&self) -> Result<bool, CallError> {
        let request = self.request;
        let is_plain = request.input.is_empty()
            && request.access_list.is_empty()
            && request.authorization_list.is_empty();
        match request.to {
            Some(to) if is_plain => Ok(self.account(to)?.code_hash == KECCAK256_EMPTY),
            _ => Ok(false),
        }
    }

    /// The precompiles of the block.
    pub(crate) fn precompiles(&mut self) -> BTreeSet<Address> {
        let env = env(self.context, &self.request.overrides);
        let evm = OpenEvmFactory::default().create_evm(&mut self.database, env);
        evm.precompiles().addresses().copied().collect()
    }

    /// An account as the message finds it.
    pub(crate) fn account(&self, address: Address) -> Result<AccountState, CallError> {
        let overlay = &self.database.database.0.0;
        let account = overlay.account(address).map_err(CallError::internal)?;
        Ok(account.unwrap_or_default())
    }

    /// Whether the message succeeds with this gas. Below the intrinsic gas it
    /// cannot even be sent; that is a no as well.
    fn succeeds(&mut self, gas_limit: u64) -> Result<bool, CallError> {
        match self.output(gas_limit) {
            Ok(output) => Ok(output.status == CallStatus::Success),
            Err(CallError::Invalid { .. }) => Ok(false),
            Err(error) => Err(error),
        }
    }

    fn output(&mut self, gas_limit: u64) -> Result<CallOutput, CallError> {
        let executed = self.run(gas_limit, None)?;
        let gas_used = executed.result.tx_gas_used();
        let gas_spent = executed.result.gas().total_gas_spent();
        let (status, output) = ending(executed.result);
        Ok(CallOutput {
            status,
            output,
            gas_used,
            gas_spent,
        })
    }

    /// Runs the message once, with somebody to look or without.
    pub(crate) fn run(
        &mut self,
        gas_limit: u64,
        recorder: Option<&mut Recorder>,
    ) -> Result<ResultAndState<OpHaltReason>, CallError> {
        let request = self.request;
        let mut env = env(self.context, &request.overrides);
        env.cfg_env.disable_nonce_check = true;
        // Contracts may be the sender of a call that is only tried.
        env.cfg_env.disable_eip3607 = true;
        if request.max_fee_wei.unwrap_or_default() == 0 {
            env.block_env.basefee = 0;
        }
        let transaction = transaction(self.context.chain_id, request, gas_limit)?;
        let factory = OpenEvmFactory::default();
        let executed = match recorder {
            None => factory
                .create_evm(&mut self.database, env)
                .transact_raw(transaction),
            Some(recorder) => factory
                .create_evm_with_inspector(&mut self.database, env, recorder)
                .transact_raw(transaction),
        };
        executed.map_err(|error| match error {
            EVMError::Transaction(error) => CallError::invalid(match error.as_invalid_tx_err() {
                Some(invalid) => crate::block::refusal(invalid),
                None => error.to_string(),
            }),
            other => CallError::internal(other),
        })
    }
}

/// The block that a message is tried in.
fn env(context: &BlockContext, overrides: &Overrides) -> EvmEnv<OpSpecId> {
    let mut env = context.evm_env();
    let wanted = &overrides.block;
    let block = &mut env.block_env;
    if let Some(number) = wanted.number {
        block.number = U256::from(number);
    }
    if let Some(timestamp_s) = wanted.timestamp_s {
        block.timestamp = U256::from(timestamp_s);
    }
    block.gas_limit = wanted.gas_limit.unwrap_or(block.gas_limit);
    block.basefee = wanted.base_fee_wei.unwrap_or(block.basefee);
    block.beneficiary = wanted.beneficiary.unwrap_or(block.beneficiary);
    block.prevrandao = wanted.prevrandao.or(block.prevrandao);
    env
}

/// Codes that the EVM could not load: those that begin as a delegation and are
/// none (EIP-7702).
pub(crate) fn check_codes(overrides: &Overrides) -> Result<(), CallError> {
    for (address, account) in &overrides.accounts {
        if let Some(code) = &account.code
            && Bytecode::new_raw_checked(code.clone()).is_err()
        {
            return Err(CallError::invalid(format!(
                "the code for {address} is malformed"
            )));
        }
    }
    Ok(())
}

/// How a run ended, and what it returned.
pub(crate) fn ending(result: ExecutionResult<OpHaltReason>) -> (CallStatus, Bytes) {
    match result {
        ExecutionResult::Success { output, .. } => (CallStatus::Success, output.into_data()),
        ExecutionResult::Revert { output, .. } => (CallStatus::Revert, output),
        ExecutionResult::Halt { reason, .. } => {
            let status = CallStatus::Halt {
                is_out_of_gas: matches!(reason, OpHaltReason::Base(HaltReason::OutOfGas(_))),
                reason: halt_reason(&reason),
            };
            (status, Bytes::new())
        }
    }
}

/// Why a run was undone, in geth's words.
fn halt_reason(reason: &OpHaltReason) -> String {
    let OpHaltReason::Base(reason) = reason else {
        return format!("{reason:?}");
    };
    let words = match reason {
        HaltReason::OutOfGas(_) => "out of gas",
        HaltReason::OpcodeNotFound | HaltReason::NotActivated => "invalid opcode",
        HaltReason::InvalidFEOpcode => "invalid opcode: INVALID",
        HaltReason::InvalidJump => "invalid jump destination",
        HaltReason::StackUnderflow => "stack underflow",
        HaltReason::StackOverflow => "stack limit reached 1024 (1023)",
        HaltReason::OutOfOffset => "return data out of bounds",
        HaltReason::CreateCollision => "contract address collision",
        HaltReason::CreateContractSizeLimit => "max code size exceeded",
        HaltReason::CreateContractStartingWithEF => "invalid code: must not begin with 0xef",
        HaltReason::CreateInitCodeSizeLimit => "max initcode size exceeded",
        HaltReason::StateChangeDuringStaticCall | HaltReason::CallNotAllowedInsideStatic => {
            "write protection"
        }
        HaltReason::NonceOverflow => "nonce uint64 overflow",
        HaltReason::OverflowPayment | HaltReason::OutOfFunds => "insufficient balance for transfer",
        HaltReason::CallTooDeep => "max call depth exceeded",
        HaltReason::PrecompileError => "precompiled failed",
        HaltReason::PrecompileErrorWithContext(why) => {
            return format!("precompiled failed: {why}");
        }
    };
    words.to_owned()
}

fn transaction(chain_id: u64, request: &CallRequest, gas_limit: u64) -> Result<OpTx, CallError> {
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
        .chain_id(Some(chain_id))
        .access_list(request.access_list.clone())
        .authorization_list(authorizations)
        .build()
        .map_err(|error| CallError::invalid(format!("{error:?}")))?;
    // Nothing will be posted for a call that is only tried: no bytes, no fee for them.
    Ok(OpTx(OpTransaction {
        base,
        enveloped_tx: Some(Bytes::new()),
        deposit: Default::default(),
    }))
}

#[cfg(test)]
pub(crate) mod tests;
