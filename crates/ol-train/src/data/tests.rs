//! Goal: every format and kind of file becomes the right tokens and weights;
//! what is wrong is named; what is held out stays held out.
//! Method: small files in a temporary folder, read with this project's own
//! tokenizer (whose chat format a reader can check by hand) and with a template.

use std::fs;
use std::sync::Arc;

use ::parquet::arrow::ArrowWriter;
use ::parquet::basic::{Compression, ZstdLevel};
use ::parquet::file::properties::WriterProperties;
use arrow_array::builder::{ListBuilder, StringBuilder, StructBuilder};
use arrow_array::{ArrayRef, Int64Array, RecordBatch, StringArray};
use arrow_schema::{DataType, Field};
use proptest::prelude::*;

use super::*;

fn tokenizer() -> Tokenizer {
    let texts = ["what is a cat? an animal.", "say: the cat sat on the mat"];
    Tokenizer::train(texts.iter().cycle().take(20).map(|s| (*s).to_owned()), 300).unwrap()
}

/// All of it, nothing held out.
fn whole() -> DataOptions {
    DataOptions {
        held_out_fraction: 0.0,
        ..DataOptions::default()
    }
}

fn read_files(files: &[(&str, &str)], options: &DataOptions) -> Result<Dataset, DataError> {
    let dir = tempfile::tempdir().unwrap();
    let paths: Vec<PathBuf> = files
        .iter()
        .map(|(name, content)| {
            let path = dir.path().join(name);
            fs::write(&path, content).unwrap();
            path
        })
        .collect();
    load(&paths, &tokenizer(), options)
}

fn read_file(name: &str, content: &str, options: &DataOptions) -> Result<Dataset, DataError> {
    read_files(&[(name, content)], options)
}

fn sequences(examples: &Examples) -> &[Sequence] {
    match examples {
        Examples::Sequences(list) => list,
        Examples::Preferences(_) => panic!("these are preferences"),
    }
}

/// The whole text, and what of it is learnt.
fn shown(sequence: &Sequence) -> (String, String) {
    let t = tokenizer();
    assert_eq!(sequence.tokens.len(), sequence.weights.len());
    let learnt: Vec<u32> = std::iter::zip(&sequence.tokens, &sequence.weights)
        .filter_map(|(token, weight)| (*weight == 1.0).then_some(*token))
        .collect();
    assert_eq!(learnt.last(), Some(&t.end_id()));
    (t.decode(&sequence.tokens), t.decode(&learnt))
}

#[track_caller]
fn check(name: &str, content: &str, format: Format, expected: &[(&str, &str)]) {
    let data = read_file(name, content, &whole()).unwrap();
    assert_eq!(data.summary.files[0].format, format, "{content}");
    assert!(data.held_out.is_empty());
    let found: Vec<(String, String)> = sequences(&data.train).iter().map(shown).collect();
    let found: Vec<(&str, &str)> = found.iter().map(|(a, b)| (&**a, &**b)).collect();
    assert_eq!(found, expected, "{content}");
}

#[test]
fn formats_are_told_apart_and_prompts_masked() {
    let qa = [("qa", "a")];
    for content in [
        r#"{"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]}"#,
        r#"{"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]}"#,
        r#"{"conversations": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}], "id": 7}"#,
    ] {
        check("a.jsonl", content, Format::Chat, &qa);
    }
    for content in [
        r#"{"instruction": "q", "input": "", "output": "a"}"#,
        r#"{"instruction": "q", "output": "a", "input": null}"#,
        r#"{"question": "q", "answer": "a"}"#,
    ] {
        check("a.jsonl", content, Format::Instruction, &qa);
    }
    check(
        "a.jsonl",
        r#"{"instruction": "q", "input": "x", "output": "a", "system": "s"}"#,
        Format::Instruction,
        &[("s\n\nq\nxa", "a")],
    );
    check(
        "a.jsonl",
        r#"{"prompt": "the", "completion": " cat"}"#,
        Format::PromptCompletion,
        &[("the cat", " cat")],
    );
    check(
        "a.jsonl",
        r#"{"prompt": [{"role": "user", "content": "q"}], "completion": [{"role": "assistant", "content": "a"}]}"#,
        Format::PromptCompletion,
        &qa,
    );
    check(
        "a.jsonl",
        r#"{"text": "the cat"}"#,
        Format::Text,
        &[("the cat", "the cat")],
    );
    check(
        "a.jsonl",
        r#"{"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"},
           {"role": "user", "content": "q2"}, {"role": "assistant", "content": "a2"}], "system": "s"}"#
            .replace('\n', "")
            .as_str(),
        Format::Chat,
        &[("s\n\nqaq2a2", "aa2")],
    );
}

