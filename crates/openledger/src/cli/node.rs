//! `openledger node …`.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;

use clap::{Args, Subcommand};

use super::AccessArgs;

#[derive(Debug, Subcommand)]
pub(crate) enum NodeCommand {
    /// Run a node until Ctrl-C: the chain without models
    ///
    /// Makes blocks of the transactions it is sent, and serves Ethereum JSON-RPC
    /// over HTTP and WebSocket on one port. The chain is kept in --datadir and goes
    /// on where it ended.
    #[command(after_help = RUN_EXAMPLES, after_long_help = RUN_EXAMPLES)]
    Run(Box<NodeRunArgs>),
    /// Show what a running node does: its head, fees, peers and version
    Status(StatusArgs),
    /// Make the key with which a sequencer signs its blocks
    Keygen {
        /// File to write; must not exist
        file: PathBuf,
    },
}

const RUN_EXAMPLES: &str = "\
Examples:
  A development chain with funded accounts, a block for every transaction:
    openledger node run --dev

  On any free port, for a script that reads the address from the first line:
    openledger node run --dev --datadir /var/tmp/chain --port 0

  A chain of your own:
    openledger node run --datadir /var/lib/openledger --genesis genesis.json

  Behind a proxy that forwards the name rpc.example.org, for one web page:
    openledger node run --hosts rpc.example.org --cors https://app.example.org";

#[derive(Debug, Args)]
pub(crate) struct NodeRunArgs {
    /// Genesis of the chain, as JSON in geth's form; kept in the folder, so that
    /// it is needed only once
    #[arg(long, value_name = "FILE")]
    pub(crate) genesis: Option<PathBuf>,
    /// Development: the built-in genesis if there is no other, accounts whose keys
    /// everybody knows, and methods that change time and balances
    #[arg(long)]
    pub(crate) dev: bool,
    /// Address to serve JSON-RPC on
    #[arg(long, value_name = "IP", default_value_t = IpAddr::V4(Ipv4Addr::LOCALHOST))]
    pub(crate) http_addr: IpAddr,
    /// Port to serve JSON-RPC on; 0 takes any free one
    #[arg(long, visible_alias = "http-port", default_value_t = 8545)]
    pub(crate) port: u16,
    /// Serve a --dev node on an address that other machines reach; anybody who
    /// does can then change its time and spend its accounts
    #[arg(long, requires = "dev")]
    pub(crate) allow_remote_dev: bool,
    #[command(flatten)]
    pub(crate) access: AccessArgs,
}

impl NodeRunArgs {
    pub(crate) const fn rpc_addr(&self) -> SocketAddr {
        SocketAddr::new(self.http_addr, self.port)
    }
}

#[derive(Debug, Args)]
pub(crate) struct StatusArgs {
    /// JSON-RPC of the node [default: the one that runs on --datadir]
    #[arg(long)]
    pub(crate) url: Option<String>,
}
