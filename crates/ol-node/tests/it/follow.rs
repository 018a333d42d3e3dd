//! Goal: a follower is on the source's chain whenever the source behaves, and
//! on its own, with the reason, whenever it does not.
//! Method: the follower is stepped by hand against a source in memory that
//! tells the truth about a node, or one of many lies.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use alloy_primitives::{B256, Bytes};
use ol_node::{
    BlockSource, FollowConfig, FollowPhase, Follower, Next, Node, SourceError, SourceHead,
    WireBlock,
};
use ol_runtime::Shutdown;

use crate::import::{Chain, changed};

/// What a source does instead of telling the truth.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Lie {
    None,
    Away,
    Garbled,
    OtherChainId,
    OtherGenesis,
    /// A head that it never shows.
    HeadTooHigh,
    NoBlocks,
    /// More blocks than were asked for.
    TooMany,
    /// The blocks after the ones that were asked for.
    Gap,
    /// The blocks before the ones that were asked for.
    Old,
    Unsigned,
    Garbage,
    WrongStateRoot,
}

#[derive(Debug, Clone)]
struct Source(Arc<Mutex<State>>);

#[derive(Debug)]
struct State {
    node: Node,
    lie: Lie,
}

impl Source {
    fn new(chain: &Chain) -> Self {
        Self(Arc::new(Mutex::new(State {
            node: chain.node.clone(),
            lie: Lie::None,
        })))
    }

    fn lie(&self, lie: Lie) {
        self.0.lock().unwrap().lie = lie;
    }

    fn switch(&self, chain: &Chain) {
        self.0.lock().unwrap().node = chain.node.clone();
    }
}

impl BlockSource for Source {
    fn head(&mut self) -> Result<SourceHead, SourceError> {
        let state = self.0.lock().unwrap();
        let head = state.node.head();
        let mut answer = SourceHead {
            chain_id: state.node.chain_id(),
            genesis_hash: state.node.genesis_hash(),
            number: head.header.number,
            hash: head.hash,
        };
        match state.lie {
            Lie::Away => {
                return Err(SourceError::Away {
                    reason: "connection refused".to_owned(),
                });
            }
            Lie::Garbled => {
                return Err(SourceError::Garbled {
                    reason: "expected a number".to_owned(),
                });
            }
            Lie::OtherChainId => answer.chain_id += 1,
            Lie::OtherGenesis => answer.genesis_hash = B256::ZERO,
            Lie::HeadTooHigh => {
                answer.number += 1;
                answer.hash = B256::ZERO;
            }
            _ => {}
        }
        Ok(answer)
    }

    fn blocks(&mut self, first: u64, n_max: usize) -> Result<Vec<WireBlock>, SourceError> {
        let state = self.0.lock().unwrap();
        let (first, n_max) = match state.lie {
            Lie::TooMany => (first, usize::MAX),
            Lie::Gap => (first + 1, n_max),
            Lie::Old if n_max > 1 => (1, n_max),
            Lie::NoBlocks => return Ok(Vec::new()),
            _ => (first, n_max),
        };
        let mut blocks = state.node.wire_blocks(first, n_max, usize::MAX).unwrap();
        if let Some(block) = blocks.last_mut() {
            match state.lie {
                Lie::Unsigned => block.signature = None,
                Lie::Garbage => block.rlp = Bytes::from_static(b"garbage"),
                Lie::WrongStateRoot => {
                    *block = changed(block, |block| block.header.state_root = B256::ZERO);
                }
                _ => {}
            }
        }
        Ok(blocks)
    }

    fn wait(&mut self, _: Duration) -> Result<(), SourceError> {
        Ok(())
    }
}

fn config(batch_max_blocks: usize) -> FollowConfig {
    FollowConfig {
        batch_max_blocks,
        ..FollowConfig::default()
    }
}

/// Steps until there is nothing more to do; panics on a failure.
fn catch_up(follower: &mut Follower<Source>) {
    loop {
        match follower.step() {
            Next::Continue => {}
            Next::Wait => return,
            other => panic!("{other:?}: {:?}", follower.status().get()),
        }
    }
}

