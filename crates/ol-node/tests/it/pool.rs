//! Goal: what waits, what is executed and what is on disk are told apart, agree
//! with each other, and outlive the node that was told.

use std::num::NonZeroU64;
use std::path::Path;
use std::sync::{Arc, mpsc};

use alloy_consensus::{SignableTransaction, TxEip1559, TxEip7702};
use alloy_eips::eip2718::Encodable2718;
use alloy_eips::eip7702::Authorization;
use alloy_primitives::{Address, B256, Bytes, TxKind, U256};
use ol_node::{
    BlockMode, BlockRef, ChainEvent, ControlError, Node, NodeConfig, PoolConfig, PoolError, Role,
    StateReader, SubmitError, SubmitOutcome, Transaction,
};
use ol_runtime::ManualClock;

use crate::common::{CHAIN_ID, FUNDS_WEI, START_S, Wallet, genesis, open, open_with, template};

const TARGET: Address = Address::repeat_byte(7);

/// The clock of the tests stands still, so a block is made only by hand.
fn interval() -> NodeConfig {
    NodeConfig {
        block_mode: BlockMode::Interval(NonZeroU64::new(1_000).unwrap()),
        ..NodeConfig::default()
    }
}

fn open_interval(dir: &Path) -> Node {
    open_with(dir, interval()).unwrap()
}

fn priced(nonce: u64, max_fee_wei: u128, tip_wei: u128) -> TxEip1559 {
    TxEip1559 {
        max_fee_per_gas: max_fee_wei,
        max_priority_fee_per_gas: tip_wei,
        to: TARGET.into(),
        value: U256::from(1),
        ..template(nonce)
    }
}

#[track_caller]
fn pool_error(outcome: Result<SubmitOutcome, SubmitError>) -> PoolError {
    match outcome {
        Err(SubmitError::Pool(error)) => error,
        other => panic!("{other:?}"),
    }
}

/// Init code of a contract that logs, and stores 42 in slot 1.
fn logging_init() -> Vec<u8> {
    vec![
        0x60, 0x2a, 0x60, 0x01, 0x55, // slot 1 = 42
        0x60, 0x05, 0x5f, 0x5f, 0xa1, // LOG1(0, 0, 5)
        0x60, 0x01, 0x5f, 0xf3, // one byte of code
    ]
}

#[test]
fn what_is_pending_is_what_the_block_becomes() {
    let dir = tempfile::tempdir().unwrap();
    let node = open_interval(dir.path());
    let events = node.subscribe();
    let (alice, bob) = (Wallet::dev(0), Wallet::dev(1));
    let contract = alice.address().create(0);
    let sends = [
        alice.deploy(0, logging_init()),
        bob.transfer(0, TARGET, 5),
        alice.deploy(1, logging_init()),
        alice.transfer(2, bob.address(), 9),
        bob.transfer(1, TARGET, FUNDS_WEI / 2),
    ];
    for (position, raw) in sends.iter().enumerate() {
        let outcome = node.submit(raw).unwrap();
        let transaction_hash = outcome.transaction_hash();
        assert_eq!(
            outcome,
            SubmitOutcome::Preconfirmed {
                transaction_hash,
                block_number: 1,
                position,
            }
        );
        let pending = node.pending();
        assert_eq!(pending.transactions.len(), position + 1);
        assert_eq!(pending.transactions[position].hash, transaction_hash);
        assert!(node.pool_transaction(transaction_hash).is_some());
    }
    assert_eq!(node.head().header.number, 0);
    assert_eq!(node.pool_status().pending, 5);
    assert_eq!(node.next_nonce(alice.address()).unwrap(), 3);
    let balance = |at| node.balance_wei(TARGET, at).unwrap();
    assert_eq!(balance(BlockRef::Latest), U256::ZERO);
    assert_eq!(balance(BlockRef::Pending), U256::from(5 + FUNDS_WEI / 2));

    let accounts = [alice.address(), bob.address(), TARGET, contract];
    let read = |at| {
        let state = node.state(at).unwrap();
        let accounts = accounts.map(|address| state.account(address).unwrap());
        let slot = state.storage(contract, U256::from(1)).unwrap();
        let code = state.code(accounts[3].unwrap().code_hash).unwrap();
        (accounts, slot, code)
    };
    let before = read(BlockRef::Pending);
    assert_eq!(before.1, U256::from(42));
    assert_eq!(before.2, Bytes::from_static(&[0]));
    let context = node.context(BlockRef::Pending).unwrap();
    let pending = node.pending();
    // A view stays what it was.
    let kept = node.state(BlockRef::Pending).unwrap();

    node.mine(1).unwrap();
    assert_eq!(read(BlockRef::Latest), before);
    assert_eq!(read(BlockRef::Pending), before);
    assert_eq!(kept.account(TARGET).unwrap(), before.0[2]);
    assert_eq!(node.context(BlockRef::Number(1)).unwrap(), context);
    let receipts = node.block_receipts(BlockRef::Number(1)).unwrap().unwrap();
    assert_eq!(receipts.len(), pending.transactions.len());
    for (receipt, pending) in receipts.iter().zip(&pending.transactions) {
        assert_eq!(receipt.receipt, pending.receipt);
        assert_eq!(receipt.gas_used, pending.gas_used);
        assert_eq!(receipt.n_logs_before, pending.n_logs_before);
        assert_eq!(receipt.place.transaction, pending.transaction);
    }
    assert_eq!(
        receipts.last().unwrap().receipt.cumulative_gas_used(),
        pending.gas_used()
    );
    assert!(node.pending().transactions.is_empty());
    assert_eq!(node.pool_status(), Default::default());
    node.verify().unwrap();
    drop((kept, node));

    let mut seen = Vec::new();
    for event in events {
        match event {
            ChainEvent::PendingTransactions(taken) => seen.push(('t', taken.len())),
            ChainEvent::Pending(block) => seen.push(('p', block.n_new)),
            ChainEvent::Block(block) => seen.push(('b', block.transactions.len())),
            other => panic!("{other:?}"),
        }
    }
    let mut expected = [('t', 1), ('p', 1)].repeat(5);
    expected.push(('b', 5));
    assert_eq!(seen, expected);
}

