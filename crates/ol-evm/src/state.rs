//! What execution reads from a state, and what it changes in one.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::fmt;

use alloy_primitives::{Address, B256, Bytes, KECCAK256_EMPTY, U256};
use revm::bytecode::{Bytecode, JumpTable};
use revm::database::{BundleState, DatabaseRef};
use revm::database_interface::DBErrorMarker;
use revm::state::AccountInfo;

/// An account as the state trie knows it, but for its storage.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AccountState {
    /// Transactions sent, or contracts made.
    pub nonce: u64,
    /// Native balance.
    pub balance_wei: U256,
    /// keccak256 of the code; of nothing if there is none.
    pub code_hash: B256,
}

impl Default for AccountState {
    fn default() -> Self {
        Self {
            nonce: 0,
            balance_wei: U256::ZERO,
            code_hash: KECCAK256_EMPTY,
        }
    }
}

/// A state at one block, read only.
///
/// The same key must give the same answer for as long as the reader lives.
pub trait StateReader {
    /// Why a read failed: the storage below is broken.
    type Error: std::error::Error + Send + Sync + 'static;

    /// The account at an address, if there is one.
    ///
    /// # Errors
    /// If the storage below fails.
    fn account(&self, address: Address) -> Result<Option<AccountState>, Self::Error>;

    /// The code with a hash that an account of this state names.
    ///
    /// # Errors
    /// If the storage below fails, or holds no such code.
    fn code(&self, hash: B256) -> Result<Bytes, Self::Error>;

    /// A storage slot; zero where nothing was written.
    ///
    /// # Errors
    /// If the storage below fails.
    fn storage(&self, address: Address, slot: U256) -> Result<U256, Self::Error>;

    /// The hash of an ancestor block, for `BLOCKHASH`; zero if it is unknown.
    ///
    /// # Errors
    /// If the storage below fails.
    fn block_hash(&self, number: u64) -> Result<B256, Self::Error>;
}

impl<S: StateReader + ?Sized> StateReader for &S {
    type Error = S::Error;

    fn account(&self, address: Address) -> Result<Option<AccountState>, Self::Error> {
        (**self).account(address)
    }

    fn code(&self, hash: B256) -> Result<Bytes, Self::Error> {
        (**self).code(hash)
    }

    fn storage(&self, address: Address, slot: U256) -> Result<U256, Self::Error> {
        (**self).storage(address, slot)
    }

    fn block_hash(&self, number: u64) -> Result<B256, Self::Error> {
        (**self).block_hash(number)
    }
}

/// What a block does to one account.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct AccountChange {
    /// The account afterwards; `None` if it is gone.
    pub account: Option<AccountState>,
    /// Whether all storage from before the block is gone.
    pub is_storage_wiped: bool,
    /// Slots that were written, with their value afterwards; zero means unset.
    pub storage: BTreeMap<U256, U256>,
}

/// What a block does to a state, in key order.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct StateDiff {
    /// Accounts that changed.
    pub accounts: BTreeMap<Address, AccountChange>,
    /// Codes that are new, by hash.
    pub codes: BTreeMap<B256, Bytes>,
}

impl StateDiff {
    pub(crate) fn from_bundle(bundle: BundleState) -> Self {
        let accounts = bundle
            .state
            .into_iter()
            .map(|(address, account)| {
                let is_storage_wiped = account.was_destroyed();
                let storage = account
                    .storage
                    .into_iter()
                    .filter(|(_, slot)| is_storage_wiped || slot.is_changed())
                    .map(|(key, slot)| (key, slot.present_value))
                    .collect();
                let change = AccountChange {
                    account: account.info.map(|info| AccountState {
                        nonce: info.nonce,
                        balance_wei: info.balance,
                        code_hash: info.code_hash,
                    }),
                    is_storage_wiped,
                    storage,
                };
                (address, change)
            })
            .collect();
        let codes = bundle
            .contracts
            .into_iter()
            .filter(|(hash, _)| *hash != KECCAK256_EMPTY)
            .map(|(hash, code)| (hash, code.original_bytes()))
            .collect();
        Self { accounts, codes }
    }
}

/// A state in ordered maps: for genesis, tests and oracles.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct MemoryState {
    /// Accounts by address.
    pub accounts: BTreeMap<Address, AccountState>,
    /// Storage by address and slot, without zeros.
    pub storage: BTreeMap<(Address, U256), U256>,
    /// Codes by hash.
    pub codes: BTreeMap<B256, Bytes>,
    /// Hashes of blocks by number.
    pub block_hashes: BTreeMap<u64, B256>,
}

