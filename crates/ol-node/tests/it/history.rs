//! Goal: what was true after a block can be asked for, tried and proven later.
//! Method: a contract whose slots a caller sets; balances, nonces, codes and
//! slots are noted after each block and compared at the end; proofs are checked
//! by `alloy_trie` against the root in each block's header.

use std::num::NonZeroU64;

use alloy_consensus::TxEip1559;
use alloy_primitives::{Address, B256, Bytes, KECCAK256_EMPTY, U256, hex, keccak256};
use alloy_trie::proof::verify_proof;
use alloy_trie::{EMPTY_ROOT_HASH, Nibbles, TrieAccount};
use ol_node::{
    AccountProof, BlockMode, BlockRef, ChainEvent, Node, NodeConfig, PROOF_SLOTS_MAX, QueryError,
    StoreError, UnwindError,
};

use tempfile::TempDir;

use crate::common::{FUNDS_WEI, Wallet, open, open_with, template};

const TARGET: Address = Address::repeat_byte(0x77);
const ABSENT: Address = Address::repeat_byte(0x99);

/// Sets the slot in the first word of its input to the second word.
const SETTER: &[u8] = &hex!("6020356000355500");

fn set(wallet: &Wallet, nonce: u64, contract: Address, sets: (u64, u64)) -> Vec<u8> {
    let words = [sets.0, sets.1].map(|word| U256::from(word).to_be_bytes::<32>());
    wallet.sign(TxEip1559 {
        to: contract.into(),
        input: words.concat().into(),
        ..template(nonce)
    })
}

/// Twelve blocks: the contract is made in the third; slots come, change, and go.
fn grow(node: &Node) -> Address {
    let alice = Wallet::dev(0);
    let contract = alice.address().create(2);
    let mut nonce = 0;
    let mut submit = |raw: Vec<u8>| {
        nonce += 1;
        node.submit_and_wait(&raw).unwrap();
        assert_eq!(node.head().header.number, nonce);
    };
    submit(alice.transfer(0, TARGET, 5));
    submit(alice.transfer(1, TARGET, 7));
    let init = [&hex!("67")[..], SETTER, &hex!("60005260086018f3")].concat();
    submit(alice.deploy(2, init));
    let sets = [
        (1, 10),
        (2, 20),
        (3, 30),
        (2, 21),
        (1, 0),
        (3, 0),
        (2, 0),
        (9, 90),
    ];
    for (nonce, slot_and_value) in (3..).zip(sets) {
        submit(set(&alice, nonce, contract, slot_and_value));
    }
    submit(alice.transfer(11, TARGET, 1));
    contract
}

/// A chain of [`grow`] with other limits.
fn grown(config: NodeConfig) -> (TempDir, Node) {
    let dir = tempfile::tempdir().unwrap();
    let node = open_with(dir.path(), config).unwrap();
    grow(&node);
    (dir, node)
}

#[test]
fn the_state_after_every_block_can_be_asked_for() {
    let dir = tempfile::tempdir().unwrap();
    let node = open(dir.path());
    let alice = Wallet::dev(0).address();
    let contract = grow(&node);
    let check = |number: u64, balance: u64, slots: [u64; 4]| {
        let at = BlockRef::Number(number);
        assert_eq!(
            node.balance_wei(TARGET, at).unwrap(),
            U256::from(balance),
            "{number}"
        );
        assert_eq!(node.nonce(alice, at).unwrap(), number);
        let code = if number < 3 { &[][..] } else { SETTER };
        assert_eq!(*node.code(contract, at).unwrap(), *code);
        for (slot, value) in [1_u64, 2, 3, 9].into_iter().zip(slots) {
            let found = node.storage(contract, U256::from(slot), at).unwrap();
            assert_eq!(found, U256::from(value), "slot {slot} at {number}");
        }
    };
    check(0, 0, [0, 0, 0, 0]);
    check(1, 5, [0, 0, 0, 0]);
    check(2, 12, [0, 0, 0, 0]);
    check(3, 12, [0, 0, 0, 0]);
    check(4, 12, [10, 0, 0, 0]);
    check(5, 12, [10, 20, 0, 0]);
    check(6, 12, [10, 20, 30, 0]);
    check(7, 12, [10, 21, 30, 0]);
    check(8, 12, [0, 21, 30, 0]);
    check(9, 12, [0, 21, 0, 0]);
    check(10, 12, [0, 0, 0, 0]);
    check(11, 12, [0, 0, 0, 90]);
    check(12, 13, [0, 0, 0, 90]);
    node.verify().unwrap();
}

