//! Ommers: blocks of proof of work that lost, and are paid a part all the same.

use std::collections::HashSet;

use alloy_consensus::Header;
use alloy_primitives::B256;

use super::{BlockError, Checked, validate_header};
use crate::Rules;

/// Most ommers of a block.
const OMMERS_MAX: usize = 2;

/// How many generations back an ommer's parent may be, and how many ancestors
/// [`validate_ommers`] asks for.
pub const OMMER_GENERATIONS_MAX: usize = 7;

/// An ancestor of a block.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ancestor {
    /// Its header.
    pub header: Header,
    /// The ommers in its body.
    pub ommers: Vec<Header>,
}

/// Checks the ommers of a block against its ancestors: the parent first, and
/// [`OMMER_GENERATIONS_MAX`] of them if the chain has so many.
///
/// # Errors
/// [`BlockError::TooManyOmmers`], [`BlockError::Ommer`] or
/// [`BlockError::OmmerHeader`].
///
/// # Source
/// Yellow Paper, section 11.1.
pub fn validate_ommers(
    header: &Header,
    ommers: &[Header],
    ancestors: &[Ancestor],
    rules: &Rules,
) -> Checked {
    if ommers.len() > OMMERS_MAX {
        return Err(BlockError::TooManyOmmers {
            found: ommers.len(),
        });
    }
    if ommers.is_empty() {
        return Ok(());
    }
    let ancestors = &ancestors[..ancestors.len().min(OMMER_GENERATIONS_MAX)];
    let hashes: Vec<B256> = ancestors
        .iter()
        .map(|ancestor| ancestor.header.hash_slow())
        .collect();
    let mut known: HashSet<B256> = ancestors
        .iter()
        .flat_map(|ancestor| ancestor.ommers.iter().map(Header::hash_slow))
        .collect();
    for (position, ommer) in ommers.iter().enumerate() {
        let refused = |reason| Err(BlockError::Ommer { position, reason });
        let hash = ommer.hash_slow();
        if hash == header.hash_slow() || hashes.contains(&hash) {
            return refused("is an ancestor");
        }
        if !known.insert(hash) {
            return refused("is in the chain already");
        }
        if ommer.parent_hash == header.parent_hash {
            return refused("is a sibling of the block");
        }
        let parent = hashes.iter().position(|hash| *hash == ommer.parent_hash);
        let Some(parent) = parent.and_then(|at| ancestors.get(at)) else {
            return refused("has a parent that is no recent ancestor");
        };
        validate_header(&parent.header, ommer, rules).map_err(|source| {
            BlockError::OmmerHeader {
                position,
                source: Box::new(source),
            }
        })?;
    }
    Ok(())
}
