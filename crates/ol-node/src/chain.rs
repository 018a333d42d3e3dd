//! The chain thread: all changes of a chain, one after the other.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Arc;
use std::sync::mpsc::Receiver;

use alloy_consensus::Transaction as _;
use alloy_primitives::{Address, B256};
use ol_evm::{
    BlockContext, BuiltBlock, Execution, LeftOut, Recovered, StateReader, Transaction, build_block,
    header,
};

use crate::admission::{Inclusion, SubmitError};
use crate::event::NewBlock;
use crate::node::{Head, Shared};
use crate::store::{StoreError, StoredBlock};

/// What is called when the fate of a transaction is known.
pub(crate) type Done = Box<dyn FnOnce(Result<Inclusion, SubmitError>) + Send>;

/// A transaction that waits for a block.
pub(crate) struct Submission {
    transaction: Recovered<Transaction>,
    pub(crate) hash: B256,
    done: Done,
}

impl Submission {
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

impl fmt::Debug for Submission {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Submission")
            .field("hash", &self.hash)
            .finish()
    }
}

/// What the chain thread is asked to do.
pub(crate) enum Command {
    /// Take a transaction.
    Submit(Submission),
    /// Anything else: it has the chain to itself, and answers by a channel of
    /// its own.
    Run(Box<dyn FnOnce(&mut Chain) + Send>),
}

/// The chain, as the one thread that changes it sees it.
pub(crate) struct Chain {
    pub(crate) shared: Arc<Shared>,
    /// Valid transactions that the last block had no room for; they come first.
    waiting: Vec<Submission>,
}

impl Chain {
    pub(crate) const fn new(shared: Arc<Shared>) -> Self {
        Self {
            shared,
            waiting: Vec::new(),
        }
    }
}

/// Follows commands until every sender is gone and no transaction waits.
pub(crate) fn run(mut chain: Chain, commands: &Receiver<Command>) {
    loop {
        if chain.waiting.is_empty() {
            match commands.recv() {
                Ok(command) => chain.follow(command),
                Err(_) => return,
            }
        }
        // As many as wait now; the channel is bounded, and so is this.
        for command in commands.try_iter().take(chain.shared.config.queue_max) {
            chain.follow(command);
        }
        let waiting = std::mem::take(&mut chain.waiting);
        if !waiting.is_empty() {
            chain.waiting = make_block(&chain.shared, waiting);
        }
    }
}

impl Chain {
    fn follow(&mut self, command: Command) {
        match command {
            Command::Submit(submission) => self.waiting.push(submission),
            Command::Run(job) => job(self),
        }
    }
}

/// Makes a block of the submissions and answers them. Returns those without room.
fn make_block(shared: &Shared, submissions: Vec<Submission>) -> Vec<Submission> {
    let submissions = match in_nonce_order(shared, submissions) {
        Ok(submissions) => submissions,
        Err((submissions, error)) => return fail_all(submissions, SubmitError::storage(error)),
    };
    if submissions.is_empty() {
        return Vec::new();
    }
    let candidates: Vec<_> = submissions
        .iter()
        .map(|submission| submission.transaction.clone())
        .collect();
    let (built, head) = match execute_and_store(shared, candidates) {
        Ok(made) => made,
        Err(error) => {
            tracing::error!(error = %error, "no block could be made");
            return fail_all(submissions, SubmitError::Storage(error));
        }
    };
    answer(submissions, built, head.as_ref())
}

fn fail_all(submissions: Vec<Submission>, error: SubmitError) -> Vec<Submission> {
    for submission in submissions {
        submission.fail(error.clone());
    }
    Vec::new()
}

