//! Goal: what goes in is in a block, what comes out is what is in the blocks,
//! and every limit answers with its error.

use std::collections::BTreeMap;
use std::sync::mpsc;

use alloy_consensus::TxEip1559;
use alloy_primitives::{Address, B256, Bytes, TxKind, U256, address};
use ol_node::{
    BlockRef, CallError, CallRequest, CallStatus, ChainEvent, Inclusion, LogFilter, Node,
    NodeConfig, QueryError, StoreError, SubmitError,
};

use crate::common::{FUNDS_WEI, START_S, Wallet, open, open_with, template};

const BASE_FEE_VAULT: Address = address!("0x4200000000000000000000000000000000000019");
const SEQUENCER_FEE_VAULT: Address = address!("0x4200000000000000000000000000000000000011");

/// Init code of a contract that logs its calldata under topic 1, with the
/// first word as second topic, and counts its calls in slot 0.
fn counter_init() -> Vec<u8> {
    let code = [
        0x5f, 0x54, 0x60, 0x01, 0x01, 0x5f, 0x55, // slot 0 += 1
        0x36, 0x5f, 0x5f, 0x37, // calldata to memory
        0x5f, 0x51, 0x60, 0x01, 0x36, 0x5f, 0xa2, // LOG2(0, size, 1, word 0)
        0x5f, 0x54, 0x5f, 0x52, 0x60, 0x20, 0x5f, 0xf3, // return the count
    ];
    // CODECOPY the code that follows these 11 bytes, and return it.
    let size = u8::try_from(code.len()).unwrap();
    let mut init = vec![
        0x60, size, 0x60, 0x0b, 0x5f, 0x39, 0x60, size, 0x5f, 0xf3, 0x00,
    ];
    init.extend(code);
    init
}

fn call_transaction(nonce: u64, to: Address, word: u64) -> TxEip1559 {
    TxEip1559 {
        to: to.into(),
        input: U256::from(word).to_be_bytes_vec().into(),
        ..template(nonce)
    }
}

fn balance(node: &Node, address: Address) -> U256 {
    node.balance_wei(address, BlockRef::Latest).unwrap()
}

#[test]
fn a_transfer_is_in_a_block_that_can_be_asked_for() {
    let dir = tempfile::tempdir().unwrap();
    let node = open(dir.path());
    let (alice, bob) = (Wallet::dev(0), Wallet::dev(1));
    let raw = alice.transfer(0, bob.address(), 5);
    let inclusion = node.submit_and_wait(&raw).unwrap();
    let Inclusion {
        transaction_hash,
        block_number,
        block_hash,
        position,
    } = inclusion;
    assert_eq!((block_number, position), (1, 0));

    let head = node.head();
    assert_eq!((head.hash, head.header.number), (block_hash, 1));
    assert_eq!(head.header.timestamp, START_S + 100);
    let block = node.block(BlockRef::Hash(block_hash)).unwrap().unwrap();
    assert_eq!(block, node.block(BlockRef::Number(1)).unwrap().unwrap());
    assert_eq!(block.transactions[0].signer(), alice.address());
    let parent = node.block(BlockRef::Number(0)).unwrap().unwrap();
    assert_eq!(block.header.parent_hash, parent.hash);

    let receipt = node.receipt(transaction_hash).unwrap().unwrap();
    assert!(receipt.receipt.status());
    assert_eq!(receipt.gas_used, 21_000);
    assert_eq!(receipt.contract_address(), None);
    let place = node.transaction(transaction_hash).unwrap().unwrap();
    assert_eq!(place, receipt.place);

    let fee = U256::from(21_000 * receipt.effective_gas_price_wei());
    assert_eq!(balance(&node, bob.address()), U256::from(FUNDS_WEI + 5));
    assert_eq!(
        balance(&node, alice.address()),
        U256::from(FUNDS_WEI - 5) - fee
    );
    let vaults = balance(&node, BASE_FEE_VAULT) + balance(&node, SEQUENCER_FEE_VAULT);
    assert_eq!(vaults, fee, "fees are moved, not burnt");
    assert_eq!(node.nonce(alice.address(), BlockRef::Latest).unwrap(), 1);
    node.verify().unwrap();
}

