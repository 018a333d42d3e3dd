//! What is asked of the engine, and what it answers.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;

use crate::adapters::{AdapterError, AdapterRef};
use crate::constraint::ConstraintError;
use crate::engine::Priority;
use crate::sampler::{DrawError, Sampling, SamplingError, TokenLogprobs, UnusableLogits};

/// Most stop strings of one request.
pub const MAX_STOP_STRINGS: usize = 16;

/// Longest stop string, in bytes.
pub const MAX_STOP_STRING_BYTES: usize = 256;

/// One answer to generate.
#[derive(Clone)]
pub struct GenerateRequest {
    /// The prompt, ready for the model; not empty.
    pub prompt_tokens: Vec<u32>,
    /// Adapter over the base model, or the base model itself. It must have been
    /// made for this base model's configuration.
    pub adapter: Option<AdapterRef>,
    /// How tokens are drawn.
    pub sampling: Sampling,
    /// Most tokens of the answer, at least 1.
    pub max_tokens: usize,
    /// Strings that end the answer; they are not part of it.
    pub stop: Vec<String>,
    /// Whose request it is: tenants share the engine fairly, whatever each of
    /// them asks for.
    pub tenant: Arc<str>,
    /// How urgent it is.
    pub priority: Priority,
    /// How long after its arrival it may take; then it ends with what there is,
    /// or fails if there is nothing.
    pub timeout: Option<Duration>,
    /// With whom the keys and values of its text may be shared.
    pub sharing: Sharing,
}

impl GenerateRequest {
    /// The likeliest tokens of the base model, for nobody in particular.
    #[must_use]
    pub fn new(prompt_tokens: Vec<u32>, max_tokens: usize) -> Self {
        Self {
            prompt_tokens,
            adapter: None,
            sampling: Sampling::GREEDY,
            max_tokens,
            stop: Vec::new(),
            tenant: Arc::from(""),
            priority: Priority::Normal,
            timeout: None,
            sharing: Sharing::Tenant,
        }
    }
}

/// Which other requests may begin with the keys and values that one computed.
///
/// What is shared never changes an answer, but a prompt that was seen before is
/// answered sooner: with [`Sharing::Everyone`], who can send requests and measure
/// time can learn whether another tenant's prompt began with a given text.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub enum Sharing {
    /// Those of the same tenant. The default.
    #[default]
    Tenant,
    /// All: for prompts that are no secret, as a public system prompt.
    Everyone,
    /// None, and nothing is kept.
    Nobody,
}

// Prompts are private: they stay out of logs, whoever prints a request.
impl fmt::Debug for GenerateRequest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("GenerateRequest")
            .field("n_prompt_tokens", &self.prompt_tokens.len())
            .field("has_adapter", &self.adapter.is_some())
            .field("sampling", &self.sampling)
            .field("max_tokens", &self.max_tokens)
            .field("n_stop", &self.stop.len())
            .field("priority", &self.priority)
            .field("timeout", &self.timeout)
            .finish_non_exhaustive()
    }
}

/// Why a request was not taken on. Nothing was computed.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum SubmitError {
    /// A limit of the waiting queue is reached; try again later.
    #[error("{n_waiting} requests are waiting already; {limit}")]
    Overloaded {
        /// Requests waiting.
        n_waiting: usize,
        /// The limit that is reached.
        limit: OverloadLimit,
        /// When what waits now should have been answered, by the pace measured.
        retry_after: Duration,
    },
    /// Prompt and answer together do not fit.
    #[error(
        "{tokens_in} prompt tokens and up to {max_tokens} answer tokens exceed the context of {context_tokens}"
    )]
    TooLong {
        /// Tokens of the prompt.
        tokens_in: usize,
        /// Most tokens of the answer.
        max_tokens: usize,
        /// What fits.
        context_tokens: usize,
    },
    /// There is nothing to continue.
    #[error("the prompt is empty")]
    EmptyPrompt,
    /// At least one token must be asked for.
    #[error("max_tokens must be at least 1")]
    NoTokens,
    /// A token id outside the vocabulary.
    #[error("token {id} is outside the vocabulary of {n_vocab}")]
    UnknownToken {
        /// The id given.
        id: u32,
        /// Ids the model knows.
        n_vocab: usize,
    },
    /// Too many stop strings, or one that is empty or too long.
    #[error(
        "at most {MAX_STOP_STRINGS} stop strings of 1 to {MAX_STOP_STRING_BYTES} bytes are allowed"
    )]
    Stop,
    /// A sampling parameter is out of range.
    #[error(transparent)]
    Sampling(#[from] SamplingError),
    /// The adapter was made for another shape of model.
    #[error("the adapter does not fit the base model")]
    Adapter,
    /// The engine is shutting down, or has failed.
    #[error("the engine is stopped")]
    Stopped,
    /// No worker that could compute it is there now; try again later.
    #[error("no worker can take the request now")]
    Unavailable,
}

