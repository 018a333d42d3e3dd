//! Recomputing a receipt from public data alone.
//!
//! Pure: bytes in, a verdict out. Where the bytes come from (objects, the
//! chain, a file somebody sent) is the caller's business, and nothing that the
//! gateway says is trusted. All numbers come from `ol-poa`, the code the
//! chain's precompiles run too.

mod claim;

use std::fmt::{self, Display};

use ol_contracts::bindings::ModelRegistry::Params;
use ol_contracts::settlement::{Credit, PotCredits, Settlement};
use ol_poa::{Index, Pot, QuerySketch, SharesError, split_pots};
use ol_spans::SpanIndex;
use ol_types::{Address, B256, Receipt, keccak256};

use crate::evidence::check;

pub use claim::{ClaimEvidence, ClaimedReceipt, event, judge, verify_claim};

/// Whether this version of a model made the receipt: its base, adapter,
/// manifest and index are the receipt's, and the fee is its price.
#[must_use]
pub fn is_made_by(receipt: &Receipt, params: &Params) -> bool {
    params.baseHash == receipt.base_hash
        && params.adapterHash == receipt.adapter_hash
        && params.manifestHash == receipt.manifest_hash
        && params.sketchRoot == receipt.sketch_root
        && params.fee_wei(receipt.tokens_in, receipt.tokens_out) == Some(receipt.fee_wei)
}

/// The four parts of a fee, in wei; they add up to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Split {
    /// The platform's part.
    pub platform_wei: u128,
    /// The model owner's part.
    pub model_wei: u128,
    /// The stakers' part.
    pub stakers_wei: u128,
    /// The contributors' part, all together.
    pub contributors_wei: u128,
}

/// Where a fee goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Payout {
    /// The fee.
    pub fee_wei: u128,
    /// Its four parts.
    pub split: Split,
    /// The contributors' part: training, spans and context, by [`Pot`]'s numbers.
    pub pots: [PotCredits; 3],
    /// The pot for training, where nobody's data moved the answer; else 0.
    pub treasury_wei: u128,
}

impl Payout {
    /// One pot of the contributors' part.
    #[must_use]
    pub const fn pot(&self, pot: Pot) -> &PotCredits {
        &self.pots[pot as usize]
    }
}

impl From<&Settlement> for Payout {
    fn from(settled: &Settlement) -> Self {
        let is_treasury = settled.treasury.is_some();
        Self {
            fee_wei: settled.fee_wei,
            split: Split {
                platform_wei: settled.platform_wei,
                model_wei: settled.model_wei,
                stakers_wei: settled.stakers_wei,
                contributors_wei: settled.contributors_wei(),
            },
            pots: settled.pots.clone(),
            treasury_wei: if is_treasury {
                settled.pots[Pot::Training as usize].amount_wei
            } else {
                0
            },
        }
    }
}

/// Everything public about one receipt.
#[derive(Debug, Clone)]
pub struct Evidence<'a> {
    /// The id the receipt is known by.
    pub id: B256,
    /// The encoded receipt, from the objects.
    pub receipt: &'a [u8],
    /// The codes of the query sketch, from the objects.
    pub query: &'a [u8],
    /// The encoded evidence, from the objects.
    pub evidence: &'a [u8],
    /// The object that the evidence names, from the objects; empty if it names none.
    pub shown: &'a [u8],
    /// The spans of the model's datanet, if an index is at hand: every span that
    /// is paid for is then found again.
    pub spans: Option<&'a SpanIndex>,
    /// The chunks of the sketch index, from the chain, without the leading STOP byte.
    pub chunks: &'a [&'a [u8]],
    /// The version of the model that made the receipt, from the chain; see
    /// [`is_made_by`].
    pub params: &'a Params,
    /// What the settlement did, from the chain's events.
    pub settled: &'a Settlement,
}

/// The first thing that does not agree.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub struct Difference {
    /// What differs, by name: `receipt`, `id`, `query`, `base_hash`, …,
    /// `fee`, `split.platform`, …, `spans`, `spans: contributors`,
    /// `spans: weight of 0x…`, `spans: amount of 0x…`, ….
    pub part: String,
    /// What recomputing gives.
    pub recomputed: String,
    /// What was found.
    pub found: String,
}

