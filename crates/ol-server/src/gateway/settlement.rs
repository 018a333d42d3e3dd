//! The one thread that brings receipts to the chain, in order.
//!
//! # Never charged twice
//! A receipt is in the [`Journal`] before it comes here and leaves it only when
//! the chain has it (or refuses it for good) and its objects are stored. A crash
//! anywhere in between leaves it in the journal, so the next start tries again;
//! the chain knows which requests are settled, and so does every try: it asks
//! first, and a second settlement of a request would revert.

use std::collections::VecDeque;
use std::io;
use std::num::NonZero;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TrySendError, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use ol_runtime::{Objects, ObjectsError};
use tokio::sync::oneshot;

use super::chain::{Chain, ChainError, Charge, SettleError};
use super::claims::Claims;
use super::holds::Reserve;
use super::journal::{Journal, JournalError, PendingReceipt};
use super::thread::Thread;

/// How long after a failure it is tried again, if nothing else wakes the thread.
const RETRY_AFTER: Duration = Duration::from_secs(5);

/// How often open claims are looked after: they have an hour to answer.
const LOOK_AFTER: Duration = Duration::from_secs(1);

/// Most receipts brought to the chain at once: some blocks' worth.
const BATCH_MAX: usize = 64;

/// What became of a receipt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Status {
    /// The chain charged it, and paid everybody.
    Settled,
    /// The chain charged it. Who is paid is claimed, and can be challenged.
    Claimed,
    /// Somebody asks the operator for numbers of the claim.
    Challenged,
    /// The claim's window is over: it pays.
    Final,
    /// The claim was refuted: the fee goes back to the payer, and the operator
    /// loses its bond.
    Slashed,
    /// The chain will never charge it: nothing was paid.
    Refused,
    /// It is owed; the gateway keeps trying, also after a restart.
    Pending,
}

impl Status {
    /// The status as replies spell it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Settled => "settled",
            Self::Claimed => "claimed",
            Self::Challenged => "challenged",
            Self::Final => "final",
            Self::Slashed => "slashed",
            Self::Refused => "refused",
            Self::Pending => "pending",
        }
    }
}

/// A receipt in the journal, on its way to the chain.
#[derive(Debug)]
pub(super) struct Job {
    pub(super) pending: PendingReceipt,
    /// The fee, set aside until it is taken, and the bond that it takes to claim it.
    pub(super) hold: Reserve,
    /// Told what became of it; none for receipts of an earlier run.
    pub(super) reply: Option<oneshot::Sender<Status>>,
}

/// The way to the settlement thread.
#[derive(Debug)]
pub(super) struct Settlement {
    jobs: Mutex<Option<SyncSender<Job>>>,
    /// Receipts handed over and not yet settled or refused.
    n_owed: Arc<AtomicUsize>,
    thread: Thread,
}

impl Settlement {
    /// Starts the thread with what an earlier run left owed, and with the claims
    /// that are open. At most `n_jobs_max` receipts may queue for it.
    pub(super) fn start(
        chain: Arc<Chain>,
        objects: Objects,
        journal: Journal,
        claims: Claims,
        owed: Vec<Job>,
        n_jobs_max: usize,
    ) -> io::Result<Self> {
        let (sender, receiver) = sync_channel(n_jobs_max);
        let n_owed = Arc::new(AtomicUsize::new(owed.len()));
        let worker = Worker {
            chain,
            objects,
            journal,
            claims,
            owed: owed.into(),
            n_owed: Arc::clone(&n_owed),
        };
        let thread = Thread::spawn("settlement", move || worker.run(&receiver))?;
        Ok(Self {
            jobs: Mutex::new(Some(sender)),
            n_owed,
            thread,
        })
    }

