//! API keys: who may ask, for what, how much.
//!
//! Keys are kept in one file by their hashes. Several processes may have it
//! open: a server sees at its next look-up what a command has changed.

use std::collections::BTreeMap;
use std::fmt;
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{PoisonError, RwLock};
use std::time::SystemTime;

use alloy_primitives::hex;
use ol_types::{Address, B256, keccak256};
use serde::{Deserialize, Serialize};

use crate::gateway::durable;

mod meter;

pub(crate) use meter::{Admission, RateState};
pub use meter::{Cost, LimitError, Meter};

const FORMAT: &str = "openledger-api-keys/2";
/// Without scopes and limits: every key asks, and pays.
const FORMAT_1: &str = "openledger-api-keys/1";
const FILE: &str = "keys.json";
const LOCK: &str = "keys.lock";
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
    state: RwLock<State>,
}

#[derive(Debug, Default)]
struct State {
    by_hash: BTreeMap<B256, Key>,
    /// What the file was like when it was read.
    seen: Option<Stamp>,
}

/// What tells one version of the file from another.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Stamp {
    size_bytes: u64,
    modified: Option<SystemTime>,
    #[cfg(unix)]
    inode: u64,
}

/// What a key is good for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Scope {
    /// Asking models.
    Infer,
    /// Loading and unloading adapters.
    Admin,
}

/// How much a key may ask for; what is absent is not limited.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct KeyLimits {
    /// Requests in any minute.
    pub requests_per_minute: Option<u32>,
    /// Tokens of prompts and answers in any minute.
    pub tokens_per_minute: Option<u32>,
    /// Requests at one time.
    pub concurrent: Option<u32>,
    /// Tokens of prompts and answers in a day (UTC).
    pub tokens_per_day: Option<u64>,
    /// Tokens of prompts and answers for ever.
    pub tokens_total: Option<u64>,
    /// Wei of OPEN in a day (UTC); only where answers are paid for.
    #[serde(with = "decimal")]
    pub wei_per_day: Option<u128>,
    /// Wei of OPEN for ever; only where answers are paid for.
    #[serde(with = "decimal")]
    pub wei_total: Option<u128>,
}

/// Numbers that JSON's are too small for, as text.
mod decimal {
    use serde::de::Error as _;
    use serde::{Deserialize as _, Deserializer, Serialize as _, Serializer};

    #[expect(clippy::ref_option, reason = "serde asks for it")]
    pub(super) fn serialize<S: Serializer>(
        value: &Option<u128>,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        value.map(|value| value.to_string()).serialize(serializer)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Option<u128>, D::Error> {
        let text = Option::<String>::deserialize(deserializer)?;
        text.map(|text| text.parse().map_err(D::Error::custom))
            .transpose()
    }
}

/// What is to become a key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewKey {
    /// Who pays, where answers are paid for.
    pub account: Option<Address>,
    /// For people.
    pub label: String,
    /// What it is good for; without duplicates.
    pub scopes: Vec<Scope>,
    /// How much it may ask for.
    pub limits: KeyLimits,
}

/// A key as it is stored: not the key itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Key {
    /// keccak256 of the key: its id.
    pub hash: B256,
    /// Who pays, where answers are paid for.
    pub account: Option<Address>,
    /// For people.
    pub label: String,
    /// What it is good for.
    #[serde(default = "infer_only")]
    pub scopes: Vec<Scope>,
    /// How much it may ask for.
    #[serde(default)]
    pub limits: KeyLimits,
}

fn infer_only() -> Vec<Scope> {
    vec![Scope::Infer]
}

