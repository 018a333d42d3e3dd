//! Well-known development keys. Public by design: never fund them on a chain
//! that matters.

use crate::{B256, keccak256};

/// The private keys of the test mnemonic that anvil and hardhat print at start
/// (`test test test … junk`), accounts 0 to 4. PUBLIC DEVELOPMENT KEYS.
pub const DEV_MNEMONIC_KEYS: [&str; 5] = [
    "ac0974bec39a17e36ba4a6b4d238ff944bacb478cbed5efcae784d7bf4f2ff80",
    "59c6995e998f97a5a0044966f0945389dc9e86dae88c7a8412f4603b6b78690d",
    "5de4111afa1a4b94908f83103eb1f1706367c2e68ca870fc3fb9a804cdab365a",
    "7c852118294e51e653712a81e05800f419141751be58f605c371e15141b007a6",
    "47e179ec197488593b187f80a00eb0da91f1b9d0b13f8733639f19c30a34926a",
];

/// The development private key of a contributor known only by name, so that
/// demo contributors can claim. A PUBLIC KEY in the sense that anyone can
/// derive it: real contributors register an address of their own.
#[must_use]
pub fn contributor_dev_key(name: &str) -> B256 {
    keccak256(format!("openledger dev contributor {name}").as_bytes())
}