#[test]
fn a_contract_answers_calls_and_logs() {
    let dir = tempfile::tempdir().unwrap();
    let node = open(dir.path());
    let alice = Wallet::dev(0);
    let made = node
        .submit_and_wait(&alice.deploy(0, counter_init()))
        .unwrap();
    let receipt = node.receipt(made.transaction_hash).unwrap().unwrap();
    let contract = receipt.contract_address().unwrap();
    assert!(receipt.receipt.status());
    assert!(!node.code(contract, BlockRef::Latest).unwrap().is_empty());

    for nonce in 1..=3 {
        let raw = alice.sign(call_transaction(nonce, contract, nonce * 10));
        node.submit_and_wait(&raw).unwrap();
    }
    let slot = node.storage(contract, U256::ZERO, BlockRef::Latest);
    assert_eq!(slot.unwrap(), U256::from(3));

    let request = CallRequest {
        from: alice.address(),
        to: Some(contract),
        ..CallRequest::default()
    };
    let output = node.call(&request, BlockRef::Latest).unwrap();
    assert_eq!(output.status, CallStatus::Success);
    assert_eq!(U256::from_be_slice(&output.output), U256::from(4));
    let estimate = node.estimate_gas(&request, BlockRef::Latest).unwrap();
    assert!((26_000..35_000).contains(&estimate), "{estimate}");

    let filter = LogFilter {
        from_block: 0,
        to_block: node.head().header.number,
        addresses: vec![contract],
        ..LogFilter::default()
    };
    let logs = node.logs(&filter).unwrap();
    assert_eq!(logs.len(), 3);
    assert_eq!(
        logs.iter().map(|log| log.block_number).collect::<Vec<_>>(),
        [2, 3, 4]
    );
    let one = LogFilter {
        topics: [
            vec![B256::with_last_byte(1)],
            vec![B256::with_last_byte(20), B256::with_last_byte(99)],
            vec![],
            vec![],
        ],
        ..filter
    };
    let found = node.logs(&one).unwrap();
    assert_eq!(found, [logs[1].clone()]);
    node.verify().unwrap();
}

#[test]
fn a_reopened_chain_is_the_same_chain() {
    let dir = tempfile::tempdir().unwrap();
    let alice = Wallet::dev(0);
    let (head, receipt) = {
        let node = open(dir.path());
        node.submit_and_wait(&alice.deploy(0, counter_init()))
            .unwrap();
        let raw = alice.transfer(1, Address::repeat_byte(7), 1);
        let sent = node.submit_and_wait(&raw).unwrap();
        (node.head(), node.receipt(sent.transaction_hash).unwrap())
    };
    let node = open(dir.path());
    assert_eq!(node.head(), head);
    let hash = receipt.as_ref().unwrap().place.transaction.tx_hash();
    assert_eq!(node.receipt(hash).unwrap(), receipt);
    node.verify().unwrap();
    let raw = alice.transfer(2, Address::repeat_byte(7), 1);
    assert_eq!(node.submit_and_wait(&raw).unwrap().block_number, 3);
    node.verify().unwrap();
}

#[test]
fn many_senders_at_once_lose_nothing() {
    const EACH: u64 = 25;
    let dir = tempfile::tempdir().unwrap();
    let node = open(dir.path());
    let target = Address::repeat_byte(9);
    let inclusions: Vec<Inclusion> = std::thread::scope(|scope| {
        let senders: Vec<_> = (0..4)
            .map(|number| {
                let node = node.clone();
                scope.spawn(move || {
                    let wallet = Wallet::dev(number);
                    (0..EACH)
                        .map(|nonce| {
                            let raw = wallet.transfer(nonce, target, 1);
                            node.submit_and_wait(&raw).unwrap()
                        })
                        .collect::<Vec<_>>()
                })
            })
            .collect();
        senders
            .into_iter()
            .flat_map(|sender| sender.join().unwrap())
            .collect()
    });
    assert_eq!(balance(&node, target), U256::from(4 * EACH));
    let mut by_place = BTreeMap::new();
    for inclusion in &inclusions {
        let place = (inclusion.block_number, inclusion.position);
        assert_eq!(by_place.insert(place, inclusion), None);
        let block = node.block(BlockRef::Number(inclusion.block_number));
        let transactions = block.unwrap().unwrap().transactions;
        assert_eq!(
            transactions[inclusion.position].tx_hash(),
            inclusion.transaction_hash
        );
    }
    node.verify().unwrap();
}

#[test]
fn what_cannot_be_executed_is_refused_and_changes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let node = open(dir.path());
    let alice = Wallet::dev(0);
    let to = Address::repeat_byte(7);
    node.submit_and_wait(&alice.transfer(0, to, 1)).unwrap();
    let head = node.head();
    let cheap = TxEip1559 {
        max_fee_per_gas: 1,
        max_priority_fee_per_gas: 0,
        to: to.into(),
        ..template(1)
    };
    let little_gas = TxEip1559 {
        gas_limit: 20_999,
        to: to.into(),
        ..template(1)
    };
    let cases = [
        (
            alice.transfer(0, to, 1),
            "nonce too low: next nonce 1, tx nonce 0",
        ),
        (
            alice.transfer(2, to, 1),
            "nonce too high: next nonce 1, tx nonce 2",
        ),
        (alice.transfer(1, to, FUNDS_WEI), "insufficient funds"),
        (
            alice.sign(cheap),
            "max fee per gas less than block base fee",
        ),
        (alice.sign(little_gas), "intrinsic gas too low"),
        (vec![0x7E, 0xC0], "transaction type 0x7e is not supported"),
    ];
    for (raw, expected) in cases {
        let error = node.submit_and_wait(&raw).unwrap_err().to_string();
        assert!(error.starts_with(expected), "{error}");
    }
    assert_eq!(node.head(), head);
    node.submit_and_wait(&alice.transfer(1, to, 1)).unwrap();
}

