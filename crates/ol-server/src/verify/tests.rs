//! Goal: an honest receipt matches, and any change of any part of the evidence
//! is found and named.

use ol_poa::Entry;
use proptest::prelude::*;

use super::*;
use crate::evidence::{Gathered, Passage, Sources, gather};

/// Owns what an [`Evidence`] borrows.
#[derive(Debug, Clone)]
struct Case {
    id: B256,
    receipt: Vec<u8>,
    query: Vec<u8>,
    evidence: Vec<u8>,
    shown: Vec<u8>,
    chunks: Vec<Vec<u8>>,
    params: Params,
    settled: Settlement,
}

impl Case {
    fn verify(&self) -> Result<Payout, Difference> {
        let chunks: Vec<&[u8]> = self.chunks.iter().map(Vec::as_slice).collect();
        verify(&Evidence {
            id: self.id,
            receipt: &self.receipt,
            query: &self.query,
            evidence: &self.evidence,
            shown: &self.shown,
            spans: None,
            chunks: &chunks,
            params: &self.params,
            settled: &self.settled,
        })
    }
}

/// 300 records of 7 contributors, some codes for and some against the answer.
fn case(seed: u8, null_threshold: u64) -> Case {
    case_with(seed, null_threshold, true)
}

/// Two passages of two contributors; spans have tests of their own.
fn passages() -> Gathered {
    let passage = |n: u8, drop_millinats| Passage {
        version: B256::repeat_byte(6),
        record: keccak256([n]),
        cluster: n.into(),
        contributor: Address::repeat_byte(n),
        start: 0,
        end: 40,
        drop_millinats,
    };
    let passages = [
        passage(3, 7_000),
        passage(9, 1_041),
        passage(3, 10),
        passage(2, 0),
    ];
    let tokenizer = crate::evidence::tests::tokenizer();
    gather(
        &[1; 99],
        &Sources {
            tokenizer: &tokenizer,
            spans: None,
            passages: &passages,
        },
    )
    .unwrap()
}

fn case_with(seed: u8, null_threshold: u64, has_evidence: bool) -> Case {
    let code = |a: u32, b: u32| {
        let hash = keccak256([&[seed][..], &a.to_be_bytes(), &b.to_be_bytes()].concat());
        hash[0].cast_signed().max(-127)
    };
    let entries = (0..300_u32).map(|cluster| Entry {
        contributor: Address::repeat_byte(u8::try_from(cluster % 7).unwrap() + 1),
        record: keccak256(cluster.to_be_bytes()),
        cluster,
        scale: u16::try_from(cluster).unwrap() + 1,
        codes: std::array::from_fn(|k| code(cluster, u32::try_from(k).unwrap()) % 8),
    });
    let index = Index::new(entries.collect()).unwrap();
    let codes = std::array::from_fn(|k| code(u32::MAX, u32::try_from(k).unwrap()));
    let query = QuerySketch::new(codes).unwrap();
    let params = Params {
        baseHash: B256::repeat_byte(1),
        adapterHash: B256::repeat_byte(2),
        manifestHash: B256::repeat_byte(3),
        sketchRoot: index.root(),
        datanetIds: vec![B256::repeat_byte(4)],
        treasury: Address::repeat_byte(9),
        nullThreshold: null_threshold,
        priceInPerKTokens: 1_000_000_007,
        priceOutPerKTokens: 3_000_000_019,
        platformFee: 11,
        splitBps: ol_poa::DEFAULT_SPLIT_BPS,
        potsBps: ol_poa::DEFAULT_POTS_BPS,
    };
    let gathered = if has_evidence {
        passages()
    } else {
        Gathered::default()
    };
    let receipt = Receipt {
        chain_id: 161_200,
        settlement: Address::repeat_byte(5),
        payer: Address::repeat_byte(6),
        request_id: B256::repeat_byte(7),
        model_id: B256::repeat_byte(8),
        base_hash: params.baseHash,
        adapter_hash: params.adapterHash,
        manifest_hash: params.manifestHash,
        sketch_root: params.sketchRoot,
        prompt_hash: B256::repeat_byte(9),
        response_hash: B256::repeat_byte(10),
        query_hash: query.hash(),
        evidence_hash: gathered.evidence.hash(),
        tokens_in: 17,
        tokens_out: 99,
        fee_wei: params.fee_wei(17, 99).unwrap(),
        answered_at_s: 1_700_000_000,
    };
    let payout = {
        let scored = index.weights(params.nullThreshold, &query);
        payout(&receipt, &scored, &params, &gathered.evidence)
    }
    .unwrap();
    let settled = Settlement {
        receipt_id: receipt.id(),
        model_id: receipt.model_id,
        payer: receipt.payer,
        fee_wei: payout.fee_wei,
        platform_wei: payout.split.platform_wei,
        model_wei: payout.split.model_wei,
        stakers_wei: payout.split.stakers_wei,
        treasury: (payout.treasury_wei > 0).then_some(params.treasury),
        pots: payout.pots,
    };
    Case {
        id: receipt.id(),
        receipt: receipt.encode().to_vec(),
        query: query.to_bytes().to_vec(),
        evidence: gathered.evidence.to_bytes(),
        shown: gathered.object.to_vec(),
        chunks: index.chunks().into_iter().map(<[u8]>::to_vec).collect(),
        params,
        settled,
    }
}

#[track_caller]
fn differs(case: &Case, part: &str) {
    assert_eq!(case.verify().unwrap_err().part, part);
}

