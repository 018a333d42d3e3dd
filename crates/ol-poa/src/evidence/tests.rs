//! Goal: evidence has one encoding, whose hash an independent script gives too;
//! pots add up to what was divided, whatever is empty.

use alloc::string::String;
use alloc::vec;

use alloy_primitives::hex;
use proptest::prelude::*;

use super::*;

#[derive(serde::Deserialize)]
struct Golden {
    cases: Vec<GoldenCase>,
    pots: Vec<GoldenPots>,
}

/// A part divided by the evidence of a case.
#[derive(serde::Deserialize)]
#[serde(rename_all = "camelCase")]
struct GoldenPots {
    case: usize,
    part: String,
    pots_bps: [u16; 3],
    amounts: [String; 3],
}

#[derive(serde::Deserialize)]
#[serde(rename_all = "camelCase")]
struct GoldenCase {
    spans: String,
    context: String,
    object: String,
    spans_total: String,
    context_total: String,
    spans_list: Vec<GoldenEntry>,
    context_list: Vec<GoldenEntry>,
    encoding: String,
    hash: String,
}

#[derive(serde::Deserialize)]
struct GoldenEntry {
    contributor: String,
    weight: String,
}

/// `contracts/scripts/vectors.mjs`; the contract is held to them too.
#[test]
fn golden_vectors() {
    let text = include_str!("../../../../contracts/test/vectors/evidence.json");
    let golden: Golden = serde_json::from_str(text).unwrap();
    assert_eq!((golden.cases.len(), golden.pots.len()), (7, 12));
    let list = |entries: &[GoldenEntry], total: &str| -> Earned {
        let read = |entry: &GoldenEntry| {
            (
                entry.contributor.parse().unwrap(),
                entry.weight.parse().unwrap(),
            )
        };
        Earned {
            weights: entries.iter().map(read).collect(),
            total: total.parse().unwrap(),
        }
    };
    let mut all = Vec::new();
    for case in &golden.cases {
        let spans = list(&case.spans_list, &case.spans_total);
        let context = list(&case.context_list, &case.context_total);
        let evidence = Evidence::new(spans, context, case.object.parse().unwrap()).unwrap();
        let lists = evidence.lists().map(hex::encode_prefixed);
        assert_eq!(lists, [case.spans.clone(), case.context.clone()]);
        assert_eq!(hex::encode_prefixed(evidence.to_bytes()), case.encoding);
        assert_eq!(evidence.hash(), case.hash.parse::<B256>().unwrap());
        assert_eq!(
            Evidence::from_bytes(&evidence.to_bytes()).as_ref(),
            Ok(&evidence)
        );
        all.push(evidence);
    }
    for pots in &golden.pots {
        let part = pots.part.parse().unwrap();
        let amounts = pots
            .amounts
            .each_ref()
            .map(|amount| amount.parse().unwrap());
        assert_eq!(
            split_pots(part, pots.pots_bps, &all[pots.case]),
            Ok(amounts)
        );
    }
}

fn who(n: u8) -> Address {
    Address::repeat_byte(n)
}

/// One contributor.
fn of(weight: u64, total: u64) -> Earned {
    Earned::new(vec![(who(1), weight)], total)
}

/// Weights small enough that a total is above them.
fn some(earned: &[(Address, u64)]) -> Earned {
    let earned = earned.iter().map(|&(who, weight)| (who, weight >> 8));
    let weights = weights_of(earned);
    let sum: u64 = weights.iter().map(|&(_, weight)| weight).sum();
    Earned::new(weights, sum + sum / 7)
}

