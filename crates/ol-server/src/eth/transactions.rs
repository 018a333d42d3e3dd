//! Transactions: found in blocks, and sent.

use alloy_eips::BlockNumberOrTag;
use alloy_eips::eip2718::Encodable2718;
use alloy_primitives::{B256, Bytes, U64};
use jsonrpsee::types::ErrorObjectOwned;
use ol_node::{BlockRef, Inclusion, Node, TransactionInBlock};
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
        raw(by_hash(args, eth)?)
    }),
    Method::read("eth_getTransactionByBlockHashAndIndex", 2, |args, eth| {
        let at = BlockRef::Hash(args.required()?);
        shown(in_block(args, eth, at)?.map(shapes::transaction))
    }),
    Method::read("eth_getTransactionByBlockNumberAndIndex", 2, |args, eth| {
        let at = shapes::block_ref(args.required::<BlockNumberOrTag>()?);
        shown(in_block(args, eth, at)?.map(shapes::transaction))
    }),
    Method::read("eth_getTransactionByHash", 1, |args, eth| {
        shown(by_hash(args, eth)?.map(shapes::transaction))
    }),
    Method::read("eth_getTransactionReceipt", 1, |args, eth| {
        let hash: B256 = args.required()?;
        let found = eth.node.receipt(hash).map_err(errors::query)?;
        shown(found.map(shapes::receipt))
    }),
];

fn by_hash(args: &mut Args<'_>, eth: &Eth) -> Result<Option<TransactionInBlock>, ErrorObjectOwned> {
    let hash: B256 = args.required()?;
    eth.node.transaction(hash).map_err(errors::query)
}

fn in_block(
    args: &mut Args<'_>,
    eth: &Eth,
    at: BlockRef,
) -> Result<Option<TransactionInBlock>, ErrorObjectOwned> {
    let position: U64 = args.required()?;
    let position = usize::try_from(position.to::<u64>()).unwrap_or(usize::MAX);
    let Some(mut block) = eth.node.block(at).map_err(errors::query)? else {
        return Ok(None);
    };
    if position >= block.transactions.len() {
        return Ok(None);
    }
    Ok(Some(TransactionInBlock {
        transaction: block.transactions.swap_remove(position),
        header: block.header,
        block_hash: block.hash,
        position,
    }))
}

/// A transaction as it was sent (EIP-2718); `0x` if there is none, as in geth.
fn raw(found: Option<TransactionInBlock>) -> Reply {
    let encoded = found.map(|found| found.transaction.inner().encoded_2718());
    shown(Bytes::from(encoded.unwrap_or_default()))
}

/// Takes a transaction and answers with its hash when its block is on disk.
pub(super) async fn send_raw(args: &mut Args<'_>, eth: &Eth) -> Reply {
    let raw: Bytes = args.required()?;
    shown(include(&raw, &eth.node).await?.transaction_hash)
}

/// [`send_raw`], answering with the receipt (EIP-7966).
pub(super) async fn send_raw_sync(args: &mut Args<'_>, eth: &Eth) -> Reply {
    let raw: Bytes = args.required()?;
    // How long to wait. A block is made at once, so it is not needed.
    let _: Option<U64> = args.optional()?;
    let inclusion = include(&raw, &eth.node).await?;
    let found = eth
        .node
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
