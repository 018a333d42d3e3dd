//! Blocks, transactions, receipts and logs as JSON-RPC shows them.

use std::sync::Arc;

use alloy_consensus::transaction::TransactionInfo;
use alloy_consensus::{BlockBody, ReceiptEnvelope, Transaction as _};
use alloy_eips::BlockNumberOrTag;
use alloy_eips::eip4895::Withdrawals;
use alloy_primitives::{Address, B256, Bloom, U256};
use alloy_rpc_types_eth::{
    Block as RpcBlock, BlockTransactions, Header as RpcHeader, Log as RpcLog,
    TransactionReceipt as RpcReceipt,
};
use ol_node::{
    Block, BlockRef, Header, LogFilter, LogInBlock, NewBlock, PendingBlock, PendingTransaction,
    ReceiptInBlock, Recovered, Transaction, TransactionInBlock, TransactionReceipt,
};
use op_alloy_consensus::OpReceiptEnvelope;
use op_alloy_consensus::transaction::{OpDepositInfo, OpTransactionInfo};
use serde::Serialize;
use serde_json::Value;

/// A transaction as JSON-RPC shows it.
pub(super) type RpcTransaction = op_alloy_rpc_types::Transaction<Transaction>;

/// The part of a receipt that depends on its type.
#[derive(Debug, Serialize)]
#[serde(untagged)]
pub(super) enum RpcReceiptBody {
    /// Of a transaction of Ethereum.
    Ethereum(ReceiptEnvelope<RpcLog>),
    /// Of a deposit.
    Deposit(OpReceiptEnvelope<RpcLog>),
}

pub(super) fn block(
    block: Block,
    with_transactions: bool,
) -> RpcBlock<RpcTransaction, RpcHeader<Header>> {
    let Block {
        header,
        hash,
        transactions,
    } = block;
    let size_bytes = size_bytes(&header, transactions.iter().map(Recovered::inner).collect());
    let shown = if with_transactions {
        let full = transactions
            .into_iter()
            .enumerate()
            .map(|(position, transaction)| {
                transaction_at(transaction, &Place::of(&header, Some(hash), position))
            })
            .collect();
        BlockTransactions::Full(full)
    } else {
        let hashes = transactions.iter().map(|tx| tx.tx_hash()).collect();
        BlockTransactions::Hashes(hashes)
    };
    assemble(header, hash, size_bytes, shown)
}

fn assemble(
    header: Header,
    hash: B256,
    size_bytes: usize,
    transactions: BlockTransactions<RpcTransaction>,
) -> RpcBlock<RpcTransaction, RpcHeader<Header>> {
    RpcBlock {
        header: RpcHeader {
            hash,
            inner: header,
            total_difficulty: Some(U256::ZERO),
            size: Some(U256::from(size_bytes)),
        },
        uncles: Vec::new(),
        transactions,
        withdrawals: Some(Withdrawals::default()),
    }
}

/// The block that is being made. What it does not have yet is `null`, as in geth.
pub(super) fn pending_block(
    pending: &PendingBlock,
    with_transactions: bool,
) -> Result<Value, serde_json::Error> {
    let header = pending_header(pending);
    let inner = |tx: &'_ Arc<PendingTransaction>| tx.transaction.inner().clone();
    let bare: Vec<_> = pending.transactions.iter().map(inner).collect();
    let size_bytes = size_bytes(&header, bare.iter().collect());
    let shown = if with_transactions {
        let full = (0..)
            .zip(&pending.transactions)
            .map(|(position, tx)| {
                transaction_at(tx.transaction.clone(), &Place::of(&header, None, position))
            })
            .collect();
        BlockTransactions::Full(full)
    } else {
        BlockTransactions::Hashes(pending.transactions.iter().map(|tx| tx.hash).collect())
    };
    let block = assemble(header, B256::ZERO, size_bytes, shown);
    without_seal(serde_json::to_value(block)?)
}

/// The header of the block that is being made.
pub(super) fn pending_header_shown(pending: &PendingBlock) -> Result<Value, serde_json::Error> {
    let shown = self::header(pending_header(pending), B256::ZERO);
    without_seal(serde_json::to_value(shown)?)
}

fn without_seal(mut shown: Value) -> Result<Value, serde_json::Error> {
    if let Some(fields) = shown.as_object_mut() {
        for unknown in ["hash", "nonce", "miner", "stateRoot"] {
            fields.insert(unknown.to_owned(), Value::Null);
        }
    }
    Ok(shown)
}

