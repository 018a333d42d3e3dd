//! The files of a revision, and which of them are needed.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::Read;
use std::path::Path;

use serde::Deserialize;

use crate::reference::{is_commit, is_safe_path};
use crate::{HubError, Reference};

/// Most files of a revision.
const MAX_FILES: usize = 100_000;
/// Longest index of shards.
const MAX_INDEX_SIZE_BYTES: u64 = 64 << 20;

const INDEX: &str = "model.safetensors.index.json";
const WEIGHTS: &str = "model.safetensors";
/// Fetched where they are; only the first must be there, beside safetensors.
const SMALL: [&str; 7] = [
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
    "added_tokens.json",
];
const ADAPTER: [&str; 2] = ["adapter_config.json", "adapter_model.safetensors"];

/// What a file's content hashes to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Digest {
    /// Files in large file storage.
    Sha256(String),
    /// Files in git itself: SHA-1 over `blob LENGTH\0` and the content.
    GitBlob(String),
}

impl Digest {
    /// Its hexadecimal digits: the name of the file in `blobs`.
    pub(crate) fn hex(&self) -> &str {
        match self {
            Self::Sha256(hex) | Self::GitBlob(hex) => hex,
        }
    }
}

/// A file of a revision.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct RemoteFile {
    /// Path within the repository, checked.
    pub(crate) path: String,
    pub(crate) size_bytes: u64,
    pub(crate) digest: Digest,
}

/// The files of a revision.
#[derive(Debug)]
pub(crate) struct Listing {
    pub(crate) commit: String,
    files: Vec<RemoteFile>,
}

#[derive(Deserialize)]
struct Wire {
    sha: String,
    siblings: Vec<WireFile>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct WireFile {
    rfilename: String,
    #[serde(default)]
    size: Option<u64>,
    #[serde(default)]
    blob_id: Option<String>,
    #[serde(default)]
    lfs: Option<WireLfs>,
}

#[derive(Deserialize)]
struct WireLfs {
    sha256: String,
    size: u64,
}

impl Listing {
    /// Reads the hub's answer.
    pub(crate) fn parse(bytes: &[u8]) -> Result<Self, String> {
        let wire: Wire = serde_json::from_slice(bytes).map_err(|e| e.to_string())?;
        if !is_commit(&wire.sha) {
            return Err("`sha` is not a commit".to_owned());
        }
        if wire.siblings.len() > MAX_FILES {
            return Err(format!("more than {MAX_FILES} files"));
        }
        let files = wire.siblings.into_iter().map(|file| {
            let name = &file.rfilename;
            if !is_safe_path(name) {
                return Err(format!("the path {name:?} leads out of its folder"));
            }
            let is_hex = |hex: &str| hex.bytes().all(|b| b.is_ascii_hexdigit());
            let (digest, size) = match (file.lfs, file.blob_id, file.size) {
                (Some(lfs), _, _) if lfs.sha256.len() == 64 && is_hex(&lfs.sha256) => (
                    Digest::Sha256(lfs.sha256.to_ascii_lowercase()),
                    Some(lfs.size),
                ),
                (None, Some(blob), size) if blob.len() == 40 && is_hex(&blob) => {
                    (Digest::GitBlob(blob.to_ascii_lowercase()), size)
                }
                _ => return Err(format!("does not say what {name} hashes to")),
            };
            Ok(RemoteFile {
                size_bytes: size.ok_or_else(|| format!("does not say how long {name} is"))?,
                path: file.rfilename,
                digest,
            })
        });
        Ok(Self {
            commit: wire.sha,
            files: files.collect::<Result<_, _>>()?,
        })
    }

    fn find(&self, path: &str) -> Option<&RemoteFile> {
        self.files.iter().find(|f| f.path == path)
    }

    /// What is needed, the shards of an index excepted.
    pub(crate) fn select(&self, reference: &Reference) -> Result<Vec<RemoteFile>, HubError> {
        let names: Vec<&str> = self.files.iter().map(|f| f.path.as_str()).collect();
        let chosen = choose(reference, &names)?;
        Ok(chosen
            .into_iter()
            .filter_map(|n| self.find(n).cloned())
            .collect())
    }

