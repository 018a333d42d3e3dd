//! A block that is being made, transaction by transaction.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use alloy_consensus::{Transaction as _, TxReceipt, transaction::Recovered};
use alloy_evm::Evm;
use alloy_evm::block::{
    BlockExecutionError, BlockExecutor, OnStateHook, StateChangeSource, TxResult,
};
use alloy_primitives::{Address, Bloom, Bytes, U256};
use revm::Database;
use revm::context_interface::result::ResultAndState;
use revm::database::{DatabaseCommitExt, states::bundle_state::BundleRetention};
use revm::state::{AccountInfo, EvmState};

use super::executor::{BlockState, Closing, Executor, with_executor};
use super::{BlockContext, ExecuteError, Execution, LeftOut, left_out_reason, refused};
use crate::rules::BlockRules;
use crate::state::{AccountChange, AccountState};
use crate::trace::{Budget, Recorder, Trace, TraceError, TraceParts};
use crate::transaction::{Transaction, TransactionReceipt};
use crate::{BASE_FEE_VAULT, BlockOverrides, StateDiff, StateReader};

/// A block that is being made: transactions go in one after the other, and
/// each sees what those before it did.
///
/// `S` may be a reference, or own what it reads, so that a block can stay open
/// between two arrivals.
pub struct BlockBuilder<S: StateReader> {
    executor: Executor<S>,
    context: BlockContext,
    opening: StateDiff,
    fees_wei: U256,
    blob_gas_used: u64,
}

impl<S: StateReader> fmt::Debug for BlockBuilder<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BlockBuilder")
            .field("context", &self.context)
            .field("n_transactions", &self.executor.receipts().len())
            .finish_non_exhaustive()
    }
}

/// What one transaction did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TransactionOutcome {
    /// Its receipt.
    pub receipt: TransactionReceipt,
    /// Gas of this transaction alone.
    pub gas_used: u64,
    /// What it changed. All changes of a block, [`BlockBuilder::opening`]
    /// first, applied in order, give the state that [`Execution::diff`] gives.
    pub changes: StateDiff,
}

impl<S: StateReader> BlockBuilder<S> {
    /// Opens a block on the state after its parent.
    ///
    /// # Errors
    /// [`ExecuteError::Internal`] if the state cannot be read.
    pub fn new(state: S, context: &BlockContext) -> Result<Self, ExecuteError> {
        let mut executor = Executor::new(state, context);
        let seen = Seen::default();
        with_executor!(&mut executor, executor => {
            executor.set_state_hook(Some(Box::new(seen.clone())));
            executor
                .apply_pre_execution_changes()
                .map_err(ExecuteError::of_block)?;
            executor.set_state_hook(None);
        });
        let mut opening = StateDiff::default();
        for state in seen.take() {
            collect_changes(executor.state(), &state, &mut opening)?;
        }
        for address in executor.move_dao_coins()? {
            let change = AccountChange {
                account: account(executor.state(), address)?,
                ..AccountChange::default()
            };
            opening.accounts.insert(address, change);
        }
        Ok(Self {
            executor,
            context: *context,
            opening,
            fees_wei: U256::ZERO,
            blob_gas_used: 0,
        })
    }

    /// Makes it a block that is only simulated: transactions need not be
    /// signed, nor have the right nonce unless it `validates`, and may come
    /// from a contract.
    pub(crate) fn simulate(&mut self, validates: bool, wanted: &BlockOverrides) {
        with_executor!(&mut self.executor, executor => {
            let evm = executor.evm.ctx_mut();
            evm.cfg.disable_nonce_check = !validates;
            evm.cfg.disable_eip3607 = true;
            evm.block.beneficiary = wanted.beneficiary.unwrap_or(evm.block.beneficiary);
            evm.block.prevrandao = wanted.prevrandao.or(evm.block.prevrandao);
        });
    }

    /// The block's context.
    #[must_use]
    pub const fn context(&self) -> &BlockContext {
        &self.context
    }

    /// What the block changed before its first transaction.
    #[must_use]
    pub const fn opening(&self) -> &StateDiff {
        &self.opening
    }