/// A limit of the waiting queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum OverloadLimit {
    /// Of all requests.
    #[error("there is no room for more")]
    Requests,
    /// Of one tenant's requests.
    #[error("there is no room for more of this tenant")]
    Tenant,
    /// Of the tokens of all prompts.
    #[error("there is no room for so many prompt tokens")]
    Tokens,
}

/// Why a running request ended without an answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum GenerateError {
    /// The adapter could not be brought into memory.
    #[error(transparent)]
    Adapter(#[from] AdapterError),
    /// The model computed something that is not a number.
    #[error(transparent)]
    Logits(#[from] UnusableLogits),
    /// The form asked for could not be followed.
    #[error(transparent)]
    Constraint(#[from] ConstraintError),
    /// The model refused the forward pass: a defect.
    #[error("the model refused the forward pass")]
    Forward,
    /// The time that the request had was over before its first token.
    #[error("the request's time was over before its first token")]
    Deadline,
    /// The engine stopped before the answer was finished.
    #[error("the engine stopped before the answer was finished")]
    Stopped,
    /// Every worker that could compute the answer has failed.
    #[error("the worker failed before the answer was finished")]
    Worker,
    /// A worker answered what cannot be true: other tokens than there are, more
    /// than were asked for, another model.
    #[error("the worker's answer makes no sense")]
    Lied,
}

impl From<DrawError> for GenerateError {
    fn from(error: DrawError) -> Self {
        match error {
            DrawError::Logits(error) => error.into(),
            DrawError::Constraint(error) => error.into(),
        }
    }
}

/// Why an answer ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FinishReason {
    /// The model ended it, or a stop string was reached.
    Stop,
    /// `max_tokens` were generated.
    Length,
    /// The request's time is over; this is what there was by then.
    Deadline,
}

/// What the request itself asked an answer to end at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StopReason {
    /// One of [`GenerateRequest::stop`].
    Text(String),
    /// One of [`Sampling::stop_token_ids`].
    Token(u32),
}

/// A finished answer, as it is accounted for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Completion {
    /// Why it ended.
    pub finish_reason: FinishReason,
    /// What of the request ended it; `None` for the model's own end, a complete
    /// form, and every other reason.
    pub stop_reason: Option<StopReason>,
    /// Text not sent before: what was held back for a stop string or for the
    /// rest of a character.
    pub text_delta: String,
    /// Tokens of the prompt.
    pub tokens_in: usize,
    /// How many of them were in the prefix cache when the request started. The
    /// answer does not depend on it.
    pub tokens_cached: usize,
    /// Every token generated, in order, without the end token but with those of
    /// a stop string.
    pub token_ids: Vec<u32>,
}

impl Completion {
    /// Tokens generated: the length of `token_ids`.
    #[must_use]
    pub const fn tokens_out(&self) -> usize {
        self.token_ids.len()
    }
}

/// Something that happened to a request. `Done` and `Failed` are the last.
#[derive(Debug, Clone, PartialEq)]
pub enum Event {
    /// A token was generated.
    Token {
        /// Its id.
        id: u32,
        /// Text that may be shown now: whole characters; often, but not always,
        /// this token's.
        text_delta: String,
        /// How likely it was, if the request asks for it.
        logprobs: Option<Box<TokenLogprobs>>,
    },
    /// The answer is finished.
    Done(Completion),
    /// The answer cannot be finished.
    Failed(GenerateError),
}

/// The events of one request, in order. Dropping it cancels the request.
#[derive(Debug)]
pub struct Answer {
    events: mpsc::Receiver<Event>,
}

impl Answer {
    /// An answer whose events come from elsewhere than an engine. When it is
    /// dropped the channel closes, and whoever sends should stop.
    #[must_use]
    pub const fn from_events(events: mpsc::Receiver<Event>) -> Self {
        Self { events }
    }

    /// The next event; `None` after the last.
    pub async fn next(&mut self) -> Option<Event> {
        self.events.recv().await
    }

    /// The next event, for callers that are not async.
    ///
    /// # Panics
    /// If called on an async thread.
    pub fn blocking_next(&mut self) -> Option<Event> {
        self.events.blocking_recv()
    }

    /// Waits for the end: the whole text and the accounts.
    ///
    /// # Errors
    /// [`GenerateError`] if the answer could not be finished.
    ///
    /// # Panics
    /// If called on an async thread.
    pub fn blocking_collect(mut self) -> Result<(String, Completion), GenerateError> {
        let mut text = String::new();
        while let Some(event) = self.blocking_next() {
            match event {
                Event::Token { text_delta, .. } => text.push_str(&text_delta),
                Event::Done(completion) => {
                    text.push_str(&completion.text_delta);
                    return Ok((text, completion));
                }
                Event::Failed(error) => return Err(error),
            }
        }
        Err(GenerateError::Stopped)
    }
}
