//! Goal: whatever the model's logits, a constrained answer has the form asked for.
//! Method: random schemas and random logits; the finished text is checked by an
//! independent validator of JSON schemas.

use std::sync::LazyLock;

use proptest::prelude::*;

use super::*;
use crate::sampler::{Sampler, Sampling};

static TOKENIZER: LazyLock<Tokenizer> = LazyLock::new(|| {
    let texts = [
        r#"{"name": "Ada", "age": 36, "tags": ["x", "y"]}"#,
        "café, naïve, 🦀 true false null",
    ];
    Tokenizer::train(texts.iter().map(ToString::to_string), 320).unwrap()
});

static COMPILER: LazyLock<ConstraintCompiler> =
    LazyLock::new(|| ConstraintCompiler::new(&TOKENIZER).unwrap());

/// Draws from noise until the answer ends; `None` if it does not within `n_max`.
fn answer(constraint: Constraint, seed: u64, n_max: usize) -> Option<String> {
    let sampling = Sampling {
        temperature: 1.0,
        seed,
        constraint: Some(constraint),
        ..Sampling::GREEDY
    };
    let mut sampler = Sampler::for_prompt(sampling, &[], TOKENIZER.end_ids());
    let mut ids = Vec::new();
    while ids.len() < n_max {
        // Different noise at each step; what closes JSON is a bit likelier, so
        // that answers end.
        let step = seed.wrapping_add(ids.len() as u64);
        let logits: Vec<f32> = (0..TOKENIZER.vocab_size() as u64)
            .map(|id| {
                let mixed = (id ^ step.wrapping_mul(0x9e37_79b9_7f4a_7c15))
                    .wrapping_mul(0xd134_2543_de82_ef95);
                let bytes = TOKENIZER.token_bytes(u32::try_from(id).unwrap());
                let is_closing = bytes.iter().any(|b| b"\"]}".contains(b));
                (mixed >> 40) as f32 / (1 << 23) as f32 + if is_closing { 4.0 } else { 0.0 }
            })
            .collect();
        let id = sampler.next(&logits).unwrap();
        if sampler.is_end(id) {
            return Some(TOKENIZER.decode(&ids));
        }
        ids.push(id);
        if sampler.is_complete() {
            return Some(TOKENIZER.decode(&ids));
        }
    }
    None
}

fn any_schema() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        (0_u32..4, 4_u32..9)
            .prop_map(|(min, max)| json!({"type": "string", "minLength": min, "maxLength": max})),
        (-50_i32..0, 0_i32..50)
            .prop_map(|(min, max)| json!({"type": "integer", "minimum": min, "maximum": max})),
        // Without bounds 1e9999 is a number, which no parser can hold.
        Just(json!({"type": "number", "minimum": -1e6, "maximum": 1e6})),
        Just(json!({"type": "boolean"})),
        Just(json!({"type": "null"})),
        prop::collection::vec("[a-zé🦀\"\\\\]{0,6}", 1..4).prop_map(|texts| json!({"enum": texts})),
        Just(json!({"const": {"a": [1, true]}})),
        Just(json!({"type": "string", "pattern": "^[a-f]{2,5}$"})),
    ];
    leaf.prop_recursive(3, 12, 4, |inner| {
        prop_oneof![
            (inner.clone(), 0_usize..2, 2_usize..4).prop_map(|(items, min, max)| json!({
                "type": "array", "items": items, "minItems": min, "maxItems": max,
            })),
            prop::collection::btree_map("[a-z]{1,5}", (inner.clone(), any::<bool>()), 0..4)
                .prop_map(|fields| {
                    let required: Vec<&String> = fields
                        .iter()
                        .filter(|(_, f)| f.1)
                        .map(|(name, _)| name)
                        .collect();
                    let properties: serde_json::Map<String, Value> = fields
                        .iter()
                        .map(|(name, f)| (name.clone(), f.0.clone()))
                        .collect();
                    json!({
                        "type": "object", "properties": properties, "required": required,
                        "additionalProperties": false,
                    })
                }),
            (inner.clone(), inner).prop_map(|(a, b)| json!({"anyOf": [a, b]})),
        ]
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn answers_fit_their_schema(schema in any_schema(), seed: u64) {
        let constraint = COMPILER.compile(&Grammar::JsonSchema(schema.clone())).unwrap();
        // One that is too long is cut off, as the engine does: nothing to check.
        if let Some(text) = answer(constraint, seed, 400) {
            let value: Value = serde_json::from_str(&text)
                .map_err(|error| TestCaseError::fail(format!("{error}: {text}")))?;
            prop_assert!(jsonschema::is_valid(&schema, &value), "{} against {}", text, schema);
        }
    }

    #[test]
    fn choices_and_patterns_are_kept(seed: u64, texts in prop::collection::vec("[a-z\"\\\\ é]{1,9}", 1..6)) {
        let choice = COMPILER.compile(&Grammar::Choice(texts.clone())).unwrap();
        let text = answer(choice, seed, 64).unwrap();
        prop_assert!(texts.contains(&text), "{:?}", text);
        let date = Grammar::Regex("[0-9]{4}-[01][0-9]".to_owned());
        let text = answer(COMPILER.compile(&date).unwrap(), seed, 64).unwrap();
        prop_assert!(text.len() == 7 && text.as_bytes()[4] == b'-', "{:?}", text);
    }
}

#[test]
fn most_random_answers_end() {
    let schema = json!({"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"],
        "additionalProperties": false});
    let ended = (0..20).filter(|&seed| {
        let constraint = COMPILER
            .compile(&Grammar::JsonSchema(schema.clone()))
            .unwrap();
        answer(constraint, seed, 400).is_some()
    });
    assert!(ended.count() >= 15);
}

