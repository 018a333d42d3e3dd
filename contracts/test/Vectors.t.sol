// SPDX-License-Identifier: Apache-2.0 OR MIT
pragma solidity 0.8.37;

import {POA_SCORE, POA_SHARES} from "../src/l2/Addresses.sol";
import {IPoaScore, IPoaShares} from "../src/l2/Precompiles.sol";
import {Evidence, Receipt, hashOf} from "../src/l2/Receipt.sol";
import {Chain} from "./support/Chain.sol";

/// Goal: contracts and twins agree with the golden vectors, which an independent script computes
/// (scripts/vectors.mjs) and the Rust side reads, too.
contract VectorsTest is Chain {
    function setUp() public {
        genesis();
    }

    function path(string memory prefix, uint256 i, string memory suffix) private pure returns (string memory) {
        return string.concat(prefix, "[", vm.toString(i), "].", suffix);
    }

    function test_receipt() public view {
        string memory json = vm.readFile("test/vectors/receipt.json");
        Receipt memory receipt = Receipt({
            chainId: uint64(vm.parseJsonUint(json, ".fields.chainId")),
            settlement: vm.parseJsonAddress(json, ".fields.settlement"),
            payer: vm.parseJsonAddress(json, ".fields.payer"),
            requestId: vm.parseJsonBytes32(json, ".fields.requestId"),
            modelId: vm.parseJsonBytes32(json, ".fields.modelId"),
            baseHash: vm.parseJsonBytes32(json, ".fields.baseHash"),
            adapterHash: vm.parseJsonBytes32(json, ".fields.adapterHash"),
            manifestHash: vm.parseJsonBytes32(json, ".fields.manifestHash"),
            sketchRoot: vm.parseJsonBytes32(json, ".fields.sketchRoot"),
            promptHash: vm.parseJsonBytes32(json, ".fields.promptHash"),
            responseHash: vm.parseJsonBytes32(json, ".fields.responseHash"),
            queryHash: vm.parseJsonBytes32(json, ".fields.queryHash"),
            evidenceHash: vm.parseJsonBytes32(json, ".fields.evidenceHash"),
            tokensIn: uint32(vm.parseJsonUint(json, ".fields.tokensIn")),
            tokensOut: uint32(vm.parseJsonUint(json, ".fields.tokensOut")),
            feeWei: uint128(vm.parseJsonUint(json, ".fields.feeWei")),
            answeredAt: uint64(vm.parseJsonUint(json, ".fields.answeredAt"))
        });
        bytes memory encoding = abi.encode(receipt);
        equal(keccak256(encoding), keccak256(vm.parseJsonBytes(json, ".encoding")), "encoding");
        equal(keccak256(encoding), vm.parseJsonBytes32(json, ".id"), "id");
    }

    function test_evidence() public view {
        string memory json = vm.readFile("test/vectors/evidence.json");
        uint256 i = 0;
        for (; vm.keyExistsJson(json, string.concat(".cases[", vm.toString(i), "]")); ++i) {
            Evidence memory evidence = Evidence({
                spans: vm.parseJsonBytes(json, path(".cases", i, "spans")),
                context: vm.parseJsonBytes(json, path(".cases", i, "context")),
                object: vm.parseJsonBytes32(json, path(".cases", i, "object"))
            });
            equal(hashOf(evidence), vm.parseJsonBytes32(json, path(".cases", i, "hash")), "hash");
        }
        equal(i, 7, "cases read");
    }

    function test_sketch() public {
        string memory json = vm.readFile("test/vectors/sketch.json");
        uint256 i = 0;
        for (; vm.keyExistsJson(json, string.concat(".indexes[", vm.toString(i), "]")); ++i) {
            address[] memory chunks = writeAll(json, i);
            bytes32 root = sketches.seal(chunks);
            equal(root, vm.parseJsonBytes32(json, path(".indexes", i, "root")), "sketch root");
            (, uint32 nEntries) = sketches.indexOf(root);
            equal(nEntries, vm.parseJsonUint(json, path(".indexes", i, "nEntries")), "entries");
            checkScores(json, i, chunks);
        }
        equal(i, 3, "indexes read");
    }

    function writeAll(string memory json, uint256 i) private returns (address[] memory chunks) {
        bytes[] memory data = vm.parseJsonBytesArray(json, path(".indexes", i, "chunks"));
        bytes32[] memory roots = vm.parseJsonBytes32Array(json, path(".indexes", i, "chunkRoots"));
        address[] memory addresses = vm.parseJsonAddressArray(json, path(".indexes", i, "addresses"));
        chunks = new address[](data.length);
        for (uint256 c = 0; c < data.length; ++c) {
            chunks[c] = sketches.write(data[c]);
            equal(chunks[c], addresses[c], "address");
            (bytes32 chunkRoot,) = sketches.chunkOf(chunks[c]);
            equal(chunkRoot, roots[c], "chunk root");
        }
    }

    function checkScores(string memory json, uint256 i, address[] memory chunks) private view {
        uint64 nullThreshold = uint64(vm.parseJsonUint(json, path(".indexes", i, "nullThreshold")));
        bytes memory query = vm.parseJsonBytes(json, path(".indexes", i, "query"));
        (address[] memory contributors, uint64[] memory weights) =
            IPoaScore(POA_SCORE).score(chunks, nullThreshold, query);
        address[] memory expected = vm.parseJsonAddressArray(json, path(".indexes", i, "contributors"));
        uint256[] memory expectedWeights = vm.parseJsonUintArray(json, path(".indexes", i, "weights"));
        equal(keccak256(abi.encode(contributors)), keccak256(abi.encode(expected)), "contributors");
        equal(keccak256(abi.encode(weights)), keccak256(abi.encode(expectedWeights)), "weights");
    }

    function test_shares() public view {
        string memory json = vm.readFile("test/vectors/shares.json");
        uint256 i = 0;
        for (; vm.keyExistsJson(json, string.concat(".cases[", vm.toString(i), "]")); ++i) {
            uint256[] memory weights = vm.parseJsonUintArray(json, path(".cases", i, "weights"));
            uint64[] memory narrow = new uint64[](weights.length);
            for (uint256 j = 0; j < weights.length; ++j) {
                narrow[j] = uint64(weights[j]);
            }
            uint256[] memory amounts =
                IPoaShares(POA_SHARES).shares(vm.parseJsonUint(json, path(".cases", i, "pot")), narrow);
            uint256[] memory expected = vm.parseJsonUintArray(json, path(".cases", i, "amounts"));
            equal(keccak256(abi.encode(amounts)), keccak256(abi.encode(expected)), "amounts");
        }
        equal(i, 10, "cases read");
    }

    /// @dev Vectors of the engine (fixtures/poa, made by another script): roots of the first entries of one file.
    function test_engineRoots() public {
        string memory json = vm.readFile("../fixtures/poa/vectors.json");
        bytes memory entries = vm.readFileBinary("../fixtures/poa/entries.bin");
        uint256 i = 0;
        for (; vm.keyExistsJson(json, string.concat(".indexes[", vm.toString(i), "]")); ++i) {
            uint256 n = vm.parseJsonUint(json, path(".indexes", i, "n_entries"));
            address[] memory chunks = new address[]((n + 127) / 128);
            for (uint256 c = 0; c < chunks.length; ++c) {
                uint256 size = c + 1 < chunks.length ? 128 : n - c * 128;
                chunks[c] = sketches.write(slice(entries, c * 128 * 186, size * 186));
            }
            bytes32 root = vm.parseJsonBytes32(json, path(".indexes", i, "root"));
            equal(sketches.seal(chunks), root, "sketch root");
        }
        check(i > 0, "no index read");
    }

    function slice(bytes memory data, uint256 start, uint256 size) private pure returns (bytes memory part) {
        part = new bytes(size);
        assembly ("memory-safe") {
            mcopy(add(part, 0x20), add(add(data, 0x20), start), size)
        }
    }

    function testFuzz_sharesAreExactAndOrdered(uint128 pot, uint64[] memory weights) public view {
        uint256 n = weights.length > 32 ? 32 : weights.length;
        uint64[] memory some = new uint64[](n);
        uint256 sum = 0;
        for (uint256 i = 0; i < n; ++i) {
            some[i] = weights[i] >> 1;
            sum += some[i];
        }
        uint256[] memory amounts = IPoaShares(POA_SHARES).shares(pot, some);
        uint256 paid = 0;
        for (uint256 i = 0; i < n; ++i) {
            paid += amounts[i];
            if (sum > 0) {
                uint256 floor = uint256(pot) * some[i] / sum;
                check(amounts[i] == floor || amounts[i] == floor + 1, "within a unit of its share");
            }
            for (uint256 j = 0; j < i; ++j) {
                check(some[i] <= some[j] || amounts[i] >= amounts[j], "more weight, not less pay");
            }
        }
        equal(paid, sum == 0 ? 0 : pot, "sum");
    }
}
