//! The engine without its thread: what waits, what runs, and one turn of work.

use std::collections::BTreeSet;
use std::fmt;
use std::sync::Arc;
use std::task::{Poll, Waker};

use ol_model::{
    Draw, Executor, ForwardError, Forwarded, KvCache, KvPool, Model, PAGE_TOKENS, Segment,
};
use ol_runtime::Clock;

use super::EngineParts;
use super::observe::{EngineStats, Observation, Observer};
use super::options::EngineOptions;
use super::policy::{COST_IN, COST_OUT, share_prefill};
use super::prefix::{Chain, PrefixCache};
use super::row::{Job, Last, Row};
use super::shared::{Shared, State};
use crate::adapters::{AdapterError, AdapterLease};
use crate::request::{Event, GenerateError};

/// Most waiting requests that a turn finds to wait for a running one's pages.
const N_FOLLOWERS_MAX: usize = 64;

/// What came of a turn.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Turn {
    /// Requests advanced.
    Worked,
    /// There is nothing to do before something changes.
    Idle {
        /// The next deadline of a waiting request, on the engine's clock.
        until_s: Option<f64>,
    },
    /// All is done and the engine was told to stop.
    Closed,
}

/// The engine as a machine that moves when it is told to: [`Scheduler::turn`].
///
/// [`EngineHandle::start`](super::EngineHandle::start) turns it on a thread of
/// its own. Alone it is for tests and simulations: given the same requests and
/// the same clock, it does the same things in the same order.
pub struct Scheduler {
    shared: Arc<Shared>,
    base: Arc<Model>,
    executor: Box<dyn Executor>,
    clock: Arc<dyn Clock>,
    observer: Arc<dyn Observer>,
    options: EngineOptions,
    aging_s: f64,
    /// Keys and values of all rows, and of the shared pages.
    kv: KvPool,
    prefix: PrefixCache,
    /// In order of rank: the last is the first to make room.
    rows: Vec<Row>,
}

impl fmt::Debug for Scheduler {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Scheduler")
            .field("n_running", &self.rows.len())
            .finish_non_exhaustive()
    }
}

/// Why the request that stands first does not start.
enum Obstacle {
    /// Its adapter is on its way; others may start before it.
    Loading,
    /// Its next page is being computed; others may start before it.
    Follows,
    /// It cannot have its adapter.
    Failed(AdapterError),
    /// There is no room for it, so there is none for those behind it.
    NoRoom,
}

impl Scheduler {
    pub(super) fn new(parts: EngineParts, shared: Arc<Shared>, options: EngineOptions) -> Self {
        let n_pages = options.n_pages();
        Self {
            shared,
            kv: parts.executor.kv_pool(n_pages),
            prefix: PrefixCache::new(n_pages.min(options.n_prefix_tokens_max / PAGE_TOKENS)),
            base: parts.base,
            executor: parts.executor,
            clock: parts.clock,
            observer: parts.observer,
            aging_s: options.aging.as_secs_f64(),
            options,
            rows: Vec::new(),
        }
    }

    /// Tokens that the pool holds, which may be less than was asked for.
    pub(super) fn n_kv_tokens(&self) -> usize {
        self.kv.n_pages().saturating_mul(PAGE_TOKENS)
    }

    /// Starts what can start, computes one forward pass, and sends the tokens:
    /// one for every decoding request and, with what is left of the pass's
    /// tokens, parts of prompts.
    pub fn turn(&mut self) -> Turn {
        let shared = Arc::clone(&self.shared);
        let now_s = self.clock.monotonic_s();
        let mut state = shared.lock();
        self.end_rows(&mut state, now_s);
        end_waiting(&mut state, now_s);
        self.admit(&mut state, now_s);
        if self.rows.is_empty() {
            self.publish(&mut state);
            let mut deadlines: Vec<f64> = state.queue.jobs().filter_map(|j| j.deadline_s).collect();
            deadlines.sort_by(f64::total_cmp);
            return if state.is_closing && state.queue.len() == 0 {
                Turn::Closed
            } else {
                Turn::Idle {
                    until_s: deadlines.first().copied(),
                }
            };
        }
        self.plan(&mut state, now_s);
        self.publish(&mut state);
        drop(state);
        self.pass();
        Turn::Worked
    }

    /// Ends the rows whose client left or whose time is over.
    fn end_rows(&mut self, state: &mut State, now_s: f64) {
        for mut row in std::mem::take(&mut self.rows) {
            if end_early(&mut row.job, state, now_s) {
                row.vacate(&mut self.prefix);
            } else {
                self.rows.push(row);
            }
        }
    }