/// Makes the sequencer stand still inside the answer to a first transaction,
/// until the returned sender is used or dropped.
fn hold_sequencer(node: &Node, wallet: &Wallet) -> mpsc::Sender<()> {
    let (release, released) = mpsc::channel();
    let (entered, has_entered) = mpsc::channel();
    let raw = wallet.transfer(0, Address::repeat_byte(7), 1);
    node.submit_then(&raw, move |outcome| {
        outcome.unwrap();
        entered.send(()).unwrap();
        let _ = released.recv();
    })
    .unwrap();
    has_entered.recv().unwrap();
    release
}

#[test]
fn past_the_queue_comes_overloaded() {
    let dir = tempfile::tempdir().unwrap();
    let config = NodeConfig {
        queue_max: 2,
        ..NodeConfig::default()
    };
    let node = open_with(dir.path(), config).unwrap();
    let release = hold_sequencer(&node, &Wallet::dev(0));
    let (done, outcomes) = mpsc::channel();
    for number in 1..=2 {
        let raw = Wallet::dev(number).transfer(0, Address::repeat_byte(7), 1);
        let done = done.clone();
        node.submit_then(&raw, move |outcome| done.send(outcome).unwrap())
            .unwrap();
    }
    let raw = Wallet::dev(3).transfer(0, Address::repeat_byte(7), 1);
    let error = node.submit_and_wait(&raw).unwrap_err();
    assert!(matches!(error, SubmitError::Overloaded), "{error:?}");
    drop(release);
    for _ in 0..2 {
        outcomes.recv().unwrap().unwrap();
    }
    node.submit_and_wait(&raw).unwrap();
}

#[test]
fn what_has_no_room_goes_into_the_next_block_in_order() {
    let dir = tempfile::tempdir().unwrap();
    let node = open(dir.path());
    let release = hold_sequencer(&node, &Wallet::dev(0));
    let alice = Wallet::dev(1);
    let (done, outcomes) = mpsc::channel();
    // Endless loops: 40 and 40 million gas do not fit one block. The third
    // would, but follows.
    for (nonce, gas_limit) in [(0, 40_000_000), (1, 40_000_000), (2, 100_000)] {
        let raw = alice.sign(TxEip1559 {
            gas_limit,
            to: TxKind::Create,
            input: Bytes::from_static(&[0x5b, 0x5f, 0x56]),
            ..template(nonce)
        });
        let done = done.clone();
        node.submit_then(&raw, move |outcome| done.send((nonce, outcome)).unwrap())
            .unwrap();
    }
    drop(release);
    let mut blocks = BTreeMap::new();
    for _ in 0..3 {
        let (nonce, outcome) = outcomes.recv().unwrap();
        blocks.insert(nonce, outcome.unwrap().block_number);
    }
    assert_eq!(blocks.into_values().collect::<Vec<_>>(), [2, 3, 3]);
    node.verify().unwrap();
}

#[test]
fn a_full_store_says_so_and_keeps_what_it_has() {
    let dir = tempfile::tempdir().unwrap();
    let config = || NodeConfig {
        store_max_size_bytes: 4 << 20,
        ..NodeConfig::default()
    };
    let node = open_with(dir.path(), config()).unwrap();
    let alice = Wallet::dev(0);
    let mut nonce = 0;
    let error = loop {
        // 24,000 bytes of code, different every time.
        let mut init = vec![0x61, 0x5d, 0xc0, 0x5f, 0xf3];
        init.splice(0..0, [0x60, u8::try_from(nonce).unwrap(), 0x5f, 0x52]);
        match node.submit_and_wait(&alice.deploy(nonce, init)) {
            Ok(_) => nonce += 1,
            Err(error) => break error,
        }
    };
    assert!(nonce > 10, "{nonce}: {error:?}");
    let SubmitError::Storage(cause) = &error else {
        panic!("{error:?}");
    };
    assert_eq!(cause.to_string(), StoreError::Full.to_string());
    assert_eq!(
        node.nonce(alice.address(), BlockRef::Latest).unwrap(),
        nonce
    );
    assert_eq!(node.head().header.number, nonce);
    node.verify().unwrap();
    let head = node.head();
    drop(node);
    let larger = open(dir.path());
    assert_eq!(larger.head(), head);
    let raw = alice.transfer(nonce, Address::repeat_byte(7), 1);
    larger.submit_and_wait(&raw).unwrap();
    larger.verify().unwrap();
}

