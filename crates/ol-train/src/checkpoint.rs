//! Checkpoints: everything a run needs to go on to the same bytes.
//!
//! A checkpoint is a file: the magic bytes with the version, the length of the
//! description, the description (JSON: position of the run, names and lengths of
//! the vectors), the vectors (little-endian), and the keccak256 of all that.
//! It is written beside its place and moved there, so that a run killed at any
//! moment leaves whole checkpoints only.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use ol_types::keccak256;
use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::adamw::AdamW;
use crate::curve::CurvePoint;
use crate::options::TrainOptions;

/// What every version starts with; one byte of version follows.
const MAGIC: &[u8; 7] = b"OLTRAIN";
const VERSION: u8 = b'2';
const HEAD_SIZE_BYTES: usize = 16;
const DIGEST_SIZE_BYTES: usize = 32;
const META_SIZE_BYTES_MAX: usize = 64 << 20;

/// Why a checkpoint cannot be written or used.
#[derive(Debug, Error)]
pub enum CheckpointError {
    /// The file cannot be read or written.
    #[error("{path}: {source}")]
    Io {
        /// File concerned.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The file is damaged or not a checkpoint.
    #[error("{path}: not a usable checkpoint: {reason}")]
    Damaged {
        /// File concerned.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// The checkpoint was written by another version of the program.
    #[error(
        "{path}: checkpoint of format {found}, this program reads format {}; delete it to start anew",
        VERSION as char
    )]
    Version {
        /// File concerned.
        path: PathBuf,
        /// Its version.
        found: char,
    },
    /// The checkpoint belongs to another run.
    #[error("{path}: checkpoint of a run with other {what}; delete it to start anew")]
    OtherRun {
        /// File concerned.
        path: PathBuf,
        /// What differs.
        what: &'static str,
    },
}

/// Where a run stands, besides the large vectors.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Position {
    pub(crate) options: TrainOptions,
    pub(crate) run: RunId,
    pub(crate) step: u32,
    pub(crate) epoch: u64,
    pub(crate) next: usize,
    pub(crate) tokens: u64,
    #[serde(with = "exact")]
    pub(crate) loss_sum: f64,
    #[serde(with = "exact")]
    pub(crate) loss_weight: f64,
    pub(crate) best: Option<Best>,
    pub(crate) worse: u32,
    #[serde(with = "exact_curve")]
    pub(crate) curve: Vec<CurvePoint>,
}

/// Hashes of what a run is made of, besides its options.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct RunId {
    /// What is trained on and measured with.
    pub(crate) data: String,
    /// What is trained, and the base.
    pub(crate) start: String,
}

/// The lowest held-out loss measured.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub(crate) struct Best {
    pub(crate) step: u32,
    #[serde(with = "exact")]
    pub(crate) held_out: f64,
}

/// A number by its bits: JSON numbers may be read a bit off.
mod exact {
    use serde::{Deserialize as _, Deserializer, Serializer};

    #[expect(clippy::trivially_copy_pass_by_ref, reason = "serde's signature")]
    pub(super) fn serialize<S: Serializer>(value: &f64, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_u64(value.to_bits())
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<f64, D::Error> {
        u64::deserialize(from).map(f64::from_bits)
    }
}

/// As [`exact`], for the points of a curve.
mod exact_curve {
    use serde::{Deserialize as _, Deserializer, Serializer};

    use crate::curve::CurvePoint;
    use crate::trainer::Rewards;

    /// Step, tokens, and the bits of rate, losses, and rewards.
    type Point = (u32, u64, u32, u64, u64, Option<(u64, u64)>);

