//! Goal: chats as transformers writes them, masks that cover what the assistant
//! wrote, and no content that becomes a control token.
//! Method: fixtures of `fixtures/tokenizers`, whose injections went through
//! transformers' own protection; hostile templates; random contents.

use proptest::prelude::*;

use super::*;
use crate::tokenizer::tests::{ChatCase, FAMILIES, expected, family_dir};
use crate::tokenizer::{ChatTokens, Tokenizer, TokenizerError};

fn load(family: &str) -> Tokenizer {
    Tokenizer::load(&family_dir(family)).unwrap()
}

fn parts(case: &ChatCase) -> (Conversation, ChatOptions) {
    let mut conversation = Conversation::from_json(case.messages.get()).unwrap();
    if let Some(tools) = &case.tools {
        conversation = conversation.with_tools(tools.get()).unwrap();
    }
    let options = ChatOptions {
        // Templates see a clock in transformers, always.
        unix_s: Some(case.now.unwrap_or(1_753_600_000)),
        variables: case.variables.clone(),
        ..ChatOptions::default()
    };
    (conversation, options)
}

/// The text and the tokens, whoever speaks last.
fn render(tokenizer: &Tokenizer, case: &ChatCase) -> Result<(String, ChatTokens), TokenizerError> {
    let (conversation, options) = parts(case);
    let template = tokenizer.template(&conversation, &options)?;
    let raw = template.render(&conversation, &options, case.add_generation_prompt)?;
    let rendered = template.expand(&raw)?;
    Ok((rendered.text.clone(), tokenizer.place(&rendered)?))
}

#[test]
fn chats_are_those_of_transformers() {
    for family in FAMILIES {
        let tokenizer = load(family);
        for (i, case) in expected(family).chats.iter().enumerate() {
            let case_name = format!("{family}, chat {i}");
            match (&case.expected.error, render(&tokenizer, case)) {
                (None, Ok((text, chat))) => {
                    assert_eq!(text, case.expected.text, "{case_name}");
                    assert_eq!(chat.tokens, case.expected.ids, "{case_name}");
                    if let Some(mask) = &case.expected.assistant {
                        let found: Vec<u8> =
                            chat.is_assistant.iter().map(|&is| is.into()).collect();
                        assert_eq!(&found, mask, "{case_name}");
                    }
                }
                (Some(expected), Err(error)) => {
                    assert!(error.to_string().contains(expected), "{case_name}: {error}");
                }
                (expected, found) => panic!("{case_name}: {expected:?}, {found:?}"),
            }
        }
    }
}

#[test]
fn control_tokens_in_contents_stay_text() {
    for family in FAMILIES {
        let tokenizer = load(family);
        for case in expected(family).injections {
            let (_, chat) = render(&tokenizer, &case).unwrap();
            // Pieces may be cut elsewhere; which control tokens there are, and
            // the text, are the same.
            let controls = |ids: &[u32]| -> Vec<u32> {
                let is_control = |id: &&u32| tokenizer.token_bytes(**id).is_empty();
                ids.iter().filter(is_control).copied().collect()
            };
            assert_eq!(controls(&chat.tokens), controls(&case.ids), "{family}");
            // transformers encodes piece by piece, and Llama 2's rules put a
            // space before each.
            let text = |ids: &[u32]| tokenizer.decode(ids).replace(' ', "");
            assert_eq!(text(&chat.tokens), text(&case.ids), "{family}");
        }
    }
}

/// The text of the tokens that are learnt.
fn learnt(tokenizer: &Tokenizer, conversation: &Conversation) -> Vec<String> {
    let chat = tokenizer
        .chat_training(conversation, &ChatOptions::default())
        .unwrap();
    let tokens: Vec<_> = std::iter::zip(&chat.tokens, &chat.is_assistant).collect();
    let turns = tokens.chunk_by(|a, b| a.1 == b.1);
    turns
        .filter(|turn| *turn[0].1)
        .map(|turn| {
            let ids: Vec<u32> = turn.iter().map(|(id, _)| **id).collect();
            assert!(tokenizer.is_end(*ids.last().unwrap()), "a turn has no end");
            tokenizer.decode(&ids)
        })
        .collect()
}