#[test]
fn questions_past_the_limits_have_their_errors() {
    let dir = tempfile::tempdir().unwrap();
    let config = NodeConfig {
        history_max_blocks: 1,
        ..NodeConfig::default()
    };
    let node = open_with(dir.path(), config).unwrap();
    let alice = Wallet::dev(0);
    for nonce in 0..2 {
        node.submit_and_wait(&alice.transfer(nonce, Address::repeat_byte(7), 1))
            .unwrap();
    }
    let at = |block| node.balance_wei(alice.address(), block);
    assert!(at(BlockRef::Number(2)).is_ok());
    assert!(at(BlockRef::Number(1)).is_ok());
    let error = at(BlockRef::Number(0)).unwrap_err();
    assert!(
        matches!(error, QueryError::StatePruned { number: 0, .. }),
        "{error:?}"
    );
    let text = "the state of block 0 is pruned: kept are those of blocks 1 to 2";
    assert_eq!(error.to_string(), text);
    for unknown in [BlockRef::Number(3), BlockRef::Hash(B256::ZERO)] {
        assert!(matches!(at(unknown), Err(QueryError::UnknownBlock)));
        assert_eq!(node.block(unknown).unwrap(), None);
        assert_eq!(node.block_receipts(unknown).unwrap(), None);
    }
    assert_eq!(node.transaction(B256::ZERO).unwrap(), None);
    assert_eq!(node.receipt(B256::ZERO).unwrap(), None);

    let upside_down = LogFilter {
        from_block: 2,
        to_block: 1,
        ..LogFilter::default()
    };
    let error = node.logs(&upside_down).unwrap_err();
    assert!(matches!(error, QueryError::Range { .. }), "{error:?}");
    let beyond = LogFilter {
        from_block: 100,
        to_block: u64::MAX,
        ..LogFilter::default()
    };
    assert_eq!(node.logs(&beyond).unwrap(), []);

    let request = CallRequest {
        from: alice.address(),
        to: Some(Address::repeat_byte(7)),
        value_wei: U256::from(FUNDS_WEI),
        input: Bytes::new(),
        ..CallRequest::default()
    };
    let error = node.call(&request, BlockRef::Latest).unwrap_err();
    assert!(
        matches!(error, QueryError::Call(CallError::Invalid { .. })),
        "{error:?}"
    );
}

#[test]
fn fee_history_shows_what_gas_cost() {
    let dir = tempfile::tempdir().unwrap();
    let node = open(dir.path());
    for nonce in 0..3 {
        let raw = Wallet::dev(0).transfer(nonce, Address::repeat_byte(7), 1);
        node.submit_and_wait(&raw).unwrap();
    }
    let history = node
        .fee_history(2, BlockRef::Latest, &[0, 5_000, 10_000])
        .unwrap();
    assert_eq!(history.oldest_block, 2);
    assert_eq!(history.gas, [(21_000, 60_000_000); 2]);
    assert_eq!(history.tips_wei, vec![vec![1_000_000; 3]; 2]);
    assert_eq!(history.base_fees_wei.len(), 3);
    assert_eq!(history.base_fees_wei[2], node.next_base_fee_wei());
    assert!(history.base_fees_wei.is_sorted_by(|a, b| a > b));
    let all = node.fee_history(u64::MAX, BlockRef::Latest, &[]).unwrap();
    assert_eq!((all.oldest_block, all.gas.len()), (0, 4));
}

/// The number of the block, if a block is what happened.
fn number_of(event: ChainEvent) -> Option<u64> {
    match event {
        ChainEvent::Block(block) => Some(block.header.number),
        _ => None,
    }
}

#[test]
fn subscribers_hear_of_every_block() {
    let dir = tempfile::tempdir().unwrap();
    let config = NodeConfig {
        // Every block is two events: its transaction came, and the block.
        subscriber_lag_max: 4,
        ..NodeConfig::default()
    };
    let node = open_with(dir.path(), config).unwrap();
    let (prompt, slow) = (node.subscribe(), node.subscribe());
    for nonce in 0..3 {
        let raw = Wallet::dev(0).transfer(nonce, Address::repeat_byte(7), 1);
        node.submit_and_wait(&raw).unwrap();
        let number = prompt.iter().find_map(number_of);
        assert_eq!(number, Some(nonce + 1));
    }
    let heard: Vec<u64> = slow.iter().filter_map(number_of).collect();
    assert_eq!(heard, [1, 2], "cut off at the third");
    drop(node);
    assert!(prompt.recv().is_err());
}
