//! The forks that a test names, as a genesis configuration.

use alloy_genesis::ChainConfig;
use alloy_primitives::U256;
use ol_evm::{EthereumHardfork, Rules};

/// The chain id of all tests.
pub const CHAIN_ID: u64 = 1;

/// Where time-based transitions happen.
const TRANSITION_TIME_S: u64 = 15_000;

/// Where block-based transitions happen.
const TRANSITION_BLOCK: u64 = 5;

/// The configuration of the network that a test names; `None` for one that we
/// do not know.
#[must_use]
pub fn config(name: &str) -> Option<ChainConfig> {
    if let Some(fork) = fork(name) {
        return Some(up_to(fork));
    }
    let at_block = |before, change: fn(&mut ChainConfig)| {
        let mut config = up_to(before);
        change(&mut config);
        Some(config)
    };
    match name {
        "FrontierToHomesteadAt5" => at_block(EthereumHardfork::Frontier, |c| {
            c.homestead_block = Some(TRANSITION_BLOCK);
        }),
        "HomesteadToDaoAt5" => at_block(EthereumHardfork::Homestead, |c| {
            c.dao_fork_block = Some(TRANSITION_BLOCK);
            c.dao_fork_support = true;
        }),
        "HomesteadToEIP150At5" => at_block(EthereumHardfork::Homestead, |c| {
            c.eip150_block = Some(TRANSITION_BLOCK);
        }),
        "EIP158ToByzantiumAt5" => at_block(EthereumHardfork::SpuriousDragon, |c| {
            c.byzantium_block = Some(TRANSITION_BLOCK);
        }),
        "ByzantiumToConstantinopleFixAt5" => at_block(EthereumHardfork::Byzantium, |c| {
            c.constantinople_block = Some(TRANSITION_BLOCK);
            c.petersburg_block = Some(TRANSITION_BLOCK);
        }),
        "BerlinToLondonAt5" => at_block(EthereumHardfork::Berlin, |c| {
            c.london_block = Some(TRANSITION_BLOCK);
        }),
        "ArrowGlacierToParisAtDiffC0000" => at_block(EthereumHardfork::ArrowGlacier, |c| {
            c.terminal_total_difficulty = Some(U256::from(0xC_0000));
        }),
        "ParisToShanghaiAtTime15k" => at_block(EthereumHardfork::Paris, |c| {
            c.shanghai_time = Some(TRANSITION_TIME_S);
        }),
        "ShanghaiToCancunAtTime15k" => at_block(EthereumHardfork::Shanghai, |c| {
            c.cancun_time = Some(TRANSITION_TIME_S);
        }),
        "CancunToPragueAtTime15k" => at_block(EthereumHardfork::Cancun, |c| {
            c.prague_time = Some(TRANSITION_TIME_S);
        }),
        _ => None,
    }
}

/// The rules of the network that a test names.
#[must_use]
pub fn rules(name: &str) -> Option<Rules> {
    Rules::of_genesis(&config(name)?).ok()
}

/// The fork that a test names.
#[must_use]
pub fn fork(name: &str) -> Option<EthereumHardfork> {
    Some(match name {
        "Frontier" => EthereumHardfork::Frontier,
        "Homestead" => EthereumHardfork::Homestead,
        "EIP150" => EthereumHardfork::Tangerine,
        "EIP158" => EthereumHardfork::SpuriousDragon,
        "Byzantium" => EthereumHardfork::Byzantium,
        "Constantinople" => EthereumHardfork::Constantinople,
        "ConstantinopleFix" => EthereumHardfork::Petersburg,
        "Istanbul" => EthereumHardfork::Istanbul,
        "EIP2384" => EthereumHardfork::MuirGlacier,
        "Berlin" => EthereumHardfork::Berlin,
        "London" => EthereumHardfork::London,
        "ArrowGlacier" => EthereumHardfork::ArrowGlacier,
        "GrayGlacier" => EthereumHardfork::GrayGlacier,
        "Merge" | "Paris" => EthereumHardfork::Paris,
        "Shanghai" => EthereumHardfork::Shanghai,
        "Cancun" => EthereumHardfork::Cancun,
        "Prague" => EthereumHardfork::Prague,
        _ => return None,
    })
}

/// A chain on which a fork and all before it are active from the beginning.
fn up_to(fork: EthereumHardfork) -> ChainConfig {
    let since = |first: EthereumHardfork| (fork >= first).then_some(0);
    let is_merged = fork >= EthereumHardfork::Paris;
    // With its own block set to never, Petersburg does not come with it.
    let petersburg = match fork {
        EthereumHardfork::Constantinople => Some(u64::MAX),
        _ => since(EthereumHardfork::Petersburg),
    };
    ChainConfig {
        chain_id: CHAIN_ID,
        // Frontier names no fork: Homestead is set, and never comes.
        homestead_block: since(EthereumHardfork::Homestead).or(Some(u64::MAX)),
        eip150_block: since(EthereumHardfork::Tangerine),
        eip155_block: since(EthereumHardfork::SpuriousDragon),
        eip158_block: since(EthereumHardfork::SpuriousDragon),
        byzantium_block: since(EthereumHardfork::Byzantium),
        constantinople_block: since(EthereumHardfork::Constantinople),
        petersburg_block: petersburg,
        istanbul_block: since(EthereumHardfork::Istanbul),
        muir_glacier_block: since(EthereumHardfork::MuirGlacier),
        berlin_block: since(EthereumHardfork::Berlin),
        london_block: since(EthereumHardfork::London),
        arrow_glacier_block: since(EthereumHardfork::ArrowGlacier),
        gray_glacier_block: since(EthereumHardfork::GrayGlacier),
        terminal_total_difficulty: is_merged.then_some(U256::ZERO),
        shanghai_time: since(EthereumHardfork::Shanghai),
        cancun_time: since(EthereumHardfork::Cancun),
        prague_time: since(EthereumHardfork::Prague),
        ..ChainConfig::default()
    }
}
