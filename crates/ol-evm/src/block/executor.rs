//! The block executors of the two rule sets.

use std::borrow::Cow;

use alloy_consensus::Header;
use alloy_eips::eip4895::Withdrawal;
use alloy_eips::eip7685::{EMPTY_REQUESTS_HASH, Requests};
use alloy_evm::block::{BlockExecutionResult, BlockExecutor};
use alloy_evm::eth::dao_fork::{DAO_HARDFORK_ACCOUNTS, DAO_HARDFORK_BENEFICIARY};
use alloy_evm::eth::{EthBlockExecutionCtx, EthBlockExecutor, EthEvm, EthEvmFactory};
use alloy_evm::precompiles::PrecompilesMap;
use alloy_evm::{Evm, EvmEnv, EvmFactory};
use alloy_hardforks::EthereumHardfork;
use alloy_op_evm::{OpBlockExecutionCtx, OpBlockExecutor, OpEvm, OpTx};
use alloy_op_hardforks::{ForkCondition, OpChainHardforks, OpHardfork};
use alloy_primitives::{Address, B256, Bytes, U256};
use op_revm::OpSpecId;
use revm::context::{BlockEnv, CfgEnv};
use revm::context_interface::block::BlobExcessGasAndPrice;
use revm::database::{State, WrapDatabaseRef};
use revm::primitives::hardfork::SpecId;
use revm::state::{Account, EvmState};
use revm::{Database, DatabaseCommit};

use super::{BlockContext, ExecuteError};
use crate::factory::OpenEvmFactory;
use crate::rules::{BlockRules, EthereumBlock, spec_id};
use crate::state::Reader;
use crate::trace::Recorder;
use crate::transaction::{Receipts, TransactionReceipt};
use crate::{SEQUENCER_FEE_VAULT, StateReader};

/// The state as the transactions of the block so far have left it.
pub(super) type BlockState<S> = State<WrapDatabaseRef<Reader<S>>>;

/// The recorder is there always and looks only while a transaction is traced:
/// there is one way to execute.
type OurEvm<S> = OpEvm<BlockState<S>, Recorder, PrecompilesMap, OpTx>;

type EthereumEvm<S> = EthEvm<BlockState<S>, Recorder, PrecompilesMap>;

/// What executes the transactions of one block.
pub(super) enum Executor<S: StateReader> {
    Ours(OpBlockExecutor<OurEvm<S>, Receipts, OpChainHardforks>),
    Ethereum(EthBlockExecutor<'static, EthereumEvm<S>, EthereumBlock, Receipts>),
}

/// Does the same with the executor of either rule set.
macro_rules! with_executor {
    ($executor:expr, $name:ident => $work:expr) => {
        match $executor {
            $crate::block::executor::Executor::Ours($name) => $work,
            $crate::block::executor::Executor::Ethereum($name) => $work,
        }
    };
}
pub(super) use with_executor;

/// What a block does after its transactions; nothing under our rules.
#[derive(Debug, Clone, Copy, Default)]
pub struct Closing<'a> {
    /// Ommers, whose miners are paid (proof of work).
    pub ommers: &'a [Header],
    /// Withdrawals of the beacon chain (EIP-4895), since Shanghai.
    pub withdrawals: Option<&'a [Withdrawal]>,
}

/// What is left when a block is closed.
pub(super) struct Closed<S: StateReader> {
    pub(super) state: BlockState<S>,
    pub(super) receipts: Vec<TransactionReceipt>,
    pub(super) gas_used: u64,
    pub(super) requests_hash: Option<B256>,
}

