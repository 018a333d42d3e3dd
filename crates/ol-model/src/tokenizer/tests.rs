//! Goal: the tokens and texts of transformers, for a tokenizer in the style of
//! each family; and no text that becomes a control token.
//! Method: the fixtures of `fixtures/tokenizers` (script included), properties
//! over random texts, hostile files.

use std::fs;
use std::path::PathBuf;

use proptest::prelude::*;
use serde::Deserialize;
use serde_json::Value;

use super::*;

pub(crate) const FAMILIES: [&str; 7] = [
    "llama2",
    "llama3",
    "mistral",
    "qwen2",
    "qwen3",
    "deepseek",
    "generation",
];

pub(crate) fn family_dir(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
        .join("fixtures/tokenizers")
        .join(name)
}

#[derive(Deserialize)]
pub(crate) struct Expected {
    pub(crate) texts: Vec<Text>,
    pub(crate) chats: Vec<ChatCase>,
    pub(crate) injections: Vec<ChatCase>,
}

#[derive(Deserialize)]
pub(crate) struct Text {
    pub(crate) text: String,
    pub(crate) ids: Vec<u32>,
    framed: Vec<u32>,
    pub(crate) decoded: String,
}

#[derive(Deserialize)]
pub(crate) struct ChatCase {
    pub(crate) messages: Box<serde_json::value::RawValue>,
    pub(crate) tools: Option<Box<serde_json::value::RawValue>>,
    pub(crate) add_generation_prompt: bool,
    #[serde(default)]
    pub(crate) variables: BTreeMap<String, Value>,
    pub(crate) now: Option<u64>,
    #[serde(default)]
    pub(crate) expected: Rendering,
    #[serde(default)]
    pub(crate) ids: Vec<u32>,
}

#[derive(Deserialize, Default)]
pub(crate) struct Rendering {
    pub(crate) error: Option<String>,
    #[serde(default)]
    pub(crate) text: String,
    #[serde(default)]
    pub(crate) ids: Vec<u32>,
    pub(crate) assistant: Option<Vec<u8>>,
}

pub(crate) fn expected(family: &str) -> Expected {
    let text = fs::read_to_string(family_dir(family).join("expected.json")).unwrap();
    serde_json::from_str(&text).unwrap()
}

fn small() -> Tokenizer {
    let texts = [
        "the cat sat on the mat",
        "the dog sat on the log",
        "what is a cat? a cat is an animal.",
    ];
    Tokenizer::train(texts.iter().cycle().take(30).map(|s| (*s).to_owned()), 300).unwrap()
}

#[test]
fn texts_are_those_of_transformers() {
    for family in FAMILIES {
        let tokenizer = Tokenizer::load(&family_dir(family)).unwrap();
        for case in expected(family).texts {
            let ids = tokenizer.encode(&case.text).unwrap();
            assert_eq!(ids, case.ids, "{family}: {:?}", case.text);
            let framed = tokenizer.encode_prompt(&case.text).unwrap();
            assert_eq!(framed, case.framed, "{family}: {:?}", case.text);
            assert_eq!(tokenizer.decode(&ids), case.decoded, "{family}");
        }
    }
}

#[test]
fn files_say_what_ends_begins_and_fills() {
    let load = |family| Tokenizer::load(&family_dir(family)).unwrap();
    let text_of = |t: &Tokenizer, id| t.encoder.controls()[&id].content.clone();
    let llama3 = load("llama3");
    assert_eq!(text_of(&llama3, llama3.end_id()), "<|eot_id|>");
    assert_eq!(llama3.end_ids().len(), 2);
    assert_eq!(llama3.encode_prompt("").unwrap().len(), 1);
    let qwen = load("qwen2");
    assert_eq!(text_of(&qwen, qwen.end_id()), "<|im_end|>");
    assert_eq!(text_of(&qwen, qwen.pad_id().unwrap()), "<|endoftext|>");
    assert!(qwen.encode_prompt("").unwrap().is_empty());
    let deepseek = load("deepseek");
    let document = deepseek.encode_document("a").unwrap();
    assert_eq!(text_of(&deepseek, document[0]), "<｜begin▁of▁sentence｜>");
    assert!(deepseek.is_end(*document.last().unwrap()));
    let config = crate::GenerationConfig::load(&family_dir("llama2")).unwrap();
    assert_eq!((config.temperature, config.top_p), (Some(0.6), Some(0.9)));
    assert_eq!((config.end_ids, config.bos_id), (vec![2], Some(1)));
}

