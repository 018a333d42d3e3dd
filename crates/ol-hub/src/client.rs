//! Requests to a hub: redirects, refusals, retries, and whom the token goes to.

use std::io::Read;
use std::time::Duration;

use ureq::http::{HeaderMap, Response, Uri, header};
use ureq::{Agent, Body, Proxy};

use crate::listing::Listing;
use crate::tls::{roots, tls_config};
use crate::{HubError, HubOptions, Reference};

/// Most redirects of one request.
const MAX_REDIRECTS: usize = 5;
/// Longest answer that is read whole.
const MAX_ANSWER_SIZE_BYTES: u64 = 64 << 20;
/// Longest wait that a server may ask for.
const MAX_WAIT: Duration = Duration::from_secs(300);
/// Longest piece of a server's message that is shown.
const MAX_MESSAGE: usize = 300;

#[derive(Debug)]
pub(crate) struct Client {
    agent: Agent,
    endpoint: Uri,
    authorization: Option<Secret>,
    max_retries: u32,
    wait: fn(Duration),
}

/// Is never printed.
struct Secret(String);

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Secret")
    }
}

/// Why one request did not succeed.
#[derive(Debug)]
pub(crate) enum Failure {
    /// It may succeed another time, after this wait if the server asks for one.
    Passing {
        reason: String,
        wait: Option<Duration>,
    },
    /// It will not.
    Final(HubError),
}

impl Client {
    pub(crate) fn new(options: &HubOptions) -> Result<Self, HubError> {
        let bad = || HubError::Endpoint(options.endpoint.clone());
        let endpoint: Uri = options.endpoint.parse().map_err(|_| bad())?;
        let is_secure = endpoint.scheme_str() == Some("https");
        if (!is_secure && endpoint.scheme_str() != Some("http"))
            || endpoint
                .authority()
                .is_none_or(|a| a.as_str().contains('@'))
            || endpoint.query().is_some()
        {
            return Err(bad());
        }
        if is_secure && roots().is_empty() {
            return Err(HubError::NoRoots);
        }
        let proxy = if options.uses_proxy {
            Proxy::try_from_env()
        } else {
            None
        };
        let config = Agent::config_builder()
            .tls_config(tls_config())
            .proxy(proxy)
            .http_status_as_error(false)
            // Redirects are followed here, where it is known who may see the token.
            .max_redirects(0)
            .max_redirects_will_error(false)
            .accept_encoding("identity")
            .user_agent(concat!("openledger/", env!("CARGO_PKG_VERSION")))
            .timeout_connect(Some(Duration::from_secs(20)))
            .timeout_recv_response(Some(Duration::from_secs(60)))
            .timeout_per_read(Some(Duration::from_secs(60)))
            .build();
        Ok(Self {
            agent: config.into(),
            endpoint,
            authorization: options
                .token
                .as_ref()
                .map(|token| Secret(format!("Bearer {token}"))),
            max_retries: options.max_retries,
            wait: options.wait,
        })
    }

    pub(crate) const fn max_retries(&self) -> u32 {
        self.max_retries
    }

    /// The files of a revision.
    pub(crate) fn listing(&self, reference: &Reference) -> Result<Listing, HubError> {
        let revision = reference.revision.replace('/', "%2F");
        let path = format!(
            "/api/models/{}/revision/{revision}?blobs=true",
            reference.id
        );
        let url = self.url(&path)?;
        let mut attempt = 0;
        let bytes = loop {
            let answer = self.get(reference, &url, 0).and_then(|response| {
                let mut bytes = Vec::new();
                let read = response
                    .into_body()
                    .into_reader()
                    .take(MAX_ANSWER_SIZE_BYTES + 1)
                    .read_to_end(&mut bytes);
                match read {
                    Ok(_) => Ok(bytes),
                    Err(error) => Err(Failure::Passing {
                        reason: error.to_string(),
                        wait: None,
                    }),
                }
            });
            match answer {
                Ok(bytes) => break bytes,
                Err(failure) => self.pause(&url, failure, &mut attempt)?,
            }
        };
        let bad = |reason| HubError::Protocol {
            url: shown(&url),
            reason,
        };
        if bytes.len() as u64 > MAX_ANSWER_SIZE_BYTES {
            return Err(bad(format!("longer than {MAX_ANSWER_SIZE_BYTES} bytes")));
        }
        Listing::parse(&bytes).map_err(bad)
    }