impl Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            part,
            recomputed,
            found,
        } = self;
        write!(f, "{part} differs: recomputed {recomputed}, found {found}")
    }
}

/// What the contributors of an answer share, in wei.
///
/// # Errors
/// A [`Difference`] if the parts do not add up.
pub fn contributors_wei(fee_wei: u128, split_bps: [u16; 4]) -> Result<u128, Difference> {
    let [_, _, _, contributors_wei] =
        ol_poa::split_fee(fee_wei, split_bps).map_err(|error| unusable("split", &error))?;
    Ok(contributors_wei)
}

/// Recomputes where the fee of an answer goes. `scored` are the contributors with
/// their weights by training, in any tier ([`Index::weights`]).
///
/// # Errors
/// A [`Difference`] if the terms are no registered ones: parts that do not add
/// up, or prices out of range.
pub fn payout(
    receipt: &Receipt,
    scored: &[(Address, u64)],
    params: &Params,
    evidence: &ol_poa::Evidence,
) -> Result<Payout, Difference> {
    let fee_wei = params.fee_wei(receipt.tokens_in, receipt.tokens_out);
    same(
        "fee",
        fee_wei.map_or_else(|| "a fee out of range".to_owned(), wei),
        wei(receipt.fee_wei),
    )?;
    let parts = ol_poa::split_fee(receipt.fee_wei, params.splitBps);
    let [platform_wei, model_wei, stakers_wei, contributors_wei] =
        parts.map_err(|error| unusable("split", &error))?;
    let split = Split {
        platform_wei,
        model_wei,
        stakers_wei,
        contributors_wei,
    };
    let pots_wei = split_pots(contributors_wei, params.potsBps, evidence);
    let pots_wei = pots_wei.map_err(|error| unusable("pots", &error))?;
    let [spans, context] = [evidence.spans(), evidence.context()];
    let weights = [scored, &spans.weights, &context.weights];
    let mut pots = <[PotCredits; 3]>::default();
    for ((pot, amount_wei), weights) in pots.iter_mut().zip(pots_wei).zip(weights) {
        *pot = divide(amount_wei, weights)?;
    }
    let training = &pots[Pot::Training as usize];
    let is_treasury = training.credits.is_empty();
    Ok(Payout {
        fee_wei: receipt.fee_wei,
        split,
        treasury_wei: if is_treasury { training.amount_wei } else { 0 },
        pots,
    })
}

/// A pot divided; without a weight nobody has a part.
fn divide(amount_wei: u128, weights: &[(Address, u64)]) -> Result<PotCredits, Difference> {
    let values: Vec<u64> = weights.iter().map(|&(_, weight)| weight).collect();
    let amounts = match ol_poa::shares(amount_wei, &values) {
        Ok(amounts) => amounts,
        Err(SharesError::NoWeight) => Vec::new(),
        Err(error) => return Err(unusable("shares", &error)),
    };
    let credit = |(&(contributor, weight), amount_wei)| Credit {
        contributor,
        weight,
        amount_wei,
    };
    Ok(PotCredits {
        amount_wei,
        credits: weights.iter().zip(amounts).map(credit).collect(),
    })
}

/// Recomputes a receipt and compares it with what the chain did.
///
/// # Errors
/// The first [`Difference`], from the receipt's own bytes to the last payment.
pub fn verify(evidence: &Evidence<'_>) -> Result<Payout, Difference> {
    let (receipt, query) = read(evidence.id, evidence.receipt, evidence.query)?;
    same(
        "evidence",
        keccak256(evidence.evidence),
        receipt.evidence_hash,
    )?;
    let lists = ol_poa::Evidence::from_bytes(evidence.evidence)
        .map_err(|error| unusable("evidence", &error))?;
    if lists.object().is_some() || lists != ol_poa::Evidence::default() {
        check(&lists, evidence.shown, receipt.tokens_out, evidence.spans)?;
    }

    let (params, settled) = (evidence.params, evidence.settled);
    check_model(&receipt, params)?;
    let index =
        Index::from_bytes(evidence.chunks.concat()).map_err(|error| unusable("index", &error))?;
    same("sketch_root", index.root(), receipt.sketch_root)?;

    let scored = index.weights(params.nullThreshold, &query);
    let payout = payout(&receipt, &scored, params, &lists)?;
    same("settled receipt", evidence.id, settled.receipt_id)?;
    same("settled model", receipt.model_id, settled.model_id)?;
    same("settled payer", receipt.payer, settled.payer)?;
    let treasury = payout
        .pot(Pot::Training)
        .credits
        .is_empty()
        .then_some(params.treasury);
    let name =
        |account: Option<Address>| account.map_or_else(|| "none".to_owned(), |a| a.to_string());
    compare(&payout, &Payout::from(settled))?;
    same("treasury", name(treasury), name(settled.treasury))?;
    Ok(payout)
}

