//! What a node counts and measures.
//!
//! The values go to whatever recorder the program has installed, and nowhere
//! without one. [`METRICS`] is the whole list; `docs/metrics.md` shows it.

use metrics::{counter, gauge, histogram};
use ol_runtime::Clock;

use crate::event::NewBlock;
use crate::{Node, PoolError, StoreError, SubmitError};

/// A measured thing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Metric {
    /// `openledger_AREA_WHAT_UNIT`.
    pub name: &'static str,
    /// How its values behave.
    pub kind: MetricKind,
    /// Names of its labels. Every label has few values, all known in advance.
    pub labels: &'static [&'static str],
    /// What it says.
    pub help: &'static str,
}

/// How the values of a metric behave.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MetricKind {
    /// Only grows.
    Counter,
    /// Goes up and down.
    Gauge,
    /// Many values, counted by size.
    Histogram,
}

const HEAD_NUMBER: &str = "openledger_chain_head_number";
const HEAD_TIMESTAMP: &str = "openledger_chain_head_timestamp_seconds";
const BASE_FEE: &str = "openledger_chain_base_fee_wei";
const BLOCKS: &str = "openledger_chain_blocks_total";
const TRANSACTIONS: &str = "openledger_chain_transactions_total";
const GAS: &str = "openledger_chain_gas_used_total";
const STAGE: &str = "openledger_block_stage_seconds";
const POOL: &str = "openledger_pool_transactions";
const POOL_SIZE: &str = "openledger_pool_size_bytes";
const REJECTED: &str = "openledger_pool_rejected_total";
const STORE_SIZE: &str = "openledger_store_size_bytes";

/// Everything a node measures.
pub const METRICS: &[Metric] = &[
    Metric {
        name: HEAD_NUMBER,
        kind: MetricKind::Gauge,
        labels: &[],
        help: "Number of the newest durable block.",
    },
    Metric {
        name: HEAD_TIMESTAMP,
        kind: MetricKind::Gauge,
        labels: &[],
        help: "Timestamp of the newest durable block, in Unix time.",
    },
    Metric {
        name: BASE_FEE,
        kind: MetricKind::Gauge,
        labels: &[],
        help: "Base fee of the newest durable block, in wei for one unit of gas.",
    },
    Metric {
        name: BLOCKS,
        kind: MetricKind::Counter,
        labels: &[],
        help: "Blocks added to the chain since start.",
    },
    Metric {
        name: TRANSACTIONS,
        kind: MetricKind::Counter,
        labels: &[],
        help: "Transactions in blocks added since start.",
    },
    Metric {
        name: GAS,
        kind: MetricKind::Counter,
        labels: &[],
        help: "Gas used by blocks added since start.",
    },
    Metric {
        name: STAGE,
        kind: MetricKind::Histogram,
        labels: &["stage"],
        help: "Time of one stage on the way into a block: recovery (senders of the transactions that came together), execute (one transaction), root (the new state is hashed), write (into the open database transaction), commit (made durable).",
    },
    Metric {
        name: POOL,
        kind: MetricKind::Gauge,
        labels: &["state"],
        help: "Transactions in the pool, by state: pending (can be executed), queued (wait for a predecessor or a lower fee).",
    },
    Metric {
        name: POOL_SIZE,
        kind: MetricKind::Gauge,
        labels: &[],
        help: "Size of the transactions in the pool.",
    },
    Metric {
        name: REJECTED,
        kind: MetricKind::Counter,
        labels: &["reason"],
        help: "Transactions that were refused, by reason.",
    },
    Metric {
        name: STORE_SIZE,
        kind: MetricKind::Gauge,
        labels: &[],
        help: "Size of the pages in use of the chain database.",
    },
];

/// A stage on the way into a block.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Stage {
    Recovery,
    Execute,
    Root,
    Write,
    Commit,
}

