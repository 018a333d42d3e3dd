//! What a job's adapter was made from: `training.json` beside it.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read as _;
use std::path::Path;

use ol_types::{B256, keccak256};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use super::spec::{LoraSpec, Method};
use crate::manifest::{canonical, parse};
use crate::options::TrainOptions;

/// The files of a PEFT adapter.
pub(super) const ADAPTER_FILES: [&str; 2] = ["adapter_config.json", "adapter_model.safetensors"];

/// Data of a job.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DataUse {
    /// Examples in it.
    pub n_examples: u64,
    /// Name of the file or the datanet, without folders.
    pub name: String,
    /// SHA-256 of the file, hexadecimal; for a datanet the id of the version's
    /// manifest.
    pub sha256: String,
}

/// `training.json`: what an adapter was made from, and what became of it. It
/// holds no time and no path, so that equal jobs write equal ones.
///
/// The manifest of a model that is registered on the chain is
/// [`crate::TrainingManifest`], whose format is older and stays as it is.
/// Fields are in alphabetical order, so that the JSON is the canonical one.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct JobManifest {
    /// Content hash of the adapter, where the runner knows it.
    pub adapter: Option<String>,
    /// Content hash of the base, where the runner knows it.
    pub base: Option<String>,
    /// Name of the base.
    pub base_name: String,
    /// Data, in the order of the job.
    pub data: Vec<DataUse>,
    /// SHA-256 of the adapter's files, by name.
    pub files: BTreeMap<String, String>,
    /// Format, [`JobManifest::FORMAT`].
    pub format: String,
    /// Held-out loss with the adapter, nats a token.
    pub held_out_after: f64,
    /// Held-out loss of the base, nats a token.
    pub held_out_before: f64,
    /// Hash of the job's specification, where the runner knows it.
    pub job: Option<String>,
    /// Shape of the adapter.
    pub lora: LoraSpec,
    /// How it was trained.
    pub method: Method,
    /// Examples measured on.
    pub n_held_out: u64,
    /// Examples trained on.
    pub n_trained: u64,
    /// Options, steps filled in.
    pub options: TrainOptions,
    /// Loss weight of what is no answer.
    pub prompt_weight: f32,
    /// Program that trained it, with its version.
    pub runner: String,
    /// Steps done.
    pub steps: u32,
    /// Tokens seen, repeats counted.
    pub tokens: u64,
}

impl JobManifest {
    /// Value of `format`.
    pub const FORMAT: &'static str = "openledger-training/2";
    /// Name of the file.
    pub const FILE: &'static str = "training.json";

    /// Canonical JSON: keys sorted, no spaces, numbers in shortest form.
    ///
    /// # Panics
    /// Never: every field is a number, a string or a list of those.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        canonical(self)
    }

    /// keccak256 of [`JobManifest::to_bytes`].
    #[must_use]
    pub fn id(&self) -> B256 {
        keccak256(self.to_bytes())
    }

    /// Reads a manifest.
    ///
    /// # Errors
    /// When the bytes are not a manifest of this format.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, serde_json::Error> {
        parse(bytes, Self::FORMAT, |manifest: &Self| &manifest.format)
    }
}

/// SHA-256 of a file, as `sha256sum` prints it.
pub(crate) fn sha256_of(path: &Path) -> std::io::Result<String> {
    let mut file = File::open(path)?;
    let mut hasher = Sha256::new();
    let mut buffer = vec![0; 1 << 20];
    loop {
        let n = file.read(&mut buffer)?;
        if n == 0 {
            break;
        }
        hasher.update(&buffer[..n]);
    }
    Ok(hasher
        .finalize()
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect())
}