    /// Where a file is.
    pub(crate) fn file_url(
        &self,
        reference: &Reference,
        commit: &str,
        path: &str,
    ) -> Result<Uri, HubError> {
        let path: Vec<String> = path.split('/').map(escape).collect();
        self.url(&format!(
            "/{}/resolve/{commit}/{}",
            reference.id,
            path.join("/")
        ))
    }

    fn url(&self, path: &str) -> Result<Uri, HubError> {
        let base = self.endpoint.to_string();
        let text = format!("{}{path}", base.trim_end_matches('/'));
        text.parse().map_err(|_| HubError::Endpoint(text))
    }

    /// Waits before another attempt, or gives up.
    pub(crate) fn pause(
        &self,
        url: &Uri,
        failure: Failure,
        attempt: &mut u32,
    ) -> Result<(), HubError> {
        let (reason, wait) = match failure {
            Failure::Final(error) => return Err(error),
            Failure::Passing { reason, wait } => (reason, wait),
        };
        if *attempt >= self.max_retries {
            return Err(HubError::Network {
                url: shown(url),
                reason,
            });
        }
        let backoff = Duration::from_secs(1 << (*attempt).min(6));
        *attempt += 1;
        (self.wait)(wait.unwrap_or(backoff).min(MAX_WAIT));
        Ok(())
    }

    /// One request, redirects followed; from byte `start` on, if the server can.
    /// The answer is 200 or 206, or 416 where `start` is not 0.
    pub(crate) fn get(
        &self,
        reference: &Reference,
        url: &Uri,
        start: u64,
    ) -> Result<Response<Body>, Failure> {
        let mut url = url.clone();
        for _ in 0..=MAX_REDIRECTS {
            let mut request = self.agent.get(url.clone());
            if start > 0 {
                request = request.header(header::RANGE, format!("bytes={start}-"));
            }
            if let Some(Secret(value)) = self.authorization.as_ref().filter(|_| self.is_hub(&url)) {
                request = request.header(header::AUTHORIZATION, value);
            }
            let response = request.call().map_err(|error| self.passing(&error))?;
            let status = response.status().as_u16();
            if !matches!(status, 301 | 302 | 303 | 307 | 308) {
                return self.judge(reference, &url, start, response);
            }
            let location = text(response.headers(), "location");
            url = location.and_then(|to| redirect(&url, &to)).ok_or_else(|| {
                Failure::Final(HubError::Protocol {
                    url: shown(&url),
                    reason: "redirects to nowhere, or from https to something else".to_owned(),
                })
            })?;
        }
        Err(Failure::Final(HubError::Protocol {
            url: shown(&url),
            reason: format!("more than {MAX_REDIRECTS} redirects"),
        }))
    }

    /// The token is for the hub alone: same scheme, host and port.
    fn is_hub(&self, url: &Uri) -> bool {
        url.scheme() == self.endpoint.scheme()
            && url.host().map(str::to_ascii_lowercase)
                == self.endpoint.host().map(str::to_ascii_lowercase)
            && port(url) == port(&self.endpoint)
    }

    fn passing(&self, error: &ureq::Error) -> Failure {
        let mut reason = error.to_string();
        // No message of a library may carry the header along.
        if let Some(Secret(value)) = &self.authorization {
            let token = value.trim_start_matches("Bearer ");
            if !token.is_empty() {
                reason = reason.replace(token, "…");
            }
        }
        Failure::Passing { reason, wait: None }
    }