/// Refuses submissions whose nonce is not the next of their sender, counting those
/// that wait before them.
fn in_nonce_order(
    shared: &Shared,
    submissions: Vec<Submission>,
) -> Result<Vec<Submission>, (Vec<Submission>, StoreError)> {
    let state = match shared.store.read() {
        Ok(state) => state,
        Err(error) => return Err((submissions, error)),
    };
    let mut next_nonces: BTreeMap<Address, u64> = BTreeMap::new();
    for submission in &submissions {
        let sender = submission.transaction.signer();
        if next_nonces.contains_key(&sender) {
            continue;
        }
        match state.account(sender) {
            Ok(account) => next_nonces.insert(sender, account.unwrap_or_default().nonce),
            Err(error) => return Err((submissions, error)),
        };
    }
    let mut in_order = Vec::with_capacity(submissions.len());
    for submission in submissions {
        let found = submission.transaction.nonce();
        let next = next_nonces
            .entry(submission.transaction.signer())
            .or_default();
        let expected = *next;
        if found < expected {
            submission.fail(SubmitError::NonceTooLow { found, expected });
        } else if found > expected {
            submission.fail(SubmitError::NonceTooHigh { found, expected });
        } else {
            *next = next.saturating_add(1);
            in_order.push(submission);
        }
    }
    Ok(in_order)
}

type MakeError = Arc<dyn std::error::Error + Send + Sync>;

/// Executes the candidates and, if one of them is in the block, writes it.
fn execute_and_store(
    shared: &Shared,
    candidates: Vec<Recovered<Transaction>>,
) -> Result<(BuiltBlock, Option<Head>), MakeError> {
    let context = shared.next_context();
    let mut built = {
        let state = shared.store.read().map_err(shared_error)?;
        build_block(&state, &context, &candidates).map_err(shared_error)?
    };
    if built.included.is_empty() {
        return Ok((built, None));
    }
    let transactions = built
        .included
        .iter()
        .map(|&position| candidates[position].clone())
        .collect();
    let block =
        store(shared, &context, transactions, &mut built.execution).map_err(shared_error)?;
    tracing::debug!(
        number = block.header.number,
        hash = %block.hash,
        transactions = block.transactions.len(),
        gas_used = block.header.gas_used,
        "block written"
    );
    let head = Head {
        header: block.header.clone(),
        hash: block.hash,
    };
    shared.advance(Arc::new(block));
    Ok((built, Some(head)))
}

fn shared_error<E: std::error::Error + Send + Sync + 'static>(error: E) -> MakeError {
    Arc::new(error)
}

/// One durable write: the new state, its root, and the block.
fn store(
    shared: &Shared,
    context: &BlockContext,
    transactions: Vec<Recovered<Transaction>>,
    execution: &mut Execution,
) -> Result<NewBlock, StoreError> {
    let txn = shared.store.write()?;
    let update = txn.state_update(&execution.diff)?;
    let bare: Vec<&Transaction> = transactions.iter().map(Recovered::inner).collect();
    let header = header::seal(context, &bare, execution, update.root);
    let hash = header.hash_slow();
    let block = StoredBlock {
        header: &header,
        hash,
        transactions: &transactions,
        receipts: &execution.receipts,
    };
    txn.write_block(&block, &update, shared.config.history_max_blocks)?;
    txn.commit()?;
    Ok(NewBlock {
        header,
        hash,
        transactions,
        receipts: std::mem::take(&mut execution.receipts),
    })
}

/// Tells every submission its fate. Returns those that the block had no room for, and
/// what follows them from the same sender.
fn answer(submissions: Vec<Submission>, built: BuiltBlock, head: Option<&Head>) -> Vec<Submission> {
    let mut left_out: BTreeMap<usize, LeftOut> = built.left_out.into_iter().collect();
    let mut senders_waiting: BTreeSet<Address> = BTreeSet::new();
    let mut without_room = Vec::new();
    let mut position = 0;
    for (candidate, submission) in submissions.into_iter().enumerate() {
        let sender = submission.transaction.signer();
        match (left_out.remove(&candidate), head) {
            (Some(LeftOut::NoRoom), _) => {
                senders_waiting.insert(sender);
                without_room.push(submission);
            }
            // Its predecessor is not in the block, so it could not be either.
            (Some(LeftOut::Invalid { .. }), _) if senders_waiting.contains(&sender) => {
                without_room.push(submission);
            }
            (Some(LeftOut::Invalid { reason }), _) => {
                submission.fail(SubmitError::Rejected { reason })
            }
            (None, Some(head)) => {
                let inclusion = Inclusion {
                    transaction_hash: submission.hash,
                    block_number: head.header.number,
                    block_hash: head.hash,
                    position,
                };
                position += 1;
                (submission.done)(Ok(inclusion));
            }
            (None, None) => unreachable!("a submission that is in no block has been left out"),
        }
    }
    without_room
}
