//! OpenLoRA in its smallest honest form: one base model, many adapters, one
//! batch.
//!
//! The [`EngineHandle`] decodes all running requests together, whatever adapter
//! each uses (continuous batching: newcomers are prefilled in the same forward
//! pass that decodes the others). Everything is bounded: rows in a batch, tokens
//! of KV cache, waiting requests, tokens per pass. Past a bound a request is
//! refused as [`SubmitError::Overloaded`].
//!
//! # Invariants
//! - A request's tokens depend on its prompt, adapter, sampling and the base
//!   model only: never on what else is in the batch (invariant 5 of
//!   `ARCHITECTURE.md`). Each request draws from its own counter-based generator.
//! - A request keeps the version of the adapter that it resolved, whatever its
//!   name stands for later.
//! - Text is sent in whole characters, and never past a stop string.
//!
//! No HTTP, no money and no clock here: that is `ol-server`.

mod adapters;
mod constraint;
mod engine;
mod request;
mod sampler;
mod stop;

pub use adapters::{
    AdapterError, AdapterLease, AdapterRef, AdapterStore, AdapterStoreOptions,
    MAX_ADAPTER_NAME_BYTES,
};
pub use constraint::{
    Constraint, ConstraintCompiler, ConstraintError, Grammar, GrammarError, MAX_CHOICES,
    MAX_GRAMMAR_SIZE_BYTES,
};
pub use engine::{
    EngineHandle, EngineOptions, EngineParts, EngineStats, Observation, Observer, Priority,
    Scheduler, StartError, Turn,
};
pub use request::{
    Answer, Completion, Event, FinishReason, GenerateError, GenerateRequest, MAX_STOP_STRING_BYTES,
    MAX_STOP_STRINGS, OverloadLimit, Sharing, SubmitError,
};
pub use sampler::{
    DrawError, MAX_LOGIT_BIAS, MAX_LOGIT_BIASES, MAX_LOGPROBS, MAX_STOP_TOKENS, Sampler, Sampling,
    SamplingError, TokenLogprobs, UnusableLogits,
};
pub use stop::{Filtered, StopFilter};
