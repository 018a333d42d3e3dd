//! The handle to the engine, and its thread.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::Waker;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use ol_model::{CpuExecutor, Executor, Model, Pool, Tokenizer};
use ol_runtime::{Clock, SystemClock};
use tokio::sync::mpsc;

use self::observe::Unobserved;
use self::prefix::{Root, Scope};
use self::row::{AdapterWish, Job};
use self::shared::Shared;
use crate::request::{
    Answer, GenerateRequest, MAX_STOP_STRING_BYTES, MAX_STOP_STRINGS, Sharing, SubmitError,
};
use crate::sampler::Sampler;
use crate::stop::StopFilter;

mod observe;
mod options;
mod policy;
mod prefix;
mod queue;
mod row;
mod scheduler;
mod shared;
mod signal;

pub use observe::{EngineStats, Observation, Observer};
pub use options::{EngineOptions, StartError};
pub use policy::Priority;
pub use scheduler::{Scheduler, Turn};

/// What the engine is made of.
#[derive(Debug)]
pub struct EngineParts {
    /// The base model.
    pub base: Arc<Model>,
    /// Its tokenizer.
    pub tokenizer: Arc<Tokenizer>,
    /// What computes: the CPU, or a device. Made for this base model.
    pub executor: Box<dyn Executor>,
    /// What time it is, for deadlines, aging and measurements.
    pub clock: Arc<dyn Clock>,
    /// Who is told what happens.
    pub observer: Arc<dyn Observer>,
}

impl EngineParts {
    /// The machine's clock, `n_pool_threads` helpers, and nobody who watches.
    #[must_use]
    pub fn new(base: Arc<Model>, tokenizer: Arc<Tokenizer>, n_pool_threads: usize) -> Self {
        let executor = CpuExecutor::new(Arc::clone(&base), Pool::new(n_pool_threads));
        Self::on(Box::new(executor), base, tokenizer)
    }