#[test]
fn what_is_no_grammar_is_refused_with_a_reason() {
    let refused = |grammar: Grammar| COMPILER.compile(&grammar).unwrap_err();
    let huge = "x".repeat(MAX_GRAMMAR_SIZE_BYTES + 1);
    assert_eq!(
        refused(Grammar::Regex(huge.clone())),
        GrammarError::TooLarge
    );
    assert_eq!(
        refused(Grammar::Choice(vec![huge.clone()])),
        GrammarError::TooLarge
    );
    assert_eq!(
        refused(Grammar::Choice(vec!["x".to_owned(); MAX_CHOICES + 1])),
        GrammarError::TooLarge
    );
    assert_eq!(
        refused(Grammar::JsonSchema(json!({"const": huge}))),
        GrammarError::TooLarge
    );
    let bad = [
        Grammar::Choice(Vec::new()),
        Grammar::Choice(vec![String::new()]),
        Grammar::Regex("(".to_owned()),
        Grammar::JsonSchema(json!([1])),
        Grammar::JsonSchema(json!({"type": "wat"})),
        Grammar::JsonSchema(json!({"$ref": "https://example.org/schema.json"})),
        Grammar::JsonSchema(json!({"$ref": "#/$defs/none"})),
        Grammar::JsonSchema(json!({"type": "string", "pattern": "["})),
        Grammar::JsonSchema(json!({"type": "integer", "minimum": 3, "maximum": 1})),
        Grammar::JsonSchema(json!({"not": {}})),
    ];
    for (n, grammar) in bad.iter().enumerate() {
        match COMPILER.compile(grammar) {
            Err(GrammarError::Refused(reason)) => assert!(!reason.is_empty(), "{n}"),
            other => panic!("{n}: {other:?}"),
        }
    }
}

#[test]
fn a_compiled_grammar_is_kept_and_its_clones_are_their_own() {
    let compiler = ConstraintCompiler::new(&TOKENIZER).unwrap();
    for n in 0..CACHE_MAX + 5 {
        compiler
            .compile(&Grammar::Regex(format!("a{{{}}}", n + 1)))
            .unwrap();
        assert!(compiler.cache.lock().unwrap().len() <= CACHE_MAX);
    }
    let grammar = Grammar::Choice(vec!["one".to_owned(), "two".to_owned()]);
    let first = compiler.compile(&grammar).unwrap();
    let moved = answer(first.clone(), 1, 9).unwrap();
    // Neither the cached one nor the clone has moved by it.
    assert_eq!(answer(first, 1, 9).unwrap(), moved);
    assert_eq!(
        answer(compiler.compile(&grammar).unwrap(), 1, 9).unwrap(),
        moved
    );
}
