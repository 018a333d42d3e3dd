//! Who goes first: everything the engine decides by comparing requests.
//!
//! **Order.** Waiting requests start in the order of their [`Place`]: first the
//! class, then what their tenant was served, then what this adapter of the
//! tenant was served, then arrival.
//!
//! **Classes and aging.** A request that has waited for the aging time counts as
//! one class higher, so after twice that time everything is in the first class,
//! where only fairness and arrival decide.
//!
//! **Fairness** is by virtual token counters (Sheng et al., "Fairness in serving
//! large language models", OSDI 2024): a tenant is charged for each token as it
//! is computed, [`COST_IN`] for one of a prompt and [`COST_OUT`] for one of an
//! answer, and the tenant charged least goes first. A tenant that begins to wait
//! is lifted to the least of those that wait, so nobody saves up by being idle.
//! Of two tenants that both keep waiting in one class, the charges differ by at
//! most `2 max(COST_IN * longest prompt, COST_OUT * tokens of the running
//! requests)` (theorem 4.4 there), however many requests one of them floods the
//! queue with. The same counters, one level below, hold between the adapters of
//! a tenant. Tokens computed again after a preemption and tokens found in the
//! prefix cache are charged to nobody.
//!
//! **Victims.** When memory runs out, the running request that goes is the one
//! that would have been taken last: lowest class, then latest arrival. The first
//! of that order is never a victim of the others, and it fits the memory alone,
//! so there is always one that finishes.

use std::collections::BTreeMap;

/// Charge for a token of a prompt.
pub(super) const COST_IN: u64 = 1;
/// Charge for a token of an answer.
pub(super) const COST_OUT: u64 = 2;

/// Counters are dropped, least charged first, when more keys than this have one
/// and do not wait.
const N_IDLE_COUNTERS_MAX: usize = 4096;

/// How urgent a request is. The smaller goes first.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Priority {
    /// Somebody watches the answer appear.
    Interactive,
    /// The default.
    #[default]
    Normal,
    /// Work that waits until nothing else does, or until it has aged.
    Batch,
}

impl Priority {
    /// The class after waiting: one higher for each `aging_s`.
    pub(super) fn aged(self, waited_s: f64, aging_s: f64) -> u8 {
        let raised = (waited_s / aging_s).clamp(0.0, 2.0);
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "between 0 and 2"
        )]
        let raised = raised as u8;
        (self as u8).saturating_sub(raised)
    }
}

/// Where a request stands among those that wait; the least goes first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Place {
    pub(super) class: u8,
    pub(super) tenant_charge: u64,
    pub(super) adapter_charge: u64,
    pub(super) arrival: u64,
}

/// What each key was charged, and how many of its requests wait.
#[derive(Debug)]
pub(super) struct Counters<K> {
    by_key: BTreeMap<K, Counter>,
    /// Charge of the key that left the queue last.
    last_left: u64,
}

#[derive(Debug, Clone, Copy, Default)]
struct Counter {
    charge: u64,
    n_waiting: usize,
}

impl<K> Default for Counters<K> {
    fn default() -> Self {
        Self {
            by_key: BTreeMap::new(),
            last_left: 0,
        }
    }
}

impl<K: Ord + Clone> Counters<K> {
    /// A request of the key begins to wait.
    pub(super) fn enter(&mut self, key: &K) {
        let waiting = self.by_key.values().filter(|c| c.n_waiting > 0);
        let floor = waiting.map(|c| c.charge).min().unwrap_or(self.last_left);
        let counter = self.by_key.entry(key.clone()).or_default();
        if counter.n_waiting == 0 {
            counter.charge = counter.charge.max(floor);
        }
        counter.n_waiting += 1;
        self.forget(floor);
    }

    /// A request of the key waits no more.
    pub(super) fn leave(&mut self, key: &K) {
        if let Some(counter) = self.by_key.get_mut(key) {
            counter.n_waiting = counter.n_waiting.saturating_sub(1);
            if counter.n_waiting == 0 {
                self.last_left = counter.charge;
            }
        }
    }

    /// The key was served.
    pub(super) fn charge(&mut self, key: &K, cost: u64) {
        let counter = self.by_key.entry(key.clone()).or_default();
        counter.charge = counter.charge.saturating_add(cost);
    }

    /// What the key was charged.
    pub(super) fn charged(&self, key: &K) -> u64 {
        self.by_key.get(key).map_or(0, |c| c.charge)
    }

    /// Drops counters that say nothing, and bounds the others.
    fn forget(&mut self, floor: u64) {
        if self.by_key.len() <= N_IDLE_COUNTERS_MAX {
            return;
        }
        // A key at the floor or below comes back at the floor anyway.
        self.by_key
            .retain(|_, c| c.n_waiting > 0 || c.charge > floor);
        while self.by_key.len() > N_IDLE_COUNTERS_MAX {
            let idle = self.by_key.iter().filter(|(_, c)| c.n_waiting == 0);
            let Some(key) = idle.min_by_key(|(_, c)| c.charge).map(|(k, _)| k.clone()) else {
                return;
            };
            self.by_key.remove(&key);
        }
    }
}

/// Shares out what a pass has left for prompts, `remaining` tokens each, in
/// order of rank.
///
/// The first gets half, or more if the others need less; the others get equal
/// shares. So the oldest prompt advances at half speed at least, and short
/// prompts do not wait for long ones.
///
/// # Shapes
/// Returns `[remaining.len()]`; the sum is `budget`, or all that remains.
pub(super) fn share_prefill(remaining: &[usize], budget: usize) -> Vec<usize> {
    let mut shares = vec![0; remaining.len()];
    let Some((&first, others)) = remaining.split_first() else {
        return shares;
    };
    let others: usize = others.iter().sum();
    shares[0] = first.min((budget.div_ceil(2)).max(budget.saturating_sub(others)));
    let mut left = budget - shares[0];
    // Least first, so that what one does not need goes to the rest.
    let mut order: Vec<usize> = (1..remaining.len()).collect();
    order.sort_by_key(|&i| remaining[i]);
    let mut n_left = order.len();
    for i in order {
        shares[i] = remaining[i].min(left.div_ceil(n_left));
        left -= shares[i];
        n_left -= 1;
    }
    shares
}

#[cfg(test)]
mod tests;
