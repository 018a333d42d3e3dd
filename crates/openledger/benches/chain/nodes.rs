//! The two nodes, each a process of its own on an empty chain.

use std::fs;
use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use ol_types::DEV_CHAIN_ID;
use serde_json::Value;
use tempfile::TempDir;

/// The kernel's clock ticks for each second in `/proc/PID/stat`, on every
/// architecture that Linux runs on today.
const TICKS_PER_S: f64 = 100.0;

/// How the sums of the stages begin in the node's metrics.
const STAGE_SUM: &str = "openledger_block_stage_seconds_sum{stage=\"";

/// Room for any of these workloads in one block of anvil's: the most
/// favourable setting for it.
const ANVIL_GAS_LIMIT: &str = "2000000000";

/// Which node, and how it makes blocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Ours: a block as soon as there is work, every block durable.
    Ours,
    /// Ours: a block a second.
    OursInterval,
    /// anvil that takes transactions and makes a block when told to. A block for
    /// each transaction, its default, does not get through these batches.
    AnvilOnCall,
    /// anvil with a block a second.
    AnvilInterval,
}

/// A running node; ended when dropped.
#[derive(Debug)]
pub(crate) struct Running {
    pub(crate) kind: Kind,
    pub(crate) addr: SocketAddr,
    /// Where it says what it measures, if it is ours.
    metrics_url: Option<String>,
    child: Child,
    _dir: TempDir,
}

impl Running {
    /// Starts a node and waits until it listens.
    pub(crate) fn start(kind: Kind) -> Self {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let mut command = match kind {
            Kind::Ours => ours(dir.path(), "on-demand"),
            Kind::OursInterval => ours(dir.path(), "1"),
            Kind::AnvilOnCall => anvil(&["--no-mining"]),
            Kind::AnvilInterval => anvil(&["--block-time", "1"]),
        };
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap_or_else(|error| panic!("{command:?}: {error}"));
        let stdout = child.stdout.take().expect("stdout is piped");
        let mut lines = BufReader::new(stdout).lines();
        let (addr, metrics_url) = lines
            .by_ref()
            .map_while(Result::ok)
            .find_map(|line| addresses_in(&line))
            .expect("the node says where it listens");
        // Whatever else it prints must not fill the pipe.
        std::thread::spawn(move || lines.for_each(drop));
        Self {
            kind,
            addr,
            metrics_url,
            child,
            _dir: dir,
        }
    }

    /// Seconds that each stage on the way into a block has taken so far, all
    /// threads together; empty if the node does not say.
    pub(crate) fn stages_s(&self) -> Vec<(String, f64)> {
        let Some(url) = &self.metrics_url else {
            return Vec::new();
        };
        let mut reply = ureq::get(url).call().expect("the node serves its metrics");
        let page = reply.body_mut().read_to_string().expect("text");
        let stage = |line: &str| {
            let rest = line.strip_prefix(STAGE_SUM)?;
            let (name, seconds) = rest.split_once("\"} ")?;
            Some((name.to_owned(), seconds.trim().parse().ok()?))
        };
        let mut stages: Vec<_> = page.lines().filter_map(stage).collect();
        stages.sort_by(|(a, _), (b, _)| a.cmp(b));
        stages
    }

    /// Processor time that it has taken, in seconds.
    pub(crate) fn cpu_s(&self) -> f64 {
        cpu_s(&self.child.id().to_string())
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Processor time of a process in user and kernel mode, in seconds; `self` is
/// this one.
pub(crate) fn cpu_s(pid: &str) -> f64 {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).expect("the process runs");
    // The name, in brackets, may hold anything.
    let (_, fields) = stat.rsplit_once(')').expect("a name in brackets");
    let ticks = fields.split_ascii_whitespace().skip(11).take(2);
    ticks
        .map(|ticks| ticks.parse::<f64>().expect("a number of ticks"))
        .sum::<f64>()
        / TICKS_PER_S
}

/// Where a node listens and where its metrics are: ours prints one JSON object
/// when it is ready, anvil a line for people.
fn addresses_in(line: &str) -> Option<(SocketAddr, Option<String>)> {
    if let Some(addr) = line.strip_prefix("Listening on ") {
        return Some((addr.trim().parse().ok()?, None));
    }
    let ready: Value = serde_json::from_str(line).ok()?;
    let addr = ready["rpc"].as_str()?.strip_prefix("http://")?;
    let metrics_url = ready["metrics"].as_str().map(str::to_owned);
    Some((addr.parse().ok()?, metrics_url))
}

fn ours(dir: &Path, block_time: &str) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_openledger"));
    command.arg("--dir").arg(dir);
    command.args(["--json", "--log-level", "warn"]);
    command.args(["node", "run", "--dev", "--port", "0"]);
    command.args(["--block-time", block_time]);
    command.args(["--metrics-addr", "127.0.0.1:0"]);
    command
}

fn anvil(options: &[&str]) -> Command {
    let mut command = Command::new(anvil_path());
    let chain_id = DEV_CHAIN_ID.to_string();
    command.args(["--port", "0", "--chain-id", &chain_id]);
    command.args(["--gas-limit", ANVIL_GAS_LIMIT]);
    command.args(options);
    command
}

/// The anvil that `contracts/package-lock.json` pins.
fn anvil_path() -> PathBuf {
    let modules = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../contracts/node_modules");
    let cpu = match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    };
    let path = modules.join(format!("@foundry-rs/anvil-linux-{cpu}/bin/anvil"));
    assert!(path.exists(), "anvil is missing: run npm ci in contracts/");
    path
}