    /// Gas of the transactions so far.
    #[must_use]
    pub fn gas_used(&self) -> u64 {
        let last = self.executor.receipts().last();
        last.map_or(0, TransactionReceipt::cumulative_gas_used)
    }

    /// Gas that is left for more transactions.
    #[must_use]
    pub fn gas_left(&self) -> u64 {
        self.context.gas_limit.saturating_sub(self.gas_used())
    }

    /// The account at an address after the transactions so far.
    ///
    /// # Errors
    /// [`ExecuteError::Internal`] if the state cannot be read.
    pub fn account(&mut self, address: Address) -> Result<Option<AccountState>, ExecuteError> {
        account(self.executor.state(), address)
    }

    /// The code of an account after the transactions so far.
    ///
    /// # Errors
    /// [`ExecuteError::Internal`] if the state cannot be read.
    pub fn code(&mut self, address: Address) -> Result<Bytes, ExecuteError> {
        let database = self.executor.state();
        let account = database.basic(address).map_err(ExecuteError::internal)?;
        let code = match account {
            None => return Ok(Bytes::new()),
            // What is new in this block is with its account.
            Some(AccountInfo {
                code: Some(code), ..
            }) => code,
            Some(account) => database
                .code_by_hash(account.code_hash)
                .map_err(ExecuteError::internal)?,
        };
        Ok(code.original_bytes())
    }

    /// Executes one more transaction, or says why it is not in the block; then
    /// the block is as it was.
    ///
    /// # Errors
    /// [`ExecuteError::Internal`] if the state cannot be read; the builder is
    /// then of no more use.
    pub fn execute(
        &mut self,
        transaction: &Recovered<Transaction>,
    ) -> Result<Result<TransactionOutcome, LeftOut>, ExecuteError> {
        if let Some(left_out) = self.leaves_out(transaction) {
            return Ok(Err(left_out));
        }
        let executed = with_executor!(&mut self.executor, executor => {
            let rules = &self.context.rules;
            execute_on(executor, transaction, rules, |_, _, _, _| Ok(()))
        });
        let executed = self.count(transaction, executed?)?;
        Ok(executed.map(|(outcome, ())| outcome))
    }

    /// [`BlockBuilder::execute`], with a record of what the transaction does.
    ///
    /// `position` is the transaction's in the block; `n_logs_before` counts the
    /// logs of those before it.
    ///
    /// # Errors
    /// As [`BlockBuilder::execute`], [`TraceError::Limit`] past a limit of the
    /// budget, and [`ExecuteError::Invalid`] for a transaction that does not
    /// belong in the block. The builder is then of no more use.
    pub(crate) fn trace(
        &mut self,
        transaction: &Recovered<Transaction>,
        parts: &TraceParts,
        (position, n_logs_before): (usize, u64),
        budget: Budget,
    ) -> Result<(TransactionOutcome, Trace, Budget), TraceError> {
        if let Some(left_out) = self.leaves_out(transaction) {
            return Err(left_out.at(position).into());
        }
        let gas_limit = transaction.gas_limit();
        let (executed, passed) = with_executor!(&mut self.executor, executor => {
            *executor.evm.inspector_mut() = parts.recorder(budget, n_logs_before);
            executor.evm.set_inspector_enabled(true);
            let rules = &self.context.rules;
            let executed = execute_on(executor, transaction, rules, |recorder, state, after, burnt_wei| {
                let recorder = std::mem::replace(recorder, Recorder::off());
                let (mut trace, budget) = parts
                    .finish(recorder, state, after, gas_limit)
                    .map_err(ExecuteError::internal)?;
                if let Ok(trace) = &mut trace {
                    trace.add_burnt(burnt_wei);
                }
                Ok((trace, budget))
            });
            executor.evm.set_inspector_enabled(false);
            (executed, executor.evm.inspector().budget.passed())
        });
        // A limit that was passed fails the execution: it is the reason.
        if let Some(limit) = passed {
            return Err(limit.into());
        }
        match self.count(transaction, executed?)? {
            Ok((outcome, (trace, budget))) => Ok((outcome, trace?, budget)),
            Err(left_out) => Err(left_out.at(position).into()),
        }
    }

