//! API keys: who pays when this key is shown.

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{PoisonError, RwLock};

use alloy_primitives::hex;
use ol_types::{Address, B256, keccak256};
use serde::{Deserialize, Serialize};

use super::durable;

const FORMAT: &str = "openledger-api-keys/1";
const FILE: &str = "keys.json";
const FILE_SIZE_BYTES_MAX: u64 = 16 << 20;

/// Most keys of one gateway.
pub const KEYS_MAX: usize = 50_000;

/// Longest key that is looked up, in bytes.
const KEY_SIZE_BYTES_MAX: usize = 256;

/// Longest label, in bytes.
const LABEL_SIZE_BYTES_MAX: usize = 256;

/// The API keys of a gateway, kept in one file.
///
/// Only the keccak256 of a key is stored, so the file gives nobody access; keys
/// are 256 random bits, so a hash cannot be reversed by guessing. A lookup goes
/// by hash: how long it takes says nothing about how close a guess was.
#[derive(Debug)]
pub struct ApiKeys {
    dir: PathBuf,
    by_hash: RwLock<BTreeMap<B256, KeyEntry>>,
}

/// A key in clear. Printed only on purpose, by [`SecretKey::expose`].
pub struct SecretKey(String);

impl SecretKey {
    /// The key itself, as the client sends it.
    #[must_use]
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for SecretKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SecretKey(…)")
    }
}

/// Why keys could not be read, made or stored.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum KeysError {
    /// The file of keys is not one, or damaged.
    #[error("{} is not a file of API keys: {reason}", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// The file cannot be read or written.
    #[error("could not use {}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The operating system gave no randomness.
    #[error("the operating system gives no randomness")]
    Randomness(#[source] io::Error),
    /// The gateway has as many keys as it may.
    #[error("there are {KEYS_MAX} API keys, which is the most there may be")]
    TooMany,
    /// The label is too long.
    #[error("a label has at most {LABEL_SIZE_BYTES_MAX} bytes")]
    Label,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct KeysFile {
    format: String,
    keys: Vec<KeyEntry>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct KeyEntry {
    hash: B256,
    account: Address,
    label: String,
}

impl ApiKeys {
    /// Opens the keys kept in `dir`, which is made if it is missing.
    ///
    /// # Errors
    /// [`KeysError::Damaged`] if the file is not ours, [`KeysError::Io`].
    pub fn open(dir: &Path) -> Result<Self, KeysError> {
        let path = dir.join(FILE);
        let io_error = |source| KeysError::Io {
            path: path.clone(),
            source,
        };
        durable::create_dir(dir).map_err(io_error)?;
        let Some(bytes) = durable::read(&path, FILE_SIZE_BYTES_MAX).map_err(io_error)? else {
            return Ok(Self {
                dir: dir.to_owned(),
                by_hash: RwLock::default(),
            });
        };
        let damaged = |reason: String| KeysError::Damaged {
            path: path.clone(),
            reason,
        };
        let file: KeysFile =
            serde_json::from_slice(&bytes).map_err(|error| damaged(error.to_string()))?;
        if file.format != FORMAT {
            return Err(damaged(format!(
                "its format is {:?}, not {FORMAT:?}",
                file.format
            )));
        }
        if file.keys.len() > KEYS_MAX {
            return Err(damaged(format!("it has {} keys", file.keys.len())));
        }
        let by_hash = file
            .keys
            .into_iter()
            .map(|entry| (entry.hash, entry))
            .collect();
        Ok(Self {
            dir: dir.to_owned(),
            by_hash: RwLock::new(by_hash),
        })
    }

    /// The account that pays for requests with this key, if the key is known.
    #[must_use]
    pub fn account(&self, key: &str) -> Option<Address> {
        if key.len() > KEY_SIZE_BYTES_MAX {
            return None;
        }
        let by_hash = self.by_hash.read().unwrap_or_else(PoisonError::into_inner);
        by_hash.get(&keccak256(key)).map(|entry| entry.account)
    }

    /// Makes a key for an account. The key in clear exists only in what is returned.
    ///
    /// # Errors
    /// [`KeysError`] if it cannot be made or stored; then it does not work.
    pub fn create(&self, account: Address, label: &str) -> Result<SecretKey, KeysError> {
        if label.len() > LABEL_SIZE_BYTES_MAX {
            return Err(KeysError::Label);
        }
        let bytes: [u8; 32] = ol_runtime::os_bytes().map_err(KeysError::Randomness)?;
        let key = format!("ol-{}", hex::encode(bytes));
        let entry = KeyEntry {
            hash: keccak256(&key),
            account,
            label: label.to_owned(),
        };
        let mut by_hash = self.by_hash.write().unwrap_or_else(PoisonError::into_inner);
        if by_hash.len() >= KEYS_MAX {
            return Err(KeysError::TooMany);
        }
        let mut changed = by_hash.clone();
        changed.insert(entry.hash, entry);
        self.store(&changed)?;
        *by_hash = changed;
        Ok(SecretKey(key))
    }

    /// Makes a key stop working; returns whether it did work.
    ///
    /// # Errors
    /// [`KeysError::Io`]; then it still works.
    pub fn revoke(&self, key: &str) -> Result<bool, KeysError> {
        let mut by_hash = self.by_hash.write().unwrap_or_else(PoisonError::into_inner);
        let mut changed = by_hash.clone();
        if changed.remove(&keccak256(key)).is_none() {
            return Ok(false);
        }
        self.store(&changed)?;
        *by_hash = changed;
        Ok(true)
    }

    fn store(&self, by_hash: &BTreeMap<B256, KeyEntry>) -> Result<(), KeysError> {
        let file = KeysFile {
            format: FORMAT.to_owned(),
            keys: by_hash.values().cloned().collect(),
        };
        let bytes = serde_json::to_vec_pretty(&file).expect("plain data has a JSON form");
        durable::write(&self.dir, FILE, &bytes).map_err(|source| KeysError::Io {
            path: self.dir.join(FILE),
            source,
        })
    }
}

#[cfg(test)]
mod tests;