#[test]
fn a_future_nonce_waits_for_what_is_missing() {
    let dir = tempfile::tempdir().unwrap();
    let node = open(dir.path());
    let alice = Wallet::dev(0);
    for nonce in [2, 1] {
        let outcome = node.submit(&alice.transfer(nonce, TARGET, 1)).unwrap();
        assert!(matches!(outcome, SubmitOutcome::Queued { .. }));
    }
    let status = node.pool_status();
    assert_eq!((status.pending, status.queued), (0, 2));
    let content = node.pool_content();
    assert_eq!(content.queued[&alice.address()].len(), 2);
    assert_eq!(node.next_nonce(alice.address()).unwrap(), 0);
    let again = node.submit(&alice.transfer(2, TARGET, 1));
    assert_eq!(pool_error(again), PoolError::AlreadyKnown);

    let outcome = node.submit(&alice.transfer(0, TARGET, 1)).unwrap();
    let SubmitOutcome::Included(inclusion) = outcome else {
        panic!("{outcome:?}");
    };
    let block = node.block(BlockRef::Number(inclusion.block_number));
    assert_eq!(block.unwrap().unwrap().transactions.len(), 3);
    assert_eq!(node.next_nonce(alice.address()).unwrap(), 3);
}

#[test]
fn a_low_fee_waits_until_the_base_fee_falls() {
    let dir = tempfile::tempdir().unwrap();
    let node = open(dir.path());
    let alice = Wallet::dev(0);
    let base_fee_wei = node.next_base_fee_wei();
    let low = alice.sign(priced(0, u128::from(base_fee_wei - 1), 0));
    let outcome = node.submit(&low).unwrap();
    assert!(matches!(outcome, SubmitOutcome::Queued { .. }));
    assert_eq!(node.pool_status().pending, 1);
    assert_eq!(node.head().header.number, 0);
    // An empty block lowers the base fee, and then it is executed.
    node.mine(1).unwrap();
    let events = node.subscribe();
    let is_in_block =
        |event| matches!(event, ChainEvent::Block(block) if block.transactions.len() == 1);
    assert!(node.head().header.number == 2 || events.iter().any(is_in_block));
    assert_eq!(
        node.balance_wei(TARGET, BlockRef::Latest).unwrap(),
        U256::from(1)
    );
}

