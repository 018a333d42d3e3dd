//! Goal: `kill -9` at any moment loses no acknowledged block and leaves no half
//! of one; a disk that is full stops the node and harms nothing; and a directory
//! in use is closed to another process.
//! Method: this program starts itself as a child that sends transactions as
//! fast as it can, goes back by some blocks now and then, and prints what the
//! node acknowledged. The child is killed at a random moment, after a random number of lines; the chain is then
//! opened here and checked as a whole. For the full disk the child runs under a
//! limit of the size of files.
//!
//! `OPENLEDGER_TEST_SCALE` multiplies the rounds; `OPENLEDGER_TEST_SEED` repeats
//! the moments of a run, as far as the machine does.
//!
//! There is no test harness: the program speaks the little that test runners ask for.

#![expect(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a test program without the harness, which clippy does not know for one"
)]

use std::hash::{BuildHasher, RandomState};
use std::io::{BufRead, BufReader, Lines, Write};
use std::path::Path;
use std::process::{Child, ChildStdout, Command, Stdio};

use alloy_consensus::TxEip1559;
use alloy_primitives::{Address, B256, U256, hex};
use ol_node::{BlockRef, Node, NodeConfig, OpenError, StoreError, SubmitError};

#[path = "it/common.rs"]
mod common;

const TESTS: [(&str, fn()); 3] = [
    ("acknowledged_blocks_survive_kill_9", kills),
    ("a_full_disk_stops_the_node_and_harms_nothing", full_disk),
    ("a_chain_in_use_is_closed_to_another_process", in_use),
];

/// Kills for each unit of the scale.
const ROUNDS: u64 = 240;

/// Rounds on one chain, so that checking it does not take ever longer.
const ROUNDS_OF_A_CHAIN: u64 = 30;

const TARGET: Address = Address::repeat_byte(0x77);

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let has = |wanted: &str| arguments.iter().any(|argument| argument == wanted);
    match arguments.as_slice() {
        [command, dir] if command == "child" => return child(Path::new(dir)),
        [command, dir] if command == "fill" => return fill(Path::new(dir)),
        _ => {}
    }
    let is_asked = |name: &&(&str, fn())| !TESTS.iter().any(|(other, _)| has(other)) || has(name.0);
    for (name, test) in TESTS.iter().filter(is_asked) {
        if !has("--list") {
            test();
            println!("test {name} ... ok");
        } else if !has("--ignored") {
            println!("{name}: test");
        }
    }
}

/// The transaction with a nonce: a contract is made, a slot of it set, or
/// something sent, in turn.
fn transaction(wallet: &common::Wallet, nonce: u64) -> Vec<u8> {
    match nonce % 3 {
        0 => {
            // Sets the slot in the first word of its input to the second word.
            let init = hex!("67602035600035550060005260086018f3");
            wallet.deploy(nonce, init.to_vec())
        }
        1 => {
            let words = [U256::from(nonce % 7), U256::from(nonce)];
            wallet.sign(TxEip1559 {
                to: wallet.address().create(nonce - 1).into(),
                input: words.map(|word| word.to_be_bytes::<32>()).concat().into(),
                ..common::template(nonce)
            })
        }
        _ => wallet.transfer(nonce, TARGET, 1),
    }
}

/// Sends transactions, and goes back at every ninth step, until it is killed.
fn child(dir: &Path) {
    let node = common::open(dir);
    let wallet = common::Wallet::dev(0);
    let mut nonce = node.nonce(wallet.address(), BlockRef::Latest).unwrap();
    let mut out = std::io::stdout().lock();
    writeln!(out, "open").unwrap();
    for step in 1_u64.. {
        if step.is_multiple_of(9) {
            let to = nonce.saturating_sub(1 + step % 5);
            writeln!(out, "back {to}").unwrap();
            node.unwind(to, |_| false).unwrap();
            writeln!(out, "went {to}").unwrap();
            nonce = to;
        }
        let raw = transaction(&wallet, nonce);
        let inclusion = node.submit_and_wait(&raw).unwrap();
        let (number, hash) = (inclusion.block_number, inclusion.block_hash);
        writeln!(out, "{number} {hash} {}", inclusion.transaction_hash).unwrap();
        nonce += 1;
    }
}

