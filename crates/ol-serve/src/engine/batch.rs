//! The running requests and one forward pass over all of them.

use ol_model::{
    ForwardError, KvCache, KvPool, Model, PAGE_TOKENS, Pool, Segment, TokenStream, Tokenizer,
};
use tokio::sync::mpsc;

use super::{EngineOptions, EngineStats};
use crate::adapters::AdapterLease;
use crate::request::{Completion, Event, FinishReason, GenerateError, GenerateRequest};
use crate::sampler::Sampler;
use crate::stop::StopFilter;

/// The requests decoded together, and what they run on.
pub(super) struct Batch<'a> {
    base: &'a Model,
    tokenizer: &'a Tokenizer,
    pool: Pool,
    /// Keys and values of all rows.
    kv: KvPool,
    options: EngineOptions,
    rows: Vec<Row<'a>>,
    stats: EngineStats,
}

/// One running request.
struct Row<'a> {
    adapter: Option<AdapterLease>,
    cache: KvCache,
    /// Tokens of KV cache set aside for this request.
    n_kv_tokens: usize,
    /// Tokens the cache does not hold yet: the rest of the prompt, or the token
    /// drawn last.
    pending: Vec<u32>,
    /// How many of `pending` take part in the forward pass under way.
    n_taken: usize,
    sampler: Sampler,
    text: TokenStream<'a>,
    stop: StopFilter,
    tokens_in: usize,
    token_ids: Vec<u32>,
    max_tokens: usize,
    events: mpsc::Sender<Event>,
}

impl<'a> Batch<'a> {
    pub(super) fn new(
        base: &'a Model,
        tokenizer: &'a Tokenizer,
        pool: Pool,
        options: EngineOptions,
    ) -> Self {
        // Each row may leave its last page partly empty.
        let n_pages = options.n_kv_tokens_max.div_ceil(PAGE_TOKENS);
        let kv = KvPool::new(base.config(), n_pages.saturating_add(options.n_rows_max));
        Self {
            base,
            tokenizer,
            pool,
            kv,
            options,
            rows: Vec::new(),
            stats: EngineStats::default(),
        }
    }

    pub(super) const fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    pub(super) fn stats(&self) -> EngineStats {
        EngineStats {
            n_running: self.rows.len(),
            ..self.stats
        }
    }

    /// Whether the request can start now.
    pub(super) fn has_room(&self, request: &GenerateRequest) -> bool {
        let n_reserved: usize = self.rows.iter().map(|row| row.n_kv_tokens).sum();
        self.rows.len() < self.options.n_rows_max
            && n_reserved + n_kv_tokens(request) <= self.options.n_kv_tokens_max
    }

    /// Starts a request; its prompt takes part in the next passes.
    pub(super) fn admit(
        &mut self,
        request: GenerateRequest,
        adapter: Option<AdapterLease>,
        events: mpsc::Sender<Event>,
    ) {
        let n_kv_tokens = n_kv_tokens(&request);
        let text = self.tokenizer.stream_after(&request.prompt_tokens);
        self.rows.push(Row {
            cache: KvCache::in_pool(&self.kv, n_kv_tokens),
            n_kv_tokens,
            adapter,
            tokens_in: request.prompt_tokens.len(),
            pending: request.prompt_tokens,
            n_taken: 0,
            sampler: Sampler::new(request.sampling),
            text,
            stop: StopFilter::new(request.stop),
            token_ids: Vec::new(),
            max_tokens: request.max_tokens,
            events,
        });
    }

    /// One forward pass: a token of every decoding request and, with what is
    /// left of the pass's tokens, the prompts of newcomers in order of arrival.
    pub(super) fn step(&mut self) {
        self.rows.retain(|row| !row.events.is_closed());
        self.plan();
        let logits = match self.forward() {
            Ok(logits) => logits,
            Err(error) => return self.fail(&error),
        };
        let n_vocab = self.base.config().vocab_size;
        let mut logits = logits.chunks_exact(n_vocab);
        let tokenizer = self.tokenizer;
        let stats = &mut self.stats;
        stats.n_steps += 1;
        self.rows.retain_mut(|row| {
            if row.n_taken == 0 {
                return true;
            }
            let logits = logits
                .next()
                .expect("the model gives logits for every segment");
            if row.token_ids.is_empty() {
                stats.n_tokens_in += row.n_taken as u64;
            }
            row.pending.drain(..row.n_taken);
            if !row.pending.is_empty() {
                return true;
            }
            row.advance(logits, tokenizer, stats)
        });
    }

