//! Logs by filter.

use alloy_eips::BlockNumberOrTag;
use alloy_rpc_types_eth::{Filter as LogCriteria, FilterBlockOption};
use jsonrpsee::types::ErrorObjectOwned;
use ol_node::{BlockRef, LogFilter};

use super::args::Args;
use super::method::{Method, Reply, shown};
use super::{Eth, errors, shapes};

/// Most addresses, or topics at one position, in a log filter; as in geth.
const ALTERNATIVES_MAX: usize = 1_000;

pub(super) const METHODS: &[Method] = &[Method::call(
    "eth_getLogs",
    1,
    |args: &mut Args<'_>, eth| logs_in_range(eth, &checked(args.required()?)?),
)];

/// A filter that is not too large.
pub(super) fn checked(criteria: LogCriteria) -> Result<LogCriteria, ErrorObjectOwned> {
    let too_many = |what: &str| {
        errors::invalid_params(format!(
            "exceed max {what}: at most {ALTERNATIVES_MAX} are allowed"
        ))
    };
    if criteria.address.len() > ALTERNATIVES_MAX {
        return Err(too_many("addresses"));
    }
    if criteria
        .topics
        .iter()
        .any(|any| any.len() > ALTERNATIVES_MAX)
    {
        return Err(too_many("topics"));
    }
    Ok(criteria)
}

/// What a filter asks for, in whatever block.
pub(super) fn find(criteria: &LogCriteria) -> LogFilter {
    LogFilter {
        from_block: 0,
        to_block: u64::MAX,
        addresses: criteria.address.iter().copied().collect(),
        topics: criteria
            .topics
            .each_ref()
            .map(|any| any.iter().copied().collect()),
    }
}

/// The numbers between which a filter asks, where it gives numbers; `None` if
/// it asks for one block by its hash.
pub(super) fn range_of(criteria: &LogCriteria) -> Option<(Option<u64>, Option<u64>)> {
    let number = |block: Option<BlockNumberOrTag>| match block {
        Some(BlockNumberOrTag::Number(number)) => Some(number),
        Some(BlockNumberOrTag::Earliest) => Some(0),
        _ => None,
    };
    match criteria.block_option {
        FilterBlockOption::Range {
            from_block,
            to_block,
        } => Some((number(from_block), number(to_block))),
        FilterBlockOption::AtBlockHash(_) => None,
    }
}

/// The logs that a filter asks for, in its range; the newest block if it gives
/// none.
pub(super) fn logs_in_range(eth: &Eth, criteria: &LogCriteria) -> Reply {
    let mut filter = find(criteria);
    let head = eth.node.head().header.number;
    let mut with_pending = false;
    match criteria.block_option {
        FilterBlockOption::Range {
            from_block,
            to_block,
        } => {
            let number = |block: Option<BlockNumberOrTag>| match block {
                Some(BlockNumberOrTag::Number(number)) => number,
                Some(BlockNumberOrTag::Earliest) => 0,
                Some(BlockNumberOrTag::Pending) => head.saturating_add(1),
                _ => head,
            };
            with_pending = to_block == Some(BlockNumberOrTag::Pending);
            filter.from_block = number(from_block);
            filter.to_block = number(to_block);
        }
        FilterBlockOption::AtBlockHash(hash) => {
            let found = eth
                .node
                .header(BlockRef::Hash(hash))
                .map_err(errors::query)?;
            let (header, _) = found.ok_or_else(|| errors::refused("unknown block"))?;
            filter.from_block = header.number;
            filter.to_block = header.number;
        }
    }
    // Taken first, so that what becomes durable in between is not missed.
    let pending = with_pending.then(|| eth.node.pending());
    let found = eth.node.logs(&filter).map_err(errors::query)?;
    let mut logs: Vec<_> = found.into_iter().map(shapes::log).collect();
    if let Some(pending) = pending {
        let last = logs.last().and_then(|log| log.block_number);
        if last.is_none_or(|last| last < pending.context.number) {
            logs.extend(shapes::logs_of_pending(&pending, &filter));
        }
    }
    shown(logs)
}
