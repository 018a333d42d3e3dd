// SPDX-License-Identifier: Apache-2.0 OR MIT
pragma solidity 0.8.37;

import {NamedRegistry} from "./NamedRegistry.sol";

/// @title Datanets and their published versions (specs/datanet.md)
/// @notice Content lives off chain; the chain keeps, for each version, the Merkle root and the manifest's hash.
/// @dev Storage: slots 0 and 1 NamedRegistry, slot 2 datanets, slot 3 versions.
contract DatanetRegistry is NamedRegistry {
    /// @notice A datanet: whom it pays, and how many versions it has.
    struct Datanet {
        address treasury;
        uint64 version;
    }

    /// @notice One published version.
    struct Version {
        bytes32 root;
        bytes32 manifestHash;
        uint64 nRecords;
        uint64 nContributors;
        uint64 publishedAt;
    }

    /// @notice A treasury must be an account.
    error InvalidTreasury();
    /// @notice Versions are 1, 2, …, without gaps.
    error WrongVersion(bytes32 id, uint64 expected, uint64 given);
    /// @notice A root or a manifest's hash is zero.
    error EmptyVersion();
    /// @notice A version holds its parent's records, and each contributor has a record.
    error InvalidCounts(uint64 nRecords, uint64 nContributors);

    event DatanetCreated(bytes32 indexed id, address indexed owner, string name, address treasury);
    event VersionPublished(
        bytes32 indexed id,
        uint64 indexed version,
        bytes32 root,
        bytes32 manifestHash,
        uint64 nRecords,
        uint64 nContributors
    );
    event TreasuryChanged(bytes32 indexed id, address treasury);

    mapping(bytes32 id => Datanet) private _datanets;
    mapping(bytes32 id => mapping(uint64 version => Version)) private _versions;

    /// @notice Creates the datanet `name`, owned by the caller.
    /// @return id keccak256 of the name
    function create(string calldata name, address treasury) external returns (bytes32 id) {
        if (treasury == address(0)) revert InvalidTreasury();
        id = _register(name);
        _datanets[id].treasury = treasury;
        emit DatanetCreated(id, msg.sender, name, treasury);
    }

    /// @notice Publishes the next version of a datanet.
    /// @param version must be one more than the newest
    /// @param root Merkle root over all records of the version
    /// @param manifestHash id of the manifest object
    function publish(
        bytes32 id,
        uint64 version,
        bytes32 root,
        bytes32 manifestHash,
        uint64 nRecords,
        uint64 nContributors
    ) external onlyOwner(id) {
        Datanet storage entry = _datanets[id];
        uint64 expected = entry.version + 1;
        if (version != expected) revert WrongVersion(id, expected, version);
        if (root == bytes32(0) || manifestHash == bytes32(0)) revert EmptyVersion();
        Version storage parent = _versions[id][entry.version];
        bool grows = nRecords >= parent.nRecords && nContributors >= parent.nContributors;
        if (!grows || nContributors == 0 || nContributors > nRecords) revert InvalidCounts(nRecords, nContributors);

        entry.version = version;
        _versions[id][version] = Version({
            root: root,
            manifestHash: manifestHash,
            nRecords: nRecords,
            nContributors: nContributors,
            publishedAt: uint64(block.timestamp)
        });
        emit VersionPublished(id, version, root, manifestHash, nRecords, nContributors);
    }

    /// @notice Changes who is paid for the datanet as a whole.
    function setTreasury(bytes32 id, address treasury) external onlyOwner(id) {
        if (treasury == address(0)) revert InvalidTreasury();
        _datanets[id].treasury = treasury;
        emit TreasuryChanged(id, treasury);
    }

    /// @notice The datanet with this id; reverts if there is none.
    /// @return owner who publishes
    /// @return treasury who is paid for the datanet as a whole
    /// @return version number of the newest version, 0 if none
    /// @return newest the newest version, all zero if none
    function datanet(bytes32 id)
        external
        view
        returns (address owner, address treasury, uint64 version, Version memory newest)
    {
        owner = ownerOf(id);
        treasury = _datanets[id].treasury;
        version = _datanets[id].version;
        newest = _versions[id][version];
    }

    /// @notice One version of a datanet; reverts if there is no such version.
    function versionOf(bytes32 id, uint64 version) external view returns (Version memory) {
        uint64 newest = _datanets[id].version;
        if (version == 0 || version > newest) revert WrongVersion(id, newest, version);
        return _versions[id][version];
    }
}
