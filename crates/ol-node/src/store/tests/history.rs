//! Random histories of blocks and unwinds.

use alloy_consensus::{Receipt, ReceiptEnvelope, SignableTransaction, TxEip1559, TxType};
use alloy_primitives::{Log, Signature};
use ol_evm::{Header, Recovered, StateReader, Transaction, TransactionReceipt};
use signet_libmdbx::TransactionKind;

use super::*;
use crate::store::{Snapshot, StoredBlock, faults};

/// All that is in the database, table by table.
type Dump = BTreeMap<&'static str, Vec<(Vec<u8>, Vec<u8>)>>;

fn dump<K: TransactionKind>(txn: &Txn<K>) -> Dump {
    let tables = txn.tables.all().into_iter();
    let read = |(name, table)| {
        let mut rows = Vec::new();
        txn.scan(table, &[], |key, value| {
            rows.push((key.to_vec(), value.to_vec()));
            Ok(true)
        })
        .unwrap();
        (name, rows)
    };
    tables.map(read).collect()
}

fn header_on(parent: Option<&Header>, state_root: B256, extra: u8) -> Header {
    Header {
        number: parent.map_or(0, |parent| parent.number + 1),
        parent_hash: parent.map_or(B256::ZERO, Header::hash_slow),
        state_root,
        extra_data: vec![extra].into(),
        ..Header::default()
    }
}

fn transaction(nonce: u64) -> Recovered<Transaction> {
    let transaction = TxEip1559 {
        nonce,
        ..TxEip1559::default()
    };
    let signed = transaction.into_signed(Signature::test_signature());
    Recovered::new_unchecked(signed.into(), address(1))
}

/// One with a log.
fn receipt(topic: u8) -> TransactionReceipt {
    let log = Log::new_unchecked(address(3), vec![B256::repeat_byte(topic)], Bytes::new());
    let receipt = Receipt {
        status: true.into(),
        cumulative_gas_used: 21_000,
        logs: vec![log],
    };
    TransactionReceipt::Ethereum(ReceiptEnvelope::from_typed(TxType::Eip1559, receipt))
}

/// Writes the next block. Whether it has a transaction is up to its number.
fn write_next(
    txn: &Txn<Rw>,
    diff: &StateDiff,
    extra: u8,
    history_max_blocks: u64,
) -> Result<Header, StoreError> {
    let update = txn.state_update(diff)?;
    let parent = txn.head().ok().map(|(header, _)| header);
    let header = header_on(parent.as_ref(), update.root, extra);
    let transactions = match header.number % 3 {
        0 => Vec::new(),
        number => vec![transaction(number * 1_000 + u64::from(extra))],
    };
    let receipts: Vec<TransactionReceipt> = transactions.iter().map(|_| receipt(extra)).collect();
    let block = StoredBlock {
        header: &header,
        hash: header.hash_slow(),
        transactions: &transactions,
        receipts: &receipts,
    };
    if header.number == 0 {
        txn.append(&block)?;
        txn.write_state(&update)?;
    } else {
        txn.write_block(&block, &update, history_max_blocks)?;
        txn.set_signature(header.number, &Signature::test_signature())?;
        txn.set_total_difficulty(header.number, U256::from(extra))?;
    }
    Ok(header)
}

#[derive(Debug, Clone)]
enum Step {
    Block(BTreeMap<Address, AccountChange>),
    /// Back by so many blocks, or to block 0.
    Unwind(usize),
}

fn any_block() -> impl Strategy<Value = BTreeMap<Address, AccountChange>> {
    prop::collection::btree_map((0..24_u8).prop_map(address), any_change(), 0..12)
}

fn any_step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => any_block().prop_map(Step::Block),
        1 => (1..5_usize).prop_map(Step::Unwind),
    ]
}

/// A diff with the codes of its accounts.
fn with_codes(accounts: BTreeMap<Address, AccountChange>) -> StateDiff {
    let mut diff = StateDiff {
        accounts,
        ..StateDiff::default()
    };
    for code in 0..=u8::MAX {
        let hash = keccak256([code]);
        let mut accounts = diff.accounts.values();
        if accounts.any(|change| {
            change
                .account
                .is_some_and(|account| account.code_hash == hash)
        }) {
            diff.codes.insert(hash, Bytes::from(vec![code]));
        }
    }
    diff
}

