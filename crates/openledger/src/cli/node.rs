//! `openledger node …`.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::num::NonZeroU64;
use std::path::PathBuf;

use alloy_primitives::Address;
use clap::{Args, Subcommand};
use ol_node::NodeConfig;

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
    openledger node run --dev --block-time on-demand

  On any free port, for a script that reads the address from the first line:
    openledger node run --dev --datadir /var/tmp/chain --port 0

  A chain of your own, a block every two seconds at most, metrics for Prometheus:
    openledger node keygen sequencer.key
    openledger node run --datadir /var/lib/openledger --genesis genesis.json \\
      --signer-key sequencer.key --block-time 2 --metrics-addr 127.0.0.1:9100

  A second node that checks and serves the first one's chain:
    openledger node run --datadir /var/lib/copy --genesis genesis.json --port 8555 \\
      --follow http://127.0.0.1:8545 --sequencer 0x…

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
    /// Seconds between blocks, as 1 or 0.25, or `on-demand` for a block as soon as
    /// there is a transaction; there are no empty blocks
    #[arg(long, value_name = "SECONDS", default_value = "1")]
    pub(crate) block_time: BlockTime,
    /// Serve a --dev node on an address that other machines reach; anybody who
    /// does can then change its time and spend its accounts
    #[arg(long, requires = "dev")]
    pub(crate) allow_remote_dev: bool,
    /// Blocks whose state can still be asked for, counted back from the newest; 0
    /// keeps all
    #[arg(long, value_name = "BLOCKS", default_value_t = NodeConfig::default().history_max_blocks)]
    pub(crate) history_depth: u64,
    /// File with the key that signs the blocks made here, so that other nodes can
    /// follow; only its owner may be able to read it. --dev has a key of its own
    #[arg(long, value_name = "FILE", conflicts_with = "follow")]
    pub(crate) signer_key: Option<PathBuf>,
    /// Follow the node whose JSON-RPC is at this address instead of making blocks:
    /// each of its blocks is checked, and transactions sent here go there
    #[arg(long, value_name = "URL")]
    pub(crate) follow: Option<String>,
    /// Whose blocks to take when following [default: whom the genesis names, with
    /// --dev the development key]
    #[arg(long, value_name = "ADDRESS", requires = "follow")]
    pub(crate) sequencer: Option<Address>,
    /// Serve metrics for Prometheus at /metrics on this address [default: off]
    #[arg(long, value_name = "IP:PORT")]
    pub(crate) metrics_addr: Option<SocketAddr>,
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

#[derive(Debug, Args)]
pub(crate) struct DoctorArgs {
    /// Verify every block and the whole state, not only the newest blocks
    #[arg(long)]
    pub(crate) full: bool,
    /// Address that the node will serve JSON-RPC on
    #[arg(long, value_name = "IP", default_value_t = IpAddr::V4(Ipv4Addr::LOCALHOST))]
    pub(crate) http_addr: IpAddr,
    /// Port that the node will serve JSON-RPC on
    #[arg(long, visible_alias = "http-port", default_value_t = 8545)]
    pub(crate) port: u16,
    /// Key file to check as well, as given to --signer-key [repeatable]
    #[arg(long = "key-file", value_name = "FILE")]
    pub(crate) key_files: Vec<PathBuf>,
}

/// When blocks are made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum BlockTime {
    OnDemand,
    EveryMs(NonZeroU64),
}

/// Longest time between blocks.
const BLOCK_TIME_MAX_MS: u64 = 3_600_000;

impl std::str::FromStr for BlockTime {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text == "on-demand" {
            return Ok(Self::OnDemand);
        }
        let wrong = || "give seconds from 0.001 to 3600, or on-demand".to_owned();
        let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
        let is_number = |digits: &str| digits.bytes().all(|digit| digit.is_ascii_digit());
        if whole.is_empty() || fraction.len() > 3 || !is_number(whole) || !is_number(fraction) {
            return Err(wrong());
        }
        let whole_s: u64 = whole.parse().map_err(|_| wrong())?;
        let fraction_ms: u64 = format!("{fraction:0<3}").parse().map_err(|_| wrong())?;
        let total_ms = whole_s
            .checked_mul(1_000)
            .and_then(|ms| ms.checked_add(fraction_ms))
            .filter(|&ms| ms <= BLOCK_TIME_MAX_MS)
            .and_then(NonZeroU64::new)
            .ok_or_else(wrong)?;
        Ok(Self::EveryMs(total_ms))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn block_times_are_seconds_with_thousandths() {
        let ms = |ms| Ok(BlockTime::EveryMs(NonZeroU64::new(ms).unwrap()));
        let wrong = || Err("give seconds from 0.001 to 3600, or on-demand".to_owned());
        let cases = [
            ("on-demand", Ok(BlockTime::OnDemand)),
            ("1", ms(1_000)),
            ("0.25", ms(250)),
            ("2.", ms(2_000)),
            ("0.001", ms(1)),
            ("3600", ms(3_600_000)),
            ("3600.001", wrong()),
            ("0", wrong()),
            ("0.000", wrong()),
            ("0.0001", wrong()),
            ("", wrong()),
            (".5", wrong()),
            ("-1", wrong()),
            ("1e3", wrong()),
            ("1.2.3", wrong()),
            ("99999999999999999999", wrong()),
            ("1s", wrong()),
        ];
        for (text, expected) in cases {
            assert_eq!(text.parse::<BlockTime>(), expected, "{text}");
        }
    }
}