/// Of the transactions of blocks that are gone.
const fn forget(_: &B256) -> bool {
    false
}

fn check_proof(node: &Node, address: Address, slots: &[u64], number: u64) -> AccountProof {
    let at = BlockRef::Number(number);
    let slots: Vec<U256> = slots.iter().copied().map(U256::from).collect();
    let proof = node.proof(address, &slots, at).unwrap();
    let (header, _) = node.header(at).unwrap().unwrap();
    let leaf = TrieAccount {
        nonce: proof.nonce,
        balance: proof.balance_wei,
        storage_root: proof.storage_root,
        code_hash: proof.code_hash,
    };
    let is_there = leaf.nonce > 0 || !leaf.balance.is_zero();
    verify(
        header.state_root,
        keccak256(address),
        is_there.then(|| alloy_rlp::encode(leaf)),
        &proof.account_proof,
    );
    assert_eq!(proof.nonce, node.nonce(address, at).unwrap());
    assert_eq!(proof.balance_wei, node.balance_wei(address, at).unwrap());
    for (slot, proven) in slots.iter().zip(&proof.storage_proof) {
        assert_eq!(proven.slot, *slot);
        assert_eq!(proven.value, node.storage(address, *slot, at).unwrap());
        verify(
            proof.storage_root,
            keccak256(slot.to_be_bytes::<32>()),
            (!proven.value.is_zero()).then(|| alloy_rlp::encode(proven.value)),
            &proven.proof,
        );
    }
    assert_eq!(proof.storage_proof.len(), slots.len());
    proof
}

fn verify(root: B256, key: B256, value: Option<Vec<u8>>, nodes: &[Bytes]) {
    verify_proof(root, Nibbles::unpack(key), value, nodes).unwrap();
}

#[test]
fn accounts_and_slots_are_proven_at_every_block_and_so_is_their_absence() {
    let dir = tempfile::tempdir().unwrap();
    let node = open(dir.path());
    let contract = grow(&node);
    for number in 0..=12 {
        for address in [contract, TARGET, Wallet::dev(1).address(), ABSENT] {
            check_proof(&node, address, &[1, 2, 3, 9, 1_000], number);
        }
    }
    // What a wallet sees of an account that is not there.
    let absent = check_proof(&node, ABSENT, &[1], 12);
    assert_eq!(absent.code_hash, KECCAK256_EMPTY);
    assert_eq!(absent.storage_root, EMPTY_ROOT_HASH);
    assert!(absent.storage_proof[0].proof.is_empty());
    // All slots were reset in block 10.
    let empty = check_proof(&node, contract, &[1], 10);
    assert_eq!(empty.code_hash, keccak256(SETTER));
    assert_eq!(empty.storage_root, EMPTY_ROOT_HASH);
}

#[test]
fn proofs_have_limits_that_are_named() {
    let (_dir, node) = grown(NodeConfig {
        proof_depth_max_blocks: 3,
        ..NodeConfig::default()
    });
    assert!(node.proof(TARGET, &[], BlockRef::Number(9)).is_ok());
    let error = node.proof(TARGET, &[], BlockRef::Number(8)).unwrap_err();
    assert!(matches!(error, QueryError::ProofTooOld { .. }), "{error:?}");
    let text = "no proof for block 8: proofs are given for blocks 9 to 12";
    assert_eq!(error.to_string(), text);

    let slots = vec![U256::ZERO; PROOF_SLOTS_MAX + 1];
    let error = node.proof(TARGET, &slots, BlockRef::Latest).unwrap_err();
    assert!(matches!(error, QueryError::TooManySlots), "{error:?}");
    let unknown = node.proof(TARGET, &[], BlockRef::Number(13));
    assert!(matches!(unknown, Err(QueryError::UnknownBlock)));
}

