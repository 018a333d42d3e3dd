//! `OPEN_TRANSFER`: native balance moved for the ERC-20 façade.

use alloy_evm::precompiles::PrecompileInput;
use alloy_primitives::Bytes;
use alloy_sol_types::SolCall;
use revm::precompile::PrecompileError;

use super::abi::IOpenTransfer::{IOpenTransferCalls, transferCall};
use super::{Failure, Meter, TRANSFER_GAS, check_plain_call, decode};
use crate::OPEN_FACADE;

/// Selector and three words.
const CALL_SIZE_BYTES: usize = 4 + 3 * 32;

pub(super) fn run(input: &mut PrecompileInput<'_>, meter: &mut Meter) -> Result<Bytes, Failure> {
    meter.charge(TRANSFER_GAS)?;
    check_plain_call(input)?;
    if input.caller != OPEN_FACADE {
        return Err(Failure::refused("open transfer: only the facade may call"));
    }
    if input.is_static {
        return Err(Failure::refused("open transfer: not in a static call"));
    }
    if input.data.len() != CALL_SIZE_BYTES {
        return Err(Failure::refused("open transfer: malformed call"));
    }
    let IOpenTransferCalls::transfer(transferCall { from, to, amount }) = decode(input.data)?;
    let outcome = input
        .internals
        .transfer(from, to, amount)
        .map_err(|error| Failure::Fatal(PrecompileError::Fatal(error.to_string())))?;
    match outcome {
        None => Ok(transferCall::abi_encode_returns(&().into()).into()),
        Some(_) => Err(Failure::refused("open transfer: balance too low")),
    }
}
