//! The gateway's view of the chain: models, balances, settlements.
//!
//! Reads go straight to the node in this process. The operator's key signs
//! settlements and nothing else; only the settlement thread uses it, so its
//! nonces are in order.

use std::sync::mpsc::{self, Receiver};

use alloy_consensus::{SignableTransaction as _, TxEip1559, TxEnvelope};
use alloy_eips::eip2718::Encodable2718 as _;
use alloy_primitives::{Bytes, TxKind, U256};
use alloy_signer::SignerSync as _;
use alloy_signer_local::PrivateKeySigner;
use alloy_sol_types::{SolCall, SolInterface as _};
use ol_contracts::address;
use ol_contracts::bindings::AttributionCourt::{self, AttributionCourtErrors};
use ol_contracts::bindings::InferenceSettlement::{self, InferenceSettlementErrors};
use ol_contracts::bindings::{DatanetRegistry, ModelRegistry, SketchStore};
use ol_contracts::court::posted_call;
use ol_contracts::settlement::{LogError, Settlement};
use ol_node::{
    BlockRef, CallRequest, CallStatus, Inclusion, LogFilter, Node, PRIORITY_FEE_WEI, QueryError,
    SubmitError,
};
use ol_poa::court::Posted;
use ol_poa::{Index, IndexError};
use ol_types::{Address, B256, Receipt};

use super::holds::bond_of_wei;
use super::journal::PendingReceipt;
use crate::verify::is_made_by;

pub(super) use self::court::Happened;
pub use self::court::{ClaimState, ClaimStatus, Claimed};

mod court;

/// Most versions of a model looked through for the one that made a receipt.
const VERSIONS_MAX: usize = 1_000;

/// Gas on top of what a settlement used when it was tried: an account that gets
/// its first credit in between costs a new storage slot.
const GAS_MARGIN: u64 = 100_000;

/// How sending a transaction ended.
type Included = Result<Inclusion, SubmitError>;

/// A model as registered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Model {
    /// Hash of its name.
    pub id: B256,
    /// Its name.
    pub name: String,
    /// Number of the version.
    pub version: u64,
    /// What the version is made of, and its prices.
    pub params: ModelRegistry::Params,
    /// Names of the datanets it learned from.
    pub datanets: Vec<String>,
}

/// A settlement that happened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settled {
    /// The transaction.
    pub tx_hash: B256,
    /// The block that holds it.
    pub block: u64,
    /// Who was credited, with amounts that add up.
    pub settlement: Settlement,
}

