//! What queries and the chain thread share.

use std::sync::mpsc::{self, Receiver, SyncSender};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};

use alloy_primitives::B256;
use ol_evm::{BlockContext, Header};
use ol_runtime::Clock;

use super::NodeConfig;
use crate::event::{ChainEvent, NewBlock};
use crate::pending::PendingBlock;
use crate::store::Store;

/// The newest durable block.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Head {
    /// Its header.
    pub header: Header,
    /// Its hash.
    pub hash: B256,
}

#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) store: Store,
    pub(crate) chain_id: u64,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) config: NodeConfig,
    head: RwLock<Arc<Head>>,
    /// The open block, if transactions were executed in it.
    pending: RwLock<Option<Arc<PendingBlock>>>,
    subscribers: Mutex<Vec<SyncSender<ChainEvent>>>,
}

impl Shared {
    pub(crate) fn new(
        store: Store,
        chain_id: u64,
        clock: Arc<dyn Clock>,
        config: NodeConfig,
        head: Head,
    ) -> Self {
        Self {
            store,
            chain_id,
            clock,
            config,
            head: RwLock::new(Arc::new(head)),
            pending: RwLock::new(None),
            subscribers: Mutex::new(Vec::new()),
        }
    }

    pub(crate) fn head(&self) -> Arc<Head> {
        Arc::clone(&self.head.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// The open block; one without transactions if there is none.
    pub(crate) fn pending(&self) -> Arc<PendingBlock> {
        let open = self.pending.read().unwrap_or_else(PoisonError::into_inner);
        match open.as_ref() {
            Some(pending) => Arc::clone(pending),
            None => Arc::new(PendingBlock::empty(self.next_context())),
        }
    }

    /// The context of a block made now.
    pub(crate) fn next_context(&self) -> BlockContext {
        let head = self.head();
        let now_s = self.clock.unix_s();
        BlockContext::after(&head.header, head.hash, self.chain_id, now_s)
    }

    /// Moves the head to a block that is on disk, and tells every subscriber.
    pub(crate) fn advance(&self, block: Arc<NewBlock>) {
        self.set_head(Head {
            header: block.header.clone(),
            hash: block.hash,
        });
        self.publish(&ChainEvent::Block(block));
    }

    /// Moves the head without telling anybody.
    pub(crate) fn set_head(&self, head: Head) {
        *self.head.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(head);
    }

    /// Tells every subscriber; those that lag too far behind are cut off.
    pub(crate) fn publish(&self, event: &ChainEvent) {
        self.subscribers()
            .retain(|subscriber| subscriber.try_send(event.clone()).is_ok());
    }

    pub(crate) fn subscribe(&self) -> Receiver<ChainEvent> {
        let (sender, receiver) = mpsc::sync_channel(self.config.subscriber_lag_max);
        self.subscribers().push(sender);
        receiver
    }

    fn subscribers(&self) -> MutexGuard<'_, Vec<SyncSender<ChainEvent>>> {
        self.subscribers
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}
