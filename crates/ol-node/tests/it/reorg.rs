//! Goal: a follower changes to the branch that the fork choice prefers, whole,
//! and to no other.
//! Method: sequencers that part ways make branches; random ones are compared
//! with a node that saw only the winner.

use alloy_primitives::B256;
use ol_node::{BlockRef, ChainEvent, ImportError, WireBlock};
use proptest::prelude::*;

use crate::common::Wallet;
use crate::import::{Chain, chain, changed, init_code};

#[test]
fn a_longer_branch_wins_and_a_shorter_one_waits() {
    let source = chain();
    let ours = source.blocks();
    let follower = Chain::follower();
    follower.node.import(ours[..3].to_vec()).unwrap();
    let events = follower.node.subscribe();

    // From block 1 on: as long, but not later. Then longer.
    let other = Chain::sequencer_after(&ours[..1], 100);
    other.transfer(3, 5);
    other.transfer(3, 6);
    let branch = other.blocks();
    let imported = follower.node.import(branch[1..].to_vec()).unwrap();
    assert_eq!((imported.is_canonical, imported.n_blocks), (false, 2));
    assert_eq!(imported.head_number, 3);
    assert!(events.try_recv().is_err());
    follower.node.verify().unwrap();

    // The next block alone: its parents are remembered.
    other.transfer(4, 7);
    let imported = follower
        .node
        .import(vec![other.blocks()[3].clone()])
        .unwrap();
    assert_eq!((imported.is_canonical, imported.n_unwound), (true, 2));
    assert_eq!(imported.n_blocks, 1);
    follower.assert_same_as(&other);
    match events.try_recv().unwrap() {
        ChainEvent::Unwound { blocks } => {
            let numbers: Vec<u64> = blocks.iter().map(|block| block.header.number).collect();
            assert_eq!(numbers, [3, 2]);
        }
        other => panic!("{other:?}"),
    }
    for number in 2..=4 {
        match events.try_recv().unwrap() {
            ChainEvent::Block(block) => assert_eq!(block.header.number, number),
            other => panic!("{other:?}"),
        }
    }

    // And back, with the fourth block and one more of the first branch.
    source.transfer(0, 9);
    let imported = follower.node.import(source.blocks()[3..].to_vec()).unwrap();
    assert_eq!((imported.is_canonical, imported.n_unwound), (true, 3));
    follower.assert_same_as(&source);
}

#[test]
fn a_later_branch_of_the_same_length_wins() {
    let early = Chain::sequencer(100);
    let late = Chain::sequencer(101);
    early.transfer(0, 1);
    late.transfer(0, 1);
    let follower = Chain::follower();
    follower.node.import(early.blocks()).unwrap();
    assert!(follower.node.import(late.blocks()).unwrap().is_canonical);
    follower.assert_same_as(&late);
    assert!(!follower.node.import(early.blocks()).unwrap().is_canonical);
    follower.assert_same_as(&late);
}

#[test]
fn a_wrong_block_on_a_branch_changes_nothing() {
    let source = chain();
    let follower = Chain::follower();
    follower.node.import(source.blocks()).unwrap();
    let other = Chain::sequencer(200);
    for value_wei in 1..=5 {
        other.transfer(3, value_wei);
    }
    for wrong in 0..5 {
        let mut branch = other.blocks();
        branch.truncate(wrong + 1);
        let last = branch.pop().unwrap();
        branch.push(changed(&last, |block| block.header.state_root = B256::ZERO));
        let error = follower.node.import(branch).unwrap_err();
        assert_eq!(
            (error.position(), error.fault().unwrap().rule()),
            (Some(wrong), "stateRoot")
        );
        follower.assert_same_as(&source);
    }
    follower.node.import(other.blocks()).unwrap();
    follower.assert_same_as(&other);
}

#[test]
fn a_branch_that_is_too_old_is_refused() {
    let source = Chain::sequencer(100);
    for value_wei in 1..=9 {
        source.transfer(0, value_wei);
    }
    let follower = Chain::follower();
    follower.node.import(source.blocks()).unwrap();
    let other = Chain::sequencer(200);
    for value_wei in 1..=10 {
        other.transfer(3, value_wei);
    }
    let error = follower.node.import(other.blocks()).unwrap_err();
    assert!(
        matches!(error, ImportError::ReorgTooDeep { depth: 9, limit: 8 }),
        "{error}"
    );
    follower.assert_same_as(&source);
}

#[test]
fn what_a_sequencer_takes_back_is_in_the_branch_that_wins() {
    let source = chain();
    let follower = Chain::follower();
    let old = source.blocks();
    follower.node.import(old.clone()).unwrap();
    // The four transactions are executed again, together.
    source.node.unwind(0, |_| true).unwrap();
    source.transfer(3, 5);
    source.transfer(3, 6);
    source.transfer(3, 7);
    source.transfer(3, 8);
    let imported = follower.node.import(source.blocks()).unwrap();
    assert_eq!((imported.is_canonical, imported.n_unwound), (true, 4));
    follower.assert_same_as(&source);
    for block in old {
        let transactions = block.decode().unwrap().body.transactions;
        let hash = transactions[0].tx_hash();
        assert!(follower.node.receipt(hash).unwrap().is_some());
    }
}

/// Branches of a tree: each leaves the one before it after some blocks and has
/// some of its own, with transfers and contracts.
#[derive(Debug, Clone)]
struct Leg {
    keep: prop::sample::Index,
    blocks: Vec<(usize, u128, bool)>,
}

fn leg() -> impl Strategy<Value = Leg> {
    let block = (0..5_usize, 1..1_000_u128, any::<bool>());
    (
        any::<prop::sample::Index>(),
        prop::collection::vec(block, 1..4),
    )
        .prop_map(|(keep, blocks)| Leg { keep, blocks })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(12))]

    /// After any history of branches, the chain is the one of a node that only
    /// ever saw the winning branch, to the byte.
    #[test]
    fn a_reorg_leaves_what_the_winner_alone_leaves(legs in prop::collection::vec(leg(), 2..4)) {
        let follower = Chain::follower();
        let mut branch: Vec<WireBlock> = Vec::new();
        let mut winner: Vec<WireBlock> = Vec::new();
        for (clock_s, leg) in (200..).zip(&legs) {
            let keep = leg.keep.index(branch.len() + 1).max(branch.len().saturating_sub(6));
            let source = Chain::sequencer_after(&branch[..keep], clock_s);
            for &(account, value_wei, is_contract) in &leg.blocks {
                if is_contract {
                    let wallet = Wallet::dev(account);
                    let nonce = source.node.nonce(wallet.address(), BlockRef::Latest).unwrap();
                    source.node.submit_and_wait(&wallet.deploy(nonce, init_code())).unwrap();
                } else {
                    source.transfer(account, value_wei);
                }
            }
            branch = source.blocks();
            let imported = follower.node.import(branch.clone()).unwrap();
            let wins = branch.len() >= winner.len();
            prop_assert_eq!(imported.is_canonical, wins);
            if wins {
                winner = branch.clone();
                follower.assert_same_as(&source);
            }
            follower.node.verify().unwrap();
        }
        let clean = Chain::follower();
        clean.node.import(winner).unwrap();
        follower.assert_same_as(&clean);
    }
}
