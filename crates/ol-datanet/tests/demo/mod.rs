//! The records that the project ships, and copies of them.

use std::io::BufReader;
use std::path::Path;
use std::sync::Arc;

use ol_datanet::{AddOptions, AddReport, CommittedRecord, Datanets, DuplicateRules};
use ol_runtime::DataDir;
use ol_types::{Address, keccak256};
use tempfile::TempDir;

/// A datanet on disk as the binary keeps it, with all records of the file.
pub(crate) struct Committed {
    pub(crate) datanets: Datanets,
    name: &'static str,
    pub(crate) added: AddReport,
    _dir: TempDir,
}

fn address(contributor: &str) -> Address {
    Address::from_slice(&keccak256(contributor)[12..])
}

pub(crate) fn commit(name: &'static str, rules: DuplicateRules) -> Committed {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join(format!("../../assets/datanets/{name}.jsonl.xz"));
    let packed = std::fs::File::open(path).unwrap();
    let input = BufReader::new(xz2::read::XzDecoder::new(packed));

    let dir = tempfile::tempdir().unwrap();
    let data = DataDir::open_or_create(dir.path()).unwrap();
    let heads = Arc::new(data.heads("datanets").unwrap());
    let datanets = Datanets::open(data.objects().unwrap(), heads);
    datanets.create(name).unwrap();
    let options = AddOptions::new(&address).duplicates(rules);
    let added = datanets.add(name, input, &options).unwrap();
    Committed {
        datanets,
        name,
        added,
        _dir: dir,
    }
}

impl Committed {
    pub(crate) fn records(&self) -> Vec<CommittedRecord> {
        let head = self.datanets.head(self.name).unwrap();
        self.datanets.records(head.unwrap()).unwrap()
    }

    /// A copy of each record, question and answer, in which so many per cent of the
    /// words are others.
    pub(crate) fn copies(&self, percent: u64) -> Vec<[String; 2]> {
        let originals = self.records();
        let texts = originals.iter().map(|record| &record.record.answer);
        let words: Vec<&str> = texts.flat_map(|text| text.split_whitespace()).collect();
        let copy = |(at, record): (usize, &CommittedRecord)| {
            let change = |text: &str, part| changed(text, percent, &words, 2 * at + part);
            [
                change(&record.record.question, 0),
                change(&record.record.answer, 1),
            ]
        };
        originals.iter().enumerate().map(copy).collect()
    }

    /// Commits copies of all records; the number of those in the cluster of the
    /// original.
    pub(crate) fn add_copies(&self, copies: &[[String; 2]]) -> usize {
        let originals = self.records();
        let lines = originals.iter().zip(copies).enumerate();
        let lines: String = lines
            .map(|(at, (original, [question, answer]))| {
                let line = serde_json::json!({
                    "question": question,
                    "answer": answer,
                    "contributor": "copier",
                    "license": original.record.license,
                    "id": at.to_string(),
                });
                line.to_string() + "\n"
            })
            .collect();
        let options = AddOptions::new(&address);
        let added = self.datanets.add(self.name, lines.as_bytes(), &options);
        assert_eq!(added.unwrap().rejected, []);
        let records = self.records();
        let pairs = originals.iter().zip(&records[originals.len()..]);
        pairs.filter(|(a, b)| a.cluster == b.cluster).count()
    }
}

/// The text with each word another one of the datanet in so many of a hundred
/// cases, at random.
fn changed(text: &str, percent: u64, words: &[&str], seed: usize) -> String {
    let change = |(at, word)| {
        let random = keccak256(format!("{seed} {at} {percent}"));
        let (numbers, _) = random.as_chunks();
        let [case, other] = [0, 1].map(|at| u64::from_be_bytes(numbers[at]));
        let other = usize::try_from(other % words.len() as u64).unwrap();
        if case % 100 < percent {
            words[other]
        } else {
            word
        }
    };
    let all: Vec<&str> = text.split_whitespace().enumerate().map(change).collect();
    all.join(" ")
}
