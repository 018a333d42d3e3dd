// SPDX-License-Identifier: Apache-2.0 OR MIT
pragma solidity 0.8.37;

/// @title Scores of an answer against a committed sketch index (specs/poa.md)
interface IPoaScore {
    /// @notice Scores `query` against every entry of `chunks`, nets by contributor and subtracts the threshold.
    /// @param chunks accounts whose code holds the index, in order
    /// @param nullThreshold what a net score must exceed to count
    /// @param query the 256 signed codes of the query sketch
    /// @return contributors those with a positive weight, ascending
    /// @return weights their weights, in the same order
    function score(address[] calldata chunks, uint64 nullThreshold, bytes calldata query)
        external
        view
        returns (address[] memory contributors, uint64[] memory weights);
}

/// @title Exact division of an amount by weights (specs/poa.md, "Shares")
interface IPoaShares {
    /// @notice Divides `pot` in proportion to `weights` by largest remainder; the amounts add up to `pot`.
    /// @param pot what is divided, below 2^128
    /// @param weights at most 16,384, each below 2^63
    /// @return amounts one for each weight; all zero if no weight is positive
    function shares(uint256 pot, uint64[] calldata weights) external view returns (uint256[] memory amounts);
}

/// @title Moves native OPEN between accounts without running the receiver's code; only `Open` may call
interface IOpenTransfer {
    /// @notice Moves `amount` wei of native OPEN from `from` to `to`.
    function transfer(address from, address to, uint256 amount) external;
}

/// @notice What a claim is judged by: the commitments of the model, the answer and the operator (specs/court.md).
struct Terms {
    bytes32 indexRoot;
    uint32 nEntries;
    bytes32 rangesRoot;
    uint32 nContributors;
    bytes32 queryHash;
    uint64 nullThreshold;
    uint128 pot;
    /// Commitments to the roots of scores, nets and shares.
    bytes32[3] roots;
    uint64 cutoffRemainder;
    uint32 cutoffPosition;
}

/// @title One step of a claim, judged (specs/court.md)
interface IPoaVerify {
    /// @notice Whether `step` shows that the claim is wrong; false if it is right there. Reverts if it shows neither.
    function isLie(Terms calldata terms, bytes calldata step) external view returns (bool);

    /// @notice The commitment of a node of the claim; reverts if `path` does not lead from it to the root.
    function open(Terms calldata terms, uint8 tree, uint32 level, uint32 position, bytes calldata path)
        external
        view
        returns (bytes32 node);

    /// @notice The commitment of the node, `level` above the leaves, that `row` is below.
    function reveal(uint8 tree, uint32 level, bytes calldata row) external view returns (bytes32 node);
}
