//! The records of a demo datanet, as its version would have them.

use std::fs::File;
use std::io::Read as _;

use anyhow::Context;
use ol_datanet::{CommittedRecord, Record, normalize};
use ol_model::Random;
use ol_types::{Address, keccak256};

/// Records that are asked about and not in the index.
pub(crate) const HELD_OUT: usize = 100;

/// Records of a datanet, some of them left out.
pub(crate) struct Texts {
    pub(crate) pool: Vec<CommittedRecord>,
    pub(crate) held_out: Vec<Record>,
}

pub(crate) fn load(name: &str) -> anyhow::Result<Texts> {
    let path = crate::assets().join(format!("datanets/{name}.jsonl.xz"));
    let file = File::open(&path).with_context(|| path.display().to_string())?;
    let mut lines = String::new();
    xz2::read::XzDecoder::new(file).read_to_string(&mut lines)?;
    let mut records = Vec::new();
    for line in lines.lines() {
        records.push(Record::from_json(line.as_bytes())?);
    }
    let mut order: Vec<usize> = (0..records.len()).collect();
    Random::new(0x6865_6c64).shuffle(&mut order);
    let is_held: std::collections::BTreeSet<usize> = order.into_iter().take(HELD_OUT).collect();
    let (mut pool, mut held_out) = (Vec::new(), Vec::new());
    for (at, record) in records.into_iter().enumerate() {
        if is_held.contains(&at) {
            held_out.push(record);
        } else {
            pool.push(record);
        }
    }
    Ok(Texts {
        pool: commit(pool),
        held_out,
    })
}

/// Records with clusters, as a datanet would commit them.
pub(crate) fn commit(records: Vec<Record>) -> Vec<CommittedRecord> {
    let mut clusters = std::collections::HashMap::new();
    let commit = |record: Record| {
        let next = u32::try_from(clusters.len()).expect("some hundred records");
        let key = (normalize(&record.question), normalize(&record.answer));
        let cluster = *clusters.entry(key).or_insert(next);
        CommittedRecord {
            record_hash: record.hash(),
            contributor_address: Address::from_slice(&keccak256(&record.contributor)[12..]),
            record,
            cluster,
        }
    };
    records.into_iter().map(commit).collect()
}
