//! Fields of test files.

use std::collections::BTreeMap;

use alloy_primitives::{Address, B256, Bytes, U256, hex};
use ol_evm::MemoryState;
use serde::Deserialize;

/// Why a file does not hold tests of its suite.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FieldError {
    /// It is not JSON of the shape of its suite.
    #[error("{0}")]
    Json(#[from] serde_json::Error),
    /// A number or bytes cannot be read.
    #[error("`{text}` is no {expected}")]
    Text {
        /// What is there.
        text: String,
        /// What should be.
        expected: &'static str,
    },
}

impl FieldError {
    pub(crate) fn text(text: &str, expected: &'static str) -> Self {
        Self::Text {
            text: text.chars().take(80).collect(),
            expected,
        }
    }
}

/// An account before a test.
#[derive(Debug, Clone, Deserialize)]
pub(crate) struct PreAccount {
    balance: String,
    code: String,
    nonce: String,
    storage: BTreeMap<String, String>,
}

/// Accounts by address.
pub(crate) type Pre = BTreeMap<Address, PreAccount>;

/// The state that a test begins with.
pub(crate) fn state(pre: &Pre) -> Result<MemoryState, FieldError> {
    let mut state = MemoryState::default();
    for (&address, account) in pre {
        let nonce = number(&account.nonce)?;
        state.put(
            address,
            nonce,
            quantity(&account.balance)?,
            bytes(&account.code)?,
        );
        for (slot, value) in &account.storage {
            let value = quantity(value)?;
            if !value.is_zero() {
                state.storage.insert((address, quantity(slot)?), value);
            }
        }
    }
    Ok(state)
}

/// A number of 256 bits in hexadecimal, with or without leading zeros.
pub(crate) fn quantity(text: &str) -> Result<U256, FieldError> {
    let digits = text.strip_prefix("0x").unwrap_or(text);
    if digits.is_empty() {
        return Ok(U256::ZERO);
    }
    U256::from_str_radix(digits, 16).map_err(|_| FieldError::text(text, "number"))
}

/// [`quantity`] of 64 bits.
pub(crate) fn number(text: &str) -> Result<u64, FieldError> {
    u64::try_from(quantity(text)?).map_err(|_| FieldError::text(text, "number of 64 bits"))
}

/// A number as the 32 bytes that hold it.
pub(crate) fn word(text: &str) -> Result<B256, FieldError> {
    quantity(text).map(B256::from)
}

/// Bytes in hexadecimal.
pub(crate) fn bytes(text: &str) -> Result<Bytes, FieldError> {
    hex::decode(text)
        .map(Bytes::from)
        .map_err(|_| FieldError::text(text, "string of bytes"))
}
