//! Messages that are tried and not kept.

use alloy_rpc_types_eth::TransactionRequest;
use jsonrpsee::types::ErrorObjectOwned;
use ol_node::{CallRequest, CallStatus, Overrides};
use serde_json::Value;

use super::args::Args;
use super::method::{Method, Reply, quantity, shown};
use super::state::optional_block;
use super::{Eth, errors};

pub(super) const METHODS: &[Method] = &[
    Method::call("eth_call", 4, call),
    Method::call("eth_estimateGas", 4, estimate_gas),
];

fn call(args: &mut Args<'_>, eth: &Eth) -> Reply {
    let request = call_request(args.required()?)?;
    let at = optional_block(args, &eth.node)?;
    refuse_overrides(args)?;
    let output = eth.node.call(&request, at).map_err(errors::query)?;
    match output.status {
        CallStatus::Success => shown(output.output),
        CallStatus::Revert => Err(errors::reverted(&output.output)),
        CallStatus::Halt { is_out_of_gas, .. } if is_out_of_gas => {
            Err(errors::refused("out of gas"))
        }
        CallStatus::Halt { reason, .. } => Err(errors::refused(format!("call halted: {reason}"))),
    }
}

fn estimate_gas(args: &mut Args<'_>, eth: &Eth) -> Reply {
    let request = call_request(args.required()?)?;
    let at = optional_block(args, &eth.node)?;
    refuse_overrides(args)?;
    quantity(eth.node.estimate_gas(&request, at).map_err(errors::query)?)
}

/// State and block overrides are not supported; ignoring them would give a
/// wrong answer.
fn refuse_overrides(args: &mut Args<'_>) -> Result<(), ErrorObjectOwned> {
    for _ in 0..2 {
        if let Some(overrides) = args.optional::<Value>()?
            && overrides
                .as_object()
                .is_none_or(|object| !object.is_empty())
        {
            return Err(errors::invalid_params("overrides are not supported"));
        }
    }
    Ok(())
}

/// The message that a transaction request describes.
pub(super) fn call_request(request: TransactionRequest) -> Result<CallRequest, ErrorObjectOwned> {
    if request.gas_price.is_some() && request.max_fee_per_gas.is_some() {
        let both = "both gasPrice and (maxFeePerGas or maxPriorityFeePerGas) specified";
        return Err(errors::invalid_params(both));
    }
    let input = request
        .input
        .try_into_unique_input()
        .map_err(|error| errors::invalid_params(error.to_string()))?;
    Ok(CallRequest {
        from: request.from.unwrap_or_default(),
        to: request.to.and_then(|to| to.into_to()),
        gas_limit: request.gas,
        max_fee_wei: request.max_fee_per_gas.or(request.gas_price),
        max_priority_fee_wei: request.max_priority_fee_per_gas,
        value_wei: request.value.unwrap_or_default(),
        input: input.unwrap_or_default(),
        access_list: request.access_list.unwrap_or_default(),
        authorization_list: request.authorization_list.unwrap_or_default(),
        overrides: Overrides::default(),
    })
}
