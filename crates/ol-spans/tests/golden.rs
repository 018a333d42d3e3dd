//! Goal: the files and the money are those of an independent implementation,
//! and real text is found where it stands.
//! Method: `fixtures/spans`, made by `make.py`; then the legal datanet through
//! the default tokenizer, compared with a search that looks at every position.
#![expect(
    clippy::unwrap_used,
    reason = "helpers of tests: a broken fixture should fail them"
)]

use std::fs;
use std::io::Read as _;
use std::path::{Path, PathBuf};

use ol_model::Tokenizer;
use ol_poa::Earned;
use ol_poa::spans::{Holders, SpanRule, log2};
use ol_spans::{BuildOptions, Corpus, RecordRef, SpanIndex, Store};
use ol_types::{Address, B256, keccak256};
use serde::Deserialize;

fn repository(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../..")
        .join(path)
}

#[derive(Deserialize)]
struct Vectors {
    log2: Vec<(String, u64)>,
    vocabulary_size: usize,
    versions: Vec<u32>,
    documents: Vec<Document>,
    shard: B256,
    corpus: B256,
    table: B256,
    queries: Vec<Query>,
}

#[derive(Deserialize, Clone)]
struct Document {
    hash: B256,
    contributor: Address,
    cluster: u32,
    texts: Vec<Vec<u32>>,
}

#[derive(Deserialize)]
struct Query {
    answer: Vec<u32>,
    length_min: u32,
    floor_millibits: u64,
    spans: Vec<Span>,
    units: Vec<(Address, u64)>,
    total: u64,
}

#[derive(Deserialize, Debug, PartialEq, Eq)]
struct Span {
    start: u32,
    len: u32,
    since: u32,
    occurrences: u64,
    clusters: Vec<u32>,
    records: Vec<u32>,
}

fn index(dir: &Path, corpus: &Corpus, documents: &[Document]) -> SpanIndex {
    let store = Store::open(dir).unwrap();
    let mut tokens = |record: &RecordRef| {
        let found = documents
            .iter()
            .find(|document| document.hash == record.hash);
        Ok(found.unwrap().texts.clone())
    };
    let id = store
        .update(corpus, &BuildOptions::default(), &mut tokens, &mut |_| ())
        .unwrap();
    store.verify(id).unwrap();
    store.load(id).unwrap()
}

fn corpus(tokenizer: B256, vocabulary_size: usize, documents: &[Document]) -> Corpus {
    let record = |document: &Document| RecordRef {
        hash: document.hash,
        contributor: document.contributor,
        cluster: document.cluster,
    };
    Corpus {
        manifest: keccak256("manifest"),
        tokenizer,
        vocabulary_size,
        versions: vec![u32::try_from(documents.len()).unwrap()],
        records: documents.iter().map(record).collect(),
    }
}

#[test]
fn the_documents_give_the_golden_files_spans_and_units() {
    let vectors = fs::read(repository("fixtures/spans/vectors.json")).unwrap();
    let vectors: Vectors = serde_json::from_slice(&vectors).unwrap();
    for (x, value) in &vectors.log2 {
        // One unit of the last place is what the algorithm may lose.
        let found = log2(x.parse().unwrap());
        assert!(
            found == *value || found + 1 == *value,
            "log2({x}): {found}, not {value}"
        );
    }
    let dir = tempfile::tempdir().unwrap();
    let corpus = Corpus {
        versions: vectors.versions,
        ..corpus(
            keccak256("tokenizer"),
            vectors.vocabulary_size,
            &vectors.documents,
        )
    };
    let index = index(dir.path(), &corpus, &vectors.documents);
    assert_eq!(index.id(), vectors.corpus);
    assert_eq!(index.unigrams().hash(), vectors.table);
    for (id, extension) in [(vectors.shard, "shard"), (vectors.corpus, "corpus")] {
        let name = format!("{}.{extension}", format!("{id:x}").trim_start_matches("0x"));
        let golden = fs::read(repository(&format!("fixtures/spans/golden.{extension}"))).unwrap();
        assert_eq!(
            fs::read(dir.path().join(name)).unwrap(),
            golden,
            "{extension}"
        );
    }
    for query in vectors.queries {
        let found = index.spans(&query.answer, query.length_min).unwrap();
        let found: Vec<Span> = found
            .into_iter()
            .map(|found| {
                let Holders::Listed(holders) = &found.span.holders else {
                    panic!("nine records are not too many");
                };
                Span {
                    start: found.span.start,
                    len: found.span.len,
                    since: found.span.since,
                    occurrences: found.occurrences,
                    clusters: holders.iter().map(|holder| holder.cluster).collect(),
                    records: found.records,
                }
            })
            .collect();
        assert_eq!(found, query.spans);
        let rule = SpanRule {
            length_min: query.length_min,
            floor_millibits: query.floor_millibits,
        };
        let earned = index.units(&query.answer, &rule).unwrap();
        assert_eq!((earned.weights, earned.total), (query.units, query.total));
    }
}

