//! Blocks, transactions, receipts and logs as JSON-RPC shows them.

use alloy_consensus::transaction::TransactionInfo;
use alloy_consensus::{BlockBody, ReceiptEnvelope, Transaction as _};
use alloy_eips::BlockNumberOrTag;
use alloy_eips::eip4895::Withdrawals;
use alloy_primitives::{B256, U256};
use alloy_rpc_types_eth::{
    Block as RpcBlock, BlockTransactions, Header as RpcHeader, Log as RpcLog,
    TransactionReceipt as RpcReceipt,
};
use ol_node::{
    Block, BlockRef, Header, LogInBlock, ReceiptInBlock, Recovered, Transaction,
    TransactionInBlock, TransactionReceipt,
};
use op_alloy_consensus::OpReceiptEnvelope;
use op_alloy_consensus::transaction::{OpDepositInfo, OpTransactionInfo};
use serde::Serialize;

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
    let size_bytes = size_bytes(&header, &transactions);
    let shown = if with_transactions {
        let full = transactions
            .into_iter()
            .enumerate()
            .map(|(position, transaction)| placed(transaction, &header, hash, position))
            .collect();
        BlockTransactions::Full(full)
    } else {
        let hashes = transactions.iter().map(|tx| tx.tx_hash()).collect();
        BlockTransactions::Hashes(hashes)
    };
    RpcBlock {
        header: RpcHeader {
            hash,
            inner: header,
            total_difficulty: Some(U256::ZERO),
            size: Some(U256::from(size_bytes)),
        },
        uncles: Vec::new(),
        transactions: shown,
        withdrawals: Some(Withdrawals::default()),
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
fn size_bytes(header: &Header, transactions: &[Recovered<Transaction>]) -> usize {
    let body = BlockBody {
        transactions: transactions.iter().map(Recovered::inner).collect(),
        ommers: Vec::<Header>::new(),
        withdrawals: Some(Withdrawals::default()),
    };
    alloy_consensus::Block::<&Transaction>::rlp_length_for(header, &body)
}

pub(super) fn transaction(found: TransactionInBlock) -> RpcTransaction {
    let TransactionInBlock {
        transaction,
        header,
        block_hash,
        position,
    } = found;
    placed(transaction, &header, block_hash, position)
}

fn placed(
    transaction: Recovered<Transaction>,
    header: &Header,
    block_hash: B256,
    position: usize,
) -> RpcTransaction {
    let info = TransactionInfo {
        hash: Some(transaction.tx_hash()),
        index: Some(position as u64),
        block_hash: Some(block_hash),
        block_number: Some(header.number),
        base_fee: header.base_fee_per_gas,
        block_timestamp: Some(header.timestamp),
    };
    let info = OpTransactionInfo::new(info, OpDepositInfo::default());
    RpcTransaction::from_transaction(transaction, info)
}

pub(super) fn receipt(found: ReceiptInBlock) -> RpcReceipt<RpcReceiptBody> {
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
            block_hash: Some(place.block_hash),
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
        block_hash: Some(place.block_hash),
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
