//! HTTP to one worker, with a limit on everything that comes back.

use std::pin::Pin;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use axum::body::{Body, Bytes, HttpBody as _};
use axum::http::{HeaderValue, Method, Request, StatusCode, header};
use hyper::body::Incoming;
use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

/// How long a connection may take to come about.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);

/// Most resting connections kept.
const IDLE_MAX: usize = 32;

/// Largest headers of a reply together.
const HEADERS_MAX_SIZE_BYTES: usize = 64 << 10;

/// Why a worker could not be asked, or its answer not be read.
#[derive(Debug, thiserror::Error)]
pub(super) enum ClientError {
    /// Nobody is there.
    #[error("no connection: {0}")]
    Connect(std::io::Error),
    /// It took too long.
    #[error("{what} did not come in time")]
    TimedOut {
        /// What was waited for.
        what: &'static str,
    },
    /// The connection broke, or this is not HTTP.
    #[error("the connection broke: {0}")]
    Broken(#[from] hyper::Error),
    /// There is no end to the answer.
    #[error("the answer has more than {max_size_bytes} bytes")]
    TooLarge {
        /// The limit.
        max_size_bytes: usize,
    },
}

/// The way to one worker.
#[derive(Debug)]
pub(super) struct Client {
    authority: String,
    key: Option<HeaderValue>,
    admin_key: Option<HeaderValue>,
    idle: Mutex<Vec<SendRequest<Body>>>,
}

/// An answer that is being read. Dropping it before its end closes the
/// connection, which tells the worker to stop.
pub(super) struct Reply {
    pub(super) status: StatusCode,
    pub(super) retry_after_s: Option<f64>,
    body: Incoming,
    sender: SendRequest<Body>,
}

/// Which of a worker's keys a request goes with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum As {
    User,
    Admin,
}

/// What is asked of a worker.
#[derive(Debug)]
pub(super) struct Ask<'a> {
    pub(super) role: As,
    pub(super) method: Method,
    pub(super) path: &'a str,
    pub(super) body: Option<Bytes>,
    /// For the head of the answer, or all of it, whatever is waited for.
    pub(super) timeout: Duration,
}

async fn within<T>(
    timeout: Duration,
    answer: impl Future<Output = Result<T, ClientError>>,
) -> Result<T, ClientError> {
    let timed_out = |_| ClientError::TimedOut { what: "an answer" };
    tokio::time::timeout(timeout, answer)
        .await
        .map_err(timed_out)?
}

impl Client {
    /// A client of the worker at `authority`. Keys that cannot be a header's
    /// value are left out, and the worker refuses.
    pub(super) fn new(authority: String, key: Option<&str>, admin_key: Option<&str>) -> Self {
        let bearer = |key: &str| {
            let mut value = HeaderValue::from_str(&format!("Bearer {key}")).ok()?;
            value.set_sensitive(true);
            Some(value)
        };
        Self {
            authority,
            key: key.and_then(bearer),
            admin_key: admin_key.or(key).and_then(bearer),
            idle: Mutex::default(),
        }
    }

    /// Asks, and gives the answer's head.
    pub(super) async fn send(&self, ask: &Ask<'_>) -> Result<Reply, ClientError> {
        let sending = async {
            // A resting connection may have been closed by the other side.
            while let Some(sender) = self.take_idle() {
                match self.exchange(sender, ask).await {
                    Err(ClientError::Broken(_)) => {}
                    reply => return reply,
                }
            }
            let sender = self.connect().await?;
            self.exchange(sender, ask).await
        };
        within(ask.timeout, sending).await
    }

    /// Asks for a whole answer of at most `max_size_bytes`.
    pub(super) async fn call(
        &self,
        ask: &Ask<'_>,
        max_size_bytes: usize,
    ) -> Result<(StatusCode, Vec<u8>), ClientError> {
        let calling = async {
            let mut reply = self.send(ask).await?;
            let bytes = reply.read_to_end(max_size_bytes).await?;
            let status = reply.status;
            self.rest(reply);
            Ok((status, bytes))
        };
        within(ask.timeout, calling).await
    }

    /// Keeps the connection of an answer that was read to its end.
    pub(super) fn rest(&self, reply: Reply) {
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        if reply.body.is_end_stream() && idle.len() < IDLE_MAX && !reply.sender.is_closed() {
            idle.push(reply.sender);
        }
    }

    fn take_idle(&self) -> Option<SendRequest<Body>> {
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        idle.retain(|sender| !sender.is_closed());
        idle.pop()
    }

    async fn connect(&self) -> Result<SendRequest<Body>, ClientError> {
        let connecting = TcpStream::connect(&self.authority);
        let timed_out = |_| ClientError::TimedOut {
            what: "a connection",
        };
        let stream = tokio::time::timeout(CONNECT_TIMEOUT, connecting)
            .await
            .map_err(timed_out)?
            .map_err(ClientError::Connect)?;
        // Tokens must not wait for each other.
        let _ = stream.set_nodelay(true);
        let (sender, connection) = http1::Builder::new()
            .max_buf_size(HEADERS_MAX_SIZE_BYTES)
            .handshake(TokioIo::new(stream))
            .await?;
        tokio::spawn(async move {
            if let Err(error) = connection.await {
                tracing::debug!(%error, "the connection to a worker ended");
            }
        });
        Ok(sender)
    }

    async fn exchange(
        &self,
        mut sender: SendRequest<Body>,
        ask: &Ask<'_>,
    ) -> Result<Reply, ClientError> {
        let mut request = Request::builder()
            .method(&ask.method)
            .uri(ask.path)
            .header(header::HOST, &self.authority)
            .header(header::CONTENT_TYPE, "application/json");
        let key = match ask.role {
            As::User => &self.key,
            As::Admin => &self.admin_key,
        };
        if let Some(key) = key {
            request = request.header(header::AUTHORIZATION, key);
        }
        let request = request
            .body(ask.body.clone().map_or_else(Body::empty, Body::from))
            .expect("paths are ours, and the authority was checked");
        sender.ready().await?;
        let response = sender.send_request(request).await?;
        let retry_after_s = response
            .headers()
            .get(header::RETRY_AFTER)
            .and_then(|value| value.to_str().ok()?.parse().ok());
        Ok(Reply {
            status: response.status(),
            retry_after_s,
            body: response.into_body(),
            sender,
        })
    }
}

impl Reply {
    /// The next bytes; `None` at the end.
    pub(super) async fn next(&mut self) -> Result<Option<Bytes>, ClientError> {
        loop {
            let frame =
                std::future::poll_fn(|context| Pin::new(&mut self.body).poll_frame(context));
            match frame.await {
                None => return Ok(None),
                // Trailers are nothing to us.
                Some(frame) => {
                    if let Ok(data) = frame?.into_data() {
                        return Ok(Some(data));
                    }
                }
            }
        }
    }

    /// All that is left.
    pub(super) async fn read_to_end(
        &mut self,
        max_size_bytes: usize,
    ) -> Result<Vec<u8>, ClientError> {
        let mut bytes = Vec::new();
        while let Some(part) = self.next().await? {
            if bytes.len() + part.len() > max_size_bytes {
                return Err(ClientError::TooLarge { max_size_bytes });
            }
            bytes.extend_from_slice(&part);
        }
        Ok(bytes)
    }
}
