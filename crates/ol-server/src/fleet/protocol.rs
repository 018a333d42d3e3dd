//! What is said to a worker and understood from it: OpenAI's completions with
//! token ids in and out, and vLLM's two calls for adapters.
//!
//! Facts about vLLM are those of 0.32: `return_token_ids` puts `token_ids` into
//! every choice of a stream, the end token among them, and `prompt_token_ids`
//! into the first.

use axum::http::StatusCode;
use ol_serve::{FinishReason, GenerateRequest, Grammar, TokenLogprobs};
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::config::WorkerKind;

/// Longest message of a worker that is logged.
const MESSAGE_MAX_CHARS: usize = 300;

/// The body that asks a worker for tokens.
///
/// Stop strings stay here: text is made from the token ids on this side, by the
/// tokenizer that the local engine uses too, and an answer that is stopped is
/// cancelled at the worker.
pub(super) fn completion_body(kind: WorkerKind, model: &str, request: &GenerateRequest) -> Value {
    let sampling = &request.sampling;
    // As f64 a number is written so that the same f32 is read.
    let mut body = json!({
        "model": model,
        "prompt": request.prompt_tokens,
        "max_tokens": request.max_tokens,
        "temperature": f64::from(sampling.temperature),
        "top_p": f64::from(sampling.top_p),
        // Said always: a worker fills in what its model's makers recommend.
        "top_k": sampling.top_k,
        "min_p": f64::from(sampling.min_p),
        "repetition_penalty": f64::from(sampling.repetition_penalty),
        // vLLM takes signed numbers only; the bits are the same.
        "seed": sampling.seed.cast_signed(),
        "stream": true,
        "return_token_ids": true,
    });
    for (name, value) in [
        ("presence_penalty", sampling.presence_penalty),
        ("frequency_penalty", sampling.frequency_penalty),
    ] {
        if value != 0.0 {
            body[name] = f64::from(value).into();
        }
    }
    if !sampling.logit_bias.is_empty() {
        let bias = |&(id, bias): &(u32, f32)| (id.to_string(), f64::from(bias).into());
        body["logit_bias"] = Value::Object(sampling.logit_bias.iter().map(bias).collect());
    }
    if !sampling.stop_token_ids.is_empty() {
        body["stop_token_ids"] = json!(sampling.stop_token_ids);
    }
    if sampling.min_tokens > 0 {
        body["min_tokens"] = sampling.min_tokens.into();
    }
    if sampling.ignores_end {
        body["ignore_eos"] = true.into();
    }
    if let Some(n_top) = sampling.n_logprobs {
        body["logprobs"] = n_top.into();
        // Several tokens may have one text.
        body["return_tokens_as_token_ids"] = true.into();
    }
    if let Some(constraint) = &sampling.constraint {
        let mut form = match constraint.grammar() {
            Grammar::JsonSchema(schema) => json!({"json": schema}),
            Grammar::Regex(pattern) => json!({"regex": pattern}),
            Grammar::Choice(texts) => json!({"choice": texts}),
        };
        // Its default lets a weak model fill its answer with space; ours does not.
        if kind == WorkerKind::Vllm && matches!(constraint.grammar(), Grammar::JsonSchema(_)) {
            form["disable_any_whitespace"] = true.into();
        }
        body["structured_outputs"] = form;
    }
    body
}

/// Tokens of an answer, and perhaps its end.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Tokens {
    /// Whose they are.
    pub(super) model: String,
    /// Their ids; with vLLM the end token too.
    pub(super) token_ids: Vec<u32>,
    /// How likely each was, if that was asked for: its own log-probability, and
    /// the likeliest tokens by `token_id:ID`.
    pub(super) logprobs: Vec<(f32, Map<String, Value>)>,
    /// The prompt as the worker saw it, if it says.
    pub(super) prompt_token_ids: Option<Vec<u32>>,
    /// Why it ended, if it did.
    pub(super) finish_reason: Option<FinishReason>,
    /// The token that ended it, where that is not the model's own.
    pub(super) stop_token_id: Option<u32>,
}

