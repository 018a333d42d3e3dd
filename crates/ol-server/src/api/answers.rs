//! `POST /v1/chat/completions` and `POST /v1/completions`.

use std::sync::Arc;

use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderMap, HeaderValue};
use axum::response::Response;
use ol_retrieval::RetrievalError;
use ol_serve::SubmitError;

use super::error::ApiError;
use super::params::{self, Common, Text};
use super::reply::{self, Choice, Endpoint, Head};
use super::service::{Caller, Service};
use super::tools::{ToolChoice, Tools};
use super::{ApiState, model_not_found, read_body};
use crate::answer::{AnswerRequest, Prompt, RequestError};
use crate::gateway::IDEMPOTENCY_KEY_SIZE_BYTES_MAX;
use crate::keys::{LimitError, RateState, Scope};
use crate::retrieval::{GroundError, Grounded};

pub(super) async fn chat_completions(
    State(state): State<ApiState>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, ApiError> {
    let service = state.service()?;
    let caller = service.authenticate(&headers, Scope::Infer)?;
    let params = params::chat(&read_body(&headers, body).await?)?;
    let is_free = params.tools.choice == ToolChoice::Auto;
    if is_free && !service.preparer().tokenizer().has_tool_format() {
        return Err(ApiError::unsupported(
            "tools",
            "the chat format of this model cannot describe tools: \
             tool_choice must be none, required or a function",
        ));
    }
    let mut chat = params.chat;
    if !service.preparer().tokenizer().has_tool_format() {
        chat.drop_tools();
    }
    let (prompt, context) = match params.retrieval {
        None => (chat.prompt()?, None),
        Some(wanted) => {
            let retrieval = service.retrieval();
            let max_tokens = params.common.max_tokens;
            let grounded = retrieval
                .ground(chat.into_inner(), wanted, service.preparer(), max_tokens)
                .await
                .map_err(|error| not_grounded(&error))?;
            let prompt = grounded.prompt(&vec![true; grounded.len()]);
            let prompt = prompt.map_err(|error| params::refused(&error))?;
            (prompt, Some(Arc::new(grounded)))
        }
    };
    let asked = Asked {
        common: params.common,
        prompt,
        context,
        idempotency_key: idempotency_key(&headers)?,
        endpoint: Endpoint::Chat,
        tools: Some(params.tools),
    };
    answer(service, caller, asked).await
}

pub(super) async fn completions(
    State(state): State<ApiState>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, ApiError> {
    let service = state.service()?;
    let caller = service.authenticate(&headers, Scope::Infer)?;
    let params = params::completion(&read_body(&headers, body).await?)?;
    let asked = Asked {
        common: params.common,
        prompt: match params.prompt {
            Text::Text(text) => Prompt::Text(text),
            Text::Tokens(tokens) => Prompt::Tokens(tokens),
        },
        context: None,
        idempotency_key: idempotency_key(&headers)?,
        endpoint: Endpoint::Completion,
        tools: None,
    };
    answer(service, caller, asked).await
}

/// A request that was read.
struct Asked {
    common: Common,
    prompt: Prompt,
    context: Option<Arc<Grounded>>,
    idempotency_key: Option<String>,
    endpoint: Endpoint,
    tools: Option<Tools>,
}

async fn answer(service: &Service, caller: Caller, asked: Asked) -> Result<Response, ApiError> {
    let Asked {
        common,
        prompt,
        context,
        idempotency_key,
        endpoint,
        tools,
    } = asked;
    let citations = context.as_deref().map(reply::citations);
    let wants_logprobs = common.sampling.rest.n_logprobs.is_some();
    let n = common.n;
    let request = AnswerRequest {
        model: common.model.clone(),
        adapters: common.adapters,
        prompt,
        sampling: common.sampling,
        seed: common.seed,
        grammar: common.grammar,
        max_tokens: common.max_tokens,
        stop: common.stop,
        timeout: common.timeout,
        priority: common.priority,
        key: caller.key.clone(),
        context,
        idempotency_key,
    };
    let mut running = Vec::with_capacity(n);
    for index in 0..n {
        let answer = service.answer(&caller, nth(&request, index)).await;
        // Dropping those that run ends them: none has delivered anything.
        running.push(answer.map_err(|error| refusal(&error, endpoint))?);
    }
    let tokenizer = service.preparer().tokenizer();
    let Some(first) = running.first() else {
        return Err(ApiError::internal());
    };
    let head = Head {
        endpoint,
        id: reply::reply_id(endpoint, first),
        model: common.model,
        created: service.unix_s(),
        tokenizer: tokenizer.clone(),
        prompt_ids: first.prompt_tokens().to_vec(),
        wants_token_ids: common.wants_token_ids,
        wants_logprobs,
        names_tokens_by_id: common.names_tokens_by_id,
        include_usage: common.include_usage,
        citations,
    };
    let choices = running
        .into_iter()
        .enumerate()
        .map(|(index, running)| Choice::new(index, running, tools.as_ref(), tokenizer))
        .collect();
    let mut response = if common.is_stream {
        reply::stream(head, choices)
    } else {
        reply::whole(head, choices).await?
    };
    if let Some(rates) = service.rates(&caller) {
        add_rates(response.headers_mut(), &rates);
    }
    Ok(response)
}

/// The request for one of several answers: another seed, another name.
fn nth(request: &AnswerRequest, index: usize) -> AnswerRequest {
    let mut request = request.clone();
    if index > 0 {
        request.seed = request.seed.map(|seed| seed.wrapping_add(index as u64));
        if let Some(key) = &mut request.idempotency_key {
            *key = format!("{key}#{index}");
        }
    }
    request
}

/// What is left of a key's minute, under OpenAI's names.
fn add_rates(headers: &mut HeaderMap, rates: &RateState) {
    let kinds = [
        (
            rates.requests,
            [
                "x-ratelimit-limit-requests",
                "x-ratelimit-remaining-requests",
                "x-ratelimit-reset-requests",
            ],
        ),
        (
            rates.tokens,
            [
                "x-ratelimit-limit-tokens",
                "x-ratelimit-remaining-tokens",
                "x-ratelimit-reset-tokens",
            ],
        ),
    ];
    for (state, [limit_name, left_name, reset_name]) in kinds {
        let Some((limit, left, reset_s)) = state else {
            continue;
        };
        headers.insert(limit_name, HeaderValue::from(limit));
        headers.insert(left_name, HeaderValue::from(left));
        if let Ok(reset) = HeaderValue::from_str(&format!("{reset_s:.3}s")) {
            headers.insert(reset_name, reset);
        }
    }
}

/// The client's name for its request, if it gave one.
fn idempotency_key(headers: &HeaderMap) -> Result<Option<String>, ApiError> {
    let Some(value) = headers.get("idempotency-key") else {
        return Ok(None);
    };
    let key = value.to_str().ok().filter(|key| !key.is_empty());
    match key.filter(|key| key.len() <= IDEMPOTENCY_KEY_SIZE_BYTES_MAX) {
        Some(key) => Ok(Some(key.to_owned())),
        None => Err(ApiError::invalid(
            "invalid_idempotency_key",
            format!(
                "an Idempotency-Key is 1 to {IDEMPOTENCY_KEY_SIZE_BYTES_MAX} visible ASCII characters"
            ),
        )),
    }
}

/// How a refused request is answered.
fn refusal(error: &RequestError, endpoint: Endpoint) -> ApiError {
    let text = error.to_string();
    match error {
        RequestError::UnknownModel { .. } => model_not_found(),
        RequestError::Outdated { .. } | RequestError::NoBond { .. } => {
            ApiError::unavailable(text, 60)
        }
        RequestError::InsufficientBalance { .. } => ApiError::insufficient_balance(text),
        RequestError::Limit(limit) => limited(limit),
        RequestError::Overloaded => {
            ApiError::overloaded("the server is overloaded, try again later", 1)
        }
        RequestError::Engine(SubmitError::Overloaded { retry_after, .. }) => {
            let retry_after_s = u32::try_from(retry_after.as_secs()).unwrap_or(u32::MAX);
            ApiError::overloaded("the server is overloaded, try again later", retry_after_s)
        }
        RequestError::Engine(SubmitError::TooLong { .. }) => {
            ApiError::invalid("context_length_exceeded", text)
        }
        RequestError::Engine(SubmitError::Unavailable) => ApiError::unavailable(text, 1),
        RequestError::InFlight => ApiError::conflict("request_in_flight", text),
        RequestError::KeyReused => ApiError::conflict("idempotency_key_reused", text),
        RequestError::Engine(SubmitError::Stopped) | RequestError::Stopping => {
            ApiError::unavailable("the server is stopping", 10)
        }
        RequestError::Unsupported { param, .. } => ApiError::unsupported(param, text),
        RequestError::Grammar(_) => ApiError::invalid_value("response_format", text),
        RequestError::Adapter(_) => ApiError::invalid_value("adapters", text),
        RequestError::Prompt(_)
        | RequestError::Engine(SubmitError::EmptyPrompt | SubmitError::UnknownToken { .. }) => {
            let param = match endpoint {
                Endpoint::Chat => "messages",
                Endpoint::Completion => "prompt",
            };
            ApiError::invalid_value(param, text)
        }
        RequestError::Engine(
            SubmitError::NoTokens | SubmitError::Stop | SubmitError::Sampling(_),
        ) => ApiError::invalid("invalid_value", text),
        error => {
            tracing::error!(error = error as &dyn std::error::Error, "request failed");
            ApiError::internal()
        }
    }
}

/// How a question is answered that cannot be given passages.
fn not_grounded(error: &GroundError) -> ApiError {
    let text = error.to_string();
    match error {
        GroundError::Unknown { .. } => {
            ApiError::not_found("datanet_not_found", text).with_param("retrieval.datanet")
        }
        GroundError::NoQuestion => ApiError::invalid_value("messages", text),
        GroundError::Overloaded => ApiError::overloaded(text, 1),
        GroundError::Chat(error) => params::refused(error),
        GroundError::Retrieval(RetrievalError::NoEmbeddings) => {
            ApiError::unsupported("retrieval.method", text)
        }
        GroundError::Request(error) => refusal(error, Endpoint::Chat),
        GroundError::Retrieval(error) => {
            tracing::error!(error = error as &dyn std::error::Error, "retrieval failed");
            ApiError::internal()
        }
    }
}

pub(super) fn limited(limit: &LimitError) -> ApiError {
    let text = limit.to_string();
    match limit {
        LimitError::Rate { retry_after_s, .. } => ApiError::rate_limited(text, *retry_after_s),
        LimitError::TooLarge { .. } => ApiError::invalid("rate_limit_exceeded", text),
        LimitError::Budget { retry_after_s, .. } => ApiError::quota(text, *retry_after_s),
    }
}