    pub(super) fn serialize<S: Serializer>(curve: &[CurvePoint], to: S) -> Result<S::Ok, S::Error> {
        to.collect_seq(curve.iter().map(|p| -> Point {
            let rewards = p
                .rewards
                .map(|r| (r.accuracy.to_bits(), r.margin.to_bits()));
            let (loss, held_out) = (p.loss.to_bits(), p.held_out.to_bits());
            let rate = p.learning_rate.to_bits();
            (p.step, p.tokens, rate, loss, held_out, rewards)
        }))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(
        from: D,
    ) -> Result<Vec<CurvePoint>, D::Error> {
        let points = Vec::<Point>::deserialize(from)?;
        let point = |(step, tokens, rate, loss, held_out, rewards): Point| CurvePoint {
            step,
            tokens,
            learning_rate: f32::from_bits(rate),
            loss: f64::from_bits(loss),
            held_out: f64::from_bits(held_out),
            rewards: rewards.map(|(accuracy, margin)| Rewards {
                accuracy: f64::from_bits(accuracy),
                margin: f64::from_bits(margin),
            }),
        };
        Ok(points.into_iter().map(point).collect())
    }
}

/// The large vectors of a run.
#[derive(Debug)]
pub(crate) struct State {
    pub(crate) params: Vec<f32>,
    pub(crate) adam: AdamW,
    /// Parameters of the lowest held-out loss, where those are kept.
    pub(crate) best: Option<Vec<f32>>,
}

/// A vector to be written.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Values<'a> {
    F32(&'a [f32]),
    U8(&'a [u8]),
}

/// A vector to be read into.
#[derive(Debug)]
pub(crate) enum ValuesMut<'a> {
    F32(&'a mut [f32]),
    U8(&'a mut [u8]),
}

impl Values<'_> {
    fn size_bytes(&self) -> usize {
        match self {
            Self::F32(values) => size_of_val(*values),
            Self::U8(values) => values.len(),
        }
    }
}

impl ValuesMut<'_> {
    fn size_bytes(&self) -> usize {
        match self {
            Self::F32(values) => size_of_val(*values),
            Self::U8(values) => values.len(),
        }
    }

    fn fill(self, bytes: &[u8]) {
        match self {
            Self::F32(values) => {
                for (value, bytes) in values.iter_mut().zip(bytes.as_chunks::<4>().0) {
                    *value = f32::from_le_bytes(*bytes);
                }
            }
            Self::U8(values) => values.copy_from_slice(bytes),
        }
    }
}

impl State {
    fn values(&self) -> Vec<(&'static str, Values<'_>)> {
        let mut values = vec![("params", Values::F32(&self.params))];
        values.extend(self.best.iter().map(|b| ("best", Values::F32(b))));
        values.extend(self.adam.values());
        values
    }

    fn values_mut(&mut self, steps: u32) -> Vec<(&'static str, ValuesMut<'_>)> {
        let mut values = vec![("params", ValuesMut::F32(&mut self.params))];
        values.extend(self.best.iter_mut().map(|b| ("best", ValuesMut::F32(b))));
        values.extend(self.adam.values_mut(steps));
        values
    }
}

/// What the JSON of a checkpoint holds.
#[derive(Serialize, Deserialize)]
struct Meta {
    position: Position,
    /// Name and size in bytes of each vector, in order.
    vectors: Vec<(String, usize)>,
}

/// Changes of the file system; a test puts one that fails in its place.
pub(crate) trait Disk {
    /// Puts `bytes` at `path` so that a crash leaves the old file or the new.
    fn write(&self, path: &Path, bytes: &[u8]) -> std::io::Result<()>;
    /// Removes a file.
    fn remove(&self, path: &Path) -> std::io::Result<()>;
}

/// The file system itself.
pub(crate) struct LocalDisk;

impl Disk for LocalDisk {
    fn write(&self, path: &Path, bytes: &[u8]) -> std::io::Result<()> {
        ol_model::write_atomic(path, bytes)
    }

    fn remove(&self, path: &Path) -> std::io::Result<()> {
        std::fs::remove_file(path)
    }
}

/// The checkpoints of one run: files `PATH.STEP`, of which the newest are kept.
pub(crate) struct Checkpoints<'a> {
    path: &'a Path,
    disk: &'a dyn Disk,
}

impl<'a> Checkpoints<'a> {
    pub(crate) fn new(path: &'a Path, disk: &'a dyn Disk) -> Self {
        Self { path, disk }
    }

