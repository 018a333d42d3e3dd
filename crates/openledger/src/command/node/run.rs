//! `openledger node run`: the chain without models, until Ctrl-C.

use std::sync::Arc;

use anyhow::{Context as _, ensure};
use ol_node::{BlockMode, BlockSigner, Genesis, Node, NodeConfig, Role};
use ol_runtime::{DataDir, Shutdown, SystemClock};
use ol_server::eth::{self, ServeConfig};
use ol_server::follow::{self, FollowOptions};
use ol_server::metrics::Exporter;
use serde_json::json;
use tokio::net::TcpListener;

use crate::cli::{BlockTime, NodeRunArgs};
use crate::genesis::Origin;
use crate::instance::{Instance, Layout, lock};
use crate::output::Out;
use crate::secret::{is_well_known, read_signer};
use crate::signals::stop_signals;

pub(crate) fn run(
    layout: &Layout,
    args: &NodeRunArgs,
    json: bool,
    out: Out<'_>,
) -> anyhow::Result<()> {
    ensure!(
        !args.dev || args.http_addr.is_loopback() || args.allow_remote_dev,
        "other machines reach {}, and could change the time and spend the accounts of a --dev \
         node; say --allow-remote-dev if they may",
        args.http_addr
    );
    let access = args.access.access(args.dev)?;
    let metrics_access = args.access.hosts_only()?;
    DataDir::open_or_create(layout.root())?;
    let _lock = lock(layout)?;
    let origin = Origin::find(layout, args.genesis.as_deref(), args.dev)?;
    if !args.dev {
        warn_of_well_known(&origin.genesis);
    }
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()?;
    let config = config(args)?;
    let exporter = args.metrics_addr.map(|_| Exporter::global()).transpose()?;
    let clock = Arc::new(SystemClock::new());
    let node = Node::open_with(&layout.chain(), &origin.genesis, clock, config)
        .with_context(|| format!("could not open the chain in {}", layout.chain().display()))?;
    origin.keep(layout)?;

    let shutdown = Shutdown::new();
    let follower = match &args.follow {
        Some(url) => {
            let _entered = runtime.enter();
            let options = FollowOptions::new(url);
            Some(follow::spawn(node.clone(), options, shutdown.clone())?)
        }
        None => None,
    };
    let upstream = follower.as_ref().map(|follower| follower.upstream.clone());
    let serve = ServeConfig {
        access,
        upstream: upstream.clone(),
        is_dev: args.dev,
        ..ServeConfig::new(args.rpc_addr())
    };
    let server = runtime
        .block_on(eth::serve(node.clone(), serve, shutdown.clone()))
        .with_context(|| format!("port {} could not be used for --port", args.port))?;
    let rpc = format!("http://{}", server.addr);
    let metrics = match (args.metrics_addr, &exporter) {
        (Some(addr), Some(exporter)) => {
            exporter.watch(node.clone(), upstream);
            let listener = runtime
                .block_on(TcpListener::bind(addr))
                .with_context(|| format!("could not listen on {addr} for --metrics-addr"))?;
            let url = format!("http://{}/metrics", listener.local_addr()?);
            let serve = exporter
                .clone()
                .serve(metrics_access, listener, shutdown.clone());
            runtime.spawn(serve);
            Some(url)
        }
        _ => None,
    };
    let announced = Instance {
        api: None,
        rpc: rpc.clone(),
        pid: std::process::id(),
    }
    .announce(layout)?;

    let stop = runtime.block_on(async { stop_signals() })?;
    let (chain_id, number) = (node.chain_id(), node.head().header.number);
    if json {
        let ready = json!({
            "ready": true,
            "rpc": rpc,
            "ws": format!("ws://{}", server.addr),
            "chain_id": chain_id,
            "block_number": number,
            "metrics": metrics,
            "pid": std::process::id(),
        });
        writeln!(out, "{ready}")?;
    } else {
        let metrics = metrics.map_or_else(String::new, |url| format!("  metrics {url}"));
        writeln!(
            out,
            "ready  rpc {rpc}  chain {chain_id}  block {number}{metrics}"
        )?;
    }
    out.flush()?;
    runtime.block_on(stop);

    tracing::info!("stopping");
    // Whoever looks for the instance from now on should not find it.
    drop(announced);
    shutdown.trigger();
    runtime.block_on(server.stopped());
    if let Some(exporter) = exporter {
        exporter.forget();
    }
    if let Some(follower) = follower {
        follower.stopped();
    }
    // With the last handle the chain finishes what waits and is closed.
    drop(runtime);
    drop(node);
    tracing::info!("stopped");
    Ok(())
}

/// What the node is told.
///
/// # Errors
/// If there is no key to sign blocks with, or it may not be used.
fn config(args: &NodeRunArgs) -> anyhow::Result<NodeConfig> {
    let mut config = NodeConfig {
        block_mode: match args.block_time {
            BlockTime::OnDemand => BlockMode::OnDemand,
            BlockTime::EveryMs(ms) => BlockMode::Interval(ms),
        },
        history_max_blocks: args.history_depth,
        ..NodeConfig::default()
    };
    if args.follow.is_some() {
        config.role = Role::Follower;
        config.sequencer = args
            .sequencer
            .or_else(|| args.dev.then(|| BlockSigner::dev().address()));
        return Ok(config);
    }
    config.block_signer = match &args.signer_key {
        Some(path) => Some(read_signer(path, args.dev)?),
        None if args.dev => Some(BlockSigner::dev()),
        None => None,
    };
    match &config.block_signer {
        Some(signer) => tracing::info!(sequencer = %signer.address(), "blocks are signed"),
        None => tracing::warn!(
            "blocks are not signed, so that no other node can follow; --signer-key gives a key"
        ),
    }
    Ok(config)
}

/// Money that everybody can spend is a mistake outside of development.
fn warn_of_well_known(genesis: &Genesis) {
    for (&account, given) in &genesis.alloc {
        if is_well_known(account) && !given.balance.is_zero() {
            tracing::warn!(%account, "genesis funds an account whose key everybody knows");
        }
    }
}
