//! What is known of every worker, and who gets a place at which.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use ol_runtime::Clock;
use ol_serve::{OverloadLimit, SubmitError};
use ol_types::B256;
use serde::Serialize;
use tokio::sync::Notify;

use super::breaker::Breaker;
use super::client::Client;
use super::config::WorkerOptions;
use super::protocol::Models;
use super::route::{self, Candidate};

/// Failed probes in a row after which a worker counts as gone.
const N_PROBES_MAX: u32 = 2;

/// The longest a full worker is left alone, whatever it asks for.
const BUSY_MAX_S: f64 = 5.0;

/// Retries that are saved up for bad times.
const RETRIES_MAX: f64 = 10.0;

/// What an answer adds to the retries that may be made: when most requests
/// fail, trying each of them again would only add to the load.
///
/// # Source
/// gRPC proposal A6, "Retry throttling".
const RETRIES_PER_ANSWER: f64 = 0.1;

/// A worker, as far as it does not change.
#[derive(Debug)]
pub(super) struct Worker {
    pub(super) options: WorkerOptions,
    pub(super) client: Client,
    /// Held while adapters are loaded and unloaded there.
    pub(super) loading: tokio::sync::Mutex<()>,
}

/// All workers.
#[derive(Debug)]
pub(super) struct Pool {
    pub(super) workers: Vec<Worker>,
    states: Mutex<States>,
    /// Something changed that those who wait may have waited for.
    changed: Notify,
    clock: Arc<dyn Clock>,
}

#[derive(Debug)]
struct States {
    workers: Vec<State>,
    /// Requests that wait for a first place, by arrival.
    waiting: BTreeSet<u64>,
    next_ticket: u64,
    /// Requests taken on and not over.
    n_requests: usize,
    n_retries_left: f64,
    /// Counts uses of adapters.
    tick: u64,
}

/// Whether a worker is there, by its own words.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum WorkerHealth {
    /// Not asked yet.
    Unknown,
    /// It answers.
    Up,
    /// It finishes what it has, and takes nothing more.
    Draining,
    /// It does not answer.
    Down,
}

#[derive(Debug)]
struct State {
    health: WorkerHealth,
    n_failed_probes: u32,
    is_drained: bool,
    breaker: Breaker,
    busy_until_s: f64,
    n_running: usize,
    base_model: Option<String>,
    adapters: BTreeMap<String, Use>,
    /// Adapters that have to go before the next one comes.
    to_unload: Vec<String>,
    n_answered: u64,
    n_failed: u64,
    last_error: Option<String>,
}

#[derive(Debug, Clone, Copy, Default)]
struct Use {
    is_loaded: bool,
    n_users: usize,
    last: u64,
}

/// How a worker is doing, for reports.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct WorkerStatus {
    /// Its name.
    pub name: String,
    /// Where it is.
    pub url: String,
    /// What it is: `openledger` or `vllm`.
    pub kind: &'static str,
    /// Whether it is there.
    pub health: WorkerHealth,
    /// Whether an operator has told it to get no more requests.
    pub is_drained: bool,
    /// `closed` while it answers, `open` while it is left alone after failures,
    /// `half-open` while one request tries whether it is back.
    pub breaker: &'static str,
    /// Requests it runs for this gateway.
    pub n_running: usize,
    /// Requests it may run for this gateway at once.
    pub slots: usize,
    /// Adapters it holds for this gateway.
    pub n_adapters: usize,
    /// Most adapters it is made to hold.
    pub adapters_max: usize,
    /// Requests it has answered.
    pub n_answered: u64,
    /// Requests it has failed.
    pub n_failed: u64,
    /// What went wrong last.
    pub last_error: Option<String>,
}

/// Why there is no place, and waiting will not bring one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Nobody;

impl Pool {
    pub(super) fn new(workers: Vec<Worker>, clock: Arc<dyn Clock>) -> Self {
        let state = |_: &Worker| State {
            health: WorkerHealth::Unknown,
            n_failed_probes: 0,
            is_drained: false,
            breaker: Breaker::default(),
            busy_until_s: 0.0,
            n_running: 0,
            base_model: None,
            adapters: BTreeMap::new(),
            to_unload: Vec::new(),
            n_answered: 0,
            n_failed: 0,
            last_error: None,
        };
        let states = States {
            workers: workers.iter().map(state).collect(),
            waiting: BTreeSet::new(),
            next_ticket: 0,
            n_requests: 0,
            n_retries_left: RETRIES_MAX,
            tick: 0,
        };
        Self {
            workers,
            states: Mutex::new(states),
            changed: Notify::new(),
            clock,
        }
    }

