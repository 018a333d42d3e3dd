//! `openledger node status`: what a running node does.

use ol_runtime::{Clock as _, SystemClock};
use serde_json::{Value, json};

use crate::cli::StatusArgs;
use crate::instance::{Instance, Layout};
use crate::output::{Out, print};
use crate::rpc::{Rpc, quantity};

pub(crate) fn run(
    layout: &Layout,
    args: &StatusArgs,
    json: bool,
    out: Out<'_>,
) -> anyhow::Result<()> {
    let (url, is_here) = match &args.url {
        Some(url) => (url.clone(), false),
        None => (Instance::find(layout)?.rpc, true),
    };
    let rpc = Rpc::new(&url);
    let head = rpc.request("eth_getBlockByNumber", &json!(["latest", false]))?;
    let number = quantity(&head["number"])?;
    let timestamp_s = quantity(&head["timestamp"])?;
    let age_s = SystemClock::new().unix_s().saturating_sub(timestamp_s);
    let number_of =
        |method: &str| -> anyhow::Result<u64> { quantity(&rpc.request(method, &json!([]))?) };
    // Not every node tells what waits in its pool.
    let pool = rpc.request("txpool_status", &json!([])).ok();
    let pool = pool.map(|pool| {
        json!({
            "pending": quantity(&pool["pending"]).ok(),
            "queued": quantity(&pool["queued"]).ok(),
        })
    });
    let value = json!({
        "url": url,
        "version": rpc.request("web3_clientVersion", &json!([]))?,
        "chain_id": rpc.chain_id()?,
        "head": {
            "number": number,
            "hash": head["hash"],
            "timestamp_s": timestamp_s,
            "age_s": age_s,
            "transactions": head["transactions"].as_array().map(Vec::len),
            "gas_used": quantity(&head["gasUsed"])?,
            "gas_limit": quantity(&head["gasLimit"])?,
        },
        "gas_price_wei": number_of("eth_gasPrice")?,
        "peers": number_of("net_peerCount")?,
        "syncing": rpc.request("eth_syncing", &json!([]))?,
        "pool": pool,
        "database_size_bytes": is_here.then(|| size_of(layout)).flatten(),
    });
    print(out, json, &value, |out| show(&value, out))
}

fn show(value: &Value, out: Out<'_>) -> std::io::Result<()> {
    let text = |value: &Value| match value {
        Value::String(text) => text.clone(),
        Value::Null => "?".to_owned(),
        other => other.to_string(),
    };
    let head = &value["head"];
    writeln!(
        out,
        "node       {} at {}",
        text(&value["version"]),
        text(&value["url"])
    )?;
    writeln!(out, "chain      {}", text(&value["chain_id"]))?;
    writeln!(
        out,
        "head       {}, {} s old, {} transactions, {} of {} gas",
        text(&head["number"]),
        text(&head["age_s"]),
        text(&head["transactions"]),
        text(&head["gas_used"]),
        text(&head["gas_limit"]),
    )?;
    writeln!(out, "hash       {}", text(&head["hash"]))?;
    let syncing = &value["syncing"];
    if syncing.is_object() {
        writeln!(out, "syncing    {syncing}")?;
    }
    writeln!(out, "gas price  {} wei", text(&value["gas_price_wei"]))?;
    writeln!(out, "peers      {}", text(&value["peers"]))?;
    let pool = &value["pool"];
    if pool.is_object() {
        let (pending, queued) = (text(&pool["pending"]), text(&pool["queued"]));
        writeln!(out, "pool       {pending} pending, {queued} queued")?;
    }
    if let Some(size_bytes) = value["database_size_bytes"].as_u64() {
        writeln!(out, "database   {} MiB on disk", size_bytes >> 20)?;
    }
    Ok(())
}

/// What the chain's files take on disk.
fn size_of(layout: &Layout) -> Option<u64> {
    use std::os::unix::fs::MetadataExt as _;
    let entries = std::fs::read_dir(layout.chain()).ok()?;
    let blocks = entries.filter_map(|entry| Some(entry.ok()?.metadata().ok()?.blocks()));
    // `stat` counts in blocks of 512 bytes, whatever the file system.
    Some(blocks.sum::<u64>() * 512)
}
