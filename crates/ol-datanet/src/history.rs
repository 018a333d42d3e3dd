//! What follows from the records of a datanet in the order of their commits,
//! and the reading of a version against it.

use std::collections::{BTreeMap, HashSet};

use ol_runtime::Objects;
use ol_types::{Address, B256};

use crate::cluster::{Clusters, DuplicateRules, Placement};
use crate::error::{Damage, DamageKind, DatanetError, ObjectRole, from_objects, same};
use crate::frontier::Frontier;
use crate::limits::{
    LICENSES_MAX, MANIFEST_MAX_SIZE_BYTES, RECORDS_MAX, SHARD_RECORDS_MAX,
    SHARD_TEXT_MAX_SIZE_BYTES,
};
use crate::manifest::{Manifest, ShardRef};
use crate::shard::decode_shard;
use crate::{CommittedRecord, Record, RejectReason};

/// Everything that decides about the next record, and the numbers of a
/// manifest, after some records.
#[derive(Debug, Default)]
pub(crate) struct History {
    frontier: Frontier,
    clusters: Clusters,
    duplicates: DuplicateRules,
    record_hashes: HashSet<B256>,
    contributors: HashSet<String>,
    licenses: BTreeMap<String, u64>,
}

impl History {
    /// Of a datanet with these rules.
    pub(crate) fn new(duplicates: DuplicateRules) -> Self {
        Self {
            clusters: Clusters::new(duplicates),
            duplicates,
            ..Self::default()
        }
    }

    pub(crate) fn n_records(&self) -> u64 {
        self.record_hashes.len() as u64
    }

    pub(crate) fn contains(&self, record_hash: B256) -> bool {
        self.record_hashes.contains(&record_hash)
    }

    pub(crate) fn place(&self, record: &Record) -> Placement {
        self.clusters.place(record)
    }

    /// Whether the datanet's limits leave room for `record`.
    pub(crate) fn check_room(&self, record: &Record) -> Result<(), RejectReason> {
        if self.n_records() >= RECORDS_MAX {
            return Err(RejectReason::DatanetFull { max: RECORDS_MAX });
        }
        if self.licenses.len() >= LICENSES_MAX && !self.licenses.contains_key(&record.license) {
            return Err(RejectReason::TooManyLicenses { max: LICENSES_MAX });
        }
        Ok(())
    }

    pub(crate) fn commit(&mut self, committed: &CommittedRecord, placement: Placement) {
        let record = &committed.record;
        self.frontier.push(committed.leaf());
        self.clusters.insert(placement);
        self.record_hashes.insert(committed.record_hash);
        if !self.contributors.contains(&record.contributor) {
            self.contributors.insert(record.contributor.clone());
        }
        match self.licenses.get_mut(&record.license) {
            Some(count) => *count += 1,
            None => {
                self.licenses.insert(record.license.clone(), 1);
            }
        }
    }

    /// The manifest of these records.
    pub(crate) fn manifest(
        &self,
        name: &str,
        version: u64,
        parent: Option<B256>,
        shards: Vec<ShardRef>,
    ) -> Manifest {
        Manifest {
            name: name.to_owned(),
            version,
            parent,
            root: self.frontier.root(),
            n_records: self.n_records(),
            n_contributors: self.contributors.len() as u64,
            n_clusters: self.clusters.len().into(),
            shards,
            licenses: self.licenses.clone(),
            duplicates: self.duplicates,
        }
    }

    /// Compares the numbers of a manifest with the ones that follow.
    pub(crate) fn check_manifest(&self, manifest: &Manifest) -> Result<(), DamageKind> {
        same("n_records", &manifest.n_records, &self.n_records())?;
        same(
            "n_contributors",
            &manifest.n_contributors,
            &(self.contributors.len() as u64),
        )?;
        same(
            "n_clusters",
            &manifest.n_clusters,
            &self.clusters.len().into(),
        )?;
        same("duplicates", &manifest.duplicates, &self.duplicates)?;
        same("licenses", &manifest.licenses, &self.licenses)?;
        same("root", &manifest.root, &self.frontier.root())
    }

    /// Checks a stored record that comes next, and says where it belongs.
    fn check_next(&self, committed: &CommittedRecord) -> Result<Placement, DamageKind> {
        let record = &committed.record;
        let malformed = |reason: RejectReason| DamageKind::Malformed {
            detail: reason.to_string(),
        };
        record.check().map_err(malformed)?;
        self.check_room(record).map_err(malformed)?;
        same("record_hash", &committed.record_hash, &record.hash())?;
        if committed.contributor_address == Address::ZERO {
            let contributor = record.contributor.clone();
            return Err(malformed(RejectReason::NoAddress { contributor }));
        }
        if self.contains(committed.record_hash) {
            let detail = "the same record stands before".to_owned();
            return Err(DamageKind::Malformed { detail });
        }
        let placement = self.place(record);
        same("cluster", &committed.cluster, &placement.number)?;
        Ok(placement)
    }
}

