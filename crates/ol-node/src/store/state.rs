//! Accounts, storage and codes, and the root of the state trie.

use alloy_primitives::{Address, B256, Bytes, KECCAK256_EMPTY, U256, keccak256};
use alloy_rlp::Decodable;
use alloy_trie::{EMPTY_ROOT_HASH, HashBuilder, Nibbles, TrieAccount};
use ol_evm::{AccountState, StateDiff, StateReader};
use signet_libmdbx::{Rw, TransactionKind};

use super::{StoreError, Txn, array};

const ACCOUNT_SIZE_BYTES: usize = 8 + 32 + 32;

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
    /// The root of the state trie, from all its leaves.
    ///
    /// # Source
    /// Ethereum yellow paper, appendix D.
    pub(crate) fn state_root(&self) -> Result<B256, StoreError> {
        let mut builder = HashBuilder::default();
        self.scan(self.tables.hashed_accounts, &[], |key, leaf| {
            builder.add_leaf(Nibbles::unpack(key), leaf);
            Ok(true)
        })?;
        Ok(builder.root())
    }

    /// The root of the storage trie of one account.
    fn storage_root(&self, hashed_address: B256) -> Result<B256, StoreError> {
        let mut builder = HashBuilder::default();
        let prefix = hashed_address.as_slice();
        self.scan(self.tables.hashed_storage, prefix, |key, value| {
            let leaf = alloy_rlp::encode(decode_value(value)?);
            builder.add_leaf(Nibbles::unpack(&key[prefix.len()..]), &leaf);
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
            let mut storage = Vec::new();
            self.scan(self.tables.storage, address.as_slice(), |key, value| {
                let slot = B256::from(array::<32>("a slot", &key[20..])?);
                storage.push((slot, decode_value(value)?));
                Ok(true)
            })?;
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
}

impl Txn<Rw> {
    /// Applies what a block changed, to the plain tables and to the leaves of
    /// the trie.
    pub(crate) fn apply(&self, diff: &StateDiff) -> Result<(), StoreError> {
        let tables = self.tables;
        for (hash, code) in &diff.codes {
            self.put(tables.codes, hash.as_slice(), code)?;
        }
        for (&address, change) in &diff.accounts {
            let hashed_address = keccak256(address);
            let is_wiped = change.is_storage_wiped || change.account.is_none();
            if is_wiped {
                self.delete_prefix(tables.storage, address.as_slice())?;
                self.delete_prefix(tables.hashed_storage, hashed_address.as_slice())?;
            }
            let Some(account) = change.account else {
                self.delete(tables.accounts, address.as_slice())?;
                self.delete(tables.hashed_accounts, hashed_address.as_slice())?;
                continue;
            };
            for (&slot, &value) in &change.storage {
                self.set_storage(address, hashed_address, slot, value)?;
            }
            let storage_root = if is_wiped || !change.storage.is_empty() {
                self.storage_root(hashed_address)?
            } else {
                self.known_storage_root(hashed_address)?
            };
            let leaf = TrieAccount {
                nonce: account.nonce,
                balance: account.balance_wei,
                storage_root,
                code_hash: account.code_hash,
            };
            self.put(
                tables.accounts,
                address.as_slice(),
                &encode_account(&account),
            )?;
            self.put(
                tables.hashed_accounts,
                hashed_address.as_slice(),
                &alloy_rlp::encode(leaf),
            )?;
        }
        Ok(())
    }

    fn set_storage(
        &self,
        address: Address,
        hashed_address: B256,
        slot: U256,
        value: U256,
    ) -> Result<(), StoreError> {
        let key = storage_key(address, slot);
        let hashed_slot = keccak256(slot.to_be_bytes::<32>());
        let hashed_key = [hashed_address.as_slice(), hashed_slot.as_slice()].concat();
        if value.is_zero() {
            self.delete(self.tables.storage, &key)?;
            return self.delete(self.tables.hashed_storage, &hashed_key);
        }
        let value = value.to_be_bytes::<32>();
        self.put(self.tables.storage, &key, &value)?;
        self.put(self.tables.hashed_storage, &hashed_key, &value)
    }

    /// The storage root that an account had, where its storage did not change.
    fn known_storage_root(&self, hashed_address: B256) -> Result<B256, StoreError> {
        let Some(leaf) = self.get(self.tables.hashed_accounts, hashed_address.as_slice())? else {
            return Ok(EMPTY_ROOT_HASH);
        };
        TrieAccount::decode(&mut leaf.as_ref())
            .map(|leaf| leaf.storage_root)
            .map_err(|error| StoreError::corrupt(format!("a leaf of the state trie: {error}")))
    }
}

fn storage_key(address: Address, slot: U256) -> [u8; 52] {
    let mut key = [0; 52];
    key[..20].copy_from_slice(address.as_slice());
    key[20..].copy_from_slice(&slot.to_be_bytes::<32>());
    key
}

fn encode_account(account: &AccountState) -> [u8; ACCOUNT_SIZE_BYTES] {
    let mut bytes = [0; ACCOUNT_SIZE_BYTES];
    bytes[..8].copy_from_slice(&account.nonce.to_be_bytes());
    bytes[8..40].copy_from_slice(&account.balance_wei.to_be_bytes::<32>());
    bytes[40..].copy_from_slice(account.code_hash.as_slice());
    bytes
}

fn decode_account(bytes: &[u8]) -> Result<AccountState, StoreError> {
    let bytes: [u8; ACCOUNT_SIZE_BYTES] = array("an account", bytes)?;
    let (nonce, rest) = bytes.split_at(8);
    let (balance, code_hash) = rest.split_at(32);
    Ok(AccountState {
        nonce: u64::from_be_bytes(array("a nonce", nonce)?),
        balance_wei: U256::from_be_slice(balance),
        code_hash: B256::from_slice(code_hash),
    })
}

fn decode_value(bytes: &[u8]) -> Result<U256, StoreError> {
    Ok(U256::from_be_bytes(array::<32>("a storage value", bytes)?))
}
