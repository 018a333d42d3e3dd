//! Goal: calls are found in what each family writes, however its text is cut;
//! what is no call stays text.

use ol_serve::ConstraintCompiler;
use proptest::prelude::*;

use super::*;
use crate::api::params;

fn tokenizer() -> Tokenizer {
    Tokenizer::train(["a b c".to_owned()].into_iter(), 300).unwrap()
}

fn tools(choice: Value) -> Tools {
    let body = json!({
        "model": "m", "messages": [{"role": "user", "content": "hi"}], "tool_choice": choice,
        "tools": [
            {"type": "function", "function": {"name": "add", "parameters": {
                "type": "object", "properties": {"a": {"$ref": "#/$defs/n"}}, "required": ["a"],
                "additionalProperties": false, "$defs": {"n": {"type": "integer", "minimum": 0, "maximum": 9}},
            }}},
            {"type": "function", "function": {"name": "now"}},
        ],
    });
    params::chat(body.to_string().as_bytes()).unwrap().tools
}

/// Content and `(name, arguments)` of the calls in a text that comes in pieces.
fn parse(form: Form, pieces: &[&str]) -> (String, Vec<(String, String)>) {
    let mut parser = ToolParser::for_form(form);
    let (mut content, mut calls) = (String::new(), Vec::<(String, String)>::new());
    let mut take = |parsed: Parsed| {
        content.push_str(&parsed.content);
        for call in parsed.calls {
            let Some((id, name)) = call.head else {
                let (_, arguments) = calls.last_mut().unwrap();
                arguments.push_str(&call.arguments);
                continue;
            };
            assert_eq!(
                (id, call.index),
                (format!("id{}", calls.len()), calls.len())
            );
            calls.push((name, call.arguments));
        }
    };
    for piece in pieces {
        take(parser.push(0, piece));
    }
    take(parser.finish(""));
    (content, calls)
}

fn call(name: &str, arguments: &str) -> (String, String) {
    (name.to_owned(), arguments.to_owned())
}

