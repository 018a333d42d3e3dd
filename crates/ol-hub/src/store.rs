//! Object stores that are named by a URL: S3, Google Cloud, Azure, plain HTTP.
//!
//! The protocols and their signatures are those of the crate `object_store`;
//! what is here is its way to the network, so that one HTTP client and one
//! list of trusted authorities serve all downloads.
//!
//! Requests are tried again here and not by `object_store`, whose waits need an
//! asynchronous runtime: a store that was opened here can be read from any
//! thread.

use std::fmt;
use std::io::Read as _;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::thread;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use http_body_util::BodyExt as _;
use object_store::aws::AmazonS3Builder;
use object_store::azure::MicrosoftAzureBuilder;
use object_store::client::{
    HttpClient, HttpConnector, HttpError, HttpErrorKind, HttpRequest, HttpResponse,
    HttpResponseBody, HttpService,
};
use object_store::gcp::GoogleCloudStorageBuilder;
use object_store::http::HttpBuilder;
use object_store::local::LocalFileSystem;
use object_store::prefix::PrefixStore;
use object_store::{
    ClientConfigKey, ClientOptions, ObjectStore, ObjectStoreScheme, RetryConfig, path,
};
use thiserror::Error;
use tokio::sync::{mpsc, oneshot};
use ureq::http::{Method, Request, StatusCode};
use url::Url;

use crate::tls::tls_config;

/// Waits before the second and third try of a request.
const WAITS: [Duration; 2] = [Duration::from_millis(200), Duration::from_secs(1)];
/// How long it may take until a connection stands.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a server may take until it begins to answer, and to send the next
/// bytes.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(60);
/// Redirects of plain HTTP; a signed request is never sent elsewhere.
const REDIRECTS_MAX: u32 = 5;
/// Size of the pieces that a body is handed on in, and how many may wait.
const PIECE_SIZE_BYTES: usize = 256 << 10;
const PIECES_WAITING_MAX: usize = 4;

/// Why a URL is no store.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum StoreError {
    /// It is not a URL, or of a kind that is not known.
    #[error(
        "{url} is not the URL of a store: write s3://BUCKET/FOLDER, gs://BUCKET/FOLDER, az://CONTAINER/FOLDER, https://HOST/FOLDER or file:///FOLDER"
    )]
    Url {
        /// What was given, without its query.
        url: String,
    },
    /// The settings of the environment do not make a store.
    #[error(
        "{url} cannot be opened; settings are taken from variables that begin with {variables}"
    )]
    Settings {
        /// What was given, without its query.
        url: String,
        /// How their names begin.
        variables: &'static str,
        /// Why.
        #[source]
        source: object_store::Error,
    },
}

