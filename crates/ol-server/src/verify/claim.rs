//! Recomputing a claim of the optimistic tier from public data alone.

use alloy_sol_types::SolEvent;
use ol_contracts::bindings::AttributionCourt::{Claimed, Revealed as RevealedEvent};
use ol_contracts::court::posted;
use ol_poa::QuerySketch;
use ol_poa::court::{
    Claim, CommittedIndex, Finding, Known, Net, Node, Nodes, Posted, Revealed, SumTree, Tree,
    Value, find,
};
use ol_types::B256;

use super::{Difference, same, unusable};

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
