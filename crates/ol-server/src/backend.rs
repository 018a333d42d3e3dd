//! Where tokens come from: the one place where a request leaves for an engine.

use std::sync::Arc;

use ol_model::Tokenizer;
use ol_serve::{Answer, EngineHandle, EngineStats, GenerateRequest, SubmitError};
use ol_types::B256;

use crate::fleet::Fleet;

/// What generates tokens; clones share it.
///
/// Whatever it is, a request gives the same events in the same order, every
/// token with its id, and dropping the [`Answer`] cancels the request.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub enum Backend {
    /// The engine of this process.
    Engine(EngineHandle),
    /// Workers on this and other machines.
    Fleet(Fleet),
}

impl Backend {
    /// Takes a request on. Must be called inside of a tokio runtime.
    ///
    /// # Errors
    /// [`SubmitError`]; nothing was computed then.
    pub fn submit(&self, request: GenerateRequest) -> Result<Answer, SubmitError> {
        match self {
            Self::Engine(engine) => engine.submit(request),
            Self::Fleet(fleet) => fleet.submit(request),
        }
    }

    /// Hash of the base model that is served.
    #[must_use]
    pub fn base_hash(&self) -> B256 {
        match self {
            Self::Engine(engine) => engine.base().hash(),
            Self::Fleet(fleet) => fleet.base_hash(),
        }
    }

    /// The tokenizer of the base model.
    #[must_use]
    pub fn tokenizer(&self) -> &Arc<Tokenizer> {
        match self {
            Self::Engine(engine) => engine.tokenizer(),
            Self::Fleet(fleet) => fleet.tokenizer(),
        }
    }

    /// The longest prompt and answer together, in tokens.
    #[must_use]
    pub fn context_tokens(&self) -> usize {
        match self {
            Self::Engine(engine) => engine.context_tokens(),
            Self::Fleet(fleet) => fleet.context_tokens(),
        }
    }

    /// What is being generated.
    #[must_use]
    pub fn stats(&self) -> EngineStats {
        match self {
            Self::Engine(engine) => engine.stats(),
            Self::Fleet(fleet) => fleet.stats(),
        }
    }

    /// Whether requests can be answered.
    #[must_use]
    pub fn is_running(&self) -> bool {
        match self {
            Self::Engine(engine) => engine.is_running(),
            Self::Fleet(fleet) => fleet.is_running(),
        }
    }

    /// Takes no more requests, and returns when the running ones are over.
    pub async fn shutdown(&self) {
        match self {
            Self::Engine(engine) => {
                let engine = engine.clone();
                let stop = tokio::task::spawn_blocking(move || engine.shutdown());
                // A panic was reported by its hook, and nothing runs any more.
                let _ = stop.await;
            }
            Self::Fleet(fleet) => fleet.shutdown().await,
        }
    }
}

impl From<EngineHandle> for Backend {
    fn from(engine: EngineHandle) -> Self {
        Self::Engine(engine)
    }
}

impl From<Fleet> for Backend {
    fn from(fleet: Fleet) -> Self {
        Self::Fleet(fleet)
    }
}
