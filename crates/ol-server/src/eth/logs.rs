//! Logs by filter.

use alloy_eips::BlockNumberOrTag;
use alloy_rpc_types_eth::{Filter, FilterBlockOption};
use jsonrpsee::types::ErrorObjectOwned;
use ol_node::{BlockRef, LogFilter, Node};

use super::args::Args;
use super::method::{Method, Reply, shown};
use super::{Eth, errors, shapes};

/// Most addresses, or topics at one position, in a log filter.
const FILTER_ALTERNATIVES_MAX: usize = 1_000;

pub(super) const METHODS: &[Method] = &[Method::call("eth_getLogs", 1, logs)];

fn logs(args: &mut Args<'_>, eth: &Eth) -> Reply {
    let filter = log_filter(&eth.node, args.required::<Filter>()?)?;
    let found = eth.node.logs(&filter).map_err(errors::query)?;
    shown(found.into_iter().map(shapes::log).collect::<Vec<_>>())
}

/// A filter as the node takes it.
fn log_filter(node: &Node, filter: Filter) -> Result<LogFilter, ErrorObjectOwned> {
    let head = node.head().header.number;
    let number =
        |block: Option<BlockNumberOrTag>| match block.map_or(BlockRef::Latest, shapes::block_ref) {
            BlockRef::Number(number) => number,
            BlockRef::Earliest => 0,
            _ => head,
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
