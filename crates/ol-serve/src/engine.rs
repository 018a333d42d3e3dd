//! The engine's thread, its waiting queue and the handle to it.

use std::collections::VecDeque;
use std::fmt;
use std::io;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::task::{Poll, Wake, Waker};
use std::thread::{self, JoinHandle};

use ol_model::{Model, Pool, Tokenizer};
use tokio::sync::mpsc;

use self::batch::Batch;
use crate::request::{
    Answer, Event, GenerateError, GenerateRequest, MAX_STOP_STRING_BYTES, MAX_STOP_STRINGS,
    SubmitError,
};

mod batch;

/// The engine's bounds.
#[derive(Debug, Clone)]
pub struct EngineOptions {
    /// Most requests decoded together. Default 16.
    pub n_rows_max: usize,
    /// Most tokens of KV cache over all running requests. Each reserves prompt
    /// plus `max_tokens` when it starts. Default 8,192.
    pub n_kv_tokens_max: usize,
    /// Most requests waiting to start. Default 64.
    pub n_waiting_max: usize,
    /// Most tokens of one forward pass: long prompts are prefilled in parts, so
    /// that running requests keep getting tokens. Default 256.
    pub n_step_tokens_max: usize,
}

impl Default for EngineOptions {
    fn default() -> Self {
        Self {
            n_rows_max: 16,
            n_kv_tokens_max: 8192,
            n_waiting_max: 64,
            n_step_tokens_max: 256,
        }
    }
}

/// Why the engine did not start.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StartError {
    /// A bound is zero, or a forward pass could not hold a token of every row.
    #[error(
        "engine bounds must be at least 1, and n_step_tokens_max at least n_rows_max: {options:?}"
    )]
    Options {
        /// The bounds given.
        options: EngineOptions,
    },
    /// The operating system gave no thread.
    #[error("could not start the engine's thread")]
    Thread(#[source] io::Error),
}

/// What the engine is doing.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct EngineStats {
    /// Requests being decoded.
    pub n_running: usize,
    /// Requests waiting to start.
    pub n_waiting: usize,
    /// Forward passes since the start.
    pub n_steps: u64,
    /// Prompt tokens prefilled since the start.
    pub n_tokens_in: u64,
    /// Tokens generated since the start.
    pub n_tokens_out: u64,
}

/// The way to the engine; clones share it.
///
/// When the last handle is dropped, the engine stops as by
/// [`EngineHandle::shutdown`].
#[derive(Clone)]
pub struct EngineHandle {
    inner: Arc<Inner>,
}

struct Inner {
    shared: Arc<Shared>,
    base: Arc<Model>,
    tokenizer: Arc<Tokenizer>,
    options: EngineOptions,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl fmt::Debug for EngineHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EngineHandle")
            .field("stats", &self.stats())
            .finish_non_exhaustive()
    }
}

impl EngineHandle {
    /// Starts the engine on a thread of its own, with `n_pool_threads` helpers.
    ///
    /// # Errors
    /// [`StartError`] if a bound makes no sense or no thread is to be had.
    pub fn start(
        base: Arc<Model>,
        tokenizer: Arc<Tokenizer>,
        n_pool_threads: usize,
        options: EngineOptions,
    ) -> Result<Self, StartError> {
        let bounds = [
            options.n_rows_max,
            options.n_kv_tokens_max,
            options.n_waiting_max,
        ];
        if bounds.contains(&0) || options.n_step_tokens_max < options.n_rows_max {
            return Err(StartError::Options { options });
        }
        let shared = Arc::new(Shared::default());
        let thread = {
            let (base, tokenizer) = (Arc::clone(&base), Arc::clone(&tokenizer));
            let (shared, options) = (Arc::clone(&shared), options.clone());
            thread::Builder::new()
                .name("ol-serve".to_owned())
                .spawn(move || {
                    let pool = Pool::new(n_pool_threads);
                    run(&shared, Batch::new(&base, &tokenizer, pool, options));
                })
                .map_err(StartError::Thread)?
        };
        let inner = Inner {
            shared,
            base,
            tokenizer,
            options,
            thread: Mutex::new(Some(thread)),
        };
        Ok(Self {
            inner: Arc::new(inner),
        })
    }

    /// Takes a request on, to start as soon as there is room; first come, first
    /// served.
    ///
    /// # Errors
    /// [`SubmitError`] if the request is invalid or too long, the queue is full,
    /// or the engine is stopped.
    pub fn submit(&self, request: GenerateRequest) -> Result<Answer, SubmitError> {
        self.check(&request)?;
        // Room for every event there can be, so the engine never waits for a
        // slow reader.
        let (events, receiver) = mpsc::channel(request.max_tokens + 1);
        let mut queue = self.inner.shared.lock();
        if queue.is_closing {
            return Err(SubmitError::Stopped);
        }
        if queue.waiting.len() >= self.inner.options.n_waiting_max {
            return Err(SubmitError::Overloaded {
                n_waiting: queue.waiting.len(),
            });
        }
        queue.waiting.push_back(Waiting { request, events });
        drop(queue);
        self.inner.shared.wake.notify_one();
        Ok(Answer::from_events(receiver))
    }

    /// The longest prompt and answer together, in tokens.
    #[must_use]
    pub fn context_tokens(&self) -> usize {
        self.inner
            .base
            .config()
            .max_position_embeddings
            .min(self.inner.options.n_kv_tokens_max)
    }

    /// The base model that is served.
    #[must_use]
    pub fn base(&self) -> &Arc<Model> {
        &self.inner.base
    }

