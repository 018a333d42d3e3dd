//! Ethereum JSON-RPC over HTTP and WebSocket: what `cast`, viem and wallets
//! need to deploy, call, send, wait and read logs. `docs/rpc.md` lists every
//! method.
//!
//! Error codes are geth's: -32602 for parameters, -32000 for what the chain
//! refuses, 3 with the data for a revert, -32005 past a limit, -32002 past the
//! time of a request, -32603 if the node itself fails.
//!
//! `eth_sendRawTransaction` answers when it is known what becomes of the
//! transaction first: its block is on disk, it was executed in the pending
//! block, or it waits. `safe` and `finalized` mean the newest block.
//!
//! # Map
//! One file a topic, each with a table `METHODS`; [`Method`](method::Method)
//! says what stands in it. [`gate`] bounds what runs, [`limits`] what is taken.

mod args;
mod batch;
mod blocks;
mod bounded;
mod calls;
mod debug;
mod dev;
mod errors;
mod events;
mod fees;
mod fill;
mod filters;
mod gate;
mod limits;
mod logs;
mod metered;
mod method;
mod net;
mod overrides;
mod pool;
mod shapes;
mod simulate;
mod state;
mod subscriptions;
mod sync;
mod trace;
mod transactions;

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use axum::extract::Request;
use axum::http::StatusCode;
use jsonrpsee::RpcModule;
use jsonrpsee::server::middleware::rpc::RpcServiceBuilder;
use jsonrpsee::server::ws::is_upgrade_request;
use jsonrpsee::server::{
    BatchRequestConfig, PingConfig, Server, ServerConfig, ServerHandle, stop_channel,
};
use jsonrpsee::types::Params;
use ol_node::Node;
use ol_runtime::Shutdown;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tower::Service as _;

use crate::edge::{self, Access, BoxError, Patience};
use crate::metrics::Open;
use args::Args;
use bounded::LargeReply;
use dev::Dev;
use events::Events;
use fees::TipOracle;
use filters::Filters;
use gate::Gate;
use metered::Metered;
use method::{LargeMethod, Method, Reply};
use subscriptions::SubscriptionIds;

pub use jsonrpsee::Methods;
pub use limits::Limits;

use crate::follow::{Forwarder, Upstream};

/// Messages that wait for a WebSocket client that reads slowly.
const MESSAGES_WAITING_MAX: u32 = 256;

/// Where and how a chain is served. Plain data.
#[derive(Debug, Clone)]
pub struct ServeConfig {
    /// Where to listen; port 0 takes any free one.
    pub addr: SocketAddr,
    /// Which host names and which pages may ask. Default: no page.
    pub access: Access,
    /// What is answered at most.
    pub limits: Limits,
    /// The node that this one follows, if it follows one: where transactions
    /// go, and what `eth_syncing` tells.
    pub upstream: Option<Upstream>,
    /// Whether the helpers of development chains are served too: blocks and
    /// time by hand, and accounts that are signed for. Default: no.
    pub is_dev: bool,
}

impl ServeConfig {
    /// The defaults at an address.
    #[must_use]
    pub fn new(addr: SocketAddr) -> Self {
        Self {
            addr,
            access: Access::default(),
            limits: Limits::default(),
            upstream: None,
            is_dev: false,
        }
    }
}

