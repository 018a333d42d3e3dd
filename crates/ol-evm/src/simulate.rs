//! Blocks that are not real, one after the other, of messages that nobody
//! signed.

use alloy_consensus::{Header, SignableTransaction, TxEip1559, TxEip2930};
use alloy_consensus::{TxEip7702, TxLegacy, transaction::Recovered};
use alloy_primitives::{B256, Log, Signature, TxKind, U256};

use crate::block::{BlockBuilder, BlockContext, ExecuteError};
use crate::call::{CallRequest, CallStatus};
use crate::overlay::{Overlay, Overrides};
use crate::trace::{Budget, LimitPassed, TraceError, TraceLimits, TraceParts};
use crate::{Rules, StateReader, Transaction, header};

/// Most blocks of one simulation, with those that fill gaps.
pub const SIMULATED_BLOCKS_MAX: u64 = 256;

/// Seconds between two blocks that do not say otherwise.
const BLOCK_TIME_S: u64 = 12;

/// A block to simulate.
#[derive(Debug, Clone, Default)]
pub struct BlockToSimulate {
    /// What is to be different in the block, and in the state before it.
    pub overrides: Overrides,
    /// Its messages, in order.
    pub calls: Vec<CallRequest>,
}

/// How to simulate.
#[derive(Debug, Clone)]
pub struct SimulateOptions {
    /// Whether messages must be such as could be signed and sent: with the
    /// right nonce, and paying the base fee. Else they need not, and the base
    /// fee is zero unless it is overridden.
    pub validates: bool,
    /// Whether transfers of native balance are logged as ERC-20 transfers.
    pub logs_transfers: bool,
    /// Most gas of all messages together.
    pub gas_max: u64,
    /// Limits of time and memory.
    pub limits: TraceLimits,
}

/// A block that was simulated.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SimulatedBlock {
    /// Its header. The state root is zero: it is not computed.
    pub header: Header,
    /// Hash of the header.
    pub hash: B256,
    /// The messages as transactions that nobody signed.
    pub transactions: Vec<Recovered<Transaction>>,
    /// What each of them did.
    pub calls: Vec<SimulatedCall>,
}

/// What a message of a simulated block did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SimulatedCall {
    /// How it ended.
    pub status: CallStatus,
    /// Return data, revert data, or the code of the new contract.
    pub output: alloy_primitives::Bytes,
    /// Gas used after refunds.
    pub gas_used: u64,
    /// Its logs, and those that stand for transfers if they were asked for.
    pub logs: Vec<Log>,
}

