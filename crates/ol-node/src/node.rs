//! The handle of a running chain.

use std::path::Path;
use std::sync::mpsc::{self, SyncSender, TrySendError};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::thread::{self, JoinHandle};

use alloy_genesis::Genesis;
use alloy_primitives::B256;
use ol_evm::Header;
use ol_runtime::Clock;
use signet_libmdbx::Rw;

use crate::admission::{SubmitError, admit};
use crate::genesis::block_zero;
use crate::sequencer::{self, Job};
use crate::store::{FORMAT_VERSION, Store, StoreError, StoredBlock, Txn};

/// Limits of a node. Plain data; the defaults suit a development machine.
#[derive(Debug, Clone)]
pub struct NodeConfig {
    /// Most transactions waiting for a block. Default 4,096.
    pub queue_max: usize,
    /// Largest size of the database file. Default 256 GiB; no disk is used
    /// before it is needed.
    pub store_max_size_bytes: usize,
    /// Heads that a slow subscriber may lag behind before it is dropped. Default 256.
    pub subscriber_lag_max: usize,
}

impl Default for NodeConfig {
    fn default() -> Self {
        Self {
            queue_max: 4_096,
            store_max_size_bytes: 256 << 30,
            subscriber_lag_max: 256,
        }
    }
}

/// Why a chain could not be opened.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OpenError {
    /// The database could not be opened or written.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The database was written by a version that this one does not know.
    #[error("the chain database has format {found}, this version reads {FORMAT_VERSION}")]
    Format {
        /// What the database says.
        found: u32,
    },
    /// The directory holds another chain.
    #[error("the chain database begins with genesis {found}, expected {expected}")]
    ForeignGenesis {
        /// Hash of the block 0 that is there.
        found: B256,
        /// Hash of the block 0 that the given genesis makes.
        expected: B256,
    },
    /// The directory holds a chain with the same block 0 and another id.
    #[error("the chain database has chain id {found}, expected {expected}")]
    ForeignChain {
        /// The id that is there.
        found: u64,
        /// The id that the given genesis has.
        expected: u64,
    },
    /// The genesis makes no block.
    #[error("the genesis is not usable: {reason}")]
    Genesis {
        /// Why.
        reason: String,
    },
    /// The sequencer thread could not be started.
    #[error("the sequencer could not be started")]
    Thread(#[source] std::io::Error),
}

/// The newest block.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Head {
    /// Its header.
    pub header: Header,
    /// Its hash.
    pub hash: B256,
}

/// Where a transaction went.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Inclusion {
    /// The transaction.
    pub transaction_hash: B256,
    /// The block that holds it, by number.
    pub block_number: u64,
    /// The block that holds it, by hash.
    pub block_hash: B256,
    /// Position in the block, from 0.
    pub position: usize,
}

/// A running chain. Clones are handles of the same chain; when the last one
/// is dropped, what waits is finished and the database is closed.
#[derive(Debug, Clone)]
pub struct Node {
    pub(crate) shared: Arc<Shared>,
    sequencer: Arc<Sequencer>,
}

/// What queries and the sequencer share.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) store: Store,
    pub(crate) chain_id: u64,
    pub(crate) clock: Arc<dyn Clock>,
    head: RwLock<Arc<Head>>,
    subscribers: Mutex<Vec<SyncSender<Arc<Head>>>>,
    config: NodeConfig,
}

#[derive(Debug)]
struct Sequencer {
    queue: Option<SyncSender<Job>>,
    thread: Option<JoinHandle<()>>,
}

impl Node {
    /// Opens the chain in a directory, starting it from `genesis` if there is
    /// none, with the default [`NodeConfig`].
    ///
    /// # Errors
    /// [`OpenError`], before anything of another chain or format is touched.
    pub fn open(path: &Path, genesis: &Genesis, clock: Arc<dyn Clock>) -> Result<Self, OpenError> {
        Self::open_with(path, genesis, clock, NodeConfig::default())
    }

    /// [`Node::open`] with other limits.
    ///
    /// # Errors
    /// As [`Node::open`].
    pub fn open_with(
        path: &Path,
        genesis: &Genesis,
        clock: Arc<dyn Clock>,
        config: NodeConfig,
    ) -> Result<Self, OpenError> {
        let store = Store::open(path, config.store_max_size_bytes, |txn| {
            check_or_begin(txn, genesis)
        })?;
        let (header, hash) = store.read()?.head()?;
        tracing::info!(number = header.number, %hash, "chain opened");
        let shared = Arc::new(Shared {
            store,
            chain_id: genesis.config.chain_id,
            clock,
            head: RwLock::new(Arc::new(Head { header, hash })),
            subscribers: Mutex::new(Vec::new()),
            config,
        });
        let (queue, jobs) = mpsc::sync_channel(shared.config.queue_max);
        let thread = thread::Builder::new()
            .name("sequencer".to_owned())
            .spawn({
                let shared = Arc::clone(&shared);
                move || sequencer::run(&shared, &jobs)
            })
            .map_err(OpenError::Thread)?;
        let sequencer = Sequencer {
            queue: Some(queue),
            thread: Some(thread),
        };
        Ok(Self {
            shared,
            sequencer: Arc::new(sequencer),
        })
    }

