//! Goal: through HTTP, every good request is answered and paid for exactly once,
//! and every bad one gets a clear error and costs nothing.
//! Method: the real engine over a small random model, the real node with the
//! development genesis, real contracts; a client as a user would write it.

#![expect(
    clippy::unwrap_used,
    reason = "helpers of tests, outside of test functions"
)]

mod answers;
mod bad_input;
mod claims;
mod deferred;
mod eth;
mod fleet;
mod follow;
mod idempotency;
mod money;
mod plain;
mod retrieval;
mod soak;
mod support;
mod traces;
