//! Blocks, and what they hold.

use alloy_eips::{BlockId, BlockNumberOrTag};
use alloy_primitives::{B256, U64};
use ol_node::BlockRef;

use super::args::Args;
use super::method::{Method, Reply, quantity, shown};
use super::{Eth, errors, shapes};

pub(super) const METHODS: &[Method] = &[
    Method::free("eth_blockNumber", 0, |_, eth| {
        quantity(eth.node.head().header.number)
    }),
    Method::read("eth_getBlockByHash", 2, |args, eth| {
        let at = BlockRef::Hash(args.required()?);
        block(args, eth, at)
    }),
    Method::read("eth_getBlockByNumber", 2, |args, eth| {
        let at = shapes::block_ref(args.required()?);
        block(args, eth, at)
    }),
    Method::read("eth_getBlockReceipts", 1, receipts),
    Method::read("eth_getBlockTransactionCountByHash", 1, |args, eth| {
        transaction_count(eth, BlockRef::Hash(args.required()?))
    }),
    Method::read("eth_getBlockTransactionCountByNumber", 1, |args, eth| {
        transaction_count(eth, shapes::block_ref(args.required()?))
    }),
    Method::read("eth_getHeaderByHash", 1, |args, eth| {
        header(eth, BlockRef::Hash(args.required()?))
    }),
    Method::read("eth_getHeaderByNumber", 1, |args, eth| {
        header(eth, shapes::block_ref(args.required()?))
    }),
    Method::read("eth_getUncleByBlockHashAndIndex", 2, |args, _| {
        args.required::<B256>()?;
        args.required::<U64>()?;
        shown(())
    }),
    Method::read("eth_getUncleByBlockNumberAndIndex", 2, |args, _| {
        args.required::<BlockNumberOrTag>()?;
        args.required::<U64>()?;
        shown(())
    }),
    Method::read("eth_getUncleCountByBlockHash", 1, |args, eth| {
        uncle_count(eth, BlockRef::Hash(args.required()?))
    }),
    Method::read("eth_getUncleCountByBlockNumber", 1, |args, eth| {
        uncle_count(eth, shapes::block_ref(args.required()?))
    }),
];

fn block(args: &mut Args<'_>, eth: &Eth, at: BlockRef) -> Reply {
    let with_transactions: bool = args.required()?;
    if at == BlockRef::Pending {
        let shown = shapes::pending_block(&eth.node.pending(), with_transactions);
        return shown.map_err(|error| errors::internal(&error));
    }
    let found = eth.node.block(at).map_err(errors::query)?;
    shown(found.map(|found| shapes::block(found, with_transactions)))
}

fn header(eth: &Eth, at: BlockRef) -> Reply {
    if at == BlockRef::Pending {
        let shown = shapes::pending_header_shown(&eth.node.pending());
        return shown.map_err(|error| errors::internal(&error));
    }
    let found = eth.node.header(at).map_err(errors::query)?;
    shown(found.map(|(header, hash)| shapes::header(header, hash)))
}

fn receipts(args: &mut Args<'_>, eth: &Eth) -> Reply {
    let at = match args.required::<BlockId>()? {
        BlockId::Hash(hash) => BlockRef::Hash(hash.block_hash),
        BlockId::Number(number) => shapes::block_ref(number),
    };
    if at == BlockRef::Pending {
        return shown(shapes::pending_receipts(&eth.node.pending()));
    }
    let found = eth.node.block_receipts(at).map_err(errors::query)?;
    shown(found.map(|receipts| {
        receipts
            .into_iter()
            .map(shapes::receipt)
            .collect::<Vec<_>>()
    }))
}

fn transaction_count(eth: &Eth, at: BlockRef) -> Reply {
    if at == BlockRef::Pending {
        return shown(U64::from(eth.node.pending().transactions.len()));
    }
    let found = eth.node.block(at).map_err(errors::query)?;
    shown(found.map(|block| U64::from(block.transactions.len())))
}

/// Zero for every block there is: nobody works on two blocks at a time.
fn uncle_count(eth: &Eth, at: BlockRef) -> Reply {
    let found = eth.node.header(at).map_err(errors::query)?;
    shown(found.map(|_| U64::ZERO))
}
