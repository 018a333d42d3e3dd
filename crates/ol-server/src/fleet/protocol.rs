//! What is said to a worker and understood from it: OpenAI's completions with
//! token ids in and out, and vLLM's two calls for adapters.
//!
//! Facts about vLLM are those of 0.32: `return_token_ids` puts `token_ids` into
//! every choice of a stream, the end token among them, and `prompt_token_ids`
//! into the first.

use axum::http::StatusCode;
use ol_serve::{FinishReason, GenerateRequest, SubmitError};
use serde::Deserialize;
use serde_json::{Value, json};

/// Longest message of a worker that is logged.
const MESSAGE_MAX_CHARS: usize = 300;

/// The body that asks a worker for tokens.
///
/// Stop strings stay here: text is made from the token ids on this side, by the
/// tokenizer that the local engine uses too, and an answer that is stopped is
/// cancelled at the worker.
pub(super) fn completion_body(model: &str, request: &GenerateRequest) -> Value {
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
    body
}

/// Whether the workers can do what is asked for.
///
/// # Errors
/// [`SubmitError::Unsupported`] names what they cannot.
pub(super) const fn check(request: &GenerateRequest) -> Result<(), SubmitError> {
    let what = if request.sampling.constraint.is_some() {
        "answers of a given form"
    } else if request.sampling.n_logprobs.is_some() {
        "log-probabilities"
    } else {
        return Ok(());
    };
    Err(SubmitError::Unsupported { what })
}

/// A part of an answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Chunk {
    /// Tokens, and perhaps the end.
    Tokens {
        /// Whose they are.
        model: String,
        /// Their ids; with vLLM the end token too.
        token_ids: Vec<u32>,
        /// The prompt as the worker saw it, if it says.
        prompt_token_ids: Option<Vec<u32>>,
        /// Why it ended, if it did.
        finish_reason: Option<FinishReason>,
    },
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
    token_ids: Option<Vec<u32>>,
    prompt_token_ids: Option<Vec<u32>>,
    finish_reason: Option<String>,
    #[serde(default)]
    text: String,
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
            return Ok(Chunk::Tokens {
                model: chunk.model,
                token_ids: Vec::new(),
                prompt_token_ids: None,
                finish_reason: None,
            });
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
    Ok(Chunk::Tokens {
        model: chunk.model,
        token_ids,
        prompt_token_ids: choice.prompt_token_ids,
        finish_reason,
    })
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
