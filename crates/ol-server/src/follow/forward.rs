//! Transactions for the node that makes the blocks.

use std::sync::Arc;

use alloy_primitives::{B256, Bytes};
use jsonrpsee::core::client::{ClientT, Error as ClientError};
use jsonrpsee::rpc_params;
use jsonrpsee::types::ErrorObjectOwned;
use jsonrpsee::types::error::INTERNAL_ERROR_CODE;
use jsonrpsee_ws_client::WsClient;
use tokio::sync::Mutex;

use super::connect;

/// Sends transactions to another node. It is connected to with the first one,
/// and anew after every failure. Clones share the connection.
#[derive(Debug, Clone)]
pub struct Forwarder {
    url: Arc<str>,
    client: Arc<Mutex<Option<Arc<WsClient>>>>,
}

impl Forwarder {
    pub(super) fn new(url: String) -> Self {
        Self {
            url: url.into(),
            client: Arc::default(),
        }
    }

    /// Sends a raw transaction and returns what the other node answers: its
    /// hash, when it is in a block or preconfirmed.
    ///
    /// # Errors
    /// The other node's error as it is, or that it cannot be reached.
    pub async fn send_raw(&self, raw: &Bytes) -> Result<B256, ErrorObjectOwned> {
        let client = self
            .client()
            .await
            .map_err(|error| unreachable_node(&error))?;
        match client
            .request("eth_sendRawTransaction", rpc_params![raw])
            .await
        {
            Ok(hash) => Ok(hash),
            Err(ClientError::Call(error)) => Err(error),
            Err(error) => {
                self.forget(&client).await;
                Err(unreachable_node(&error))
            }
        }
    }

    async fn client(&self) -> Result<Arc<WsClient>, ClientError> {
        let mut slot = self.client.lock().await;
        if let Some(client) = slot.as_ref().filter(|client| client.is_connected()) {
            return Ok(Arc::clone(client));
        }
        let client = Arc::new(connect(&self.url).await?);
        *slot = Some(Arc::clone(&client));
        Ok(client)
    }

    async fn forget(&self, failed: &Arc<WsClient>) {
        let mut slot = self.client.lock().await;
        if slot
            .as_ref()
            .is_some_and(|client| Arc::ptr_eq(client, failed))
        {
            *slot = None;
        }
    }
}

/// Whether the transaction arrived is not known: it may be sent again, as its
/// nonce allows it only once.
fn unreachable_node(error: &ClientError) -> ErrorObjectOwned {
    tracing::warn!(%error, "a transaction could not be forwarded");
    ErrorObjectOwned::owned(
        INTERNAL_ERROR_CODE,
        "the node that makes the blocks cannot be reached; send the transaction again later",
        None::<()>,
    )
}
