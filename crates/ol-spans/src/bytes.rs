//! Little-endian fields, read with their bounds checked and written durably.

use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::path::Path;

use ol_types::{B256, Keccak256};

use crate::SpansError;

/// Begins the name of a file that is not finished.
pub(crate) const TEMPORARY_PREFIX: &str = ".unfinished-";

/// Takes fields from the front of bytes.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Reader<'a>(pub(crate) &'a [u8]);

impl<'a> Reader<'a> {
    /// The next `n` bytes; `None` if there are fewer.
    pub(crate) fn take(&mut self, n: u64) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(usize::try_from(n).ok()?)?;
        self.0 = rest;
        Some(taken)
    }

    /// Takes what every file begins with, or says why it is no `kind`.
    pub(crate) fn format(
        &mut self,
        magic: [u8; 8],
        version: u32,
        kind: &str,
    ) -> Result<(), String> {
        if self.array() != Some(magic) {
            return Err(format!("it is not a {kind} of spans"));
        }
        let found = self.u32().ok_or("it is cut off")?;
        if found != version {
            return Err(format!(
                "it has version {found}, this program reads {version}"
            ));
        }
        Ok(())
    }

    pub(crate) fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (taken, rest) = self.0.split_first_chunk::<N>()?;
        self.0 = rest;
        Some(*taken)
    }

    pub(crate) fn u32(&mut self) -> Option<u32> {
        self.array().map(u32::from_le_bytes)
    }

    pub(crate) fn u64(&mut self) -> Option<u64> {
        self.array().map(u64::from_le_bytes)
    }

    pub(crate) fn hash(&mut self) -> Option<B256> {
        self.array().map(B256::new)
    }
}

/// Bytes as rows of `N`; whole rows only.
pub(crate) fn rows<const N: usize>(bytes: &[u8]) -> &[[u8; N]] {
    bytes.as_chunks().0
}

/// A file whose first part is hashed on its way to the disk.
pub(crate) struct HashedFile<'a> {
    file: BufWriter<&'a File>,
    hasher: Keccak256,
}

impl HashedFile<'_> {
    /// Writes bytes that count for the file's id.
    pub(crate) fn hashed(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.hasher.update(bytes);
        self.file.write_all(bytes)
    }

    /// Writes bytes that do not.
    pub(crate) fn plain(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.file.write_all(bytes)
    }
}

/// Writes a file into `dir` and gives it the name `ID.extension`, `ID` being
/// keccak256 of what `content` wrote as hashed. Once this has returned, the
/// file is on the disk; until then nothing has its name.
pub(crate) fn write_file(
    dir: &Path,
    extension: &str,
    content: impl FnOnce(&mut HashedFile<'_>) -> io::Result<()>,
) -> Result<B256, SpansError> {
    // Whoever writes holds the folder's lock, so one name is enough.
    let temporary = dir.join(format!("{TEMPORARY_PREFIX}{extension}"));
    let error = || SpansError::io(&temporary);
    let file = File::create(&temporary).map_err(error())?;
    let mut hashed = HashedFile {
        file: BufWriter::with_capacity(1 << 16, &file),
        hasher: Keccak256::new(),
    };
    content(&mut hashed).map_err(error())?;
    hashed.file.flush().map_err(error())?;
    let id = hashed.hasher.clone().finalize();
    file.sync_all().map_err(error())?;
    fs::rename(&temporary, dir.join(file_name(id, extension))).map_err(error())?;
    // The rename itself must survive a power loss.
    let folder = File::open(dir).map_err(SpansError::io(dir))?;
    folder.sync_all().map_err(SpansError::io(dir))?;
    Ok(id)
}

/// `ID.extension`, the id in lower-case hex.
pub(crate) fn file_name(id: B256, extension: &str) -> String {
    let hex = format!("{id:x}");
    format!("{}.{extension}", hex.trim_start_matches("0x"))
}

/// The id in a name that [`file_name`] made.
pub(crate) fn id_in_name(name: &str, extension: &str) -> Option<B256> {
    let stem = name.strip_suffix(extension)?.strip_suffix('.')?;
    let id = stem.parse().ok()?;
    (file_name(id, extension) == name).then_some(id)
}
