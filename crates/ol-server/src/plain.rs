//! Answers without payment: an engine, adapters by name, no chain.
//!
//! The same API as the paying gateway's ([`crate::gateway`]), without receipts.

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use ol_runtime::Clock;
use ol_serve::{
    AdapterError, AdapterRef, AdapterStore, Answer, Event, GenerateError, GenerateRequest,
    RegisterOptions,
};
use ol_types::B256;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::answer::{AnswerRequest, Finished, Frame, RequestError, Token};
use crate::backend::Backend;
use crate::keys::{Admission, ApiKeys, Cost, Key, KeysError, Meter};
use crate::prepare::{Prepared, Preparer};
use crate::retrieval::Retrieval;
use crate::sampling::SamplingDefaults;

pub(crate) use self::embed::EmbedError;
use self::embed::Embedder;

mod embed;

/// Limits and names of a plain service.
#[derive(Debug, Clone)]
pub struct PlainOptions {
    /// Folder of the keys.
    pub dir: PathBuf,
    /// Whether who has no key may ask. Admin calls need one always.
    /// Default false.
    pub is_open: bool,
    /// What the base model is called; adapters have their own names.
    pub base_name: String,
    /// Whether a name that is not registered is looked for as a folder below the
    /// roots of the adapters, and registered from there. Default false.
    pub loads_on_demand: bool,
    /// Tokens of an answer when the request does not say. Default 256.
    pub max_tokens_default: usize,
    /// How tokens are drawn when the request does not say.
    pub sampling_defaults: SamplingDefaults,
    /// Most requests at once. Default 512.
    pub n_requests_max: usize,
    /// Threads for embeddings. Default 1.
    pub n_embed_threads: usize,
    /// Datanets that questions may be given passages of. Default none.
    pub retrieval: Retrieval,
}

impl PlainOptions {
    /// The defaults, for a base model of this name, with keys kept in `dir`.
    #[must_use]
    pub fn new(dir: PathBuf, base_name: &str) -> Self {
        Self {
            dir,
            is_open: false,
            loads_on_demand: false,
            base_name: base_name.to_owned(),
            max_tokens_default: 256,
            sampling_defaults: SamplingDefaults::default(),
            n_requests_max: 512,
            n_embed_threads: 1,
            retrieval: Retrieval::default(),
        }
    }
}

/// A service without payment; clones share it.
#[derive(Debug, Clone)]
pub struct Plain {
    inner: Arc<Inner>,
}

struct Inner {
    options: PlainOptions,
    backend: Backend,
    preparer: Arc<Preparer>,
    adapters: AdapterStore,
    keys: ApiKeys,
    meter: Arc<Meter>,
    clock: Arc<dyn Clock>,
    requests: Arc<Semaphore>,
    embedder: Embedder,
    is_stopping: AtomicBool,
    started_at_s: u64,
}

impl fmt::Debug for Inner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Plain")
            .field("options", &self.options)
            .finish_non_exhaustive()
    }
}

impl Plain {
    /// A service that takes its tokens from `backend`.
    ///
    /// # Errors
    /// [`KeysError`] if keys or what they have used cannot be read.
    pub fn new(
        options: PlainOptions,
        backend: impl Into<Backend>,
        adapters: AdapterStore,
        clock: Arc<dyn Clock>,
    ) -> Result<Self, KeysError> {
        let backend = backend.into();
        let inner = Inner {
            preparer: Arc::new(Preparer::new(
                &backend,
                options.max_tokens_default,
                options.sampling_defaults,
            )),
            requests: Arc::new(Semaphore::new(options.n_requests_max)),
            started_at_s: clock.unix_s(),
            embedder: Embedder::default(),
            is_stopping: AtomicBool::new(false),
            keys: ApiKeys::open(&options.dir)?,
            meter: Meter::open(&options.dir, Arc::clone(&clock))?,
            options,
            backend,
            adapters,
            clock,
        };
        Ok(Self {
            inner: Arc::new(inner),
        })
    }

