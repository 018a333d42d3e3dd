//! Which names we answer under, and which pages may ask us.
//!
//! A browser is the one client that can be made to send requests for somebody
//! else. A page may have its own name point at this machine (DNS rebinding), so
//! the name that was asked for must be one of ours; and it may post to us or
//! open a WebSocket without being allowed to read the answer, so a request of a
//! foreign page is refused and not merely left unreadable.
//!
//! Other clients send no `Origin` and ask by address, and notice nothing.

use std::net::IpAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use axum::body::{Body, Bytes, HttpBody};
use axum::http::uri::Authority;
use axum::http::{HeaderMap, HeaderValue, Request, Response, StatusCode, Uri, header};
use axum::response::IntoResponse as _;
use tower::{Layer, Service};
use tower_http::cors::{AllowHeaders, AllowOrigin, Any, Cors, CorsLayer};

use super::BoxError;
use crate::metrics;

/// Names under which anybody knows this machine.
const LOCAL_NAME: &str = "localhost";

/// Pages of programs that the user has installed in the browser, as wallets.
const EXTENSION_SCHEMES: [&str; 3] = ["chrome-extension", "moz-extension", "safari-web-extension"];

/// Most rules of each kind; a list longer than this is a mistake.
const RULES_MAX: usize = 256;

/// Who may ask. The default answers under addresses and `localhost`, and no
/// page of any other origin.
#[derive(Debug, Clone, Default)]
pub struct Access {
    rules: Arc<Rules>,
}

#[derive(Debug, Default)]
struct Rules {
    any_host: bool,
    /// Lower case.
    hosts: Vec<String>,
    origins: Vec<OriginRule>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum OriginRule {
    Any,
    /// Pages of this machine, on any port, and browser extensions.
    Local,
    /// As a browser sends it, in lower case.
    Exact(String),
}

/// A host or an origin that no request can have.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum AccessError {
    /// Not a host name.
    #[error("{given:?} is not a host name; give a name without scheme and port, or *")]
    Host {
        /// What was given.
        given: String,
    },
    /// Not an origin.
    #[error("{given:?} is not an origin; give https://NAME[:PORT], local, or *")]
    Origin {
        /// What was given.
        given: String,
    },
    /// Too many of them.
    #[error("{n_given} rules were given, the limit is {RULES_MAX}")]
    TooMany {
        /// How many.
        n_given: usize,
    },
}

impl Access {
    /// Answers under `hosts` as well, and to pages of `origins`.
    ///
    /// A host is a name without port, or `*` for any. An origin is
    /// `https://name[:port]`, `*` for any, or `local` for pages of this machine
    /// on any port and for browser extensions.
    ///
    /// # Errors
    /// [`AccessError`] for what cannot be a host or an origin.
    pub fn new(hosts: &[String], origins: &[String]) -> Result<Self, AccessError> {
        for n_given in [hosts.len(), origins.len()] {
            if n_given > RULES_MAX {
                return Err(AccessError::TooMany { n_given });
            }
        }
        let mut rules = Rules::default();
        for given in hosts {
            let name = given.to_ascii_lowercase();
            let is_name = name
                .parse::<Authority>()
                .is_ok_and(|a| a.as_str() == a.host());
            match name.as_str() {
                "*" => rules.any_host = true,
                _ if is_name => rules.hosts.push(name),
                _ => {
                    return Err(AccessError::Host {
                        given: given.clone(),
                    });
                }
            }
        }
        for given in origins {
            rules.origins.push(parse_origin(given)?);
        }
        Ok(Self {
            rules: Arc::new(rules),
        })
    }

    /// The rule for development: pages of this machine may ask.
    #[must_use]
    pub fn local() -> Self {
        Self {
            rules: Arc::new(Rules {
                origins: vec![OriginRule::Local],
                ..Rules::default()
            }),
        }
    }

    fn allows_host(&self, host: &str) -> bool {
        let name = host.trim_end_matches('.').to_ascii_lowercase();
        let bare = name.trim_start_matches('[').trim_end_matches(']');
        // Nobody can point an address at another machine.
        self.rules.any_host
            || name == LOCAL_NAME
            || bare.parse::<IpAddr>().is_ok()
            || self.rules.hosts.contains(&name)
    }

    fn allows_origin(&self, origin: &str) -> bool {
        let origin = origin.to_ascii_lowercase();
        self.rules.origins.iter().any(|rule| match rule {
            OriginRule::Any => true,
            OriginRule::Local => is_local(&origin),
            OriginRule::Exact(exact) => *exact == origin,
        })
    }

