//! One record: a question, its answer, and who wrote it.

use std::fmt;

use ol_poa::merkle;
use ol_types::{Address, B256, keccak256};
use serde::de::{Deserializer, MapAccess, Visitor};
use serde::{Deserialize, Serialize};

/// A record, as its contributor wrote it.
///
/// The fields are declared in the order of their names, because serde writes
/// them in that order and canonical JSON wants its keys sorted.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Record {
    /// What a model should answer.
    pub answer: String,
    /// Who wrote it and is paid for it.
    pub contributor: String,
    /// The contributor's own name for it; need not be unique. May be empty.
    pub id: String,
    /// What sort of question it is. May be empty.
    pub kind: String,
    /// SPDX expression of the licence.
    pub license: String,
    /// What a model is asked.
    pub question: String,
    /// What it is about. May be empty.
    pub topic: String,
    /// Where it was published. May be empty.
    pub url: String,
}

/// A record with the facts that its datanet fixed when it was committed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CommittedRecord {
    /// The record.
    pub record: Record,
    /// keccak256 of the record's canonical JSON.
    pub record_hash: B256,
    /// Address that is paid.
    pub contributor_address: Address,
    /// Number of its duplicate cluster.
    pub cluster: u32,
}

/// What a field may hold.
struct Rule {
    name: &'static str,
    max_size_bytes: usize,
    /// Must not be blank.
    is_required: bool,
    /// Is prose: may have line breaks and tabs, and spaces around it.
    is_prose: bool,
}

const fn rule(
    name: &'static str,
    max_size_bytes: usize,
    is_required: bool,
    is_prose: bool,
) -> Rule {
    Rule {
        name,
        max_size_bytes,
        is_required,
        is_prose,
    }
}

/// The fields, in the order of their names; see `specs/datanet.md`.
const RULES: [Rule; 8] = [
    rule("answer", 192 * 1_024, true, true),
    rule("contributor", 128, true, false),
    rule("id", 256, false, false),
    rule("kind", 256, false, false),
    rule("license", 64, true, false),
    rule("question", 64 * 1_024, true, true),
    rule("topic", 256, false, false),
    rule("url", 2_048, false, false),
];

/// Why a line was not accepted. [`RejectReason::code`] is stable; the text is
/// for people.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum RejectReason {
    /// The line is longer than a line may be.
    #[error("the line is longer than {max_size_bytes} bytes")]
    LineTooLong {
        /// The limit.
        max_size_bytes: usize,
    },
    /// The line is not UTF-8.
    #[error("the line is not valid UTF-8")]
    Encoding,
    /// The line is not one JSON object.
    #[error("the line is not a JSON object: {detail}")]
    Json {
        /// What the parser found, and where.
        detail: String,
    },
    /// A key is not one of the eight.
    #[error("unknown field {field:?}")]
    UnknownField {
        /// The key, cut to 40 characters.
        field: String,
    },
    /// A key stands twice.
    #[error("field {field} stands twice")]
    DuplicateField {
        /// The key.
        field: &'static str,
    },
    /// A value is not a string.
    #[error("field {field} is not a string")]
    NotAString {
        /// The key.
        field: &'static str,
    },
    /// A required field is absent or blank.
    #[error("field {field} is missing or blank")]
    Missing {
        /// The key.
        field: &'static str,
    },
    /// A value is too long.
    #[error("field {field} has {size_bytes} bytes, the limit is {max_size_bytes}")]
    FieldTooLong {
        /// The key.
        field: &'static str,
        /// Bytes of the value, in UTF-8.
        size_bytes: usize,
        /// The limit.
        max_size_bytes: usize,
    },
    /// A value holds a control character.
    #[error("field {field} holds the control character U+{code_point:04X}")]
    ControlCharacter {
        /// The key.
        field: &'static str,
        /// The character.
        code_point: u32,
    },
    /// A name begins or ends with white space, and would look like another.
    #[error("field {field} begins or ends with white space")]
    Padded {
        /// The key.
        field: &'static str,
    },
    /// The contributor has no address to pay to.
    #[error("contributor {contributor:?} has no address")]
    NoAddress {
        /// The contributor.
        contributor: String,
    },
    /// The datanet has records under as many licences as it may have.
    #[error("the datanet already has {max} different licences")]
    TooManyLicenses {
        /// The limit.
        max: usize,
    },
    /// The datanet has as many records as it may have.
    #[error("the datanet already has {max} records")]
    DatanetFull {
        /// The limit.
        max: u64,
    },
}

impl RejectReason {
    /// A short name for programs, which never changes.
    #[must_use]
    pub const fn code(&self) -> &'static str {
        match self {
            Self::LineTooLong { .. } => "line-too-long",
            Self::Encoding => "encoding",
            Self::Json { .. } => "json",
            Self::UnknownField { .. } => "unknown-field",
            Self::DuplicateField { .. } => "duplicate-field",
            Self::NotAString { .. } => "not-a-string",
            Self::Missing { .. } => "missing",
            Self::FieldTooLong { .. } => "field-too-long",
            Self::ControlCharacter { .. } => "control-character",
            Self::Padded { .. } => "padded",
            Self::NoAddress { .. } => "no-address",
            Self::TooManyLicenses { .. } => "too-many-licenses",
            Self::DatanetFull { .. } => "datanet-full",
        }
    }
}

