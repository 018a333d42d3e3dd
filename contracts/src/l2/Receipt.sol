// SPDX-License-Identifier: Apache-2.0 OR MIT
pragma solidity 0.8.37;

/// @notice What was answered, by what, for whom and at which price; every part by hash.
/// @dev Sixteen static words: `keccak256(abi.encode(receipt))` is the receipt's id. See specs/receipt.md.
struct Receipt {
    uint64 chainId;
    address settlement;
    address payer;
    bytes32 requestId;
    bytes32 modelId;
    bytes32 baseHash;
    bytes32 adapterHash;
    bytes32 manifestHash;
    bytes32 sketchRoot;
    bytes32 promptHash;
    bytes32 responseHash;
    bytes32 queryHash;
    uint32 tokensIn;
    uint32 tokensOut;
    uint128 feeWei;
    uint64 answeredAt;
}
