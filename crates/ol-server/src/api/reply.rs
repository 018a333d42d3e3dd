//! Answers in the form OpenAI clients know, whole or as a stream of events.

use std::convert::Infallible;

use alloy_primitives::hex;
use axum::Json;
use axum::http::{HeaderValue, header};
use axum::response::sse::{Event, Sse};
use axum::response::{IntoResponse, Response};
use ol_serve::FinishReason;
use serde_json::{Value, json};

use super::error::ApiError;
use super::service::Running;
use crate::answer::{Finished, Frame, SessionError, Token};
use crate::gateway::ReceiptView;

/// Most contributors in a reply; the receipt lists them all.
const SHARES_MAX: usize = 5;

/// Most records of a contributor in a reply.
const RECORDS_MAX: usize = 3;

/// Which form a reply has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Endpoint {
    Chat,
    Completion,
}

/// What every part of a reply begins with.
#[derive(Debug, Clone)]
pub(super) struct Head {
    endpoint: Endpoint,
    id: String,
    model: String,
    created: u64,
}

impl Head {
    pub(super) fn new(endpoint: Endpoint, model: String, created: u64, running: &Running) -> Self {
        let prefix = match endpoint {
            Endpoint::Chat => "chatcmpl",
            Endpoint::Completion => "cmpl",
        };
        let id = format!("{prefix}-{}", hex::encode(&running.request_id()[..12]));
        Self {
            endpoint,
            id,
            model,
            created,
        }
    }

    fn object(&self, object: &str, choices: Value) -> Value {
        let Self {
            id, model, created, ..
        } = self;
        json!({"id": id, "object": object, "created": created, "model": model, "choices": choices})
    }

    fn whole(&self, text: &str, finished: &Finished) -> Value {
        let finish_reason = finish_reason(finished.finish_reason);
        let mut body = match self.endpoint {
            Endpoint::Chat => {
                let message = json!({"role": "assistant", "content": text, "refusal": null});
                self.object(
                    "chat.completion",
                    json!([{
                        "index": 0, "message": message, "logprobs": null, "finish_reason": finish_reason,
                    }]),
                )
            }
            Endpoint::Completion => self.object(
                "text_completion",
                json!([{"index": 0, "text": text, "logprobs": null, "finish_reason": finish_reason}]),
            ),
        };
        body["usage"] = usage(finished);
        if let Some(receipt) = &finished.receipt {
            body["openledger"] = payment(receipt);
        }
        body
    }

    /// A chunk of a stream: the role (first chunk of a chat), text, or the end.
    fn chunk(&self, part: ChunkPart<'_>) -> Value {
        let reason = match part {
            ChunkPart::End(reason) => finish_reason(reason).into(),
            ChunkPart::Role | ChunkPart::Text(_) => Value::Null,
        };
        match self.endpoint {
            Endpoint::Chat => {
                let delta = match part {
                    ChunkPart::Role => json!({"role": "assistant", "content": ""}),
                    ChunkPart::Text(text) => json!({"content": text}),
                    ChunkPart::End(_) => json!({}),
                };
                let choice =
                    json!({"index": 0, "delta": delta, "logprobs": null, "finish_reason": reason});
                self.object("chat.completion.chunk", json!([choice]))
            }
            Endpoint::Completion => {
                let text = match part {
                    ChunkPart::Text(text) => text,
                    ChunkPart::Role | ChunkPart::End(_) => "",
                };
                let choice =
                    json!({"index": 0, "text": text, "logprobs": null, "finish_reason": reason});
                self.object("text_completion", json!([choice]))
            }
        }
    }

    /// The last chunks of a stream.
    fn end(&self, finished: &Finished, include_usage: bool) -> Vec<Value> {
        let mut chunks = Vec::new();
        if !finished.text.is_empty() {
            chunks.push(self.chunk(ChunkPart::Text(&finished.text)));
        }
        let end = self.chunk(ChunkPart::End(finished.finish_reason));
        chunks.push(end);
        if include_usage {
            let object = chunks[0]["object"].as_str().unwrap_or_default().to_owned();
            let mut last = self.object(&object, json!([]));
            last["usage"] = usage(finished);
            chunks.push(last);
        }
        if let Some((last, receipt)) = chunks.last_mut().zip(finished.receipt.as_ref()) {
            last["openledger"] = payment(receipt);
        }
        chunks
    }
}

#[derive(Debug, Clone, Copy)]
enum ChunkPart<'a> {
    Role,
    Text(&'a str),
    End(FinishReason),
}

