//! The chain thread: all changes of a chain, one after the other.
//!
//! Transactions come in with their senders (`intake`), go into the pool, and
//! are executed one by one in the open block. What happens then depends on the
//! [`BlockMode`]: on demand, the block is closed at once and nobody is told
//! before it is on disk; at an interval, every round of executions is
//! published as the pending block, and the clock closes it.

mod control;
mod open;
mod seal;
mod unwind;

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, TryRecvError};
use std::time::Duration;

use alloy_consensus::Transaction as _;
use alloy_primitives::{Address, B256, KECCAK256_EMPTY};
use ol_evm::{ExecuteError, LeftOut};

use crate::admission::{SubmitError, SubmitOutcome};
use crate::event::ChainEvent;
use crate::import::SideBlocks;
use crate::intake::{Answer, Job, Submission};
use crate::mempool::{Journal, PoolError, PooledTransaction, Sender};
use crate::metrics::{self, Stage};
use crate::node::{BlockMode, Shared};
use crate::store::StoreError;

pub use control::{ControlError, MINE_BLOCKS_MAX, TIMESTAMP_MAX_S};
use open::OpenBlock;
pub use unwind::UnwindError;

/// Most commands that are followed before the open block is looked at again.
const COMMANDS_MAX: usize = 64;

/// How long a block that is made on demand waits for transactions that are on
/// their way.
const ON_DEMAND_WAIT_MAX_S: f64 = 0.02;

/// Queued transactions are looked through for old ones this often.
const EXPIRY_INTERVAL_S: u64 = 60;

/// Code of this size that begins so delegates to another account (EIP-7702).
const DELEGATION_SIZE_BYTES: usize = 23;
const DELEGATION_PREFIX: [u8; 3] = [0xef, 0x01, 0x00];

/// What the chain thread is asked to do.
pub(crate) enum Command {
    /// Take transactions, in this order.
    Submit(Vec<Submission>),
    /// Anything else: it has the chain to itself, and answers by a channel of
    /// its own.
    Run(Job),
}

/// Why a block could not be made or written.
#[derive(Debug, thiserror::Error)]
pub(crate) enum BlockMakingError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Execute(#[from] ExecuteError),
}

/// The chain, as the one thread that changes it sees it.
pub(crate) struct Chain {
    pub(crate) shared: Arc<Shared>,
    open: Option<OpenBlock>,
    /// Whom to tell about transactions in the pool and in the open block.
    answers: HashMap<B256, Vec<Answer>>,
    journal: Option<Journal>,
    /// The journal holds what was there before the node was started.
    is_journal_old: bool,
    /// Taken, and not in the journal.
    unjournaled: Vec<Arc<PooledTransaction>>,
    /// Taken, and not announced.
    unannounced: Vec<Arc<PooledTransaction>>,
    /// Not told whether they wait.
    undecided: Vec<B256>,
    is_mining_paused: bool,
    /// The last block could not be made; wait for something to change.
    has_failed: bool,
    /// When the open block of an interval is closed, on the monotonic clock.
    next_tick_s: f64,
    /// When the open block is closed on demand at the latest.
    close_by_s: f64,
    next_expiry_s: u64,
    /// Blocks of other branches.
    pub(crate) side: SideBlocks,
}

impl fmt::Debug for Chain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Chain")
            .field("head", &self.shared.head().header.number)
            .finish_non_exhaustive()
    }
}

/// Follows commands until every sender is gone and nothing can be executed.
pub(crate) fn run(mut chain: Chain, commands: &Receiver<Command>) {
    loop {
        let first = match chain.patience() {
            Patience::Endless => commands.recv().map_err(|_| RecvTimeoutError::Disconnected),
            Patience::Until(span) => commands.recv_timeout(span),
            Patience::None => commands.try_recv().map_err(|error| match error {
                TryRecvError::Empty => RecvTimeoutError::Timeout,
                TryRecvError::Disconnected => RecvTimeoutError::Disconnected,
            }),
        };
        match first {
            Ok(command) => {
                chain.follow(command);
                for command in commands.try_iter().take(COMMANDS_MAX) {
                    chain.follow(command);
                }
            }
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => return chain.stop(),
        }
        chain.work();
    }
}

