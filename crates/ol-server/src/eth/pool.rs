//! What is in the pool.

use std::collections::BTreeMap;
use std::sync::Arc;

use alloy_consensus::Transaction as _;
use alloy_primitives::{Address, U64, hex};
use ol_node::{BySender, PooledTransaction};
use serde_json::{Value, json};

use super::args::Args;
use super::method::{Method, Reply, shown};
use super::shapes::{self, RpcTransaction};
use super::{Eth, errors};

pub(super) const METHODS: &[Method] = &[
    Method::call("txpool_content", 0, |_, eth| {
        let content = eth.node.pool_content();
        shown(json!({
            "pending": by_sender(&content.pending, full)?,
            "queued": by_sender(&content.queued, full)?,
        }))
    }),
    Method::call("txpool_contentFrom", 1, content_from),
    Method::call("txpool_inspect", 0, |_, eth| {
        let content = eth.node.pool_content();
        shown(json!({
            "pending": by_sender(&content.pending, summary)?,
            "queued": by_sender(&content.queued, summary)?,
        }))
    }),
    Method::free("txpool_status", 0, |_, eth| {
        let status = eth.node.pool_status();
        shown(json!({
            "pending": U64::from(status.pending),
            "queued": U64::from(status.queued),
        }))
    }),
];

fn content_from(args: &mut Args<'_>, eth: &Eth) -> Reply {
    let sender: Address = args.required()?;
    let content = eth.node.pool_content();
    let of_sender = |all: &BySender| match all.get(&sender) {
        Some(queue) => by_nonce(queue, full),
        None => Ok(json!({})),
    };
    shown(json!({
        "pending": of_sender(&content.pending)?,
        "queued": of_sender(&content.queued)?,
    }))
}

fn by_sender(all: &BySender, show: fn(&PooledTransaction) -> Reply) -> Reply {
    let mut found = serde_json::Map::new();
    for (sender, queue) in all {
        found.insert(sender.to_checksum(None), by_nonce(queue, show)?);
    }
    Ok(Value::Object(found))
}

fn by_nonce(
    queue: &BTreeMap<u64, Arc<PooledTransaction>>,
    show: fn(&PooledTransaction) -> Reply,
) -> Reply {
    let mut found = serde_json::Map::new();
    for (nonce, pooled) in queue {
        found.insert(nonce.to_string(), show(pooled)?);
    }
    Ok(Value::Object(found))
}

fn full(pooled: &PooledTransaction) -> Reply {
    let transaction: RpcTransaction = shapes::waiting_transaction(pooled.transaction.clone());
    serde_json::to_value(transaction).map_err(|error| errors::internal(&error))
}

/// One line, as geth writes it.
fn summary(pooled: &PooledTransaction) -> Reply {
    let transaction = &pooled.transaction;
    let to = match transaction.to() {
        Some(to) => hex::encode_prefixed(to),
        None => "contract creation".to_owned(),
    };
    Ok(Value::String(format!(
        "{to}: {} wei + {} gas × {} wei",
        transaction.value(),
        transaction.gas_limit(),
        transaction.max_fee_per_gas()
    )))
}