#[test]
fn a_replacement_pays_more_and_those_who_wait_are_told() {
    let dir = tempfile::tempdir().unwrap();
    let node = open(dir.path());
    let alice = Wallet::dev(0);
    let fee_wei = 5_000_000_000;
    let first = alice.sign(priced(1, fee_wei, 100));
    node.submit(&first).unwrap();
    for (fee_wei, tip_wei) in [(fee_wei, 200), (fee_wei * 2, 100), (fee_wei * 2, 109)] {
        let outcome = node.submit(&alice.sign(priced(1, fee_wei, tip_wei)));
        assert_eq!(pool_error(outcome), PoolError::ReplacementUnderpriced);
    }
    let better = node.submit(&alice.sign(priced(1, fee_wei * 11 / 10, 110)));
    let better = better.unwrap().transaction_hash();
    assert_eq!(node.pool_status().queued, 1);
    node.submit_and_wait(&alice.transfer(0, TARGET, 1)).unwrap();
    assert!(node.receipt(better).unwrap().is_some());
    assert_eq!(node.pool_status(), Default::default());
}

#[test]
fn what_was_executed_cannot_be_replaced_and_what_waits_longer_is_told() {
    let dir = tempfile::tempdir().unwrap();
    let node = open_interval(dir.path());
    let alice = Wallet::dev(0);
    node.submit(&alice.transfer(0, TARGET, 1)).unwrap();
    let outcome = node.submit(&alice.sign(priced(0, 50_000_000_000, 1_000_000_000)));
    assert_eq!(
        pool_error(outcome),
        PoolError::NonceTooLow {
            found: 0,
            expected: 1
        }
    );
    let again = node.submit(&alice.transfer(0, TARGET, 1));
    assert_eq!(pool_error(again), PoolError::AlreadyKnown);

    let (done, outcomes) = mpsc::channel();
    let raw = alice.transfer(1, TARGET, 1);
    node.submit_then(&raw, move |outcome| done.send(outcome).unwrap())
        .unwrap();
    node.mine(1).unwrap();
    assert_eq!(outcomes.recv().unwrap().unwrap().position, 1);
}

#[test]
fn the_highest_tip_goes_first_and_equals_as_they_came() {
    let dir = tempfile::tempdir().unwrap();
    let node = open_interval(dir.path());
    // Nothing fits beside these two endless loops, so all others wait together.
    for number in 0..2 {
        let full = Wallet::dev(number).sign(TxEip1559 {
            gas_limit: 30_000_000,
            to: TxKind::Create,
            input: Bytes::from_static(&[0x5b, 0x5f, 0x56]),
            ..template(0)
        });
        let outcome = node.submit(&full).unwrap();
        assert!(matches!(outcome, SubmitOutcome::Preconfirmed { .. }));
    }
    let expected = [(3, 9_000_000, 1), (2, 5_000_000, 0), (4, 5_000_000, 2)];
    for number in [2, 3, 4] {
        let (wallet, tip_wei, _) = expected.into_iter().find(|e| e.0 == number).unwrap();
        let raw = Wallet::dev(wallet).sign(priced(0, 5_000_000_000, tip_wei));
        let outcome = node.submit(&raw).unwrap();
        assert!(matches!(outcome, SubmitOutcome::Queued { .. }));
    }
    node.mine(2).unwrap();
    let block = node.block(BlockRef::Number(2)).unwrap().unwrap();
    let order: Vec<Address> = block.transactions.iter().map(|t| t.signer()).collect();
    let expected = expected.map(|(wallet, ..)| Wallet::dev(wallet).address());
    assert_eq!(order, expected);
}

#[test]
fn a_restart_keeps_what_waits() {
    let dir = tempfile::tempdir().unwrap();
    let (alice, bob) = (Wallet::dev(0), Wallet::dev(1));
    {
        let node = open(dir.path());
        node.submit(&alice.transfer(1, TARGET, 1)).unwrap();
        node.submit(&bob.transfer(3, TARGET, 1)).unwrap();
        node.submit(&bob.transfer(0, TARGET, 1)).unwrap();
    }
    let node = open(dir.path());
    // Commands are followed in order: the pool is read back before this.
    node.set_mining_paused(false).unwrap();
    let content = node.pool_content();
    assert_eq!(
        content.queued[&alice.address()].keys().collect::<Vec<_>>(),
        [&1]
    );
    assert_eq!(
        content.queued[&bob.address()].keys().collect::<Vec<_>>(),
        [&3]
    );
    node.submit(&alice.transfer(0, TARGET, 1)).unwrap();
    assert_eq!(node.next_nonce(alice.address()).unwrap(), 2);
    assert_eq!(node.pool_status().queued, 1);
}

