//! Metrics for Prometheus: what this crate measures, and `/metrics`.
//!
//! Every name is in [`METRICS`] or in [`ol_node::metrics::METRICS`], and in
//! `docs/metrics.md`. Labels have values from fixed lists, so that no request
//! can make the number of series grow.

mod process;
pub(crate) mod serving;

use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use axum::Router;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse as _, Response};
use axum::routing::get;
use metrics::{counter, describe_counter, describe_gauge, describe_histogram, gauge, histogram};
use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle};
use ol_node::metrics::{Metric, MetricKind};
use ol_node::{FollowPhase, FollowStatus, Node};
use ol_runtime::Shutdown;
use tokio::net::TcpListener;

use crate::edge::{self, Access, Patience};
use crate::follow::Upstream;

pub use self::serving::ServingObserver;

/// Upper bounds of the buckets of every span of time, in seconds.
const SECONDS: [f64; 15] = [
    0.000_1, 0.000_25, 0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5,
    10.0,
];

/// How often samples are summed up where nobody reads them.
const UPKEEP_INTERVAL: Duration = Duration::from_secs(5);

/// Most connections of collectors at one time.
const CONNECTIONS_MAX: usize = 16;

/// What a text of metrics is, in the version that Prometheus expects.
const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

const BUILD: &str = "openledger_build_info";
const REQUESTS: &str = "openledger_rpc_requests_total";
const REQUEST_TIME: &str = "openledger_rpc_request_seconds";
const CONNECTIONS: &str = "openledger_http_connections";
const CONNECTIONS_REFUSED: &str = "openledger_http_connections_refused_total";
const REQUESTS_REFUSED: &str = "openledger_http_requests_refused_total";
const FOLLOW_LAG: &str = "openledger_follow_lag_blocks";
const FOLLOW_LIVE: &str = "openledger_follow_is_live";
const FOLLOW_REFUSED: &str = "openledger_follow_refused_total";
const FOLLOW_REORGS: &str = "openledger_follow_reorgs_total";
const FLEET_ATTEMPTS: &str = "openledger_fleet_attempts_total";
const FLEET_RETRIES: &str = "openledger_fleet_retries_total";
const SUBSCRIPTIONS: &str = "openledger_ws_subscriptions";
const SESSIONS: &str = "openledger_ws_sessions";

/// Everything this crate measures.
pub const METRICS: &[Metric] = &[
    Metric {
        name: BUILD,
        kind: MetricKind::Gauge,
        labels: &["version"],
        help: "Always 1; the version is in the label.",
    },
    Metric {
        name: REQUESTS,
        kind: MetricKind::Counter,
        labels: &["method", "outcome"],
        help: "JSON-RPC calls answered, by method (`unknown` for what is none) and outcome: ok, invalid, reverted, refused, limit, timeout, internal.",
    },
    Metric {
        name: REQUEST_TIME,
        kind: MetricKind::Histogram,
        labels: &["method"],
        help: "Time to answer a JSON-RPC call.",
    },
    Metric {
        name: CONNECTIONS,
        kind: MetricKind::Gauge,
        labels: &["server"],
        help: "Open connections, by server: rpc, api, metrics.",
    },
    Metric {
        name: CONNECTIONS_REFUSED,
        kind: MetricKind::Counter,
        labels: &["server"],
        help: "Connections past the limit.",
    },
    Metric {
        name: REQUESTS_REFUSED,
        kind: MetricKind::Counter,
        labels: &["reason"],
        help: "Requests refused before they were read: host, origin.",
    },
    Metric {
        name: SESSIONS,
        kind: MetricKind::Gauge,
        labels: &[],
        help: "Open WebSocket sessions.",
    },
    Metric {
        name: SUBSCRIPTIONS,
        kind: MetricKind::Gauge,
        labels: &[],
        help: "Open subscriptions (`eth_subscribe`).",
    },
    Metric {
        name: FOLLOW_LAG,
        kind: MetricKind::Gauge,
        labels: &[],
        help: "Blocks that the followed node has and this one has not. Absent where none is followed.",
    },
    Metric {
        name: FOLLOW_LIVE,
        kind: MetricKind::Gauge,
        labels: &[],
        help: "1 while this node has every block of the followed one, else 0.",
    },
    Metric {
        name: FOLLOW_REFUSED,
        kind: MetricKind::Counter,
        labels: &[],
        help: "Times that what the followed node sent was refused.",
    },
    Metric {
        name: FOLLOW_REORGS,
        kind: MetricKind::Counter,
        labels: &[],
        help: "Times that this node changed to another branch.",
    },
    Metric {
        name: FLEET_ATTEMPTS,
        kind: MetricKind::Counter,
        labels: &["worker", "outcome"],
        help: "Requests sent to a worker, by outcome: answered, failed, neither (its client left, or the worker was full).",
    },
    Metric {
        name: FLEET_RETRIES,
        kind: MetricKind::Counter,
        labels: &[],
        help: "Requests that failed at one worker before their first token and were sent to another.",
    },
    Metric {
        name: process::CPU,
        kind: MetricKind::Counter,
        labels: &[],
        help: "CPU time of the process, in whole seconds.",
    },
    Metric {
        name: process::MEMORY,
        kind: MetricKind::Gauge,
        labels: &[],
        help: "Memory of the process that is in RAM.",
    },
    Metric {
        name: process::FILES,
        kind: MetricKind::Gauge,
        labels: &[],
        help: "Open file handles of the process.",
    },
    Metric {
        name: process::FILES_MAX,
        kind: MetricKind::Gauge,
        labels: &[],
        help: "Most file handles the process may open.",
    },
];

