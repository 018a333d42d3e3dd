//! `eth_simulateV1`: blocks that are not real.

use alloy_primitives::{B256, Bytes, U64};
use alloy_rpc_types_eth::simulate::SimulatePayload;
use alloy_rpc_types_eth::{Header as RpcHeader, Log as RpcLog, TransactionRequest};
use jsonrpsee::types::ErrorObjectOwned;
use ol_node::{
    Block, BlockRef, BlockToSimulate, CallStatus, Header, SimulateError, SimulatedBlock,
    SimulatedCall,
};
use serde::Serialize;

use super::args::Args;
use super::bounded::LargeReply;
use super::calls::call_request;
use super::method::LargeMethod;
use super::shapes::RpcTransaction;
use super::state::optional_block;
use super::{Eth, errors, overrides, shapes};

/// Most messages of all blocks together.
const CALLS_MAX: usize = 1_000;

pub(super) const LARGE_METHODS: &[LargeMethod] =
    &[LargeMethod::trace("eth_simulateV1", 2, simulate)];

/// The halt of a message, as `eth_simulateV1` numbers it.
const VM_ERROR_CODE: i32 = -32_015;

fn simulate(args: &mut Args<'_>, eth: &Eth) -> LargeReply {
    let payload: SimulatePayload<TransactionRequest> = args.required()?;
    let at = match optional_block(args, &eth.node)? {
        BlockRef::Pending => BlockRef::Latest,
        at => at,
    };
    let n_calls: usize = payload
        .block_state_calls
        .iter()
        .map(|block| block.calls.len())
        .sum();
    if n_calls > CALLS_MAX {
        return Err(errors::limit_exceeded(format!(
            "at most {CALLS_MAX} calls can be simulated"
        )));
    }
    if payload.block_state_calls.is_empty() {
        return Err(errors::invalid_params("empty input"));
    }
    let blocks = payload
        .block_state_calls
        .into_iter()
        .map(|block| {
            let calls = block.calls.into_iter().map(call_request);
            Ok(BlockToSimulate {
                overrides: overrides::overrides(block.state_overrides, block.block_overrides)?,
                calls: calls.collect::<Result<_, _>>()?,
            })
        })
        .collect::<Result<Vec<_>, ErrorObjectOwned>>()?;
    let limits = eth.node.trace_limits(&eth.limits.trace);
    let simulated = eth
        .node
        .simulate(
            at,
            blocks,
            payload.validation,
            payload.trace_transfers,
            limits,
        )
        .map_err(errors::query)?;
    let shown: Vec<_> = simulated
        .into_iter()
        .map(|block| Simulated::of(block, payload.return_full_transactions))
        .collect();
    eth.large(&shown)
}

#[derive(Debug, Serialize)]
struct Simulated {
    #[serde(flatten)]
    block: alloy_rpc_types_eth::Block<RpcTransaction, RpcHeader<Header>>,
    calls: Vec<Call>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Call {
    return_data: Bytes,
    logs: Vec<RpcLog>,
    gas_used: U64,
    status: U64,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<CallFault>,
}

#[derive(Debug, Serialize)]
struct CallFault {
    code: i32,
    message: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    data: Option<Bytes>,
}

impl Simulated {
    fn of(block: SimulatedBlock, with_transactions: bool) -> Self {
        let SimulatedBlock {
            header,
            hash,
            transactions,
            calls,
        } = block;
        let hashes = transactions.iter().map(|transaction| transaction.tx_hash());
        let mut n_logs = 0;
        let calls = (0_u64..)
            .zip(hashes)
            .zip(calls)
            .map(|((position, transaction_hash), call)| {
                let place = Place {
                    header: &header,
                    hash,
                    transaction_hash,
                    position,
                };
                shown(call, &place, &mut n_logs)
            })
            .collect();
        let block = Block {
            header,
            hash,
            transactions,
        };
        Self {
            block: shapes::block(block, with_transactions),
            calls,
        }
    }
}

struct Place<'a> {
    header: &'a Header,
    hash: B256,
    transaction_hash: B256,
    position: u64,
}

fn shown(call: SimulatedCall, place: &Place<'_>, n_logs: &mut u64) -> Call {
    let error = match &call.status {
        CallStatus::Success => None,
        CallStatus::Revert => {
            let reverted = errors::reverted(&call.output);
            Some(CallFault {
                code: reverted.code(),
                message: reverted.message().to_owned(),
                data: Some(call.output.clone()),
            })
        }
        CallStatus::Halt { reason, .. } => Some(CallFault {
            code: VM_ERROR_CODE,
            message: reason.clone(),
            data: None,
        }),
    };
    let logs = call.logs.into_iter().map(|log| {
        let index = *n_logs;
        *n_logs += 1;
        RpcLog {
            inner: log,
            block_hash: Some(place.hash),
            block_number: Some(place.header.number),
            block_timestamp: Some(place.header.timestamp),
            transaction_hash: Some(place.transaction_hash),
            transaction_index: Some(place.position),
            log_index: Some(index),
            removed: false,
        }
    });
    Call {
        logs: logs.collect(),
        return_data: call.output,
        gas_used: U64::from(call.gas_used),
        status: U64::from(u64::from(error.is_none())),
        error,
    }
}

/// The error of a simulation, with the numbers that its specification gives.
pub(super) fn error(error: &SimulateError) -> ErrorObjectOwned {
    let message = error.to_string();
    let code = match error {
        SimulateError::Number { .. } => -38_020,
        SimulateError::Timestamp { .. } => -38_021,
        SimulateError::TooManyBlocks => -38_026,
        SimulateError::GasLimit { .. } => -38_015,
        SimulateError::Invalid { reason } => invalid_code(reason),
        SimulateError::Limit(_) => return errors::limit_exceeded(message),
        other => return errors::internal(other),
    };
    ErrorObjectOwned::owned(code, message, None::<()>)
}

/// By the words that geth has for each, which are ours too.
fn invalid_code(reason: &str) -> i32 {
    const CODES: [(&str, i32); 6] = [
        ("nonce too low", -38_010),
        ("nonce too high", -38_011),
        ("max fee per gas less than block base fee", -38_012),
        ("intrinsic gas too low", -38_013),
        ("insufficient funds", -38_014),
        ("max initcode size exceeded", -38_025),
    ];
    let known = CODES.iter().find(|(words, _)| reason.starts_with(words));
    known.map_or(-32_000, |(_, code)| *code)
}
