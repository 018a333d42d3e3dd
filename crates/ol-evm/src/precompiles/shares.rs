//! `POA_SHARES`: a pot divided by weights, exactly.

use alloy_evm::precompiles::PrecompileInput;
use alloy_primitives::{Bytes, U256};
use alloy_sol_types::SolCall;
use ol_poa::{ENTRIES_MAX, shares};

use super::abi::IPoaShares::{IPoaSharesCalls, sharesCall};
use super::{
    Failure, Meter, SHARES_BASE_GAS, SHARES_WEIGHT_GAS, check_plain_call, count_at, decode,
};

/// Two heads, then the length of `weights`.
const WEIGHTS_LENGTH_AT: usize = 2 * 32;

/// Selector, heads and the length.
const FIXED_SIZE_BYTES: usize = 4 + WEIGHTS_LENGTH_AT + 32;

pub(super) fn run(input: &mut PrecompileInput<'_>, meter: &mut Meter) -> Result<Bytes, Failure> {
    meter.charge(SHARES_BASE_GAS)?;
    check_plain_call(input)?;
    let n_weights = count_at(input.data, WEIGHTS_LENGTH_AT)
        .filter(|&n| n <= ENTRIES_MAX)
        .filter(|&n| input.data.len() == FIXED_SIZE_BYTES + 32 * n)
        .ok_or_else(|| Failure::refused("poa shares: malformed call"))?;
    meter.charge_each(SHARES_WEIGHT_GAS, n_weights)?;
    let IPoaSharesCalls::shares(call) = decode(input.data)?;

    let pot = u128::try_from(call.pot)
        .map_err(|_| Failure::refused("poa shares: the pot is not below 2^128"))?;
    let amounts: Vec<U256> = shares(pot, &call.weights)
        .map_err(|error| Failure::Refused(format!("poa shares: {error}")))?
        .into_iter()
        .map(U256::from)
        .collect();
    Ok(sharesCall::abi_encode_returns(&amounts).into())
}
