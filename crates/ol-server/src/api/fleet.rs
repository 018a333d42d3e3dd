//! What an operator asks of a fleet: how its workers are, and draining. All of it
//! needs an admin key, with payment and without.

use axum::Json;
use axum::extract::{Path, State};
use axum::http::HeaderMap;
use axum::response::{IntoResponse as _, Response};
use serde_json::json;

use super::ApiState;
use super::error::ApiError;
use crate::backend::Backend;
use crate::fleet::Fleet;
use crate::keys::Scope;

pub(super) async fn status(
    State(state): State<ApiState>,
    headers: HeaderMap,
) -> Result<Response, ApiError> {
    let fleet = admitted(&state, &headers)?;
    let stats = fleet.stats();
    let status = json!({
        "n_running": stats.n_running,
        "n_waiting": stats.n_waiting,
        "workers": fleet.status(),
    });
    Ok(Json(status).into_response())
}

pub(super) async fn drain(
    State(state): State<ApiState>,
    headers: HeaderMap,
    Path(name): Path<String>,
) -> Result<Response, ApiError> {
    set_drained(&state, &headers, &name, true)
}

pub(super) async fn undrain(
    State(state): State<ApiState>,
    headers: HeaderMap,
    Path(name): Path<String>,
) -> Result<Response, ApiError> {
    set_drained(&state, &headers, &name, false)
}

fn set_drained(
    state: &ApiState,
    headers: &HeaderMap,
    name: &str,
    is_drained: bool,
) -> Result<Response, ApiError> {
    let worker = admitted(state, headers)?.set_drained(name, is_drained);
    let worker = worker.ok_or_else(|| {
        ApiError::not_found("worker_not_found", "there is no worker with this name")
    })?;
    Ok(Json(worker).into_response())
}

/// The fleet, for who may look after it.
fn admitted(state: &ApiState, headers: &HeaderMap) -> Result<Fleet, ApiError> {
    let service = state.service()?;
    service.authenticate(headers, Scope::Admin)?;
    match service.backend() {
        Backend::Fleet(fleet) => Ok(fleet.clone()),
        Backend::Engine(_) => Err(ApiError::not_found(
            "no_fleet",
            "this server computes its answers itself: it has no workers",
        )),
    }
}
