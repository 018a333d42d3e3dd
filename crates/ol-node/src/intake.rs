//! The way in: senders are recovered, once, in parallel, off the threads of
//! the callers and of the chain; the order of arrival is kept.

use std::fmt;
use std::sync::mpsc::{Receiver, SyncSender};
use std::sync::{Arc, OnceLock};

use alloy_consensus::Transaction as _;
use alloy_consensus::transaction::SignerRecoverable;
use alloy_primitives::Address;
use ol_evm::{Recovered, Transaction};
use rayon::prelude::*;

use crate::admission::{Inclusion, SubmitError, SubmitOutcome};
use crate::chain::{Chain, Command};
use crate::mempool::{PooledTransaction, Remembered};
use crate::metrics::{self, Stage};
use crate::node::Shared;

/// Most transactions that are recovered together.
const BATCH_MAX: usize = 1_024;

/// Fewer transactions than this are not worth a second thread.
const SPLIT_MIN: usize = 8;

/// Something for the chain thread to do with the chain to itself.
pub(crate) type Job = Box<dyn FnOnce(&mut Chain) + Send>;

/// What comes in.
#[expect(
    clippy::large_enum_variant,
    reason = "nearly all that comes in are transactions"
)]
pub(crate) enum Incoming {
    /// A transaction that is well-formed.
    Transaction(Transaction, Answer),
    /// Anything else. It is not overtaken, and overtakes nothing.
    Run(Job),
}

/// Whom to tell what became of a transaction.
pub(crate) enum Answer {
    /// Told what is known first.
    First(Box<dyn FnOnce(Result<SubmitOutcome, SubmitError>) + Send>),
    /// Told when the block is on disk.
    Durable(Box<dyn FnOnce(Result<Inclusion, SubmitError>) + Send>),
    /// It was here before the node was started.
    Nobody,
}

impl Answer {
    pub(crate) fn fail(self, error: SubmitError) {
        metrics::rejected(&error);
        match self {
            Self::First(done) => done(Err(error)),
            Self::Durable(done) => done(Err(error)),
            Self::Nobody => {}
        }
    }
}

impl fmt::Debug for Answer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::First(_) => "First",
            Self::Durable(_) => "Durable",
            Self::Nobody => "Nobody",
        })
    }
}

/// A transaction with its sender, on its way into the pool.
#[derive(Debug)]
pub(crate) struct Submission {
    pub(crate) pooled: Arc<PooledTransaction>,
    pub(crate) answer: Answer,
}

/// Recovers what comes in and hands it on until every sender is gone;
/// `remembered` first.
pub(crate) fn run(
    shared: &Shared,
    remembered: Vec<Remembered>,
    incoming: &Receiver<Incoming>,
    commands: &SyncSender<Command>,
) {
    let remembered = remembered
        .into_iter()
        .map(|remembered| {
            (
                remembered.transaction,
                remembered.received_s,
                Answer::Nobody,
            )
        })
        .collect();
    if !hand_on(shared, remembered, commands) {
        return;
    }
    while let Ok(first) = incoming.recv() {
        let now_s = shared.clock.unix_s();
        let mut batch = Vec::new();
        let more = incoming.try_iter().take(BATCH_MAX - 1);
        for next in std::iter::once(first).chain(more) {
            match next {
                Incoming::Transaction(transaction, answer) => {
                    batch.push((transaction, now_s, answer));
                }
                Incoming::Run(job) => {
                    let is_running = hand_on(shared, std::mem::take(&mut batch), commands);
                    if !is_running || commands.send(Command::Run(job)).is_err() {
                        return;
                    }
                }
            }
        }
        if !hand_on(shared, batch, commands) {
            return;
        }
    }
}

/// Recovers a batch and sends it to the chain thread. `false` if that is gone.
fn hand_on(
    shared: &Shared,
    batch: Vec<(Transaction, u64, Answer)>,
    commands: &SyncSender<Command>,
) -> bool {
    if batch.is_empty() {
        return true;
    }
    let (unrecovered, answers): (Vec<_>, Vec<_>) = batch
        .into_iter()
        .map(|(transaction, received_s, answer)| ((transaction, received_s), answer))
        .unzip();
    let recovered = metrics::timed(&*shared.clock, Stage::Recovery, || recover_all(unrecovered)).0;
    let mut submissions = Vec::with_capacity(answers.len());
    for (pooled, answer) in recovered.into_iter().zip(answers) {
        match pooled {
            Some(pooled) => submissions.push(Submission {
                pooled: Arc::new(pooled),
                answer,
            }),
            None => {
                shared.left_intake(&answer);
                answer.fail(SubmitError::Signature);
            }
        }
    }
    submissions.is_empty() || commands.send(Command::Submit(submissions)).is_ok()
}

fn recover_all(transactions: Vec<(Transaction, u64)>) -> Vec<Option<PooledTransaction>> {
    let one = |(transaction, received_s)| recover(transaction, received_s);
    match recoverers() {
        Some(pool) if transactions.len() >= SPLIT_MIN => pool.install(|| {
            transactions
                .into_par_iter()
                .with_min_len(SPLIT_MIN / 2)
                .map(one)
                .collect()
        }),
        _ => transactions.into_iter().map(one).collect(),
    }
}

/// The transaction with its sender; `None` if its signature gives none.
fn recover(transaction: Transaction, received_s: u64) -> Option<PooledTransaction> {
    let sender = transaction.recover_signer().ok()?;
    let transaction = Recovered::new_unchecked(transaction, sender);
    Some(with_sender(transaction, received_s))
}

/// A transaction whose sender is known, with the accounts whose code it
/// delegates. An authorization that gives no account does nothing when it is
/// executed either.
pub(crate) fn with_sender(
    transaction: Recovered<Transaction>,
    received_s: u64,
) -> PooledTransaction {
    let authorities: Vec<Address> = transaction
        .authorization_list()
        .unwrap_or_default()
        .iter()
        .filter_map(|authorization| authorization.recover_authority().ok())
        .collect();
    PooledTransaction::new(transaction, authorities, received_s)
}

/// Threads of their own, shared by all nodes of the process, so that no other
/// long work stands before a recovery. `None` if they cannot be started.
fn recoverers() -> Option<&'static rayon::ThreadPool> {
    static RECOVERERS: OnceLock<Option<rayon::ThreadPool>> = OnceLock::new();
    let pool = RECOVERERS.get_or_init(|| {
        rayon::ThreadPoolBuilder::new()
            .thread_name(|number| format!("recover-{number}"))
            .build()
            .inspect_err(|error| tracing::warn!(%error, "senders are recovered on one thread"))
            .ok()
    });
    pool.as_ref()
}
