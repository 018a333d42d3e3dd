//! The pool over a restart: a file to which transactions are added as they
//! come, and which is written anew when most of it is out of date.
//!
//! ```text
//! magic "OLPJ", version u32, chain id u64
//! entry: length of the payload u32, first 8 bytes of its keccak256, payload
//! payload: arrival in Unix seconds u64, transaction (EIP-2718)
//! ```
//! All numbers are big-endian. The file is read up to the first entry that is
//! torn or damaged. It is not synced: what it holds survives the process, and
//! a power failure only by luck. Nothing but the pool depends on it.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use alloy_eips::eip2718::{Decodable2718, Encodable2718};
use alloy_primitives::keccak256;
use ol_evm::Transaction;

use super::PooledTransaction;
use crate::admission::RAW_TRANSACTION_MAX_SIZE_BYTES;

const MAGIC: &[u8; 4] = b"OLPJ";
const VERSION: u32 = 1;
const HEADER_SIZE_BYTES: usize = 4 + 4 + 8;
const CHECKSUM_SIZE_BYTES: usize = 8;
const ENTRY_HEADER_SIZE_BYTES: usize = 4 + CHECKSUM_SIZE_BYTES;
const PAYLOAD_MAX_SIZE_BYTES: usize = 8 + RAW_TRANSACTION_MAX_SIZE_BYTES;

/// A journal is written anew when it is larger than this and than a multiple
/// of what it should hold.
const REWRITE_SIZE_BYTES: u64 = 4 << 20;
const REWRITE_FACTOR: u64 = 4;

/// A transaction that waited when the node stopped.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Remembered {
    pub(crate) transaction: Transaction,
    pub(crate) received_s: u64,
}

/// An open journal.
#[derive(Debug)]
pub(crate) struct Journal {
    path: PathBuf,
    file: File,
    chain_id: u64,
    size_bytes: u64,
}

impl Journal {
    /// Opens the journal of a chain and reads what is in it, at most
    /// `size_bytes_max` of it. One of another chain or version is begun anew.
    pub(crate) fn open(
        path: &Path,
        chain_id: u64,
        size_bytes_max: u64,
    ) -> io::Result<(Self, Vec<Remembered>)> {
        let mut bytes = Vec::new();
        match File::open(path) {
            Ok(file) => {
                file.take(size_bytes_max).read_to_end(&mut bytes)?;
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
        let (remembered, size_bytes) = read(&bytes, chain_id);
        let file = OpenOptions::new().create(true).append(true).open(path)?;
        let mut journal = Self {
            path: path.to_owned(),
            file,
            chain_id,
            size_bytes,
        };
        if size_bytes == 0 {
            journal.file.set_len(0)?;
            journal.write(&header(chain_id))?;
        } else {
            // Whatever follows the last whole entry is cut off.
            journal.file.set_len(size_bytes)?;
        }
        Ok((journal, remembered))
    }

    /// Adds transactions.
    pub(crate) fn append<'a>(
        &mut self,
        transactions: impl Iterator<Item = &'a Arc<PooledTransaction>>,
    ) -> io::Result<()> {
        let mut bytes = Vec::new();
        transactions.for_each(|transaction| encode(transaction, &mut bytes));
        if bytes.is_empty() {
            return Ok(());
        }
        self.write(&bytes)
    }

    /// Whether most of the journal is out of date, if what should be in it has
    /// this size.
    pub(crate) const fn should_be_rewritten(&self, live_size_bytes: usize) -> bool {
        self.size_bytes > REWRITE_SIZE_BYTES
            && self.size_bytes / REWRITE_FACTOR > live_size_bytes as u64
    }

    /// Writes the journal anew with these transactions. The old one stays if
    /// that fails.
    pub(crate) fn rewrite<'a>(
        &mut self,
        transactions: impl Iterator<Item = &'a Arc<PooledTransaction>>,
    ) -> io::Result<()> {
        let mut bytes = header(self.chain_id);
        transactions.for_each(|transaction| encode(transaction, &mut bytes));
        let beside = self.path.with_extension("new");
        std::fs::write(&beside, &bytes)?;
        let file = OpenOptions::new().append(true).open(&beside)?;
        std::fs::rename(&beside, &self.path)?;
        self.file = file;
        self.size_bytes = bytes.len() as u64;
        Ok(())
    }

    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        match self.file.write_all(bytes) {
            Ok(()) => {
                self.size_bytes += bytes.len() as u64;
                Ok(())
            }
            Err(error) => {
                // A torn entry would hide what is added after it.
                self.file.set_len(self.size_bytes)?;
                Err(error)
            }
        }
    }
}

fn header(chain_id: u64) -> Vec<u8> {
    let parts = [&MAGIC[..], &VERSION.to_be_bytes(), &chain_id.to_be_bytes()];
    parts.concat()
}

fn encode(transaction: &PooledTransaction, bytes: &mut Vec<u8>) {
    let mut payload = Vec::with_capacity(8 + transaction.size_bytes);
    payload.extend(transaction.received_s.to_be_bytes());
    transaction.transaction.inner().encode_2718(&mut payload);
    let length = u32::try_from(payload.len()).expect("a transaction has at most 128 KiB");
    bytes.extend(length.to_be_bytes());
    bytes.extend(&keccak256(&payload)[..CHECKSUM_SIZE_BYTES]);
    bytes.extend(payload);
}

/// The whole entries of a journal, and where the last of them ends; 0 if it is
/// not a journal of this chain.
fn read(bytes: &[u8], chain_id: u64) -> (Vec<Remembered>, u64) {
    let mut remembered = Vec::new();
    let Some(mut rest) = bytes.strip_prefix(header(chain_id).as_slice()) else {
        return (remembered, 0);
    };
    while let Some((entry, after)) = decode(rest) {
        remembered.push(entry);
        rest = after;
    }
    let size_bytes = bytes.len() - rest.len();
    debug_assert!(size_bytes >= HEADER_SIZE_BYTES);
    (remembered, size_bytes as u64)
}

fn decode(bytes: &[u8]) -> Option<(Remembered, &[u8])> {
    let (head, rest) = bytes.split_at_checked(ENTRY_HEADER_SIZE_BYTES)?;
    let (length, checksum) = head.split_at(4);
    let length = u32::from_be_bytes(length.try_into().ok()?);
    let length = usize::try_from(length).ok()?;
    if length > PAYLOAD_MAX_SIZE_BYTES {
        return None;
    }
    let (payload, rest) = rest.split_at_checked(length)?;
    if keccak256(payload)[..CHECKSUM_SIZE_BYTES] != *checksum {
        return None;
    }
    let (received_s, raw) = payload.split_at_checked(8)?;
    let remembered = Remembered {
        received_s: u64::from_be_bytes(received_s.try_into().ok()?),
        transaction: Transaction::decode_2718_exact(raw).ok()?,
    };
    Some((remembered, rest))
}

#[cfg(test)]
mod tests;