/// A receipt and its query sketch, if their bytes are what the ids say.
fn read(id: B256, receipt: &[u8], query: &[u8]) -> Result<(Receipt, QuerySketch), Difference> {
    let bytes = receipt;
    let receipt = Receipt::decode(bytes).map_err(|error| unusable("receipt", &error))?;
    same("id", keccak256(bytes), id)?;
    same("query", keccak256(query), receipt.query_hash)?;
    let query = QuerySketch::from_bytes(query).map_err(|error| unusable("query", &error))?;
    Ok((receipt, query))
}

/// Whether the receipt names what its model's version is made of.
fn check_model(receipt: &Receipt, params: &Params) -> Result<(), Difference> {
    same("base_hash", params.baseHash, receipt.base_hash)?;
    same("adapter_hash", params.adapterHash, receipt.adapter_hash)?;
    same("manifest_hash", params.manifestHash, receipt.manifest_hash)?;
    same("sketch_root", params.sketchRoot, receipt.sketch_root)
}

/// Compares a recomputed payout with the one found.
///
/// # Errors
/// The first [`Difference`].
pub fn compare(recomputed: &Payout, found: &Payout) -> Result<(), Difference> {
    same("fee", wei(recomputed.fee_wei), wei(found.fee_wei))?;
    let (ours, theirs) = (recomputed.split, found.split);
    same(
        "split.platform",
        wei(ours.platform_wei),
        wei(theirs.platform_wei),
    )?;
    same("split.model", wei(ours.model_wei), wei(theirs.model_wei))?;
    same(
        "split.stakers",
        wei(ours.stakers_wei),
        wei(theirs.stakers_wei),
    )?;
    same(
        "split.contributors",
        wei(ours.contributors_wei),
        wei(theirs.contributors_wei),
    )?;
    for pot in Pot::ALL {
        compare_pot(pot, recomputed.pot(pot), found.pot(pot))?;
    }
    same(
        "treasury",
        wei(recomputed.treasury_wei),
        wei(found.treasury_wei),
    )
}

fn compare_pot(pot: Pot, ours: &PotCredits, theirs: &PotCredits) -> Result<(), Difference> {
    let pot = pot.name();
    same(pot, wei(ours.amount_wei), wei(theirs.amount_wei))?;
    let name = |credits: &[Credit], at: usize| {
        credits
            .get(at)
            .map_or_else(|| "nobody".to_owned(), |c| c.contributor.to_string())
    };
    for at in 0..ours.credits.len().max(theirs.credits.len()) {
        same(
            &format!("{pot}: contributors"),
            name(&ours.credits, at),
            name(&theirs.credits, at),
        )?;
    }
    for (ours, theirs) in ours.credits.iter().zip(&theirs.credits) {
        let contributor = ours.contributor;
        same(
            &format!("{pot}: weight of {contributor}"),
            ours.weight,
            theirs.weight,
        )?;
        same(
            &format!("{pot}: amount of {contributor}"),
            wei(ours.amount_wei),
            wei(theirs.amount_wei),
        )?;
    }
    Ok(())
}

pub(crate) fn same<T: PartialEq + Display>(
    part: &str,
    recomputed: T,
    found: T,
) -> Result<(), Difference> {
    if recomputed == found {
        return Ok(());
    }
    Err(Difference {
        part: part.to_owned(),
        recomputed: recomputed.to_string(),
        found: found.to_string(),
    })
}

pub(crate) fn unusable(part: &str, error: &dyn Display) -> Difference {
    Difference {
        part: part.to_owned(),
        recomputed: "a valid one".to_owned(),
        found: format!("one that is not: {error}"),
    }
}

fn wei(amount: u128) -> String {
    format!("{amount} wei")
}

#[cfg(test)]
mod tests;
