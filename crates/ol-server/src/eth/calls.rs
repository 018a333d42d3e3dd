//! Messages that are tried and not kept.

use alloy_eips::eip2930::AccessListResult;
use alloy_primitives::U256;
use alloy_rpc_types_eth::TransactionRequest;
use jsonrpsee::types::ErrorObjectOwned;
use ol_node::{CallRequest, CallStatus, Overrides};

use super::args::Args;
use super::bounded::LargeReply;
use super::method::{LargeMethod, Method, Reply, quantity, shown};
use super::state::optional_block;
use super::{Eth, errors, overrides};

pub(super) const METHODS: &[Method] = &[
    Method::call("eth_call", 4, call),
    Method::call("eth_estimateGas", 4, estimate_gas),
];

pub(super) const LARGE_METHODS: &[LargeMethod] = &[LargeMethod::trace(
    "eth_createAccessList",
    4,
    create_access_list,
)];

fn call(args: &mut Args<'_>, eth: &Eth) -> Reply {
    let mut request = call_request(args.required()?)?;
    let at = optional_block(args, &eth.node)?;
    request.overrides = overrides::following(args)?;
    let output = eth.node.call(&request, at).map_err(errors::query)?;
    match output.status {
        CallStatus::Success => shown(output.output),
        CallStatus::Revert => Err(errors::reverted(&output.output)),
        CallStatus::Halt { reason, .. } => Err(errors::refused(reason)),
    }
}

fn estimate_gas(args: &mut Args<'_>, eth: &Eth) -> Reply {
    let mut request = call_request(args.required()?)?;
    let at = optional_block(args, &eth.node)?;
    request.overrides = overrides::following(args)?;
    quantity(eth.node.estimate_gas(&request, at).map_err(errors::query)?)
}

/// The access list that a message would profit from.
fn create_access_list(args: &mut Args<'_>, eth: &Eth) -> LargeReply {
    let mut request = call_request(args.required()?)?;
    let at = optional_block(args, &eth.node)?;
    request.overrides = overrides::following(args)?;
    let limits = eth.node.trace_limits(&eth.limits.trace);
    let found = eth
        .node
        .create_access_list(&request, at, &limits)
        .map_err(errors::query)?;
    eth.large(&AccessListResult {
        access_list: found.access_list,
        gas_used: U256::from(found.gas_used),
        error: found.error,
    })
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
        nonce: request.nonce,
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
