//! Ethereum JSON-RPC over HTTP and WebSocket: what `cast`, viem and wallets
//! need to deploy, call, send, wait and read logs.
//!
//! Error codes are geth's: -32602 for parameters, -32000 for what the chain
//! refuses, 3 with the data for a revert, -32005 past a limit, -32603 if the
//! node itself fails.
//!
//! `eth_sendRawTransaction` answers when the block that holds the transaction
//! is on disk. `eth_call` and `eth_estimateGas` see the state after the newest
//! block and the number, time and base fee of the next. There is no pending
//! state: `pending`, `safe` and `finalized` mean the newest block.

mod batch;
mod errors;
mod methods;
mod shapes;

use std::io;
use std::net::SocketAddr;

use jsonrpsee::RpcModule;
use jsonrpsee::server::middleware::rpc::RpcServiceBuilder;
use jsonrpsee::server::{BatchRequestConfig, Server, ServerConfig, ServerHandle};
use ol_node::Node;
use ol_runtime::Shutdown;
use tower_http::cors::{Any, CorsLayer};

/// Largest request body: a batch of the largest transactions in hexadecimal.
pub const REQUEST_MAX_SIZE_BYTES: u32 = 4 << 20;

/// Largest response body.
pub const RESPONSE_MAX_SIZE_BYTES: u32 = 64 << 20;

/// Most calls in one batch.
pub const BATCH_MAX: u32 = 256;

/// Most connections at one time.
pub const CONNECTIONS_MAX: u32 = 256;

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
    handle: ServerHandle,
}

impl RunningServer {
    /// Completes when the server has stopped and no request is being answered.
    pub async fn stopped(self) {
        self.handle.stopped().await;
    }
}

/// Serves a chain at an address until `shutdown`.
///
/// # Errors
/// [`ServeError::Bind`] if the address cannot be listened on.
pub async fn serve(
    node: Node,
    addr: SocketAddr,
    shutdown: Shutdown,
) -> Result<RunningServer, ServeError> {
    let bind_error = |source| ServeError::Bind { addr, source };
    let config = ServerConfig::builder()
        .max_request_body_size(REQUEST_MAX_SIZE_BYTES)
        .max_response_body_size(RESPONSE_MAX_SIZE_BYTES)
        .max_connections(CONNECTIONS_MAX)
        .set_batch_request_config(BatchRequestConfig::Limit(BATCH_MAX))
        .build();
    // Any page may ask: the node holds no keys and signs nothing.
    let cors = CorsLayer::new()
        .allow_origin(Any)
        .allow_methods(Any)
        .allow_headers(Any);
    let server = Server::builder()
        .set_config(config)
        .set_http_middleware(tower::ServiceBuilder::new().layer(cors))
        .set_rpc_middleware(RpcServiceBuilder::new().layer_fn(batch::SendTogether))
        .build(addr)
        .await
        .map_err(bind_error)?;
    let addr = server.local_addr().map_err(bind_error)?;
    let handle = server.start(module(node));
    tokio::spawn({
        let handle = handle.clone();
        async move {
            shutdown.triggered().await;
            // Fails only if it has stopped already.
            let _ = handle.stop();
        }
    });
    tracing::info!(%addr, "eth JSON-RPC listening");
    Ok(RunningServer { addr, handle })
}

fn module(node: Node) -> RpcModule<Node> {
    let mut module = RpcModule::new(node);
    for &(name, method) in methods::METHODS {
        module
            .register_blocking_method(name, move |params, node, _| method(&params, &node))
            .expect("every method has a name of its own");
    }
    module
        .register_async_method("eth_sendRawTransaction", |params, node, _| async move {
            methods::send_raw_transaction(&params, &node).await
        })
        .expect("every method has a name of its own");
    module
        .register_async_method("eth_sendRawTransactionSync", |params, node, _| async move {
            methods::send_raw_transaction_sync(&params, &node).await
        })
        .expect("every method has a name of its own");
    module
}