    /// Starts waiting requests in their order while there is room.
    fn admit(&mut self, state: &mut State, now_s: f64) {
        self.rank(now_s);
        let mut skipped = BTreeSet::new();
        let mut n_followers = 0;
        while n_followers < N_FOLLOWERS_MAX {
            let can_start = |job: &Job| job.wish.has_news() && !skipped.contains(&job.arrival);
            let Some((_, job)) = state.queue.best(now_s, self.aging_s, can_start) else {
                return;
            };
            let (tenant, arrival) = (Arc::clone(&job.tenant), job.arrival);
            let is_outranked =
                |row: &Row| (job.priority as u8) < row.job.class(now_s, self.aging_s);
            let can_preempt = self.rows.last().is_some_and(is_outranked);
            let is_full = self.rows.len() >= self.options.n_rows_max;
            if is_full && !can_preempt {
                return;
            }
            match self.obtain(job) {
                Ok((lease, chain, cache)) => {
                    if let Some(job) = state.queue.take(&tenant, arrival) {
                        if is_full {
                            self.preempt(state);
                        }
                        self.start(job, lease, chain, cache, state, now_s);
                        self.rank(now_s);
                    }
                }
                Err(Obstacle::Loading) => {
                    skipped.insert(arrival);
                }
                Err(Obstacle::Follows) => {
                    skipped.insert(arrival);
                    n_followers += 1;
                }
                Err(Obstacle::Failed(error)) => {
                    if let Some(job) = state.queue.take(&tenant, arrival) {
                        job.send(Event::Failed(error.into()));
                    }
                }
                Err(Obstacle::NoRoom) => {
                    if !can_preempt {
                        return;
                    }
                    self.preempt(state);
                }
            }
        }
    }

    /// What a request needs to run.
    fn obtain(
        &mut self,
        job: &Job,
    ) -> Result<(Option<AdapterLease>, Option<Chain>, KvCache), Obstacle> {
        let lease = match &job.adapter {
            Some(adapter) => {
                job.wish.ask();
                match adapter.poll_lease(&Waker::from(Arc::clone(&job.wish))) {
                    Poll::Pending => return Err(Obstacle::Loading),
                    Poll::Ready(lease) => {
                        job.wish.is_answered();
                        let lease = lease.map_err(Obstacle::Failed)?;
                        if let Err(reason) = self.executor.check_adapter(&lease) {
                            let location = adapter.hash().to_string();
                            let refused = AdapterError::Refused { location, reason };
                            return Err(Obstacle::Failed(refused));
                        }
                        Some(lease)
                    }
                }
            }
            None => None,
        };
        let (chain, pages) = match &job.root {
            Some(root) => {
                let (chain, pages) = self.prefix.acquire(root, &job.tokens);
                (Some(chain), pages)
            }
            None => (None, Vec::new()),
        };
        let n_missing = job.tokens.len().div_ceil(PAGE_TOKENS) - pages.len();
        let obstacle = if chain.as_ref().is_some_and(|c| self.is_computing(c, job)) {
            Obstacle::Follows
        } else if !self.has_pages(n_missing) {
            Obstacle::NoRoom
        } else {
            let cache = KvCache::beginning_with(&self.kv, job.n_tokens_max(), &pages);
            return Ok((lease, chain, cache));
        };
        if let Some(chain) = chain {
            self.prefix.release(chain);
        }
        Err(obstacle)
    }

    /// Whether the page that the request needs after its chain is part of a
    /// prompt that is being prefilled: waiting for it is cheaper than computing
    /// it twice.
    fn is_computing(&self, chain: &Chain, job: &Job) -> bool {
        self.rows.iter().any(|row| {
            let other = row.chain.as_ref().filter(|_| row.is_prefilling());
            other.is_some_and(|other| chain.is_followed_in(&job.tokens, other, &row.job.tokens))
        })
    }

    /// Whether a request that needs so many pages may start: they are there
    /// beside those that the running prompts still need, and one more for each
    /// running request, so that it does not start only to make room at once.
    fn has_pages(&self, n: usize) -> bool {
        let n_promised: usize = self
            .rows
            .iter()
            .map(|row| row.missing_pages(row.pending().len()) + 1)
            .sum();
        let n_free = self.kv.free_pages() + self.prefix.n_idle();
        // Alone it fits: that was checked when it came.
        self.rows.is_empty() || n + n_promised <= n_free
    }

