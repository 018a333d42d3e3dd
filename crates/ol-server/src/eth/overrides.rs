//! What a caller wants to be different, as JSON-RPC writes it.

use std::collections::BTreeMap;

use alloy_primitives::{B256, U256};
use alloy_rpc_types_eth::BlockOverrides as RpcBlockOverrides;
use alloy_rpc_types_eth::state::{AccountOverride as RpcAccountOverride, StateOverride};
use jsonrpsee::types::ErrorObjectOwned;
use ol_node::{AccountOverride, BlockOverrides, Overrides, StorageOverride};

use super::args::Args;
use super::errors;

/// The state and block overrides that follow in the parameters.
///
/// # Errors
/// If they are malformed, or ask for what cannot be overridden.
pub(super) fn following(args: &mut Args<'_>) -> Result<Overrides, ErrorObjectOwned> {
    let state = args.optional::<StateOverride>()?;
    let block = args.optional::<RpcBlockOverrides>()?;
    overrides(state, block)
}

/// # Errors
/// If they ask for what cannot be overridden.
pub(super) fn overrides(
    state: Option<StateOverride>,
    block: Option<RpcBlockOverrides>,
) -> Result<Overrides, ErrorObjectOwned> {
    let accounts = state.unwrap_or_default().into_iter();
    let accounts = accounts
        .map(|(address, wanted)| Ok((address, account(address, wanted)?)))
        .collect::<Result<_, ErrorObjectOwned>>()?;
    Ok(Overrides {
        accounts,
        block: block.map(block_overrides).transpose()?.unwrap_or_default(),
    })
}

fn account(
    address: alloy_primitives::Address,
    wanted: RpcAccountOverride,
) -> Result<AccountOverride, ErrorObjectOwned> {
    if wanted.move_precompile_to.is_some() {
        return Err(errors::invalid_params(format!(
            "account {address}: movePrecompileToAddress is not supported"
        )));
    }
    let storage = match (wanted.state, wanted.state_diff) {
        (Some(_), Some(_)) => {
            return Err(errors::invalid_params(format!(
                "account {address} has both 'state' and 'stateDiff'"
            )));
        }
        (Some(all), None) => StorageOverride::All(slots(all)),
        (None, Some(some)) => StorageOverride::Some(slots(some)),
        (None, None) => StorageOverride::None,
    };
    Ok(AccountOverride {
        nonce: wanted.nonce,
        balance_wei: wanted.balance,
        code: wanted.code,
        storage,
    })
}

fn slots(words: impl IntoIterator<Item = (B256, B256)>) -> BTreeMap<U256, U256> {
    let words = words.into_iter();
    words
        .map(|(slot, value)| (slot.into(), value.into()))
        .collect()
}

fn block_overrides(wanted: RpcBlockOverrides) -> Result<BlockOverrides, ErrorObjectOwned> {
    let unsupported = [
        (
            "difficulty",
            wanted.difficulty.is_some_and(|it| !it.is_zero()),
        ),
        ("blobBaseFee", wanted.blob_base_fee.is_some()),
        ("beaconRoot", wanted.beacon_root.is_some()),
    ];
    if let Some((name, _)) = unsupported.into_iter().find(|(_, is_wanted)| *is_wanted) {
        return Err(errors::invalid_params(format!(
            "block override {name} is not supported"
        )));
    }
    Ok(BlockOverrides {
        number: wanted.number.map(|it| small("number", it)).transpose()?,
        timestamp_s: wanted.time,
        gas_limit: wanted.gas_limit,
        base_fee_wei: wanted
            .base_fee
            .map(|it| small("baseFeePerGas", it))
            .transpose()?,
        beneficiary: wanted.coinbase,
        prevrandao: wanted.random,
        block_hashes: wanted.block_hash.unwrap_or_default(),
    })
}

fn small(name: &str, value: U256) -> Result<u64, ErrorObjectOwned> {
    u64::try_from(value)
        .map_err(|_| errors::invalid_params(format!("block override {name} is too large")))
}
