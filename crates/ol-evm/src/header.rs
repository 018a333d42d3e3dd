//! Ethereum headers: base fee, sealing, genesis.

use alloy_consensus::{EMPTY_OMMER_ROOT_HASH, Header, constants::EMPTY_WITHDRAWALS, proofs};
use alloy_eips::eip1559::{BaseFeeParams, INITIAL_BASE_FEE};
use alloy_eips::eip7685::EMPTY_REQUESTS_HASH;
use alloy_primitives::{B64, B256, Bloom, Bytes, U256};

use crate::block::{BlockContext, Execution};
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
        ..template()
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
