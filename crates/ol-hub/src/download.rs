//! One file after another: from where the last try stopped, hashed as it comes.

use std::fs::{self, File};
use std::io::Read;
use std::ops::ControlFlow;
use std::path::Path;

use sha1::Sha1;
use sha2::{Digest as _, Sha256};
use ureq::http::{HeaderMap, Uri};

use crate::cache::{ModelCache, Partial, io};
use crate::client::{Failure, shown};
use crate::listing::{Digest, RemoteFile};
use crate::{Hub, HubError, OnProgress, Progress, Reference};

const BUFFER_SIZE_BYTES: usize = 1 << 18;

/// Bytes in all files before the one being fetched, and whom to tell.
struct Report<'a> {
    progress: Progress,
    before_bytes: u64,
    on_progress: OnProgress<'a>,
}

impl Report<'_> {
    fn tell(&mut self, file_bytes: u64) -> Result<(), HubError> {
        self.progress.done_bytes = self.before_bytes + file_bytes;
        match (self.on_progress)(&self.progress) {
            ControlFlow::Continue(()) => Ok(()),
            ControlFlow::Break(()) => Err(HubError::Stopped),
        }
    }
}

impl Hub {
    pub(crate) fn fetch_files(
        &self,
        reference: &Reference,
        model: &ModelCache,
        commit: &str,
        files: &[RemoteFile],
        on_progress: OnProgress<'_>,
    ) -> Result<(), HubError> {
        let mut total_bytes: u64 = 0;
        let mut missing_bytes: u64 = 0;
        for file in files {
            let too_large = |what: &str, size_bytes, limit_bytes| {
                Err(HubError::TooLarge {
                    what: what.to_owned(),
                    size_bytes,
                    limit_bytes,
                })
            };
            if file.size_bytes > self.options.max_file_size_bytes {
                let limit_bytes = self.options.max_file_size_bytes;
                return too_large(&file.path, file.size_bytes, limit_bytes);
            }
            total_bytes = total_bytes.saturating_add(file.size_bytes);
            if total_bytes > self.options.max_model_size_bytes {
                let limit_bytes = self.options.max_model_size_bytes;
                return too_large(&reference.to_string(), total_bytes, limit_bytes);
            }
            if size_of(&model.blob(&file.digest)) != Some(file.size_bytes) {
                let there = size_of(&model.partial(&file.digest)).unwrap_or_default();
                missing_bytes += file.size_bytes.saturating_sub(there);
            }
        }
        model.prepare()?;
        if let Some(free_bytes) = model.free_bytes().filter(|free| *free < missing_bytes) {
            return Err(HubError::NoRoom {
                dir: self.options.cache_dir.clone(),
                needed_bytes: missing_bytes,
                free_bytes,
            });
        }
        let mut report = Report {
            progress: Progress {
                file: String::new(),
                file_index: 0,
                n_files: files.len(),
                done_bytes: 0,
                total_bytes,
            },
            before_bytes: 0,
            on_progress,
        };
        for (index, file) in files.iter().enumerate() {
            report.progress.file.clone_from(&file.path);
            report.progress.file_index = index;
            let lock = model.lock(&file.digest)?;
            if !self.is_there(model, file)? {
                self.download(reference, model, commit, file, &mut report)?;
            }
            model.link(commit, file)?;
            drop(lock);
            report.tell(file.size_bytes)?;
            report.before_bytes += file.size_bytes;
        }
        Ok(())
    }

    /// Whether the cache holds the file.
    fn is_there(&self, model: &ModelCache, file: &RemoteFile) -> Result<bool, HubError> {
        let blob = model.blob(&file.digest);
        if size_of(&blob) != Some(file.size_bytes) {
            return Ok(false);
        }
        if !self.options.rechecks_cache {
            return Ok(true);
        }
        let mut hasher = Hasher::new(file);
        hasher.read(&blob)?;
        Ok(hasher.check(file).is_ok())
    }

    fn download(
        &self,
        reference: &Reference,
        model: &ModelCache,
        commit: &str,
        file: &RemoteFile,
        report: &mut Report<'_>,
    ) -> Result<(), HubError> {
        let url = self.client.file_url(reference, commit, &file.path)?;
        let path = model.partial(&file.digest);
        let mut is_fresh = size_of(&path).unwrap_or_default() == 0;
        loop {
            let hasher = self.fill(reference, &url, &path, file, report)?;
            match hasher.check(file) {
                Ok(()) => return model.keep(&file.digest),
                Err(error) => {
                    fs::remove_file(&path).map_err(io(&path))?;
                    // What an earlier run left may have been damaged: once more,
                    // from the start.
                    if is_fresh {
                        return Err(error);
                    }
                    is_fresh = true;
                }
            }
        }
    }

