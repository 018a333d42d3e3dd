//! Goal: nets, weights and best records are those of the specification's
//! formulas, on every kind of instructions and any number of threads.
//! Method: `ol_poa` over the same entries as the oracle, random and extreme
//! sketches; sums at the largest size that is let in, in `i128`.

use ol_model::Pool;
use ol_poa::{Entry, Index, K, QuerySketch};
use ol_types::{Address, B256};
use proptest::prelude::*;

use super::{
    BASE, Blocks, Hit, Instructions, RECORDS_MAX, Rows, SCORE_MAX, Scorer, ScorerError, digits,
};
use crate::random::SplitMix;

/// How the codes and scales of a sample are drawn.
#[derive(Debug, Clone, Copy)]
enum Draw {
    Any,
    /// Few different rows, so that scores are equal often.
    Few,
    /// Only what is largest in size.
    Extreme,
}

/// Codes of a query.
fn wide(draw: Draw, random: &mut SplitMix) -> [i8; K] {
    codes(draw, random).map(|code| code.saturating_mul(20).clamp(-127, 127))
}

fn codes(draw: Draw, random: &mut SplitMix) -> [i8; K] {
    match draw {
        Draw::Any => std::array::from_fn(|_| random.next().to_le_bytes()[0].cast_signed() % 8),
        Draw::Few => {
            let code = i8::try_from(random.next() % 3).unwrap() - 1;
            std::array::from_fn(|j| if j % 2 == 0 { code } else { 1 })
        }
        Draw::Extreme => std::array::from_fn(|_| if random.sign() > 0.0 { 7 } else { -7 }),
    }
}

fn sample(n: usize, n_contributors: u64, draw: Draw, seed: u64) -> Index {
    let mut random = SplitMix::new(seed);
    let entry = |cluster: u32| Entry {
        contributor: Address::left_padding_from(&(random.next() % n_contributors).to_be_bytes()),
        record: B256::ZERO,
        cluster,
        scale: match draw {
            Draw::Any => u16::try_from(random.next() % 65_535).unwrap() + 1,
            Draw::Few => 1,
            Draw::Extreme => u16::MAX,
        },
        codes: codes(draw, &mut random),
    };
    Index::new((0..u32::try_from(n).unwrap()).map(entry).collect()).unwrap()
}

fn scorer(index: &Index) -> Scorer {
    Scorer::new(index.entries().map(|entry| entry.to_entry())).unwrap()
}

fn best_by_sorting(index: &Index, query: &QuerySketch, n: usize) -> Vec<Hit> {
    let scores = index.scores(query).into_iter().enumerate();
    let mut hits: Vec<Hit> = scores
        .filter(|&(_, score)| score > 0)
        .map(|(position, score)| Hit { position, score })
        .collect();
    hits.sort_by_key(|hit| (std::cmp::Reverse(hit.score), hit.position));
    hits.truncate(n);
    hits
}

#[track_caller]
fn check(index: &Index, query: &QuerySketch, n_threads: usize, n_best: usize) {
    let pool = Pool::new(n_threads);
    let (contributors, nets): (Vec<Address>, Vec<i64>) =
        ol_poa::score::nets(&index.chunks(), query)
            .unwrap()
            .into_iter()
            .unzip();
    let best = best_by_sorting(index, query, n_best);
    let threshold = nets.iter().max().unwrap().unsigned_abs() / 3;
    for instructions in Instructions::available() {
        let scorer = scorer(index).with_instructions(instructions);
        assert_eq!(scorer.contributors(), contributors);
        assert_eq!(scorer.nets(&pool, query), nets, "{instructions:?}");
        assert_eq!(
            scorer.nets_of_records(&pool, query),
            nets,
            "{instructions:?}"
        );
        let weights = index.weights(threshold, query);
        assert_eq!(scorer.weights(&pool, threshold, query), weights);
        assert_eq!(scorer.top(&pool, query, n_best), best, "{instructions:?}");
    }
}

proptest! {
    #[test]
    fn sums_of_contributors_give_the_nets_of_records(
        n in 1_usize..600, n_contributors in 1_u64..40, seed: u64,
        draw in prop_oneof![Just(Draw::Any), Just(Draw::Few), Just(Draw::Extreme)],
        n_threads in 1_usize..4, n_best in 0_usize..70,
    ) {
        let index = sample(n, n_contributors, draw, seed);
        let query = QuerySketch::new(wide(draw, &mut SplitMix::new(!seed))).unwrap();
        check(&index, &query, n_threads, n_best);
    }

    #[test]
    fn digits_are_the_number(values: [i64; 4]) {
        // 43 bits and a sign: what the sums of 2^24 records have.
        let mut numbers = [0_i64; K];
        for (number, value) in numbers.iter_mut().zip(values) {
            *number = value >> 20;
        }
        let rows = digits(numbers);
        prop_assert!(rows.len() <= 12);
        for (j, number) in numbers.into_iter().enumerate() {
            let value = rows.iter().rev().fold(0, |sum, row| sum * BASE + i64::from(row[j]));
            prop_assert_eq!(value, number);
        }
    }
}

