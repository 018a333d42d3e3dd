//! The vocabulary that chain and model crates share: ids, hashes, receipts and
//! their canonical encoding. No I/O, no async, no JSON.
//!
//! A type belongs here only when two crates that may not see each other need
//! it. Everything hashed is hashed by keccak256, so that the EVM can check it.

mod dev;
mod receipt;

pub use alloy_primitives::{Address, B256, Keccak256, U256, keccak256};
pub use dev::{DEV_MNEMONIC_KEYS, contributor_dev_key};
pub use receipt::{RECEIPT_SIZE_BYTES, Receipt, ReceiptError};

/// OPEN has eighteen decimals, like ether.
pub const WEI_PER_OPEN: u128 = 1_000_000_000_000_000_000;

/// Every OPEN there will ever be, in wei: one billion.
pub const OPEN_CAP_WEI: u128 = 1_000_000_000 * WEI_PER_OPEN;

/// Chain id of the development chain that `openledger up` starts.
pub const DEV_CHAIN_ID: u64 = 161_200;

/// The id of a named thing on chain (a datanet, a model): the hash of its name.
///
/// # Example
/// ```
/// use ol_types::{keccak256, name_id};
/// assert_eq!(name_id("legal"), keccak256("legal"));
/// ```
#[must_use]
pub fn name_id(name: &str) -> B256 {
    keccak256(name.as_bytes())
}
