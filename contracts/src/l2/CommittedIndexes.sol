// SPDX-License-Identifier: Apache-2.0 OR MIT
pragma solidity 0.8.37;

/// @title Sketch indexes that are committed to and kept off chain (specs/court.md)
/// @notice A model names such an index in the place of a sketch root. Its id says everything about it, so anyone may
/// commit and committing again changes nothing.
abstract contract CommittedIndexes {
    struct Commitment {
        bytes32 root;
        bytes32 rangesRoot;
        uint32 nEntries;
        uint32 nContributors;
    }

    /// @notice An index has 1 to 2^20 entries of 1 to 2^14 contributors, and each contributor an entry.
    error InvalidCounts(uint32 nEntries, uint32 nContributors);
    /// @notice No index with this id was committed to.
    error UnknownIndex(bytes32 id);

    event IndexCommitted(
        bytes32 indexed id, bytes32 object, bytes32 root, uint32 nEntries, bytes32 rangesRoot, uint32 nContributors
    );

    uint32 private constant ENTRIES_MAX = 1 << 20;
    uint32 private constant CONTRIBUTORS_MAX = 1 << 14;

    mapping(bytes32 id => Commitment) private _commitments;

    /// @notice Commits to an index.
    /// @param object id of the object that holds its entries
    /// @param root over the entries
    /// @param rangesRoot over the contributors and where their entries end
    /// @return id what a model names it by
    function commitIndex(bytes32 object, bytes32 root, uint32 nEntries, bytes32 rangesRoot, uint32 nContributors)
        external
        returns (bytes32 id)
    {
        bool valid = nEntries > 0 && nEntries <= ENTRIES_MAX && nContributors > 0 && nContributors <= CONTRIBUTORS_MAX
            && nContributors <= nEntries;
        if (!valid) revert InvalidCounts(nEntries, nContributors);
        id = keccak256(abi.encodePacked(uint8(3), object, root, nEntries, rangesRoot, nContributors));
        if (isCommitted(id)) return id;
        _commitments[id] =
            Commitment({root: root, rangesRoot: rangesRoot, nEntries: nEntries, nContributors: nContributors});
        emit IndexCommitted(id, object, root, nEntries, rangesRoot, nContributors);
    }

    /// @notice Whether an index with this id was committed to.
    function isCommitted(bytes32 id) public view returns (bool) {
        return _commitments[id].nEntries != 0;
    }

    /// @notice The index with this id; reverts if there is none.
    function indexOf(bytes32 id) public view returns (Commitment memory index) {
        index = _commitments[id];
        if (index.nEntries == 0) revert UnknownIndex(id);
    }
}
