//! Tests of the crate's boundary: models of every family against the files that
//! transformers and PEFT left in `fixtures/families`.
#![expect(
    clippy::unwrap_used,
    reason = "helpers of tests: a broken fixture should fail them"
)]

mod families;
mod fixture;
mod gguf;
mod gguf_adapters;
mod published;
