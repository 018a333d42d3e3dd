//! Tests of the crate's boundary: runs beside those of transformers + PEFT, on
//! quantised bases, runs and jobs that are killed, and the memory that they take.
#![expect(
    clippy::unwrap_used,
    reason = "helpers of tests: a broken fixture should fail them"
)]

mod crash;
mod memory;
#[expect(dead_code, reason = "unit tests use the rest")]
mod models;
mod preference;
mod qlora;
mod resume;
mod setting;
mod support;
mod trajectory;
