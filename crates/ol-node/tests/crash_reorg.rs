//! Goal: `kill -9` in the middle of a change to another branch leaves one of
//! the two branches, whole, and never loses the one that was acknowledged last.
//! Method: this program starts itself as a child, a follower that is given
//! branch after branch, each newer than the one before it, and prints the head
//! that each import acknowledged. It is killed while it is at work on the next
//! one; the chain is then opened here and checked.
//!
//! There is no test harness: the program speaks the little that test runners ask for.

#![expect(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a test program without the harness, which clippy does not know for one"
)]

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;

use alloy_primitives::{Address, B256, Bytes, Signature, hex};
use ol_node::{BlockRef, BlockSigner, Node, NodeConfig, Role, WireBlock};
use ol_runtime::ManualClock;

#[path = "it/common.rs"]
mod common;

const NAME: &str = "a_reorg_survives_kill_9";
const ROUNDS: u64 = 10;
const BRANCHES: u64 = 24;
const TARGET: Address = Address::repeat_byte(0x77);

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let has = |wanted: &str| arguments.iter().any(|argument| argument == wanted);
    match arguments.as_slice() {
        [command, dir, branches] if command == "child" => {
            child(Path::new(dir), Path::new(branches));
        }
        _ if has("--list") => {
            if !has("--ignored") {
                println!("{NAME}: test");
            }
        }
        _ => {
            parent();
            println!("test {NAME} ... ok");
        }
    }
}

fn open(dir: &Path, config: NodeConfig, clock_s: u64) -> Node {
    let clock = Arc::new(ManualClock::new(common::START_S + clock_s));
    Node::open_with(dir, &common::genesis(), clock, config).unwrap()
}

fn open_follower(dir: &Path) -> Node {
    let config = NodeConfig {
        role: Role::Follower,
        sequencer: Some(BlockSigner::dev().address()),
        ..NodeConfig::default()
    };
    open(dir, config, 0)
}

/// Branches from block 0 on, of one to three blocks, each later than the last.
fn make_branches() -> Vec<Vec<WireBlock>> {
    (0..BRANCHES)
        .map(|branch| {
            let dir = tempfile::tempdir().unwrap();
            let config = NodeConfig {
                block_signer: Some(BlockSigner::dev()),
                ..NodeConfig::default()
            };
            let node = open(dir.path(), config, branch);
            let wallet = common::Wallet::dev(0);
            for nonce in 0..3 {
                let raw = wallet.transfer(nonce, TARGET, u128::from(branch) + 1);
                node.submit_and_wait(&raw).unwrap();
            }
            node.wire_blocks(1, 3, usize::MAX).unwrap()
        })
        .collect()
}

/// Imports the branches that are newer than the head, one after the other.
fn child(dir: &Path, branches: &Path) {
    let node = open_follower(dir);
    let mut out = std::io::stdout().lock();
    writeln!(out, "open").unwrap();
    for branch in std::fs::read_to_string(branches).unwrap().lines() {
        let imported = node.import(branch.split(' ').map(parse).collect()).unwrap();
        if imported.is_canonical && imported.n_blocks > 0 {
            writeln!(out, "{}", imported.head_hash).unwrap();
        }
    }
    writeln!(out, "end").unwrap();
}

fn show(block: &WireBlock) -> String {
    let signature = block.signature.unwrap().as_bytes();
    format!("{},{}", block.rlp, hex::encode(signature))
}

fn parse(text: &str) -> WireBlock {
    let (rlp, signature) = text.split_once(',').unwrap();
    let signature: Bytes = signature.parse().unwrap();
    WireBlock {
        rlp: rlp.parse().unwrap(),
        signature: Some(Signature::from_raw(&signature).unwrap()),
    }
}

fn parent() {
    let dir = tempfile::tempdir().unwrap();
    let branches = make_branches();
    let tips: Vec<B256> = branches
        .iter()
        .map(|branch| branch[2].header().unwrap().hash_slow())
        .collect();
    let file = dir.path().join("branches");
    let lines: Vec<String> = branches
        .iter()
        .map(|branch| branch.iter().map(show).collect::<Vec<_>>().join(" "))
        .collect();
    std::fs::write(&file, lines.join("\n")).unwrap();
    for round in 0..ROUNDS {
        let chain = dir.path().join(format!("chain-{round}"));
        let mut child = Command::new(std::env::current_exe().unwrap())
            .arg("child")
            .arg(&chain)
            .arg(&file)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        assert_eq!(lines.next().unwrap().unwrap(), "open");
        let mut acknowledged = None;
        for _ in 0..1 + round * 7 % 19 {
            acknowledged = Some(lines.next().unwrap().unwrap());
        }
        std::hint::black_box((0..round * 40_000).fold(0, u64::wrapping_add));
        child.kill().unwrap();
        // What was acknowledged before the kill is still in the pipe; the last
        // line may be torn.
        let rest: Vec<String> = lines.map_while(Result::ok).collect();
        acknowledged = rest
            .into_iter()
            .rfind(|line| line.len() == 66)
            .or(acknowledged);
        child.wait().unwrap();
        check(&chain, &tips, acknowledged.unwrap().parse().unwrap());
    }
}

/// The head is the branch that was acknowledged last, or the one after it.
fn check(chain: &Path, tips: &[B256], acknowledged: B256) {
    let node = open_follower(chain);
    node.verify().unwrap();
    let head = node.head();
    let place = |hash| tips.iter().position(|&tip| tip == hash).unwrap();
    let (found, expected) = (place(head.hash), place(acknowledged));
    assert!(
        found == expected || found == expected + 1,
        "{found} after {expected}"
    );
    // Nothing of the other branches is left.
    assert_eq!(head.header.number, 3);
    let sent = node.balance_wei(TARGET, BlockRef::Latest).unwrap();
    assert_eq!(sent.to::<usize>(), 3 * (found + 1));
    for (branch, &tip) in tips.iter().enumerate() {
        let is_there = node.header(BlockRef::Hash(tip)).unwrap().is_some();
        assert_eq!(is_there, branch == found);
    }
}