fn start_child(dir: &Path) -> (Child, Lines<BufReader<ChildStdout>>) {
    let mut child = Command::new(std::env::current_exe().unwrap())
        .arg("child")
        .arg(dir)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let lines = BufReader::new(child.stdout.take().unwrap()).lines();
    (child, lines)
}

fn number_from(variable: &str) -> Option<u64> {
    let text = std::env::var(variable).ok()?;
    Some(
        text.parse()
            .unwrap_or_else(|_| panic!("{variable} is not a number")),
    )
}

fn kills() {
    let seed = number_from("OPENLEDGER_TEST_SEED");
    let seed = seed.unwrap_or_else(|| RandomState::new().hash_one(0));
    println!("OPENLEDGER_TEST_SEED={seed}");
    let mut random = splitmix(seed);
    let rounds = ROUNDS * number_from("OPENLEDGER_TEST_SCALE").unwrap_or(1);
    let mut left = rounds;
    while left > 0 {
        let n_rounds = left.min(ROUNDS_OF_A_CHAIN);
        kill_one_chain(n_rounds, &mut random);
        left -= n_rounds;
    }
}

/// What children said about one chain.
#[derive(Default)]
struct Said {
    /// Number, hash and transaction of every block that is there for good.
    blocks: Vec<(u64, B256, B256)>,
    /// The chain was on its way back to this block.
    back_to: Option<u64>,
}

impl Said {
    fn hear(&mut self, line: &str) {
        let fields: Vec<&str> = line.split(' ').collect();
        match fields[..] {
            ["back", to] => self.back_to = Some(to.parse().unwrap()),
            ["went", to] => {
                assert_eq!(self.back_to.take(), Some(to.parse().unwrap()));
                self.went_back_to(to.parse().unwrap());
            }
            [number, hash, transaction] => {
                let block = (number.parse().unwrap(), hash.parse().unwrap());
                let block = (block.0, block.1, transaction.parse().unwrap());
                self.blocks.push(block);
            }
            _ => assert_eq!(line, "open"),
        }
    }

    fn went_back_to(&mut self, to: u64) {
        self.blocks.retain(|(number, ..)| *number <= to);
    }
}

fn kill_one_chain(n_rounds: u64, random: &mut impl FnMut() -> u64) {
    let dir = tempfile::tempdir().unwrap();
    let mut said = Said::default();
    for _ in 0..n_rounds {
        let (mut child, mut lines) = start_child(dir.path());
        // Every fourth is killed while it opens, or soon after.
        if !random().is_multiple_of(4) {
            for _ in 0..=random() % 14 {
                said.hear(&lines.next().unwrap().unwrap());
            }
        }
        // A block takes about as long as the longest of these.
        std::hint::black_box((0..random() % 3_000_000).fold(0, |a, b| a ^ b.rotate_left(7)));
        child.kill().unwrap();
        // What was acknowledged before the kill is still in the pipe. A line
        // is one write, which a pipe takes as a whole.
        for line in lines.map_while(Result::ok) {
            said.hear(&line);
        }
        child.wait().unwrap();
        check(&common::open(dir.path()), &mut said);
    }
}

