//! Transactions that wait for a block.
//!
//! The pool keeps, for every sender, a queue by nonce. What follows the
//! sender's nonce without a gap is *pending*: it can be executed now, or when
//! the base fee falls or a block has room. What lies behind a gap is *queued*.
//! A transaction leaves the pool when it is executed, not when its block is on
//! disk; if the block comes to nothing, it is put back.
//!
//! # Limits
//! All of [`PoolConfig`]. When the pool is full, the cheapest transaction goes,
//! always the last one of its sender, so that eviction makes no gaps: first
//! those behind a gap, then those below the base fee, then those with the
//! lowest tip; among equals, the last to arrive.

mod journal;
mod pool;
mod queue;
mod view;

use std::collections::BTreeMap;
use std::sync::Arc;

use alloy_consensus::Transaction as _;
use alloy_eips::eip2718::Encodable2718;
use alloy_primitives::{Address, B256, U256};
use ol_evm::{Recovered, Transaction};

pub(crate) use journal::{Journal, Remembered};
pub(crate) use pool::{Pool, Sender};

/// Limits of the pool. Plain data.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PoolConfig {
    /// Most transactions. Default 16,384.
    pub transactions_max: usize,
    /// Most bytes of all transactions, as they are sent. Default 64 MiB.
    pub size_bytes_max: usize,
    /// Most pending transactions of one sender. Default 8,192.
    pub pending_per_sender_max: usize,
    /// Most queued transactions of one sender. Default 64, as in geth.
    pub queued_per_sender_max: usize,
    /// How far the nonce of a transaction may be ahead of its sender's.
    /// Default 16,384.
    pub nonce_gap_max: u64,
    /// How much higher both fees of a replacement must be. Default 10 %.
    pub price_bump_percent: u8,
    /// How long a queued transaction waits. Default three hours.
    pub queued_lifetime_s: u64,
}

impl Default for PoolConfig {
    fn default() -> Self {
        Self {
            transactions_max: 16_384,
            size_bytes_max: 64 << 20,
            pending_per_sender_max: 8_192,
            queued_per_sender_max: 64,
            nonce_gap_max: 16_384,
            price_bump_percent: 10,
            queued_lifetime_s: 3 * 3_600,
        }
    }
}

/// A transaction in the pool.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PooledTransaction {
    /// The transaction, with its sender.
    pub transaction: Recovered<Transaction>,
    /// Hash of the transaction.
    pub hash: B256,
    /// Size as it is sent.
    pub size_bytes: usize,
    /// The most it may cost its sender: value, and gas at the maximum fee.
    pub cost_wei: U256,
    /// Accounts whose code it delegates (EIP-7702).
    pub authorities: Vec<Address>,
    /// When it arrived, Unix time in seconds.
    pub received_s: u64,
}

impl PooledTransaction {
    pub(crate) fn new(
        transaction: Recovered<Transaction>,
        authorities: Vec<Address>,
        received_s: u64,
    ) -> Self {
        let gas_wei = U256::from(transaction.gas_limit())
            .saturating_mul(U256::from(transaction.max_fee_per_gas()));
        Self {
            hash: transaction.tx_hash(),
            size_bytes: transaction.inner().encode_2718_len(),
            cost_wei: gas_wei.saturating_add(transaction.value()),
            transaction,
            authorities,
            received_s,
        }
    }

    pub(crate) fn sender(&self) -> Address {
        self.transaction.signer()
    }

    pub(crate) fn nonce(&self) -> u64 {
        self.transaction.nonce()
    }

    /// What the sequencer gets for one unit of gas; `None` below the base fee.
    pub(crate) fn effective_tip_wei(&self, base_fee_wei: u64) -> Option<u128> {
        self.transaction.effective_tip_per_gas(base_fee_wei)
    }
}

/// What a sender has, and what that has to pay for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shortfall {
    /// What the sender has.
    pub balance_wei: U256,
    /// What the transaction may cost.
    pub cost_wei: U256,
    /// What the sender's other transactions in the pool may cost.
    pub queued_wei: U256,
}

/// Why the pool does not take a transaction, or no longer keeps it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PoolError {
    /// It is there.
    #[error("already known")]
    AlreadyKnown,
    /// The sender has sent a transaction with this nonce.
    #[error("nonce too low: next nonce {expected}, tx nonce {found}")]
    NonceTooLow {
        /// Its nonce.
        found: u64,
        /// The sender's next.
        expected: u64,
    },
    /// Its nonce is too far ahead, or it must not be ahead at all.
    #[error("nonce too high: next nonce {expected}, tx nonce {found}")]
    NonceTooHigh {
        /// Its nonce.
        found: u64,
        /// The sender's next.
        expected: u64,
    },
    /// Its fee is below the base fee, and it must not wait.
    #[error(
        "max fee per gas less than block base fee: maxFeePerGas: {max_fee_wei}, baseFee: {base_fee_wei}"
    )]
    FeeTooLow {
        /// Its maximum fee.
        max_fee_wei: u128,
        /// The base fee of the next block.
        base_fee_wei: u64,
    },
    /// The sender cannot pay for it and for what waits already.
    #[error(
        "insufficient funds for gas * price + value: balance {}, tx cost {}, queued cost {}",
        .0.balance_wei, .0.cost_wei, .0.queued_wei
    )]
    InsufficientFunds(Box<Shortfall>),
    /// The sender is a contract (EIP-3607).
    #[error("sender not an eoa")]
    SenderHasCode,
    /// There is one with the same nonce, and the fees are not enough higher.
    #[error("replacement transaction underpriced")]
    ReplacementUnderpriced,
    /// The pool is full of transactions that pay more.
    #[error("transaction underpriced: the pool is full")]
    Underpriced,
    /// Too many transactions of this sender wait.
    #[error("too many transactions of this sender are waiting: limit {limit}")]
    SenderLimit {
        /// How many may.
        limit: usize,
    },
    /// An account with delegated code may have one transaction waiting, and no
    /// gap before it: its balance can change under it.
    #[error("in-flight transaction limit reached for delegated accounts")]
    DelegatedLimit,
    /// It delegates the code of an account that has more than one transaction
    /// waiting.
    #[error("authority already reserved: {authority}")]
    AuthorityReserved {
        /// The account.
        authority: Address,
    },
    /// Another transaction of the sender with this nonce pays more.
    #[error("replaced by transaction {by}")]
    Replaced {
        /// The other one.
        by: B256,
    },
    /// It waited too long for a predecessor.
    #[error("expired: no predecessor came within {lifetime_s} s")]
    Expired {
        /// How long it waited.
        lifetime_s: u64,
    },
}

/// How full the pool is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct PoolStatus {
    /// Transactions that can be executed now, or at a lower base fee, or that
    /// were executed in the pending block.
    pub pending: usize,
    /// Transactions behind a gap.
    pub queued: usize,
    /// Bytes of all transactions in the pool.
    pub size_bytes: usize,
}

/// Transactions by sender and nonce.
pub type BySender = BTreeMap<Address, BTreeMap<u64, Arc<PooledTransaction>>>;

/// What is in the pool.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PoolContent {
    /// Transactions that can be executed now, or at a lower base fee, or that
    /// were executed in the pending block.
    pub pending: BySender,
    /// Transactions behind a gap.
    pub queued: BySender,
}
