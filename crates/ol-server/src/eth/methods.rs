//! The methods: parameters in, JSON out.

use alloy_eips::{BlockId, BlockNumberOrTag};
use alloy_primitives::{Address, B256, Bytes, U64, U256, keccak256};
use alloy_rpc_types_eth::{FeeHistory, Filter};
use jsonrpsee::types::{ErrorObjectOwned, Params, params::ParamsSequence};
use ol_node::{BlockRef, CallStatus, Inclusion, Node, PRIORITY_FEE_WEI};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tokio::sync::oneshot;

use super::{errors, shapes};

type Reply = Result<Value, ErrorObjectOwned>;

/// A method that may read the disk or run the EVM; it gets a thread of its own.
pub(super) type Method = fn(&Params<'_>, &Node) -> Reply;

/// Most percentiles of a fee history.
const PERCENTILES_MAX: usize = 100;

/// All methods but those that send.
pub(super) const METHODS: &[(&str, Method)] = &[
    ("eth_accounts", |_, _| Ok(json!([]))),
    ("eth_blockNumber", |_, node| {
        quantity(node.head().header.number)
    }),
    ("eth_call", call),
    ("eth_chainId", |_, node| quantity(node.chain_id())),
    ("eth_estimateGas", estimate_gas),
    ("eth_feeHistory", fee_history),
    ("eth_gasPrice", |_, node| {
        quantity(node.next_base_fee_wei().saturating_add(PRIORITY_FEE_WEI))
    }),
    ("eth_getBalance", balance),
    ("eth_getBlockByHash", block_by_hash),
    ("eth_getBlockByNumber", block_by_number),
    ("eth_getBlockReceipts", block_receipts),
    ("eth_getBlockTransactionCountByHash", |params, node| {
        let block = BlockRef::Hash(one(params)?);
        transaction_count_of_block(node, block)
    }),
    ("eth_getBlockTransactionCountByNumber", |params, node| {
        let block = shapes::block_ref(one(params)?);
        transaction_count_of_block(node, block)
    }),
    ("eth_getCode", code),
    ("eth_getLogs", logs),
    ("eth_getStorageAt", storage),
    ("eth_getTransactionByHash", transaction_by_hash),
    ("eth_getTransactionCount", transaction_count),
    ("eth_getTransactionReceipt", transaction_receipt),
    ("eth_maxPriorityFeePerGas", |_, _| {
        quantity(PRIORITY_FEE_WEI)
    }),
    ("eth_syncing", |_, _| Ok(json!(false))),
    ("net_listening", |_, _| Ok(json!(true))),
    ("net_peerCount", |_, _| quantity(0)),
    ("net_version", |_, node| {
        Ok(json!(node.chain_id().to_string()))
    }),
    ("web3_clientVersion", |_, _| {
        Ok(json!(concat!(
            "openledger/v",
            env!("CARGO_PKG_VERSION"),
            "/rust"
        )))
    }),
    ("web3_sha3", |params, _| {
        shown(keccak256(one::<Bytes>(params)?))
    }),
];

/// Takes a transaction and answers with its hash when its block is on disk.
pub(super) async fn send_raw_transaction(params: &Params<'_>, node: &Node) -> Reply {
    let raw: Bytes = one(params)?;
    shown(include(&raw, node).await?.transaction_hash)
}

/// [`send_raw_transaction`], answering with the receipt (EIP-7966).
pub(super) async fn send_raw_transaction_sync(params: &Params<'_>, node: &Node) -> Reply {
    let mut params = params.sequence();
    let raw: Bytes = params.next()?;
    // How long to wait. A block is made at once, so it is not needed.
    let _: Option<U64> = params.optional_next()?;
    let inclusion = include(&raw, node).await?;
    let found = node
        .receipt(inclusion.transaction_hash)
        .map_err(errors::query)?;
    shown(found.map(shapes::receipt))
}

async fn include(raw: &[u8], node: &Node) -> Result<Inclusion, ErrorObjectOwned> {
    let (sender, receiver) = oneshot::channel();
    node.submit_then(raw, move |outcome| {
        // The caller may have hung up; the transaction is in its block anyway.
        let _ = sender.send(outcome);
    })
    .map_err(errors::submit)?;
    receiver
        .await
        .map_err(|_| errors::submit(ol_node::SubmitError::Stopped))?
        .map_err(errors::submit)
}

fn call(params: &Params<'_>, node: &Node) -> Reply {
    let mut params = params.sequence();
    let request = shapes::call_request(params.next()?)?;
    let at = optional_block(node, &mut params)?;
    refuse_overrides(&mut params)?;
    let output = node.call(&request, at).map_err(errors::query)?;
    match output.status {
        CallStatus::Success => shown(output.output),
        CallStatus::Revert => Err(errors::reverted(&output.output)),
        CallStatus::Halt { is_out_of_gas, .. } if is_out_of_gas => {
            Err(errors::refused("out of gas"))
        }
        CallStatus::Halt { reason, .. } => Err(errors::refused(format!("call halted: {reason}"))),
    }
}

fn estimate_gas(params: &Params<'_>, node: &Node) -> Reply {
    let mut params = params.sequence();
    let request = shapes::call_request(params.next()?)?;
    let at = optional_block(node, &mut params)?;
    refuse_overrides(&mut params)?;
    quantity(node.estimate_gas(&request, at).map_err(errors::query)?)
}

fn fee_history(params: &Params<'_>, node: &Node) -> Reply {
    let mut params = params.sequence();
    let n_blocks: U64 = params.next()?;
    let newest: BlockNumberOrTag = params.next()?;
    let percentiles: Option<Vec<f64>> = params.optional_next()?;
    let percentiles_bps = percentiles
        .as_deref()
        .map(percentiles_bps)
        .transpose()?
        .unwrap_or_default();
    let found = node
        .fee_history(n_blocks.to(), shapes::block_ref(newest), &percentiles_bps)
        .map_err(errors::query)?;
    let n_blocks = found.gas.len();
    shown(FeeHistory {
        base_fee_per_gas: found.base_fees_wei.into_iter().map(u128::from).collect(),
        #[expect(clippy::cast_precision_loss, reason = "a ratio for display")]
        gas_used_ratio: found
            .gas
            .into_iter()
            .map(|(used, limit)| used as f64 / limit.max(1) as f64)
            .collect(),
        base_fee_per_blob_gas: vec![1; n_blocks + 1],
        blob_gas_used_ratio: vec![0.0; n_blocks],
        oldest_block: found.oldest_block,
        reward: percentiles.map(|_| found.tips_wei),
    })
}

/// Percentiles as basis points; they must ascend within 0 to 100.
fn percentiles_bps(percentiles: &[f64]) -> Result<Vec<u32>, ErrorObjectOwned> {
    let is_valid = percentiles.len() <= PERCENTILES_MAX
        && percentiles.iter().all(|p| (0.0..=100.0).contains(p))
        && percentiles.is_sorted();
    if !is_valid {
        return Err(errors::invalid_params("invalid reward percentiles"));
    }
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "within 0 to 10,000"
    )]
    let bps = percentiles.iter().map(|p| (p * 100.0).round() as u32);
    Ok(bps.collect())
}

