//! Which blocks may hold a log of an address or with a topic.
//!
//! | table | key | value |
//! |---|---|---|
//! | `log_blocks` | number | entries of open blocks up to this one `u32`, then the fingerprints of this one, ascending |
//! | `log_sections` | number of the last block | number of the first block, then entries, ascending: fingerprint, block minus first `u16` |
//!
//! A block with logs is *open* at first. When the open blocks hold
//! [`SECTION_ENTRIES_MAX`] entries, or span [`SECTION_BLOCKS_MAX`] blocks, they
//! become one section. So a block adds one value at the end of a table, however
//! many accounts its logs name, and a query over a long range costs one binary
//! search for each section. Blocks without logs cost nothing.
//!
//! Fingerprints are 32 bits, so what is found must be checked with the receipts.

use std::borrow::Cow;
use std::collections::BTreeSet;

use alloy_primitives::{Address, B256, Log};
use signet_libmdbx::{Database, Rw, TransactionKind};

use super::{StoreError, Txn, array};

/// Entries of one section, unless a single block has more.
const SECTION_ENTRIES_MAX: usize = 32_768;

/// Blocks that one section may span; offsets are 16 bits.
const SECTION_BLOCKS_MAX: u64 = 32_768;

/// Searches for one fingerprint in one section or block that a query may cost:
/// some seconds.
const PROBES_MAX: usize = 5_000_000;

const FINGERPRINT_SIZE_BYTES: usize = 4;
const ENTRY_SIZE_BYTES: usize = FINGERPRINT_SIZE_BYTES + 2;

/// What stands for an address, or for a topic at its position.
pub(crate) type Fingerprint = [u8; FINGERPRINT_SIZE_BYTES];

/// The fingerprint of a log's emitter.
pub(crate) fn of_address(address: &Address) -> Fingerprint {
    fingerprint(u8::MAX, address.as_slice())
}

/// The fingerprint of a topic at a position.
pub(crate) fn of_topic(position: u8, topic: &B256) -> Fingerprint {
    fingerprint(position, topic.as_slice())
}

/// FNV-1a, folded. Whoever makes two of them equal makes queries for the one
/// read a block too many, which needs no stronger hash to be harmless.
fn fingerprint(kind: u8, bytes: &[u8]) -> Fingerprint {
    let mut hash = 0xcbf2_9ce4_8422_2325_u64;
    for byte in std::iter::once(&kind).chain(bytes) {
        hash = (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
    }
    let [.., a, b, c, d] = (hash ^ (hash >> 32)).to_be_bytes();
    [a, b, c, d]
}

/// The fingerprints of a block's logs, ascending and each once.
fn fingerprints<'a>(logs: impl Iterator<Item = &'a Log>) -> BTreeSet<Fingerprint> {
    let mut all = BTreeSet::new();
    for log in logs {
        all.insert(of_address(&log.address));
        for (position, topic) in (0..).zip(log.topics()) {
            all.insert(of_topic(position, topic));
        }
    }
    all
}

/// An open block, as it is stored.
struct Open<'a> {
    number: u64,
    /// Entries of the open blocks up to this one.
    entries_so_far: usize,
    fingerprints: Cow<'a, [[u8; FINGERPRINT_SIZE_BYTES]]>,
}

impl<'a> Open<'a> {
    fn decode(key: &[u8], value: &'a [u8]) -> Result<Self, StoreError> {
        let damaged = || StoreError::corrupt("the log index of a block");
        let (so_far, rest) = value.split_at_checked(4).ok_or_else(damaged)?;
        let (fingerprints, remainder) = rest.as_chunks();
        if !remainder.is_empty() {
            return Err(damaged());
        }
        let so_far = u32::from_be_bytes(array("a number of entries", so_far)?);
        Ok(Self {
            number: u64::from_be_bytes(array("a block number", key)?),
            entries_so_far: usize::try_from(so_far).map_err(|_| damaged())?,
            fingerprints: Cow::Borrowed(fingerprints),
        })
    }

    fn encode(&self) -> Result<Vec<u8>, StoreError> {
        let so_far = u32::try_from(self.entries_so_far)
            .map_err(|_| StoreError::corrupt("more log entries than a block can have"))?;
        let mut value = so_far.to_be_bytes().to_vec();
        value.extend_from_slice(self.fingerprints.as_flattened());
        Ok(value)
    }
}

/// A section, as it is stored.
struct Section<'a> {
    first: u64,
    last: u64,
    entries: &'a [[u8; ENTRY_SIZE_BYTES]],
}

