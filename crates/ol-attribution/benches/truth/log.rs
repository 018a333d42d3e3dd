//! What was measured so far: a file that only grows.
//!
//! Little-endian: the 8 bytes `OLTRUTH1`, the hash of the experiment, the
//! number of losses as `u32`; then for each run its number as `u32`, the losses
//! as `f32`, and the first 8 bytes of the keccak256 of that. A tail that was
//! cut short by a crash is dropped when the file is opened.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::{Seek as _, SeekFrom, Write as _};
use std::path::Path;

use anyhow::{Context as _, bail, ensure};
use ol_types::{B256, keccak256};

const MAGIC: &[u8; 8] = b"OLTRUTH1";
const CHECK_SIZE_BYTES: usize = 8;

/// Measured losses by the number of their run.
pub(crate) type Runs = BTreeMap<u32, Vec<f32>>;

/// A log that is written to.
#[derive(Debug)]
pub(crate) struct Log {
    file: File,
    n_losses: usize,
}

/// The whole runs of a log, and how many bytes of it those are.
pub(crate) fn read(
    path: &Path,
    experiment: B256,
    n_losses: usize,
) -> anyhow::Result<(Runs, usize)> {
    let bytes = std::fs::read(path).with_context(|| path.display().to_string())?;
    let header = header(experiment, n_losses)?;
    if !bytes.starts_with(&header) {
        bail!(
            "{} is of another experiment: other setting, base or records; choose another folder",
            path.display()
        );
    }
    let mut runs = Runs::new();
    let mut whole = header.len();
    for entry in bytes[whole..].chunks_exact(entry_size_bytes(n_losses)) {
        let (content, check) = entry.split_at(entry.len() - CHECK_SIZE_BYTES);
        if keccak256(content)[..CHECK_SIZE_BYTES] != *check {
            break;
        }
        let (words, _) = content.as_chunks::<4>();
        let losses = words[1..].iter().map(|w| f32::from_le_bytes(*w));
        runs.insert(u32::from_le_bytes(words[0]), losses.collect());
        whole += entry.len();
    }
    Ok((runs, whole))
}

fn header(experiment: B256, n_losses: usize) -> anyhow::Result<Vec<u8>> {
    let mut header = MAGIC.to_vec();
    header.extend(experiment.as_slice());
    header.extend(u32::try_from(n_losses)?.to_le_bytes());
    Ok(header)
}

const fn entry_size_bytes(n_losses: usize) -> usize {
    4 + 4 * n_losses + CHECK_SIZE_BYTES
}

impl Log {
    /// Opens the log of an experiment to go on with it, or begins it; returns
    /// what it has. One process at a time.
    pub(crate) fn open(
        path: &Path,
        experiment: B256,
        n_losses: usize,
    ) -> anyhow::Result<(Self, Runs)> {
        let mut file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(false)
            .open(path)
            .with_context(|| path.display().to_string())?;
        file.try_lock()
            .with_context(|| format!("{} is being written by another process", path.display()))?;
        if file.metadata()?.len() == 0 {
            file.write_all(&header(experiment, n_losses)?)?;
        }
        let (runs, whole) = read(path, experiment, n_losses)?;
        file.set_len(u64::try_from(whole)?)?;
        file.seek(SeekFrom::End(0))?;
        Ok((Self { file, n_losses }, runs))
    }

    /// Adds a run; when this returns it is on the disk.
    pub(crate) fn append(&mut self, run: u32, losses: &[f32]) -> anyhow::Result<()> {
        ensure!(losses.len() == self.n_losses, "one loss for each query");
        let mut entry = run.to_le_bytes().to_vec();
        entry.extend(losses.iter().flat_map(|loss| loss.to_le_bytes()));
        let check = keccak256(&entry);
        entry.extend(&check[..CHECK_SIZE_BYTES]);
        self.file.write_all(&entry)?;
        self.file.sync_data()?;
        Ok(())
    }
}
