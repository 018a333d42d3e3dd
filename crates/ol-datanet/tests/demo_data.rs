//! Goal: the records that the project ships are a datanet each, as their README
//! says: none is rejected, and everything verifies.

#![expect(clippy::unwrap_used, reason = "a test outside of `cfg(test)`")]

use std::io::BufReader;
use std::path::Path;
use std::sync::Arc;

use ol_datanet::{
    AddOptions, AddReport, CommittedRecord, Datanets, DuplicateRules, NEAR_DUPLICATES_PERCENT,
    cluster_owners,
};
use ol_runtime::DataDir;
use ol_types::{Address, keccak256};
use tempfile::TempDir;

/// A datanet on disk as the binary keeps it, with all records of the file.
struct Committed {
    datanets: Datanets,
    name: &'static str,
    added: AddReport,
    _dir: TempDir,
}

fn address(contributor: &str) -> Address {
    Address::from_slice(&keccak256(contributor)[12..])
}

fn commit(name: &'static str, rules: DuplicateRules) -> Committed {
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
    fn records(&self) -> Vec<CommittedRecord> {
        let head = self.datanets.head(self.name).unwrap();
        self.datanets.records(head.unwrap()).unwrap()
    }
}

#[track_caller]
fn check(name: &'static str, n_records: u64, n_contributors: u64, n_clusters: u64) {
    let committed = commit(name, DuplicateRules::EXACT);
    let added = &committed.added;
    assert_eq!(added.rejected, []);
    assert_eq!((added.accepted, added.repeated), (n_records, 0));
    let version = added.new_version.as_ref().unwrap();
    let verified = committed.datanets.verify(name).unwrap();
    assert_eq!(version.n_contributors, n_contributors);
    assert_eq!(version.n_clusters, n_clusters);
    assert_eq!(
        (verified.n_records, verified.root),
        (n_records, version.root)
    );
}

/// What the rules for duplicates would leave out of the honest records: those
/// of another contributor than the owner, and the owner's own.
#[track_caller]
fn check_left_out(name: &'static str, expected: [(DuplicateRules, [usize; 2]); 4]) {
    let found = expected.map(|(rules, _)| {
        let records = commit(name, rules).records();
        let owners = cluster_owners(&records);
        let mut left_out = [0; 2];
        for record in &records {
            let owner = owners[record.cluster as usize];
            if owner.record_hash != record.record_hash {
                let is_own = owner.record.contributor == record.record.contributor;
                left_out[usize::from(is_own)] += 1;
            }
        }
        (rules, left_out)
    });
    assert_eq!(found, expected, "{name}");
}

#[test]
fn rules_for_duplicates_leave_out_what_the_documentation_says() {
    // `docs/attribution.md`, "Near duplicates" and "Recombined records".
    let exact = DuplicateRules::EXACT;
    let near = exact.and_near(NEAR_DUPLICATES_PERCENT);
    let kinds = [exact, exact.and_recombined(), near, near.and_recombined()];
    let with = |left_out: [[usize; 2]; 4]| std::array::from_fn(|at| (kinds[at], left_out[at]));
    check_left_out("defi-exploits", with([[0, 0], [0, 0], [30, 20], [31, 21]]));
    check_left_out("healthcare", with([[0, 0], [0, 0], [0, 21], [0, 22]]));
    check_left_out("legal", with([[12, 0], [25, 0], [60, 31], [73, 31]]));
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

/// Copies of all records in which so many per cent of the words are others, and
/// how many of them near duplicates find: those in the cluster of the original.
#[track_caller]
fn check_copies_found(name: &'static str, expected: [(u64, usize); 4]) {
    let rules = DuplicateRules::EXACT.and_near(NEAR_DUPLICATES_PERCENT);
    let found = expected.map(|(percent, _)| {
        let committed = commit(name, rules);
        let originals = committed.records();
        let texts = originals.iter().map(|record| &record.record.answer);
        let words: Vec<&str> = texts.flat_map(|text| text.split_whitespace()).collect();
        let copies = originals.iter().enumerate().map(|(at, record)| {
            let change = |text: &str, part| changed(text, percent, &words, 2 * at + part);
            let copy = serde_json::json!({
                "question": change(&record.record.question, 0),
                "answer": change(&record.record.answer, 1),
                "contributor": "copier",
                "license": record.record.license,
                "id": at.to_string(),
            });
            copy.to_string() + "\n"
        });
        let copies: String = copies.collect();
        let options = AddOptions::new(&address);
        let added = committed.datanets.add(name, copies.as_bytes(), &options);
        assert_eq!(added.unwrap().rejected, []);
        let records = committed.records();
        let copies = &records[originals.len()..];
        let pairs = originals.iter().zip(copies);
        (
            percent,
            pairs.filter(|(a, b)| a.cluster == b.cluster).count(),
        )
    });
    assert_eq!(found, expected, "{name}");
}

#[test]
fn near_duplicates_find_what_the_documentation_says() {
    // `docs/attribution.md`, "Near duplicates".
    check_copies_found("defi-exploits", [(5, 814), (15, 804), (25, 766), (40, 535)]);
    check_copies_found("healthcare", [(5, 600), (15, 600), (25, 599), (40, 439)]);
    check_copies_found("legal", [(5, 465), (15, 464), (25, 465), (40, 450)]);
}

#[test]
fn healthcare() {
    check("healthcare", 600, 7, 600);
}

#[test]
fn legal() {
    check("legal", 466, 97, 454);
}

#[test]
fn defi_exploits() {
    check("defi-exploits", 814, 103, 814);
}
