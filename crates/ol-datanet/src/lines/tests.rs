//! Goal: the same lines whatever the size of the reader's buffer, and limits
//! that hold.

use std::io::{BufReader, Read};

use proptest::prelude::*;

use super::*;

fn lines(input: &[u8], buffer: usize, line_max: usize) -> Vec<Option<Vec<u8>>> {
    let mut lines = Lines::new(BufReader::with_capacity(buffer, input), line_max, u64::MAX);
    let mut all = Vec::new();
    while let Some(line) = lines.next_line().unwrap() {
        all.push(match line {
            Line::Whole(bytes) => Some(bytes.to_vec()),
            Line::TooLong => None,
        });
    }
    all
}

#[test]
fn a_line_at_the_limit_fits_and_one_byte_more_does_not() {
    for buffer in [1, 2, 3, 100] {
        let found = lines(b"abc\nabcd\n\nx", buffer, 3);
        assert_eq!(
            found,
            [
                Some(b"abc".to_vec()),
                None,
                Some(vec![]),
                Some(b"x".to_vec())
            ]
        );
    }
}

proptest! {
    #[test]
    fn the_buffer_size_does_not_matter(
        input in prop::collection::vec(prop::sample::select(&b"ab\n"[..]), 0..60),
        buffer in 1_usize..10,
    ) {
        let mut expected: Vec<Vec<u8>> = input.split(|&b| b == b'\n').map(<[u8]>::to_vec).collect();
        if expected.last().is_some_and(Vec::is_empty) {
            expected.pop();
        }
        let expected: Vec<_> =
            expected.into_iter().map(|line| (line.len() <= 4).then_some(line)).collect();
        prop_assert_eq!(lines(&input, buffer, 4), expected);
    }
}

#[test]
fn the_total_is_limited() {
    let mut lines = Lines::new(&b"abc\nabc\n"[..], 3, 7);
    assert!(lines.next_line().unwrap().is_some());
    let error = lines.next_line().unwrap_err();
    assert!(matches!(error, InputError::TooLarge { max_size_bytes: 7 }));
}

#[test]
fn an_endless_line_ends_at_the_total_in_little_memory() {
    let mut lines = Lines::new(BufReader::new(io::repeat(b'x')), 100, 1 << 20);
    assert!(matches!(
        lines.next_line(),
        Err(InputError::TooLarge { .. })
    ));
    assert!(lines.buffer.capacity() < 10_000);
}

#[test]
fn a_failing_reader_is_an_error() {
    struct Failing;
    impl Read for Failing {
        fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
            Err(io::Error::other("gone"))
        }
    }
    let mut lines = Lines::new(BufReader::new(Failing), 100, 100);
    assert!(matches!(lines.next_line(), Err(InputError::Io(_))));
}
