//! Answers in the form OpenAI clients know, whole or as a stream of events.
//!
//! An answer comes as [`Piece`]s, whether they are put together or sent one by
//! one: so a stream always adds up to the whole reply.

use std::convert::Infallible;
use std::sync::Arc;

use alloy_primitives::hex;
use axum::Json;
use axum::http::{HeaderValue, header};
use axum::response::sse::{Event, Sse};
use axum::response::{IntoResponse, Response};
use futures::StreamExt as _;
use futures::stream::{self, BoxStream};
use ol_model::Tokenizer;
use ol_retrieval::{Hit, Passage};
use ol_serve::{AdapterError, FinishReason, GenerateError, StopReason, TokenLogprobs};
use serde_json::{Value, json};

use super::error::ApiError;
use super::service::Running;
use super::tools::{CallDelta, Parsed, ToolParser, Tools};
use crate::answer::{Finished, Frame, SessionError, Token};
use crate::gateway::{PotView, PotsView, ReceiptView, ShareView};
use crate::retrieval::Grounded;

/// Most contributors in a reply; the receipt lists them all.
const SHARES_MAX: usize = 5;

/// Most records of a contributor in a reply.
const RECORDS_MAX: usize = 3;

/// What stands for a log-probability of minus infinity, which JSON has not.
const LOGPROB_MIN: f32 = -9999.0;

/// Which form a reply has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Endpoint {
    Chat,
    Completion,
}

/// What every part of a reply begins with, and how it is to be given.
#[derive(Debug, Clone)]
pub(super) struct Head {
    pub(super) endpoint: Endpoint,
    pub(super) id: String,
    pub(super) model: String,
    pub(super) created: u64,
    pub(super) tokenizer: Arc<Tokenizer>,
    pub(super) prompt_ids: Vec<u32>,
    pub(super) wants_token_ids: bool,
    pub(super) wants_logprobs: bool,
    /// Whether log-probabilities name a token by its id, as texts of tokens are
    /// not always their own.
    pub(super) names_tokens_by_id: bool,
    pub(super) include_usage: bool,
    /// The passages that the question was given: [`citations`].
    pub(super) citations: Option<Value>,
}

/// The part of a request's id that is shown.
pub(super) fn short_id(running: &Running) -> String {
    hex::encode(&running.request_id()[..12])
}

/// The id of a reply.
pub(super) fn reply_id(endpoint: Endpoint, running: &Running) -> String {
    let prefix = match endpoint {
        Endpoint::Chat => "chatcmpl",
        Endpoint::Completion => "cmpl",
    };
    format!("{prefix}-{}", short_id(running))
}

/// One of the answers of a request, as it comes.
pub(super) struct Choice {
    index: usize,
    running: Running,
    parser: Option<ToolParser>,
    /// Bytes of text so far.
    text_offset: usize,
    is_over: bool,
}

/// Something of an answer.
#[derive(Debug)]
enum Piece {
    /// More of it; not empty.
    More(Delta),
    /// Its end.
    End(Delta, Box<End>),
}

/// What is new of an answer.
#[derive(Debug, Default)]
struct Delta {
    content: String,
    calls: Vec<CallDelta>,
    tokens: Vec<TokenView>,
}

/// A token as it is shown.
#[derive(Debug)]
struct TokenView {
    id: u32,
    text_offset: usize,
    logprobs: Option<Box<TokenLogprobs>>,
}

#[derive(Debug)]
struct End {
    reason: &'static str,
    finished: Finished,
}

impl Choice {
    pub(super) fn new(
        index: usize,
        running: Running,
        tools: Option<&Tools>,
        tokenizer: &Tokenizer,
    ) -> Self {
        let id_prefix = format!("call_{}{index:02}", short_id(&running));
        Self {
            index,
            parser: tools.and_then(|tools| tools.parser(tokenizer, id_prefix)),
            running,
            text_offset: 0,
            is_over: false,
        }
    }

