//! Goal: a watcher finds every lie from what the court and the operator say,
//! whether the operator publishes its numbers or has to reveal them.
//! Method: claims told as the court's events tell them, one number changed.

use ol_contracts::court::posted_call;
use ol_poa::court::{is_lie, reveal};
use ol_poa::{Entry, Index, K};
use ol_types::{Address, Receipt, keccak256};

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

/// Pays [`POT_WEI`], to the unit that the halves leave over.
fn params(index: &CommittedIndex) -> Params {
    Params {
        baseHash: B256::repeat_byte(1),
        adapterHash: B256::repeat_byte(2),
        manifestHash: B256::repeat_byte(3),
        sketchRoot: index.id(),
        datanetIds: vec![B256::repeat_byte(4)],
        treasury: Address::repeat_byte(9),
        nullThreshold: THRESHOLD,
        priceInPerKTokens: 0,
        priceOutPerKTokens: 0,
        platformFee: 2 * POT_WEI,
        splitBps: ol_poa::DEFAULT_SPLIT_BPS,
        potsBps: [10_000, 0, 0],
    }
}

#[test]
fn every_part_of_a_claimed_receipt_is_compared() {
    let index = index();
    let params = params(&index);
    let receipt = Receipt {
        chain_id: 1,
        settlement: Address::ZERO,
        payer: Address::ZERO,
        request_id: B256::ZERO,
        model_id: B256::repeat_byte(7),
        base_hash: params.baseHash,
        adapter_hash: params.adapterHash,
        manifest_hash: params.manifestHash,
        sketch_root: params.sketchRoot,
        prompt_hash: B256::ZERO,
        response_hash: B256::ZERO,
        query_hash: query().hash(),
        evidence_hash: Evidence::default().hash(),
        tokens_in: 1,
        tokens_out: 1,
        fee_wei: 2 * POT_WEI,
        answered_at_s: 1,
    };
    let honest = Claim::compute(&index, &query(), THRESHOLD, POT_WEI);
    let told = Claimed {
        id: receipt.id(),
        modelId: receipt.model_id,
        ..claimed(&honest)
    };
    let check = |receipt: &Receipt, params: &Params, told: &Claimed| {
        verify_claim(&ClaimedReceipt {
            id: receipt.id(),
            receipt: &receipt.encode(),
            query: &query().to_bytes(),
            index: &index,
            params,
            claimed: told,
        })
    };
    let payout = check(&receipt, &params, &told).unwrap();
    assert_eq!(payout.split.contributors_wei, POT_WEI);
    let paid = payout.pots[0]
        .credits
        .iter()
        .map(|credit| credit.amount_wei);
    assert_eq!(paid.sum::<u128>(), POT_WEI);

    for lying in lies(&index, &honest) {
        let told = Claimed {
            posted: posted_call(&lying.posted()),
            ..told.clone()
        };
        let found = check(&receipt, &params, &told).unwrap_err();
        assert!(found.part.ends_with("root"), "{found}");
    }
    type Change = fn(&mut Receipt, &mut Params, &mut Claimed);
    let cases: [(&str, Change); 10] = [
        ("evidence", |receipt, _, _| {
            receipt.evidence_hash = B256::ZERO
        }),
        ("base_hash", |receipt, _, _| receipt.base_hash = B256::ZERO),
        ("query", |receipt, _, _| receipt.query_hash = B256::ZERO),
        ("fee", |_, params, _| params.platformFee += 1),
        ("claimed receipt", |_, _, told| told.id = B256::ZERO),
        ("claimed model", |_, _, told| told.modelId = B256::ZERO),
        ("claimed query", |_, _, told| told.query = vec![1; K].into()),
        ("claimed pot", |_, _, told| told.pot += 1),
        ("nets: sum of weights", |_, params, _| {
            params.nullThreshold += 1
        }),
        ("cutoff: remainder", |_, _, told| {
            told.posted.cutoffRemainder += 1
        }),
    ];
    for (part, change) in cases {
        let (mut receipt, mut params, mut told) = (receipt.clone(), params.clone(), told.clone());
        change(&mut receipt, &mut params, &mut told);
        if part == "evidence" || part == "base_hash" {
            told.id = receipt.id();
        }
        let found = check(&receipt, &params, &told).unwrap_err();
        assert_eq!(found.part, part, "{found}");
    }
}
