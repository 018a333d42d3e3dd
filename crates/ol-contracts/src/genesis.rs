//! The state a chain begins with; see `specs/predeploys.md`.

use std::collections::BTreeMap;

use alloy_eips::{eip2935, eip4788};
use alloy_genesis::{ChainConfig, Genesis, GenesisAccount};
use alloy_primitives::{Address, B256, Bytes, U256};
use ol_types::{DEV_CHAIN_ID, WEI_PER_OPEN};
use serde_json::{Value, json};

use crate::address::{
    ATTRIBUTION_COURT, COMMUNITY_TREASURY, DATANET_REGISTRY, DEV_ACCOUNTS, ECOSYSTEM_TREASURY,
    INFERENCE_SETTLEMENT, INVESTORS_TREASURY, LIQUIDITY_TREASURY, MODEL_REGISTRY, OPEN,
    OPEN_TRANSFER, POA_SCORE, POA_SHARES, POA_VERIFY, SKETCH_STORE, STAKERS_POOL, TEAM_TREASURY,
};
use crate::bindings::{
    AttributionCourt, DatanetRegistry, InferenceSettlement, ModelRegistry, Open, SketchStore,
};

/// Storage slots of `InferenceSettlement` that genesis writes.
pub mod slot {
    /// Who gets the platform's part and appoints the other roles.
    pub const PLATFORM: u64 = 0;
    /// Who may settle.
    pub const OPERATOR: u64 = 1;
    /// Who gets the stakers' part.
    pub const STAKERS_POOL: u64 = 2;
}

/// Gas limit of a block: eleven chunks of a sketch index, at 5.1 million gas each.
const GAS_LIMIT: u64 = 60_000_000;

/// Base fee of the first block, in wei for one unit of gas.
const BASE_FEE_WEI: u128 = 1_000_000_000;

/// Who owns what at genesis, in whole OPEN.
const ALLOCATION_OPEN: [(Address, u64); 10] = [
    (COMMUNITY_TREASURY, 517_100_000),
    (ECOSYSTEM_TREASURY, 100_000_000),
    (INVESTORS_TREASURY, 182_900_000),
    (TEAM_TREASURY, 150_000_000),
    (LIQUIDITY_TREASURY, 45_000_000),
    (DEV_ACCOUNTS[0], 1_000_000),
    (DEV_ACCOUNTS[1], 1_000_000),
    (DEV_ACCOUNTS[2], 1_000_000),
    (DEV_ACCOUNTS[3], 1_000_000),
    (DEV_ACCOUNTS[4], 1_000_000),
];

/// Genesis of the development chain: all OPEN there will ever be, the
/// predeploys, and roles held by the development accounts, whose keys are
/// public.
///
/// The fee vaults are absent: they come into being with the first fee.
///
/// # Example
/// ```
/// let genesis = ol_contracts::genesis::dev();
/// assert_eq!(genesis.config.chain_id, ol_types::DEV_CHAIN_ID);
/// ```
#[must_use]
pub fn dev() -> Genesis {
    let mut alloc = BTreeMap::new();
    for (holder, open) in ALLOCATION_OPEN {
        let balance = U256::from(open) * U256::from(WEI_PER_OPEN);
        alloc.insert(
            holder,
            GenesisAccount {
                balance,
                ..Default::default()
            },
        );
    }
    for (at, code) in predeploys() {
        alloc.insert(at, contract(code));
    }
    let roles = [
        (slot::PLATFORM, DEV_ACCOUNTS[0]),
        (slot::OPERATOR, DEV_ACCOUNTS[1]),
        (slot::STAKERS_POOL, STAKERS_POOL),
    ];
    let storage = roles
        .into_iter()
        .map(|(slot, account)| (U256::from(slot).into(), account.into_word()))
        .collect::<BTreeMap<B256, B256>>();
    alloc.entry(INFERENCE_SETTLEMENT).or_default().storage = Some(storage);

    Genesis {
        config: config(DEV_CHAIN_ID),
        gas_limit: GAS_LIMIT,
        base_fee_per_gas: Some(BASE_FEE_WEI),
        alloc,
        ..Default::default()
    }
}

/// Accounts with code: our contracts, our precompiles, and the two system
/// contracts that a Prague block calls before its transactions.
fn predeploys() -> [(Address, Bytes); 12] {
    // One byte (STOP), so that high-level calls find code and EIP-161 does not
    // take the account for empty.
    let precompile = Bytes::from_static(&[0x00]);
    [
        (OPEN, Open::DEPLOYED_BYTECODE.clone()),
        (DATANET_REGISTRY, DatanetRegistry::DEPLOYED_BYTECODE.clone()),
        (MODEL_REGISTRY, ModelRegistry::DEPLOYED_BYTECODE.clone()),
        (SKETCH_STORE, SketchStore::DEPLOYED_BYTECODE.clone()),
        (
            INFERENCE_SETTLEMENT,
            InferenceSettlement::DEPLOYED_BYTECODE.clone(),
        ),
        (
            ATTRIBUTION_COURT,
            AttributionCourt::DEPLOYED_BYTECODE.clone(),
        ),
        (POA_SCORE, precompile.clone()),
        (POA_SHARES, precompile.clone()),
        (POA_VERIFY, precompile.clone()),
        (OPEN_TRANSFER, precompile),
        (
            eip4788::BEACON_ROOTS_ADDRESS,
            eip4788::BEACON_ROOTS_CODE.clone(),
        ),
        (
            eip2935::HISTORY_STORAGE_ADDRESS,
            eip2935::HISTORY_STORAGE_CODE.clone(),
        ),
    ]
}

fn contract(code: Bytes) -> GenesisAccount {
    GenesisAccount {
        nonce: Some(1),
        code: Some(code),
        ..Default::default()
    }
}

/// Every fork that `ol-evm` executes, from the first block on.
fn config(chain_id: u64) -> ChainConfig {
    let genesis = Some(0);
    let mut config = ChainConfig {
        chain_id,
        homestead_block: genesis,
        eip150_block: genesis,
        eip155_block: genesis,
        eip158_block: genesis,
        byzantium_block: genesis,
        constantinople_block: genesis,
        petersburg_block: genesis,
        istanbul_block: genesis,
        muir_glacier_block: genesis,
        berlin_block: genesis,
        london_block: genesis,
        arrow_glacier_block: genesis,
        gray_glacier_block: genesis,
        merge_netsplit_block: genesis,
        shanghai_time: genesis,
        cancun_time: genesis,
        prague_time: genesis,
        terminal_total_difficulty: Some(U256::ZERO),
        terminal_total_difficulty_passed: true,
        ..Default::default()
    };
    // Names and shape of the OP Stack's genesis files.
    let op_forks = [
        "bedrockBlock",
        "regolithTime",
        "canyonTime",
        "deltaTime",
        "ecotoneTime",
        "fjordTime",
        "graniteTime",
        "holoceneTime",
        "isthmusTime",
        "jovianTime",
    ];
    for fork in op_forks {
        config.extra_fields.insert(fork.to_owned(), Value::from(0));
    }
    // Ethereum's fee market: the base fee moves by at most an eighth a block.
    let fee_market = json!({
        "eip1559Elasticity": 2,
        "eip1559Denominator": 8,
        "eip1559DenominatorCanyon": 8,
    });
    config
        .extra_fields
        .insert("optimism".to_owned(), fee_market);
    config
}

#[cfg(test)]
mod tests;
