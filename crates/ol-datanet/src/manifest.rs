//! The manifest of a version: what it holds, by hash.

use std::collections::BTreeMap;

use ol_types::B256;
use serde::{Deserialize, Serialize};

use crate::cluster::DuplicateRules;
use crate::error::{DamageKind, same};
use crate::limits::{
    LICENSES_MAX, RECORDS_MAX, SHARD_MAX_SIZE_BYTES, SHARD_RECORDS_MAX, VERSIONS_MAX,
};

/// What a manifest says it is.
const FORMAT: &str = "openledger-datanet/1";

/// One version of a datanet. Its id is the keccak256 of [`Manifest::encode`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Manifest {
    /// Name of the datanet.
    pub name: String,
    /// Number of the version, from 1.
    pub version: u64,
    /// Id of the manifest before, `None` for version 1.
    pub parent: Option<B256>,
    /// Merkle root over the records.
    pub root: B256,
    /// Records.
    pub n_records: u64,
    /// Different contributors, by name.
    pub n_contributors: u64,
    /// Duplicate clusters.
    pub n_clusters: u64,
    /// Shards, in commit order.
    pub shards: Vec<ShardRef>,
    /// Records under each licence.
    pub licenses: BTreeMap<String, u64>,
    /// What makes a cluster. The same in all versions.
    pub duplicates: DuplicateRules,
}

/// A shard, as a manifest names it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ShardRef {
    /// Its id.
    pub object: B256,
    /// Its size, in bytes.
    pub size_bytes: u64,
    /// Records in it.
    pub n_records: u64,
}

/// The manifest's JSON. Fields in the order of their names: serde writes them
/// in that order, and canonical JSON wants its keys sorted.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Wire {
    format: String,
    licenses: BTreeMap<String, u64>,
    n_clusters: u64,
    n_contributors: u64,
    n_records: u64,
    name: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    near_duplicates_percent: Option<u8>,
    parent: String,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    recombined_duplicates: bool,
    root: String,
    shards: Vec<WireShard>,
    version: u64,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct WireShard {
    n_records: u64,
    object: String,
    size_bytes: u64,
}

impl Manifest {
    /// The canonical JSON: what is hashed and stored.
    ///
    /// # Panics
    /// Never: strings and numbers always serialise.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let shard = |shard: &ShardRef| WireShard {
            n_records: shard.n_records,
            object: shard.object.to_string(),
            size_bytes: shard.size_bytes,
        };
        let wire = Wire {
            format: FORMAT.to_owned(),
            licenses: self.licenses.clone(),
            n_clusters: self.n_clusters,
            n_contributors: self.n_contributors,
            n_records: self.n_records,
            name: self.name.clone(),
            near_duplicates_percent: self.duplicates.near_percent,
            parent: self.parent.map(|id| id.to_string()).unwrap_or_default(),
            recombined_duplicates: self.duplicates.recombined,
            root: self.root.to_string(),
            shards: self.shards.iter().map(shard).collect(),
            version: self.version,
        };
        serde_json::to_vec(&wire).expect("strings and numbers serialise")
    }

    /// Reads what [`Manifest::encode`] wrote; nothing else is accepted, so a
    /// manifest has one id.
    ///
    /// # Errors
    /// [`DamageKind`] with what is wrong.
    pub fn decode(bytes: &[u8]) -> Result<Self, DamageKind> {
        let malformed = |detail: String| DamageKind::Malformed { detail };
        let wire: Wire =
            serde_json::from_slice(bytes).map_err(|error| malformed(error.to_string()))?;
        same("format", &wire.format.as_str(), &FORMAT)?;
        let id = |field: &str, text: &str| {
            text.parse::<B256>()
                .map_err(|_| malformed(format!("{field} is not a hash")))
        };
        let mut shards = Vec::with_capacity(wire.shards.len());
        for WireShard {
            n_records,
            object,
            size_bytes,
        } in wire.shards
        {
            shards.push(ShardRef {
                object: id("shard", &object)?,
                size_bytes,
                n_records,
            });
        }
        let manifest = Self {
            name: wire.name,
            version: wire.version,
            parent: match wire.parent.as_str() {
                "" => None,
                text => Some(id("parent", text)?),
            },
            root: id("root", &wire.root)?,
            n_records: wire.n_records,
            n_contributors: wire.n_contributors,
            n_clusters: wire.n_clusters,
            shards,
            licenses: wire.licenses,
            duplicates: DuplicateRules {
                near_percent: wire.near_duplicates_percent,
                recombined: wire.recombined_duplicates,
            },
        };
        if manifest.encode() != bytes {
            return Err(malformed("it is not canonical JSON".to_owned()));
        }
        manifest.check()?;
        Ok(manifest)
    }

    /// Bytes of all shards together.
    #[must_use]
    pub fn size_bytes(&self) -> u64 {
        self.shards.iter().map(|shard| shard.size_bytes).sum()
    }

    /// Checks what can be seen without the shards.
    fn check(&self) -> Result<(), DamageKind> {
        let malformed = |detail: &str| DamageKind::Malformed {
            detail: detail.to_owned(),
        };
        if !ol_runtime::is_name(&self.name) {
            return Err(malformed("the name is not a datanet's name"));
        }
        if !(1..=VERSIONS_MAX).contains(&self.version) {
            return Err(malformed("the version is out of range"));
        }
        same(
            "parent is absent",
            &self.parent.is_none(),
            &(self.version == 1),
        )?;
        if !(1..=RECORDS_MAX).contains(&self.n_records) {
            return Err(malformed("the number of records is out of range"));
        }
        if self.licenses.len() > LICENSES_MAX {
            return Err(malformed("too many licences"));
        }
        let is_percent = |percent: u8| (1..=100).contains(&percent);
        if !self.duplicates.near_percent.is_none_or(is_percent) {
            return Err(malformed(
                "the similarity of near duplicates is not 1 to 100",
            ));
        }
        for shard in &self.shards {
            let records = 1..=SHARD_RECORDS_MAX as u64;
            if !records.contains(&shard.n_records) || shard.size_bytes > SHARD_MAX_SIZE_BYTES {
                return Err(malformed("a shard's size is out of range"));
            }
        }
        // Cannot overflow: a manifest's own size limits the number of shards.
        let n_in_shards: u64 = self.shards.iter().map(|shard| shard.n_records).sum();
        same("n_records", &self.n_records, &n_in_shards)
    }
}

#[cfg(test)]
mod tests;
