//! The OpenAI-compatible API, with vLLM's additions; `docs/openapi.json` lists
//! endpoints and parameters.
//!
//! It stands on a [`Service`]: the paying gateway, or an engine without payment.
//! Paid replies carry an `openledger` object: receipt id, status, fee, split,
//! the best paid contributors, settling transaction and block. In a stream it is
//! in the last chunk before `[DONE]`; of several choices it is a list.
//!
//! A paid request with an `Idempotency-Key` header that is sent again is answered
//! again and charged once; see [`crate::gateway`].
//!
//! Errors have OpenAI's form. Neither prompts nor answers nor keys are logged.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use axum::Json;
use axum::Router;
use axum::body::Body;
use axum::extract::{Path, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{MethodRouter, get, post};
use futures::StreamExt as _;
use ol_runtime::Shutdown;
use ol_types::B256;
use serde_json::{Value, json};

use self::error::ApiError;
use self::params::spec;
use self::service::ModelCard;
use crate::edge::{self, Access, Patience};
use crate::metrics::Exporter;

mod adapters;
mod answers;
mod embed;
mod error;
mod fleet;
mod openapi;
mod params;
mod reply;
mod service;
mod tokens;
mod tools;

pub use self::openapi::document as openapi;
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
/// then are answered. The service is not stopped. With an exporter, metrics are
/// at `/metrics`.
pub async fn serve_on(
    state: ApiState,
    access: Access,
    metrics: Option<Exporter>,
    listener: tokio::net::TcpListener,
    shutdown: Shutdown,
) {
    let mut routes = router(state.clone());
    if let Some(exporter) = metrics {
        let record = move || {
            if let Ok(service) = state.service() {
                service.record_metrics();
            }
        };
        routes = routes.merge(exporter.router_with(record));
    }
    serve_routes(routes, access, listener, shutdown).await;
}

/// [`serve_on`] for routes that have others beside those of [`router`].
pub async fn serve_routes(
    routes: Router,
    access: Access,
    listener: tokio::net::TcpListener,
    shutdown: Shutdown,
) {
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

/// An endpoint: what answers it, and what the OpenAPI document says of it.
struct Route {
    path: &'static str,
    method: &'static str,
    summary: &'static str,
    /// Schema of the body, where there is one.
    body: Option<fn() -> Value>,
    /// Names of the tags: who may ask.
    tag: &'static str,
    handler: MethodRouter<ApiState>,
}

fn routes() -> Vec<Route> {
    let get_route = |path, summary, tag, handler| Route {
        path,
        method: "get",
        summary,
        body: None,
        tag,
        handler,
    };
    let post_route = |path, summary, tag, body: fn() -> Value, handler| Route {
        path,
        method: "post",
        summary,
        body: Some(body),
        tag,
        handler,
    };
    vec![
        get_route(
            "/health",
            "Whether requests are answered.",
            "public",
            get(health),
        ),
        get_route("/ping", "The same as /health.", "public", get(health)),
        get_route(
            "/version",
            "The version of the server.",
            "public",
            get(version),
        ),
        get_route(
            "/openapi.json",
            "This document.",
            "public",
            get(openapi_json),
        ),
        get_route(
            "/v1/models",
            "Every model that can be asked.",
            "public",
            get(models),
        ),
        get_route("/v1/models/{name}", "One of them.", "public", get(model)),
        get_route(
            "/v1/receipts/{id}",
            "A receipt: settled, refused or pending.",
            "public",
            get(receipt),
        ),
        post_route(
            "/v1/chat/completions",
            "Answers a conversation.",
            "infer",
            spec::chat,
            post(answers::chat_completions),
        ),
        post_route(
            "/v1/completions",
            "Goes on with a text.",
            "infer",
            spec::completion,
            post(answers::completions),
        ),
        post_route(
            "/v1/embeddings",
            "Embeds texts by the base model: the hidden state of the last token, of length 1. Not where answers are paid for.",
            "infer",
            spec::embeddings,
            post(embed::embeddings),
        ),
        post_route(
            "/v1/load_lora_adapter",
            "Loads an adapter under a name. Not where answers are paid for.",
            "admin",
            spec::load_adapter,
            post(adapters::load),
        ),
        post_route(
            "/v1/unload_lora_adapter",
            "Takes an adapter's name away; answers under way go on.",
            "admin",
            spec::unload_adapter,
            post(adapters::unload),
        ),
        get_route(
            "/fleet",
            "How the workers are, where there are any.",
            "admin",
            get(fleet::status),
        ),
        Route {
            method: "post",
            ..get_route(
                "/fleet/workers/{name}/drain",
                "Gives a worker no more requests; what it runs is finished.",
                "admin",
                post(fleet::drain),
            )
        },
        Route {
            method: "post",
            ..get_route(
                "/fleet/workers/{name}/undrain",
                "Gives a drained worker requests again.",
                "admin",
                post(fleet::undrain),
            )
        },
        post_route(
            "/tokenize",
            "Cuts a text or a conversation into tokens.",
            "infer",
            spec::tokenize,
            post(tokens::tokenize),
        ),
        post_route(
            "/detokenize",
            "Puts tokens together.",
            "infer",
            spec::detokenize,
            post(tokens::detokenize),
        ),
    ]
}

/// The routes, for callers that bring their own server.
pub fn router(state: ApiState) -> Router {
    let routes = routes().into_iter();
    routes
        .fold(Router::new(), |router, route| {
            router.route(route.path, route.handler)
        })
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

async fn version() -> Json<Value> {
    Json(json!({"version": env!("CARGO_PKG_VERSION")}))
}

async fn openapi_json() -> Json<Value> {
    Json(openapi::document())
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

fn model_object(card: &ModelCard, created: u64) -> Value {
    let ModelCard {
        id,
        parent,
        root,
        context_tokens,
    } = card;
    json!({
        "id": id, "object": "model", "created": created, "owned_by": "openledger", "root": root,
        "parent": parent, "max_model_len": context_tokens,
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
