//! The database: tables, transactions, and their errors.
//!
//! All numbers are big-endian, so that keys sort by value.
//!
//! | table | key | value |
//! |---|---|---|
//! | `meta` | name | `format`: version as `u32`; `chain_id`: `u64` |
//! | `accounts` | address | an account (`codec.rs`) |
//! | `storage` | address, slot | value, big-endian without leading zeros, never empty |
//! | `codes` | hash | code |
//! | `hashed_accounts` | keccak256(address) | the account with its storage root |
//! | `hashed_storage` | keccak256(address), keccak256(slot) | as in `storage` |
//! | `account_trie` | path, one byte a nibble | a branch of the state trie (`trie/branch.rs`) |
//! | `storage_trie` | keccak256(address), path | a branch of the account's storage trie |
//! | `account_history` | address, number | the account before that block; empty if there was none |
//! | `storage_history` | address, slot, number | the value before that block; empty if it was zero |
//! | `changes` | number | the keys that have history at that block, and its new codes |
//! | `headers` | number `u64` | hash, then the header (RLP) |
//! | `bodies` | number | RLP list of sender and EIP-2718 transaction, one string each |
//! | `receipts` | number | RLP list of EIP-2718 receipts |
//! | `block_numbers` | block hash | number |
//! | `transactions` | transaction hash | number, position `u32` |
//! | `log_blocks`, `log_sections` | see [`logs`] | |
//! | `signatures` | number | the sequencer's signature, 65 bytes; not of every block |
//! | `ommers` | number | RLP of an empty list, ommers and withdrawals; where there are any |
//! | `total_difficulties` | number | of an Ethereum chain: 32 bytes |

mod beside;
mod blocks;
mod codec;
mod history;
pub(crate) mod logs;
mod state;
mod update;

use std::borrow::Cow;
use std::path::Path;

use signet_libmdbx::sys::EnvironmentKind;
use signet_libmdbx::tx::{Tx, aliases::RwTxUnsync};
use signet_libmdbx::{
    Database, DatabaseFlags, Environment, EnvironmentFlags, Geometry, MdbxError, Mode, ReadError,
    Ro, Rw, SyncMode, TransactionKind, WriteFlags,
};

pub(crate) use blocks::StoredBlock;
pub(crate) use history::Snapshot;
pub(crate) use update::StateUpdate;

/// The format that this version reads and writes.
pub(crate) const FORMAT_VERSION: u32 = 2;

/// Readers at one time. A reader lives for one query.
const READERS_MAX: u64 = 1_024;

/// The file grows by this much.
const GROWTH_SIZE_BYTES: isize = 16 << 20;

const ENOSPC: i32 = 28;
const EDQUOT: i32 = 122;
const EFBIG: i32 = 27;
const EROFS: i32 = 30;
const EAGAIN: i32 = 11;

/// Why the database did not do what it was asked.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StoreError {
    /// The disk, or the size the database may have, is full. What was being
    /// written is not there; everything before it is.
    #[error("no space is left for the chain database")]
    Full,
    /// The directory or its files cannot be written.
    #[error("the chain database cannot be written")]
    Unwritable(#[source] Option<std::io::Error>),
    /// Another process has the database open.
    #[error("the chain database is in use by another process")]
    Locked,
    /// The state of a block is asked for that is no longer kept.
    #[error("the state of block {number} is pruned: kept are those of blocks {oldest} to {newest}")]
    Pruned {
        /// The block asked for.
        number: u64,
        /// The oldest block whose state is kept.
        oldest: u64,
        /// The newest block.
        newest: u64,
    },
    /// Too many queries at one time; try again.
    #[error("too many queries at one time")]
    Overloaded,
    /// The files are not a chain database, or are damaged.
    #[error("the chain database is damaged: {what}")]
    Corrupt {
        /// What does not fit.
        what: String,
    },
    /// Anything else the database engine reports.
    #[error("the chain database failed: {0}")]
    Engine(String),
}

impl StoreError {
    pub(crate) fn corrupt(what: impl Into<String>) -> Self {
        Self::Corrupt { what: what.into() }
    }
}