    /// The chain's id.
    #[must_use]
    pub fn chain_id(&self) -> u64 {
        self.shared.chain_id
    }

    /// The newest block.
    #[must_use]
    pub fn head(&self) -> Arc<Head> {
        self.shared.head()
    }

    /// Takes a raw transaction (EIP-2718), makes a block with it, and returns
    /// when the block is on disk. The transaction may have reverted: its
    /// receipt says so.
    ///
    /// # Errors
    /// [`SubmitError`]; then the transaction is in no block.
    pub fn submit_and_wait(&self, raw: &[u8]) -> Result<Inclusion, SubmitError> {
        let (sender, receiver) = mpsc::sync_channel(1);
        self.submit_then(raw, move |outcome| {
            // The receiver is waiting below.
            let _ = sender.send(outcome);
        })?;
        receiver.recv().map_err(|_| SubmitError::Stopped)?
    }

    /// [`Node::submit_and_wait`] for callers that must not block: `done` is
    /// called once, from the sequencer thread, and must be quick. Returns the
    /// hash of the transaction when it waits for its block.
    ///
    /// # Errors
    /// [`SubmitError`] if the transaction is refused at once; then `done` is
    /// not called.
    pub fn submit_then(
        &self,
        raw: &[u8],
        done: impl FnOnce(Result<Inclusion, SubmitError>) + Send + 'static,
    ) -> Result<B256, SubmitError> {
        let gas_limit = self.head().header.gas_limit;
        let transaction = admit(raw, self.shared.chain_id, gas_limit)?;
        let job = Job::new(transaction, Box::new(done));
        let hash = job.hash;
        let queue = self.sequencer.queue.as_ref().ok_or(SubmitError::Stopped)?;
        match queue.try_send(job) {
            Ok(()) => Ok(hash),
            Err(TrySendError::Full(_)) => Err(SubmitError::Overloaded),
            Err(TrySendError::Disconnected(_)) => Err(SubmitError::Stopped),
        }
    }

    /// Every new head from now on. A subscriber that falls too far behind is
    /// cut off: its channel ends.
    #[must_use]
    pub fn subscribe(&self) -> mpsc::Receiver<Arc<Head>> {
        let (sender, receiver) = mpsc::sync_channel(self.shared.config.subscriber_lag_max);
        self.shared.subscribers().push(sender);
        receiver
    }
}

impl Shared {
    pub(crate) fn head(&self) -> Arc<Head> {
        Arc::clone(&self.head.read().unwrap_or_else(PoisonError::into_inner))
    }

    pub(crate) const fn queue_max(&self) -> usize {
        self.config.queue_max
    }

    pub(crate) fn set_head(&self, head: Head) {
        let head = Arc::new(head);
        *self.head.write().unwrap_or_else(PoisonError::into_inner) = Arc::clone(&head);
        self.subscribers()
            .retain(|subscriber| subscriber.try_send(Arc::clone(&head)).is_ok());
    }

    fn subscribers(&self) -> std::sync::MutexGuard<'_, Vec<SyncSender<Arc<Head>>>> {
        self.subscribers
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Sequencer {
    fn drop(&mut self) {
        // Ends the sequencer's loop after what is in the queue.
        self.queue = None;
        let Some(thread) = self.thread.take() else {
            return;
        };
        // A callback that held the last handle runs on the sequencer itself.
        if thread.thread().id() != thread::current().id() && thread.join().is_err() {
            tracing::error!("the sequencer panicked");
        }
    }
}

/// Checks that a database is ours, or begins the chain in an empty one.
fn check_or_begin(txn: &Txn<Rw>, genesis: &Genesis) -> Result<(), OpenError> {
    let unusable = |reason: &str| OpenError::Genesis {
        reason: reason.to_owned(),
    };
    if genesis.config.chain_id == 0 {
        return Err(unusable("the chain id is 0"));
    }
    let (state, header) =
        block_zero(genesis).ok_or_else(|| unusable("the base fee is too large"))?;
    let expected = header.hash_slow();
    match txn.format_version()? {
        None => {
            txn.apply(&state)?;
            if txn.state_root()? != header.state_root {
                return Err(StoreError::Corrupt {
                    what: "the genesis state does not have its root".to_owned(),
                }
                .into());
            }
            txn.append(&StoredBlock {
                header: &header,
                hash: expected,
                transactions: &[],
                receipts: &[],
            })?;
            txn.set_format_version(FORMAT_VERSION)?;
            txn.set_chain_id(genesis.config.chain_id)?;
        }
        Some(FORMAT_VERSION) => {
            let (_, found) = txn.header(0)?.ok_or_else(|| StoreError::Corrupt {
                what: "there is no block 0".to_owned(),
            })?;
            if found != expected {
                return Err(OpenError::ForeignGenesis { found, expected });
            }
            let expected = genesis.config.chain_id;
            let found = txn.chain_id()?.unwrap_or_default();
            if found != expected {
                return Err(OpenError::ForeignChain { found, expected });
            }
        }
        Some(found) => return Err(OpenError::Format { found }),
    }
    Ok(())
}