    /// The tokenizer of the base model.
    #[must_use]
    pub fn tokenizer(&self) -> &Arc<Tokenizer> {
        &self.inner.tokenizer
    }

    /// What the engine is doing.
    #[must_use]
    pub fn stats(&self) -> EngineStats {
        let queue = self.inner.shared.lock();
        EngineStats {
            n_waiting: queue.waiting.len(),
            ..queue.stats
        }
    }

    /// True until a shutdown is asked for or the engine has failed.
    #[must_use]
    pub fn is_running(&self) -> bool {
        !self.inner.shared.lock().is_closing
    }

    /// Lets running requests finish, refuses the waiting ones and all new ones,
    /// and returns when the engine's thread has ended. Blocks.
    pub fn shutdown(&self) {
        self.inner.shared.close();
        let thread = self
            .inner
            .thread
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        if let Some(thread) = thread {
            // A panic was reported by the panic hook, and every request has seen its end.
            let _ = thread.join();
        }
    }

    fn check(&self, request: &GenerateRequest) -> Result<(), SubmitError> {
        request.sampling.validate()?;
        let stops = &request.stop;
        let is_stop_ok = |stop: &String| (1..=MAX_STOP_STRING_BYTES).contains(&stop.len());
        if stops.len() > MAX_STOP_STRINGS || !stops.iter().all(is_stop_ok) {
            return Err(SubmitError::Stop);
        }
        if request.max_tokens == 0 {
            return Err(SubmitError::NoTokens);
        }
        let (tokens_in, max_tokens) = (request.prompt_tokens.len(), request.max_tokens);
        if tokens_in == 0 {
            return Err(SubmitError::EmptyPrompt);
        }
        let context_tokens = self.context_tokens();
        if tokens_in.saturating_add(max_tokens) > context_tokens {
            return Err(SubmitError::TooLong {
                tokens_in,
                max_tokens,
                context_tokens,
            });
        }
        let config = self.inner.base.config();
        if request
            .adapter
            .as_ref()
            .is_some_and(|adapter| !adapter.fits(config))
        {
            return Err(SubmitError::Adapter);
        }
        let n_vocab = config.vocab_size;
        match request
            .prompt_tokens
            .iter()
            .find(|&&id| id as usize >= n_vocab)
        {
            Some(&id) => Err(SubmitError::UnknownToken { id, n_vocab }),
            None => Ok(()),
        }
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.shared.close();
    }
}

/// A request that has not started.
struct Waiting {
    request: GenerateRequest,
    events: mpsc::Sender<Event>,
}

#[derive(Default)]
struct Shared {
    queue: Mutex<Queue>,
    /// Signalled when there is work or the engine should close.
    wake: Condvar,
}

#[derive(Default)]
struct Queue {
    waiting: VecDeque<Waiting>,
    is_closing: bool,
    stats: EngineStats,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Queue> {
        // Every change of the queue is complete before anything can panic.
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes no more requests and ends those that wait.
    fn close(&self) {
        let mut queue = self.lock();
        queue.is_closing = true;
        for waiting in queue.waiting.drain(..) {
            // The channel is empty and has room; a closed one has nobody to tell.
            let _ = waiting
                .events
                .try_send(Event::Failed(GenerateError::Stopped));
        }
        drop(queue);
        self.wake.notify_all();
    }

    /// Moves waiting requests into the batch as far as they fit, in order; waits
    /// while there is nothing to do. False when all is done and the engine closes.
    fn fill(&self, batch: &mut Batch<'_>, waker: &Waker) -> bool {
        let mut queue = self.lock();
        queue.stats = batch.stats();
        loop {
            queue.waiting.retain(|waiting| !waiting.events.is_closed());
            let mut at = 0;
            while let Some(waiting) = queue.waiting.get(at) {
                if !batch.has_room(&waiting.request) {
                    break;
                }
                let adapter = waiting.request.adapter.as_ref();
                let lease = match adapter.map(|adapter| adapter.poll_lease(waker)) {
                    // Those behind it need not wait for its adapter.
                    Some(Poll::Pending) => {
                        at += 1;
                        continue;
                    }
                    Some(Poll::Ready(lease)) => lease.map(Some),
                    None => Ok(None),
                };
                let Some(Waiting { request, events }) = queue.waiting.remove(at) else {
                    break;
                };
                match lease {
                    Ok(lease) => batch.admit(request, lease, events),
                    Err(error) => {
                        // As in `close`.
                        let _ = events.try_send(Event::Failed(error.into()));
                    }
                }
            }
            queue.stats.n_running = batch.stats().n_running;
            if !batch.is_empty() {
                return true;
            }
            if queue.is_closing {
                return false;
            }
            queue = self
                .wake
                .wait(queue)
                .unwrap_or_else(PoisonError::into_inner);
        }
    }
}

impl Wake for Shared {
    fn wake(self: Arc<Self>) {
        // Not between the engine's look at the queue and its wait.
        drop(self.lock());
        self.wake.notify_all();
    }
}

fn run(shared: &Arc<Shared>, mut batch: Batch<'_>) {
    /// However the loop ends, by a panic too, nobody may wait for ever: rows end
    /// by dropping the batch, waiting requests here.
    struct CloseOnExit<'a>(&'a Shared);
    impl Drop for CloseOnExit<'_> {
        fn drop(&mut self) {
            self.0.close();
        }
    }
    let _close = CloseOnExit(shared);
    let waker = Waker::from(Arc::clone(shared));
    while shared.fill(&mut batch, &waker) {
        batch.step();
    }
}
