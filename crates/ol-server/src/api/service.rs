//! What the API stands on: the paying gateway, or an engine without payment.

use std::sync::Arc;

use axum::http::{HeaderMap, header};
use ol_types::B256;

use super::error::ApiError;
use crate::answer::{AnswerRequest, Frame, RequestError};
use crate::backend::Backend;
use crate::gateway::{Gateway, Session};
use crate::keys::{Key, RateState, Scope};
use crate::metrics;
use crate::plain::{Plain, PlainSession};
use crate::prepare::Preparer;
use crate::retrieval::Retrieval;

/// What answers. The endpoints, parameters and replies are the same; receipts
/// come only from the one that is paid.
#[derive(Debug, Clone)]
pub enum Service {
    /// Every answer is paid for and has a receipt.
    Paid(Gateway),
    /// Nobody pays.
    Plain(Plain),
}

impl From<Gateway> for Service {
    fn from(gateway: Gateway) -> Self {
        Self::Paid(gateway)
    }
}

impl From<Plain> for Service {
    fn from(plain: Plain) -> Self {
        Self::Plain(plain)
    }
}

/// Who asks.
#[derive(Debug, Clone)]
pub(super) struct Caller {
    /// The key, where one was given that is known.
    pub(super) key: Option<Key>,
}

/// A model as it is listed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct ModelCard {
    pub(super) id: String,
    /// The base model, for an adapter.
    pub(super) parent: Option<String>,
    /// Where it came from.
    pub(super) root: String,
    /// Longest prompt and answer together.
    pub(super) context_tokens: usize,
}

impl Service {
    pub(super) fn is_healthy(&self) -> bool {
        match self {
            Self::Paid(gateway) => gateway.is_healthy(),
            Self::Plain(plain) => plain.is_healthy(),
        }
    }

    pub(super) fn started_at_s(&self) -> u64 {
        match self {
            Self::Paid(gateway) => gateway.started_at_s(),
            Self::Plain(plain) => plain.started_at_s(),
        }
    }

    pub(super) fn unix_s(&self) -> u64 {
        match self {
            Self::Paid(gateway) => gateway.unix_s(),
            Self::Plain(plain) => plain.clock().unix_s(),
        }
    }

    pub(super) fn preparer(&self) -> &Arc<Preparer> {
        match self {
            Self::Paid(gateway) => gateway.preparer(),
            Self::Plain(plain) => plain.preparer(),
        }
    }

    /// The datanets that questions may be given passages of.
    pub(super) fn retrieval(&self) -> Retrieval {
        match self {
            Self::Paid(gateway) => gateway.retrieval().clone(),
            Self::Plain(plain) => plain.retrieval().clone(),
        }
    }

    /// Where its tokens come from.
    pub(super) fn backend(&self) -> &Backend {
        match self {
            Self::Paid(gateway) => gateway.backend(),
            Self::Plain(plain) => plain.backend(),
        }
    }

    /// Records where the backend stands.
    pub(super) fn record_metrics(&self) {
        metrics::serving::record(&self.backend().stats());
        if let Self::Plain(plain) = self {
            metrics::serving::record_adapters(&plain.adapters().stats());
        }
    }

    /// Everything that can be asked, by name.
    pub(super) fn models(&self) -> Vec<ModelCard> {
        let context_tokens = self.preparer().context_tokens();
        let card = |id: String, parent, root: Option<String>| ModelCard {
            root: root.unwrap_or_else(|| id.clone()),
            id,
            parent,
            context_tokens,
        };
        match self {
            Self::Paid(gateway) => gateway
                .models()
                .map(|name| card(name.to_owned(), None, None))
                .collect(),
            Self::Plain(plain) => {
                let base = plain.base_name();
                let adapters = plain.adapters().list().into_iter();
                let adapters =
                    adapters.map(|info| card(info.name, Some(base.to_owned()), info.location));
                std::iter::once(card(base.to_owned(), None, None))
                    .chain(adapters)
                    .collect()
            }
        }
    }

    /// The gateway, where there is one.
    pub(super) const fn gateway(&self) -> Option<&Gateway> {
        match self {
            Self::Paid(gateway) => Some(gateway),
            Self::Plain(_) => None,
        }
    }

