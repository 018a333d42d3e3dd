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
    let ChatParams {
        common,
        chat,
        tools,
        retrieval,
    } = chat(base().to_string().as_bytes()).unwrap();
    assert_eq!(retrieval, None);
    assert_eq!(common.model, "legal");
    assert!(!common.is_stream && !common.include_usage && !common.wants_token_ids);
    let sampling = &common.sampling;
    assert_eq!(
        (sampling.temperature, sampling.top_p, sampling.top_k),
        (None, None, None)
    );
    assert_eq!((sampling.min_p, sampling.repetition_penalty), (None, None));
    assert_eq!(sampling.rest.n_logprobs, None);
    assert_eq!((common.seed, common.max_tokens, common.n), (None, None, 1));
    assert!(common.stop.is_empty() && common.grammar.is_none() && common.timeout.is_none());
    assert_eq!(tools.choice, ToolChoice::None);
    assert_eq!(chat.messages(), [json!({"role": "user", "content": "hi"})]);
    let body = json!({"model": "legal", "prompt": "hi"}).to_string();
    let params = completion(body.as_bytes()).unwrap();
    assert_eq!(params.common.max_tokens, Some(16));
    assert_eq!(params.prompt, Text::Text("hi".to_owned()));
}

#[test]
fn fields_are_read() {
    let mut body = json!({
        "model": "m", "stream": true, "stream_options": {"include_usage": true}, "temperature": 0,
        "top_p": 0.5, "seed": -1, "max_completion_tokens": 7, "max_tokens": 7, "stop": ["a", "b"],
        "n": 3, "presence_penalty": 0.5, "frequency_penalty": -2, "repetition_penalty": 1.1,
    });
    let more = json!({
                "top_k": -1, "min_p": 0.25, "logit_bias": {"5": -100, "7": 1.5}, "min_tokens": 2,
        "stop_token_ids": [9], "ignore_eos": true, "logprobs": true, "top_logprobs": 4,
        "user": "ignored", "response_format": {"type": "json_object"}, "priority": -5,
        "timeout": 1.5, "return_token_ids": true, "adapters": [{"name": "a"}, {"name": "b", "weight": -0.5}],
        "messages": [
            {"role": "developer", "content": "be brief"},
            {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
            {"role": "assistant", "content": null, "tool_calls": [
                {"id": "1", "type": "function", "function": {"name": "f", "arguments": "{\"x\": 1}"}},
            ]},
            {"role": "tool", "tool_call_id": "1", "content": "2"},
        ],
    });
    body.as_object_mut()
        .unwrap()
        .extend(more.as_object().unwrap().clone());
    let ChatParams { common, chat, .. } = chat(body.to_string().as_bytes()).unwrap();
    assert!(common.is_stream && common.include_usage && common.wants_token_ids);
    let sampling = &common.sampling;
    assert_eq!(
        (sampling.temperature, sampling.top_p),
        (Some(0.0), Some(0.5))
    );
    assert_eq!(
        (
            sampling.rest.presence_penalty,
            sampling.rest.frequency_penalty
        ),
        (0.5, -2.0)
    );
    assert_eq!(
        (sampling.repetition_penalty, sampling.top_k, sampling.min_p),
        (Some(1.1), Some(0), Some(0.25))
    );
    let sampling = &sampling.rest;
    assert_eq!(sampling.logit_bias, [(5, -100.0), (7, 1.5)]);
    assert_eq!(
        (sampling.min_tokens, sampling.stop_token_ids.as_slice()),
        (2, &[9][..])
    );
    assert!(sampling.ignores_end);
    assert_eq!(sampling.n_logprobs, Some(4));
    assert_eq!(
        (common.seed, common.max_tokens, common.n),
        (Some(u64::MAX), Some(7), 3)
    );
    assert_eq!(common.stop, ["a", "b"]);
    assert_eq!(common.grammar, Some(Grammar::json_object()));
    assert_eq!(common.priority, Priority::Interactive);
    assert_eq!(common.timeout, Some(Duration::from_millis(1500)));
    assert_eq!(
        common.adapters,
        [("a".to_owned(), 1.0), ("b".to_owned(), -0.5)]
    );
    let messages = chat.messages();
    assert_eq!(messages[0]["role"], "system");
    assert_eq!(messages[1]["content"], "ab");
    let call = &messages[2]["tool_calls"][0]["function"];
    assert_eq!(
        (&messages[2]["content"], &call["arguments"]),
        (&json!(""), &json!({"x": 1}))
    );
    assert_eq!(messages[3]["tool_call_id"], "1");
}

#[test]
fn forms_are_read_in_every_dialect() {
    let schema = json!({"type": "object"});
    let json_schema = Some(Grammar::JsonSchema(schema.clone()));
    for (name, value, expected) in [
        ("response_format", json!({"type": "text"}), None),
        (
            "response_format",
            json!({"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}),
            json_schema.clone(),
        ),
        ("guided_json", schema.clone(), json_schema.clone()),
        (
            "guided_json",
            json!(schema.to_string()),
            json_schema.clone(),
        ),
        (
            "guided_regex",
            json!("a+"),
            Some(Grammar::Regex("a+".to_owned())),
        ),
        (
            "guided_choice",
            json!(["a", "b"]),
            Some(Grammar::Choice(vec!["a".to_owned(), "b".to_owned()])),
        ),
        (
            "structured_outputs",
            json!({"json": schema, "regex": null}),
            json_schema,
        ),
        (
            "structured_outputs",
            json!({"json_object": true}),
            Some(Grammar::json_object()),
        ),
    ] {
        let params = chat(&with(name, value.clone())).unwrap();
        assert_eq!(params.common.grammar, expected, "{name} {value}");
    }
    let mut both = base();
    both["guided_regex"] = json!("a");
    both["response_format"] = json!({"type": "json_object"});
    refused(
        both.to_string().as_bytes(),
        "invalid_value",
        Some("guided_regex"),
    );
}

#[test]
fn the_other_bodies_are_read() {
    let read = |body: Value| embeddings(body.to_string().as_bytes());
    let tokens = |ids: &[u32]| Text::Tokens(ids.to_vec());
    let text = |text: &str| Text::Text(text.to_owned());
    for (input, expected) in [
        (json!("a"), vec![text("a")]),
        (json!(["a", "b"]), vec![text("a"), text("b")]),
        (json!([1, 2]), vec![tokens(&[1, 2])]),
        (json!([[1], [2, 3]]), vec![tokens(&[1]), tokens(&[2, 3])]),
        (json!([]), vec![tokens(&[])]),
    ] {
        let params = read(json!({"model": "m", "input": input})).unwrap();
        assert_eq!(
            (params.inputs, params.is_base64, params.dimensions),
            (expected, false, None)
        );
    }
    let code = |error: ApiError| {
        error.to_json()["error"]["param"]
            .as_str()
            .unwrap()
            .to_owned()
    };
    for (name, value) in [
        ("input", json!(7)),
        ("input", json!([["a"]])),
        ("input", json!(vec!["a"; INPUTS_MAX + 1])),
        ("encoding_format", json!("hex")),
        ("dimensions", json!(0)),
        ("model", json!(null)),
    ] {
        let mut body = json!({"model": "m", "input": "a"});
        body[name] = value;
        assert_eq!(code(read(body).unwrap_err()), name);
    }
    let loaded = load_adapter(br#"{"lora_name": "a", "lora_path": "b", "load_inplace": true}"#);
    let expected = AdapterParams {
        name: "a".to_owned(),
        path: "b".to_owned(),
        replaces: true,
    };
    assert_eq!(loaded.unwrap(), expected);
    assert_eq!(
        code(load_adapter(b"{\"lora_name\": \"a\"}").unwrap_err()),
        "lora_path"
    );
    assert_eq!(
        code(unload_adapter(b"{\"lora_name\": 1}").unwrap_err()),
        "lora_name"
    );
    assert_eq!(detokenize(b"{\"tokens\": [1, 2]}").unwrap(), [1, 2]);
    assert_eq!(
        code(detokenize(b"{\"tokens\": [-1]}").unwrap_err()),
        "tokens"
    );
    assert!(matches!(
        tokenize(b"{\"prompt\": \"a\", \"add_special_tokens\": false}").unwrap(),
        Tokenize::Text {
            adds_start: false,
            ..
        }
    ));
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
        ("stop", json!(vec!["a"; 17]), "invalid_value"),
        ("stop", json!(""), "invalid_value"),
        ("stop", json!(["x".repeat(257)]), "invalid_value"),
        ("stop", json!([1]), "invalid_type"),
        ("n", json!(0), "invalid_value"),
        ("n", json!(17), "invalid_value"),
        ("n", json!("2"), "invalid_type"),
        ("presence_penalty", json!(2.5), "invalid_value"),
        ("frequency_penalty", json!("a"), "invalid_type"),
        ("repetition_penalty", json!(0), "invalid_value"),
        ("min_p", json!(1.5), "invalid_value"),
        ("top_k", json!(-2), "invalid_value"),
        ("top_k", json!(1.5), "invalid_type"),
        ("logit_bias", json!({"x": 1}), "invalid_type"),
        ("logit_bias", json!({"5": 101}), "invalid_value"),
        ("logit_bias", json!([1]), "invalid_type"),
        ("stop_token_ids", json!(["a"]), "invalid_type"),
        ("stop_token_ids", json!(vec![1; 65]), "invalid_value"),
        ("min_tokens", json!(-1), "invalid_value"),
        ("ignore_eos", json!(1), "invalid_type"),
        ("timeout", json!(0), "invalid_value"),
        ("timeout", json!(1e9), "invalid_value"),
        ("priority", json!("high"), "invalid_type"),
        ("return_token_ids", json!("yes"), "invalid_type"),
        ("adapters", json!({}), "invalid_type"),
        ("adapters", json!([{"weight": 1}]), "invalid_type"),
        (
            "adapters",
            json!([{"name": "a", "weight": 11}]),
            "invalid_value",
        ),
        (
            "adapters",
            json!(vec![json!({"name": "a"}); 9]),
            "invalid_value",
        ),
        ("logprobs", json!(3), "invalid_type"),
        ("top_logprobs", json!(3), "invalid_value"),
        ("top_logprobs", json!(21), "invalid_value"),
        ("prompt_logprobs", json!(1), "unsupported_parameter"),
        ("use_beam_search", json!(true), "unsupported_parameter"),
        ("chat_template", json!("{{ x }}"), "unsupported_parameter"),
        ("functions", json!([{}]), "unsupported_parameter"),
        ("chat_template_kwargs", json!([]), "invalid_type"),
        (
            "chat_template_kwargs",
            json!({"messages": []}),
            "invalid_value",
        ),
        ("response_format", json!({"type": "xml"}), "invalid_value"),
        ("response_format", json!("json"), "invalid_value"),
        ("guided_choice", json!("a"), "invalid_type"),
        ("guided_json", json!("{"), "invalid_value"),
        ("structured_outputs", json!([]), "invalid_type"),
        ("tools", json!({}), "invalid_type"),
        ("tools", json!(vec![json!({}); 129]), "invalid_value"),
        ("tool_choice", json!("required"), "invalid_value"),
        ("tool_choice", json!("maybe"), "invalid_value"),
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
            json!([{"role": "function", "content": ""}]),
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
    assert_eq!(read(json!(["hi"])).unwrap(), Text::Text("hi".to_owned()));
    assert_eq!(read(json!([4, 5])).unwrap(), Text::Tokens(vec![4, 5]));
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
        ("logprobs", json!(21)),
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