    /// Hands a receipt over. If the thread is gone or the queue full the receipt
    /// stays in the journal for the next start.
    pub(super) fn submit(&self, job: Job) {
        let jobs = self.jobs.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(sender) = jobs.as_ref() else { return };
        self.n_owed.fetch_add(1, Ordering::Relaxed);
        // A dropped job tells its waiter that the receipt is pending.
        if let Err(TrySendError::Full(job) | TrySendError::Disconnected(job)) = sender.try_send(job)
        {
            tracing::warn!(receipt = %job.pending.receipt.id(), "receipt left for the next start");
        }
    }

    /// [`Settlement::submit`] for a thread that may wait until there is room.
    pub(super) fn submit_waiting(&self, job: Job) {
        let sender = {
            let jobs = self.jobs.lock().unwrap_or_else(PoisonError::into_inner);
            jobs.clone()
        };
        let Some(sender) = sender else { return };
        self.n_owed.fetch_add(1, Ordering::Relaxed);
        if let Err(job) = sender.send(job) {
            let receipt = job.0.pending.receipt.id();
            tracing::warn!(%receipt, "receipt left for the next start");
        }
    }

    /// How many receipts are owed.
    pub(super) fn n_owed(&self) -> usize {
        self.n_owed.load(Ordering::Relaxed)
    }

    /// Whether the thread still takes receipts.
    pub(super) fn is_running(&self) -> bool {
        self.thread.is_running()
    }

    /// Tries what is queued once more, then ends the thread. Blocks.
    pub(super) fn stop(&self) {
        drop(
            self.jobs
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .take(),
        );
        self.thread.join();
    }
}

/// How a receipt was charged.
#[derive(Debug, Clone, Copy)]
enum Tier {
    Exact,
    Optimistic,
}

struct Worker {
    chain: Arc<Chain>,
    objects: Objects,
    journal: Journal,
    /// Claims that are open: the same key signs for them.
    claims: Claims,
    owed: VecDeque<Job>,
    n_owed: Arc<AtomicUsize>,
}

