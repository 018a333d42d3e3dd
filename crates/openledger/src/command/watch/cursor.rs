//! How far a watch has come.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use alloy_primitives::B256;
use anyhow::{Context, ensure};
use serde::{Deserialize, Serialize};

/// Most claims that are not decided at a time.
const CLAIMS_MAX: usize = 10_000;

/// Largest cursor on disk, in bytes: every claim as a JSON string, twice over.
const SIZE_BYTES_MAX: u64 = 2 << 20;

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Cursor {
    /// Whose blocks these are.
    chain_id: u64,
    /// The first block that was not read.
    pub(super) next_block: u64,
    /// Claims that are neither right nor over.
    pub(super) claims: BTreeSet<B256>,
    #[serde(skip)]
    path: PathBuf,
}

impl Cursor {
    /// Reads the cursor in a folder, or begins at block 0.
    ///
    /// # Errors
    /// If it is of another chain or no cursor.
    pub(super) fn open(folder: &Path, chain_id: u64) -> anyhow::Result<Self> {
        fs::create_dir_all(folder).with_context(|| folder.display().to_string())?;
        let path = folder.join("cursor.json");
        let shown = path.display().to_string();
        let cursor = match fs::metadata(&path) {
            Ok(found) => {
                ensure!(
                    found.len() <= SIZE_BYTES_MAX,
                    "{shown} is no cursor: too large"
                );
                let text = fs::read(&path).with_context(|| shown.clone())?;
                let cursor: Self = serde_json::from_slice(&text)
                    .with_context(|| format!("{shown} is no cursor; delete it to begin again"))?;
                ensure!(
                    cursor.chain_id == chain_id,
                    "{shown} is of chain {}, this is {chain_id}; delete it to begin again",
                    cursor.chain_id
                );
                cursor
            }
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Self {
                chain_id,
                next_block: 0,
                claims: BTreeSet::new(),
                path: PathBuf::new(),
            },
            Err(error) => return Err(error).context(shown),
        };
        Ok(Self { path, ..cursor })
    }

    /// Keeps a claim in mind until it is decided.
    ///
    /// # Errors
    /// If there are too many.
    pub(super) fn add(&mut self, id: B256) -> anyhow::Result<()> {
        ensure!(
            self.claims.len() < CLAIMS_MAX,
            "{CLAIMS_MAX} claims are undecided: more than one watch keeps in mind; publish the objects that are missing"
        );
        self.claims.insert(id);
        Ok(())
    }

    /// Writes the cursor, whole or not at all.
    pub(super) fn save(&self) -> anyhow::Result<()> {
        let temporary = self.path.with_extension("new");
        let write = || {
            fs::write(&temporary, serde_json::to_vec(self)?)?;
            fs::rename(&temporary, &self.path)
        };
        write().with_context(|| self.path.display().to_string())
    }
}

#[cfg(test)]
mod tests {
    //! Goal: a watch goes on where it ended, and never on another chain.
    //! Method: cursors written, read again and spoilt.

    use super::*;

    #[test]
    fn a_cursor_is_kept_and_checked() {
        let folder = tempfile::tempdir().unwrap();
        let mut cursor = Cursor::open(folder.path(), 7).unwrap();
        assert_eq!(cursor.next_block, 0);
        cursor.next_block = 12;
        cursor.add(B256::repeat_byte(1)).unwrap();
        cursor.save().unwrap();

        let again = Cursor::open(folder.path(), 7).unwrap();
        assert_eq!(again.next_block, 12);
        assert_eq!(again.claims, cursor.claims);
        let other = Cursor::open(folder.path(), 8).unwrap_err().to_string();
        assert!(other.contains("of chain 7"), "{other}");
        fs::write(folder.path().join("cursor.json"), "{").unwrap();
        let spoilt = Cursor::open(folder.path(), 7).unwrap_err().to_string();
        assert!(spoilt.contains("no cursor"), "{spoilt}");
    }

    #[test]
    fn no_more_claims_than_fit() {
        let folder = tempfile::tempdir().unwrap();
        let mut cursor = Cursor::open(folder.path(), 7).unwrap();
        for at in 0..CLAIMS_MAX {
            cursor
                .add(B256::left_padding_from(&at.to_be_bytes()))
                .unwrap();
        }
        cursor.save().unwrap();
        assert!(cursor.add(B256::ZERO).is_err());
        assert_eq!(
            Cursor::open(folder.path(), 7).unwrap().claims,
            cursor.claims
        );
    }
}
