//! Passages of datanets for questions: which datanets there are, who may look
//! now, and how many passages fit beside the question.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use ol_model::{ChatOptions, ChatTemplateError, Conversation};
use ol_retrieval::{Hit, Method, Passage, RetrievalError, Retriever, prompt};
use ol_types::B256;
use serde_json::Value;
use tokio::sync::Semaphore;

use crate::answer::{Prompt, RequestError};
use crate::prepare::Preparer;

/// Searches at one time; each takes a thread.
const SEARCHES_MAX: usize = 2;

/// Searches that wait for their turn.
const WAITING_MAX: usize = 128;

/// The part of a context that stays free for an answer whose length the request
/// does not say: one in so many.
const ANSWER_PART: usize = 4;

/// The datanets that questions may be given passages of. Clones share them.
#[derive(Debug, Clone)]
pub struct Retrieval {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    retrievers: BTreeMap<String, Arc<Retriever>>,
    turns: Semaphore,
    places: Semaphore,
}

impl Default for Retrieval {
    fn default() -> Self {
        Self::new([])
    }
}

/// Which passages a request wants.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Wanted {
    pub(crate) datanet: String,
    pub(crate) top_k: usize,
    /// `None` takes the datanet's own.
    pub(crate) method: Option<Method>,
}

/// A conversation that is not yet in a model's format.
#[derive(Clone)]
pub(crate) struct Chat {
    /// As templates take them: contents are texts.
    pub(crate) messages: Vec<Value>,
    /// Descriptions for the template.
    pub(crate) tools: Vec<Value>,
    pub(crate) options: ChatOptions,
}

