// SPDX-License-Identifier: Apache-2.0 OR MIT
pragma solidity 0.8.37;

import {
    ATTRIBUTION_COURT,
    DATANET_REGISTRY,
    INFERENCE_SETTLEMENT,
    MODEL_REGISTRY,
    OPEN,
    OPEN_TRANSFER,
    POA_SCORE,
    POA_SHARES,
    POA_VERIFY,
    SKETCH_STORE
} from "../../src/l2/Addresses.sol";
import {AttributionCourt} from "../../src/l2/AttributionCourt.sol";
import {DatanetRegistry} from "../../src/l2/DatanetRegistry.sol";
import {InferenceSettlement} from "../../src/l2/InferenceSettlement.sol";
import {ModelRegistry} from "../../src/l2/ModelRegistry.sol";
import {Open} from "../../src/l2/Open.sol";
import {SketchStore} from "../../src/l2/SketchStore.sol";
import {PoaVerifyTwin} from "./CourtTwin.sol";
import {OpenTransferDouble, PoaScoreTwin, PoaSharesTwin} from "./Twins.sol";
import {Vm} from "./Vm.sol";

/// @notice A test on a chain whose genesis is like ours: predeploys placed as code, roles written to storage, and the
/// twins of the precompiles at their addresses.
abstract contract Chain {
    Vm internal constant vm = Vm(address(uint160(uint256(keccak256("hevm cheat code")))));

    Open internal constant open = Open(OPEN);
    DatanetRegistry internal constant datanets = DatanetRegistry(DATANET_REGISTRY);
    ModelRegistry internal constant models = ModelRegistry(MODEL_REGISTRY);
    SketchStore internal constant sketches = SketchStore(SKETCH_STORE);
    AttributionCourt internal constant court = AttributionCourt(payable(ATTRIBUTION_COURT));
    InferenceSettlement internal constant settlement = InferenceSettlement(INFERENCE_SETTLEMENT);

    address internal constant PLATFORM = address(0xa0);
    address internal constant OPERATOR = address(0xa1);
    address internal constant STAKERS = address(0xa2);
    address internal constant OWNER = address(0xa3);
    address internal constant PAYER = address(0xa4);
    address internal constant TREASURY = address(0xa5);
    address internal constant STRANGER = address(0xa6);

    uint256 internal constant CHAIN_ID = 161200;

    function genesis() internal {
        vm.chainId(CHAIN_ID);
        vm.warp(1_800_000_000);
        vm.roll(7);
        place(OPEN, type(Open).runtimeCode);
        place(DATANET_REGISTRY, type(DatanetRegistry).runtimeCode);
        place(MODEL_REGISTRY, type(ModelRegistry).runtimeCode);
        place(SKETCH_STORE, type(SketchStore).runtimeCode);
        place(INFERENCE_SETTLEMENT, type(InferenceSettlement).runtimeCode);
        place(ATTRIBUTION_COURT, type(AttributionCourt).runtimeCode);
        place(POA_VERIFY, type(PoaVerifyTwin).runtimeCode);
        place(POA_SCORE, type(PoaScoreTwin).runtimeCode);
        place(POA_SHARES, type(PoaSharesTwin).runtimeCode);
        place(OPEN_TRANSFER, type(OpenTransferDouble).runtimeCode);
        vm.allowCheatcodes(OPEN_TRANSFER);
        address[3] memory roles = [PLATFORM, OPERATOR, STAKERS];
        for (uint256 slot = 0; slot < 3; ++slot) {
            vm.store(INFERENCE_SETTLEMENT, bytes32(slot), bytes32(uint256(uint160(roles[slot]))));
        }
    }

    function place(address account, bytes memory code) private {
        vm.etch(account, code);
        vm.setNonce(account, 1);
    }

    // --- sketches --------------------------------------------------------------------------------

    function entry(address contributor, uint32 cluster, uint16 scale, bytes memory codes)
        internal
        pure
        returns (bytes memory)
    {
        return abi.encodePacked(contributor, keccak256(abi.encode(contributor, cluster)), cluster, scale, codes);
    }

    /// @dev A query sketch of 256 codes, all the same.
    function flat(int8 code) internal pure returns (bytes memory codes) {
        codes = new bytes(256);
        for (uint256 j = 0; j < 256; ++j) {
            codes[j] = bytes1(uint8(code));
        }
    }

    /// @dev The 256 codes of an entry, all the same, two in a byte.
    function packed(int8 code) internal pure returns (bytes memory codes) {
        codes = new bytes(128);
        for (uint256 j = 0; j < 128; ++j) {
            codes[j] = bytes1((uint8(code) & 15) * 17);
        }
    }

    /// @dev A chunk of `n` entries by contributors `first`, `first` + 1, …, in clusters of the same numbers.
    function chunkOf(uint160 first, uint256 n, bytes memory codes) internal pure returns (bytes memory chunk) {
        bytes[] memory entries = new bytes[](n);
        for (uint256 i = 0; i < n; ++i) {
            entries[i] = entry(address(first + uint160(i)), uint32(first + i), 1, codes);
        }
        return join(entries);
    }

    function join(bytes[] memory parts) internal pure returns (bytes memory joined) {
        uint256 size = 0;
        for (uint256 i = 0; i < parts.length; ++i) {
            size += parts[i].length;
        }
        joined = new bytes(size);
        size = 0;
        for (uint256 i = 0; i < parts.length; ++i) {
            bytes memory part = parts[i];
            assembly ("memory-safe") {
                mcopy(add(add(joined, 0x20), size), add(part, 0x20), mload(part))
            }
            size += part.length;
        }
    }

    function sealOne(bytes memory chunk) internal returns (bytes32 root) {
        address[] memory chunks = new address[](1);
        chunks[0] = sketches.write(chunk);
        return sketches.seal(chunks);
    }

    /// @dev A list of evidence: `n` contributors from `first` on, with different weights, that earned all of the pot.
    function listOf(uint160 first, uint256 n, uint64 weight) internal pure returns (bytes memory list) {
        return listOf(first, n, weight, 0);
    }

    /// @dev The same, and `unearned` that nobody did, as far as a total can be.
    function listOf(uint160 first, uint256 n, uint64 weight, uint64 unearned)
        internal
        pure
        returns (bytes memory list)
    {
        uint64 total = 0;
        for (uint160 i = 0; i < n; ++i) {
            uint64 each = (weight >> (2 + 3 * uint64(i))) + uint64(i) + 1;
            total += each;
            list = abi.encodePacked(list, first + i, each);
        }
        if (n == 0) return "";
        total += unearned > type(uint64).max - total ? 0 : unearned;
        return abi.encodePacked(total, list);
    }

    // --- models ----------------------------------------------------------------------------------

    function paramsFor(bytes32 sketchRoot) internal pure returns (ModelRegistry.Params memory params) {
        params.baseHash = keccak256("base");
        params.adapterHash = keccak256("adapter");
        params.manifestHash = keccak256("manifest");
        params.sketchRoot = sketchRoot;
        params.datanetIds = new bytes32[](1);
        params.datanetIds[0] = keccak256("legal");
        params.treasury = TREASURY;
        params.priceInPerKTokens = 1 ether;
        params.priceOutPerKTokens = 2 ether;
        params.platformFee = 7;
        params.splitBps = [uint16(1000), 2000, 2000, 5000];
        params.potsBps = [uint16(10_000), 0, 0];
    }

    /// @dev Registers the datanet and a model over one chunk.
    function modelOver(bytes memory chunk) internal returns (bytes32 id) {
        vm.prank(OWNER);
        datanets.create("legal", TREASURY);
        bytes32 root = sealOne(chunk);
        vm.prank(OWNER);
        return models.register("legal-model", paramsFor(root));
    }

    // --- assertions ------------------------------------------------------------------------------

    error NotEqual(string what, bytes32 found, bytes32 expected);

    function check(bool condition, string memory what) internal pure {
        require(condition, what);
    }

    function equal(uint256 found, uint256 expected, string memory what) internal pure {
        if (found != expected) revert NotEqual(what, bytes32(found), bytes32(expected));
    }

    function equal(bytes32 found, bytes32 expected, string memory what) internal pure {
        if (found != expected) revert NotEqual(what, found, expected);
    }

    function equal(address found, address expected, string memory what) internal pure {
        equal(uint256(uint160(found)), uint256(uint160(expected)), what);
    }

    function equal(string memory found, string memory expected, string memory what) internal pure {
        equal(keccak256(bytes(found)), keccak256(bytes(expected)), what);
    }
}
