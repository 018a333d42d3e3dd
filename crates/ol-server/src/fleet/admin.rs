//! What an operator asks of a fleet over HTTP: how it is, and draining.

use std::sync::Arc;

use axum::extract::{Path, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse as _, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use ol_types::{B256, keccak256};
use serde_json::json;

use super::Fleet;

/// The key of an operator, kept as its hash.
#[derive(Debug, Clone, Copy)]
pub struct AdminKey {
    hash: B256,
}

impl AdminKey {
    /// The key with this text.
    #[must_use]
    pub fn new(key: &str) -> Self {
        Self {
            hash: keccak256(key.trim()),
        }
    }

    /// Whether the request comes with this key. Hashes are compared: how long
    /// that takes tells nothing about the key.
    fn is_in(&self, headers: &HeaderMap) -> bool {
        let value = headers.get(header::AUTHORIZATION);
        let value = value.and_then(|value| value.to_str().ok());
        value
            .and_then(|value| value.split_once(' '))
            .filter(|(scheme, _)| scheme.eq_ignore_ascii_case("bearer"))
            .is_some_and(|(_, key)| keccak256(key.trim()) == self.hash)
    }
}

struct Shared {
    fleet: Fleet,
    key: AdminKey,
}

/// `GET /fleet`, `POST /fleet/workers/{name}/drain` and `…/undrain`, all with
/// the key of an operator.
pub fn router(fleet: Fleet, key: AdminKey) -> Router {
    Router::new()
        .route("/fleet", get(status))
        .route("/fleet/workers/{name}/drain", post(drain))
        .route("/fleet/workers/{name}/undrain", post(undrain))
        .with_state(Arc::new(Shared { fleet, key }))
}

async fn status(State(shared): State<Arc<Shared>>, headers: HeaderMap) -> Response {
    if !shared.key.is_in(&headers) {
        return refuse();
    }
    let stats = shared.fleet.stats();
    Json(json!({
        "n_running": stats.n_running,
        "n_waiting": stats.n_waiting,
        "workers": shared.fleet.status(),
    }))
    .into_response()
}

async fn drain(
    State(shared): State<Arc<Shared>>,
    headers: HeaderMap,
    Path(name): Path<String>,
) -> Response {
    set_drained(&shared, &headers, &name, true)
}

async fn undrain(
    State(shared): State<Arc<Shared>>,
    headers: HeaderMap,
    Path(name): Path<String>,
) -> Response {
    set_drained(&shared, &headers, &name, false)
}

fn set_drained(shared: &Shared, headers: &HeaderMap, name: &str, is_drained: bool) -> Response {
    if !shared.key.is_in(headers) {
        return refuse();
    }
    match shared.fleet.set_drained(name, is_drained) {
        Some(worker) => Json(worker).into_response(),
        None => error(
            StatusCode::NOT_FOUND,
            "worker_not_found",
            "there is no worker with this name",
        ),
    }
}

fn refuse() -> Response {
    error(
        StatusCode::UNAUTHORIZED,
        "invalid_api_key",
        "send the admin key as `Authorization: Bearer KEY`",
    )
}

fn error(status: StatusCode, code: &str, message: &str) -> Response {
    let error = json!({"message": message, "type": "invalid_request_error", "code": code});
    (status, Json(json!({"error": error}))).into_response()
}