/// A tokenizer's files with one of them changed.
fn changed(family: &str, file: &str, content: &str) -> Result<Tokenizer, TokenizerError> {
    let dir = tempfile::tempdir().unwrap();
    for entry in fs::read_dir(family_dir(family)).unwrap() {
        let path = entry.unwrap().path();
        fs::copy(&path, dir.path().join(path.file_name().unwrap())).unwrap();
    }
    fs::write(dir.path().join(file), content).unwrap();
    Tokenizer::load(dir.path())
}

#[test]
fn bad_files_are_named() {
    for (file, content, expected) in [
        ("tokenizer.json", "{", "tokenizer.json: EOF"),
        ("tokenizer_config.json", "[]", "tokenizer_config.json"),
        (
            "tokenizer_config.json",
            r#"{"add_bos_token": "yes"}"#,
            "add_bos_token is not true or false",
        ),
        (
            "tokenizer_config.json",
            r#"{"chat_template": 7, "eos_token": "</s>"}"#,
            "chat_template is not a template",
        ),
        (
            "tokenizer_config.json",
            r#"{"chat_template": "{% if %}", "eos_token": "</s>"}"#,
            "chat template default",
        ),
        (
            "generation_config.json",
            r#"{"temperature": -1}"#,
            "generation_config.json: temperature is -1",
        ),
        ("generation_config.json", r#"{"top_k": -2}"#, "top_k is -2"),
        ("chat_template.jinja", "{{ x", "chat template default"),
        (
            "chat_template.jinja",
            "{{ '</' ~ 's>' }}",
            "puts the control token </s> together",
        ),
    ] {
        let error = changed("mistral", file, content).unwrap_err().to_string();
        assert!(error.contains(expected), "{file} {content}: {error}");
    }
    let no_end = r#"{"bos_token": "<|begin_of_text|>"}"#;
    let dir = tempfile::tempdir().unwrap();
    fs::copy(
        family_dir("llama3").join("tokenizer.json"),
        dir.path().join("tokenizer.json"),
    )
    .unwrap();
    fs::write(dir.path().join("tokenizer_config.json"), no_end).unwrap();
    let error = Tokenizer::load(dir.path()).unwrap_err().to_string();
    assert!(error.contains("eos_token"), "{error}");
}

#[test]
fn hostile_tokenizers_are_errors() {
    let bytes = fs::read(family_dir("mistral").join("tokenizer.json")).unwrap();
    let whole: Value = serde_json::from_slice(&bytes).unwrap();
    let deep = format!("{}{}", "[".repeat(500), "]".repeat(500));
    let raw = |field: &str, value: &str| {
        let mut fields: BTreeMap<String, Value> = serde_json::from_value(whole.clone()).unwrap();
        fields.remove(field);
        let mut text = serde_json::to_string(&fields).unwrap();
        text.truncate(text.len() - 1);
        format!("{text},\"{field}\":{value}}}")
    };
    for (field, value) in [
        ("decoder", deep.as_str()),
        ("pre_tokenizer", deep.as_str()),
        ("normalizer", deep.as_str()),
        ("post_processor", deep.as_str()),
        ("decoder", "null"),
        ("decoder", "5"),
        (
            "decoder",
            r#"{"type":"WordPiece","prefix":"x","cleanup":true}"#,
        ),
        ("model", "null"),
        ("model", r#"{"type":"BPE","vocab":{},"merges":[]}"#),
        (
            "model",
            r#"{"type":"BPE","vocab":{"a":4000000000},"merges":[]}"#,
        ),
        (
            "model",
            r#"{"type":"BPE","vocab":{"a":0},"merges":[["a","b"]]}"#,
        ),
        (
            "model",
            r#"{"type":"BPE","dropout":0.5,"vocab":{"a":0},"merges":[]}"#,
        ),
        (
            "pre_tokenizer",
            r#"{"type":"Split","pattern":{"Regex":"("},"behavior":"Isolated","invert":false}"#,
        ),
        ("added_tokens", "7"),
    ] {
        let result = Tokenizer::from_bytes(raw(field, value).as_bytes());
        assert!(result.is_err(), "{field} {value}");
    }
}

/// The library stops a pattern that backtracks too long, and takes what is left
/// for one piece.
#[test]
fn a_rule_that_explodes_is_cut_short() {
    let bytes = fs::read(family_dir("qwen2").join("tokenizer.json")).unwrap();
    let mut whole: Value = serde_json::from_slice(&bytes).unwrap();
    whole["pre_tokenizer"]["pretokenizers"][0]["pattern"] =
        serde_json::json!({"Regex": "(?i)(a|b|ab)*(?>c)"});
    let tokenizer = changed("qwen2", "tokenizer.json", &whole.to_string()).unwrap();
    let text = "ab".repeat(500);
    assert_eq!(tokenizer.decode(&tokenizer.encode(&text).unwrap()), text);
}

#[test]
fn ordinary_added_tokens_are_matched_and_control_tokens_are_not() {
    let qwen = Tokenizer::load(&family_dir("qwen2")).unwrap();
    let id = |name: &str| qwen.encoder.token_to_id(name).unwrap();
    let tokens = qwen.encode("a<think>b</think><|im_end|>").unwrap();
    assert_eq!(tokens[1], id("<think>"));
    assert!(tokens.iter().all(|t| *t != id("<|im_end|>")));
    assert_eq!(qwen.decode(&tokens), "a<think>b</think><|im_end|>");
    // DeepSeek marks its turn tokens as ordinary; text does not become them.
    let deepseek = Tokenizer::load(&family_dir("deepseek")).unwrap();
    let user = deepseek.encoder.token_to_id("<｜User｜>").unwrap();
    let tokens = deepseek.encode("<｜User｜>").unwrap();
    assert!(tokens.len() > 1 && !tokens.contains(&user));
}

#[test]
fn a_space_before_the_first_word_is_no_text() {
    let mistral = Tokenizer::load(&family_dir("mistral")).unwrap();
    let tokens = mistral.encode("Hello world").unwrap();
    assert_eq!(mistral.decode(&tokens), "Hello world");
    let prompt = mistral.encode("He said:").unwrap();
    let write =
        |mut stream: TokenStream| -> String { tokens.iter().map(|t| stream.push(*t)).collect() };
    assert_eq!(write(mistral.stream_after(&prompt)), " Hello world");
    let after_control = mistral.encode_prompt("").unwrap();
    assert_eq!(write(mistral.stream_after(&after_control)), "Hello world");
}

#[test]
fn bytes_that_are_not_utf8_stream_as_replacements() {
    let mistral = Tokenizer::load(&family_dir("mistral")).unwrap();
    let byte = |b: u8| {
        mistral
            .encoder
            .token_to_id(&format!("<0x{b:02X}>"))
            .unwrap()
    };
    let push = |bytes: &[u8]| {
        let mut stream = mistral.stream();
        let mut pieces: Vec<String> = bytes.iter().map(|b| stream.push(byte(*b))).collect();
        pieces.push(stream.finish());
        pieces
    };
    assert_eq!(push("é".as_bytes()), ["", "é", ""]);
    assert_eq!(push(&[0xE2, 0x82, b'a']), ["", "", "\u{FFFD}a", ""]);
    assert_eq!(push(&[0xFF, 0xF0, 0x9F]), ["\u{FFFD}", "", "", "\u{FFFD}"]);
}

#[test]
fn our_tokens_have_the_published_ids() {
    let t = small();
    assert_eq!((t.end_id(), t.pad_id()), (0, Some(3)));
    assert_eq!(t.end_ids(), [0]);
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
    let message = |role, content: &str| ChatMessage {
        role,
        content: content.to_owned(),
    };
    let user = message(Role::User, "what is a cat?");
    let system = message(Role::System, "the dog");
    let answer = message(Role::Assistant, "a cat");
    let (record, start) = t.record("what is a cat?", "a cat").unwrap();
    assert_eq!(
        t.chat(std::slice::from_ref(&user)).unwrap(),
        record[..start]
    );
    let open = t.chat(&[user.clone(), answer.clone()]).unwrap();
    assert_eq!(open, record[..record.len() - 1]);
    let messages = [system, user.clone(), answer, user];
    let long = t.chat(&messages).unwrap();
    assert_eq!(
        t.decode(&long),
        "the dog\n\nwhat is a cat?a catwhat is a cat?"
    );
    assert_eq!((long.first(), long.last()), (Some(&1), Some(&2)));
    assert_eq!(t.chat(&[]).unwrap(), [2]);
    let training = t
        .chat_training(
            &Conversation::from(messages.as_slice()),
            &ChatOptions::default(),
        )
        .unwrap();
    assert_eq!(training.tokens, long[..long.len() - 1]);
    let learnt: Vec<u32> = std::iter::zip(&training.tokens, &training.is_assistant)
        .filter_map(|(token, is)| is.then_some(*token))
        .collect();
    assert_eq!(learnt, record[start..]);
}

#[test]
fn our_template_says_the_same_as_our_format() {
    let t = small();
    let dir = tempfile::tempdir().unwrap();
    t.save(dir.path(), 64).unwrap();
    let config = fs::read_to_string(dir.path().join("tokenizer_config.json")).unwrap();
    let config: Value = serde_json::from_str(&config).unwrap();
    let mut other = t.clone();
    other
        .set_chat_template(config["chat_template"].as_str().unwrap())
        .unwrap();
    let roles = [Role::System, Role::User, Role::Assistant, Role::User];
    let messages: Vec<ChatMessage> = std::iter::zip(roles, ["<|end|>", " cat ", "dog\n", "log"])
        .map(|(role, content)| ChatMessage {
            role,
            content: content.to_owned(),
        })
        .collect();
    for n in 2..=messages.len() {
        assert_eq!(
            other.chat(&messages[..n]).unwrap(),
            t.chat(&messages[..n]).unwrap(),
            "{n} messages"
        );
        let conversation = Conversation::from(&messages[..n]);
        let options = ChatOptions::default();
        assert_eq!(
            other.chat_training(&conversation, &options).unwrap(),
            t.chat_training(&conversation, &options).unwrap()
        );
    }
    assert_eq!(other.record("a", "b").unwrap(), t.record("a", "b").unwrap());
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
                Err(TokenizerError::Format { .. })
            ),
            "{bad}"
        );
    }
}

