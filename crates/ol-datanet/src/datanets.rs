//! The datanets of one store.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use ol_poa::merkle;
use ol_runtime::{Heads, HeadsError, Objects};
use ol_types::{Address, B256, keccak256};

use crate::cluster::DuplicateRules;
use crate::error::DatanetError;
use crate::history::{Replay, load_manifest};
use crate::limits::REJECTIONS_MAX;
use crate::record::leaf;
use crate::{CommittedRecord, Manifest, RejectReason};

mod add;
mod verify;

pub use verify::VerifyReport;

/// The datanets whose objects and heads are in one place.
///
/// All calls block the thread; clones share the store.
///
/// # Example
/// ```
/// use std::sync::Arc;
/// use ol_datanet::{AddOptions, Datanets};
/// use ol_runtime::{MemoryHeads, Objects};
/// use ol_types::{Address, keccak256};
///
/// let datanets = Datanets::open(Objects::memory(), Arc::new(MemoryHeads::default()));
/// datanets.create("legal")?;
/// let line = r#"{"question":"May I?","answer":"Yes.","contributor":"ann","license":"CC0-1.0"}"#;
/// let address = |name: &str| Address::from_slice(&keccak256(name)[12..]);
/// let report = datanets.add("legal", line.as_bytes(), &AddOptions::new(&address))?;
/// assert_eq!(report.accepted, 1);
/// assert_eq!(datanets.verify("legal")?.n_records, 1);
/// # Ok::<(), ol_datanet::DatanetError>(())
/// ```
#[derive(Debug, Clone)]
pub struct Datanets {
    objects: Objects,
    heads: Arc<dyn Heads>,
}

/// How records are added.
#[derive(Clone, Copy)]
pub struct AddOptions<'a> {
    contributor_address: &'a dyn Fn(&str) -> Address,
    duplicates: DuplicateRules,
}

impl fmt::Debug for AddOptions<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AddOptions").finish_non_exhaustive()
    }
}

impl<'a> AddOptions<'a> {
    /// `contributor_address` gives the address to pay for a contributor's
    /// name; the zero address means that there is none, and the record is
    /// rejected. What it says at the time of the commit stays.
    #[must_use]
    pub fn new(contributor_address: &'a dyn Fn(&str) -> Address) -> Self {
        Self {
            contributor_address,
            duplicates: DuplicateRules::EXACT,
        }
    }

    /// What makes records duplicates. The first version of a datanet fixes it;
    /// later ones keep it, and it need not be given again.
    #[must_use]
    pub const fn duplicates(mut self, rules: DuplicateRules) -> Self {
        self.duplicates = rules;
        self
    }
}

/// Similarity of near duplicates, in per cent, that finds copies in which up
/// to a seventh of the words was changed. `docs/attribution.md` says what else
/// it finds.
pub const NEAR_DUPLICATES_PERCENT: u8 = 40;

/// What became of the lines of one input.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AddReport {
    /// The new version; `None` if there was nothing new.
    pub new_version: Option<VersionSummary>,
    /// Records added, duplicates included.
    pub accepted: u64,
    /// Of the accepted: those in a cluster that an earlier record owns.
    pub duplicates: u64,
    /// Records that the datanet holds already, all eight fields equal; skipped.
    pub repeated: u64,
    /// Lines rejected.
    pub n_rejected: u64,
    /// The first of them (at most [`REJECTIONS_MAX`]), and why.
    pub rejected: Vec<Rejection>,
}

impl AddReport {
    const fn new() -> Self {
        Self {
            new_version: None,
            accepted: 0,
            duplicates: 0,
            repeated: 0,
            n_rejected: 0,
            rejected: Vec::new(),
        }
    }

    fn reject(&mut self, line: u64, reason: RejectReason) {
        self.n_rejected += 1;
        if self.rejected.len() < REJECTIONS_MAX {
            self.rejected.push(Rejection { line, reason });
        }
    }
}

/// A line that was not accepted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rejection {
    /// Number of the line, from 1.
    pub line: u64,
    /// Why.
    pub reason: RejectReason,
}

impl fmt::Display for Rejection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "line {}: {}", self.line, self.reason)
    }
}

/// A version, in numbers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VersionSummary {
    /// Id of the manifest.
    pub id: B256,
    /// Number of the version, from 1.
    pub version: u64,
    /// Merkle root.
    pub root: B256,
    /// Records.
    pub n_records: u64,
    /// Different contributors.
    pub n_contributors: u64,
    /// Duplicate clusters.
    pub n_clusters: u64,
    /// Bytes of its shards.
    pub size_bytes: u64,
}

impl VersionSummary {
    fn new(id: B256, manifest: &Manifest) -> Self {
        Self {
            id,
            version: manifest.version,
            root: manifest.root,
            n_records: manifest.n_records,
            n_contributors: manifest.n_contributors,
            n_clusters: manifest.n_clusters,
            size_bytes: manifest.size_bytes(),
        }
    }
}