fn pending_header(pending: &PendingBlock) -> Header {
    let context = &pending.context;
    let mut logs_bloom = Bloom::ZERO;
    for transaction in &pending.transactions {
        logs_bloom.accrue_bloom(transaction.receipt.logs_bloom());
    }
    Header {
        parent_hash: context.parent_hash,
        number: context.number,
        timestamp: context.timestamp_s,
        gas_limit: context.gas_limit,
        gas_used: pending.gas_used(),
        base_fee_per_gas: Some(context.base_fee_wei),
        beneficiary: Address::ZERO,
        logs_bloom,
        ..Header::default()
    }
}

/// Where a transaction is; without a hash, in the pending block.
struct Place {
    block_hash: Option<B256>,
    block_number: u64,
    block_timestamp_s: u64,
    base_fee_wei: Option<u64>,
    position: usize,
}

impl Place {
    const fn of(header: &Header, block_hash: Option<B256>, position: usize) -> Self {
        Self {
            block_hash,
            block_number: header.number,
            block_timestamp_s: header.timestamp,
            base_fee_wei: header.base_fee_per_gas,
            position,
        }
    }
}

/// A header alone: its size is not known without its body.
pub(super) fn header(header: Header, hash: B256) -> RpcHeader<Header> {
    RpcHeader {
        hash,
        inner: header,
        total_difficulty: Some(U256::ZERO),
        size: None,
    }
}

/// The length of a block in RLP.
fn size_bytes(header: &Header, transactions: Vec<&Transaction>) -> usize {
    let body = BlockBody {
        transactions,
        ommers: Vec::<Header>::new(),
        withdrawals: Some(Withdrawals::default()),
    };
    alloy_consensus::Block::<&Transaction>::rlp_length_for(header, &body)
}

/// A block in RLP.
pub(super) fn block_rlp(block: Block) -> Vec<u8> {
    let has_withdrawals = block.header.withdrawals_root.is_some();
    let transactions = block.transactions.into_iter();
    let body = BlockBody {
        transactions: transactions.map(Recovered::into_inner).collect(),
        ommers: Vec::<Header>::new(),
        withdrawals: has_withdrawals.then(Withdrawals::default),
    };
    alloy_rlp::encode(alloy_consensus::Block::new(block.header, body))
}

pub(super) fn transaction(found: TransactionInBlock) -> RpcTransaction {
    let TransactionInBlock {
        transaction,
        header,
        block_hash,
        position,
    } = found;
    transaction_at(transaction, &Place::of(&header, Some(block_hash), position))
}

fn transaction_at(transaction: Recovered<Transaction>, place: &Place) -> RpcTransaction {
    let mut info = TransactionInfo {
        hash: Some(transaction.tx_hash()),
        base_fee: place.base_fee_wei,
        ..TransactionInfo::default()
    };
    if place.block_hash.is_some() {
        info.index = Some(place.position as u64);
        info.block_hash = place.block_hash;
        info.block_number = Some(place.block_number);
        info.block_timestamp = Some(place.block_timestamp_s);
    }
    let info = OpTransactionInfo::new(info, OpDepositInfo::default());
    RpcTransaction::from_transaction(transaction, info)
}

/// A transaction that is in no block on disk.
pub(super) fn waiting_transaction(transaction: Recovered<Transaction>) -> RpcTransaction {
    let info = TransactionInfo {
        hash: Some(transaction.tx_hash()),
        ..TransactionInfo::default()
    };
    let info = OpTransactionInfo::new(info, OpDepositInfo::default());
    RpcTransaction::from_transaction(transaction, info)
}

pub(super) fn receipt(found: ReceiptInBlock) -> RpcReceipt<RpcReceiptBody> {
    let block_hash = found.place.block_hash;
    receipt_at(found, Some(block_hash))
}

/// The receipt of a transaction in the pending block: it has no block hash yet.
pub(super) fn pending_receipt(
    pending: &PendingBlock,
    position: usize,
) -> Option<RpcReceipt<RpcReceiptBody>> {
    let found = pending.transactions.get(position)?;
    let place = TransactionInBlock {
        transaction: found.transaction.clone(),
        header: pending_header(pending),
        block_hash: B256::ZERO,
        position,
    };
    let found = ReceiptInBlock {
        receipt: found.receipt.clone(),
        place,
        gas_used: found.gas_used,
        n_logs_before: found.n_logs_before,
    };
    Some(receipt_at(found, None))
}