/// Why the server could not be started.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ServeError {
    /// The address cannot be listened on: another program uses the port, or
    /// the address is not this machine's.
    #[error("could not listen on {addr} for JSON-RPC")]
    Bind {
        /// The address.
        addr: SocketAddr,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// A server that runs until the shutdown it was given.
#[derive(Debug, Clone)]
pub struct RunningServer {
    /// Where it listens; the port that was chosen, if it was asked for port 0.
    pub addr: SocketAddr,
    sessions: ServerHandle,
    released: watch::Receiver<()>,
}

impl RunningServer {
    /// Completes when the server has stopped, no request is being answered, and
    /// nothing of it holds the node any more.
    pub async fn stopped(mut self) {
        self.sessions.stopped().await;
        // Ends with an error, when the sender is gone.
        while self.released.changed().await.is_ok() {}
    }
}

/// What the envelope of an answer takes, at most.
const ENVELOPE_MAX_SIZE_BYTES: usize = 1_024;

/// What the methods share.
#[derive(Debug)]
struct Eth {
    node: Node,
    gate: Gate,
    events: Events,
    filters: Filters,
    tips: TipOracle,
    /// Only on development chains.
    dev: Option<Dev>,
    limits: Limits,
    upstream: Option<Upstream>,
    /// Tells [`RunningServer::stopped`] that connections, subscriptions and
    /// methods have ended, whoever was the last. Dropped after the node, since
    /// fields are dropped in this order.
    _held: watch::Sender<()>,
}

impl Eth {
    fn new(
        node: Node,
        limits: Limits,
        upstream: Option<Upstream>,
        is_dev: bool,
        held: watch::Sender<()>,
    ) -> Self {
        let clock = Arc::clone(node.clock());
        Self {
            gate: Gate::new(&limits),
            events: Events::new(node.clone()),
            filters: Filters::new(limits.filters_max, limits.filter_expiry_s, clock),
            tips: TipOracle::default(),
            dev: is_dev.then(Dev::new),
            node,
            limits,
            upstream,
            _held: held,
        }
    }

    fn response_max_size_bytes(&self) -> usize {
        (self.limits.response_max_size_bytes as usize).saturating_sub(ENVELOPE_MAX_SIZE_BYTES)
    }

    /// An answer that may be large.
    ///
    /// # Errors
    /// If it is larger than an answer may be.
    fn large(&self, value: &impl serde::Serialize) -> LargeReply {
        bounded::shown(value, self.response_max_size_bytes())
    }

    /// Where transactions go that this node does not take itself.
    fn forwarder(&self) -> Option<&Forwarder> {
        self.upstream.as_ref()?.forwarder.as_ref()
    }
}

/// Serves a chain until `shutdown`.
///
/// # Errors
/// [`ServeError::Bind`] if the address cannot be listened on.
pub async fn serve(
    node: Node,
    config: ServeConfig,
    shutdown: Shutdown,
) -> Result<RunningServer, ServeError> {
    let ServeConfig {
        addr,
        access,
        limits,
        upstream,
        is_dev,
    } = config;
    let bind_error = |source| ServeError::Bind { addr, source };
    let listener = TcpListener::bind(addr).await.map_err(bind_error)?;
    let addr = listener.local_addr().map_err(bind_error)?;
    let pings = PingConfig::new()
        .ping_interval(limits.ping_interval)
        .inactive_limit(limits.silence_max);
    let config = ServerConfig::builder()
        .max_request_body_size(limits.request_max_size_bytes)
        .max_response_body_size(limits.response_max_size_bytes)
        .max_connections(limits.connections_max)
        .max_subscriptions_per_connection(limits.subscriptions_max)
        .set_batch_request_config(BatchRequestConfig::Limit(limits.batch_max))
        .set_message_buffer_capacity(MESSAGES_WAITING_MAX)
        .set_id_provider(SubscriptionIds)
        .enable_ws_ping(pings)
        .build();
    let response_max_size_bytes = limits.response_max_size_bytes;
    let connections_max = limits.connections_max as usize;
    let (held, released) = watch::channel(());
    let eth = Eth::new(node, limits, upstream, is_dev, held);
    let methods = Methods::from(module(eth));
    let known = methods.clone();
    let send_together = move |service| batch::SendTogether {
        service,
        methods: known.clone(),
        response_max_size_bytes,
    };
    let metered = Metered::layer(&methods);
    let builder = Server::builder()
        .set_config(config)
        .set_rpc_middleware(
            RpcServiceBuilder::new()
                .layer_fn(send_together)
                .layer_fn(metered),
        )
        .to_service_builder();
    // Sessions are WebSockets, which outlive the connection they began on.
    let (stop, sessions) = stop_channel();
    tokio::spawn({
        let sessions = sessions.clone();
        async move {
            let make = || {
                let service = builder.clone().build(methods.clone(), stop.clone());
                access.guard(tower::service_fn(move |request: Request| {
                    let mut service = service.clone();
                    let is_session = is_upgrade_request(&request);
                    let closed = is_session.then(|| service.on_session_closed());
                    async move {
                        let answer = service.call(request).await?;
                        if let (StatusCode::SWITCHING_PROTOCOLS, Some(closed)) =
                            (answer.status(), closed)
                        {
                            let open = Open::session();
                            tokio::spawn(async move {
                                closed.await;
                                drop(open);
                            });
                        }
                        Ok::<_, BoxError>(answer)
                    }
                }))
            };
            let answer = edge::serve(
                "rpc",
                listener,
                connections_max,
                Patience::default(),
                shutdown.clone(),
                make,
            );
            let stop_sessions = async {
                shutdown.triggered().await;
                // Fails only if they have stopped already.
                let _ = sessions.stop();
            };
            tokio::join!(answer, stop_sessions);
        }
    });
    tracing::info!(%addr, "eth JSON-RPC listening");
    Ok(RunningServer {
        addr,
        sessions,
        released,
    })
}

/// All methods over a node, but for those of development chains, for callers
/// in this process. They need a tokio runtime, here and when they are called.
#[must_use]
pub fn methods_of(node: Node, limits: Limits) -> Methods {
    // Nobody waits for the end of these.
    let (held, _) = watch::channel(());
    Methods::from(module(Eth::new(node, limits, None, false, held)))
}

/// The names of all methods, in no order; with those of development chains.
pub fn methods() -> impl Iterator<Item = &'static str> {
    names(true)
}

