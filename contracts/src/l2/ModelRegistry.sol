// SPDX-License-Identifier: Apache-2.0 OR MIT
pragma solidity 0.8.37;

import {ATTRIBUTION_COURT, DATANET_REGISTRY, INFERENCE_SETTLEMENT, SKETCH_STORE} from "./Addresses.sol";
import {CommittedIndexes} from "./CommittedIndexes.sol";
import {DatanetRegistry} from "./DatanetRegistry.sol";
import {NamedRegistry} from "./NamedRegistry.sol";
import {SketchStore} from "./SketchStore.sol";

/// @dev Who may set the bounds of the pots, until there is governance.
interface IPlatform {
    function platform() external view returns (address);
}

/// @title Models, what they were made of, and what an answer costs
/// @notice A model's owner adds versions; old ones are kept for ever. Receipts settle against the newest.
/// @dev Storage: slots 0 and 1 NamedRegistry, slot 2 number of the newest version, slot 3 versions, slot 4 bounds of
/// the pots (zero until they are set: the initial ones).
contract ModelRegistry is NamedRegistry {
    /// @notice One version of a model. Prices are in wei.
    struct Params {
        /// Hash of the base model.
        bytes32 baseHash;
        /// Hash of the adapter.
        bytes32 adapterHash;
        /// Hash of the training manifest.
        bytes32 manifestHash;
        /// Root of the sketch index, sealed in the SketchStore, or id of one committed to in the AttributionCourt.
        bytes32 sketchRoot;
        /// Datanets it learned from: 1 to 16 different ones.
        bytes32[] datanetIds;
        /// Gets the contributors' part of an answer that nobody's data moved.
        address treasury;
        /// What a contributor's net score must exceed to be paid.
        uint64 nullThreshold;
        /// Price of 1,000 prompt tokens.
        uint128 priceInPerKTokens;
        /// Price of 1,000 answer tokens.
        uint128 priceOutPerKTokens;
        /// Flat part of the fee.
        uint128 platformFee;
        /// Parts of platform, model owner, stakers and contributors, in 1/10,000.
        uint16[4] splitBps;
        /// What the contributors' part is divided into, in 1/10,000: training, spans and context (specs/poa.md, "Pots").
        uint16[3] potsBps;
    }

    /// @notice What the pots of a version may be, in 1/10,000 of the contributors' part.
    struct PotBounds {
        uint16 trainingMinBps;
        uint16 spansMaxBps;
        uint16 contextMaxBps;
    }

    /// @notice The hash of base, adapter or training manifest is zero.
    error EmptyHash();
    /// @notice No sketch index with this root was sealed or committed to.
    error SketchNotSealed(bytes32 root);
    /// @notice A model learns from 1 to 16 datanets.
    error InvalidDatanetCount(uint256 count);
    /// @notice There is no such datanet, or it is named twice.
    error InvalidDatanet(bytes32 datanetId);
    /// @notice A treasury must be an account.
    error InvalidTreasury();
    /// @notice No price is above all OPEN there is.
    error PriceTooHigh();
    /// @notice The parts must add up to 10,000.
    error InvalidSplit(uint256 sumBps);
    /// @notice The pots must add up to 10,000.
    error InvalidPots(uint256 sumBps);
    /// @notice A pot is outside of the bounds that hold for new versions.
    error PotsOutOfBounds(uint16[3] potsBps, PotBounds bounds);
    /// @notice Bounds must let some division be, and stay within the hard caps.
    error InvalidPotBounds(PotBounds bounds);
    /// @notice A model whose index is only committed to pays by training alone (specs/court.md).
    error PotsOfCommittedIndex(bytes32 root);
    /// @notice The caller does not have the role.
    error NotPlatform(address caller);
    /// @notice The model has no such version.
    error UnknownVersion(bytes32 id, uint64 version);

    event ModelRegistered(bytes32 indexed id, address indexed owner, string name);
    event VersionAdded(
        bytes32 indexed id,
        uint64 indexed version,
        bytes32 baseHash,
        bytes32 adapterHash,
        bytes32 manifestHash,
        bytes32 sketchRoot
    );

    event PotBoundsChanged(uint16 trainingMinBps, uint16 spansMaxBps, uint16 contextMaxBps);

    uint256 private constant DATANETS_MAX = 16;
    /// @dev With at most 2^32 tokens either way, a fee stays below 2^128.
    uint256 private constant PRICE_MAX = 1_000_000_000 ether;
    uint256 private constant BPS = 10_000;
    /// @dev What bounds may not go beyond: influence is always paid, presence never most of it.
    uint16 private constant TRAINING_MIN_BPS_FLOOR = 2_500;
    uint16 private constant SPANS_MAX_BPS_CAP = 5_000;
    uint16 private constant CONTEXT_MAX_BPS_CAP = 5_000;

    mapping(bytes32 id => uint64) private _newest;
    mapping(bytes32 id => mapping(uint64 version => Params)) private _versions;
    PotBounds private _potBounds;

    /// @notice Registers the model `name`, owned by the caller, with its first version.
    /// @return id keccak256 of the name
    function register(string calldata name, Params calldata params) external returns (bytes32 id) {
        id = _register(name);
        emit ModelRegistered(id, msg.sender, name);
        _add(id, params);
    }

    /// @notice Adds a version, which replaces the one before it for all receipts not yet settled.
    /// @return version its number
    function update(bytes32 id, Params calldata params) external onlyOwner(id) returns (uint64 version) {
        return _add(id, params);
    }

    /// @notice The newest version of a model; reverts if there is no such model.
    function current(bytes32 id) external view returns (address owner, uint64 version, Params memory params) {
        owner = ownerOf(id);
        version = _newest[id];
        params = _versions[id][version];
    }

    /// @notice One version of a model; reverts if there is no such version.
    function versionOf(bytes32 id, uint64 version) external view returns (Params memory) {
        if (version == 0 || version > _newest[id]) revert UnknownVersion(id, version);
        return _versions[id][version];
    }

    /// @notice Between what the pots of a new version must be.
    function potBounds() public view returns (PotBounds memory bounds) {
        bounds = _potBounds;
        if (bounds.trainingMinBps == 0) {
            bounds = PotBounds({trainingMinBps: 5_000, spansMaxBps: 4_000, contextMaxBps: 4_000});
        }
    }

    /// @notice Sets between what the pots of new versions must be; those that are there stay as they are.
    function setPotBounds(PotBounds calldata bounds) external {
        if (msg.sender != IPlatform(INFERENCE_SETTLEMENT).platform()) revert NotPlatform(msg.sender);
        bool valid = bounds.trainingMinBps >= TRAINING_MIN_BPS_FLOOR && bounds.trainingMinBps <= BPS
            && bounds.spansMaxBps <= SPANS_MAX_BPS_CAP && bounds.contextMaxBps <= CONTEXT_MAX_BPS_CAP;
        if (!valid) revert InvalidPotBounds(bounds);
        _potBounds = bounds;
        emit PotBoundsChanged(bounds.trainingMinBps, bounds.spansMaxBps, bounds.contextMaxBps);
    }

    function _add(bytes32 id, Params calldata params) private returns (uint64 version) {
        _check(params);
        version = _newest[id] + 1;
        _newest[id] = version;
        _versions[id][version] = params;
        emit VersionAdded(id, version, params.baseHash, params.adapterHash, params.manifestHash, params.sketchRoot);
    }

    function _check(Params calldata params) private view {
        if (params.baseHash == 0 || params.adapterHash == 0 || params.manifestHash == 0) revert EmptyHash();
        bool isCommitted = CommittedIndexes(ATTRIBUTION_COURT).isCommitted(params.sketchRoot);
        if (!isCommitted && !SketchStore(SKETCH_STORE).isSealed(params.sketchRoot)) {
            revert SketchNotSealed(params.sketchRoot);
        }
        if (params.treasury == address(0)) revert InvalidTreasury();
        bool affordable = params.priceInPerKTokens <= PRICE_MAX && params.priceOutPerKTokens <= PRICE_MAX
            && params.platformFee <= PRICE_MAX;
        if (!affordable) revert PriceTooHigh();
        uint256 sumBps = 0;
        for (uint256 i = 0; i < 4; ++i) {
            sumBps += params.splitBps[i];
        }
        if (sumBps != BPS) revert InvalidSplit(sumBps);
        _checkPots(params.potsBps);
        if (isCommitted && params.potsBps[0] != BPS) revert PotsOfCommittedIndex(params.sketchRoot);

        uint256 n = params.datanetIds.length;
        if (n == 0 || n > DATANETS_MAX) revert InvalidDatanetCount(n);
        for (uint256 i = 0; i < n; ++i) {
            bytes32 datanetId = params.datanetIds[i];
            if (!DatanetRegistry(DATANET_REGISTRY).exists(datanetId)) revert InvalidDatanet(datanetId);
            for (uint256 j = 0; j < i; ++j) {
                if (params.datanetIds[j] == datanetId) revert InvalidDatanet(datanetId);
            }
        }
    }

    function _checkPots(uint16[3] calldata potsBps) private view {
        uint256 sumBps = uint256(potsBps[0]) + potsBps[1] + potsBps[2];
        if (sumBps != BPS) revert InvalidPots(sumBps);
        PotBounds memory bounds = potBounds();
        bool valid = potsBps[0] >= bounds.trainingMinBps && potsBps[1] <= bounds.spansMaxBps
            && potsBps[2] <= bounds.contextMaxBps;
        if (!valid) revert PotsOutOfBounds(potsBps, bounds);
    }
}
