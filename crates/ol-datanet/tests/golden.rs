//! Goal: what this version writes is, byte for byte, what format version 1 was
//! when it was fixed; and what was written then still reads.
//! Method: `fixtures/datanet/v1`, whose numbers come from another
//! implementation (`make.py` there).

#![expect(clippy::unwrap_used, reason = "a test outside of `cfg(test)`")]

use std::path::{Path, PathBuf};
use std::sync::Arc;

use ol_datanet::{AddOptions, Datanets, Manifest};
use ol_runtime::{Heads as _, MemoryHeads, Objects};
use ol_types::{Address, B256, keccak256};

fn fixture(name: &str) -> Vec<u8> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures/datanet/v1");
    std::fs::read(dir.join(name)).unwrap_or_else(|error| panic!("{name}: {error}"))
}

fn address(contributor: &str) -> Address {
    Address::from_slice(&keccak256(contributor)[12..])
}

fn expected() -> serde_json::Value {
    serde_json::from_slice(&fixture("expected.json")).unwrap()
}

fn hash(value: &serde_json::Value) -> B256 {
    value.as_str().unwrap().parse().unwrap()
}

#[test]
fn the_inputs_give_the_golden_objects() {
    let objects = Objects::memory();
    let datanets = Datanets::open(objects.clone(), Arc::new(MemoryHeads::default()));
    datanets.create("golden").unwrap();
    let mut first_new = 0;
    for version in 1..=2 {
        let input = fixture(&format!("input-{version}.jsonl"));
        let report = datanets
            .add("golden", &input[..], &AddOptions::new(&address))
            .unwrap();
        assert_eq!(report.n_rejected, 0);
        let id = datanets.head("golden").unwrap().unwrap();

        let shard_id = datanets.manifest(id).unwrap().shards[0].object;
        let shard = objects.get(shard_id, 1 << 20).unwrap();
        let shard_name = format!("shard-{version}.parquet");
        if shard != fixture(&shard_name) {
            let left = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(&shard_name);
            std::fs::write(&left, &shard).unwrap();
            panic!(
                "{shard_name} has changed; the new one is {}",
                left.display()
            );
        }
        let manifest = objects.get(id, 1 << 20).unwrap();
        let golden_manifest = fixture(&format!("manifest-{version}.json"));
        assert_eq!(
            String::from_utf8_lossy(&manifest),
            String::from_utf8_lossy(&golden_manifest)
        );

        let expected = &expected()[version - 1];
        assert_eq!(id, hash(&expected["manifest"]));
        let records = datanets.records(id).unwrap();
        let new = &records[first_new..];
        let expected_new = expected["new_records"].as_array().unwrap();
        assert_eq!(new.len(), expected_new.len());
        for (found, expected) in new.iter().zip(expected_new) {
            assert_eq!(
                found.record_hash,
                hash(&expected["record_hash"]),
                "{found:?}"
            );
            assert_eq!(
                u64::from(found.cluster),
                expected["cluster"].as_u64().unwrap()
            );
            assert_eq!(found.leaf(), hash(&expected["leaf"]));
        }
        first_new = records.len();
    }
}

#[test]
fn the_golden_objects_verify() {
    let (objects, heads) = (Objects::memory(), MemoryHeads::default());
    for version in 1..=2 {
        objects
            .put(fixture(&format!("shard-{version}.parquet")))
            .unwrap();
        objects
            .put(fixture(&format!("manifest-{version}.json")))
            .unwrap();
    }
    let expected = expected();
    let head = hash(&expected[1]["manifest"]);
    heads.compare_and_swap("golden", None, head).unwrap();
    let datanets = Datanets::open(objects, Arc::new(heads));
    let report = datanets.verify("golden").unwrap();
    assert_eq!(
        (report.n_versions, report.n_records, report.n_clusters),
        (2, 7, 5)
    );
    assert_eq!(report.root, hash(&expected[1]["root"]));
    assert_eq!(
        datanets.version("golden", 1).unwrap(),
        hash(&expected[0]["manifest"])
    );
    let manifest = Manifest::decode(&fixture("manifest-1.json")).unwrap();
    assert_eq!(manifest.root, hash(&expected[0]["root"]));
}
