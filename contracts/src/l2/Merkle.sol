// SPDX-License-Identifier: Apache-2.0 OR MIT
pragma solidity 0.8.37;

/// @title Domain-separated keccak trees (specs/poa.md, "Chunks and root")
library Merkle {
    /// @notice The root of a perfect tree. Destroys `level`.
    /// @param level the nodes of its lowest level; their number is a power of two (the caller's duty)
    function root(bytes32[] memory level) internal pure returns (bytes32 top) {
        assembly ("memory-safe") {
            let nodes := add(level, 0x20)
            // A node's preimage is 0x01, left, right: 65 bytes in the free memory.
            let preimage := mload(0x40)
            mstore8(preimage, 1)
            for { let width := mload(level) } gt(width, 1) {} {
                width := shr(1, width)
                for { let i := 0 } lt(i, width) { i := add(i, 1) } {
                    mcopy(add(preimage, 1), add(nodes, shl(6, i)), 0x40)
                    mstore(add(nodes, shl(5, i)), keccak256(preimage, 65))
                }
            }
            top := mload(nodes)
        }
    }
}