    /// What comes next; `None` after the end.
    async fn next(&mut self) -> Option<Result<Piece, ApiError>> {
        if self.is_over {
            return None;
        }
        let frame = match self.running.next().await {
            Some(Frame::Token(token)) => return Some(Ok(Piece::More(self.take(token)))),
            frame => frame,
        };
        self.is_over = true;
        Some(match frame {
            Some(Frame::Finished(finished)) => Ok(self.end(*finished)),
            Some(Frame::Failed(error)) => Err(failure(&error)),
            Some(Frame::Token(_)) | None => Err(ApiError::internal()),
        })
    }

    fn take(&mut self, token: Token) -> Delta {
        let Token { id, text, logprobs } = token;
        let view = TokenView {
            id,
            text_offset: self.text_offset,
            logprobs,
        };
        self.text_offset += text.len();
        let Parsed { content, calls } = match &mut self.parser {
            Some(parser) => parser.push(id, &text),
            None => Parsed {
                content: text,
                calls: Vec::new(),
            },
        };
        Delta {
            content,
            calls,
            tokens: vec![view],
        }
    }

    fn end(&mut self, mut finished: Finished) -> Piece {
        let text = std::mem::take(&mut finished.text);
        let Parsed { content, calls } = match &mut self.parser {
            Some(parser) => parser.finish(&text),
            None => Parsed {
                content: text,
                calls: Vec::new(),
            },
        };
        let has_called = self.parser.as_ref().is_some_and(ToolParser::has_called);
        let reason = match finished.finish_reason {
            FinishReason::Stop if has_called => "tool_calls",
            FinishReason::Stop => "stop",
            // Cut short, as by `max_tokens`: the schema knows no other word for it.
            FinishReason::Length | FinishReason::Deadline => "length",
        };
        let delta = Delta {
            content,
            calls,
            tokens: Vec::new(),
        };
        Piece::End(delta, Box::new(End { reason, finished }))
    }
}

impl Delta {
    fn add(&mut self, more: Self) {
        self.content.push_str(&more.content);
        self.tokens.extend(more.tokens);
        for call in more.calls {
            match self.calls.iter_mut().find(|c| c.index == call.index) {
                Some(known) => known.arguments.push_str(&call.arguments),
                None => self.calls.push(call),
            }
        }
    }

    /// The calls, with what each has of head and arguments.
    fn call_views(&self, is_delta: bool) -> Vec<Value> {
        let view = |call: &CallDelta| {
            let mut view = json!({"function": {"arguments": call.arguments}});
            if is_delta {
                view["index"] = json!(call.index);
            }
            if let Some((id, name)) = &call.head {
                view["id"] = json!(id);
                view["type"] = json!("function");
                view["function"]["name"] = json!(name);
            }
            view
        };
        self.calls.iter().map(view).collect()
    }
}

impl Head {
    fn object(&self, object: &str, choices: Vec<Value>) -> Value {
        let Self {
            id, model, created, ..
        } = self;
        json!({"id": id, "object": object, "created": created, "model": model, "choices": choices})
    }

    fn chunk_object(&self, choices: Vec<Value>) -> Value {
        let object = match self.endpoint {
            Endpoint::Chat => "chat.completion.chunk",
            Endpoint::Completion => "text_completion",
        };
        self.object(object, choices)
    }

    /// A token as text: what it stands for alone, and its bytes.
    fn token_text(&self, id: u32) -> (String, &[u8]) {
        let bytes = self.tokenizer.token_bytes(id);
        let text = if self.names_tokens_by_id {
            format!("token_id:{id}")
        } else {
            String::from_utf8_lossy(bytes).into_owned()
        };
        (text, bytes)
    }