impl From<MdbxError> for StoreError {
    fn from(error: MdbxError) -> Self {
        match error {
            MdbxError::MapFull
            | MdbxError::UnableExtendMapSize
            | MdbxError::Other(ENOSPC | EDQUOT | EFBIG) => Self::Full,
            MdbxError::Access | MdbxError::Permission | MdbxError::Other(EROFS) => {
                Self::Unwritable(None)
            }
            MdbxError::Busy | MdbxError::Other(EAGAIN) => Self::Locked,
            MdbxError::ReadersFull => Self::Overloaded,
            MdbxError::Corrupted
            | MdbxError::PageNotFound
            | MdbxError::Invalid
            | MdbxError::VersionMismatch
            | MdbxError::WannaRecovery
            | MdbxError::DecodeErrorLenDiff => Self::corrupt(error.to_string()),
            other => Self::Engine(other.to_string()),
        }
    }
}

impl From<ReadError> for StoreError {
    fn from(error: ReadError) -> Self {
        match error {
            ReadError::Mdbx(error) => error.into(),
            other => Self::corrupt(other.to_string()),
        }
    }
}

/// An open database.
#[derive(Debug)]
pub(crate) struct Store {
    env: Environment,
    tables: Tables,
}

/// Makes [`Tables`] of the names of all tables.
macro_rules! tables {
    ($($name:ident),+ $(,)?) => {
        /// Handles of all tables, valid as long as the environment is open.
        #[derive(Debug, Clone, Copy)]
        struct Tables {
            $($name: Database,)+
        }

        impl Tables {
            fn create(tx: &RwTxUnsync) -> Result<Self, StoreError> {
                let table = |name| tx.create_db(Some(name), DatabaseFlags::empty());
                Ok(Self {
                    $($name: table(stringify!($name))?,)+
                })
            }

            #[cfg(test)]
            fn all(self) -> Vec<(&'static str, Database)> {
                vec![$((stringify!($name), self.$name)),+]
            }
        }
    };
}

tables! {
    meta,
    accounts,
    storage,
    codes,
    hashed_accounts,
    hashed_storage,
    account_trie,
    storage_trie,
    account_history,
    storage_history,
    changes,
    headers,
    bodies,
    receipts,
    block_numbers,
    transactions,
    log_blocks,
    log_sections,
    signatures,
    ommers,
    total_difficulties,
}

impl Store {
    /// Opens the database in a directory, making both if they are not there.
    ///
    /// The database is opened for this process alone. What is in it is not
    /// looked at: `prepare` runs in the first write transaction, and the
    /// database stays as it was if it fails.
    pub(crate) fn open<E: From<StoreError>>(
        path: &Path,
        max_size_bytes: usize,
        prepare: impl FnOnce(&Txn<Rw>) -> Result<(), E>,
    ) -> Result<Self, E> {
        std::fs::create_dir_all(path).map_err(|error| StoreError::Unwritable(Some(error)))?;
        let mut builder = Environment::builder();
        builder
            .set_kind(EnvironmentKind::Default)
            .set_max_dbs(32)
            .set_max_readers(READERS_MAX)
            .set_geometry(Geometry {
                size: Some(0..max_size_bytes),
                growth_step: Some(GROWTH_SIZE_BYTES),
                ..Geometry::default()
            })
            .set_flags(EnvironmentFlags {
                exclusive: true,
                mode: Mode::ReadWrite {
                    sync_mode: SyncMode::Durable,
                },
                ..EnvironmentFlags::default()
            });
        let env = builder.open(path).map_err(StoreError::from)?;
        let tx = env.begin_rw_unsync().map_err(StoreError::from)?;
        let tables = Tables::create(&tx)?;
        let txn = Txn { tx, tables };
        prepare(&txn)?;
        txn.commit()?;
        Ok(Self { env, tables })
    }

