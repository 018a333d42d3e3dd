//! What the pots for spans and context are shared by: lists of weights that a
//! receipt commits to, and the pots that they open.
//!
//! Scores come from a committed index and a query sketch, so the chain computes
//! them; words that stand in an answer and passages that a model had before it
//! come from files that no chain holds. A receipt commits to what came of them,
//! and names the object from which anybody computes it again.
//!
//! Format: section "Evidence" of `specs/receipt.md`; the rule of the pots:
//! section "Pots" of `specs/poa.md`.

use alloc::vec::Vec;
use core::fmt;

use alloy_primitives::{Address, B256, keccak256};

use crate::shares::{SharesError, WEIGHT_LIMIT, shares, split_total};

/// Most contributors of one list: what a settling transaction can credit.
pub const EVIDENCE_MAX: usize = 256;

/// Bytes of one contributor with its weight.
pub const EVIDENCE_ENTRY_SIZE_BYTES: usize = 20 + 8;

/// Bytes of the longest encoding: two sizes, two lists, an id.
pub const EVIDENCE_SIZE_BYTES_MAX: usize = 8 + 2 * EVIDENCE_MAX * EVIDENCE_ENTRY_SIZE_BYTES + 32;

/// Pots of the demo models: training, spans and context in basis points of the
/// contributors' part. A pot without evidence falls to training, so an answer
/// without retrieved passages pays 8,000 and 2,000.
pub const DEFAULT_POTS_BPS: [u16; 3] = [6_000, 2_000, 2_000];

/// A pot of the contributors' part.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Pot {
    /// Records that moved the answer, by their scores.
    Training = 0,
    /// Records whose words stand in the answer.
    Spans = 1,
    /// Records that were put before the model, by what the answer would lose
    /// without them.
    Context = 2,
}

impl Pot {
    /// All pots, in the order in which they are numbered.
    pub const ALL: [Self; 3] = [Self::Training, Self::Spans, Self::Context];

    /// The pot's name in receipts.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Training => "training",
            Self::Spans => "spans",
            Self::Context => "context",
        }
    }

    /// The pot with this number on chain.
    #[must_use]
    pub fn from_number(number: u8) -> Option<Self> {
        Self::ALL.get(usize::from(number)).copied()
    }
}

/// Who is paid for spans and context, and the object that shows why.
///
/// Each list ascends strictly by address, has no weight of 0 and none of 2⁶³ or
/// more, and at most [`EVIDENCE_MAX`] contributors.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Evidence {
    spans: Vec<(Address, u64)>,
    context: Vec<(Address, u64)>,
    object: B256,
}

impl Evidence {
    /// The evidence of two lists and the id of an object; zero if there is no
    /// object.
    ///
    /// # Errors
    /// [`EvidenceError`] if a list is not as [`Evidence`] says.
    pub fn new(
        spans: Vec<(Address, u64)>,
        context: Vec<(Address, u64)>,
        object: B256,
    ) -> Result<Self, EvidenceError> {
        check(Pot::Spans, &spans)?;
        check(Pot::Context, &context)?;
        Ok(Self {
            spans,
            context,
            object,
        })
    }

    /// Who is paid for words that stand in the answer.
    #[must_use]
    pub fn spans(&self) -> &[(Address, u64)] {
        &self.spans
    }

    /// Who is paid for passages that the model had before it.
    #[must_use]
    pub fn context(&self) -> &[(Address, u64)] {
        &self.context
    }

    /// Id of the object that shows how the weights came about, if there is one.
    #[must_use]
    pub fn object(&self) -> Option<B256> {
        Some(self.object).filter(|id| !id.is_zero())
    }

    /// The word by which a receipt commits to this.
    #[must_use]
    pub fn hash(&self) -> B256 {
        keccak256(self.to_bytes())
    }

    /// The lists as a contract takes them: address and weight, 28 bytes each.
    #[must_use]
    pub fn lists(&self) -> [Vec<u8>; 2] {
        [encode(&self.spans), encode(&self.context)]
    }

    /// The canonical encoding, whose keccak256 is [`Evidence::hash`]: the sizes
    /// of both lists in bytes, the lists, the object's id.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        let [spans, context] = self.lists();
        let size = |list: &[u8]| u32::try_from(list.len()).unwrap_or(u32::MAX).to_be_bytes();
        let mut bytes = Vec::with_capacity(8 + spans.len() + context.len() + 32);
        bytes.extend(size(&spans));
        bytes.extend(size(&context));
        bytes.extend(spans);
        bytes.extend(context);
        bytes.extend(self.object);
        bytes
    }

    /// Reads what [`Evidence::to_bytes`] wrote, and nothing else.
    ///
    /// # Errors
    /// [`EvidenceError`].
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, EvidenceError> {
        let size = EvidenceError::Size {
            n_bytes: bytes.len(),
        };
        let (head, lists) = bytes.split_at_checked(8).ok_or(size.clone())?;
        let (spans, context) = head.split_at(4);
        let length = |size: &[u8]| size.iter().fold(0, |n, &byte| n << 8 | usize::from(byte));
        let (spans, lists) = lists.split_at_checked(length(spans)).ok_or(size.clone())?;
        let (context, object) = lists
            .split_at_checked(length(context))
            .ok_or(size.clone())?;
        if object.len() != 32 {
            return Err(size);
        }
        Self::new(
            decode(spans).ok_or(size.clone())?,
            decode(context).ok_or(size)?,
            B256::from_slice(object),
        )
    }
}

