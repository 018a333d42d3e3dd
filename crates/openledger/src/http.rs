//! HTTP as a client: the API of an instance, and the agent that JSON-RPC uses too.

use std::time::Duration;

use anyhow::{Context, anyhow, bail};
use serde_json::Value;

/// How long an answer may take to be generated and settled.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(600);

/// How long anything else may take.
const READ_TIMEOUT: Duration = Duration::from_secs(60);

/// An agent that hands error replies over to be read.
fn agent_with(timeout: Duration) -> ureq::Agent {
    let config = ureq::Agent::config_builder()
        .tls_config(ol_hub::tls_config())
        .timeout_global(Some(timeout))
        .http_status_as_error(false)
        .build();
    config.into()
}

/// An agent for reading, and for transactions.
pub(crate) fn agent() -> ureq::Agent {
    agent_with(READ_TIMEOUT)
}

/// Sends JSON to the API and reads JSON back.
///
/// # Errors
/// The API's own message where it refuses the request.
pub(crate) fn post(url: &str, key: &str, body: &Value) -> anyhow::Result<Value> {
    let reply = agent_with(ANSWER_TIMEOUT)
        .post(url)
        .header("Authorization", &format!("Bearer {key}"))
        .send_json(body);
    read(url, reply)
}

/// Reads JSON from the API.
///
/// # Errors
/// The API's own message where it refuses the request.
pub(crate) fn get(url: &str) -> anyhow::Result<Value> {
    read(url, agent().get(url).call())
}

/// Reads JSON from the API with a key.
///
/// # Errors
/// The API's own message where it refuses the request.
pub(crate) fn get_with_key(url: &str, key: &str) -> anyhow::Result<Value> {
    let bearer = format!("Bearer {key}");
    read(
        url,
        agent().get(url).header("Authorization", &bearer).call(),
    )
}

fn read(
    url: &str,
    reply: Result<ureq::http::Response<ureq::Body>, ureq::Error>,
) -> anyhow::Result<Value> {
    let mut reply = reply.with_context(|| format!("could not reach the API at {url}"))?;
    let status = reply.status();
    let value: Value = reply
        .body_mut()
        .read_json()
        .with_context(|| format!("the API said {status}"))?;
    if status.is_success() {
        return Ok(value);
    }
    match value["error"]["message"].as_str() {
        Some(message) => Err(anyhow!("{message}")),
        None => bail!("the API said {status}"),
    }
}
