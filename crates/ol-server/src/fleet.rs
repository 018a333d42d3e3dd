//! Many workers behind one backend: `openledger serve` processes or vLLM
//! servers, each with the same base model.
//!
//! # Where a request goes
//! Each adapter has an order of its own over all workers (rendezvous hashing);
//! the first whose load stays within its part and a quarter gets the request,
//! so that an adapter stays where it is loaded until it is too popular for one
//! worker. A worker gets at most its slots; past them requests wait, in order
//! of arrival; past the queue they are refused as overloaded.
//!
//! # What fails
//! - A worker that fails before the first token: the request goes to another
//!   one, at most [`FleetOptions::n_tries_max`] in all, and only while most
//!   requests succeed. The prompt, the seed and every other parameter are the
//!   same, so an own worker gives the same tokens.
//! - After the first token: the request fails. Nothing is charged for it.
//! - A worker that fails again and again is left alone for a while (circuit
//!   breaker), one that does not answer `GET /health` until it does.
//! - A worker may lie: ids outside the vocabulary, more tokens than asked for,
//!   another model or prompt, lines or bodies without end. That is a failure
//!   like others. What cannot be seen here is a worker that computes something
//!   else: workers are trusted with the tokens.
//! - When whoever asked has left, the connection to the worker is closed, which
//!   tells it to stop.
//!
//! No money here: the gateway writes receipts for the tokens it was given.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use ol_model::Tokenizer;
use ol_runtime::Clock;
use ol_serve::{Answer, EngineStats, GenerateRequest, SubmitError};
use ol_types::B256;
use tokio::sync::mpsc;
use tokio::task::AbortHandle;

pub use self::config::{ConfigError, WORKERS_MAX, WorkerKind, WorkerOptions, workers_from_toml};
pub use self::pool::{WorkerHealth, WorkerStatus};

use self::adapters::Published;
use self::client::Client;
use self::pool::{Pool, Worker};

mod adapters;
mod attempt;
mod breaker;
mod client;
mod config;
mod health;
mod lines;
mod pool;
mod protocol;
mod route;
mod transcript;

/// The fleet's workers and limits.
#[derive(Debug, Clone)]
pub struct FleetOptions {
    /// The workers.
    pub workers: Vec<WorkerOptions>,
    /// Hash of the base model that they serve.
    pub base_hash: B256,
    /// Tokenizer of the base model.
    pub tokenizer: Arc<Tokenizer>,
    /// Tokens of the base model's vocabulary.
    pub n_vocab: usize,
    /// The longest prompt and answer together, in tokens.
    pub context_tokens: usize,
    /// Folder in which adapters are put for workers to read, each under the hash
    /// of its content.
    pub adapter_dir: PathBuf,
    /// Most requests waiting for a place at a worker. Default 256.
    pub n_waiting_max: usize,
    /// Most workers that one request is tried at. Default 3.
    pub n_tries_max: usize,
    /// How long a request waits for places, in all. Default 30 s.
    pub queue_timeout: Duration,
    /// How long a worker may take to its first token. Default 120 s.
    pub first_token_timeout: Duration,
    /// How long it may take between tokens. Default 60 s.
    pub idle_timeout: Duration,
    /// How often workers are asked whether they are there. Default 1 s.
    pub probe_interval: Duration,
}

impl FleetOptions {
    /// The defaults, for these workers and this base model.
    #[must_use]
    pub fn new(
        workers: Vec<WorkerOptions>,
        base_hash: B256,
        tokenizer: Arc<Tokenizer>,
        (n_vocab, context_tokens): (usize, usize),
        adapter_dir: PathBuf,
    ) -> Self {
        Self {
            workers,
            base_hash,
            tokenizer,
            n_vocab,
            context_tokens,
            adapter_dir,
            n_waiting_max: 256,
            n_tries_max: 3,
            queue_timeout: Duration::from_secs(30),
            first_token_timeout: Duration::from_secs(120),
            idle_timeout: Duration::from_secs(60),
            probe_interval: Duration::from_secs(1),
        }
    }
}

/// Many workers; clones share it.
#[derive(Debug, Clone)]
pub struct Fleet {
    inner: Arc<Inner>,
    /// Ends the probes with the last handle.
    _watch: Arc<AbortOnDrop>,
}

#[derive(Debug)]
struct Inner {
    options: FleetOptions,
    clock: Arc<dyn Clock>,
    pool: Arc<Pool>,
    published: Published,
    is_closing: AtomicBool,
}

