//! Goal: the pool keeps its rules whatever happens to it.
//! Method: random histories, against a model that knows nothing but a list of
//! transactions and looks through all of it for every question.

use alloy_consensus::{SignableTransaction, TxEip1559};
use alloy_primitives::Signature;
use ol_evm::Recovered;
use proptest::prelude::*;

use super::*;
use crate::mempool::BySender;

const CONFIG: PoolConfig = PoolConfig {
    transactions_max: 9,
    size_bytes_max: 1_400,
    pending_per_sender_max: 4,
    queued_per_sender_max: 2,
    nonce_gap_max: 8,
    price_bump_percent: 10,
    queued_lifetime_s: 50,
};

fn address(number: u8) -> Address {
    Address::repeat_byte(number)
}

/// What differs between two transactions. Gas costs nothing but the fee: the
/// gas limit is 1.
#[derive(Debug, Clone)]
struct Draft {
    sender: u8,
    /// From this far below the sender's nonce.
    nonce_from: u64,
    max_fee_wei: u128,
    tip_wei: u128,
    value_wei: u64,
    size: usize,
    authority: Option<u8>,
}

fn pooled(draft: &Draft, nonce: u64, received_s: u64) -> Arc<PooledTransaction> {
    let transaction = TxEip1559 {
        nonce,
        gas_limit: 1,
        max_fee_per_gas: draft.max_fee_wei,
        max_priority_fee_per_gas: draft.tip_wei.min(draft.max_fee_wei),
        value: U256::from(draft.value_wei),
        input: vec![0; draft.size].into(),
        ..TxEip1559::default()
    };
    let signed = transaction.into_signed(Signature::test_signature());
    let recovered = Recovered::new_unchecked(signed.into(), address(draft.sender));
    let authorities = draft.authority.map(address).into_iter().collect();
    Arc::new(PooledTransaction::new(recovered, authorities, received_s))
}

type Known = (Arc<PooledTransaction>, u64);

/// The rules, in the slowest way.
#[derive(Debug, Clone, Default)]
struct Model {
    all: Vec<Known>,
    nonces: HashMap<Address, u64>,
    parked: Vec<Address>,
    base_fee_wei: u64,
    n_arrived: u64,
}

impl Model {
    fn of(&self, sender: Address) -> Vec<&Known> {
        let mut of: Vec<_> = self
            .all
            .iter()
            .filter(|(pooled, _)| pooled.sender() == sender)
            .collect();
        of.sort_by_key(|(pooled, _)| pooled.nonce());
        of
    }

    fn at(&self, sender: Address, nonce: u64) -> Option<&Known> {
        self.of(sender)
            .into_iter()
            .find(|(pooled, _)| pooled.nonce() == nonce)
    }

    fn gap(&self, sender: Address, next_nonce: u64) -> u64 {
        (next_nonce..)
            .find(|&nonce| self.at(sender, nonce).is_none())
            .unwrap()
    }