impl Stage {
    const fn label(self) -> &'static str {
        match self {
            Self::Recovery => "recovery",
            Self::Execute => "execute",
            Self::Root => "root",
            Self::Write => "write",
            Self::Commit => "commit",
        }
    }
}

/// Runs one stage and records how long it took, in seconds.
pub(crate) fn timed<T>(clock: &dyn Clock, stage: Stage, work: impl FnOnce() -> T) -> (T, f64) {
    let started_s = clock.monotonic_s();
    let done = work();
    let spent_s = clock.monotonic_s() - started_s;
    histogram!(STAGE, "stage" => stage.label()).record(spent_s);
    (done, spent_s)
}

/// A block is the newest.
pub(crate) fn block_added(block: &NewBlock) {
    counter!(BLOCKS).increment(1);
    counter!(TRANSACTIONS).increment(block.transactions.len() as u64);
    counter!(GAS).increment(block.header.gas_used);
}

/// A transaction was refused.
pub(crate) fn rejected(error: &SubmitError) {
    counter!(REJECTED, "reason" => reason(error)).increment(1);
}

const fn reason(error: &SubmitError) -> &'static str {
    match error {
        SubmitError::TooLarge { .. } => "too_large",
        SubmitError::Malformed { .. } => "malformed",
        SubmitError::Type { .. } => "type",
        SubmitError::ChainId { .. } => "chain_id",
        SubmitError::Signature => "signature",
        SubmitError::GasLimit { .. } => "gas_limit",
        SubmitError::IntrinsicGas { .. } => "intrinsic_gas",
        SubmitError::TipAboveFee { .. } => "tip_above_fee",
        SubmitError::InitCodeTooLarge { .. } => "init_code_too_large",
        SubmitError::NonceMax => "nonce_max",
        SubmitError::NoAuthorization => "no_authorization",
        SubmitError::Pool(error) => pool_reason(error),
        SubmitError::Rejected { .. } => "invalid",
        SubmitError::Overloaded => "overloaded",
        SubmitError::Follower => "follower",
        SubmitError::Stopped => "stopped",
        SubmitError::Storage(_) => "storage",
    }
}

const fn pool_reason(error: &PoolError) -> &'static str {
    match error {
        PoolError::AlreadyKnown => "already_known",
        PoolError::NonceTooLow { .. } => "nonce_too_low",
        PoolError::NonceTooHigh { .. } => "nonce_too_high",
        PoolError::FeeTooLow { .. } => "fee_too_low",
        PoolError::InsufficientFunds { .. } => "insufficient_funds",
        PoolError::SenderHasCode => "sender_has_code",
        PoolError::ReplacementUnderpriced => "replacement_underpriced",
        PoolError::Underpriced => "underpriced",
        PoolError::SenderLimit { .. } => "sender_limit",
        PoolError::DelegatedLimit => "delegated_limit",
        PoolError::AuthorityReserved { .. } => "authority_reserved",
        PoolError::Replaced { .. } => "replaced",
        PoolError::Expired { .. } => "expired",
    }
}

impl Node {
    /// Records what is looked up rather than counted: head, pool and
    /// database.
    /// Cheap; for whoever collects metrics, before they are read.
    ///
    /// # Errors
    /// If the database does not answer.
    #[expect(clippy::cast_precision_loss, reason = "shown, not computed with")]
    pub fn record_metrics(&self) -> Result<(), StoreError> {
        let head = self.head();
        gauge!(HEAD_NUMBER).set(head.header.number as f64);
        gauge!(HEAD_TIMESTAMP).set(head.header.timestamp as f64);
        gauge!(BASE_FEE).set(head.header.base_fee_per_gas.unwrap_or_default() as f64);
        let pool = self.pool_status();
        gauge!(POOL, "state" => "pending").set(pool.pending as f64);
        gauge!(POOL, "state" => "queued").set(pool.queued as f64);
        gauge!(POOL_SIZE).set(pool.size_bytes as f64);
        gauge!(STORE_SIZE).set(self.shared.store.size_bytes()? as f64);
        Ok(())
    }
}