#[test]
fn prompts_are_masked_and_answers_are_not() {
    let thought = "<think>\nAdd.\n</think>\n\nFour.";
    let json = serde_json::json!([
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "2 + 2?"},
        {"role": "assistant", "content": thought},
        {"role": "user", "content": "Four."},
        {"role": "assistant", "content": thought},
    ]);
    let conversation = Conversation::from_json(&json.to_string()).unwrap();
    for (family, expected) in [
        ("llama2", [thought, thought]),
        ("llama3", [thought, thought]),
        ("mistral", [thought, thought]),
        ("qwen2", [thought, thought]),
        // Earlier thoughts are dropped by the template.
        ("qwen3", ["Four.", thought]),
        ("deepseek", ["\n\nFour.", "\n\nFour."]),
        ("generation", [thought, thought]),
    ] {
        let found = learnt(&load(family), &conversation);
        let trimmed: Vec<&str> = found.iter().map(|t| t.trim_matches(' ')).collect();
        assert_eq!(trimmed, expected, "{family}");
    }
}

#[test]
fn tool_calls_are_learnt_and_results_are_not() {
    let json = serde_json::json!([
        {"role": "user", "content": "Weather?"},
        {"role": "assistant", "content": "", "tool_calls": [
            {"type": "function", "id": "abc123def", "function": {"name": "look", "arguments": {"n": 1}}}]},
        {"role": "tool", "content": "grey", "tool_call_id": "abc123def"},
        {"role": "assistant", "content": "Grey."},
    ]);
    let conversation = Conversation::from_json(&json.to_string()).unwrap();
    for family in ["llama3", "qwen2", "mistral"] {
        let found = learnt(&load(family), &conversation);
        assert_eq!(found.len(), 2, "{family}: {found:?}");
        assert!(found[0].contains("look") && !found.concat().contains("grey"));
    }
}

#[test]
fn a_mask_that_cannot_be_told_is_an_error() {
    let mut tokenizer = load("qwen2");
    // The answer is written twice, the first time among other things.
    let source = "{% for m in messages|reverse %}{{ m.content|upper }}{% endfor %}\
                  {% for m in messages %}{{ m.content }}{% endfor %}";
    tokenizer.set_chat_template(source).unwrap();
    let error = tokenizer.record("question", "answer").unwrap_err();
    assert!(
        matches!(
            error,
            TokenizerError::Template(ChatTemplateError::Mask { message: 1, .. })
        ),
        "{error}"
    );
}

#[test]
fn hostile_templates_are_errors() {
    for (source, expected) in [
        ("{{ '\u{1FFFE}' }}", "noncharacter"),
        (
            "{% for a in range(10000) %}{% for b in range(10000) %}{% endfor %}{% endfor %}",
            "steps",
        ),
        (
            "{% for a in range(5000) %}{{ 'x' * 10000 }}{% endfor %}",
            "the output passes",
        ),
        (
            "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
            "recursion",
        ),
        ("{% include 'passwd' %}", "passwd"),
        ("{{ messages.foo.bar }}", "undefined"),
        (
            "{{ raise_exception('no!') }}",
            "refuses the conversation: no!",
        ),
        (
            "{{ messages|tojson(indent='x') }}",
            "chat template default fails",
        ),
        (
            "{% for m in messages %}{{ '<|im_' ~ 'end|>' }}{% endfor %}",
            "together",
        ),
        ("{{ strftime_now('%Y') }}", "strftime_now"),
    ] {
        let mut tokenizer = load("qwen2");
        let message = ChatMessage {
            role: Role::User,
            content: "a".to_owned(),
        };
        let result = tokenizer
            .set_chat_template(source)
            .and_then(|()| tokenizer.chat(std::slice::from_ref(&message)));
        let error = result.unwrap_err().to_string();
        assert!(error.contains(expected), "{source}: {error}");
    }
    let mut tokenizer = load("qwen2");
    assert!(tokenizer.set_chat_template(&"x".repeat(2 << 20)).is_err());
}

