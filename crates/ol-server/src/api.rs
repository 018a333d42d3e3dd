//! The OpenAI-compatible API.
//!
//! `POST /v1/chat/completions`, `POST /v1/completions`, `GET /v1/models`,
//! `GET /v1/receipts/{id}`, `GET /health`. Replies carry an `openledger` object:
//! receipt id, status, fee, split, the best paid contributors, settling
//! transaction and block. In a stream it is in the last chunk before `[DONE]`.
//!
//! A request with an `Idempotency-Key` header that is sent again is answered
//! again and charged once; see [`crate::gateway`].
//!
//! Errors have OpenAI's form. Neither prompts nor answers nor keys are logged.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use axum::body::Body;
use axum::extract::{Path, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use futures::StreamExt as _;
use ol_model::{ChatOptions, Conversation};
use ol_runtime::Shutdown;
use ol_serve::{Priority, Sampling, SubmitError};
use ol_types::B256;
use serde_json::json;

use self::error::ApiError;
use self::params::CompletionPrompt;
use self::reply::Endpoint;
use self::service::{Caller, ModelCard};
use crate::answer::{AnswerRequest, Prompt, RequestError};
use crate::edge::{self, Access, Patience};
use crate::gateway::IDEMPOTENCY_KEY_SIZE_BYTES_MAX;
use crate::metrics::Exporter;

mod error;
mod params;
mod reply;
mod service;

pub use self::service::Service;

/// Largest body that is read, in bytes.
pub const BODY_SIZE_BYTES_MAX: usize = 1 << 20;

/// How much of a body that is too large is still taken off the wire, so that
/// the client reads the refusal instead of a broken connection.
const DRAIN_SIZE_BYTES_MAX: usize = 16 << 20;

/// How long a client may take to send its body; shorter than the listener
/// allows, so that the answer is ours.
const BODY_TIMEOUT: Duration = Duration::from_secs(25);

/// Most connections at once; one more is told so and closed.
const CONNECTIONS_MAX: usize = 512;

/// What the API serves: nothing until [`ApiState::set_ready`].
#[derive(Debug, Clone, Default)]
pub struct ApiState {
    service: Arc<OnceLock<Service>>,
}

impl ApiState {
    /// An API that says it is starting.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Begins to serve. Only the first call counts.
    pub fn set_ready(&self, service: impl Into<Service>) {
        let _ = self.service.set(service.into());
    }

    fn service(&self) -> Result<&Service, ApiError> {
        self.service
            .get()
            .ok_or_else(|| ApiError::unavailable("the server is starting", 2))
    }
}

/// Serves the API on `listener` until `shutdown` and the requests that run
/// then are answered. The gateway is not stopped. With an exporter, metrics are
/// at `/metrics`.
pub async fn serve_on(
    state: ApiState,
    access: Access,
    metrics: Option<Exporter>,
    listener: tokio::net::TcpListener,
    shutdown: Shutdown,
) {
    let mut routes = router(state);
    if let Some(exporter) = metrics {
        routes = routes.merge(exporter.router());
    }
    let service = access.guard(routes);
    edge::serve(
        "api",
        listener,
        CONNECTIONS_MAX,
        Patience::default(),
        shutdown,
        || service.clone(),
    )
    .await;
}

/// The routes, for callers that bring their own server.
pub fn router(state: ApiState) -> Router {
    Router::new()
        .route("/health", get(health))
        .route("/v1/models", get(models))
        .route("/v1/models/{name}", get(model))
        .route("/v1/receipts/{id}", get(receipt))
        .route("/v1/chat/completions", post(chat_completions))
        .route("/v1/completions", post(completions))
        .fallback(async || ApiError::not_found("unknown_path", "there is nothing at this path"))
        .method_not_allowed_fallback(async || ApiError::method_not_allowed())
        .with_state(state)
}

async fn health(State(state): State<ApiState>) -> Response {
    let (status, text) = match state.service.get() {
        None => (StatusCode::SERVICE_UNAVAILABLE, "starting"),
        Some(service) if service.is_healthy() => (StatusCode::OK, "ready"),
        Some(_) => (StatusCode::SERVICE_UNAVAILABLE, "stopping"),
    };
    (status, Json(json!({"status": text}))).into_response()
}

async fn models(State(state): State<ApiState>) -> Result<Response, ApiError> {
    let service = state.service()?;
    let created = service.started_at_s();
    let data: Vec<_> = service
        .models()
        .iter()
        .map(|card| model_object(card, created))
        .collect();
    Ok(Json(json!({"object": "list", "data": data})).into_response())
}

async fn model(
    State(state): State<ApiState>,
    Path(name): Path<String>,
) -> Result<Response, ApiError> {
    let service = state.service()?;
    let mut models = service.models().into_iter();
    let card = models.find(|card| card.id == name);
    let card = card.ok_or_else(model_not_found)?;
    Ok(Json(model_object(&card, service.started_at_s())).into_response())
}

fn model_object(card: &ModelCard, created: u64) -> serde_json::Value {
    let ModelCard { id, parent } = card;
    json!({
        "id": id, "object": "model", "created": created, "owned_by": "openledger", "parent": parent,
    })
}

async fn receipt(
    State(state): State<ApiState>,
    Path(id): Path<String>,
) -> Result<Response, ApiError> {
    let nobody_pays = || {
        ApiError::not_found(
            "receipt_not_found",
            "answers of this server have no receipts",
        )
    };
    let gateway = state.service()?.gateway().ok_or_else(nobody_pays)?.clone();
    let id: B256 = id.parse().map_err(|_| {
        ApiError::invalid_value("id", "a receipt's id is 0x and 64 hexadecimal digits")
    })?;
    let found = tokio::task::spawn_blocking(move || gateway.receipt(id)).await;
    match found.map_err(|_| ApiError::internal())? {
        Ok(Some(receipt)) => Ok(Json(receipt).into_response()),
        Ok(None) => Err(ApiError::not_found(
            "receipt_not_found",
            "there is no receipt with this id",
        )),
        Err(error) => {
            tracing::error!(receipt = %id, error = &error as &dyn std::error::Error, "receipt unreadable");
            Err(ApiError::internal())
        }
    }
}

async fn chat_completions(
    State(state): State<ApiState>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, ApiError> {
    let service = state.service()?;
    let caller = service.authenticate(&headers)?;
    let params = params::chat(&read_body(&headers, body).await?)?;
    let conversation = Conversation::from(params.messages.as_slice());
    let prompt = Prompt::Chat(Box::new(conversation), ChatOptions::default());
    let key = idempotency_key(&headers)?;
    answer(service, caller, params.common, prompt, key, Endpoint::Chat).await
}

async fn completions(
    State(state): State<ApiState>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, ApiError> {
    let service = state.service()?;
    let caller = service.authenticate(&headers)?;
    let params = params::completion(&read_body(&headers, body).await?)?;
    let prompt = match params.prompt {
        CompletionPrompt::Text(text) => Prompt::Text(text),
        CompletionPrompt::Tokens(tokens) => Prompt::Tokens(tokens),
    };
    let key = idempotency_key(&headers)?;
    answer(
        service,
        caller,
        params.common,
        prompt,
        key,
        Endpoint::Completion,
    )
    .await
}

async fn answer(
    service: &Service,
    caller: Caller,
    common: params::Common,
    prompt: Prompt,
    idempotency_key: Option<String>,
    endpoint: Endpoint,
) -> Result<Response, ApiError> {
    let model = common.model.clone();
    let request = AnswerRequest {
        model: common.model,
        prompt,
        adapters: Vec::new(),
        sampling: Sampling {
            temperature: common.temperature,
            top_p: common.top_p,
            ..Sampling::GREEDY
        },
        seed: common.seed,
        grammar: None,
        timeout: None,
        priority: Priority::Normal,
        max_tokens: common.max_tokens,
        stop: common.stop,
        idempotency_key,
    };
    let running = service
        .answer(caller, request)
        .await
        .map_err(|error| refusal(&error))?;
    let head = reply::Head::new(endpoint, model, service.unix_s(), &running);
    if common.is_stream {
        return Ok(reply::stream(head, running, common.include_usage));
    }
    reply::whole(head, running).await
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

/// The whole body, if it is not too large and comes in time.
async fn read_body(headers: &HeaderMap, body: Body) -> Result<Vec<u8>, ApiError> {
    let size_bytes: Option<u64> = headers
        .get(header::CONTENT_LENGTH)
        .and_then(|value| value.to_str().ok()?.parse().ok());
    if size_bytes.is_some_and(|size_bytes| size_bytes > DRAIN_SIZE_BYTES_MAX as u64) {
        return Err(ApiError::too_large(BODY_SIZE_BYTES_MAX));
    }
    let read = async {
        let (mut bytes, mut n_read) = (Vec::new(), 0_usize);
        let mut parts = body.into_data_stream();
        while let Some(part) = parts.next().await {
            let part =
                part.map_err(|_| ApiError::invalid("broken_body", "the body ended early"))?;
            n_read += part.len();
            if n_read <= BODY_SIZE_BYTES_MAX {
                bytes.extend_from_slice(&part);
            } else if n_read > DRAIN_SIZE_BYTES_MAX {
                break;
            }
        }
        if n_read > BODY_SIZE_BYTES_MAX {
            Err(ApiError::too_large(BODY_SIZE_BYTES_MAX))
        } else {
            Ok(bytes)
        }
    };
    let timeout = || ApiError::timeout("the body did not come in time");
    tokio::time::timeout(BODY_TIMEOUT, read)
        .await
        .map_err(|_| timeout())?
}

fn model_not_found() -> ApiError {
    ApiError::not_found("model_not_found", "there is no model with this name").with_param("model")
}

/// How a refused request is answered.
fn refusal(error: &RequestError) -> ApiError {
    let text = error.to_string();
    match error {
        RequestError::UnknownModel { .. } => model_not_found(),
        RequestError::Outdated { .. } => ApiError::unavailable(text, 60),
        RequestError::InsufficientBalance { .. } => ApiError::insufficient_balance(text),
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
        RequestError::Engine(SubmitError::Unsupported { .. }) => {
            ApiError::invalid("unsupported_parameter", text)
        }
        RequestError::InFlight => ApiError::conflict("request_in_flight", text),
        RequestError::KeyReused => ApiError::conflict("idempotency_key_reused", text),
        RequestError::Engine(SubmitError::Stopped) | RequestError::Stopping => {
            ApiError::unavailable("the server is stopping", 10)
        }
        RequestError::Unsupported { param, .. } => ApiError::unsupported(param, text),
        RequestError::Grammar(_) => ApiError::invalid_value("response_format", text),
        RequestError::Prompt(_)
        | RequestError::Engine(SubmitError::EmptyPrompt | SubmitError::UnknownToken { .. }) => {
            ApiError::invalid_value("prompt", text)
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