    /// Why a transaction is not even tried.
    fn leaves_out(&self, transaction: &Recovered<Transaction>) -> Option<LeftOut> {
        if let Some(reason) = refused(transaction.inner(), &self.context.rules) {
            return Some(LeftOut::Invalid { reason });
        }
        let BlockRules::Ethereum(block) = &self.context.rules else {
            return None;
        };
        let blob_gas = transaction.blob_gas_used().unwrap_or_default();
        let blob_gas_max = block.blobs?.block_gas_max;
        (self.blob_gas_used.saturating_add(blob_gas) > blob_gas_max).then_some(LeftOut::NoRoom)
    }

    /// Adds what an executed transaction paid and used.
    fn count<T>(
        &mut self,
        transaction: &Recovered<Transaction>,
        executed: Result<(TransactionOutcome, T), BlockExecutionError>,
    ) -> Result<Result<(TransactionOutcome, T), LeftOut>, ExecuteError> {
        let (outcome, seen) = match executed {
            Ok(executed) => executed,
            Err(error) => return Ok(Err(left_out_reason(error)?)),
        };
        let price_wei = transaction.effective_gas_price(Some(self.context.base_fee_wei));
        self.fees_wei += U256::from(outcome.gas_used) * U256::from(price_wei);
        let blob_gas = transaction.blob_gas_used().unwrap_or_default();
        self.blob_gas_used = self.blob_gas_used.saturating_add(blob_gas);
        Ok(Ok((outcome, seen)))
    }

    /// Closes a block that does nothing after its transactions.
    ///
    /// # Errors
    /// As [`BlockBuilder::finish_with`].
    pub fn finish(self) -> Result<Execution, ExecuteError> {
        self.finish_with(Closing::default())
    }

    /// Closes the block.
    ///
    /// # Errors
    /// [`ExecuteError::Block`] if a system call fails that the rules ask for,
    /// [`ExecuteError::Internal`] if the state cannot be read.
    pub fn finish_with(self, closing: Closing<'_>) -> Result<Execution, ExecuteError> {
        let mut closed = self.executor.finish(closing)?;
        closed.state.merge_transitions(BundleRetention::PlainState);
        let logs_bloom = closed
            .receipts
            .iter()
            .fold(Bloom::ZERO, |bloom, receipt| bloom | receipt.bloom());
        Ok(Execution {
            receipts: closed.receipts,
            gas_used: closed.gas_used,
            diff: StateDiff::from_bundle(closed.state.take_bundle()),
            logs_bloom,
            fees_wei: self.fees_wei,
            requests_hash: closed.requests_hash,
        })
    }
}

/// Executes a transaction with the executor of either rule set, and looks at
/// what it did before that becomes part of the block.
fn execute_on<S, E, T>(
    executor: &mut E,
    transaction: &Recovered<Transaction>,
    rules: &BlockRules,
    look: impl FnOnce(
        &mut Recorder,
        &mut BlockState<S>,
        &ResultAndState<<E::Evm as Evm>::HaltReason>,
        u128,
    ) -> Result<T, ExecuteError>,
) -> Result<Result<(TransactionOutcome, T), BlockExecutionError>, ExecuteError>
where
    S: StateReader,
    E: BlockExecutor<
            Transaction = Transaction,
            Receipt = TransactionReceipt,
            Evm: Evm<DB = BlockState<S>, Inspector = Recorder>,
        >,
{
    let executed = match executor.execute_transaction_without_commit(transaction) {
        Ok(executed) => executed,
        Err(error) => return Ok(Err(error)),
    };
    let after = executed.result();
    let gas_used = after.result.tx_gas_used();
    let (state, recorder, _) = executor.evm_mut().components_mut();
    let burnt_wei = match rules {
        BlockRules::OpenLedger => burnt_wei(state, &after.state)?,
        BlockRules::Ethereum(_) => 0,
    };
    let mut changes = StateDiff::default();
    collect_changes(state, &after.state, &mut changes)?;
    let seen = look(recorder, state, after, burnt_wei)?;
    executor
        .commit_transaction(executed)
        .map_err(ExecuteError::internal)?;
    if burnt_wei > 0 {
        let state = executor.evm_mut().db_mut();
        state
            .increment_balances([(BASE_FEE_VAULT, burnt_wei)])
            .map_err(ExecuteError::internal)?;
        let vault = AccountChange {
            account: account(state, BASE_FEE_VAULT)?,
            ..AccountChange::default()
        };
        changes.accounts.insert(BASE_FEE_VAULT, vault);
    }
    let receipt =
        executor.receipts().last().cloned().ok_or_else(|| {
            ExecuteError::internal("a transaction was executed and left no receipt")
        })?;
    let outcome = TransactionOutcome {
        receipt,
        gas_used,
        changes,
    };
    Ok(Ok((outcome, seen)))
}