impl<'a> Section<'a> {
    fn decode(key: &[u8], value: &'a [u8]) -> Result<Self, StoreError> {
        let damaged = || StoreError::corrupt("a section of the log index");
        let (first, rest) = value.split_at_checked(8).ok_or_else(damaged)?;
        let (entries, remainder) = rest.as_chunks();
        if !remainder.is_empty() {
            return Err(damaged());
        }
        Ok(Self {
            first: u64::from_be_bytes(array("a block number", first)?),
            last: u64::from_be_bytes(array("a block number", key)?),
            entries,
        })
    }

    /// The blocks with a fingerprint, ascending.
    fn blocks(&self, fingerprint: Fingerprint) -> impl Iterator<Item = u64> {
        let from = self
            .entries
            .partition_point(|entry| entry[..FINGERPRINT_SIZE_BYTES] < fingerprint[..]);
        self.entries[from..]
            .iter()
            .take_while(move |entry| entry[..FINGERPRINT_SIZE_BYTES] == fingerprint[..])
            .map(|&[.., high, low]| self.first + u64::from(u16::from_be_bytes([high, low])))
    }
}

/// Which blocks are asked for: those that have, of every group, any one.
#[derive(Debug, Clone, Default)]
pub(crate) struct LogQuery {
    /// No group at all finds nothing: such a query must look at every block.
    pub(crate) groups: Vec<Vec<Fingerprint>>,
}

impl LogQuery {
    fn blocks_in(&self, section: &Section<'_>) -> BTreeSet<u64> {
        let mut found: Option<BTreeSet<u64>> = None;
        for group in &self.groups {
            let blocks = group.iter().flat_map(|wanted| section.blocks(*wanted));
            let blocks: BTreeSet<u64> = match &found {
                None => blocks.collect(),
                Some(before) => blocks.filter(|number| before.contains(number)).collect(),
            };
            if blocks.is_empty() {
                return blocks;
            }
            found = Some(blocks);
        }
        found.unwrap_or_default()
    }

    fn matches(&self, block: &Open<'_>) -> bool {
        !self.groups.is_empty()
            && self.groups.iter().all(|group| {
                group
                    .iter()
                    .any(|wanted| block.fingerprints.binary_search(wanted).is_ok())
            })
    }
}

impl<K: TransactionKind> Txn<K> {
    /// Calls `visit` with the number of every block from `from` to `to` that
    /// may hold what is asked for, ascending, until it fails.
    ///
    /// Answers with the last block that was looked at: `to`, or a lower one if
    /// the query costs too much.
    pub(crate) fn blocks_with_logs<E: From<StoreError>>(
        &self,
        query: &LogQuery,
        from: u64,
        to: u64,
        mut visit: impl FnMut(u64) -> Result<(), E>,
    ) -> Result<u64, E> {
        let probes_each = query.groups.iter().map(Vec::len).sum::<usize>().max(1);
        let mut probes_left = PROBES_MAX;
        let mut searched_to = None;
        self.scan_from(self.tables.log_sections, from, |key, value| {
            let section = Section::decode(key, value)?;
            if section.first > to {
                return Ok(false);
            }
            if probes_left < probes_each {
                searched_to = Some(section.first.saturating_sub(1));
                return Ok(false);
            }
            probes_left -= probes_each;
            let blocks = query.blocks_in(&section);
            blocks
                .range(from..=to)
                .try_for_each(|&number| visit(number))?;
            Ok::<_, E>(true)
        })?;
        if let Some(searched_to) = searched_to {
            return Ok(searched_to);
        }
        self.scan_from(self.tables.log_blocks, from, |key, value| {
            let block = Open::decode(key, value)?;
            if block.number > to {
                return Ok(false);
            }
            if probes_left < probes_each {
                searched_to = Some(block.number.saturating_sub(1));
                return Ok(false);
            }
            probes_left -= probes_each;
            if query.matches(&block) {
                visit(block.number)?;
            }
            Ok::<_, E>(true)
        })?;
        Ok(searched_to.unwrap_or(to))
    }

    /// Calls `visit` with every entry whose key is a number from `from` on.
    fn scan_from<E: From<StoreError>>(
        &self,
        table: Database,
        from: u64,
        mut visit: impl FnMut(&[u8], &[u8]) -> Result<bool, E>,
    ) -> Result<(), E> {
        let store = |error| E::from(StoreError::from(error));
        let mut cursor = self
            .tx
            .cursor(table)
            .map_err(|error| E::from(StoreError::from(error)))?;
        let mut entries = cursor
            .iter_from::<Cow<'_, [u8]>, Cow<'_, [u8]>>(&from.to_be_bytes())
            .map_err(store)?;
        while let Some((key, value)) = entries.borrow_next().map_err(store)? {
            if !visit(&key, &value)? {
                break;
            }
        }
        Ok(())
    }
}

