//! What a block does to the state tables: computed first, so that the root is
//! known, and written then.

use std::collections::BTreeMap;

use alloy_primitives::{Address, B256, Bytes, U256, keccak256};
use alloy_trie::{EMPTY_ROOT_HASH, Nibbles};
use ol_evm::{AccountChange, AccountState, StateDiff};
use signet_libmdbx::{Database, Rw, TransactionKind};

use super::codec::{
    ChangedAccount, ChangedKeys, RootedAccount, encode_account, encode_rooted, encode_value,
    storage_key,
};
use super::state::StoredTrie;
use super::{StoreError, Txn};
use crate::trie::{self, Branch, Change, Overlay};

/// A change of the state, with all that has to be written for it.
///
/// Holds only what really changes: a diff that sets what is there already is
/// an update of nothing.
#[derive(Debug)]
pub(crate) struct StateUpdate {
    /// The state root afterwards.
    pub(crate) root: B256,
    /// Ascending by address.
    accounts: Vec<AccountUpdate>,
    /// Codes that are not in the database yet.
    codes: Vec<(B256, Bytes)>,
    branches: Vec<(Nibbles, Option<Branch>)>,
}

#[derive(Debug)]
struct AccountUpdate {
    address: Address,
    hashed_address: B256,
    before: Option<RootedAccount>,
    after: Option<RootedAccount>,
    /// Ascending by slot.
    slots: Vec<SlotUpdate>,
    branches: Vec<(Nibbles, Option<Branch>)>,
}

#[derive(Debug)]
struct SlotUpdate {
    slot: U256,
    hashed_slot: B256,
    before: U256,
    after: U256,
}

impl SlotUpdate {
    /// Its leaf in the storage trie afterwards.
    fn leaf(&self) -> Option<Vec<u8>> {
        (!self.after.is_zero()).then(|| alloy_rlp::encode(self.after))
    }
}

impl AccountUpdate {
    fn account_before(&self) -> Option<AccountState> {
        self.before.map(|rooted| rooted.account)
    }

    fn account_after(&self) -> Option<AccountState> {
        self.after.map(|rooted| rooted.account)
    }

    fn is_account_changed(&self) -> bool {
        self.account_before() != self.account_after()
    }
}

impl StateUpdate {
    /// The state trie as it is after the update.
    pub(crate) fn account_trie<'t, K: TransactionKind>(
        &self,
        txn: &'t Txn<K>,
    ) -> Result<Overlay<StoredTrie<'t, K>>, StoreError> {
        let leaves = self.accounts.iter().map(|account| {
            let leaf = account.after.map(|rooted| rooted.leaf());
            (account.hashed_address, leaf)
        });
        Ok(Overlay::new(txn.account_trie()?, &self.branches, leaves))
    }

    /// The storage trie of an account as it is after the update.
    pub(crate) fn storage_trie<'t, K: TransactionKind>(
        &self,
        txn: &'t Txn<K>,
        address: Address,
    ) -> Result<Overlay<StoredTrie<'t, K>>, StoreError> {
        let position = self
            .accounts
            .binary_search_by_key(&address, |account| account.address);
        let account = position.ok().map(|position| &self.accounts[position]);
        let branches = account.map_or(&[][..], |account| &account.branches);
        let slots = account.map_or(&[][..], |account| &account.slots);
        let leaves = slots.iter().map(|slot| (slot.hashed_slot, slot.leaf()));
        let base = txn.storage_trie(keccak256(address))?;
        Ok(Overlay::new(base, branches, leaves))
    }
}

impl<K: TransactionKind> Txn<K> {
    /// Computes what a diff does to the state after the newest block. Nothing
    /// is written.
    pub(crate) fn state_update(&self, diff: &StateDiff) -> Result<StateUpdate, StoreError> {
        let mut accounts = Vec::with_capacity(diff.accounts.len());
        for (&address, change) in &diff.accounts {
            accounts.extend(self.account_update(address, change)?);
        }
        let mut leaves: Vec<Change> = accounts
            .iter()
            .map(|account| {
                let leaf = account.after.map(|rooted| rooted.leaf());
                Change::new(account.hashed_address, leaf)
            })
            .collect();
        leaves.sort_unstable_by(|a, b| a.key().cmp(b.key()));
        let trie = trie::update(&self.account_trie()?, leaves)?;
        let mut codes = Vec::new();
        for (hash, code) in &diff.codes {
            if self.get(self.tables.codes, hash.as_slice())?.is_none() {
                codes.push((*hash, code.clone()));
            }
        }
        Ok(StateUpdate {
            root: trie.root,
            accounts,
            codes,
            branches: trie.branches,
        })
    }

    /// `None` if the change changes nothing.
    fn account_update(
        &self,
        address: Address,
        change: &AccountChange,
    ) -> Result<Option<AccountUpdate>, StoreError> {
        let hashed_address = keccak256(address);
        let before = self.rooted_account(hashed_address)?;
        let slots = self.slot_updates(address, change)?;
        let mut storage_root = before.map_or(EMPTY_ROOT_HASH, |before| before.storage_root);
        let mut branches = Vec::new();
        if !slots.is_empty() {
            let mut leaves: Vec<Change> = slots
                .iter()
                .map(|slot| Change::new(slot.hashed_slot, slot.leaf()))
                .collect();
            leaves.sort_unstable_by(|a, b| a.key().cmp(b.key()));
            let trie = trie::update(&self.storage_trie(hashed_address)?, leaves)?;
            storage_root = trie.root;
            branches = trie.branches;
        }
        let after = change.account.map(|account| RootedAccount {
            account,
            storage_root,
        });
        let update = AccountUpdate {
            address,
            hashed_address,
            before,
            after,
            slots,
            branches,
        };
        // A root that stays although slots change does not happen, but would
        // have to be written all the same.
        let is_nothing = update.before == update.after && update.slots.is_empty();
        Ok((!is_nothing).then_some(update))
    }

