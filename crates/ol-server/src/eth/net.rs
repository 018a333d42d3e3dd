//! About the node: chain, network, version.

use alloy_primitives::{Bytes, U64, keccak256};
use ol_node::FollowStatus;
use serde_json::{Value, json};

use super::args::Args;
use super::method::{Method, Reply, quantity, shown};
use super::{Eth, dev, names};

pub(super) const METHODS: &[Method] = &[
    Method::free("eth_accounts", 0, dev::accounts),
    Method::free("eth_chainId", 0, |_, eth| quantity(eth.node.chain_id())),
    Method::free("eth_protocolVersion", 0, |_, _| quantity(68)),
    Method::free("eth_syncing", 0, syncing),
    Method::free("net_listening", 0, |_, _| Ok(json!(true))),
    Method::free("net_peerCount", 0, |_, _| quantity(0)),
    Method::free("net_version", 0, |_, eth| {
        Ok(json!(eth.node.chain_id().to_string()))
    }),
    Method::free("rpc_modules", 0, modules),
    Method::free("web3_clientVersion", 0, |_, _| {
        Ok(json!(concat!(
            "openledger/v",
            env!("CARGO_PKG_VERSION"),
            "/rust"
        )))
    }),
    Method::free("web3_sha3", 1, |args, _| {
        shown(keccak256(args.required::<Bytes>()?))
    }),
];

/// Where a follower stands until it has caught up with its source.
fn syncing(_: &mut Args<'_>, eth: &Eth) -> Reply {
    let Some(upstream) = &eth.upstream else {
        return Ok(json!(false));
    };
    let status = upstream.status();
    if !status.is_syncing {
        return Ok(json!(false));
    }
    let current = eth.node.head().header.number;
    Ok(progress(&status, current))
}

/// From where to where a follower syncs.
pub(super) fn progress(status: &FollowStatus, current: u64) -> Value {
    let highest = status.highest_block.unwrap_or(current);
    json!({
        "startingBlock": U64::from(status.starting_block),
        "currentBlock": U64::from(current),
        "highestBlock": U64::from(highest.max(current)),
    })
}

/// The namespaces that are served, each with its version.
fn modules(_: &mut Args<'_>, eth: &Eth) -> Reply {
    let namespaces = names(eth.dev.is_some()).filter_map(|name| name.split_once('_'));
    let modules: serde_json::Map<String, Value> = namespaces
        .map(|(namespace, _)| (namespace.to_owned(), json!("1.0")))
        .collect();
    shown(modules)
}