fn source_with(n_blocks: u128) -> Chain {
    let chain = Chain::sequencer(100);
    for value_wei in 1..=n_blocks {
        chain.transfer(0, value_wei);
    }
    chain
}

#[test]
fn a_follower_syncs_in_batches_and_then_lives() {
    let source = source_with(10);
    let ours = Chain::follower();
    let mut follower = Follower::new(ours.node.clone(), Source::new(&source), config(4));
    let status = follower.status();
    assert_eq!(status.get().phase, FollowPhase::Connecting);
    for current in [4, 8, 10] {
        assert_eq!(follower.step(), Next::Continue);
        let now = status.get();
        assert_eq!((now.phase, now.starting_block), (FollowPhase::Syncing, 0));
        assert_eq!((now.current_block, now.highest_block), (current, Some(10)));
    }
    assert_eq!(follower.step(), Next::Wait);
    assert_eq!(status.get().phase, FollowPhase::Live);
    source.transfer(1, 5);
    catch_up(&mut follower);
    let now = status.get();
    assert_eq!(
        (now.current_block, now.n_imported, now.n_reorgs),
        (11, 11, 0)
    );
    ours.assert_same_as(&source);
}

#[test]
fn a_lie_is_named_and_costs_nothing() {
    let cases = [
        (Lie::Away, "connection refused"),
        (Lie::Garbled, "expected a number"),
        (
            Lie::OtherChainId,
            "another chain: the chain id is 161201, ours is 161200",
        ),
        (Lie::OtherGenesis, "another chain: block 0"),
        (Lie::HeadTooHigh, "no block 7"),
        (Lie::NoBlocks, "no block"),
        (Lie::TooMany, "asked for 2"),
        (Lie::Gap, "did not send what it was asked for"),
        (Lie::Old, "nothing but blocks that we have"),
        (Lie::Unsigned, "not signed"),
        (Lie::Garbage, "cannot be decoded"),
        (Lie::WrongStateRoot, "stateRoot is"),
    ];
    for (lie, words) in cases {
        let chain = source_with(2);
        let source = Source::new(&chain);
        let ours = Chain::follower();
        let mut follower = Follower::new(ours.node.clone(), source.clone(), config(2));
        catch_up(&mut follower);
        for value_wei in 1..=4 {
            chain.transfer(1, value_wei);
        }
        source.lie(lie);
        let (mut rests, mut steps) = (Vec::new(), 0);
        while rests.len() < 3 {
            steps += 1;
            assert!(steps < 10, "{lie:?}: {:?}", follower.status().get());
            match follower.step() {
                Next::Rest(span) => rests.push(span),
                Next::Continue => {}
                other => panic!("{lie:?}: {other:?}"),
            }
        }
        let now = follower.status().get();
        let reason = now.reason.clone().unwrap_or_default();
        assert!(reason.contains(words), "{lie:?}: {now:?}");
        let away = matches!(lie, Lie::Away | Lie::Garbled);
        let phase = if away {
            FollowPhase::Connecting
        } else {
            FollowPhase::Refusing
        };
        assert_eq!(now.phase, phase, "{lie:?}");
        if lie != Lie::HeadTooHigh {
            assert_eq!(
                rests,
                [500, 1_000, 2_000].map(Duration::from_millis),
                "{lie:?}"
            );
        }
        // What was true before the lie may have been taken.
        ours.node.verify().unwrap();

        source.lie(Lie::None);
        catch_up(&mut follower);
        assert_eq!(follower.status().get().reason, None);
        ours.assert_same_as(&chain);
    }
}

#[test]
fn the_blocks_before_a_wrong_one_are_taken() {
    let chain = source_with(5);
    let source = Source::new(&chain);
    source.lie(Lie::WrongStateRoot);
    let ours = Chain::follower();
    let mut follower = Follower::new(ours.node.clone(), source, config(5));
    assert!(matches!(follower.step(), Next::Rest(_)));
    assert_eq!(ours.node.head().header.number, 4);
    let reason = follower.status().get().reason.unwrap();
    assert!(reason.starts_with("block 5 ("), "{reason}");
}

