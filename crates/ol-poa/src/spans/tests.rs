//! Goal: the table is what its formula says, no token of an answer is paid
//! twice, units are divided to the last one, and nobody gains by repeating,
//! splitting or padding.
//! Method: logarithms against powers of big integers; examples that a reader
//! can check by hand; properties over random spans; every limit.

use alloc::vec;
use alloc::vec::Vec;

use alloy_primitives::Address;
use num_bigint::BigUint;
use proptest::prelude::*;

use super::*;
use crate::evidence::EVIDENCE_MAX;
use crate::shares::shares;

/// `floor(scale · log2(x))`, from the length of a power of `x`.
fn exact_log2(x: u64, scale: u32) -> u64 {
    BigUint::from(x).pow(scale).bits() - 1
}

#[test]
fn logarithms_of_powers_of_two_are_exact() {
    for exponent in 0..64 {
        assert_eq!(log2(1 << exponent), exponent << 32);
    }
}

#[test]
fn logarithms_of_all_small_numbers_are_right_to_ten_bits_and_never_fall() {
    let mut previous = 0;
    for x in 1..4_096 {
        let value = log2(x);
        assert_eq!(value >> 22, exact_log2(x, 1 << 10), "log2({x})");
        assert!(value >= previous, "log2({x})");
        previous = value;
    }
}

#[test]
fn information_is_the_logarithm_of_one_in_how_many() {
    assert_eq!(information(1, 1), 0);
    assert_eq!(information(1, 2), 1_000);
    assert_eq!(information(3, 3 << 20), 20_000);
    // 1000 · log2(10) = 3321.928…
    assert_eq!(information(1, 10), 3_321);
    // What does not occur counts as once.
    assert_eq!(information(0, 10), 3_321);
    assert_eq!(information(1, CORPUS_TOKENS_LIMIT - 1), 47_999);
}

proptest! {
    #[test]
    fn logarithms_are_right_to_fourteen_bits(x in 1_u64..) {
        prop_assert_eq!(log2(x) >> 18, exact_log2(x, 1 << 14));
    }

    /// `2^(m-1) < (total/count)^1000 < 2^(m+2)` would be off by one either way;
    /// with the exponent four times as fine the bounds are a quarter.
    #[test]
    fn information_is_within_a_quarter_of_its_milli_bit(
        total in 1_u64..CORPUS_TOKENS_LIMIT,
        part in 1_u64..,
    ) {
        let count = (part % total).max(1);
        let millibits = u64::from(information(count, total));
        let (n, c) = (BigUint::from(total).pow(4_000), BigUint::from(count).pow(4_000));
        prop_assert!(&c << (4 * millibits).saturating_sub(1) <= n);
        prop_assert!(n < &c << (4 * millibits + 5));
    }

    #[test]
    fn a_table_is_the_same_after_writing_and_reading(counts in prop::collection::vec(0_u64..1_000, 1..50)) {
        prop_assume!(counts.iter().any(|&count| count > 0));
        let table = Unigrams::from_counts(&counts).unwrap();
        prop_assert_eq!(table.len(), counts.len());
        prop_assert_eq!(Unigrams::from_bytes(&table.to_bytes()), Ok(table));
    }
}

/// Token `i` has `i` bits.
fn table() -> Unigrams {
    let bytes: Vec<u8> = (0..64_u16)
        .flat_map(|i| (i * 1_000).to_le_bytes())
        .collect();
    Unigrams::from_bytes(&bytes).unwrap()
}

fn who(n: u8) -> Address {
    Address::repeat_byte(n)
}

/// A span held by clusters, each given as its number and its contributor.
fn span(start: u32, len: u32, holders: &[(u32, u8)]) -> Span {
    let holder = |&(cluster, contributor): &(u32, u8)| Holder {
        cluster,
        contributor: who(contributor),
    };
    let holders = Holders::Listed(holders.iter().map(holder).collect());
    Span {
        start,
        len,
        since: 1,
        holders,
    }
}

/// The same, first held in a version.
fn since(since: u32, span: Span) -> Span {
    Span { since, ..span }
}

const RULE: SpanRule = SpanRule {
    length_min: 1,
    floor_millibits: 5_000,
};

#[track_caller]
fn check(answer: &[u32], spans: &[Span], expected_millibits: &[(u8, f64)]) {
    let units = span_units(answer, spans, &table(), &RULE).unwrap().weights;
    let millibits: Vec<(Address, f64)> = units
        .iter()
        .map(|&(who, units)| (who, units as f64 / 1e6))
        .collect();
    let expected: Vec<(Address, f64)> = expected_millibits
        .iter()
        .map(|&(n, bits)| (who(n), bits))
        .collect();
    assert_eq!(millibits, expected);
}

