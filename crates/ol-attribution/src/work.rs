//! Gradients on disk: what a job has finished, so that it can go on.
//!
//! A folder holds the gradients of one job in files of some rows each. A file is
//! complete or not there; its header says which job and which rows it is of, and
//! it ends with its checksum. Little-endian:
//!
//! | bytes | field |
//! |---|---|
//! | 8 | `OLROWS01` |
//! | 32 | the job's key |
//! | 8 | first row |
//! | 4 | rows |
//! | 4 | numbers in a row |
//! | .. | the rows, `f32` |
//! | 32 | keccak256 of all before it |

use std::fs::File;
use std::io::{self, Read as _, Seek as _, SeekFrom};
use std::path::{Path, PathBuf};

use ol_model::write_atomic;
use ol_types::{B256, Keccak256};

use crate::rows::RowSource;

const MAGIC: &[u8; 8] = b"OLROWS01";
const HEADER_SIZE_BYTES: usize = 56;
const CHECKSUM_SIZE_BYTES: usize = 32;

/// Rows of one job, in files of a folder; grows until all are there.
#[derive(Debug)]
pub(crate) struct RowFiles {
    dir: PathBuf,
    name: &'static str,
    key: B256,
    n_columns: usize,
    /// First row of each file, and the end.
    starts: Vec<usize>,
    /// The file that was read last.
    open: Option<(usize, File)>,
    bytes: Vec<u8>,
}

impl RowFiles {
    /// The rows called `name` of the job `key`; none yet.
    ///
    /// # Errors
    /// If the folder cannot be made.
    pub(crate) fn new(
        dir: &Path,
        name: &'static str,
        key: B256,
        n_columns: usize,
    ) -> io::Result<Self> {
        std::fs::create_dir_all(dir)?;
        Ok(Self {
            dir: dir.to_owned(),
            name,
            key,
            n_columns,
            starts: vec![0],
            open: None,
            bytes: Vec::new(),
        })
    }

    /// Takes the next `n_rows` rows from an earlier run; `false` if they are not
    /// there whole.
    ///
    /// # Errors
    /// If the file is there but cannot be read.
    pub(crate) fn resume(&mut self, n_rows: usize) -> io::Result<bool> {
        let first = self.n_rows();
        let mut file = match File::open(self.path(first)) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
            Err(error) => return Err(error),
        };
        let header = self.header(first, n_rows);
        let content_size = header.len() + n_rows * self.n_columns * 4;
        if file.metadata()?.len() != to_u64(content_size + CHECKSUM_SIZE_BYTES) {
            return Ok(false);
        }
        let (mut hasher, mut left) = (Keccak256::new(), content_size);
        let mut buffer = vec![0; 1 << 16];
        let mut is_first = true;
        while left > 0 {
            let part = &mut buffer[..left.min(1 << 16)];
            file.read_exact(part)?;
            if std::mem::take(&mut is_first) && !part.starts_with(&header) {
                return Ok(false);
            }
            hasher.update(&*part);
            left -= part.len();
        }
        let mut checksum = [0; CHECKSUM_SIZE_BYTES];
        file.read_exact(&mut checksum)?;
        let is_whole = hasher.finalize() == checksum;
        if is_whole {
            self.starts.push(first + n_rows);
        }
        Ok(is_whole)
    }

    /// Writes the next rows; when this returns they are on the disk.
    ///
    /// # Errors
    /// If they cannot be written.
    pub(crate) fn append(&mut self, rows: &[Vec<f32>]) -> io::Result<()> {
        let first = self.n_rows();
        let mut bytes = self.header(first, rows.len());
        bytes.extend(rows.iter().flatten().flat_map(|x| x.to_le_bytes()));
        let checksum = ol_types::keccak256(&bytes);
        bytes.extend_from_slice(checksum.as_slice());
        write_atomic(&self.path(first), &bytes)?;
        self.starts.push(first + rows.len());
        Ok(())
    }

    fn path(&self, first: usize) -> PathBuf {
        self.dir.join(format!("{}-{first:08}.rows", self.name))
    }

    fn header(&self, first: usize, n_rows: usize) -> Vec<u8> {
        let mut header = MAGIC.to_vec();
        header.extend_from_slice(self.key.as_slice());
        header.extend_from_slice(&to_u64(first).to_le_bytes());
        for n in [n_rows, self.n_columns] {
            let n = u32::try_from(n).expect("rows of a batch and numbers of a map");
            header.extend_from_slice(&n.to_le_bytes());
        }
        header
    }
}

impl RowSource for RowFiles {
    fn n_rows(&self) -> usize {
        self.starts.last().copied().unwrap_or(0)
    }

    fn n_columns(&self) -> usize {
        self.n_columns
    }

    fn read(&mut self, row: usize, start: usize, into: &mut [f32]) -> io::Result<()> {
        assert!(row < self.n_rows() && start + into.len() <= self.n_columns);
        let first = self.starts[self.starts.partition_point(|&start| start <= row) - 1];
        let file = match &mut self.open {
            Some((of, file)) if *of == first => file,
            _ => {
                let file = File::open(self.path(first))?;
                &mut self.open.insert((first, file)).1
            }
        };
        let at = HEADER_SIZE_BYTES + 4 * ((row - first) * self.n_columns + start);
        file.seek(SeekFrom::Start(to_u64(at)))?;
        self.bytes.resize(4 * into.len(), 0);
        file.read_exact(&mut self.bytes)?;
        for (x, bytes) in into.iter_mut().zip(self.bytes.as_chunks::<4>().0) {
            *x = f32::from_le_bytes(*bytes);
        }
        Ok(())
    }
}

fn to_u64(n: usize) -> u64 {
    u64::try_from(n).expect("a length fits 64 bits")
}

#[cfg(test)]
mod tests;
