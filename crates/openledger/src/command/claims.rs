//! Claims of the optimistic tier, as commands find them on chain.

use std::collections::BTreeMap;

use alloy_primitives::{Address, B256, U256};
use alloy_signer_local::PrivateKeySigner;
use alloy_sol_types::SolEvent;
use anyhow::{Context, bail};
use ol_contracts::address::ATTRIBUTION_COURT;
use ol_contracts::bindings::AttributionCourt::{
    self, Claim, ClaimClosed, Claimed, Collected, IndexCommitted,
};
use ol_contracts::court::ClaimStatus;
use ol_contracts::settlement::Settlement;
use ol_model::Pool;
use ol_poa::QuerySketch;
use ol_poa::court::CommittedIndex;
use ol_server::optimistic::{OptimisticIndex, ShareProof, load_committed};
use ol_server::verify::event;
use serde_json::{Value, json};

use crate::chain::Chain;
use crate::rpc::Rpc;

/// Blocks asked for at a time.
const BLOCKS_PER_PAGE: u64 = 1_000;

/// How a receipt was charged.
pub(crate) enum Charged {
    /// At once.
    Settled(Box<Settlement>),
    /// By a claim.
    Claimed {
        event: Box<Claimed>,
        state: Box<State>,
    },
}

impl Charged {
    /// The state of the claim, or null.
    pub(crate) fn claim(&self) -> Value {
        match self {
            Self::Settled(_) => Value::Null,
            Self::Claimed { state, .. } => state.json(),
        }
    }
}

/// A claim as the court keeps it.
pub(crate) struct State {
    claim: Claim,
    /// Time of the newest block, Unix seconds.
    now_s: u64,
}

impl State {
    fn status(&self) -> &'static str {
        match ClaimStatus::of(self.claim.status) {
            Some(ClaimStatus::Pending) if self.claim.openReveals > 0 => "challenged",
            Some(ClaimStatus::Pending) => "claimed",
            Some(ClaimStatus::Paid) => "final",
            _ => "slashed",
        }
    }

    fn json(&self) -> Value {
        json!({
            "status": self.status(),
            "deadline": self.claim.deadline,
            "n_open_reveals": self.claim.openReveals,
        })
    }

    /// What it means for who is paid.
    pub(crate) fn words(&self) -> String {
        let left_s = self.claim.deadline.saturating_sub(self.now_s);
        let (hours, minutes) = (left_s / 3_600, left_s % 3_600 / 60);
        match self.status() {
            "challenged" => format!(
                "The claim is challenged: its operator is asked for {} nodes, and can be for {hours} h {minutes} min.",
                self.claim.openReveals
            ),
            "claimed" if left_s > 0 => format!(
                "The claim can be challenged for another {hours} h {minutes} min; then it pays."
            ),
            "claimed" => "The window of the claim is over; its operator closes it next.".to_owned(),
            "final" => "The claim is final; contributors collect their shares from it.".to_owned(),
            _ => "The claim was refuted: the fee goes back to the payer, and the operator lost its bond.".to_owned(),
        }
    }
}

/// The claim of a receipt with its transaction and block, if there is one.
pub(crate) fn find(rpc: &Rpc, id: B256) -> anyhow::Result<Option<(Charged, B256, u64)>> {
    let claim = rpc.call(ATTRIBUTION_COURT, &AttributionCourt::claimOfCall { id })?;
    if ClaimStatus::of(claim.status).is_none() {
        return Ok(None);
    }
    let logs = rpc.logs(ATTRIBUTION_COURT, id)?;
    let found = logs
        .iter()
        .find_map(|found| Some((event::<Claimed>(&found.log)?, found)));
    let (event, found) = found.context("the court has no event of the claim")?;
    let state = State {
        claim,
        now_s: rpc.block_time_s()?,
    };
    let charged = Charged::Claimed {
        event: Box::new(event),
        state: Box::new(state),
    };
    Ok(Some((charged, found.tx_hash, found.block)))
}

/// What was committed to under this id.
///
/// # Errors
/// If nothing was.
pub(crate) fn committed(chain: &Chain, id: B256) -> anyhow::Result<IndexCommitted> {
    let logs = chain.rpc().logs(ATTRIBUTION_COURT, id)?;
    logs.iter()
        .find_map(|found| event::<IndexCommitted>(&found.log))
        .with_context(|| format!("no index {id} was committed to"))
}