impl<S: StateReader> Executor<S> {
    pub(super) fn new(state: S, context: &BlockContext) -> Self {
        let state = State::builder()
            .with_database_ref(Reader(state))
            .with_bundle_update()
            .build();
        let mut executor = match &context.rules {
            BlockRules::OpenLedger => Self::Ours(OpBlockExecutor::new(
                OpenEvmFactory::default().create_evm_with_inspector(
                    state,
                    our_env(context),
                    Recorder::off(),
                ),
                OpBlockExecutionCtx {
                    parent_hash: context.parent_hash,
                    parent_beacon_block_root: Some(B256::ZERO),
                    extra_data: Bytes::new(),
                },
                hardforks(),
                Receipts,
            )),
            BlockRules::Ethereum(block) => Self::Ethereum(EthBlockExecutor::new(
                EthEvmFactory::default().create_evm_with_inspector(
                    state,
                    ethereum_env(context, block),
                    Recorder::off(),
                ),
                EthBlockExecutionCtx {
                    parent_hash: context.parent_hash,
                    parent_beacon_block_root: block.parent_beacon_block_root,
                    ommers: &[],
                    withdrawals: None,
                    extra_data: Bytes::new(),
                    tx_count_hint: None,
                    slot_number: None,
                },
                *block,
                Receipts,
            )),
        };
        with_executor!(&mut executor, executor => executor.evm.set_inspector_enabled(false));
        executor
    }

    pub(super) fn state(&mut self) -> &mut BlockState<S> {
        with_executor!(self, executor => executor.evm.db_mut())
    }

    pub(super) fn receipts(&self) -> &[TransactionReceipt] {
        with_executor!(self, executor => &executor.receipts)
    }

    /// Moves the coins of the DAO, if this is the block for it. Answers whose
    /// balances changed.
    ///
    /// The library does it after the transactions, and lets accounts that are
    /// left empty vanish, which they do not before EIP-161.
    pub(super) fn move_dao_coins(&mut self) -> Result<Vec<Address>, ExecuteError> {
        let Self::Ethereum(executor) = self else {
            return Ok(Vec::new());
        };
        if !executor.spec.is_dao_fork {
            return Ok(Vec::new());
        }
        let state = executor.evm.db_mut();
        let mut sum = U256::ZERO;
        let mut changes = EvmState::default();
        for address in DAO_HARDFORK_ACCOUNTS {
            let found = state.basic(address).map_err(ExecuteError::internal)?;
            let mut info = found.unwrap_or_default();
            sum = sum.saturating_add(std::mem::take(&mut info.balance));
            let mut account = Account::from(info);
            account.mark_touch();
            if account.is_empty() {
                account.mark_created();
            }
            changes.insert(address, account);
        }
        let found = state
            .basic(DAO_HARDFORK_BENEFICIARY)
            .map_err(ExecuteError::internal)?;
        let mut info = found.unwrap_or_default();
        info.balance = info.balance.saturating_add(sum);
        let mut beneficiary = Account::from(info);
        beneficiary.mark_touch();
        changes.insert(DAO_HARDFORK_BENEFICIARY, beneficiary);
        let touched = changes.keys().copied().collect();
        state.commit(changes);
        Ok(touched)
    }

    pub(super) fn finish(self, closing: Closing<'_>) -> Result<Closed<S>, ExecuteError> {
        match self {
            Self::Ours(executor) => {
                let (evm, result) = executor.finish().map_err(ExecuteError::of_block)?;
                Ok(Closed::new(evm.into_db(), result, |_| {
                    Some(EMPTY_REQUESTS_HASH)
                }))
            }
            Self::Ethereum(executor) => {
                let is_prague = executor.spec.is_active(EthereumHardfork::Prague);
                // The same executor, with a context that borrows what is only
                // known now.
                let executor = EthBlockExecutor {
                    spec: executor.spec,
                    ctx: EthBlockExecutionCtx {
                        ommers: closing.ommers,
                        withdrawals: closing.withdrawals.map(Cow::Borrowed),
                        ..executor.ctx
                    },
                    evm: executor.evm,
                    system_caller: executor.system_caller,
                    receipt_builder: executor.receipt_builder,
                    receipts: executor.receipts,
                    cumulative_tx_gas_used: executor.cumulative_tx_gas_used,
                    block_regular_gas_used: executor.block_regular_gas_used,
                    block_state_gas_used: executor.block_state_gas_used,
                    blob_gas_used: executor.blob_gas_used,
                };
                let (evm, result) = executor.finish().map_err(ExecuteError::of_block)?;
                Ok(Closed::new(evm.into_db(), result, |requests| {
                    is_prague.then(|| requests.requests_hash())
                }))
            }
        }
    }
}

impl<S: StateReader> Closed<S> {
    fn new(
        state: BlockState<S>,
        result: BlockExecutionResult<TransactionReceipt>,
        requests_hash: impl FnOnce(&Requests) -> Option<B256>,
    ) -> Self {
        Self {
            state,
            requests_hash: requests_hash(&result.requests),
            receipts: result.receipts,
            gas_used: result.gas_used,
        }
    }
}