    fn judge(
        &self,
        reference: &Reference,
        url: &Uri,
        start: u64,
        response: Response<Body>,
    ) -> Result<Response<Body>, Failure> {
        let status = response.status().as_u16();
        let headers = response.headers();
        let code = text(headers, "x-error-code").unwrap_or_default();
        let said = text(headers, "x-error-message")
            .map(|m| format!(" (the hub says: {m})"))
            .unwrap_or_default();
        let reference = reference.to_string();
        let has_token = self.authorization.is_some();
        let error = match (status, code.as_str()) {
            (200 | 206, _) => return Ok(response),
            (416, _) if start > 0 => return Ok(response),
            (_, "GatedRepo") => HubError::Refused {
                reference,
                status,
                reason: if has_token {
                    format!("ask for access on the model's page{said}")
                } else {
                    format!("ask for access on the model's page, and set HF_TOKEN{said}")
                },
            },
            (401, _) if !has_token => HubError::NotFound {
                reference,
                reason: format!("there is no such model, or it is private: set HF_TOKEN{said}"),
            },
            (401, _) => HubError::Refused {
                reference,
                status,
                reason: format!("the token in HF_TOKEN is not accepted{said}"),
            },
            (403, _) => HubError::Refused {
                reference,
                status,
                reason: format!("HF_TOKEN gives no access to it{said}"),
            },
            (404, "RevisionNotFound") => HubError::NotFound {
                reference,
                reason: format!("there is no such revision{said}"),
            },
            (404, "EntryNotFound") => HubError::NotFound {
                reference,
                reason: format!("there is no file {}{said}", url.path()),
            },
            (404, _) => HubError::NotFound {
                reference,
                reason: format!("there is no such model, revision or file{said}"),
            },
            (408 | 425 | 429 | 500..=599, _) => {
                let wait = text(headers, "retry-after").and_then(|s| s.trim().parse().ok());
                return Err(Failure::Passing {
                    reason: format!("the server answers {status}{said}"),
                    wait: wait.map(Duration::from_secs),
                });
            }
            _ => HubError::Protocol {
                url: shown(url),
                reason: format!("status {status}{said}"),
            },
        };
        Err(Failure::Final(error))
    }
}

/// A URL for people: queries of content networks carry signatures.
pub(crate) fn shown(url: &Uri) -> String {
    let authority = url.authority().map_or("", |a| a.as_str());
    format!(
        "{}://{authority}{}",
        url.scheme_str().unwrap_or_default(),
        url.path()
    )
}

fn port(url: &Uri) -> Option<u16> {
    url.port_u16().or(match url.scheme_str() {
        Some("https") => Some(443),
        Some("http") => Some(80),
        _ => None,
    })
}

/// Where a redirect leads; never from https to something weaker.
fn redirect(from: &Uri, to: &str) -> Option<Uri> {
    let absolute = if to.starts_with('/') && !to.starts_with("//") {
        format!("{}://{}{to}", from.scheme_str()?, from.authority()?)
    } else {
        to.to_owned()
    };
    let to: Uri = absolute.parse().ok()?;
    let is_allowed = match to.scheme_str()? {
        "https" => true,
        "http" => from.scheme_str() == Some("http"),
        _ => false,
    };
    (is_allowed && to.authority().is_some_and(|a| !a.as_str().contains('@'))).then_some(to)
}

/// A header as text that can be shown.
fn text(headers: &HeaderMap, name: &str) -> Option<String> {
    let value = headers.get(name)?.to_str().ok()?;
    let limit = if name == "location" {
        16 << 10
    } else {
        MAX_MESSAGE
    };
    Some(
        value
            .chars()
            .filter(|c| !c.is_control())
            .take(limit)
            .collect(),
    )
}

/// A part of a path in a URL.
fn escape(part: &str) -> String {
    let mut out = String::with_capacity(part.len());
    for byte in part.bytes() {
        if byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.' | b'~') {
            out.push(char::from(byte));
        } else {
            out.push_str(&format!("%{byte:02X}"));
        }
    }
    out
}
