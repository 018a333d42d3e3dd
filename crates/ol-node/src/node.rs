//! The handle of a running chain.

mod config;
mod shared;
mod time;

use std::fmt;
use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::{self, SyncSender, TrySendError};
use std::thread::{self, JoinHandle};

use alloy_genesis::Genesis;
use alloy_primitives::{Address, B256};
use ol_evm::Rules;
use ol_runtime::Clock;
use signet_libmdbx::Rw;

pub use config::{BlockMode, NodeConfig, OpenError, Role};
pub use shared::Head;
pub(crate) use shared::Shared;

use crate::admission::{Inclusion, SubmitError, SubmitOutcome, decode};
use crate::chain::{self, Chain};
use crate::event::ChainEvent;
use crate::genesis::block_zero;
use crate::intake::{self, Answer, Incoming};
use crate::mempool::{Journal, PoolError, Remembered};
use crate::metrics;
use crate::signature::{BlockSigner, sequencer_of};
use crate::store::{FORMAT_VERSION, Store, StoreError, StoredBlock, Txn};

/// Name of the pool's journal in the directory of the chain.
const JOURNAL_NAME: &str = "pool.journal";

/// A journal is read up to this many times the size of the pool.
const JOURNAL_FACTOR_MAX: u64 = 8;

/// Jobs for the chain thread that may be on the way; past it, callers wait.
const JOBS_MAX: usize = 64;

/// Batches that may wait between the intake and the chain thread.
const COMMANDS_MAX: usize = 16;

/// A running chain. Clones are handles of the same chain; when the last one
/// is dropped, what waits is finished and the database is closed.
#[derive(Clone)]
pub struct Node {
    pub(crate) shared: Arc<Shared>,
    threads: Arc<Threads>,
}

impl fmt::Debug for Node {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Node")
            .field("chain_id", &self.shared.chain_id)
            .field("head", &self.shared.head().header.number)
            .finish_non_exhaustive()
    }
}

/// The way in and the one thread that changes the chain.
struct Threads {
    incoming: Option<SyncSender<Incoming>>,
    handles: Vec<JoinHandle<()>>,
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
        let rules = Rules::of_genesis(&genesis.config).map_err(|error| OpenError::Genesis {
            reason: error.to_string(),
        })?;
        let store = Store::open(path, config.store_max_size_bytes, |txn| {
            check_or_begin(txn, genesis, &rules)
        })?;
        let sequencer = sequencer(genesis, &rules, &config)?;
        let (header, hash) = store.read()?.head()?;
        let (_, genesis_hash) = store.read()?.known_header(0)?;
        tracing::info!(number = header.number, %hash, "chain opened");
        let chain_id = genesis.config.chain_id;
        let (journal, remembered) = open_journal(path, chain_id, &config);
        let shared = Arc::new(Shared::new(
            store,
            chain_id,
            clock,
            config,
            rules,
            genesis_hash,
            sequencer,
            Head { header, hash },
        ));
        let threads = Threads::start(&shared, journal, remembered).map_err(OpenError::Thread)?;
        Ok(Self {
            shared,
            threads: Arc::new(threads),
        })
    }

    /// The chain's id.
    #[must_use]
    pub fn chain_id(&self) -> u64 {
        self.shared.chain_id
    }

    /// The rules that the chain follows.
    #[must_use]
    pub fn rules(&self) -> &Rules {
        &self.shared.rules
    }

    /// The clock that the node was given.
    #[must_use]
    pub fn clock(&self) -> &Arc<dyn Clock> {
        &self.shared.clock
    }

    /// Hash of block 0.
    #[must_use]
    pub fn genesis_hash(&self) -> B256 {
        self.shared.genesis_hash
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
        self.send(raw, Answer::First(Box::new(done)))
            .inspect_err(metrics::rejected)
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
        self.send(raw, Answer::Durable(Box::new(done)))
            .inspect_err(metrics::rejected)
    }

    fn send(&self, raw: &[u8], answer: Answer) -> Result<B256, SubmitError> {
        if self.role() == Role::Follower {
            return Err(SubmitError::Follower);
        }
        let gas_limit = self.head().header.gas_limit;
        let transaction = decode(raw, self.shared.chain_id, gas_limit)?;
        let hash = transaction.tx_hash();
        if self.shared.pool().contains(&hash) {
            return Err(PoolError::AlreadyKnown.into());
        }
        let incoming = self.threads.incoming.as_ref();
        let incoming = incoming.ok_or(SubmitError::Stopped)?;
        if !self.shared.enter_intake() {
            return Err(SubmitError::Overloaded);
        }
        match incoming.try_send(Incoming::Transaction(transaction, answer)) {
            Ok(()) => Ok(hash),
            Err(refused) => {
                self.shared.leave_intake();
                Err(match refused {
                    TrySendError::Full(_) => SubmitError::Overloaded,
                    TrySendError::Disconnected(_) => SubmitError::Stopped,
                })
            }
        }
    }

    /// Runs `job` on the chain thread, which alone may change the chain, and
    /// returns what it returns. Waits for what was sent before; so it never
    /// returns if a callback on the chain thread calls it.
    pub(crate) fn on_chain_thread<T: Send + 'static>(
        &self,
        job: impl FnOnce(&mut Chain) -> T + Send + 'static,
    ) -> Result<T, SubmitError> {
        let (sender, receiver) = mpsc::sync_channel(1);
        let job = Box::new(move |chain: &mut Chain| {
            // The receiver is waiting below.
            let _ = sender.send(job(chain));
        });
        let incoming = self.threads.incoming.as_ref();
        let incoming = incoming.ok_or(SubmitError::Stopped)?;
        incoming
            .send(Incoming::Run(job))
            .map_err(|_| SubmitError::Stopped)?;
        receiver.recv().map_err(|_| SubmitError::Stopped)
    }

    /// Everything that happens to the chain from now on. A subscriber that
    /// falls too far behind is cut off: its channel ends.
    #[must_use]
    pub fn subscribe(&self) -> mpsc::Receiver<ChainEvent> {
        self.shared.subscribe()
    }
}