#[test]
fn an_honest_receipt_matches() {
    let case = case(1, 0);
    let payout = case.verify().unwrap();
    assert_eq!(payout, Payout::from(&case.settled));
    assert!(
        (1..7).contains(&payout.pot(Pot::Training).credits.len()),
        "some contributors are for, some against"
    );
    assert_eq!(payout.pot(Pot::Spans), &PotCredits::default());
    let context = payout.pot(Pot::Context).credits.iter();
    let weights: Vec<_> = context.map(|c| (c.contributor, c.weight)).collect();
    let who = Address::repeat_byte;
    assert_eq!(weights, [(who(3), 6_010), (who(9), 41)]);
    let credits = payout.pots.iter().flat_map(|pot| &pot.credits);
    let paid: u128 = credits.map(|credit| credit.amount_wei).sum();
    let split = payout.split;
    assert_eq!(paid, split.contributors_wei);
    let fee = split.platform_wei + split.model_wei + split.stakers_wei + paid;
    assert_eq!(fee, payout.fee_wei);
}

#[test]
fn without_a_weight_the_treasury_is_paid() {
    let case = case_with(1, u64::MAX, false);
    let payout = case.verify().unwrap();
    assert!(payout.pots.iter().all(|pot| pot.credits.is_empty()));
    assert_eq!(payout.treasury_wei, payout.split.contributors_wei);
}

#[test]
fn without_evidence_all_of_it_is_for_training() {
    let payout = case_with(1, 0, false).verify().unwrap();
    let training = payout.pot(Pot::Training);
    assert_eq!(training.amount_wei, payout.split.contributors_wei);
}

#[test]
fn every_part_is_compared() {
    let honest = case(1, 0);
    type Change = (&'static str, fn(&mut Case));
    let changes: &[Change] = &[
        ("receipt", |case| case.receipt.truncate(100)),
        ("id", |case| case.id.0[0] ^= 1),
        ("query", |case| case.query[3] ^= 1),
        ("query", |case| case.query.push(0)),
        ("base_hash", |case| case.params.baseHash.0[0] ^= 1),
        ("adapter_hash", |case| case.params.adapterHash.0[0] ^= 1),
        ("manifest_hash", |case| case.params.manifestHash.0[0] ^= 1),
        ("sketch_root", |case| case.params.sketchRoot.0[0] ^= 1),
        ("sketch_root", |case| case.chunks[0][60] ^= 1),
        ("index", |case| case.chunks.swap(0, 1)),
        ("index", |case| case.chunks.clear()),
        ("fee", |case| case.params.platformFee += 1),
        ("fee", |case| case.settled.fee_wei += 1),
        ("split", |case| case.params.splitBps[0] += 1),
        ("split.platform", |case| case.settled.platform_wei += 1),
        ("split.model", |case| case.settled.model_wei += 1),
        ("split.stakers", |case| case.settled.stakers_wei += 1),
        ("split.contributors", |case| {
            case.settled.pots[0].amount_wei += 1
        }),
        ("training", |case| {
            case.settled.pots[0].amount_wei += 1;
            case.settled.pots[2].amount_wei -= 1;
        }),
        ("training: contributors", |case| {
            case.settled.pots[0].credits.pop();
        }),
        ("training: contributors", |case| {
            case.settled.pots[0].credits.swap(0, 1)
        }),
        ("context: contributors", |case| {
            case.settled.pots[2].credits.pop();
        }),
        ("spans: contributors", |case| {
            case.settled.pots[1].credits = case.settled.pots[2].credits.clone();
        }),
        ("evidence", |case| case.evidence[9] ^= 1),
        ("evidence", |case| case.evidence.clear()),
        ("evidence.object", |case| case.shown[9] ^= 1),
        ("evidence.object", |case| case.shown.clear()),
        ("training", |case| {
            case.params.potsBps = [5_900, 2_000, 2_100]
        }),
        ("pots", |case| case.params.potsBps = [8_000, 2_000, 0]),
        ("treasury", |case| {
            case.settled.treasury = Some(Address::ZERO)
        }),
        ("settled receipt", |case| case.settled.receipt_id.0[0] ^= 1),
        ("settled model", |case| case.settled.model_id.0[0] ^= 1),
        ("settled payer", |case| case.settled.payer.0[0] ^= 1),
    ];
    for (part, change) in changes {
        let mut changed = honest.clone();
        change(&mut changed);
        differs(&changed, part);
    }
    for pot in [Pot::Training, Pot::Context] {
        let contributor = honest.settled.pots[pot as usize].credits[0].contributor;
        let name = pot.name();
        let mut changed = honest.clone();
        changed.settled.pots[pot as usize].credits[0].weight += 1;
        differs(&changed, &format!("{name}: weight of {contributor}"));
        let mut changed = honest.clone();
        changed.settled.pots[pot as usize].credits[0].amount_wei += 1;
        differs(&changed, &format!("{name}: amount of {contributor}"));
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    #[test]
    fn a_changed_byte_of_a_receipt_is_found(at in 0..ol_types::RECEIPT_SIZE_BYTES, mask in 1..=u8::MAX) {
        let mut case = case(2, 1_000);
        case.receipt[at] ^= mask;
        prop_assert!(case.verify().is_err());
    }

    #[test]
    fn a_changed_byte_of_the_index_is_found(at: usize, mask in 1..=u8::MAX) {
        let mut case = case(2, 1_000);
        let chunk = at % case.chunks.len();
        let byte = at / 3 % case.chunks[chunk].len();
        case.chunks[chunk][byte] ^= mask;
        prop_assert!(case.verify().is_err());
    }
}