/// The receipts of the pending block.
pub(super) fn pending_receipts(pending: &PendingBlock) -> Vec<RpcReceipt<RpcReceiptBody>> {
    (0..pending.transactions.len())
        .filter_map(|position| pending_receipt(pending, position))
        .collect()
}

fn receipt_at(found: ReceiptInBlock, block_hash: Option<B256>) -> RpcReceipt<RpcReceiptBody> {
    let effective_gas_price = found.effective_gas_price_wei();
    let contract_address = found.contract_address();
    let ReceiptInBlock {
        receipt,
        place,
        gas_used,
        n_logs_before,
    } = found;
    let transaction_hash = place.transaction.tx_hash();
    let mut log_index = n_logs_before;
    let inner = receipt.map_logs(|log| {
        let shown = RpcLog {
            inner: log,
            block_hash,
            block_number: Some(place.header.number),
            block_timestamp: Some(place.header.timestamp),
            transaction_hash: Some(transaction_hash),
            transaction_index: Some(place.position as u64),
            log_index: Some(log_index),
            removed: false,
        };
        log_index += 1;
        shown
    });
    let inner = match inner {
        TransactionReceipt::Ethereum(receipt) => RpcReceiptBody::Ethereum(receipt),
        TransactionReceipt::Deposit(deposit) => {
            RpcReceiptBody::Deposit(OpReceiptEnvelope::Deposit(deposit))
        }
    };
    RpcReceipt {
        inner,
        transaction_hash,
        transaction_index: Some(place.position as u64),
        block_hash,
        block_number: Some(place.header.number),
        gas_used,
        effective_gas_price,
        blob_gas_used: None,
        blob_gas_price: None,
        from: place.transaction.signer(),
        to: place.transaction.to(),
        contract_address,
    }
}

pub(super) fn log(found: LogInBlock) -> RpcLog {
    RpcLog {
        inner: found.log,
        block_hash: Some(found.block_hash),
        block_number: Some(found.block_number),
        block_timestamp: Some(found.block_timestamp_s),
        transaction_hash: Some(found.transaction_hash),
        transaction_index: Some(found.transaction_position as u64),
        log_index: Some(found.position),
        removed: false,
    }
}

/// The logs of a block that a filter asks for.
pub(super) fn logs_of_block(block: &NewBlock, filter: &LogFilter, removed: bool) -> Vec<RpcLog> {
    let mut log_index = 0;
    let mut found = Vec::new();
    for (position, (transaction, receipt)) in
        block.transactions.iter().zip(&block.receipts).enumerate()
    {
        for log in receipt.logs() {
            if filter.matches(log) {
                found.push(RpcLog {
                    inner: log.clone(),
                    block_hash: Some(block.hash),
                    block_number: Some(block.header.number),
                    block_timestamp: Some(block.header.timestamp),
                    transaction_hash: Some(transaction.tx_hash()),
                    transaction_index: Some(position as u64),
                    log_index: Some(log_index),
                    removed,
                });
            }
            log_index += 1;
        }
    }
    found
}

/// The logs of the pending block that a filter asks for.
pub(super) fn logs_of_pending(pending: &PendingBlock, filter: &LogFilter) -> Vec<RpcLog> {
    let mut found = Vec::new();
    for (position, transaction) in pending.transactions.iter().enumerate() {
        for (log_index, log) in (transaction.n_logs_before..).zip(transaction.receipt.logs()) {
            if filter.matches(log) {
                found.push(RpcLog {
                    inner: log.clone(),
                    block_hash: None,
                    block_number: Some(pending.context.number),
                    block_timestamp: Some(pending.context.timestamp_s),
                    transaction_hash: Some(transaction.hash),
                    transaction_index: Some(position as u64),
                    log_index: Some(log_index),
                    removed: false,
                });
            }
        }
    }
    found
}

/// The block that a number or a tag means.
pub(super) const fn block_ref(block: BlockNumberOrTag) -> BlockRef {
    match block {
        BlockNumberOrTag::Number(number) => BlockRef::Number(number),
        BlockNumberOrTag::Earliest => BlockRef::Earliest,
        BlockNumberOrTag::Latest => BlockRef::Latest,
        BlockNumberOrTag::Pending => BlockRef::Pending,
        BlockNumberOrTag::Safe => BlockRef::Safe,
        BlockNumberOrTag::Finalized => BlockRef::Finalized,
    }
}
