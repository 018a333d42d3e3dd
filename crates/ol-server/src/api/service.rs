//! What the API stands on: the paying gateway, or an engine without payment.

use axum::http::{HeaderMap, header};
use ol_types::{Address, B256};

use super::error::ApiError;
use crate::answer::{AnswerRequest, Frame, RequestError};
use crate::gateway::{Gateway, Session};
use crate::plain::{Plain, PlainSession};
use crate::prepare::Preparer;

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
#[derive(Debug, Clone, Copy)]
pub(super) struct Caller {
    /// Who pays, where anybody does.
    account: Option<Address>,
}

/// A model as it is listed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct ModelCard {
    pub(super) id: String,
    /// The base model, for an adapter.
    pub(super) parent: Option<String>,
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

    pub(super) fn preparer(&self) -> &Preparer {
        match self {
            Self::Paid(gateway) => gateway.preparer(),
            Self::Plain(plain) => plain.preparer(),
        }
    }

    /// Everything that can be asked, by name.
    pub(super) fn models(&self) -> Vec<ModelCard> {
        match self {
            Self::Paid(gateway) => gateway
                .models()
                .map(|name| ModelCard {
                    id: name.to_owned(),
                    parent: None,
                })
                .collect(),
            Self::Plain(plain) => {
                let base = ModelCard {
                    id: plain.base_name().to_owned(),
                    parent: None,
                };
                let adapters = plain.adapters().names().into_iter().map(|id| ModelCard {
                    id,
                    parent: Some(plain.base_name().to_owned()),
                });
                std::iter::once(base).chain(adapters).collect()
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

    /// Who the request's key stands for.
    ///
    /// # Errors
    /// 401 without a key that is known, where one is needed.
    pub(super) fn authenticate(&self, headers: &HeaderMap) -> Result<Caller, ApiError> {
        let Self::Paid(gateway) = self else {
            return Ok(Caller { account: None });
        };
        let unknown = || ApiError::unauthorized("invalid_api_key", "this API key is not known");
        let account = gateway
            .keys()
            .account(bearer(headers)?)
            .ok_or_else(unknown)?;
        Ok(Caller {
            account: Some(account),
        })
    }

    /// Takes a request on.
    ///
    /// # Errors
    /// [`RequestError`]; nothing is charged then.
    pub(super) async fn answer(
        &self,
        caller: Caller,
        request: AnswerRequest,
    ) -> Result<Running, RequestError> {
        match self {
            Self::Paid(gateway) => {
                let account = caller.account.ok_or(RequestError::Internal)?;
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