#[test]
fn the_chain_goes_back_and_on_and_is_the_same_again() {
    let dir = tempfile::tempdir().unwrap();
    let node = open(dir.path());
    let contract = grow(&node);
    let old: Vec<_> = (0..=12)
        .map(|number| node.block(BlockRef::Number(number)).unwrap().unwrap())
        .collect();
    let events = node.subscribe();
    assert_eq!(node.unwind(12, forget).unwrap(), 0);
    assert_eq!(node.unwind(5, forget).unwrap(), 7);
    let ChainEvent::Unwound { blocks } = events.recv().unwrap() else {
        panic!("the event of the blocks that are gone");
    };
    let gone: Vec<u64> = blocks.iter().map(|block| block.header.number).collect();
    assert_eq!(gone, [12, 11, 10, 9, 8, 7, 6]);

    node.verify().unwrap();
    assert_eq!(node.head().hash, old[5].hash);
    assert_eq!(node.header(BlockRef::Number(6)).unwrap(), None);
    let transaction = old[6].transactions[0].tx_hash();
    assert_eq!(node.transaction(transaction).unwrap(), None);
    assert_eq!(node.receipt(transaction).unwrap(), None);
    check_proof(&node, contract, &[1, 2, 3], 5);
    check_proof(&node, contract, &[1, 2, 3], 4);

    // The same transactions again make the same blocks, hash by hash.
    for block in &old[6..] {
        let raw = alloy_eips::eip2718::Encodable2718::encoded_2718(block.transactions[0].inner());
        node.submit_and_wait(&raw).unwrap();
        assert_eq!(node.head().hash, block.hash);
    }
    node.verify().unwrap();
    drop(node);
    open(dir.path()).verify().unwrap();
}

#[test]
fn the_chain_goes_back_only_to_what_it_has() {
    let (_dir, node) = grown(NodeConfig {
        history_max_blocks: 3,
        ..NodeConfig::default()
    });
    let head = node.head();
    let error = node.unwind(13, forget).unwrap_err();
    assert_eq!(error.to_string(), "block 13 is not there: the newest is 12");
    let error = node.unwind(8, forget).unwrap_err();
    assert!(
        matches!(
            error,
            UnwindError::Store(StoreError::Pruned { oldest: 9, .. })
        ),
        "{error:?}"
    );
    assert_eq!(node.head(), head);
    assert_eq!(node.unwind(9, forget).unwrap(), 3);
    node.verify().unwrap();
}

#[test]
fn what_was_in_blocks_that_are_gone_waits_again() {
    let dir = tempfile::tempdir().unwrap();
    let config = NodeConfig {
        block_mode: BlockMode::Interval(NonZeroU64::new(1_000).unwrap()),
        ..NodeConfig::default()
    };
    let node = open_with(dir.path(), config).unwrap();
    let (alice, bob, poor) = (Wallet::dev(0), Wallet::dev(1), Wallet::dev(2));
    let submit = |raw: Vec<u8>| node.submit(&raw).unwrap().transaction_hash();
    submit(alice.transfer(0, TARGET, 1));
    let all_wei = node.balance_wei(poor.address(), BlockRef::Latest).unwrap();
    let gas_wei = U256::from(100_000_u64 * 5_000_000_000);
    let given_away = (all_wei - gas_wei).to();
    node.mine(1).unwrap();
    let kept = submit(alice.transfer(1, TARGET, 2));
    let forgotten = submit(bob.transfer(0, TARGET, 4));
    submit(alice.transfer(2, poor.address(), FUNDS_WEI / 2));
    node.mine(1).unwrap();
    let last = submit(alice.transfer(3, TARGET, 8));
    let dear = submit(poor.transfer(0, TARGET, given_away));
    // Paid with what came in a block that will be gone.
    let too_dear = submit(poor.transfer(1, TARGET, FUNDS_WEI / 4));
    node.mine(1).unwrap();
    // Waits, and goes on waiting behind what comes back.
    let behind = submit(alice.transfer(5, TARGET, 16));
    assert_eq!(node.pool_status().queued, 1);

    assert_eq!(node.unwind(1, move |&hash| hash != forgotten).unwrap(), 2);
    let pending = node.pending();
    let waiting: Vec<B256> = pending.transactions.iter().map(|one| one.hash).collect();
    for hash in [kept, last, dear] {
        assert!(waiting.contains(&hash));
    }
    assert_eq!(waiting.len(), 4);
    for hash in [forgotten, too_dear] {
        assert!(node.pool_transaction(hash).is_none());
    }
    assert!(node.pool_transaction(behind).is_some());
    node.mine(1).unwrap();
    assert_eq!(node.pool_status().pending, 0);
    assert_eq!(node.nonce(alice.address(), BlockRef::Latest).unwrap(), 4);
    submit(alice.transfer(4, TARGET, 32));
    node.mine(1).unwrap();
    assert_eq!(
        node.balance_wei(TARGET, BlockRef::Latest).unwrap(),
        U256::from(1 + 2 + 8 + 16 + 32 + given_away)
    );
    node.verify().unwrap();
}