/// What a chain was after each of its blocks.
struct Past {
    memory: MemoryState,
    dump: Dump,
    header: Header,
}

/// Returns how many accounts and slots the steps changed.
#[track_caller]
fn check_steps(steps: Vec<Step>) -> usize {
    let mut n_changes = 0;
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path(), |_| ());
    let txn = store.write().unwrap();
    let header = write_next(&txn, &StateDiff::default(), 0, 0).unwrap();
    let mut past = vec![Past {
        memory: MemoryState::default(),
        dump: dump(&txn),
        header,
    }];
    for (extra, step) in (0_u8..).zip(steps) {
        match step {
            Step::Block(accounts) => {
                n_changes += accounts
                    .values()
                    .map(|change| 1 + change.storage.len())
                    .sum::<usize>();
                let diff = with_codes(accounts);
                let header = write_next(&txn, &diff, extra, 0).unwrap();
                let mut memory = past.last().unwrap().memory.clone();
                memory.apply(&diff);
                assert_eq!(header.state_root, oracle::state_root(&memory));
                assert_eq!(header.state_root, txn.rebuild_state_root().unwrap());
                assert_eq!(header.state_root, txn.recompute_state_root().unwrap());
                txn.check_tries().unwrap();
                let dump = dump(&txn);
                past.push(Past {
                    memory,
                    dump,
                    header,
                });
            }
            Step::Unwind(n_blocks) => {
                let to = (past.len() - 1).saturating_sub(n_blocks);
                txn.unwind_in_steps(to as u64, 8).unwrap();
                past.truncate(to + 1);
                assert!(dump(&txn) == past[to].dump, "unwound to block {to}");
            }
        }
    }
    check_past(&txn, &past);
    txn.commit().unwrap();
    let newest = past.len() as u64 - 1;
    for (number, then) in (0..).zip(&past) {
        let state = Snapshot::at(store.read().unwrap(), number).unwrap();
        check_state(&state, &then.memory);
        let ancestor = state.block_hash(number).unwrap();
        assert_eq!(ancestor, then.header.hash_slow());
        assert_eq!(state.block_hash(number + 1).unwrap(), B256::ZERO);
    }
    assert!(matches!(
        Snapshot::at(store.read().unwrap(), newest + 1),
        Err(StoreError::Pruned { .. })
    ));
    n_changes
}

/// The update back to each block has that block's root.
fn check_past(txn: &Txn<Rw>, past: &[Past]) {
    for then in past {
        let diff = txn.reverse_diff(then.header.number, usize::MAX).unwrap();
        let update = txn.state_update(&diff.unwrap()).unwrap();
        assert_eq!(update.root, then.header.state_root);
    }
}

fn check_state(state: &Snapshot, memory: &MemoryState) {
    for address in (0..24).map(address) {
        let account = memory.accounts.get(&address).copied();
        assert_eq!(state.account(address).unwrap(), account);
        for slot in (0..12_u8).map(U256::from) {
            let value = memory.storage.get(&(address, slot)).copied();
            assert_eq!(
                state.storage(address, slot).unwrap(),
                value.unwrap_or_default()
            );
        }
        if let Some(account) = account {
            state.code(account.code_hash).unwrap();
        }
    }
}

#[test]
fn every_history_can_be_read_proven_and_taken_back() {
    let cases = u32::try_from(40 * crate::test_scale()).unwrap();
    let config = ProptestConfig {
        cases,
        failure_persistence: None,
        ..ProptestConfig::default()
    };
    let n_changes = std::cell::Cell::new(0);
    proptest!(config, |(steps in prop::collection::vec(any_step(), 1..14))| {
        n_changes.set(n_changes.get() + check_steps(steps));
    });
    println!("{} changes in {cases} histories", n_changes.get());
}

