//! Checkpoints: everything a run needs to go on to the same bytes.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use ol_model::write_atomic;
use ol_types::keccak256;
use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::adamw::AdamW;
use crate::curve::CurvePoint;
use crate::trainer::TrainOptions;

const MAGIC: &[u8; 8] = b"OLTRAIN1";
const MAX_META_SIZE_BYTES: usize = 64 << 20;

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
    /// Hash of the sequences trained on.
    pub(crate) data: String,
    pub(crate) step: u32,
    pub(crate) epoch: u64,
    pub(crate) next: usize,
    pub(crate) tokens: u64,
    pub(crate) loss_sum: f64,
    pub(crate) loss_weight: f64,
    pub(crate) best: Option<f64>,
    pub(crate) worse: u32,
    pub(crate) curve: Vec<CurvePoint>,
}

pub(crate) fn write(
    path: &Path,
    position: &Position,
    params: &[f32],
    adam: &AdamW,
) -> Result<(), CheckpointError> {
    let meta = serde_json::to_vec(position).expect("numbers and strings are JSON");
    let mut bytes = MAGIC.to_vec();
    bytes.extend((meta.len() as u64).to_le_bytes());
    bytes.extend((params.len() as u64).to_le_bytes());
    bytes.extend(meta);
    for values in [params, &adam.first, &adam.second] {
        bytes.extend(values.iter().flat_map(|v| v.to_le_bytes()));
    }
    let digest = keccak256(&bytes);
    bytes.extend(digest);
    write_atomic(path, &bytes).map_err(|source| CheckpointError::Io {
        path: path.to_owned(),
        source,
    })
}

/// Reads the checkpoint at `path`, if there is one, into `params` and `adam`.
pub(crate) fn read(
    path: &Path,
    options: &TrainOptions,
    data: &str,
    params: &mut [f32],
    adam: &mut AdamW,
) -> Result<Option<Position>, CheckpointError> {
    let io = |source| CheckpointError::Io {
        path: path.to_owned(),
        source,
    };
    let damaged = |reason: &str| CheckpointError::Damaged {
        path: path.to_owned(),
        reason: reason.to_owned(),
    };
    let file = match File::open(path) {
        Ok(file) => file,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(io(e)),
    };
    let most = (24 + MAX_META_SIZE_BYTES + 12 * params.len() + 32) as u64;
    if file.metadata().map_err(io)?.len() > most {
        return Err(damaged("it is longer than this run's can be"));
    }
    let mut bytes = Vec::new();
    file.take(most).read_to_end(&mut bytes).map_err(io)?;
    let Some((body, digest)) = bytes.split_last_chunk::<32>() else {
        return Err(damaged("it is too short"));
    };
    if keccak256(body) != *digest {
        return Err(damaged("its hash is wrong"));
    }
    let number = |at: usize| {
        body.get(at..at + 8)
            .and_then(|b| b.try_into().ok())
            .map(u64::from_le_bytes)
    };
    let (Some(meta), Some(n)) = (number(8), number(16)) else {
        return Err(damaged("it is too short"));
    };
    if !body.starts_with(MAGIC) || n != params.len() as u64 {
        return Err(damaged("it is of another kind or size"));
    }
    let meta = usize::try_from(meta)
        .ok()
        .filter(|m| *m <= MAX_META_SIZE_BYTES);
    let Some(meta) = meta.filter(|m| body.len() == 24 + m + 12 * params.len()) else {
        return Err(damaged("its parts do not add up"));
    };
    let (head, values) = body.split_at(24 + meta);
    let position: Position =
        serde_json::from_slice(&head[24..]).map_err(|e| damaged(&e.to_string()))?;
    let other = |what| CheckpointError::OtherRun {
        path: path.to_owned(),
        what,
    };
    if position.options != *options {
        return Err(other("options"));
    }
    if position.data != data {
        return Err(other("data"));
    }
    let mut values = values
        .as_chunks::<4>()
        .0
        .iter()
        .map(|b| f32::from_le_bytes(*b));
    for out in [params, &mut adam.first, &mut adam.second] {
        for (out, v) in out.iter_mut().zip(&mut values) {
            *out = v;
        }
    }
    adam.steps = position.step;
    Ok(Some(position))
}
