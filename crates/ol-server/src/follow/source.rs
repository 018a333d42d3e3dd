//! Blocks from another node's JSON-RPC.

use std::time::Duration;

use alloy_primitives::{B256, Bytes, Signature, U64};
use futures::FutureExt;
use jsonrpsee::core::client::{ClientT, Error as ClientError, Subscription, SubscriptionClientT};
use jsonrpsee::rpc_params;
use jsonrpsee_ws_client::WsClient;
use ol_node::{BlockSource, SourceError, SourceHead, WireBlock};
use ol_runtime::Shutdown;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use tokio::runtime::Handle;

use super::connect;

/// Rest before the source is asked again if it announces no blocks.
const POLL_WITHOUT_ANNOUNCEMENTS: Duration = Duration::from_secs(1);

/// What `ol_head` answers.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct HeadAnswer {
    pub(crate) chain_id: U64,
    pub(crate) genesis_hash: B256,
    pub(crate) number: U64,
    pub(crate) hash: B256,
}

/// One block of what `ol_signedBlocks` answers.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct BlockAnswer {
    pub(crate) rlp: Bytes,
    pub(crate) signature: Option<Bytes>,
}

/// Another node, asked over WebSocket. It is connected to when it is needed,
/// and anew after every failure.
#[derive(Debug)]
pub struct RpcSource {
    url: String,
    runtime: Handle,
    shutdown: Shutdown,
    connection: Option<Connection>,
}

#[derive(Debug)]
struct Connection {
    client: WsClient,
    /// Announcements of new blocks; none if the other side has none to give.
    heads: Option<Subscription<Value>>,
}

impl RpcSource {
    /// A source that is not connected yet. Its methods block the thread they
    /// are called on, which must not be one of `runtime`'s.
    #[must_use]
    pub const fn new(url: String, runtime: Handle, shutdown: Shutdown) -> Self {
        Self {
            url,
            runtime,
            shutdown,
            connection: None,
        }
    }

    /// Waits for what a connection gives, or for the program to stop. A
    /// connection that failed is not used again.
    fn with_connection<T>(
        &mut self,
        ask: impl AsyncFnOnce(&mut Connection) -> Result<T, ClientError>,
    ) -> Result<T, SourceError> {
        let Self {
            url,
            runtime,
            shutdown,
            connection,
        } = self;
        let outcome = runtime.block_on(async {
            let asked = async {
                if connection.is_none() {
                    *connection = Some(Connection::open(url).await?);
                }
                let connection = connection.as_mut().expect("it was opened above");
                ask(connection).await
            };
            tokio::select! {
                outcome = asked => Some(outcome),
                () = shutdown.triggered() => None,
            }
        });
        match outcome {
            Some(Ok(answer)) => Ok(answer),
            // The other side answered: the connection is good.
            Some(Err(ClientError::Call(error))) => Err(SourceError::Garbled {
                reason: error.message().to_owned(),
            }),
            Some(Err(error)) => {
                *connection = None;
                Err(SourceError::Away {
                    reason: error.to_string(),
                })
            }
            None => Err(SourceError::Stopped),
        }
    }
}

impl Connection {
    async fn open(url: &str) -> Result<Self, ClientError> {
        let client = connect(url).await?;
        let heads = client
            .subscribe("eth_subscribe", rpc_params!["newHeads"], "eth_unsubscribe")
            .await;
        let heads = match heads {
            Ok(heads) => Some(heads),
            Err(ClientError::Call(error)) => {
                tracing::warn!(%error, "the source announces no blocks; it is asked every second");
                None
            }
            Err(error) => return Err(error),
        };
        Ok(Self { client, heads })
    }
}

impl BlockSource for RpcSource {
    fn head(&mut self) -> Result<SourceHead, SourceError> {
        let answer: HeadAnswer = self.with_connection(async |connection| {
            connection.client.request("ol_head", rpc_params![]).await
        })?;
        Ok(SourceHead {
            chain_id: answer.chain_id.to(),
            genesis_hash: answer.genesis_hash,
            number: answer.number.to(),
            hash: answer.hash,
        })
    }

    fn blocks(&mut self, first: u64, n_max: usize) -> Result<Vec<WireBlock>, SourceError> {
        let answer: Vec<BlockAnswer> = self.with_connection(async |connection| {
            let params = rpc_params![U64::from(first), U64::from(n_max)];
            connection.client.request("ol_signedBlocks", params).await
        })?;
        answer
            .into_iter()
            .map(|block| {
                let signature = block.signature.map(|bytes| Signature::from_raw(&bytes));
                let signature = signature
                    .transpose()
                    .map_err(|error| SourceError::Garbled {
                        reason: format!("the signature of a block: {error}"),
                    })?;
                Ok(WireBlock {
                    rlp: block.rlp,
                    signature,
                })
            })
            .collect()
    }

    fn wait(&mut self, at_most: Duration) -> Result<(), SourceError> {
        self.with_connection(async |connection| {
            let Some(heads) = &mut connection.heads else {
                tokio::time::sleep(at_most.min(POLL_WITHOUT_ANNOUNCEMENTS)).await;
                return Ok(());
            };
            match tokio::time::timeout(at_most, heads.next()).await {
                // What is announced is asked for; of several announcements, once.
                Ok(Some(_)) => {
                    while let Some(Some(_)) = heads.next().now_or_never() {}
                    Ok(())
                }
                // The subscription has ended; so will the connection.
                Ok(None) => Err(ClientError::Custom("the connection has ended".to_owned())),
                Err(_) => Ok(()),
            }
        })
    }
}
