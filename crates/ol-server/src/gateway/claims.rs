//! Claims of the optimistic tier, from the operator's side: computed, bonded,
//! answered for while they can be challenged, and closed.
//!
//! # Never claimed twice, never lost
//! A receipt is in the [`Journal`] until the chain has its claim; then its file
//! moves to the folder `claimed`, and goes when the claim is closed. A crash
//! anywhere in between leaves one of the two, and the chain, which takes one claim
//! of a receipt, says how far it is.
//!
//! # Nothing is kept of a claim
//! Its numbers follow from the index and the query. Who computes others asks for
//! them on chain; they are computed again then.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use ol_poa::court::{Claim, Node, SumTree, Tree, Value};
use ol_types::{Address, B256};

use super::chain::{Chain, ChainError, Charge, ClaimState, ClaimStatus, Happened, SettleError};
use super::holds::{Hold, HoldError, Holds, bond_of_wei};
use super::journal::{Journal, JournalError, PendingReceipt};
use super::settlement::chain_of;
use crate::optimistic::OptimisticIndex;
use crate::verify::contributors_wei;

/// Most claims that may be open at once; each is a file and some memory.
pub const CLAIMS_MAX: usize = 100_000;

/// What of the operator's balance is kept for gas.
const GAS_RESERVE_WEI: u128 = ol_types::WEI_PER_OPEN;

/// How much more is bonded than is needed, so that not every claim adds to it.
const BOND_STEP_WEI: u128 = 10 * ol_types::WEI_PER_OPEN;

/// Most claims closed at once: some blocks' worth.
const CLOSE_MAX: usize = 64;

/// The operator's money, as far as claims need it.
#[derive(Debug)]
pub(super) struct Bonds {
    chain: Arc<Chain>,
    /// What claims take that are made or will be.
    holds: Arc<Holds>,
    /// What claims on chain hold.
    locked_wei: Mutex<u128>,
    max_wei: u128,
}

impl Bonds {
    pub(super) fn new(chain: Arc<Chain>, max_wei: u128) -> Self {
        Self {
            chain,
            holds: Arc::default(),
            locked_wei: Mutex::default(),
            max_wei: max_wei.min(CLAIMS_MAX as u128 * bond_of_wei(0)),
        }
    }

    /// Sets aside what a claim of this fee takes, if the operator has it.
    pub(super) fn place(&self, fee_wei: u128) -> Result<Box<Hold>, HoldError<ChainError>> {
        let most_wei = || {
            let (free_wei, balance_wei) = self.chain.free_bond_and_balance_wei()?;
            let all_wei = free_wei
                .saturating_add(*self.locked())
                .saturating_add(balance_wei.saturating_sub(GAS_RESERVE_WEI));
            Ok(all_wei.min(self.max_wei))
        };
        let operator = self.chain.operator();
        let bond = self.holds.place(operator, bond_of_wei(fee_wei), most_wei);
        bond.map(Box::new)
    }

    /// Sets aside what a claim takes that is owed.
    pub(super) fn adopt(&self, fee_wei: u128) -> Box<Hold> {
        let operator = self.chain.operator();
        Box::new(self.holds.adopt(operator, bond_of_wei(fee_wei)))
    }

    fn locked(&self) -> MutexGuard<'_, u128> {
        self.locked_wei
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

/// A claim whose window is open.
#[derive(Debug)]
struct Open {
    deadline_s: u64,
    bond: Option<Box<Hold>>,
    bond_wei: u128,
}

/// The claims of this operator that are open.
#[derive(Debug)]
pub(super) struct Claims {
    chain: Arc<Chain>,
    journal: Journal,
    /// By what models name them.
    indexes: BTreeMap<B256, Arc<OptimisticIndex>>,
    bonds: Arc<Bonds>,
    open: BTreeMap<B256, Open>,
    /// When each may be closed.
    due: BTreeSet<(u64, B256)>,
    /// Asked for, and not revealed yet.
    asked: BTreeSet<(B256, Address)>,
    /// Refuted, and not closed yet.
    refuted: BTreeSet<B256>,
    /// From here on the chain's blocks were not looked at.
    next_block: u64,
}

impl Claims {
    /// Takes up the claims that an earlier run left open. Blocks.
    pub(super) fn open(
        chain: Arc<Chain>,
        journal: Journal,
        indexes: BTreeMap<B256, Arc<OptimisticIndex>>,
        bonds: Arc<Bonds>,
    ) -> Result<Self, OpenError> {
        let next_block = chain.head_number() + 1;
        let left = journal.claimed().all()?;
        let mut claims = Self {
            chain,
            journal,
            indexes,
            bonds,
            open: BTreeMap::new(),
            due: BTreeSet::new(),
            asked: BTreeSet::new(),
            refuted: BTreeSet::new(),
            next_block,
        };
        for pending in left {
            let id = pending.receipt.id();
            let bond = claims.bonds.adopt(pending.receipt.fee_wei);
            claims.add(id, Some(bond));
        }
        Ok(claims)
    }

