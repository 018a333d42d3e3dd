//! A block is closed: root, one durable write, and then the world is told.

use std::sync::Arc;

use alloy_primitives::B256;
use ol_evm::{BlockBuilder, Recovered, StateDiff, Transaction, header};
use signet_libmdbx::Ro;

use super::{BlockMakingError, Chain, shared_error};
use crate::admission::{Inclusion, SubmitError, SubmitOutcome};
use crate::event::{ChainEvent, NewBlock};
use crate::intake::Answer;
use crate::mempool::PooledTransaction;
use crate::metrics::{self, Stage};
use crate::node::{Head, Shared};
use crate::store::{StoredBlock, Txn};

impl Chain {
    /// Closes the open block, if there is one. It is on disk when this returns.
    ///
    /// If it cannot be written, the chain stays where it is: what somebody
    /// waits for is refused, and the rest goes back to the pool.
    pub(super) fn close(&mut self) -> Result<(), SubmitError> {
        let Some(open) = self.open.take() else {
            return Ok(());
        };
        let (builder, transactions) = open.into_parts();
        let (block, diff) = match write(&self.shared, builder, &transactions) {
            Ok(written) => written,
            Err(error) => return Err(self.give_up(error, transactions)),
        };
        let (block_number, block_hash) = (block.header.number, block.hash);
        self.advance(block, &diff);
        for (position, pooled) in transactions.iter().enumerate() {
            let inclusion = Inclusion {
                transaction_hash: pooled.hash,
                block_number,
                block_hash,
                position,
            };
            for answer in self.answers.remove(&pooled.hash).into_iter().flatten() {
                match answer {
                    Answer::First(done) => done(Ok(SubmitOutcome::Included(inclusion))),
                    Answer::Durable(done) => done(Ok(inclusion)),
                    Answer::Nobody => {}
                }
            }
        }
        Ok(())
    }

    /// No block can be made of these transactions. What somebody waits for is
    /// refused; the rest waits for a better time. Returns what callers are told.
    pub(super) fn give_up(
        &mut self,
        error: BlockMakingError,
        transactions: Vec<Arc<PooledTransaction>>,
    ) -> SubmitError {
        tracing::error!(
            error = &error as &dyn std::error::Error,
            "no block could be made; the chain stays as it is"
        );
        self.has_failed = true;
        self.shared.set_pending(None);
        let error = shared_error(error);
        self.take_back(transactions);
        let refused: Vec<B256> = self.answers.keys().copied().collect();
        for hash in refused {
            self.shared.pool().remove(&hash);
            self.fail(&hash, &error);
        }
        error
    }

    /// A block is on disk and is the newest now: moves the head, brings the
    /// pool up to date with what `diff` changed, and tells.
    pub(crate) fn advance(&mut self, block: NewBlock, diff: &StateDiff) {
        self.shared.set_head(Head {
            header: block.header.clone(),
            hash: block.hash,
        });
        self.shared.set_pending(None);
        self.shared.time().arrive(&*self.shared.clock);
        let base_fee_wei = header::next_base_fee_wei(&block.header);
        let mut pool = self.shared.pool();
        pool.open_block(base_fee_wei);
        let mut dropped = Vec::new();
        for (&address, change) in &diff.accounts {
            if pool.has_sender(&address) {
                let account = change.account.unwrap_or_default();
                dropped.extend(pool.update_sender(address, account.nonce, account.balance_wei));
            }
        }
        drop(pool);
        self.tell_dropped(dropped);
        metrics::block_added(&block);
        self.shared.publish(&ChainEvent::Block(Arc::new(block)));
    }
}

/// One durable write: the new state, its root, and the block.
fn write(
    shared: &Shared,
    builder: BlockBuilder<Txn<Ro>>,
    transactions: &[Arc<PooledTransaction>],
) -> Result<(NewBlock, StateDiff), BlockMakingError> {
    let context = *builder.context();
    // Lets go of the state that it read before a new one is written.
    let execution = builder.finish()?;
    let clock = &*shared.clock;
    let txn = shared.store.write()?;
    let (update, root_s) = metrics::timed(clock, Stage::Root, || txn.state_update(&execution.diff));
    let update = update?;
    let transactions: Vec<Recovered<Transaction>> = transactions
        .iter()
        .map(|pooled| pooled.transaction.clone())
        .collect();
    let bare: Vec<&Transaction> = transactions.iter().map(Recovered::inner).collect();
    let header = header::seal(&context, &bare, &execution, update.root);
    let hash = header.hash_slow();
    let stored = StoredBlock {
        header: &header,
        hash,
        transactions: &transactions,
        receipts: &execution.receipts,
    };
    let (written, write_s) = metrics::timed(clock, Stage::Write, || {
        txn.write_block(&stored, &update, shared.config.history_max_blocks)
    });
    written?;
    if let Some(signer) = &shared.config.block_signer {
        txn.set_signature(header.number, &signer.sign(shared.chain_id, hash))?;
    }
    let (committed, commit_s) = metrics::timed(clock, Stage::Commit, || txn.commit());
    committed?;
    tracing::debug!(
        number = header.number,
        %hash,
        transactions = transactions.len(),
        gas_used = header.gas_used,
        root_s,
        write_s,
        commit_s,
        "block written"
    );
    let block = NewBlock {
        header,
        hash,
        transactions,
        receipts: execution.receipts,
    };
    Ok((block, execution.diff))
}
