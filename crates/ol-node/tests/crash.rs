//! Goal: `kill -9` at any moment loses no acknowledged block and leaves no half
//! of one; and a directory in use is closed to another process.
//! Method: this program starts itself as a child that sends transactions as
//! fast as it can and prints every block the node acknowledged. After a number
//! of lines that is different in every round the child is killed while it is
//! at work on the next block; the chain is then opened here and checked.
//!
//! There is no test harness: the program speaks the little that test runners ask for.

#![expect(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a test program without the harness, which clippy does not know for one"
)]

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use alloy_primitives::{Address, B256, U256};
use ol_node::{BlockRef, NodeConfig, OpenError, StoreError};

#[path = "it/common.rs"]
mod common;

const NAME: &str = "acknowledged_blocks_survive_kill_9";
const ROUNDS: u64 = 10;
const TARGET: Address = Address::repeat_byte(0x77);

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let has = |wanted: &str| arguments.iter().any(|argument| argument == wanted);
    match arguments.as_slice() {
        [command, dir] if command == "child" => child(Path::new(dir)),
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

/// Sends transfers until it is killed.
fn child(dir: &Path) {
    let node = common::open(dir);
    let wallet = common::Wallet::dev(0);
    let mut nonce = node.nonce(wallet.address(), BlockRef::Latest).unwrap();
    let mut out = std::io::stdout().lock();
    writeln!(out, "open").unwrap();
    loop {
        let raw = wallet.transfer(nonce, TARGET, 1);
        let inclusion = node.submit_and_wait(&raw).unwrap();
        let (number, hash) = (inclusion.block_number, inclusion.block_hash);
        writeln!(out, "{number} {hash} {}", inclusion.transaction_hash).unwrap();
        nonce += 1;
    }
}

fn start_child(dir: &Path) -> Child {
    Command::new(std::env::current_exe().unwrap())
        .arg("child")
        .arg(dir)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap()
}

fn parent() {
    let dir = tempfile::tempdir().unwrap();
    let mut acknowledged: Vec<(u64, B256, B256)> = Vec::new();
    for round in 0..ROUNDS {
        let mut child = start_child(dir.path());
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        assert_eq!(lines.next().unwrap().unwrap(), "open");
        if round == 0 {
            let error = common::open_with(dir.path(), NodeConfig::default()).unwrap_err();
            assert!(
                matches!(error, OpenError::Store(StoreError::Locked)),
                "{error:?}"
            );
        }
        // Kill somewhere inside the work on the block after this many; where
        // exactly is up to the machine and different every time.
        let n_lines = 1 + round * 5 % 13;
        for _ in 0..n_lines {
            acknowledged.push(parse(&lines.next().unwrap().unwrap()));
        }
        std::hint::black_box((0..round * 40_000).fold(0, u64::wrapping_add));
        child.kill().unwrap();
        // What was acknowledged before the kill is still in the pipe; the last
        // line may be torn.
        let rest: Vec<String> = lines.map_while(Result::ok).collect();
        acknowledged.extend(rest.iter().filter(|line| is_whole(line)).map(|l| parse(l)));
        child.wait().unwrap();
        check(dir.path(), &acknowledged);
    }
}

fn check(dir: &Path, acknowledged: &[(u64, B256, B256)]) {
    let node = common::open(dir);
    node.verify().unwrap();
    for &(number, hash, transaction_hash) in acknowledged {
        let (_, found) = node.header(BlockRef::Number(number)).unwrap().unwrap();
        assert_eq!(found, hash, "block {number}");
        let receipt = node.receipt(transaction_hash).unwrap().unwrap();
        assert!(receipt.receipt.status());
        assert_eq!(receipt.place.block_hash, hash);
    }
    // One block holds one transfer of 1; blocks that were written but not
    // acknowledged before the kill may stand at the end.
    let head = node.head().header.number;
    assert!(head >= acknowledged.last().unwrap().0);
    let sent = node.balance_wei(TARGET, BlockRef::Latest).unwrap();
    assert_eq!(sent, U256::from(head));
    let sender = common::Wallet::dev(0).address();
    assert_eq!(node.nonce(sender, BlockRef::Latest).unwrap(), head);
}

fn is_whole(line: &str) -> bool {
    line.split(' ').count() == 3 && line.len() >= 2 + 66 + 1 + 66
}

fn parse(line: &str) -> (u64, B256, B256) {
    let fields: Vec<&str> = line.split(' ').collect();
    let [number, hash, transaction_hash] = fields[..] else {
        panic!("{line}");
    };
    (
        number.parse().unwrap(),
        hash.parse().unwrap(),
        transaction_hash.parse().unwrap(),
    )
}