    /// Whether none is open.
    pub(super) fn is_empty(&self) -> bool {
        self.open.is_empty()
    }

    /// Whether no model of the optimistic tier is served.
    pub(super) fn is_exact(&self) -> bool {
        self.indexes.is_empty()
    }

    /// How a receipt is charged; of the optimistic tier its claim is computed.
    pub(super) fn charge<'a>(
        &self,
        pending: &'a PendingReceipt,
    ) -> Result<Charge<'a>, SettleError> {
        let receipt = &pending.receipt;
        let Some(index) = self.indexes.get(&receipt.sketch_root) else {
            if self.chain.is_committed(receipt.sketch_root)? {
                return Err(SettleError::Retry(ChainError::Form {
                    what: "the model's index",
                    reason: format!("index {} is not loaded here", receipt.sketch_root),
                }));
            }
            return Ok(Charge::Settle(pending));
        };
        // The court goes by the newest version, whatever it is when the claim comes.
        let model = self.chain.model(receipt.model_id)?;
        let model = model.ok_or_else(|| SettleError::Refused {
            reason: "its model is not on chain".to_owned(),
        })?;
        let pot = contributors_wei(receipt.fee_wei, model.params.splitBps);
        let pot = pot.map_err(|difference| SettleError::Refused {
            reason: difference.to_string(),
        })?;
        let claim = index.claim(&pending.query, model.params.nullThreshold, pot);
        Ok(Charge::Claim {
            pending,
            posted: claim.posted(),
            version: model.version,
        })
    }

    /// Bonds more, if claims that take `needed_wei` need it.
    pub(super) fn fill_bond(&self, needed_wei: u128) -> Result<(), ChainError> {
        if needed_wei == 0 {
            return Ok(());
        }
        let (free_wei, balance_wei) = self.chain.free_bond_and_balance_wei()?;
        let Some(lacking_wei) = needed_wei.checked_sub(free_wei).filter(|wei| *wei > 0) else {
            return Ok(());
        };
        let bonded_wei = free_wei.saturating_add(*self.bonds.locked());
        let most_wei = self
            .bonds
            .max_wei
            .saturating_sub(bonded_wei)
            .min(balance_wei.saturating_sub(GAS_RESERVE_WEI));
        let amount_wei = lacking_wei.saturating_add(BOND_STEP_WEI).min(most_wei);
        if amount_wei == 0 {
            return Ok(());
        }
        self.chain.add_bond(amount_wei)
    }

    /// Takes on a claim that the chain has.
    pub(super) fn add(&mut self, id: B256, bond: Option<Box<Hold>>) {
        if self.open.contains_key(&id) {
            return;
        }
        let open = Open {
            // Looked at once, which sets the time.
            deadline_s: 0,
            bond_wei: bond.as_ref().map_or(0, |bond| bond.amount_wei()),
            bond,
        };
        *self.bonds.locked() += open.bond_wei;
        self.due.insert((open.deadline_s, id));
        self.open.insert(id, open);
    }

    /// Answers what challengers ask for, and closes what is over. What fails is
    /// tried again the next time.
    pub(super) fn tend(&mut self) {
        if self.open.is_empty() {
            return;
        }
        if let Err(error) = self.try_tend() {
            let error = chain_of(&error);
            tracing::warn!(%error, "claims could not be looked after, will be again");
        }
    }

    fn try_tend(&mut self) -> Result<(), OpenError> {
        let (happened, next_block) = self.chain.happened_since(self.next_block)?;
        self.next_block = next_block;
        self.note(happened);
        let now_s = self.chain.now_s()?;
        let due = self.due.iter().take_while(|(at_s, _)| *at_s <= now_s);
        let due: Vec<B256> = due.take(CLOSE_MAX).map(|&(_, id)| id).collect();
        let mut closable = Vec::new();
        for id in due {
            match self.chain.claim_state(id)? {
                None => self.forget(id)?,
                Some(state) => match state.status {
                    ClaimStatus::Pending => {
                        if state.deadline_s <= now_s && state.n_open_reveals == 0 {
                            closable.push(id);
                        } else {
                            self.wait_for(id, &state, now_s)?;
                        }
                    }
                    ClaimStatus::Refuted => {
                        self.refuted.insert(id);
                    }
                    ClaimStatus::Paid | ClaimStatus::Closed => self.forget(id)?,
                },
            }
        }
        self.answer();
        let refuted = self.refuted.iter().copied().take(CLOSE_MAX);
        closable.extend(refuted);
        for (&id, closed) in closable.iter().zip(self.chain.close_many(&closable)) {
            if let Err(error) = closed {
                tracing::debug!(claim = %id, error = chain_of(&error), "not closed here");
            }
            // Whoever closed it.
            match self.chain.claim_state(id)?.map(|state| state.status) {
                Some(ClaimStatus::Pending | ClaimStatus::Refuted) => {}
                Some(ClaimStatus::Paid) => {
                    tracing::info!(claim = %id, "claim is final");
                    self.forget(id)?;
                }
                Some(ClaimStatus::Closed) | None => {
                    tracing::error!(claim = %id, "claim was refuted, its bond is lost");
                    self.forget(id)?;
                }
            }
        }
        Ok(())
    }

    fn note(&mut self, happened: Vec<Happened>) {
        for happened in happened {
            match happened {
                Happened::RevealRequested { id, challenger } if self.open.contains_key(&id) => {
                    self.asked.insert((id, challenger));
                }
                Happened::Refuted { id } if self.open.contains_key(&id) => {
                    self.refuted.insert(id);
                }
                Happened::RevealRequested { .. } | Happened::Refuted { .. } => {}
            }
        }
    }

    /// Looks at a claim again when its window is over. The first time, what was
    /// asked for while nobody looked is asked for now.
    fn wait_for(&mut self, id: B256, state: &ClaimState, now_s: u64) -> Result<(), ChainError> {
        if state.n_open_reveals > 0 {
            let asked = self.chain.reveals_of(id)?;
            self.note(asked);
        }
        if let Some(open) = self.open.get_mut(&id) {
            self.due.remove(&(open.deadline_s, id));
            // One that waits for an answer is looked at again soon.
            open.deadline_s = state.deadline_s.max(now_s + 1);
            self.due.insert((open.deadline_s, id));
        }
        Ok(())
    }

    /// Reveals what is asked for.
    fn answer(&mut self) {
        // One claim is computed at a time, whoever asks for parts of it.
        let mut last: Option<(B256, Claim)> = None;
        for (id, challenger) in self.asked.clone() {
            match self.answer_one(id, challenger, &mut last) {
                Ok(()) => {
                    self.asked.remove(&(id, challenger));
                }
                Err(error) => {
                    let error = chain_of(&error);
                    tracing::error!(claim = %id, %challenger, %error, "not revealed yet");
                }
            }
        }
    }

    fn answer_one(
        &self,
        id: B256,
        challenger: Address,
        last: &mut Option<(B256, Claim)>,
    ) -> Result<(), OpenError> {
        let Some((tree, level, position)) = self.chain.open_reveal(id, challenger)? else {
            return Ok(());
        };
        let claim = match last.take().filter(|(of, _)| *of == id) {
            Some((_, claim)) => claim,
            None => self.compute(id)?,
        };
        let row = row(&claim, tree, level, position);
        *last = Some((id, claim));
        if let Some(row) = row {
            self.chain.answer_reveal(id, challenger, row)?;
            tracing::info!(claim = %id, %challenger, tree, level, position, "revealed");
        }
        Ok(())
    }

    /// A claim, computed again as it was.
    fn compute(&self, id: B256) -> Result<Claim, OpenError> {
        let form = |reason: &str| ChainError::Form {
            what: "a claim of this operator",
            reason: format!("{id}: {reason}"),
        };
        let pending = self.journal.claimed().get(id)?;
        let pending = pending.ok_or_else(|| form("its receipt is gone"))?;
        let state = self.chain.claim_state(id)?;
        let state = state.ok_or_else(|| form("it is not on chain"))?;
        let index = self.indexes.get(&state.index_id);
        let index = index.ok_or_else(|| form("its index is not loaded here"))?;
        Ok(index.claim(&pending.query, state.null_threshold, state.pot_wei))
    }

    /// Lets go of a claim that is closed.
    fn forget(&mut self, id: B256) -> Result<(), JournalError> {
        self.journal.claimed().remove(id)?;
        self.refuted.remove(&id);
        self.asked.retain(|(of, _)| *of != id);
        if let Some(open) = self.open.remove(&id) {
            self.due.remove(&(open.deadline_s, id));
            *self.bonds.locked() -= open.bond_wei;
            drop(open.bond);
        }
        Ok(())
    }
}

/// The row that answers a request to reveal a node.
fn row(claim: &Claim, tree: u8, level: u32, position: u32) -> Option<Vec<u8>> {
    fn of<V: Value>(tree: &SumTree<V>, level: u32, position: u32) -> Option<Vec<u8>> {
        let row = tree.row_below(level, position)?;
        Some(row.iter().flat_map(Node::encode).collect())
    }
    match Tree::from_number(tree)? {
        Tree::Scores => of(&claim.scores, level, position),
        Tree::Nets => of(&claim.nets, level, position),
        Tree::Shares => of(&claim.shares, level, position),
    }
}

/// Why claims cannot be looked after.
#[derive(Debug, thiserror::Error)]
pub(super) enum OpenError {
    #[error(transparent)]
    Chain(#[from] ChainError),
    #[error(transparent)]
    Journal(#[from] JournalError),
}
