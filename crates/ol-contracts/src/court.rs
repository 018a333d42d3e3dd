//! Claims as `AttributionCourt` takes and tells them; see `specs/court.md`.

use alloy_primitives::B256;
use ol_poa::court::{CommittedIndex, Cutoff, Net, Node, Posted};

use crate::bindings::AttributionCourt;

/// Where a claim is on its way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ClaimStatus {
    /// It can be challenged.
    Pending,
    /// Its window is over, and it pays.
    Paid,
    /// It was refuted, and is to be closed.
    Refuted,
    /// It was refuted, and its fee is back at the payer.
    Closed,
}

impl ClaimStatus {
    /// The status that the court keeps as this number; `None` if there is no claim.
    #[must_use]
    pub const fn of(number: u8) -> Option<Self> {
        Some(match number {
            0 => return None,
            1 => Self::Pending,
            2 => Self::Paid,
            3 => Self::Refuted,
            _ => Self::Closed,
        })
    }
}

/// What commits to an index.
#[must_use]
pub fn commit_call(index: &CommittedIndex) -> AttributionCourt::commitIndexCall {
    AttributionCourt::commitIndexCall {
        object: index.object(),
        root: index.root(),
        nEntries: index.n_entries(),
        rangesRoot: index.ranges_root(),
        nContributors: index.n_contributors(),
    }
}

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