    fn lock(&self) -> MutexGuard<'_, States> {
        // Every change is complete before anything can panic.
        self.states.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Completes at the next change; ask before looking.
    pub(super) fn changed(&self) -> tokio::sync::futures::Notified<'_> {
        self.changed.notified()
    }

    /// Requests taken on and not over, and those of them that wait.
    pub(super) fn load(&self) -> (usize, usize) {
        let states = self.lock();
        (states.n_requests, states.waiting.len())
    }

    /// Takes a request on.
    ///
    /// # Errors
    /// [`SubmitError::Overloaded`] if too many wait, [`SubmitError::Unavailable`]
    /// if nobody is there to wait for.
    pub(super) fn admit(self: &Arc<Self>, n_waiting_max: usize) -> Result<Ticket, SubmitError> {
        let mut states = self.lock();
        let is_there = |state: &State| {
            !state.is_drained && matches!(state.health, WorkerHealth::Up | WorkerHealth::Unknown)
        };
        if !states.workers.iter().any(is_there) {
            return Err(SubmitError::Unavailable);
        }
        if states.waiting.len() >= n_waiting_max {
            return Err(SubmitError::Overloaded {
                n_waiting: states.waiting.len(),
                limit: OverloadLimit::Requests,
                retry_after: Duration::from_secs(1),
            });
        }
        let number = states.next_ticket;
        states.next_ticket += 1;
        states.waiting.insert(number);
        states.n_requests += 1;
        drop(states);
        Ok(Ticket {
            pool: Arc::clone(self),
            number,
        })
    }

    /// A place at a worker that was not tried yet, if there is one now: `None`
    /// if it is worth waiting. First places go to requests in order of arrival.
    pub(super) fn try_place(
        self: &Arc<Self>,
        ticket: &Ticket,
        adapter: Option<(&str, B256)>,
        tried: &BTreeSet<usize>,
    ) -> Result<Option<Place>, Nobody> {
        let now_s = self.clock.monotonic_s();
        let mut states = self.lock();
        let is_first = states.waiting.contains(&ticket.number);
        if is_first && states.waiting.first() != Some(&ticket.number) {
            return Ok(None);
        }
        let (mut candidates, mut is_hope) = (Vec::new(), false);
        let (mut n_running, mut n_slots) = (0, 0);
        for (worker, state) in states.workers.iter().enumerate() {
            let options = &self.workers[worker].options;
            if state.is_drained || state.health != WorkerHealth::Up || tried.contains(&worker) {
                continue;
            }
            is_hope = true;
            let is_ready = state.breaker.allows(now_s)
                && now_s >= state.busy_until_s
                && (adapter.is_some() || state.base_model.is_some());
            if !is_ready {
                continue;
            }
            n_running += state.n_running;
            n_slots += options.slots;
            let is_free = state.n_running < options.slots
                && adapter.is_none_or(|(name, _)| state.can_hold(name, options.adapters_max));
            if is_free {
                candidates.push(Candidate {
                    worker,
                    n_running: state.n_running,
                    n_slots: options.slots,
                });
            }
        }
        let chosen = match adapter {
            Some((_, hash)) => {
                let affinity = |candidate: &Candidate| {
                    let name = &self.workers[candidate.worker].options.name;
                    std::cmp::Reverse(route::affinity(name, hash))
                };
                candidates.sort_by_cached_key(affinity);
                route::choose(&candidates, n_running, n_slots)
            }
            None => route::least_loaded(&candidates).map(|candidate| candidate.worker),
        };
        let Some(worker) = chosen else {
            // Whoever was only tried or is gone will not come back in time.
            let is_back = |(worker, state): (usize, &State)| {
                !tried.contains(&worker) && state.health == WorkerHealth::Unknown
            };
            is_hope |= states.workers.iter().enumerate().any(is_back);
            return if is_hope { Ok(None) } else { Err(Nobody) };
        };
        states.waiting.remove(&ticket.number);
        states.tick += 1;
        let tick = states.tick;
        let state = &mut states.workers[worker];
        state.n_running += 1;
        state.breaker.begin();
        if let Some((name, _)) = adapter {
            state.hold(name, tick, self.workers[worker].options.adapters_max);
        }
        let model = match adapter {
            Some((name, _)) => name.to_owned(),
            None => state.base_model.clone().unwrap_or_default(),
        };
        drop(states);
        // The next in line may find a place too.
        self.changed.notify_waiters();
        Ok(Some(Place {
            pool: Arc::clone(self),
            worker,
            model,
            is_adapter: adapter.is_some(),
            verdict: None,
        }))
    }

    /// Whether a failed request may be tried again, which is then counted.
    pub(super) fn may_retry(&self) -> bool {
        let mut states = self.lock();
        // Half of what is saved up is for when most requests fail for a while.
        let may = states.n_retries_left > RETRIES_MAX / 2.0;
        if may {
            states.n_retries_left -= 1.0;
        }
        may
    }

    /// Notes how a probe of a worker ended. True if the worker has just come
    /// back, and should be asked what it serves.
    pub(super) fn note_probe(&self, worker: usize, found: Result<WorkerHealth, String>) -> bool {
        let mut states = self.lock();
        let state = &mut states.workers[worker];
        let before = state.health;
        match found {
            Ok(health) => {
                state.n_failed_probes = 0;
                state.health = health;
            }
            Err(error) => {
                state.n_failed_probes += 1;
                state.last_error = Some(error);
                if state.n_failed_probes >= N_PROBES_MAX || before == WorkerHealth::Unknown {
                    state.health = WorkerHealth::Down;
                }
            }
        }
        let (now, name) = (state.health, &self.workers[worker].options.name);
        if now != before {
            tracing::info!(worker = name, ?before, ?now, "a worker has changed");
        }
        let is_back = now == WorkerHealth::Up && before != now;
        drop(states);
        // Also without a change: pauses of breakers end by themselves.
        self.changed.notify_waiters();
        is_back
    }

    /// Takes over what a worker says it serves.
    pub(super) fn note_models(&self, worker: usize, models: &Models) {
        let mut states = self.lock();
        let state = &mut states.workers[worker];
        state.base_model.clone_from(&models.base);
        for (name, adapter) in &mut state.adapters {
            adapter.is_loaded = models.adapters.contains(name);
        }
        drop(states);
        self.changed.notify_waiters();
    }

    /// Whether the adapter is at the worker.
    pub(super) fn is_loaded(&self, worker: usize, name: &str) -> bool {
        let states = self.lock();
        let held = states.workers[worker].adapters.get(name);
        held.is_some_and(|held| held.is_loaded)
    }

    /// Notes whether the adapter is at the worker.
    pub(super) fn note_loaded(&self, worker: usize, name: &str, is_loaded: bool) {
        if let Some(held) = self.lock().workers[worker].adapters.get_mut(name) {
            held.is_loaded = is_loaded;
        }
    }

    /// Adapters that have to go from the worker, which are then forgotten.
    pub(super) fn take_unloads(&self, worker: usize) -> Vec<String> {
        std::mem::take(&mut self.lock().workers[worker].to_unload)
    }

    /// Leaves a worker that is full alone for a while.
    pub(super) fn note_busy(&self, worker: usize, retry_after_s: f64) {
        let pause_s = if retry_after_s.is_finite() {
            retry_after_s.clamp(0.1, BUSY_MAX_S)
        } else {
            BUSY_MAX_S
        };
        self.lock().workers[worker].busy_until_s = self.clock.monotonic_s() + pause_s;
    }

    /// Takes a worker at its word that it is draining.
    pub(super) fn note_draining(&self, worker: usize) {
        self.lock().workers[worker].health = WorkerHealth::Draining;
    }

    /// Stops or starts giving requests to the worker of this name; `None` if
    /// there is none.
    pub(super) fn set_drained(&self, name: &str, is_drained: bool) -> Option<WorkerStatus> {
        let worker = self.workers.iter().position(|w| w.options.name == name)?;
        self.lock().workers[worker].is_drained = is_drained;
        self.changed.notify_waiters();
        self.status().into_iter().nth(worker)
    }

    /// How all workers are doing, in the order they were given.
    pub(super) fn status(&self) -> Vec<WorkerStatus> {
        let now_s = self.clock.monotonic_s();
        let states = self.lock();
        let both = self.workers.iter().zip(&states.workers);
        both.map(|(Worker { options, .. }, state)| WorkerStatus {
            name: options.name.clone(),
            url: options.url.clone(),
            kind: options.kind.as_str(),
            health: state.health,
            is_drained: state.is_drained,
            breaker: state.breaker.as_str(now_s),
            n_running: state.n_running,
            slots: options.slots,
            n_adapters: state.adapters.values().filter(|a| a.is_loaded).count(),
            adapters_max: options.adapters_max,
            n_answered: state.n_answered,
            n_failed: state.n_failed,
            last_error: state.last_error.clone(),
        })
        .collect()
    }
}