    fn logprobs(&self, tokens: &[TokenView]) -> Value {
        if !self.wants_logprobs {
            return Value::Null;
        }
        let known = tokens.iter().filter_map(|view| {
            let logprobs = view.logprobs.as_deref()?;
            Some((view, logprobs))
        });
        match self.endpoint {
            Endpoint::Chat => {
                let entry = |id: u32, logprob: f32| {
                    let (token, bytes) = self.token_text(id);
                    json!({"token": token, "logprob": logprob.max(LOGPROB_MIN), "bytes": bytes})
                };
                let content: Vec<Value> = known
                    .map(|(view, logprobs)| {
                        let top = logprobs.top.iter().map(|&(id, value)| entry(id, value));
                        let mut shown = entry(view.id, logprobs.logprob);
                        shown["top_logprobs"] = top.collect();
                        shown
                    })
                    .collect();
                json!({"content": content, "refusal": null})
            }
            Endpoint::Completion => {
                let (mut texts, mut values, mut tops, mut offsets) =
                    (Vec::new(), Vec::new(), Vec::new(), Vec::new());
                for (view, logprobs) in known {
                    texts.push(self.token_text(view.id).0);
                    values.push(logprobs.logprob.max(LOGPROB_MIN));
                    offsets.push(view.text_offset);
                    let top = logprobs.top.iter();
                    let top: serde_json::Map<String, Value> = top
                        .map(|&(id, value)| (self.token_text(id).0, json!(value.max(LOGPROB_MIN))))
                        .collect();
                    tops.push(top);
                }
                json!({
                    "tokens": texts, "token_logprobs": values, "top_logprobs": tops,
                    "text_offset": offsets,
                })
            }
        }
    }

    fn add_token_ids(&self, choice: &mut Value, delta: &Delta) {
        if self.wants_token_ids {
            let ids: Vec<u32> = delta.tokens.iter().map(|view| view.id).collect();
            choice["token_ids"] = json!(ids);
        }
    }

    fn whole_choice(&self, index: usize, delta: &Delta, end: &End) -> Value {
        let logprobs = self.logprobs(&delta.tokens);
        let mut choice = match self.endpoint {
            Endpoint::Chat => {
                let is_call_only = delta.content.is_empty() && !delta.calls.is_empty();
                let content = (!is_call_only).then_some(&delta.content);
                let mut message = json!({"role": "assistant", "content": content, "refusal": null});
                if !delta.calls.is_empty() {
                    message["tool_calls"] = json!(delta.call_views(false));
                }
                json!({"index": index, "message": message})
            }
            Endpoint::Completion => json!({"index": index, "text": delta.content}),
        };
        choice["logprobs"] = logprobs;
        choice["finish_reason"] = json!(end.reason);
        choice["stop_reason"] = stop_reason(&end.finished);
        self.add_token_ids(&mut choice, delta);
        if self.wants_token_ids && self.endpoint == Endpoint::Completion {
            choice["prompt_token_ids"] = json!(self.prompt_ids);
        }
        choice
    }

    /// A chunk of a stream with a part of one choice; `None` if there is nothing
    /// to say.
    fn chunk(&self, index: usize, delta: &Delta, end: Option<&End>) -> Option<Value> {
        let has_tokens = (self.wants_logprobs || self.wants_token_ids) && !delta.tokens.is_empty();
        let has_text = !delta.content.is_empty() || !delta.calls.is_empty();
        if !has_text && !has_tokens && end.is_none() {
            return None;
        }
        let mut choice = match self.endpoint {
            Endpoint::Chat => {
                let mut shown = json!({});
                if !delta.content.is_empty() {
                    shown["content"] = json!(delta.content);
                }
                if !delta.calls.is_empty() {
                    shown["tool_calls"] = json!(delta.call_views(true));
                }
                json!({"index": index, "delta": shown})
            }
            Endpoint::Completion => json!({"index": index, "text": delta.content}),
        };
        choice["logprobs"] = if has_tokens {
            self.logprobs(&delta.tokens)
        } else {
            Value::Null
        };
        choice["finish_reason"] = json!(end.map(|end| end.reason));
        if let Some(end) = end {
            choice["stop_reason"] = stop_reason(&end.finished);
        }
        self.add_token_ids(&mut choice, delta);
        Some(self.chunk_object(vec![choice]))
    }