/// Opens the store of a URL; paths are below the URL's own.
///
/// | URL | variables |
/// |---|---|
/// | `s3://BUCKET/FOLDER` | `AWS_ACCESS_KEY_ID`, `AWS_SECRET_ACCESS_KEY`, `AWS_REGION`, `AWS_ENDPOINT_URL` (other makers' S3), `AWS_ALLOW_HTTP`, `AWS_SKIP_SIGNATURE` (public buckets), … |
/// | `gs://BUCKET/FOLDER` | `GOOGLE_SERVICE_ACCOUNT`, `GOOGLE_SKIP_SIGNATURE`, … |
/// | `az://CONTAINER/FOLDER` | `AZURE_STORAGE_ACCOUNT_NAME`, `AZURE_STORAGE_ACCOUNT_KEY`, … |
/// | `https://HOST/FOLDER` | none |
/// | `file:///FOLDER` | none |
///
/// Nothing is asked of the network before something is read.
///
/// # Errors
/// [`StoreError`] if it is no such URL, or the variables are incomplete.
pub fn open_store(
    url: &str,
    variables: impl IntoIterator<Item = (String, String)>,
) -> Result<Arc<dyn ObjectStore>, StoreError> {
    let parsed = Url::parse(url).map_err(|_| unknown(url))?;
    let (scheme, path) = ObjectStoreScheme::parse(&parsed).map_err(|_| unknown(url))?;
    let no_retry = RetryConfig {
        max_retries: 0,
        ..RetryConfig::default()
    };
    // The builders have the same methods, but no trait.
    macro_rules! with_settings {
        ($builder:ty, $variables:literal) => {{
            let mut builder = <$builder>::new()
                .with_url(url)
                .with_retry(no_retry)
                .with_http_connector(Connector { redirects_max: 0 });
            for (name, value) in variables {
                if name.starts_with($variables)
                    && let Ok(key) = name.to_ascii_lowercase().parse()
                {
                    builder = builder.with_config(key, value);
                }
            }
            builder
                .build()
                .map(below(path))
                .map_err(settings(url, $variables))
        }};
    }
    match scheme {
        ObjectStoreScheme::AmazonS3 => with_settings!(AmazonS3Builder, "AWS_"),
        ObjectStoreScheme::GoogleCloudStorage => {
            with_settings!(GoogleCloudStorageBuilder, "GOOGLE_")
        }
        ObjectStoreScheme::MicrosoftAzure => with_settings!(MicrosoftAzureBuilder, "AZURE_"),
        // The builder takes the path from the URL itself.
        ObjectStoreScheme::Http => HttpBuilder::new()
            .with_url(url)
            .with_retry(no_retry)
            .with_client_options(
                ClientOptions::default().with_allow_http(parsed.scheme() == "http"),
            )
            .with_http_connector(Connector {
                redirects_max: REDIRECTS_MAX,
            })
            .build()
            .map(|store| Arc::new(store) as Arc<dyn ObjectStore>)
            .map_err(settings(url, "HTTP_")),
        ObjectStoreScheme::Local => Ok(below(path)(LocalFileSystem::new())),
        _ => Err(unknown(url)),
    }
}

fn below<S: ObjectStore>(path: path::Path) -> impl FnOnce(S) -> Arc<dyn ObjectStore> {
    move |store| match path.is_root() {
        true => Arc::new(store),
        false => Arc::new(PrefixStore::new(store, path)),
    }
}

fn unknown(url: &str) -> StoreError {
    StoreError::Url { url: shown(url) }
}

fn settings(url: &str, variables: &'static str) -> impl FnOnce(object_store::Error) -> StoreError {
    move |source| StoreError::Settings {
        url: shown(url),
        variables,
        source,
    }
}

/// A URL for people: what follows `?` may be a signature, what precedes `@` a
/// password.
fn shown(url: &str) -> String {
    let url = url.split(['?', '#']).next().unwrap_or_default();
    let shown = match (url.find("://"), url.rfind('@')) {
        (Some(scheme), Some(at)) if at > scheme => format!("{}…{}", &url[..scheme + 3], &url[at..]),
        _ => url.to_owned(),
    };
    shown
        .chars()
        .filter(|c| !c.is_control())
        .take(200)
        .collect()
}

/// Gives `object_store` the client that everything here uses.
#[derive(Debug)]
struct Connector {
    redirects_max: u32,
}

impl HttpConnector for Connector {
    fn connect(&self, options: &ClientOptions) -> object_store::Result<HttpClient> {
        let allows_http = options.get_config_value(&ClientConfigKey::AllowHttp);
        let agent = ureq::Agent::config_builder()
            .tls_config(tls_config())
            .https_only(allows_http.as_deref() != Some("true"))
            .http_status_as_error(false)
            .max_redirects(self.redirects_max)
            .max_redirects_will_error(false)
            .timeout_connect(Some(CONNECT_TIMEOUT))
            .timeout_recv_response(Some(ANSWER_TIMEOUT))
            .build()
            .into();
        Ok(HttpClient::new(Client { agent }))
    }
}

struct Client {
    agent: ureq::Agent,
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Client").finish_non_exhaustive()
    }
}

#[async_trait]
impl HttpService for Client {
    /// One thread a request: reads of a store are few and large, and the caller
    /// may be a task that must not block.
    async fn call(&self, request: HttpRequest) -> Result<HttpResponse, HttpError> {
        let (parts, body) = request.into_parts();
        let body = body.collect().await?.to_bytes();
        let request = Request::from_parts(parts, body);
        let agent = self.agent.clone();
        let (answer, answered) = oneshot::channel();
        thread::Builder::new()
            .name("store-request".to_owned())
            .spawn(move || transfer(&agent, request, answer))
            .map_err(|error| HttpError::new(HttpErrorKind::Request, error))?;
        answered
            .await
            .map_err(|error| HttpError::new(HttpErrorKind::Interrupted, error))?
    }
}