impl State {
    /// Whether the adapter is there, or there is room for it, or room can be made.
    fn can_hold(&self, name: &str, n_max: usize) -> bool {
        self.adapters.contains_key(name)
            || self.adapters.len() < n_max
            || self.adapters.values().any(|held| held.n_users == 0)
    }

    /// Sets room aside; what was not used for longest has to go for it.
    fn hold(&mut self, name: &str, tick: u64, n_max: usize) {
        if !self.adapters.contains_key(name) && self.adapters.len() >= n_max {
            let unused = self.adapters.iter().filter(|(_, held)| held.n_users == 0);
            let oldest = unused.min_by_key(|(_, held)| held.last);
            if let Some(name) = oldest.map(|(name, _)| name.clone()) {
                self.adapters.remove(&name);
                self.to_unload.push(name);
            }
        }
        let held = self.adapters.entry(name.to_owned()).or_default();
        held.n_users += 1;
        held.last = tick;
    }
}

/// A request that was taken on; dropping it says that it is over.
#[derive(Debug)]
pub(super) struct Ticket {
    pool: Arc<Pool>,
    number: u64,
}

impl Drop for Ticket {
    fn drop(&mut self) {
        let mut states = self.pool.lock();
        states.waiting.remove(&self.number);
        states.n_requests -= 1;
        drop(states);
        self.pool.changed.notify_waiters();
    }
}