/// A datanet, in numbers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Summary {
    /// Its name.
    pub name: String,
    /// What counts as a duplicate; `None` before the first version fixes it.
    pub duplicates: Option<DuplicateRules>,
    /// Its versions, the newest first.
    pub versions: Vec<VersionSummary>,
    /// Its contributors, by name.
    pub contributors: BTreeMap<String, ContributorSummary>,
    /// Records under each licence.
    pub licenses: BTreeMap<String, u64>,
    /// Records of each topic; `""` counts those without one.
    pub topics: BTreeMap<String, u64>,
}

/// What one contributor has in a datanet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ContributorSummary {
    /// Address of the newest record.
    pub address: Address,
    /// Records.
    pub n_records: u64,
    /// Duplicate clusters owned.
    pub n_clusters: u64,
}

/// Proof that a record is in a version.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InclusionProof {
    /// Hash of the record.
    pub record_hash: B256,
    /// Address that is paid.
    pub contributor_address: Address,
    /// keccak256 of the licence.
    pub license_hash: B256,
    /// Duplicate cluster.
    pub cluster: u32,
    /// Position in commit order, from 0.
    pub position: u64,
    /// Records of the version.
    pub n_records: u64,
    /// Siblings, from the leaf up.
    pub siblings: Vec<B256>,
}

impl InclusionProof {
    /// Whether the record is at its position in the version with this root and
    /// this number of records; take both from a manifest or the chain, not
    /// from whoever sent the proof.
    #[must_use]
    pub fn verify(&self, root: B256, n_records: u64) -> bool {
        let leaf = leaf(
            self.record_hash,
            self.contributor_address,
            self.license_hash,
            self.cluster,
        );
        match (usize::try_from(n_records), usize::try_from(self.position)) {
            (Ok(n_leaves), Ok(index)) => {
                merkle::verify(&root, n_leaves, index, &leaf, &self.siblings)
            }
            _ => false,
        }
    }
}

impl Datanets {
    /// The datanets in `objects`, named by `heads`.
    #[must_use]
    pub fn open(objects: Objects, heads: Arc<dyn Heads>) -> Self {
        Self { objects, heads }
    }

    /// Makes a datanet without records.
    ///
    /// # Errors
    /// [`DatanetError::Exists`], [`DatanetError::Name`], [`DatanetError::Heads`].
    pub fn create(&self, name: &str) -> Result<(), DatanetError> {
        self.move_head(name, None, B256::ZERO)
            .map_err(|error| match error {
                DatanetError::Moved { name } => DatanetError::Exists { name },
                error => error,
            })
    }

    /// The names of all datanets, ascending.
    ///
    /// # Errors
    /// [`DatanetError::Heads`].
    pub fn list(&self) -> Result<Vec<String>, DatanetError> {
        self.heads.list().map_err(DatanetError::Heads)
    }

    /// Id of the newest manifest, `None` if the datanet has no version yet.
    ///
    /// # Errors
    /// [`DatanetError::NotFound`], [`DatanetError::Name`], [`DatanetError::Heads`].
    pub fn head(&self, name: &str) -> Result<Option<B256>, DatanetError> {
        match self.heads.get(name).map_err(from_heads)? {
            None => Err(DatanetError::NotFound {
                name: name.to_owned(),
            }),
            Some(B256::ZERO) => Ok(None),
            id => Ok(id),
        }
    }

    /// Id of the manifest of one version.
    ///
    /// # Errors
    /// [`DatanetError::NoVersion`] if it does not exist, and as
    /// [`Datanets::head`] and [`Datanets::manifest`].
    pub fn version(&self, name: &str, version: u64) -> Result<B256, DatanetError> {
        let head = self.head(name)?;
        let mut newest = 0;
        let mut found = None;
        self.walk_back(name, head, |id, manifest| {
            newest = newest.max(manifest.version);
            if manifest.version == version {
                found = Some(id);
            }
            Ok(manifest.version > version)
        })?;
        found.ok_or_else(|| DatanetError::NoVersion {
            name: name.to_owned(),
            version,
            newest,
        })
    }

    /// The manifest `id`.
    ///
    /// # Errors
    /// [`DatanetError::Damaged`] if it is missing or changed,
    /// [`DatanetError::Objects`].
    pub fn manifest(&self, id: B256) -> Result<Manifest, DatanetError> {
        load_manifest(&self.objects, id)
    }

    /// The records of version `id`, in commit order, every hash and cluster
    /// checked.
    ///
    /// # Errors
    /// [`DatanetError::Damaged`] naming the first thing that differs,
    /// [`DatanetError::Objects`].
    pub fn records(&self, id: B256) -> Result<Vec<CommittedRecord>, DatanetError> {
        let manifest = self.manifest(id)?;
        let mut all = Vec::new();
        self.replay(id, &manifest, |record| all.push(record))?;
        Ok(all)
    }

