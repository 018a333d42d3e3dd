//! OpenLoRA: one base model, many adapters, one batch.
//!
//! The [`EngineHandle`] decodes all running requests together, whatever adapter
//! each uses (continuous batching: newcomers are prefilled in the same forward
//! pass that decodes the others). Requests start by priority and by what their
//! tenant and adapter were served; they take pages of KV cache as they grow,
//! share those of what they begin alike with, and make room for others when
//! there is none left. Everything is bounded: rows in a batch, tokens of KV
//! cache, waiting requests, tokens per pass. Past a bound a request is refused
//! as [`SubmitError::Overloaded`], with the time after which to come again.
//!
//! # Invariants
//! - A request's tokens depend on its prompt, adapter, sampling and the base
//!   model only: never on what else is in the batch (invariant 5 of
//!   `ARCHITECTURE.md`). Each request draws from its own counter-based generator.
//! - A request keeps the version of the adapter that it resolved, whatever its
//!   name stands for later.
//! - Text is sent in whole characters, and never past a stop string.
//!
//! No HTTP and no money here: that is `ol-server`. The clock is passed in
//! ([`EngineParts`]).

mod adapters;
mod constraint;
mod engine;
mod request;
mod sampler;
mod stop;

pub use adapters::{
    AdapterComponents, AdapterDevice, AdapterError, AdapterFiles, AdapterInfo, AdapterLease,
    AdapterLoad, AdapterLoader, AdapterRef, AdapterSource, AdapterStats, AdapterStore,
    AdapterStoreOptions, LOAD_SECONDS, MAX_ADAPTER_NAME_BYTES, MAX_WEIGHTED_PARTS, ObjectsSource,
    RegisterOptions, TierStats,
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
    MAX_STOP_STRINGS, OverloadLimit, Sharing, StopReason, SubmitError,
};
pub use sampler::{
    DrawError, MAX_LOGIT_BIAS, MAX_LOGIT_BIASES, MAX_LOGPROBS, MAX_STOP_TOKENS, Sampler, Sampling,
    SamplingError, TokenLogprobs, UnusableLogits,
};
pub use stop::{Filtered, StopFilter};
