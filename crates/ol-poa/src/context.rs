//! What the passages that an answer was given are worth, and to whom.
//!
//! A model that is given passages of a datanet with its question may lean on
//! them. How much it did is measured by leaving passages out: the drop of a
//! passage is what the answer's log-probability loses without it, in
//! milli-nats. Measuring needs the model (`ol-attribution`, `context`); what is
//! here needs only the drops, so whoever has those recomputes the payment.
//!
//! The rule, section "Units" of `specs/context.md`:
//! 1. Drops of passages of one duplicate cluster are added up.
//! 2. What is above the floor is the cluster's, and goes to its owner.
//! 3. Units are added up by contributor. What they are of all drops, is paid of the
//!    pot.
//!
//! # No overflow
//! There are at most 2⁸ passages, and a drop is below 2³²: all units together
//! are below 2⁴⁰, far under [`WEIGHT_LIMIT`](crate::shares::WEIGHT_LIMIT).

use alloc::collections::BTreeMap;
use core::fmt;

use alloy_primitives::Address;

use crate::evidence::{Earned, weights_of};

/// The most passages of one answer.
pub const PASSAGES_MAX: usize = 256;

/// A passage that an answer was given, and what the answer loses without it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PassageDrop {
    /// Number of its record's duplicate cluster.
    pub cluster: u32,
    /// Who owns the cluster.
    pub contributor: Address,
    /// What the answer's log-probability loses without it, in milli-nats;
    /// 0 if it gains.
    pub drop_millinats: u32,
}

/// From where on a drop is worth something.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ContextRule {
    /// What a passage that has nothing to do with the answer may move it, in
    /// milli-nats.
    pub floor_millinats: u32,
}

impl Default for ContextRule {
    /// One nat; `docs/attribution.md` says why.
    fn default() -> Self {
        Self {
            floor_millinats: 1_000,
        }
    }
}

/// What every contributor has earned by an answer, of all that it loses: the
/// drops of all passages, those below the floor too. That part of the pot for
/// context is shared by these weights, the rest falls to training. Nothing if no
/// passage is worth anything.
///
/// # Shapes and units
/// `passages`: in any order, which changes nothing. Units: milli-nats.
///
/// # Errors
/// [`ContextError`] if there are more than [`PASSAGES_MAX`], or a cluster has
/// two owners.
pub fn context_units(passages: &[PassageDrop], rule: &ContextRule) -> Result<Earned, ContextError> {
    if passages.len() > PASSAGES_MAX {
        return Err(ContextError::TooMany {
            n_passages: passages.len(),
        });
    }
    let mut clusters: BTreeMap<u32, (Address, u64)> = BTreeMap::new();
    for (position, passage) in passages.iter().enumerate() {
        let (owner, sum) = clusters
            .entry(passage.cluster)
            .or_insert((passage.contributor, 0));
        if *owner != passage.contributor {
            return Err(ContextError::Owners { position });
        }
        *sum += u64::from(passage.drop_millinats);
    }
    let total = clusters.values().map(|(_, sum)| sum).sum();
    let worth =
        |(owner, sum): (Address, u64)| (owner, sum.saturating_sub(rule.floor_millinats.into()));
    Ok(Earned::new(
        weights_of(clusters.into_values().map(worth)),
        total,
    ))
}

/// Why passages cannot be paid for.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum ContextError {
    /// There are more than [`PASSAGES_MAX`] passages.
    TooMany {
        /// How many there are.
        n_passages: usize,
    },
    /// Two passages of one cluster name different owners.
    Owners {
        /// The second of them, from 0.
        position: usize,
    },
}

impl fmt::Display for ContextError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::TooMany { n_passages } => {
                write!(
                    f,
                    "{n_passages} passages, at most {PASSAGES_MAX} are paid for"
                )
            }
            Self::Owners { position } => write!(
                f,
                "passage {position} names another owner of its cluster than one before it"
            ),
        }
    }
}

impl core::error::Error for ContextError {}

#[cfg(test)]
mod tests;
