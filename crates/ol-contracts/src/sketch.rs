//! Chunks of a sketch index on chain: their form is in `specs/poa.md`.

use alloy_primitives::{Address, B256, keccak256};

use crate::address::SKETCH_STORE;

/// Most bytes of a chunk: 128 entries of 186 bytes.
pub const CHUNK_SIZE_BYTES_MAX: usize = 128 * 186;

/// What runs when the account of a chunk is created: it returns the rest of
/// itself. `PUSH2 size, DUP1, PUSH1 10, RETURNDATASIZE, CODECOPY,
/// RETURNDATASIZE, RETURN`, then the zero byte that begins the code.
const PREFIX: [u8; 11] = [0x61, 0, 0, 0x80, 0x60, 0x0a, 0x3d, 0x39, 0x3d, 0xf3, 0x00];

/// Where `SketchStore.write(chunk)` puts a chunk, known before it is written.
///
/// `None` if the chunk is longer than [`CHUNK_SIZE_BYTES_MAX`]; other faults of
/// form are for the contract to refuse.
///
/// # Source
/// EIP-1014 (CREATE2), with salt 0.
#[must_use]
pub fn chunk_address(chunk: &[u8]) -> Option<Address> {
    if chunk.len() > CHUNK_SIZE_BYTES_MAX {
        return None;
    }
    let code_size = u16::try_from(chunk.len() + 1).ok()?;
    let mut init_code = Vec::with_capacity(PREFIX.len() + chunk.len());
    init_code.extend_from_slice(&PREFIX);
    init_code[1..3].copy_from_slice(&code_size.to_be_bytes());
    init_code.extend_from_slice(chunk);
    Some(SKETCH_STORE.create2(B256::ZERO, keccak256(init_code)))
}

#[cfg(test)]
mod tests;