/// Why nothing was simulated.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SimulateError {
    /// A block does not come after the one before it.
    #[error("block numbers must be in order: {number} <= {before}")]
    Number {
        /// Its number.
        number: u64,
        /// The number of the one before.
        before: u64,
    },
    /// A block is not later than the one before it.
    #[error("block timestamps must be in order: {timestamp_s} <= {before_s}")]
    Timestamp {
        /// Its time.
        timestamp_s: u64,
        /// The time of the one before.
        before_s: u64,
    },
    /// There are more blocks than [`SIMULATED_BLOCKS_MAX`], with those that
    /// fill gaps.
    #[error("too many blocks")]
    TooManyBlocks,
    /// A message asks for more gas than its block, or the simulation, has left.
    #[error("block gas limit reached: {gas_limit} > {gas_left}")]
    GasLimit {
        /// What it asks for.
        gas_limit: u64,
        /// What is left.
        gas_left: u64,
    },
    /// A message could not be sent as it is.
    #[error("{reason}")]
    Invalid {
        /// Why.
        reason: String,
    },
    /// A limit of [`SimulateOptions::limits`] was passed.
    #[error(transparent)]
    Limit(#[from] LimitPassed),
    /// A block could not be executed.
    #[error(transparent)]
    Execute(#[from] ExecuteError),
}

impl From<TraceError> for SimulateError {
    fn from(error: TraceError) -> Self {
        match error {
            TraceError::Limit(limit) => Self::Limit(limit),
            TraceError::Execute(ExecuteError::Invalid { reason, .. }) => Self::Invalid { reason },
            TraceError::Execute(error) => Self::Execute(error),
            TraceError::Call(error) => Self::Execute(ExecuteError::internal(error)),
        }
    }
}

/// Makes blocks of messages on the state after `parent`, of which nothing is
/// kept. They are executed as real blocks are, but for what
/// [`SimulateOptions::validates`] waives.
///
/// # Errors
/// [`SimulateError`]; a message that reverts or halts is no error.
///
/// # Source
/// `eth_simulateV1` in the Ethereum execution APIs.
pub fn simulate<S: StateReader>(
    state: &S,
    (parent, parent_hash): (&Header, B256),
    (chain_id, rules): (u64, &Rules),
    blocks: Vec<BlockToSimulate>,
    options: &SimulateOptions,
) -> Result<Vec<SimulatedBlock>, SimulateError> {
    let mut simulation = Simulation {
        state: Overlay::new(state),
        parent: parent.clone(),
        parent_hash,
        chain_id,
        rules,
        gas_left: options.gas_max,
        budget: Budget::new(options.limits.clone()),
        options,
    };
    simulation.state.set_block_hash(parent.number, parent_hash);
    let last = parent.number.saturating_add(SIMULATED_BLOCKS_MAX);
    let mut done = Vec::new();
    for block in blocks {
        let before = simulation.parent.number;
        let number = block.overrides.block.number.unwrap_or(before + 1);
        if number <= before {
            return Err(SimulateError::Number { number, before });
        }
        if number > last {
            return Err(SimulateError::TooManyBlocks);
        }
        while simulation.parent.number + 1 < number {
            done.push(simulation.block(BlockToSimulate::default())?);
        }
        done.push(simulation.block(block)?);
    }
    Ok(done)
}

struct Simulation<'a, S> {
    state: Overlay<&'a S>,
    parent: Header,
    parent_hash: B256,
    chain_id: u64,
    rules: &'a Rules,
    gas_left: u64,
    budget: Budget,
    options: &'a SimulateOptions,
}

impl<S: StateReader> Simulation<'_, S> {
    fn block(&mut self, block: BlockToSimulate) -> Result<SimulatedBlock, SimulateError> {
        let BlockToSimulate { overrides, calls } = block;
        crate::call::check_codes(&overrides).map_err(|error| SimulateError::Invalid {
            reason: error.to_string(),
        })?;
        let context = self.context(&overrides)?;
        self.state
            .override_accounts(&overrides.accounts)
            .map_err(ExecuteError::internal)?;
        for (&number, &hash) in &overrides.block.block_hashes {
            self.state.set_block_hash(number, hash);
        }
        let mut builder = BlockBuilder::new(&self.state, &context)?;
        builder.simulate(self.options.validates, &overrides.block);
        let parts = TraceParts {
            transfers: self.options.logs_transfers,
            ..TraceParts::default()
        };
        let mut transactions = Vec::with_capacity(calls.len());
        let mut done = Vec::with_capacity(calls.len());
        for (position, call) in calls.into_iter().enumerate() {
            let gas_left = builder.gas_left().min(self.gas_left);
            let gas_limit = call.gas_limit.unwrap_or(gas_left);
            if gas_limit > gas_left {
                return Err(SimulateError::GasLimit {
                    gas_limit,
                    gas_left,
                });
            }
            self.budget.check_time();
            if let Some(limit) = self.budget.passed() {
                return Err(limit.into());
            }
            let nonce = match call.nonce {
                Some(nonce) => nonce,
                None => builder.account(call.from)?.unwrap_or_default().nonce,
            };
            let transaction = unsigned(call, nonce, gas_limit, self.chain_id);
            let budget = std::mem::take(&mut self.budget);
            let (outcome, trace, budget) =
                builder.trace(&transaction, &parts, (position, 0), budget)?;
            self.budget = budget;
            self.gas_left = self.gas_left.saturating_sub(outcome.gas_used);
            let logs = match self.options.logs_transfers {
                true => trace.transfers,
                false => outcome.receipt.logs().to_vec(),
            };
            done.push(SimulatedCall {
                status: trace.status,
                output: trace.output,
                gas_used: outcome.gas_used,
                logs,
            });
            transactions.push(transaction);
        }
        let execution = builder.finish()?;
        let sealed: Vec<&Transaction> = transactions.iter().map(Recovered::inner).collect();
        let mut header = header::seal(&context, &sealed, &execution, B256::ZERO);
        let wanted = &overrides.block;
        header.beneficiary = wanted.beneficiary.unwrap_or(header.beneficiary);
        header.mix_hash = wanted.prevrandao.unwrap_or(header.mix_hash);
        let hash = header.hash_slow();
        self.state.apply(execution.diff);
        self.state.set_block_hash(header.number, hash);
        self.parent = header.clone();
        self.parent_hash = hash;
        Ok(SimulatedBlock {
            header,
            hash,
            transactions,
            calls: done,
        })
    }

    fn context(&self, overrides: &Overrides) -> Result<BlockContext, SimulateError> {
        let wanted = &overrides.block;
        let before_s = self.parent.timestamp;
        let timestamp_s = wanted
            .timestamp_s
            .unwrap_or(before_s.saturating_add(BLOCK_TIME_S));
        if timestamp_s <= before_s {
            return Err(SimulateError::Timestamp {
                timestamp_s,
                before_s,
            });
        }
        let mut context = BlockContext::after(
            &self.parent,
            self.parent_hash,
            self.chain_id,
            timestamp_s,
            self.rules,
        );
        context.gas_limit = wanted.gas_limit.unwrap_or(context.gas_limit);
        context.base_fee_wei = match wanted.base_fee_wei {
            Some(base_fee_wei) => base_fee_wei,
            None if self.options.validates => context.base_fee_wei,
            None => 0,
        };
        Ok(context)
    }
}