    fn insert(
        &mut self,
        new: &Arc<PooledTransaction>,
        sender: &Sender,
    ) -> Result<Inserted, PoolError> {
        let (from, nonce) = (new.sender(), new.nonce());
        if self.all.iter().any(|(known, _)| known.hash == new.hash) {
            return Err(PoolError::AlreadyKnown);
        }
        let expected = sender.nonce;
        if nonce < expected {
            return Err(PoolError::NonceTooLow {
                found: nonce,
                expected,
            });
        }
        let too_high = PoolError::NonceTooHigh {
            found: nonce,
            expected,
        };
        if nonce > expected + CONFIG.nonce_gap_max {
            return Err(too_high);
        }
        let old = self.at(from, nonce).map(|(old, _)| Arc::clone(old));
        if let Some(old) = &old {
            let fees = |pooled: &PooledTransaction| {
                let fee_wei = pooled.transaction.max_fee_per_gas();
                [
                    fee_wei,
                    pooled.transaction.max_priority_fee_per_gas().unwrap(),
                ]
            };
            let is_more = |(new, old): (u128, u128)| new > old && new >= old * 110 / 100;
            if !fees(new).into_iter().zip(fees(old)).all(is_more) {
                return Err(PoolError::ReplacementUnderpriced);
            }
        }
        let others = self
            .of(from)
            .into_iter()
            .filter(|(known, _)| known.nonce() != nonce);
        let queued_wei: U256 = others.map(|(known, _)| known.cost_wei).sum();
        if queued_wei + new.cost_wei > sender.balance_wei {
            return Err(PoolError::InsufficientFunds(Box::new(Shortfall {
                balance_wei: sender.balance_wei,
                cost_wei: new.cost_wei,
                queued_wei,
            })));
        }
        let is_authority = self
            .all
            .iter()
            .any(|(known, _)| known.authorities.contains(&from));
        if (sender.is_delegated || is_authority) && old.is_none() {
            if !self.of(from).is_empty() {
                return Err(PoolError::DelegatedLimit);
            }
            if nonce > expected {
                return Err(too_high);
            }
        }
        for &authority in &new.authorities {
            if self.of(authority).len() > 1 {
                return Err(PoolError::AuthorityReserved { authority });
            }
        }
        if old.is_none() {
            let gap = self.gap(from, expected);
            let is_pending = |known: &&&Known| known.0.nonce() < gap;
            let n_pending = self.of(from).iter().filter(is_pending).count();
            let (count, limit) = if nonce == gap {
                (n_pending, CONFIG.pending_per_sender_max)
            } else {
                let n_queued = self.of(from).len() - n_pending;
                (n_queued, CONFIG.queued_per_sender_max)
            };
            if count >= limit {
                return Err(PoolError::SenderLimit { limit });
            }
        }

        let before = self.all.clone();
        self.nonces.insert(from, expected);
        self.all
            .retain(|(known, _)| known.sender() != from || known.nonce() != nonce);
        self.n_arrived += 1;
        self.all.push((Arc::clone(new), self.n_arrived));
        let mut evicted = Vec::new();
        while self.all.len() > CONFIG.transactions_max || self.size_bytes() > CONFIG.size_bytes_max
        {
            let worst = self.worst();
            self.all.retain(|(known, _)| known.hash != worst.hash);
            if worst.hash == new.hash {
                self.all = before;
                return Err(PoolError::Underpriced);
            }
            evicted.push(worst);
        }
        self.parked.retain(|&parked| parked != from);
        Ok(Inserted {
            replaced: old,
            evicted,
        })
    }

    /// The one that has to go first: the last of some sender.
    fn worst(&self) -> Arc<PooledTransaction> {
        let is_last = |(known, _): &&Known| {
            let of = self.of(known.sender());
            of.last().unwrap().0.nonce() == known.nonce()
        };
        let worth = |(known, arrival): &&Known| {
            let gap = self.gap(known.sender(), self.nonces[&known.sender()]);
            let (class, fee) = if known.nonce() >= gap {
                (0, known.transaction.max_fee_per_gas())
            } else {
                match self.tip(known) {
                    None => (1, known.transaction.max_fee_per_gas()),
                    Some(tip_wei) => (2, tip_wei),
                }
            };
            (class, fee, Reverse(*arrival))
        };
        let worst = self.all.iter().filter(is_last).min_by_key(worth);
        Arc::clone(&worst.unwrap().0)
    }

    fn tip(&self, pooled: &PooledTransaction) -> Option<u128> {
        let fee_wei = pooled.transaction.max_fee_per_gas();
        let tip_wei = pooled.transaction.max_priority_fee_per_gas().unwrap();
        let left_wei = fee_wei.checked_sub(u128::from(self.base_fee_wei))?;
        Some(tip_wei.min(left_wei))
    }

    fn best(&self) -> Option<&Arc<PooledTransaction>> {
        let is_first = |(known, _): &&Known| {
            let sender = known.sender();
            known.nonce() == self.nonces[&sender]
                && self.tip(known).is_some()
                && !self.parked.contains(&sender)
        };
        let best = self
            .all
            .iter()
            .filter(is_first)
            .max_by_key(|(known, arrival)| (self.tip(known), Reverse(*arrival)));
        best.map(|(known, _)| known)
    }

    fn size_bytes(&self) -> usize {
        self.all.iter().map(|(known, _)| known.size_bytes).sum()
    }

    fn content(&self) -> PoolContent {
        let mut content = PoolContent::default();
        for (known, _) in &self.all {
            let sender = known.sender();
            let is_pending = known.nonce() < self.gap(sender, self.nonces[&sender]);
            let side: &mut BySender = if is_pending {
                &mut content.pending
            } else {
                &mut content.queued
            };
            let by_nonce = side.entry(sender).or_default();
            by_nonce.insert(known.nonce(), Arc::clone(known));
        }
        content
    }

