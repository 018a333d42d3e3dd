//! Following another node over JSON-RPC: blocks come by WebSocket, and
//! transactions that are sent here go there.
//!
//! What a follower does with blocks is [`ol_node::Follower`]'s business; this
//! is the way there. The other side is believed in nothing: answers have a
//! largest size and a longest time, and every block is checked by the node.

mod forward;
mod source;

use std::io;
use std::thread::JoinHandle;
use std::time::Duration;

use axum::http::Uri;
use jsonrpsee::core::client::Error as ClientError;
use jsonrpsee_ws_client::{WsClient, WsClientBuilder};
use ol_node::{FollowConfig, FollowStatus, Follower, Node, StatusHandle};
use ol_runtime::Shutdown;

pub use forward::Forwarder;
pub use source::RpcSource;
pub(crate) use source::{BlockAnswer, HeadAnswer};

/// Largest answer that is read: the most that a node sends.
const ANSWER_MAX_SIZE_BYTES: u32 = 64 << 20;

/// Largest request that is sent: a transaction in hexadecimal, and more.
const REQUEST_MAX_SIZE_BYTES: u32 = 4 << 20;

/// Requests under way at one time.
const REQUESTS_MAX: usize = 256;

/// Longest wait for a connection or an answer.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(20);

/// Whom to follow, and how. Plain data.
#[derive(Debug, Clone)]
pub struct FollowOptions {
    /// JSON-RPC of the other node: `ws://HOST:PORT` (or `http://`, which is
    /// the same port of an OpenLedger node).
    pub url: String,
    /// Pace of the follower.
    pub config: FollowConfig,
    /// Whether transactions that are sent here go to the other node. If not,
    /// they are refused.
    pub forward_transactions: bool,
}

impl FollowOptions {
    /// The defaults for an address: transactions are forwarded.
    #[must_use]
    pub fn new(url: impl Into<String>) -> Self {
        Self {
            url: url.into(),
            config: FollowConfig::default(),
            forward_transactions: true,
        }
    }
}

/// Why following could not begin.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FollowError {
    /// The address is none that can be followed.
    #[error("cannot follow {url}: {reason}")]
    Url {
        /// The address.
        url: String,
        /// Why.
        reason: &'static str,
    },
    /// The follower's thread could not be started.
    #[error("the follower could not be started")]
    Thread(#[source] io::Error),
}

/// A follower that runs until the shutdown it was given.
#[derive(Debug)]
pub struct RunningFollower {
    /// What others may see and use of it.
    pub upstream: Upstream,
    thread: JoinHandle<()>,
}

impl RunningFollower {
    /// Waits until the follower has stopped. Blocks this thread.
    pub fn stopped(self) {
        if self.thread.join().is_err() {
            tracing::error!("the follower panicked");
        }
    }
}

/// The node that is followed, for the server: where the follower stands, and
/// where transactions go. Clones are the same.
#[derive(Debug, Clone)]
pub struct Upstream {
    status: StatusHandle,
    pub(crate) forwarder: Option<Forwarder>,
}

impl Upstream {
    /// Where the follower stands.
    #[must_use]
    pub fn status(&self) -> FollowStatus {
        self.status.get()
    }
}

/// Follows another node until `shutdown`, on a thread of its own. Must be
/// called within a tokio runtime, which has to live as long as the follower.
///
/// # Errors
/// [`FollowError`]. That the other node cannot be reached is none: it is
/// tried again and again.
pub fn spawn(
    node: Node,
    options: FollowOptions,
    shutdown: Shutdown,
) -> Result<RunningFollower, FollowError> {
    let url = websocket_url(&options.url)?;
    let runtime = tokio::runtime::Handle::current();
    let source = RpcSource::new(url.clone(), runtime, shutdown.clone());
    let follower = Follower::new(node, source, options.config);
    let forwarder = options.forward_transactions.then(|| Forwarder::new(url));
    let upstream = Upstream {
        status: follower.status(),
        forwarder,
    };
    let thread = ol_node::spawn_follower(follower, shutdown).map_err(FollowError::Thread)?;
    tracing::info!(url = options.url, "following");
    Ok(RunningFollower { upstream, thread })
}

/// The address as the WebSocket client takes it.
fn websocket_url(url: &str) -> Result<String, FollowError> {
    let refuse = |reason| FollowError::Url {
        url: url.to_owned(),
        reason,
    };
    let (scheme, rest) = url
        .split_once("://")
        .ok_or_else(|| refuse("it must begin with ws:// or http://"))?;
    match scheme {
        "ws" | "http" => {
            let url = format!("ws://{rest}");
            let parsed: Uri = url
                .parse()
                .map_err(|_| refuse("there is no host in it that can be asked"))?;
            let has_port = parsed.port_u16().is_some();
            if parsed.host().is_none_or(str::is_empty) || !has_port {
                return Err(refuse("there is no host in it, or no port"));
            }
            Ok(url)
        }
        "wss" | "https" => Err(refuse(
            "this build has no TLS; use ws:// through a tunnel or a private network",
        )),
        _ => Err(refuse("it must begin with ws:// or http://")),
    }
}

async fn connect(url: &str) -> Result<WsClient, ClientError> {
    WsClientBuilder::new()
        .max_request_size(REQUEST_MAX_SIZE_BYTES)
        .max_response_size(ANSWER_MAX_SIZE_BYTES)
        .max_frame_size(ANSWER_MAX_SIZE_BYTES)
        .max_concurrent_requests(REQUESTS_MAX)
        // One attempt: where it was sent elsewhere, the operator names the place.
        .max_redirections(1)
        .connection_timeout(ANSWER_TIMEOUT)
        .request_timeout(ANSWER_TIMEOUT)
        .build(url)
        .await
}
