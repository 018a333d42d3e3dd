//! `POST /tokenize` and `POST /detokenize`, as vLLM has them.

use axum::Json;
use axum::body::Body;
use axum::extract::State;
use axum::http::HeaderMap;
use serde_json::{Value, json};

use super::error::ApiError;
use super::params::{self, Tokenize};
use super::{ApiState, read_body};
use crate::answer::Prompt;
use crate::keys::Scope;

pub(super) async fn tokenize(
    State(state): State<ApiState>,
    headers: HeaderMap,
    body: Body,
) -> Result<Json<Value>, ApiError> {
    let service = state.service()?.clone();
    service.authenticate(&headers, Scope::Infer)?;
    let input = params::tokenize(&read_body(&headers, body).await?)?;
    let (param, prompt, adds_start) = match input {
        Tokenize::Text { text, adds_start } => ("prompt", Prompt::Text(text), adds_start),
        Tokenize::Chat(chat) => ("messages", chat.prompt()?, true),
    };
    // A megabyte is work for another thread.
    let cut = tokio::task::spawn_blocking(move || {
        let preparer = service.preparer();
        let tokens = match prompt {
            Prompt::Text(text) if !adds_start => preparer.tokenizer().encode(&text)?,
            prompt => preparer.tokens(&prompt)?,
        };
        let context_tokens = preparer.context_tokens();
        Ok::<_, crate::answer::RequestError>(json!({
            "tokens": tokens, "count": tokens.len(), "max_model_len": context_tokens,
        }))
    });
    let cut = cut.await.map_err(|_| ApiError::internal())?;
    cut.map(Json)
        .map_err(|error| ApiError::invalid_value(param, error.to_string()))
}

pub(super) async fn detokenize(
    State(state): State<ApiState>,
    headers: HeaderMap,
    body: Body,
) -> Result<Json<Value>, ApiError> {
    let service = state.service()?;
    service.authenticate(&headers, Scope::Infer)?;
    let tokens = params::detokenize(&read_body(&headers, body).await?)?;
    let tokenizer = service.preparer().tokenizer();
    let n_known = tokenizer.vocab_size();
    if let Some(id) = tokens.iter().find(|&&id| id as usize >= n_known) {
        let message = format!("token {id} is outside the vocabulary of {n_known}");
        return Err(ApiError::invalid_value("tokens", message));
    }
    Ok(Json(json!({"prompt": tokenizer.decode(&tokens)})))
}