    fn drop_where(&mut self, mut is_gone: impl FnMut(&PooledTransaction) -> bool) -> Vec<B256> {
        let gone = self.all.iter().filter(|(known, _)| is_gone(known));
        let gone: Vec<B256> = gone.map(|(known, _)| known.hash).collect();
        self.all.retain(|(known, _)| !gone.contains(&known.hash));
        gone
    }
}

#[derive(Debug, Clone)]
enum Step {
    /// A transaction comes.
    Insert(Draft),
    /// The best is executed, or there is no room for it, or it is invalid.
    Execute,
    Park,
    DropBest,
    OpenBlock {
        base_fee_wei: u64,
    },
    SetBalance {
        sender: u8,
        balance_wei: u64,
    },
    SetDelegated {
        sender: u8,
        is_delegated: bool,
    },
    /// What was executed last is undone, and comes back.
    Undo {
        count: usize,
    },
    Wait {
        span_s: u64,
    },
}

fn draft() -> impl Strategy<Value = Draft> {
    let draft = (
        0..4_u8,
        0..7_u64,
        0..40_u128,
        0..12_u128,
        0..20_u64,
        0..3_usize,
        prop::option::weighted(0.15, 0..4_u8),
    );
    draft.prop_map(
        |(sender, nonce_from, max_fee_wei, tip_wei, value_wei, size, authority)| Draft {
            sender,
            nonce_from,
            max_fee_wei,
            tip_wei,
            value_wei,
            size: size * 90,
            authority,
        },
    )
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        12 => draft().prop_map(Step::Insert),
        3 => Just(Step::Execute),
        1 => Just(Step::Park),
        1 => Just(Step::DropBest),
        2 => (0..30_u64).prop_map(|base_fee_wei| Step::OpenBlock { base_fee_wei }),
        1 => (0..4_u8, 0..300_u64)
            .prop_map(|(sender, balance_wei)| Step::SetBalance { sender, balance_wei }),
        1 => (0..4_u8, any::<bool>())
            .prop_map(|(sender, is_delegated)| Step::SetDelegated { sender, is_delegated }),
        1 => (1..4_usize).prop_map(|count| Step::Undo { count }),
        1 => (1..60_u64).prop_map(|span_s| Step::Wait { span_s }),
    ]
}

fn sorted(mut hashes: Vec<B256>) -> Vec<B256> {
    hashes.sort_unstable();
    hashes
}

fn hashes(dropped: Vec<(Arc<PooledTransaction>, PoolError)>) -> Vec<B256> {
    sorted(dropped.into_iter().map(|(pooled, _)| pooled.hash).collect())
}

/// A pool, its model, and the state that both are told of.
struct World {
    pool: Pool,
    model: Model,
    senders: HashMap<Address, Sender>,
    executed: Vec<Arc<PooledTransaction>>,
    now_s: u64,
}

impl World {
    fn new() -> Self {
        let sender = Sender {
            balance_wei: U256::from(300),
            ..Sender::default()
        };
        Self {
            pool: Pool::new(CONFIG, 5),
            model: Model {
                base_fee_wei: 5,
                ..Model::default()
            },
            senders: (0..4).map(|number| (address(number), sender)).collect(),
            executed: Vec::new(),
            now_s: 0,
        }
    }

    fn insert(&mut self, new: &Arc<PooledTransaction>) {
        let sender = self.senders[&new.sender()];
        let found = self.pool.insert(Arc::clone(new), &sender);
        assert_eq!(found, self.model.insert(new, &sender));
    }

    fn update(&mut self, address: Address) {
        let sender = self.senders[&address];
        self.model.nonces.insert(address, sender.nonce);
        let gone = self.model.drop_where(|known| {
            known.sender() == address
                && (known.nonce() < sender.nonce || known.cost_wei > sender.balance_wei)
        });
        let found = self
            .pool
            .update_sender(address, sender.nonce, sender.balance_wei);
        assert_eq!(hashes(found), sorted(gone));
    }

