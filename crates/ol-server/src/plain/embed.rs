//! Embeddings from the base model: the hidden state of a text's last token,
//! which has seen all of it, scaled to length 1.

use std::sync::{Mutex, PoisonError};

use ol_model::{ForwardError, KvCache, Model, Pool, Segment};
use tokio::sync::Semaphore;

use super::{Inner, Plain};
use crate::answer::{Prompt, RequestError};
use crate::backend::Backend;
use crate::keys::{Cost, Key, LimitError};

/// Requests for embeddings that may wait for their turn.
const WAITING_MAX: usize = 64;

/// Tokens of one forward pass; longer texts take several.
const PASS_TOKENS: usize = 256;

/// Embeddings of texts.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Embedded {
    /// One for each text, `[texts, dimensions]`.
    pub(crate) vectors: Vec<Vec<f32>>,
    /// Tokens of all texts.
    pub(crate) n_tokens: usize,
}

/// Why there are no embeddings.
#[derive(Debug, thiserror::Error)]
pub(crate) enum EmbedError {
    #[error("the base model is not in this process, and only there embeddings are made")]
    Remote,
    #[error("too many requests for embeddings wait; try again later")]
    Overloaded,
    #[error("text {at} has {found} tokens, allowed are 1 to {max}")]
    Length { at: usize, found: usize, max: usize },
    #[error("token {id} of text {at} is outside the vocabulary")]
    Token { at: usize, id: u32 },
    #[error("an embedding has {max} dimensions, {found} were asked for")]
    Dimensions { found: usize, max: usize },
    #[error(transparent)]
    Limit(#[from] LimitError),
    #[error(transparent)]
    Request(#[from] RequestError),
    #[error("the model refused the texts")]
    Forward(#[from] ForwardError),
    #[error("the service is stopping")]
    Stopping,
}

/// Threads for embeddings, apart from the engine's.
#[derive(Debug)]
pub(super) struct Embedder {
    pool: Mutex<Option<Pool>>,
    turns: Semaphore,
    places: Semaphore,
}

impl Default for Embedder {
    fn default() -> Self {
        Self {
            pool: Mutex::default(),
            turns: Semaphore::new(1),
            places: Semaphore::new(WAITING_MAX),
        }
    }
}

impl Plain {
    /// Embeds texts, one request after the other.
    ///
    /// # Errors
    /// [`EmbedError`].
    pub(crate) async fn embed(
        &self,
        key: Option<Key>,
        texts: Vec<Prompt>,
        dimensions: Option<usize>,
    ) -> Result<Embedded, EmbedError> {
        let inner = std::sync::Arc::clone(&self.inner);
        let embedder = &self.inner.embedder;
        let _place = embedder
            .places
            .try_acquire()
            .map_err(|_| EmbedError::Overloaded)?;
        let _turn = embedder
            .turns
            .acquire()
            .await
            .map_err(|_| EmbedError::Stopping)?;
        let work = move || inner.embed(key.as_ref(), texts, dimensions);
        let embedded = tokio::task::spawn_blocking(work).await;
        embedded.map_err(|_| RequestError::Internal)?
    }
}

impl Inner {
    fn embed(
        &self,
        key: Option<&Key>,
        texts: Vec<Prompt>,
        dimensions: Option<usize>,
    ) -> Result<Embedded, EmbedError> {
        let Backend::Engine(engine) = &self.backend else {
            return Err(EmbedError::Remote);
        };
        let (model, max) = (engine.base(), engine.context_tokens());
        let width = model.config().hidden_size;
        let n_dimensions = dimensions.unwrap_or(width);
        if n_dimensions > width {
            return Err(EmbedError::Dimensions {
                found: n_dimensions,
                max: width,
            });
        }
        let tokens: Vec<Vec<u32>> = texts
            .iter()
            .map(|text| self.preparer.tokens(text))
            .collect::<Result<_, _>>()?;
        for (at, tokens) in tokens.iter().enumerate() {
            let found = tokens.len();
            if !(1..=max).contains(&found) {
                return Err(EmbedError::Length { at, found, max });
            }
            let is_known = |id: &&u32| (**id as usize) < model.config().vocab_size;
            if let Some(&id) = tokens.iter().find(|id| !is_known(id)) {
                return Err(EmbedError::Token { at, id });
            }
        }
        let n_tokens = tokens.iter().map(Vec::len).sum();
        let cost = Cost {
            tokens: n_tokens as u64,
            wei: 0,
        };
        let admission = key.map(|key| self.meter.begin(key, cost)).transpose()?;
        let mut pool = self
            .embedder
            .pool
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let pool = pool.get_or_insert_with(|| Pool::new(self.options.n_embed_threads));
        let vectors = tokens
            .iter()
            .map(|tokens| embed(model, pool, tokens, n_dimensions))
            .collect::<Result<_, _>>()?;
        if let Some(mut admission) = admission {
            admission.settle(cost);
        }
        Ok(Embedded { vectors, n_tokens })
    }
}

/// The first `n_dimensions` numbers of a text's embedding, of length 1.
fn embed(
    model: &Model,
    pool: &Pool,
    tokens: &[u32],
    n_dimensions: usize,
) -> Result<Vec<f32>, ForwardError> {
    let mut cache = KvCache::new(model.config(), tokens.len());
    let mut hidden = Vec::new();
    for tokens in tokens.chunks(PASS_TOKENS) {
        let mut segments = [Segment {
            tokens,
            cache: &mut cache,
            adapter: None,
        }];
        hidden = model.hidden(pool, &mut segments)?;
    }
    hidden.truncate(n_dimensions);
    let square: f64 = hidden.iter().map(|&x| f64::from(x) * f64::from(x)).sum();
    let length = square.sqrt();
    if length > 0.0 {
        for x in &mut hidden {
            #[expect(clippy::cast_possible_truncation, reason = "from -1 to 1")]
            {
                *x = (f64::from(*x) / length) as f32;
            }
        }
    }
    Ok(hidden)
}
