//! Claims as `AttributionCourt` takes and tells them; see `specs/court.md`.

use alloy_primitives::B256;
use ol_poa::court::{Cutoff, Net, Node, Posted};

use crate::bindings::AttributionCourt;

/// What the operator sends: totals that must agree with each other are in it
/// once.
#[must_use]
pub fn posted_call(posted: &Posted) -> AttributionCourt::Posted {
    AttributionCourt::Posted {
        scoresHash: posted.scores.hash,
        netsHash: posted.nets.hash,
        sharesHash: posted.shares.hash,
        net: posted.nets.value.net,
        weight: posted.nets.value.weight,
        cutoffRemainder: posted.cutoff.remainder,
        cutoffPosition: posted.cutoff.position,
    }
}

/// What the court holds the operator to, from what was sent. `pot` is in wei.
#[must_use]
pub fn posted(sent: &AttributionCourt::Posted, pot: u128) -> Posted {
    fn node<V>(hash: B256, value: V) -> Node<V> {
        Node { hash, value }
    }
    let totals = Net {
        net: sent.net,
        weight: sent.weight,
    };
    Posted {
        scores: node(sent.scoresHash, sent.net),
        nets: node(sent.netsHash, totals),
        shares: node(sent.sharesHash, if sent.weight == 0 { 0 } else { pot }),
        cutoff: Cutoff {
            remainder: sent.cutoffRemainder,
            position: sent.cutoffPosition,
        },
    }
}
