//! Goal: a tokenizer that went through GGUF encodes as the one it came from.
//! Method: the golden tokenizers, written as GGUF writes them.

use std::fs;

use super::*;
use crate::tokenizer::tests::{expected, family_dir};

/// A golden tokenizer as a GGUF file has it, with a few rows more.
fn described(family: &str) -> GgufTokenizer {
    GgufTokenizer::load(&family_dir(family), 640).unwrap()
}

fn check(family: &str, gguf: &GgufTokenizer) {
    let tokenizer = Tokenizer::from_gguf(gguf).unwrap();
    let original = Tokenizer::load(&family_dir(family)).unwrap();
    for case in expected(family).texts {
        let ids = tokenizer.encode(&case.text).unwrap();
        assert_eq!(ids, case.ids, "{family}: {:?}", case.text);
        assert_eq!(tokenizer.decode(&ids), case.decoded, "{family}");
    }
    assert_eq!(tokenizer.end_id(), original.end_id());
    assert!(tokenizer.has_chat_format());
}

#[test]
fn tokenizers_of_gguf_files_encode_as_their_originals() {
    for (family, pre) in [
        ("llama3", "llama-bpe"),
        ("qwen2", "qwen2"),
        ("qwen3", "qwen2"),
        ("deepseek", "deepseek-v3"),
        ("llama2", "default"),
    ] {
        let gguf = described(family);
        assert_eq!(gguf.pre.as_deref(), Some(pre), "{family}");
        assert_eq!((gguf.tokens.len(), gguf.kinds.len()), (640, 640));
        check(family, &gguf);
    }
    // Its rule for a first space (none before a space) GGUF does not know.
    assert_eq!(described("mistral").add_space_prefix, Some(true));
    let mut llama = described("llama2");
    // Without a list of merges, as GGUF files have it.
    llama.merges.clear();
    check("llama2", &llama);
}

#[test]
fn what_cannot_be_read_is_named() {
    let good = described("llama3");
    type Spoil = fn(&mut GgufTokenizer);
    let cases: [(&str, Spoil); 5] = [
        ("tokenizer.ggml.model is bert", |t| {
            t.model = "bert".to_owned()
        }),
        ("tokenizer.ggml.pre is falcon", |t| {
            t.pre = Some("falcon".to_owned());
        }),
        ("is not two tokens", |t| t.merges[0] = "ab".to_owned()),
        ("which token ends", |t| {
            t.eos = None;
            t.eot = None;
        }),
        ("neither merges nor scores", |t| {
            t.model = "llama".to_owned();
            t.merges.clear();
            t.scores.clear();
        }),
    ];
    for (expected, spoil) in cases {
        let mut bad = good.clone();
        spoil(&mut bad);
        let error = Tokenizer::from_gguf(&bad).unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
    }
}

#[test]
fn what_gguf_cannot_say_is_named() {
    let error = GgufTokenizer::load(&family_dir("qwen2"), 100).unwrap_err();
    assert!(error.to_string().contains("the model has 100"), "{error}");
    let dir = tempfile::tempdir().unwrap();
    let read = |file: &str| fs::read_to_string(family_dir("qwen2").join(file)).unwrap();
    let other = read("tokenizer.json").replace("p{N}|", "p{N}{1,2}|");
    fs::write(dir.path().join("tokenizer.json"), other).unwrap();
    let config = read("tokenizer_config.json");
    fs::write(dir.path().join("tokenizer_config.json"), config).unwrap();
    let error = GgufTokenizer::load(dir.path(), 640).unwrap_err();
    assert!(error.to_string().contains("no name"), "{error}");
}

#[test]
fn a_gguf_file_brings_its_tokenizer_unless_one_lies_beside_it() {
    let fixtures = family_dir("../gguf");
    let own = Tokenizer::load(&fixtures.join("llama-q4_k.gguf")).unwrap();
    assert_eq!((own.vocab_size(), own.end_id()), (96, 95));
    assert_eq!(own.encode_prompt("").unwrap(), [94]);
    assert_eq!(own.decode(&own.encode("hello").unwrap()), "hello");
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("model.gguf");
    fs::copy(fixtures.join("llama-q4_k.gguf"), &path).unwrap();
    for file in ["tokenizer.json", "tokenizer_config.json"] {
        fs::copy(family_dir("qwen2").join(file), dir.path().join(file)).unwrap();
    }
    let beside = Tokenizer::load(&path).unwrap();
    assert!(beside.vocab_size() > 96);
    fs::remove_file(dir.path().join("tokenizer.json")).unwrap();
    fs::write(&path, b"GGUF").unwrap();
    let error = Tokenizer::load(&path).unwrap_err().to_string();
    assert!(error.contains("model.gguf"), "{error}");
}
