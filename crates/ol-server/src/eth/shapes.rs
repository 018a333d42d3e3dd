//! Blocks, transactions, receipts and logs as JSON-RPC shows them.

use alloy_consensus::transaction::TransactionInfo;
use alloy_consensus::{BlockBody, Transaction as _};
use alloy_eips::BlockNumberOrTag;
use alloy_eips::eip4895::Withdrawals;
use alloy_primitives::{B256, U256};
use alloy_rpc_types_eth::{
    Block as RpcBlock, BlockTransactions, Filter, FilterBlockOption, Header as RpcHeader,
    Log as RpcLog, TransactionReceipt as RpcReceipt, TransactionRequest,
};
use jsonrpsee::types::ErrorObjectOwned;
use ol_node::{
    Block, BlockRef, CallRequest, Header, LogFilter, LogInBlock, Node, ReceiptInBlock, Recovered,
    Transaction, TransactionInBlock,
};
use op_alloy_consensus::OpReceiptEnvelope;
use op_alloy_consensus::transaction::{OpDepositInfo, OpTransactionInfo};
use op_alloy_rpc_types::Transaction as RpcTransaction;

use super::errors;

/// Most addresses, or topics at one position, in a log filter.
const FILTER_ALTERNATIVES_MAX: usize = 1_000;

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

pub(super) fn receipt(found: ReceiptInBlock) -> RpcReceipt<OpReceiptEnvelope<RpcLog>> {
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

/// The message that a transaction request describes.
pub(super) fn call_request(request: TransactionRequest) -> Result<CallRequest, ErrorObjectOwned> {
    if request.gas_price.is_some() && request.max_fee_per_gas.is_some() {
        let both = "both gasPrice and (maxFeePerGas or maxPriorityFeePerGas) specified";
        return Err(errors::invalid_params(both));
    }
    let input = request
        .input
        .try_into_unique_input()
        .map_err(|error| errors::invalid_params(error.to_string()))?;
    Ok(CallRequest {
        from: request.from.unwrap_or_default(),
        to: request.to.and_then(|to| to.into_to()),
        gas_limit: request.gas,
        max_fee_wei: request.max_fee_per_gas.or(request.gas_price),
        max_priority_fee_wei: request.max_priority_fee_per_gas,
        value_wei: request.value.unwrap_or_default(),
        input: input.unwrap_or_default(),
        access_list: request.access_list.unwrap_or_default(),
        authorization_list: request.authorization_list.unwrap_or_default(),
    })
}

/// The block that a number or a tag means.
pub(super) const fn block_ref(block: BlockNumberOrTag) -> BlockRef {
    match block {
        BlockNumberOrTag::Number(number) => BlockRef::Number(number),
        BlockNumberOrTag::Earliest => BlockRef::Number(0),
        BlockNumberOrTag::Latest
        | BlockNumberOrTag::Pending
        | BlockNumberOrTag::Safe
        | BlockNumberOrTag::Finalized => BlockRef::Latest,
    }
}

/// A filter as the node takes it.
pub(super) fn log_filter(node: &Node, filter: Filter) -> Result<LogFilter, ErrorObjectOwned> {
    let head = node.head().header.number;
    let number = |block: Option<BlockNumberOrTag>| match block.map_or(BlockRef::Latest, block_ref) {
        BlockRef::Number(number) => number,
        BlockRef::Latest | BlockRef::Hash(_) => head,
    };
    let (from_block, to_block) = match filter.block_option {
        FilterBlockOption::Range {
            from_block,
            to_block,
        } => (number(from_block), number(to_block)),
        FilterBlockOption::AtBlockHash(hash) => {
            let found = node.header(BlockRef::Hash(hash)).map_err(errors::query)?;
            let (header, _) = found.ok_or_else(|| errors::refused("unknown block"))?;
            (header.number, header.number)
        }
    };
    let too_many = || errors::invalid_params("too many addresses or topics in the filter");
    let addresses: Vec<_> = filter.address.iter().copied().collect();
    let topics = filter
        .topics
        .map(|topic| topic.iter().copied().collect::<Vec<_>>());
    if addresses.len() > FILTER_ALTERNATIVES_MAX
        || topics.iter().any(|any| any.len() > FILTER_ALTERNATIVES_MAX)
    {
        return Err(too_many());
    }
    Ok(LogFilter {
        from_block,
        to_block,
        addresses,
        topics,
    })
}
