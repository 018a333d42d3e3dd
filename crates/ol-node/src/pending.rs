//! The pending block: what was executed and is not on disk yet.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

use crate::mempool::PooledTransaction;
use alloy_primitives::{Address, B256, Bytes, U256};
use ol_evm::{AccountState, BlockContext, Recovered, StateDiff, Transaction, TransactionReceipt};

/// A transaction that was executed in the pending block.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PendingTransaction {
    /// The transaction, with its sender.
    pub transaction: Recovered<Transaction>,
    /// Hash of the transaction.
    pub hash: B256,
    /// Its receipt; it is that of the block to come, unless the block cannot
    /// be written.
    pub receipt: TransactionReceipt,
    /// Gas of this transaction alone.
    pub gas_used: u64,
    /// Logs of the block before those of this receipt.
    pub n_logs_before: u64,
}

/// The block that is being made on top of the newest durable one, as it was at
/// one moment. It has no hash and no roots.
#[derive(Debug, Clone)]
pub struct PendingBlock {
    /// Its number, time, base fee and parent.
    pub context: BlockContext,
    /// Its transactions so far, in order.
    pub transactions: Vec<Arc<PendingTransaction>>,
    /// How many of the transactions, the last ones, were not in the block that
    /// was published before.
    pub n_new: usize,
    /// The transactions again, as they were in the pool.
    pub(crate) pooled: Vec<Arc<PooledTransaction>>,
    pub(crate) overlay: Overlay,
}

impl PendingBlock {
    /// A block without transactions.
    pub(crate) fn empty(context: BlockContext) -> Self {
        Self {
            context,
            transactions: Vec::new(),
            n_new: 0,
            pooled: Vec::new(),
            overlay: Overlay::default(),
        }
    }

    /// Gas of the transactions so far.
    #[must_use]
    pub fn gas_used(&self) -> u64 {
        self.transactions
            .last()
            .map_or(0, |last| cumulative_gas_used(&last.receipt))
    }

    /// A transaction by its hash, and its position.
    #[must_use]
    pub fn find(&self, hash: B256) -> Option<(usize, &Arc<PendingTransaction>)> {
        self.transactions
            .iter()
            .enumerate()
            .find(|(_, transaction)| transaction.hash == hash)
    }
}

fn cumulative_gas_used(receipt: &TransactionReceipt) -> u64 {
    alloy_consensus::TxReceipt::cumulative_gas_used(receipt)
}

/// Changes to a state, in layers that are never written to again, so that a
/// reader holds a whole moment by cloning a few pointers.
///
/// Layers are merged so that each is more than twice as large as the next:
/// there are at most logarithmically many, and every change is copied at most
/// logarithmically often.
#[derive(Debug, Clone, Default)]
pub(crate) struct Overlay {
    layers: Vec<Arc<Layer>>,
}

/// One layer: for every key it knows, the value afterwards.
#[derive(Debug, Clone, Default)]
struct Layer {
    accounts: HashMap<Address, Option<AccountState>>,
    /// Accounts whose storage below this layer is gone.
    wiped: HashSet<Address>,
    storage: HashMap<(Address, U256), U256>,
    codes: BTreeMap<B256, Bytes>,
}

impl Overlay {
    /// Adds what came after everything that is here.
    pub(crate) fn push(&mut self, diffs: &[StateDiff]) {
        let mut top = Layer::default();
        for diff in diffs {
            top.apply(diff);
        }
        while let Some(below) = self.layers.pop_if(|below| below.size() <= 2 * top.size()) {
            let mut merged = Arc::unwrap_or_clone(below);
            merged.cover(top);
            top = merged;
        }
        if top.size() > 0 {
            self.layers.push(Arc::new(top));
        }
    }

    /// The account as the overlay has it; `None` if the state below decides.
    pub(crate) fn account(&self, address: Address) -> Option<Option<AccountState>> {
        self.newest_first()
            .find_map(|layer| layer.accounts.get(&address).copied())
    }

    /// The slot as the overlay has it; `None` if the state below decides.
    pub(crate) fn storage(&self, address: Address, slot: U256) -> Option<U256> {
        self.newest_first()
            .find_map(|layer| match layer.storage.get(&(address, slot)) {
                Some(&value) => Some(value),
                None => layer.wiped.contains(&address).then_some(U256::ZERO),
            })
    }

    /// The code with a hash, if it is new.
    pub(crate) fn code(&self, hash: B256) -> Option<Bytes> {
        self.newest_first()
            .find_map(|layer| layer.codes.get(&hash).cloned())
    }

    fn newest_first(&self) -> impl Iterator<Item = &Layer> {
        self.layers.iter().rev().map(Arc::as_ref)
    }
}

impl Layer {
    fn size(&self) -> usize {
        self.accounts.len() + self.storage.len() + self.codes.len()
    }

    fn apply(&mut self, diff: &StateDiff) {
        for (&address, change) in &diff.accounts {
            self.accounts.insert(address, change.account);
            if change.is_storage_wiped {
                self.wipe(address);
            }
            for (&slot, &value) in &change.storage {
                self.storage.insert((address, slot), value);
            }
        }
        for (&hash, code) in &diff.codes {
            self.codes.insert(hash, code.clone());
        }
    }

    /// Adds the layer above this one.
    fn cover(&mut self, above: Self) {
        for &address in &above.wiped {
            self.wipe(address);
        }
        self.accounts.extend(above.accounts);
        self.storage.extend(above.storage);
        self.codes.extend(above.codes);
    }

    fn wipe(&mut self, address: Address) {
        self.storage.retain(|(owner, _), _| *owner != address);
        self.wiped.insert(address);
    }
}

#[cfg(test)]
mod tests;