#[test]
fn a_span_is_worth_its_information_above_the_floor() {
    check(&[10, 20, 3], &[span(0, 2, &[(7, 1)])], &[(1, 25_000.0)]);
    // At the floor or below it, nothing: the pot falls to training.
    check(&[5, 9], &[span(0, 1, &[(7, 1)])], &[]);
    check(&[4, 9], &[span(0, 1, &[(7, 1)])], &[]);
    check(&[10], &[], &[]);
    check(&[], &[], &[]);
}

/// One span just above the floor opens its small part of the pot, a whole answer
/// that is quoted all of it but the floor.
#[test]
fn what_is_earned_is_a_part_of_the_whole_answer() {
    let answer = [10, 20, 3, 60];
    let earned = |spans: &[Span]| span_units(&answer, spans, &table(), &RULE).unwrap();
    let total = 93_000 * UNITS_PER_MILLIBIT;
    assert_eq!(answer_units(&answer, &table()), Ok(total));
    let part = |bits: u64| Earned {
        weights: vec![(who(1), bits * 1_000 * UNITS_PER_MILLIBIT)],
        total,
    };
    assert_eq!(earned(&[span(0, 1, &[(7, 1)])]), part(5));
    assert_eq!(earned(&[span(0, 4, &[(7, 1)])]), part(88));
    assert_eq!(earned(&[span(2, 1, &[(7, 1)])]), Earned::default());
    assert_eq!(earned(&[]), Earned::default());
    assert_eq!(table().bounds(), (0, 63_000));
}

#[test]
fn a_worth_is_divided_over_clusters_and_added_up_by_contributor() {
    let holders = [(1, 3), (4, 2), (9, 3), (11, 1)];
    check(
        &[13, 8],
        &[span(0, 2, &holders)],
        &[(1, 4_000.0), (2, 4_000.0), (3, 8_000.0)],
    );
}

#[test]
fn what_does_not_divide_goes_to_the_lower_clusters() {
    let holders = [(1, 3), (4, 2), (9, 1)];
    let units = span_units(&[6], &[span(0, 1, &holders)], &table(), &RULE)
        .unwrap()
        .weights;
    // 1,000 milli-bits are 10⁹ units, not divisible by 3.
    let expected = [
        (who(1), 333_333_333),
        (who(2), 333_333_333),
        (who(3), 333_333_334),
    ];
    assert_eq!(units, expected);
}

#[test]
fn shared_tokens_go_to_the_heavier_span_and_then_to_the_earlier() {
    // 10 + 20 against 20 + 30: the second takes the middle, the first keeps 10.
    let spans = [span(0, 2, &[(1, 1)]), span(1, 2, &[(2, 2)])];
    check(&[10, 20, 30], &spans, &[(1, 5_000.0), (2, 45_000.0)]);
    // Equal weights: the earlier takes it.
    check(&[30, 20, 30], &spans, &[(1, 45_000.0), (2, 25_000.0)]);
    // What is left is below the floor: nothing, and nothing is taken.
    check(&[4, 20, 30], &spans, &[(2, 45_000.0)]);
}

#[test]
fn shared_tokens_go_to_the_earlier_version() {
    // Whoever goes on after a passage of the first version is paid for the rest.
    let answer = [10, 20, 30];
    let spans = [
        since(1, span(0, 2, &[(1, 1)])),
        since(2, span(0, 3, &[(2, 2)])),
    ];
    check(&answer, &spans, &[(1, 25_000.0), (2, 25_000.0)]);
    // What is too short to be worth anything takes nothing from later versions.
    let spans = [
        since(2, span(0, 3, &[(2, 2)])),
        since(1, span(1, 1, &[(1, 1)])),
    ];
    check(&[10, 5, 30], &spans, &[(2, 40_000.0)]);
}

#[test]
fn a_span_in_too_many_clusters_is_worth_nothing_and_takes_nothing() {
    let boiler_plate = Span {
        start: 0,
        len: 2,
        since: 1,
        holders: Holders::TooMany,
    };
    let spans = [boiler_plate, span(1, 2, &[(2, 2)])];
    check(&[60, 20, 30], &spans, &[(2, 45_000.0)]);
}

