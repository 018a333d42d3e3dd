//! A state with something laid over it: what a caller wants to be different,
//! or what blocks that are not real have changed.

use std::collections::BTreeMap;

use alloy_primitives::{Address, B256, Bytes, KECCAK256_EMPTY, U256, keccak256};

use crate::{AccountState, StateDiff, StateReader};

/// What a caller wants to be different in an account.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct AccountOverride {
    /// Nonce.
    pub nonce: Option<u64>,
    /// Native balance.
    pub balance_wei: Option<U256>,
    /// Code.
    pub code: Option<Bytes>,
    /// Storage.
    pub storage: StorageOverride,
}

/// What a caller wants to be different in a storage.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum StorageOverride {
    /// Nothing.
    #[default]
    None,
    /// These slots; the others stay (`stateDiff`).
    Some(BTreeMap<U256, U256>),
    /// These slots; the others are unset (`state`).
    All(BTreeMap<U256, U256>),
}

/// What a caller wants to be different in the block of a call.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct BlockOverrides {
    /// Number.
    pub number: Option<u64>,
    /// Unix time in seconds.
    pub timestamp_s: Option<u64>,
    /// Gas limit.
    pub gas_limit: Option<u64>,
    /// Base fee for one unit of gas.
    pub base_fee_wei: Option<u64>,
    /// Who gets the tips, for `COINBASE`.
    pub beneficiary: Option<Address>,
    /// For `PREVRANDAO`.
    pub prevrandao: Option<B256>,
    /// For `BLOCKHASH`, by number.
    pub block_hashes: BTreeMap<u64, B256>,
}

/// What a caller wants to be different while a message is tried.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Overrides {
    /// In the state.
    pub accounts: BTreeMap<Address, AccountOverride>,
    /// In the block.
    pub block: BlockOverrides,
}

/// A state, and what is different from it.
#[derive(Debug)]
pub(crate) struct Overlay<S> {
    below: S,
    accounts: BTreeMap<Address, Layer>,
    codes: BTreeMap<B256, Bytes>,
    block_hashes: BTreeMap<u64, B256>,
}

/// What is different in one account.
#[derive(Debug, Default)]
struct Layer {
    /// The account, if it is different; `None` in it if it is gone.
    account: Option<Option<AccountState>>,
    /// Whether slots that are not here are unset.
    hides_storage: bool,
    storage: BTreeMap<U256, U256>,
}

impl<S: StateReader> Overlay<S> {
    pub(crate) const fn new(below: S) -> Self {
        Self {
            below,
            accounts: BTreeMap::new(),
            codes: BTreeMap::new(),
            block_hashes: BTreeMap::new(),
        }
    }

    /// A state with overrides over it.
    ///
    /// # Errors
    /// If the state cannot be read.
    pub(crate) fn with_overrides(below: S, overrides: &Overrides) -> Result<Self, S::Error> {
        let mut overlay = Self::new(below);
        overlay.override_accounts(&overrides.accounts)?;
        overlay
            .block_hashes
            .clone_from(&overrides.block.block_hashes);
        Ok(overlay)
    }

    /// Makes accounts different.
    ///
    /// # Errors
    /// If the state cannot be read.
    pub(crate) fn override_accounts(
        &mut self,
        overrides: &BTreeMap<Address, AccountOverride>,
    ) -> Result<(), S::Error> {
        for (&address, wanted) in overrides {
            let mut account = self.account(address)?.unwrap_or_default();
            account.nonce = wanted.nonce.unwrap_or(account.nonce);
            account.balance_wei = wanted.balance_wei.unwrap_or(account.balance_wei);
            if let Some(code) = &wanted.code {
                account.code_hash = keccak256(code);
                self.codes.insert(account.code_hash, code.clone());
            }
            let layer = self.accounts.entry(address).or_default();
            layer.account = Some(Some(account));
            match &wanted.storage {
                StorageOverride::None => {}
                StorageOverride::Some(slots) => layer.storage.extend(slots),
                StorageOverride::All(slots) => {
                    layer.hides_storage = true;
                    layer.storage.clone_from(slots);
                }
            }
        }
        Ok(())
    }

    /// Lays over what a block changed.
    pub(crate) fn apply(&mut self, diff: StateDiff) {
        for (address, change) in diff.accounts {
            let layer = self.accounts.entry(address).or_default();
            layer.account = Some(change.account);
            if change.is_storage_wiped || change.account.is_none() {
                layer.hides_storage = true;
                layer.storage.clear();
            }
            layer.storage.extend(change.storage);
        }
        self.codes.extend(diff.codes);
    }

    pub(crate) fn set_block_hash(&mut self, number: u64, hash: B256) {
        self.block_hashes.insert(number, hash);
    }
}

impl<S: StateReader> StateReader for Overlay<S> {
    type Error = S::Error;

    fn account(&self, address: Address) -> Result<Option<AccountState>, S::Error> {
        match self.accounts.get(&address).and_then(|layer| layer.account) {
            Some(account) => Ok(account),
            None => self.below.account(address),
        }
    }

    fn code(&self, hash: B256) -> Result<Bytes, S::Error> {
        match self.codes.get(&hash) {
            Some(code) => Ok(code.clone()),
            None if hash == KECCAK256_EMPTY => Ok(Bytes::new()),
            None => self.below.code(hash),
        }
    }

    fn storage(&self, address: Address, slot: U256) -> Result<U256, S::Error> {
        let Some(layer) = self.accounts.get(&address) else {
            return self.below.storage(address, slot);
        };
        match layer.storage.get(&slot) {
            Some(&value) => Ok(value),
            None if layer.hides_storage => Ok(U256::ZERO),
            None => self.below.storage(address, slot),
        }
    }

    fn block_hash(&self, number: u64) -> Result<B256, S::Error> {
        match self.block_hashes.get(&number) {
            Some(&hash) => Ok(hash),
            None => self.below.block_hash(number),
        }
    }
}