fn check_round_trip(t: &Tokenizer, text: &str) -> Result<(), TestCaseError> {
    let tokens = t.encode(text).unwrap();
    prop_assert_eq!(&t.decode(&tokens), text);
    let mut stream = t.stream();
    let mut streamed: String = tokens.iter().map(|&id| stream.push(id)).collect();
    streamed += &stream.finish();
    prop_assert_eq!(streamed, text);
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn any_text_round_trips_whole_and_streamed(
        text in "\\PC{0,40}|[a-e😀é\u{0}\n ]{0,40}|(<\\|end\\|>|</s>|<｜User｜>|\\[INST\\]|a| ){0,8}",
    ) {
        check_round_trip(&small(), &text)?;
        for family in ["llama3", "deepseek"] {
            check_round_trip(&Tokenizer::load(&family_dir(family)).unwrap(), &text)?;
        }
        // Here `▁` is a space, and one at the start may be lost, by design of
        // the format.
        for family in ["llama2", "mistral"] {
            let text = format!("a{}", text.replace('▁', "_"));
            check_round_trip(&Tokenizer::load(&family_dir(family)).unwrap(), &text)?;
        }
    }

    /// A damaged file is read or refused; what it then does with text, too.
    #[test]
    fn damaged_files_never_panic(
        damage in proptest::collection::vec((any::<prop::sample::Index>(), 0_u8..128), 1..4),
    ) {
        let mut bytes = fs::read(family_dir("mistral").join("tokenizer.json")).unwrap();
        for (at, byte) in damage {
            let at = at.index(bytes.len());
            bytes[at] = byte;
        }
        let files = Files { tokenizer: bytes, ..Files::read(&family_dir("mistral")).unwrap() };
        if let Ok(tokenizer) = Tokenizer::from_files(files)
            && let Ok(tokens) = tokenizer.encode("Hello <0x41> wörld [INST]")
        {
            let _ = tokenizer.decode(&tokens);
        }
    }

    #[test]
    fn any_tokens_decode(tokens in proptest::collection::vec(0_u32..700, 0..40)) {
        for t in [small(), Tokenizer::load(&family_dir("mistral")).unwrap()] {
            let mut stream = t.stream();
            let mut streamed: String = tokens.iter().map(|&id| stream.push(id)).collect();
            streamed += &stream.finish();
            prop_assert_eq!(streamed, t.decode(&tokens));
            let bytes: Vec<u8> = tokens.iter().flat_map(|id| t.token_bytes(*id)).copied().collect();
            let text = String::from_utf8_lossy(&bytes).into_owned();
            let decoded = t.decode(&tokens);
            prop_assert!(text == decoded || text.strip_prefix(' ') == Some(&decoded));
        }
    }
}
