//! How accounts, values and changed keys are written.

use alloy_primitives::{Address, B256, KECCAK256_EMPTY, U256};
use alloy_trie::{EMPTY_ROOT_HASH, TrieAccount};
use ol_evm::AccountState;

use super::{StoreError, array};

const HAS_CODE: u8 = 1 << 7;
const HAS_STORAGE: u8 = 1 << 6;

/// An account and the root of its storage.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct RootedAccount {
    pub(crate) account: AccountState,
    pub(crate) storage_root: B256,
}

impl RootedAccount {
    /// The value of its leaf in the state trie.
    pub(super) fn leaf(&self) -> Vec<u8> {
        alloy_rlp::encode(TrieAccount {
            nonce: self.account.nonce,
            balance: self.account.balance_wei,
            storage_root: self.storage_root,
            code_hash: self.account.code_hash,
        })
    }
}

/// Two bytes (flags and length of the nonce, length of the balance), nonce and
/// balance without leading zeros, then code hash and storage root where they are
/// not those of nothing. Most accounts have neither.
pub(super) fn encode_rooted(rooted: &RootedAccount) -> Vec<u8> {
    let AccountState {
        nonce,
        balance_wei,
        code_hash,
    } = rooted.account;
    let nonce = trimmed(&nonce.to_be_bytes()).to_vec();
    let balance = encode_value(balance_wei);
    let mut bytes = Vec::with_capacity(2 + nonce.len() + balance.len() + 64);
    bytes.push(u8::try_from(nonce.len()).expect("8 at most"));
    bytes.push(u8::try_from(balance.len()).expect("32 at most"));
    bytes.extend(nonce);
    bytes.extend(balance);
    if code_hash != KECCAK256_EMPTY {
        bytes[0] |= HAS_CODE;
        bytes.extend(code_hash);
    }
    if rooted.storage_root != EMPTY_ROOT_HASH {
        bytes[0] |= HAS_STORAGE;
        bytes.extend(rooted.storage_root);
    }
    bytes
}

pub(super) fn decode_rooted(bytes: &[u8]) -> Result<RootedAccount, StoreError> {
    let damaged = || StoreError::corrupt(format!("an account of {} bytes", bytes.len()));
    let (&[flags, balance_len], rest) = bytes.split_first_chunk().ok_or_else(damaged)?;
    let nonce_len = usize::from(flags & !(HAS_CODE | HAS_STORAGE));
    let (nonce, rest) = rest.split_at_checked(nonce_len).ok_or_else(damaged)?;
    let (balance, mut rest) = rest
        .split_at_checked(usize::from(balance_len))
        .ok_or_else(damaged)?;
    let mut hash_or = |flag: u8, default: B256| -> Result<B256, StoreError> {
        if flags & flag == 0 {
            return Ok(default);
        }
        let (hash, after) = rest.split_first_chunk::<32>().ok_or_else(damaged)?;
        rest = after;
        Ok(B256::from(hash))
    };
    let code_hash = hash_or(HAS_CODE, KECCAK256_EMPTY)?;
    let storage_root = hash_or(HAS_STORAGE, EMPTY_ROOT_HASH)?;
    if !rest.is_empty() {
        return Err(damaged());
    }
    let account = AccountState {
        nonce: decode_value(nonce)?.try_into().map_err(|_| damaged())?,
        balance_wei: decode_value(balance)?,
        code_hash,
    };
    Ok(RootedAccount {
        account,
        storage_root,
    })
}

/// As [`encode_rooted`], without storage.
pub(super) fn encode_account(account: &AccountState) -> Vec<u8> {
    encode_rooted(&RootedAccount {
        account: *account,
        storage_root: EMPTY_ROOT_HASH,
    })
}

pub(super) fn decode_account(bytes: &[u8]) -> Result<AccountState, StoreError> {
    Ok(decode_rooted(bytes)?.account)
}

/// Big-endian without leading zeros; nothing for zero.
pub(super) fn encode_value(value: U256) -> Vec<u8> {
    trimmed(&value.to_be_bytes::<32>()).to_vec()
}

pub(super) fn decode_value(bytes: &[u8]) -> Result<U256, StoreError> {
    U256::try_from_be_slice(bytes)
        .ok_or_else(|| StoreError::corrupt(format!("a value of {} bytes", bytes.len())))
}

fn trimmed(bytes: &[u8]) -> &[u8] {
    let zeros = bytes.iter().take_while(|&&byte| byte == 0).count();
    &bytes[zeros..]
}

/// Address, then slot.
pub(super) fn storage_key(address: Address, slot: U256) -> [u8; 52] {
    let mut key = [0; 52];
    key[..20].copy_from_slice(address.as_slice());
    key[20..].copy_from_slice(&slot.to_be_bytes::<32>());
    key
}

/// What a block changed, by key: where its history is.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct ChangedKeys {
    /// Accounts of which the account itself or storage changed.
    pub(super) accounts: Vec<ChangedAccount>,
    /// Codes that were not known before.
    pub(super) codes: Vec<B256>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct ChangedAccount {
    pub(super) address: Address,
    /// Whether nonce, balance or code changed.
    pub(super) is_account_changed: bool,
    pub(super) slots: Vec<U256>,
}

impl ChangedKeys {
    /// All counts are `u32`.
    pub(super) fn encode(&self) -> Vec<u8> {
        let n_slots: usize = self
            .accounts
            .iter()
            .map(|account| account.slots.len())
            .sum();
        let size = 8 + 32 * self.codes.len() + 25 * self.accounts.len() + 32 * n_slots;
        let mut bytes = Vec::with_capacity(size);
        let count = |n: usize| {
            let n = u32::try_from(n).expect("a block's gas bounds what it changes");
            n.to_be_bytes()
        };
        bytes.extend(count(self.codes.len()));
        for hash in &self.codes {
            bytes.extend(hash);
        }
        bytes.extend(count(self.accounts.len()));
        for account in &self.accounts {
            bytes.extend(account.address);
            bytes.push(account.is_account_changed.into());
            bytes.extend(count(account.slots.len()));
            for slot in &account.slots {
                bytes.extend(slot.to_be_bytes::<32>());
            }
        }
        bytes
    }

    pub(super) fn decode(bytes: &[u8]) -> Result<Self, StoreError> {
        let mut rest = bytes;
        let codes = (0..take_count(&mut rest)?)
            .map(|_| take(&mut rest).map(B256::from))
            .collect::<Result<_, _>>()?;
        let accounts = (0..take_count(&mut rest)?)
            .map(|_| {
                let address = Address::from(take(&mut rest)?);
                let [is_account_changed] = take(&mut rest)?;
                let slots = (0..take_count(&mut rest)?)
                    .map(|_| take(&mut rest).map(U256::from_be_bytes::<32>))
                    .collect::<Result<_, _>>()?;
                Ok(ChangedAccount {
                    address,
                    is_account_changed: is_account_changed != 0,
                    slots,
                })
            })
            .collect::<Result<_, StoreError>>()?;
        // Nothing may follow.
        array::<0>("what a block changed", rest)?;
        Ok(Self { accounts, codes })
    }
}

fn take<const N: usize>(rest: &mut &[u8]) -> Result<[u8; N], StoreError> {
    let (head, after) = rest
        .split_first_chunk()
        .ok_or_else(|| StoreError::corrupt("what a block changed"))?;
    *rest = after;
    Ok(*head)
}

fn take_count(rest: &mut &[u8]) -> Result<u32, StoreError> {
    take(rest).map(u32::from_be_bytes)
}

#[cfg(test)]
mod tests;
