//! Filters: questions that are asked again and again (`eth_newFilter` ...).

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use alloy_primitives::{B256, U128};
use alloy_rpc_types_eth::Filter as LogCriteria;
use jsonrpsee::types::ErrorObjectOwned;
use ol_node::{LogFilter, QueryError};
use ol_runtime::Clock;
use serde_json::{Value, json};

use super::args::Args;
use super::events::{Feed, Mark, Net};
use super::logs::{checked, find, logs_in_range, range_of};
use super::method::{Method, Reply, shown};
use super::{Eth, errors, shapes, transactions};

pub(super) const METHODS: &[Method] = &[
    Method::call("eth_getFilterChanges", 1, changes),
    Method::call("eth_getFilterLogs", 1, logs),
    Method::free("eth_newBlockFilter", 0, |_, eth| begin(eth, Kind::Blocks)),
    Method::free("eth_newFilter", 1, |args, eth| {
        let criteria = checked(args.required()?)?;
        begin(eth, Kind::Logs(Box::new(criteria)))
    }),
    Method::free("eth_newPendingTransactionFilter", 1, |args, eth| {
        let full = args.optional()?.unwrap_or(false);
        begin(eth, Kind::PendingTransactions { full })
    }),
    Method::free("eth_uninstallFilter", 1, |args, eth| {
        let id: U128 = args.required()?;
        shown(eth.filters.all().remove(&id).is_some())
    }),
];

/// All filters of a server.
#[derive(Debug)]
pub(super) struct Filters {
    max: usize,
    expiry_s: f64,
    clock: Arc<dyn Clock>,
    by_id: Mutex<BTreeMap<U128, Filter>>,
}

#[derive(Debug, Clone)]
struct Filter {
    kind: Kind,
    feed: Arc<Feed>,
    seen: Mark,
    asked_at_s: f64,
}

#[derive(Debug, Clone)]
enum Kind {
    Blocks,
    PendingTransactions { full: bool },
    Logs(Box<LogCriteria>),
}

impl Filters {
    #[expect(clippy::cast_precision_loss, reason = "seconds, far below 2^53")]
    pub(super) fn new(max: usize, expiry_s: u64, clock: Arc<dyn Clock>) -> Self {
        Self {
            max,
            expiry_s: expiry_s as f64,
            clock,
            by_id: Mutex::new(BTreeMap::new()),
        }
    }

    /// The filters that have not expired.
    fn all(&self) -> MutexGuard<'_, BTreeMap<U128, Filter>> {
        let now_s = self.clock.monotonic_s();
        let mut all = self.by_id.lock().unwrap_or_else(PoisonError::into_inner);
        all.retain(|_, filter| now_s - filter.asked_at_s < self.expiry_s);
        all
    }

    /// A filter, which lives on because it is asked for.
    fn ask(&self, id: U128) -> Result<Filter, ErrorObjectOwned> {
        let now_s = self.clock.monotonic_s();
        let mut all = self.all();
        let filter = all.get_mut(&id).ok_or_else(not_found)?;
        filter.asked_at_s = now_s;
        Ok(filter.clone())
    }
}

fn not_found() -> ErrorObjectOwned {
    errors::refused("filter not found")
}

fn begin(eth: &Eth, kind: Kind) -> Reply {
    let feed = eth
        .events
        .feed()
        .map_err(|error| errors::internal(&error))?;
    let id = U128::from_be_bytes(
        ol_runtime::os_bytes::<16>().map_err(|error| errors::internal(&error))?,
    );
    let filter = Filter {
        kind,
        seen: feed.mark(&eth.node.head()),
        feed,
        asked_at_s: eth.filters.clock.monotonic_s(),
    };
    let mut all = eth.filters.all();
    if all.len() >= eth.filters.max {
        return Err(errors::limit_exceeded(
            "too many filters, uninstall those that are not used",
        ));
    }
    all.insert(id, filter);
    shown(id)
}

/// What happened since this was asked last.
fn changes(args: &mut Args<'_>, eth: &Eth) -> Reply {
    let id: U128 = args.required()?;
    let filter = eth.filters.ask(id)?;
    let mut seen = filter.seen;
    let answer = match &filter.kind {
        Kind::PendingTransactions { full } => filter
            .feed
            .transactions_since(&mut seen)
            .map(|hashes| pending_transactions(eth, hashes, *full)),
        Kind::Blocks => filter.feed.blocks_since(&mut seen).map(|net| {
            let hashes: Vec<_> = net.added.iter().map(|(_, hash)| hash).collect();
            Ok(json!(hashes))
        }),
        Kind::Logs(criteria) => filter
            .feed
            .blocks_since(&mut seen)
            .map(|net| changed_logs(eth, criteria, &net)),
    };
    let Some(answer) = answer else {
        // Asked too rarely: what happened is not known any more.
        eth.filters.all().remove(&id);
        return Err(not_found());
    };
    if let Some(filter) = eth.filters.all().get_mut(&id) {
        filter.seen = seen;
    }
    answer
}

fn pending_transactions(eth: &Eth, hashes: Vec<B256>, full: bool) -> Reply {
    if !full {
        return Ok(json!(hashes));
    }
    let mut found = Vec::new();
    for hash in hashes {
        // One that was replaced in the meantime is of no interest any more.
        found.extend(transactions::find_anywhere(&eth.node, hash)?);
    }
    Ok(Value::Array(found))
}

fn changed_logs(eth: &Eth, criteria: &LogCriteria, net: &Net) -> Reply {
    let any_block = find(criteria);
    let mut logs = Vec::new();
    for removed in &net.removed {
        let asked_for = |log: &&alloy_rpc_types_eth::Log| any_block.matches(&log.inner);
        logs.extend(removed.iter().filter(asked_for).cloned());
    }
    if let (Some((first, _)), Some((last, _))) = (net.added.first(), net.added.last()) {
        let filter = LogFilter {
            from_block: *first,
            to_block: *last,
            ..any_block
        };
        let hashes: BTreeMap<u64, B256> = net.added.iter().copied().collect();
        let found = match eth.node.logs(&filter) {
            // The chain became shorter in the meantime: that is for the next time.
            Err(QueryError::UnknownBlock) => Vec::new(),
            found => found.map_err(errors::query)?,
        };
        let still_there = found
            .into_iter()
            .filter(|log| hashes.get(&log.block_number) == Some(&log.block_hash));
        logs.extend(still_there.map(shapes::log));
    }
    if let Some((from, to)) = range_of(criteria) {
        logs.retain(|log| {
            log.block_number.is_some_and(|number| {
                from.is_none_or(|from| from <= number) && to.is_none_or(|to| number <= to)
            })
        });
    }
    shown(logs)
}

/// All logs that a filter asks for, whether told before or not.
fn logs(args: &mut Args<'_>, eth: &Eth) -> Reply {
    let id: U128 = args.required()?;
    let filter = eth.filters.ask(id)?;
    let Kind::Logs(criteria) = filter.kind else {
        return Err(not_found());
    };
    logs_in_range(eth, &criteria)
}
