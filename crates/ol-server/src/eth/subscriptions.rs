//! Subscriptions over WebSocket: `eth_subscribe`.

use std::sync::Arc;

use alloy_primitives::hex;
use alloy_rpc_types_eth::Filter as LogCriteria;
use jsonrpsee::core::SubscriptionError;
use jsonrpsee::core::server::SubscriptionSink;
use jsonrpsee::core::traits::IdProvider;
use jsonrpsee::types::error::METHOD_NOT_FOUND_CODE;
use jsonrpsee::types::{ErrorObjectOwned, Params, SubscriptionId};
use jsonrpsee::{PendingSubscriptionSink, RpcModule};
use ol_node::{ChainEvent, FollowStatus, LogFilter, PooledTransaction};
use serde::Serialize;
use serde_json::value::{RawValue, to_raw_value};
use serde_json::{Value, json};
use tokio::sync::broadcast::error::RecvError;

use crate::metrics::Open;

use super::args::Args;
use super::events::Since;
use super::logs::{checked, find};
use super::{Eth, errors, net, shapes};

/// What is subscribed to.
enum Kind {
    NewHeads,
    Logs(Box<LogFilter>),
    NewPendingTransactions {
        full: bool,
    },
    /// Only a follower has something to tell.
    Syncing,
}

/// Makes ids that nobody can guess, as long as geth's.
#[derive(Debug)]
pub(super) struct SubscriptionIds;

impl IdProvider for SubscriptionIds {
    fn next_id(&self) -> SubscriptionId<'static> {
        let id = ol_runtime::os_bytes::<16>().expect("this machine has a source of randomness");
        SubscriptionId::Str(hex::encode_prefixed(id).into())
    }
}

pub(super) fn register(module: &mut RpcModule<Eth>) {
    module
        .register_subscription(
            "eth_subscribe",
            "eth_subscription",
            "eth_unsubscribe",
            |params, pending, eth, _| subscribe(params, pending, eth),
        )
        .expect("every method has a name of its own");
}

impl Kind {
    fn parse(params: &Params<'_>) -> Result<Self, ErrorObjectOwned> {
        let mut args = Args::parse(params, 2)?;
        let name: String = args.required()?;
        Ok(match name.as_str() {
            "newHeads" => Self::NewHeads,
            "logs" => {
                let criteria = args.optional::<LogCriteria>()?.unwrap_or_default();
                Self::Logs(Box::new(find(&checked(criteria)?)))
            }
            "newPendingTransactions" => Self::NewPendingTransactions {
                full: args.optional()?.unwrap_or(false),
            },
            "syncing" => Self::Syncing,
            unknown => {
                return Err(ErrorObjectOwned::owned(
                    METHOD_NOT_FOUND_CODE,
                    format!("no {unknown:?} subscription in eth namespace"),
                    None::<()>,
                ));
            }
        })
    }

    /// What an event is told as; nothing if it is not what is asked for.
    fn told(&self, event: &ChainEvent) -> Result<Vec<Box<RawValue>>, SubscriptionError> {
        match (self, event) {
            (Self::NewHeads, ChainEvent::Block(block)) => Ok(vec![raw(&shapes::header(
                block.header.clone(),
                block.hash,
            ))?]),
            (Self::Logs(filter), ChainEvent::Block(block)) => {
                each(&shapes::logs_of_block(block, filter, false))
            }
            (Self::Logs(filter), ChainEvent::Unwound { blocks }) => {
                let removed = |block| shapes::logs_of_block(block, filter, true);
                each(&blocks.iter().flat_map(removed).collect::<Vec<_>>())
            }
            (
                Self::NewPendingTransactions { full: false },
                ChainEvent::PendingTransactions(taken),
            ) => each(&taken.iter().map(|pooled| pooled.hash).collect::<Vec<_>>()),
            (
                Self::NewPendingTransactions { full: true },
                ChainEvent::PendingTransactions(taken),
            ) => {
                // As it waited: by now it may be on its way into a block.
                let shape = |pooled: &Arc<PooledTransaction>| {
                    shapes::waiting_transaction(pooled.transaction.clone())
                };
                each(&taken.iter().map(shape).collect::<Vec<_>>())
            }
            (Self::Syncing, ChainEvent::Syncing(status)) => Ok(vec![raw(&syncing(status))?]),
            _ => Ok(Vec::new()),
        }
    }

    /// What is told at the beginning.
    fn told_first(&self, eth: &Eth) -> Result<Option<Box<RawValue>>, SubscriptionError> {
        let (Self::Syncing, Some(upstream)) = (self, &eth.upstream) else {
            return Ok(None);
        };
        let status = upstream.status();
        if status.is_syncing {
            return raw(&syncing(&status)).map(Some);
        }
        Ok(None)
    }
}

/// As geth tells it: where it stands, or `false` when it is done.
fn syncing(status: &FollowStatus) -> Value {
    if !status.is_syncing {
        return json!(false);
    }
    json!({"syncing": true, "status": net::progress(status, status.current_block)})
}

fn each<T: Serialize>(items: &[T]) -> Result<Vec<Box<RawValue>>, SubscriptionError> {
    items.iter().map(raw).collect()
}

fn raw(item: &impl Serialize) -> Result<Box<RawValue>, SubscriptionError> {
    Ok(to_raw_value(item)?)
}

async fn subscribe(
    params: Params<'static>,
    pending: PendingSubscriptionSink,
    eth: Arc<Eth>,
) -> Result<(), SubscriptionError> {
    let begun = Kind::parse(&params).and_then(|kind| {
        let feed = eth.events.feed();
        Ok((kind, feed.map_err(|error| errors::internal(&error))?))
    });
    let (kind, feed) = match begun {
        Ok(begun) => begun,
        Err(error) => {
            pending.reject(error).await;
            return Ok(());
        }
    };
    // Before the client knows, so that nothing after its answer is missed.
    let mut events = feed.subscribe();
    let mut since = Since::new(&eth.node.head());
    drop(feed);
    let sink = pending.accept().await?;
    let _open = Open::subscription();
    if let Some(message) = kind.told_first(&eth)? {
        sink.send(message).await?;
    }
    loop {
        let event = tokio::select! {
            () = sink.closed() => return Ok(()),
            event = events.recv() => event,
        };
        match event {
            Ok(event) => {
                if is_after(&mut since, &event) {
                    tell(&sink, &kind, &event).await?;
                }
            }
            Err(RecvError::Lagged(n)) => {
                return Err(format!("cut off: {n} events were not taken in time").into());
            }
            Err(RecvError::Closed) => return Err("cut off: the node has no more events".into()),
        }
    }
}

/// Whether an event is of after the subscription.
fn is_after(since: &mut Since, event: &ChainEvent) -> bool {
    match event {
        ChainEvent::Block(block) => since.is_added_after(block.header.number, block.hash),
        // Newest first. What goes at once is of before or of after as a whole.
        ChainEvent::Unwound { blocks } => {
            let mut removed = blocks.iter();
            removed.any(|block| since.is_removed_after(block.hash))
        }
        _ => true,
    }
}

async fn tell(
    sink: &SubscriptionSink,
    kind: &Kind,
    event: &ChainEvent,
) -> Result<(), SubscriptionError> {
    for message in kind.told(event)? {
        sink.send(message).await?;
    }
    Ok(())
}