/// The index with this id on chain, from the objects, with every byte checked.
///
/// # Errors
/// If nobody committed to it, or its object is missing or another.
pub(crate) fn read_index(chain: &Chain, id: B256) -> anyhow::Result<CommittedIndex> {
    let committed = committed(chain, id)?;
    let index = load_committed(&chain.objects()?, committed.object, id);
    index.with_context(|| format!("the index, object {}", committed.object))
}

/// Every event of this kind that the court has told of so far.
///
/// # Errors
/// If the chain cannot be read.
pub(crate) fn each_event<E: SolEvent>(rpc: &Rpc, mut each: impl FnMut(E)) -> anyhow::Result<()> {
    let head = rpc.block_number()?;
    let mut first = 0;
    while first <= head {
        let last = head.min(first + BLOCKS_PER_PAGE - 1);
        for log in rpc.events(ATTRIBUTION_COURT, E::SIGNATURE_HASH, first, last)? {
            each(E::decode_log_data(&log.log.data)?);
        }
        first = last + 1;
    }
    Ok(())
}

/// A share of a paid claim that was not collected.
pub(crate) struct Uncollected {
    claim: B256,
    proof: ShareProof,
}

/// What the paid claims of this chain owe to some contributors, or to all.
pub(crate) struct Shares<'a> {
    chain: &'a Chain,
    indexes: BTreeMap<B256, OptimisticIndex>,
}

impl<'a> Shares<'a> {
    pub(crate) const fn new(chain: &'a Chain) -> Self {
        Self {
            chain,
            indexes: BTreeMap::new(),
        }
    }

    /// The shares that `contributors` have in paid claims and did not collect.
    ///
    /// # Errors
    /// If the chain or an object cannot be read.
    pub(crate) fn uncollected(
        &mut self,
        contributors: &[Address],
    ) -> anyhow::Result<Vec<Uncollected>> {
        let rpc = self.chain.rpc();
        let (mut paid, mut collected) = (Vec::new(), Vec::new());
        each_event(rpc, |closed: ClaimClosed| {
            paid.extend(closed.paid.then_some(closed.id));
        })?;
        each_event(rpc, |found: Collected| {
            collected.push((found.id, found.contributor));
        })?;
        collected.sort_unstable();
        let mut found = Vec::new();
        for claim in paid {
            let is_open = |who: &&Address| collected.binary_search(&(claim, **who)).is_err();
            let open: Vec<Address> = contributors.iter().filter(is_open).copied().collect();
            if !open.is_empty() {
                found.extend(self.of_claim(claim, &open)?);
            }
        }
        Ok(found)
    }

    fn of_claim(&mut self, id: B256, open: &[Address]) -> anyhow::Result<Vec<Uncollected>> {
        let Some((Charged::Claimed { event, state }, ..)) = find(self.chain.rpc(), id)? else {
            bail!("claim {id} is closed and not on chain");
        };
        let index_id = state.claim.indexId;
        if !self.indexes.contains_key(&index_id) {
            let index = read_index(self.chain, index_id)?;
            let pool = std::sync::Arc::new(Pool::new(1));
            self.indexes
                .insert(index_id, OptimisticIndex::new(index, pool)?);
        }
        let index = self
            .indexes
            .get(&index_id)
            .context("the index was read and is not there")?;
        let query = QuerySketch::from_bytes(&event.query).context("the query of a claim")?;
        let amounts = index.amounts(&query, state.claim.nullThreshold, event.pot);
        let proofs = index.share_proofs(&amounts, open).into_iter();
        Ok(proofs
            .map(|proof| Uncollected { claim: id, proof })
            .collect())
    }
}

impl Uncollected {
    pub(crate) const fn contributor(&self) -> Address {
        self.proof.contributor
    }

    pub(crate) const fn share_wei(&self) -> u128 {
        self.proof.share_wei
    }

    /// Has the share credited in the court; anyone may, `signer` pays the gas.
    ///
    /// # Errors
    /// If the transaction fails.
    pub(crate) fn collect(&self, rpc: &Rpc, signer: &PrivateKeySigner) -> anyhow::Result<()> {
        let call = AttributionCourt::collectCall {
            id: self.claim,
            position: self.proof.position,
            contributor: self.proof.contributor,
            share: self.proof.share_wei,
            path: self.proof.path.clone().into(),
        };
        rpc.send(signer, ATTRIBUTION_COURT, U256::ZERO, &call)?;
        Ok(())
    }
}
