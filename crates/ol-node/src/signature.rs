//! Signatures of blocks: how a follower knows that a block is the sequencer's.
//!
//! A sequencer signs the hash of every block it makes. The signature is no part
//! of the block: it lies beside it and travels with it. Normative text:
//! `specs/blocks.md`.

use std::io::Read;
use std::path::{Path, PathBuf};

use alloy_consensus::crypto::secp256k1::recover_signer;
use alloy_genesis::Genesis;
use alloy_primitives::{Address, B256, Signature, keccak256};
use alloy_signer::SignerSync;
use alloy_signer_local::PrivateKeySigner;

/// What the signed bytes begin with, so that the signature of a block is none
/// of anything else.
const DOMAIN: &[u8] = b"openledger block signature 1\n";

/// Largest key file that is read: 64 hexadecimal digits, `0x`, and white space.
const KEY_FILE_MAX_SIZE_BYTES: u64 = 128;

/// Why there is no key to sign blocks with.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum KeyError {
    /// The file cannot be read.
    #[error("the block key {} cannot be read", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// Others than its owner may read or change the file.
    #[error(
        "the block key {} is open to others (mode {mode:03o}): only its owner may read it, as after `chmod 600`",
        path.display()
    )]
    Permissions {
        /// The file.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// The file holds no private key.
    #[error("{} holds no private key: 64 hexadecimal digits are needed", path.display())]
    Malformed {
        /// The file.
        path: PathBuf,
    },
}

/// Signs the blocks of a chain.
#[derive(Debug, Clone)]
pub struct BlockSigner(PrivateKeySigner);

impl BlockSigner {
    /// The key in a file: 64 hexadecimal digits, with or without `0x`.
    ///
    /// # Errors
    /// [`KeyError`] with the reason; never with the key.
    pub fn from_file(path: &Path) -> Result<Self, KeyError> {
        let unreadable = |source| KeyError::Unreadable {
            path: path.to_owned(),
            source,
        };
        let file = std::fs::File::open(path).map_err(unreadable)?;
        check_permissions(path, &file.metadata().map_err(unreadable)?)?;
        let mut text = String::new();
        file.take(KEY_FILE_MAX_SIZE_BYTES + 1)
            .read_to_string(&mut text)
            .map_err(unreadable)?;
        let malformed = || KeyError::Malformed {
            path: path.to_owned(),
        };
        if text.len() as u64 > KEY_FILE_MAX_SIZE_BYTES {
            return Err(malformed());
        }
        text.trim().parse().map(Self).map_err(|_| malformed())
    }

    /// The well-known development key: the second account of the public
    /// development mnemonic. Anybody can sign with it.
    ///
    /// # Panics
    /// Never: the key is a constant.
    #[must_use]
    pub fn dev() -> Self {
        let key = ol_types::DEV_MNEMONIC_KEYS[1];
        Self(key.parse().expect("the development key is a key"))
    }

    /// Whether this is [`BlockSigner::dev`].
    #[must_use]
    pub fn is_dev(&self) -> bool {
        self.address() == Self::dev().address()
    }

    /// The address that the signatures prove.
    #[must_use]
    pub fn address(&self) -> Address {
        self.0.address()
    }

    /// Signs a block of a chain.
    ///
    /// # Panics
    /// Never: a key in memory always signs.
    #[must_use]
    pub fn sign(&self, chain_id: u64, block_hash: B256) -> Signature {
        self.0
            .sign_hash_sync(&signed_hash(chain_id, block_hash))
            .expect("a key in memory signs every hash")
    }
}

/// Who signed a block of a chain; `None` if the signature is nobody's, or has
/// the upper of the two values of `s` (EIP-2).
#[must_use]
pub fn block_signed_by(chain_id: u64, block_hash: B256, signature: &Signature) -> Option<Address> {
    recover_signer(signature, signed_hash(chain_id, block_hash)).ok()
}

/// Who signs the blocks of a chain, if its genesis says so: the field
/// `openledger.sequencer` of its configuration.
#[must_use]
pub fn sequencer_of(genesis: &Genesis) -> Option<Address> {
    let ours = genesis.config.extra_fields.get("openledger")?;
    ours.get("sequencer")?.as_str()?.parse().ok()
}

/// What is signed: the domain, the chain's id and the block's hash.
fn signed_hash(chain_id: u64, block_hash: B256) -> B256 {
    let mut bytes = Vec::with_capacity(DOMAIN.len() + 8 + 32);
    bytes.extend_from_slice(DOMAIN);
    bytes.extend_from_slice(&chain_id.to_be_bytes());
    bytes.extend_from_slice(block_hash.as_slice());
    keccak256(bytes)
}

#[cfg(unix)]
fn check_permissions(path: &Path, metadata: &std::fs::Metadata) -> Result<(), KeyError> {
    use std::os::unix::fs::MetadataExt;
    let mode = metadata.mode() & 0o777;
    if mode & 0o077 != 0 {
        return Err(KeyError::Permissions {
            path: path.to_owned(),
            mode,
        });
    }
    Ok(())
}

#[cfg(not(unix))]
#[expect(
    clippy::unnecessary_wraps,
    reason = "there are no permission bits to check"
)]
fn check_permissions(_: &Path, _: &std::fs::Metadata) -> Result<(), KeyError> {
    Ok(())
}

#[cfg(test)]
mod tests;