#[test]
fn malformed_input_is_refused_by_its_name() {
    let refused = |answer: &[u32], spans: &[Span], error: SpanError| {
        assert_eq!(span_units(answer, spans, &table(), &RULE), Err(error));
    };
    let answer = [10, 20, 30];
    let one = &[(1, 1)];
    refused(&[10, 64], &[], SpanError::Token { position: 1 });
    refused(
        &vec![0; ANSWER_TOKENS_MAX + 1],
        &[],
        SpanError::Answer {
            n_tokens: ANSWER_TOKENS_MAX + 1,
        },
    );
    refused(&answer, &[span(0, 0, one)], SpanError::Range { span: 0 });
    refused(&answer, &[span(2, 2, one)], SpanError::Range { span: 0 });
    refused(
        &answer,
        &[span(u32::MAX, 2, one)],
        SpanError::Range { span: 0 },
    );
    refused(
        &answer,
        &[span(0, 2, one), span(0, 2, one)],
        SpanError::Order { span: 1 },
    );
    refused(
        &answer,
        &[span(1, 2, one), span(0, 3, one)],
        SpanError::Order { span: 1 },
    );
    refused(&answer, &[span(0, 1, &[])], SpanError::Holders { span: 0 });
    refused(
        &answer,
        &[span(0, 1, &[(2, 1), (2, 1)])],
        SpanError::Holders { span: 0 },
    );
    refused(
        &answer,
        &[span(0, 1, &[(3, 1), (2, 1)])],
        SpanError::Holders { span: 0 },
    );
    let many: Vec<(u32, u8)> = (0..=256).map(|cluster| (cluster, 1)).collect();
    refused(
        &answer,
        &[span(0, 1, &many)],
        SpanError::Holders { span: 0 },
    );
    let short = SpanRule {
        length_min: 2,
        ..RULE
    };
    let error = span_units(&answer, &[span(0, 1, one)], &table(), &short);
    assert_eq!(error, Err(SpanError::Range { span: 0 }));

    assert_eq!(
        Unigrams::from_counts(&[]),
        Err(SpanError::Vocabulary { size: 0 })
    );
    assert_eq!(Unigrams::from_counts(&[0, 0]), Err(SpanError::Corpus));
    assert_eq!(
        Unigrams::from_counts(&[CORPUS_TOKENS_LIMIT]),
        Err(SpanError::Corpus)
    );
    assert_eq!(
        Unigrams::from_counts(&[u64::MAX, 1]),
        Err(SpanError::Corpus)
    );
    assert_eq!(
        Unigrams::from_bytes(&[1, 2, 3]),
        Err(SpanError::Vocabulary { size: 1 })
    );
    let error = Unigrams::from_counts(&vec![1; VOCABULARY_MAX + 1]);
    assert_eq!(
        error,
        Err(SpanError::Vocabulary {
            size: VOCABULARY_MAX + 1
        })
    );
}

#[test]
fn the_largest_answer_does_not_overflow() {
    let table = Unigrams::from_bytes(&[0xff, 0xff]).unwrap();
    let answer = vec![0; ANSWER_TOKENS_MAX];
    let whole = [span(0, 1 << 16, &[(0, 1)])];
    let rule = SpanRule {
        length_min: 1,
        floor_millibits: 0,
    };
    let units = span_units(&answer, &whole, &table, &rule).unwrap().weights;
    assert_eq!(units, [(who(1), 65_536 * 65_535 * UNITS_PER_MILLIBIT)]);
    assert!(shares(u128::MAX, &[units[0].1]).is_ok());
}

#[test]
fn past_the_most_that_share_a_pot_the_largest_are_kept() {
    // Three spans of one token, the first heaviest, each held by 128 others.
    let bytes: Vec<u8> = (0..3_u16)
        .flat_map(|i| (60_000 - i).to_le_bytes())
        .collect();
    let table = Unigrams::from_bytes(&bytes).unwrap();
    let answer: Vec<u32> = (0..3).collect();
    let holder = |n: u32| Holder {
        cluster: n,
        contributor: Address::left_padding_from(&(99_999 - n).to_be_bytes()),
    };
    let spans: Vec<Span> = (0..3_u32)
        .map(|i| Span {
            start: i,
            len: 1,
            since: 1,
            holders: Holders::Listed((128 * i..128 * (i + 1)).map(holder).collect()),
        })
        .collect();
    let units = span_units(&answer, &spans, &table, &RULE).unwrap().weights;
    assert_eq!(units.len(), EVIDENCE_MAX);
    assert!(units.is_sorted());
    // The last span's 128, with the lowest addresses, are those left out.
    assert_eq!(units[0].0, holder(2 * 128 - 1).contributor);
}

