//! Tests of the crate's boundary.
#![expect(
    clippy::unwrap_used,
    reason = "helpers of tests: a broken fixture should fail them"
)]

mod trajectory;