impl Record {
    /// Reads one line of JSONL.
    ///
    /// # Errors
    /// [`RejectReason`] if it is not a record by `specs/datanet.md`.
    pub fn from_json(line: &[u8]) -> Result<Self, RejectReason> {
        let text = std::str::from_utf8(line).map_err(|_| RejectReason::Encoding)?;
        let Pairs(pairs) = serde_json::from_str(text).map_err(|error| RejectReason::Json {
            detail: error.to_string(),
        })?;
        let mut record = Self::default();
        let mut seen = [false; RULES.len()];
        for (key, value) in pairs {
            let Some(index) = RULES.iter().position(|rule| rule.name == key) else {
                return Err(RejectReason::UnknownField {
                    field: key.chars().take(40).collect(),
                });
            };
            let field = RULES[index].name;
            if std::mem::replace(&mut seen[index], true) {
                return Err(RejectReason::DuplicateField { field });
            }
            let serde_json::Value::String(value) = value else {
                return Err(RejectReason::NotAString { field });
            };
            *record.fields_mut()[index] = value;
        }
        record.check()?;
        Ok(record)
    }

    /// Checks what `specs/datanet.md` asks of the values.
    ///
    /// # Errors
    /// [`RejectReason`], for the first field (by name) that breaks a rule.
    pub fn check(&self) -> Result<(), RejectReason> {
        RULES
            .iter()
            .zip(self.fields())
            .try_for_each(|(rule, value)| check_field(rule, value))
    }

    /// The canonical JSON: what is hashed.
    ///
    /// # Panics
    /// Never: strings always serialise.
    #[must_use]
    pub fn canonical_json(&self) -> Vec<u8> {
        serde_json::to_vec(self).expect("a struct of strings serialises")
    }

    /// keccak256 of the canonical JSON.
    #[must_use]
    pub fn hash(&self) -> B256 {
        keccak256(self.canonical_json())
    }

    pub(crate) fn fields(&self) -> [&String; RULES.len()] {
        let Self {
            answer,
            contributor,
            id,
            kind,
            license,
            question,
            topic,
            url,
        } = self;
        [answer, contributor, id, kind, license, question, topic, url]
    }

    const fn fields_mut(&mut self) -> [&mut String; RULES.len()] {
        let Self {
            answer,
            contributor,
            id,
            kind,
            license,
            question,
            topic,
            url,
        } = self;
        [answer, contributor, id, kind, license, question, topic, url]
    }
}

fn check_field(rule: &Rule, value: &str) -> Result<(), RejectReason> {
    let field = rule.name;
    if rule.is_required && value.trim().is_empty() {
        return Err(RejectReason::Missing { field });
    }
    if value.len() > rule.max_size_bytes {
        let (size_bytes, max_size_bytes) = (value.len(), rule.max_size_bytes);
        return Err(RejectReason::FieldTooLong {
            field,
            size_bytes,
            max_size_bytes,
        });
    }
    let is_banned =
        |c: &char| c.is_control() && !(rule.is_prose && matches!(c, '\t' | '\n' | '\r'));
    if let Some(c) = value.chars().find(is_banned) {
        return Err(RejectReason::ControlCharacter {
            field,
            code_point: c.into(),
        });
    }
    if !rule.is_prose && value.trim() != value {
        return Err(RejectReason::Padded { field });
    }
    Ok(())
}

impl CommittedRecord {
    /// The leaf of this record in the Merkle tree of a version.
    #[must_use]
    pub fn leaf(&self) -> B256 {
        leaf(
            self.record_hash,
            self.contributor_address,
            keccak256(&self.record.license),
            self.cluster,
        )
    }
}

/// The leaf of a record: `H(0x00 || record hash || contributor address ||
/// keccak256(licence) || cluster as u32)`.
#[must_use]
pub fn leaf(record_hash: B256, contributor: Address, license_hash: B256, cluster: u32) -> B256 {
    let mut bytes = [0; 32 + 20 + 32 + 4];
    bytes[..32].copy_from_slice(record_hash.as_slice());
    bytes[32..52].copy_from_slice(contributor.as_slice());
    bytes[52..84].copy_from_slice(license_hash.as_slice());
    bytes[84..].copy_from_slice(&cluster.to_be_bytes());
    merkle::leaf(&bytes)
}

/// A JSON object as it was written: keys in order, repeated ones included.
struct Pairs(Vec<(String, serde_json::Value)>);

impl<'de> Deserialize<'de> for Pairs {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct PairsVisitor;

        impl<'de> Visitor<'de> for PairsVisitor {
            type Value = Pairs;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Pairs, A::Error> {
                let mut pairs = Vec::with_capacity(RULES.len());
                while let Some(pair) = map.next_entry()? {
                    pairs.push(pair);
                }
                Ok(Pairs(pairs))
            }
        }

        deserializer.deserialize_map(PairsVisitor)
    }
}

#[cfg(test)]
pub(crate) mod tests;