fn balance(params: &Params<'_>, node: &Node) -> Reply {
    let mut params = params.sequence();
    let address: Address = params.next()?;
    let at = optional_block(node, &mut params)?;
    shown(node.balance_wei(address, at).map_err(errors::query)?)
}

fn code(params: &Params<'_>, node: &Node) -> Reply {
    let mut params = params.sequence();
    let address: Address = params.next()?;
    let at = optional_block(node, &mut params)?;
    shown(node.code(address, at).map_err(errors::query)?)
}

fn storage(params: &Params<'_>, node: &Node) -> Reply {
    let mut params = params.sequence();
    let address: Address = params.next()?;
    let slot: U256 = params.next()?;
    let at = optional_block(node, &mut params)?;
    let value = node.storage(address, slot, at).map_err(errors::query)?;
    shown(B256::from(value))
}

fn transaction_count(params: &Params<'_>, node: &Node) -> Reply {
    let mut params = params.sequence();
    let address: Address = params.next()?;
    let at = optional_block(node, &mut params)?;
    quantity(node.nonce(address, at).map_err(errors::query)?)
}

fn block_by_hash(params: &Params<'_>, node: &Node) -> Reply {
    let mut params = params.sequence();
    let hash: B256 = params.next()?;
    block(node, BlockRef::Hash(hash), &mut params)
}