enum Patience {
    Endless,
    Until(Duration),
    None,
}

impl Chain {
    pub(crate) fn new(shared: Arc<Shared>, journal: Option<Journal>) -> Self {
        let mut chain = Self {
            shared,
            open: None,
            answers: HashMap::new(),
            is_journal_old: journal.is_some(),
            journal,
            unjournaled: Vec::new(),
            unannounced: Vec::new(),
            undecided: Vec::new(),
            is_mining_paused: false,
            has_failed: false,
            next_tick_s: 0.0,
            close_by_s: 0.0,
            next_expiry_s: 0,
            side: SideBlocks::default(),
        };
        chain.wind_up();
        chain
    }

    /// How long to wait for a command.
    fn patience(&self) -> Patience {
        if self.is_mining_paused {
            return Patience::Endless;
        }
        match self.shared.config.block_mode {
            BlockMode::OnDemand if self.has_failed => Patience::Endless,
            BlockMode::OnDemand if self.open.is_some() => {
                let left_s = self.close_by_s - self.shared.clock.monotonic_s();
                Patience::Until(Duration::try_from_secs_f64(left_s).unwrap_or_default())
            }
            BlockMode::OnDemand if self.has_ready() => Patience::None,
            BlockMode::OnDemand => Patience::Endless,
            BlockMode::Interval(_) => {
                if self.open.is_none() && !self.has_failed && !self.shared.config.empty_blocks {
                    return Patience::Endless;
                }
                let left_s = self.next_tick_s - self.shared.clock.monotonic_s();
                Patience::Until(Duration::try_from_secs_f64(left_s).unwrap_or_default())
            }
        }
    }

    fn follow(&mut self, command: Command) {
        match command {
            Command::Submit(submissions) => {
                self.has_failed = false;
                for submission in submissions {
                    self.take(submission);
                }
            }
            Command::Run(job) => {
                self.work();
                job(self);
            }
        }
    }

    /// Executes what can be, closes the block if it is time, and tells.
    fn work(&mut self) {
        self.expire();
        self.announce();
        match self.shared.config.block_mode {
            BlockMode::OnDemand if !self.is_mining_paused => {
                if self.fill() && self.should_close() {
                    // Whoever waits is told.
                    let _ = self.close();
                }
            }
            mode => {
                self.fill();
                self.publish();
                if matches!(mode, BlockMode::Interval(_)) && !self.is_mining_paused {
                    self.tick();
                }
            }
        }
        if self.open.as_ref().is_some_and(OpenBlock::is_empty) {
            // It would keep its time and its snapshot for nothing.
            self.open = None;
        }
        self.answer_the_undecided();
        self.write_journal();
    }

    /// Nothing more will come: what was executed becomes a block.
    fn stop(mut self) {
        self.work();
        while self.open.is_some() || (self.has_ready() && !self.is_mining_paused) {
            if !self.fill() || self.close().is_err() {
                break;
            }
        }
        self.write_journal();
    }

    /// Closes the block if its time has come, and begins the next one.
    fn tick(&mut self) {
        if self.shared.clock.monotonic_s() < self.next_tick_s {
            return;
        }
        self.has_failed = false;
        let is_wanted = self.open.as_ref().is_some_and(|open| !open.is_empty())
            || self.shared.config.empty_blocks;
        if is_wanted && self.open_block().is_ok() && self.close().is_ok() {
            self.fill();
            self.publish();
        }
        self.wind_up();
    }

    /// Sets the time of the next tick: the next whole multiple of the interval.
    fn wind_up(&mut self) {
        if let BlockMode::Interval(interval_ms) = self.shared.config.block_mode {
            #[expect(clippy::cast_precision_loss, reason = "milliseconds of a block time")]
            let interval_s = interval_ms.get() as f64 / 1e3;
            let now_s = self.shared.clock.monotonic_s();
            self.next_tick_s = ((now_s / interval_s).floor() + 1.0) * interval_s;
        }
    }

