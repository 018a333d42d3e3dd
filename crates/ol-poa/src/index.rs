//! Sketch entries and the index they form, as bytes.
//!
//! The format is section "Sketch entry" of `specs/poa.md`.

use alloc::vec::Vec;
use core::fmt;

use alloy_primitives::{Address, B256};

use crate::court::COURT_ENTRIES_MAX;

/// Dimension of every sketch.
pub const K: usize = 256;

/// The largest code of an entry; the smallest is its opposite.
pub const CODE_MAX: i8 = 7;

/// Bytes of the codes of an entry, two in each.
pub const CODES_SIZE_BYTES: usize = K / 2;

/// Bytes of one entry: contributor, record, cluster, scale, codes.
pub const ENTRY_SIZE_BYTES: usize = 20 + 32 + 4 + 2 + CODES_SIZE_BYTES;

/// Entries of a full chunk; only the last chunk of an index may hold fewer.
pub const CHUNK_ENTRIES: usize = 128;

/// Entries of the largest index.
pub const ENTRIES_MAX: usize = 16_384;

/// Bytes of a full chunk.
pub const CHUNK_SIZE_BYTES: usize = CHUNK_ENTRIES * ENTRY_SIZE_BYTES;

const RECORD_AT: usize = 20;
const CLUSTER_AT: usize = 52;
const SCALE_AT: usize = 56;
const CODES_AT: usize = 58;

/// The sketch of one record, or of the duplicate cluster it stands for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Who is paid for the record.
    pub contributor: Address,
    /// Hash of the record.
    pub record: B256,
    /// Number of the duplicate cluster the record stands for.
    pub cluster: u32,
    /// Factor of the codes, at least 1.
    pub scale: u16,
    /// The quantised sketch, each in -7..=7.
    pub codes: [i8; K],
}

impl Entry {
    /// The entry as the bytes that are stored, hashed and scored. A code out of
    /// range becomes -8, which every reader refuses.
    #[must_use]
    pub fn encode(&self) -> [u8; ENTRY_SIZE_BYTES] {
        let mut bytes = [0; ENTRY_SIZE_BYTES];
        bytes[..RECORD_AT].copy_from_slice(self.contributor.as_slice());
        bytes[RECORD_AT..CLUSTER_AT].copy_from_slice(self.record.as_slice());
        bytes[CLUSTER_AT..SCALE_AT].copy_from_slice(&self.cluster.to_be_bytes());
        bytes[SCALE_AT..CODES_AT].copy_from_slice(&self.scale.to_be_bytes());
        let nibble = |code: i8| {
            if code.unsigned_abs() <= CODE_MAX.unsigned_abs() {
                code.cast_unsigned() & 15
            } else {
                8
            }
        };
        let (high, low) = self.codes.split_at(CODES_SIZE_BYTES);
        for ((byte, &high), &low) in bytes[CODES_AT..].iter_mut().zip(high).zip(low) {
            *byte = nibble(high) << 4 | nibble(low);
        }
        bytes
    }

    /// Reads one entry.
    ///
    /// # Errors
    /// [`IndexError::ChunkSize`] if there are not exactly
    /// [`ENTRY_SIZE_BYTES`], [`IndexError::Scale`] or [`IndexError::Code`] if
    /// a value is out of range.
    pub fn decode(bytes: &[u8]) -> Result<Self, IndexError> {
        let bytes: &[u8; ENTRY_SIZE_BYTES] =
            bytes.try_into().map_err(|_| IndexError::ChunkSize {
                chunk: 0,
                size_bytes: bytes.len(),
            })?;
        let view = EntryView(bytes);
        view.check(0)?;
        Ok(view.to_entry())
    }
}

/// One entry inside a chunk, read in place.
#[derive(Debug, Clone, Copy)]
pub struct EntryView<'a>(&'a [u8; ENTRY_SIZE_BYTES]);

