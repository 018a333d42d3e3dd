//! `POA_SCORE`: the weights of an answer, recomputed from an index on chain.

use alloy_evm::precompiles::PrecompileInput;
use alloy_primitives::Bytes;
use alloy_sol_types::SolCall;
use ol_poa::{CHUNK_ENTRIES, ENTRIES_MAX, ENTRY_SIZE_BYTES, K, QuerySketch, weights};
use revm::precompile::PrecompileError;
use revm::state::bytecode::Bytecode;

use super::abi::IPoaScore::{IPoaScoreCalls, scoreCall, scoreReturn};
use super::{
    Failure, Meter, SCORE_BASE_GAS, SCORE_CHUNK_GAS, SCORE_CONTRIBUTOR_GAS, SCORE_ENTRY_GAS,
    check_plain_call, count_at, decode,
};

/// Three heads, then the length of `chunks`.
const CHUNKS_LENGTH_AT: usize = 3 * 32;

/// Selector, heads, both lengths, and the codes of the query.
const FIXED_SIZE_BYTES: usize = 4 + CHUNKS_LENGTH_AT + 32 + 32 + K;

pub(super) fn run(input: &mut PrecompileInput<'_>, meter: &mut Meter) -> Result<Bytes, Failure> {
    meter.charge(SCORE_BASE_GAS)?;
    check_plain_call(input)?;
    let n_chunks = count_at(input.data, CHUNKS_LENGTH_AT)
        .filter(|&n| n <= ENTRIES_MAX / CHUNK_ENTRIES)
        .filter(|&n| input.data.len() == FIXED_SIZE_BYTES + 32 * n)
        .ok_or_else(|| Failure::refused("poa score: malformed call"))?;
    meter.charge_each(SCORE_CHUNK_GAS, n_chunks)?;
    let IPoaScoreCalls::score(call) = decode(input.data)?;

    let codes = load_chunks(input, &call)?;
    let chunks = codes
        .iter()
        .enumerate()
        .map(|(position, code)| entries_of(position, code))
        .collect::<Result<Vec<&[u8]>, Failure>>()?;
    // Rounded up, so that bytes that are no whole entry are paid for as well.
    let n_entries = chunks
        .iter()
        .map(|chunk| chunk.len().div_ceil(ENTRY_SIZE_BYTES))
        .sum();
    meter.charge_each(SCORE_ENTRY_GAS, n_entries)?;

    let query = QuerySketch::from_bytes(&call.query).map_err(|error| refusal(&error))?;
    let weights = weights(&chunks, call.nullThreshold, &query).map_err(|error| refusal(&error))?;
    meter.charge_each(SCORE_CONTRIBUTOR_GAS, weights.len())?;

    let (contributors, weights) = weights.into_iter().unzip();
    let output = scoreReturn {
        contributors,
        weights,
    };
    Ok(scoreCall::abi_encode_returns(&output).into())
}

fn load_chunks(
    input: &mut PrecompileInput<'_>,
    call: &scoreCall,
) -> Result<Vec<Bytecode>, Failure> {
    let mut codes = Vec::with_capacity(call.chunks.len());
    for &chunk in &call.chunks {
        let account = input
            .internals
            .load_account_code(chunk)
            .map_err(|error| Failure::Fatal(PrecompileError::Fatal(error.to_string())))?;
        codes.push(account.code().cloned().unwrap_or_default());
    }
    Ok(codes)
}

/// The entries in the code of a chunk account: all but the leading STOP.
fn entries_of(position: usize, code: &Bytecode) -> Result<&[u8], Failure> {
    match code.original_byte_slice() {
        [0, entries @ ..] => Ok(entries),
        _ => Err(Failure::Refused(format!(
            "poa score: chunk {position} is not an index chunk"
        ))),
    }
}

fn refusal(error: &ol_poa::IndexError) -> Failure {
    Failure::Refused(format!("poa score: {error}"))
}
