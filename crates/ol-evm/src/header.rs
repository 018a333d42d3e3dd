//! Ethereum headers: base fee, sealing, genesis.

use alloy_consensus::{
    EMPTY_OMMER_ROOT_HASH, Header, Transaction as _, constants::EMPTY_WITHDRAWALS, proofs,
};
use alloy_eips::eip1559::{BaseFeeParams, INITIAL_BASE_FEE};
use alloy_eips::eip7685::EMPTY_REQUESTS_HASH;
use alloy_eips::eip7840::BlobParams;
use alloy_genesis::Genesis;
use alloy_hardforks::EthereumHardfork;
use alloy_primitives::{B64, B256, Bloom, Bytes, U256};

use crate::block::{BlockContext, Execution};
use crate::rules::{BlockRules, EthereumBlock, EthereumRules, difficulty};
use crate::transaction::{Transaction, TransactionReceipt};
use crate::{BLOCK_GAS_LIMIT, SEQUENCER_FEE_VAULT};

/// The base fee of the block after `parent`, in wei for one unit of gas.
///
/// # Source
/// EIP-1559 with Ethereum's constants: elasticity 2, at most 1/8 a block.
#[must_use]
pub fn next_base_fee_wei(parent: &Header) -> u64 {
    parent
        .next_block_base_fee(BaseFeeParams::ethereum())
        .unwrap_or(INITIAL_BASE_FEE)
}

/// The difficulty of proof of work of the block after `parent`, under a fork.
///
/// # Source
/// Yellow Paper, section 4.3.4, and the EIPs that changed it up to EIP-5133.
#[must_use]
pub fn next_difficulty(parent: &Header, timestamp_s: u64, fork: EthereumHardfork) -> U256 {
    difficulty::next(parent, timestamp_s, fork)
}

/// The header of a block that was executed.
///
/// `transactions` are those of the execution, in order.
#[must_use]
pub fn seal(
    context: &BlockContext,
    transactions: &[&Transaction],
    execution: &Execution,
    state_root: B256,
) -> Header {
    let fixed = match &context.rules {
        BlockRules::OpenLedger => template(),
        BlockRules::Ethereum(block) => ethereum_template(block, transactions),
    };
    Header {
        parent_hash: context.parent_hash,
        number: context.number,
        timestamp: context.timestamp_s,
        gas_limit: context.gas_limit,
        gas_used: execution.gas_used,
        base_fee_per_gas: Some(context.base_fee_wei),
        state_root,
        transactions_root: proofs::calculate_transaction_root(transactions),
        receipts_root: receipts_root(&execution.receipts),
        logs_bloom: execution.logs_bloom,
        requests_hash: execution.requests_hash,
        ..fixed
    }
}

/// What an Ethereum block of ours says whatever its transactions did: no
/// ommers, no withdrawals.
fn ethereum_template(block: &EthereumBlock, transactions: &[&Transaction]) -> Header {
    let blob_gas = transactions.iter().filter_map(|tx| (**tx).blob_gas_used());
    let has_withdrawals = block.is_active(EthereumHardfork::Shanghai);
    Header {
        beneficiary: block.beneficiary,
        mix_hash: block.randomness,
        withdrawals_root: has_withdrawals.then_some(EMPTY_WITHDRAWALS),
        blob_gas_used: block.blobs.map(|_| blob_gas.sum()),
        excess_blob_gas: block.blobs.map(|blobs| blobs.excess_gas),
        parent_beacon_block_root: block.parent_beacon_block_root,
        ..Header::default()
    }
}