/// A part of an answer.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Chunk {
    /// Tokens, and perhaps the end.
    Tokens(Tokens),
    /// `[DONE]`.
    Done,
    /// The worker failed, and says how.
    Failed {
        /// Its words.
        message: String,
    },
}

#[derive(Deserialize)]
struct WireChunk {
    #[serde(default)]
    model: String,
    #[serde(default)]
    choices: Vec<WireChoice>,
    error: Option<Value>,
}

#[derive(Deserialize)]
struct WireChoice {
    stop_reason: Option<Value>,
    logprobs: Option<WireLogprobs>,
    token_ids: Option<Vec<u32>>,
    prompt_token_ids: Option<Vec<u32>>,
    finish_reason: Option<String>,
    #[serde(default)]
    text: String,
}

#[derive(Deserialize)]
struct WireLogprobs {
    token_logprobs: Vec<f32>,
    top_logprobs: Vec<Map<String, Value>>,
}

/// The likeliest `n_top` tokens beside one; `None` if they are not named by
/// their ids.
pub(super) fn token_logprobs(
    (logprob, likeliest): (f32, Map<String, Value>),
    n_top: u32,
) -> Option<TokenLogprobs> {
    #[expect(clippy::cast_possible_truncation, reason = "they were f32")]
    let read = |(name, value): (&String, &Value)| {
        let id: u32 = name.strip_prefix("token_id:")?.parse().ok()?;
        Some((id, value.as_f64()? as f32))
    };
    let mut top = likeliest.iter().map(read).collect::<Option<Vec<_>>>()?;
    top.sort_unstable_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
    // vLLM adds the drawn token where it is not one of them.
    top.truncate(n_top as usize);
    let n_likelier = top.iter().filter(|(_, value)| *value > logprob).count();
    Some(TokenLogprobs {
        logprob,
        rank: u32::try_from(n_likelier + 1).unwrap_or(u32::MAX),
        top,
    })
}

/// Reads the data of one event.
///
/// # Errors
/// What is wrong with it, in words.
pub(super) fn chunk(data: &str) -> Result<Chunk, String> {
    if data == "[DONE]" {
        return Ok(Chunk::Done);
    }
    let chunk: WireChunk =
        serde_json::from_str(data).map_err(|error| format!("an event is no chunk: {error}"))?;
    if let Some(error) = chunk.error {
        return Ok(Chunk::Failed {
            message: message(&error),
        });
    }
    let mut choices = chunk.choices.into_iter();
    let choice = match (choices.next(), choices.next()) {
        (Some(choice), None) => choice,
        // vLLM's last chunk with usage has none.
        (None, _) => {
            return Ok(Chunk::Tokens(Tokens {
                model: chunk.model,
                ..Tokens::default()
            }));
        }
        (Some(_), Some(_)) => return Err("a chunk has several answers".to_owned()),
    };
    let finish_reason = match choice.finish_reason.as_deref() {
        None => None,
        Some("stop") => Some(FinishReason::Stop),
        Some("length") => Some(FinishReason::Length),
        Some("abort" | "error") => {
            return Ok(Chunk::Failed {
                message: "it gave the request up".to_owned(),
            });
        }
        Some(other) => return Err(format!("it ended by {:?}", shorten(other))),
    };
    let token_ids = match choice.token_ids {
        Some(token_ids) => token_ids,
        None if choice.text.is_empty() => Vec::new(),
        None => {
            return Err(
                "it sends text without token ids; it must know `return_token_ids`".to_owned(),
            );
        }
    };
    let stop_token_id = choice.stop_reason.as_ref().and_then(Value::as_u64);
    let logprobs = choice.logprobs.map_or_else(Vec::new, |given| {
        given
            .token_logprobs
            .into_iter()
            .zip(given.top_logprobs)
            .collect()
    });
    Ok(Chunk::Tokens(Tokens {
        model: chunk.model,
        token_ids,
        logprobs,
        prompt_token_ids: choice.prompt_token_ids,
        finish_reason,
        stop_token_id: stop_token_id.and_then(|id| u32::try_from(id).ok()),
    }))
}

