//! Accounts, storage and codes as they are after the newest block, and the
//! tries over them.

use std::borrow::Cow;
use std::cell::RefCell;

use alloy_primitives::{Address, B256, Bytes, KECCAK256_EMPTY, U256};
use alloy_trie::{HashBuilder, Nibbles, TrieAccount};
use ol_evm::{AccountState, StateReader};
use signet_libmdbx::{Cursor, Database, TransactionKind};

use super::codec::{RootedAccount, decode_account, decode_rooted, decode_value, storage_key};
use super::{StoreError, Txn, array};
use crate::trie::{self, Branch, Change, SortedTrie};

impl<K: TransactionKind> StateReader for Txn<K> {
    type Error = StoreError;

    fn account(&self, address: Address) -> Result<Option<AccountState>, StoreError> {
        self.get(self.tables.accounts, address.as_slice())?
            .map(|bytes| decode_account(&bytes))
            .transpose()
    }

    fn code(&self, hash: B256) -> Result<Bytes, StoreError> {
        if hash == KECCAK256_EMPTY {
            return Ok(Bytes::new());
        }
        match self.get(self.tables.codes, hash.as_slice())? {
            Some(code) => Ok(Bytes::from(code.into_owned())),
            None => Err(StoreError::corrupt(format!("the code {hash} is missing"))),
        }
    }

    fn storage(&self, address: Address, slot: U256) -> Result<U256, StoreError> {
        self.get(self.tables.storage, &storage_key(address, slot))?
            .map_or(Ok(U256::ZERO), |bytes| decode_value(&bytes))
    }

    fn block_hash(&self, number: u64) -> Result<B256, StoreError> {
        Ok(self.header(number)?.map_or(B256::ZERO, |(_, hash)| hash))
    }
}

impl<K: TransactionKind> Txn<K> {
    /// An account by its hashed address, with the root of its storage.
    pub(super) fn rooted_account(
        &self,
        hashed_address: B256,
    ) -> Result<Option<RootedAccount>, StoreError> {
        self.get(self.tables.hashed_accounts, hashed_address.as_slice())?
            .map(|bytes| decode_rooted(&bytes))
            .transpose()
    }

    /// The state trie.
    pub(crate) fn account_trie(&self) -> Result<StoredTrie<'_, K>, StoreError> {
        Ok(StoredTrie {
            branches: RefCell::new(self.tx.cursor(self.tables.account_trie)?),
            leaves: RefCell::new(self.tx.cursor(self.tables.hashed_accounts)?),
            prefix: Vec::new(),
            leaf: |bytes| Ok(decode_rooted(bytes)?.leaf()),
        })
    }

    /// The storage trie of one account.
    pub(crate) fn storage_trie(
        &self,
        hashed_address: B256,
    ) -> Result<StoredTrie<'_, K>, StoreError> {
        Ok(StoredTrie {
            branches: RefCell::new(self.tx.cursor(self.tables.storage_trie)?),
            leaves: RefCell::new(self.tx.cursor(self.tables.hashed_storage)?),
            prefix: hashed_address.to_vec(),
            leaf: |bytes| Ok(alloy_rlp::encode(decode_value(bytes)?)),
        })
    }

    /// All slots of an account, ascending.
    pub(super) fn storage_of(&self, address: Address) -> Result<Vec<(U256, U256)>, StoreError> {
        let mut slots = Vec::new();
        self.scan(self.tables.storage, address.as_slice(), |key, value| {
            let slot = U256::from_be_bytes(array::<32>("a slot", &key[20..])?);
            slots.push((slot, decode_value(value)?));
            Ok(true)
        })?;
        Ok(slots)
    }

    /// The root of the state trie from all its leaves, storage included, without
    /// any stored branch. The oracle of the root that is kept up to date; takes
    /// time in proportion to the state.
    ///
    /// # Source
    /// Ethereum yellow paper, appendix D.
    pub(crate) fn rebuild_state_root(&self) -> Result<B256, StoreError> {
        let mut builder = HashBuilder::default();
        self.scan(self.tables.hashed_accounts, &[], |key, value| {
            let mut rooted = decode_rooted(value)?;
            let mut storage = HashBuilder::default();
            self.scan(self.tables.hashed_storage, key, |slot, value| {
                let leaf = alloy_rlp::encode(decode_value(value)?);
                storage.add_leaf(Nibbles::unpack(&slot[32..]), &leaf);
                Ok(true)
            })?;
            rooted.storage_root = storage.root();
            builder.add_leaf(Nibbles::unpack(key), &rooted.leaf());
            Ok(true)
        })?;
        Ok(builder.root())
    }

    /// The root of the state trie by another way: from the tables with plain
    /// keys, hashing everything. For checks; it takes all accounts into memory.
    pub(crate) fn recompute_state_root(&self) -> Result<B256, StoreError> {
        let mut accounts = Vec::new();
        self.scan(self.tables.accounts, &[], |key, value| {
            let address = Address::from(array::<20>("an address", key)?);
            accounts.push((address, decode_account(value)?));
            Ok(true)
        })?;
        let mut leaves = Vec::with_capacity(accounts.len());
        for (address, account) in accounts {
            let storage = self.storage_of(address)?;
            let storage = storage
                .into_iter()
                .map(|(slot, value)| (slot.into(), value));
            let leaf = TrieAccount {
                nonce: account.nonce,
                balance: account.balance_wei,
                storage_root: alloy_trie::root::storage_root_unhashed(storage),
                code_hash: account.code_hash,
            };
            leaves.push((address, leaf));
        }
        Ok(alloy_trie::root::state_root_unhashed(leaves))
    }

    /// Checks that every stored branch, of the state trie and of all storage
    /// tries, is the one that its leaves make, and that there is no other.
    /// Takes time and memory in proportion to the state.
    pub(crate) fn check_tries(&self) -> Result<(), StoreError> {
        let mut accounts = Vec::new();
        let mut owners = Vec::new();
        self.scan(self.tables.hashed_accounts, &[], |key, value| {
            let key = B256::from(array::<32>("a hashed address", key)?);
            let rooted = decode_rooted(value)?;
            accounts.push((key, rooted.leaf()));
            owners.push((key, rooted.storage_root));
            Ok(true)
        })?;
        self.check_trie(self.tables.account_trie, &[], accounts)?;
        let mut n_branches = 0;
        for (owner, storage_root) in owners {
            let mut slots = Vec::new();
            self.scan(
                self.tables.hashed_storage,
                owner.as_slice(),
                |key, value| {
                    let key = B256::from(array::<32>("a hashed slot", &key[32..])?);
                    slots.push((key, alloy_rlp::encode(decode_value(value)?)));
                    Ok(true)
                },
            )?;
            let (root, n) = self.check_trie(self.tables.storage_trie, owner.as_slice(), slots)?;
            n_branches += n;
            if root != storage_root {
                return Err(StoreError::corrupt(format!("the storage root of {owner}")));
            }
        }
        let mut n_stored = 0;
        self.scan(self.tables.storage_trie, &[], |_, _| {
            n_stored += 1;
            Ok(true)
        })?;
        if n_stored != n_branches {
            return Err(StoreError::corrupt("storage tries without an account"));
        }
        Ok(())
    }

    /// Compares the stored branches of one trie with those that its leaves
    /// make. Returns its root and how many branches it has.
    fn check_trie(
        &self,
        table: Database,
        prefix: &[u8],
        leaves: Vec<(B256, Vec<u8>)>,
    ) -> Result<(B256, usize), StoreError> {
        let leaves = leaves.into_iter();
        let leaves = leaves.map(|(key, value)| Change::new(key, Some(value)));
        let made = trie::update(&trie::Empty, leaves.collect())?;
        let mut stored = Vec::with_capacity(made.branches.len());
        self.scan(table, prefix, |key, value| {
            let branch = Branch::decode(value)?;
            stored.push((path(&key[prefix.len()..])?, Some(branch)));
            Ok(true)
        })?;
        if stored != made.branches {
            return Err(StoreError::corrupt("the branches of a trie"));
        }
        Ok((made.root, stored.len()))
    }
}

