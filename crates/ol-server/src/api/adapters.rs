//! vLLM's calls that load and unload adapters: `POST /v1/load_lora_adapter` and
//! `POST /v1/unload_lora_adapter`, with its texts, statuses and types of errors.
//! They need an admin key, and the path lies within the server's roots.

use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse as _, Response};
use ol_serve::{AdapterError, RegisterOptions};

use super::error::ApiError;
use super::params::{self, AdapterParams};
use super::service::Service;
use super::{ApiState, read_body};
use crate::keys::Scope;
use crate::plain::Plain;

const INVALID: &str = "InvalidUserInput";
const NOT_FOUND: &str = "NotFoundError";

pub(super) async fn load(
    State(state): State<ApiState>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, ApiError> {
    let plain = admitted(state.service()?, &headers)?;
    let params = params::load_adapter(&read_body(&headers, body).await?)?;
    let AdapterParams {
        name,
        path,
        replaces,
    } = params;
    if name == plain.base_name() {
        let message = format!("The base model is called '{name}'; give the adapter another name.");
        return Err(ApiError::adapter(
            StatusCode::BAD_REQUEST,
            INVALID,
            "adapter_exists",
            message,
        ));
    }
    let options = RegisterOptions {
        may_replace: replaces,
        ..RegisterOptions::default()
    };
    // Reads and checks all of its files.
    let register = {
        let name = name.clone();
        move || plain.adapters().register(&name, &path, options)
    };
    let registered = tokio::task::spawn_blocking(register).await;
    match registered.map_err(|_| ApiError::internal())? {
        Ok(_) => {
            tracing::info!(adapter = name, "adapter loaded");
            Ok(format!("Success: LoRA adapter '{name}' added successfully.").into_response())
        }
        Err(error) => Err(refusal(&name, &error)),
    }
}

pub(super) async fn unload(
    State(state): State<ApiState>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, ApiError> {
    let plain = admitted(state.service()?, &headers)?;
    let name = params::unload_adapter(&read_body(&headers, body).await?)?;
    match plain.adapters().unload(&name) {
        Ok(()) => {
            tracing::info!(adapter = name, "adapter unloaded");
            Ok(format!("Success: LoRA adapter '{name}' removed successfully.").into_response())
        }
        Err(error) => Err(refusal(&name, &error)),
    }
}

/// The service whose adapters an admin may change.
fn admitted(service: &Service, headers: &HeaderMap) -> Result<Plain, ApiError> {
    service.authenticate(headers, Scope::Admin)?;
    let plain = service.plain().ok_or_else(|| {
        ApiError::forbidden("the models of this server are those on chain: register them there")
    })?;
    Ok(plain.clone())
}

fn refusal(name: &str, error: &AdapterError) -> ApiError {
    let refused = |status, kind, code, message| ApiError::adapter(status, kind, code, message);
    let text = error.to_string();
    match error {
        AdapterError::Unknown { .. } => refused(
            StatusCode::NOT_FOUND,
            NOT_FOUND,
            "adapter_not_found",
            format!("The lora adapter '{name}' cannot be found."),
        ),
        AdapterError::Taken { .. } => refused(
            StatusCode::BAD_REQUEST,
            INVALID,
            "adapter_exists",
            format!(
                "The lora adapter '{name}' has already been loaded. If you want to load the adapter \
                 in place, set 'load_inplace' to True."
            ),
        ),
        AdapterError::Missing { .. } | AdapterError::Location { .. } => {
            refused(StatusCode::NOT_FOUND, NOT_FOUND, "adapter_not_found", text)
        }
        AdapterError::Overloaded { .. } | AdapterError::Busy => ApiError::overloaded(text, 1),
        AdapterError::Closed => ApiError::unavailable("the server is stopping", 10),
        AdapterError::Defect | AdapterError::Start { .. } => {
            tracing::error!(
                error = error as &dyn std::error::Error,
                "loading an adapter failed"
            );
            ApiError::internal()
        }
        _ => refused(StatusCode::BAD_REQUEST, INVALID, "adapter_refused", text),
    }
}
