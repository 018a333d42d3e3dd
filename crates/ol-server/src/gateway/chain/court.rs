//! Claims of the optimistic tier on chain, and the operator's bond.

use alloy_primitives::{Bytes, U256};
use alloy_sol_types::{SolCall, SolEvent as _};
use ol_contracts::address;
use ol_contracts::bindings::AttributionCourt::{
    self, Claimed as ClaimedEvent, IndexCommitted, Refuted, RevealRequested,
};
use ol_contracts::bindings::ModelRegistry;
pub use ol_contracts::court::ClaimStatus;
use ol_node::{BlockRef, LogFilter, LogInBlock};
use ol_types::{Address, B256};

use super::{Chain, ChainError, Included, Model, OperatorCall, Tried};
use crate::verify::event;

/// A claim as the court keeps it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClaimState {
    /// Where it is.
    pub status: ClaimStatus,
    /// When its window is over, Unix seconds of the chain.
    pub deadline_s: u64,
    /// Nodes that the operator is asked for.
    pub n_open_reveals: u16,
    /// The fee.
    pub fee_wei: u128,
    /// What its contributors share.
    pub pot_wei: u128,
    /// The model's null threshold.
    pub null_threshold: u64,
    /// The model's version.
    pub version: u64,
    /// The index that it is about.
    pub index_id: B256,
}

/// A claim as it was made.
#[derive(Debug, Clone)]
pub struct Claimed {
    /// What the court told of it.
    pub event: ClaimedEvent,
    /// The transaction.
    pub tx_hash: B256,
    /// The block that holds it.
    pub block: u64,
}

/// What concerns the operator of a claim.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::gateway) enum Happened {
    /// Somebody asks for a node.
    RevealRequested { id: B256, challenger: Address },
    /// Somebody showed the claim to be wrong.
    Refuted { id: B256 },
}

impl Chain {
    /// Whether an index with this id was committed to: models that name it are of
    /// the optimistic tier.
    ///
    /// # Errors
    /// [`ChainError`].
    pub fn is_committed(&self, id: B256) -> Result<bool, ChainError> {
        let call = AttributionCourt::isCommittedCall { id };
        self.call("isCommitted", address::ATTRIBUTION_COURT, &call)
    }

    /// The object that holds a committed index, by the event of its commitment.
    ///
    /// # Errors
    /// [`ChainError`].
    pub fn index_object(&self, id: B256) -> Result<Option<B256>, ChainError> {
        let logs = self.court_logs(0, u64::MAX, Vec::new(), vec![id])?;
        let committed = logs
            .iter()
            .find_map(|log| event::<IndexCommitted>(&log.log));
        Ok(committed.map(|committed| committed.object))
    }

    /// The claim of a receipt, or `None` if there is none.
    ///
    /// # Errors
    /// [`ChainError`].
    pub fn claim_state(&self, id: B256) -> Result<Option<ClaimState>, ChainError> {
        let call = AttributionCourt::claimOfCall { id };
        let claim = self.call("claimOf", address::ATTRIBUTION_COURT, &call)?;
        let state = |status| ClaimState {
            status,
            deadline_s: claim.deadline,
            n_open_reveals: claim.openReveals,
            fee_wei: claim.fee,
            pot_wei: claim.pot,
            null_threshold: claim.nullThreshold,
            version: claim.version,
            index_id: claim.indexId,
        };
        Ok(ClaimStatus::of(claim.status).map(state))
    }

    /// How a claim was made; `None` if there is none.
    ///
    /// # Errors
    /// [`ChainError`].
    pub fn claimed(&self, id: B256) -> Result<Option<Claimed>, ChainError> {
        let topic = vec![ClaimedEvent::SIGNATURE_HASH];
        let logs = self.court_logs(0, u64::MAX, topic, vec![id])?;
        Ok(logs.first().and_then(|log| {
            Some(Claimed {
                event: event(&log.log)?,
                tx_hash: log.transaction_hash,
                block: log.block_number,
            })
        }))
    }

    /// One version of a model.
    ///
    /// # Errors
    /// [`ChainError`].
    pub(in crate::gateway) fn model_version(
        &self,
        id: B256,
        version: u64,
    ) -> Result<Model, ChainError> {
        let call = ModelRegistry::versionOfCall { id, version };
        let params = self.call("versionOf", address::MODEL_REGISTRY, &call)?;
        self.to_model(id, version, params)
    }

    /// What happened to claims in the blocks from `first` on, and the block after
    /// the last one that was looked at.
    pub(in crate::gateway) fn happened_since(
        &self,
        first: u64,
    ) -> Result<(Vec<Happened>, u64), ChainError> {
        let head = self.node.head().header.number;
        if first > head {
            return Ok((Vec::new(), first));
        }
        let topics = vec![RevealRequested::SIGNATURE_HASH, Refuted::SIGNATURE_HASH];
        let logs = self.court_logs(first, head, topics, Vec::new())?;
        Ok((logs.iter().filter_map(happened).collect(), head + 1))
    }

