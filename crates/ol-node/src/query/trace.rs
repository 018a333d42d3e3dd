//! Blocks, transactions and messages run once more, recorded.

use std::sync::Arc;

use alloy_primitives::B256;
use ol_evm::{
    AccessListOutput, BlockContext, BlockToSimulate, CallRequest, Recovered, SimulateOptions,
    SimulatedBlock, Trace, TraceError, TraceLimits, TraceParts, Transaction,
};

use super::{Block, BlockRef, QueryError, TransactionInBlock, known_header};
use crate::Node;

/// What recording may cost. Plain data; the limits hold for one request.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct TraceConfig {
    /// Most bytes in memory of what is recorded. Default 256 MiB.
    pub size_max_bytes: usize,
    /// Most single instructions that are recorded. Default 2,000,000.
    pub steps_max: u64,
    /// Longest time in seconds. Default 20.
    pub time_max_s: f64,
}

impl Default for TraceConfig {
    fn default() -> Self {
        let TraceLimits {
            size_max_bytes,
            steps_max,
            ..
        } = TraceLimits::default();
        Self {
            size_max_bytes,
            steps_max,
            time_max_s: 20.0,
        }
    }
}

/// A block, and what each of its transactions did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TracedBlock {
    /// The block.
    pub block: Block,
    /// One trace for each transaction.
    pub traces: Vec<Trace>,
}

/// A transaction, and what it did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TracedTransaction {
    /// The transaction, and where it is.
    pub place: TransactionInBlock,
    /// What it did.
    pub trace: Trace,
}

impl Node {
    /// The limits of one trace request that begins now. Several traces that
    /// take the same limits share their time.
    #[must_use]
    pub fn trace_limits(&self, config: &TraceConfig) -> TraceLimits {
        let clock = Arc::clone(&self.shared.clock);
        let end_s = clock.monotonic_s() + config.time_max_s;
        TraceLimits {
            size_max_bytes: config.size_max_bytes,
            steps_max: config.steps_max,
            is_over: Arc::new(move || clock.monotonic_s() >= end_s),
        }
    }

    /// Replays a block and records every transaction, if there is such a block.
    ///
    /// # Errors
    /// [`QueryError::GenesisTrace`] for block 0, [`QueryError::Trace`], and if
    /// the state of the parent is not kept, as [`Node::state`].
    pub fn trace_block(
        &self,
        block: BlockRef,
        parts: &TraceParts,
        limits: &TraceLimits,
    ) -> Result<Option<TracedBlock>, QueryError> {
        let Some(block) = self.block(block)? else {
            return Ok(None);
        };
        let context = BlockContext::of(&block.header, self.shared.chain_id, &self.shared.rules);
        let count = block.transactions.len();
        let traces = self.replay(&context, &block.transactions, 0..count, parts, limits)?;
        Ok(Some(TracedBlock { block, traces }))
    }

    /// Replays a transaction behind those before it in its block and records
    /// it, if it is in a block.
    ///
    /// # Errors
    /// As [`Node::trace_block`].
    pub fn trace_transaction(
        &self,
        hash: B256,
        parts: &TraceParts,
        limits: &TraceLimits,
    ) -> Result<Option<TracedTransaction>, QueryError> {
        let txn = self.read()?;
        let Some((number, position)) = txn.transaction_place(hash)? else {
            return Ok(None);
        };
        let (header, block_hash) = known_header(&txn, number)?;
        let transactions = txn.body(number)?;
        drop(txn);
        let context = BlockContext::of(&header, self.shared.chain_id, &self.shared.rules);
        let wanted = position..position + 1;
        let traces = self.replay(&context, &transactions, wanted, parts, limits)?;
        let found = transactions.into_iter().nth(position);
        let (Some(transaction), Some(trace)) = (found, traces.into_iter().next()) else {
            return Err(super::missing("a transaction", number));
        };
        let place = TransactionInBlock {
            transaction,
            header,
            block_hash,
            position,
        };
        Ok(Some(TracedTransaction { place, trace }))
    }

    /// Executes a block that is given, on the state of its parent, and records
    /// every transaction. The block need not be in the chain; nothing but its
    /// execution is checked.
    ///
    /// # Errors
    /// As [`Node::trace_block`]; [`QueryError::UnknownBlock`] if the parent is
    /// not in the chain.
    pub fn trace_given_block(
        &self,
        context: &BlockContext,
        transactions: &[Recovered<Transaction>],
        parts: &TraceParts,
        limits: &TraceLimits,
    ) -> Result<Vec<Trace>, QueryError> {
        self.replay(context, transactions, 0..transactions.len(), parts, limits)
    }

    /// Tries a message as [`Node::call`] does, and records it.
    ///
    /// # Errors
    /// As [`Node::call`], and [`QueryError::Trace`].
    pub fn trace_call(
        &self,
        request: &CallRequest,
        at: BlockRef,
        parts: &TraceParts,
        limits: &TraceLimits,
    ) -> Result<Trace, QueryError> {
        let (state, context) = self.state_and_context(at)?;
        let request = self.capped(request);
        Ok(ol_evm::trace_call(
            &state, &context, &request, parts, limits,
        )?)
    }

    /// The access list that a message would profit from.
    ///
    /// # Errors
    /// As [`Node::trace_call`].
    pub fn create_access_list(
        &self,
        request: &CallRequest,
        at: BlockRef,
        limits: &TraceLimits,
    ) -> Result<AccessListOutput, QueryError> {
        let (state, context) = self.state_and_context(at)?;
        let request = self.capped(request);
        Ok(ol_evm::create_access_list(
            &state, &context, &request, limits,
        )?)
    }

    /// Makes blocks of messages on a block, of which nothing is kept. All
    /// messages together may use as much gas as one that is only tried.
    ///
    /// # Errors
    /// [`QueryError::Simulate`], and as [`Node::state`].
    pub fn simulate(
        &self,
        at: BlockRef,
        blocks: Vec<BlockToSimulate>,
        validates: bool,
        logs_transfers: bool,
        limits: TraceLimits,
    ) -> Result<Vec<SimulatedBlock>, QueryError> {
        let found = self.header(at)?.ok_or(QueryError::UnknownBlock)?;
        let (header, hash) = found;
        let state = self.state(BlockRef::Hash(hash))?;
        let options = SimulateOptions {
            validates,
            logs_transfers,
            gas_max: self.shared.config.call_gas_max,
            limits,
        };
        let simulated = ol_evm::simulate(
            &state,
            (&header, hash),
            (self.shared.chain_id, &self.shared.rules),
            blocks,
            &options,
        )?;
        Ok(simulated)
    }

    fn replay(
        &self,
        context: &BlockContext,
        transactions: &[Recovered<Transaction>],
        positions: std::ops::Range<usize>,
        parts: &TraceParts,
        limits: &TraceLimits,
    ) -> Result<Vec<Trace>, QueryError> {
        if context.number == 0 {
            return Err(QueryError::GenesisTrace);
        }
        let state = self.state(BlockRef::Hash(context.parent_hash))?;
        Ok(ol_evm::trace_block(
            &state,
            context,
            transactions,
            positions,
            parts,
            limits,
        )?)
    }
}

impl From<TraceError> for QueryError {
    fn from(error: TraceError) -> Self {
        match error {
            TraceError::Call(error) => Self::Call(error),
            TraceError::Limit(limit) => Self::TraceLimit(limit),
            other => Self::Trace(other),
        }
    }
}