fn block_by_number(params: &Params<'_>, node: &Node) -> Reply {
    let mut params = params.sequence();
    let number: BlockNumberOrTag = params.next()?;
    block(node, shapes::block_ref(number), &mut params)
}

fn block(node: &Node, at: BlockRef, params: &mut ParamsSequence<'_>) -> Reply {
    let with_transactions: Option<bool> = params.optional_next()?;
    let found = node.block(at).map_err(errors::query)?;
    shown(found.map(|found| shapes::block(found, with_transactions.unwrap_or(false))))
}

fn block_receipts(params: &Params<'_>, node: &Node) -> Reply {
    let at = match one::<BlockId>(params)? {
        BlockId::Hash(hash) => BlockRef::Hash(hash.block_hash),
        BlockId::Number(number) => shapes::block_ref(number),
    };
    let found = node.block_receipts(at).map_err(errors::query)?;
    shown(found.map(|receipts| {
        receipts
            .into_iter()
            .map(shapes::receipt)
            .collect::<Vec<_>>()
    }))
}

fn transaction_count_of_block(node: &Node, at: BlockRef) -> Reply {
    let found = node.block(at).map_err(errors::query)?;
    shown(found.map(|block| U64::from(block.transactions.len())))
}

fn logs(params: &Params<'_>, node: &Node) -> Reply {
    let filter = shapes::log_filter(node, one::<Filter>(params)?)?;
    let found = node.logs(&filter).map_err(errors::query)?;
    shown(found.into_iter().map(shapes::log).collect::<Vec<_>>())
}

fn transaction_by_hash(params: &Params<'_>, node: &Node) -> Reply {
    let found = node.transaction(one(params)?).map_err(errors::query)?;
    shown(found.map(shapes::transaction))
}

fn transaction_receipt(params: &Params<'_>, node: &Node) -> Reply {
    let found = node.receipt(one(params)?).map_err(errors::query)?;
    shown(found.map(shapes::receipt))
}

/// The first parameter; what follows is ignored.
fn one<T: DeserializeOwned>(params: &Params<'_>) -> Result<T, ErrorObjectOwned> {
    params.sequence().next()
}

/// The block parameter of a state query; the newest block if it is not given.
fn optional_block(
    node: &Node,
    params: &mut ParamsSequence<'_>,
) -> Result<BlockRef, ErrorObjectOwned> {
    match params.optional_next::<BlockId>()? {
        None => Ok(BlockRef::Latest),
        Some(BlockId::Number(number)) => Ok(shapes::block_ref(number)),
        // EIP-1898: a hash names one block; ours are all canonical.
        Some(BlockId::Hash(hash)) => {
            let at = BlockRef::Hash(hash.block_hash);
            match node.header(at).map_err(errors::query)? {
                Some(_) => Ok(at),
                None => Err(errors::refused("header not found")),
            }
        }
    }
}

/// State and block overrides are not supported; ignoring them would give a
/// wrong answer.
fn refuse_overrides(params: &mut ParamsSequence<'_>) -> Result<(), ErrorObjectOwned> {
    while let Some(overrides) = params.optional_next::<Value>()? {
        if overrides
            .as_object()
            .is_none_or(|object| !object.is_empty())
        {
            return Err(errors::invalid_params("overrides are not supported"));
        }
    }
    Ok(())
}

fn quantity(number: u64) -> Reply {
    shown(U64::from(number))
}

fn shown(value: impl Serialize) -> Reply {
    serde_json::to_value(value).map_err(|error| errors::refused(error.to_string()))
}
