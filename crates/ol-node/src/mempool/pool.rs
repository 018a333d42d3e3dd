//! The pool: queues of all senders, what is ready, and who has to go.

use std::cmp::Reverse;
use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::Arc;

use alloy_consensus::Transaction as _;
use alloy_primitives::{Address, B256, U256};
use ol_evm::Transaction;

use super::queue::{Entry, Queue};
use super::{PoolConfig, PoolContent, PoolError, PoolStatus, PooledTransaction, Shortfall};

/// What the pool must know of the sender of a transaction.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Sender {
    pub(crate) nonce: u64,
    pub(crate) balance_wei: U256,
    pub(crate) has_code: bool,
    /// Whether its code is another account's (EIP-7702).
    pub(crate) is_delegated: bool,
}

/// What taking a transaction did.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Inserted {
    /// The one with the same nonce that was there.
    pub(crate) replaced: Option<Arc<PooledTransaction>>,
    /// Those that had to go to make room.
    pub(crate) evicted: Vec<Arc<PooledTransaction>>,
}

/// Highest tip first, then first come, first served.
type Ready = (Reverse<u128>, u64, Address);

/// The one that goes first when the pool is full comes first.
type Worth = (Class, u128, Reverse<u64>, Address);

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Class {
    BehindAGap,
    BelowTheBaseFee,
    Payable,
}

/// All transactions that wait. The caller says what the state is; the pool
/// reads nothing by itself, and the same calls give the same pool.
#[derive(Debug)]
pub(crate) struct Pool {
    config: PoolConfig,
    base_fee_wei: u64,
    senders: HashMap<Address, Queue>,
    by_hash: HashMap<B256, (Address, u64)>,
    /// How many transactions in the pool delegate the code of an account.
    authorities: HashMap<Address, usize>,
    size_bytes: usize,
    n_queued: usize,
    next_arrival: u64,
    /// Senders whose first transaction the open block has no room for.
    parked: HashSet<Address>,
    /// First transactions that can be executed, one for each sender.
    ready: BTreeSet<Ready>,
    ready_of: HashMap<Address, Ready>,
    /// Last transactions of every sender; made when it is needed first.
    worth: Option<BTreeSet<Worth>>,
    worth_of: HashMap<Address, Worth>,
}

impl Pool {
    pub(crate) fn new(config: PoolConfig, base_fee_wei: u64) -> Self {
        Self {
            config,
            base_fee_wei,
            senders: HashMap::new(),
            by_hash: HashMap::new(),
            authorities: HashMap::new(),
            size_bytes: 0,
            n_queued: 0,
            next_arrival: 0,
            parked: HashSet::new(),
            ready: BTreeSet::new(),
            ready_of: HashMap::new(),
            worth: None,
            worth_of: HashMap::new(),
        }
    }

    pub(crate) fn len(&self) -> usize {
        self.by_hash.len()
    }

    pub(crate) fn contains(&self, hash: &B256) -> bool {
        self.by_hash.contains_key(hash)
    }

    pub(crate) fn get(&self, hash: &B256) -> Option<&Arc<PooledTransaction>> {
        let (sender, nonce) = self.by_hash.get(hash)?;
        let entry = self.senders.get(sender)?.get(*nonce)?;
        Some(&entry.pooled)
    }

    /// Takes a transaction whose sender is as `sender` says.
    ///
    /// # Errors
    /// [`PoolError`]; then the pool is as it was.
    pub(crate) fn insert(
        &mut self,
        pooled: Arc<PooledTransaction>,
        sender: &Sender,
    ) -> Result<Inserted, PoolError> {
        let address = pooled.sender();
        let hash = pooled.hash;
        if self.contains(&hash) {
            return Err(PoolError::AlreadyKnown);
        }
        self.check(&pooled, sender)?;

        let queue = self
            .senders
            .entry(address)
            .or_insert_with(|| Queue::new(sender.nonce));
        let n_queued_before = queue.n_queued();
        let arrival = self.next_arrival;
        self.next_arrival += 1;
        let entry = Entry {
            pooled: Arc::clone(&pooled),
            arrival,
        };
        let replaced = queue.put(entry);
        self.n_queued = self.n_queued + queue.n_queued() - n_queued_before;
        if let Some(replaced) = &replaced {
            self.forget(&replaced.pooled);
        }
        self.remember(&pooled);
        self.refresh(address);

        let evicted = self.evict();
        if !self.contains(&hash) {
            // It was worth least: nobody has to go for it.
            for (entry, next_nonce) in evicted {
                if entry.pooled.hash != hash {
                    self.put_back(entry, next_nonce);
                }
            }
            if let Some(replaced) = replaced {
                self.put_back(replaced, sender.nonce);
            }
            return Err(PoolError::Underpriced);
        }
        // What is first now may need less room.
        if self.parked.remove(&address) {
            self.refresh(address);
        }
        Ok(Inserted {
            replaced: replaced.map(|entry| entry.pooled),
            evicted: evicted.into_iter().map(|(entry, _)| entry.pooled).collect(),
        })
    }

