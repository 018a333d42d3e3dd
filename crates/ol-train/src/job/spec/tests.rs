//! Goal: a good specification is read the same from JSON and TOML, and a bad
//! one is refused with everything that is wrong with it, by field.

use super::*;

/// A folder that looks like a base, and a file of data.
fn place() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    std::fs::create_dir(dir.path().join("base")).unwrap();
    std::fs::write(dir.path().join("base/config.json"), "{}").unwrap();
    std::fs::write(dir.path().join("data.jsonl"), "").unwrap();
    dir
}

const GOOD: &str = r#"
format = "openledger-job/1"
name = "contracts"
method = "lora"
output = "out"

[base]
path = "base"

[data]
files = ["data.jsonl"]
format = "chat"

[lora]
rank = 8
target_modules = ["q_proj", "v_proj"]

[options]
epochs = 2
learning_rate = 2e-4
seed = 7

[evaluation]
held_out_fraction = 0.1
"#;

#[test]
fn toml_and_json_say_the_same() {
    let dir = place();
    let spec = JobSpec::from_toml(GOOD).unwrap();
    assert_eq!(spec.lora.rank, 8);
    assert_eq!(spec.options.seed, 7);
    assert_eq!(
        spec.options.batch_tokens,
        TrainOptions::default().batch_tokens
    );
    let json = String::from_utf8(spec.to_bytes()).unwrap();
    assert_eq!(JobSpec::from_json(&json).unwrap(), spec);
    assert_eq!(JobSpec::from_toml(&spec.to_toml().unwrap()).unwrap(), spec);
    for steps in [TrainOptions::default().steps, 17] {
        let mut spec = spec.clone();
        spec.options.steps = steps;
        spec.options.epochs = Some(2.0);
        let text = spec.to_toml().unwrap();
        assert_eq!(text.contains("\nsteps = "), steps == 17, "{text}");
        assert_eq!(JobSpec::from_toml(&text).unwrap(), spec);
    }
    let file = dir.path().join("job.toml");
    std::fs::write(&file, GOOD).unwrap();
    let loaded = JobSpec::load(&file).unwrap();
    assert_eq!(loaded.base.path.as_deref(), Some(&*dir.path().join("base")));
    assert_eq!(loaded.problems(), []);
    let file = dir.path().join("job.json");
    std::fs::write(&file, &json).unwrap();
    assert_eq!(JobSpec::load(&file).unwrap(), loaded);
}

