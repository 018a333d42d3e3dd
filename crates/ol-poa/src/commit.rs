//! The commitment to an index: sketch root, and proofs of single entries.
//!
//! A leaf is `keccak256(0x00 ‖ entry)`. A chunk's root is a perfect tree of
//! depth 7 over its leaves, the sketch root a tree over the chunk roots, both
//! padded with zero hashes. So the whole is one padded tree, and a proof is a
//! chunk part of seven hashes and then the path of the chunk.

use alloc::vec::Vec;

use alloy_primitives::B256;

use crate::index::{CHUNK_ENTRIES, ENTRIES_MAX, ENTRY_SIZE_BYTES, IndexError, check_chunks};
use crate::merkle;
pub use crate::merkle::node;

/// Depth of the tree over the entries of one chunk.
pub const CHUNK_DEPTH: u32 = merkle::depth(CHUNK_ENTRIES);

/// The leaf of an entry: `keccak256(0x00 ‖ entry)`.
#[must_use]
pub fn leaf(entry: &[u8; ENTRY_SIZE_BYTES]) -> B256 {
    merkle::leaf(entry)
}

/// The root of one chunk.
///
/// Only the size is looked at: a root commits to bytes, well formed or not.
///
/// # Errors
/// [`IndexError::ChunkSize`] if the bytes are not 1 to [`CHUNK_ENTRIES`] whole
/// entries.
pub fn chunk_root(chunk: &[u8]) -> Result<B256, IndexError> {
    Ok(merkle::root_at_depth(&leaves(chunk)?, CHUNK_DEPTH))
}

/// The sketch root of an index given as its chunks, whose form is checked.
///
/// # Errors
/// [`IndexError`] if the chunks are malformed; see [`check_chunks`].
pub fn sketch_root(chunks: &[&[u8]]) -> Result<B256, IndexError> {
    check_chunks(chunks)?;
    root_of(chunks)
}

/// [`sketch_root`] of any number of chunks, whose contents are not looked at.
pub(crate) fn root_of(chunks: &[&[u8]]) -> Result<B256, IndexError> {
    Ok(merkle::root(&chunk_roots(chunks)?))
}

/// The proof of entry `entry` (from 0 in the whole index): the siblings of its
/// leaf from the bottom up, [`proof_len`] hashes. `None` if there is no such
/// entry.
///
/// # Errors
/// [`IndexError`] if the chunks are malformed; see [`check_chunks`].
pub fn proof(chunks: &[&[u8]], entry: usize) -> Result<Option<Vec<B256>>, IndexError> {
    check_chunks(chunks)?;
    let (chunk, position) = (entry / CHUNK_ENTRIES, entry % CHUNK_ENTRIES);
    let Some(bytes) = chunks.get(chunk) else {
        return Ok(None);
    };
    let leaves = leaves(bytes)?;
    if position >= leaves.len() {
        return Ok(None);
    }
    let mut siblings = merkle::proof(&leaves, CHUNK_DEPTH, position);
    let roots = chunk_roots(chunks)?;
    siblings.extend(merkle::proof(&roots, merkle::depth(roots.len()), chunk));
    Ok(Some(siblings))
}

/// How many hashes the proof of an entry has: `7 + ceil(log2(chunks))`.
#[must_use]
pub const fn proof_len(n_entries: usize) -> usize {
    (CHUNK_DEPTH + merkle::depth(n_entries.div_ceil(CHUNK_ENTRIES))) as usize
}

/// Whether `bytes` are entry number `entry` of the index of `n_entries` under
/// `root`. False for any argument out of range; never a panic.
#[must_use]
pub fn verify_proof(
    root: &B256,
    n_entries: usize,
    entry: usize,
    bytes: &[u8; ENTRY_SIZE_BYTES],
    proof: &[B256],
) -> bool {
    n_entries <= ENTRIES_MAX
        && entry < n_entries
        && proof.len() == proof_len(n_entries)
        && merkle::fold(&leaf(bytes), entry, proof) == *root
}

fn chunk_roots(chunks: &[&[u8]]) -> Result<Vec<B256>, IndexError> {
    chunks.iter().map(|chunk| chunk_root(chunk)).collect()
}

fn leaves(chunk: &[u8]) -> Result<Vec<B256>, IndexError> {
    let entries = crate::index::parse_chunk(chunk)?;
    Ok(entries.map(|entry| leaf(entry.bytes())).collect())
}

#[cfg(test)]
mod tests;