impl Threads {
    fn start(
        shared: &Arc<Shared>,
        journal: Option<Journal>,
        remembered: Vec<Remembered>,
    ) -> std::io::Result<Self> {
        // Transactions are counted, so jobs have room of their own.
        let (incoming, from_callers) = mpsc::sync_channel(shared.config.queue_max + JOBS_MAX);
        let (commands, from_intake) = mpsc::sync_channel(COMMANDS_MAX);
        let intake = thread::Builder::new().name("intake".to_owned()).spawn({
            let shared = Arc::clone(shared);
            move || intake::run(&shared, remembered, &from_callers, &commands)
        })?;
        let chain = thread::Builder::new().name("chain".to_owned()).spawn({
            let shared = Arc::clone(shared);
            move || chain::run(Chain::new(shared, journal), &from_intake)
        })?;
        Ok(Self {
            incoming: Some(incoming),
            handles: vec![intake, chain],
        })
    }
}

impl Drop for Threads {
    fn drop(&mut self) {
        // Ends the intake after what is on the way, and then the chain thread.
        self.incoming = None;
        // A callback that held the last handle runs on one of the threads.
        let current = thread::current().id();
        if self
            .handles
            .iter()
            .any(|handle| handle.thread().id() == current)
        {
            return;
        }
        for handle in self.handles.drain(..) {
            let name = handle.thread().name().unwrap_or_default().to_owned();
            if handle.join().is_err() {
                tracing::error!(name, "a thread of the node panicked");
            }
        }
    }
}

/// Opens the journal of the pool. Without it the node runs as well, and
/// forgets what waits when it stops.
fn open_journal(
    path: &Path,
    chain_id: u64,
    config: &NodeConfig,
) -> (Option<Journal>, Vec<Remembered>) {
    if config.role == Role::Follower {
        return (None, Vec::new());
    }
    let size_bytes_max = JOURNAL_FACTOR_MAX * config.pool.size_bytes_max as u64;
    match Journal::open(&path.join(JOURNAL_NAME), chain_id, size_bytes_max) {
        Ok((journal, remembered)) => (Some(journal), remembered),
        Err(error) => {
            tracing::warn!(%error, "the pool is not kept over a restart: its journal cannot be opened");
            (None, Vec::new())
        }
    }
}

/// Whose blocks are taken, and whether a key may sign them. Ethereum's blocks
/// are not signed.
fn sequencer(
    genesis: &Genesis,
    rules: &Rules,
    config: &NodeConfig,
) -> Result<Option<Address>, OpenError> {
    if *rules != Rules::OpenLedger {
        return Ok(None);
    }
    let named = config.sequencer.or_else(|| sequencer_of(genesis));
    let signer = config.block_signer.as_ref().map(BlockSigner::address);
    match (config.role, named, signer) {
        (Role::Follower, None, _) => Err(OpenError::NoSequencer),
        (Role::Sequencer, Some(expected), Some(found)) if expected != found => {
            Err(OpenError::ForeignSigner { found, expected })
        }
        _ => Ok(named),
    }
}

/// Checks that a database is ours, or begins the chain in an empty one.
fn check_or_begin(txn: &Txn<Rw>, genesis: &Genesis, rules: &Rules) -> Result<(), OpenError> {
    let unusable = |reason: &str| OpenError::Genesis {
        reason: reason.to_owned(),
    };
    if genesis.config.chain_id == 0 {
        return Err(unusable("the chain id is 0"));
    }
    let (state, header) =
        block_zero(genesis, rules).ok_or_else(|| unusable("the base fee is too large"))?;
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
