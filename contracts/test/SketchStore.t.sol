// SPDX-License-Identifier: Apache-2.0 OR MIT
pragma solidity 0.8.37;

import {SKETCH_STORE} from "../src/l2/Addresses.sol";
import {SketchStore} from "../src/l2/SketchStore.sol";
import {Chain} from "./support/Chain.sol";

/// Goal: an index on chain has the form and the root that specs/poa.md gives it.
contract SketchStoreTest is Chain {
    function setUp() public {
        genesis();
    }

    function list(address a) private pure returns (address[] memory chunks) {
        chunks = new address[](1);
        chunks[0] = a;
    }

    function list(address a, address b) private pure returns (address[] memory chunks) {
        chunks = new address[](2);
        (chunks[0], chunks[1]) = (a, b);
    }

    function test_codeIsStopAndChunk() public {
        bytes memory chunk = chunkOf(5, 3, packed(-7));
        address account = sketches.write(chunk);
        equal(keccak256(account.code), keccak256(abi.encodePacked(hex"00", chunk)), "code");
        equal(account, sketches.chunkAddress(chunk), "address is known before");
        equal(sketches.write(chunk), account, "written once");
        (, uint16 nEntries) = sketches.chunkOf(account);
        equal(nEntries, 3, "entries");
    }

    function test_fullIndexOfOneChunk() public {
        bytes memory chunk = chunkOf(1, 128, packed(7));
        equal(chunk.length, 23808, "size");
        bytes32 root = sealOne(chunk);
        (address[] memory chunks, uint32 nEntries) = sketches.indexOf(root);
        equal(nEntries, 128, "entries");
        equal(chunks.length, 1, "chunks");
        equal(chunks[0].code.length, 23809, "code");
        equal(sealOne(chunk), root, "sealing twice");
        (bytes32 chunkRoot,) = sketches.chunkOf(chunks[0]);
        equal(root, chunkRoot, "one chunk: its root is the sketch root");
    }

    function refused(bytes memory chunk, bytes memory reason) private {
        vm.expectRevert(reason);
        sketches.write(chunk);
    }

    function test_sizeRefused() public {
        refused("", abi.encodeWithSelector(SketchStore.ChunkSize.selector, 0));
        refused(new bytes(185), abi.encodeWithSelector(SketchStore.ChunkSize.selector, 185));
        refused(new bytes(187), abi.encodeWithSelector(SketchStore.ChunkSize.selector, 187));
        refused(chunkOf(1, 129, packed(1)), abi.encodeWithSelector(SketchStore.ChunkSize.selector, 129 * 186));
        vm.expectRevert(abi.encodeWithSelector(SketchStore.ChunkSize.selector, 65535 * 2));
        sketches.chunkAddress(new bytes(65535 * 2));
    }

    function test_orderRefused() public {
        bytes[] memory entries = new bytes[](2);
        entries[0] = entry(address(2), 7, 1, packed(1));
        uint160[3] memory contributors = [uint160(2), 2, 1];
        uint32[3] memory clusters = [uint32(7), 6, 8];
        for (uint256 i = 0; i < 3; ++i) {
            entries[1] = entry(address(contributors[i]), clusters[i], 1, packed(1));
            refused(join(entries), abi.encodeWithSelector(SketchStore.EntryOrder.selector, 1));
        }
        refused(entry(address(0), 3, 1, packed(1)), abi.encodeWithSelector(SketchStore.EntryOrder.selector, 0));
        entries[1] = entry(address(2), 8, 1, packed(1));
        sketches.write(join(entries));
    }

    function test_scaleRefused() public {
        refused(entry(address(1), 0, 0, packed(1)), abi.encodeWithSelector(SketchStore.EntryScale.selector, 0));
    }

    function testFuzz_codes(bytes32[4] memory words, uint256 place, bool spoil) public {
        bytes memory codes = abi.encodePacked(words);
        bool bad = false;
        for (uint256 j = 0; j < 128; ++j) {
            // Of random halves, few sketches would have no -8 at all.
            if (codes[j] & 0xf0 == 0x80) codes[j] ^= 0x10;
            if (codes[j] & 0x0f == 0x08) codes[j] ^= 0x01;
        }
        if (spoil) codes[place % 128] = place / 128 % 2 == 0 ? bytes1(0x80) : bytes1(0x18);
        for (uint256 j = 0; j < 128; ++j) {
            bad = bad || codes[j] & 0xf0 == 0x80 || codes[j] & 0x0f == 0x08;
        }
        bytes memory chunk = entry(address(1), 0, 1, codes);
        if (bad) refused(chunk, abi.encodeWithSelector(SketchStore.EntryCode.selector, 0));
        else sketches.write(chunk);
    }

    function test_sealRefused() public {
        address full = sketches.write(chunkOf(1, 128, packed(1)));
        address next = sketches.write(chunkOf(129, 2, packed(1)));
        address overlap = sketches.write(chunkOf(128, 2, packed(1)));

        vm.expectRevert(abi.encodeWithSelector(SketchStore.IndexSize.selector, 0));
        sketches.seal(new address[](0));
        vm.expectRevert(abi.encodeWithSelector(SketchStore.IndexSize.selector, 129));
        sketches.seal(new address[](129));
        vm.expectRevert(abi.encodeWithSelector(SketchStore.UnknownChunk.selector, STRANGER));
        sketches.seal(list(STRANGER));
        vm.expectRevert(abi.encodeWithSelector(SketchStore.ShortChunk.selector, next));
        sketches.seal(list(next, full));
        vm.expectRevert(abi.encodeWithSelector(SketchStore.ChunkOrder.selector, overlap));
        sketches.seal(list(full, overlap));
        vm.expectRevert(abi.encodeWithSelector(SketchStore.ChunkOrder.selector, full));
        sketches.seal(list(full, full));

        bytes32 root = sketches.seal(list(full, next));
        check(sketches.isSealed(root), "sealed");
        vm.expectRevert(abi.encodeWithSelector(SketchStore.UnknownRoot.selector, keccak256("other")));
        sketches.indexOf(keccak256("other"));
        // The accounts that keep the lists are no chunks.
        vm.expectRevert(abi.encodeWithSelector(SketchStore.UnknownChunk.selector, SKETCH_STORE));
        sketches.seal(list(SKETCH_STORE));
    }

    function test_clusterTwiceRefused() public {
        bytes[] memory entries = new bytes[](2);
        entries[0] = entry(address(1), type(uint32).max, 1, packed(1));
        entries[1] = entry(address(2), type(uint32).max, 1, packed(1));
        address chunk = sketches.write(join(entries));
        vm.expectRevert(abi.encodeWithSelector(SketchStore.DuplicateCluster.selector, type(uint32).max));
        sketches.seal(list(chunk));

        // Over two chunks: the second's first cluster is one of the first's.
        address full = sketches.write(chunkOf(1, 128, packed(1)));
        address last = sketches.write(entry(address(1000), 64, 1, packed(1)));
        vm.expectRevert(abi.encodeWithSelector(SketchStore.DuplicateCluster.selector, 64));
        sketches.seal(list(full, last));
    }

    /// @dev Cluster numbers that share their low bits, or their high bits, are still found different, or the same.
    function testFuzz_clusters(uint32[24] memory clusters, uint8 shift) public {
        bytes[] memory entries = new bytes[](24);
        bool duplicate = false;
        for (uint256 i = 0; i < 24; ++i) {
            clusters[i] = clusters[i] << (shift % 32);
            entries[i] = entry(address(uint160(i + 1)), clusters[i], 1, packed(1));
            for (uint256 j = 0; j < i; ++j) {
                duplicate = duplicate || clusters[i] == clusters[j];
            }
        }
        address chunk = sketches.write(join(entries));
        if (duplicate) vm.expectPartialRevert(SketchStore.DuplicateCluster.selector);
        sketches.seal(list(chunk));
    }

    event GasUsed(string what, uint256 gas);

    /// @dev The largest index there may be: 128 chunks. Writing a chunk and sealing must each fit in a block of 30
    /// million gas with room to spare.
    function test_largestIndex() public {
        address[] memory chunks = new address[](128);
        bytes memory codes = packed(1);
        uint256 used = 0;
        for (uint256 c = 0; c < 128; ++c) {
            bytes memory chunk = chunkOf(uint160(1 + c * 128), 128, codes);
            used = gasleft();
            chunks[c] = sketches.write(chunk);
            used -= gasleft();
            check(used < 6_000_000, "gas of writing a chunk");
            // The first figure is the cleanest: later ones hold the cost of this test's growing memory.
            if (c == 0) emit GasUsed("write, 128 entries", used);
        }
        vm.cool(SKETCH_STORE);
        for (uint256 c = 0; c < 128; ++c) {
            vm.cool(chunks[c]);
        }
        used = gasleft();
        bytes32 root = sketches.seal(chunks);
        used -= gasleft();
        emit GasUsed("seal, 16,384 entries", used);
        check(used < 8_000_000, "gas of sealing");
        (address[] memory found, uint32 nEntries) = sketches.indexOf(root);
        equal(nEntries, 16384, "entries");
        equal(keccak256(abi.encode(found)), keccak256(abi.encode(chunks)), "chunks");
    }
}
