//! Difficulty of proof of work, as it follows from the parent.

use alloy_consensus::{EMPTY_OMMER_ROOT_HASH, Header};
use alloy_hardforks::EthereumHardfork;
use alloy_primitives::U256;

/// Least difficulty of a block.
const DIFFICULTY_MIN: u64 = 131_072;

/// The part of the parent's difficulty by which one step changes it.
const STEP_DIVISOR: u64 = 2_048;

/// Most steps down for one block.
const STEPS_DOWN_MAX: u64 = 99;

/// Blocks in which the difficulty bomb doubles.
const BOMB_PERIOD: u64 = 100_000;

/// The difficulty of the block after `parent`.
///
/// # Source
/// Yellow Paper, section 4.3.4; EIP-2 (Homestead), EIP-100 (Byzantium), and the
/// delays of the bomb by EIP-649, 1234, 2384, 3554, 4345 and 5133.
pub(crate) fn next(parent: &Header, timestamp: u64, fork: EthereumHardfork) -> U256 {
    let elapsed_s = timestamp.saturating_sub(parent.timestamp);
    let step = parent.difficulty / U256::from(STEP_DIVISOR);
    let steps_up = if fork >= EthereumHardfork::Byzantium {
        let reward = if parent.ommers_hash == EMPTY_OMMER_ROOT_HASH {
            1
        } else {
            2
        };
        Steps::new(reward, elapsed_s / 9)
    } else if fork >= EthereumHardfork::Homestead {
        Steps::new(1, elapsed_s / 10)
    } else if elapsed_s < 13 {
        Steps::Up(1)
    } else {
        Steps::Down(1)
    };
    let moved = match steps_up {
        Steps::Up(steps) => parent.difficulty.saturating_add(step * U256::from(steps)),
        Steps::Down(steps) => parent.difficulty.saturating_sub(step * U256::from(steps)),
    };
    let floored = moved.max(U256::from(DIFFICULTY_MIN));
    let number = parent
        .number
        .saturating_add(1)
        .saturating_sub(bomb_delay(fork));
    match (number / BOMB_PERIOD).checked_sub(2) {
        Some(doublings) => floored.saturating_add(bomb(doublings)),
        None => floored,
    }
}

enum Steps {
    Up(u64),
    Down(u64),
}

impl Steps {
    fn new(up: u64, down: u64) -> Self {
        match up.checked_sub(down) {
            Some(up) => Self::Up(up),
            None => Self::Down((down - up).min(STEPS_DOWN_MAX)),
        }
    }
}

fn bomb(doublings: u64) -> U256 {
    usize::try_from(doublings)
        .ok()
        .filter(|doublings| *doublings < U256::BITS)
        .map_or(U256::MAX, |doublings| U256::from(1) << doublings)
}

const fn bomb_delay(fork: EthereumHardfork) -> u64 {
    match fork {
        EthereumHardfork::Frontier
        | EthereumHardfork::Homestead
        | EthereumHardfork::Dao
        | EthereumHardfork::Tangerine
        | EthereumHardfork::SpuriousDragon => 0,
        EthereumHardfork::Byzantium => 3_000_000,
        EthereumHardfork::Constantinople
        | EthereumHardfork::Petersburg
        | EthereumHardfork::Istanbul => 5_000_000,
        EthereumHardfork::MuirGlacier | EthereumHardfork::Berlin => 9_000_000,
        EthereumHardfork::London => 9_700_000,
        EthereumHardfork::ArrowGlacier => 10_700_000,
        _ => 11_400_000,
    }
}
