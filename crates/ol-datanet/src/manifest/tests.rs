//! Goal: one manifest, one encoding; anything else is refused with a reason.

use proptest::prelude::*;

use super::*;

pub(crate) fn example() -> Manifest {
    Manifest {
        name: "legal".into(),
        version: 2,
        parent: Some(B256::repeat_byte(1)),
        root: B256::repeat_byte(2),
        n_records: 3,
        n_contributors: 2,
        n_clusters: 3,
        shards: vec![ShardRef {
            object: B256::repeat_byte(3),
            size_bytes: 10,
            n_records: 3,
        }],
        licenses: BTreeMap::from([("CC0-1.0".into(), 1), ("CC-BY-4.0".into(), 2)]),
        duplicates: DuplicateRules::EXACT,
    }
}

#[test]
fn the_encoding_is_the_one_of_the_specification() {
    let hash = |byte: &str| format!("0x{}", byte.repeat(32));
    let expected = format!(
        concat!(
            r#"{{"format":"openledger-datanet/1","licenses":{{"CC-BY-4.0":2,"CC0-1.0":1}},"#,
            r#""n_clusters":3,"n_contributors":2,"n_records":3,"name":"legal","parent":"{}","#,
            r#""root":"{}","shards":[{{"n_records":3,"object":"{}","size_bytes":10}}],"version":2}}"#
        ),
        hash("01"),
        hash("02"),
        hash("03"),
    );
    assert_eq!(String::from_utf8(example().encode()).unwrap(), expected);
    assert_eq!(Manifest::decode(expected.as_bytes()).unwrap(), example());

    let exact = DuplicateRules::EXACT;
    for (duplicates, near, recombined) in [
        (exact.and_near(50), r#""near_duplicates_percent":50,"#, ""),
        (
            exact.and_recombined(),
            "",
            r#""recombined_duplicates":true,"#,
        ),
        (
            exact.and_near(1).and_recombined(),
            r#""near_duplicates_percent":1,"#,
            r#""recombined_duplicates":true,"#,
        ),
    ] {
        let manifest = Manifest {
            duplicates,
            ..example()
        };
        let expected = expected
            .replace(r#""parent":"#, &format!(r#"{near}"parent":"#))
            .replace(r#""root":"#, &format!(r#"{recombined}"root":"#));
        assert_eq!(String::from_utf8(manifest.encode()).unwrap(), expected);
        assert_eq!(Manifest::decode(expected.as_bytes()).unwrap(), manifest);
    }
}

#[test]
fn other_spellings_and_impossible_values_are_refused() {
    let good = String::from_utf8(example().encode()).unwrap();
    let with = |from: &str, to: &str| {
        assert!(good.contains(from), "{from}");
        good.replace(from, to)
    };
    for bad in [
        String::new(),
        "{}".into(),
        good[1..].into(),
        format!("{good} "),
        format!("{good}{good}"),
        with(",", ", "),
        with(r#""version":2"#, r#""version":2,"version":2"#),
        with(r#""version":2"#, r#""version":2,"zebra":1"#),
        with(r#""version":2"#, r#""version":0"#),
        with(r#""version":2"#, r#""version":1"#),
        with(r#""version":2"#, r#""version":-2"#),
        with(r#""version":2"#, r#""version":2.0"#),
        with("datanet/1", "datanet/2"),
        with(r#""parent":"#, r#""near_duplicates_percent":0,"parent":"#),
        with(r#""parent":"#, r#""near_duplicates_percent":101,"parent":"#),
        with(
            r#""parent":"#,
            r#""near_duplicates_percent":null,"parent":"#,
        ),
        with(r#""root":"#, r#""recombined_duplicates":false,"root":"#),
        with(r#""root":"#, r#""recombined_duplicates":1,"root":"#),
        with("legal", "../legal"),
        with("0x02", "02"),
        with("0x020202", "0x02020"),
        with(r#""n_records":3,"n"#, r#""n_records":4,"n"#),
        with(r#""n_records":3"#, r#""n_records":0"#),
        with(r#""n_records":3"#, r#""n_records":18446744073709551615"#),
        with(r#""size_bytes":10"#, r#""size_bytes":99999999999"#),
    ] {
        assert!(Manifest::decode(bad.as_bytes()).is_err(), "{bad}");
    }
}

proptest! {
    #[test]
    fn changed_bytes_never_panic_and_never_read_as_the_same(
        at in 0_usize..600, byte in any::<u8>()
    ) {
        let mut bytes = example().encode();
        let at = at % bytes.len();
        prop_assume!(bytes[at] != byte);
        bytes[at] = byte;
        prop_assert_ne!(Manifest::decode(&bytes).ok(), Some(example()));
    }
}
