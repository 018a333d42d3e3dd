//! Randomness, passed in.

use ol_types::keccak256;
use rand_chacha::ChaCha12Rng;
use rand_core::{OsRng, SeedableRng, TryRngCore as _};

/// The generator behind everything that must be the same on every machine:
/// ChaCha with twelve rounds, whose stream is fixed by its definition.
///
/// # Source
/// D. J. Bernstein, "ChaCha, a variant of Salsa20", 2008.
pub type SeededRng = ChaCha12Rng;

/// The generator for one purpose of one run.
///
/// The key is `keccak256(purpose || 0x00 || seed, big-endian)`, so two purposes
/// never share a stream, and adding a purpose changes no other.
///
/// # Example
/// ```
/// use rand_core::RngCore as _;
/// let mut a = ol_runtime::seeded_rng(7, "shuffle");
/// let mut b = ol_runtime::seeded_rng(7, "shuffle");
/// assert_eq!(a.next_u64(), b.next_u64());
/// ```
#[must_use]
pub fn seeded_rng(seed: u64, purpose: &str) -> SeededRng {
    let mut bytes = purpose.as_bytes().to_vec();
    bytes.push(0);
    bytes.extend_from_slice(&seed.to_be_bytes());
    SeededRng::from_seed(keccak256(bytes).0)
}

/// Unpredictable bytes from the operating system, for keys and request ids.
///
/// # Errors
/// If the operating system has no source of randomness.
pub fn os_bytes<const N: usize>() -> std::io::Result<[u8; N]> {
    let mut bytes = [0; N];
    OsRng
        .try_fill_bytes(&mut bytes)
        .map_err(std::io::Error::other)?;
    Ok(bytes)
}

#[cfg(test)]
mod tests;