fn account<D: Database>(
    state: &mut D,
    address: Address,
) -> Result<Option<AccountState>, ExecuteError> {
    let account = state.basic(address).map_err(ExecuteError::internal)?;
    Ok(account.map(|info| AccountState {
        nonce: info.nonce,
        balance_wei: info.balance,
        code_hash: info.code_hash,
    }))
}

/// Keeps the changes that the executor makes by itself.
#[derive(Debug, Clone, Default)]
struct Seen(Arc<Mutex<Vec<EvmState>>>);

impl Seen {
    fn take(&self) -> Vec<EvmState> {
        std::mem::take(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl OnStateHook for Seen {
    fn on_state(&mut self, _source: StateChangeSource, state: &EvmState) {
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push(state.clone());
    }
}

/// Adds what one transaction changed to `changes`. `before` is the state
/// without it.
fn collect_changes<D: Database>(
    before: &mut D,
    after: &EvmState,
    changes: &mut StateDiff,
) -> Result<(), ExecuteError> {
    for (&address, account) in after.iter().filter(|(_, account)| account.is_touched()) {
        // EIP-161: an empty account that was touched is no more. Before that fork
        // it is marked as created, and stays.
        if account.is_selfdestructed() || (account.is_empty() && !account.is_created()) {
            let gone = AccountChange {
                account: None,
                is_storage_wiped: true,
                ..AccountChange::default()
            };
            changes.accounts.insert(address, gone);
            continue;
        }
        let info = &account.info;
        if let Some(code) = info.code.as_ref().filter(|code| !code.is_empty()) {
            let known = before.basic(address).map_err(ExecuteError::internal)?;
            if known.is_none_or(|known| known.code_hash != info.code_hash) {
                let code = code.original_bytes();
                changes.codes.insert(info.code_hash, code);
            }
        }
        let storage = account.changed_storage_slots();
        let change = AccountChange {
            account: Some(AccountState {
                nonce: info.nonce,
                balance_wei: info.balance,
                code_hash: info.code_hash,
            }),
            is_storage_wiped: account.is_created(),
            storage: storage
                .map(|(&key, slot)| (key, slot.present_value))
                .collect(),
        };
        changes.accounts.insert(address, change);
    }
    Ok(())
}

/// The coins that a transaction destroys: EIP-6780 drops what a contract holds
/// that destroys itself in the transaction that made it.
fn burnt_wei<D: Database>(before: &mut D, after: &EvmState) -> Result<u128, ExecuteError> {
    if !after.values().any(|account| account.is_selfdestructed()) {
        return Ok(0);
    }
    let mut sum_before = U256::ZERO;
    let mut sum_after = U256::ZERO;
    for (&address, account) in after.iter().filter(|(_, account)| account.is_touched()) {
        sum_before += balance_wei(before, address)?;
        if !account.is_selfdestructed() {
            sum_after += account.info.balance;
        }
    }
    sum_before
        .checked_sub(sum_after)
        .and_then(|burnt| u128::try_from(burnt).ok())
        .ok_or_else(|| ExecuteError::internal("a transaction would make coins"))
}

fn balance_wei<D: Database>(database: &mut D, address: Address) -> Result<U256, ExecuteError> {
    let account = database.basic(address).map_err(ExecuteError::internal)?;
    Ok(account.map(|account| account.balance).unwrap_or_default())
}