/// Answers with spans that begin and end ever later.
fn cases() -> impl Strategy<Value = (Vec<u32>, Vec<Span>, SpanRule)> {
    let answer = prop::collection::vec(0_u32..40, 1..60);
    let steps = prop::collection::vec(
        (
            1_u32..8,
            1_u32..8,
            prop::collection::btree_map(0_u32..9, 1_u8..5, 0..5),
        ),
        0..12,
    );
    (answer, steps, 0_u64..60_000).prop_map(|(answer, steps, floor_millibits)| {
        let n = u32::try_from(answer.len()).unwrap();
        let (mut start, mut end) = (0, 0);
        let mut spans = Vec::new();
        for (by, more, holders) in steps {
            end = (end + more).max(start + by);
            if end >= n {
                break;
            }
            let holders: Vec<(u32, u8)> = holders.into_iter().collect();
            let mut next = since(more % 3, span(start, end - start, &holders));
            if holders.is_empty() {
                next.holders = Holders::TooMany;
            }
            spans.push(next);
            start += by.min(end - start - 1).max(1);
            end = end.max(start);
        }
        (
            answer,
            spans,
            SpanRule {
                length_min: 1,
                floor_millibits,
            },
        )
    })
}

proptest! {
    #[test]
    fn every_token_is_paid_at_most_once_and_nothing_is_lost((answer, spans, rule) in cases()) {
        let worths = worths(&answer, &spans, &table(), &rule).unwrap();
        let information = |range: core::ops::Range<u32>| -> u64 {
            answer[range.start as usize..range.end as usize].iter().map(|&t| u64::from(t) * 1_000).sum()
        };
        // Each is worth at most what it is worth alone, together at most the answer.
        let mut floors = 0;
        for &(at, worth) in &worths {
            let alone = information(spans[at].start..spans[at].start + spans[at].len);
            prop_assert!(worth > 0 && worth <= (alone - rule.floor_millibits) * UNITS_PER_MILLIBIT);
            prop_assert!(spans[at].holders != Holders::TooMany);
            floors += rule.floor_millibits;
        }
        let sum: u64 = worths.iter().map(|(_, worth)| worth).sum();
        let all = information(0..u32::try_from(answer.len()).unwrap());
        prop_assert!(sum + floors * UNITS_PER_MILLIBIT <= all * UNITS_PER_MILLIBIT);
        // The heaviest of the earliest is paid in full.
        let first = spans.iter().filter(|span| span.holders != Holders::TooMany).filter(|span| {
            information(span.start..span.start + span.len) > rule.floor_millibits
        });
        let first = first.map(|span| span.since).min();
        if let Some(heaviest) = spans.iter()
            .filter(|span| span.holders != Holders::TooMany && Some(span.since) == first)
            .map(|span| information(span.start..span.start + span.len).saturating_sub(rule.floor_millibits))
            .max()
        {
            prop_assert!(heaviest == 0 || worths[0].1 == heaviest * UNITS_PER_MILLIBIT);
        }
        let units = span_units(&answer, &spans, &table(), &rule).unwrap().weights;
        prop_assert_eq!(units.iter().map(|(_, units)| units).sum::<u64>(), sum);
        prop_assert!(units.windows(2).all(|pair| pair[0].0 < pair[1].0));
    }

    #[test]
    fn splitting_one_identity_into_many_changes_nothing_for_the_others((answer, spans, rule) in cases()) {
        let before = span_units(&answer, &spans, &table(), &rule).unwrap().weights;
        // Contributor 1 uses another address for each cluster.
        let mut split = spans;
        for span in &mut split {
            if let Holders::Listed(holders) = &mut span.holders {
                for holder in holders.iter_mut().filter(|holder| holder.contributor == who(1)) {
                    holder.contributor = who(100 + u8::try_from(holder.cluster).unwrap());
                }
            }
        }
        let after = span_units(&answer, &split, &table(), &rule).unwrap().weights;
        let others = |units: &[(Address, u64)]| -> Vec<(Address, u64)> {
            units.iter().copied().filter(|(a, _)| *a > who(1) && *a < who(100)).collect()
        };
        prop_assert_eq!(others(&before), others(&after));
        let sum = |units: &[(Address, u64)]| units.iter().map(|(_, u)| u).sum::<u64>();
        prop_assert_eq!(sum(&before), sum(&after));
    }

    /// Whatever a later version adds, what earlier ones are worth stays.
    #[test]
    fn later_versions_take_nothing_from_earlier_ones((answer, spans, rule) in cases(), last in 0_u32..3) {
        let all = worths(&answer, &spans, &table(), &rule).unwrap();
        let early: Vec<usize> = (0..spans.len()).filter(|&at| spans[at].since <= last).collect();
        let alone: Vec<Span> = early.iter().map(|&at| spans[at].clone()).collect();
        let alone = worths(&answer, &alone, &table(), &rule).unwrap();
        let alone: Vec<(usize, u64)> = alone.into_iter().map(|(at, worth)| (early[at], worth)).collect();
        let all: Vec<(usize, u64)> = all.into_iter().filter(|(at, _)| spans[*at].since <= last).collect();
        prop_assert_eq!(all, alone);
    }
}