impl<'a> EntryView<'a> {
    /// Bytes that may be anything: see [`Self::check`].
    pub(crate) const fn of(bytes: &'a [u8; ENTRY_SIZE_BYTES]) -> Self {
        Self(bytes)
    }

    /// The bytes of the entry.
    #[must_use]
    pub const fn bytes(self) -> &'a [u8; ENTRY_SIZE_BYTES] {
        self.0
    }

    /// Who is paid.
    #[must_use]
    pub fn contributor(self) -> Address {
        Address::from(self.field::<RECORD_AT>(0))
    }

    /// Hash of the record.
    #[must_use]
    pub fn record(self) -> B256 {
        B256::from(self.field::<32>(RECORD_AT))
    }

    /// Number of the duplicate cluster.
    #[must_use]
    pub fn cluster(self) -> u32 {
        u32::from_be_bytes(self.field(CLUSTER_AT))
    }

    /// Factor of the codes.
    #[must_use]
    pub fn scale(self) -> u16 {
        u16::from_be_bytes(self.field(SCALE_AT))
    }

    /// The codes as they are stored; see [`unpack`].
    #[must_use]
    #[expect(clippy::missing_panics_doc, reason = "the expectation cannot fail")]
    pub fn code_bytes(self) -> &'a [u8; CODES_SIZE_BYTES] {
        self.0
            .last_chunk()
            .expect("an entry ends with its code bytes")
    }

    /// The entry as owned values.
    #[must_use]
    pub fn to_entry(self) -> Entry {
        Entry {
            contributor: self.contributor(),
            record: self.record(),
            cluster: self.cluster(),
            scale: self.scale(),
            codes: unpack(self.code_bytes()),
        }
    }

    /// `(contributor, cluster)` as integers in the same order, which compare
    /// without a call.
    pub(crate) fn key(self) -> (u128, u64) {
        let high = u128::from_be_bytes(self.field(0));
        let low = u32::from_be_bytes(self.field(16));
        (high, u64::from(low) << 32 | u64::from(self.cluster()))
    }

    /// Checks the values that are not free: scale and codes.
    #[inline(always)]
    pub(crate) fn check(self, entry: usize) -> Result<(), IndexError> {
        if self.scale() == 0 {
            return Err(IndexError::Scale { entry });
        }
        // No early exit: the plain fold compiles to a few vector instructions.
        let is_refused = self.code_bytes().iter().fold(false, |any, &byte| {
            any | (byte & 0xf0 == 0x80) | (byte & 0x0f == 0x08)
        });
        if is_refused {
            return Err(IndexError::Code { entry });
        }
        Ok(())
    }

    fn field<const N: usize>(self, at: usize) -> [u8; N] {
        self.0[at..at + N]
            .try_into()
            .expect("a range of N bytes is N bytes long")
    }
}

/// The codes in the bytes of an entry: the high half of byte `j` is code `j`,
/// the low half code `128 + j`, each a signed number of four bits.
#[must_use]
pub fn unpack(bytes: &[u8; CODES_SIZE_BYTES]) -> [i8; K] {
    core::array::from_fn(|at| match bytes.get(at) {
        Some(byte) => byte.cast_signed() >> 4,
        None => (bytes[at - CODES_SIZE_BYTES] << 4).cast_signed() >> 4,
    })
}

/// The entries of one chunk, in order.
///
/// # Errors
/// [`IndexError::ChunkSize`] if the bytes are not 1 to [`CHUNK_ENTRIES`] whole
/// entries. What is inside them is not checked here; see [`check_chunks`].
pub fn parse_chunk(bytes: &[u8]) -> Result<impl Iterator<Item = EntryView<'_>>, IndexError> {
    chunk_views(bytes, 0)
}

