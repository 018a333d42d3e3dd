//! What queries and the chain thread share.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{self, Receiver, SyncSender};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};

use alloy_primitives::{Address, B256};
use ol_evm::{BlockContext, Header, Rules, header};
use ol_runtime::Clock;

use super::NodeConfig;
use super::time::BlockTime;
use crate::event::ChainEvent;
use crate::intake::Answer;
use crate::mempool::Pool;
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
    /// By which rules blocks are made and checked.
    pub(crate) rules: Rules,
    /// Hash of block 0.
    pub(crate) genesis_hash: B256,
    /// Whose signature every block must have that is imported; `None` if
    /// blocks are not signed.
    pub(crate) sequencer: Option<Address>,
    head: RwLock<Arc<Head>>,
    /// The open block, if transactions were executed in it.
    pending: RwLock<Option<Arc<PendingBlock>>>,
    pool: Mutex<Pool>,
    time: Mutex<BlockTime>,
    /// Transactions that were sent and that the chain thread has not looked at.
    n_in_intake: AtomicUsize,
    subscribers: Mutex<Vec<SyncSender<ChainEvent>>>,
}

impl Shared {
    #[expect(
        clippy::too_many_arguments,
        reason = "one caller, and every part has a type of its own"
    )]
    pub(crate) fn new(
        store: Store,
        chain_id: u64,
        clock: Arc<dyn Clock>,
        config: NodeConfig,
        rules: Rules,
        genesis_hash: B256,
        sequencer: Option<Address>,
        head: Head,
    ) -> Self {
        let base_fee_wei = header::next_base_fee_wei(&head.header);
        Self {
            store,
            chain_id,
            clock,
            pool: Mutex::new(Pool::new(config.pool, base_fee_wei)),
            time: Mutex::default(),
            n_in_intake: AtomicUsize::new(0),
            config,
            rules,
            genesis_hash,
            sequencer,
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

    pub(crate) fn set_pending(&self, pending: Option<Arc<PendingBlock>>) {
        *self.pending.write().unwrap_or_else(PoisonError::into_inner) = pending;
    }

    /// The context of a block made now.
    pub(crate) fn next_context(&self) -> BlockContext {
        let head = self.head();
        let now_s = self.time().now_s(&*self.clock);
        self.context_after(&head.header, head.hash, now_s)
    }

    /// The context of a block made on `parent`.
    pub(crate) fn context_after(
        &self,
        parent: &Header,
        parent_hash: B256,
        timestamp_s: u64,
    ) -> BlockContext {
        BlockContext::after(parent, parent_hash, self.chain_id, timestamp_s, &self.rules)
    }

    /// Moves the head without telling anybody.
    pub(crate) fn set_head(&self, head: Head) {
        *self.head.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(head);
    }

    /// The pool. Only the chain thread changes it; let go of it soon.
    pub(crate) fn pool(&self) -> MutexGuard<'_, Pool> {
        self.pool.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn time(&self) -> MutexGuard<'_, BlockTime> {
        self.time.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Counts a transaction that comes in; `false` if too many are on the way.
    pub(crate) fn enter_intake(&self) -> bool {
        let limit = self.config.queue_max;
        self.n_in_intake
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, |count| {
                (count < limit).then_some(count + 1)
            })
            .is_ok()
    }

    /// Whether transactions are on their way to the chain thread.
    pub(crate) fn is_intake_busy(&self) -> bool {
        self.n_in_intake.load(Ordering::Acquire) > 0
    }

    /// Counts a transaction that the chain thread took, or that was refused
    /// on the way.
    pub(crate) fn left_intake(&self, answer: &Answer) {
        if !matches!(answer, Answer::Nobody) {
            self.leave_intake();
        }
    }

    /// Takes back [`Shared::enter_intake`].
    pub(crate) fn leave_intake(&self) {
        self.n_in_intake.fetch_sub(1, Ordering::AcqRel);
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