impl Key {
    /// The start of the id, by which people name the key.
    #[must_use]
    pub fn short_id(&self) -> String {
        hex::encode(&self.hash[..6])
    }
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
    /// What keys have used cannot be read.
    #[error("what keys have used cannot be read")]
    Usage(#[source] io::Error),
    /// The operating system gave no randomness.
    #[error("the operating system gives no randomness")]
    Randomness(#[source] io::Error),
    /// The gateway has as many keys as it may.
    #[error("there are {KEYS_MAX} API keys, which is the most there may be")]
    TooMany,
    /// The id names no key, or several.
    #[error("{id:?} names no key or several; give at least six digits of the id of one")]
    Unknown {
        /// What was given.
        id: String,
    },
    /// The label is too long.
    #[error("a label has at most {LABEL_SIZE_BYTES_MAX} bytes")]
    Label,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct KeysFile {
    format: String,
    keys: Vec<Key>,
}

impl ApiKeys {
    /// Opens the keys kept in `dir`, which is made if it is missing.
    ///
    /// # Errors
    /// [`KeysError::Damaged`] if the file is not ours, [`KeysError::Io`].
    pub fn open(dir: &Path) -> Result<Self, KeysError> {
        let keys = Self {
            dir: dir.to_owned(),
            state: RwLock::default(),
        };
        durable::create_dir(dir).map_err(|source| keys.io_error(source))?;
        let read = keys.read()?;
        *keys.state.write().unwrap_or_else(PoisonError::into_inner) = read;
        Ok(keys)
    }

    fn io_error(&self, source: io::Error) -> KeysError {
        KeysError::Io {
            path: self.dir.join(FILE),
            source,
        }
    }

    fn stamp(&self) -> Option<Stamp> {
        let metadata = std::fs::metadata(self.dir.join(FILE)).ok()?;
        Some(Stamp {
            size_bytes: metadata.len(),
            modified: metadata.modified().ok(),
            #[cfg(unix)]
            inode: std::os::unix::fs::MetadataExt::ino(&metadata),
        })
    }

    fn read(&self) -> Result<State, KeysError> {
        let path = self.dir.join(FILE);
        // Looked at first: what changes while it is read is seen as a change.
        let seen = self.stamp();
        let bytes = durable::read(&path, FILE_SIZE_BYTES_MAX);
        let Some(bytes) = bytes.map_err(|source| self.io_error(source))? else {
            return Ok(State::default());
        };
        let damaged = |reason: String| KeysError::Damaged {
            path: path.clone(),
            reason,
        };
        let file: KeysFile =
            serde_json::from_slice(&bytes).map_err(|error| damaged(error.to_string()))?;
        if ![FORMAT, FORMAT_1].contains(&file.format.as_str()) {
            return Err(damaged(format!(
                "its format is {:?}, not {FORMAT:?}",
                file.format
            )));
        }
        if file.keys.len() > KEYS_MAX {
            return Err(damaged(format!("it has {} keys", file.keys.len())));
        }
        let by_hash = file.keys.into_iter().map(|key| (key.hash, key)).collect();
        Ok(State { by_hash, seen })
    }

    /// Reads the file again if it has changed.
    fn refresh(&self) {
        let now = self.stamp();
        let is_same = {
            let state = self.state.read().unwrap_or_else(PoisonError::into_inner);
            state.seen == now
        };
        if is_same {
            return;
        }
        match self.read() {
            Ok(read) => *self.state.write().unwrap_or_else(PoisonError::into_inner) = read,
            // The keys that were good stay good; who broke the file is to mend it.
            Err(error) => {
                tracing::error!(error = &error as &dyn std::error::Error, "keys unreadable");
                let mut state = self.state.write().unwrap_or_else(PoisonError::into_inner);
                state.seen = now;
            }
        }
    }

    /// What is stored of a key, if it is known.
    #[must_use]
    pub fn find(&self, key: &str) -> Option<Key> {
        if key.len() > KEY_SIZE_BYTES_MAX {
            return None;
        }
        self.refresh();
        let state = self.state.read().unwrap_or_else(PoisonError::into_inner);
        state.by_hash.get(&keccak256(key)).cloned()
    }

    /// The account that pays for requests with this key, if the key is known.
    #[must_use]
    pub fn account(&self, key: &str) -> Option<Address> {
        self.find(key)?.account
    }

    /// Whether there is no key at all.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.refresh();
        let state = self.state.read().unwrap_or_else(PoisonError::into_inner);
        state.by_hash.is_empty()
    }

    /// What is stored of all keys, by id.
    #[must_use]
    pub fn list(&self) -> Vec<Key> {
        self.refresh();
        let state = self.state.read().unwrap_or_else(PoisonError::into_inner);
        state.by_hash.values().cloned().collect()
    }

    /// Makes a key with which an account asks. The key in clear exists only in
    /// what is returned.
    ///
    /// # Errors
    /// As [`ApiKeys::add`].
    pub fn create(&self, account: Address, label: &str) -> Result<SecretKey, KeysError> {
        self.add(NewKey {
            account: Some(account),
            label: label.to_owned(),
            scopes: infer_only(),
            limits: KeyLimits::default(),
        })
    }

    /// Makes a key. The key in clear exists only in what is returned.
    ///
    /// # Errors
    /// [`KeysError`] if it cannot be made or stored; then it does not work.
    pub fn add(&self, new: NewKey) -> Result<SecretKey, KeysError> {
        if new.label.len() > LABEL_SIZE_BYTES_MAX {
            return Err(KeysError::Label);
        }
        let bytes: [u8; 32] = ol_runtime::os_bytes().map_err(KeysError::Randomness)?;
        let key = format!("ol-{}", hex::encode(bytes));
        let entry = Key {
            hash: keccak256(&key),
            account: new.account,
            label: new.label,
            scopes: new.scopes,
            limits: new.limits,
        };
        self.change(|by_hash| {
            if by_hash.len() >= KEYS_MAX {
                return Err(KeysError::TooMany);
            }
            by_hash.insert(entry.hash, entry);
            Ok(())
        })?;
        Ok(SecretKey(key))
    }

    /// Makes a key stop working; returns whether it did work.
    ///
    /// # Errors
    /// [`KeysError::Io`]; then it still works.
    pub fn revoke(&self, key: &str) -> Result<bool, KeysError> {
        let hash = keccak256(key);
        self.change(|by_hash| Ok(by_hash.remove(&hash).is_some()))
    }

    /// As [`ApiKeys::revoke`], by the id or its start.
    ///
    /// # Errors
    /// [`KeysError::Unknown`] if it names no key or several, [`KeysError::Io`].
    pub fn revoke_id(&self, id: &str) -> Result<(), KeysError> {
        self.change(|by_hash| {
            let hash = named(by_hash, id)?;
            by_hash.remove(&hash);
            Ok(())
        })
    }

    /// Gives a key other limits, by the id or its start.
    ///
    /// # Errors
    /// [`KeysError::Unknown`] if it names no key or several, [`KeysError::Io`].
    pub fn set_limits(&self, id: &str, limits: KeyLimits) -> Result<(), KeysError> {
        self.change(|by_hash| {
            let hash = named(by_hash, id)?;
            if let Some(key) = by_hash.get_mut(&hash) {
                key.limits = limits;
            }
            Ok(())
        })
    }

    /// Changes the file; one process at a time.
    fn change<T>(
        &self,
        change: impl FnOnce(&mut BTreeMap<B256, Key>) -> Result<T, KeysError>,
    ) -> Result<T, KeysError> {
        let mut state = self.state.write().unwrap_or_else(PoisonError::into_inner);
        let lock = File::create(self.dir.join(LOCK));
        let lock = lock.map_err(|source| self.io_error(source))?;
        lock.lock().map_err(|source| self.io_error(source))?;
        let mut read = self.read()?;
        let changed = change(&mut read.by_hash)?;
        let file = KeysFile {
            format: FORMAT.to_owned(),
            keys: read.by_hash.values().cloned().collect(),
        };
        let bytes = serde_json::to_vec_pretty(&file).expect("plain data has a JSON form");
        durable::write(&self.dir, FILE, &bytes).map_err(|source| self.io_error(source))?;
        read.seen = self.stamp();
        *state = read;
        Ok(changed)
    }
}

/// The key whose id begins so.
fn named(by_hash: &BTreeMap<B256, Key>, id: &str) -> Result<B256, KeysError> {
    let id = id.trim_start_matches("0x").to_lowercase();
    let mut found = by_hash
        .keys()
        .filter(|hash| id.len() >= 6 && hex::encode(hash).starts_with(&id));
    match (found.next(), found.next()) {
        (Some(hash), None) => Ok(*hash),
        _ => Err(KeysError::Unknown { id }),
    }
}

#[cfg(test)]
mod tests;
