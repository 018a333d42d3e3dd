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

use crate::shares::{SharesError, WEIGHT_LIMIT, divide, shares, split_total};

/// Most contributors of one list: what a settling transaction can credit.
pub const EVIDENCE_MAX: usize = 256;

/// Bytes of one contributor with its weight.
pub const EVIDENCE_ENTRY_SIZE_BYTES: usize = 20 + 8;

/// Bytes of the longest encoding: two sizes, two lists, an id.
pub const EVIDENCE_SIZE_BYTES_MAX: usize =
    8 + 2 * (TOTAL_SIZE_BYTES + EVIDENCE_MAX * EVIDENCE_ENTRY_SIZE_BYTES) + 32;

/// Bytes of a list's total, before its contributors.
const TOTAL_SIZE_BYTES: usize = 8;

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

/// By what a pot is shared, and how much of it is earned.
///
/// The pot pays what the weights are of the total, and leaves the rest to
/// training: so evidence that is hardly any earns hardly anything.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Earned {
    /// Contributors with their weights: strictly ascending by address, none of
    /// weight 0, none of 2⁶³ or more, at most [`EVIDENCE_MAX`].
    pub weights: Vec<(Address, u64)>,
    /// What the weights would add up to if all of the pot were earned: at least
    /// what they do, and 0 if there are none.
    pub total: u64,
}

impl Earned {
    /// Nothing, if there are no weights.
    #[must_use]
    pub fn new(weights: Vec<(Address, u64)>, total: u64) -> Self {
        let total = if weights.is_empty() { 0 } else { total };
        Self { weights, total }
    }

    /// What the weights add up to.
    fn sum(&self) -> u128 {
        self.weights
            .iter()
            .map(|&(_, weight)| u128::from(weight))
            .sum()
    }

    /// What of a pot is paid: `⌊pot · sum / total⌋`, all of which [`shares()`]
    /// then divides by the weights.
    fn part_of(&self, pot: u128) -> u128 {
        let sum = u64::try_from(self.sum()).expect("the sum is at most the total");
        match self.total {
            0 => 0,
            total => divide(pot, sum, total.into()).0,
        }
    }

    fn check(&self, pot: Pot) -> Result<(), EvidenceError> {
        if self.weights.len() > EVIDENCE_MAX {
            let n_contributors = self.weights.len();
            return Err(EvidenceError::TooMany {
                pot,
                n_contributors,
            });
        }
        let mut previous = Address::ZERO;
        for (position, &(contributor, weight)) in self.weights.iter().enumerate() {
            if contributor <= previous || weight == 0 || weight >= WEIGHT_LIMIT {
                return Err(EvidenceError::Entry { pot, position });
            }
            previous = contributor;
        }
        let (sum, total) = (self.sum(), self.total);
        if sum > total.into() || (sum == 0 && total > 0) {
            return Err(EvidenceError::Total { pot, sum, total });
        }
        Ok(())
    }

    /// The total, then contributors with their weights; nothing if there are none.
    fn encode(&self) -> Vec<u8> {
        if self.weights.is_empty() {
            return Vec::new();
        }
        let size_bytes = TOTAL_SIZE_BYTES + self.weights.len() * EVIDENCE_ENTRY_SIZE_BYTES;
        let mut bytes = Vec::with_capacity(size_bytes);
        bytes.extend(self.total.to_be_bytes());
        for (contributor, weight) in &self.weights {
            bytes.extend(contributor);
            bytes.extend(weight.to_be_bytes());
        }
        bytes
    }

    fn decode(bytes: &[u8]) -> Option<Self> {
        if bytes.is_empty() {
            return Some(Self::default());
        }
        let (total, entries) = bytes.split_first_chunk::<TOTAL_SIZE_BYTES>()?;
        let (entries, rest) = entries.as_chunks::<EVIDENCE_ENTRY_SIZE_BYTES>();
        let read = |entry: &[u8; EVIDENCE_ENTRY_SIZE_BYTES]| {
            let (contributor, weight) = entry.split_first_chunk::<20>()?;
            let weight = u64::from_be_bytes(weight.try_into().ok()?);
            Some((Address::from(contributor), weight))
        };
        if !rest.is_empty() || !(1..=EVIDENCE_MAX).contains(&entries.len()) {
            return None;
        }
        Some(Self {
            weights: entries.iter().map(read).collect::<Option<_>>()?,
            total: u64::from_be_bytes(*total),
        })
    }
}

/// Who is paid for spans and context, and the object that shows why. Both lists
/// are as [`Earned`] says.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Evidence {
    spans: Earned,
    context: Earned,
    object: B256,
}

impl Evidence {
    /// The evidence of two lists and the id of an object; zero if there is no
    /// object.
    ///
    /// # Errors
    /// [`EvidenceError`] if a list is not as [`Earned`] says.
    pub fn new(spans: Earned, context: Earned, object: B256) -> Result<Self, EvidenceError> {
        spans.check(Pot::Spans)?;
        context.check(Pot::Context)?;
        Ok(Self {
            spans,
            context,
            object,
        })
    }

    /// Who is paid for words that stand in the answer.
    #[must_use]
    pub const fn spans(&self) -> &Earned {
        &self.spans
    }

    /// Who is paid for passages that the model had before it.
    #[must_use]
    pub const fn context(&self) -> &Earned {
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

    /// The lists as a contract takes them: empty, or the total (8 bytes), then
    /// address and weight (28 each).
    #[must_use]
    pub fn lists(&self) -> [Vec<u8>; 2] {
        [self.spans.encode(), self.context.encode()]
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
            Earned::decode(spans).ok_or(size.clone())?,
            Earned::decode(context).ok_or(size)?,
            B256::from_slice(object),
        )
    }
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
/// context, by the rule of [`shares()`]. Of the pots for spans and context, what
/// is not earned falls to training: all of it without evidence.
///
/// # Errors
/// [`SharesError::Split`] if the basis points do not add up to 10,000,
/// [`SharesError::NoWeight`] if there is evidence for a pot of 0.
pub fn split_pots(
    part: u128,
    pots_bps: [u16; 3],
    evidence: &Evidence,
) -> Result<[u128; 3], SharesError> {
    split_total(&pots_bps)?;
    let pots = shares(part, &pots_bps.map(u64::from))?;
    let mut paid = [part, 0, 0];
    for (pot, earned) in [
        (Pot::Spans, &evidence.spans),
        (Pot::Context, &evidence.context),
    ] {
        let pot = pot as usize;
        if pots_bps[pot] == 0 && !earned.weights.is_empty() {
            return Err(SharesError::NoWeight);
        }
        // At most the pot, and the pots add up to the part.
        paid[pot] = earned.part_of(pots[pot]);
        paid[0] -= paid[pot];
    }
    Ok(paid)
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
    /// A list's weights are more than its total, or it has a total alone.
    Total {
        /// Which list.
        pot: Pot,
        /// What the weights add up to.
        sum: u128,
        /// What they are said to be at most.
        total: u64,
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
            Self::Total { pot, sum, total } => write!(
                f,
                "weights of {} add up to {sum}, of a total of {total}",
                pot.name()
            ),
        }
    }
}

impl core::error::Error for EvidenceError {}

#[cfg(test)]
mod tests;