/// Everything this process measures.
fn all() -> impl Iterator<Item = &'static Metric> {
    METRICS
        .iter()
        .chain(serving::METRICS)
        .chain(ol_node::metrics::METRICS)
}

/// Where the follower stands.
#[expect(clippy::cast_precision_loss, reason = "shown, not computed with")]
fn record_follower(status: &FollowStatus) {
    let highest = status.highest_block.unwrap_or(status.current_block);
    let lag_blocks = highest.saturating_sub(status.current_block);
    gauge!(FOLLOW_LAG).set(lag_blocks as f64);
    let is_live = status.phase == FollowPhase::Live;
    gauge!(FOLLOW_LIVE).set(f64::from(u8::from(is_live)));
    counter!(FOLLOW_REFUSED).absolute(status.n_refused);
    counter!(FOLLOW_REORGS).absolute(status.n_reorgs);
}

/// How a JSON-RPC call ended.
pub(crate) fn rpc_answered(method: &'static str, error_code: Option<i32>, spent_s: f64) {
    let outcome = match error_code {
        None => "ok",
        Some(3) => "reverted",
        Some(-32_700 | -32_600..=-32_599 | -32_602 | -32_601) => "invalid",
        Some(-32_005) => "limit",
        Some(-32_002) => "timeout",
        Some(-32_603) => "internal",
        Some(_) => "refused",
    };
    counter!(REQUESTS, "method" => method, "outcome" => outcome).increment(1);
    histogram!(REQUEST_TIME, "method" => method).record(spent_s);
}

/// A request was refused by the checks of [`Access`].
pub(crate) fn request_refused(reason: &'static str) {
    counter!(REQUESTS_REFUSED, "reason" => reason).increment(1);
}

/// A connection past the limit.
pub(crate) fn connection_refused(server: &'static str) {
    counter!(CONNECTIONS_REFUSED, "server" => server).increment(1);
}

/// A request's time at a worker is over.
pub(crate) fn fleet_attempt(worker: &str, outcome: &'static str) {
    // Workers are named by the operator, and there are few.
    counter!(FLEET_ATTEMPTS, "worker" => worker.to_owned(), "outcome" => outcome).increment(1);
}

/// A request goes to another worker.
pub(crate) fn fleet_retried() {
    counter!(FLEET_RETRIES).increment(1);
}

/// Counts something open until it is dropped.
#[derive(Debug)]
pub(crate) struct Open(metrics::Gauge);

impl std::fmt::Debug for Exporter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Exporter").finish_non_exhaustive()
    }
}

impl Open {
    fn new(gauge: metrics::Gauge) -> Self {
        gauge.increment(1.0);
        Self(gauge)
    }

    /// A connection.
    pub(crate) fn connection(server: &'static str) -> Self {
        Self::new(gauge!(CONNECTIONS, "server" => server))
    }

    /// A WebSocket session.
    pub(crate) fn session() -> Self {
        Self::new(gauge!(SESSIONS))
    }

    /// A subscription.
    pub(crate) fn subscription() -> Self {
        Self::new(gauge!(SUBSCRIPTIONS))
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.0.decrement(1.0);
    }
}

/// Why metrics cannot be collected.
#[derive(Debug, thiserror::Error)]
#[error("metrics cannot be recorded: {reason}")]
pub struct ExporterError {
    /// Why.
    reason: String,
}

