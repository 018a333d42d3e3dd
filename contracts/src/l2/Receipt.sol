// SPDX-License-Identifier: Apache-2.0 OR MIT
pragma solidity 0.8.37;

/// @notice What was answered, by what, for whom and at which price; every part by hash.
/// @dev Seventeen static words: `keccak256(abi.encode(receipt))` is the receipt's id. See specs/receipt.md.
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
    bytes32 evidenceHash;
    uint32 tokensIn;
    uint32 tokensOut;
    uint128 feeWei;
    uint64 answeredAt;
}

/// @notice What the pots for spans and context are shared by, beside the sketches. See specs/receipt.md.
/// @dev A list is empty, or holds its total (8 bytes), then contributors (20) with their weights (8), strictly ascending by
/// contributor. Of the pot is paid what the weights are of the total; the rest is for training.
struct Evidence {
    /// Whose words stand in the answer; empty if nobody's do, or the model pays nothing for that.
    bytes spans;
    /// Whose passages the model had before it; empty in the same way.
    bytes context;
    /// Id of the object that shows how the weights came about; zero if both lists are of no use.
    bytes32 object;
}

/// @notice The word by which a receipt commits to its evidence.
function hashOf(Evidence memory evidence) pure returns (bytes32) {
    // Lengths come first, so no byte can be read as part of the other list.
    return keccak256(
        abi.encodePacked(
            uint32(evidence.spans.length),
            uint32(evidence.context.length),
            evidence.spans,
            evidence.context,
            evidence.object
        )
    );
}