fn check(node: &Node, said: &mut Said) {
    node.verify().unwrap();
    let head = node.head().header.number;
    // Killed on the way back: it got there, or did not begin.
    if let Some(to) = said.back_to.take()
        && head == to
    {
        said.went_back_to(to);
    }
    // One block holds one transaction; blocks that were written but not
    // acknowledged before the kill may stand at the end.
    assert!(head >= said.blocks.last().map_or(0, |last| last.0));
    for &(number, hash, transaction_hash) in &said.blocks {
        let (_, found) = node.header(BlockRef::Number(number)).unwrap().unwrap();
        assert_eq!(found, hash, "block {number}");
        let receipt = node.receipt(transaction_hash).unwrap().unwrap();
        assert!(receipt.receipt.status());
        assert_eq!(receipt.place.block_hash, hash);
    }
    let wallet = common::Wallet::dev(0).address();
    let at = |number| BlockRef::Number(number);
    for number in [head, head / 2, 0] {
        assert_eq!(node.nonce(wallet, at(number)).unwrap(), number);
        let sent = node.balance_wei(TARGET, at(number)).unwrap();
        assert_eq!(sent, U256::from(number / 3), "{number}");
        // The newest transaction that set a slot.
        let mut nonces = (1..number).rev();
        if let Some(nonce) = nonces.find(|nonce| nonce % 3 == 1) {
            let contract = wallet.create(nonce - 1);
            let slot = node.storage(contract, U256::from(nonce % 7), at(number));
            assert_eq!(slot.unwrap(), U256::from(nonce));
        }
    }
    node.proof(TARGET, &[], at(head.saturating_sub(5))).unwrap();
}

/// Sends contracts of 24,000 bytes until there is no room, says so, and checks
/// that all the rest still works.
fn fill(dir: &Path) {
    let node = common::open(dir);
    let wallet = common::Wallet::dev(1);
    let mut nonce = node.nonce(wallet.address(), BlockRef::Latest).unwrap();
    let error = loop {
        match node.submit_and_wait(&big_contract(&wallet, nonce)) {
            Ok(_) => nonce += 1,
            Err(error) => break error,
        }
    };
    let SubmitError::Storage(cause) = &error else {
        panic!("{error:?}");
    };
    let found = node.nonce(wallet.address(), BlockRef::Latest).unwrap();
    println!("{cause}, {nonce} acknowledged, {found} stored");
    assert_eq!(node.head().header.number, nonce);
    node.verify().unwrap();
}

/// Code that is different every time.
fn big_contract(wallet: &common::Wallet, nonce: u64) -> Vec<u8> {
    let [.., high, low] = nonce.to_be_bytes();
    // The nonce to memory, then 24,000 bytes of memory as code.
    let mut init = vec![0x61, high, low, 0x5f, 0x52];
    init.extend([0x61, 0x5d, 0xc0, 0x5f, 0xf3]);
    wallet.deploy(nonce, init)
}

fn full_disk() {
    let dir = tempfile::tempdir().unwrap();
    // A file may have 24 MiB; the signal that comes with the limit is ignored,
    // so that writes fail as they do on a full disk.
    let script = "ulimit -f 49152 && trap '' XFSZ && exec \"$0\" fill \"$1\"";
    let output = Command::new("sh")
        .args(["-c", script])
        .arg(std::env::current_exe().unwrap())
        .arg(dir.path())
        .stderr(Stdio::inherit())
        .output()
        .unwrap();
    assert!(output.status.success());
    let said = String::from_utf8(output.stdout).unwrap();
    let full = StoreError::Full.to_string();
    assert!(said.starts_with(&full), "{said}");

    let node = common::open(dir.path());
    node.verify().unwrap();
    let head = node.head().header.number;
    assert!(head > 10, "{head}");
    assert_eq!(
        said,
        format!("{full}, {head} acknowledged, {head} stored\n")
    );
    // With room again it goes on.
    let wallet = common::Wallet::dev(1);
    for nonce in head..head + 10 {
        node.submit_and_wait(&big_contract(&wallet, nonce)).unwrap();
    }
    node.verify().unwrap();
}

fn in_use() {
    let dir = tempfile::tempdir().unwrap();
    let (mut child, mut lines) = start_child(dir.path());
    assert_eq!(lines.next().unwrap().unwrap(), "open");
    let error = common::open_with(dir.path(), NodeConfig::default()).unwrap_err();
    assert!(
        matches!(error, OpenError::Store(StoreError::Locked)),
        "{error:?}"
    );
    child.kill().unwrap();
    child.wait().unwrap();
    common::open(dir.path()).verify().unwrap();
}

/// splitmix64.
fn splitmix(mut state: u64) -> impl FnMut() -> u64 {
    move || {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
}
