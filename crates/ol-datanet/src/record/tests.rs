//! Goal: one record has one hash, and each rule of the specification refuses
//! what it should, by its code.
//! Method: the canonical form by hand; one bad line for each code; properties
//! over any strings.

use proptest::prelude::*;

use super::*;

/// A valid record, different for each `i`; every tenth repeats a text.
pub(crate) fn record(i: usize) -> Record {
    Record {
        id: format!("r-{i}"),
        contributor: format!("contributor {}", i % 7),
        question: format!("What is {}?", i - usize::from(i % 10 == 9)),
        answer: format!("It is\nnumber \"{}\".", i - usize::from(i % 10 == 9)),
        topic: format!("topic {}", i % 3),
        kind: String::new(),
        url: format!("https://example.org/{i}"),
        license: ["CC-BY-4.0", "Apache-2.0"][i % 2].into(),
    }
}

/// The address that tests give a contributor.
pub(crate) fn address_of(contributor: &str) -> Address {
    Address::from_slice(&keccak256(contributor)[12..])
}

pub(crate) fn committed(i: usize) -> CommittedRecord {
    let record = record(i);
    CommittedRecord {
        record_hash: record.hash(),
        contributor_address: address_of(&record.contributor),
        cluster: u32::try_from(i).unwrap(),
        record,
    }
}

const GOOD: &str = r#"{"question":"q","answer":"a","contributor":"c","license":"l"}"#;

#[test]
fn absent_fields_are_empty_and_keys_are_sorted() {
    let record = Record::from_json(GOOD.as_bytes()).unwrap();
    let expected = concat!(
        r#"{"answer":"a","contributor":"c","id":"","kind":"","license":"l","#,
        r#""question":"q","topic":"","url":""}"#
    );
    assert_eq!(record.canonical_json(), expected.as_bytes());
    assert_eq!(record.hash(), keccak256(expected));
}

#[test]
fn escapes_that_are_not_required_do_not_change_the_hash() {
    let plain = r#"{"question":"é/\n\"\\","answer":"a","contributor":"c","license":"l"}"#;
    let escaped = r#" { "license":"\u006c", "contributor":"c","answer":"a","question":"\u00e9\/\u000a\"\\" } "#;
    let plain = Record::from_json(plain.as_bytes()).unwrap();
    assert_eq!(plain, Record::from_json(escaped.as_bytes()).unwrap());
    let json = String::from_utf8(plain.canonical_json()).unwrap();
    assert!(json.contains(r#""question":"é/\n\"\\""#), "{json}");
}

#[track_caller]
fn rejected(line: &[u8], code: &str) {
    let reason = Record::from_json(line).unwrap_err();
    assert_eq!(reason.code(), code, "{reason}");
}

#[test]
fn each_rule_refuses_with_its_code() {
    let with = |from: &str, to: &str| {
        assert!(GOOD.contains(from));
        GOOD.replace(from, to).into_bytes()
    };
    rejected(b"{\"question\":\"\xff\"}", "encoding");
    for line in [
        "",
        "[]",
        "null",
        "{",
        "\"question\"",
        "{} {}",
        r#"{"question":"\ud800"}"#,
    ] {
        rejected(line.as_bytes(), "json");
    }
    rejected("[".repeat(100_000).as_bytes(), "json");
    rejected(
        format!("{{\"question\":{}", "[".repeat(100_000)).as_bytes(),
        "json",
    );
    rejected(
        &with(r#""license""#, r#""extra":1,"license""#),
        "unknown-field",
    );
    rejected(
        &with(r#""license""#, r#""answer":"b","license""#),
        "duplicate-field",
    );
    rejected(&with(r#""a""#, "1"), "not-a-string");
    rejected(&with(r#""a""#, "null"), "not-a-string");
    rejected(b"{}", "missing");
    for field in ["question", "answer", "contributor", "license"] {
        let value = &field[..1];
        rejected(&with(&format!("\"{value}\""), r#"" \t""#), "missing");
    }
    rejected(&with(r#""a""#, r#""a\u0000""#), "control-character");
    rejected(&with(r#""a""#, r#""a\u0085""#), "control-character");
    rejected(&with(r#""c""#, r#""c\nd""#), "control-character");
    rejected(&with(r#""c""#, r#""c ""#), "padded");
    rejected(&with(r#""l""#, r#"" l""#), "padded");
}

#[test]
fn a_field_at_its_limit_fits_and_one_byte_more_does_not() {
    for rule in &RULES {
        let mut record = record(1);
        let index = RULES
            .iter()
            .position(|other| other.name == rule.name)
            .unwrap();
        *record.fields_mut()[index] = "x".repeat(rule.max_size_bytes);
        record.check().unwrap();
        record.fields_mut()[index].push('x');
        assert_eq!(
            record.check().unwrap_err().code(),
            "field-too-long",
            "{}",
            rule.name
        );
    }
}

#[test]
fn prose_may_have_line_breaks_and_spaces_around_it() {
    let line = r#"{"question":" q\r\n\tq ","answer":"\na","contributor":"c d","license":"l"}"#;
    Record::from_json(line.as_bytes()).unwrap();
}

proptest! {
    #[test]
    fn canonical_json_reads_back(
        question in "\\PC{1,30}x", answer in "x(\\PC|[\\n\\t\"\\\\]){0,30}", id in "[a-z\"\\\\/é]{0,9}"
    ) {
        let record = Record { id, question, answer, ..record(1) };
        prop_assume!(record.check().is_ok());
        prop_assert_eq!(Record::from_json(&record.canonical_json()), Ok(record));
    }

    #[test]
    fn any_bytes_give_an_answer(bytes in prop::collection::vec(any::<u8>(), 0..80)) {
        let _ = Record::from_json(&bytes);
    }

    #[test]
    fn changed_lines_give_an_answer(at in 0..GOOD.len(), byte in any::<u8>()) {
        let mut bytes = GOOD.as_bytes().to_vec();
        bytes[at] = byte;
        if let Ok(record) = Record::from_json(&bytes) {
            prop_assert_eq!(Record::from_json(&record.canonical_json()), Ok(record));
        }
    }
}