#[test]
fn lists_that_are_none_are_refused() {
    let refused_of = |earned: Earned, expected: fn(Pot) -> EvidenceError| {
        let spans = Evidence::new(earned.clone(), Earned::default(), B256::ZERO);
        assert_eq!(spans, Err(expected(Pot::Spans)));
        let context = Evidence::new(Earned::default(), earned, B256::ZERO);
        assert_eq!(context, Err(expected(Pot::Context)));
    };
    let refused = |weights: Vec<(Address, u64)>, expected: fn(Pot) -> EvidenceError| {
        let total = u64::MAX;
        refused_of(Earned { weights, total }, expected);
    };
    refused(vec![(who(2), 1), (who(1), 1)], |pot| EvidenceError::Entry {
        pot,
        position: 1,
    });
    refused(vec![(who(1), 1), (who(1), 1)], |pot| EvidenceError::Entry {
        pot,
        position: 1,
    });
    for weight in [0, WEIGHT_LIMIT] {
        refused(vec![(who(1), weight)], |pot| EvidenceError::Entry {
            pot,
            position: 0,
        });
    }
    refused(vec![(Address::ZERO, 1)], |pot| EvidenceError::Entry {
        pot,
        position: 0,
    });
    let crowd = (0..257_u32).map(|n| (Address::left_padding_from(&(n + 1).to_be_bytes()), 1));
    refused(crowd.collect(), |pot| EvidenceError::TooMany {
        pot,
        n_contributors: 257,
    });
    // More than all, and all of nothing.
    let weights = vec![(who(1), 3), (who(2), 4)];
    refused_of(Earned { weights, total: 6 }, |pot| EvidenceError::Total {
        pot,
        sum: 7,
        total: 6,
    });
    let weights = vec![(who(1), WEIGHT_LIMIT - 1); 3];
    let weights = (1..).zip(weights).map(|(n, (_, weight))| (who(n), weight));
    let total = u64::MAX;
    refused(weights.collect(), |pot| EvidenceError::Total {
        pot,
        sum: 3 * u128::from(WEIGHT_LIMIT - 1),
        total: u64::MAX,
    });
    let weights = vec![];
    refused_of(Earned { weights, total }, |pot| EvidenceError::Total {
        pot,
        sum: 0,
        total: u64::MAX,
    });
    assert_eq!(Earned::new(vec![], 7), Earned::default());
}

#[test]
fn a_pot_without_evidence_falls_to_training() {
    let evidence = |has_spans: bool, has_context: bool| {
        let list = |has: bool| if has { of(1, 1) } else { Earned::default() };
        Evidence::new(list(has_spans), list(has_context), B256::ZERO).unwrap()
    };
    let bps = [6_000, 2_500, 1_500];
    let cases = [
        ((false, false), [10_000, 0, 0]),
        ((true, false), [7_500, 2_500, 0]),
        ((false, true), [8_500, 0, 1_500]),
        ((true, true), [6_000, 2_500, 1_500]),
    ];
    for ((has_spans, has_context), expected) in cases {
        let pots = split_pots(10_000, bps, &evidence(has_spans, has_context));
        assert_eq!(pots, Ok(expected));
    }
    // 60 % of 7 is 4.2, 25 % is 1.75, 15 % is 1.05: the unit goes to spans.
    assert_eq!(split_pots(7, bps, &evidence(true, true)), Ok([4, 2, 1]));
    let no_spans = split_pots(7, [10_000, 0, 0], &evidence(true, false));
    assert_eq!(no_spans, Err(SharesError::NoWeight));
    let wrong = split_pots(7, [10_000, 0, 1], &evidence(false, false));
    assert_eq!(wrong, Err(SharesError::Split { total_bps: 10_001 }));
}

#[test]
fn what_is_not_earned_falls_to_training() {
    let bps = [6_000, 2_500, 1_500];
    let pots = |part, spans, context| {
        split_pots(
            part,
            bps,
            &Evidence::new(spans, context, B256::ZERO).unwrap(),
        )
    };
    let nothing = Earned::default;
    assert_eq!(pots(10_000, of(1, 5), nothing()), Ok([9_500, 500, 0]));
    assert_eq!(pots(10_000, of(1, 2_501), nothing()), Ok([10_000, 0, 0]));
    assert_eq!(pots(10_000, of(1, 2_500), of(2, 3)), Ok([8_999, 1, 1_000]));
    let all = |who: Address| Earned::new(vec![(who, WEIGHT_LIMIT - 1)], WEIGHT_LIMIT - 1);
    let most = pots(u128::MAX, all(who(1)), all(who(2))).unwrap();
    assert_eq!(most[1], u128::MAX / 4 + 1);
    assert_eq!(most.into_iter().reduce(|a, b| a + b), Some(u128::MAX));
}

#[test]
fn weights_are_summed_and_bounded() {
    let earned = [(who(3), 5), (who(1), 0), (who(2), 7), (who(3), 6)];
    assert_eq!(weights_of(earned), [(who(2), 7), (who(3), 11)]);
    let huge = [(who(1), u64::MAX), (who(1), u64::MAX), (Address::ZERO, 9)];
    assert_eq!(weights_of(huge), [(who(1), WEIGHT_LIMIT - 1)]);
    let crowd = (1..=300_u32).map(|n| {
        let weight = if n <= 44 { 1 } else { 2 };
        (Address::left_padding_from(&n.to_be_bytes()), weight)
    });
    let kept = weights_of(crowd);
    assert_eq!(kept.len(), EVIDENCE_MAX);
    assert!(kept.iter().all(|&(_, weight)| weight == 2));
}