    fn start(
        &mut self,
        mut job: Job,
        lease: Option<AdapterLease>,
        chain: Option<Chain>,
        cache: KvCache,
        state: &mut State,
        now_s: f64,
    ) {
        if job.started_s.is_none() {
            job.started_s = Some(now_s);
            job.n_cached = cache.len();
            job.n_computed = cache.len();
            if chain.is_some() {
                state.stats.n_prefix_tokens_asked += job.n_prompt as u64;
                state.stats.n_prefix_tokens_found += cache.len() as u64;
            }
            let waited_s = now_s - job.arrived_s;
            self.observer.observe(&Observation::Started { waited_s });
        }
        self.rows.push(Row {
            job,
            lease,
            cache,
            chain,
            n_taken: 0,
        });
    }

    /// Sorts the rows: class, then arrival.
    fn rank(&mut self, now_s: f64) {
        let aging_s = self.aging_s;
        self.rows
            .sort_by_key(|row| (row.job.class(now_s, aging_s), row.job.arrival));
    }

    /// The last row makes room and waits again.
    fn preempt(&mut self, state: &mut State) {
        if let Some(row) = self.rows.pop() {
            state.stats.n_preempted += 1;
            state.queue.push(row.vacate(&mut self.prefix));
        }
    }

    /// Shares the pass's tokens out, and makes sure of the pages for them.
    fn plan(&mut self, state: &mut State, now_s: f64) {
        self.rank(now_s);
        loop {
            let (prefilling, decoding): (Vec<&mut Row>, Vec<&mut Row>) =
                self.rows.iter_mut().partition(|row| row.is_prefilling());
            // `EngineOptions::check` made sure that every row's token fits.
            let n_left = self
                .options
                .n_step_tokens_max
                .saturating_sub(decoding.len());
            for row in decoding {
                row.n_taken = 1;
            }
            let remaining: Vec<usize> = prefilling.iter().map(|r| r.pending().len()).collect();
            for (row, share) in prefilling
                .into_iter()
                .zip(share_prefill(&remaining, n_left))
            {
                row.n_taken = share;
            }
            let n_pages: usize = self.rows.iter().map(|r| r.missing_pages(r.n_taken)).sum();
            while self.kv.free_pages() < n_pages && self.prefix.evict() {}
            // One row alone has all it can ever need.
            if self.kv.free_pages() >= n_pages || self.rows.len() == 1 {
                return;
            }
            self.preempt(state);
        }
    }

    /// The forward pass and what comes of it.
    fn pass(&mut self) {
        let started_s = self.clock.monotonic_s();
        let forwarded = match self.forward() {
            Ok(forwarded) => forwarded,
            Err(error) => return self.fail(&error),
        };
        let now_s = self.clock.monotonic_s();
        let vocab_size = self.base.config().vocab_size;
        let mut logits = forwarded.logits.chunks_exact(vocab_size);
        let mut drawn = forwarded.drawn.into_iter();
        let shared = Arc::clone(&self.shared);
        let mut state = shared.lock();
        let mut ended = Vec::new();
        let (mut n_rows, mut n_tokens) = (0, 0);
        let mut adapters = BTreeSet::new();
        for mut row in std::mem::take(&mut self.rows) {
            if row.n_taken == 0 {
                self.rows.push(row);
                continue;
            }
            n_rows += 1;
            n_tokens += row.n_taken;
            adapters.extend(row.job.adapter_hash());
            let last = drawn.next().flatten().map_or_else(
                || {
                    let logits = logits.next();
                    Last::Logits(logits.expect("logits for every segment that has no token"))
                },
                Last::Drawn,
            );
            row.share_pages(&mut self.prefix);
            account_prompt(&mut row, &mut state);
            if !row.pending().is_empty() {
                self.rows.push(row);
                continue;
            }
            let n_out = row.job.n_out();
            let end = row.job.advance(last);
            let is_drawn = match &end {
                Ok(()) => true,
                Err(end) => end.is_some_and(|end| end.tokens_out > n_out),
            };
            if is_drawn {
                state.stats.n_tokens_out += 1;
                state.queue.charge(&row.job, COST_OUT);
                self.observe_token(&mut row.job, now_s);
            }
            match end {
                Ok(()) => self.rows.push(row),
                Err(end) => {
                    let job = row.vacate(&mut self.prefix);
                    ended.extend(end.map(|end| (job, end)));
                }
            }
        }
        state.stats.n_steps += 1;
        state.pace.passed(n_tokens, now_s - started_s);
        for (job, end) in &ended {
            state.pace.answered(end.tokens_out);
            self.observer.observe(&Observation::Finished {
                reason: end.reason,
                total_s: now_s - job.arrived_s,
                tokens_in: job.n_prompt,
                tokens_out: end.tokens_out,
            });
        }
        self.publish(&mut state);
        drop(state);
        self.observer.observe(&Observation::Pass {
            duration_s: now_s - started_s,
            n_rows,
            n_tokens,
            n_adapters: adapters.len(),
        });
    }

