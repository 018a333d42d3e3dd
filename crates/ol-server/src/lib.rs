//! The HTTP edge: the OpenAI-compatible API with its gateway, and eth JSON-RPC.
//!
//! Only this crate knows HTTP and JSON shapes.
//!
//! - [`answer`]: what is asked and how it is answered, paid or not.
//! - [`api`]: the OpenAI-compatible endpoints.
//! - [`Backend`]: where tokens come from.
//! - [`eth`]: Ethereum JSON-RPC over a node.
//! - [`Access`]: which host names and which pages may ask; for both.
//! - [`evidence`]: who is paid for spans and context, and what shows it.
//! - [`fleet`]: many workers behind one backend.
//! - [`follow`]: following another node over its JSON-RPC.
//! - [`keys`]: API keys, their scopes, limits and budgets.
//! - [`gateway`]: prepaid balances, receipts and their settlement; no HTTP.
//! - [`metrics`]: what is measured, for Prometheus.
//! - [`optimistic`]: indexes of millions of records, and claims about them.
//! - [`plain`]: answers without payment; no HTTP.
//! - [`retrieval`]: passages of datanets for questions; no HTTP.
//! - [`SamplingRequest`], [`SamplingDefaults`]: how tokens are drawn, and who says so.
//! - [`verify`]: recomputing a receipt from public data; pure.
//!
//! # Invariants
//! - A paid request is settled, refused or pending, and never charged twice
//!   (invariant 10 of `ARCHITECTURE.md`); see [`gateway`].
//! - Every body, queue and connection has a limit; bytes from outside never cause
//!   a panic (invariant 9).
//! - No prompt, answer or key is logged.

pub mod answer;
pub mod api;
mod backend;
mod edge;
pub mod eth;
pub mod evidence;
pub mod fleet;
pub mod follow;
pub mod gateway;
pub mod keys;
pub mod metrics;
pub mod optimistic;
pub mod plain;
mod prepare;
pub mod retrieval;
mod sampling;
pub mod verify;

pub use backend::Backend;
pub use edge::{Access, AccessError, Patience};
pub use sampling::{SamplingDefaults, SamplingRequest};