impl Txn<Rw> {
    /// Notes the logs of the next block.
    pub(crate) fn index_logs<'a>(
        &self,
        number: u64,
        logs: impl Iterator<Item = &'a Log>,
    ) -> Result<(), StoreError> {
        let fingerprints: Vec<Fingerprint> = fingerprints(logs).into_iter().collect();
        if fingerprints.is_empty() {
            return Ok(());
        }
        let mut entries_so_far = fingerprints.len();
        if let Some((first, before)) = self.open_blocks()? {
            if before + fingerprints.len() > SECTION_ENTRIES_MAX
                || number - first >= SECTION_BLOCKS_MAX
            {
                self.close_section()?;
            } else {
                entries_so_far += before;
            }
        }
        self.put_open(&Open {
            number,
            entries_so_far,
            fingerprints: fingerprints.into(),
        })
    }

    /// Forgets the logs of a block, which must be the newest.
    pub(crate) fn unindex_logs(&self, number: u64) -> Result<(), StoreError> {
        let tables = self.tables;
        let key = number.to_be_bytes();
        if let Some(value) = self.get(tables.log_sections, &key)? {
            // The newest block closed a section: its other blocks are open again.
            let section = Section::decode(&key, &value)?;
            let mut blocks: Vec<Vec<Fingerprint>> = Vec::new();
            let span = section.last.saturating_sub(section.first);
            blocks.resize(usize::try_from(span).unwrap_or_default() + 1, Vec::new());
            for &[a, b, c, d, high, low] in section.entries {
                let offset = usize::from(u16::from_be_bytes([high, low]));
                let block = blocks
                    .get_mut(offset)
                    .ok_or_else(|| StoreError::corrupt("a section of the log index"))?;
                block.push([a, b, c, d]);
            }
            blocks.pop();
            let mut entries_so_far = 0;
            for (number, fingerprints) in (section.first..).zip(blocks) {
                if fingerprints.is_empty() {
                    continue;
                }
                entries_so_far += fingerprints.len();
                self.put_open(&Open {
                    number,
                    entries_so_far,
                    fingerprints: fingerprints.into(),
                })?;
            }
            self.delete(tables.log_sections, &key)?;
        }
        self.delete(tables.log_blocks, &key)
    }

    fn put_open(&self, block: &Open<'_>) -> Result<(), StoreError> {
        let key = block.number.to_be_bytes();
        self.put(self.tables.log_blocks, &key, &block.encode()?)
    }

    /// The first open block, and the entries of all of them.
    fn open_blocks(&self) -> Result<Option<(u64, usize)>, StoreError> {
        let mut cursor = self.tx.cursor(self.tables.log_blocks)?;
        let Some((first, _)) = cursor.first::<Vec<u8>, Vec<u8>>()? else {
            return Ok(None);
        };
        let Some((key, value)) = cursor.last::<Vec<u8>, Vec<u8>>()? else {
            return Ok(None);
        };
        let first = u64::from_be_bytes(array("a block number", &first)?);
        Ok(Some((first, Open::decode(&key, &value)?.entries_so_far)))
    }

    /// Makes one section of all open blocks.
    fn close_section(&self) -> Result<(), StoreError> {
        let tables = self.tables;
        let mut entries: Vec<[u8; ENTRY_SIZE_BYTES]> = Vec::new();
        let mut numbers = Vec::new();
        self.scan(tables.log_blocks, &[], |key, value| {
            let block = Open::decode(key, value)?;
            let first = *numbers.first().unwrap_or(&block.number);
            numbers.push(block.number);
            let offset = u16::try_from(block.number - first)
                .map_err(|_| StoreError::corrupt("open blocks of the log index"))?;
            let [high, low] = offset.to_be_bytes();
            let with_offset = |&[a, b, c, d]: &Fingerprint| [a, b, c, d, high, low];
            entries.extend(block.fingerprints.iter().map(with_offset));
            Ok(true)
        })?;
        let (Some(first), Some(last)) = (numbers.first(), numbers.last()) else {
            return Ok(());
        };
        entries.sort_unstable();
        let mut value = first.to_be_bytes().to_vec();
        value.extend_from_slice(entries.as_flattened());
        self.put(tables.log_sections, &last.to_be_bytes(), &value)?;
        numbers
            .iter()
            .try_for_each(|number| self.delete(tables.log_blocks, &number.to_be_bytes()))
    }
}

#[cfg(test)]
mod tests;
