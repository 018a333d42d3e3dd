//! Block 0, from an Ethereum genesis.

use std::collections::BTreeMap;

use alloy_genesis::Genesis;
use alloy_primitives::{B256, U256, keccak256};
use alloy_trie::TrieAccount;
use ol_evm::{AccountChange, AccountState, Header, Rules, StateDiff, header};

/// The state of block 0, as a change to nothing, and its header.
///
/// Under our rules, accounts that EIP-161 calls empty are left out; an Ethereum
/// genesis keeps them. `None` if the base fee does not fit.
pub(crate) fn block_zero(genesis: &Genesis, rules: &Rules) -> Option<(StateDiff, Header)> {
    let mut diff = StateDiff::default();
    for (&address, given) in &genesis.alloc {
        let code = given.code.clone().unwrap_or_default();
        let account = AccountState {
            nonce: given.nonce.unwrap_or_default(),
            balance_wei: given.balance,
            code_hash: keccak256(&code),
        };
        if account == AccountState::default() && *rules == Rules::OpenLedger {
            continue;
        }
        if !code.is_empty() {
            diff.codes.insert(account.code_hash, code);
        }
        let storage: BTreeMap<U256, U256> = given
            .storage
            .iter()
            .flatten()
            .map(|(&slot, &value)| (slot.into(), value.into()))
            .filter(|(_, value): &(U256, U256)| !value.is_zero())
            .collect();
        let change = AccountChange {
            account: Some(account),
            is_storage_wiped: false,
            storage,
        };
        diff.accounts.insert(address, change);
    }
    let base_fee_wei = genesis
        .base_fee_per_gas
        .map(u64::try_from)
        .transpose()
        .ok()?;
    let root = state_root(&diff);
    let header = match rules {
        Rules::OpenLedger => header::genesis(
            genesis.timestamp,
            genesis.gas_limit,
            base_fee_wei,
            genesis.extra_data.clone(),
            root,
        ),
        Rules::Ethereum(rules) => header::ethereum_genesis(genesis, rules, base_fee_wei, root),
    };
    Some((diff, header))
}

fn state_root(diff: &StateDiff) -> B256 {
    let leaves = diff.accounts.iter().map(|(&address, change)| {
        let account = change.account.unwrap_or_default();
        let storage = change
            .storage
            .iter()
            .map(|(&slot, &value)| (slot.into(), value));
        let leaf = TrieAccount {
            nonce: account.nonce,
            balance: account.balance_wei,
            storage_root: alloy_trie::root::storage_root_unhashed(storage),
            code_hash: account.code_hash,
        };
        (address, leaf)
    });
    alloy_trie::root::state_root_unhashed(leaves)
}