/// Sends a request, gives back the head of the answer and then, piece by piece,
/// its body. Ends early when nobody takes the pieces any more.
fn transfer(
    agent: &ureq::Agent,
    request: Request<Bytes>,
    answer: oneshot::Sender<Result<HttpResponse, HttpError>>,
) {
    let (parts, mut body) = match patient(agent, &request) {
        Ok(response) => response.into_parts(),
        Err(error) => {
            // Nobody waits any more: nothing is owed to anyone.
            let _ = answer.send(Err(error));
            return;
        }
    };
    let (pieces, received) = mpsc::channel(PIECES_WAITING_MAX);
    let received = HttpResponseBody::new(Pieces {
        received,
        left_bytes: body.content_length(),
    });
    if answer
        .send(Ok(HttpResponse::from_parts(parts, received)))
        .is_err()
    {
        return;
    }
    let mut reader = body.as_reader();
    loop {
        let mut piece = Vec::with_capacity(PIECE_SIZE_BYTES);
        let piece = match reader
            .by_ref()
            .take(PIECE_SIZE_BYTES as u64)
            .read_to_end(&mut piece)
        {
            Ok(0) => return,
            Ok(_) => Ok(piece.into()),
            Err(error) => Err(interrupted(error)),
        };
        let is_last = piece.is_err();
        if pieces.blocking_send(piece).is_err() || is_last {
            return;
        }
    }
}

/// Sends a request, again if the server was not reached or was busy and asking
/// twice changes nothing.
fn patient(
    agent: &ureq::Agent,
    request: &Request<Bytes>,
) -> Result<ureq::http::Response<ureq::Body>, HttpError> {
    let mut waits = WAITS.iter();
    loop {
        let result = send(agent, request);
        let is_passing = match &result {
            Ok(response) => is_passing(response.status()),
            Err(error) => error.kind() != HttpErrorKind::Unknown,
        };
        match waits.next() {
            Some(wait) if is_passing && request.method().is_safe() => thread::sleep(*wait),
            _ => return result,
        }
    }
}

/// Whether another try may be answered.
fn is_passing(status: StatusCode) -> bool {
    status.is_server_error()
        || status == StatusCode::TOO_MANY_REQUESTS
        || status == StatusCode::REQUEST_TIMEOUT
}

fn send(
    agent: &ureq::Agent,
    request: &Request<Bytes>,
) -> Result<ureq::http::Response<ureq::Body>, HttpError> {
    let (parts, body) = request.clone().into_parts();
    let has_body = !body.is_empty() || [Method::PUT, Method::POST].contains(&parts.method);
    let sent = if has_body {
        agent.run(Request::from_parts(parts, body.to_vec()))
    } else {
        agent.run(Request::from_parts(parts, ()))
    };
    sent.map_err(|error| {
        let kind = match &error {
            ureq::Error::Timeout(_) => HttpErrorKind::Timeout,
            ureq::Error::HostNotFound | ureq::Error::ConnectionFailed => HttpErrorKind::Connect,
            ureq::Error::Io(_) => HttpErrorKind::Interrupted,
            _ => HttpErrorKind::Unknown,
        };
        HttpError::new(kind, error)
    })
}

fn interrupted(error: std::io::Error) -> HttpError {
    HttpError::new(HttpErrorKind::Interrupted, error)
}

/// A body as it arrives.
struct Pieces {
    received: mpsc::Receiver<Result<Bytes, HttpError>>,
    left_bytes: Option<u64>,
}

impl Body for Pieces {
    type Data = Bytes;
    type Error = HttpError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, HttpError>>> {
        self.received.poll_recv(context).map(|piece| {
            let piece = piece?;
            if let (Ok(piece), Some(left)) = (&piece, &mut self.left_bytes) {
                *left = left.saturating_sub(piece.len() as u64);
            }
            Some(piece.map(Frame::data))
        })
    }

    fn size_hint(&self) -> SizeHint {
        self.left_bytes
            .map_or_else(SizeHint::new, SizeHint::with_exact)
    }
}