    /// Everything that the rules say of one transaction.
    fn check(&self, pooled: &PooledTransaction, sender: &Sender) -> Result<(), PoolError> {
        if sender.has_code && !sender.is_delegated {
            return Err(PoolError::SenderHasCode);
        }
        let (found, expected) = (pooled.nonce(), sender.nonce);
        if found < expected {
            return Err(PoolError::NonceTooLow { found, expected });
        }
        let too_high = PoolError::NonceTooHigh { found, expected };
        if found - expected > self.config.nonce_gap_max {
            return Err(too_high);
        }
        let queue = self.senders.get(&pooled.sender());
        let same_nonce = queue.and_then(|queue| queue.get(found));
        if let Some(entry) = same_nonce
            && !self.is_enough_more(pooled.transaction.inner(), entry.pooled.transaction.inner())
        {
            return Err(PoolError::ReplacementUnderpriced);
        }
        let replaced_wei = same_nonce.map_or(U256::ZERO, |entry| entry.pooled.cost_wei);
        let queued_wei = queue.map_or(U256::ZERO, |queue| queue.cost_wei() - replaced_wei);
        if queued_wei.saturating_add(pooled.cost_wei) > sender.balance_wei {
            return Err(PoolError::InsufficientFunds(Box::new(Shortfall {
                balance_wei: sender.balance_wei,
                cost_wei: pooled.cost_wei,
                queued_wei,
            })));
        }
        let may_change = sender.is_delegated || self.authorities.contains_key(&pooled.sender());
        if may_change && same_nonce.is_none() {
            if queue.is_some() {
                return Err(PoolError::DelegatedLimit);
            }
            if found > expected {
                return Err(too_high);
            }
        }
        for &authority in &pooled.authorities {
            let n_waiting = self.senders.get(&authority).map_or(0, Queue::len);
            if n_waiting > 1 {
                return Err(PoolError::AuthorityReserved { authority });
            }
        }
        if same_nonce.is_none() {
            let gap = queue.map_or(expected, Queue::gap);
            let (n_waiting, limit) = if found <= gap {
                let n_pending = queue.map_or(0, Queue::n_pending);
                (n_pending, self.config.pending_per_sender_max)
            } else {
                let n_queued = queue.map_or(0, Queue::n_queued);
                (n_queued, self.config.queued_per_sender_max)
            };
            if n_waiting >= limit {
                return Err(PoolError::SenderLimit { limit });
            }
        }
        Ok(())
    }

    /// Whether both fees are higher, by the bump at least.
    fn is_enough_more(&self, new: &Transaction, old: &Transaction) -> bool {
        let bump = u128::from(self.config.price_bump_percent);
        let is_more = |new: u128, old: u128| {
            let least = old.saturating_add(old / 100 * bump + old % 100 * bump / 100);
            new > old && new >= least
        };
        is_more(new.max_fee_per_gas(), old.max_fee_per_gas()) && is_more(tip_wei(new), tip_wei(old))
    }

    /// The transaction that should be executed next, if one can be.
    pub(crate) fn best(&self) -> Option<&Arc<PooledTransaction>> {
        let (_, _, address) = self.ready.first()?;
        self.senders
            .get(address)?
            .first()
            .map(|entry| &entry.pooled)
    }

    /// The block has no room for the sender's first transaction.
    pub(crate) fn park(&mut self, sender: Address) {
        self.parked.insert(sender);
        self.refresh(sender);
    }

    /// A new block begins: nobody is parked, and the base fee is this.
    pub(crate) fn open_block(&mut self, base_fee_wei: u64) {
        let is_new_fee = base_fee_wei != self.base_fee_wei;
        self.base_fee_wei = base_fee_wei;
        if is_new_fee {
            self.worth = None;
            self.worth_of.clear();
        }
        let stale: Vec<Address> = if is_new_fee {
            self.parked.clear();
            self.senders.keys().copied().collect()
        } else {
            self.parked.drain().collect()
        };
        for address in stale {
            self.refresh(address);
        }
    }

    /// Removes a transaction, which may leave a gap.
    pub(crate) fn remove(&mut self, hash: &B256) -> Option<Arc<PooledTransaction>> {
        let (address, nonce) = *self.by_hash.get(hash)?;
        self.take_out(address, nonce).map(|entry| entry.pooled)
    }

