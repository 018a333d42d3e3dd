//! Tests of the crate's boundary: runs beside those of transformers + PEFT, runs
//! that are killed, and the memory that they take.
#![expect(
    clippy::unwrap_used,
    reason = "helpers of tests: a broken fixture should fail them"
)]

mod memory;
mod preference;
mod resume;
mod setting;
mod trajectory;
