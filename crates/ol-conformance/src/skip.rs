//! What is not run, and why.

use std::path::Path;

/// Files of a network that are not run: part of the path, the network or
/// nothing for all, and the reason.
const SKIPPED: &[(&str, Option<&str>, &str)] = &[
    ("stSStoreTest/InitCollision", None, COLLISION),
    ("stRevertTest/RevertInCreateInInit", None, COLLISION),
    ("stCreate2/RevertInCreateInInitCreate2", None, COLLISION),
    ("stCreate2/create2collisionStorage", None, COLLISION),
    (
        "stExtCodeHash/dynamicAccountOverwriteEmpty",
        None,
        COLLISION,
    ),
    (
        "BlockchainTests/GeneralStateTests/Pyspecs/paris/security/tx_selfdestruct_balance_bug",
        Some("Constantinople"),
        EIP_1283,
    ),
    (
        "stCreate2/CREATE2_HighNonce",
        Some("Constantinople"),
        EIP_1283,
    ),
    (
        "stCreateTest/CREATE_HighNonce",
        Some("Constantinople"),
        EIP_1283,
    ),
    (
        "stPreCompiledContracts2/CallEcrecover_Overflow",
        Some("Constantinople"),
        EIP_1283,
    ),
    (
        "stPreCompiledContracts2/ecrecoverShortBuff",
        Some("Constantinople"),
        EIP_1283,
    ),
    ("stSStoreTest/sstoreGas", Some("Constantinople"), EIP_1283),
    ("bcStateTests/refundReset", Some("Constantinople"), EIP_1283),
    ("ttGasPrice/TransactionWithHighGasPrice", None, FEE),
    ("ttVValue/V_equals38", None, FEE),
    ("ttEIP1559/GasLimitPriceProductOverflowtMinusOne", None, FEE),
];

/// Since EIP-161 no account comes to have storage without nonce and code, so
/// revm does not look for storage when a contract is made at an address.
const COLLISION: &str = "EIP-7610: a contract at an address with storage but no nonce and no code, which cannot come \
     to be; revm 38 does not look for it";

/// The fork was never active with it on a public network.
const EIP_1283: &str = "EIP-1283, which revm does not have";

/// 2^128 wei are more than there will ever be.
const FEE: &str = "a fee of more than 128 bits, which nobody can pay, does not decode";

/// Why the cases of a file on a network are not run; `None` if they are.
#[must_use]
pub fn reason(path: &Path, network: &str) -> Option<&'static str> {
    let path = path.to_string_lossy();
    SKIPPED
        .iter()
        .find(|(part, on, _)| path.contains(part) && on.is_none_or(|on| on == network))
        .map(|(_, _, reason)| *reason)
}