fn some_block(seed: u8) -> StateDiff {
    let account = |nonce: u8| AccountState {
        nonce: nonce.into(),
        balance_wei: U256::from(seed),
        code_hash: keccak256([seed]),
    };
    let changes = (0..12).map(|number| {
        let is_gone = (number + seed).is_multiple_of(5);
        let n_slots = if is_gone { 0 } else { number };
        let storage = (0..n_slots)
            .map(|slot| (U256::from(slot), U256::from(seed.wrapping_mul(slot))))
            .collect();
        let change = AccountChange {
            account: (!is_gone).then(|| account(number)),
            is_storage_wiped: is_gone || (number + seed).is_multiple_of(4),
            storage,
        };
        (address(number), change)
    });
    with_codes(changes.collect())
}

#[test]
fn a_fault_at_any_write_leaves_the_old_block_or_the_new_one() {
    type Action = fn(&Txn<Rw>) -> Result<(), StoreError>;
    let actions: [(&str, Action); 3] = [
        ("block", |txn| {
            write_next(txn, &some_block(9), 9, 0).map(drop)
        }),
        // Forgets the history of blocks 1 and 2.
        ("block with pruning", |txn| {
            write_next(txn, &some_block(9), 9, 2).map(drop)
        }),
        ("unwind", |txn| txn.unwind(1)),
    ];
    for (name, action) in actions {
        let dir = tempfile::tempdir().unwrap();
        let mut store = open(dir.path(), |txn| {
            for seed in 0..4 {
                write_next(txn, &some_block(seed), seed, 0).unwrap();
            }
        });
        let before = dump(&store.read().unwrap());
        let mut n_faults = 0;
        loop {
            let txn = store.write().unwrap();
            faults::fail_after(n_faults);
            let outcome = action(&txn).and_then(|()| txn.commit());
            faults::never();
            // What is on disk, not what the process remembers.
            drop(store);
            store = open(dir.path(), |_| ());
            if outcome.is_ok() {
                break;
            }
            let found = dump(&store.read().unwrap());
            assert!(found == before, "{name}: fault at write {n_faults}");
            n_faults += 1;
        }
        assert!(n_faults > 50, "{name}: {n_faults}");
        let txn = store.read().unwrap();
        assert!(dump(&txn) != before, "{name}");
        assert_eq!(
            txn.head().unwrap().0.state_root,
            txn.rebuild_state_root().unwrap()
        );
        txn.check_tries().unwrap();
    }
}

#[test]
fn history_is_kept_to_its_depth() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path(), |_| ());
    let txn = store.write().unwrap();
    let mut memories = vec![MemoryState::default()];
    for seed in 0..12 {
        let diff = some_block(seed);
        write_next(&txn, &diff, seed, 4).unwrap();
        let mut memory = memories.last().unwrap().clone();
        memory.apply(&diff);
        memories.push(memory);
    }
    txn.commit().unwrap();
    for number in 0..7 {
        let error = Snapshot::at(store.read().unwrap(), number).unwrap_err();
        let text =
            format!("the state of block {number} is pruned: kept are those of blocks 7 to 11");
        assert_eq!(error.to_string(), text);
    }
    for (number, memory) in memories[1..].iter().enumerate().skip(7) {
        check_state(
            &Snapshot::at(store.read().unwrap(), number as u64).unwrap(),
            memory,
        );
    }
    let txn = store.write().unwrap();
    assert!(matches!(
        txn.unwind(6),
        Err(StoreError::Pruned { oldest: 7, .. })
    ));
    drop(txn);
    let txn = store.write().unwrap();
    txn.unwind(7).unwrap();
    assert_eq!(txn.oldest_state().unwrap(), 7);
    txn.check_tries().unwrap();
    // Nothing of the history is left over.
    for table in ["account_history", "storage_history", "changes"] {
        assert!(dump(&txn)[table].is_empty(), "{table}");
    }
}

#[test]
fn a_lower_depth_is_reached_block_by_block() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path(), |_| ());
    let txn = store.write().unwrap();
    for seed in 0..60 {
        write_next(&txn, &some_block(seed), seed, 0).unwrap();
    }
    assert_eq!(txn.oldest_state().unwrap(), 0);
    for (seed, oldest) in [(60, 16), (61, 32), (62, 48), (63, 61), (64, 62)] {
        write_next(&txn, &some_block(seed), seed, 2).unwrap();
        assert_eq!(txn.oldest_state().unwrap(), oldest);
    }
}
