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
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TrySendError, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use ol_runtime::{Objects, ObjectsError};
use tokio::sync::oneshot;

use super::chain::{Chain, ChainError, SettleError};
use super::holds::Hold;
use super::journal::{Journal, JournalError, PendingReceipt};
use super::thread::Thread;

/// How long after a failure it is tried again, if nothing else wakes the thread.
const RETRY_AFTER: Duration = Duration::from_secs(5);

/// Most receipts brought to the chain at once: some blocks' worth.
const BATCH_MAX: usize = 64;

/// What became of a receipt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Status {
    /// The chain charged it.
    Settled,
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
            Self::Refused => "refused",
            Self::Pending => "pending",
        }
    }
}

/// A receipt in the journal, on its way to the chain.
#[derive(Debug)]
pub(super) struct Job {
    pub(super) pending: PendingReceipt,
    /// The fee, set aside until it is taken.
    pub(super) hold: Hold,
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
    /// Starts the thread with what an earlier run left owed. At most `n_jobs_max`
    /// receipts may queue for it.
    pub(super) fn start(
        chain: Arc<Chain>,
        objects: Objects,
        journal: Journal,
        owed: Vec<Job>,
        n_jobs_max: usize,
    ) -> io::Result<Self> {
        let (sender, receiver) = sync_channel(n_jobs_max);
        let n_owed = Arc::new(AtomicUsize::new(owed.len()));
        let worker = Worker {
            chain,
            objects,
            journal,
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

struct Worker {
    chain: Arc<Chain>,
    objects: Objects,
    journal: Journal,
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
            let received = if self.owed.is_empty() {
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
            let receipts: Vec<&PendingReceipt> = batch.iter().map(|job| &job.pending).collect();
            let results = self.chain.settle_many(&receipts);
            let mut failed = Vec::new();
            for (job, result) in batch.into_iter().zip(results) {
                match self.record(&job.pending, result) {
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

    /// Keeps what became of a receipt.
    fn record(
        &self,
        pending: &PendingReceipt,
        settled: Result<(), SettleError>,
    ) -> Result<Status, RetryError> {
        let id = pending.receipt.id();
        match settled {
            Ok(()) => {
                // All before the journal forgets: whoever sees the settlement can verify it.
                self.objects.put(pending.receipt.encode().to_vec())?;
                self.objects.put(pending.query.to_bytes().to_vec())?;
                pending.gathered.store(&self.objects)?;
                self.journal.remove(id)?;
                Ok(Status::Settled)
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
