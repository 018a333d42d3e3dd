//! Asking workers whether they are there.

use std::sync::Arc;
use std::time::Duration;

use axum::http::{Method, StatusCode};
use serde_json::Value;

use super::client::{As, Ask};
use super::pool::{Pool, WorkerHealth};
use super::protocol;

/// How long a worker may take to say that it is there.
const PROBE_TIMEOUT: Duration = Duration::from_secs(2);

/// Largest answer to a probe.
const PROBE_MAX_SIZE_BYTES: usize = 64 << 10;

/// Largest list of models.
const MODELS_MAX_SIZE_BYTES: usize = 8 << 20;

/// Asks every worker once, all at the same time.
pub(super) async fn probe_all(pool: &Arc<Pool>) {
    let probes = (0..pool.workers.len()).map(|worker| probe(pool, worker));
    futures::future::join_all(probes).await;
}

async fn probe(pool: &Pool, worker: usize) {
    let found = ask(pool, worker).await;
    if pool.note_probe(worker, found) {
        match models(pool, worker).await {
            Ok(models) => pool.note_models(worker, &models),
            // It answers requests for adapters all the same.
            Err(error) => {
                let name = &pool.workers[worker].options.name;
                tracing::warn!(worker = name, error, "a worker does not say what it serves");
            }
        }
    }
}

/// # Errors
/// What went wrong, in words.
async fn ask(pool: &Pool, worker: usize) -> Result<WorkerHealth, String> {
    let (status, body) = get(pool, worker, "/health", PROBE_MAX_SIZE_BYTES).await?;
    match status {
        StatusCode::OK => Ok(WorkerHealth::Up),
        StatusCode::SERVICE_UNAVAILABLE => {
            let body: Value = serde_json::from_slice(&body).unwrap_or_default();
            match body["status"].as_str() {
                Some("stopping" | "draining") => Ok(WorkerHealth::Draining),
                said => Err(format!("it is {}", said.unwrap_or("not ready"))),
            }
        }
        status => Err(format!("its health is {status}")),
    }
}

/// # Errors
/// What went wrong, in words.
async fn models(pool: &Pool, worker: usize) -> Result<protocol::Models, String> {
    let (status, body) = get(pool, worker, "/v1/models", MODELS_MAX_SIZE_BYTES).await?;
    if status != StatusCode::OK {
        return Err(format!("its models are {status}"));
    }
    protocol::models(&body)
}

async fn get(
    pool: &Pool,
    worker: usize,
    path: &str,
    max_size_bytes: usize,
) -> Result<(StatusCode, Vec<u8>), String> {
    let ask = Ask {
        role: As::User,
        method: Method::GET,
        path,
        body: None,
        timeout: PROBE_TIMEOUT,
    };
    let answer = pool.workers[worker].client.call(&ask, max_size_bytes);
    answer.await.map_err(|error| error.to_string())
}