#[test]
fn a_full_index_gives_the_same_on_all_instructions() {
    let index = sample(16_384, 60, Draw::Any, 5);
    let query = QuerySketch::new(wide(Draw::Any, &mut SplitMix::new(6))).unwrap();
    check(&index, &query, 2, 50);
    let one_each = sample(3_000, 1 << 40, Draw::Any, 7);
    check(&one_each, &query, 2, 1_024);
}

#[test]
fn the_best_of_a_contributor_are_its_own() {
    let index = sample(2_000, 7, Draw::Any, 8);
    let query = QuerySketch::new(wide(Draw::Any, &mut SplitMix::new(9))).unwrap();
    let pool = Pool::new(2);
    let scorer = scorer(&index);
    let all = best_by_sorting(&index, &query, usize::MAX);
    for (contributor, address) in scorer.contributors().iter().enumerate() {
        let of_entry = |hit: &&Hit| index.entries().nth(hit.position).unwrap().contributor();
        let own = all.iter().filter(|hit| of_entry(hit) == *address);
        let own: Vec<Hit> = own.take(20).copied().collect();
        assert_eq!(scorer.top_of(&pool, &query, contributor, 20), own);
    }
}

#[test]
fn sums_of_the_most_records_stay_in_bounds() {
    let pool = Pool::new(1);
    let query = QuerySketch::new([127; K]).unwrap();
    let n_records = i64::try_from(RECORDS_MAX).unwrap();
    for sign in [1, -1] {
        // What 2^24 records with every value at its limit add up to.
        let rows = digits([sign * 7 * 65_535 * n_records; K]);
        assert_eq!(rows.len(), 12);
        for instructions in Instructions::available() {
            let mut sums = Rows {
                codes: Blocks::default(),
                weights: Vec::new(),
                starts: vec![0],
            };
            for (row, power) in rows.iter().zip(0..) {
                sums.push(row, BASE.pow(power));
            }
            sums.end();
            let net = sums.nets(&pool, &super::Query::new(&query, instructions))[0];
            let expected = i128::from(SCORE_MAX) * i128::from(n_records) * i128::from(sign);
            assert_eq!(i128::from(net), expected);
            assert!(net.unsigned_abs() < 1 << 58);
        }
    }
}

#[test]
fn records_that_cancel_earn_nothing() {
    let contributor = Address::repeat_byte(1);
    let entries = [1, -1, 1, -1].map(|sign: i8| Entry {
        contributor,
        record: B256::ZERO,
        cluster: 0,
        scale: 9,
        codes: [sign * 5; K],
    });
    let scorer = Scorer::new(entries).unwrap();
    assert_eq!(scorer.n_sum_rows(), 0);
    let (pool, query) = (Pool::new(1), QuerySketch::new([1; K]).unwrap());
    assert_eq!(scorer.nets(&pool, &query), [0]);
    assert_eq!(scorer.weights(&pool, 0, &query), []);
    let hit = |position| Hit {
        position,
        score: 9 * 5 * 256,
    };
    assert_eq!(scorer.top(&pool, &query, 9), [hit(0), hit(2)]);
}

#[test]
fn what_is_no_index_is_refused() {
    let entry = |contributor, scale, code| Entry {
        contributor: Address::repeat_byte(contributor),
        record: B256::ZERO,
        cluster: 0,
        scale,
        codes: [code; K],
    };
    let error = |entries: &[Entry]| Scorer::new(entries.iter().cloned()).unwrap_err();
    assert_eq!(error(&[]), ScorerError::Empty);
    let position = 1;
    let good = entry(2, 1, 1);
    assert_eq!(
        error(&[good.clone(), entry(1, 1, 1)]),
        ScorerError::Order { position }
    );
    assert_eq!(
        error(&[good.clone(), entry(2, 0, 1)]),
        ScorerError::Value { position }
    );
    assert_eq!(
        error(&[good, entry(2, 1, -8)]),
        ScorerError::Value { position }
    );
}