    /// The first chunks of a stream.
    fn opening(&self, n_choices: usize) -> Vec<Value> {
        let opened = |index: usize| {
            let mut choice = match self.endpoint {
                Endpoint::Chat => {
                    json!({"index": index, "delta": {"role": "assistant", "content": ""}})
                }
                Endpoint::Completion => json!({"index": index, "text": ""}),
            };
            choice["logprobs"] = Value::Null;
            choice["finish_reason"] = Value::Null;
            if self.wants_token_ids && self.endpoint == Endpoint::Completion {
                choice["prompt_token_ids"] = json!(self.prompt_ids);
            }
            let mut chunk = self.chunk_object(vec![choice]);
            if self.wants_token_ids && self.endpoint == Endpoint::Chat {
                chunk["prompt_token_ids"] = json!(self.prompt_ids);
            }
            chunk
        };
        let is_needed = self.endpoint == Endpoint::Chat || self.wants_token_ids;
        let mut chunks: Vec<Value> = (0..n_choices).filter(|_| is_needed).map(opened).collect();
        if let (Some(first), Some(citations)) = (chunks.first_mut(), &self.citations) {
            first["citations"] = citations.clone();
        }
        chunks
    }
}

/// Waits for the end of all choices and replies once.
pub(super) async fn whole(head: Head, choices: Vec<Choice>) -> Result<Response, ApiError> {
    let n_choices = choices.len();
    let gathered = choices.into_iter().map(async |mut choice| {
        let mut whole = Delta::default();
        while let Some(piece) = choice.next().await {
            match piece? {
                Piece::More(delta) => whole.add(delta),
                Piece::End(delta, end) => {
                    whole.add(delta);
                    return Ok((choice.index, whole, *end));
                }
            }
        }
        Err(ApiError::internal())
    });
    let gathered = futures::future::join_all(gathered).await;
    // Those that are finished are paid for: they are handed out even if another
    // one failed.
    let (mut views, mut ends, mut error) = (Vec::new(), Vec::new(), None);
    for answer in gathered {
        match answer {
            Ok((index, delta, end)) => {
                views.push(head.whole_choice(index, &delta, &end));
                ends.push(end);
            }
            Err(failed) => error = Some(failed),
        }
    }
    if let (true, Some(error)) = (ends.is_empty(), error) {
        return Err(error);
    }
    let object = match head.endpoint {
        Endpoint::Chat => "chat.completion",
        Endpoint::Completion => "text_completion",
    };
    let mut body = head.object(object, views);
    if head.wants_token_ids && head.endpoint == Endpoint::Chat {
        body["prompt_token_ids"] = json!(head.prompt_ids);
    }
    if let Some(citations) = head.citations {
        body["citations"] = citations;
    }
    body["usage"] = usage(&ends);
    if let Some(payment) = payments(&ends, n_choices) {
        body["openledger"] = payment;
    }
    Ok(Json(body).into_response())
}