/// The fields of a record that are used here.
#[derive(Deserialize)]
struct Line {
    contributor: String,
    question: String,
    answer: String,
}

/// The legal datanet, question and answer of each record.
fn legal(tokenizer: &Tokenizer) -> Vec<Document> {
    let file = fs::File::open(repository("assets/datanets/legal.jsonl.xz")).unwrap();
    let mut text = String::new();
    xz2::read::XzDecoder::new(file)
        .read_to_string(&mut text)
        .unwrap();
    let document = |(number, line): (u32, &str)| {
        let line: Line = serde_json::from_str(line).unwrap();
        let encode = |text: &str| tokenizer.encode(text).unwrap();
        Document {
            hash: keccak256(number.to_be_bytes()),
            contributor: Address::from_slice(&keccak256(&line.contributor)[12..]),
            cluster: number,
            texts: vec![encode(&line.question), encode(&line.answer)],
        }
    };
    (0..).zip(text.lines()).map(document).collect()
}

/// Start, length and records of the maximal spans, by looking everywhere.
fn naive(documents: &[Document], answer: &[u32], length_min: usize) -> Vec<(u32, u32, Vec<u32>)> {
    let texts = || {
        let numbered = (0_u32..).zip(documents);
        numbered.flat_map(|(number, d)| d.texts.iter().map(move |text| (number, text.as_slice())))
    };
    let mut lens = vec![0; answer.len()];
    for (_, text) in texts() {
        // Common lengths of every pair of positions, from the back.
        let mut below = vec![0; answer.len() + 1];
        for &token in text.iter().rev() {
            for at in 0..answer.len() {
                below[at] = if answer[at] == token {
                    below[at + 1] + 1
                } else {
                    0
                };
                lens[at] = lens[at].max(below[at]);
            }
        }
    }
    let mut spans = Vec::new();
    let mut end = 0;
    for (start, len) in lens.into_iter().enumerate() {
        if len >= length_min && start + len > end {
            end = start + len;
            let wanted = &answer[start..end];
            let holds = |text: &[u32]| text.windows(len).any(|window| window == wanted);
            let mut records: Vec<u32> = texts()
                .filter(|(_, text)| holds(text))
                .map(|(n, _)| n)
                .collect();
            records.dedup();
            spans.push((
                u32::try_from(start).unwrap(),
                u32::try_from(len).unwrap(),
                records,
            ));
        }
    }
    spans
}

#[test]
fn real_text_is_found_in_its_record_and_pays_its_contributor() {
    let tokenizer = Tokenizer::load(&repository("assets/base")).unwrap();
    let all = legal(&tokenizer);
    // Every tenth record is left out, to ask about text that is not there.
    let is_held_out = |n: usize| n % 10 == 9;
    let kept: Vec<Document> = all
        .iter()
        .enumerate()
        .filter(|(n, _)| !is_held_out(*n))
        .map(|(_, d)| d.clone())
        .collect();
    let dir = tempfile::tempdir().unwrap();
    let hash = keccak256(fs::read(repository("assets/base/tokenizer.json")).unwrap());
    let index = index(
        dir.path(),
        &corpus(hash, tokenizer.vocab_size(), &kept),
        &kept,
    );
    let rule = SpanRule::default();

    let long = kept
        .iter()
        .enumerate()
        .filter(|(_, d)| d.texts[0].len() > 120);
    for (number, document) in long.step_by(20) {
        let quoted = &document.texts[0][10..100];
        let words = tokenizer.encode("As the court put it, in short: ").unwrap();
        let answer = [&words, quoted].concat();
        let found = index.spans(&answer, rule.length_min).unwrap();
        let shown: Vec<(u32, u32, Vec<u32>)> = found
            .iter()
            .map(|found| (found.span.start, found.span.len, found.records.clone()))
            .collect();
        assert_eq!(shown, naive(&kept, &answer, rule.length_min as usize));
        let number = u32::try_from(number).unwrap();
        assert!(
            shown
                .iter()
                .any(|(_, len, records)| *len >= 90 && records.contains(&number))
        );
        // Its tasks share instructions, so others may hold the text as well.
        let units = index.units(&answer, &rule).unwrap().weights;
        let most = units.iter().map(|(_, units)| *units).max().unwrap();
        let own = units
            .iter()
            .find(|(who, _)| *who == document.contributor)
            .unwrap()
            .1;
        assert_eq!(own, most);
    }
    let prose =
        "The weather in the mountains changed twice that week, and nobody had brought a coat.";
    let answer = tokenizer.encode(prose).unwrap();
    assert_eq!(index.units(&answer, &rule).unwrap(), Earned::default());
}
