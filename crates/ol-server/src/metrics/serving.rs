//! What is measured of answers being generated, under names close to vLLM's.

use metrics::{counter, gauge, histogram};
use ol_node::metrics::{Metric, MetricKind};
use ol_serve::{AdapterStats, EngineStats, FinishReason, Observation, Observer};

const RUNNING: &str = "openledger_serve_requests_running";
const WAITING: &str = "openledger_serve_requests_waiting";
const LOADING: &str = "openledger_serve_requests_loading";
const KV_USAGE: &str = "openledger_serve_kv_cache_usage_ratio";
const KV_IDLE: &str = "openledger_serve_kv_cache_idle_ratio";
const PROMPT_TOKENS: &str = "openledger_serve_prompt_tokens_total";
const GENERATION_TOKENS: &str = "openledger_serve_generation_tokens_total";
const RECOMPUTED_TOKENS: &str = "openledger_serve_recomputed_tokens_total";
const PREFIX_QUERIES: &str = "openledger_serve_prefix_cache_queries_total";
const PREFIX_HITS: &str = "openledger_serve_prefix_cache_hits_total";
const PREEMPTIONS: &str = "openledger_serve_preemptions_total";
const REFUSED: &str = "openledger_serve_requests_refused_total";
const EXPIRED: &str = "openledger_serve_requests_expired_total";
const CANCELLED: &str = "openledger_serve_requests_cancelled_total";
const FINISHED: &str = "openledger_serve_requests_finished_total";
const QUEUE_TIME: &str = "openledger_serve_queue_seconds";
const TTFT: &str = "openledger_serve_time_to_first_token_seconds";
const ITL: &str = "openledger_serve_inter_token_seconds";
const E2E: &str = "openledger_serve_request_seconds";
const ADAPTERS: &str = "openledger_adapters_registered";
const ADAPTERS_RESIDENT: &str = "openledger_adapters_resident";
const ADAPTERS_SIZE: &str = "openledger_adapters_size_bytes";
const ADAPTER_LOADS: &str = "openledger_adapters_loads_total";
const ADAPTER_FAILURES: &str = "openledger_adapters_load_failures_total";
const ADAPTER_EVICTIONS: &str = "openledger_adapters_evictions_total";
const ADAPTER_HITS: &str = "openledger_adapters_hits_total";
const ADAPTER_MISSES: &str = "openledger_adapters_misses_total";
const PASS_TIME: &str = "openledger_serve_pass_seconds";

const fn metric(name: &'static str, kind: MetricKind, help: &'static str) -> Metric {
    Metric {
        name,
        kind,
        labels: &[],
        help,
    }
}

/// What this module measures.
pub(super) const METRICS: &[Metric] = &[
    metric(RUNNING, MetricKind::Gauge, "Requests being decoded."),
    metric(
        WAITING,
        MetricKind::Gauge,
        "Requests waiting to start, or to start again.",
    ),
    metric(
        LOADING,
        MetricKind::Gauge,
        "Waiting requests that wait for their adapter.",
    ),
    metric(
        KV_USAGE,
        MetricKind::Gauge,
        "Share of the pages of the KV cache that running requests use.",
    ),
    metric(
        KV_IDLE,
        MetricKind::Gauge,
        "Share of the pages of the KV cache kept for prompts that begin alike.",
    ),
    metric(
        PROMPT_TOKENS,
        MetricKind::Counter,
        "Prompt tokens computed.",
    ),
    metric(GENERATION_TOKENS, MetricKind::Counter, "Tokens generated."),
    metric(
        RECOMPUTED_TOKENS,
        MetricKind::Counter,
        "Tokens computed again after a preemption.",
    ),
    metric(
        PREFIX_QUERIES,
        MetricKind::Counter,
        "Prompt tokens looked for in the prefix cache.",
    ),
    metric(
        PREFIX_HITS,
        MetricKind::Counter,
        "Prompt tokens found in the prefix cache.",
    ),
    metric(
        PREEMPTIONS,
        MetricKind::Counter,
        "Running requests that had to make room.",
    ),
    metric(
        REFUSED,
        MetricKind::Counter,
        "Requests refused because a limit of the queue was reached.",
    ),
    metric(
        EXPIRED,
        MetricKind::Counter,
        "Requests ended by their deadline.",
    ),
    metric(
        CANCELLED,
        MetricKind::Counter,
        "Requests whose client went away.",
    ),
    Metric {
        name: FINISHED,
        kind: MetricKind::Counter,
        labels: &["reason"],
        help: "Answers, by why they ended: stop, length, deadline.",
    },
    metric(
        QUEUE_TIME,
        MetricKind::Histogram,
        "Time from a request's arrival to its start.",
    ),
    metric(
        TTFT,
        MetricKind::Histogram,
        "Time from a request's arrival to its first token.",
    ),
    metric(
        ITL,
        MetricKind::Histogram,
        "Time from one token of a request to the next.",
    ),
    metric(
        E2E,
        MetricKind::Histogram,
        "Time from a request's arrival to the end of its answer.",
    ),
    metric(
        PASS_TIME,
        MetricKind::Histogram,
        "Time of one forward pass.",
    ),
    metric(
        ADAPTERS,
        MetricKind::Gauge,
        "Names of adapters that can be asked for.",
    ),
    Metric {
        name: ADAPTERS_RESIDENT,
        kind: MetricKind::Gauge,
        labels: &["tier"],
        help: "Versions of adapters in a tier of memory: host, device, disk.",
    },
    Metric {
        name: ADAPTERS_SIZE,
        kind: MetricKind::Gauge,
        labels: &["tier"],
        help: "Bytes of adapters in a tier of memory: host, device, disk.",
    },
    metric(
        ADAPTER_LOADS,
        MetricKind::Counter,
        "Adapters loaded into memory.",
    ),
    metric(
        ADAPTER_FAILURES,
        MetricKind::Counter,
        "Adapters that could not be loaded.",
    ),
    Metric {
        name: ADAPTER_EVICTIONS,
        kind: MetricKind::Counter,
        labels: &["tier"],
        help: "Versions evicted from a tier of memory: host, device, disk.",
    },
    metric(
        ADAPTER_HITS,
        MetricKind::Counter,
        "Requests whose adapter was in memory at the first asking.",
    ),
    metric(
        ADAPTER_MISSES,
        MetricKind::Counter,
        "Requests that had to wait for their adapter.",
    ),
];