fn names(is_dev: bool) -> impl Iterator<Item = &'static str> {
    let large = large_topics().map(|method| method.name);
    let others = topics(is_dev).map(|method| method.name);
    others.chain(large).chain(SPECIAL)
}

/// Methods that wait for events, and so stand in no table.
const SPECIAL: [&str; 4] = [
    "eth_sendRawTransaction",
    "eth_sendRawTransactionSync",
    "eth_subscribe",
    "eth_unsubscribe",
];

/// All methods that answer by themselves.
fn topics(is_dev: bool) -> impl Iterator<Item = &'static Method> {
    let dev = if is_dev { dev::METHODS } else { &[] };
    [
        blocks::METHODS,
        calls::METHODS,
        dev,
        fees::METHODS,
        fill::METHODS,
        filters::METHODS,
        logs::METHODS,
        net::METHODS,
        pool::METHODS,
        state::METHODS,
        sync::METHODS,
        transactions::METHODS,
    ]
    .into_iter()
    .flatten()
}

/// All methods whose answers may be large.
fn large_topics() -> impl Iterator<Item = &'static LargeMethod> {
    [
        calls::LARGE_METHODS,
        debug::METHODS,
        simulate::LARGE_METHODS,
        trace::METHODS,
    ]
    .into_iter()
    .flatten()
}

fn module(eth: Eth) -> RpcModule<Eth> {
    const UNIQUE: &str = "every method has a name of its own";
    let is_dev = eth.dev.is_some();
    let mut module = RpcModule::new(eth);
    for method in topics(is_dev) {
        module
            .register_async_method(method.name, |params, eth, _| answer(method, params, eth))
            .expect(UNIQUE);
    }
    for method in large_topics() {
        module
            .register_async_method(method.name, |params, eth, _| {
                answer_large(method, params, eth)
            })
            .expect(UNIQUE);
    }
    module
        .register_async_method("eth_sendRawTransaction", |params, eth, _| async move {
            let mut args = Args::parse(&params, 1)?;
            transactions::send_raw(&mut args, &eth).await
        })
        .expect(UNIQUE);
    module
        .register_async_method("eth_sendRawTransactionSync", |params, eth, _| async move {
            let mut args = Args::parse(&params, 2)?;
            transactions::send_raw_sync(&mut args, &eth).await
        })
        .expect(UNIQUE);
    subscriptions::register(&mut module);
    module
}

async fn answer(method: &'static Method, params: Params<'static>, eth: Arc<Eth>) -> Reply {
    let run = {
        let eth = Arc::clone(&eth);
        move || (method.run)(&mut Args::parse(&params, method.args_max)?, &eth)
    };
    eth.gate.run(method.weight, run).await
}

async fn answer_large(
    method: &'static LargeMethod,
    params: Params<'static>,
    eth: Arc<Eth>,
) -> LargeReply {
    let run = {
        let eth = Arc::clone(&eth);
        move || (method.run)(&mut Args::parse(&params, method.args_max)?, &eth)
    };
    eth.gate.run(method.weight, run).await
}
