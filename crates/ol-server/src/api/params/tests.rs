//! Goal: a good body is read as meant; a bad one is refused by the field's name.

use proptest::prelude::*;
use serde_json::json;

use super::*;

fn base() -> Value {
    json!({"model": "legal", "messages": [{"role": "user", "content": "hi"}]})
}

fn with(name: &str, value: Value) -> Vec<u8> {
    let mut body = base();
    body[name] = value;
    body.to_string().into_bytes()
}

#[track_caller]
fn refused(body: &[u8], code: &str, param: Option<&str>) {
    let error = chat(body).unwrap_err().to_json();
    assert_eq!(error["error"]["code"], code, "{error}");
    assert_eq!(error["error"]["param"].as_str(), param, "{error}");
}

#[test]
fn defaults_are_openais() {
    let ChatParams { common, messages } = chat(base().to_string().as_bytes()).unwrap();
    let expected = Common {
        model: "legal".to_owned(),
        is_stream: false,
        include_usage: false,
        temperature: 1.0,
        top_p: 1.0,
        seed: None,
        max_tokens: None,
        stop: Vec::new(),
    };
    assert_eq!(common, expected);
    assert_eq!(
        (messages[0].role, messages[0].content.as_str()),
        (Role::User, "hi")
    );
    let body = json!({"model": "legal", "prompt": "hi"}).to_string();
    let params = completion(body.as_bytes()).unwrap();
    assert_eq!(params.common.max_tokens, Some(16));
    assert_eq!(params.prompt, CompletionPrompt::Text("hi".to_owned()));
}

#[test]
fn fields_are_read() {
    let body = json!({
        "model": "m", "stream": true, "stream_options": {"include_usage": true}, "temperature": 0,
        "top_p": 0.5, "seed": -1, "max_completion_tokens": 7, "max_tokens": 7, "stop": ["a", "b"],
        "n": 1, "presence_penalty": 0, "tools": [], "user": "ignored", "logprobs": null,
        "response_format": {"type": "text"},
        "messages": [
            {"role": "developer", "content": "be brief"},
            {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
        ],
    });
    let ChatParams { common, messages } = chat(body.to_string().as_bytes()).unwrap();
    assert!(common.is_stream && common.include_usage);
    assert_eq!((common.temperature, common.top_p), (0.0, 0.5));
    assert_eq!((common.seed, common.max_tokens), (Some(u64::MAX), Some(7)));
    assert_eq!(common.stop, ["a", "b"]);
    assert_eq!(
        (messages[0].role, messages[1].content.as_str()),
        (Role::System, "ab")
    );
}

#[test]
fn bad_bodies_are_refused() {
    refused(b"\xff{}", "invalid_utf8", None);
    refused(b"{\"model\": \"\xc3\"}", "invalid_utf8", None);
    refused(b"", "malformed_json", None);
    refused(b"{\"model\":", "malformed_json", None);
    refused(b"[]", "malformed_json", None);
    refused(b"{\"model\":\"\\ud800\"}", "malformed_json", None);
    refused(
        &[b"{\"a\":".as_slice(), &b"[".repeat(10_000)].concat(),
        "malformed_json",
        None,
    );
    refused(b"{}", "missing_required_parameter", Some("model"));
    refused(
        b"{\"model\":\"m\"}",
        "missing_required_parameter",
        Some("messages"),
    );
}

#[test]
fn bad_fields_are_refused_by_name() {
    let cases = [
        ("model", json!(1), "invalid_type"),
        ("stream", json!("yes"), "invalid_type"),
        ("stream_options", json!(1), "invalid_type"),
        ("temperature", json!(2.01), "invalid_value"),
        ("temperature", json!(-1), "invalid_value"),
        ("temperature", json!("1"), "invalid_type"),
        ("top_p", json!(1.5), "invalid_value"),
        ("seed", json!(1.5), "invalid_type"),
        ("max_tokens", json!(0), "invalid_value"),
        ("max_tokens", json!(-4), "invalid_value"),
        ("max_completion_tokens", json!("4"), "invalid_value"),
        ("stop", json!(["a", "b", "c", "d", "e"]), "invalid_value"),
        ("stop", json!(""), "invalid_value"),
        ("stop", json!(["x".repeat(257)]), "invalid_value"),
        ("stop", json!([1]), "invalid_type"),
        ("n", json!(2), "unsupported_parameter"),
        ("presence_penalty", json!(0.5), "unsupported_parameter"),
        ("logit_bias", json!({"5": 1}), "unsupported_parameter"),
        ("logprobs", json!(true), "unsupported_parameter"),
        ("top_logprobs", json!(3), "unsupported_parameter"),
        ("tools", json!([{}]), "unsupported_parameter"),
        (
            "response_format",
            json!({"type": "json_object"}),
            "unsupported_parameter",
        ),
        ("messages", json!([]), "invalid_value"),
        ("messages", json!("hi"), "invalid_type"),
        (
            "messages",
            json!(vec![json!({"role": "user", "content": ""}); 1025]),
            "invalid_value",
        ),
    ];
    for (name, value, code) in cases {
        refused(&with(name, value), code, Some(name));
    }
    let cases = [
        (json!([1]), "invalid_type", "messages[0].role"),
        (
            json!([{"role": "tool", "content": ""}]),
            "invalid_value",
            "messages[0].role",
        ),
        (
            json!([{"role": "user"}]),
            "invalid_type",
            "messages[0].content",
        ),
        (
            json!([{"role": "user", "content": [{"type": "image_url"}]}]),
            "unsupported_parameter",
            "messages[0].content[0]",
        ),
    ];
    for (messages, code, param) in cases {
        refused(&with("messages", messages), code, Some(param));
    }
}

#[test]
fn prompts_of_completions() {
    let read = |prompt: Value| {
        let body = json!({"model": "m", "prompt": prompt}).to_string();
        completion(body.as_bytes()).map(|params| params.prompt)
    };
    assert_eq!(
        read(json!(["hi"])).unwrap(),
        CompletionPrompt::Text("hi".to_owned())
    );
    assert_eq!(
        read(json!([4, 5])).unwrap(),
        CompletionPrompt::Tokens(vec![4, 5])
    );
    for bad in [
        json!(["a", "b"]),
        json!([-1]),
        json!([1, "a"]),
        json!(3),
        json!([4_294_967_296_u64]),
        json!(null),
    ] {
        assert!(read(bad.clone()).is_err(), "{bad}");
    }
    for (name, value) in [
        ("echo", json!(true)),
        ("suffix", json!("x")),
        ("logprobs", json!(1)),
        ("best_of", json!(2)),
    ] {
        let mut body = json!({"model": "m", "prompt": "hi"});
        body[name] = value;
        let error = completion(body.to_string().as_bytes())
            .unwrap_err()
            .to_json();
        assert_eq!(error["error"]["param"], name);
    }
}

#[test]
fn messages_of_errors_do_not_quote_the_prompt() {
    let error = chat(b"{\"model\":\"m\",\"messages\":\"my secret\" oops}").unwrap_err();
    assert!(!error.to_json().to_string().contains("secret"));
}

proptest! {
    #[test]
    fn arbitrary_bytes_never_panic(body in prop::collection::vec(any::<u8>(), 0..200)) {
        let _ = chat(&body);
        let _ = completion(&body);
    }
}
