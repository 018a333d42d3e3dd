//! What every HTTP listener of ours has in common: who may connect, how many
//! at once, and for how long.
//!
//! - [`Access`]: host and origin checks, before anything is read.
//! - [`serve`]: connections up to a limit, each with a deadline for its
//!   headers, its body and its reader.

mod access;
mod connection;
mod deadline;

use std::sync::Arc;
use std::time::Duration;

use axum::body::{Body, Bytes, HttpBody};
use axum::extract::Request;
use axum::http::Response;
use axum::serve::Listener;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use ol_runtime::Shutdown;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tower::{Service, ServiceExt as _};

use crate::metrics::{self, Open};
pub use access::{Access, AccessError};
use connection::Connection;
use deadline::DeadlineBody;

/// How long a client may take. Plain data.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Patience {
    /// For the headers of a request, and how long a connection may rest
    /// between two requests. Default 30 s.
    pub headers: Duration,
    /// To send a body, from its headers on. Default 30 s.
    pub body: Duration,
    /// To read anything of an answer. Default 60 s.
    pub reader: Duration,
}

impl Default for Patience {
    fn default() -> Self {
        Self {
            headers: Duration::from_secs(30),
            body: Duration::from_secs(30),
            reader: Duration::from_secs(60),
        }
    }
}

/// Largest request line and headers together.
const HEADERS_MAX_SIZE_BYTES: usize = 64 << 10;

/// Connections past the limit that are told so at one time; more are dropped.
const REFUSALS_MAX: usize = 64;

/// How long somebody who is refused may take to notice.
const REFUSAL_TIMEOUT: Duration = Duration::from_secs(1);

/// Most bytes of a refused request that are taken off the wire, so that the
/// client reads the refusal instead of a broken connection.
const REFUSAL_DRAIN_MAX_SIZE_BYTES: u64 = 64 << 10;

const BUSY: &[u8] = b"HTTP/1.1 503 Service Unavailable\r\n\
    content-type: text/plain\r\ncontent-length: 33\r\nretry-after: 1\r\nconnection: close\r\n\r\n\
    too many connections at one time\n";

/// Any error of a service.
pub(crate) type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// Serves `listener` until `shutdown` and the requests that run then are
/// answered. `make` is asked for a service once for each connection; `name` is
/// what the server is called in metrics.
pub(crate) async fn serve<S, B>(
    name: &'static str,
    mut listener: TcpListener,
    n_connections_max: usize,
    patience: Patience,
    shutdown: Shutdown,
    make: impl Fn() -> S,
) where
    S: Service<Request, Response = Response<B>> + Clone + Send + 'static,
    S::Error: Into<BoxError>,
    S::Future: Send,
    B: HttpBody<Data = Bytes> + Send + 'static,
    B::Error: Into<BoxError>,
{
    let places = Arc::new(Semaphore::new(n_connections_max));
    let refusals = Arc::new(Semaphore::new(REFUSALS_MAX));
    let mut connections = JoinSet::new();
    loop {
        let (stream, _) = tokio::select! {
            // Retries, after a pause where there are no file handles left.
            accepted = Listener::accept(&mut listener) => accepted,
            () = shutdown.triggered() => break,
            Some(_) = connections.join_next() => continue,
        };
        // Answers and chunks of a stream must not wait for each other.
        if let Err(error) = stream.set_nodelay(true) {
            tracing::debug!(%error, "could not set nodelay");
        }
        if let Ok(place) = Arc::clone(&places).try_acquire_owned() {
            let open = Open::connection(name);
            let connection = Connection::new(stream, (place, open), patience.reader);
            connections.spawn(answer(connection, make(), patience, shutdown.clone()));
            continue;
        }
        metrics::connection_refused(name);
        if let Ok(refusal) = Arc::clone(&refusals).try_acquire_owned() {
            connections.spawn(async move {
                // Whoever does not want to hear it is not helped.
                let _ = tokio::time::timeout(REFUSAL_TIMEOUT, refuse(stream)).await;
                drop(refusal);
            });
        }
    }
    drop(listener);
    while connections.join_next().await.is_some() {}
}

/// Answers the requests of one connection.
async fn answer<S, B>(connection: Connection, service: S, patience: Patience, shutdown: Shutdown)
where
    S: Service<Request, Response = Response<B>> + Clone + Send + 'static,
    S::Error: Into<BoxError>,
    S::Future: Send,
    B: HttpBody<Data = Bytes> + Send + 'static,
    B::Error: Into<BoxError>,
{
    let service = service.map_request(move |request: axum::http::Request<_>| {
        request.map(|body| Body::new(DeadlineBody::new(body, patience.body)))
    });
    let mut builder = hyper::server::conn::http1::Builder::new();
    builder
        .timer(TokioTimer::new())
        .header_read_timeout(patience.headers)
        .max_buf_size(HEADERS_MAX_SIZE_BYTES);
    let running = builder
        .serve_connection(TokioIo::new(connection), TowerToHyperService::new(service))
        .with_upgrades();
    let mut running = std::pin::pin!(running);
    let ended = tokio::select! {
        ended = &mut running => ended,
        () = shutdown.triggered() => {
            running.as_mut().graceful_shutdown();
            (&mut running).await
        }
    };
    if let Err(error) = ended {
        tracing::debug!(%error, "a connection ended early");
    }
}

/// Says that there is no room.
async fn refuse(mut stream: TcpStream) -> std::io::Result<()> {
    stream.write_all(BUSY).await?;
    stream.shutdown().await?;
    let mut rest = (&mut stream).take(REFUSAL_DRAIN_MAX_SIZE_BYTES);
    tokio::io::copy(&mut rest, &mut tokio::io::sink()).await?;
    // A reader that is done closes; what it still sends is not looked at.
    let _ = stream.read(&mut [0; 1]).await?;
    Ok(())
}

#[cfg(test)]
mod tests;
