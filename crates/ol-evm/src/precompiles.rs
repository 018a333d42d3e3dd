//! The precompiles of `specs/poa.md`.
//!
//! Each charges its gas before the work that the gas pays for, takes only
//! canonical ABI (what Solidity encodes), and refuses value, DELEGATECALL and
//! CALLCODE. A refusal reverts with `Error(string)` and costs what was charged
//! so far.

mod score;
mod shares;
mod transfer;
mod verify;

use alloy_evm::precompiles::{DynPrecompile, PrecompileInput, PrecompilesMap};
use alloy_primitives::{Address, Bytes, U256, address};
use alloy_sol_types::{Revert, SolError, SolInterface};
use revm::precompile::{
    PrecompileError, PrecompileHalt, PrecompileId, PrecompileOutput, PrecompileResult,
};

pub use abi::{IOpenTransfer, IPoaScore, IPoaShares, IPoaVerify};

/// Recomputes the weights of an answer from a sketch index on chain.
pub const POA_SCORE: Address = address!("0x0000000000000000000000000000000000000A01");

/// Divides a pot by weights, exactly.
pub const POA_SHARES: Address = address!("0x0000000000000000000000000000000000000A02");

/// Moves native balance for the façade.
pub const OPEN_TRANSFER: Address = address!("0x0000000000000000000000000000000000000A03");

/// Judges one step of a claim.
pub const POA_VERIFY: Address = address!("0x0000000000000000000000000000000000000A04");

/// What `POA_SCORE` costs at least.
pub const SCORE_BASE_GAS: u64 = 2_000;
/// What `POA_SCORE` costs for each chunk: one cold account.
pub const SCORE_CHUNK_GAS: u64 = 2_600;
/// What `POA_SCORE` costs for each entry of the chunks.
pub const SCORE_ENTRY_GAS: u64 = 12;
/// What `POA_SCORE` costs for each contributor it returns.
pub const SCORE_CONTRIBUTOR_GAS: u64 = 30;
/// What `POA_SHARES` costs at least.
pub const SHARES_BASE_GAS: u64 = 400;
/// What `POA_SHARES` costs for each weight.
pub const SHARES_WEIGHT_GAS: u64 = 60;
/// What `POA_VERIFY` costs at least.
pub const VERIFY_BASE_GAS: u64 = 1_000;
/// What `POA_VERIFY` costs for each byte of the call.
pub const VERIFY_BYTE_GAS: u64 = 2;
/// Longest call that `POA_VERIFY` takes: more than the longest step, by far.
pub const VERIFY_SIZE_BYTES_MAX: usize = 4_096;
/// What `OPEN_TRANSFER` costs.
pub const TRANSFER_GAS: u64 = 9_000;

mod abi {
    use alloy_sol_types::sol;

    sol! {
        interface IPoaScore {
            function score(address[] chunks, uint64 nullThreshold, bytes query) external view
                returns (address[] contributors, uint64[] weights);
        }

        interface IPoaShares {
            function shares(uint256 pot, uint64[] weights) external view
                returns (uint256[] amounts);
        }

        struct Terms {
            bytes32 indexRoot;
            uint32 nEntries;
            bytes32 rangesRoot;
            uint32 nContributors;
            bytes32 queryHash;
            uint64 nullThreshold;
            uint128 pot;
            bytes32[3] roots;
            uint64 cutoffRemainder;
            uint32 cutoffPosition;
        }

        interface IPoaVerify {
            function isLie(Terms terms, bytes step) external view returns (bool);
            function open(Terms terms, uint8 tree, uint32 level, uint32 position, bytes path)
                external view returns (bytes32 node);
            function reveal(uint8 tree, uint32 level, bytes row) external view
                returns (bytes32 node);
        }

        interface IOpenTransfer {
            function transfer(address from, address to, uint256 amount) external;
        }
    }
}

/// Adds our precompiles to those of the fork.
pub(crate) fn install(precompiles: &mut PrecompilesMap) {
    let ours = [
        (POA_SCORE, "poa-score", score::run as Body),
        (POA_SHARES, "poa-shares", shares::run as Body),
        (POA_VERIFY, "poa-verify", verify::run as Body),
        (OPEN_TRANSFER, "open-transfer", transfer::run as Body),
    ];
    for (address, name, body) in ours {
        // Stateful: the answer depends on more than the input, so no layer above may cache it.
        let precompile =
            DynPrecompile::new_stateful(PrecompileId::custom(name), move |input| run(input, body));
        precompiles.apply_precompile(&address, |_| Some(precompile));
    }
}

type Body = fn(&mut PrecompileInput<'_>, &mut Meter) -> Result<Bytes, Failure>;

/// Why a precompile returns nothing.
enum Failure {
    /// The gas does not pay for the work.
    OutOfGas,
    /// The call is refused, for this reason.
    Refused(String),
    /// The state below the EVM is broken: the block cannot be executed.
    Fatal(PrecompileError),
}

impl Failure {
    fn refused(reason: impl Into<String>) -> Self {
        Self::Refused(reason.into())
    }
}

/// Counts gas against the limit of the call.
struct Meter {
    limit: u64,
    used: u64,
}

impl Meter {
    fn charge(&mut self, gas: u64) -> Result<(), Failure> {
        match self.used.checked_add(gas) {
            Some(used) if used <= self.limit => {
                self.used = used;
                Ok(())
            }
            _ => Err(Failure::OutOfGas),
        }
    }

    fn charge_each(&mut self, gas: u64, count: usize) -> Result<(), Failure> {
        let count = u64::try_from(count).map_err(|_| Failure::OutOfGas)?;
        self.charge(gas.checked_mul(count).ok_or(Failure::OutOfGas)?)
    }
}

fn run(mut input: PrecompileInput<'_>, body: Body) -> PrecompileResult {
    let reservoir = input.reservoir;
    let mut meter = Meter {
        limit: input.gas,
        used: 0,
    };
    match body(&mut input, &mut meter) {
        Ok(output) => Ok(PrecompileOutput::new(meter.used, output, reservoir)),
        Err(Failure::OutOfGas) => Ok(PrecompileOutput::halt(PrecompileHalt::OutOfGas, reservoir)),
        Err(Failure::Refused(reason)) => {
            let reason = Revert::from(reason).abi_encode();
            Ok(PrecompileOutput::revert(
                meter.used,
                reason.into(),
                reservoir,
            ))
        }
        Err(Failure::Fatal(error)) => Err(error),
    }
}

/// Refuses what no precompile of ours takes.
fn check_plain_call(input: &PrecompileInput<'_>) -> Result<(), Failure> {
    if !input.is_direct_call() {
        return Err(Failure::refused("precompile: no DELEGATECALL or CALLCODE"));
    }
    if !input.value.is_zero() {
        return Err(Failure::refused("precompile: takes no value"));
    }
    Ok(())
}

/// Decodes a call whose length the caller has checked.
fn decode<I: SolInterface>(data: &[u8]) -> Result<I, Failure> {
    I::abi_decode_validate(data).map_err(|_| Failure::refused("precompile: malformed call"))
}

/// Reads the number in a word of the arguments; `None` if it is not there or
/// is too large to count anything.
fn count_at(data: &[u8], offset: usize) -> Option<usize> {
    let word = data.get(4..)?.get(offset..)?.get(..32)?;
    usize::try_from(U256::from_be_slice(word)).ok()
}

#[cfg(test)]
mod tests;
