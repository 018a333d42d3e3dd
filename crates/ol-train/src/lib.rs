//! Training: base models and LoRA adapters, checkpoints, held-out loss.
//!
//! One loop ([`train`]) serves every [`Objective`]: AdamW with warm-up and
//! cosine decay, gradient clipping, batches filled up to a token budget,
//! checkpoints from which a run goes on **to the same bytes**, and a held-out
//! loss. [`train_adapter`] is the whole job of a LoRA adapter, checked reload
//! included; [`train_base`] that of a base model; [`TrainingManifest`] says what
//! an adapter was made from.
//!
//! [`job`] is what people and programs use: a specification, a durable queue,
//! runners. [`peft`] looks into adapters, converts and merges them.

// Unit tests share their settings with the integration tests.
#[cfg(test)]
extern crate self as ol_train;

mod adamw;
mod adapter;
mod base;
mod checkpoint;
mod corpus;
mod curve;
pub mod data;
mod evaluate;
#[cfg(test)]
#[path = "../tests/it/models.rs"]
mod fixture;
pub mod job;
mod manifest;
mod memory;
mod options;
pub mod peft;
mod preference;
mod segments;
mod trainer;

pub use adamw::AdamW;
pub use adapter::{
    AdapterError, AdapterJob, AdapterReport, LoraObjective, TrainingRecord, save_checked,
    train_adapter,
};
pub use base::{BaseError, BaseJob, BaseObjective, BaseReport, train_base};
pub use checkpoint::{CheckpointError, clear_checkpoints};
pub use corpus::{Corpus, CorpusError};
pub use curve::{CurvePoint, curve_csv, curve_svg};
pub use evaluate::{
    Answered, Answering, Evaluation, EvaluationError, Question, Scores, answer, exact_match,
    rouge_l,
};
pub use manifest::{DatanetUse, TrainingManifest};
pub use memory::{
    BaseMemory, Fit, MemoryEstimate, MemoryPlan, Saving, TooLittleMemory, available_memory_bytes,
};
pub use options::{Optimizer, OptionError, Schedule, TrainOptions};
pub use preference::{Pair, PreferenceObjective, ScoredPair};
pub use segments::segment_dir;
pub use trainer::{
    Example, Measurement, Objective, Observer, Outcome, Progress, Rewards, Silent, TrainError,
    train,
};