    /// The sender's nonce and balance are these now: drops what has that nonce
    /// or a lower one, and what the balance cannot pay by itself.
    pub(crate) fn update_sender(
        &mut self,
        address: Address,
        nonce: u64,
        balance_wei: U256,
    ) -> Vec<(Arc<PooledTransaction>, PoolError)> {
        let Some(queue) = self.senders.get_mut(&address) else {
            return Vec::new();
        };
        let n_queued_before = queue.n_queued();
        let below = queue.set_next_nonce(nonce);
        let unpayable: Vec<u64> = queue
            .entries()
            .filter(|entry| entry.pooled.cost_wei > balance_wei)
            .map(|entry| entry.pooled.nonce())
            .collect();
        let mut dropped: Vec<(Arc<PooledTransaction>, PoolError)> = below
            .into_iter()
            .map(|entry| {
                let error = PoolError::NonceTooLow {
                    found: entry.pooled.nonce(),
                    expected: nonce,
                };
                (entry.pooled, error)
            })
            .collect();
        for nonce in unpayable {
            if let Some(entry) = queue.remove(nonce) {
                let error = PoolError::InsufficientFunds(Box::new(Shortfall {
                    balance_wei,
                    cost_wei: entry.pooled.cost_wei,
                    queued_wei: U256::ZERO,
                }));
                dropped.push((entry.pooled, error));
            }
        }
        self.n_queued = self.n_queued + queue.n_queued() - n_queued_before;
        if queue.is_empty() {
            self.senders.remove(&address);
        }
        for (pooled, _) in &dropped {
            self.forget(pooled);
        }
        self.refresh(address);
        dropped
    }

    /// The transaction was executed: it leaves, and its successor is next.
    pub(crate) fn executed(&mut self, pooled: &PooledTransaction) {
        let address = pooled.sender();
        let Some(queue) = self.senders.get_mut(&address) else {
            return;
        };
        let n_queued_before = queue.n_queued();
        let below = queue.set_next_nonce(pooled.nonce() + 1);
        self.n_queued = self.n_queued + queue.n_queued() - n_queued_before;
        if queue.is_empty() {
            self.senders.remove(&address);
        }
        for entry in below {
            self.forget(&entry.pooled);
        }
        self.refresh(address);
    }

    /// Drops what waited behind a gap for too long.
    pub(crate) fn expire(&mut self, now_s: u64) -> Vec<(Arc<PooledTransaction>, PoolError)> {
        if self.n_queued == 0 {
            return Vec::new();
        }
        let lifetime_s = self.config.queued_lifetime_s;
        let old: Vec<B256> = self
            .senders
            .values()
            .flat_map(Queue::queued)
            .filter(|entry| now_s.saturating_sub(entry.pooled.received_s) > lifetime_s)
            .map(|entry| entry.pooled.hash)
            .collect();
        old.iter()
            .filter_map(|hash| self.remove(hash))
            .map(|pooled| (pooled, PoolError::Expired { lifetime_s }))
            .collect()
    }

    /// The senders that have something here.
    pub(crate) fn senders(&self) -> impl Iterator<Item = Address> {
        self.senders.keys().copied()
    }

    pub(crate) fn has_sender(&self, address: &Address) -> bool {
        self.senders.contains_key(address)
    }

    /// The nonce after the last transaction that follows the sender's nonce
    /// without a gap; `None` if the sender has nothing here.
    pub(crate) fn next_nonce(&self, address: &Address) -> Option<u64> {
        self.senders.get(address).map(Queue::gap)
    }

    pub(crate) fn status(&self) -> PoolStatus {
        PoolStatus {
            pending: self.len() - self.n_queued,
            queued: self.n_queued,
            size_bytes: self.size_bytes,
        }
    }

    pub(crate) fn content(&self) -> PoolContent {
        let mut content = PoolContent::default();
        for (&address, queue) in &self.senders {
            for entry in queue.entries() {
                let nonce = entry.pooled.nonce();
                let side = if nonce < queue.gap() {
                    &mut content.pending
                } else {
                    &mut content.queued
                };
                let by_nonce = side.entry(address).or_default();
                by_nonce.insert(nonce, Arc::clone(&entry.pooled));
            }
        }
        content
    }

    /// All transactions, in order of arrival.
    pub(crate) fn in_order(&self) -> Vec<Arc<PooledTransaction>> {
        let mut entries: Vec<&Entry> = self.senders.values().flat_map(Queue::entries).collect();
        entries.sort_unstable_by_key(|entry| entry.arrival);
        entries
            .into_iter()
            .map(|entry| Arc::clone(&entry.pooled))
            .collect()
    }