    /// The reveals of a claim that were asked for at any time.
    pub(in crate::gateway) fn reveals_of(&self, id: B256) -> Result<Vec<Happened>, ChainError> {
        let topics = vec![RevealRequested::SIGNATURE_HASH];
        let logs = self.court_logs(0, u64::MAX, topics, vec![id])?;
        Ok(logs.iter().filter_map(happened).collect())
    }

    /// The node that a challenger asks for now: tree, level and position.
    pub(in crate::gateway) fn open_reveal(
        &self,
        id: B256,
        challenger: Address,
    ) -> Result<Option<(u8, u32, u32)>, ChainError> {
        let call = AttributionCourt::revealOfCall { id, challenger };
        let reveal = self.call("revealOf", address::ATTRIBUTION_COURT, &call)?;
        let node = (reveal.tree, reveal.level.into(), reveal.position);
        Ok(reveal.isOpen.then_some(node))
    }

    /// Reveals a row of nodes; fine if somebody else did.
    pub(in crate::gateway) fn answer_reveal(
        &self,
        id: B256,
        challenger: Address,
        row: Vec<u8>,
    ) -> Result<(), ChainError> {
        let row = Bytes::from(row);
        let call = AttributionCourt::answerRevealCall {
            id,
            challenger,
            row,
        };
        self.call_court("answerReveal", 0, &call)
    }

    /// Ends claims whose window is over or that were refuted; what became of each.
    pub(in crate::gateway) fn close_many(&self, ids: &[B256]) -> Vec<Result<(), ChainError>> {
        let mut nonce = None;
        let sent: Vec<Result<_, ChainError>> = ids
            .iter()
            .map(|&id| {
                let call = AttributionCourt::closeCall { id };
                self.begin_court("close", 0, &call, &mut nonce)
            })
            .collect();
        sent.into_iter()
            .map(|sent| sent.and_then(|included| wait(&included)))
            .collect()
    }

    /// The operator's bond that no claim holds, and its balance, in wei.
    pub(in crate::gateway) fn free_bond_and_balance_wei(&self) -> Result<(u128, u128), ChainError> {
        let operator = self.operator();
        let call = AttributionCourt::bondsCall { operator };
        let bond = self.call("bonds", address::ATTRIBUTION_COURT, &call)?;
        let balance = self.node.balance_wei(operator, BlockRef::Latest)?;
        // More than 2^128 wei cannot exist.
        Ok((bond.saturating_to(), balance.saturating_to()))
    }

    /// Adds to the operator's bond.
    pub(in crate::gateway) fn add_bond(&self, amount_wei: u128) -> Result<(), ChainError> {
        self.call_court("addBond", amount_wei, &AttributionCourt::addBondCall {})
    }

    /// The time of the next block, Unix seconds.
    pub(in crate::gateway) fn now_s(&self) -> Result<u64, ChainError> {
        Ok(self.node.context(BlockRef::Pending)?.timestamp_s)
    }

    fn call_court<C: SolCall>(
        &self,
        function: &'static str,
        value_wei: u128,
        call: &C,
    ) -> Result<(), ChainError> {
        wait(&self.begin_court(function, value_wei, call, &mut None)?)
    }

    fn begin_court<C: SolCall>(
        &self,
        function: &'static str,
        value_wei: u128,
        call: &C,
        nonce: &mut Option<u64>,
    ) -> Result<std::sync::mpsc::Receiver<Included>, ChainError> {
        let call = OperatorCall {
            value_wei: U256::from(value_wei),
            at: BlockRef::Pending,
            ..OperatorCall::new(function, address::ATTRIBUTION_COURT, call)
        };
        match self.try_call(&call)? {
            Tried::Works { gas_spent } => self.submit(call, gas_spent, nonce),
            Tried::Reverts { output } => Err(ChainError::Reverted {
                function,
                reason: super::reason(&output),
            }),
        }
    }

    fn court_logs(
        &self,
        from_block: u64,
        to_block: u64,
        events: Vec<B256>,
        ids: Vec<B256>,
    ) -> Result<Vec<LogInBlock>, ChainError> {
        Ok(self.node.logs(&LogFilter {
            from_block,
            to_block,
            addresses: vec![address::ATTRIBUTION_COURT],
            topics: [events, ids, Vec::new(), Vec::new()],
        })?)
    }
}

fn wait(included: &std::sync::mpsc::Receiver<Included>) -> Result<(), ChainError> {
    let outcome = included.recv().map_err(|_| ol_node::SubmitError::Stopped)?;
    outcome?;
    Ok(())
}

fn happened(log: &LogInBlock) -> Option<Happened> {
    let topic = |at: usize| log.log.topics().get(at).copied();
    let id = topic(1)?;
    match topic(0)? {
        RevealRequested::SIGNATURE_HASH => Some(Happened::RevealRequested {
            id,
            challenger: Address::from_word(topic(2)?),
        }),
        Refuted::SIGNATURE_HASH => Some(Happened::Refuted { id }),
        _ => None,
    }
}