    /// The service without payment, where it is one.
    pub(super) const fn plain(&self) -> Option<&Plain> {
        match self {
            Self::Paid(_) => None,
            Self::Plain(plain) => Some(plain),
        }
    }

    /// Who asks, if the key is good for it.
    ///
    /// # Errors
    /// 401 without a key that is known, where one is needed; 403 if it is not
    /// good for this.
    pub(super) fn authenticate(
        &self,
        headers: &HeaderMap,
        scope: Scope,
    ) -> Result<Caller, ApiError> {
        let (keys, is_open) = match self {
            Self::Paid(gateway) => (gateway.keys(), false),
            Self::Plain(plain) => (plain.keys(), plain.is_open() && scope == Scope::Infer),
        };
        let key = match bearer(headers) {
            Ok(given) => keys.find(given),
            Err(_) if is_open => None,
            Err(error) => return Err(error),
        };
        let Some(key) = key else {
            // Clients of OpenAI always send a key, if only a made-up one.
            if is_open {
                return Ok(Caller { key: None });
            }
            let message = "this API key is not known";
            return Err(ApiError::unauthorized("invalid_api_key", message));
        };
        if !key.scopes.contains(&scope) {
            return Err(ApiError::forbidden(match scope {
                Scope::Infer => "this key may not ask models",
                Scope::Admin => "this call needs an admin key: openledger key add --admin",
            }));
        }
        Ok(Caller { key: Some(key) })
    }

    /// What is left of the caller's limits.
    pub(super) fn rates(&self, caller: &Caller) -> Option<RateState> {
        let key = caller.key.as_ref()?;
        Some(match self {
            Self::Paid(gateway) => gateway.meter().rates(key),
            Self::Plain(plain) => plain.meter().rates(key),
        })
    }

    /// Takes a request on.
    ///
    /// # Errors
    /// [`RequestError`]; nothing is charged then.
    pub(super) async fn answer(
        &self,
        caller: &Caller,
        request: AnswerRequest,
    ) -> Result<Running, RequestError> {
        match self {
            Self::Paid(gateway) => {
                let account = caller.key.as_ref().and_then(|key| key.account);
                let account = account.ok_or(RequestError::Unsupported {
                    param: "key",
                    what: "this key has no account that pays",
                })?;
                Ok(Running::Paid(gateway.answer(account, request).await?))
            }
            Self::Plain(plain) => Ok(Running::Plain(plain.answer(request).await?)),
        }
    }
}

/// A request that is being answered. Dropping it says that the client has left.
#[derive(Debug)]
pub(super) enum Running {
    Paid(Session),
    Plain(PlainSession),
}

impl Running {
    pub(super) const fn request_id(&self) -> B256 {
        match self {
            Self::Paid(session) => session.request_id(),
            Self::Plain(session) => session.request_id(),
        }
    }

    pub(super) fn prompt_tokens(&self) -> &[u32] {
        match self {
            Self::Paid(session) => session.prompt_tokens(),
            Self::Plain(session) => session.prompt_tokens(),
        }
    }

    /// The next frame; `None` after the last.
    pub(super) async fn next(&mut self) -> Option<Frame> {
        match self {
            Self::Paid(session) => session.next().await,
            Self::Plain(session) => session.next().await,
        }
    }

    /// Says that part of the answer is on its way to the client.
    pub(super) fn mark_delivered(&self) {
        match self {
            Self::Paid(session) => session.mark_delivered(),
            Self::Plain(_) => {}
        }
    }
}

/// The key of a request.
fn bearer(headers: &HeaderMap) -> Result<&str, ApiError> {
    let missing = || {
        ApiError::unauthorized(
            "missing_api_key",
            "send an API key as `Authorization: Bearer KEY`",
        )
    };
    let value = headers.get(header::AUTHORIZATION).ok_or_else(missing)?;
    let value = value.to_str().map_err(|_| missing())?;
    let (scheme, key) = value.split_once(' ').ok_or_else(missing)?;
    if !scheme.eq_ignore_ascii_case("bearer") {
        return Err(missing());
    }
    Ok(key.trim())
}