/// Why the chain could not be read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ChainError {
    /// The node failed.
    #[error("the node could not be read")]
    Query(#[from] QueryError),
    /// A contract that should answer reverted.
    #[error("{function} reverted: {reason}")]
    Reverted {
        /// The function called.
        function: &'static str,
        /// The revert data, or why it halted.
        reason: String,
    },
    /// A contract answered something it cannot answer: other code is there.
    #[error("{what} on chain cannot be read: {reason}")]
    Form {
        /// What was read.
        what: &'static str,
        /// What is wrong.
        reason: String,
    },
    /// The events of a settlement make no sense.
    #[error("the events of a settlement cannot be read")]
    Logs(#[from] LogError),
    /// The node did not take a transaction.
    #[error("the node did not take the settlement")]
    Submit(#[from] SubmitError),
    /// The operator's key could not sign.
    #[error("the operator's key could not sign")]
    Sign(#[source] alloy_signer::Error),
    /// The settlement reverted though it was tried before; tried again later.
    #[error("settlement {tx_hash} reverted")]
    Lost {
        /// The transaction.
        tx_hash: B256,
    },
}

/// Why a receipt was not settled.
#[derive(Debug)]
pub(super) enum SettleError {
    /// The contract will never take it.
    Refused { reason: String },
    /// It may work later.
    Retry(ChainError),
}

impl<E: Into<ChainError>> From<E> for SettleError {
    fn from(error: E) -> Self {
        Self::Retry(error.into())
    }
}

/// How a receipt is charged.
#[derive(Debug)]
pub(super) enum Charge<'a> {
    /// The chain scores it, and pays at once.
    Settle(&'a PendingReceipt),
    /// It is claimed, and paid after the window.
    Claim {
        pending: &'a PendingReceipt,
        posted: Posted,
        /// Of the model, that the claim was computed for.
        version: u64,
    },
}

impl Charge<'_> {
    const fn pending(&self) -> &PendingReceipt {
        match self {
            Self::Settle(pending) | Self::Claim { pending, .. } => pending,
        }
    }

    /// What it takes of the operator's bond.
    pub(super) const fn bond_wei(&self) -> u128 {
        match self {
            Self::Settle(_) => 0,
            Self::Claim { pending, .. } => bond_of_wei(pending.receipt.fee_wei),
        }
    }

    fn call(&self) -> OperatorCall {
        let PendingReceipt {
            receipt,
            query,
            gathered,
        } = self.pending();
        let query = query.to_bytes().to_vec().into();
        match self {
            Self::Settle(_) => OperatorCall::new(
                "settle",
                address::INFERENCE_SETTLEMENT,
                &InferenceSettlement::settleCall {
                    receipt: receipt.into(),
                    query,
                    evidence: (&gathered.evidence).into(),
                },
            ),
            // Everybody can compute the numbers from index and query, so none are
            // published; who computes others asks for them on chain.
            Self::Claim {
                posted, version, ..
            } => OperatorCall::new(
                "claim",
                address::ATTRIBUTION_COURT,
                &AttributionCourt::claimCall {
                    receipt: receipt.into(),
                    query,
                    posted: posted_call(posted),
                    version: *version,
                    data: B256::ZERO,
                },
            ),
        }
    }
}

/// A call that the operator signs.
#[derive(Debug, Clone)]
struct OperatorCall {
    function: &'static str,
    to: Address,
    value_wei: U256,
    input: Bytes,
    /// Where it is tried: in the next block, if it goes by the time.
    at: BlockRef,
}

impl OperatorCall {
    fn new<C: SolCall>(function: &'static str, to: Address, call: &C) -> Self {
        Self {
            function,
            to,
            value_wei: U256::ZERO,
            input: call.abi_encode().into(),
            at: BlockRef::Latest,
        }
    }
}

/// What a call would do.
enum Tried {
    Works { gas_spent: u64 },
    Reverts { output: Bytes },
}

/// The chain, with the operator's key.
#[derive(Debug)]
pub struct Chain {
    node: Node,
    operator: PrivateKeySigner,
}

impl Chain {
    /// A chain whose settlements `operator` signs; the contract must know it as
    /// its operator, and it needs OPEN for gas.
    #[must_use]
    pub const fn new(node: Node, operator: PrivateKeySigner) -> Self {
        Self { node, operator }
    }

    /// The chain's id.
    #[must_use]
    pub fn chain_id(&self) -> u64 {
        self.node.chain_id()
    }

    /// Number of the newest block.
    pub(super) fn head_number(&self) -> u64 {
        self.node.head().header.number
    }

    /// Who signs.
    #[must_use]
    pub(super) const fn operator(&self) -> Address {
        self.operator.address()
    }

    /// The newest version of a model, or `None` if it is not registered.
    ///
    /// # Errors
    /// [`ChainError`].
    pub fn model(&self, id: B256) -> Result<Option<Model>, ChainError> {
        let exists = ModelRegistry::existsCall { id };
        if !self.call("exists", address::MODEL_REGISTRY, &exists)? {
            return Ok(None);
        }
        let current = ModelRegistry::currentCall { id };
        let current = self.call("current", address::MODEL_REGISTRY, &current)?;
        self.to_model(id, current.version, current.params).map(Some)
    }

    /// The version of a model that made a receipt: the newest with its hashes
    /// and its price.
    ///
    /// # Errors
    /// [`ChainError`].
    pub fn model_of(&self, receipt: &Receipt) -> Result<Option<Model>, ChainError> {
        let id = receipt.model_id;
        let Some(newest) = self.model(id)? else {
            return Ok(None);
        };
        let older = (1..newest.version).rev();
        if is_made_by(receipt, &newest.params) {
            return Ok(Some(newest));
        }
        for version in older.take(VERSIONS_MAX) {
            let call = ModelRegistry::versionOfCall { id, version };
            let params = self.call("versionOf", address::MODEL_REGISTRY, &call)?;
            if is_made_by(receipt, &params) {
                return self.to_model(id, version, params).map(Some);
            }
        }
        Ok(None)
    }

    /// What an account has paid in and no receipt has charged, in wei.
    ///
    /// # Errors
    /// [`ChainError`].
    pub fn prepaid_wei(&self, account: Address) -> Result<u128, ChainError> {
        let call = InferenceSettlement::prepaidCall { account };
        let balance = self.call("prepaid", address::INFERENCE_SETTLEMENT, &call)?;
        // More than 2^128 wei cannot exist.
        Ok(balance.saturating_to())
    }

    /// The sketch index with this root, checked against it.
    ///
    /// # Errors
    /// [`ChainError`].
    pub fn index(&self, root: B256) -> Result<Index, ChainError> {
        let form = |reason: String| ChainError::Form {
            what: "the sketch index",
            reason,
        };
        let call = SketchStore::indexOfCall { root };
        let found = self.call("indexOf", address::SKETCH_STORE, &call)?;
        let mut bytes = Vec::new();
        for account in found.chunks {
            let code = self.node.code(account, BlockRef::Latest)?;
            // A chunk is stored behind a STOP byte, so that nobody can run it.
            let chunk = code.strip_prefix(&[0]);
            bytes.extend_from_slice(chunk.ok_or_else(|| form(format!("{account} is no chunk")))?);
        }
        let index = Index::from_bytes(bytes);
        let index = index.map_err(|error: IndexError| form(error.to_string()))?;
        if index.root() != root {
            return Err(form(format!("its root is {}, not {root}", index.root())));
        }
        Ok(index)
    }

    /// The block a receipt settled in, if it did.
    ///
    /// # Errors
    /// [`ChainError`].
    pub fn settled_at(&self, id: B256) -> Result<Option<u64>, ChainError> {
        let call = InferenceSettlement::settledAtCall { receiptId: id };
        let block = self.call("settledAt", address::INFERENCE_SETTLEMENT, &call)?;
        Ok(Some(block.saturating_to()).filter(|&block| block != 0))
    }

    /// The receipt that settled a request, if one did.
    ///
    /// # Errors
    /// [`ChainError`].
    pub fn receipt_of(&self, request_id: B256) -> Result<Option<B256>, ChainError> {
        let call = InferenceSettlement::receiptOfCall {
            requestId: request_id,
        };
        let id = self.call("receiptOf", address::INFERENCE_SETTLEMENT, &call)?;
        Ok(Some(id).filter(|id| !id.is_zero()))
    }

    /// The settlement of a receipt, from the events of its block; `None` if it
    /// is not settled.
    ///
    /// # Errors
    /// [`ChainError`].
    pub fn settled(&self, id: B256) -> Result<Option<Settled>, ChainError> {
        let Some(block) = self.settled_at(id)? else {
            return Ok(None);
        };
        let filter = LogFilter {
            from_block: block,
            to_block: block,
            addresses: vec![address::INFERENCE_SETTLEMENT],
            // Topic 1 of each event of a settlement is the receipt's id.
            topics: [Vec::new(), vec![id], Vec::new(), Vec::new()],
        };
        let logs = self.node.logs(&filter)?;
        let settlement = Settlement::from_logs(logs.iter().map(|log| &log.log))?.pop();
        let tx_hash = logs.first().map(|log| log.transaction_hash);
        match settlement.zip(tx_hash) {
            Some((settlement, tx_hash)) => Ok(Some(Settled {
                tx_hash,
                block,
                settlement,
            })),
            None => Err(ChainError::Form {
                what: "a settlement",
                reason: format!("block {block} has no events of receipt {id}"),
            }),
        }
    }

    /// Charges receipts, and returns what became of each when the blocks are on
    /// disk. Their transactions are sent one after the other without waiting, so
    /// that one block takes many; one that fails does not touch the others.
    pub(super) fn charge_many(&self, charges: &[Charge<'_>]) -> Vec<Result<(), SettleError>> {
        let mut results: Vec<Result<(), SettleError>> = Vec::with_capacity(charges.len());
        let mut sent = Vec::new();
        let mut nonce = None;
        for (n, charge) in charges.iter().enumerate() {
            match self.send(charge, &mut nonce) {
                Ok(None) => results.push(Ok(())),
                Ok(Some(inclusion)) => {
                    results.push(Ok(()));
                    sent.push((n, inclusion));
                }
                Err(error) => results.push(Err(error)),
            }
        }
        for (n, inclusion) in sent {
            results[n] = self.charged(&charges[n], &inclusion);
        }
        results
    }

    /// Whether a receipt was charged, in either tier.
    fn is_charged(&self, charge: &Charge<'_>) -> Result<bool, ChainError> {
        let id = charge.pending().receipt.id();
        Ok(match charge {
            Charge::Settle(_) => self.settled_at(id)?.is_some(),
            Charge::Claim { .. } => self.claim_state(id)?.is_some(),
        })
    }

    /// Sends what charges a receipt; `None` if it is charged already.
    fn send(
        &self,
        charge: &Charge<'_>,
        nonce: &mut Option<u64>,
    ) -> Result<Option<Receiver<Included>>, SettleError> {
        // A crash, or a repeated receipt: the chain knows.
        if self.is_charged(charge)? {
            return Ok(None);
        }
        let call = charge.call();
        // Tried first: a refusal then costs no gas and comes with its reason.
        match self.try_call(&call)? {
            Tried::Works { gas_spent } => Ok(Some(self.submit(call, gas_spent, nonce)?)),
            Tried::Reverts { output } => self.refused(charge, &output).map(|()| None),
        }
    }

    /// What a call of the operator would do.
    fn try_call(&self, call: &OperatorCall) -> Result<Tried, ChainError> {
        let request = CallRequest {
            from: self.operator.address(),
            to: Some(call.to),
            value_wei: call.value_wei,
            input: call.input.clone(),
            ..CallRequest::default()
        };
        let tried = self.node.call(&request, call.at)?;
        match tried.status {
            CallStatus::Success => Ok(Tried::Works {
                gas_spent: tried.gas_spent,
            }),
            CallStatus::Revert => Ok(Tried::Reverts {
                output: tried.output,
            }),
            CallStatus::Halt { reason, .. } => Err(ChainError::Reverted {
                function: call.function,
                reason,
            }),
        }
    }

    /// Signs and sends a call that works.
    fn submit(
        &self,
        call: OperatorCall,
        gas_spent: u64,
        nonce: &mut Option<u64>,
    ) -> Result<Receiver<Included>, ChainError> {
        let gas_limit = (gas_spent + gas_spent / 4)
            .saturating_add(GAS_MARGIN)
            .min(self.node.head().header.gas_limit);
        let tip_wei = u128::from(PRIORITY_FEE_WEI);
        let next = match *nonce {
            Some(nonce) => nonce,
            None => self.node.nonce(self.operator(), BlockRef::Latest)?,
        };
        let tx = TxEip1559 {
            chain_id: self.node.chain_id(),
            nonce: next,
            gas_limit,
            max_fee_per_gas: u128::from(self.node.next_base_fee_wei()) * 2 + tip_wei,
            max_priority_fee_per_gas: tip_wei,
            to: TxKind::Call(call.to),
            value: call.value_wei,
            access_list: Default::default(),
            input: call.input,
        };
        let signature = self.operator.sign_hash_sync(&tx.signature_hash());
        let signature = signature.map_err(ChainError::Sign)?;
        let raw = TxEnvelope::from(tx.into_signed(signature)).encoded_2718();
        let (done, included) = mpsc::sync_channel(1);
        self.node.submit_then(&raw, move |outcome| {
            // The receiver waits in `included`.
            let _ = done.send(outcome);
        })?;
        *nonce = Some(next + 1);
        Ok(included)
    }

    /// Waits for a charge that was sent.
    fn charged(
        &self,
        charge: &Charge<'_>,
        included: &Receiver<Included>,
    ) -> Result<(), SettleError> {
        let outcome = included.recv().map_err(|_| SubmitError::Stopped)?;
        let tx_hash = outcome?.transaction_hash;
        // A withdrawal may have come in between.
        if self.is_charged(charge)? {
            Ok(())
        } else {
            Err(ChainError::Lost { tx_hash }.into())
        }
    }

    /// What a revert of a charge means.
    fn refused(&self, charge: &Charge<'_>, output: &[u8]) -> Result<(), SettleError> {
        let retry = || ChainError::Reverted {
            function: charge.call().function,
            reason: reason(output),
        };
        match InferenceSettlementErrors::abi_decode(output) {
            // Not the receipt's fault: the operator's role may come back.
            Ok(
                InferenceSettlementErrors::NotOperator(_)
                | InferenceSettlementErrors::SharesBroken(_),
            ) => Err(retry().into()),
            Ok(InferenceSettlementErrors::AlreadySettled(_)) if self.is_charged(charge)? => Ok(()),
            Ok(_) => Err(SettleError::Refused {
                reason: reason(output),
            }),
            Err(_) => match AttributionCourtErrors::abi_decode(output) {
                // What it claims is wrong for good.
                Ok(
                    AttributionCourtErrors::InvalidQuery(_)
                    | AttributionCourtErrors::InvalidTotals(_),
                ) => Err(SettleError::Refused {
                    reason: reason(output),
                }),
                // A bond comes back, and a new version is computed for anew.
                Ok(_) | Err(_) => Err(retry().into()),
            },
        }
    }

    fn to_model(
        &self,
        id: B256,
        version: u64,
        params: ModelRegistry::Params,
    ) -> Result<Model, ChainError> {
        let name = ModelRegistry::nameOfCall { id };
        let name = self.call("nameOf", address::MODEL_REGISTRY, &name)?;
        let datanets = params.datanetIds.iter().map(|&id| {
            let name = DatanetRegistry::nameOfCall { id };
            self.call("nameOf", address::DATANET_REGISTRY, &name)
        });
        let datanets = datanets.collect::<Result<_, _>>()?;
        Ok(Model {
            id,
            name,
            version,
            params,
            datanets,
        })
    }

    /// Asks a contract at the newest block.
    fn call<C: SolCall>(
        &self,
        function: &'static str,
        to: Address,
        call: &C,
    ) -> Result<C::Return, ChainError> {
        let request = CallRequest {
            to: Some(to),
            input: call.abi_encode().into(),
            ..CallRequest::default()
        };
        let output = self.node.call(&request, BlockRef::Latest)?;
        let reason = match output.status {
            CallStatus::Success => {
                return C::abi_decode_returns(&output.output).map_err(|error| ChainError::Form {
                    what: function,
                    reason: error.to_string(),
                });
            }
            CallStatus::Revert => reason(&output.output),
            CallStatus::Halt { reason, .. } => reason,
        };
        Err(ChainError::Reverted { function, reason })
    }
}

/// Revert data as text: the contract's own error, or the bytes.
fn reason(output: &[u8]) -> String {
    if let Ok(error) = InferenceSettlementErrors::abi_decode(output) {
        return format!("{error:?}");
    }
    match AttributionCourtErrors::abi_decode(output) {
        Ok(error) => format!("{error:?}"),
        Err(_) => alloy_primitives::hex::encode_prefixed(output),
    }
}
