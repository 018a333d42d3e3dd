//! One request: what it is, and what it takes to run it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::Wake;

use ol_model::{Drawn, KvCache, PAGE_TOKENS, TokenStream};
use ol_types::B256;
use tokio::sync::mpsc;

use super::policy::Priority;
use super::prefix::{Chain, PrefixCache, Root};
use super::signal::Signal;
use crate::adapters::{AdapterLease, AdapterRef};
use crate::request::{Completion, Event, FinishReason, GenerateError, StopReason};
use crate::sampler::{DrawError, Sampler, TokenLogprobs};
use crate::stop::StopFilter;

/// A request apart from its place in memory: what survives a preemption.
#[derive(Debug)]
pub(super) struct Job {
    /// Number in order of arrival.
    pub(super) arrival: u64,
    pub(super) tenant: Arc<str>,
    pub(super) priority: Priority,
    pub(super) arrived_s: f64,
    pub(super) deadline_s: Option<f64>,
    pub(super) adapter: Option<AdapterRef>,
    pub(super) wish: Arc<AdapterWish>,
    /// Where its pages are looked for; `None` to share nothing.
    pub(super) root: Option<Root>,
    /// Prompt and answer so far.
    pub(super) tokens: Vec<u32>,
    pub(super) n_prompt: usize,
    pub(super) max_tokens: usize,
    /// Tokens that were in its cache at one time: more of them is work done
    /// again.
    pub(super) n_computed: usize,
    /// Tokens of the prompt that were found in the prefix cache at the start.
    pub(super) n_cached: usize,
    /// When it started first, and when its last token came.
    pub(super) started_s: Option<f64>,
    pub(super) last_token_s: Option<f64>,
    pub(super) sampler: Sampler,
    pub(super) text: TokenStream,
    pub(super) stop: StopFilter,
    pub(super) events: mpsc::Sender<Event>,
}

/// How an answer ended.
#[derive(Debug, Clone, Copy)]
pub(super) struct Ended {
    pub(super) reason: FinishReason,
    pub(super) tokens_out: usize,
}

/// What a pass says of a row's last token.
pub(super) enum Last<'a> {
    /// The next token is to be drawn from these.
    Logits(&'a [f32]),
    /// The executor drew it.
    Drawn(Drawn),
}

/// A request's wish for its adapter: told by the store when there is news.
#[derive(Debug)]
pub(super) struct AdapterWish {
    /// Whether the store is to be asked again.
    has_news: AtomicBool,
    signal: Arc<Signal>,
}

impl AdapterWish {
    pub(super) fn new(signal: &Arc<Signal>) -> Arc<Self> {
        Arc::new(Self {
            has_news: AtomicBool::new(true),
            signal: Arc::clone(signal),
        })
    }

    /// Whether to ask the store.
    pub(super) fn has_news(&self) -> bool {
        self.has_news.load(Ordering::Acquire)
    }

    /// The store is about to be asked.
    pub(super) fn ask(&self) {
        self.has_news.store(false, Ordering::Release);
    }

    /// The store has given an answer, and may be asked at any time.
    pub(super) fn is_answered(&self) {
        self.has_news.store(true, Ordering::Release);
    }
}

impl Wake for AdapterWish {
    fn wake(self: Arc<Self>) {
        self.has_news.store(true, Ordering::Release);
        self.signal.raise();
    }
}

impl Job {
    pub(super) fn adapter_hash(&self) -> Option<B256> {
        self.adapter.as_ref().map(AdapterRef::hash)
    }

    /// Tokens of the answer.
    pub(super) fn n_out(&self) -> usize {
        self.tokens.len() - self.n_prompt
    }

    /// Tokens of the prompt and of the longest answer.
    pub(super) fn n_tokens_max(&self) -> usize {
        self.n_prompt + self.max_tokens
    }

    /// Whether it is in time at `now_s`.
    pub(super) fn is_in_time(&self, now_s: f64) -> bool {
        self.deadline_s.is_none_or(|deadline_s| now_s < deadline_s)
    }

    /// Its class at `now_s`.
    pub(super) fn class(&self, now_s: f64, aging_s: f64) -> u8 {
        self.priority.aged(now_s - self.arrived_s, aging_s)
    }

    /// The next token and, if asked for, how likely it was.
    fn next_token(&mut self, last: Last<'_>) -> Result<(u32, Option<TokenLogprobs>), DrawError> {
        match last {
            Last::Logits(logits) => {
                let id = self.sampler.next(logits)?;
                Ok((id, self.sampler.logprobs(logits, id)))
            }
            Last::Drawn(drawn) => Ok((drawn.token, self.sampler.take(drawn)?)),
        }
    }

