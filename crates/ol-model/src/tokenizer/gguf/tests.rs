//! Goal: a tokenizer that went through GGUF encodes as the one it came from.
//! Method: the golden tokenizers, written as GGUF writes them.

use std::fs;

use super::*;
use crate::tokenizer::tests::{expected, family_dir};

/// A golden tokenizer as a GGUF file has it.
fn described(family: &str, model: &str, pre: Option<&str>) -> GgufTokenizer {
    let read = |file: &str| -> Value {
        serde_json::from_slice(&fs::read(family_dir(family).join(file)).unwrap()).unwrap()
    };
    let (json, config) = (read("tokenizer.json"), read("tokenizer_config.json"));
    let mut by_id: BTreeMap<u64, String> = BTreeMap::new();
    for (token, id) in json["model"]["vocab"].as_object().unwrap() {
        by_id.insert(id.as_u64().unwrap(), token.clone());
    }
    let mut kinds: BTreeMap<u64, TokenKind> = BTreeMap::new();
    for added in json["added_tokens"].as_array().unwrap() {
        let id = added["id"].as_u64().unwrap();
        by_id.insert(id, added["content"].as_str().unwrap().to_owned());
        let is_special = added["special"] == true;
        kinds.insert(
            id,
            match added["content"].as_str() {
                Some("<unk>") => TokenKind::Unknown,
                _ if is_special => TokenKind::Control,
                _ => TokenKind::UserDefined,
            },
        );
    }
    let tokens: Vec<String> = by_id.into_values().collect();
    let id_of = |part: &str| {
        let name = &config[part];
        let name = name.as_str().or_else(|| name["content"].as_str())?;
        let at = tokens.iter().position(|t| t == name)?;
        u32::try_from(at).ok()
    };
    let merges: Vec<String> = json["model"]["merges"]
        .as_array()
        .unwrap()
        .iter()
        .map(|pair| {
            format!(
                "{} {}",
                pair[0].as_str().unwrap(),
                pair[1].as_str().unwrap()
            )
        })
        .collect();
    let kinds = tokens.iter().zip(0..).map(|(token, id)| {
        let is_byte = token.starts_with("<0x");
        let other = if is_byte {
            TokenKind::Byte
        } else {
            TokenKind::Normal
        };
        kinds.get(&id).copied().unwrap_or(other)
    });
    GgufTokenizer {
        model: model.to_owned(),
        pre: pre.map(str::to_owned),
        kinds: kinds.collect(),
        // As sentencepiece numbers its pieces: later ones score lower.
        scores: (0..tokens.len()).map(|id| -(id as f32)).collect(),
        bos: id_of("bos_token"),
        eos: id_of("eos_token"),
        eot: None,
        unknown: id_of("unk_token"),
        padding: id_of("pad_token"),
        add_bos: config["add_bos_token"].as_bool(),
        add_eos: None,
        add_space_prefix: None,
        chat_template: Some("{{ bos_token }}{{ messages[0].content }}".to_owned()),
        merges,
        tokens,
    }
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
        ("deepseek", "deepseek-v3"),
    ] {
        check(family, &described(family, "gpt2", Some(pre)));
    }
    let mut llama = described("llama2", "llama", Some("default"));
    check("llama2", &llama);
    // Without a list of merges, as GGUF files have it.
    llama.merges.clear();
    check("llama2", &llama);
}

#[test]
fn what_cannot_be_read_is_named() {
    let good = described("llama3", "gpt2", Some("llama-bpe"));
    type Spoil = fn(&mut GgufTokenizer);
    let cases: [(&str, Spoil); 5] = [
        ("tokenizer.ggml.model is bert", |t| {
            t.model = "bert".to_owned()
        }),
        ("tokenizer.ggml.pre is falcon", |t| {
            t.pre = Some("falcon".to_owned());
        }),
        ("is not two tokens", |t| t.merges[0] = "ab".to_owned()),
        ("which token ends", |t| t.eos = None),
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