    /// Whether the open block of an on-demand chain waits for nothing more:
    /// transactions that are on their way are worth a moment, because a block
    /// costs a write to the disk.
    fn should_close(&self) -> bool {
        !self.shared.is_intake_busy()
            || self.open.as_ref().is_some_and(|open| open.is_full)
            || self.shared.clock.monotonic_s() >= self.close_by_s
    }

    fn has_ready(&self) -> bool {
        self.shared.pool().best().is_some()
    }

    /// Takes a transaction into the pool, or says why not.
    fn take(&mut self, submission: Submission) {
        let Submission { pooled, answer } = submission;
        self.shared.left_intake(&answer);
        if let Err(error) = self.try_take(&pooled, &answer) {
            answer.fail(error);
            return;
        }
        match answer {
            Answer::Nobody => {}
            Answer::First(_) => {
                self.undecided.push(pooled.hash);
                self.answers.entry(pooled.hash).or_default().push(answer);
            }
            Answer::Durable(_) => self.answers.entry(pooled.hash).or_default().push(answer),
        }
    }

    fn try_take(
        &mut self,
        pooled: &Arc<PooledTransaction>,
        answer: &Answer,
    ) -> Result<(), SubmitError> {
        let open = self.open_block().map_err(shared_error)?;
        if open.contains(&pooled.hash) {
            return Err(PoolError::AlreadyKnown.into());
        }
        let base_fee_wei = open.context().base_fee_wei;
        let sender = sender_of(open, pooled.sender()).map_err(shared_error)?;
        let mut pool = self.shared.pool();
        if matches!(answer, Answer::Durable(_)) {
            // Somebody waits for the block: what only waits is refused.
            let next_nonce = pool.next_nonce(&pooled.sender());
            let (found, expected) = (pooled.nonce(), next_nonce.unwrap_or(sender.nonce));
            if found > expected {
                return Err(PoolError::NonceTooHigh { found, expected }.into());
            }
            let max_fee_wei = pooled.transaction.max_fee_per_gas();
            if max_fee_wei < u128::from(base_fee_wei) {
                return Err(PoolError::FeeTooLow {
                    max_fee_wei,
                    base_fee_wei,
                }
                .into());
            }
        }
        let inserted = pool.insert(Arc::clone(pooled), &sender)?;
        drop(pool);
        if let Some(replaced) = inserted.replaced {
            self.fail(
                &replaced.hash,
                &PoolError::Replaced { by: pooled.hash }.into(),
            );
        }
        for evicted in inserted.evicted {
            self.fail(&evicted.hash, &PoolError::Underpriced.into());
        }
        self.unannounced.push(Arc::clone(pooled));
        self.unjournaled.push(Arc::clone(pooled));
        Ok(())
    }

    /// The open block; begins one if there is none.
    fn open_block(&mut self) -> Result<&mut OpenBlock, BlockMakingError> {
        if self.open.is_none() {
            let now_s = self.shared.clock.monotonic_s();
            if self.next_tick_s <= now_s {
                self.wind_up();
            }
            self.close_by_s = now_s + ON_DEMAND_WAIT_MAX_S;
            let open = OpenBlock::new(&self.shared)?;
            self.open = Some(open);
        }
        Ok(self.open.as_mut().expect("it was opened above"))
    }

