//! What a transaction touched, before and after.

use std::collections::BTreeMap;

use alloy_primitives::{Address, B256, Bytes, KECCAK256_EMPTY, U256};
use revm::Database;
use revm::state::{AccountInfo, EvmState};

use super::budget::Budget;
use crate::AccountState;

/// An account that a transaction read or wrote.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TouchedAccount {
    /// The account before; `None` if there was none.
    pub before: Option<AccountState>,
    /// Its code before.
    pub code_before: Bytes,
    /// The account afterwards; `None` if there is none.
    pub after: Option<AccountState>,
    /// Its code afterwards.
    pub code_after: Bytes,
    /// Slots that were read or written, with their value before and afterwards.
    pub storage: BTreeMap<U256, (U256, U256)>,
}

impl TouchedAccount {
    /// Whether anything is different afterwards.
    #[must_use]
    pub fn is_changed(&self) -> bool {
        self.before != self.after || self.storage.values().any(|(before, after)| before != after)
    }
}

/// Compares what a transaction left with the state before it.
pub(super) fn compare<D: Database>(
    before: &mut D,
    after: &EvmState,
    budget: &mut Budget,
) -> Result<BTreeMap<Address, TouchedAccount>, D::Error> {
    let mut touched = BTreeMap::new();
    for (&address, account) in after {
        let slots_size_bytes = account.storage.len() * 160;
        if !budget.take_bytes(size_of::<TouchedAccount>() + slots_size_bytes) {
            break;
        }
        let info_before = before.basic(address)?;
        let is_there = !account.is_selfdestructed() && !account.is_empty();
        let info_after = is_there.then(|| account.info.clone());
        let code_before = code(before, info_before.as_ref(), budget)?;
        let hash_before = code_hash(info_before.as_ref());
        let code_after = if code_hash(info_after.as_ref()) == hash_before {
            code_before.clone()
        } else {
            code(before, info_after.as_ref(), budget)?
        };
        let storage = account
            .storage
            .iter()
            .map(|(&slot, value)| (slot, (value.original_value, value.present_value)))
            .collect();
        let account = TouchedAccount {
            before: info_before.as_ref().map(account_state),
            code_before,
            after: info_after.as_ref().map(account_state),
            code_after,
            storage,
        };
        touched.insert(address, account);
    }
    Ok(touched)
}

fn account_state(info: &AccountInfo) -> AccountState {
    AccountState {
        nonce: info.nonce,
        balance_wei: info.balance,
        code_hash: info.code_hash,
    }
}

fn code_hash(info: Option<&AccountInfo>) -> B256 {
    info.map_or(KECCAK256_EMPTY, |info| info.code_hash)
}

fn code<D: Database>(
    database: &mut D,
    info: Option<&AccountInfo>,
    budget: &mut Budget,
) -> Result<Bytes, D::Error> {
    let Some(info) = info.filter(|info| info.code_hash != KECCAK256_EMPTY) else {
        return Ok(Bytes::new());
    };
    let code = match &info.code {
        Some(code) => code.original_bytes(),
        None => database.code_by_hash(info.code_hash)?.original_bytes(),
    };
    // Counted once for each account, though accounts may share it.
    budget.take_bytes(code.len());
    Ok(code)
}
