//! The pinned tests of this repository: `fixtures/ethereum-tests`.
//!
//! One line of JSON for each file: its `path` in its repository, and `content`,
//! the file itself; compressed with xz.

use std::io::{BufRead, BufReader, Cursor};
use std::path::PathBuf;

use serde::Deserialize;
use serde_json::Value;
use xz2::read::XzDecoder;

/// A file of the subset.
#[derive(Debug, Clone)]
pub struct PinnedFile {
    /// Where it lies in its repository.
    pub path: PathBuf,
    /// What is in it.
    pub content: Vec<u8>,
}

impl AsRef<std::path::Path> for PinnedFile {
    fn as_ref(&self) -> &std::path::Path {
        &self.path
    }
}

#[derive(Deserialize)]
struct Line {
    path: PathBuf,
    content: Value,
}

/// Reads the files of a subset.
///
/// # Errors
/// If the bytes are no subset.
pub fn read(compressed: &[u8]) -> std::io::Result<Vec<PinnedFile>> {
    let lines = BufReader::new(XzDecoder::new(Cursor::new(compressed))).lines();
    lines
        .map(|line| {
            let parsed: Line = serde_json::from_str(&line?)?;
            Ok(PinnedFile {
                path: parsed.path,
                content: serde_json::to_vec(&parsed.content)?,
            })
        })
        .collect()
}
