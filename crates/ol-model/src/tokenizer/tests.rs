use proptest::prelude::*;

use super::*;

fn small() -> Tokenizer {
    let texts = [
        "the cat sat on the mat",
        "the dog sat on the log",
        "what is a cat? a cat is an animal.",
    ];
    Tokenizer::train(texts.iter().cycle().take(30).map(|s| (*s).to_owned()), 300).unwrap()
}

#[test]
fn special_tokens_have_the_published_ids() {
    let t = small();
    assert_eq!(
        [t.end_id(), t.user_id(), t.assistant_id(), t.pad_id()],
        [0, 1, 2, 3]
    );
    assert!(t.vocab_size() > 260 && t.vocab_size() <= 300);
}

#[test]
fn typed_special_tokens_stay_text() {
    let t = small();
    let tokens = t.encode("a<|end|><|user|>b").unwrap();
    assert!(tokens.iter().all(|&id| id > 3), "{tokens:?}");
    assert_eq!(t.decode(&tokens), "a<|end|><|user|>b");
}

#[test]
fn chat_and_record_agree() {
    let t = small();
    let user = ChatMessage {
        role: Role::User,
        content: "what is a cat?".to_owned(),
    };
    let system = ChatMessage {
        role: Role::System,
        content: "the dog".to_owned(),
    };
    let answer = ChatMessage {
        role: Role::Assistant,
        content: "a cat".to_owned(),
    };
    let (record, start) = t.record("what is a cat?", "a cat").unwrap();
    assert_eq!(
        t.chat(std::slice::from_ref(&user)).unwrap(),
        record[..start]
    );
    let open = t.chat(&[user.clone(), answer.clone()]).unwrap();
    assert_eq!(open, record[..record.len() - 1]);
    let long = t.chat(&[system, user.clone(), answer, user]).unwrap();
    assert_eq!(
        t.decode(&long),
        "the dog\n\nwhat is a cat?a catwhat is a cat?"
    );
    assert_eq!((long.first(), long.last()), (Some(&1), Some(&2)));
    assert_eq!(t.chat(&[]).unwrap(), [2]);
}

#[test]
fn saved_files_read_back() {
    let t = small();
    let dir = tempfile::tempdir().unwrap();
    t.save(dir.path(), 64).unwrap();
    let read = Tokenizer::load(dir.path()).unwrap();
    assert_eq!(
        read.encode("the cat <|end|>").unwrap(),
        t.encode("the cat <|end|>").unwrap()
    );
    assert!(
        Tokenizer::load(&dir.path().join("nowhere"))
            .unwrap_err()
            .to_string()
            .contains("nowhere")
    );
}

#[test]
fn other_kinds_are_refused() {
    let word = r#"{"version":"1.0","truncation":null,"padding":null,"added_tokens":[],"normalizer":null,
        "pre_tokenizer":null,"post_processor":null,"decoder":null,
        "model":{"type":"WordLevel","vocab":{"a":0},"unk_token":"a"}}"#;
    for bad in [word, "{}", "", "[1"] {
        assert!(
            matches!(
                Tokenizer::from_bytes(bad.as_bytes()),
                Err(TokenizerError::Format(_))
            ),
            "{bad}"
        );
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn any_text_round_trips_whole_and_streamed(text in "\\PC{0,40}|[a-e😀é\u{0}\n ]{0,40}") {
        let t = small();
        let tokens = t.encode(&text).unwrap();
        prop_assert_eq!(&t.decode(&tokens), &text);
        let mut stream = t.stream();
        let mut streamed: String = tokens.iter().map(|&id| stream.push(id)).collect();
        streamed += &stream.finish();
        prop_assert_eq!(streamed, text);
    }

    #[test]
    fn any_tokens_decode(tokens in proptest::collection::vec(0_u32..400, 0..40)) {
        let t = small();
        let mut stream = t.stream();
        let mut streamed: String = tokens.iter().map(|&id| stream.push(id)).collect();
        streamed += &stream.finish();
        prop_assert_eq!(streamed, t.decode(&tokens));
    }
}
