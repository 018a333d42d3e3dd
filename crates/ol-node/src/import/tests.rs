//! Goal: a change to another branch happens as a whole or not at all, whichever
//! write fails.
//! Method: a sequencer goes back and makes a longer branch; a follower of the
//! first one is given the other, and one write after the other fails.

use std::path::Path;

use alloy_primitives::Address;

use super::*;
use crate::signature::BlockSigner;
use crate::store::{StoreError, faults};
use crate::{BlockRef, StateReader};
use common::Wallet;

#[path = "../../tests/it/common.rs"]
mod common;

const TARGET: Address = Address::repeat_byte(0x77);

/// Init code of a contract that stores its block's number and logs it.
const INIT_CODE: &[u8] = &[
    0x43, 0x5f, 0x55, // sstore(0, number)
    0x43, 0x5f, 0x52, 0x60, 0x20, 0x5f, 0xa0, // log0(number)
    0x5f, 0x5f, 0xf3,
];

fn open_follower(dir: &Path) -> Node {
    let config = NodeConfig {
        role: Role::Follower,
        sequencer: Some(BlockSigner::dev().address()),
        ..NodeConfig::default()
    };
    common::open_with(dir, config).unwrap()
}

/// Two branches after block 0: of two blocks, and of three.
fn branches() -> [Vec<WireBlock>; 2] {
    let dir = tempfile::tempdir().unwrap();
    let config = NodeConfig {
        block_signer: Some(BlockSigner::dev()),
        ..NodeConfig::default()
    };
    let source = common::open_with(dir.path(), config).unwrap();
    let (alice, bob) = (Wallet::dev(0), Wallet::dev(1));
    let send = |raw: Vec<u8>| source.submit_and_wait(&raw).unwrap();
    send(alice.transfer(0, TARGET, 5));
    send(alice.deploy(1, INIT_CODE.to_vec()));
    let first = source.wire_blocks(1, 10, usize::MAX).unwrap();
    source.unwind(0, |_| false).unwrap();
    send(bob.deploy(0, INIT_CODE.to_vec()));
    send(alice.transfer(0, TARGET, 7));
    send(bob.transfer(1, alice.address(), 9));
    [first, source.wire_blocks(1, 10, usize::MAX).unwrap()]
}

/// Lets the chain thread fail all writes after `n_writes` more, or none.
fn fail(node: &Node, n_writes: Option<usize>) {
    let set = move |_: &mut Chain| match n_writes {
        Some(n_writes) => faults::fail_after(n_writes),
        None => faults::never(),
    };
    node.on_chain_thread(set).unwrap();
}

fn sent_wei(node: &Node) -> U256 {
    let state = node.state(BlockRef::Latest).unwrap();
    let account = state.account(TARGET).unwrap();
    account.unwrap_or_default().balance_wei
}

#[test]
fn a_fault_at_any_write_of_a_reorg_leaves_one_branch_whole() {
    let [first, second] = branches();
    let dir = tempfile::tempdir().unwrap();
    let mut node = open_follower(dir.path());
    node.import(first).unwrap();
    let before = node.head();
    let mut n_faults = 0;
    loop {
        fail(&node, Some(n_faults));
        let outcome = node.import(second.clone());
        fail(&node, None);
        if outcome.is_ok() {
            break;
        }
        assert!(
            matches!(outcome, Err(ImportError::Internal(_))),
            "{outcome:?}"
        );
        // The node that saw the fault, and one that opens what is on disk.
        for is_reopened in [false, true] {
            if is_reopened {
                drop(node);
                node = open_follower(dir.path());
            }
            assert_eq!(node.head(), before, "fault at write {n_faults}");
            assert_eq!(sent_wei(&node), U256::from(5));
            node.verify().unwrap();
        }
        n_faults += 1;
    }
    assert!(n_faults > 100, "{n_faults}");
    let check = |node: &Node| {
        assert_eq!(node.head().header.number, 3);
        assert_eq!(sent_wei(node), U256::from(7));
        assert_eq!(node.wire_blocks(1, 10, usize::MAX).unwrap(), second);
        node.verify().unwrap();
    };
    check(&node);
    drop(node);
    check(&open_follower(dir.path()));
}

#[test]
fn a_full_disk_is_named_and_the_follower_goes_on() {
    let [first, _] = branches();
    let dir = tempfile::tempdir().unwrap();
    let node = open_follower(dir.path());
    fail(&node, Some(0));
    let error = node.import(first.clone()).unwrap_err();
    let cause = std::error::Error::source(&error).unwrap();
    assert_eq!(cause.to_string(), StoreError::Full.to_string());
    fail(&node, None);
    assert_eq!(node.import(first).unwrap().head_number, 2);
    node.verify().unwrap();
}