#[test]
fn every_family_is_read() {
    let two_again = vec![call("add", r#"{"a": 1}"#), call("now", "{}")];
    // As it was written where it is passed on as it comes.
    let one = vec![call("add", r#"{"a": 1}"#)];
    let two = vec![call("add", r#"{"a": 1}"#), call("now", "{}")];
    let cases = [
        (
            Form::Hermes,
            r#"Let me see.<tool_call>
{"name": "add", "arguments": {"a": 1}}
</tool_call>"#,
            "Let me see.",
            one.clone(),
        ),
        (
            Form::Hermes,
            r#"<tool_call>{"name": "add", "arguments": {"a": 1}}</tool_call>
<tool_call>{"name": "now", "arguments": {}}</tool_call>"#,
            "",
            two.clone(),
        ),
        (
            Form::Llama,
            r#"{"name": "add", "parameters": {"a": 1}}"#,
            "",
            one.clone(),
        ),
        (
            Form::Llama,
            r#"<|python_tag|>{"name": "add", "parameters": {"a": 1}}; {"name": "now"}"#,
            "",
            two.clone(),
        ),
        (
            Form::Mistral,
            r#"[TOOL_CALLS][{"name": "add", "arguments": {"a": 1}}, {"name": "now", "arguments": {}}]"#,
            "",
            two.clone(),
        ),
        (
            Form::Mistral,
            r#"Hm.[TOOL_CALLS]add[ARGS]{"a": 1}[TOOL_CALLS]now[ARGS]{}"#,
            "Hm.",
            two.clone(),
        ),
        (
            Form::DeepSeek,
            "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>add\n```json\n{\"a\": 1}\n```<｜tool▁call▁end｜><｜tool▁calls▁end｜>",
            "",
            one,
        ),
        (
            Form::DeepSeek,
            "So:<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>add<｜tool▁sep｜>{\"a\": 1}<｜tool▁call▁end｜><｜tool▁call▁begin｜>now<｜tool▁sep｜>{}<｜tool▁call▁end｜><｜tool▁calls▁end｜>",
            "So:",
            two,
        ),
        // What is no call is text.
        (Form::Hermes, "a <tool_call b", "a <tool_call b", Vec::new()),
        (
            Form::Hermes,
            "<tool_call>no json</tool_call>",
            "<tool_call>no json</tool_call>",
            Vec::new(),
        ),
        (
            Form::Hermes,
            "x<tool_call>{\"name\"",
            "x<tool_call>{\"name\"",
            Vec::new(),
        ),
        (
            Form::Llama,
            "plain {\"name\": \"add\"}",
            "plain {\"name\": \"add\"}",
            Vec::new(),
        ),
        (Form::Llama, "{\"no\": 1}", "{\"no\": 1}", Vec::new()),
        (Form::Mistral, "[TOOL", "[TOOL", Vec::new()),
        // Marks within arguments are text of theirs.
        (
            Form::Hermes,
            r#"<tool_call>{"name": "add", "arguments": {"a": "</tool_call>{\""}, "id": 7} </tool_call>!"#,
            "!",
            vec![call("add", r#"{"a": "</tool_call>{\""}"#)],
        ),
        // An answer that is cut short ends in the middle of a call.
        (
            Form::Hermes,
            r#"<tool_call>{"name": "add", "arguments": {"a": [1, "#,
            "",
            vec![call("add", r#"{"a": [1, "#)],
        ),
        // Arguments that are no object, or come first, are read when they are whole.
        (
            Form::Hermes,
            r#"<tool_call>{"arguments": {"a": 1}, "name": "add"}</tool_call><tool_call>{"name": "now", "arguments": "{}"}</tool_call>"#,
            "",
            two_again,
        ),
    ];
    for (form, text, content, calls) in cases {
        let whole = parse(form, &[text]);
        let spaced = |(name, arguments): &(String, String)| {
            (name.clone(), arguments.replace("{\"a\":1}", "{\"a\": 1}"))
        };
        let found = (whole.0.clone(), whole.1.iter().map(spaced).collect());
        assert_eq!(found, (content.to_owned(), calls), "{form:?} {text}");
        let letters: Vec<String> = text.chars().map(String::from).collect();
        let letters: Vec<&str> = letters.iter().map(String::as_str).collect();
        assert_eq!(
            parse(form, &letters),
            whole,
            "{form:?} {text}, letter by letter"
        );
    }
}

proptest! {
    /// No text is lost, and nothing panics, whatever a model writes.
    #[test]
    fn any_text_is_survived(pieces in prop::collection::vec(
        prop_oneof!["[a-z{}\\[\\]\"<>: ]{0,6}", Just("<tool_call>".to_owned()), Just("</tool_call>".to_owned()),
            Just("[TOOL_CALLS]".to_owned()), Just("<｜tool▁calls▁begin｜>".to_owned()), Just("{\"name\":\"x\"}".to_owned()), Just("{\"name\":\"x\",\"arguments\":{".to_owned())], 0..12)) {
        let pieces: Vec<&str> = pieces.iter().map(String::as_str).collect();
        let text = pieces.concat();
        for form in [Form::Hermes, Form::Llama, Form::Mistral, Form::DeepSeek] {
            let (content, calls) = parse(form, &pieces);
            prop_assert_eq!(parse(form, &[&text]), (content.clone(), calls.clone()));
            if calls.is_empty() && matches!(form, Form::Hermes | Form::Llama) {
                prop_assert_eq!(content, text.clone());
            }
        }
    }
}

/// White space around a call is the call's, before text it is the text's.
#[test]
fn the_cuts_do_not_decide_about_white_space() {
    let call = "<tool_call>{\"name\":\"x\"}</tool_call>";
    for (after, content) in [
        (" \n", ""),
        (" </tool_call>", " </tool_call>"),
        ("\n so \n", "\n so"),
        (" <tool_c", " <tool_c"),
    ] {
        let text = format!("{call}{after}{call}{after}");
        let pieces: Vec<String> = text.chars().map(String::from).collect();
        let pieces: Vec<&str> = pieces.iter().map(String::as_str).collect();
        for pieces in [pieces.as_slice(), &[&text]] {
            let (found, calls) = parse(Form::Hermes, pieces);
            assert_eq!((found, calls.len()), (content.repeat(2), 2), "{after:?}");
        }
    }
}

#[test]
fn a_call_that_must_be_made_has_the_functions_form() {
    let tokenizer = tokenizer();
    let compiler = ConstraintCompiler::new(&tokenizer).unwrap();
    for choice in [
        json!("required"),
        json!({"type": "function", "function": {"name": "add"}}),
    ] {
        let grammar = tools(choice).grammar().unwrap();
        compiler.compile(&grammar).unwrap();
    }
    assert!(tools(json!("auto")).grammar().is_none());
    assert!(tools(json!("none")).grammar().is_none());
    let required = tools(json!("required"));
    let mut parser = required.parser(&tokenizer, "id".to_owned()).unwrap();
    assert_eq!(
        parser.push(0, r#"[{"name": "add", "param"#),
        Parsed::default()
    );
    let begun = parser.push(0, r#"eters": {"a"#).calls.remove(0);
    assert_eq!(begun.head, Some(("id0".to_owned(), "add".to_owned())));
    assert_eq!(begun.arguments, r#"{"a"#);
    let parsed = parser.finish(r#"": 3}}]"#);
    assert_eq!(parsed.content, "");
    assert_eq!(parsed.calls[0].arguments, r#"": 3}"#);
    assert!(parser.has_called());
    let named = tools(json!({"type": "function", "function": {"name": "add"}}));
    let mut parser = named.parser(&tokenizer, "id".to_owned()).unwrap();
    let first = parser.push(0, "{\"a\"").calls.remove(0);
    assert_eq!(first.head, Some(("id0".to_owned(), "add".to_owned())));
    let second = parser.push(0, ": 3}").calls.remove(0);
    assert_eq!((second.head, second.arguments.as_str()), (None, ": 3}"));
    assert!(
        !parser.has_called(),
        "a named call ends with `stop`, as OpenAI's do"
    );
}

#[test]
fn bad_tools_are_refused_by_name() {
    let body = |tools: Value, choice: Value| {
        json!({"model": "m", "messages": [{"role": "user", "content": "hi"}], "tools": tools, "tool_choice": choice})
            .to_string()
    };
    let named = |name: &str| json!([{"type": "function", "function": {"name": name}}]);
    for (tools, choice, param) in [
        (
            json!([{"type": "web_search"}]),
            json!("auto"),
            "tools[0].type",
        ),
        (
            json!([{"type": "function"}]),
            json!("auto"),
            "tools[0].function.name",
        ),
        (named("a b"), json!("auto"), "tools[0].function.name"),
        (
            named(&"x".repeat(65)),
            json!("auto"),
            "tools[0].function.name",
        ),
        (
            json!([{"type": "function", "function": {"name": "a", "parameters": 1}}]),
            json!("auto"),
            "tools[0].function.parameters",
        ),
        (
            named("a"),
            json!({"type": "function", "function": {"name": "b"}}),
            "tool_choice",
        ),
        (
            named("a"),
            json!({"type": "function"}),
            "tool_choice.function.name",
        ),
        (named("a"), json!(1), "tool_choice"),
    ] {
        let error = params::chat(body(tools, choice).as_bytes()).unwrap_err();
        assert_eq!(error.to_json()["error"]["param"], param);
    }
}
