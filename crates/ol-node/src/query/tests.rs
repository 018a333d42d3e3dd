//! Goal: a filter finds what it asks for, and its bloom test never hides a match.

use proptest::prelude::*;

use super::*;

fn log(address: u8, topics: &[u8]) -> Log {
    Log::new(
        Address::repeat_byte(address),
        topics
            .iter()
            .map(|&topic| B256::repeat_byte(topic))
            .collect(),
        Bytes::new(),
    )
    .unwrap()
}

fn filter(addresses: &[u8], topics: [&[u8]; 4]) -> LogFilter {
    LogFilter {
        addresses: addresses.iter().map(|&a| Address::repeat_byte(a)).collect(),
        topics: topics.map(|any| any.iter().map(|&t| B256::repeat_byte(t)).collect()),
        ..LogFilter::default()
    }
}

#[test]
fn filters_match_by_position() {
    #[track_caller]
    fn check(addresses: &[u8], topics: [&[u8]; 4], expected: bool) {
        let log = log(1, &[10, 11]);
        assert_eq!(filter(addresses, topics).matches(&log), expected);
    }
    check(&[], [&[], &[], &[], &[]], true);
    check(&[1], [&[], &[], &[], &[]], true);
    check(&[2, 1], [&[], &[], &[], &[]], true);
    check(&[2], [&[], &[], &[], &[]], false);
    check(&[], [&[10], &[], &[], &[]], true);
    check(&[], [&[11], &[], &[], &[]], false);
    check(&[], [&[], &[12, 11], &[], &[]], true);
    check(&[1], [&[10], &[11], &[], &[]], true);
    check(&[1], [&[], &[], &[11], &[]], false);
}

proptest! {
    #[test]
    fn the_bloom_hides_nothing(
        logs in prop::collection::vec((0..6_u8, prop::collection::vec(0..6_u8, 0..5)), 0..6),
        addresses in prop::collection::vec(0..6_u8, 0..3),
        topics in prop::array::uniform4(prop::collection::vec(0..6_u8, 0..3)),
    ) {
        let logs: Vec<Log> = logs
            .iter()
            .map(|(address, topics)| log(*address, &topics[..topics.len().min(4)]))
            .collect();
        let mut bloom = Bloom::ZERO;
        for log in &logs {
            bloom.accrue_log(log);
        }
        let filter = filter(&addresses, topics.each_ref().map(|any| any.as_slice()));
        if logs.iter().any(|log| filter.matches(log)) {
            prop_assert!(filter.may_match(&bloom));
        }
    }
}
