//! `POST /v1/embeddings`.

use axum::Json;
use axum::body::Body;
use axum::extract::State;
use axum::http::HeaderMap;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde_json::{Value, json};

use super::answers::limited;
use super::error::ApiError;
use super::params::{self, EmbeddingParams, Text};
use super::{ApiState, model_not_found, read_body};
use crate::answer::{Prompt, RequestError};
use crate::keys::Scope;
use crate::plain::EmbedError;

pub(super) async fn embeddings(
    State(state): State<ApiState>,
    headers: HeaderMap,
    body: Body,
) -> Result<Json<Value>, ApiError> {
    let service = state.service()?;
    let caller = service.authenticate(&headers, Scope::Infer)?;
    let params = params::embeddings(&read_body(&headers, body).await?)?;
    let plain = service.plain().ok_or_else(|| {
        ApiError::unsupported(
            "model",
            "answers of this server are paid for by the model, and the base model has no price",
        )
    })?;
    let EmbeddingParams {
        model,
        inputs,
        is_base64,
        dimensions,
    } = params;
    if model != plain.base_name() {
        return Err(if plain.adapters().names().contains(&model) {
            ApiError::unsupported("model", "only the base model gives embeddings")
        } else {
            model_not_found()
        });
    }
    let inputs = inputs.into_iter().map(|text| match text {
        Text::Text(text) => Prompt::Text(text),
        Text::Tokens(tokens) => Prompt::Tokens(tokens),
    });
    let embedded = plain
        .embed(caller.key, inputs.collect(), dimensions)
        .await
        .map_err(|error| refusal(&error))?;
    let data: Vec<Value> = embedded
        .vectors
        .iter()
        .enumerate()
        .map(|(index, vector)| {
            let embedding = if is_base64 {
                let bytes: Vec<u8> = vector.iter().flat_map(|x| x.to_le_bytes()).collect();
                json!(BASE64.encode(bytes))
            } else {
                json!(vector)
            };
            json!({"object": "embedding", "index": index, "embedding": embedding})
        })
        .collect();
    let tokens = embedded.n_tokens;
    Ok(Json(json!({
        "object": "list", "data": data, "model": model,
        "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
    })))
}

fn refusal(error: &EmbedError) -> ApiError {
    let text = error.to_string();
    match error {
        EmbedError::Limit(limit) => limited(limit),
        EmbedError::Overloaded => ApiError::overloaded(text, 1),
        EmbedError::Stopping => ApiError::unavailable("the server is stopping", 10),
        EmbedError::Remote => ApiError::unsupported("model", text),
        EmbedError::Dimensions { .. } => ApiError::invalid_value("dimensions", text),
        EmbedError::Length { .. } => {
            ApiError::invalid("context_length_exceeded", text).with_param("input")
        }
        EmbedError::Token { .. } | EmbedError::Request(RequestError::Prompt(_)) => {
            ApiError::invalid_value("input", text)
        }
        EmbedError::Request(_) | EmbedError::Forward(_) => {
            tracing::error!(error = error as &dyn std::error::Error, "embedding failed");
            ApiError::internal()
        }
    }
}