/// A request's place at a worker, until it is dropped.
#[derive(Debug)]
pub(super) struct Place {
    pool: Arc<Pool>,
    pub(super) worker: usize,
    /// What the worker calls the model.
    pub(super) model: String,
    pub(super) is_adapter: bool,
    verdict: Option<Result<(), String>>,
}

impl Place {
    /// The worker has answered as it should.
    pub(super) fn succeed(&mut self) {
        self.verdict = Some(Ok(()));
    }

    /// The worker has failed.
    pub(super) fn fail(&mut self, error: String) {
        self.verdict = Some(Err(error));
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let now_s = self.pool.clock.monotonic_s();
        let mut states = self.pool.lock();
        let state = &mut states.workers[self.worker];
        state.n_running -= 1;
        let outcome = match self.verdict.take() {
            Some(Ok(())) => {
                state.breaker.succeed();
                state.n_answered += 1;
                "answered"
            }
            Some(Err(error)) => {
                state.breaker.fail(now_s);
                state.n_failed += 1;
                state.last_error = Some(error);
                "failed"
            }
            None => {
                state.breaker.abandon(now_s);
                "neither"
            }
        };
        if self.is_adapter
            && let Some(held) = state.adapters.get_mut(&self.model)
        {
            held.n_users -= 1;
            if held.n_users == 0 && !held.is_loaded {
                state.adapters.remove(&self.model);
            }
        }
        if outcome == "answered" {
            states.n_retries_left = (states.n_retries_left + RETRIES_PER_ANSWER).min(RETRIES_MAX);
        }
        drop(states);
        crate::metrics::fleet_attempt(&self.pool.workers[self.worker].options.name, outcome);
        self.pool.changed.notify_waiters();
    }
}
