//! Goal: the records that the project ships are a datanet each, as their README
//! says: none is rejected, and everything verifies.

#![expect(clippy::unwrap_used, reason = "a test outside of `cfg(test)`")]

use std::io::BufReader;
use std::path::Path;
use std::sync::Arc;

use ol_datanet::{
    AddOptions, AddReport, CommittedRecord, Datanets, DuplicateRules, NEAR_DUPLICATES_PERCENT,
    VerifyReport, cluster_owners,
};
use ol_runtime::DataDir;
use ol_types::{Address, keccak256};

/// All records of a datanet, committed on disk as the binary keeps it.
fn commit(name: &str, rules: DuplicateRules) -> (AddReport, VerifyReport, Vec<CommittedRecord>) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join(format!("../../assets/datanets/{name}.jsonl.xz"));
    let packed = std::fs::File::open(path).unwrap();
    let input = BufReader::new(xz2::read::XzDecoder::new(packed));

    let dir = tempfile::tempdir().unwrap();
    let data = DataDir::open_or_create(dir.path()).unwrap();
    let heads = Arc::new(data.heads("datanets").unwrap());
    let datanets = Datanets::open(data.objects().unwrap(), heads);
    datanets.create(name).unwrap();
    let address = |contributor: &str| Address::from_slice(&keccak256(contributor)[12..]);
    let options = AddOptions::new(&address).duplicates(rules);
    let report = datanets.add(name, input, &options).unwrap();
    let verified = datanets.verify(name).unwrap();
    let records = datanets.records(verified.id.unwrap()).unwrap();
    (report, verified, records)
}

#[track_caller]
fn check(name: &str, n_records: u64, n_contributors: u64, n_clusters: u64) {
    let (report, verified, _) = commit(name, DuplicateRules::EXACT);
    assert_eq!(report.rejected, []);
    assert_eq!((report.accepted, report.repeated), (n_records, 0));
    let version = report.new_version.unwrap();
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
fn check_left_out(name: &str, expected: [(DuplicateRules, [usize; 2]); 4]) {
    let found = expected.map(|(rules, _)| {
        let (_, _, records) = commit(name, rules);
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
    check_left_out("defi-exploits", with([[0, 0], [0, 0], [24, 21], [25, 22]]));
    check_left_out("healthcare", with([[0, 0], [0, 0], [0, 20], [0, 21]]));
    check_left_out("legal", with([[12, 0], [25, 0], [58, 36], [67, 36]]));
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