impl MemoryState {
    /// Applies what a block changed.
    pub fn apply(&mut self, diff: &StateDiff) {
        for (&address, change) in &diff.accounts {
            match change.account {
                Some(account) => self.accounts.insert(address, account),
                None => self.accounts.remove(&address),
            };
            if change.is_storage_wiped {
                self.storage.retain(|(owner, _), _| *owner != address);
            }
            for (&slot, &value) in &change.storage {
                if value.is_zero() {
                    self.storage.remove(&(address, slot));
                } else {
                    self.storage.insert((address, slot), value);
                }
            }
        }
        for (&hash, code) in &diff.codes {
            self.codes.insert(hash, code.clone());
        }
    }

    /// Puts an account with this code, replacing what was there.
    pub fn put(&mut self, address: Address, nonce: u64, balance_wei: U256, code: Bytes) {
        let code_hash = alloy_primitives::keccak256(&code);
        if !code.is_empty() {
            self.codes.insert(code_hash, code);
        }
        let account = AccountState {
            nonce,
            balance_wei,
            code_hash,
        };
        self.accounts.insert(address, account);
    }

    /// The sum of all balances.
    #[must_use]
    pub fn supply_wei(&self) -> U256 {
        self.accounts
            .values()
            .fold(U256::ZERO, |sum, account| sum + account.balance_wei)
    }
}

impl StateReader for MemoryState {
    type Error = Infallible;

    fn account(&self, address: Address) -> Result<Option<AccountState>, Self::Error> {
        Ok(self.accounts.get(&address).copied())
    }

    fn code(&self, hash: B256) -> Result<Bytes, Self::Error> {
        Ok(self.codes.get(&hash).cloned().unwrap_or_default())
    }

    fn storage(&self, address: Address, slot: U256) -> Result<U256, Self::Error> {
        Ok(self
            .storage
            .get(&(address, slot))
            .copied()
            .unwrap_or_default())
    }

    fn block_hash(&self, number: u64) -> Result<B256, Self::Error> {
        Ok(self.block_hashes.get(&number).copied().unwrap_or_default())
    }
}

/// A [`StateReader`] as the database that the EVM reads.
pub(crate) struct Reader<S>(pub(crate) S);

impl<S> fmt::Debug for Reader<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Reader")
    }
}

/// Why the EVM could not read the state.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ReaderError<E: std::error::Error + Send + Sync + 'static> {
    #[error("the state could not be read")]
    Read(#[source] E),
    #[error("the code with hash {hash} is malformed")]
    Code { hash: B256 },
}

impl<E: std::error::Error + Send + Sync + 'static> DBErrorMarker for ReaderError<E> {}

/// Code that ends at its first instruction, such as the chunks of a sketch
/// index: no jump is ever taken in it, so it is not searched for where jumps
/// may go, which is most of what loading it costs.
fn stored_data(code: &Bytes) -> Option<Bytecode> {
    const STOP: u8 = 0;
    static NO_JUMPS: [u8; 4_096] = [0; 4_096];
    let fits = code.len() <= 8 * NO_JUMPS.len();
    (code.first() == Some(&STOP) && fits).then(|| {
        let jumps = JumpTable::from_static_slice(&NO_JUMPS, code.len());
        Bytecode::new_analyzed(code.clone(), code.len(), jumps)
    })
}

impl<S: StateReader> DatabaseRef for Reader<S> {
    type Error = ReaderError<S::Error>;

    fn basic_ref(&self, address: Address) -> Result<Option<AccountInfo>, Self::Error> {
        let account = self.0.account(address).map_err(ReaderError::Read)?;
        Ok(account.map(|account| AccountInfo {
            balance: account.balance_wei,
            nonce: account.nonce,
            code_hash: account.code_hash,
            code: None,
            ..AccountInfo::default()
        }))
    }

    fn code_by_hash_ref(&self, hash: B256) -> Result<Bytecode, Self::Error> {
        if hash == KECCAK256_EMPTY {
            return Ok(Bytecode::default());
        }
        let code = self.0.code(hash).map_err(ReaderError::Read)?;
        if let Some(data) = stored_data(&code) {
            return Ok(data);
        }
        Bytecode::new_raw_checked(code).map_err(|_| ReaderError::Code { hash })
    }

    fn storage_ref(&self, address: Address, slot: U256) -> Result<U256, Self::Error> {
        self.0.storage(address, slot).map_err(ReaderError::Read)
    }

    fn block_hash_ref(&self, number: u64) -> Result<B256, Self::Error> {
        self.0.block_hash(number).map_err(ReaderError::Read)
    }
}