    fn take(&mut self, step: Step) {
        let best = self.model.best().cloned();
        match (step, best) {
            (Step::Insert(draft), _) => {
                let next = self.senders[&address(draft.sender)].nonce;
                let nonce = (next + draft.nonce_from).saturating_sub(1);
                self.insert(&pooled(&draft, nonce, self.now_s));
            }
            (Step::Execute, Some(best)) => {
                let sender = self.senders.get_mut(&best.sender()).unwrap();
                sender.nonce += 1;
                self.model.nonces.insert(best.sender(), sender.nonce);
                self.model.drop_where(|known| known.hash == best.hash);
                self.pool.executed(&best);
                self.executed.push(best);
            }
            (Step::Park, Some(best)) => {
                self.model.parked.push(best.sender());
                self.pool.park(best.sender());
            }
            (Step::DropBest, Some(best)) => {
                self.model.drop_where(|known| known.hash == best.hash);
                assert_eq!(self.pool.remove(&best.hash).unwrap(), best);
            }
            (Step::OpenBlock { base_fee_wei }, _) => {
                self.model.base_fee_wei = base_fee_wei;
                self.model.parked.clear();
                self.pool.open_block(base_fee_wei);
            }
            (
                Step::SetBalance {
                    sender,
                    balance_wei,
                },
                _,
            ) => {
                let address = address(sender);
                self.senders.get_mut(&address).unwrap().balance_wei = U256::from(balance_wei);
                self.update(address);
            }
            (
                Step::SetDelegated {
                    sender,
                    is_delegated,
                },
                _,
            ) => {
                let sender = self.senders.get_mut(&address(sender)).unwrap();
                sender.is_delegated = is_delegated;
            }
            (Step::Undo { count }, _) => {
                let from = self.executed.len().saturating_sub(count);
                let undone = self.executed.split_off(from);
                for pooled in &undone {
                    let sender = self.senders.get_mut(&pooled.sender()).unwrap();
                    sender.nonce = sender.nonce.min(pooled.nonce());
                }
                for number in 0..4 {
                    self.update(address(number));
                }
                undone.iter().for_each(|pooled| self.insert(pooled));
            }
            (Step::Wait { span_s }, _) => {
                self.now_s += span_s;
                let content = self.model.content();
                let limit_s = self.now_s.saturating_sub(CONFIG.queued_lifetime_s);
                let is_old = |known: &PooledTransaction| {
                    let queued = content.queued.get(&known.sender());
                    queued.is_some_and(|queued| queued.contains_key(&known.nonce()))
                        && known.received_s < limit_s
                };
                let gone = self.model.drop_where(is_old);
                assert_eq!(hashes(self.pool.expire(self.now_s)), sorted(gone));
            }
            (Step::Execute | Step::Park | Step::DropBest, None) => {}
        }
    }

    fn check(&self) {
        let (pool, model) = (&self.pool, &self.model);
        assert_eq!(pool.best(), model.best());
        let content = model.content();
        let count = |side: &BySender| side.values().map(|by_nonce| by_nonce.len()).sum();
        assert_eq!(
            pool.status(),
            PoolStatus {
                pending: count(&content.pending),
                queued: count(&content.queued),
                size_bytes: model.size_bytes(),
            }
        );
        assert!(model.all.len() <= CONFIG.transactions_max);
        assert!(model.size_bytes() <= CONFIG.size_bytes_max);
        for number in 0..4 {
            let address = address(number);
            let is_there = !model.of(address).is_empty();
            assert_eq!(pool.has_sender(&address), is_there);
            let gap = is_there.then(|| model.gap(address, model.nonces[&address]));
            assert_eq!(pool.next_nonce(&address), gap);
        }
        for (known, _) in &model.all {
            assert_eq!(pool.get(&known.hash), Some(known));
        }
        let in_order: Vec<_> = pool.in_order();
        let mut expected = model.all.clone();
        expected.sort_by_key(|(_, arrival)| *arrival);
        let expected: Vec<_> = expected.into_iter().map(|(known, _)| known).collect();
        assert_eq!(in_order, expected);
        assert_eq!(pool.content(), content);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(
        256 * u32::try_from(crate::test_scale()).unwrap()
    ))]

    #[test]
    fn the_pool_is_what_the_model_says(steps in prop::collection::vec(step(), 1..80)) {
        let mut world = World::new();
        for step in steps {
            world.take(step);
            world.check();
        }
    }
}

#[test]
fn a_contract_cannot_send() {
    let mut world = World::new();
    let contract = Sender {
        has_code: true,
        ..world.senders[&address(0)]
    };
    let draft = Draft {
        sender: 0,
        nonce_from: 0,
        max_fee_wei: 10,
        tip_wei: 1,
        value_wei: 0,
        size: 0,
        authority: None,
    };
    let found = world.pool.insert(pooled(&draft, 0, 0), &contract);
    assert_eq!(found, Err(PoolError::SenderHasCode));
    let delegated = Sender {
        is_delegated: true,
        ..contract
    };
    let found = world.pool.insert(pooled(&draft, 0, 0), &delegated);
    assert_eq!(found, Ok(Inserted::default()));
}