fn encode(list: &[(Address, u64)]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(list.len() * EVIDENCE_ENTRY_SIZE_BYTES);
    for (contributor, weight) in list {
        bytes.extend(contributor);
        bytes.extend(weight.to_be_bytes());
    }
    bytes
}

fn decode(bytes: &[u8]) -> Option<Vec<(Address, u64)>> {
    let (entries, rest) = bytes.as_chunks::<EVIDENCE_ENTRY_SIZE_BYTES>();
    let read = |entry: &[u8; EVIDENCE_ENTRY_SIZE_BYTES]| {
        let (contributor, weight) = entry.split_first_chunk::<20>()?;
        let weight = u64::from_be_bytes(weight.try_into().ok()?);
        Some((Address::from(contributor), weight))
    };
    let is_short = rest.is_empty() && entries.len() <= EVIDENCE_MAX;
    is_short.then(|| entries.iter().map(read).collect())?
}

fn check(pot: Pot, list: &[(Address, u64)]) -> Result<(), EvidenceError> {
    if list.len() > EVIDENCE_MAX {
        let n_contributors = list.len();
        return Err(EvidenceError::TooMany {
            pot,
            n_contributors,
        });
    }
    let mut previous = Address::ZERO;
    for (position, &(contributor, weight)) in list.iter().enumerate() {
        if contributor <= previous || weight == 0 || weight >= WEIGHT_LIMIT {
            return Err(EvidenceError::Entry { pot, position });
        }
        previous = contributor;
    }
    Ok(())
}

/// The weights of a list: contributors with what they earned in any order and
/// several times, brought into the form that [`Evidence`] takes. Those that add
/// up to nothing are left out; of more than [`EVIDENCE_MAX`] those with the most
/// are kept, ties to the lower address. A sum stops below 2⁶³.
#[must_use]
pub fn weights_of(earned: impl IntoIterator<Item = (Address, u64)>) -> Vec<(Address, u64)> {
    let mut weights = alloc::collections::BTreeMap::<Address, u64>::new();
    for (contributor, weight) in earned {
        let sum = weights.entry(contributor).or_default();
        *sum = sum.saturating_add(weight).min(WEIGHT_LIMIT - 1);
    }
    let mut weights: Vec<(Address, u64)> = weights
        .into_iter()
        .filter(|&(contributor, weight)| weight > 0 && !contributor.is_zero())
        .collect();
    if weights.len() > EVIDENCE_MAX {
        weights.sort_by_key(|&(contributor, weight)| (core::cmp::Reverse(weight), contributor));
        weights.truncate(EVIDENCE_MAX);
        weights.sort_unstable();
    }
    weights
}

/// Divides the contributors' part into the pots for training, spans and
/// context, by the rule of [`shares()`]. A pot for which there is no evidence
/// falls to training.
///
/// # Errors
/// [`SharesError::Split`] if the basis points do not add up to 10,000,
/// [`SharesError::NoWeight`] if there is evidence for a pot of 0.
#[expect(clippy::missing_panics_doc, reason = "the expectation cannot fail")]
pub fn split_pots(
    part: u128,
    pots_bps: [u16; 3],
    evidence: &Evidence,
) -> Result<[u128; 3], SharesError> {
    split_total(&pots_bps)?;
    let [training, mut spans, mut context] = pots_bps.map(u64::from);
    let mut of_training = training;
    for (bps, list) in [
        (&mut spans, &evidence.spans),
        (&mut context, &evidence.context),
    ] {
        if list.is_empty() {
            of_training += core::mem::take(bps);
        } else if *bps == 0 {
            return Err(SharesError::NoWeight);
        }
    }
    let parts = shares(part, &[of_training, spans, context])?;
    Ok(parts.try_into().expect("three weights give three shares"))
}

/// Why lists are no evidence.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum EvidenceError {
    /// The sizes do not fit the bytes, or a list is longer than it may be.
    Size {
        /// Bytes given.
        n_bytes: usize,
    },
    /// A list has more than [`EVIDENCE_MAX`] contributors.
    TooMany {
        /// Which list.
        pot: Pot,
        /// How many there are.
        n_contributors: usize,
    },
    /// A contributor is not above the one before it, or its weight is 0 or 2⁶³
    /// or more.
    Entry {
        /// Which list.
        pot: Pot,
        /// Its position, from 0.
        position: usize,
    },
}

impl fmt::Display for EvidenceError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Size { n_bytes } => {
                write!(f, "{n_bytes} bytes are not two lists and an id")
            }
            Self::TooMany {
                pot,
                n_contributors,
            } => write!(
                f,
                "{n_contributors} contributors of {}, at most {EVIDENCE_MAX} are paid",
                pot.name()
            ),
            Self::Entry { pot, position } => write!(
                f,
                "contributor {position} of {} is not above the one before, or has no weight below 2^63",
                pot.name()
            ),
        }
    }
}

impl core::error::Error for EvidenceError {}

#[cfg(test)]
mod tests;