fn chunk_views(
    bytes: &[u8],
    chunk: usize,
) -> Result<impl Iterator<Item = EntryView<'_>>, IndexError> {
    let size_bytes = bytes.len();
    let (entries, rest) = bytes.as_chunks::<ENTRY_SIZE_BYTES>();
    if entries.is_empty() || entries.len() > CHUNK_ENTRIES || !rest.is_empty() {
        return Err(IndexError::ChunkSize { chunk, size_bytes });
    }
    Ok(entries.iter().map(EntryView))
}

/// Calls `visit` for every entry of an index given as its chunks, of at most
/// `n_entries_max` entries, checking sizes, order, scales and codes on the way. Stops at the first error.
///
/// This is all that the chain checks. That no cluster has two owners needs a
/// set of all clusters; [`Index`] checks it before an index is registered, and
/// anyone can show a breach by two entries with their proofs.
///
/// # Errors
/// Any [`IndexError`] but [`IndexError::DuplicateCluster`].
#[inline(always)]
pub(crate) fn scan<'a>(
    chunks: &[&'a [u8]],
    n_entries_max: usize,
    mut visit: impl FnMut(EntryView<'a>),
) -> Result<(), IndexError> {
    let Some(last_chunk) = chunks.len().checked_sub(1) else {
        return Err(IndexError::Empty);
    };
    if chunks.len() > n_entries_max / CHUNK_ENTRIES {
        return Err(IndexError::TooLarge {
            n_chunks: chunks.len(),
            n_entries_max,
        });
    }
    let mut entry = 0;
    let mut previous = None;
    for (chunk, bytes) in chunks.iter().enumerate() {
        let views = chunk_views(bytes, chunk)?;
        if chunk != last_chunk && bytes.len() != CHUNK_SIZE_BYTES {
            return Err(IndexError::ChunkSize {
                chunk,
                size_bytes: bytes.len(),
            });
        }
        for view in views {
            let key = Some(view.key());
            if key <= previous {
                return Err(IndexError::Order { entry });
            }
            previous = key;
            view.check(entry)?;
            visit(view);
            entry += 1;
        }
    }
    Ok(())
}

/// Checks the form of an index given as its chunks: sizes, order, scales and
/// codes, as `POA_SCORE` does. At most [`ENTRIES_MAX`] entries.
///
/// # Errors
/// Any [`IndexError`] but [`IndexError::DuplicateCluster`].
pub fn check_chunks(chunks: &[&[u8]]) -> Result<(), IndexError> {
    scan(chunks, ENTRIES_MAX, |_| ())
}

/// A whole index whose form has been checked: sizes, order, scales, codes, and
/// no cluster twice. At most [`COURT_ENTRIES_MAX`] entries; up to [`ENTRIES_MAX`]
/// fit on chain, a larger one is committed to ([`crate::court::CommittedIndex`]).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Index {
    bytes: Vec<u8>,
}

impl Index {
    /// Builds an index from entries in any order.
    ///
    /// # Errors
    /// [`IndexError`] if there is no entry or too many, a value is out of
    /// range, or two entries share a cluster.
    pub fn new(mut entries: Vec<Entry>) -> Result<Self, IndexError> {
        if entries.len() > COURT_ENTRIES_MAX {
            return Err(IndexError::TooLarge {
                n_chunks: entries.len().div_ceil(CHUNK_ENTRIES),
                n_entries_max: COURT_ENTRIES_MAX,
            });
        }
        entries.sort_by_key(|entry| (entry.contributor, entry.cluster));
        Self::from_bytes(entries.iter().flat_map(Entry::encode).collect())
    }

    /// Takes an index as its entries one after the other, in order.
    ///
    /// # Errors
    /// [`IndexError`], with the first entry that is wrong.
    pub fn from_bytes(bytes: Vec<u8>) -> Result<Self, IndexError> {
        let index = Self { bytes };
        let mut clusters = Vec::with_capacity(index.len().min(COURT_ENTRIES_MAX));
        scan(&index.chunks(), COURT_ENTRIES_MAX, |view| {
            clusters.push(view.cluster());
        })?;
        clusters.sort_unstable();
        match clusters.windows(2).find(|pair| pair[0] == pair[1]) {
            Some(pair) => Err(IndexError::DuplicateCluster { cluster: pair[0] }),
            None => Ok(index),
        }
    }

