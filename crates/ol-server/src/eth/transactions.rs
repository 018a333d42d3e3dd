//! Transactions: found in blocks, and sent.

use std::time::Duration;

use alloy_eips::BlockNumberOrTag;
use alloy_eips::eip2718::Encodable2718;
use alloy_primitives::{B256, Bytes, U64};
use jsonrpsee::types::ErrorObjectOwned;
use ol_node::{BlockRef, Node, Recovered, SubmitError, SubmitOutcome, Transaction};
use serde_json::Value;
use tokio::sync::oneshot;

use super::args::Args;
use super::method::{Method, Reply, shown};
use super::{Eth, errors, shapes};

pub(super) const METHODS: &[Method] = &[
    Method::read(
        "eth_getRawTransactionByBlockHashAndIndex",
        2,
        |args, eth| {
            let at = BlockRef::Hash(args.required()?);
            raw(in_block(args, eth, at)?)
        },
    ),
    Method::read(
        "eth_getRawTransactionByBlockNumberAndIndex",
        2,
        |args, eth| {
            let at = shapes::block_ref(args.required::<BlockNumberOrTag>()?);
            raw(in_block(args, eth, at)?)
        },
    ),
    Method::read("eth_getRawTransactionByHash", 1, |args, eth| {
        raw(anywhere(&eth.node, args.required()?)?)
    }),
    Method::read("eth_getTransactionByBlockHashAndIndex", 2, |args, eth| {
        let at = BlockRef::Hash(args.required()?);
        in_block(args, eth, at)?.map_or(Ok(Value::Null), Found::shown)
    }),
    Method::read("eth_getTransactionByBlockNumberAndIndex", 2, |args, eth| {
        let at = shapes::block_ref(args.required::<BlockNumberOrTag>()?);
        in_block(args, eth, at)?.map_or(Ok(Value::Null), Found::shown)
    }),
    Method::read("eth_getTransactionByHash", 1, |args, eth| {
        shown(find_anywhere(&eth.node, args.required()?)?)
    }),
    Method::read("eth_getTransactionReceipt", 2, receipt),
];

/// A transaction that was found.
enum Found {
    InBlock(Box<ol_node::TransactionInBlock>),
    Waiting(Box<Recovered<Transaction>>),
}

impl Found {
    fn transaction(&self) -> &Recovered<Transaction> {
        match self {
            Self::InBlock(found) => &found.transaction,
            Self::Waiting(transaction) => transaction,
        }
    }

    fn shown(self) -> Reply {
        shown(match self {
            Self::InBlock(found) => shapes::transaction(*found),
            Self::Waiting(transaction) => shapes::waiting_transaction(*transaction),
        })
    }
}

/// A transaction as JSON-RPC shows it, wherever it is.
///
/// # Errors
/// If the node fails.
pub(super) fn find_anywhere(node: &Node, hash: B256) -> Result<Option<Value>, ErrorObjectOwned> {
    anywhere(node, hash)?.map(Found::shown).transpose()
}

fn anywhere(node: &Node, hash: B256) -> Result<Option<Found>, ErrorObjectOwned> {
    // What waits is looked at first: it may go into a block in between, and
    // never the other way.
    if let Some(pooled) = node.pool_transaction(hash) {
        return Ok(Some(Found::Waiting(Box::new(pooled.transaction.clone()))));
    }
    let found = node.transaction(hash).map_err(errors::query)?;
    Ok(found.map(|found| Found::InBlock(Box::new(found))))
}

fn in_block(
    args: &mut Args<'_>,
    eth: &Eth,
    at: BlockRef,
) -> Result<Option<Found>, ErrorObjectOwned> {
    let position: U64 = args.required()?;
    let position = usize::try_from(position.to::<u64>()).unwrap_or(usize::MAX);
    if at == BlockRef::Pending {
        let pending = eth.node.pending();
        let found = pending.transactions.get(position);
        return Ok(found.map(|found| Found::Waiting(Box::new(found.transaction.clone()))));
    }
    let Some(mut block) = eth.node.block(at).map_err(errors::query)? else {
        return Ok(None);
    };
    if position >= block.transactions.len() {
        return Ok(None);
    }
    let found = ol_node::TransactionInBlock {
        transaction: block.transactions.swap_remove(position),
        header: block.header,
        block_hash: block.hash,
        position,
    };
    Ok(Some(Found::InBlock(Box::new(found))))
}