/// How records are cut into shards: a shard ends before the record that would
/// take it over a limit. So the shards follow from the records alone.
#[derive(Debug, Default)]
pub(crate) struct ShardFill {
    n_records: usize,
    text_size_bytes: usize,
}

impl ShardFill {
    /// Whether a record of `text_size_bytes` begins a new shard.
    pub(crate) const fn is_full_for(&self, text_size_bytes: usize) -> bool {
        self.n_records >= SHARD_RECORDS_MAX
            || (self.n_records > 0
                && self.text_size_bytes + text_size_bytes > SHARD_TEXT_MAX_SIZE_BYTES)
    }

    pub(crate) const fn push(&mut self, text_size_bytes: usize) {
        self.n_records += 1;
        self.text_size_bytes += text_size_bytes;
    }
}

/// Reads the manifest `id`.
pub(crate) fn load_manifest(objects: &Objects, id: B256) -> Result<Manifest, DatanetError> {
    let bytes = objects
        .get(id, MANIFEST_MAX_SIZE_BYTES)
        .map_err(|error| from_objects(error, ObjectRole::Manifest))?;
    Ok(Manifest::decode(&bytes).map_err(|what| Damage::manifest(id, what))?)
}

/// Reads the records of a shard. Hash and size are checked before decoding.
pub(crate) fn load_shard(
    objects: &Objects,
    shard: &ShardRef,
) -> Result<Vec<CommittedRecord>, DatanetError> {
    let bytes = objects
        .get(shard.object, shard.size_bytes)
        .map_err(|error| from_objects(error, ObjectRole::Shard))?;
    same("size_bytes", &shard.size_bytes, &(bytes.len() as u64))
        .and_then(|()| decode_shard(bytes, shard.n_records))
        .map_err(|what| Damage::shard(shard.object, what).into())
}

/// Reads a version shard by shard and checks every record on the way.
///
/// Call [`Replay::next_shard`], then [`Replay::commit`] for each of its
/// records in order, until there is none; then [`Replay::finish`].
#[derive(Debug)]
pub(crate) struct Replay<'a> {
    objects: &'a Objects,
    id: B256,
    manifest: &'a Manifest,
    history: History,
    n_shards: usize,
    fill: ShardFill,
    is_shard_begin: bool,
}

impl<'a> Replay<'a> {
    pub(crate) fn new(objects: &'a Objects, id: B256, manifest: &'a Manifest) -> Self {
        let history = History::new(manifest.duplicates);
        let fill = ShardFill::default();
        Self {
            objects,
            id,
            manifest,
            history,
            n_shards: 0,
            fill,
            is_shard_begin: true,
        }
    }

    /// The records of the next shard, not yet checked one by one.
    pub(crate) fn next_shard(&mut self) -> Result<Option<Vec<CommittedRecord>>, DatanetError> {
        let Some(shard) = self.manifest.shards.get(self.n_shards) else {
            return Ok(None);
        };
        let records = load_shard(self.objects, shard)?;
        self.n_shards += 1;
        self.is_shard_begin = true;
        Ok(Some(records))
    }

    /// Checks the record that comes next and counts it in.
    pub(crate) fn commit(&mut self, committed: &CommittedRecord) -> Result<(), DatanetError> {
        let object = self.manifest.shards[self.n_shards - 1].object;
        let position = self.history.n_records();
        let damage = |what| Damage::record(object, position, what);
        let placement = self.history.check_next(committed).map_err(damage)?;
        let text_size_bytes = committed.record.canonical_json().len();
        let must_begin = position == 0 || self.fill.is_full_for(text_size_bytes);
        same("begins a shard", &self.is_shard_begin, &must_begin).map_err(damage)?;
        if must_begin {
            self.fill = ShardFill::default();
        }
        self.is_shard_begin = false;
        self.fill.push(text_size_bytes);
        self.history.commit(committed, placement);
        Ok(())
    }

    pub(crate) const fn history(&self) -> &History {
        &self.history
    }

    /// Compares what the records gave with what the manifest says.
    pub(crate) fn finish(self) -> Result<History, DatanetError> {
        let checked = self.history.check_manifest(self.manifest);
        checked.map_err(|what| Damage::manifest(self.id, what))?;
        Ok(self.history)
    }
}
