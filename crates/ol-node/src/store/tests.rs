//! Goal: the state root is Ethereum's, whatever happened to the state before;
//! going back leaves the tables as they were; and a write is whole or not at all.
//! Method: random changes applied to the tables and to a state in memory, whose
//! root a small trie written only for this test computes; and the root that
//! anvil computed for its own state (`fixtures/state-root`).

mod history;

use std::collections::BTreeMap;

use alloy_genesis::{Genesis, GenesisAccount};
use alloy_primitives::{Address, B256, Bytes, U256, keccak256};
use alloy_rlp::{Encodable, Header as RlpHeader};
use alloy_trie::EMPTY_ROOT_HASH;
use ol_evm::{AccountChange, AccountState, MemoryState, StateDiff};
use proptest::prelude::*;
use signet_libmdbx::Rw;

use super::{FORMAT_VERSION, Store, StoreError, Txn};
use crate::{Node, OpenError};

/// The Merkle Patricia trie of the yellow paper, appendix D, as it is written
/// there: recursive, over sorted pairs of nibbles and value.
mod oracle {
    use super::*;

    fn string(bytes: &[u8]) -> Vec<u8> {
        let mut out = Vec::new();
        bytes.encode(&mut out);
        out
    }

    fn list(items: &[Vec<u8>]) -> Vec<u8> {
        let payload = items.concat();
        let mut out = Vec::new();
        let header = RlpHeader {
            list: true,
            payload_length: payload.len(),
        };
        header.encode(&mut out);
        out.extend(payload);
        out
    }

    fn hex_prefix(nibbles: &[u8], is_leaf: bool) -> Vec<u8> {
        let flag = 2 * u8::from(is_leaf);
        let (mut out, rest) = match nibbles {
            [first, rest @ ..] if nibbles.len() % 2 == 1 => (vec![(flag + 1) << 4 | first], rest),
            _ => (vec![flag << 4], nibbles),
        };
        out.extend(rest.chunks(2).map(|pair| pair[0] << 4 | pair[1]));
        out
    }

    fn reference(node: Vec<u8>) -> Vec<u8> {
        if node.len() < 32 {
            node
        } else {
            string(keccak256(node).as_slice())
        }
    }

    fn node(pairs: &[(Vec<u8>, Vec<u8>)], depth: usize) -> Vec<u8> {
        let [(first, value), rest @ ..] = pairs else {
            return string(&[]);
        };
        if rest.is_empty() {
            return list(&[string(&hex_prefix(&first[depth..], true)), string(value)]);
        }
        let (last, _) = &pairs[pairs.len() - 1];
        let shared = first[depth..]
            .iter()
            .zip(&last[depth..])
            .take_while(|(a, b)| a == b)
            .count();
        if shared > 0 {
            let path = hex_prefix(&first[depth..depth + shared], false);
            return list(&[string(&path), reference(node(pairs, depth + shared))]);
        }
        let mut children: Vec<Vec<u8>> = (0..16)
            .map(|nibble| {
                let from = pairs.partition_point(|(path, _)| path[depth] < nibble);
                let to = pairs.partition_point(|(path, _)| path[depth] <= nibble);
                reference(node(&pairs[from..to], depth + 1))
            })
            .collect();
        children.push(string(&[]));
        list(&children)
    }

    fn root(leaves: BTreeMap<B256, Vec<u8>>) -> B256 {
        let pairs: Vec<_> = leaves
            .into_iter()
            .map(|(key, value)| {
                let nibbles = key.iter().flat_map(|byte| [byte >> 4, byte & 15]).collect();
                (nibbles, value)
            })
            .collect();
        keccak256(node(&pairs, 0))
    }

    pub(super) fn state_root(state: &MemoryState) -> B256 {
        let leaves = state.accounts.iter().map(|(&address, account)| {
            let storage = state
                .storage
                .range((address, U256::ZERO)..=(address, U256::MAX))
                .map(|((_, slot), value)| {
                    let key = keccak256(slot.to_be_bytes::<32>());
                    (key, string(&value.to_be_bytes_trimmed_vec()))
                })
                .collect();
            let leaf = list(&[
                string(&account.nonce.to_be_bytes()[account.nonce.leading_zeros() as usize / 8..]),
                string(&account.balance_wei.to_be_bytes_trimmed_vec()),
                string(root(storage).as_slice()),
                string(account.code_hash.as_slice()),
            ]);
            (keccak256(address), leaf)
        });
        root(leaves.collect())
    }
}