/// The `citations` of a reply: the passages in the prompt under the numbers that
/// they have there.
pub(super) fn citations(grounded: &Grounded) -> Value {
    let method = grounded.method().name();
    let view = |(number, (hit, passage)): (usize, (Hit, Passage<'_>))| {
        let source = passage.source;
        json!({
            "number": number,
            "datanet": grounded.datanet(),
            "version": grounded.version(),
            "record": source.record,
            "cluster": source.cluster,
            "contributor": source.contributor,
            "address": source.address,
            "license": source.license,
            "url": source.url,
            "start": passage.start,
            "end": passage.end,
            "text": passage.text,
            "method": method,
            "score": hit.score,
        })
    };
    (1..).zip(grounded.passages()).map(view).collect()
}

/// Replies with server-sent events as the answers grow.
pub(super) fn stream(head: Head, choices: Vec<Choice>) -> Response {
    let shows_tokens = head.wants_logprobs || head.wants_token_ids;
    let pieces = choices.into_iter().map(|choice| {
        stream::unfold(
            (choice, shows_tokens),
            async |(mut choice, shows_tokens)| {
                let piece = choice.next().await?;
                if let Ok(Piece::More(delta)) = &piece
                    && (shows_tokens || !delta.content.is_empty() || !delta.calls.is_empty())
                {
                    // The connection takes it now: the answer has begun to be delivered.
                    choice.running.mark_delivered();
                }
                Some(((choice.index, piece), (choice, shows_tokens)))
            },
        )
        .boxed()
    });
    let pieces: Vec<_> = pieces.collect();
    let state = Streaming {
        n_choices: pieces.len(),
        pieces: stream::select_all(pieces),
        head,
        ends: Vec::new(),
        has_begun: false,
        is_over: false,
    };
    // One item is all events that one piece becomes; they are sent in order.
    let events = stream::unfold(state, async |mut state| {
        let data = state.next().await?;
        Some((data, state))
    });
    let events = events.flat_map(|data: Vec<String>| {
        let events = data
            .into_iter()
            .map(|data| Ok::<_, Infallible>(Event::default().data(data)));
        stream::iter(events)
    });
    let mut response = Sse::new(events).into_response();
    // Proxies that buffer would turn the stream into one late reply.
    response
        .headers_mut()
        .insert("x-accel-buffering", HeaderValue::from_static("no"));
    response
        .headers_mut()
        .insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    response
}

type Pieces = BoxStream<'static, (usize, Result<Piece, ApiError>)>;

struct Streaming {
    head: Head,
    pieces: stream::SelectAll<Pieces>,
    n_choices: usize,
    ends: Vec<End>,
    has_begun: bool,
    is_over: bool,
}

impl Streaming {
    /// The data of the next events; `None` at the end.
    async fn next(&mut self) -> Option<Vec<String>> {
        if self.is_over {
            return None;
        }
        if !self.has_begun {
            self.has_begun = true;
            let chunks = self.head.opening(self.n_choices);
            return Some(chunks.iter().map(ToString::to_string).collect());
        }
        let Some((index, piece)) = self.pieces.next().await else {
            return self.fail(&ApiError::internal());
        };
        let mut chunks = Vec::new();
        match piece {
            Ok(Piece::More(delta)) => chunks.extend(self.head.chunk(index, &delta, None)),
            Ok(Piece::End(delta, end)) => {
                chunks.extend(self.head.chunk(index, &delta, None));
                let ended = self.head.chunk(index, &Delta::default(), Some(&end));
                chunks.extend(ended);
                self.ends.push(*end);
                if self.ends.len() == self.n_choices {
                    return Some(self.finish(chunks));
                }
            }
            Err(error) => return self.fail(&error),
        }
        Some(chunks.iter().map(ToString::to_string).collect())
    }

    fn finish(&mut self, mut chunks: Vec<Value>) -> Vec<String> {
        self.is_over = true;
        if self.head.include_usage {
            let mut last = self.head.chunk_object(Vec::new());
            last["usage"] = usage(&self.ends);
            chunks.push(last);
        }
        if let Some((last, payment)) = chunks.last_mut().zip(payments(&self.ends, self.n_choices)) {
            last["openledger"] = payment;
        }
        let data = chunks.iter().map(ToString::to_string);
        data.chain(["[DONE]".to_owned()]).collect()
    }

    /// The status is long sent: the error becomes the last event, without `[DONE]`.
    fn fail(&mut self, error: &ApiError) -> Option<Vec<String>> {
        self.is_over = true;
        Some(vec![error.to_json().to_string()])
    }
}

/// The prompt is counted once, as OpenAI does; receipts say what each answer cost.
fn usage(ends: &[End]) -> Value {
    let tokens_in = ends.first().map_or(0, |end| end.finished.tokens_in);
    let tokens_cached = ends.first().map_or(0, |end| end.finished.tokens_cached);
    let tokens_out: u64 = ends
        .iter()
        .map(|end| u64::from(end.finished.tokens_out))
        .sum();
    json!({
        "prompt_tokens": tokens_in,
        "completion_tokens": tokens_out,
        "total_tokens": u64::from(tokens_in) + tokens_out,
        "prompt_tokens_details": {"cached_tokens": tokens_cached},
    })
}

/// vLLM's `stop_reason`: the stop string or token of the request, or null.
fn stop_reason(finished: &Finished) -> Value {
    match &finished.stop_reason {
        None => Value::Null,
        Some(StopReason::Text(text)) => json!(text),
        Some(StopReason::Token(id)) => json!(id),
    }
}

/// The `openledger` field: of one answer an object, of several a list.
fn payments(ends: &[End], n_choices: usize) -> Option<Value> {
    let receipts = ends.iter().filter_map(|end| end.finished.receipt.as_ref());
    let mut payments: Vec<Value> = receipts.map(payment).collect();
    match (n_choices, payments.len()) {
        (_, 0) => None,
        (1, _) => payments.pop(),
        _ => Some(Value::Array(payments)),
    }
}

/// The `openledger` object of an answer.
fn payment(receipt: &ReceiptView) -> Value {
    let PotsView {
        training,
        spans,
        context,
    } = &receipt.pots;
    let pots = json!({
        "training": pot(training),
        "spans": pot(spans),
        "context": pot(context),
    });
    json!({
        "receipt_id": receipt.id,
        "request_id": receipt.request_id,
        "status": receipt.status,
        "claim": receipt.claim,
        "fee_wei": receipt.fee_wei,
        "split": receipt.split,
        "pots": pots,
        "treasury_wei": receipt.treasury_wei,
        "tx_hash": receipt.tx_hash,
        "block": receipt.block,
    })
}

/// The beginning of a pot; the receipt has all of it.
fn pot(pot: &PotView) -> Value {
    let share = |share: &ShareView| {
        json!({
            "contributor": share.contributor,
            "address": share.address,
            "weight": share.weight,
            "share_ppb": share.share_ppb,
            "paid_wei": share.paid_wei,
            "records": share.records.iter().take(RECORDS_MAX).collect::<Vec<_>>(),
        })
    };
    let contributors = pot.contributors.iter().take(SHARES_MAX);
    let mut shown = json!({
        "paid_wei": pot.paid_wei,
        "contributors": contributors.map(share).collect::<Vec<_>>(),
        "n_contributors": pot.n_contributors,
    });
    if let Some(total) = &pot.total_weight {
        shown["total_weight"] = json!(total);
    }
    if !pot.found.is_empty() {
        shown["found"] = json!(pot.found.iter().take(SHARES_MAX).collect::<Vec<_>>());
        shown["n_found"] = json!(pot.found.len());
    }
    if !pot.passages.is_empty() {
        shown["passages"] = json!(pot.passages);
    }
    shown
}

/// An adapter that was registered and cannot be had now. Where it lies is not
/// told: clients are not operators.
fn adapter_failure(error: &AdapterError) -> ApiError {
    let reason = match error {
        AdapterError::Overloaded { .. } => {
            let message = "the memory for adapters is full, try again later";
            return ApiError::overloaded(message, 1);
        }
        AdapterError::Closed => return ApiError::unavailable("the server is stopping", 10),
        AdapterError::Missing { .. } => "its files are gone",
        AdapterError::Changed { .. } => "its files have changed",
        AdapterError::Refused { .. } => "its files are damaged",
        AdapterError::Unreadable { .. } => "its files cannot be read",
        _ => return ApiError::internal(),
    };
    let message = format!("the model's adapter cannot be loaded: {reason}; its operator can help");
    ApiError::unavailable(message, 5)
}

fn failure(error: &SessionError) -> ApiError {
    match error {
        SessionError::Generate(GenerateError::Stopped) => {
            ApiError::unavailable("the server is stopping", 10)
        }
        SessionError::Generate(GenerateError::Worker | GenerateError::Lied) => {
            ApiError::unavailable("the worker failed; nothing was charged", 1)
        }
        SessionError::Generate(GenerateError::Adapter(error)) => adapter_failure(error),
        SessionError::Generate(GenerateError::Deadline) => ApiError::timeout(error.to_string()),
        SessionError::Generate(GenerateError::Constraint(_)) => {
            ApiError::invalid_value("response_format", error.to_string())
        }
        SessionError::KeyReused => ApiError::conflict("idempotency_key_reused", error.to_string()),
        _ => ApiError::internal(),
    }
}
