//! Goal: published tokenizers give the tokens of the library that they come
//! with.
//! Method: `fixtures/tokenizers/make_published.py`: the vocabulary of Mistral's
//! sentencepiece model as a GGUF file has it, and what the sentencepiece library
//! makes of texts.

use std::fs::File;
use std::path::Path;

use ol_model::{GgufTokenizer, TokenKind, Tokenizer};
use serde::Deserialize;
use xz2::read::XzDecoder;

#[derive(Deserialize)]
struct Published {
    pieces: Vec<String>,
    scores: Vec<f32>,
    kinds: Vec<u8>,
    texts: Vec<(String, Vec<u32>)>,
}

fn kind(number: u8) -> TokenKind {
    match number {
        1 => TokenKind::Normal,
        2 => TokenKind::Unknown,
        3 => TokenKind::Control,
        4 => TokenKind::UserDefined,
        5 => TokenKind::Unused,
        6 => TokenKind::Byte,
        other => panic!("no kind {other}"),
    }
}

#[test]
fn mistrals_sentencepiece_model_encodes_as_the_library_does() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("fixtures/tokenizers/published/mistral-v3.json.xz");
    let file = XzDecoder::new(File::open(path).unwrap());
    let published: Published = serde_json::from_reader(file).unwrap();
    let id = |piece: &str| {
        let at = published.pieces.iter().position(|p| p == piece);
        at.and_then(|at| u32::try_from(at).ok())
    };
    let tokenizer = Tokenizer::from_gguf(&GgufTokenizer {
        model: "llama".to_owned(),
        pre: Some("default".to_owned()),
        bos: id("<s>"),
        eos: id("</s>"),
        unknown: id("<unk>"),
        tokens: published.pieces.clone(),
        scores: published.scores,
        kinds: published.kinds.into_iter().map(kind).collect(),
        merges: Vec::new(),
        eot: None,
        padding: None,
        add_bos: Some(true),
        add_eos: Some(false),
        add_space_prefix: Some(true),
        chat_template: None,
    })
    .unwrap();
    assert!(published.texts.len() > 400);
    let wrong: Vec<String> = published
        .texts
        .iter()
        .filter_map(|(text, expected)| {
            let found = tokenizer.encode(text).unwrap();
            (found != *expected).then(|| format!("{text:?}: {found:?}, expected {expected:?}"))
        })
        .collect();
    assert!(wrong.is_empty(), "{} texts: {wrong:#?}", wrong.len());
    for (text, ids) in &published.texts {
        // It stands for a space in the vocabulary.
        assert_eq!(tokenizer.decode(ids), text.replace('▁', " "));
    }
}
