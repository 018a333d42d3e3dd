use ol_types::keccak256;
use proptest::prelude::*;

use super::*;

pub(crate) fn committed(question: &str, answer: &str, owner: u8, cluster: u32) -> CommittedRecord {
    let record = Record {
        question: question.to_owned(),
        answer: answer.to_owned(),
        contributor: format!("writer-{owner}"),
        license: "CC0-1.0".to_owned(),
        ..Record::default()
    };
    CommittedRecord {
        record_hash: keccak256(record.canonical_json()),
        record,
        contributor_address: Address::repeat_byte(owner),
        cluster,
    }
}

#[test]
fn a_short_record_is_one_passage_and_copies_are_none() {
    let records = [
        committed("Who?", "Ann did.", 1, 0),
        committed("who?", "ann  did.", 2, 0),
        committed("Why?", "Nobody knows.", 2, 1),
    ];
    let passages = Passages::cut(&records, CutRule::default()).unwrap();
    let texts: Vec<&str> = passages.iter().map(|p| p.text).collect();
    assert_eq!(texts, ["Who?\nAnn did.", "Why?\nNobody knows."]);
    let first = passages.get(0).unwrap();
    assert_eq!((first.start, first.end), (0, 13));
    assert_eq!(first.source.address, Address::repeat_byte(1));
    assert_eq!(first.source.record, records[0].record_hash);
    assert!(passages.get(2).is_none());
}

#[test]
fn cuts_are_at_sentences_where_they_can_be() {
    let sentence = "One two three four five six. ";
    let text = sentence.repeat(4);
    let cuts = cut(&text, 8);
    let texts: Vec<&str> = cuts.iter().map(|range| &text[range.clone()]).collect();
    assert_eq!(texts, [sentence.trim_end(); 4]);
    // No sentence ends: between words.
    let text = "a b c d e f g h i j k";
    let texts: Vec<&str> = cut(text, 8).into_iter().map(|range| &text[range]).collect();
    assert_eq!(texts, ["a b c d e f g h", "i j k"]);
}

#[test]
fn a_rule_out_of_range_is_refused() {
    for words_max in [0, 7, 4_097] {
        let cut = Passages::cut(&[], CutRule { words_max });
        assert_eq!(cut.unwrap_err(), PassageError::Rule { words_max });
    }
    let none = Passages::cut(&[], CutRule::default()).unwrap();
    assert!(none.is_empty() && none.iter().next().is_none());
}

proptest! {
    /// Passages hold all that is no white space, in order, each within its
    /// limits, whatever the text.
    #[test]
    fn nothing_is_lost(text in "[a-zé. ,!\\n\u{1F980}\u{3000}]{0,900}", words_max in 8..40_usize) {
        let mut held = String::new();
        let mut last = 0;
        for range in cut(&text, words_max) {
            prop_assert!(last <= range.start && range.start < range.end);
            prop_assert!(words(&text[range.clone()]).count() <= words_max);
            prop_assert!(range.len() <= words_max * WORD_SIZE_BYTES_MAX);
            prop_assert_eq!(text[last..range.start].trim(), "");
            held.push_str(&text[range.clone()]);
            last = range.end;
        }
        prop_assert_eq!(text[last..].trim(), "");
        let dense = |text: &str| text.split_whitespace().collect::<String>();
        prop_assert_eq!(dense(&held), dense(&text));
    }
}