proptest! {
    #[test]
    fn decodes_what_it_encodes_and_nothing_else(
        earned in prop::collection::vec((any::<[u8; 20]>(), any::<u64>()), 0..20),
        cut in 0..20_usize,
        object: [u8; 32],
        bit: prop::sample::Index,
    ) {
        let entries: Vec<_> = earned.into_iter().map(|(who, w)| (who.into(), w)).collect();
        let (spans, context) = entries.split_at(cut.min(entries.len()));
        let evidence =
            Evidence::new(some(spans), some(context), object.into());
        let evidence = evidence.unwrap();
        let mut bytes = evidence.to_bytes();
        prop_assert_eq!(&Evidence::from_bytes(&bytes).unwrap(), &evidence);
        let bit = bit.index(bytes.len() * 8);
        bytes[bit / 8] ^= 1 << (bit % 8);
        if let Ok(other) = Evidence::from_bytes(&bytes) {
            prop_assert_ne!(other.hash(), evidence.hash());
            prop_assert_eq!(other.to_bytes(), bytes);
        }
    }

    #[test]
    fn arbitrary_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        if let Ok(evidence) = Evidence::from_bytes(&bytes) {
            prop_assert_eq!(evidence.to_bytes(), bytes);
        }
    }

    #[test]
    fn pots_add_up(
        part: u128,
        a in 0..=10_000_u16,
        b in 0..=10_000_u16,
        lists in 0..4_u8,
        weight in 1..WEIGHT_LIMIT,
        total: u64,
    ) {
        let (spans, context) = (a.min(b), a.max(b) - a.min(b));
        let bps = [10_000 - spans - context, spans, context];
        let list = |has: bool| if has { of(weight, total.max(weight)) } else { Earned::default() };
        let evidence = Evidence::new(list(lists & 1 > 0), list(lists & 2 > 0), B256::ZERO).unwrap();
        match split_pots(part, bps, &evidence) {
            Ok(pots) => prop_assert_eq!(pots.iter().try_fold(0_u128, |sum, &pot| sum.checked_add(pot)), Some(part)),
            Err(error) => {
                prop_assert_eq!(error, SharesError::NoWeight);
                prop_assert!(lists & 1 > 0 && spans == 0 || lists & 2 > 0 && context == 0);
            }
        }
    }

    /// More units, however few, take their part of the pot, to a unit of the
    /// money, and nothing from those who earned before.
    #[test]
    fn a_little_more_evidence_takes_its_part(
        part in 0..u128::MAX / 2,
        weights in prop::collection::vec(1..1_u64 << 52, 1..9),
        more in 1..1_u64 << 52,
        unearned: u32,
    ) {
        let before: Vec<(Address, u64)> = (1..).map(who).zip(weights).collect();
        let sum: u64 = before.iter().map(|&(_, weight)| weight).sum();
        let total = sum + more + u64::from(unearned);
        let with = [before.clone(), vec![(who(200), more)]].concat();
        let paid = |weights: Vec<(Address, u64)>| {
            let amounts: Vec<u64> = weights.iter().map(|&(_, weight)| weight).collect();
            let evidence = Evidence::new(Earned { weights, total }, Earned::default(), B256::ZERO);
            let pots = split_pots(part, [5_000, 5_000, 0], &evidence.unwrap()).unwrap();
            (pots, shares(pots[1], &amounts).unwrap())
        };
        let ((pots, amounts), (pots_with, amounts_with)) = (paid(before), paid(with));
        // A unit left over goes to training, the lower position.
        let pot = part / 2;
        let earned = divide(pot, more, total.into()).0;
        prop_assert!((earned..=earned + 1).contains(&(pots_with[1] - pots[1])));
        prop_assert_eq!(pots[0] + pots[1], part);
        prop_assert_eq!(pots_with[0] + pots_with[1], part);
        for (before, with) in amounts.iter().zip(&amounts_with) {
            prop_assert!(before.abs_diff(*with) <= 2);
        }
    }
}
