//! Goal: a filter matches by address, and by topic at its position.

use alloy_primitives::Bytes;

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