/// Records what an engine does; give it to the engine as its observer.
#[derive(Debug, Clone, Copy, Default)]
pub struct ServingObserver;

impl Observer for ServingObserver {
    fn observe(&self, observation: &Observation) {
        match *observation {
            Observation::Started { waited_s } => histogram!(QUEUE_TIME).record(waited_s),
            Observation::FirstToken { ttft_s } => histogram!(TTFT).record(ttft_s),
            Observation::NextToken { itl_s } => histogram!(ITL).record(itl_s),
            Observation::Finished {
                reason, total_s, ..
            } => {
                let reason = match reason {
                    FinishReason::Stop => "stop",
                    FinishReason::Length => "length",
                    FinishReason::Deadline => "deadline",
                };
                counter!(FINISHED, "reason" => reason).increment(1);
                histogram!(E2E).record(total_s);
            }
            Observation::Pass { duration_s, .. } => histogram!(PASS_TIME).record(duration_s),
            _ => {}
        }
    }
}

/// Where an engine stands.
#[expect(clippy::cast_precision_loss, reason = "shown, not computed with")]
pub(crate) fn record(stats: &EngineStats) {
    gauge!(RUNNING).set(stats.n_running as f64);
    gauge!(WAITING).set(stats.n_waiting as f64);
    gauge!(LOADING).set(stats.n_loading as f64);
    let n_pages = stats.n_pages.max(1) as f64;
    gauge!(KV_USAGE).set(stats.n_pages_used as f64 / n_pages);
    gauge!(KV_IDLE).set(stats.n_pages_idle as f64 / n_pages);
    for (name, total) in [
        (PROMPT_TOKENS, stats.n_tokens_in),
        (GENERATION_TOKENS, stats.n_tokens_out),
        (RECOMPUTED_TOKENS, stats.n_tokens_again),
        (PREFIX_QUERIES, stats.n_prefix_tokens_asked),
        (PREFIX_HITS, stats.n_prefix_tokens_found),
        (PREEMPTIONS, stats.n_preempted),
        (REFUSED, stats.n_refused),
        (EXPIRED, stats.n_expired),
        (CANCELLED, stats.n_cancelled),
    ] {
        counter!(name).absolute(total);
    }
}

/// Where a store of adapters stands.
#[expect(clippy::cast_precision_loss, reason = "shown, not computed with")]
pub(crate) fn record_adapters(stats: &AdapterStats) {
    gauge!(ADAPTERS).set(stats.n_names as f64);
    for (tier, of) in [
        ("host", stats.host),
        ("device", stats.device),
        ("disk", stats.disk),
    ] {
        gauge!(ADAPTERS_RESIDENT, "tier" => tier).set(of.n_versions as f64);
        gauge!(ADAPTERS_SIZE, "tier" => tier).set(of.used_bytes as f64);
        counter!(ADAPTER_EVICTIONS, "tier" => tier).absolute(of.n_evictions);
    }
    counter!(ADAPTER_LOADS).absolute(stats.n_loads);
    counter!(ADAPTER_FAILURES).absolute(stats.n_load_failures);
    counter!(ADAPTER_HITS).absolute(stats.n_hits);
    counter!(ADAPTER_MISSES).absolute(stats.n_misses);
}