#[test]
fn the_hash_is_that_of_the_content_without_the_place_of_the_result() {
    let spec = JobSpec::from_toml(GOOD).unwrap();
    let elsewhere = JobSpec {
        output: Some("elsewhere".into()),
        ..spec.clone()
    };
    assert_eq!(spec.hash(), elsewhere.hash());
    let mut other = spec.clone();
    other.options.seed = 8;
    assert_ne!(spec.hash(), other.hash());
    let text = String::from_utf8(spec.to_bytes()).unwrap();
    assert!(
        text.starts_with(r#"{"base":{"hub":null,"path":"base""#),
        "{text}"
    );
}

/// The mistakes found in [`GOOD`] with `from` replaced by `to`, as text.
#[track_caller]
fn mistakes(from: &str, to: &str) -> Vec<String> {
    let dir = place();
    let text = GOOD.replacen(from, to, 1);
    assert_ne!(text, GOOD, "nothing replaced");
    let problems = match JobSpec::from_toml(&text) {
        Ok(spec) => spec.at(dir.path()).problems(),
        Err(error) => error.problems().to_vec(),
    };
    problems.iter().map(Problem::to_string).collect()
}

#[track_caller]
fn check(from: &str, to: &str, expected: &[&str]) {
    let found = mistakes(from, to);
    assert_eq!(found.len(), expected.len(), "{found:#?}");
    for (found, expected) in found.iter().zip(expected) {
        assert!(found.contains(expected), "{found:?} lacks {expected:?}");
    }
}

#[test]
fn every_mistake_is_named_at_once() {
    check(
        "[lora]\nrank = 8\ntarget_modules = [\"q_proj\", \"v_proj\"]",
        "[lora]\nrnk = 8\nalpha = \"much\"\ncolour = 1",
        &[
            "lora.alpha: invalid type: string \"much\"",
            "lora.colour: is no field of lora; there are alpha, ",
            "lora.rnk: is no field of lora, did you mean `rank`?",
        ],
    );
    check(
        "learning_rate = 2e-4",
        "learning_rate = \"fast\"\nlearnig_rate = 1",
        &[
            "did you mean `learning_rate`?",
            "options.learning_rate: invalid type",
        ],
    );
    check(
        "rank = 8\ntarget_modules = [\"q_proj\", \"v_proj\"]",
        "rank = 0\nalpha = -1.0\ndropout = 0.1\ntarget_modules = [\"q_prj\"]",
        &[
            "lora.rank: must be 1 to",
            "lora.alpha: must be a positive number",
            "lora.dropout: only 0",
            "\"q_prj\" is no linear layer",
        ],
    );
}

#[test]
fn single_mistakes() {
    for (from, to, expected) in [
        (
            "openledger-job/1",
            "openledger-job/9",
            "format: is \"openledger-job/9\"",
        ),
        ("format = \"openledger-job/1\"", "", "format: is missing"),
        ("name = \"contracts\"", "", "name: is missing"),
        ("name = \"contracts\"", "name = \" \"", "name: must have"),
        (
            "method = \"lora\"",
            "method = \"magic\"",
            "method: unknown variant `magic`",
        ),
        (
            "method = \"lora\"",
            "metod = \"lora\"",
            "did you mean `method`?",
        ),
        (
            "method = \"lora\"",
            "method = \"qlora\"",
            "base.quantise: method qlora needs",
        ),
        (
            "method = \"lora\"",
            "method = \"dpo\"",
            "data.format: method dpo",
        ),
        ("[base]\npath = \"base\"", "", "base: is missing"),
        ("path = \"base\"", "", "base: give either path"),
        (
            "path = \"base\"",
            "path = \"base\"\nhub = \"a/b\"",
            "base: give either",
        ),
        (
            "path = \"base\"",
            "path = \"nowhere\"",
            "base.path: there is no",
        ),
        (
            "path = \"base\"",
            "path = \"data.jsonl\"",
            "is a file but no .gguf",
        ),
        ("path = \"base\"", "path = \".\"", "has no config.json"),
        (
            "path = \"base\"",
            "hub = \"../../etc\"",
            "base.hub: must look like",
        ),
        (
            "path = \"base\"",
            "path = \"base\"\nrevision = \"x\"",
            "base.revision: needs",
        ),
        (
            "path = \"base\"",
            "path = \"base\"\nquantise = \"nf4\"",
            "say method = \"qlora\"",
        ),
        ("[base]\npath = \"base\"", "base = 3", "base: is a number"),
        (
            "files = [\"data.jsonl\"]",
            "files = [\"none\"]",
            "data.files: there is no file",
        ),
        ("files = [\"data.jsonl\"]", "", "data: give either files"),
        (
            "format = \"chat\"",
            "format = \"preference\"",
            "pairs are for method dpo",
        ),
        (
            "format = \"chat\"",
            "prompt_weight = 2.0",
            "data.prompt_weight: must be",
        ),
        ("format = \"chat\"", "version = 1", "data.version: needs"),
        ("epochs = 2", "epochs = 0", "options.epochs: "),
        (
            "learning_rate = 2e-4",
            "learning_rate = -1.0",
            "options.learning_rate: ",
        ),
        (
            "held_out_fraction = 0.1",
            "held_out_fraction = 0.9",
            "held_out_fraction: must be",
        ),
        (
            "held_out_fraction = 0.1",
            "max_new_tokens = 0",
            "max_new_tokens: must be",
        ),
        (
            "output = \"out\"",
            "output = \"base\"",
            "output: exists and is not empty",
        ),
    ] {
        check(from, to, &[expected]);
    }
}

#[test]
fn text_that_is_no_specification_is_an_error() {
    for text in ["", "[", "3", "null", "[]", "{\"format\":1}", "\u{0}"] {
        assert!(JobSpec::from_json(text).is_err(), "{text:?}");
    }
    let error = JobSpec::from_toml("name = ").unwrap_err().to_string();
    assert!(
        error.starts_with("not TOML: ") && error.contains("line 1"),
        "{error}"
    );
    let dir = tempfile::tempdir().unwrap();
    let long = dir.path().join("long.json");
    let size = usize::try_from(MAX_SPEC_SIZE_BYTES).unwrap() + 1;
    std::fs::write(&long, " ".repeat(size)).unwrap();
    assert!(matches!(
        JobSpec::load(&long).unwrap_err(),
        SpecError::TooLarge { .. }
    ));
}

proptest::proptest! {
    #[test]
    fn no_bytes_panic(text in ".{0,200}") {
        let _ = JobSpec::from_json(&text);
        let _ = JobSpec::from_toml(&text);
    }
}