    /// What the base model is called.
    #[must_use]
    pub fn base_name(&self) -> &str {
        &self.inner.options.base_name
    }

    /// The API keys.
    #[must_use]
    pub fn keys(&self) -> &ApiKeys {
        &self.inner.keys
    }

    /// What the keys use.
    pub(crate) fn meter(&self) -> &Meter {
        &self.inner.meter
    }

    /// Whether who has no key may ask.
    pub(crate) fn is_open(&self) -> bool {
        self.inner.options.is_open
    }

    /// The adapters that can be asked for.
    #[must_use]
    pub fn adapters(&self) -> &AdapterStore {
        &self.inner.adapters
    }

    /// Where its tokens come from.
    #[must_use]
    pub fn backend(&self) -> &Backend {
        &self.inner.backend
    }

    /// When the service started: Unix time in seconds.
    #[must_use]
    pub fn started_at_s(&self) -> u64 {
        self.inner.started_at_s
    }

    pub(crate) fn clock(&self) -> &Arc<dyn Clock> {
        &self.inner.clock
    }

    /// The datanets that questions may be given passages of.
    #[must_use]
    pub fn retrieval(&self) -> &Retrieval {
        &self.inner.options.retrieval
    }

    pub(crate) fn preparer(&self) -> &Arc<Preparer> {
        &self.inner.preparer
    }

    /// Whether requests can be answered.
    #[must_use]
    pub fn is_healthy(&self) -> bool {
        !self.inner.is_stopping.load(Ordering::Acquire) && self.inner.backend.is_running()
    }

    /// Requests that are being answered.
    #[must_use]
    pub fn n_requests(&self) -> usize {
        let n_free = self.inner.requests.available_permits();
        self.inner.options.n_requests_max.saturating_sub(n_free)
    }

    /// Takes a request on.
    ///
    /// # Errors
    /// [`RequestError`]; nothing was computed then.
    pub async fn answer(&self, request: AnswerRequest) -> Result<PlainSession, RequestError> {
        if self.inner.is_stopping.load(Ordering::Acquire) {
            return Err(RequestError::Stopping);
        }
        let permit = Arc::clone(&self.inner.requests)
            .try_acquire_owned()
            .map_err(|_| RequestError::Overloaded)?;
        let inner = Arc::clone(&self.inner);
        // Tokenizing a megabyte is work for another thread.
        let started = tokio::task::spawn_blocking(move || inner.admit(request, permit));
        started.await.map_err(|_| RequestError::Internal)?
    }

    /// Takes no more requests, and returns when the running ones are over.
    pub async fn shutdown(&self) {
        self.inner.is_stopping.store(true, Ordering::Release);
        self.inner.backend.shutdown().await;
        let inner = Arc::clone(&self.inner);
        let _ = tokio::task::spawn_blocking(move || inner.meter.write(true)).await;
    }
}

impl Inner {
    fn adapter(&self, name: &str) -> Result<Option<AdapterRef>, RequestError> {
        if name == self.options.base_name {
            return Ok(None);
        }
        match self.adapters.resolve(name) {
            Ok(adapter) => Ok(Some(adapter)),
            Err(AdapterError::Unknown { name }) if self.options.loads_on_demand => {
                let found = self
                    .adapters
                    .register(&name, &name, RegisterOptions::default());
                // Another request may have registered it in between.
                let found = found.or_else(|error| self.adapters.resolve(&name).map_err(|_| error));
                found.map(Some).map_err(|error| {
                    // That it is not there is nobody's fault but who asks.
                    tracing::debug!(name, %error, "no adapter below the roots");
                    RequestError::UnknownModel { model: name }
                })
            }
            Err(AdapterError::Unknown { name }) => Err(RequestError::UnknownModel { model: name }),
            Err(error) => Err(error.into()),
        }
    }

