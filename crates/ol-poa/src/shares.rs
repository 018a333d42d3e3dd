//! A pot divided in proportion to weights, exact to the unit.
//!
//! # No overflow
//! `pot < 2¹²⁸` and each weight is below 2⁶³, so `pot · weight < 2¹⁹¹` fits 256
//! bits. At most 2¹⁴ weights add up to less than 2⁷⁷, so the sum and every
//! remainder fit a `u128`; a share is at most the pot.

use alloc::vec::Vec;
use core::cmp::Reverse;
use core::fmt;

use alloy_primitives::U256;

use crate::index::ENTRIES_MAX;

/// Shares of a fee in basis points: platform, model owner, stakers,
/// contributors.
pub const DEFAULT_SPLIT_BPS: [u16; 4] = [1_000, 2_000, 2_000, 5_000];

/// What the basis points of a split add up to.
pub const SPLIT_TOTAL_BPS: u32 = 10_000;

/// The most weights that one pot is shared by.
pub const WEIGHTS_MAX: usize = ENTRIES_MAX;

/// Weights are below this.
pub const WEIGHT_LIMIT: u64 = 1 << 63;

/// Splits `pot` in proportion to `weights`, exactly.
///
/// Each gets the floor of its part. The units left over go, one each, to the
/// largest remainders; ties go to the lower position.
///
/// # Shapes and units
/// `pot` and the shares are in the same unit (wei); the shares are in the order
/// of `weights` and add up to `pot`.
///
/// # Errors
/// - [`SharesError::NoWeight`] if there is no weight above 0: the caller pays
///   the pot to the treasury.
/// - [`SharesError::TooMany`], [`SharesError::WeightTooLarge`] past the limits.
///
/// # Source
/// Largest-remainder (Hamilton) apportionment; Balinski and Young, *Fair
/// Representation*, 2nd ed., 2001.
///
/// # Example
/// ```
/// assert_eq!(ol_poa::shares(10, &[1, 1, 1])?, [4, 3, 3]);
/// # Ok::<(), ol_poa::SharesError>(())
/// ```
#[expect(clippy::missing_panics_doc, reason = "the expectation cannot fail")]
pub fn shares(pot: u128, weights: &[u64]) -> Result<Vec<u128>, SharesError> {
    if weights.len() > WEIGHTS_MAX {
        return Err(SharesError::TooMany {
            n_weights: weights.len(),
        });
    }
    if let Some(position) = weights.iter().position(|&weight| weight >= WEIGHT_LIMIT) {
        return Err(SharesError::WeightTooLarge { position });
    }
    let sum: u128 = weights.iter().copied().map(u128::from).sum();
    if sum == 0 {
        return Err(SharesError::NoWeight);
    }

    let mut shares = Vec::with_capacity(weights.len());
    let mut remainders = Vec::with_capacity(weights.len());
    let mut left = pot;
    for (position, &weight) in weights.iter().enumerate() {
        let (share, remainder) = divide(pot, weight, sum);
        left -= share;
        shares.push(share);
        remainders.push((Reverse(remainder), position));
    }
    // `left · sum` is the sum of the remainders, each below `sum`: so `left` is
    // less than the number of remainders that are not 0, and a weight of 0
    // never gets a unit.
    let n_left = usize::try_from(left).expect("fewer units are left than there are weights");
    remainders.sort_unstable();
    for (_, position) in &remainders[..n_left] {
        shares[*position] += 1;
    }
    Ok(shares)
}

/// Quotient and remainder of `pot · weight / sum`.
pub(crate) fn divide(pot: u128, weight: u64, sum: u128) -> (u128, u128) {
    let (quotient, remainder) = (U256::from(pot) * U256::from(weight)).div_rem(U256::from(sum));
    (quotient.to(), remainder.to())
}

/// Splits a fee between platform, model owner, stakers and contributors by the
/// same rule as [`shares`].
///
/// # Errors
/// [`SharesError::Split`] if the basis points do not add up to 10,000.
#[expect(clippy::missing_panics_doc, reason = "the expectation cannot fail")]
pub fn split_fee(fee: u128, split_bps: [u16; 4]) -> Result<[u128; 4], SharesError> {
    split_total(&split_bps)?;
    let parts = shares(fee, &split_bps.map(u64::from))?;
    Ok(parts.try_into().expect("four weights give four shares"))
}

/// # Errors
/// [`SharesError::Split`] if basis points do not add up to 10,000.
pub(crate) fn split_total(bps: &[u16]) -> Result<(), SharesError> {
    let total_bps = bps.iter().copied().map(u32::from).sum();
    if total_bps != SPLIT_TOTAL_BPS {
        return Err(SharesError::Split { total_bps });
    }
    Ok(())
}

/// Why a pot could not be shared.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum SharesError {
    /// No weight is above 0, so nobody earned a share: the treasury is paid.
    NoWeight,
    /// There are more than [`WEIGHTS_MAX`] weights.
    TooMany {
        /// How many there are.
        n_weights: usize,
    },
    /// A weight is 2⁶³ or more.
    WeightTooLarge {
        /// Its position, from 0.
        position: usize,
    },
    /// The basis points of a split do not add up to 10,000.
    Split {
        /// What they add up to.
        total_bps: u32,
    },
}

impl fmt::Display for SharesError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoWeight => write!(f, "no weight is above 0"),
            Self::TooMany { n_weights } => {
                write!(f, "{n_weights} weights, at most {WEIGHTS_MAX} share a pot")
            }
            Self::WeightTooLarge { position } => {
                write!(f, "weight {position} is not below 2^63")
            }
            Self::Split { total_bps } => {
                write!(
                    f,
                    "the split adds up to {total_bps} basis points, not {SPLIT_TOTAL_BPS}"
                )
            }
        }
    }
}

impl core::error::Error for SharesError {}

#[cfg(test)]
mod tests;
