//! Goal: the records that the project ships are a datanet each, as their README
//! says: none is rejected, and everything verifies.

#![expect(clippy::unwrap_used, reason = "a test outside of `cfg(test)`")]

use std::io::BufReader;
use std::path::Path;
use std::sync::Arc;

use ol_datanet::{AddOptions, Datanets};
use ol_runtime::DataDir;
use ol_types::{Address, keccak256};

#[track_caller]
fn check(name: &str, n_records: u64, n_contributors: u64, n_clusters: u64) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join(format!("../../assets/datanets/{name}.jsonl.xz"));
    let packed = std::fs::File::open(path).unwrap();
    let input = BufReader::new(xz2::read::XzDecoder::new(packed));

    // On disk, as the binary keeps it.
    let dir = tempfile::tempdir().unwrap();
    let data = DataDir::open_or_create(dir.path()).unwrap();
    let heads = Arc::new(data.heads("datanets").unwrap());
    let datanets = Datanets::open(data.objects().unwrap(), heads);
    datanets.create(name).unwrap();
    let address = |contributor: &str| Address::from_slice(&keccak256(contributor)[12..]);
    let report = datanets
        .add(name, input, &AddOptions::new(&address))
        .unwrap();

    assert_eq!(report.rejected, []);
    assert_eq!((report.accepted, report.repeated), (n_records, 0));
    let version = report.new_version.unwrap();
    assert_eq!(version.n_contributors, n_contributors);
    assert_eq!(version.n_clusters, n_clusters);
    let verified = datanets.verify(name).unwrap();
    assert_eq!(
        (verified.n_records, verified.root),
        (n_records, version.root)
    );
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