/// Waits for the end and replies once.
pub(super) async fn whole(head: Head, mut running: Running) -> Result<Response, ApiError> {
    let mut text = String::new();
    while let Some(frame) = running.next().await {
        match frame {
            Frame::Token(token) => text.push_str(&token.text),
            Frame::Finished(finished) => {
                text.push_str(&finished.text);
                return Ok(Json(head.whole(&text, &finished)).into_response());
            }
            Frame::Failed(error) => return Err(failure(error)),
        }
    }
    Err(ApiError::internal())
}

/// Replies with server-sent events as the answer grows.
pub(super) fn stream(head: Head, running: Running, include_usage: bool) -> Response {
    let state = Streaming {
        head,
        running,
        include_usage,
        has_begun: false,
        is_over: false,
    };
    // One item is all events that one frame becomes; they are sent in order.
    let events = futures::stream::unfold(state, async |mut state| {
        let data = state.next().await?;
        Some((data, state))
    });
    let events = futures::StreamExt::flat_map(events, |data: Vec<String>| {
        let events = data
            .into_iter()
            .map(|data| Ok::<_, Infallible>(Event::default().data(data)));
        futures::stream::iter(events)
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

struct Streaming {
    head: Head,
    running: Running,
    include_usage: bool,
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
            if self.head.endpoint == Endpoint::Chat {
                return Some(vec![self.head.chunk(ChunkPart::Role).to_string()]);
            }
        }
        match self.running.next().await {
            Some(Frame::Token(Token { text, .. })) if text.is_empty() => Some(Vec::new()),
            Some(Frame::Token(Token { text, .. })) => {
                // The connection takes it now: the answer has begun to be delivered.
                self.running.mark_delivered();
                Some(vec![self.head.chunk(ChunkPart::Text(&text)).to_string()])
            }
            Some(Frame::Finished(finished)) => {
                self.is_over = true;
                let chunks = self.head.end(&finished, self.include_usage);
                let data = chunks.iter().map(ToString::to_string);
                Some(data.chain(["[DONE]".to_owned()]).collect())
            }
            Some(Frame::Failed(error)) => self.fail(failure(error)),
            None => self.fail(ApiError::internal()),
        }
    }

    /// The status is long sent: the error becomes the last event, without `[DONE]`.
    fn fail(&mut self, error: ApiError) -> Option<Vec<String>> {
        self.is_over = true;
        Some(vec![error.to_json().to_string()])
    }
}

const fn finish_reason(reason: FinishReason) -> &'static str {
    match reason {
        FinishReason::Stop => "stop",
        // Cut short, as by `max_tokens`: the schema knows no other word for it.
        FinishReason::Length | FinishReason::Deadline => "length",
    }
}

fn usage(finished: &Finished) -> Value {
    let (tokens_in, tokens_out) = (finished.tokens_in, finished.tokens_out);
    json!({
        "prompt_tokens": tokens_in,
        "completion_tokens": tokens_out,
        "total_tokens": u64::from(tokens_in) + u64::from(tokens_out),
    })
}

/// The `openledger` object of a reply.
fn payment(receipt: &ReceiptView) -> Value {
    let shares: Vec<Value> = receipt
        .shares
        .iter()
        .take(SHARES_MAX)
        .map(|share| {
            json!({
                "contributor": share.contributor,
                "address": share.address,
                "score": share.score,
                "share_ppb": share.share_ppb,
                "paid_wei": share.paid_wei,
                "records": share.records.iter().take(RECORDS_MAX).collect::<Vec<_>>(),
            })
        })
        .collect();
    json!({
        "receipt_id": receipt.id,
        "request_id": receipt.request_id,
        "status": receipt.status,
        "fee_wei": receipt.fee_wei,
        "split": receipt.split,
        "shares": shares,
        "n_shares": receipt.n_shares,
        "treasury_wei": receipt.treasury_wei,
        "tx_hash": receipt.tx_hash,
        "block": receipt.block,
    })
}

fn failure(error: SessionError) -> ApiError {
    match error {
        SessionError::Generate(ol_serve::GenerateError::Stopped) => {
            ApiError::unavailable("the server is stopping", 10)
        }
        SessionError::Generate(ol_serve::GenerateError::Worker | ol_serve::GenerateError::Lied) => {
            ApiError::unavailable("the worker failed; nothing was charged", 1)
        }
        SessionError::Generate(ol_serve::GenerateError::Deadline) => {
            ApiError::timeout(error.to_string())
        }
        SessionError::Generate(ol_serve::GenerateError::Constraint(_)) => {
            ApiError::invalid_value("response_format", error.to_string())
        }
        SessionError::KeyReused => ApiError::conflict("idempotency_key_reused", error.to_string()),
        _ => ApiError::internal(),
    }
}
