//! Replies as vLLM 0.32 and `openledger serve` give them, and as they should
//! not.

use proptest::prelude::*;

use super::*;

fn tokens(data: &str) -> (Vec<u32>, Option<FinishReason>) {
    match chunk(data).unwrap() {
        Chunk::Tokens(tokens) => (tokens.token_ids, tokens.finish_reason),
        other => panic!("{other:?}"),
    }
}

#[test]
fn the_chunks_of_vllm_are_understood() {
    let first = r#"{"id":"cmpl-1","object":"text_completion","created":1,"model":"legal@00",
        "choices":[{"index":0,"text":" a","logprobs":null,"finish_reason":null,"stop_reason":null,
        "prompt_token_ids":[1,2],"token_ids":[7]}],"usage":null}"#;
    let expected = Chunk::Tokens(Tokens {
        model: "legal@00".to_owned(),
        token_ids: vec![7],
        prompt_token_ids: Some(vec![1, 2]),
        ..Tokens::default()
    });
    assert_eq!(chunk(first).unwrap(), expected);
    let last = r#"{"model":"m","choices":[{"index":0,"text":"","finish_reason":"stop","stop_reason":null,"token_ids":[2]}]}"#;
    assert_eq!(tokens(last), (vec![2], Some(FinishReason::Stop)));
    let usage = r#"{"model":"m","choices":[],"usage":{"prompt_tokens":2}}"#;
    assert_eq!(tokens(usage), (vec![], None));
    assert_eq!(chunk("[DONE]").unwrap(), Chunk::Done);
    let failed = r#"{"error":{"object":"error","message":"out of memory","type":"InternalServerError","code":500}}"#;
    let expected = Chunk::Failed {
        message: "out of memory".to_owned(),
    };
    assert_eq!(chunk(failed).unwrap(), expected);
}

#[test]
fn what_cannot_be_accounted_for_is_refused() {
    for data in [
        "",
        "null",
        "{}x",
        r#"{"choices":[{"token_ids":[-1]}]}"#,
        r#"{"choices":[{"token_ids":[4294967296]}]}"#,
        r#"{"choices":[{"token_ids":[1]},{"token_ids":[1]}]}"#,
        r#"{"choices":[{"text":"hello"}]}"#,
        r#"{"choices":[{"token_ids":[],"finish_reason":"magic"}]}"#,
    ] {
        assert!(chunk(data).is_err(), "{data}");
    }
}

#[test]
fn calls_for_adapters_are_understood() {
    let twice = br#"{"error":{"message":"The lora adapter 'x' has already been loaded. If you want to load the adapter in place, set 'load_inplace' to True.","type":"InvalidUserInput","code":400}}"#;
    let bad =
        br#"{"error":{"message":"No adapter found for /x","type":"NotFoundError","code":404}}"#;
    for (status, body, is_expected) in [
        (
            200,
            &b"Success: LoRA adapter 'x' added successfully."[..],
            (|l| l == Loaded::Yes) as fn(Loaded) -> bool,
        ),
        (400, twice, |l| l == Loaded::Yes),
        (404, bad, |l| matches!(l, Loaded::Refused(_))),
        (400, b"nonsense", |l| matches!(l, Loaded::Refused(_))),
        (429, b"", |l| matches!(l, Loaded::Full(_))),
        (401, b"", |l| matches!(l, Loaded::Broken(_))),
        (500, b"\xff", |l| matches!(l, Loaded::Broken(_))),
    ] {
        let status = StatusCode::from_u16(status).unwrap();
        assert!(is_expected(loaded(status, body)), "{status}");
    }
    let list = br#"{"object":"list","data":[{"id":"base","parent":null,"root":"/b"},{"id":"legal@00","parent":"base","root":"/a"}]}"#;
    let expected = Models {
        base: Some("base".to_owned()),
        adapters: vec!["legal@00".to_owned()],
    };
    assert_eq!(models(list).unwrap(), expected);
    assert!(models(b"[]").is_err());
}

proptest! {
    #[test]
    fn any_text_is_read_or_refused(text in ".{0,200}") {
        let _ = chunk(&text);
        let _ = models(text.as_bytes());
        let _ = refusal(StatusCode::BAD_REQUEST, text.as_bytes());
    }
}