#[test]
fn kinds_of_files_read_the_same() {
    let two = [("q1a, 1", "a, 1"), ("q\n2a\"2", "a\"2")];
    let rows = [
        r#"{"question": "q1", "answer": "a, 1"}"#,
        r#"{"question": "q\n2", "answer": "a\"2"}"#,
    ];
    let lines = format!("\u{FEFF}{}\r\n\n{}", rows[0], rows[1]);
    check("a.jsonl", &lines, Format::Instruction, &two);
    check("a.ndjson", &lines, Format::Instruction, &two);
    let list = format!("[\n{},\n{}\n]", rows[0], rows[1]);
    check("a.json", &list, Format::Instruction, &two);
    check(
        "a.json",
        &format!("{{\"data\": {list}}}"),
        Format::Instruction,
        &two,
    );
    let table = "question,answer\nq1,\"a, 1\"\n\"q\n2\",\"a\"\"2\"\n";
    check("a.csv", table, Format::Instruction, &two);
    check(
        "a.TSV",
        "answer\tquestion\na, 1\tq1\n\"a\"\"2\"\t\"q\n2\"\n",
        Format::Instruction,
        &two,
    );
    for name in ["a.txt", "a.md"] {
        check(
            name,
            "the cat\n\nsat",
            Format::Text,
            &[("the cat\n\nsat", "the cat\n\nsat")],
        );
    }
}

/// A Parquet file of texts, a null where there is none.
fn parquet_file(columns: &[(&str, &[Option<&str>])], codec: Compression) -> Vec<u8> {
    let arrays = columns.iter().map(|(name, values)| {
        let array: ArrayRef = Arc::new(StringArray::from(values.to_vec()));
        (*name, array, true)
    });
    let batch = RecordBatch::try_from_iter_with_nullable(arrays).unwrap();
    parquet_of(&batch, codec)
}

fn parquet_of(batch: &RecordBatch, codec: Compression) -> Vec<u8> {
    let properties = WriterProperties::builder()
        .set_compression(codec)
        // Several groups of rows.
        .set_max_row_group_row_count(Some(2))
        .build();
    let mut bytes = Vec::new();
    let mut writer = ArrowWriter::try_new(&mut bytes, batch.schema(), Some(properties)).unwrap();
    writer.write(batch).unwrap();
    writer.close().unwrap();
    bytes
}

fn read_parquet(bytes: &[u8], options: &DataOptions) -> Result<Dataset, DataError> {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("a.parquet"), bytes).unwrap();
    load(&[dir.path().to_owned()], &tokenizer(), options)
}