#[test]
fn a_stopped_interval_node_leaves_its_open_block_on_disk() {
    let dir = tempfile::tempdir().unwrap();
    let alice = Wallet::dev(0);
    let hash = {
        let node = open_interval(dir.path());
        node.submit(&alice.transfer(0, TARGET, 1))
            .unwrap()
            .transaction_hash()
    };
    let node = open_interval(dir.path());
    assert_eq!(node.head().header.number, 1);
    assert!(node.receipt(hash).unwrap().is_some());
}

#[test]
fn a_block_that_cannot_be_written_puts_what_was_executed_back() {
    let dir = tempfile::tempdir().unwrap();
    let config = NodeConfig {
        store_max_size_bytes: 4 << 20,
        ..interval()
    };
    let node = open_with(dir.path(), config).unwrap();
    let alice = Wallet::dev(0);
    let mut nonce = 0;
    let error = loop {
        let mut init = vec![0x61, 0x5d, 0xc0, 0x5f, 0xf3];
        init.splice(0..0, [0x60, u8::try_from(nonce).unwrap(), 0x5f, 0x52]);
        node.submit(&alice.deploy(nonce, init)).unwrap();
        match node.mine(1) {
            Ok(()) => nonce += 1,
            Err(error) => break error,
        }
    };
    assert!(matches!(error, ControlError::Storage(_)), "{error:?}");
    assert_eq!(node.head().header.number, nonce);
    assert_eq!(
        node.nonce(alice.address(), BlockRef::Latest).unwrap(),
        nonce
    );
    // Nobody was told that it is durable, so it waits for a better time.
    assert_eq!(node.pool_status().pending, 1);
    node.verify().unwrap();
    drop(node);
    let node = open_interval(dir.path());
    node.mine(1).unwrap();
    assert_eq!(
        node.nonce(alice.address(), BlockRef::Latest).unwrap(),
        nonce + 1
    );
    node.verify().unwrap();
}

#[test]
fn a_follower_takes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let config = NodeConfig {
        role: Role::Follower,
        sequencer: Some(TARGET),
        ..NodeConfig::default()
    };
    let node = open_with(dir.path(), config).unwrap();
    let error = node
        .submit(&Wallet::dev(0).transfer(0, TARGET, 1))
        .unwrap_err();
    assert!(matches!(error, SubmitError::Follower));
    assert!(matches!(node.mine(1), Err(ControlError::Follower)));
}

#[test]
fn blocks_and_time_move_by_hand() {
    let dir = tempfile::tempdir().unwrap();
    let node = open(dir.path());
    let alice = Wallet::dev(0);
    let now_s = START_S + 100;
    let newest_s = || node.head().header.timestamp;
    node.mine(3).unwrap();
    assert_eq!((node.head().header.number, newest_s()), (3, now_s));
    assert_eq!(node.increase_time(50).unwrap(), 50);
    node.submit(&alice.transfer(0, TARGET, 1)).unwrap();
    assert_eq!(newest_s(), now_s + 50);
    node.set_next_timestamp(now_s + 1_000).unwrap();
    assert_eq!(
        node.context(BlockRef::Pending).unwrap().timestamp_s,
        now_s + 1_000
    );
    node.mine(1).unwrap();
    assert_eq!(newest_s(), now_s + 1_000);
    assert_eq!(node.increase_time(1).unwrap(), 1_001);
    node.mine(1).unwrap();
    assert_eq!(newest_s(), now_s + 1_001);
    let error = node.set_next_timestamp(now_s).unwrap_err();
    assert!(matches!(error, ControlError::Timestamp { .. }), "{error:?}");
    let error = node.mine(10_001).unwrap_err();
    assert!(matches!(
        error,
        ControlError::TooManyBlocks { asked: 10_001 }
    ));

    node.set_mining_paused(true).unwrap();
    let outcome = node.submit(&alice.transfer(1, TARGET, 1)).unwrap();
    assert!(matches!(outcome, SubmitOutcome::Preconfirmed { .. }));
    // A change of time takes the open block apart and makes it anew.
    node.increase_time(9).unwrap();
    node.mine(1).unwrap();
    assert_eq!(newest_s(), now_s + 1_010);
    assert_eq!(node.nonce(alice.address(), BlockRef::Latest).unwrap(), 2);
    node.verify().unwrap();
}