    /// The shards that the index in `dir` names; `None` when there is none.
    pub(crate) fn shards(&self, dir: &Path) -> Result<Option<Vec<RemoteFile>>, HubError> {
        let Some(names) = shard_names(dir)? else {
            return Ok(None);
        };
        let bad = |name: &str| HubError::Files {
            reference: INDEX.to_owned(),
            reason: format!("names {name}, which is not among the model's files"),
        };
        names
            .iter()
            .map(|name| self.find(name).cloned().ok_or_else(|| bad(name)))
            .collect::<Result<_, _>>()
            .map(Some)
    }
}

/// What is needed of these files: names, weights last.
fn choose<'a>(reference: &Reference, names: &[&'a str]) -> Result<Vec<&'a str>, HubError> {
    let bad = |reason: String| HubError::Files {
        reference: reference.to_string(),
        reason,
    };
    let find = |wanted: &str| names.iter().copied().find(|n| *n == wanted);
    let mut chosen: Vec<&str> = SMALL.iter().filter_map(|n| find(n)).collect();
    if let Some(file) = &reference.file {
        chosen.push(find(file).ok_or_else(|| bad(format!("has no file {file}")))?);
        return Ok(chosen);
    }
    if let Some(weights) = find(INDEX).or_else(|| find(WEIGHTS)) {
        if find(SMALL[0]).is_none() {
            return Err(bad(format!("has no {}", SMALL[0])));
        }
        chosen.push(weights);
        return Ok(chosen);
    }
    if let [Some(config), Some(weights)] = ADAPTER.map(find) {
        chosen.extend([config, weights]);
        return Ok(chosen);
    }
    let ggufs: Vec<&str> = names.iter().copied().filter(|n| is_gguf(n)).collect();
    match ggufs.as_slice() {
        [one] => chosen.push(one),
        [] => {
            return Err(bad(
                "has neither safetensors nor GGUF weights (other formats run code when they are \
                 read, and are not)"
                    .to_owned(),
            ));
        }
        several => {
            return Err(bad(format!(
                "has several GGUF files; say which, as in {}:{}. There are: {}",
                reference.id,
                several[0],
                several[..several.len().min(40)].join(", ")
            )));
        }
    }
    Ok(chosen)
}

pub(crate) fn is_gguf(name: &str) -> bool {
    name.to_ascii_lowercase().ends_with(".gguf")
}

/// The files needed, if all of them are in `dir`, where `names` are.
pub(crate) fn complete(
    reference: &Reference,
    dir: &Path,
    names: &[String],
) -> Result<Option<Vec<String>>, HubError> {
    let there: Vec<&str> = names.iter().map(String::as_str).collect();
    let Ok(chosen) = choose(reference, &there) else {
        return Ok(None);
    };
    let mut files: Vec<String> = chosen.into_iter().map(str::to_owned).collect();
    if let Some(shards) = shard_names(dir)?.filter(|_| files.iter().any(|f| f == INDEX)) {
        if !shards.iter().all(|shard| names.contains(shard)) {
            return Ok(None);
        }
        files.extend(shards);
    }
    files.sort();
    Ok(Some(files))
}

/// The shards that the index in `dir` names.
fn shard_names(dir: &Path) -> Result<Option<BTreeSet<String>>, HubError> {
    #[derive(Deserialize)]
    struct Index {
        weight_map: std::collections::BTreeMap<String, String>,
    }
    let path = dir.join(INDEX);
    let io = |source| HubError::Io {
        path: path.clone(),
        source,
    };
    let file = match File::open(&path) {
        Ok(file) => file,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(io(error)),
    };
    let mut bytes = Vec::new();
    file.take(MAX_INDEX_SIZE_BYTES + 1)
        .read_to_end(&mut bytes)
        .map_err(io)?;
    let bad = |reason: String| HubError::Files {
        reference: path.display().to_string(),
        reason,
    };
    if bytes.len() as u64 > MAX_INDEX_SIZE_BYTES {
        return Err(bad(format!("longer than {MAX_INDEX_SIZE_BYTES} bytes")));
    }
    let index: Index = serde_json::from_slice(&bytes).map_err(|e| bad(e.to_string()))?;
    let names: BTreeSet<String> = index.weight_map.into_values().collect();
    if let Some(name) = names.iter().find(|n| !is_safe_path(n)) {
        return Err(bad(format!("the path {name:?} leads out of its folder")));
    }
    Ok(Some(names))
}