    fn file(&self, step: u32) -> PathBuf {
        let mut name = self.path.file_name().unwrap_or_default().to_owned();
        name.push(format!(".{step:08}"));
        self.path.with_file_name(name)
    }

    /// The checkpoints there are, oldest first.
    fn found(&self) -> Result<Vec<(u32, PathBuf)>, CheckpointError> {
        let name = self.path.file_name().unwrap_or_default().to_string_lossy();
        let dir = match self.path.parent() {
            Some(dir) if !dir.as_os_str().is_empty() => dir,
            _ => Path::new("."),
        };
        let io = |source| CheckpointError::Io {
            path: dir.to_owned(),
            source,
        };
        let entries = match std::fs::read_dir(dir) {
            Ok(entries) => entries,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(e) => return Err(io(e)),
        };
        let mut found = Vec::new();
        // The first version had one file without a step.
        found.extend(self.path.is_file().then(|| (0, self.path.to_owned())));
        for entry in entries {
            let path = entry.map_err(io)?.path();
            let step = path
                .file_name()
                .and_then(|n| n.to_str())
                .and_then(|n| n.strip_prefix(&*name)?.strip_prefix('.'))
                .filter(|digits| digits.len() >= 8 && digits.bytes().all(|b| b.is_ascii_digit()))
                .and_then(|digits| digits.parse().ok());
            found.extend(step.map(|step: u32| (step, path)));
        }
        found.sort_unstable();
        Ok(found)
    }

    /// Writes a checkpoint, then removes those that are too many.
    pub(crate) fn write(&self, position: &Position, state: &State) -> Result<(), CheckpointError> {
        let path = self.file(position.step);
        let values = state.values();
        let meta = Meta {
            position: position.clone(),
            vectors: values
                .iter()
                .map(|(name, v)| ((*name).to_owned(), v.size_bytes()))
                .collect(),
        };
        let meta = serde_json::to_vec(&meta).expect("numbers and strings are JSON");
        let size_bytes: usize = values.iter().map(|(_, v)| v.size_bytes()).sum();
        let mut bytes =
            Vec::with_capacity(HEAD_SIZE_BYTES + meta.len() + size_bytes + DIGEST_SIZE_BYTES);
        bytes.extend(MAGIC);
        bytes.push(VERSION);
        bytes.extend((meta.len() as u64).to_le_bytes());
        bytes.extend(meta);
        for (_, values) in values {
            match values {
                Values::F32(values) => bytes.extend(values.iter().flat_map(|v| v.to_le_bytes())),
                Values::U8(values) => bytes.extend(values),
            }
        }
        let digest = keccak256(&bytes);
        bytes.extend(digest);
        let io = |path: PathBuf| move |source| CheckpointError::Io { path, source };
        self.disk.write(&path, &bytes).map_err(io(path.clone()))?;
        // Later ones are damaged ones that gave way to an earlier one.
        let keep = position.options.checkpoints_keep as usize;
        let (mut old, later): (Vec<_>, Vec<_>) = self
            .found()?
            .into_iter()
            .partition(|(step, _)| *step <= position.step);
        old.truncate(old.len().saturating_sub(keep));
        for (_, path) in later.into_iter().chain(old) {
            self.disk.remove(&path).map_err(io(path.clone()))?;
        }
        Ok(())
    }

    /// Reads the newest checkpoint, if there is one, into `state`. A damaged one
    /// gives way to the one before it: the run then does some steps again, to
    /// the same bytes.
    pub(crate) fn read(
        &self,
        options: &TrainOptions,
        run: &RunId,
        state: &mut State,
    ) -> Result<Option<Position>, CheckpointError> {
        let mut damaged = None;
        for (_, path) in self.found()?.iter().rev() {
            match read(path, options, run, state) {
                Ok(position) => return Ok(Some(position)),
                Err(e @ CheckpointError::Damaged { .. }) => {
                    damaged.get_or_insert(e);
                }
                Err(e) => return Err(e),
            }
        }
        damaged.map_or(Ok(None), Err)
    }

