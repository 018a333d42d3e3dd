//! Text from the token ids of a worker, as the engine of this process makes it.

use ol_model::{TokenStream, Tokenizer};
use ol_serve::{
    Completion, Constraint, Event, FinishReason, GenerateError, GenerateRequest, StopFilter,
    StopReason, TokenLogprobs,
};
use tokio::sync::mpsc;

/// An answer as it grows: ids in, events out.
pub(super) struct Transcript<'a> {
    text: TokenStream,
    stop: StopFilter,
    /// Followed here too: a server that does not know the field that asks for a
    /// form passes over it in silence.
    constraint: Option<Constraint>,
    is_followed: bool,
    stopped_by: Option<StopReason>,
    tokens_in: usize,
    max_tokens: usize,
    token_ids: Vec<u32>,
    events: &'a mpsc::Sender<Event>,
}

/// A token that the form asked for has no place for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct NotTheForm;

impl<'a> Transcript<'a> {
    pub(super) fn new(
        tokenizer: &Tokenizer,
        request: &GenerateRequest,
        events: &'a mpsc::Sender<Event>,
    ) -> Self {
        Self {
            text: tokenizer.stream_after(&request.prompt_tokens),
            stop: StopFilter::new(request.stop.clone()),
            constraint: request.sampling.constraint.clone(),
            is_followed: true,
            stopped_by: None,
            tokens_in: request.prompt_tokens.len(),
            max_tokens: request.max_tokens,
            token_ids: Vec::new(),
            events,
        }
    }

    /// Whether a token was passed on.
    pub(super) const fn has_begun(&self) -> bool {
        !self.token_ids.is_empty()
    }

    /// Whether there may be no more tokens.
    pub(super) const fn is_full(&self) -> bool {
        self.token_ids.len() >= self.max_tokens
    }

    /// Whether the form is followed here too.
    pub(super) const fn follow(&mut self, is_followed: bool) {
        self.is_followed = is_followed;
    }

    /// Passes a token on; true if a stop string is complete.
    ///
    /// # Errors
    /// [`NotTheForm`]: then it was not passed on.
    pub(super) fn push(
        &mut self,
        id: u32,
        logprobs: Option<TokenLogprobs>,
    ) -> Result<bool, NotTheForm> {
        if let Some(constraint) = self.constraint.as_mut().filter(|_| self.is_followed) {
            constraint.accept(id).map_err(|_| NotTheForm)?;
        }
        self.token_ids.push(id);
        let filtered = self.stop.push(&self.text.push(id));
        self.send(Event::Token {
            id,
            text_delta: filtered.text,
            logprobs: logprobs.map(Box::new),
        });
        self.stopped_by = filtered.stop.map(StopReason::Text);
        Ok(self.stopped_by.is_some())
    }

    /// Whether the answer may end with the token that came last.
    pub(super) fn may_end(&mut self) -> bool {
        let constraint = self.constraint.as_mut().filter(|_| self.is_followed);
        constraint.is_none_or(|constraint| constraint.may_end().unwrap_or(false))
    }

    /// Ends an answer that a stop string has ended.
    pub(super) fn stop(&mut self) {
        let stop_reason = self.stopped_by.take();
        self.complete(FinishReason::Stop, stop_reason, String::new());
    }

    /// Ends the answer with the text that is still held back.
    pub(super) fn finish(&mut self, finish_reason: FinishReason, stop_reason: Option<StopReason>) {
        let filtered = self.stop.push(&self.text.clone().finish());
        if let Some(stop) = filtered.stop {
            let stop_reason = Some(StopReason::Text(stop));
            return self.complete(FinishReason::Stop, stop_reason, filtered.text);
        }
        let held = self.stop.clone().finish();
        self.complete(finish_reason, stop_reason, filtered.text + &held);
    }

    /// Ends the request without an answer.
    pub(super) fn fail(&self, error: GenerateError) {
        self.send(Event::Failed(error));
    }

    fn complete(
        &mut self,
        finish_reason: FinishReason,
        stop_reason: Option<StopReason>,
        text_delta: String,
    ) {
        let token_ids = std::mem::take(&mut self.token_ids);
        self.send(Event::Done(Completion {
            finish_reason,
            stop_reason,
            text_delta,
            tokens_in: self.tokens_in,
            tokens_cached: 0,
            token_ids,
        }));
    }

    fn send(&self, event: Event) {
        // There is room for every event; a closed channel has nobody to tell.
        let _ = self.events.try_send(event);
    }
}