#[derive(Debug)]
struct AbortOnDrop(AbortHandle);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Fleet {
    /// Checks the description of the workers, asks each whether it is there, and
    /// begins to watch them. A worker that is not there yet may come later.
    ///
    /// # Errors
    /// [`ConfigError`].
    pub async fn start(
        mut options: FleetOptions,
        clock: Arc<dyn Clock>,
    ) -> Result<Self, ConfigError> {
        options.workers = config::check(options.workers)?;
        let worker = |options: &WorkerOptions| {
            let (key, admin_key) = (options.key.as_deref(), options.admin_key.as_deref());
            Ok(Worker {
                client: Client::new(options.authority()?, key, admin_key),
                loading: tokio::sync::Mutex::default(),
                options: options.clone(),
            })
        };
        let workers = options.workers.iter().map(worker);
        let workers = workers.collect::<Result<_, ConfigError>>()?;
        let pool = Arc::new(Pool::new(workers, Arc::clone(&clock)));
        health::probe_all(&pool).await;
        let (watched, interval) = (Arc::clone(&pool), options.probe_interval);
        let watch = tokio::spawn(async move {
            loop {
                tokio::time::sleep(interval).await;
                health::probe_all(&watched).await;
            }
        });
        let inner = Inner {
            published: Published::new(options.adapter_dir.clone()),
            options,
            clock,
            pool,
            is_closing: AtomicBool::new(false),
        };
        Ok(Self {
            inner: Arc::new(inner),
            _watch: Arc::new(AbortOnDrop(watch.abort_handle())),
        })
    }

    /// Takes a request on, to start as soon as a worker has room. Must be called
    /// inside of a tokio runtime.
    ///
    /// # Errors
    /// [`SubmitError`] if the request is too long or asks for what workers cannot
    /// do, the queue is full, or no worker is there.
    pub fn submit(&self, request: GenerateRequest) -> Result<Answer, SubmitError> {
        if self.inner.is_closing.load(Ordering::Acquire) {
            return Err(SubmitError::Stopped);
        }
        self.check(&request)?;
        let ticket = self.inner.pool.admit(self.inner.options.n_waiting_max)?;
        // Room for every event there can be, so a slow reader holds up nobody.
        let (events, receiver) = mpsc::channel(request.max_tokens + 1);
        let inner = Arc::clone(&self.inner);
        tokio::spawn(attempt::run(inner, ticket, request, events));
        Ok(Answer::from_events(receiver))
    }

    fn check(&self, request: &GenerateRequest) -> Result<(), SubmitError> {
        request.sampling.validate()?;
        let (tokens_in, max_tokens) = (request.prompt_tokens.len(), request.max_tokens);
        if max_tokens == 0 {
            return Err(SubmitError::NoTokens);
        }
        if tokens_in == 0 {
            return Err(SubmitError::EmptyPrompt);
        }
        let context_tokens = self.inner.options.context_tokens;
        if tokens_in.saturating_add(max_tokens) > context_tokens {
            return Err(SubmitError::TooLong {
                tokens_in,
                max_tokens,
                context_tokens,
            });
        }
        let n_vocab = self.inner.options.n_vocab;
        let mut ids = request.prompt_tokens.iter();
        match ids.find(|&&id| id as usize >= n_vocab) {
            Some(&id) => Err(SubmitError::UnknownToken { id, n_vocab }),
            None => Ok(()),
        }
    }

    /// Hash of the base model that the workers serve.
    #[must_use]
    pub fn base_hash(&self) -> B256 {
        self.inner.options.base_hash
    }

    /// The tokenizer of the base model.
    #[must_use]
    pub fn tokenizer(&self) -> &Arc<Tokenizer> {
        &self.inner.options.tokenizer
    }

    /// The longest prompt and answer together, in tokens.
    #[must_use]
    pub fn context_tokens(&self) -> usize {
        self.inner.options.context_tokens
    }

    /// How many requests run and wait.
    #[must_use]
    pub fn stats(&self) -> EngineStats {
        let (n_requests, n_waiting) = self.inner.pool.load();
        EngineStats {
            n_running: n_requests - n_waiting,
            n_waiting,
            ..EngineStats::default()
        }
    }

    /// How the workers are doing.
    #[must_use]
    pub fn status(&self) -> Vec<WorkerStatus> {
        self.inner.pool.status()
    }

    /// Stops (or starts again) giving requests to the worker of this name; what
    /// it runs is finished. `None` if there is none.
    #[must_use]
    pub fn set_drained(&self, name: &str, is_drained: bool) -> Option<WorkerStatus> {
        self.inner.pool.set_drained(name, is_drained)
    }

    /// True until a shutdown is asked for.
    #[must_use]
    pub fn is_running(&self) -> bool {
        !self.inner.is_closing.load(Ordering::Acquire)
    }

    /// Takes no more requests, and returns when the running ones are over.
    pub async fn shutdown(&self) {
        self.inner.is_closing.store(true, Ordering::Release);
        loop {
            let changed = self.inner.pool.changed();
            if self.inner.pool.load().0 == 0 {
                return;
            }
            changed.await;
        }
    }
}