/// A transaction as it was sent (EIP-2718); `0x` if there is none, as in geth.
fn raw(found: Option<Found>) -> Reply {
    let encoded = found.map(|found| found.transaction().inner().encoded_2718());
    shown(Bytes::from(encoded.unwrap_or_default()))
}

/// The receipt of a transaction in a durable block, as everywhere; with the
/// second parameter `pending`, also of one in the block that is being made.
fn receipt(args: &mut Args<'_>, eth: &Eth) -> Reply {
    let hash: B256 = args.required()?;
    let at: Option<BlockNumberOrTag> = args.optional()?;
    if at == Some(BlockNumberOrTag::Pending)
        && let Some(found) = pending_receipt(&eth.node, hash)
    {
        return found;
    }
    let found = eth.node.receipt(hash).map_err(errors::query)?;
    shown(found.map(shapes::receipt))
}

fn pending_receipt(node: &Node, hash: B256) -> Option<Reply> {
    let pending = node.pending();
    let (position, _) = pending.find(hash)?;
    shapes::pending_receipt(&pending, position).map(shown)
}

/// Takes a transaction and answers with its hash when it is known what becomes
/// of it first: it is executed, or it waits.
pub(super) async fn send_raw(args: &mut Args<'_>, eth: &Eth) -> Reply {
    let raw: Bytes = args.required()?;
    shown(send(&raw, eth).await?)
}

/// [`send_raw`], answering with the receipt (EIP-7966): that of the pending
/// block if blocks are not made on demand.
pub(super) async fn send_raw_sync(args: &mut Args<'_>, eth: &Eth) -> Reply {
    let raw: Bytes = args.required()?;
    let asked_ms: Option<U64> = args.optional()?;
    let most_ms = eth.limits.request_timeout_s.saturating_mul(1_000);
    let wait_ms = asked_ms.map_or(most_ms, |ms| ms.to::<u64>().clamp(1, most_ms));
    let feed = eth
        .events
        .feed()
        .map_err(|error| errors::internal(&error))?;
    let mut events = feed.subscribe();
    let hash = send(&raw, eth).await?;
    let executed = async {
        loop {
            if let Some(found) = pending_receipt(&eth.node, hash) {
                return found;
            }
            if let Some(found) = eth.node.receipt(hash).map_err(errors::query)? {
                return shown(shapes::receipt(found));
            }
            // Whatever happens, and also if some of it was missed, look again.
            if let Err(tokio::sync::broadcast::error::RecvError::Closed) = events.recv().await {
                return Err(errors::submit(SubmitError::Stopped));
            }
        }
    };
    tokio::time::timeout(Duration::from_millis(wait_ms), executed)
        .await
        .map_err(|_| errors::not_executed_yet(hash, wait_ms))?
}

/// Sends a transaction to the node that makes the blocks: this one, or the one
/// that it follows.
async fn send(raw: &Bytes, eth: &Eth) -> Result<B256, ErrorObjectOwned> {
    match eth.forwarder() {
        Some(forwarder) => forwarder.send_raw(raw).await,
        None => Ok(submit(raw, &eth.node).await?.transaction_hash()),
    }
}

async fn submit(raw: &[u8], node: &Node) -> Result<SubmitOutcome, ErrorObjectOwned> {
    let (sender, receiver) = oneshot::channel();
    node.submit_with(raw, move |outcome| {
        // The caller may have hung up; the transaction is in its block anyway.
        let _ = sender.send(outcome);
    })
    .map_err(errors::submit)?;
    receiver
        .await
        .map_err(|_| errors::submit(SubmitError::Stopped))?
        .map_err(errors::submit)
}
