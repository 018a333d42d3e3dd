//! Recomputing a claim of the optimistic tier from public data alone.

use alloy_sol_types::SolEvent;
use ol_contracts::bindings::AttributionCourt::{Claimed, Revealed as RevealedEvent};
use ol_contracts::bindings::ModelRegistry::Params;
use ol_contracts::court::posted;
use ol_poa::court::{
    Claim, CommittedIndex, Finding, Known, Net, Node, Nodes, Posted, Revealed, SumTree, Tree,
    Value, find,
};
use ol_poa::{Evidence, QuerySketch};
use ol_types::B256;

use super::{Difference, Payout, check_model, contributors_wei, payout, read, same, unusable};

/// Everything public about one claim.
#[derive(Debug, Clone)]
pub struct ClaimEvidence<'a> {
    /// The index that the model commits to, from the objects.
    pub index: &'a CommittedIndex,
    /// What the model names it by, from the chain.
    pub index_id: B256,
    /// The model's null threshold, from the chain.
    pub null_threshold: u64,
    /// The claim as the court told it.
    pub claimed: &'a Claimed,
    /// The numbers that the operator published, if the object is at hand.
    pub data: Option<&'a [u8]>,
    /// What the operator has revealed of this claim, from the chain.
    pub revealed: &'a [RevealedEvent],
}

/// What a watcher does about a claim.
///
/// # Errors
/// A [`Difference`] if the index is not the model's or the query is none: then
/// nothing can be said about the claim.
pub fn judge(evidence: &ClaimEvidence<'_>) -> Result<Finding, Difference> {
    let ClaimEvidence { index, claimed, .. } = evidence;
    same("index", index.id(), evidence.index_id)?;
    let query =
        QuerySketch::from_bytes(&claimed.query).map_err(|error| unusable("query", &error))?;
    let posted = posted(&claimed.posted, claimed.pot);
    let published = evidence
        .data
        .and_then(|data| Claim::from_bytes(index, evidence.null_threshold, posted.cutoff, data));
    let (scores, nets, shares) = known(&posted, published, evidence.revealed);
    Ok(find(
        index,
        &query,
        evidence.null_threshold,
        claimed.pot,
        &posted,
        Known {
            scores: &scores,
            nets: &nets,
            shares: &shares,
        },
    ))
}

/// Everything public about a receipt that is claimed.
#[derive(Debug, Clone, Copy)]
pub struct ClaimedReceipt<'a> {
    /// The id the receipt is known by.
    pub id: B256,
    /// The encoded receipt, from the objects.
    pub receipt: &'a [u8],
    /// The codes of the query sketch, from the objects.
    pub query: &'a [u8],
    /// The index that the model commits to, from the objects.
    pub index: &'a CommittedIndex,
    /// The version of the model that it was claimed for, from the chain.
    pub params: &'a Params,
    /// The claim as the court told it.
    pub claimed: &'a Claimed,
}

/// Recomputes a receipt of the optimistic tier, and every number of its claim, and
/// compares them with what is on chain.
///
/// # Errors
/// The first [`Difference`], from the receipt's own bytes to the claim's trees.
pub fn verify_claim(found: &ClaimedReceipt<'_>) -> Result<Payout, Difference> {
    let ClaimedReceipt {
        index,
        params,
        claimed,
        ..
    } = found;
    let (receipt, query) = read(found.id, found.receipt, found.query)?;
    let none = Evidence::default();
    same("evidence", none.hash(), receipt.evidence_hash)?;
    check_model(&receipt, params)?;
    same("index", index.id(), receipt.sketch_root)?;
    let scored = index.index().weights(params.nullThreshold, &query);
    let payout = payout(&receipt, &scored, params, &none)?;
    same("claimed receipt", receipt.id(), claimed.id)?;
    same("claimed model", receipt.model_id, claimed.modelId)?;
    let sketch = |bytes: &[u8]| alloy_primitives::hex::encode(bytes);
    same("claimed query", sketch(found.query), sketch(&claimed.query))?;
    let pot = contributors_wei(receipt.fee_wei, params.splitBps)?;
    same("claimed pot", pot, claimed.pot)?;

    let ours = Claim::compute(index, &query, params.nullThreshold, pot).posted();
    let theirs = posted(&claimed.posted, claimed.pot);
    same("scores: sum", ours.scores.value, theirs.scores.value)?;
    same("scores: root", ours.scores.hash, theirs.scores.hash)?;
    same(
        "nets: sum of weights",
        ours.nets.value.weight,
        theirs.nets.value.weight,
    )?;
    same("nets: root", ours.nets.hash, theirs.nets.hash)?;
    same("shares: root", ours.shares.hash, theirs.shares.hash)?;
    same(
        "cutoff: remainder",
        ours.cutoff.remainder,
        theirs.cutoff.remainder,
    )?;
    same(
        "cutoff: position",
        ours.cutoff.position,
        theirs.cutoff.position,
    )?;
    Ok(payout)
}

/// A tree as far as it is known: whole, if the published numbers lead to the
/// posted root, else what was revealed.
struct Seen<V> {
    published: Option<SumTree<V>>,
    revealed: Revealed<V>,
}

impl<V: Value> Seen<V> {
    fn new(root: Node<V>, tree: Option<SumTree<V>>) -> Self {
        Self {
            published: tree.filter(|tree| tree.root().hash == root.hash),
            revealed: Revealed::default(),
        }
    }
}

impl<V: Value> Nodes<V> for Seen<V> {
    fn node(&self, level: u32, position: u32) -> Option<Node<V>> {
        match &self.published {
            Some(tree) => tree.node(level, position),
            None => self.revealed.node(level, position),
        }
    }
}

fn known(
    posted: &Posted,
    published: Option<Claim>,
    revealed: &[RevealedEvent],
) -> (Seen<i64>, Seen<Net>, Seen<u128>) {
    let (scores, nets, shares) = published.map_or((None, None, None), |claim| {
        (Some(claim.scores), Some(claim.nets), Some(claim.shares))
    });
    let mut scores = Seen::new(posted.scores, scores);
    let mut nets = Seen::new(posted.nets, nets);
    let mut shares = Seen::new(posted.shares, shares);
    for event in revealed {
        let (level, position, row) = (event.level.into(), event.position, &event.row);
        // The court has checked the row; one of a wrong size reveals nothing.
        match Tree::from_number(event.tree) {
            Some(Tree::Scores) => scores.revealed.insert(level, position, row),
            Some(Tree::Nets) => nets.revealed.insert(level, position, row),
            Some(Tree::Shares) => shares.revealed.insert(level, position, row),
            None => false,
        };
    }
    (scores, nets, shares)
}

/// Reads an event of the court from the logs of a claim; `None` for any other.
#[must_use]
pub fn event<E: SolEvent>(log: &alloy_primitives::Log) -> Option<E> {
    (log.topics().first() == Some(&E::SIGNATURE_HASH))
        .then(|| E::decode_log_data(&log.data).ok())
        .flatten()
}

#[cfg(test)]
mod tests;