    /// Removes all checkpoints of a run that is done.
    pub(crate) fn clear(&self) -> Result<(), CheckpointError> {
        for (_, path) in self.found()? {
            self.disk
                .remove(&path)
                .map_err(|source| CheckpointError::Io { path, source })?;
        }
        Ok(())
    }
}

/// Removes the checkpoints that runs with the checkpoint `path` left.
///
/// # Errors
/// [`CheckpointError::Io`] when one cannot be removed.
pub fn clear_checkpoints(path: &Path) -> Result<(), CheckpointError> {
    Checkpoints::new(path, &LocalDisk).clear()
}

fn read(
    path: &Path,
    options: &TrainOptions,
    run: &RunId,
    state: &mut State,
) -> Result<Position, CheckpointError> {
    let io = |source| CheckpointError::Io {
        path: path.to_owned(),
        source,
    };
    let damaged = |reason: String| CheckpointError::Damaged {
        path: path.to_owned(),
        reason,
    };
    let size_bytes: usize = state.values().iter().map(|(_, v)| v.size_bytes()).sum();
    // A vector of best parameters may be there or not, whatever `state` has.
    let most = HEAD_SIZE_BYTES
        + META_SIZE_BYTES_MAX
        + size_bytes
        + size_of_val(&*state.params)
        + DIGEST_SIZE_BYTES;
    let file = File::open(path).map_err(io)?;
    if file.metadata().map_err(io)?.len() > most as u64 {
        return Err(damaged("it is longer than this run's can be".to_owned()));
    }
    let mut bytes = Vec::new();
    file.take(most as u64).read_to_end(&mut bytes).map_err(io)?;
    let found = bytes.get(MAGIC.len()).copied().unwrap_or_default();
    if bytes.starts_with(MAGIC) && found != VERSION && found.is_ascii_digit() {
        return Err(CheckpointError::Version {
            path: path.to_owned(),
            found: char::from(found),
        });
    }
    let Some((body, digest)) = bytes.split_last_chunk::<DIGEST_SIZE_BYTES>() else {
        return Err(damaged("it is too short".to_owned()));
    };
    if keccak256(body) != *digest {
        return Err(damaged("its hash is wrong".to_owned()));
    }
    let Some((head, body)) = body.split_first_chunk::<HEAD_SIZE_BYTES>() else {
        return Err(damaged("it is too short".to_owned()));
    };
    if !head.starts_with(MAGIC) || found != VERSION {
        return Err(damaged("it does not start as a checkpoint does".to_owned()));
    }
    let length = u64::from_le_bytes(*head.last_chunk().expect("the head has 16 bytes"));
    let length = usize::try_from(length)
        .ok()
        .filter(|length| *length <= META_SIZE_BYTES_MAX && *length <= body.len());
    let Some(length) = length else {
        return Err(damaged(
            "its description is longer than the file".to_owned(),
        ));
    };
    let (meta, mut body) = body.split_at(length);
    let Meta { position, vectors } =
        serde_json::from_slice(meta).map_err(|e| damaged(e.to_string()))?;
    let other = |what| CheckpointError::OtherRun {
        path: path.to_owned(),
        what,
    };
    if position.options.that_matter() != options.that_matter() {
        return Err(other("options"));
    }
    if position.run.data != run.data {
        return Err(other("data"));
    }
    if position.run.start != run.start {
        return Err(other("base or initial adapter"));
    }
    let has_best = vectors.iter().any(|(name, _)| name == "best");
    state.best = has_best.then(|| vec![0.0; state.params.len()]);
    let values = state.values_mut(position.step);
    let expected = values.iter().map(|(name, v)| (*name, v.size_bytes()));
    let same = expected.eq(vectors.iter().map(|(name, size)| (name.as_str(), *size)));
    let sum = values.iter().map(|(_, v)| v.size_bytes()).sum::<usize>();
    if !same || body.len() != sum {
        return Err(damaged("its vectors are not those of this run".to_owned()));
    }
    for (_, values) in values {
        let (part, rest) = body.split_at(values.size_bytes());
        values.fill(part);
        body = rest;
    }
    Ok(Position {
        options: options.clone(),
        ..position
    })
}