    /// Why a request is refused, if it is.
    fn refusal(&self, uri: &Uri, headers: &HeaderMap) -> Option<Refusal> {
        let named = headers.get(header::HOST).map(HeaderValue::to_str);
        let authority = match named {
            Some(Ok(text)) => text.parse::<Authority>().ok(),
            Some(Err(_)) => None,
            None => uri.authority().cloned(),
        };
        let Some(authority) = authority else {
            return Some(Refusal::NoHost);
        };
        if !self.allows_host(authority.host()) {
            return Some(Refusal::Host);
        }
        let origin = headers.get(header::ORIGIN)?;
        let is_allowed = origin
            .to_str()
            .is_ok_and(|origin| self.allows_origin(origin) || is_same_origin(origin, &authority));
        (!is_allowed).then_some(Refusal::Origin)
    }

    /// Puts the checks before a service, and the headers with which browsers
    /// let an allowed page read the answer behind it.
    pub(crate) fn guard<S>(&self, service: S) -> Guard<Cors<S>> {
        let access = self.clone();
        let origins = AllowOrigin::predicate(move |origin, _| {
            origin
                .to_str()
                .is_ok_and(|origin| access.allows_origin(origin))
        });
        let cors = CorsLayer::new()
            .allow_origin(origins)
            .allow_methods(Any)
            .allow_headers(AllowHeaders::mirror_request());
        Guard {
            access: self.clone(),
            inner: cors.layer(service),
        }
    }
}

fn parse_origin(given: &str) -> Result<OriginRule, AccessError> {
    let origin = given.trim_end_matches('/').to_ascii_lowercase();
    match origin.as_str() {
        "*" => return Ok(OriginRule::Any),
        "local" => return Ok(OriginRule::Local),
        _ => {}
    }
    let uri = origin.parse::<Uri>().ok();
    let is_origin = uri.is_some_and(|uri| {
        uri.scheme().is_some()
            && uri.authority().is_some_and(|a| !a.as_str().contains('@'))
            && uri.path_and_query().is_none_or(|path| path.as_str() == "/")
    });
    if is_origin {
        Ok(OriginRule::Exact(origin))
    } else {
        Err(AccessError::Origin {
            given: given.to_owned(),
        })
    }
}

fn is_local(origin: &str) -> bool {
    let Ok(uri) = origin.parse::<Uri>() else {
        return false;
    };
    let (Some(scheme), Some(host)) = (uri.scheme_str(), uri.host()) else {
        return false;
    };
    if EXTENSION_SCHEMES.contains(&scheme) {
        return true;
    }
    let bare = host.trim_start_matches('[').trim_end_matches(']');
    matches!(scheme, "http" | "https")
        && (host == LOCAL_NAME || bare.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback()))
}

/// A page that we served ourselves.
fn is_same_origin(origin: &str, authority: &Authority) -> bool {
    origin
        .parse::<Uri>()
        .is_ok_and(|uri| uri.authority() == Some(authority))
}

/// What is wrong with a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Refusal {
    NoHost,
    Host,
    Origin,
}

impl Refusal {
    const fn text(self) -> &'static str {
        match self {
            Self::NoHost => "the request names no host\n",
            Self::Host => "this host name is not served here; --hosts adds one\n",
            Self::Origin => "pages of this origin may not ask here; --cors adds one\n",
        }
    }

    const fn label(self) -> &'static str {
        match self {
            Self::NoHost | Self::Host => "host",
            Self::Origin => "origin",
        }
    }
}

/// A service behind [`Access`].
#[derive(Debug, Clone)]
pub(crate) struct Guard<S> {
    access: Access,
    inner: S,
}

type Answer = Pin<Box<dyn Future<Output = Result<Response<Body>, BoxError>> + Send>>;

impl<S, Q, B> Service<Request<Q>> for Guard<S>
where
    S: Service<Request<Q>, Response = Response<B>>,
    S::Error: Into<BoxError>,
    S::Future: Send + 'static,
    B: HttpBody<Data = Bytes> + Send + 'static,
    B::Error: Into<BoxError>,
{
    type Response = Response<Body>;
    type Error = BoxError;
    type Future = Answer;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        self.inner.poll_ready(context).map_err(Into::into)
    }

    fn call(&mut self, request: Request<Q>) -> Answer {
        if let Some(refusal) = self.access.refusal(request.uri(), request.headers()) {
            metrics::request_refused(refusal.label());
            let text = refusal.text();
            return Box::pin(async move { Ok((StatusCode::FORBIDDEN, text).into_response()) });
        }
        let answer = self.inner.call(request);
        Box::pin(async move { Ok(answer.await.map_err(Into::into)?.map(Body::new)) })
    }
}

#[cfg(test)]
mod tests;