fn open(dir: &std::path::Path, prepare: impl FnOnce(&Txn<Rw>)) -> Store {
    Store::open::<StoreError>(dir, 1 << 30, |txn| {
        prepare(txn);
        Ok(())
    })
    .unwrap()
}

fn address(number: u8) -> Address {
    // Few enough to collide often, spread over the trie by the hash.
    Address::with_last_byte(number)
}

fn any_change() -> impl Strategy<Value = AccountChange> {
    let account = prop::option::weighted(
        0.8,
        (any::<u8>(), any::<u64>(), any::<u8>()).prop_map(|(nonce, balance, code)| AccountState {
            nonce: nonce.into(),
            balance_wei: U256::from(balance),
            code_hash: keccak256(&[code][..usize::from(code) % 2]),
        }),
    );
    let value = prop_oneof![
        2 => Just(U256::ZERO),
        2 => (1..200_u8).prop_map(U256::from),
        1 => any::<[u8; 32]>().prop_map(U256::from_be_bytes),
    ];
    let storage = prop::collection::btree_map((0..12_u8).prop_map(U256::from), value, 0..8);
    (account, prop::bool::weighted(0.15), storage).prop_map(
        |(account, is_storage_wiped, storage)| AccountChange {
            account,
            is_storage_wiped: is_storage_wiped || account.is_none(),
            // What is gone has no storage.
            storage: if account.is_some() {
                storage
            } else {
                BTreeMap::new()
            },
        },
    )
}

#[test]
fn an_empty_state_has_the_empty_root() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path(), |_| ());
    let txn = store.read().unwrap();
    let update = txn.state_update(&StateDiff::default()).unwrap();
    assert_eq!(update.root, EMPTY_ROOT_HASH);
    assert_eq!(txn.rebuild_state_root().unwrap(), EMPTY_ROOT_HASH);
    assert_eq!(oracle::state_root(&MemoryState::default()), EMPTY_ROOT_HASH);
}

#[test]
fn the_root_of_a_foreign_chain_is_met() {
    let fixture = include_str!("../../fixtures/state-root/anvil.json");
    let fixture: serde_json::Value = serde_json::from_str(fixture).unwrap();
    let expected: B256 = serde_json::from_value(fixture["stateRoot"].clone()).unwrap();
    let mut genesis = Genesis::default();
    for (address, account) in fixture["accounts"].as_object().unwrap() {
        let field = |name: &str| account[name].clone();
        let account = GenesisAccount {
            nonce: account["nonce"].as_u64(),
            balance: serde_json::from_value(field("balance")).unwrap(),
            code: Some(serde_json::from_value::<Bytes>(field("code")).unwrap()),
            storage: Some(serde_json::from_value(field("storage")).unwrap()),
            ..GenesisAccount::default()
        };
        genesis.alloc.insert(address.parse().unwrap(), account);
    }
    let (state, header) = crate::genesis::block_zero(&genesis, &ol_evm::Rules::OpenLedger).unwrap();
    assert_eq!(header.state_root, expected);
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path(), |_| ());
    let txn = store.write().unwrap();
    let update = txn.state_update(&state).unwrap();
    assert_eq!(update.root, expected);
    txn.write_state(&update).unwrap();
    assert_eq!(txn.rebuild_state_root().unwrap(), expected);
    txn.check_tries().unwrap();
}

#[test]
fn an_unknown_format_is_refused_by_name() {
    for other in [FORMAT_VERSION - 1, FORMAT_VERSION + 1] {
        let dir = tempfile::tempdir().unwrap();
        drop(open(dir.path(), |txn| {
            txn.set_format_version(other).unwrap();
        }));
        let mut genesis = Genesis::default();
        genesis.config.chain_id = 7;
        let clock = std::sync::Arc::new(ol_runtime::ManualClock::new(0));
        let error = Node::open(dir.path(), &genesis, clock).unwrap_err();
        assert!(matches!(error, OpenError::Format { found } if found == other));
        assert!(
            error
                .to_string()
                .contains("open it with the version that wrote it")
        );
    }
}