/// The block as the EVM of calls sees it: under our rules the one that blocks
/// are executed with. Under Ethereum's it is the OP Stack's at the same fork,
/// Paris for all before it, without what the OP Stack adds.
pub(super) fn call_env(context: &BlockContext) -> EvmEnv<OpSpecId> {
    let BlockRules::Ethereum(block) = &context.rules else {
        return our_env(context);
    };
    let EvmEnv { cfg_env, block_env } = ethereum_env(context, block);
    let spec_id = match cfg_env.spec {
        spec if spec.is_enabled_in(SpecId::PRAGUE) => OpSpecId::ISTHMUS,
        spec if spec.is_enabled_in(SpecId::CANCUN) => OpSpecId::ECOTONE,
        spec if spec.is_enabled_in(SpecId::SHANGHAI) => OpSpecId::CANYON,
        _ => OpSpecId::BEDROCK,
    };
    let cfg_env = CfgEnv::new()
        .with_chain_id(context.chain_id)
        .with_spec_and_mainnet_gas_params(spec_id);
    let block_env = BlockEnv {
        prevrandao: Some(block.randomness),
        ..block_env
    };
    EvmEnv::new(cfg_env, block_env)
}

/// The block as our EVM sees it.
fn our_env(context: &BlockContext) -> EvmEnv<OpSpecId> {
    let cfg_env = CfgEnv::new()
        .with_chain_id(context.chain_id)
        .with_spec_and_mainnet_gas_params(OpSpecId::JOVIAN);
    let block_env = BlockEnv {
        number: U256::from(context.number),
        beneficiary: SEQUENCER_FEE_VAULT,
        timestamp: U256::from(context.timestamp_s),
        gas_limit: context.gas_limit,
        basefee: context.base_fee_wei,
        difficulty: U256::ZERO,
        // There is no beacon to take randomness from.
        prevrandao: Some(B256::ZERO),
        blob_excess_gas_and_price: Some(BlobExcessGasAndPrice {
            excess_blob_gas: 0,
            blob_gasprice: 1,
        }),
        slot_num: 0,
    };
    EvmEnv::new(cfg_env, block_env)
}

/// The block as Ethereum's EVM sees it.
fn ethereum_env(context: &BlockContext, block: &EthereumBlock) -> EvmEnv<SpecId> {
    let mut cfg_env = CfgEnv::new()
        .with_chain_id(context.chain_id)
        .with_spec_and_mainnet_gas_params(spec_id(block.fork));
    if let Some(blobs) = block.blobs {
        cfg_env.set_max_blobs_per_tx(blobs.per_transaction_max);
    }
    let is_merged = block.is_active(EthereumHardfork::Paris);
    let block_env = BlockEnv {
        number: U256::from(context.number),
        beneficiary: block.beneficiary,
        timestamp: U256::from(context.timestamp_s),
        gas_limit: context.gas_limit,
        basefee: context.base_fee_wei,
        difficulty: if is_merged {
            U256::ZERO
        } else {
            block.randomness.into()
        },
        prevrandao: is_merged.then_some(block.randomness),
        blob_excess_gas_and_price: block.blobs.map(|blobs| BlobExcessGasAndPrice {
            excess_blob_gas: blobs.excess_gas,
            blob_gasprice: blobs.base_fee_wei,
        }),
        slot_num: 0,
    };
    EvmEnv::new(cfg_env, block_env)
}

/// Every fork up to Jovian, active from genesis.
fn hardforks() -> OpChainHardforks {
    let always = [
        OpHardfork::Bedrock,
        OpHardfork::Regolith,
        OpHardfork::Canyon,
        OpHardfork::Ecotone,
        OpHardfork::Fjord,
        OpHardfork::Granite,
        OpHardfork::Holocene,
        OpHardfork::Isthmus,
        OpHardfork::Jovian,
    ];
    OpChainHardforks::new(always.into_iter().map(|fork| {
        let condition = match fork {
            OpHardfork::Bedrock => ForkCondition::Block(0),
            _ => ForkCondition::Timestamp(0),
        };
        (fork, condition)
    }))
}
