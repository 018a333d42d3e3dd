//! Goal: the commitments and verdicts of an independent implementation.
//! Method: `fixtures/poa/court.json`, written by `fixtures/poa/make_court.py`,
//! which shares no code with this crate.

use alloy_primitives::{B256, Bytes, hex};
use ol_poa::QuerySketch;
use ol_poa::court::{Claim, CommittedIndex, Cutoff, is_lie};
use serde::Deserialize;

#[derive(Deserialize)]
struct Vectors {
    cases: Vec<Case>,
}

#[derive(Deserialize)]
struct Case {
    n_entries: usize,
    n_contributors: u32,
    query: String,
    null_threshold: u64,
    pot: String,
    index_root: B256,
    ranges_root: B256,
    id: B256,
    nodes: [Bytes; 3],
    roots: [B256; 3],
    cutoff_remainder: u64,
    cutoff_position: u32,
    shares: Vec<String>,
    steps: Vec<Step>,
}

#[derive(Deserialize)]
struct Step {
    name: String,
    lie: bool,
    roots: [B256; 3],
    step: Bytes,
}

const ENTRIES: &[u8] = include_bytes!("../../../fixtures/poa/entries.bin");
const VECTORS: &str = include_str!("../../../fixtures/poa/court.json");

#[test]
fn commitments_and_verdicts() {
    let Vectors { cases } = serde_json::from_str(VECTORS).expect("the fixture has the shape above");
    assert!(!cases.is_empty());
    for case in cases {
        let entries = ENTRIES[..case.n_entries * ol_poa::ENTRY_SIZE_BYTES].to_vec();
        let index = CommittedIndex::from_bytes(entries).unwrap();
        assert_eq!(index.n_contributors(), case.n_contributors);
        assert_eq!(index.root(), case.index_root);
        assert_eq!(index.ranges_root(), case.ranges_root);
        assert_eq!(index.id(), case.id);

        let query = QuerySketch::from_bytes(&hex::decode(case.query).unwrap()).unwrap();
        let pot = case.pot.parse().unwrap();
        let claim = Claim::compute(&index, &query, case.null_threshold, pot);
        let cutoff = Cutoff {
            remainder: case.cutoff_remainder,
            position: case.cutoff_position,
        };
        assert_eq!(claim.cutoff, cutoff);
        let posted = claim.posted();
        let nodes = [
            posted.scores.encode(),
            posted.nets.encode(),
            posted.shares.encode(),
        ];
        assert_eq!(nodes.map(Bytes::from), case.nodes);
        assert_eq!(posted.roots(), case.roots);
        for (at, share) in (0..).zip(&case.shares) {
            assert_eq!(claim.shares.node(0, at).unwrap().value.to_string(), *share);
        }

        let honest = posted.terms(&index, query.hash(), case.null_threshold, pot);
        for Step {
            name,
            lie,
            roots,
            step,
        } in case.steps
        {
            let mut terms = honest;
            terms.roots = roots;
            assert_eq!(is_lie(&terms, &step), Ok(lie), "{name}");
        }
    }
}
