//! Why a datanet could not be used.

use std::fmt;

use ol_runtime::{HeadsError, ObjectsError};
use ol_types::B256;

use crate::InputError;
use crate::cluster::DuplicateRules;

/// Why a datanet could not be used. Variants by what the caller does next.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DatanetError {
    /// Not a name: choose another.
    #[error("{name:?} cannot be a datanet's name: use 1 to 64 of a-z, 0-9 and -")]
    Name {
        /// What was given, cut to 80 characters.
        name: String,
    },
    /// There is no datanet of this name.
    #[error("there is no datanet {name:?}")]
    NotFound {
        /// The name.
        name: String,
    },
    /// There is a datanet of this name already.
    #[error("there is a datanet {name:?} already")]
    Exists {
        /// The name.
        name: String,
    },
    /// The datanet has no such version; it may have none at all.
    #[error("datanet {name:?} has no version {version}, the newest is {newest}")]
    NoVersion {
        /// The name.
        name: String,
        /// The version asked for.
        version: u64,
        /// The newest version; 0 if it has none.
        newest: u64,
    },
    /// Somebody else added to the datanet meanwhile: add again.
    #[error("datanet {name:?} was changed by somebody else meanwhile; add again")]
    Moved {
        /// The name.
        name: String,
    },
    /// The datanet has as many versions as it may have.
    #[error("datanet {name:?} has {max} versions and takes no more")]
    TooManyVersions {
        /// The name.
        name: String,
        /// The limit.
        max: u64,
    },
    /// What counts as a duplicate is a datanet's own rule, fixed by its first
    /// version.
    #[error(
        "duplicates of datanet {name:?} are {fixed}; its first version fixes that, and {asked} were asked for"
    )]
    Duplicates {
        /// The name.
        name: String,
        /// What was fixed.
        fixed: DuplicateRules,
        /// What was asked for; near duplicates to 1 to 100 %.
        asked: DuplicateRules,
    },
    /// The input could not be read to its end; nothing was added.
    #[error(transparent)]
    Input(#[from] InputError),
    /// Stored data is missing or is not what it was. Restore it from a copy.
    #[error(transparent)]
    Damaged(#[from] Damage),
    /// The object store failed; nothing was added.
    #[error(transparent)]
    Objects(ObjectsError),
    /// The head could not be read or moved.
    #[error(transparent)]
    Heads(HeadsError),
    /// The shard could not be encoded: a bug, reported rather than hidden.
    #[error("could not encode a shard: {detail}")]
    Encode {
        /// What the encoder said.
        detail: String,
    },
}

/// What sort of object it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ObjectRole {
    /// The manifest of a version.
    Manifest,
    /// A shard of records.
    Shard,
}

impl fmt::Display for ObjectRole {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Manifest => "manifest",
            Self::Shard => "shard",
        })
    }
}

/// The first thing that differs from what the ids and the rules say.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{role} {object}{}: {what}", at(*record))]
pub struct Damage {
    /// The object.
    pub object: B256,
    /// What it is.
    pub role: ObjectRole,
    /// Position of the record in the datanet, from 0, if it is one record.
    pub record: Option<u64>,
    /// What differs.
    pub what: DamageKind,
}

fn at(record: Option<u64>) -> String {
    record.map_or_else(String::new, |position| format!(", record {position}"))
}

/// What differs.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum DamageKind {
    /// The store does not have it.
    #[error("is missing")]
    Missing,
    /// Its bytes are others.
    #[error("its bytes hash to {found}")]
    Changed {
        /// What they hash to.
        found: B256,
    },
    /// Its size is not the one that the manifest says, or over the limit.
    #[error("has {found_bytes} bytes, expected {expected_bytes}")]
    Size {
        /// Bytes found.
        found_bytes: u64,
        /// Bytes by the manifest, or the limit.
        expected_bytes: u64,
    },
    /// It cannot be decoded.
    #[error("cannot be decoded: {detail}")]
    Malformed {
        /// Why.
        detail: String,
    },
    /// A value is not the one that follows from the rest.
    #[error("{field} is {found}, expected {expected}")]
    Differs {
        /// Which value.
        field: &'static str,
        /// The value that stands there.
        found: String,
        /// The value that follows.
        expected: String,
    },
}

impl Damage {
    pub(crate) const fn manifest(object: B256, what: DamageKind) -> Self {
        Self {
            object,
            role: ObjectRole::Manifest,
            record: None,
            what,
        }
    }

    pub(crate) const fn shard(object: B256, what: DamageKind) -> Self {
        Self {
            object,
            role: ObjectRole::Shard,
            record: None,
            what,
        }
    }

    pub(crate) const fn record(object: B256, position: u64, what: DamageKind) -> Self {
        Self {
            object,
            role: ObjectRole::Shard,
            record: Some(position),
            what,
        }
    }
}

/// [`DamageKind::Differs`] unless the two are equal.
pub(crate) fn same<T: PartialEq + fmt::Debug>(
    field: &'static str,
    found: &T,
    expected: &T,
) -> Result<(), DamageKind> {
    if found == expected {
        return Ok(());
    }
    // A value from a broken file may be long; its beginning tells enough.
    let cut = |value: &T| format!("{value:?}").chars().take(300).collect();
    let (found, expected) = (cut(found), cut(expected));
    Err(DamageKind::Differs {
        field,
        found,
        expected,
    })
}

/// What a store's error means for an object that a datanet names.
pub(crate) fn from_objects(error: ObjectsError, role: ObjectRole) -> DatanetError {
    let (object, what) = match error {
        ObjectsError::NotFound { id } => (id, DamageKind::Missing),
        ObjectsError::Tampered { expected, found } => (expected, DamageKind::Changed { found }),
        ObjectsError::TooLarge {
            id,
            size_bytes,
            max_size_bytes,
        } => {
            let (found_bytes, expected_bytes) = (size_bytes, max_size_bytes);
            (
                id,
                DamageKind::Size {
                    found_bytes,
                    expected_bytes,
                },
            )
        }
        error => return DatanetError::Objects(error),
    };
    Damage {
        object,
        role,
        record: None,
        what,
    }
    .into()
}
