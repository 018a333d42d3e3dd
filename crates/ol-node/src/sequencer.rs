//! Makes blocks of what waits, one after the other, on a thread of its own.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Arc;
use std::sync::mpsc::Receiver;

use alloy_consensus::Transaction as _;
use alloy_primitives::{Address, B256};
use ol_evm::{
    BlockContext, BuiltBlock, LeftOut, Recovered, StateReader, Transaction, build_block, header,
};

use crate::admission::SubmitError;
use crate::node::{Head, Inclusion, Shared};
use crate::store::{StoreError, StoredBlock};

/// What is called when the fate of a transaction is known.
pub(crate) type Done = Box<dyn FnOnce(Result<Inclusion, SubmitError>) + Send>;

/// A transaction that waits for a block.
pub(crate) struct Job {
    transaction: Recovered<Transaction>,
    pub(crate) hash: B256,
    done: Done,
}

impl Job {
    pub(crate) fn new(transaction: Recovered<Transaction>, done: Done) -> Self {
        let hash = transaction.tx_hash();
        Self {
            transaction,
            hash,
            done,
        }
    }

    fn fail(self, error: SubmitError) {
        (self.done)(Err(error));
    }
}

impl fmt::Debug for Job {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Job").field("hash", &self.hash).finish()
    }
}

/// Takes jobs until every sender is gone and none waits.
pub(crate) fn run(shared: &Shared, jobs: &Receiver<Job>) {
    // Valid transactions that the last block had no room for; they come first.
    let mut waiting: Vec<Job> = Vec::new();
    loop {
        if waiting.is_empty() {
            match jobs.recv() {
                Ok(job) => waiting.push(job),
                Err(_) => return,
            }
        }
        // As many as wait now; the queue is bounded, and so is this.
        waiting.extend(jobs.try_iter().take(shared.queue_max()));
        waiting = make_block(shared, waiting);
    }
}

/// Makes a block of the jobs and answers them. Returns those without room.
fn make_block(shared: &Shared, jobs: Vec<Job>) -> Vec<Job> {
    let jobs = match in_nonce_order(shared, jobs) {
        Ok(jobs) => jobs,
        Err((jobs, error)) => return fail_all(jobs, SubmitError::storage(error)),
    };
    if jobs.is_empty() {
        return Vec::new();
    }
    let candidates: Vec<_> = jobs.iter().map(|job| job.transaction.clone()).collect();
    let (built, head) = match execute_and_store(shared, &candidates) {
        Ok(made) => made,
        Err(error) => {
            tracing::error!(error = %error, "no block could be made");
            return fail_all(jobs, SubmitError::Storage(error));
        }
    };
    answer(jobs, built, head.as_ref())
}

fn fail_all(jobs: Vec<Job>, error: SubmitError) -> Vec<Job> {
    for job in jobs {
        job.fail(error.clone());
    }
    Vec::new()
}

/// Refuses jobs whose nonce is not the next of their sender, counting those
/// that wait before them.
fn in_nonce_order(shared: &Shared, jobs: Vec<Job>) -> Result<Vec<Job>, (Vec<Job>, StoreError)> {
    let state = match shared.store.read() {
        Ok(state) => state,
        Err(error) => return Err((jobs, error)),
    };
    let mut next_nonces: BTreeMap<Address, u64> = BTreeMap::new();
    for job in &jobs {
        let sender = job.transaction.signer();
        if next_nonces.contains_key(&sender) {
            continue;
        }
        match state.account(sender) {
            Ok(account) => next_nonces.insert(sender, account.unwrap_or_default().nonce),
            Err(error) => return Err((jobs, error)),
        };
    }
    let mut in_order = Vec::with_capacity(jobs.len());
    for job in jobs {
        let found = job.transaction.nonce();
        let next = next_nonces.entry(job.transaction.signer()).or_default();
        let expected = *next;
        if found < expected {
            job.fail(SubmitError::NonceTooLow { found, expected });
        } else if found > expected {
            job.fail(SubmitError::NonceTooHigh { found, expected });
        } else {
            *next = next.saturating_add(1);
            in_order.push(job);
        }
    }
    Ok(in_order)
}

/// Executes the candidates and, if one of them is in the block, writes it.
fn execute_and_store(
    shared: &Shared,
    candidates: &[Recovered<Transaction>],
) -> Result<(BuiltBlock, Option<Head>), Arc<dyn std::error::Error + Send + Sync>> {
    let parent = shared.head();
    let context = BlockContext::after(
        &parent.header,
        parent.hash,
        shared.chain_id,
        shared.clock.unix_s(),
    );
    let built = {
        let state = shared.store.read().map_err(shared_error)?;
        build_block(&state, &context, candidates).map_err(shared_error)?
    };
    if built.included.is_empty() {
        return Ok((built, None));
    }
    let transactions: Vec<_> = built
        .included
        .iter()
        .map(|&position| candidates[position].clone())
        .collect();
    let head = store(shared, &context, &transactions, &built).map_err(shared_error)?;
    tracing::debug!(
        number = head.header.number,
        hash = %head.hash,
        transactions = transactions.len(),
        gas_used = head.header.gas_used,
        "block written"
    );
    shared.set_head(head.clone());
    Ok((built, Some(head)))
}

fn shared_error<E: std::error::Error + Send + Sync + 'static>(
    error: E,
) -> Arc<dyn std::error::Error + Send + Sync> {
    Arc::new(error)
}

/// One durable write: the new state, its root, and the block.
fn store(
    shared: &Shared,
    context: &BlockContext,
    transactions: &[Recovered<Transaction>],
    built: &BuiltBlock,
) -> Result<Head, StoreError> {
    let txn = shared.store.write()?;
    txn.apply(&built.execution.diff)?;
    let state_root = txn.state_root()?;
    let bare: Vec<&Transaction> = transactions.iter().map(Recovered::inner).collect();
    let header = header::seal(context, &bare, &built.execution, state_root);
    let hash = header.hash_slow();
    txn.append(&StoredBlock {
        header: &header,
        hash,
        transactions,
        receipts: &built.execution.receipts,
    })?;
    txn.commit()?;
    Ok(Head { header, hash })
}

/// Tells every job its fate. Returns those that the block had no room for, and
/// what follows them from the same sender.
fn answer(jobs: Vec<Job>, built: BuiltBlock, head: Option<&Head>) -> Vec<Job> {
    let mut left_out: BTreeMap<usize, LeftOut> = built.left_out.into_iter().collect();
    let mut senders_waiting: BTreeSet<Address> = BTreeSet::new();
    let mut without_room = Vec::new();
    let mut position = 0;
    for (candidate, job) in jobs.into_iter().enumerate() {
        let sender = job.transaction.signer();
        match (left_out.remove(&candidate), head) {
            (Some(LeftOut::NoRoom), _) => {
                senders_waiting.insert(sender);
                without_room.push(job);
            }
            // Its predecessor is not in the block, so it could not be either.
            (Some(LeftOut::Invalid { .. }), _) if senders_waiting.contains(&sender) => {
                without_room.push(job);
            }
            (Some(LeftOut::Invalid { reason }), _) => job.fail(SubmitError::Rejected { reason }),
            (None, Some(head)) => {
                let inclusion = Inclusion {
                    transaction_hash: job.hash,
                    block_number: head.header.number,
                    block_hash: head.hash,
                    position,
                };
                position += 1;
                (job.done)(Ok(inclusion));
            }
            (None, None) => unreachable!("a job that is in no block has been left out"),
        }
    }
    without_room
}