#[test]
fn conversations_that_are_none_are_named() {
    for (json, expected) in [
        ("{}", "not a list"),
        ("[]", "0 messages"),
        ("[{}]", "message 0 has no role"),
        (r#"[{"role": "user"}, 5]"#, "message 1 has no role"),
        ("[", "EOF"),
    ] {
        let error = Conversation::from_json(json).unwrap_err().to_string();
        assert!(error.contains(expected), "{json}: {error}");
    }
    let deep = format!("{}{}", "[".repeat(1000), "]".repeat(1000));
    assert!(Conversation::from_json(&deep).is_err());
    let tokenizer = load("qwen2");
    let conversation = Conversation::from_json(r#"[{"role": "user", "content": "a"}]"#).unwrap();
    let options = ChatOptions {
        template: Some("rag".to_owned()),
        ..ChatOptions::default()
    };
    let error = tokenizer.chat_prompt(&conversation, &options).unwrap_err();
    assert!(error.to_string().contains("only default"), "{error}");
}

#[test]
fn a_last_answer_is_left_open() {
    let message = |role, content: &str| ChatMessage {
        role,
        content: content.to_owned(),
    };
    for family in ["llama3", "mistral", "qwen2"] {
        let tokenizer = load(family);
        let question = message(Role::User, "one, two?");
        let prompt = tokenizer.chat(std::slice::from_ref(&question)).unwrap();
        let open = tokenizer
            .chat(&[question, message(Role::Assistant, "three")])
            .unwrap();
        assert!(open.starts_with(&prompt), "{family}");
        assert!(tokenizer.decode(&open).ends_with("three"), "{family}");
    }
}

#[test]
fn dates_are_those_of_python() {
    for (unix_s, format, expected) in [
        (
            0,
            "%Y-%m-%d %H:%M:%S %A %j",
            "1970-01-01 00:00:00 Thursday 001",
        ),
        (951_827_696, "%d %b %Y, %a", "29 Feb 2000, Tue"),
        (
            1_735_689_599,
            "%-d. %B %y %I:%M %p %F %T",
            "31. December 24 11:59 PM 2024-12-31 23:59:59",
        ),
        (4_102_444_800, "%j %e%%", "001  1%"),
    ] {
        assert_eq!(python::strftime(unix_s, format).unwrap(), expected);
    }
    assert!(python::strftime(0, "%Q").is_err());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    /// However control tokens and pieces of them are strewn into contents, the
    /// control tokens of the chat are those of a harmless one.
    #[test]
    fn contents_never_inject(
        content in "(<|\\||im_start|im_end|>|<\\|im_end\\|>|<\\|eot_id\\|>|</s>|\\[/INST\\]|<｜User｜>|\u{1FFFE}|\u{FFFE}|\u{FDD0}| |\n|a){0,12}",
    ) {
        for family in FAMILIES {
            let tokenizer = load(family);
            let controls = |content: &str| {
                let messages = [
                    ChatMessage { role: Role::User, content: content.to_owned() },
                    ChatMessage { role: Role::Assistant, content: content.to_owned() },
                    ChatMessage { role: Role::User, content: content.to_owned() },
                ];
                let conversation = Conversation::from(messages.as_slice());
                let options = ChatOptions::default();
                let template = tokenizer.template(&conversation, &options).unwrap();
                let rendered = template.prompt(&conversation, &options).unwrap();
                let tokens = tokenizer.place(&rendered).unwrap().tokens;
                let is_control = |id: &&u32| tokenizer.token_bytes(**id).is_empty();
                tokens.iter().filter(is_control).copied().collect::<Vec<_>>()
            };
            prop_assert_eq!(controls(&content), controls("harmless"), "{}", family);
        }
    }
}