    /// Executes what can be. `false` if that failed, or nothing is in the block.
    fn fill(&mut self) -> bool {
        if !self.has_ready() {
            return self.open.as_ref().is_some_and(|open| !open.is_empty());
        }
        if let Err(error) = self.open_block() {
            self.give_up(error, Vec::new());
            return false;
        }
        let best = |shared: &Shared| shared.pool().best().cloned();
        while let Some(pooled) = best(&self.shared) {
            let Some(open) = self.open.as_mut() else {
                return false;
            };
            let clock = &*self.shared.clock;
            match metrics::timed(clock, Stage::Execute, || open.execute(&pooled)).0 {
                Ok(Ok(emptied)) => {
                    let mut pool = self.shared.pool();
                    pool.executed(&pooled);
                    let dropped: Vec<_> = emptied
                        .into_iter()
                        .flat_map(|(address, nonce, balance_wei)| {
                            pool.update_sender(address, nonce, balance_wei)
                        })
                        .collect();
                    drop(pool);
                    self.tell_dropped(dropped);
                }
                Ok(Err(LeftOut::NoRoom)) => {
                    open.is_full = true;
                    self.shared.pool().park(pooled.sender());
                }
                Ok(Err(LeftOut::Invalid { reason })) => {
                    self.shared.pool().remove(&pooled.hash);
                    tracing::debug!(hash = %pooled.hash, reason, "transaction dropped");
                    self.fail(&pooled.hash, &SubmitError::Rejected { reason });
                }
                Err(error) => {
                    let open = self.open.take();
                    let transactions = open.map(OpenBlock::into_transactions);
                    self.give_up(error.into(), transactions.unwrap_or_default());
                    return false;
                }
            }
        }
        self.open.as_ref().is_some_and(|open| !open.is_empty())
    }

    /// Gives the transactions of the open block back to the pool, as if it had
    /// not been begun.
    pub(crate) fn abandon_open(&mut self) {
        if let Some(open) = self.open.take() {
            self.shared.set_pending(None);
            self.take_back(open.into_transactions());
        }
    }

    /// Puts transactions back that are in no block any more, and has the pool
    /// count from the nonces of the newest block.
    pub(crate) fn take_back(&mut self, transactions: Vec<Arc<PooledTransaction>>) {
        let senders: Vec<Address> = self.shared.pool().senders().collect();
        let opened = OpenBlock::new(&self.shared);
        let mut open = match opened {
            Ok(open) => open,
            Err(error) => {
                tracing::error!(
                    error = &error as &dyn std::error::Error,
                    number = self.shared.head().header.number,
                    n_lost = transactions.len(),
                    "the pool is not brought up to date: the state cannot be read"
                );
                return;
            }
        };
        // The nonces of these senders went back.
        for address in senders {
            if let Ok(sender) = sender_of(&mut open, address) {
                let mut pool = self.shared.pool();
                let dropped = pool.update_sender(address, sender.nonce, sender.balance_wei);
                drop(pool);
                self.tell_dropped(dropped);
            }
        }
        for pooled in transactions {
            let taken = match sender_of(&mut open, pooled.sender()) {
                Ok(sender) => self.shared.pool().insert(Arc::clone(&pooled), &sender),
                Err(_) => continue,
            };
            match taken {
                Ok(inserted) => {
                    for evicted in inserted.evicted {
                        self.fail(&evicted.hash, &PoolError::Underpriced.into());
                    }
                    self.unjournaled.push(pooled);
                }
                Err(error) => self.fail(&pooled.hash, &error.into()),
            }
        }
    }

    fn expire(&mut self) {
        let now_s = self.shared.clock.unix_s();
        if now_s < self.next_expiry_s {
            return;
        }
        self.next_expiry_s = now_s.saturating_add(EXPIRY_INTERVAL_S);
        let expired = self.shared.pool().expire(now_s);
        self.tell_dropped(expired);
    }

    fn tell_dropped(&mut self, dropped: Vec<(Arc<PooledTransaction>, PoolError)>) {
        for (pooled, error) in dropped {
            tracing::debug!(hash = %pooled.hash, %error, "transaction dropped");
            self.fail(&pooled.hash, &error.into());
        }
    }

    /// Tells everybody who asked that a transaction comes to nothing.
    fn fail(&mut self, hash: &B256, error: &SubmitError) {
        for answer in self.answers.remove(hash).into_iter().flatten() {
            answer.fail(error.clone());
        }
    }