/// A key and its value, as they lie in the database.
type Entry<'t> = (Cow<'t, [u8]>, Cow<'t, [u8]>);

/// A trie in the database.
pub(crate) struct StoredTrie<'t, K: TransactionKind> {
    branches: RefCell<Cursor<'t, K>>,
    leaves: RefCell<Cursor<'t, K>>,
    /// What keys of this trie begin with.
    prefix: Vec<u8>,
    /// The value of a leaf from what is stored.
    leaf: fn(&[u8]) -> Result<Vec<u8>, StoreError>,
}

impl<'t, K: TransactionKind> StoredTrie<'t, K> {
    fn seek(
        &self,
        cursor: &RefCell<Cursor<'t, K>>,
        from: &[u8],
    ) -> Result<Option<Entry<'t>>, StoreError> {
        let mut key = [0_u8; 32 + 65];
        let len = self.prefix.len() + from.len();
        let key = key
            .get_mut(..len)
            .ok_or_else(|| StoreError::corrupt("a path of a trie is too long"))?;
        key[..self.prefix.len()].copy_from_slice(&self.prefix);
        key[self.prefix.len()..].copy_from_slice(from);
        let found = cursor
            .borrow_mut()
            .set_range::<Cow<'t, [u8]>, Cow<'t, [u8]>>(key)?;
        Ok(found.filter(|(key, _)| key.starts_with(&self.prefix)))
    }
}

impl<K: TransactionKind> SortedTrie for StoredTrie<'_, K> {
    fn branch_from(&self, from: &[u8]) -> Result<Option<(Nibbles, Branch)>, StoreError> {
        let found = self.seek(&self.branches, from)?;
        let decode = |(key, value): Entry<'_>| {
            Ok((path(&key[self.prefix.len()..])?, Branch::decode(&value)?))
        };
        found.map(decode).transpose()
    }

    fn leaf_from(&self, from: B256) -> Result<Option<(B256, Vec<u8>)>, StoreError> {
        let found = self.seek(&self.leaves, from.as_slice())?;
        let decode = |(key, value): Entry<'_>| {
            let key = array::<32>("a hashed key", &key[self.prefix.len()..])?;
            Ok((B256::from(key), (self.leaf)(&value)?))
        };
        found.map(decode).transpose()
    }
}

/// A path of a branch, one byte a nibble.
fn path(bytes: &[u8]) -> Result<Nibbles, StoreError> {
    if bytes.len() < 64 && bytes.iter().all(|&nibble| nibble < 16) {
        Ok(Nibbles::from_nibbles_unchecked(bytes))
    } else {
        Err(StoreError::corrupt("a path of a trie"))
    }
}