    /// Bytes of the file that are in use; what is free in it may be reused.
    pub(crate) fn size_bytes(&self) -> Result<u64, StoreError> {
        let info = self.env.info()?;
        let page_size_bytes = u64::from(self.env.stat()?.page_size());
        Ok(page_size_bytes.saturating_mul(info.last_pgno() as u64 + 1))
    }

    /// A view of the newest block.
    pub(crate) fn read(&self) -> Result<Txn<Ro>, StoreError> {
        Ok(Txn {
            tx: self.env.begin_ro_unsync()?,
            tables: self.tables,
        })
    }

    /// Starts a change. Dropping it undoes it.
    pub(crate) fn write(&self) -> Result<Txn<Rw>, StoreError> {
        Ok(Txn {
            tx: self.env.begin_rw_unsync()?,
            tables: self.tables,
        })
    }
}

/// A transaction of the database.
#[derive(Debug)]
pub(crate) struct Txn<K: TransactionKind> {
    tx: Tx<K>,
    tables: Tables,
}

impl<K: TransactionKind> Txn<K> {
    fn get(&self, table: Database, key: &[u8]) -> Result<Option<Cow<'_, [u8]>>, StoreError> {
        Ok(self.tx.get(table.dbi(), key)?)
    }

    /// Calls `visit` with every key that begins with `prefix`, in order, and
    /// its value, until `visit` fails or says `false`.
    fn scan(
        &self,
        table: Database,
        prefix: &[u8],
        mut visit: impl FnMut(&[u8], &[u8]) -> Result<bool, StoreError>,
    ) -> Result<(), StoreError> {
        let mut cursor = self.tx.cursor(table)?;
        let mut entries = cursor.iter_from::<Cow<'_, [u8]>, Cow<'_, [u8]>>(prefix)?;
        while let Some((key, value)) = entries.borrow_next()? {
            if !key.starts_with(prefix) || !visit(&key, &value)? {
                break;
            }
        }
        Ok(())
    }

    /// The format that the database says it has; `None` if it is new.
    pub(crate) fn format_version(&self) -> Result<Option<u32>, StoreError> {
        self.get(self.tables.meta, b"format")?
            .map(|bytes| Ok(u32::from_be_bytes(array("format", &bytes)?)))
            .transpose()
    }

    /// The id of the chain, which the hash of block 0 does not cover.
    pub(crate) fn chain_id(&self) -> Result<Option<u64>, StoreError> {
        self.get(self.tables.meta, b"chain_id")?
            .map(|bytes| Ok(u64::from_be_bytes(array("chain_id", &bytes)?)))
            .transpose()
    }
}

impl Txn<Rw> {
    fn put(&self, table: Database, key: &[u8], value: &[u8]) -> Result<(), StoreError> {
        #[cfg(test)]
        faults::step()?;
        Ok(self.tx.put(table, key, value, WriteFlags::empty())?)
    }

    fn delete(&self, table: Database, key: &[u8]) -> Result<(), StoreError> {
        #[cfg(test)]
        faults::step()?;
        match self.tx.del(table, key, None) {
            Ok(_) | Err(MdbxError::NotFound) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// Says which format the database has from now on.
    pub(crate) fn set_format_version(&self, version: u32) -> Result<(), StoreError> {
        self.put(self.tables.meta, b"format", &version.to_be_bytes())
    }

    /// Says which chain the database holds.
    pub(crate) fn set_chain_id(&self, chain_id: u64) -> Result<(), StoreError> {
        self.put(self.tables.meta, b"chain_id", &chain_id.to_be_bytes())
    }

    /// Makes the change durable. It is on disk when this returns.
    pub(crate) fn commit(self) -> Result<(), StoreError> {
        #[cfg(test)]
        faults::step()?;
        Ok(self.tx.commit()?)
    }
}

/// Bytes of a fixed size, from a value that must have it.
fn array<const N: usize>(what: &str, bytes: &[u8]) -> Result<[u8; N], StoreError> {
    bytes
        .try_into()
        .map_err(|_| StoreError::corrupt(format!("{what} has {} bytes, not {N}", bytes.len())))
}

#[cfg(test)]
pub(crate) mod faults;
#[cfg(test)]
mod tests;
