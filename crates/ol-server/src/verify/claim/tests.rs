//! Goal: a watcher finds every lie from what the court and the operator say,
//! whether the operator publishes its numbers or has to reveal them.
//! Method: claims told as the court's events tell them, one number changed.

use ol_contracts::court::posted_call;
use ol_poa::court::{is_lie, reveal};
use ol_poa::{Entry, Index, K};
use ol_types::{Address, keccak256};

use super::*;

const THRESHOLD: u64 = 7;
const POT_WEI: u128 = 1_000_000_007;

fn index() -> CommittedIndex {
    let entry = |cluster: u32| Entry {
        contributor: Address::left_padding_from(&(cluster % 9).to_be_bytes()),
        record: keccak256(cluster.to_be_bytes()),
        cluster,
        scale: 2,
        codes: codes(cluster).map(|code| code % 8),
    };
    let index = Index::new((0..70).map(entry).collect()).unwrap();
    CommittedIndex::from_bytes(index.as_bytes().to_vec()).unwrap()
}

fn codes(seed: u32) -> [i8; K] {
    std::array::from_fn(|at| {
        let hash = keccak256([&seed.to_be_bytes()[..], &at.to_be_bytes()].concat());
        hash[0].cast_signed().max(-127)
    })
}

fn query() -> QuerySketch {
    QuerySketch::new(codes(1_000)).unwrap()
}

fn claimed(claim: &Claim) -> Claimed {
    Claimed {
        id: B256::ZERO,
        modelId: B256::ZERO,
        operator: Address::ZERO,
        version: 1,
        deadline: 0,
        pot: POT_WEI,
        query: query().to_bytes().to_vec().into(),
        posted: posted_call(&claim.posted()),
        data: B256::ZERO,
    }
}

fn judge_with(
    index: &CommittedIndex,
    claimed: &Claimed,
    data: Option<&[u8]>,
    revealed: &[RevealedEvent],
) -> Finding {
    judge(&ClaimEvidence {
        index,
        index_id: index.id(),
        null_threshold: THRESHOLD,
        claimed,
        data,
        revealed,
    })
    .unwrap()
}

/// Claims whose totals agree and one of whose numbers is another: two scores of
/// one contributor, two nets, two shares.
fn lies(index: &CommittedIndex, honest: &Claim) -> Vec<Claim> {
    let bytes = honest.to_bytes(index);
    let (n, m) = (index.n_entries() as usize, index.n_contributors() as usize);
    let move_one = |from: usize, to: usize, size: usize| {
        let mut bytes = bytes.clone();
        for (at, by) in [(from, 1_i8), (to, -1)] {
            let number = &mut bytes[at..at + size];
            let mut wide = [0; 16];
            wide[16 - size..].copy_from_slice(number);
            let changed = u128::from_be_bytes(wide).wrapping_add_signed(by.into());
            number.copy_from_slice(&changed.to_be_bytes()[16 - size..]);
        }
        Claim::from_bytes(index, THRESHOLD, honest.cutoff, &bytes).unwrap()
    };
    let shares = 8 * (n + m);
    vec![
        move_one(8 * 33, 8 * 34, 8),
        move_one(8 * (n + 2), 8 * (n + 5), 8),
        move_one(shares + 16 * 3, shares + 16, 16),
    ]
}

#[test]
fn an_honest_claim_is_found_honest() {
    let index = index();
    let honest = Claim::compute(&index, &query(), THRESHOLD, POT_WEI);
    let told = claimed(&honest);
    for data in [None, Some(&honest.to_bytes(&index)[..]), Some(&[1, 2][..])] {
        assert_eq!(judge_with(&index, &told, data, &[]), Finding::Honest);
    }
}

#[test]
fn published_lies_are_refuted_at_once() {
    let index = index();
    let honest = Claim::compute(&index, &query(), THRESHOLD, POT_WEI);
    for lying in lies(&index, &honest) {
        let data = lying.to_bytes(&index);
        let found = judge_with(&index, &claimed(&lying), Some(&data), &[]);
        let Finding::Lie(step) = found else {
            panic!("{found:?}")
        };
        let terms = lying
            .posted()
            .terms(&index, query().hash(), THRESHOLD, POT_WEI);
        assert_eq!(is_lie(&terms, &step), Ok(true));
    }
}

#[test]
fn withheld_lies_are_revealed_level_by_level() {
    fn row<V: Value>(tree: &SumTree<V>, level: u32, position: u32) -> Vec<u8> {
        let row = tree.row_below(level, position).unwrap();
        row.iter().flat_map(Node::encode).collect()
    }
    let index = index();
    let honest = Claim::compute(&index, &query(), THRESHOLD, POT_WEI);
    for lying in lies(&index, &honest) {
        let told = claimed(&lying);
        let wrong_data = honest.to_bytes(&index);
        let mut events = Vec::new();
        loop {
            match judge_with(&index, &told, Some(&wrong_data), &events) {
                Finding::Lie(step) => {
                    let terms = lying
                        .posted()
                        .terms(&index, query().hash(), THRESHOLD, POT_WEI);
                    assert_eq!(is_lie(&terms, &step), Ok(true));
                    break;
                }
                Finding::Hidden {
                    tree,
                    level,
                    position,
                    ..
                } => {
                    let row = match tree {
                        Tree::Scores => row(&lying.scores, level, position),
                        Tree::Nets => row(&lying.nets, level, position),
                        Tree::Shares => row(&lying.shares, level, position),
                    };
                    assert!(reveal(tree, level, &row).is_ok());
                    events.push(RevealedEvent {
                        id: B256::ZERO,
                        challenger: Address::ZERO,
                        tree: tree as u8,
                        level: level.try_into().unwrap(),
                        position,
                        row: row.into(),
                    });
                    assert!(events.len() < 5);
                }
                Finding::Honest => panic!("a lie is called honest"),
            }
        }
        assert!(!events.is_empty());
    }
}

#[test]
fn another_index_or_no_query_is_told_apart_from_a_lie() {
    let index = index();
    let mut told = claimed(&Claim::compute(&index, &query(), THRESHOLD, POT_WEI));
    let judge_as = |index_id, claimed: &Claimed| {
        judge(&ClaimEvidence {
            index: &index,
            index_id,
            null_threshold: THRESHOLD,
            claimed,
            data: None,
            revealed: &[],
        })
        .unwrap_err()
        .part
    };
    assert_eq!(judge_as(B256::ZERO, &told), "index");
    told.query = vec![0x80; K].into();
    assert_eq!(judge_as(index.id(), &told), "query");
}
