//! The handle of a running chain.

mod config;
mod shared;

use std::fmt;
use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::{self, SyncSender, TrySendError};
use std::thread::{self, JoinHandle};

use alloy_genesis::Genesis;
use alloy_primitives::B256;
use ol_runtime::Clock;
use signet_libmdbx::Rw;

pub use config::{BlockMode, NodeConfig, OpenError, Role};
pub use shared::Head;
pub(crate) use shared::Shared;

use crate::admission::{Inclusion, SubmitError, SubmitOutcome, admit};
use crate::chain::{self, Chain, Command, Submission};
use crate::event::ChainEvent;
use crate::genesis::block_zero;
use crate::store::{FORMAT_VERSION, Store, StoreError, StoredBlock, Txn};

/// A running chain. Clones are handles of the same chain; when the last one
/// is dropped, what waits is finished and the database is closed.
#[derive(Clone)]
pub struct Node {
    pub(crate) shared: Arc<Shared>,
    thread: Arc<ChainThread>,
}

impl fmt::Debug for Node {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Node")
            .field("chain_id", &self.shared.chain_id)
            .field("head", &self.shared.head().header.number)
            .finish_non_exhaustive()
    }
}

/// The one thread that changes the chain.
struct ChainThread {
    commands: Option<SyncSender<Command>>,
    handle: Option<JoinHandle<()>>,
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
        let (commands, inbox) = mpsc::sync_channel(config.queue_max);
        let head = Head { header, hash };
        let chain_id = genesis.config.chain_id;
        let shared = Arc::new(Shared::new(store, chain_id, clock, config, head));
        let handle = thread::Builder::new()
            .name("chain".to_owned())
            .spawn({
                let shared = Arc::clone(&shared);
                move || chain::run(Chain::new(shared), &inbox)
            })
            .map_err(OpenError::Thread)?;
        let thread = ChainThread {
            commands: Some(commands),
            handle: Some(handle),
        };
        Ok(Self {
            shared,
            thread: Arc::new(thread),
        })
    }

    /// The chain's id.
    #[must_use]
    pub fn chain_id(&self) -> u64 {
        self.shared.chain_id
    }

    /// Who makes the blocks.
    #[must_use]
    pub fn role(&self) -> Role {
        self.shared.config.role
    }

    /// The newest durable block.
    #[must_use]
    pub fn head(&self) -> Arc<Head> {
        self.shared.head()
    }

    /// Takes a raw transaction (EIP-2718) and returns when it is known what
    /// becomes of it first; see [`SubmitOutcome`].
    ///
    /// # Errors
    /// [`SubmitError`]; then the transaction is in no block and does not wait
    /// for one.
    pub fn submit(&self, raw: &[u8]) -> Result<SubmitOutcome, SubmitError> {
        let (sender, receiver) = mpsc::sync_channel(1);
        self.submit_with(raw, move |outcome| {
            // The receiver is waiting below.
            let _ = sender.send(outcome);
        })?;
        receiver.recv().map_err(|_| SubmitError::Stopped)?
    }

    /// [`Node::submit`] for callers that must not block: `done` is called
    /// once, from the chain thread, and must be quick. Returns the hash of the
    /// transaction.
    ///
    /// # Errors
    /// [`SubmitError`] if the transaction is refused at once; then `done` is
    /// not called.
    pub fn submit_with(
        &self,
        raw: &[u8],
        done: impl FnOnce(Result<SubmitOutcome, SubmitError>) + Send + 'static,
    ) -> Result<B256, SubmitError> {
        self.submit_then(raw, move |outcome| {
            done(outcome.map(SubmitOutcome::Included))
        })
    }

    /// Takes a raw transaction (EIP-2718) and returns when the block that
    /// holds it is on disk. The transaction may have reverted: its receipt
    /// says so. A transaction that would wait for a missing predecessor is
    /// refused.
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
    /// called once, from the chain thread, and must be quick. Returns the
    /// hash of the transaction.
    ///
    /// # Errors
    /// [`SubmitError`] if the transaction is refused at once; then `done` is
    /// not called.
    pub fn submit_then(
        &self,
        raw: &[u8],
        done: impl FnOnce(Result<Inclusion, SubmitError>) + Send + 'static,
    ) -> Result<B256, SubmitError> {
        if self.role() == Role::Follower {
            return Err(SubmitError::Follower);
        }
        let gas_limit = self.head().header.gas_limit;
        let transaction = admit(raw, self.shared.chain_id, gas_limit)?;
        let submission = Submission::new(transaction, Box::new(done));
        let hash = submission.hash;
        self.thread.send(Command::Submit(submission))?;
        Ok(hash)
    }

    /// Runs `job` on the chain thread, which alone may change the chain, and
    /// returns what it returns. Waits for what was sent before.
    #[expect(dead_code, reason = "import and unwind are asked for this way")]
    pub(crate) fn on_chain_thread<T: Send + 'static>(
        &self,
        job: impl FnOnce(&mut Chain) -> T + Send + 'static,
    ) -> Result<T, SubmitError> {
        let (sender, receiver) = mpsc::sync_channel(1);
        let job = Box::new(move |chain: &mut Chain| {
            // The receiver is waiting below.
            let _ = sender.send(job(chain));
        });
        self.thread.send(Command::Run(job))?;
        receiver.recv().map_err(|_| SubmitError::Stopped)
    }

    /// Everything that happens to the chain from now on. A subscriber that
    /// falls too far behind is cut off: its channel ends.
    #[must_use]
    pub fn subscribe(&self) -> mpsc::Receiver<ChainEvent> {
        self.shared.subscribe()
    }
}

impl ChainThread {
    fn send(&self, command: Command) -> Result<(), SubmitError> {
        let commands = self.commands.as_ref().ok_or(SubmitError::Stopped)?;
        commands.try_send(command).map_err(|error| match error {
            TrySendError::Full(_) => SubmitError::Overloaded,
            TrySendError::Disconnected(_) => SubmitError::Stopped,
        })
    }
}

impl Drop for ChainThread {
    fn drop(&mut self) {
        // Ends the thread's loop after what is in the channel.
        self.commands = None;
        let Some(handle) = self.handle.take() else {
            return;
        };
        // A callback that held the last handle runs on the chain thread itself.
        if handle.thread().id() != thread::current().id() && handle.join().is_err() {
            tracing::error!("the chain thread panicked");
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
            let update = txn.state_update(&state)?;
            if update.root != header.state_root {
                return Err(StoreError::Corrupt {
                    what: "the genesis state does not have its root".to_owned(),
                }
                .into());
            }
            txn.write_state(&update)?;
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
