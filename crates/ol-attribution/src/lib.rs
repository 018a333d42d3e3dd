//! Gradients to integer sketches: Fisher whitening, learned subspace, query sketches.
//!
//! Who moved an answer, and by how much? The gradient of the answer's loss says
//! in which direction the adapter would have to move to make the answer more
//! likely; a record whose gradient points the same way, in the metric of the
//! Fisher information, made it more likely. Both are reduced to 256 small
//! integers, so that the chain can recompute all scores.
//!
//! - [`rows`], [`mod@fit`], [`map`]: the method on plain gradient rows, of any
//!   model.
//! - [`reduce`]: shortens the gradient of LoRA factors before it is fitted.
//! - [`method`], [`record`], [`query`]: the same for an adapter on a language
//!   model: its records' sketches, and the sketch of an answer.
//! - [`checkpoint`]: at which parameters the gradients are taken.
//! - [`kronecker`]: curvature of adapters of any size, within a memory budget.
//! - [`placebo`]: what chance pays, and nobody should get.
//! - [`scorer`]: an answer's nets and best records among millions.
//! - [`context`]: how much an answer leant on each passage that it was given.
//! - [`self_query`]: the acceptance measure.
//!
//! Synchronous. The only files are those of finished gradients, in a folder that
//! the caller names.

pub mod checkpoint;
pub mod context;
pub mod fit;
pub mod kronecker;
mod linalg;
// Beside the module and not in it, because the benchmark `truth` includes its file.
#[cfg(test)]
#[path = "linalg/tests.rs"]
mod linalg_tests;
pub mod map;
pub mod method;
pub mod placebo;
pub mod query;
mod random;
pub mod record;
pub mod reduce;
pub mod rows;
pub mod scorer;
pub mod self_query;
mod work;