    /// Takes out the least worthy until the limits hold; with the next nonces
    /// of their senders.
    fn evict(&mut self) -> Vec<(Entry, u64)> {
        let mut evicted = Vec::new();
        while self.len() > self.config.transactions_max
            || self.size_bytes > self.config.size_bytes_max
        {
            let Some(&(_, _, _, address)) = self.worth().first() else {
                break;
            };
            let queue = &self.senders[&address];
            let next_nonce = queue.next_nonce();
            let Some(nonce) = queue.last().map(|entry| entry.pooled.nonce()) else {
                break;
            };
            let entry = self.take_out(address, nonce);
            evicted.extend(entry.map(|entry| (entry, next_nonce)));
        }
        evicted
    }

    fn worth(&mut self) -> &BTreeSet<Worth> {
        if self.worth.is_none() {
            self.worth = Some(BTreeSet::new());
            let all: Vec<Address> = self.senders.keys().copied().collect();
            for address in all {
                self.refresh(address);
            }
        }
        self.worth.get_or_insert_default()
    }

    fn take_out(&mut self, address: Address, nonce: u64) -> Option<Entry> {
        let queue = self.senders.get_mut(&address)?;
        let n_queued_before = queue.n_queued();
        let entry = queue.remove(nonce)?;
        self.n_queued = self.n_queued + queue.n_queued() - n_queued_before;
        if queue.is_empty() {
            self.senders.remove(&address);
        }
        self.forget(&entry.pooled);
        self.refresh(address);
        Some(entry)
    }

    /// Undoes a removal.
    fn put_back(&mut self, entry: Entry, next_nonce: u64) {
        let address = entry.pooled.sender();
        let pooled = Arc::clone(&entry.pooled);
        let queue = self
            .senders
            .entry(address)
            .or_insert_with(|| Queue::new(next_nonce));
        let n_queued_before = queue.n_queued();
        queue.put(entry);
        self.n_queued = self.n_queued + queue.n_queued() - n_queued_before;
        self.remember(&pooled);
        self.refresh(address);
    }

    fn remember(&mut self, pooled: &PooledTransaction) {
        self.by_hash
            .insert(pooled.hash, (pooled.sender(), pooled.nonce()));
        self.size_bytes += pooled.size_bytes;
        for &authority in &pooled.authorities {
            *self.authorities.entry(authority).or_default() += 1;
        }
    }

    fn forget(&mut self, pooled: &PooledTransaction) {
        self.by_hash.remove(&pooled.hash);
        self.size_bytes -= pooled.size_bytes;
        for authority in &pooled.authorities {
            if let Some(count) = self.authorities.get_mut(authority) {
                *count -= 1;
                if *count == 0 {
                    self.authorities.remove(authority);
                }
            }
        }
    }

    /// Brings the places of a sender in `ready` and `worth` up to date.
    fn refresh(&mut self, address: Address) {
        if let Some(old) = self.ready_of.remove(&address) {
            self.ready.remove(&old);
        }
        if let Some(old) = self.worth_of.remove(&address)
            && let Some(worth) = &mut self.worth
        {
            worth.remove(&old);
        }
        let Some(queue) = self.senders.get(&address) else {
            return;
        };
        if let Some(first) = queue.first()
            && !self.parked.contains(&address)
            && let Some(tip_wei) = first.pooled.effective_tip_wei(self.base_fee_wei)
        {
            let ready = (Reverse(tip_wei), first.arrival, address);
            self.ready.insert(ready);
            self.ready_of.insert(address, ready);
        }
        if let Some(worth) = &mut self.worth
            && let Some(last) = queue.last()
        {
            let (class, fee_wei) = if last.pooled.nonce() >= queue.gap() {
                let max_fee_wei = last.pooled.transaction.max_fee_per_gas();
                (Class::BehindAGap, max_fee_wei)
            } else {
                match last.pooled.effective_tip_wei(self.base_fee_wei) {
                    Some(tip_wei) => (Class::Payable, tip_wei),
                    None => {
                        let max_fee_wei = last.pooled.transaction.max_fee_per_gas();
                        (Class::BelowTheBaseFee, max_fee_wei)
                    }
                }
            };
            let place = (class, fee_wei, Reverse(last.arrival), address);
            worth.insert(place);
            self.worth_of.insert(address, place);
        }
    }
}

/// The tip for one unit of gas, at most; the whole price where there is only one.
fn tip_wei(transaction: &Transaction) -> u128 {
    transaction
        .max_priority_fee_per_gas()
        .unwrap_or_else(|| transaction.max_fee_per_gas())
}

#[cfg(test)]
mod tests;