    /// Of the rows that take part, in order: tokens where they may be drawn where
    /// the logits are, else logits.
    fn forward(&mut self) -> Result<Forwarded, ForwardError> {
        let (mut segments, mut draws) = (Vec::new(), Vec::new());
        for row in self.rows.iter_mut().filter(|row| row.n_taken > 0) {
            let from = row.cache.len();
            draws.push(if from + row.n_taken < row.job.tokens.len() {
                // Nobody asks what comes after a part of a prompt.
                Some(Draw::GREEDY)
            } else {
                row.job.sampler.wish()
            });
            segments.push(Segment {
                tokens: &row.job.tokens[from..from + row.n_taken],
                cache: &mut row.cache,
                adapter: row.lease.as_deref(),
            });
        }
        self.executor.forward(&mut segments, &draws)
    }

    /// Ends every row: requests were checked when they came, so a pass that is
    /// refused is a defect, and there is no telling whose.
    fn fail(&mut self, error: &ForwardError) {
        tracing::error!(%error, n_rows = self.rows.len(), "forward pass refused");
        for row in self.rows.drain(..) {
            let job = row.vacate(&mut self.prefix);
            job.send(Event::Failed(GenerateError::Forward));
        }
    }

    fn observe_token(&self, job: &mut Job, now_s: f64) {
        let observation = match job.last_token_s {
            None => Observation::FirstToken {
                ttft_s: now_s - job.arrived_s,
            },
            Some(last_s) => Observation::NextToken {
                itl_s: now_s - last_s,
            },
        };
        job.last_token_s = Some(now_s);
        self.observer.observe(&observation);
    }

    /// Brings the numbers of things up to date.
    fn publish(&self, state: &mut State) {
        let n_waiting = state.queue.len();
        let n_loading = state.queue.jobs().filter(|j| !j.wish.has_news()).count();
        let n_used = self.kv.n_pages() - self.kv.free_pages();
        let n_idle = self.prefix.n_idle();
        state.stats = EngineStats {
            n_running: self.rows.len(),
            n_waiting,
            n_loading,
            n_pages: self.kv.n_pages(),
            n_pages_used: n_used - n_idle,
            n_pages_idle: n_idle,
            ..state.stats
        };
    }
}

impl Drop for Scheduler {
    /// However it ends, by a panic too, nobody may wait for ever: rows end by
    /// being dropped, waiting requests here.
    fn drop(&mut self) {
        self.shared.end();
    }
}

/// Counts the tokens that the pass put into the row's cache.
fn account_prompt(row: &mut Row, state: &mut State) {
    let job = &mut row.job;
    let after = row.cache.len();
    let n_new = after.saturating_sub(job.n_computed).min(row.n_taken);
    let n_again = row.n_taken - n_new;
    let n_new_prompt = after.min(job.n_prompt).saturating_sub(after - n_new);
    job.n_computed = job.n_computed.max(after);
    state.stats.n_tokens_again += n_again as u64;
    state.stats.n_tokens_in += n_new_prompt as u64;
    state.queue.charge(job, COST_IN * n_new_prompt as u64);
}

/// Ends the waiting requests whose client left or whose time is over.
fn end_waiting(state: &mut State, now_s: f64) {
    let is_over = |job: &Job| job.events.is_closed() || !job.is_in_time(now_s);
    for mut job in state.queue.remove_if(is_over) {
        end_early(&mut job, state, now_s);
    }
}

/// Ends a request that nobody reads or that is late; whether it is over.
fn end_early(job: &mut Job, state: &mut State, now_s: f64) -> bool {
    if job.events.is_closed() {
        state.stats.n_cancelled += 1;
        true
    } else if !job.is_in_time(now_s) {
        job.expire();
        state.stats.n_expired += 1;
        true
    } else {
        false
    }
}
