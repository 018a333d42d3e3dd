//! Goal: the engine gives every request exactly what it would get alone, keeps
//! its limits, and lets nobody wait for ever.
//! Method: a small random model with random adapters; an oracle that decodes one
//! request at a time with the plain forward pass.

#![expect(
    clippy::unwrap_used,
    reason = "helpers of tests, outside of test functions"
)]

mod drive;
mod interleave;
mod lifecycle;
mod oracle;
mod policy;
mod random;
mod reported;
mod support;
