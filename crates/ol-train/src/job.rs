//! Jobs: what to train, a durable queue of it, and those who run it.
//!
//! [`JobSpec`] says what to train (`specs/job.md`). A [`Runner`] executes one
//! in a folder: [`LocalRunner`] in this process, [`ProgramRunner`] by any
//! program that keeps the contract of `specs/runner.md`. [`JobEngine`] keeps
//! jobs on disk, runs them one at a time, and brings every job whose process
//! died to the same end.

mod engine;
mod folder;
mod local;
mod manifest;
mod metrics;
mod plot;
mod program;
mod report;
mod runner;
mod spec;
mod store;

pub use engine::{JobEngine, Worked};
pub use folder::{RunFolder, RunPhase, RunState};
pub use local::{Accelerator, LocalRunner, NoSources, Plan, Sources};
pub(crate) use manifest::sha256_of;
pub use manifest::{DataUse, JobManifest};
pub use metrics::{MAX_METRICS_SIZE_BYTES, MetricsFollower, MetricsLine};
pub use plot::plot;
pub use program::ProgramRunner;
pub use report::JobReport;
pub use runner::{RunEnd, RunError, Runner, Stop, exit_code, run_as_program};
pub use spec::{
    BaseSource, DataFormat, DataSource, EvaluationSpec, JobSpec, LoraSpec, MAX_SPEC_SIZE_BYTES,
    Method, Problem, Quantisation, SpecError, Targets,
};
pub use store::{EngineLimits, Job, JobError, JobId, JobState};