    fn admit(
        &self,
        request: AnswerRequest,
        permit: OwnedSemaphorePermit,
    ) -> Result<PlainSession, RequestError> {
        let adapter = if request.adapters.is_empty() {
            self.adapter(&request.model)?
        } else if request.model == self.options.base_name {
            let parts: Vec<(&str, f32)> = request
                .adapters
                .iter()
                .map(|(name, weight)| (name.as_str(), *weight))
                .collect();
            Some(self.adapters.resolve_weighted(&parts)?)
        } else {
            return Err(RequestError::Unsupported {
                param: "adapters",
                what: "adapters are added up over the base model: ask for its name",
            });
        };
        let Prepared {
            prompt_tokens,
            max_tokens,
            mut sampling,
        } = self.preparer.prepare(&request)?;
        let tokens_in = prompt_tokens.len();
        let cost = Cost {
            tokens: (tokens_in as u64).saturating_add(max_tokens as u64),
            wei: 0,
        };
        let key = request.key.as_ref();
        let admission = key.map(|key| self.meter.begin(key, cost)).transpose()?;
        let id: [u8; 32] = ol_runtime::os_bytes().map_err(RequestError::Randomness)?;
        let (random, _) = id.split_first_chunk().expect("thirty-two bytes");
        sampling.seed = request.seed.unwrap_or(u64::from_be_bytes(*random));
        let answer = self.backend.submit(GenerateRequest {
            adapter,
            tenant: request
                .key
                .as_ref()
                .map_or_else(String::new, Key::short_id)
                .into(),
            sampling,
            stop: request.stop,
            timeout: request.timeout,
            priority: request.priority,
            ..GenerateRequest::new(prompt_tokens.clone(), max_tokens)
        })?;
        Ok(PlainSession {
            request_id: B256::from(id),
            prompt_tokens,
            answer,
            tokens_in,
            tokens_out: 0,
            admission,
            is_over: false,
            _permit: permit,
        })
    }
}

/// The client's end of a running request. Dropping it cancels the request.
#[derive(Debug)]
pub struct PlainSession {
    request_id: B256,
    prompt_tokens: Vec<u32>,
    answer: Answer,
    tokens_in: usize,
    tokens_out: u64,
    admission: Option<Admission>,
    is_over: bool,
    _permit: OwnedSemaphorePermit,
}

impl PlainSession {
    /// The request's id.
    #[must_use]
    pub const fn request_id(&self) -> B256 {
        self.request_id
    }

    /// The prompt.
    #[must_use]
    pub fn prompt_tokens(&self) -> &[u32] {
        &self.prompt_tokens
    }

    /// The next frame; `None` after the last.
    pub async fn next(&mut self) -> Option<Frame> {
        if self.is_over {
            return None;
        }
        let event = self.answer.next().await;
        let frame = match event {
            Some(Event::Token {
                id,
                text_delta: text,
                logprobs,
            }) => {
                self.tokens_out += 1;
                return Some(Frame::Token(Token { id, text, logprobs }));
            }
            Some(Event::Done(completion)) => Frame::Finished(Box::new(Finished {
                finish_reason: completion.finish_reason,
                tokens_in: u32::try_from(self.tokens_in).unwrap_or(u32::MAX),
                tokens_cached: u32::try_from(completion.tokens_cached).unwrap_or(u32::MAX),
                tokens_out: u32::try_from(completion.tokens_out()).unwrap_or(u32::MAX),
                text: completion.text_delta,
                stop_reason: completion.stop_reason,
                receipt: None,
            })),
            Some(Event::Failed(error)) => Frame::Failed(error.into()),
            None => Frame::Failed(GenerateError::Stopped.into()),
        };
        self.is_over = true;
        Some(frame)
    }
}

impl Drop for PlainSession {
    fn drop(&mut self) {
        // What was computed is used, whether or not the client stayed.
        if let Some(admission) = &mut self.admission {
            admission.settle(Cost {
                tokens: (self.tokens_in as u64).saturating_add(self.tokens_out),
                wei: 0,
            });
        }
    }
}