    /// Tells subscribers of the transactions that were taken.
    fn announce(&mut self) {
        if !self.unannounced.is_empty() {
            let taken = std::mem::take(&mut self.unannounced);
            self.shared
                .publish(&ChainEvent::PendingTransactions(taken.into()));
        }
    }

    /// Shows what was executed in the open block since the last time.
    fn publish(&mut self) {
        let Some(open) = self.open.as_mut() else {
            return;
        };
        let Some(block) = open.publish() else {
            return;
        };
        let block = Arc::new(block);
        self.shared.set_pending(Some(Arc::clone(&block)));
        let n_before = block.transactions.len() - block.n_new;
        for (position, transaction) in block.transactions.iter().enumerate().skip(n_before) {
            let outcome = SubmitOutcome::Preconfirmed {
                transaction_hash: transaction.hash,
                block_number: block.context.number,
                position,
            };
            self.answer_first(&transaction.hash, outcome);
        }
        self.shared.publish(&ChainEvent::Pending(block));
    }

    /// Answers those that asked for what is known first.
    fn answer_first(&mut self, hash: &B256, outcome: SubmitOutcome) {
        let Some(answers) = self.answers.remove(hash) else {
            return;
        };
        let mut rest = Vec::new();
        for answer in answers {
            match answer {
                Answer::First(done) => done(Ok(outcome)),
                other => rest.push(other),
            }
        }
        if !rest.is_empty() {
            self.answers.insert(*hash, rest);
        }
    }

    /// What is still in the pool after a round waits.
    fn answer_the_undecided(&mut self) {
        for hash in std::mem::take(&mut self.undecided) {
            if self.shared.pool().contains(&hash) {
                let outcome = SubmitOutcome::Queued {
                    transaction_hash: hash,
                };
                self.answer_first(&hash, outcome);
            }
        }
    }

    /// Adds what was taken and waits to the journal.
    fn write_journal(&mut self) {
        let unjournaled = std::mem::take(&mut self.unjournaled);
        let Some(journal) = self.journal.as_mut() else {
            return;
        };
        let open = self.open.as_ref();
        let pool = self.shared.pool();
        let open_size_bytes = open.map_or(0, OpenBlock::size_bytes);
        let live_size_bytes = pool.status().size_bytes + open_size_bytes;
        let written = if self.is_journal_old || journal.should_be_rewritten(live_size_bytes) {
            let waiting = pool.in_order();
            drop(pool);
            let executed = open.map(OpenBlock::transactions).unwrap_or_default();
            journal.rewrite(executed.iter().chain(&waiting))
        } else if unjournaled.is_empty() {
            return;
        } else {
            let is_waiting = |pooled: &&Arc<PooledTransaction>| {
                pool.contains(&pooled.hash) || open.is_some_and(|open| open.contains(&pooled.hash))
            };
            let waiting: Vec<_> = unjournaled.iter().filter(is_waiting).collect();
            let waiting = waiting.into_iter();
            drop(pool);
            journal.append(waiting)
        };
        self.is_journal_old = false;
        if let Err(error) = written {
            tracing::warn!(%error, "the pool is not kept over a restart: its journal cannot be written");
        }
    }
}

/// What the pool must know of an account, after the transactions so far.
fn sender_of(open: &mut OpenBlock, address: Address) -> Result<Sender, ExecuteError> {
    let account = open.account(address)?;
    let is_delegated = if account.code_hash == KECCAK256_EMPTY {
        false
    } else {
        let code = open.code(address)?;
        code.len() == DELEGATION_SIZE_BYTES && code.starts_with(&DELEGATION_PREFIX)
    };
    Ok(Sender {
        nonce: account.nonce,
        balance_wei: account.balance_wei,
        has_code: account.code_hash != KECCAK256_EMPTY,
        is_delegated,
    })
}

fn shared_error(error: impl Into<BlockMakingError>) -> SubmitError {
    SubmitError::Storage(Arc::new(error.into()))
}