/// A message as a transaction with an empty signature, of the type that its
/// fields ask for.
fn unsigned(
    call: CallRequest,
    nonce: u64,
    gas_limit: u64,
    chain_id: u64,
) -> Recovered<Transaction> {
    let to = call.to.map_or(TxKind::Create, TxKind::Call);
    let max_fee_wei = call.max_fee_wei.unwrap_or_default();
    let (value, input) = (call.value_wei, call.input);
    // As for a call: a maximum without a tip is a gas price.
    let has_gas_price = call.max_fee_wei.is_some() && call.max_priority_fee_wei.is_none();
    let empty = Signature::new(U256::ZERO, U256::ZERO, false);
    let transaction: Transaction =
        if let (Some(to), false) = (call.to, call.authorization_list.is_empty()) {
            let transaction = TxEip7702 {
                chain_id,
                nonce,
                gas_limit,
                max_fee_per_gas: max_fee_wei,
                max_priority_fee_per_gas: call.max_priority_fee_wei.unwrap_or_default(),
                to,
                value,
                access_list: call.access_list,
                authorization_list: call.authorization_list,
                input,
            };
            Transaction::Eip7702(transaction.into_signed(empty))
        } else if has_gas_price && !call.access_list.is_empty() {
            let transaction = TxEip2930 {
                chain_id,
                nonce,
                gas_price: max_fee_wei,
                gas_limit,
                to,
                value,
                access_list: call.access_list,
                input,
            };
            Transaction::Eip2930(transaction.into_signed(empty))
        } else if has_gas_price {
            let transaction = TxLegacy {
                chain_id: Some(chain_id),
                nonce,
                gas_price: max_fee_wei,
                gas_limit,
                to,
                value,
                input,
            };
            Transaction::Legacy(transaction.into_signed(empty))
        } else {
            let transaction = TxEip1559 {
                chain_id,
                nonce,
                gas_limit,
                max_fee_per_gas: max_fee_wei,
                max_priority_fee_per_gas: call.max_priority_fee_wei.unwrap_or_default(),
                to,
                value,
                access_list: call.access_list,
                input,
            };
            Transaction::Eip1559(transaction.into_signed(empty))
        };
    Recovered::new_unchecked(transaction, call.from)
}

#[cfg(test)]
mod tests;
