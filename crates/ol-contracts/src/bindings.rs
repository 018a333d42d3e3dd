//! Calls, events, errors and structs of the contracts, and their runtime code.
//!
//! Generated from `artifacts/`: the names are those of the Solidity sources,
//! which also document them.

#![expect(
    missing_docs,
    reason = "generated: an enum becomes a number type without a comment"
)]
#![expect(
    clippy::too_many_arguments,
    reason = "generated: an event has as many fields as the contract gives it"
)]

use alloy_sol_types::sol;

sol!(
    #[sol(all_derives)]
    AttributionCourt,
    "artifacts/AttributionCourt.json"
);
sol!(
    #[sol(all_derives)]
    DatanetRegistry,
    "artifacts/DatanetRegistry.json"
);
sol!(
    #[sol(all_derives)]
    InferenceSettlement,
    "artifacts/InferenceSettlement.json"
);
sol!(
    #[sol(all_derives)]
    ModelRegistry,
    "artifacts/ModelRegistry.json"
);
sol!(
    #[sol(all_derives)]
    Open,
    "artifacts/Open.json"
);
sol!(
    #[sol(all_derives)]
    SketchStore,
    "artifacts/SketchStore.json"
);
sol!(
    #[sol(all_derives)]
    IPoaScore,
    "artifacts/IPoaScore.json"
);
sol!(
    #[sol(all_derives)]
    IPoaShares,
    "artifacts/IPoaShares.json"
);
sol!(
    #[sol(all_derives)]
    IPoaVerify,
    "artifacts/IPoaVerify.json"
);
sol!(
    #[sol(all_derives)]
    IOpenTransfer,
    "artifacts/IOpenTransfer.json"
);

/// The same struct, once for each contract that takes it.
macro_rules! from_receipt {
    ($($contract:ident),*) => {$(
impl From<&ol_types::Receipt> for $contract::Receipt {
    fn from(receipt: &ol_types::Receipt) -> Self {
        Self {
            chainId: receipt.chain_id,
            settlement: receipt.settlement,
            payer: receipt.payer,
            requestId: receipt.request_id,
            modelId: receipt.model_id,
            baseHash: receipt.base_hash,
            adapterHash: receipt.adapter_hash,
            manifestHash: receipt.manifest_hash,
            sketchRoot: receipt.sketch_root,
            promptHash: receipt.prompt_hash,
            responseHash: receipt.response_hash,
            queryHash: receipt.query_hash,
            evidenceHash: receipt.evidence_hash,
            tokensIn: receipt.tokens_in,
            tokensOut: receipt.tokens_out,
            feeWei: receipt.fee_wei,
            answeredAt: receipt.answered_at_s,
        }
    }
}
    )*};
}

from_receipt!(AttributionCourt, InferenceSettlement);

impl From<ol_types::Receipt> for InferenceSettlement::Receipt {
    fn from(receipt: ol_types::Receipt) -> Self {
        Self::from(&receipt)
    }
}

impl From<&InferenceSettlement::Receipt> for ol_types::Receipt {
    fn from(receipt: &InferenceSettlement::Receipt) -> Self {
        Self {
            chain_id: receipt.chainId,
            settlement: receipt.settlement,
            payer: receipt.payer,
            request_id: receipt.requestId,
            model_id: receipt.modelId,
            base_hash: receipt.baseHash,
            adapter_hash: receipt.adapterHash,
            manifest_hash: receipt.manifestHash,
            sketch_root: receipt.sketchRoot,
            prompt_hash: receipt.promptHash,
            response_hash: receipt.responseHash,
            query_hash: receipt.queryHash,
            evidence_hash: receipt.evidenceHash,
            tokens_in: receipt.tokensIn,
            tokens_out: receipt.tokensOut,
            fee_wei: receipt.feeWei,
            answered_at_s: receipt.answeredAt,
        }
    }
}

impl From<&ol_poa::Evidence> for InferenceSettlement::Evidence {
    fn from(evidence: &ol_poa::Evidence) -> Self {
        let [spans, context] = evidence.lists().map(Into::into);
        Self {
            spans,
            context,
            object: evidence.object().unwrap_or_default(),
        }
    }
}

impl ModelRegistry::Params {
    /// The fee of an answer, in wei, as `InferenceSettlement.quote` computes it.
    ///
    /// `None` if it does not fit, which the limits on registered prices exclude.
    #[must_use]
    pub fn fee_wei(&self, tokens_in: u32, tokens_out: u32) -> Option<u128> {
        let part = |n_tokens: u32, price: u128| Some(price.checked_mul(n_tokens.into())? / 1000);
        part(tokens_in, self.priceInPerKTokens)?
            .checked_add(part(tokens_out, self.priceOutPerKTokens)?)?
            .checked_add(self.platformFee)
    }
}

#[cfg(test)]
mod tests;