/// A node whose metrics are looked up when they are read, and the node that it
/// follows.
type Watched = (Node, Option<Upstream>);

/// Collects the metrics of this process and shows them. Clones show the same.
#[derive(Clone)]
pub struct Exporter {
    handle: PrometheusHandle,
    watched: Arc<Mutex<Option<Watched>>>,
}

impl Exporter {
    /// The exporter of this process; the first call begins to record.
    ///
    /// # Errors
    /// If another recorder is installed.
    pub fn global() -> Result<Self, ExporterError> {
        static GLOBAL: OnceLock<Result<Exporter, String>> = OnceLock::new();
        GLOBAL
            .get_or_init(Self::install)
            .clone()
            .map_err(|reason| ExporterError { reason })
    }

    fn install() -> Result<Self, String> {
        let recorder = PrometheusBuilder::new()
            .set_buckets_for_metric(Matcher::Suffix("_seconds".to_owned()), &SECONDS)
            .map_err(|error| error.to_string())?
            .build_recorder();
        let handle = recorder.handle();
        metrics::set_global_recorder(recorder).map_err(|error| error.to_string())?;
        for metric in all() {
            match metric.kind {
                MetricKind::Counter => describe_counter!(metric.name, metric.help),
                MetricKind::Gauge => describe_gauge!(metric.name, metric.help),
                MetricKind::Histogram => describe_histogram!(metric.name, metric.help),
            }
        }
        gauge!(BUILD, "version" => env!("CARGO_PKG_VERSION")).set(1.0);
        Ok(Self {
            handle,
            watched: Arc::default(),
        })
    }

    /// Shows the metrics of `node` too, and of the node that it follows, in place
    /// of an earlier one's, until [`Exporter::forget`].
    pub fn watch(&self, node: Node, upstream: Option<Upstream>) {
        *self.watched() = Some((node, upstream));
    }

    /// Lets go of the node, so that its chain can be closed.
    pub fn forget(&self) {
        *self.watched() = None;
    }

    fn watched(&self) -> std::sync::MutexGuard<'_, Option<Watched>> {
        self.watched.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// All metrics as Prometheus reads them.
    #[must_use]
    pub fn render(&self) -> String {
        process::record();
        let watched = self.watched().clone();
        if let Some((node, upstream)) = watched {
            if let Err(error) = node.record_metrics() {
                tracing::warn!(%error, "the chain's metrics could not be read");
            }
            if let Some(upstream) = upstream {
                record_follower(&upstream.status());
            }
        }
        self.handle.render()
    }

    /// `GET /metrics`, for a server that has other routes.
    pub fn router(&self) -> Router {
        self.router_with(|| {})
    }

    /// As [`Exporter::router`], for a server with something to record first.
    pub(crate) fn router_with(&self, record: impl Fn() + Clone + Send + Sync + 'static) -> Router {
        let exporter = self.clone();
        let answer = async move || {
            let look = move || {
                record();
                exporter.render()
            };
            // Looks into the database and into /proc.
            match tokio::task::spawn_blocking(look).await {
                Ok(text) => ([(header::CONTENT_TYPE, CONTENT_TYPE)], text).into_response(),
                Err(_) => StatusCode::INTERNAL_SERVER_ERROR.into_response(),
            }
        };
        Router::new().route("/metrics", get(answer))
    }

    /// Serves `/metrics` until `shutdown`.
    pub async fn serve(self, access: Access, listener: TcpListener, shutdown: Shutdown) {
        let service = access.guard(self.router().fallback(not_found));
        let upkeep = self.upkeep(shutdown.clone());
        let answers = edge::serve(
            "metrics",
            listener,
            CONNECTIONS_MAX,
            Patience::default(),
            shutdown,
            || service.clone(),
        );
        tokio::join!(answers, upkeep);
    }

    /// Sums samples up every now and then until `shutdown`, so that they take
    /// no memory where nobody reads them. [`Exporter::serve`] does it already.
    pub async fn upkeep(&self, shutdown: Shutdown) {
        let mut ticks = tokio::time::interval(UPKEEP_INTERVAL);
        loop {
            tokio::select! {
                _ = ticks.tick() => self.handle.run_upkeep(),
                () = shutdown.triggered() => return,
            }
        }
    }
}

async fn not_found() -> Response {
    (StatusCode::NOT_FOUND, "metrics are at /metrics\n").into_response()
}

#[cfg(test)]
mod tests;