#[test]
fn parquet_files_read_as_the_same_rows_in_lines() {
    let line = |i: usize| format!(r#"{{"question": "q {i}", "answer": "a {i}"}}"#);
    let lines: Vec<String> = (0..5).map(line).collect();
    let want = read_file("a.jsonl", &lines.join("\n"), &whole()).unwrap();
    let texts = |name: &str| (0..5).map(|i| format!("{name} {i}")).collect::<Vec<_>>();
    let (questions, answers) = (texts("q"), texts("a"));
    let [q, a] = [&questions, &answers].map(|texts| {
        let texts = texts.iter().map(|text| Some(text.as_str()));
        texts.collect::<Vec<_>>()
    });
    for codec in [
        Compression::UNCOMPRESSED,
        Compression::SNAPPY,
        Compression::ZSTD(ZstdLevel::default()),
    ] {
        let bytes = parquet_file(&[("question", &q), ("answer", &a)], codec);
        let got = read_parquet(&bytes, &whole()).unwrap();
        assert_eq!(got.train, want.train);
        assert_eq!(got.summary.files[0].format, Format::Instruction);
    }
}

#[test]
fn messages_in_columns_are_messages() {
    let fields = ["role", "content", "tool_calls"].map(|n| Field::new(n, DataType::Utf8, true));
    let mut list = ListBuilder::new(StructBuilder::from_fields(fields.to_vec(), 2));
    for (role, content) in [("user", "a cat?"), ("assistant", "an animal")] {
        let message = list.values();
        // Null, as where other rows call tools.
        for (i, text) in [Some(role), Some(content), None].into_iter().enumerate() {
            message
                .field_builder::<StringBuilder>(i)
                .unwrap()
                .append_option(text);
        }
        message.append(true);
    }
    list.append(true);
    let ids: ArrayRef = Arc::new(Int64Array::from(vec![7]));
    let columns: [(&str, ArrayRef); 2] = [("messages", Arc::new(list.finish())), ("id", ids)];
    let batch = RecordBatch::try_from_iter(columns).unwrap();
    let got = read_parquet(&parquet_of(&batch, Compression::SNAPPY), &whole()).unwrap();
    assert_eq!(got.summary.files[0].format, Format::Chat);
    let (_, learnt) = shown(&sequences(&got.train)[0]);
    assert_eq!(learnt, "an animal");
}

#[test]
fn bad_rows_of_parquet_files_are_named() {
    let columns: [(&str, &[Option<&str>]); 2] = [
        ("question", &[Some("q"), Some("r"), None, Some("s")]),
        ("answer", &[Some("a"), Some("b"), Some("c"), Some("")]),
    ];
    let bytes = parquet_file(&columns, Compression::SNAPPY);
    let said = read_parquet(&bytes, &whole()).unwrap_err().to_string();
    assert!(said.contains("a.parquet, row 3: "), "{said}");
    assert!(said.contains("question"), "{said}");
    let options = DataOptions {
        skip_bad: 2,
        ..whole()
    };
    let got = read_parquet(&bytes, &options).unwrap();
    assert_eq!((got.train.len(), got.summary.n_bad), (2, 2));
    assert_eq!(got.summary.bad[1].line, 4);

    // Damage is an error or another text, never a panic.
    for n in 0..bytes.len() {
        assert!(read_parquet(&bytes[..n], &options).is_err(), "cut at {n}");
    }
    for at in 0..bytes.len() {
        let mut changed = bytes.clone();
        changed[at] ^= 1 << (at % 8);
        let _ = read_parquet(&changed, &options);
    }
}

#[test]
fn a_folder_is_its_files_by_name() {
    let dir = tempfile::tempdir().unwrap();
    for (name, content) in [
        ("b.jsonl", r#"{"text": "two"}"#),
        ("a.txt", "one"),
        ("notes.pdf", "?"),
    ] {
        fs::write(dir.path().join(name), content).unwrap();
    }
    let data = load(&[dir.path().to_owned()], &tokenizer(), &whole()).unwrap();
    let texts: Vec<String> = sequences(&data.train).iter().map(|s| shown(s).0).collect();
    assert_eq!(texts, ["one", "two"]);
    assert_eq!(data.summary.files.len(), 2);
    let said = data.summary.to_string();
    assert!(said.contains("a.txt: 1 examples, plain text"), "{said}");
}

fn pairs(examples: &Examples) -> &[Pair] {
    match examples {
        Examples::Preferences(list) => list,
        Examples::Sequences(_) => panic!("these are sequences"),
    }
}

#[test]
fn preferences_weigh_the_answers_only() {
    for content in [
        r#"{"prompt": "q", "chosen": "at", "rejected": "an"}"#,
        r#"{"prompt": [{"role": "user", "content": "q"}], "chosen": [{"role": "assistant", "content": "at"}], "rejected": [{"role": "assistant", "content": "an"}]}"#,
        r#"{"prompt": [{"role": "user", "content": "q"}], "chosen": {"role": "assistant", "content": "at"}, "rejected": {"role": "assistant", "content": "an"}}"#,
        r#"{"chosen": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "at"}], "rejected": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "an"}]}"#,
        r#"{"conversations": [], "prompt": [{"from": "human", "value": "q"}], "chosen": {"from": "gpt", "value": "at"}, "rejected": {"from": "gpt", "value": "an"}}"#,
    ] {
        let data = read_file("a.jsonl", content, &whole()).unwrap();
        assert_eq!(data.summary.files[0].format, Format::Preference);
        let pair = &pairs(&data.train)[0];
        assert_eq!(
            shown(&pair.chosen),
            ("qat".into(), "at".into()),
            "{content}"
        );
        assert_eq!(shown(&pair.rejected), ("qan".into(), "an".into()));
    }
    // Earlier answers are part of the prompt.
    let turns = r#"{"prompt": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "old"}, {"role": "user", "content": "r"}], "chosen": "yes", "rejected": "no"}"#;
    let data = read_file("a.jsonl", turns, &whole()).unwrap();
    assert_eq!(
        shown(&pairs(&data.train)[0].chosen),
        ("qoldryes".into(), "yes".into())
    );
}

#[test]
fn bad_lines_are_named() {
    let good = r#"{"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]}"#;
    for (bad, expected) in [
        ("{", "line 2: EOF"),
        ("[1]", "line 2: invalid type"),
        ("{}", "line 2: field `conversations`: is missing"),
        (
            r#"{"messages": "hello"}"#,
            "field `messages`: is not a list",
        ),
        (r#"{"messages": []}"#, "there is nothing to learn"),
        (
            r#"{"messages": [{"role": "user", "content": "q"}]}"#,
            "field `messages`: no message is the assistant's",
        ),
        (
            r#"{"messages": [{"role": "king", "content": "q"}]}"#,
            "field `messages[0]`: the role is `king`",
        ),
        (
            r#"{"messages": [{"content": "q"}]}"#,
            "field `messages[0]`: has no `role`",
        ),
        (
            r#"{"messages": [{"role": "user"}]}"#,
            "field `messages[0]`: has no `content`",
        ),
        (
            r#"{"conversations": [{"from": "x", "value": "q"}]}"#,
            "field `conversations[0]`: `from` is `x`",
        ),
        (
            r#"{"messages": [{"role": "assistant", "content": ["a"]}]}"#,
            "message 0: the content is not a text",
        ),
        (
            r#"{"messages": [{"role": "assistant", "content": "a"}], "tools": 5}"#,
            "field `tools`: is not a text",
        ),
    ] {
        let content = format!("{good}\n{bad}\n{good}\n");
        let error = read_file("a.jsonl", &content, &whole()).unwrap_err();
        let said = error.to_string();
        assert!(said.contains("a.jsonl, line 2: "), "{bad}: {said}");
        assert!(said.contains(expected), "{bad}: {said}");
        let options = DataOptions {
            skip_bad: 1,
            ..whole()
        };
        let data = read_file("a.jsonl", &content, &options).unwrap();
        assert_eq!((data.train.len(), data.summary.n_bad), (2, 1));
        assert_eq!(data.summary.bad[0].line, 2);
        let twice = format!("{content}{bad}\n");
        let error = read_file("a.jsonl", &twice, &options).unwrap_err();
        assert!(error.to_string().contains("line 4"), "{error}");
    }
}

#[test]
fn faults_of_every_format_name_the_field() {
    for (content, expected) in [
        (
            r#"{"instruction": "q", "output": 5}"#,
            "field `output`: is not a text",
        ),
        (
            r#"{"instruction": "q", "output": " "}"#,
            "field `output`: is empty",
        ),
        (
            r#"{"question": "", "answer": "a"}"#,
            "field `question`: is empty",
        ),
        (
            r#"{"prompt": "q", "completion": ""}"#,
            "field `completion`: is empty",
        ),
        (
            r#"{"prompt": "q", "completion": [{"role": "assistant", "content": "a"}]}"#,
            "must both be texts",
        ),
        (r#"{"text": ""}"#, "field `text`: is empty"),
        (
            r#"{"prompt": "q", "chosen": "a", "rejected": "a"}"#,
            "field `rejected`: is the same",
        ),
        (
            r#"{"prompt": "q", "chosen": [{"role": "user", "content": "a"}], "rejected": "b"}"#,
            "field `chosen`: the last message is not the assistant's",
        ),
        (
            r#"{"prompt": 1, "chosen": "a", "rejected": "b"}"#,
            "field `prompt`: is neither",
        ),
        (
            r#"{"chosen": "a", "rejected": "b"}"#,
            "field `prompt`: is missing",
        ),
        (
            r#"{"foo": 1, "bar": 2}"#,
            "no known format has the fields bar, foo",
        ),
    ] {
        let error = read_file("a.jsonl", content, &whole()).unwrap_err();
        assert!(error.to_string().contains(expected), "{content}: {error}");
    }
    let list = "[\n{\"text\": \"a\"},\n\n{\"text\": 5}\n]";
    let error = read_file("a.json", list, &whole()).unwrap_err().to_string();
    assert!(error.contains("a.json, line 4: field `text`"), "{error}");
    let table = "question,answer\nq,a\nq\n\"q\n\",\n";
    let error = read_file("a.csv", table, &whole()).unwrap_err().to_string();
    assert!(error.contains("line 3: 1 fields"), "{error}");
    let options = DataOptions {
        skip_bad: 1,
        ..whole()
    };
    let error = read_file("a.csv", table, &options).unwrap_err().to_string();
    assert!(error.contains("line 4: field `answer`"), "{error}");
}

#[test]
fn files_that_cannot_be_used_are_named() {
    for (name, content, expected) in [
        ("a.pdf", "x", "unknown kind of file"),
        ("a.json", "{\"a\": 1}", "neither a list"),
        ("a.json", "[{\"text\": \"x\"}", "EOF"),
        ("a.txt", " \n", "the file is empty"),
        ("a.jsonl", "", "too few examples: 0"),
        ("a.csv", "", "too few examples: 0"),
    ] {
        let error = read_file(name, content, &whole()).unwrap_err();
        assert!(error.to_string().contains(expected), "{name}: {error}");
    }
    let missing = load(&["nowhere.jsonl".into()], &tokenizer(), &whole()).unwrap_err();
    assert!(missing.to_string().contains("nowhere.jsonl"), "{missing}");
    let error = read_files(
        &[
            ("a.jsonl", r#"{"text": "x"}"#),
            (
                "b.jsonl",
                r#"{"prompt": "q", "chosen": "a", "rejected": "b"}"#,
            ),
        ],
        &whole(),
    )
    .unwrap_err();
    assert!(error.to_string().contains("cannot be mixed"), "{error}");
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("a.jsonl"), [0xFF, b'\n']).unwrap();
    assert!(load(&[dir.path().to_owned()], &tokenizer(), &whole()).is_err());
}

#[test]
fn options_are_checked() {
    for options in [
        DataOptions {
            held_out_fraction: 0.6,
            ..whole()
        },
        DataOptions {
            held_out_fraction: f64::NAN,
            ..whole()
        },
        DataOptions {
            prompt_weight: 2.0,
            ..whole()
        },
        DataOptions {
            max_tokens: 1,
            ..whole()
        },
    ] {
        let error = read_file("a.jsonl", r#"{"text": "x"}"#, &options).unwrap_err();
        assert!(matches!(error, DataError::Options(_)), "{error}");
    }
    let options = DataOptions {
        max_records: 1,
        ..whole()
    };
    let two = "{\"text\": \"x\"}\n{\"text\": \"y\"}";
    let error = read_file("a.jsonl", two, &options).unwrap_err();
    assert!(
        error.to_string().contains("more than 1 examples"),
        "{error}"
    );
}

#[test]
fn what_is_too_long_is_cut_dropped_or_split_and_counted() {
    let long = "cat ".repeat(50);
    let content = [
        format!(r#"{{"question": "q", "answer": "{long}"}}"#),
        format!(r#"{{"question": "{long}", "answer": "a"}}"#),
        r#"{"question": "q", "answer": "a"}"#.to_owned(),
    ]
    .join("\n");
    let cut = DataOptions {
        max_tokens: 20,
        ..whole()
    };
    let data = read_file("a.jsonl", &content, &cut).unwrap();
    let lengths: Vec<usize> = sequences(&data.train)
        .iter()
        .map(|s| s.tokens.len())
        .collect();
    assert_eq!(lengths, [20, 5]);
    assert_eq!((data.summary.n_cut, data.summary.n_without_answer), (2, 1));
    let drop = DataOptions {
        long: Long::Drop,
        ..cut.clone()
    };
    let data = read_file("a.jsonl", &content, &drop).unwrap();
    assert_eq!((data.train.len(), data.summary.n_dropped), (1, 2));
    let data = read_file("a.txt", &long, &cut).unwrap();
    let pieces = sequences(&data.train);
    assert!(pieces.len() > 2 && data.summary.n_split == 1);
    let tokens: Vec<u32> = pieces.iter().flat_map(|p| p.tokens.clone()).collect();
    assert_eq!(tokenizer().decode(&tokens), long);
    assert_eq!(data.summary.n_tokens, tokens.len() as u64);
}

#[test]
fn what_is_held_out_does_not_depend_on_the_others() {
    let row = |i: usize| format!(r#"{{"question": "q {i}", "answer": "a {i}"}}"#);
    let texts = |examples: &Examples| -> BTreeSet<String> {
        sequences(examples).iter().map(|s| shown(s).0).collect()
    };
    let options = DataOptions {
        held_out_fraction: 0.2,
        questions: 5,
        ..DataOptions::default()
    };
    let lines: Vec<String> = (0..200).map(row).collect();
    let data = read_file("a.jsonl", &lines.join("\n"), &options).unwrap();
    let held = texts(&data.held_out);
    assert!((20..60).contains(&held.len()), "{}", held.len());
    assert_eq!(data.train.len() + held.len(), 200);
    assert_eq!(data.questions.len(), 5);
    for question in &data.questions {
        let asked = tokenizer().decode(&question.prompt);
        assert_eq!(asked, question.question);
        assert!(held.contains(&format!("{asked}{}", question.answer)));
    }
    // Reordered, with more lines and other answers to the same questions.
    let mut more: Vec<String> = (0..260).rev().map(row).collect();
    more.extend((0..200).map(|i| format!(r#"{{"question": "q {i}", "answer": "b {i}"}}"#)));
    let data = read_file("a.jsonl", &more.join("\n"), &options).unwrap();
    let held_later = texts(&data.held_out);
    assert!(held.is_subset(&held_later));
    for text in &held {
        assert!(held_later.contains(&text.replace('a', "b")), "{text}");
    }
    // Few examples: one on each side at least.
    for n in 2..6 {
        let data = read_file("a.jsonl", &lines[..n].join("\n"), &options).unwrap();
        assert!(!data.train.is_empty() && !data.held_out.is_empty());
    }
    let error = read_file("a.jsonl", &row(1), &options).unwrap_err();
    assert!(matches!(
        error,
        DataError::TooFew {
            n: 1,
            needed: 2,
            ..
        }
    ));
}

#[test]
fn records_from_elsewhere_are_as_those_of_a_file() {
    let records = (0..30).map(|i| TrainingRecord {
        question: format!("q {i}"),
        answer: format!("a {i}"),
    });
    let lines: Vec<String> = (0..30)
        .map(|i| format!(r#"{{"question": "q {i}", "answer": "a {i}"}}"#))
        .collect();
    let options = DataOptions {
        prompt_weight: 0.5,
        ..DataOptions::default()
    };
    let file = read_file("a.jsonl", &lines.join("\n"), &options).unwrap();
    let data = load_records("datanet cats", records, &tokenizer(), &options).unwrap();
    assert_eq!((&data.train, &data.held_out), (&file.train, &file.held_out));
    let first = TrainingRecord {
        question: "q 0".to_owned(),
        answer: "a 0".to_owned(),
    };
    let expected = first.sequence(&tokenizer(), 2048, 0.5).unwrap();
    assert!(
        sequences(&data.train)
            .iter()
            .chain(sequences(&data.held_out))
            .any(|s| *s == expected)
    );
}

#[test]
fn duplicates_are_counted() {
    let row = r#"{"question": "q", "answer": "a"}"#;
    let data = read_file("a.jsonl", &format!("{row}\n{row}\n"), &whole()).unwrap();
    assert_eq!((data.train.len(), data.summary.n_duplicates), (2, 1));
}

#[test]
fn a_model_without_a_template_says_so() {
    let dir = tempfile::tempdir().unwrap();
    let mut json: serde_json::Value = {
        let t = tokenizer();
        t.save(dir.path(), 64).unwrap();
        let text = fs::read_to_string(dir.path().join("tokenizer.json")).unwrap();
        serde_json::from_str(&text).unwrap()
    };
    // Another model: the same words, other special tokens.
    json["added_tokens"][1]["content"] = "<|other|>".into();
    let vocab = json["model"]["vocab"].as_object_mut().unwrap();
    let id = vocab.remove("<|user|>").unwrap();
    vocab.insert("<|other|>".to_owned(), id);
    fs::write(dir.path().join("tokenizer.json"), json.to_string()).unwrap();
    fs::write(
        dir.path().join("tokenizer_config.json"),
        r#"{"eos_token": "<|end|>"}"#,
    )
    .unwrap();
    let tokenizer = Tokenizer::load(dir.path()).unwrap();
    let path = dir.path().join("a.jsonl");
    fs::write(&path, r#"{"question": "q", "answer": "a"}"#).unwrap();
    let error = load(std::slice::from_ref(&path), &tokenizer, &whole()).unwrap_err();
    assert!(error.to_string().contains("no chat template"), "{error}");
    fs::write(&path, r#"{"prompt": "the", "completion": " cat"}"#).unwrap();
    let data = load(&[path], &tokenizer, &whole()).unwrap();
    assert_eq!(
        shown(&sequences(&data.train)[0]),
        ("the cat".into(), " cat".into())
    );
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Whatever a file holds, it is read or refused; never a panic.
    #[test]
    fn any_file_is_read_or_refused(
        content in proptest::collection::vec(
            proptest::sample::select(vec![
                "{", "}", "[", "]", ":", ",", "\"", "\n", "\"text\":", "\"messages\":", "\"role\":",
                "\"user\"", "\"assistant\"", "\"content\":", "\"chosen\":", "\"rejected\":",
                "\"prompt\":", "\"completion\":", "\"from\":", "null", "1e999", "\u{FEFF}", "a,b", "\t",
                "\\ud800", "é",
            ]),
            0..40,
        ),
        kind in proptest::sample::select(vec!["jsonl", "json", "csv", "tsv", "md"]),
    ) {
        let options = DataOptions { skip_bad: 10, ..whole() };
        let name = format!("a.{kind}");
        if let Ok(data) = read_file(&name, &content.concat(), &options) {
            prop_assert!(!data.train.is_empty());
        }
    }
}