/// Why there are no passages.
#[derive(Debug, thiserror::Error)]
pub(crate) enum GroundError {
    #[error("{}", unknown(name, known))]
    Unknown { name: String, known: Vec<String> },
    #[error("retrieval needs a message of the user to look for")]
    NoQuestion,
    #[error("too many searches wait; try again later")]
    Overloaded,
    #[error(transparent)]
    Retrieval(#[from] RetrievalError),
    #[error(transparent)]
    Chat(#[from] ChatTemplateError),
    #[error(transparent)]
    Request(#[from] RequestError),
}

fn unknown(name: &str, known: &[String]) -> String {
    if known.is_empty() {
        "this server has no datanets to take passages of".to_owned()
    } else {
        let known = known.join(", ");
        format!("passages of {name:?} are not served here; those of {known} are")
    }
}

/// A conversation with passages before its last question.
#[derive(Debug)]
pub struct Grounded {
    retriever: Arc<Retriever>,
    method: Method,
    /// What was found and fits, best first.
    hits: Vec<Hit>,
    chat: Chat,
    /// Position of the message that the passages stand in.
    question_at: usize,
}

impl Retrieval {
    /// Serves passages of these datanets; of two of one name the later.
    #[must_use]
    pub fn new(retrievers: impl IntoIterator<Item = Retriever>) -> Self {
        let named = retrievers
            .into_iter()
            .map(|retriever| (retriever.datanet().to_owned(), Arc::new(retriever)));
        Self {
            inner: Arc::new(Inner {
                retrievers: named.collect(),
                turns: Semaphore::new(SEARCHES_MAX),
                places: Semaphore::new(SEARCHES_MAX + WAITING_MAX),
            }),
        }
    }

    /// The names of the datanets.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.inner.retrievers.keys().map(String::as_str)
    }

    /// Looks for passages for the last question of a chat, and keeps as many of
    /// the best as fit the context beside the chat and an answer of
    /// `max_tokens`.
    pub(crate) async fn ground(
        &self,
        chat: Chat,
        wanted: Wanted,
        preparer: &Arc<Preparer>,
        max_tokens: Option<usize>,
    ) -> Result<Grounded, GroundError> {
        let inner = &self.inner;
        let Some(retriever) = inner.retrievers.get(&wanted.datanet) else {
            return Err(GroundError::Unknown {
                known: self.names().map(str::to_owned).collect(),
                name: wanted.datanet,
            });
        };
        let is_user = |message: &Value| message["role"] == "user";
        let question_at = chat.messages.iter().rposition(is_user);
        let mut grounded = Grounded {
            retriever: Arc::clone(retriever),
            method: wanted.method.unwrap_or_else(|| retriever.default_method()),
            hits: Vec::new(),
            question_at: question_at.ok_or(GroundError::NoQuestion)?,
            chat,
        };
        let stopping = |_| GroundError::Request(RequestError::Stopping);
        let _place = inner
            .places
            .try_acquire()
            .map_err(|_| GroundError::Overloaded)?;
        let _turn = inner.turns.acquire().await.map_err(stopping)?;
        let preparer = Arc::clone(preparer);
        let work = tokio::task::spawn_blocking(move || {
            let (retriever, method) = (&grounded.retriever, grounded.method);
            grounded.hits = retriever.search(grounded.question(), wanted.top_k, method)?;
            grounded.fit(&preparer, max_tokens)?;
            Ok(grounded)
        });
        work.await
            .map_err(|_| GroundError::Request(RequestError::Internal))?
    }
}

impl Grounded {
    fn question(&self) -> &str {
        let message = &self.chat.messages[self.question_at];
        message["content"].as_str().unwrap_or_default()
    }

    /// Drops the lowest passages until the prompt leaves room for the answer.
    fn fit(&mut self, preparer: &Preparer, max_tokens: Option<usize>) -> Result<(), GroundError> {
        let context_tokens = preparer.context_tokens();
        let free = max_tokens.unwrap_or_else(|| {
            let part = context_tokens / ANSWER_PART;
            preparer.max_tokens_default().min(part)
        });
        while !self.hits.is_empty() {
            let prompt = self.prompt(&vec![true; self.hits.len()])?;
            let n_tokens = preparer.tokens(&prompt)?.len();
            if n_tokens.saturating_add(free) <= context_tokens {
                break;
            }
            self.hits.pop();
        }
        Ok(())
    }

    /// The conversation with those of the passages that `keep` says
    /// (`[passages]`); the others' numbers stay free.
    ///
    /// Passages are contents of a message: nothing in them becomes a control
    /// token (invariant 16 of `ARCHITECTURE.md`).
    pub(crate) fn prompt(&self, keep: &[bool]) -> Result<Prompt, ChatTemplateError> {
        let texts: Vec<Option<&str>> = self
            .passages()
            .zip(keep)
            .map(|((_, passage), keep)| keep.then_some(passage.text))
            .collect();
        let mut chat = self.chat.clone();
        let text = prompt::with_passages(self.question(), &texts);
        chat.messages[self.question_at]["content"] = Value::String(text);
        chat.prompt()
    }

    /// The passages in the prompt, best first, each with its hit.
    pub(crate) fn passages(&self) -> impl Iterator<Item = (Hit, Passage<'_>)> {
        let passages = self.retriever.passages();
        let found = self.hits.iter();
        found.filter_map(|hit| Some((*hit, passages.get(hit.passage)?)))
    }

    /// How many passages are in the prompt.
    pub(crate) const fn len(&self) -> usize {
        self.hits.len()
    }

    /// Name of the datanet.
    pub(crate) fn datanet(&self) -> &str {
        self.retriever.datanet()
    }

    /// Id of the version's manifest.
    pub(crate) fn version(&self) -> B256 {
        self.retriever.version()
    }

    /// How the passages were found.
    pub(crate) const fn method(&self) -> Method {
        self.method
    }
}

// Messages are private.
impl fmt::Debug for Chat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Chat({} messages)", self.messages.len())
    }
}

impl Chat {
    /// What the model is to continue.
    pub(crate) fn prompt(self) -> Result<Prompt, ChatTemplateError> {
        let messages = Value::Array(self.messages).to_string();
        let mut conversation = Conversation::from_json(&messages)?;
        if !self.tools.is_empty() {
            let tools = Value::Array(self.tools).to_string();
            conversation = conversation.with_tools(&tools)?;
        }
        Ok(Prompt::Chat(Box::new(conversation), self.options))
    }
}