    /// Requests until the file is as long as it should be.
    fn fill(
        &self,
        reference: &Reference,
        url: &Uri,
        path: &Path,
        file: &RemoteFile,
        report: &mut Report<'_>,
    ) -> Result<Hasher, HubError> {
        let mut hasher = Hasher::new(file);
        let mut there = size_of(path).unwrap_or_default();
        if there > file.size_bytes {
            there = 0;
        }
        let mut partial = Partial::open(path.to_owned(), there)?;
        if there > 0 {
            hasher.read(path)?;
        }
        let mut attempt = 0;
        while hasher.n_bytes < file.size_bytes {
            let before = hasher.n_bytes;
            let failure = match self.client.get(reference, url, before) {
                Ok(response) => {
                    if response.status() != 206 && before > 0 {
                        // The server starts over, or has no such range.
                        hasher = Hasher::new(file);
                        partial = Partial::open(path.to_owned(), 0)?;
                        if response.status() == 416 {
                            attempt += 1;
                            if attempt > self.client.max_retries() {
                                return Err(protocol(url, "answers 416 again and again"));
                            }
                            continue;
                        }
                    } else if response.status() == 206
                        && range_start(response.headers()) != Some(before)
                    {
                        return Err(protocol(url, "sends another range than was asked for"));
                    }
                    let mut body = response.into_body().into_reader();
                    receive(&mut body, &mut hasher, &mut partial, file, report)?
                }
                Err(failure) => Some(failure),
            };
            if let Some(failure) = failure {
                if hasher.n_bytes > before {
                    attempt = 0;
                }
                self.client.pause(url, failure, &mut attempt)?;
            }
        }
        Ok(hasher)
    }
}

/// Takes what comes; says why no more came.
fn receive(
    body: &mut impl Read,
    hasher: &mut Hasher,
    partial: &mut Partial,
    file: &RemoteFile,
    report: &mut Report<'_>,
) -> Result<Option<Failure>, HubError> {
    let mut buffer = vec![0; BUFFER_SIZE_BYTES];
    let passing = |reason: String| Failure::Passing { reason, wait: None };
    loop {
        let n = match body.read(&mut buffer) {
            Ok(0) if hasher.n_bytes == file.size_bytes => return Ok(None),
            Ok(0) => {
                let (found, expected) = (hasher.n_bytes, file.size_bytes);
                let reason = format!("the connection ended after {found} of {expected} bytes");
                return Ok(Some(passing(reason)));
            }
            Ok(n) => n,
            Err(error) => return Ok(Some(passing(error.to_string()))),
        };
        if hasher.n_bytes + n as u64 > file.size_bytes {
            return Err(HubError::Files {
                reference: file.path.clone(),
                reason: format!("longer than the {} bytes announced", file.size_bytes),
            });
        }
        partial.write(&buffer[..n])?;
        hasher.update(&buffer[..n]);
        report.tell(hasher.n_bytes)?;
        if hasher.n_bytes == file.size_bytes {
            return Ok(None);
        }
    }
}

fn protocol(url: &Uri, reason: &str) -> HubError {
    HubError::Protocol {
        url: shown(url),
        reason: reason.to_owned(),
    }
}

/// `None` when there is no such file.
fn size_of(path: &Path) -> Option<u64> {
    fs::metadata(path).ok().map(|m| m.len())
}

/// First byte of a `Content-Range: bytes 5-9/10`.
fn range_start(headers: &HeaderMap) -> Option<u64> {
    let value = headers.get("content-range")?.to_str().ok()?;
    let range = value.trim().strip_prefix("bytes ")?;
    range.split_once('-')?.0.trim().parse().ok()
}

/// Hashes a file as it comes.
pub(crate) struct Hasher {
    kind: HasherKind,
    n_bytes: u64,
}

enum HasherKind {
    Sha256(Sha256),
    GitBlob(Sha1),
}

impl Hasher {
    pub(crate) fn new(file: &RemoteFile) -> Self {
        let kind = match file.digest {
            Digest::Sha256(_) => HasherKind::Sha256(Sha256::new()),
            Digest::GitBlob(_) => {
                let mut sha1 = Sha1::new();
                sha1.update(format!("blob {}\0", file.size_bytes));
                HasherKind::GitBlob(sha1)
            }
        };
        Self { kind, n_bytes: 0 }
    }

    fn update(&mut self, bytes: &[u8]) {
        match &mut self.kind {
            HasherKind::Sha256(hasher) => hasher.update(bytes),
            HasherKind::GitBlob(hasher) => hasher.update(bytes),
        }
        self.n_bytes += bytes.len() as u64;
    }

    /// Hashes what is in a file.
    pub(crate) fn read(&mut self, path: &Path) -> Result<(), HubError> {
        let mut file = File::open(path).map_err(io(path))?;
        let mut buffer = vec![0; BUFFER_SIZE_BYTES];
        loop {
            let n = file.read(&mut buffer).map_err(io(path))?;
            if n == 0 {
                return Ok(());
            }
            self.update(&buffer[..n]);
        }
    }

    pub(crate) fn check(self, file: &RemoteFile) -> Result<(), HubError> {
        let hex = |bytes: &[u8]| bytes.iter().map(|b| format!("{b:02x}")).collect::<String>();
        let (kind, found) = match self.kind {
            HasherKind::Sha256(hasher) => ("SHA-256", hex(&hasher.finalize())),
            HasherKind::GitBlob(hasher) => ("git's blob hash", hex(&hasher.finalize())),
        };
        if found == file.digest.hex() {
            return Ok(());
        }
        Err(HubError::Hash {
            file: file.path.clone(),
            kind,
            expected: file.digest.hex().to_owned(),
            found,
        })
    }
}