#[test]
fn the_clock_closes_the_block_of_an_interval() {
    let dir = tempfile::tempdir().unwrap();
    let clock = Arc::new(ManualClock::new(START_S + 100));
    let config = NodeConfig {
        block_mode: BlockMode::Interval(NonZeroU64::new(20).unwrap()),
        ..NodeConfig::default()
    };
    let node = Node::open_with(dir.path(), &genesis(), Arc::clone(&clock) as _, config).unwrap();
    let events = node.subscribe();
    let hash = node
        .submit(&Wallet::dev(0).transfer(0, TARGET, 1))
        .unwrap()
        .transaction_hash();
    assert_eq!(node.head().header.number, 0);
    clock.advance(std::time::Duration::from_millis(20));
    let block = events.iter().find_map(|event| match event {
        ChainEvent::Block(block) => Some(block),
        _ => None,
    });
    assert_eq!(block.unwrap().transactions[0].tx_hash(), hash);
}

#[test]
fn delegated_code_runs_and_such_accounts_wait_one_at_a_time() {
    let dir = tempfile::tempdir().unwrap();
    let node = open_interval(dir.path());
    let (alice, bob) = (Wallet::dev(0), Wallet::dev(1));
    let authorization = Authorization {
        chain_id: U256::from(CHAIN_ID),
        address: TARGET,
        nonce: 0,
    };
    let signature = bob.sign_hash(authorization.signature_hash());
    let transaction = TxEip7702 {
        chain_id: CHAIN_ID,
        gas_limit: 200_000,
        max_fee_per_gas: 5_000_000_000,
        max_priority_fee_per_gas: 1,
        to: TARGET,
        authorization_list: vec![authorization.into_signed(signature)],
        ..TxEip7702::default()
    };
    let signature = alice.sign_hash(transaction.signature_hash());
    let raw = Transaction::from(transaction.into_signed(signature)).encoded_2718();
    let outcome = node.submit(&raw).unwrap();
    assert!(matches!(outcome, SubmitOutcome::Preconfirmed { .. }));
    let code = node.code(bob.address(), BlockRef::Pending).unwrap();
    assert_eq!(code[..], [&[0xef, 1, 0][..], TARGET.as_slice()].concat());

    // Its nonce was counted once, by the authorization; behind a gap it may not wait.
    let outcome = node.submit(&bob.transfer(2, TARGET, 1));
    assert!(matches!(
        pool_error(outcome),
        PoolError::NonceTooHigh { expected: 1, .. }
    ));
    let outcome = node.submit(&bob.transfer(1, TARGET, 1)).unwrap();
    assert!(matches!(outcome, SubmitOutcome::Preconfirmed { .. }));
    node.mine(1).unwrap();
    node.verify().unwrap();
}

#[test]
fn a_full_pool_lets_the_cheapest_go() {
    let dir = tempfile::tempdir().unwrap();
    let config = NodeConfig {
        pool: PoolConfig {
            transactions_max: 2,
            ..PoolConfig::default()
        },
        ..NodeConfig::default()
    };
    let node = open_with(dir.path(), config).unwrap();
    let fee_wei = |number: u128| 5_000_000_000 + number;
    let send = |number: usize, fee_wei| {
        let raw = Wallet::dev(number).sign(priced(1, fee_wei, 1));
        node.submit(&raw)
    };
    let cheapest = send(0, fee_wei(1)).unwrap().transaction_hash();
    let dear = send(1, fee_wei(9)).unwrap().transaction_hash();
    assert_eq!(pool_error(send(2, fee_wei(0))), PoolError::Underpriced);
    let middle = send(3, fee_wei(5)).unwrap().transaction_hash();
    let is_there = |hash: B256| node.pool_transaction(hash).is_some();
    assert_eq!([cheapest, dear, middle].map(is_there), [false, true, true]);
}