/// The header of block 0 of an Ethereum chain. A `base_fee_wei` of `None` is
/// EIP-1559's initial base fee.
#[must_use]
pub fn ethereum_genesis(
    genesis: &Genesis,
    rules: &EthereumRules,
    base_fee_wei: Option<u64>,
    state_root: B256,
) -> Header {
    let draft = Header {
        parent_hash: genesis.parent_hash.unwrap_or_default(),
        beneficiary: genesis.coinbase,
        difficulty: genesis.difficulty,
        gas_limit: genesis.gas_limit,
        timestamp: genesis.timestamp,
        extra_data: genesis.extra_data.clone(),
        mix_hash: genesis.mix_hash,
        nonce: B64::from(genesis.nonce),
        state_root,
        ..Header::default()
    };
    let fork = rules.fork(&draft);
    let since = |first: EthereumHardfork| fork >= first;
    let initial_base_fee_wei = base_fee_wei.unwrap_or(INITIAL_BASE_FEE);
    let blobs = rules.blob_params(fork);
    Header {
        base_fee_per_gas: since(EthereumHardfork::London).then_some(initial_base_fee_wei),
        withdrawals_root: since(EthereumHardfork::Shanghai).then_some(EMPTY_WITHDRAWALS),
        blob_gas_used: blobs.map(|_| genesis.blob_gas_used.unwrap_or_default()),
        excess_blob_gas: blobs.map(|_| genesis.excess_blob_gas.unwrap_or_default()),
        parent_beacon_block_root: blobs.map(|_| B256::ZERO),
        requests_hash: since(EthereumHardfork::Prague).then_some(EMPTY_REQUESTS_HASH),
        ..draft
    }
}

/// The header of block 0.
///
/// A `base_fee_wei` of `None` is EIP-1559's initial base fee, a `gas_limit` of
/// 0 is [`BLOCK_GAS_LIMIT`].
#[must_use]
pub fn genesis(
    timestamp_s: u64,
    gas_limit: u64,
    base_fee_wei: Option<u64>,
    extra_data: Bytes,
    state_root: B256,
) -> Header {
    Header {
        timestamp: timestamp_s,
        gas_limit: if gas_limit == 0 {
            BLOCK_GAS_LIMIT
        } else {
            gas_limit
        },
        base_fee_per_gas: Some(base_fee_wei.unwrap_or(INITIAL_BASE_FEE)),
        extra_data,
        state_root,
        ..template()
    }
}

/// What the header of the block after `parent` says before it is executed: one
/// of proof of stake that nobody but us makes.
pub(crate) fn draft_after(
    parent: &Header,
    parent_hash: B256,
    timestamp_s: u64,
    rules: &EthereumRules,
) -> Header {
    let draft = Header {
        parent_hash,
        number: parent.number.saturating_add(1),
        timestamp: timestamp_s,
        gas_limit: parent.gas_limit,
        beneficiary: parent.beneficiary,
        mix_hash: parent.mix_hash,
        base_fee_per_gas: Some(next_base_fee_wei(parent)),
        ..Header::default()
    };
    let blobs = rules.blob_params(rules.fork(&draft));
    Header {
        excess_blob_gas: blobs.map(|blobs| next_excess_blob_gas(parent, &blobs)),
        parent_beacon_block_root: blobs.map(|_| B256::ZERO),
        ..draft
    }
}

/// The excess blob gas of the block after `parent`, which counts as one
/// without blobs if it is from before their fork.
///
/// # Source
/// EIP-4844, with the parameters of the child's fork (EIP-7840).
pub(crate) fn next_excess_blob_gas(parent: &Header, blobs: &BlobParams) -> u64 {
    parent
        .excess_blob_gas
        .unwrap_or_default()
        .saturating_add(parent.blob_gas_used.unwrap_or_default())
        .saturating_sub(blobs.target_blob_gas_per_block())
}

/// The root of the receipts trie of a block.
#[must_use]
pub fn receipts_root(receipts: &[TransactionReceipt]) -> B256 {
    proofs::calculate_receipt_root(receipts)
}

/// What all headers share: the fields of the Prague header that stay empty
/// without proof of work, a beacon chain, blobs and withdrawals.
fn template() -> Header {
    Header {
        parent_hash: B256::ZERO,
        ommers_hash: EMPTY_OMMER_ROOT_HASH,
        beneficiary: SEQUENCER_FEE_VAULT,
        transactions_root: EMPTY_WITHDRAWALS,
        receipts_root: EMPTY_WITHDRAWALS,
        logs_bloom: Bloom::ZERO,
        difficulty: U256::ZERO,
        number: 0,
        gas_limit: BLOCK_GAS_LIMIT,
        gas_used: 0,
        timestamp: 0,
        extra_data: Bytes::new(),
        mix_hash: B256::ZERO,
        nonce: B64::ZERO,
        base_fee_per_gas: None,
        withdrawals_root: Some(EMPTY_WITHDRAWALS),
        blob_gas_used: Some(0),
        excess_blob_gas: Some(0),
        parent_beacon_block_root: Some(B256::ZERO),
        requests_hash: Some(EMPTY_REQUESTS_HASH),
        ..Header::default()
    }
}