#[test]
fn rests_grow_to_a_limit() {
    let chain = source_with(1);
    let source = Source::new(&chain);
    source.lie(Lie::Away);
    let ours = Chain::follower();
    let mut follower = Follower::new(ours.node, source, config(5));
    let mut rests = Vec::new();
    for _ in 0..40 {
        match follower.step() {
            Next::Rest(span) => rests.push(span),
            other => panic!("{other:?}"),
        }
    }
    assert!(rests.is_sorted());
    assert_eq!(rests[0], Duration::from_millis(500));
    assert_eq!(rests[39], Duration::from_secs(30));
}

#[test]
fn a_branch_that_is_too_old_is_refused() {
    let chain = source_with(10);
    let source = Source::new(&chain);
    let ours = Chain::follower();
    let mut follower = Follower::new(ours.node.clone(), source.clone(), config(8));
    catch_up(&mut follower);
    let other = Chain::sequencer(300);
    for _ in 0..11 {
        other.transfer(4, 9);
    }
    source.switch(&other);
    assert!(matches!(follower.step(), Next::Rest(_)));
    let now = follower.status().get();
    assert_eq!((now.phase, now.n_refused), (FollowPhase::Refusing, 1));
    assert!(now.reason.unwrap().contains("leaves ours before block 2"));
    ours.assert_same_as(&chain);
}

#[test]
fn a_followers_blocks_are_as_good_as_the_sequencers() {
    let chain = source_with(3);
    let first = Chain::follower();
    catch_up(&mut Follower::new(
        first.node.clone(),
        Source::new(&chain),
        config(8),
    ));
    let second = Chain::follower();
    catch_up(&mut Follower::new(
        second.node.clone(),
        Source::new(&first),
        config(8),
    ));
    second.assert_same_as(&chain);
}

#[test]
fn a_follower_stops_when_it_is_told() {
    let chain = source_with(3);
    let source = Source::new(&chain);
    source.lie(Lie::Away);
    let ours = Chain::follower();
    let follower = Follower::new(ours.node, source, config(8));
    let shutdown = Shutdown::new();
    let thread = ol_node::spawn_follower(follower, shutdown.clone()).unwrap();
    shutdown.trigger();
    thread.join().unwrap();
}

#[test]
fn a_follower_goes_with_the_source_to_another_branch() {
    let first = source_with(6);
    let source = Source::new(&first);
    let ours = Chain::follower();
    let mut follower = Follower::new(ours.node.clone(), source.clone(), config(2));
    catch_up(&mut follower);
    // Every place where the branches may part, and batches smaller than them.
    for keep in 0..6_u8 {
        let blocks = ours.blocks();
        let other = Chain::sequencer_after(&blocks[..usize::from(keep)], 200 + u64::from(keep));
        while other.node.head().header.number < ours.node.head().header.number {
            other.transfer(2, u128::from(keep) + 1);
        }
        source.switch(&other);
        catch_up(&mut follower);
        ours.assert_same_as(&other);
        let now = follower.status().get();
        assert_eq!(
            (now.phase, now.n_reorgs),
            (FollowPhase::Live, u64::from(keep) + 1)
        );
    }
}

#[test]
fn a_source_that_is_behind_is_waited_for() {
    let chain = source_with(4);
    let source = Source::new(&chain);
    let ours = Chain::follower();
    let mut follower = Follower::new(ours.node.clone(), source.clone(), config(8));
    catch_up(&mut follower);
    let behind = Chain::sequencer_after(&ours.blocks()[..2], 100);
    source.switch(&behind);
    assert_eq!(follower.step(), Next::Wait);
    // On a branch of its own now, which is shorter than ours.
    behind.transfer(4, 9);
    assert_eq!(follower.step(), Next::Wait);
    ours.assert_same_as(&chain);
    behind.transfer(4, 9);
    behind.transfer(4, 9);
    catch_up(&mut follower);
    ours.assert_same_as(&behind);
}