    /// How many entries there are; never 0.
    #[must_use]
    #[expect(
        clippy::len_without_is_empty,
        reason = "an empty index cannot be built"
    )]
    pub const fn len(&self) -> usize {
        self.bytes.len() / ENTRY_SIZE_BYTES
    }

    /// Whether it is small enough to be on chain.
    #[must_use]
    pub const fn fits_chain(&self) -> bool {
        self.len() <= ENTRIES_MAX
    }

    /// The entries, one after the other.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// The chunks as they are stored on chain, without the leading STOP byte.
    #[must_use]
    pub fn chunks(&self) -> Vec<&[u8]> {
        self.bytes.chunks(CHUNK_SIZE_BYTES).collect()
    }

    /// The entries in order, read in place.
    pub fn entries(&self) -> impl ExactSizeIterator<Item = EntryView<'_>> {
        self.bytes
            .as_chunks::<ENTRY_SIZE_BYTES>()
            .0
            .iter()
            .map(EntryView)
    }

    /// The sketch root; see [`crate::commit`].
    #[must_use]
    #[expect(clippy::missing_panics_doc, reason = "the expectation cannot fail")]
    pub fn root(&self) -> B256 {
        crate::commit::root_of(&self.chunks()).expect("the index was checked when it was built")
    }
}

/// Why bytes are not an index, or not part of one.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum IndexError {
    /// There is no entry at all.
    Empty,
    /// There are too many entries.
    TooLarge {
        /// How many chunks there are.
        n_chunks: usize,
        /// How many entries there may be.
        n_entries_max: usize,
    },
    /// There are more contributors than a claim can pay.
    TooManyContributors {
        /// How many there are.
        n_contributors: usize,
    },
    /// A chunk is not made of whole entries, or has too many, or has too few
    /// though it is not the last.
    ChunkSize {
        /// Which chunk, from 0.
        chunk: usize,
        /// Its length.
        size_bytes: usize,
    },
    /// An entry is not above the one before it by `(contributor, cluster)`.
    Order {
        /// Which entry, from 0.
        entry: usize,
    },
    /// Two entries stand for the same cluster.
    DuplicateCluster {
        /// The cluster.
        cluster: u32,
    },
    /// The scale of an entry is 0.
    Scale {
        /// Which entry, from 0.
        entry: usize,
    },
    /// A code of an entry is -8.
    Code {
        /// Which entry, from 0.
        entry: usize,
    },
    /// A query sketch does not have [`K`] codes, or one is -128.
    Query,
}

impl fmt::Display for IndexError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Empty => write!(f, "the sketch index has no entry"),
            Self::TooLarge {
                n_chunks,
                n_entries_max,
            } => {
                write!(
                    f,
                    "{n_chunks} chunks are more than an index of {n_entries_max} entries"
                )
            }
            Self::TooManyContributors { n_contributors } => {
                let most = crate::court::COURT_CONTRIBUTORS_MAX;
                write!(
                    f,
                    "{n_contributors} contributors, at most {most} fit an index"
                )
            }
            Self::ChunkSize { chunk, size_bytes } => {
                write!(
                    f,
                    "chunk {chunk} has {size_bytes} bytes, not the size of its entries"
                )
            }
            Self::Order { entry } => write!(f, "entry {entry} of the index is out of order"),
            Self::DuplicateCluster { cluster } => write!(f, "cluster {cluster} has two entries"),
            Self::Scale { entry } => write!(f, "the scale of entry {entry} is 0"),
            Self::Code { entry } => write!(f, "a code of entry {entry} is -8"),
            Self::Query => write!(f, "a query sketch is {K} codes in -127..=127"),
        }
    }
}

impl core::error::Error for IndexError {}

#[cfg(test)]
pub(crate) mod tests;
