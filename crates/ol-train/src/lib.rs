//! Training: base models and LoRA adapters, checkpoints, held-out loss.
//!
//! One loop ([`train`]) serves every [`Objective`]: AdamW with warm-up and
//! cosine decay, gradient clipping, batches filled up to a token budget,
//! checkpoints from which a run goes on **to the same bytes**, and a held-out
//! loss. [`train_adapter`] is the whole job of a LoRA adapter, checked reload
//! included; [`train_base`] that of a base model; [`TrainingManifest`] says what
//! an adapter was made from.

mod adamw;
mod adapter;
mod base;
mod checkpoint;
mod corpus;
mod curve;
mod manifest;
mod options;
mod trainer;

pub use adamw::AdamW;
pub use adapter::{
    AdapterError, AdapterJob, AdapterReport, LoraObjective, TrainingRecord, train_adapter,
};
pub use base::{BaseError, BaseJob, BaseObjective, BaseReport, train_base};
pub use checkpoint::{CheckpointError, clear_checkpoints};
pub use corpus::{Corpus, CorpusError};
pub use curve::{CurvePoint, curve_csv, curve_svg};
pub use manifest::{DatanetUse, TrainingManifest};
pub use options::{Optimizer, OptionError, Schedule, TrainOptions};
pub use trainer::{
    Example, Measured, Objective, Observer, Outcome, Progress, Rewards, Silent, TrainError, train,
};
