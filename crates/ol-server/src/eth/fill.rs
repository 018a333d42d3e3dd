//! Transactions of which a client has said only a part.

use alloy_consensus::TypedTransaction;
use alloy_eips::eip2718::Encodable2718 as _;
use alloy_primitives::{Bytes, Signature, TxKind, U256};
use alloy_rpc_types_eth::{TransactionInput, TransactionRequest};
use jsonrpsee::types::ErrorObjectOwned;
use ol_node::BlockRef;
use serde_json::json;

use super::args::Args;
use super::calls::call_request;
use super::fees::suggested_tip_wei;
use super::method::{Method, Reply, shown};
use super::{Eth, errors};

pub(super) const METHODS: &[Method] = &[Method::call("eth_fillTransaction", 1, fill_transaction)];

/// The transaction that a client would sign: chain, nonce, gas and fees as
/// they should be now, where it does not say them.
fn fill_transaction(args: &mut Args<'_>, eth: &Eth) -> Reply {
    let mut request = all_but_nonce(eth, args.required()?)?;
    nonce(eth, &mut request)?;
    // As in geth, the parts of the signature are zero.
    let unsigned = Signature::new(U256::ZERO, U256::ZERO, false);
    let filled = typed(request)?.into_envelope(unsigned);
    shown(json!({"raw": Bytes::from(filled.encoded_2718()), "tx": filled}))
}

/// Fills in everything but the nonce.
///
/// # Errors
/// If the fields contradict each other, or the message fails.
pub(super) fn all_but_nonce(
    eth: &Eth,
    mut request: TransactionRequest,
) -> Result<TransactionRequest, ErrorObjectOwned> {
    let chain_id = eth.node.chain_id();
    if request.chain_id.is_some_and(|asked| asked != chain_id) {
        return Err(errors::invalid_params(format!(
            "chainId does not match node's (have={}, want={chain_id})",
            request.chain_id.unwrap_or_default()
        )));
    }
    request.chain_id = Some(chain_id);
    let input = std::mem::take(&mut request.input)
        .try_into_unique_input()
        .map_err(|error| errors::invalid_params(error.to_string()))?;
    request.input = TransactionInput::new(input.unwrap_or_default());
    request.to = Some(request.to.unwrap_or(TxKind::Create));
    request.value = Some(request.value.unwrap_or_default());
    if request.gas_price.is_none() {
        let tip_wei = match request.max_priority_fee_per_gas {
            Some(tip_wei) => tip_wei,
            None => u128::from(suggested_tip_wei(eth)?),
        };
        let base_fee_wei = u128::from(eth.node.next_base_fee_wei());
        let max_fee_wei = base_fee_wei.saturating_mul(2).saturating_add(tip_wei);
        request.max_priority_fee_per_gas = Some(tip_wei);
        request.max_fee_per_gas = Some(request.max_fee_per_gas.unwrap_or(max_fee_wei));
    }
    if request.gas.is_none() {
        let message = call_request(request.clone())?;
        let gas = eth.node.estimate_gas(&message, BlockRef::Pending);
        request.gas = Some(gas.map_err(errors::query)?);
    }
    Ok(request)
}

/// Fills in the nonce after everything that waits.
///
/// # Errors
/// If the state cannot be read.
pub(super) fn nonce(eth: &Eth, request: &mut TransactionRequest) -> Result<(), ErrorObjectOwned> {
    if request.nonce.is_none() {
        let from = request.from.unwrap_or_default();
        request.nonce = Some(eth.node.next_nonce(from).map_err(errors::query)?);
    }
    Ok(())
}

/// The transaction of the type that the fields fit.
///
/// # Errors
/// If they fit none.
pub(super) fn typed(request: TransactionRequest) -> Result<TypedTransaction, ErrorObjectOwned> {
    request
        .build_typed_tx()
        .map_err(|_| errors::invalid_params("the fields fit no type of transaction"))
}