/// What a reply other than success means.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Refusal {
    /// Full now.
    Busy,
    /// Takes nothing more; another one may.
    Draining,
    /// Does not know the model: it was restarted, or has evicted it.
    UnknownModel,
    /// The request is wrong for it. It says how.
    Request(String),
    /// It is broken. It says how.
    Broken(String),
}

/// Understands a reply by its status and what its body says.
pub(super) fn refusal(status: StatusCode, body: &[u8]) -> Refusal {
    let said = said(body);
    match status {
        StatusCode::TOO_MANY_REQUESTS => Refusal::Busy,
        StatusCode::SERVICE_UNAVAILABLE => Refusal::Draining,
        StatusCode::NOT_FOUND => Refusal::UnknownModel,
        StatusCode::BAD_REQUEST
        | StatusCode::PAYLOAD_TOO_LARGE
        | StatusCode::UNPROCESSABLE_ENTITY => Refusal::Request(said),
        // Keys that it does not take are a fault of the configuration.
        _ => Refusal::Broken(format!("{status}: {said}")),
    }
}

/// How a call to load an adapter ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Loaded {
    /// It is there now.
    Yes,
    /// As many as it may hold are there.
    Full(String),
    /// It refuses this adapter, and says why.
    Refused(String),
    /// It is broken.
    Broken(String),
}

/// Understands a reply to `load_lora_adapter`. A name that is loaded already is
/// fine: names carry the hash of what they stand for.
pub(super) fn loaded(status: StatusCode, body: &[u8]) -> Loaded {
    let said = said(body);
    let low = said.to_ascii_lowercase();
    match status {
        StatusCode::OK => Loaded::Yes,
        StatusCode::BAD_REQUEST if low.contains("already") => Loaded::Yes,
        StatusCode::TOO_MANY_REQUESTS | StatusCode::INSUFFICIENT_STORAGE => Loaded::Full(said),
        status if status.is_client_error() && !is_key_trouble(status) => Loaded::Refused(said),
        status => Loaded::Broken(format!("{status}: {said}")),
    }
}

fn is_key_trouble(status: StatusCode) -> bool {
    status == StatusCode::UNAUTHORIZED || status == StatusCode::FORBIDDEN
}

/// What a worker serves.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Models {
    /// The name of its base model.
    pub(super) base: Option<String>,
    /// Names of its adapters.
    pub(super) adapters: Vec<String>,
}

/// Reads the answer to `GET /v1/models`.
///
/// # Errors
/// What is wrong with it, in words.
pub(super) fn models(body: &[u8]) -> Result<Models, String> {
    #[derive(Deserialize)]
    struct List {
        data: Vec<Card>,
    }
    #[derive(Deserialize)]
    struct Card {
        id: String,
        parent: Option<String>,
    }
    let list: List =
        serde_json::from_slice(body).map_err(|error| format!("its models are no list: {error}"))?;
    let mut models = Models::default();
    for card in list.data {
        match card.parent {
            Some(_) => models.adapters.push(card.id),
            None if models.base.is_none() => models.base = Some(card.id),
            None => {}
        }
    }
    Ok(models)
}

/// What a worker says in an error's body.
fn said(body: &[u8]) -> String {
    match serde_json::from_slice::<Value>(body) {
        Ok(value) => message(&value),
        Err(_) => shorten(&String::from_utf8_lossy(body)),
    }
}

/// The words of an error object of OpenAI or vLLM.
fn message(error: &Value) -> String {
    let inner = error.get("error").unwrap_or(error);
    let text = inner
        .get("message")
        .or_else(|| inner.get("detail"))
        .and_then(Value::as_str);
    shorten(text.unwrap_or("no reason is given"))
}

fn shorten(text: &str) -> String {
    let mut text: String = text.chars().take(MESSAGE_MAX_CHARS).collect();
    text = text.replace(char::is_control, " ");
    text
}

#[cfg(test)]
mod tests;
