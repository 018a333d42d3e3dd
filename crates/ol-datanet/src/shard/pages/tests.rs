//! Goal: pages as shards have them pass with their sizes, and nothing else does.

use proptest::prelude::*;

use super::*;

/// `PageHeader` of a data page: 100 bytes unpacked, 2 packed, 3 values.
fn data_page() -> Vec<u8> {
    let mut page = vec![0x15, 0, 0x15, 200, 1, 0x15, 4, 0x2c];
    page.extend([0x15, 6, 0x15, 0, 0x15, 6, 0x15, 6, 0, 0]);
    page.extend([0xaa, 0xbb]);
    page
}

/// `PageHeader` of a dictionary page: 5 bytes unpacked, 1 packed, 2 values.
fn dictionary_page() -> Vec<u8> {
    vec![
        0x15, 4, 0x15, 10, 0x15, 2, 0x4c, 0x15, 4, 0x15, 0, 0x12, 0, 0, 0xcc,
    ]
}

#[test]
fn the_sizes_of_all_pages_are_added_up() {
    assert_eq!(unpacked_size_bytes(&[]), Ok(0));
    let chunk = [dictionary_page(), data_page(), data_page()].concat();
    assert_eq!(unpacked_size_bytes(&chunk), Ok(205));
}

#[test]
fn what_a_shard_does_not_need_is_refused() {
    let change = |at: usize, byte: u8| {
        let mut page = data_page();
        page[at] = byte;
        page
    };
    for (why, page) in [
        ("data page of version 2", change(1, 6)),
        ("negative size", change(3, 0xc9)),
        ("type that does not fit the header", change(1, 4)),
        ("delta encoding", change(11, 14)),
        ("statistics", change(16, 0x1c)),
        ("a field twice, in the long form", change(5, 0x05)),
        ("too many values", {
            let mut page = data_page();
            page.splice(9..10, [0x82, 0x40]);
            page
        }),
        (
            "varint without end",
            vec![0x15, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff],
        ),
    ] {
        assert!(unpacked_size_bytes(&page).is_err(), "{why}");
    }
    let page = data_page();
    for end in 1..page.len() {
        assert!(unpacked_size_bytes(&page[..end]).is_err(), "{end} bytes");
    }
}

#[test]
fn a_long_footer_is_refused() {
    let file = |length: u32| [&[0; 20][..], &length.to_le_bytes(), b"PAR1"].concat();
    assert!(check_footer(&file(256 * 1_024)).is_ok());
    assert!(check_footer(&file(256 * 1_024 + 1)).is_err());
    assert!(check_footer(&file(u32::MAX)).is_err());
    assert!(check_footer(b"PAR1").is_err() && check_footer(b"").is_err());
}

proptest! {
    #[test]
    fn any_bytes_end(bytes in prop::collection::vec(any::<u8>(), 0..100)) {
        let _ = unpacked_size_bytes(&bytes);
        let _ = check_footer(&bytes);
    }

    #[test]
    fn numbers_read_as_they_were_written(value in any::<i32>()) {
        let mut zigzag = ((value << 1) ^ (value >> 31)).cast_unsigned();
        let mut bytes = Vec::new();
        while zigzag >= 0x80 {
            bytes.push(u8::try_from(zigzag & 0x7f).unwrap() | 0x80);
            zigzag >>= 7;
        }
        bytes.push(u8::try_from(zigzag).unwrap());
        let mut input = &bytes[..];
        let mut reader = Struct { input: &mut input, last_field: 0 };
        prop_assert_eq!(reader.i32(), Some(value));
        prop_assert!(input.is_empty());
    }
}
