//! What is asked and how it is answered: the same with payment
//! ([`crate::gateway`]) and without ([`crate::plain`]).

use std::io;
use std::sync::Arc;
use std::time::Duration;

use ol_model::{ChatOptions, Conversation, TokenizerError};
use ol_serve::{
    AdapterError, FinishReason, GenerateError, Grammar, GrammarError, Priority, StopReason,
    SubmitError, TokenLogprobs,
};
use ol_types::Address;

use crate::gateway::{ChainError, ReceiptView};
use crate::keys::{Key, LimitError};
use crate::retrieval::Grounded;
use crate::sampling::SamplingRequest;

/// What to continue. Prints without its text, which is private.
#[derive(Clone)]
pub enum Prompt {
    /// A conversation, put into the base model's chat format.
    Chat(Box<Conversation>, ChatOptions),
    /// Plain text.
    Text(String),
    /// Token ids.
    Tokens(Vec<u32>),
}

impl std::fmt::Debug for Prompt {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Chat(..) => f.write_str("Chat(…)"),
            Self::Text(text) => write!(f, "Text({} bytes)", text.len()),
            Self::Tokens(tokens) => write!(f, "Tokens({})", tokens.len()),
        }
    }
}

/// One question.
#[derive(Debug, Clone)]
pub struct AnswerRequest {
    /// Name of the model.
    pub model: String,
    /// Adapters to be added up with these weights instead of the model's own.
    /// Only without payment: a receipt names one adapter.
    pub adapters: Vec<(String, f32)>,
    /// What to continue.
    pub prompt: Prompt,
    /// How tokens are drawn.
    pub sampling: SamplingRequest,
    /// Seed of the sampling; one from the operating system if absent.
    pub seed: Option<u64>,
    /// What the answer has to look like.
    pub grammar: Option<Grammar>,
    /// Most tokens of the answer; a default, cut to what the context leaves, if absent.
    pub max_tokens: Option<usize>,
    /// Strings that end the answer.
    pub stop: Vec<String>,
    /// How long the answer may take; then it ends with what there is.
    pub timeout: Option<Duration>,
    /// How urgent it is.
    pub priority: Priority,
    /// The key it came with, for its limits.
    pub key: Option<Key>,
    /// The passages in the prompt, if it was given any. Only a paid answer asks
    /// what it owes them.
    pub context: Option<Arc<Grounded>>,
    /// The client's own name for this request: asked again under the same name,
    /// it is answered again and not charged again. Only with payment.
    pub idempotency_key: Option<String>,
}

/// Why a request was not taken on. Nothing is charged.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RequestError {
    /// There is no such model here.
    #[error("there is no model {model:?}")]
    UnknownModel {
        /// The name asked for.
        model: String,
    },
    /// The model was changed on chain and the new version is not loaded yet.
    #[error("model {model:?} has a newer version on chain, which is not loaded here")]
    Outdated {
        /// Its name.
        model: String,
    },
    /// The prepaid balance does not cover the largest fee this request can cause.
    #[error(
        "the largest fee of this request is {needed_wei} wei, and the prepaid balance of {account} \
         has {available_wei} wei available: deposit OPEN, or ask for fewer tokens"
    )]
    InsufficientBalance {
        /// Who would pay.
        account: Address,
        /// The largest fee.
        needed_wei: u128,
        /// What is there beside the holds of other requests.
        available_wei: u128,
    },
    /// The model's answers are claimed, and the operator's bond does not cover one
    /// more claim.
    #[error(
        "an answer of model {model:?} is backed by a bond of up to {needed_wei} wei, and its \
         operator has {available_wei} wei available for it: try again when open claims are \
         closed, or ask another model"
    )]
    NoBond {
        /// Its name.
        model: String,
        /// What the claim of this request can take.
        needed_wei: u128,
        /// What is there beside the claims of others.
        available_wei: u128,
    },
    /// Too many requests, or too many receipts are owed.
    #[error("the gateway is overloaded, try again later")]
    Overloaded,
    /// The form that the answer is to have is none.
    #[error("the form asked for cannot be used: {0}")]
    Grammar(#[from] GrammarError),
    /// The service does not do this.
    #[error("{what}")]
    Unsupported {
        /// The parameter.
        param: &'static str,
        /// What is not done here.
        what: &'static str,
    },
    /// The prompt cannot be cut into tokens.
    #[error("the prompt cannot be cut into tokens")]
    Prompt(#[source] TokenizerError),
    /// A limit of the key is reached.
    #[error(transparent)]
    Limit(#[from] LimitError),
    /// The adapter cannot be had.
    #[error(transparent)]
    Adapter(#[from] AdapterError),
    /// The backend does not take the request.
    #[error(transparent)]
    Engine(#[from] SubmitError),
    /// The chain cannot be read.
    #[error(transparent)]
    Chain(#[from] ChainError),
    /// The operating system gave no randomness.
    #[error("the operating system gives no randomness")]
    Randomness(#[source] io::Error),
    /// A request with this idempotency key runs now.
    #[error("a request with this idempotency key is running; try again when it has ended")]
    InFlight,
    /// The idempotency key belongs to another question or to an older model.
    #[error("this idempotency key was used for another request, or the model has changed since")]
    KeyReused,
    /// The gateway is stopping.
    #[error("the gateway is stopping")]
    Stopping,
    /// A defect; the log says more.
    #[error("the request failed inside")]
    Internal,
}

impl From<TokenizerError> for RequestError {
    fn from(error: TokenizerError) -> Self {
        Self::Prompt(error)
    }
}

/// Something to pass on to the client. `Finished` and `Failed` are the last.
#[derive(Debug)]
pub enum Frame {
    /// A token of the answer.
    Token(Token),
    /// The answer is complete and accounted for.
    Finished(Box<Finished>),
    /// The answer cannot be finished; nothing is charged.
    Failed(SessionError),
}

/// A token of an answer.
#[derive(Debug)]
pub struct Token {
    /// Its id.
    pub id: u32,
    /// Text that may be shown now: often, but not always, this token's.
    pub text: String,
    /// How likely it was, if that was asked for.
    pub logprobs: Option<Box<TokenLogprobs>>,
}

/// How an answer ended.
#[derive(Debug)]
pub struct Finished {
    /// Why it ended.
    pub finish_reason: FinishReason,
    /// What of the request ended it; `None` for the model's own end and every
    /// other reason.
    pub stop_reason: Option<StopReason>,
    /// Text that was held back until the end.
    pub text: String,
    /// Tokens of the prompt.
    pub tokens_in: u32,
    /// Those of them whose keys and values were there from earlier prompts.
    pub tokens_cached: u32,
    /// Tokens of the answer.
    pub tokens_out: u32,
    /// Its receipt, where it was paid for.
    pub receipt: Option<ReceiptView>,
}

/// Why an answer could not be finished. Nothing is charged.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SessionError {
    /// The engine failed or stopped.
    #[error(transparent)]
    Generate(#[from] GenerateError),
    /// The receipt could not be made or kept; the log says why.
    #[error("the answer could not be accounted for")]
    Account,
    /// Asked again under the same idempotency key the answer came out
    /// differently: the request asks for another sampling.
    #[error("this idempotency key was used for a request with another sampling")]
    KeyReused,
}