    /// The slots that change. Wiped storage is a change of every slot it had:
    /// all of them need history anyway.
    fn slot_updates(
        &self,
        address: Address,
        change: &AccountChange,
    ) -> Result<Vec<SlotUpdate>, StoreError> {
        let is_gone = change.account.is_none();
        let mut slots: BTreeMap<U256, (U256, U256)> = BTreeMap::new();
        if change.is_storage_wiped || is_gone {
            let storage = self.storage_of(address)?.into_iter();
            slots.extend(storage.map(|(slot, before)| (slot, (before, U256::ZERO))));
        } else {
            for &slot in change.storage.keys() {
                let before = ol_evm::StateReader::storage(self, address, slot)?;
                slots.insert(slot, (before, U256::ZERO));
            }
        }
        // What is gone has no storage.
        if !is_gone {
            for (&slot, &value) in &change.storage {
                slots.entry(slot).or_default().1 = value;
            }
        }
        let slots = slots.into_iter();
        let changed = slots.filter(|(_, (before, after))| before != after);
        let updates = changed.map(|(slot, (before, after))| SlotUpdate {
            slot,
            hashed_slot: keccak256(slot.to_be_bytes::<32>()),
            before,
            after,
        });
        Ok(updates.collect())
    }
}

impl Txn<Rw> {
    /// Writes an update that was computed on this state, without history.
    pub(crate) fn write_state(&self, update: &StateUpdate) -> Result<(), StoreError> {
        let tables = self.tables;
        for (hash, code) in &update.codes {
            self.put(tables.codes, hash.as_slice(), code)?;
        }
        for account in &update.accounts {
            if account.is_account_changed() {
                let value = account.account_after().as_ref().map(encode_account);
                self.set(
                    tables.accounts,
                    account.address.as_slice(),
                    value.as_deref(),
                )?;
            }
            for slot in &account.slots {
                let key = storage_key(account.address, slot.slot);
                self.set_value(tables.storage, &key, slot.after)?;
            }
        }
        // Keys in order keep the writes close together.
        let mut by_hash: Vec<&AccountUpdate> = update.accounts.iter().collect();
        by_hash.sort_unstable_by_key(|account| account.hashed_address);
        for account in by_hash {
            let owner = account.hashed_address.as_slice();
            let value = account.after.as_ref().map(encode_rooted);
            self.set(tables.hashed_accounts, owner, value.as_deref())?;
            let mut slots: Vec<&SlotUpdate> = account.slots.iter().collect();
            slots.sort_unstable_by_key(|slot| slot.hashed_slot);
            for slot in slots {
                let key = [owner, slot.hashed_slot.as_slice()].concat();
                self.set_value(tables.hashed_storage, &key, slot.after)?;
            }
            for (path, branch) in &account.branches {
                let key = [owner, &path.to_vec()].concat();
                let branch = branch.as_ref().map(Branch::encode);
                self.set(tables.storage_trie, &key, branch.as_deref())?;
            }
        }
        for (path, branch) in &update.branches {
            let branch = branch.as_ref().map(Branch::encode);
            self.set(tables.account_trie, &path.to_vec(), branch.as_deref())?;
        }
        Ok(())
    }

    /// Writes what block `number` found, so that it can be asked for and
    /// restored.
    pub(super) fn write_history(
        &self,
        number: u64,
        update: &StateUpdate,
    ) -> Result<(), StoreError> {
        let tables = self.tables;
        let block = number.to_be_bytes();
        let mut changed = ChangedKeys {
            accounts: Vec::with_capacity(update.accounts.len()),
            codes: update.codes.iter().map(|(hash, _)| *hash).collect(),
        };
        for account in &update.accounts {
            let is_account_changed = account.is_account_changed();
            if is_account_changed {
                let key = [account.address.as_slice(), &block].concat();
                let before = account.account_before().as_ref().map(encode_account);
                self.put(tables.account_history, &key, &before.unwrap_or_default())?;
            }
            for slot in &account.slots {
                let key = [&storage_key(account.address, slot.slot)[..], &block].concat();
                self.put(tables.storage_history, &key, &encode_value(slot.before))?;
            }
            changed.accounts.push(ChangedAccount {
                address: account.address,
                is_account_changed,
                slots: account.slots.iter().map(|slot| slot.slot).collect(),
            });
        }
        self.put(tables.changes, &block, &changed.encode())
    }

    fn set(&self, table: Database, key: &[u8], value: Option<&[u8]>) -> Result<(), StoreError> {
        match value {
            Some(value) => self.put(table, key, value),
            None => self.delete(table, key),
        }
    }

    fn set_value(&self, table: Database, key: &[u8], value: U256) -> Result<(), StoreError> {
        let value = (!value.is_zero()).then(|| encode_value(value));
        self.set(table, key, value.as_deref())
    }
}