    /// Draws a token and sends it; an error if the answer is over, and how it
    /// ended unless it failed.
    pub(super) fn advance(&mut self, last: Last<'_>) -> Result<(), Option<Ended>> {
        let (id, logprobs) = match self.next_token(last) {
            Ok(next) => next,
            Err(error) => {
                self.send(Event::Failed(error.into()));
                return Err(None);
            }
        };
        if self.sampler.is_end(id) {
            let stop_reason = self.sampler.stop_reason(id);
            return Err(Some(self.finish(FinishReason::Stop, stop_reason)));
        }
        self.tokens.push(id);
        let piece = self.text.push(id);
        let filtered = self.stop.push(&piece);
        let event = Event::Token {
            id,
            text_delta: filtered.text,
            logprobs: logprobs.map(Box::new),
        };
        // Whose client has left ends before the next pass.
        self.send(event);
        if let Some(stop) = filtered.stop {
            let stop_reason = Some(StopReason::Text(stop));
            return Err(Some(self.complete(
                FinishReason::Stop,
                stop_reason,
                String::new(),
            )));
        }
        if self.sampler.is_complete() {
            return Err(Some(self.finish(FinishReason::Stop, None)));
        }
        if self.n_out() == self.max_tokens {
            return Err(Some(self.finish(FinishReason::Length, None)));
        }
        Ok(())
    }

    /// Ends the answer for want of time.
    pub(super) fn expire(&mut self) {
        if self.n_out() > 0 {
            self.finish(FinishReason::Deadline, None);
        } else {
            self.send(Event::Failed(GenerateError::Deadline));
        }
    }

    /// Ends the answer with the text that is still held back.
    fn finish(&mut self, reason: FinishReason, stop_reason: Option<StopReason>) -> Ended {
        // The last bytes may be half a character: they can complete a stop
        // string no less than others.
        let rest = self.text.clone().finish();
        let filtered = self.stop.push(&rest);
        if let Some(stop) = filtered.stop {
            let stop_reason = Some(StopReason::Text(stop));
            return self.complete(FinishReason::Stop, stop_reason, filtered.text);
        }
        let held = self.stop.clone().finish();
        self.complete(reason, stop_reason, filtered.text + &held)
    }

    fn complete(
        &mut self,
        reason: FinishReason,
        stop_reason: Option<StopReason>,
        text_delta: String,
    ) -> Ended {
        let tokens_out = self.n_out();
        let token_ids = self.tokens.split_off(self.n_prompt);
        self.send(Event::Done(Completion {
            finish_reason: reason,
            stop_reason,
            text_delta,
            tokens_in: self.n_prompt,
            tokens_cached: self.n_cached,
            token_ids,
        }));
        Ended { reason, tokens_out }
    }

    /// Sends an event.
    pub(super) fn send(&self, event: Event) {
        // There is room for every event; a closed channel has nobody to tell.
        let _ = self.events.try_send(event);
    }
}

/// A running request.
#[derive(Debug)]
pub(super) struct Row {
    pub(super) job: Job,
    pub(super) lease: Option<AdapterLease>,
    /// What it has seen; the tokens after that are to be computed.
    pub(super) cache: KvCache,
    pub(super) chain: Option<Chain>,
    /// How many tokens take part in the pass under way.
    pub(super) n_taken: usize,
}

impl Row {
    /// Tokens that are not in the cache.
    pub(super) fn pending(&self) -> &[u32] {
        &self.job.tokens[self.cache.len()..]
    }

    /// Whether more than the token drawn last is to be computed.
    pub(super) fn is_prefilling(&self) -> bool {
        self.pending().len() > 1 || self.job.n_out() == 0
    }

    /// Pages that it lacks to hold `n` more tokens.
    pub(super) fn missing_pages(&self, n: usize) -> usize {
        (self.cache.len() + n)
            .div_ceil(PAGE_TOKENS)
            .saturating_sub(self.cache.n_pages())
    }

    /// Offers the pages that are full to the others.
    pub(super) fn share_pages(&mut self, prefix: &mut PrefixCache) {
        let Some(chain) = &mut self.chain else {
            return;
        };
        loop {
            let index = chain.n_pages();
            let Some(page) = self.cache.full_page(index) else {
                return;
            };
            let ids = &self.job.tokens[index * PAGE_TOKENS..][..PAGE_TOKENS];
            let Some(page) = prefix.extend(chain, ids, page) else {
                return;
            };
            // Another may have computed the same meanwhile: one page is enough.
            self.cache.adopt_page(index, &page);
        }
    }

    /// Gives the memory back; what is left can start again.
    pub(super) fn vacate(self, prefix: &mut PrefixCache) -> Job {
        if let Some(chain) = self.chain {
            prefix.release(chain);
        }
        self.job
    }
}