/// Why a receipt is still owed.
#[derive(Debug, thiserror::Error)]
enum RetryError {
    #[error(transparent)]
    Chain(#[from] ChainError),
    #[error(transparent)]
    Objects(#[from] ObjectsError),
    #[error(transparent)]
    Journal(#[from] JournalError),
}

impl Worker {
    fn run(mut self, jobs: &Receiver<Job>) {
        self.settle_owed();
        loop {
            self.claims.tend();
            let received = if !self.claims.is_empty() {
                jobs.recv_timeout(LOOK_AFTER)
            } else if self.owed.is_empty() {
                jobs.recv().map_err(|_| RecvTimeoutError::Disconnected)
            } else {
                jobs.recv_timeout(RETRY_AFTER)
            };
            match received {
                Ok(job) => self.owed.push_back(job),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return self.settle_owed(),
            }
            self.owed.extend(jobs.try_iter());
            self.settle_owed();
        }
    }

    /// Settles in order, many in a block, until one fails; those who wait learn
    /// that theirs are pending.
    fn settle_owed(&mut self) {
        while !self.owed.is_empty() {
            let n_batch = self.owed.len().min(BATCH_MAX);
            let batch: Vec<Job> = self.owed.drain(..n_batch).collect();
            let mut failed = Vec::new();
            for (mut job, result) in self.charge(batch) {
                match self.record(&job.pending, &mut job.hold, result) {
                    Ok(status) => {
                        self.n_owed.fetch_sub(1, Ordering::Relaxed);
                        // First the money is free again, then the client knows.
                        drop(job.hold);
                        job.reply.map(|reply| reply.send(status));
                    }
                    Err(error) => {
                        let (receipt, error) = (job.pending.receipt.id(), chain_of(&error));
                        tracing::warn!(%receipt, %error, "receipt not settled yet");
                        failed.push(job);
                    }
                }
            }
            if !failed.is_empty() {
                for job in failed.into_iter().rev() {
                    self.owed.push_front(job);
                }
                for job in &mut self.owed {
                    job.reply.take().map(|reply| reply.send(Status::Pending));
                }
                return;
            }
        }
    }

    /// Brings receipts to the chain: the way of each follows from its index.
    fn charge(&mut self, batch: Vec<Job>) -> Vec<(Job, Result<Tier, SettleError>)> {
        let mut results: Vec<Option<Result<Tier, SettleError>>> = Vec::new();
        let mut charges = Vec::new();
        for charge in self.prepare(&batch) {
            results.push(match &charge {
                Ok(Charge::Settle(_)) => Some(Ok(Tier::Exact)),
                Ok(Charge::Claim { .. }) => Some(Ok(Tier::Optimistic)),
                Err(_) => None,
            });
            charges.push(charge);
        }
        let bonds_wei = charges.iter().flatten().map(Charge::bond_wei).sum();
        if let Err(error) = self.claims.fill_bond(bonds_wei) {
            // The court says which claims the bond covers.
            tracing::warn!(error = chain_of(&error), "the operator's bond is short");
        }
        let (mut sent, mut charged) = (Vec::new(), Vec::new());
        for (n, charge) in charges.into_iter().enumerate() {
            match charge {
                Ok(charge) => {
                    sent.push(n);
                    charged.push(charge);
                }
                Err(error) => results[n] = Some(Err(error)),
            }
        }
        for (n, result) in sent.into_iter().zip(self.chain.charge_many(&charged)) {
            if let Err(error) = result {
                results[n] = Some(Err(error));
            }
        }
        drop(charged);
        let results = results.into_iter().flatten();
        batch.into_iter().zip(results).collect()
    }

    /// How each receipt is charged. Claims are computed on all cores, each holding
    /// the trees of one at a time.
    fn prepare<'a>(&self, batch: &'a [Job]) -> Vec<Result<Charge<'a>, SettleError>> {
        let claims = &self.claims;
        let charges = |jobs: &'a [Job]| -> Vec<Result<Charge<'a>, SettleError>> {
            jobs.iter().map(|job| claims.charge(&job.pending)).collect()
        };
        let n_cores = thread::available_parallelism().map_or(1, NonZero::get);
        if claims.is_exact() || batch.len() < 2 || n_cores < 2 {
            return charges(batch);
        }
        thread::scope(|scope| {
            let parts = batch.chunks(batch.len().div_ceil(n_cores));
            let parts: Vec<_> = parts
                .map(|part| (part, scope.spawn(move || charges(part))))
                .collect();
            let join = |(part, thread): (&'a [Job], thread::ScopedJoinHandle<'_, _>)| {
                // A panic was reported by its hook; here it is met again.
                thread.join().unwrap_or_else(|_| charges(part))
            };
            parts.into_iter().flat_map(join).collect()
        })
    }

    /// Keeps what became of a receipt.
    fn record(
        &mut self,
        pending: &PendingReceipt,
        hold: &mut Reserve,
        charged: Result<Tier, SettleError>,
    ) -> Result<Status, RetryError> {
        let id = pending.receipt.id();
        match charged {
            Ok(tier) => {
                // All before the journal forgets: whoever sees the settlement can verify it.
                self.objects.put(pending.receipt.encode().to_vec())?;
                self.objects.put(pending.query.to_bytes().to_vec())?;
                pending.gathered.store(&self.objects)?;
                match tier {
                    Tier::Exact => {
                        self.journal.remove(id)?;
                        Ok(Status::Settled)
                    }
                    Tier::Optimistic => {
                        self.journal.begin_claim(id)?;
                        self.claims.add(id, hold.bond.take());
                        Ok(Status::Claimed)
                    }
                }
            }
            Err(SettleError::Refused { reason }) => {
                tracing::warn!(receipt = %id, %reason, "receipt refused by the chain");
                self.journal.refuse(id)?;
                Ok(Status::Refused)
            }
            Err(SettleError::Retry(error)) => Err(error.into()),
        }
    }
}

/// An error with its causes, in one line.
pub(super) fn chain_of(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        text.push_str(": ");
        text.push_str(&error.to_string());
        source = error.source();
    }
    text
}