    /// The same with what computes, which was made for this base.
    #[must_use]
    pub fn on(executor: Box<dyn Executor>, base: Arc<Model>, tokenizer: Arc<Tokenizer>) -> Self {
        Self {
            base,
            tokenizer,
            executor,
            clock: Arc::new(SystemClock::new()),
            observer: Arc::new(Unobserved),
        }
    }
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
    clock: Arc<dyn Clock>,
    options: EngineOptions,
    context_tokens: usize,
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
        Self::start_with(EngineParts::new(base, tokenizer, n_pool_threads), options)
    }

    /// Starts an engine of these parts on a thread of its own.
    ///
    /// # Errors
    /// As [`EngineHandle::start`].
    pub fn start_with(parts: EngineParts, options: EngineOptions) -> Result<Self, StartError> {
        let (handle, scheduler) = Self::without_thread(parts, options)?;
        let (signal, clock) = (
            Arc::clone(&handle.inner.shared.signal),
            Arc::clone(&handle.inner.clock),
        );
        let run = move || {
            let mut scheduler = scheduler;
            loop {
                match scheduler.turn() {
                    Turn::Worked => {}
                    Turn::Idle { until_s } => {
                        let left_s = until_s.map(|until_s| until_s - clock.monotonic_s());
                        signal.wait(left_s.map(|s| Duration::from_secs_f64(s.max(0.0))));
                    }
                    Turn::Closed => return,
                }
            }
        };
        let thread = thread::Builder::new()
            .name("ol-serve".to_owned())
            .spawn(run)
            .map_err(StartError::Thread)?;
        *handle
            .inner
            .thread
            .lock()
            .unwrap_or_else(PoisonError::into_inner) = Some(thread);
        Ok(handle)
    }

    /// An engine that moves only when [`Scheduler::turn`] is called.
    ///
    /// # Errors
    /// [`StartError`] if a bound makes no sense.
    pub fn without_thread(
        parts: EngineParts,
        options: EngineOptions,
    ) -> Result<(Self, Scheduler), StartError> {
        options.check()?;
        let shared = Arc::new(Shared::default());
        let (base, tokenizer) = (Arc::clone(&parts.base), Arc::clone(&parts.tokenizer));
        let clock = Arc::clone(&parts.clock);
        let scheduler = Scheduler::new(parts, Arc::clone(&shared), options.clone());
        let context_tokens = base
            .config()
            .max_position_embeddings
            .min(options.n_kv_tokens_max)
            .min(scheduler.n_kv_tokens());
        let inner = Inner {
            shared,
            base,
            tokenizer,
            clock,
            options,
            context_tokens,
            thread: Mutex::new(None),
        };
        let handle = Self {
            inner: Arc::new(inner),
        };
        Ok((handle, scheduler))
    }

    /// Takes a request on, to start as soon as it is its turn and there is room.
    ///
    /// # Errors
    /// [`SubmitError`] if the request is invalid or too long, a limit of the
    /// queue is reached, or the engine is stopped.
    pub fn submit(&self, request: GenerateRequest) -> Result<Answer, SubmitError> {
        self.check(&request)?;
        let (job, answer) = self.job(request, self.inner.clock.monotonic_s());
        self.enqueue(vec![job])?;
        Ok(answer)
    }

    /// Takes all of these on or none, as for several answers to one prompt:
    /// those that begin alike compute what they share once. They are all of
    /// the first's tenant for the limits of the queue.
    ///
    /// # Errors
    /// As [`EngineHandle::submit`].
    pub fn submit_all(&self, requests: Vec<GenerateRequest>) -> Result<Vec<Answer>, SubmitError> {
        for request in &requests {
            self.check(request)?;
        }
        let arrived_s = self.inner.clock.monotonic_s();
        let (jobs, answers): (Vec<Job>, Vec<Answer>) = requests
            .into_iter()
            .map(|request| self.job(request, arrived_s))
            .unzip();
        self.enqueue(jobs)?;
        Ok(answers)
    }

    fn enqueue(&self, jobs: Vec<Job>) -> Result<(), SubmitError> {
        let options = &self.inner.options;
        let Some(tenant) = jobs.first().map(|job| Arc::clone(&job.tenant)) else {
            return Ok(());
        };
        let n_tokens = jobs.iter().map(|job| job.tokens.len()).sum();
        let mut state = self.inner.shared.lock();
        if state.is_closing {
            return Err(SubmitError::Stopped);
        }
        let mut limit = state.queue.exceeded(options, &tenant, jobs.len(), n_tokens);
        if limit.is_some() {
            // Those who left make room at once.
            let left = state.queue.remove_if(|job| job.events.is_closed());
            state.stats.n_cancelled += left.len() as u64;
            limit = state.queue.exceeded(options, &tenant, jobs.len(), n_tokens);
        }
        if let Some(limit) = limit {
            state.stats.n_refused += jobs.len() as u64;
            return Err(SubmitError::Overloaded {
                n_waiting: state.queue.len(),
                limit,
                retry_after: state.pace.retry_after(&state.queue),
            });
        }
        for mut job in jobs {
            job.arrival = state.next_arrival;
            state.next_arrival += 1;
            state.queue.push(job);
        }
        drop(state);
        self.inner.shared.signal.raise();
        Ok(())
    }

    /// A request as the scheduler has it, and where its events come out.
    fn job(&self, request: GenerateRequest, arrived_s: f64) -> (Job, Answer) {
        // Room for every event there can be, so the engine never waits for a
        // slow reader.
        let (events, receiver) = mpsc::channel(request.max_tokens + 1);
        let wish = AdapterWish::new(&self.inner.shared.signal);
        if let Some(adapter) = &request.adapter {
            // Loading begins while the request waits for its turn.
            wish.ask();
            if adapter
                .poll_lease(&Waker::from(Arc::clone(&wish)))
                .is_ready()
            {
                wish.is_answered();
            }
        }
        let scope = match request.sharing {
            Sharing::Tenant => Some(Scope::Tenant(Arc::clone(&request.tenant))),
            Sharing::Everyone => Some(Scope::Everyone),
            Sharing::Nobody => None,
        };
        let adapter = request.adapter.as_ref().map(crate::AdapterRef::hash);
        let job = Job {
            arrival: 0,
            tenant: request.tenant,
            priority: request.priority,
            arrived_s,
            deadline_s: request.timeout.map(|t| arrived_s + t.as_secs_f64()),
            adapter: request.adapter,
            wish,
            root: scope.map(|scope| Root { adapter, scope }),
            n_prompt: request.prompt_tokens.len(),
            max_tokens: request.max_tokens,
            n_computed: 0,
            n_cached: 0,
            started_s: None,
            last_token_s: None,
            sampler: Sampler::for_prompt(
                request.sampling,
                &request.prompt_tokens,
                self.inner.tokenizer.end_ids(),
            ),
            text: self.inner.tokenizer.stream_after(&request.prompt_tokens),
            stop: StopFilter::new(request.stop),
            tokens: request.prompt_tokens,
            events,
        };
        (job, Answer::from_events(receiver))
    }

    /// The longest prompt and answer together, in tokens.
    #[must_use]
    pub fn context_tokens(&self) -> usize {
        self.inner.context_tokens
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
        let state = self.inner.shared.lock();
        EngineStats {
            n_waiting: state.queue.len(),
            ..state.stats
        }
    }

    /// True until a shutdown is asked for or the engine has failed.
    #[must_use]
    pub fn is_running(&self) -> bool {
        !self.inner.shared.lock().is_closing
    }

    /// Lets running requests finish, refuses those that have not started and all
    /// new ones, and returns when the engine's thread has ended. Blocks.
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
