//! Datanets: records, duplicate clusters, versions with Merkle manifests.
//!
//! A datanet is a named list of records that only grows. Each version is a
//! manifest and Parquet shards, named by their hashes; the head of a datanet
//! points to its newest manifest and is the only thing that moves. The format
//! is `specs/datanet.md`.
//!
//! Owns: what a record is and why one is rejected ([`Record`],
//! [`RejectReason`]), duplicates, exact, near and recombined ([`normalize`],
//! [`DuplicateRules`], [`cluster_owners`]),
//! shards, manifests, proofs of inclusion, and checking all of it from the
//! objects alone ([`Datanets::verify`]).
//!
//! Invariants: a version holds every record of the one before; how records lie
//! in shards follows from the records; a crash leaves the old head or the new
//! one, and both can be read; no input causes a panic or unbounded memory.
//!
//! Does not own: where addresses of contributors come from (the caller says),
//! what a record is worth, and the chain.

mod cluster;
mod datanets;
mod error;
mod frontier;
mod history;
pub mod limits;
mod lines;
mod manifest;
mod record;
mod shard;

pub use cluster::{DuplicateRules, normalize};
pub use datanets::{
    AddOptions, AddReport, ContributorSummary, Datanets, InclusionProof, NEAR_DUPLICATES_PERCENT,
    Rejection, Summary, VerifyReport, VersionSummary, cluster_owners,
};
pub use error::{Damage, DamageKind, DatanetError, ObjectRole};
pub use lines::InputError;
pub use manifest::{Manifest, ShardRef};
pub use record::{CommittedRecord, Record, RejectReason, leaf};
pub use shard::{decode_shard, encode_shard};
