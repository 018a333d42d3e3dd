//! What an adapter was made from, as an object with a hash.

use ol_model::LoraConfig;
use ol_types::{B256, keccak256};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::options::TrainOptions;

/// A hash as `0x` and 64 hexadecimal digits.
mod hash {
    use ol_types::B256;
    use serde::{Deserialize as _, Deserializer, Serializer, de::Error as _};

    pub(super) fn serialize<S: Serializer>(hash: &B256, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(hash)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<B256, D::Error> {
        String::deserialize(from)?.parse().map_err(D::Error::custom)
    }
}

/// As [`hash`], many.
mod hashes {
    use ol_types::B256;
    use serde::{Deserialize as _, Deserializer, Serializer, de::Error as _};

    pub(super) fn serialize<S: Serializer>(hashes: &[B256], to: S) -> Result<S::Ok, S::Error> {
        to.collect_seq(hashes.iter().map(B256::to_string))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Vec<B256>, D::Error> {
        let texts = Vec::<String>::deserialize(from)?;
        texts
            .iter()
            .map(|t| t.parse().map_err(D::Error::custom))
            .collect()
    }
}

/// One version of a datanet that was trained on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DatanetUse {
    /// Id of the version's manifest.
    #[serde(with = "hash")]
    pub manifest: B256,
    /// Records trained on, those held out not counted.
    pub n_records: u64,
    /// Name of the datanet.
    pub name: String,
    /// Its version.
    pub version: u64,
}

/// The training manifest. Its id, the keccak256 of its bytes, goes on chain
/// with the model. Fields are in alphabetical order, here and in every struct
/// inside, so that the JSON written is the canonical one.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TrainingManifest {
    /// Content hash of the adapter.
    #[serde(with = "hash")]
    pub adapter: B256,
    /// Hash of the base model.
    #[serde(with = "hash")]
    pub base: B256,
    /// Content hashes of the adapters on the way that its sketches are made
    /// with, in order; left out where there are none.
    #[serde(default, skip_serializing_if = "Vec::is_empty", with = "hashes")]
    pub checkpoints: Vec<B256>,
    /// Data, by name.
    pub datanets: Vec<DatanetUse>,
    /// Format, `openledger-training/1`.
    pub format: String,
    /// Held-out loss with the adapter, nats a token.
    pub held_out_after: f64,
    /// Held-out loss of the base, nats a token.
    pub held_out_before: f64,
    /// Hashes of the records held out, ascending.
    #[serde(with = "hashes")]
    pub held_out_records: Vec<B256>,
    /// Shape of the adapter.
    pub lora: LoraConfig,
    /// How it was trained, the seed included.
    pub options: TrainOptions,
    /// Loss weight of question tokens.
    pub question_weight: f32,
    /// Steps done.
    pub steps: u32,
    /// Tokens seen.
    pub tokens: u64,
}

impl TrainingManifest {
    /// Value of `format`.
    pub const FORMAT: &'static str = "openledger-training/1";

    /// Canonical JSON: keys sorted, no spaces, numbers in shortest form.
    ///
    /// # Panics
    /// Never: every field is a number, a string or a list of those.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        canonical(self)
    }

    /// keccak256 of [`TrainingManifest::to_bytes`].
    #[must_use]
    pub fn id(&self) -> B256 {
        keccak256(self.to_bytes())
    }

    /// Reads the bytes of a manifest.
    ///
    /// # Errors
    /// When they are not a manifest of this format.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, serde_json::Error> {
        parse(bytes, Self::FORMAT, |manifest: &Self| &manifest.format)
    }
}

/// Canonical JSON of a manifest, whose fields are in alphabetical order: keys
/// sorted, no spaces, numbers in shortest form.
pub(crate) fn canonical(manifest: &impl Serialize) -> Vec<u8> {
    serde_json::to_vec(manifest).expect("numbers, strings and lists are JSON")
}

/// Reads a manifest, which must be of this format.
pub(crate) fn parse<M: DeserializeOwned>(
    bytes: &[u8],
    wanted: &str,
    format: impl Fn(&M) -> &String,
) -> Result<M, serde_json::Error> {
    let manifest: M = serde_json::from_slice(bytes)?;
    let format = format(&manifest);
    if format != wanted {
        let reason = format!("format is {format:?}, not {wanted:?}");
        return Err(<serde_json::Error as serde::de::Error>::custom(reason));
    }
    Ok(manifest)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Whether the keys of every object in a JSON text without escapes ascend.
    fn is_sorted(text: &str) -> bool {
        let mut open: Vec<String> = Vec::new();
        let mut string: Option<String> = None;
        let mut last = String::new();
        for c in text.chars() {
            match (&mut string, c) {
                (Some(s), '"') => last = std::mem::take(s),
                (Some(s), c) => s.push(c),
                (None, '{') => open.push(String::new()),
                (None, '}') => drop(open.pop()),
                (None, ':') => {
                    let before = open.last_mut().unwrap();
                    if *before >= last {
                        return false;
                    }
                    before.clone_from(&last);
                }
                _ => {}
            }
            if c == '"' {
                string = if string.is_some() {
                    None
                } else {
                    Some(String::new())
                };
            }
        }
        true
    }

    #[test]
    fn bytes_are_canonical_and_read_back() {
        let manifest = TrainingManifest {
            format: TrainingManifest::FORMAT.to_owned(),
            base: B256::repeat_byte(1),
            checkpoints: vec![B256::repeat_byte(5)],
            adapter: B256::repeat_byte(2),
            datanets: vec![DatanetUse {
                name: "legal".to_owned(),
                version: 1,
                manifest: B256::repeat_byte(3),
                n_records: 500,
            }],
            held_out_records: vec![B256::repeat_byte(4)],
            lora: LoraConfig::all_linear(8),
            options: TrainOptions::default(),
            question_weight: 1.0,
            steps: 200,
            tokens: 400_000,
            held_out_before: 4.25,
            held_out_after: 2.5,
        };
        let bytes = manifest.to_bytes();
        let text = String::from_utf8(bytes.clone()).unwrap();
        assert!(
            text.starts_with(r#"{"adapter":"0x02"#) && !text.contains(": "),
            "{text}"
        );
        assert_eq!(TrainingManifest::from_bytes(&bytes).unwrap(), manifest);
        assert_eq!(
            TrainingManifest::from_bytes(&bytes).unwrap().id(),
            manifest.id()
        );
        assert!(
            is_sorted(&text) && !is_sorted(r#"{"b":1,"a":{}}"#),
            "{text}"
        );
        let none = TrainingManifest {
            checkpoints: Vec::new(),
            ..manifest
        };
        let without = String::from_utf8(none.to_bytes()).unwrap();
        assert!(text.contains("\"checkpoints\":[\"0x05") && !without.contains("checkpoints"));
        assert_eq!(
            TrainingManifest::from_bytes(without.as_bytes()).unwrap(),
            none
        );
        let other = text.replace("openledger-training/1", "openledger-training/2");
        assert!(
            TrainingManifest::from_bytes(other.as_bytes())
                .unwrap_err()
                .to_string()
                .contains("training/2")
        );
        assert!(TrainingManifest::from_bytes(b"{}").is_err());
    }
}
