//! Checking a datanet from its objects alone.

use ol_types::B256;

use super::Datanets;
use crate::CommittedRecord;
use crate::error::{Damage, DatanetError, same};
use crate::history::{Replay, load_shard};
use crate::manifest::Manifest;

/// What was checked and found right.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VerifyReport {
    /// Name of the datanet.
    pub name: String,
    /// The newest version checked.
    pub version: u64,
    /// Id of its manifest; `None` for a datanet without versions.
    pub id: Option<B256>,
    /// Its Merkle root; zero without versions.
    pub root: B256,
    /// Versions checked: this one and all before it.
    pub n_versions: u64,
    /// Records, each with its hash, address, cluster and leaf.
    pub n_records: u64,
    /// Duplicate clusters.
    pub n_clusters: u64,
    /// Shards of the newest version.
    pub n_shards: u64,
    /// Bytes of these shards.
    pub size_bytes: u64,
}

impl Datanets {
    /// Recomputes everything that a datanet claims: ids of manifests and
    /// shards, hash, cluster and leaf of each record, the counts and the root
    /// of each version, and that each version holds the one before it.
    ///
    /// # Errors
    /// [`DatanetError::Damaged`] naming the first object or record that
    /// differs, and as [`Datanets::head`].
    pub fn verify(&self, name: &str) -> Result<VerifyReport, DatanetError> {
        match self.head(name)? {
            Some(id) => self.verify_named(name, id),
            None => Ok(VerifyReport {
                name: name.to_owned(),
                version: 0,
                id: None,
                root: B256::ZERO,
                n_versions: 0,
                n_records: 0,
                n_clusters: 0,
                n_shards: 0,
                size_bytes: 0,
            }),
        }
    }

    /// As [`Datanets::verify`], for the version with manifest `id`. Needs no
    /// head.
    ///
    /// # Errors
    /// [`DatanetError::Damaged`], [`DatanetError::Objects`].
    pub fn verify_version(&self, id: B256) -> Result<VerifyReport, DatanetError> {
        let name = self.manifest(id)?.name;
        self.verify_named(&name, id)
    }

    fn verify_named(&self, name: &str, id: B256) -> Result<VerifyReport, DatanetError> {
        let manifest = self.manifest(id)?;
        let mut ancestors: Vec<(B256, Manifest)> = Vec::new();
        self.walk_back(name, Some(id), |ancestor_id, ancestor| {
            if ancestor_id != id {
                check_shared_shards(&manifest, ancestor_id, ancestor)?;
                // The shards that are shared need not be kept twice.
                let mut ancestor = ancestor.clone();
                ancestor.shards.drain(..ancestor.shards.len() - 1);
                ancestors.push((ancestor_id, ancestor));
            }
            Ok(true)
        })?;
        let n_versions = ancestors.len() as u64 + 1;
        let mut replay = Replay::new(&self.objects, id, &manifest);
        while let Some(records) = replay.next_shard()? {
            for (i, record) in records.iter().enumerate() {
                replay.commit(record)?;
                // The oldest version, with the fewest records, is the last.
                let n_records = replay.history().n_records();
                let is_end = |(_, ancestor): &mut (B256, Manifest)| ancestor.n_records == n_records;
                if let Some((ancestor_id, ancestor)) = ancestors.pop_if(is_end) {
                    let checked = replay.history().check_manifest(&ancestor);
                    checked.map_err(|what| Damage::manifest(ancestor_id, what))?;
                    self.check_last_shard(&ancestor, &records[..=i])?;
                }
            }
        }
        replay.finish()?;
        Ok(VerifyReport {
            name: name.to_owned(),
            version: manifest.version,
            id: Some(id),
            root: manifest.root,
            n_versions,
            n_records: manifest.n_records,
            n_clusters: manifest.n_clusters,
            n_shards: manifest.shards.len() as u64,
            size_bytes: manifest.size_bytes(),
        })
    }

    /// Checks that the last shard of an older version holds `expected`: the
    /// records that the newest version has in the same place.
    fn check_last_shard(
        &self,
        ancestor: &Manifest,
        expected: &[CommittedRecord],
    ) -> Result<(), DatanetError> {
        let [shard] = ancestor.shards.as_slice() else {
            unreachable!("all but the last shard were dropped by the caller");
        };
        let found = load_shard(&self.objects, shard)?;
        let n_found = found.len() as u64;
        same("n_records", &n_found, &(expected.len() as u64))
            .map_err(|what| Damage::shard(shard.object, what))?;
        let first = ancestor.n_records - n_found;
        for (position, (found, expected)) in (first..).zip(found.iter().zip(expected)) {
            // The column and the text: neither may stand in for the other.
            same("record_hash", &found.record.hash(), &expected.record_hash)
                .and_then(|()| same("leaf", &found.leaf(), &expected.leaf()))
                .map_err(|what| Damage::record(shard.object, position, what))?;
        }
        Ok(())
    }
}

/// Checks that a manifest belongs to `name` and comes right before `child`.
pub(super) fn check_link(
    name: &str,
    id: B256,
    manifest: &Manifest,
    child: Option<&Manifest>,
) -> Result<(), DatanetError> {
    let damage = |what| Damage::manifest(id, what);
    same("name", &manifest.name.as_str(), &name).map_err(damage)?;
    if let Some(child) = child {
        same("version", &manifest.version, &(child.version - 1)).map_err(damage)?;
        same(
            "fewer records than the next version",
            &(manifest.n_records < child.n_records),
            &true,
        )
        .map_err(damage)?;
    }
    Ok(())
}

/// Checks that all shards of an older version but the last are those of the
/// newest one. The last may have grown since.
fn check_shared_shards(
    newest: &Manifest,
    ancestor_id: B256,
    ancestor: &Manifest,
) -> Result<(), DatanetError> {
    let n_shared = ancestor.shards.len() - 1;
    let is_prefix = newest.shards.get(..n_shared) == Some(&ancestor.shards[..n_shared]);
    same(
        "shards begin those of the newest version",
        &is_prefix,
        &true,
    )
    .map_err(|what| Damage::manifest(ancestor_id, what).into())
}