    /// Proof that the record of this hash is in version `id`; `None` if it is
    /// not.
    ///
    /// # Errors
    /// As [`Datanets::records`].
    pub fn proof(
        &self,
        id: B256,
        record_hash: B256,
    ) -> Result<Option<InclusionProof>, DatanetError> {
        let manifest = self.manifest(id)?;
        let mut leaves = Vec::new();
        let mut found = None;
        self.replay(id, &manifest, |record| {
            if record.record_hash == record_hash {
                found = Some((leaves.len(), record.clone()));
            }
            leaves.push(record.leaf());
        })?;
        Ok(found.map(|(position, record)| InclusionProof {
            record_hash,
            contributor_address: record.contributor_address,
            license_hash: keccak256(&record.record.license),
            cluster: record.cluster,
            position: position as u64,
            n_records: leaves.len() as u64,
            siblings: merkle::proof(&leaves, merkle::depth(leaves.len()), position),
        }))
    }

    /// A datanet in numbers. Reads all of its newest version.
    ///
    /// # Errors
    /// As [`Datanets::head`] and [`Datanets::records`].
    pub fn show(&self, name: &str) -> Result<Summary, DatanetError> {
        let head = self.head(name)?;
        let mut summary = Summary {
            name: name.to_owned(),
            duplicates: None,
            versions: Vec::new(),
            contributors: BTreeMap::new(),
            licenses: BTreeMap::new(),
            topics: BTreeMap::new(),
        };
        self.walk_back(name, head, |id, manifest| {
            summary.versions.push(VersionSummary::new(id, manifest));
            Ok(true)
        })?;
        let Some(id) = head else { return Ok(summary) };
        let manifest = self.manifest(id)?;
        summary.duplicates = Some(manifest.duplicates);
        summary.licenses.clone_from(&manifest.licenses);
        let mut n_clusters = 0;
        self.replay(id, &manifest, |record| {
            let address = record.contributor_address;
            let contributor = summary
                .contributors
                .entry(record.record.contributor)
                .or_insert(ContributorSummary {
                    address,
                    n_records: 0,
                    n_clusters: 0,
                });
            contributor.address = address;
            contributor.n_records += 1;
            // Clusters are numbered in commit order, so a number that is new
            // is the next one.
            if record.cluster == n_clusters {
                contributor.n_clusters += 1;
                n_clusters += 1;
            }
            *summary.topics.entry(record.record.topic).or_default() += 1;
        })?;
        Ok(summary)
    }

    /// Reads and checks all records of a version.
    fn replay(
        &self,
        id: B256,
        manifest: &Manifest,
        mut each: impl FnMut(CommittedRecord),
    ) -> Result<(), DatanetError> {
        let mut replay = Replay::new(&self.objects, id, manifest);
        while let Some(records) = replay.next_shard()? {
            for record in records {
                replay.commit(&record)?;
                each(record);
            }
        }
        replay.finish().map(drop)
    }

    /// Calls `each` for the manifest `id` and those before it, until it says
    /// false. Their names and numbers are checked.
    fn walk_back(
        &self,
        name: &str,
        id: Option<B256>,
        mut each: impl FnMut(B256, &Manifest) -> Result<bool, DatanetError>,
    ) -> Result<(), DatanetError> {
        let mut next = id;
        let mut child: Option<Manifest> = None;
        while let Some(id) = next {
            let manifest = self.manifest(id)?;
            verify::check_link(name, id, &manifest, child.as_ref())?;
            if !each(id, &manifest)? {
                return Ok(());
            }
            // Ends: the versions go down by one each time, to 1.
            next = manifest.parent;
            child = Some(manifest);
        }
        Ok(())
    }

    fn move_head(&self, name: &str, old: Option<B256>, new: B256) -> Result<(), DatanetError> {
        self.heads
            .compare_and_swap(name, old, new)
            .map_err(from_heads)
    }
}

fn from_heads(error: HeadsError) -> DatanetError {
    match error {
        HeadsError::Name { name } => DatanetError::Name { name },
        HeadsError::Conflict { name, .. } => DatanetError::Moved { name },
        error => DatanetError::Heads(error),
    }
}

/// The records that own their cluster, in the order of the clusters: position
/// `i` of the result owns cluster `i`.
///
/// `records` are all records of a version, in commit order.
#[must_use]
pub fn cluster_owners(records: &[CommittedRecord]) -> Vec<&CommittedRecord> {
    let mut owners: Vec<&CommittedRecord> = Vec::new();
    for record in records {
        if record.cluster as usize == owners.len() {
            owners.push(record);
        }
    }
    owners
}

#[cfg(test)]
mod tests;