    /// Ends every row: requests were checked when they came, so a pass that is
    /// refused is a defect, and there is no telling whose.
    fn fail(&mut self, error: &ForwardError) {
        tracing::error!(%error, n_rows = self.rows.len(), "forward pass refused");
        for row in self.rows.drain(..) {
            row.end(Event::Failed(GenerateError::Forward));
        }
    }

    /// Shares the pass's tokens out.
    fn plan(&mut self) {
        let n_decoding = self.rows.iter().filter(|row| !row.is_prefilling()).count();
        // `EngineHandle::start` made sure that every row's token fits.
        let mut n_left = self.options.n_step_tokens_max.saturating_sub(n_decoding);
        for row in &mut self.rows {
            if row.is_prefilling() {
                row.n_taken = row.pending.len().min(n_left);
                n_left -= row.n_taken;
            } else {
                row.n_taken = 1;
            }
        }
    }

    /// `[n rows that take part, vocab]`
    fn forward(&mut self) -> Result<Vec<f32>, ForwardError> {
        let mut segments: Vec<Segment<'_>> = self
            .rows
            .iter_mut()
            .filter(|row| row.n_taken > 0)
            .map(|row| Segment {
                tokens: &row.pending[..row.n_taken],
                cache: &mut row.cache,
                adapter: row.adapter.as_deref(),
            })
            .collect();
        self.base.forward(&self.pool, &mut segments)
    }
}

impl<'a> Row<'a> {
    /// Whether no token was drawn yet.
    const fn is_prefilling(&self) -> bool {
        self.token_ids.is_empty()
    }

    /// Draws a token and sends it; false when the request is over.
    fn advance(
        &mut self,
        logits: &[f32],
        tokenizer: &'a Tokenizer,
        stats: &mut EngineStats,
    ) -> bool {
        let id = match self.sampler.next(logits) {
            Ok(id) => id,
            Err(error) => return self.end(Event::Failed(GenerateError::Logits(error))),
        };
        if tokenizer.is_end(id) {
            return self.finish(FinishReason::Stop, tokenizer);
        }
        self.token_ids.push(id);
        stats.n_tokens_out += 1;
        self.pending.push(id);
        let piece = self.text.push(id);
        let filtered = self.stop.push(&piece);
        if self
            .events
            .try_send(Event::Token {
                id,
                text_delta: filtered.text,
            })
            .is_err()
        {
            return false;
        }
        if filtered.is_stopped {
            return self.complete(FinishReason::Stop, String::new());
        }
        if self.token_ids.len() == self.max_tokens {
            return self.finish(FinishReason::Length, tokenizer);
        }
        true
    }

    /// Ends the answer with the text that is still held back.
    fn finish(&mut self, finish_reason: FinishReason, tokenizer: &'a Tokenizer) -> bool {
        let text = std::mem::replace(&mut self.text, tokenizer.stream());
        // The last bytes may be half a character: they can complete a stop
        // string no less than others.
        let filtered = self.stop.push(&text.finish());
        if filtered.is_stopped {
            return self.complete(FinishReason::Stop, filtered.text);
        }
        let held = std::mem::replace(&mut self.stop, StopFilter::new(Vec::new())).finish();
        self.complete(finish_reason, filtered.text + &held)
    }

    fn complete(&mut self, finish_reason: FinishReason, text_delta: String) -> bool {
        let completion = Completion {
            finish_reason,
            text_delta,
            tokens_in: self.tokens_in,
            token_ids: std::mem::take(&mut self.token_ids),
        };
        self.end(Event::Done(completion))
    }

    fn end(&self, event: Event) -> bool {
        // There is room for every event; a closed channel has nobody to tell.
        let _ = self.events.try_send(event);
        false
    }
}

fn n_kv_tokens(request: &GenerateRequest) -> usize {
    request.prompt_tokens.len() + request.max_tokens
}
